"""From power control to beamforming: does transfer learn sooner than learning directly?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from isac_gym.agents import PrimalDual, TransferBeamforming
from isac_gym.evaluation.statistics import over_seeds
from isac_gym.evaluation.table import Row, Table
from isac_gym.experiments.base import Experiment, Point, Workspace, setting
from isac_gym.experiments.style import make_figure, style_axes
from isac_gym.learning.agent import LearningAgent
from isac_gym.learning.callbacks import EvaluationCallback
from isac_gym.learning.progress import TrainingProgress
from isac_gym.registry import register_experiment
from isac_gym.validation import not_allowed

__all__ = ["TransferGain"]

_UNFREEZE: Final = {"transfer, output layer": False, "transfer, all layers": True}
_METHODS: Final = ("direct", *_UNFREEZE)
_SHARE: Final = 0.95


@register_experiment("transfer", "from power control to beamforming, against direct learning")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferGain(Experiment):
    """Trainings of a beamformer directly and by transfer, and what they take to their rate.

    The transfer is from a power-control agent trained with the same preset and seed: by a new
    output layer alone, and by that layer and all others.

    Attributes:
        preset: Preset of all trainings.
        agent_settings: Settings of the agents to change.
        iterations: Gradient steps; None means the preset's.
        seeds: Number of seeds of the trainings, from 0.
        evaluate_every: Iterations between evaluations.
        channels: Channels of the evaluations.
    """

    preset: str = setting("paper", "Preset of the agents.")
    agent_settings: Mapping[str, Any] = setting(
        {},
        "Change a setting of the agents, for example -a batch_size=64 (repeatable).",
        option="--agent-set -a",
    )
    iterations: int | None = setting(None, "Gradient steps; the preset's by default.", minimum=1)
    seeds: int = setting(5, "Number of seeds, from 0.", minimum=1, only_selects=True)
    evaluate_every: int = setting(20, "Iterations between evaluations.", minimum=1)
    channels: int = setting(512, "Channels of the evaluations.", minimum=1)

    def points(self) -> list[Point]:
        """The seeds.

        Raises:
            ValueError: If the scenario's control is no beamforming.
        """
        if self.scenario.control != "beamforming":
            raise not_allowed("control", self.scenario.control, "'beamforming' for the transfer")
        return [{"seed": seed} for seed in range(self.seeds)]

    def run(self, point: Point, workspace: Workspace) -> Row:
        """All trainings of a seed."""
        seed = point["seed"]
        options = dict(self.agent_settings)
        if self.iterations is not None:
            options["iterations"] = self.iterations
        workspace.say(f"power control, seed {seed}")
        power_env = self.make_env(control="power")
        source = PrimalDual(power_env, self.preset, seed=seed, **options)
        clock = _Clock()
        source.learn(callback=clock, **workspace.keep_training(f"power-{seed}"))
        row: dict[str, Any] = {"seconds_before": clock.seconds}
        for method in _METHODS:
            workspace.say(f"{method}, seed {seed}")
            if method == "direct":
                agent = PrimalDual(self.env, self.preset, seed=seed, **options)
            else:
                agent = TransferBeamforming(
                    self.env,
                    self.preset,
                    source=source,
                    unfreeze=_UNFREEZE[method],
                    seed=seed,
                    **options,
                )
            watch = _Watch(agent, self.evaluate_every, self.channels)
            agent.learn(callback=watch, **workspace.keep_training(f"{method}-{seed}"))
            row[method] = watch.summarise()
        return row

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row a method, with its curves: rates by seed at the same iterations."""
        before = float(np.mean([row["seconds_before"] for row in rows]))

        def summarise(method: str) -> Row:
            curves = [row[method] for row in rows]
            reached = [_find_reached(curve) for curve in curves]
            return {
                "agent": method,
                **over_seeds("bit/s/Hz", [final for final, _, _ in reached]),
                **over_seeds("iterations to 95 %", [count for _, count, _ in reached]),
                **over_seeds("s to 95 %", [seconds for _, _, seconds in reached]),
                "L_r/ε - 1": float(np.mean([curve["violation"] for curve in curves])),
                "s before": 0.0 if method == "direct" else before,
                "iterations": curves[0]["iterations"],
                "rates": [curve["rates"] for curve in curves],
            }

        return Table(
            f"Transfer against direct learning, preset {self.preset}, {self.seeds} seeds",
            tuple(map(summarise, _METHODS)),
            self.settings(),
        )

    def draw(self, table: Table) -> Figure:
        """Rate on unseen channels as training goes, mean and range over the seeds."""
        figure, axes = make_figure(8.0, 4.8)
        for number, row in enumerate(table.rows):
            rates, x = np.array(row["rates"]), row["iterations"]
            axes.plot(x, rates.mean(0), color=f"C{number}", label=row["agent"])
            axes.fill_between(x, rates.min(0), rates.max(0), color=f"C{number}", alpha=0.15, lw=0)
        axes.set(title=table.title, xlabel="iteration", ylabel="spectral efficiency (bit/s/Hz)")
        style_axes(axes)
        return figure


class _Clock:
    """The time that a training has taken, which goes on where a killed one was.

    Attributes:
        seconds: The time until the last iteration, in s.
    """

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.perf_counter()

    def __call__(self, progress: TrainingProgress) -> None:
        """Count the iteration."""
        self.seconds += time.perf_counter() - self._last
        self.rest()

    def rest(self) -> None:
        """Leave out the time since the last iteration."""
        self._last = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The time so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a time."""
        self.seconds = float(state["seconds"])
        self.rest()


class _Watch:
    """Judges an agent on other channels as it trains, and before; its history is kept when killed.

    Args:
        agent: The agent that trains.
        every: Iterations between two evaluations.
        channels: Channels of an evaluation.
    """

    def __init__(self, agent: LearningAgent, every: int, channels: int) -> None:
        self._evaluation = EvaluationCallback(agent, every, channels=channels)
        self._evaluation.evaluate(0)
        self._seconds = [0.0]
        self._clock = _Clock()

    def __call__(self, progress: TrainingProgress) -> None:
        """Judge if it is time; that is no part of the training's time."""
        self._clock(progress)
        self._evaluation(progress)
        if len(self._evaluation.history) > len(self._seconds):
            self._seconds.append(self._clock.seconds)
        self._clock.rest()

    def summarise(self) -> Mapping[str, Any]:
        """Rates, and the seconds of training before each."""
        history = self._evaluation.history
        return {
            "iterations": [entry.iteration for entry in history],
            "seconds": self._seconds,
            "rates": [entry.sum_rate for entry in history],
            "violation": history[-1].constraints["sensing"],
        }

    def state_dict(self) -> dict[str, Any]:
        """The evaluations and their times."""
        return {
            "evaluation": self._evaluation.state_dict(),
            "seconds": self._seconds,
            "clock": self._clock.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self._evaluation.load_state_dict(state["evaluation"])
        self._seconds = list(state["seconds"])
        self._clock.load_state_dict(state["clock"])


def _find_reached(curve: Mapping[str, Any]) -> tuple[float, float, float]:
    """Final rate, and iterations and seconds after which 95 % of it is never left again."""
    rates = curve["rates"]
    final = float(np.mean(rates[1:][-3:]))  # the first is that of the untrained agent
    below = [place for place, rate in enumerate(rates) if rate < _SHARE * final]
    first = min(below[-1] + 1 if below else 0, len(rates) - 1)
    return final, float(curve["iterations"][first]), curve["seconds"][first]
