"""The search for settings of reinforcement learning that the package keeps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from isac_gym.agents.reinforcement import Reinforcement
from isac_gym.envs.wrappers.penalty import find_penalty_weight
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.judging import evaluate
from isac_gym.evaluation.table import Column, Row, Table
from isac_gym.experiments.base import Experiment, Point, Workspace, setting
from isac_gym.experiments.style import make_figure, style_axes
from isac_gym.registry import register_experiment
from isac_gym.rl.settings import ALGORITHMS, count_passes, find_settings, is_on_policy
from isac_gym.scenario import Scenario
from isac_gym.validation import not_allowed

__all__ = ["BLOCK_WORK", "ReinforcementTuning"]

BLOCK_WORK: Final = 30_000
"""Weights of a network a pass of which takes about as long as the environment takes for a block.

It is a rough figure of the policy for features, and only the comparison of trials with few passes
and with many depends on it.
"""
_JOURNAL: Final = "optuna.log"


@register_experiment("rl-tuning", "a search for the settings of an algorithm of RL (Optuna)")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcementTuning(Experiment):
    """Trainings with settings that Optuna's tree-structured Parzen estimator proposes.

    The first trial has the settings that the package keeps. All trials of an algorithm take about
    as long: where a block is gone over more often, or by larger networks, there are fewer blocks. A
    trial's score is the rate less the price of the excess, R - μ·(L/ε - 1) summed over the
    constraints, with μ the scenario's calibrated price: to first order the rate at which the
    constraint holds.

    Attributes:
        algorithm: One of :data:`~isac_gym.rl.settings.ALGORITHMS`.
        control: Control mode of the agent; None means the usual one for the scenario.
        work: Work of a trial in 10⁹, counted as a unit for each weight and block that a gradient
            step goes over, and :data:`BLOCK_WORK` for the environment's work on a block.
        trials: Trials.
        seed: Seed of the trainings and of the search.
        channels: Channels that a trial is judged on.
        evaluation_seed: Their seed; another than that of comparisons.
    """

    algorithm: str = setting("ppo-lagrangian", "Algorithm of reinforcement learning.")
    control: str | None = setting(
        None, "Control mode that the agent learns in; the usual one by default."
    )
    work: float = setting(
        24.0, "Work of a trial, in 10⁹ weights times blocks that are gone over.", minimum=1e-3
    )
    trials: int = setting(24, "Number of trials.", minimum=1, only_selects=True)
    seed: int = setting(0, "Seed of trainings and search.", minimum=0)
    channels: int = setting(2000, "Channels that a trial is judged on.", minimum=1)
    evaluation_seed: int = setting(11, "Their seed.", minimum=0)

    def points(self) -> list[Point]:
        """The trials by their numbers.

        Raises:
            ValueError: If there is no such algorithm, or training would see the channels that
                trials are judged on.
        """
        if self.algorithm not in ALGORITHMS:
            raise not_allowed("algorithm", self.algorithm, f"one of {', '.join(ALGORITHMS)}")
        assert self._control  # or an error that says what is not allowed
        if self.evaluation_seed == self.seed:
            raise ValueError(
                "evaluation_seed must be another than seed, whose training would see its channels, "
                f"got {self.evaluation_seed!r}"
            )
        return [{"trial": number} for number in range(self.trials)]

    @functools.cached_property
    def _blocks(self) -> EvaluationSet:
        return self.draw_channels(self.env, self.channels, self.evaluation_seed)

    @functools.cached_property
    def _price(self) -> float:
        """The price of an excess, in bit/s/Hz."""
        return find_penalty_weight(self.env)

    def run(self, point: Point, workspace: Workspace) -> Row:
        """Ask for settings, train with them, judge the agent, and tell its score.

        Raises:
            ImportError: If Optuna is not installed.
        """
        optuna = _load_optuna()
        number = point["trial"]
        # What a sampler draws depends on the trials before it and on its seed alone, so that a
        # search that was killed goes on as it would have.
        sampler = optuna.samplers.TPESampler(seed=1000 * self.seed + number, n_startup_trials=8)
        study = optuna.create_study(
            storage=self._open_storage(optuna, workspace),
            study_name=self.algorithm,
            sampler=sampler,
            direction="maximize",
            load_if_exists=True,
        )
        for earlier in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            # What was under way when a run was killed.
            if "row" in earlier.user_attrs:
                study.tell(earlier.number, earlier.user_attrs["row"]["score"])
            else:
                study.tell(earlier.number, state=optuna.trial.TrialState.FAIL)
        for earlier in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            if earlier.user_attrs["number"] == number:
                return dict(earlier.user_attrs["row"])
        if number == 0 and not study.get_trials(states=[optuna.trial.TrialState.WAITING]):
            study.enqueue_trial(self._find_kept())
        trial = study.ask()
        trial.set_user_attr("number", number)
        chosen = suggest_settings(trial, self.algorithm, self._observation)
        row = self._judge(chosen, number, workspace)
        trial.set_user_attr("row", row)
        study.tell(trial, row["score"])
        return row

    def _open_storage(self, optuna: Any, workspace: Workspace) -> Any:
        """Where the trials are kept: in the folder, or in memory as long as the experiment."""
        if workspace.folder is None:
            return self._memory
        workspace.folder.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(workspace.folder / _JOURNAL))
        return optuna.storages.JournalStorage(backend)

    @functools.cached_property
    def _memory(self) -> Any:
        return _load_optuna().storages.InMemoryStorage()

    def _find_kept(self) -> dict[str, Any]:
        """What the package keeps of what is searched."""
        held = find_settings(self.algorithm, self._control)
        names = suggest_settings(_Recorder(), self.algorithm, self._observation)
        return {name: getattr(held, name) for name in names}

    @functools.cached_property
    def _spaces(self) -> Scenario:
        """The scenario with the spaces in which agents of the given one learn."""
        return Reinforcement(self.env, self.algorithm, control=self.control).inner.scenario

    @property
    def _control(self) -> str:
        return self._spaces.control

    @property
    def _observation(self) -> str:
        return self._spaces.observation

    def _judge(self, chosen: Mapping[str, Any], number: int, workspace: Workspace) -> Row:
        """Train with settings; the row of what comes of it."""
        settings = {**chosen, "final_learning_rate": chosen["learning_rate"] / 100.0}
        make = functools.partial(
            Reinforcement, self.env, self.algorithm, control=self.control, seed=self.seed
        )
        held = make(**settings)
        of_block = count_passes(self.algorithm, held.settings) * held.weights + BLOCK_WORK
        agent = make(**settings, timesteps=max(1, round(1e9 * self.work / of_block)))
        agent.learn(**workspace.keep_training(f"trial-{number}"))
        result = evaluate(agent, self.env, self._blocks, name=self.algorithm)
        system = agent.inner
        excess = {
            name: found.mean / system.limits[name] - 1.0
            for name, found in result.constraints.items()
            if system.constraints[name].can_be_exceeded(system.scenario)
        }
        return {
            **chosen,
            "timesteps": agent.settings.timesteps,
            "seconds": agent.training_seconds,
            "spectral_efficiency": result.spectral_efficiency,
            **{f"{name}_mean": result.constraints[name].mean for name in excess},
            "score": result.spectral_efficiency - self._price * sum(excess.values()),
        }

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """The trials, best first."""
        names = list(suggest_settings(_Recorder(), self.algorithm, self._observation))
        losses = [name for name in rows[0] if name.endswith("_mean")]
        return Table(
            f"{len(rows)} trials of {self.algorithm}, {self._control} control; work "
            f"{self.work:g}·10⁹ each, {self._blocks.count} channels, seed {self.evaluation_seed}",
            tuple(sorted(rows, key=lambda row: -row["score"])),
            {**self.settings(), "price": self._price, "evaluation_set": self._blocks.digest},
            columns=[
                Column("trial", "{trial}"),
                *(Column(name, f"{{{name}:.4g}}") for name in names),
                Column("blocks", "{timesteps:,}"),
                Column("s", "{seconds:.0f}"),
                Column("bit/s/Hz", "{spectral_efficiency:.3f}"),
                *(Column(name, f"{{{name}:.4f}}") for name in losses),
                Column("score", "{score:.3f}"),
            ],
            caption="score: rate less the price of the excess; trial 0 has the settings that were "
            "kept",
        )

    def draw(self, table: Table) -> Figure:
        """The scores of the trials over each number that was searched."""
        names = list(suggest_settings(_Recorder(), self.algorithm, self._observation))
        figure, _ = make_figure(10.0, 5.0)
        figure.clear()
        columns = (len(names) + 1) // 2
        axes = figure.subplots(2, columns, sharey=True, squeeze=False).flatten()
        scores = np.array([row["score"] for row in table.rows])
        for axis, name in zip(axes, names, strict=False):
            values = [row[name] for row in table.rows]
            kinds = sorted(set(values))
            is_kind = len(kinds) <= 4
            shown = [kinds.index(value) for value in values] if is_kind else values
            axis.plot(shown, scores, "o", ms=4)
            if is_kind:
                axis.set_xticks(range(len(kinds)), [str(value) for value in kinds])
            elif min(values) > 0 and max(values) > 5 * min(values):
                axis.set_xscale("log")
                axis.xaxis.set_minor_formatter(NullFormatter())
            style_axes(axis, handles=[])
            axis.set_xlabel(name)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        low = float(np.median(scores) - 2.0 * (scores.max() - np.median(scores)))
        axes[0].set_ylim(low, None)
        axes[0].set_ylabel("score (bit/s/Hz)")
        figure.suptitle(f"Trials of {self.algorithm}; those below the axis are not shown")
        return figure


def suggest_settings(trial: Any, algorithm: str, observation: str) -> dict[str, Any]:
    """Settings that a trial proposes; these are the settings that are searched.

    Args:
        trial: A trial of Optuna.
        algorithm: One of :data:`~isac_gym.rl.settings.ALGORITHMS`.
        observation: Kind of observations that it learns from.

    Returns:
        Fields of :class:`~isac_gym.rl.settings.ReinforcementSettings`.
    """
    if is_on_policy(algorithm):
        found = {
            "learning_rate": trial.suggest_float("learning_rate", 3e-4, 6e-3, log=True),
            "batch_size": trial.suggest_categorical("batch_size", [512, 1024, 2048, 4096]),
            "rollout_length": trial.suggest_categorical("rollout_length", [8, 16]),
            "epochs": trial.suggest_int("epochs", 2, 10),
            "clip_range": trial.suggest_float("clip_range", 0.1, 0.4),
            "deviation": trial.suggest_float("deviation", 0.1, 0.5, log=True),
            "final_deviation": trial.suggest_float("final_deviation", 0.02, 0.15, log=True),
            "width": trial.suggest_categorical("width", [32, 48, 64, 96]),
            "rounds": trial.suggest_int("rounds", 1, 3),
        }
        if algorithm == "ppo-lagrangian":
            found["repeats"] = trial.suggest_categorical("repeats", [2, 4, 8])
        else:
            shares = trial.suggest_categorical("shares_extractor", [True, False])
            found["shares_extractor"] = shares
            found["value_weight"] = trial.suggest_float("value_weight", 0.02, 1.0, log=True)
        return found
    found = {
        "num_envs": trial.suggest_categorical("num_envs", [256, 1024]),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [256, 512, 1024, 2048]),
        "gradient_steps": trial.suggest_categorical("gradient_steps", [1, 4, 8, 16]),
        "width": trial.suggest_categorical("width", [16, 32, 48, 64]),
    }
    if observation == "features":
        found["rounds"] = trial.suggest_int("rounds", 1, 2)
    if algorithm == "td3":
        found["deviation"] = trial.suggest_float("deviation", 0.02, 0.3, log=True)
    return found


class _Recorder:
    """A trial that proposes nothing, for the names alone."""

    def suggest_float(self, name: str, *_: Any, **__: Any) -> None: ...

    suggest_int = suggest_categorical = suggest_float


def _load_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("the search needs Optuna: pip install 'isac-gym[tuning]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
