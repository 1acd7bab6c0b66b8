"""From power control to beamforming: does transfer learn sooner than learning directly?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Final

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

from isac_gym.agents import PrimalDual, TransferBeamforming
from isac_gym.agents.callbacks import EvaluationCallback
from isac_gym.agents.learner import LearningAgent
from isac_gym.agents.trainer import TrainingProgress
from isac_gym.experiments.study import Report, Study, over_seeds, study_settings
from isac_gym.scenario import Scenario
from isac_gym.validation import not_allowed

__all__ = ["run_transfer", "transfer_figure"]

METHODS: Final = ("direct", "transfer, output layer", "transfer, all layers")
_SHARE: Final = 0.95


@dataclasses.dataclass(frozen=True)
class _Curve:
    iterations: list[int]
    seconds: list[float]
    rates: list[float]
    violation: float

    def reached(self) -> tuple[float, float, float]:
        """Final rate, and iterations and seconds after which 95 % of it is never left again."""
        final = float(np.mean(self.rates[1:][-3:]))  # the first is that of the untrained agent
        below = [place for place, rate in enumerate(self.rates) if rate < _SHARE * final]
        first = below[-1] + 1 if below else 0
        first = min(first, len(self.rates) - 1)
        return final, float(self.iterations[first]), self.seconds[first]


def run_transfer(
    scenario: Scenario,
    *,
    preset: str = "paper",
    settings: dict[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    evaluate_every: int = 20,
    channels: int = 512,
    report: Report | None = None,
) -> Study:
    """Train a beamformer directly and by transfer; state what it takes to 95 % of the final rate.

    The transfer is from a power-control agent trained with the same preset and seed: by a new
    output layer alone, and by that layer and all others.

    Args:
        scenario: The scenario, with ``control="beamforming"``.
        preset: Preset of all trainings.
        settings: Settings of the agents to change.
        seeds: Seeds of the trainings.
        evaluate_every: Iterations between evaluations.
        channels: Channels of the evaluations.
        report: Called with a line of text as the study goes on.

    Returns:
        One row a method, with the time that the power-control agent took before. The curves are in
        the settings.

    Raises:
        ValueError: If the scenario's control is another, or a setting is not allowed.
    """
    if scenario.control != "beamforming":
        raise not_allowed("control", scenario.control, "'beamforming' for the transfer")
    options = dict(settings or {})
    curves: dict[str, list[_Curve]] = {method: [] for method in METHODS}
    sources: list[float] = []
    env = gym.make("ISAC-MISO-v0", scenario=scenario, disable_env_checker=True)
    power = scenario.replace(control="power")
    power_env = gym.make("ISAC-MISO-v0", scenario=power, disable_env_checker=True)
    for seed in seeds:
        if report is not None:
            report(f"power control, seed {seed}")
        started = time.perf_counter()
        source = PrimalDual(power_env, preset, seed=seed, **options).learn()
        sources.append(time.perf_counter() - started)
        for method in METHODS:
            if report is not None:
                report(f"{method}, seed {seed}")
            agent: LearningAgent
            if method == "direct":
                agent = PrimalDual(env, preset, seed=seed, **options)
            else:
                agent = TransferBeamforming(
                    env,
                    preset,
                    source=source,
                    unfreeze=method.endswith("all layers"),
                    seed=seed,
                    **options,
                )
            curves[method].append(_curve(agent, evaluate_every, channels))
    rows = []
    for method, found in curves.items():
        reached = [curve.reached() for curve in found]
        rows.append(
            {
                "agent": method,
                **over_seeds("bit/s/Hz", [final for final, _, _ in reached]),
                **over_seeds("iterations to 95 %", [count for _, count, _ in reached]),
                **over_seeds("s to 95 %", [seconds for _, _, seconds in reached]),
                "L_r/ε - 1": float(np.mean([curve.violation for curve in found])),
                "s before": 0.0 if method == "direct" else float(np.mean(sources)),
            }
        )
    return Study(
        title=f"Transfer against direct learning, preset {preset}, {len(seeds)} seeds",
        rows=tuple(rows),
        settings=study_settings(
            scenario,
            preset=preset,
            agent_settings=options,
            seeds=list(seeds),
            channels=channels,
            curves={
                method: {
                    "iterations": found[0].iterations,
                    "rates": [curve.rates for curve in found],
                }
                for method, found in curves.items()
            },
        ),
    )


def _curve(agent: LearningAgent, every: int, channels: int) -> _Curve:
    evaluation = EvaluationCallback(agent, every, channels=channels)
    evaluation.evaluate(0)
    seconds = [0.0]
    spent = 0.0
    last = time.perf_counter()

    def watch(progress: TrainingProgress) -> None:
        nonlocal spent, last
        spent += time.perf_counter() - last
        before = len(evaluation.history)
        evaluation(progress)
        if len(evaluation.history) > before:
            seconds.append(spent)
        last = time.perf_counter()  # the evaluation is no part of the training

    agent.learn(callback=watch)
    history = evaluation.history
    return _Curve(
        [entry.iteration for entry in history],
        seconds,
        [entry.sum_rate for entry in history],
        history[-1].constraints["sensing"],
    )


def transfer_figure(study: Study) -> Figure:
    """Rate on unseen channels as training goes, mean and range over the seeds.

    Args:
        study: Result of :func:`run_transfer`.

    Returns:
        A matplotlib figure, not attached to any window.
    """
    figure = Figure(figsize=(8.0, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, (method, curve) in enumerate(study.settings["curves"].items()):
        rates = np.array(curve["rates"])
        axes.plot(curve["iterations"], rates.mean(0), color=f"C{number}", label=method)
        axes.fill_between(
            curve["iterations"], rates.min(0), rates.max(0), color=f"C{number}", alpha=0.15, lw=0
        )
    axes.set(title=study.title, xlabel="iteration", ylabel="spectral efficiency (bit/s/Hz)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure
