"""How stations that learn together converge: the rate of each against the training iteration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.statistics import over_seeds
from isac_gym.evaluation.table import Row, Table
from isac_gym.experiments.base import Point, Workspace, check_evaluation_seed, setting
from isac_gym.experiments.by_station import OfStations, StationResult, judge_stations
from isac_gym.experiments.style import make_figure, style_axes
from isac_gym.learning.config import DISTRIBUTED_PRESETS
from isac_gym.learning.progress import TrainingProgress
from isac_gym.registry import register_experiment
from isac_gym.validation import not_allowed

__all__ = ["StationsConvergence"]


@register_experiment(
    "stations-convergence", "rate of each station as distributed agents train, several seeds"
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StationsConvergence(OfStations):
    """Trainings of distributed agents, judged station by station on a small set of channels.

    A training in two phases is shown whole: power control first, then beamforming, Algorithm 2. The
    rates at the end are those after the price of the sensing loss is settled, where there is one.

    Attributes:
        presets: Presets of the agents, side by side.
        agent_settings: Settings of all agents to change.
        iterations: Gradient steps of a phase; None means the preset's.
        seeds: Number of seeds of the trainings, from 0.
        evaluate_every: Iterations between evaluations.
        channels: Channels of the evaluations.
        evaluation_seed: Their seed.
    """

    presets: tuple[str, ...] = setting(
        ("paper", "tuned"),
        "Preset of the agents (repeatable).",
        option="--preset",
        only_selects=True,
    )
    agent_settings: Mapping[str, Any] = setting(
        {},
        "Change a setting of the agents, for example -a batch_size=64 (repeatable).",
        option="--agent-set -a",
    )
    iterations: int | None = setting(
        None, "Gradient steps of a phase; the preset's by default.", minimum=1
    )
    seeds: int = setting(3, "Number of seeds, from 0.", minimum=1, only_selects=True)
    evaluate_every: int = setting(50, "Iterations between evaluations.", minimum=1)
    channels: int = setting(128, "Channels of the evaluations.", minimum=1)
    evaluation_seed: int = setting(7, "Their seed.", minimum=0)

    def points(self) -> list[Point]:
        """Every preset with every seed.

        Raises:
            ValueError: If there is one station or no such preset, the control is no beamforming, or
                training would see the channels of the evaluation.
        """
        self.check_stations()
        for preset in self.presets:
            if preset not in DISTRIBUTED_PRESETS:
                allowed = f"names among {', '.join(map(repr, DISTRIBUTED_PRESETS))}"
                raise not_allowed("presets", preset, allowed)
        if self.scenario.control != "beamforming":
            raise not_allowed("control", self.scenario.control, "'beamforming'")
        check_evaluation_seed(self.evaluation_seed, self.seeds)
        return [
            {"preset": preset, "seed": seed}
            for preset in self.presets
            for seed in range(self.seeds)
        ]

    @functools.cached_property
    def _blocks(self) -> EvaluationSet:
        return self.draw_channels(self.env, self.channels, self.evaluation_seed)

    def run(self, point: Point, workspace: Workspace) -> Row:
        """One training, in one or two phases."""
        agent = self._make_agent(self.env, point)
        before: list[Mapping[str, Any]] = []
        if agent.transfer:
            source = self._make_agent(self.make_env(control="power"), point)
            before = self._train(source, point, workspace)
            agent.take_over(source)
        history = self._train(agent, point, workspace)
        start = before[-1]["iteration"] if before else 0
        found = judge_stations(agent, self.env, self._blocks)
        return {
            "transfer_at": start if before else None,
            "iterations": [
                *(entry["iteration"] for entry in before),
                *(start + entry["iteration"] for entry in history),
            ],
            "rates": [entry["rates"] for entry in (*before, *history)],
            "final_rates": found.rates.mean((0, 1)).tolist(),
            "final_excess": _find_excess(found),
        }

    def _make_agent(self, env: Any, point: Point) -> DistributedPrimalDual:
        options = dict(self.agent_settings)
        if self.iterations is not None:
            options["iterations"] = self.iterations
        return DistributedPrimalDual(env, point["preset"], seed=point["seed"], **options)

    def _train(
        self, agent: DistributedPrimalDual, point: Point, workspace: Workspace
    ) -> list[Mapping[str, Any]]:
        """Train an agent; its rates and constraints by station, before and as it trains."""
        control = agent.scenario.control
        workspace.say(f"{point['preset']}, seed {point['seed']}, {control} control")
        env = self.make_env(control=control)
        watch = _Watch(agent, env, self._blocks, self.evaluate_every)
        watch.evaluate(0)
        kept = workspace.keep_training(f"{point['preset']}-{point['seed']}-{control}")
        agent.learn(callback=watch, **kept)
        return watch.history

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row a preset and station, with its curves: rates by seed at the same iterations."""
        made: list[Row] = []
        for preset in self.presets:
            found = [row for row in rows if row["preset"] == preset]
            made += [_summarise(found, station) for station in range(self.scenario.num_cells)]
        title = (
            f"Distributed agents, {self.seeds} seeds, {self._blocks.count} channels; ± 95 % "
            "interval over seeds"
        )
        settings = {**self.settings(), "evaluation_set": self._blocks.digest}
        return Table(title, tuple(made), settings)

    def draw(self, table: Table) -> Figure:
        """Rate of each station as training goes, mean and range over the seeds; presets abreast."""
        count = len(self.presets)
        figure, made = make_figure(6.4 * count, 4.8, columns=count)
        targets = self.scenario.targets_by_cell
        every = list(np.atleast_1d(made))
        for preset, axes in zip(self.presets, every, strict=True):
            rows = [row for row in table.rows if row["preset"] == preset]
            for number, row in enumerate(rows):
                angles = ", ".join(f"{angle:g}°" for angle in targets[number])
                _draw_curve(axes, row, f"C{number}", f"station {row['station']}, targets {angles}")
            begin = rows[0]["transfer at"]
            if begin is not None:
                axes.axvline(begin, color="0.4", ls="--", lw=1)
                for text, side in (("power control", "right"), ("beamforming", "left")):
                    axes.annotate(
                        text,
                        (begin, 1.0),
                        xycoords=("data", "axes fraction"),
                        xytext=(-4 if side == "right" else 4, -10),
                        textcoords="offset points",
                        ha=side,
                        color="0.4",
                        fontsize="small",
                    )
            axes.set(
                title=f"preset {preset}",
                xlabel="training iteration",
                ylabel="spectral efficiency of a station (bit/s/Hz)",
            )
            style_axes(axes, handles=[])
        handles = every[0].get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        top = 1.08 * max(axes.get_ylim()[1] for axes in every)
        for axes in every:
            axes.set_ylim(top=top)
        scenario = self.scenario
        figure.suptitle(
            f"K = {scenario.num_users}, M_C = {scenario.num_comm_antennas}, "
            f"M_R = {scenario.num_radar_antennas}, SNR {scenario.snr_db:g} dB, "
            f"β = {scenario.intercell_gain:g}; mean and range of {self.seeds} seeds, "
            f"{self._blocks.count} channels",
            fontsize="medium",
        )
        return figure


