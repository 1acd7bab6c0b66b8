"""How many channels reinforcement learning needs, for what, and what it is worth elsewhere."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isac_gym.agents.loading import prepare_agent
from isac_gym.agents.reinforcement import Reinforcement
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.judging import AgentResult, evaluate
from isac_gym.evaluation.statistics import over_seeds
from isac_gym.evaluation.table import Column, Row, Table
from isac_gym.experiments.base import Point, Workspace, check_evaluation_seed, setting
from isac_gym.experiments.by_station import judge_stations
from isac_gym.experiments.reinforcement_references import BEST_STRUCTURED, Conditioned, Reference
from isac_gym.experiments.style import MARKERS, make_figure, make_palette, style_axes
from isac_gym.files import write_atomically
from isac_gym.learning.progress import TrainingProgress
from isac_gym.reading import Count, Real, Seconds, open_file, read_json
from isac_gym.registry import register_experiment
from isac_gym.validation import not_allowed

__all__ = ["ReinforcementCurves"]

_MODEL_BASED: Final = "tuned"
"""The name of the agent that learns through the physics, by its preset."""
_AS_TRAINED: Final = "as trained"
_OF_STRUCTURED: Final = "% of structured"
_SHARES: Final = (80, 90, 95)
"""Percentages of the optimum whose cost in channels and processor time is stated."""
_LEAST_CHANNELS: Final = 1000
_MARKS_A_DECADE: Final = 6
_TOLERANCE: Final = 0.01
"""Relative excess of ε up to which a mark of a learning curve counts as reached."""


@register_experiment("rl", "reinforcement learning: curves, thresholds, shifted conditions")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcementCurves(Conditioned):
    """Agents of reinforcement learning beside one that learns through the physics.

    Each is trained with several seeds, and judged as it learns: at channels seen that grow
    geometrically from 1000. At other thresholds it is trained anew, with the first seed. What was
    trained at the scenario's own threshold also meets conditions that it was not trained for:
    a line of sight, channels that change with time, errors of the channel estimates, and channels
    from a file. Every rate is set beside that of ``joint-expected`` on the same channels, or of
    ``wmmse`` where the radar is fixed. That of structured control is also set beside the best that
    three numbers a user allow (``structured-expected``), where all users are served and conditions
    are those of the training: so what the space of actions costs is told from what the learning
    leaves.

    How long a training is, is a setting of its algorithm; see
    :data:`isac_gym.rl.settings.KEPT`.

    Attributes:
        agents: ``"tuned"`` for ``primal-dual`` with that preset, or names of algorithms; with
            ``ALGORITHM:CONTROL`` one acts in another control mode than the usual.
        agent_settings: Settings of all agents of reinforcement learning to change.
        thresholds: Further values of ε.
        seeds: Number of seeds of the trainings, from 0.
    """

    agents: tuple[str, ...] = setting(
        (_MODEL_BASED, "ppo-lagrangian", "ppo", "sac-lagrangian", "sac", "td3", "tqc"),
        "'tuned', or an algorithm of RL, with another control mode as ALGORITHM:CONTROL "
        "(repeatable).",
        option="--agent",
        only_selects=True,
    )
    agent_settings: Mapping[str, Any] = setting(
        {},
        "Change a setting of all agents of RL, for example -a timesteps=100000 (repeatable).",
        option="--agent-set -a",
    )
    thresholds: tuple[float, ...] = setting(
        (),
        "Further value of the sensing threshold (repeatable).",
        minimum=0.0,
        option="--threshold",
        only_selects=True,
    )
    seeds: int = setting(5, "Number of seeds, from 0.", minimum=1, only_selects=True)

    def points(self) -> list[Point]:
        """Every agent with every seed, then at further thresholds with the first.

        Raises:
            ValueError: If there are several stations, an agent cannot be made, or training would
                see the channels of the evaluation.
        """
        if self.scenario.num_cells > 1:
            raise not_allowed("num_cells", self.scenario.num_cells, "1 for this experiment")
        check_evaluation_seed(self.evaluation_seed, self.seeds)
        own = self.scenario.sensing_threshold
        for name in self.agents:
            self._make_agent(name, self.env, 0)
        for limit in self.thresholds:
            self.make_env(sensing_threshold=limit)
        points: list[Point] = [
            {"agent": name, "ε": own, "seed": seed}
            for name in self.agents
            for seed in range(self.seeds)
        ]
        others = (limit for limit in dict.fromkeys(self.thresholds) if limit != own)
        points += [{"agent": name, "ε": e, "seed": 0} for e in others for name in self.agents]
        return points

    def _make_agent(self, name: str, env: Any, seed: int) -> Any:
        if name == _MODEL_BASED:
            return prepare_agent("primal-dual", env, seed=seed, preset="tuned").agent
        algorithm, _, control = name.partition(":")
        options = {"control": control} if control else {}
        return Reinforcement(env, algorithm, seed=seed, **options, **self.agent_settings)

    def run(self, point: Point, workspace: Workspace) -> Row:
        """Train an agent, judging it as it learns, and meet it with other conditions."""
        name, limit = point["agent"], point["ε"]
        env = self.make_env(sensing_threshold=limit)
        agent = self._make_agent(name, env, point["seed"])
        blocks = self.draw_channels(env, self.channels, self.evaluation_seed)
        kept = workspace.keep_training(f"{name}-{limit:g}-{point['seed']}")
        path = kept["checkpoint"]
        # An iteration of one is a batch of channels, and of the other a block.
        is_reinforcement = isinstance(agent, Reinforcement)
        rate = 1 / agent.blocks_per_channel if is_reinforcement else agent.config.batch_size
        curve = _Curve(
            agent, env, blocks, rate, None if path is None else path.with_suffix(".curve.json")
        )
        agent.learn(callback=curve, **kept)
        seconds = curve.measure_time()
        result = evaluate(agent, env, blocks, name=name)
        curve.finish(result, seconds)
        row: dict[str, Any] = {
            **_state(result, self.find_reference(env, blocks, workspace)),
            "channels_seen": curve.channels[-1],
            "blocks_seen": curve.channels[-1]
            * (agent.blocks_per_channel if is_reinforcement else 1),
            "training_seconds": curve.seconds[-1],
            "best_structured": None,
            "curve": curve.state(),
            "shifted": {},
        }
        is_structured = is_reinforcement and agent.inner.scenario.control == "structured"
        if is_structured and self.scenario.scheduling == "all":
            best = self.find_best_structured(env, blocks, workspace)
            row["best_structured"] = best.rate
            row["best_structured_loss"] = best.loss
        if limit == self.scenario.sensing_threshold:
            for condition in self.conditions:
                workspace.say(f"{name}, seed {point['seed']}: {condition}")
                shifted, met_blocks = self.shift(condition)
                met = evaluate(agent, shifted, met_blocks, name=name)
                row["shifted"][condition] = _state(
                    met, self.find_reference(shifted, met_blocks, workspace)
                )
        return row

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """A row for each agent, threshold and condition: means over seeds with their intervals."""
        by_agent: dict[tuple[str, float], list[Row]] = {}
        for row in rows:
            by_agent.setdefault((row["agent"], row["ε"]), []).append(row)
        own = self.scenario.sensing_threshold
        made = []
        for (name, limit), found in by_agent.items():
            reference = self._state_reference(found)
            entry = {
                **_summarise(name, limit, _AS_TRAINED, found),
                "channels": float(np.mean([row["channels_seen"] for row in found])),
                "blocks": float(np.mean([row["blocks_seen"] for row in found])),
                "seconds": float(np.mean([row["training_seconds"] for row in found])),
                **{
                    f"{what} to {share} %": _find_cost(found, share / 100 * reference, limit, what)
                    for what in ("channels", "seconds")
                    for share in _SHARES
                },
                "curves": [row["curve"] for row in found],
            }
            best = found[0].get("best_structured")
            if best is not None:
                shares = [100.0 * row["rate"] / best for row in found]
                entry |= over_seeds(_OF_STRUCTURED, shares)
                entry["best structured"] = best
                entry["best structured L_r"] = found[0]["best_structured_loss"]
            made.append(entry)
        for condition in self.conditions:
            for (name, limit), found in by_agent.items():
                if limit == own:
                    met = [row["shifted"][condition] for row in found]
                    made.append(_summarise(name, limit, condition, met))
        settings = {**self.settings(), "optimum": self._state_reference(rows)}
        return Table(
            f"Reinforcement learning: {self.seeds} seeds, {self.channels} channels, seed "
            f"{self.evaluation_seed}",
            tuple(made),
            settings,
            columns=[
                Column("agent", "{agent}", "left"),
                Column("ε", "{ε:g}"),
                Column("condition", "{condition}", "left"),
                *(
                    Column(heading, functools.partial(_show, name=heading, digits=digits))
                    for heading, digits in (
                        ("bit/s/Hz", 3),
                        ("mean L_r", 4),
                        ("% of optimum", 1),
                        (_OF_STRUCTURED, 1),
                    )
                ),
                *(
                    Column(heading, functools.partial(_show, name=heading, digits=0))
                    for heading in ("channels", "blocks", "seconds")
                ),
                *(
                    Column(f"to {share} %", functools.partial(_show_cost, share=share))
                    for share in _SHARES
                ),
            ],
            caption="± 95 % interval over seeds; % of optimum: of "
            f"{self.reference_name} on the same channels, whatever L_r is; {_OF_STRUCTURED}: "
            f"of {BEST_STRUCTURED}; seconds: those of all processor cores together; to: channels "
            "seen and seconds, as medians over seeds, when the rate was that share of the optimum "
            f"and the mean L_r at most {_TOLERANCE:.0%} above ε",
        )

    def _state_reference(self, rows: Sequence[Row]) -> float:
        return float(rows[0]["reference"])

    def draw(self, table: Table) -> Figure:
        """Rate and sensing loss over the channels seen, and rate against sensing loss."""
        own = self.scenario.sensing_threshold
        trained = [row for row in table.rows if row["condition"] == _AS_TRAINED]
        figure, (rates, losses, front) = make_figure(15.0, 5.0, columns=3)
        palette = make_palette()
        names = list(dict.fromkeys(row["agent"] for row in trained))
        for number, name in enumerate(names):
            colour, marker = palette[number % len(palette)], MARKERS[number % len(MARKERS)]
            of_agent = [row for row in trained if row["agent"] == name]
            for row in of_agent:
                if row["ε"] == own:
                    _draw_curve(rates, row, "rate", colour, name)
                    _draw_curve(losses, row, "loss", colour, name)
            points = sorted((row["mean L_r"], row["bit/s/Hz"]) for row in of_agent)
            front.plot(*zip(*points, strict=True), f"{marker}-", color=colour, label=name)
        optimum = sorted({(row["reference L_r"], row["reference"]) for row in trained})
        front.plot(*zip(*optimum, strict=True), "k*--", label=self.reference_name)
        levels = [
            (rates, table.settings["optimum"], self.reference_name, "--"),
            (losses, own, "ε", "--"),
        ]
        best = {
            row["best structured"]
            for row in trained
            if row["ε"] == own and "best structured" in row
        }
        levels += [(rates, level, BEST_STRUCTURED, ":") for level in best]
        for axes, level, text, style in levels:
            axes.axhline(level, color="0.4", ls=style, lw=1, label=text)
        for axes, label in ((rates, "spectral efficiency (bit/s/Hz)"), (losses, "mean L_r")):
            style_axes(axes, fontsize="small")
            axes.set(xscale="log", xlabel="channels seen", ylabel=label)
        seen = [loss for row in trained for curve in row["curves"] for loss in curve["losses"]]
        losses.set_ylim(0.95 * min(own, *seen), 1.05 * max(own, *seen))
        style_axes(front, fontsize="small")
        front.set(xlabel="mean L_r", ylabel="spectral efficiency (bit/s/Hz)")
        front.autoscale(axis="y")
        front.locator_params(axis="x", nbins=5)
        figure.suptitle(
            f"{self.channels} channels, seed {self.evaluation_seed}; thin lines: "
            f"{self.seeds} seed{'s' * (self.seeds > 1)}, thick ones: their median",
            fontsize="medium",
        )
        return figure


class _KeptCurve(msgspec.Struct):
    """What the file of a curve holds."""

    channels: list[Count]
    seconds: list[Seconds]
    rates: list[Real]
    losses: list[Real]
    clock: list[tuple[Count, Seconds]]


class _Curve:
    """A callback that judges an agent as it learns, at channels seen that grow geometrically.

    Args:
        agent: The agent.
        env: Its environment.
        blocks: The channels that it is judged on.
        channels_per_iteration: Channels of an iteration.
        path: Where the curve is kept, for a training that goes on after it was killed; or None.

    Attributes:
        channels: Channels seen.
        seconds: Processor time of the training until then, without the judging, in s: unlike the
            time that passes, it does not grow with what else the machine does.
        rates: Spectral efficiency, in bit/s/Hz.
        losses: Mean sensing loss.
    """

    def __init__(
        self,
        agent: Any,
        env: Any,
        blocks: EvaluationSet,
        channels_per_iteration: float,
        path: Path | None,
    ) -> None:
        self._agent, self._env, self._blocks = agent, env, blocks
        self._channels_per_iteration, self._path = channels_per_iteration, path
        self.channels: list[int] = []
        self.seconds: list[float] = []
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._clock: list[tuple[int, float]] = []
        self._killed = path is not None and path.exists()
        self._before = 0.0
        self._begin = time.process_time()

    def state(self) -> dict[str, list[Any]]:
        """The curve, as plain JSON types."""
        return {name: getattr(self, name) for name in ("channels", "seconds", "rates", "losses")}

    def __call__(self, progress: TrainingProgress) -> None:
        """Judge the agent if it is time."""
        seen = round(progress.iteration * self._channels_per_iteration)
        if self._killed:
            self._go_on(seen)
        self._clock.append((seen, self.measure_time()))
        if seen >= self._next and progress.iteration < progress.iterations:
            begin = time.process_time()
            found = judge_stations(self._agent, self._env, self._blocks)
            self._add(
                seen, float(found.rates.mean()), float(found.losses.mean()), self._clock[-1][1]
            )
            self._begin += time.process_time() - begin
        if self._path is not None:
            kept = {**self.state(), "clock": self._clock}
            write_atomically(self._path, json.dumps(kept).encode())

    def _go_on(self, seen: int) -> None:
        """Take what was found before a training was killed, up to where it now goes on."""
        assert self._path is not None
        advice = f"delete {self._path.parent} to start anew"
        with open_file(self._path, "damaged", advice=advice) as file:
            kept = read_json(file, _KeptCurve)
            if len({len(getattr(kept, name)) for name in self.state()}) != 1:
                raise ValueError(f"{', '.join(self.state())} must be of the same length")
        self._clock = [(then, at) for then, at in kept.clock if then < seen]
        count = sum(then < seen for then in kept.channels)
        for name in self.state():
            setattr(self, name, getattr(kept, name)[:count])
        self._before = self._clock[-1][1] if self._clock else 0.0
        self._killed = False

    def measure_time(self) -> float:
        """Processor time of the training so far, without the judging, in s."""
        return self._before + time.process_time() - self._begin

    def finish(self, result: AgentResult, seconds: float) -> None:
        """Take the result of the trained agent, and what it took, as the last mark."""
        assert result.channels_seen is not None
        if self._killed:  # after the training had ended
            self._go_on(result.channels_seen + 1)
            seconds = self._before
        if self.channels[-1:] != [result.channels_seen]:
            loss = result.constraints["sensing"].mean
            self._add(result.channels_seen, result.spectral_efficiency, loss, seconds)

    def _add(self, seen: int, rate: float, loss: float, seconds: float) -> None:
        self.channels.append(seen)
        self.seconds.append(seconds)
        self.rates.append(rate)
        self.losses.append(loss)

    @property
    def _next(self) -> float:
        last = self.channels[-1] if self.channels else 0
        return max(_LEAST_CHANNELS, last * 10 ** (1 / _MARKS_A_DECADE))


def _state(result: AgentResult, reference: Reference) -> dict[str, Any]:
    """Rate and sensing loss, and how far the rate is from a reference's on the same channels."""
    return {
        "rate": result.spectral_efficiency,
        "loss": result.constraints["sensing"].mean,
        "reference": reference.rate,
        "reference_loss": reference.loss,
        "difference": float((result.sum_rates - reference.rates).mean()),
    }


def _summarise(name: str, limit: float, condition: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Means over seeds with their intervals."""
    reference = rows[0]["reference"]
    shares = [100.0 * row["rate"] / reference for row in rows]
    return {
        "agent": name,
        "ε": limit,
        "condition": condition,
        **over_seeds("bit/s/Hz", [row["rate"] for row in rows]),
        **over_seeds("mean L_r", [row["loss"] for row in rows]),
        **over_seeds("% of optimum", shares),
        "reference": reference,
        "reference L_r": rows[0]["reference_loss"],
        **over_seeds("difference", [row["difference"] for row in rows]),
    }


def _find_cost(rows: Sequence[Row], rate: float, limit: float, what: str) -> float:
    """Channels seen, or processor time in s, until a rate was had with ε kept.

    Args:
        rows: Rows of an agent, one a seed.
        rate: The rate, in bit/s/Hz.
        limit: ε.
        what: ``"channels"`` or ``"seconds"``.

    Returns:
        The median over seeds; infinite if that never came.
    """
    found = []
    for row in rows:
        curve = row["curve"]
        marks = zip(curve[what], curve["rates"], curve["losses"], strict=True)
        kept = (
            spent
            for spent, reached, loss in marks
            if reached >= rate and loss <= (1.0 + _TOLERANCE) * limit
        )
        found.append(next(kept, math.inf))
    return float(np.median(found))


def _show_cost(row: Row, share: int) -> str:
    """Channels and seconds to a share of the optimum; nothing where it is not asked for."""
    channels = row.get(f"channels to {share} %")
    if channels is None:
        return ""
    if math.isinf(channels):
        return "–"
    seconds = row[f"seconds to {share} %"]
    return f"{channels:,.0f} in {seconds:.0f} s"


def _show(row: Row, name: str, digits: int) -> str:
    value = row.get(name, math.nan)
    if not math.isfinite(value):
        return ""
    half = row.get(f"± {name}", 0.0)
    spread = f" ± {half:.{digits}f}" if 0.0 < half < math.inf else ""
    return f"{value:,.{digits}f}{spread}"


def _draw_curve(axes: Axes, row: Row, name: str, colour: Any, label: str) -> None:
    """Every seed as a thin line, the median as a thick one."""
    key = "rates" if name == "rate" else "losses"
    for curve in row["curves"]:
        axes.plot(curve["channels"], curve[key], color=colour, lw=0.5, alpha=0.5)
    # Seeds are judged at the same marks; a last one may be missing where a training was killed.
    count = min(len(curve[key]) for curve in row["curves"])
    middle = np.median([curve[key][:count] for curve in row["curves"]], axis=0)
    axes.plot(row["curves"][0]["channels"][:count], middle, color=colour, lw=1.8, label=label)