def _summarise(rows: Sequence[Row], station: int) -> Row:
    """The row of a preset's station, from those of all seeds."""
    iterations = rows[0]["iterations"]
    return {
        "preset": rows[0]["preset"],
        "station": station,
        **over_seeds("bit/s/Hz", [row["final_rates"][station] for row in rows]),
        **over_seeds("L_r/ε - 1", [row["final_excess"][station] for row in rows]),
        "transfer at": rows[0]["transfer_at"],
        "last iteration": iterations[-1],
        "iterations": iterations,
        "rates": [[rates[station] for rates in row["rates"]] for row in rows],
    }


def _draw_curve(axes: Axes, row: Row, colour: str, label: str) -> None:
    """Mean and range over the seeds, each phase by itself."""
    x, rates = row["iterations"], np.array(row["rates"])
    begin = 0 if row["transfer at"] is None else x.index(row["transfer at"]) + 1
    for part in (slice(begin, None), slice(0, begin)):
        axes.plot(x[part], rates[:, part].mean(0), color=colour, lw=1.4, label=label)
        low, high = rates[:, part].min(0), rates[:, part].max(0)
        axes.fill_between(x[part], low, high, color=colour, alpha=0.15, lw=0)
        label = "_"  # one entry of a legend is enough


def _find_excess(found: StationResult) -> list[float]:
    """Mean of L_r/ε - 1 at every station."""
    return [float(value) for value in found.excess["sensing"]]


class _Watch:
    """Judges an agent station by station as it trains; its history is part of a checkpoint.

    Args:
        agent: The agent that trains.
        env: Environment of its scenario.
        blocks: The channels.
        every: Iterations between two evaluations; there is one after the last as well.
    """

    def __init__(
        self, agent: DistributedPrimalDual, env: Any, blocks: EvaluationSet, every: int
    ) -> None:
        self._agent, self._env, self._blocks, self._every = agent, env, blocks, every
        self.history: list[Mapping[str, Any]] = []

    def evaluate(self, iteration: int) -> None:
        """Judge the agent as it is after an iteration."""
        found = judge_stations(self._agent, self._env, self._blocks)
        rates = found.rates.mean((0, 1)).tolist()
        self.history.append({"iteration": iteration, "rates": rates})

    def __call__(self, progress: TrainingProgress) -> None:
        """Judge if it is time."""
        if progress.iteration % self._every == 0 or progress.iteration == progress.iterations:
            self.evaluate(progress.iteration)

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"history": self.history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a history."""
        self.history = list(state["history"])
