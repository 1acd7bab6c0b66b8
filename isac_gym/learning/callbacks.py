"""Callbacks for training: evaluation, snapshots, stopping on convergence.

A callback is any function of a :class:`~isac_gym.learning.progress.TrainingProgress`. These are
classes because they hold a state, which is saved with a training's checkpoint, so that a resumed
training goes on with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isac_gym.learning.agent import LearningAgent
from isac_gym.learning.progress import Callback, StatefulCallback, TrainingProgress
from isac_gym.reading import Count, Real, convert_json
from isac_gym.system.simulation import Simulation
from isac_gym.validation import check_integer, check_real

__all__ = [
    "CallbackList",
    "CheckpointCallback",
    "Evaluation",
    "EvaluationCallback",
    "StopOnConvergence",
]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over the evaluation channels after an iteration.

    Attributes:
        iteration: Iterations done.
        sum_rate: Spectral efficiency, in bit/s/Hz.
        constraints: Each constraint's mean at the station where it is worst, relative to its limit.
        is_best: Whether no earlier evaluation was better: the highest rate among those whose
            constraints hold, or the least violation while none does.
    """

    iteration: int
    sum_rate: float
    constraints: dict[str, float]
    is_best: bool

    @property
    def violation(self) -> float:
        """The largest constraint; at most 0 if all hold, infinite if one is not a number."""
        values = self.constraints.values()
        return math.inf if any(map(math.isnan, values)) else max(values)


class EvaluationCallback:
    """Evaluates an agent on a fixed set of channels as it trains, and keeps the best feasible one.

    Args:
        agent: The agent that trains.
        every: Iterations between two evaluations; there is one after the last as well.
        channels: Number of channels, drawn from the environment's model.
        seed: Their seed; training never draws them.
        tolerance: Relative excess of a constraint's mean up to which it holds.
        best: File to save the best agent to, whenever there is a better one; None saves none. As
            long as no constraint holds, that is the agent with the least violation.
        then: Called with every :class:`Evaluation`; returning False ends the training.

    Attributes:
        history: The evaluations so far.
    """

    def __init__(
        self,
        agent: LearningAgent,
        every: int = 100,
        *,
        channels: int = 1024,
        seed: int = 0,
        tolerance: float = 5e-3,
        best: str | Path | None = None,
        then: StopOnConvergence | None = None,
    ) -> None:
        self._agent = agent
        self.every = check_integer("every", every, 1)
        self.tolerance = check_real("tolerance", tolerance, "a number >= 0", lambda x: x >= 0)
        self.best, self._then = best, then
        count = check_integer("channels", channels, 1)
        self._simulation = Simulation(agent.system, agent.channel_model, count)
        self._simulation.start(np.random.default_rng((0xE7A1, check_integer("seed", seed, 0))))
        self.history: list[Evaluation] = []

    def __call__(self, progress: TrainingProgress) -> bool | None:
        """Evaluate if it is time."""
        if progress.iteration % self.every and progress.iteration != progress.iterations:
            return None
        found = self.evaluate(progress.iteration)
        return None if self._then is None else self._then(found)

    def evaluate(self, iteration: int) -> Evaluation:
        """Evaluate the agent as it is, and keep it if it is the best so far.

        Args:
            iteration: Iterations done; 0 before the training.

        Returns:
            The evaluation, which is now the last of the history.
        """
        found = self._measure(iteration)
        self.history.append(found)
        if found.is_best and self.best is not None:
            self._agent.save(self.best, iteration=str(iteration))
        return found

    @torch.inference_mode()
    def _measure(self, iteration: int) -> Evaluation:
        observation = torch.from_numpy(self._simulation.observe()).to(self._agent.system.device)
        outcome = self._simulation.apply(self._agent.act(observation, True))
        constraints = {
            name: float(value.double().mean(0).max()) for name, value in outcome.constraints.items()
        }
        made = Evaluation(iteration, float(outcome.sum_rate.double().mean()), constraints, True)
        best = next((entry for entry in reversed(self.history) if entry.is_best), None)
        better = best is None or self._rank(made) > self._rank(best)
        return dataclasses.replace(made, is_best=better)

    def _rank(self, entry: Evaluation) -> tuple[bool, float]:
        if math.isnan(entry.sum_rate):
            return False, -math.inf
        feasible = entry.violation <= self.tolerance
        return feasible, entry.sum_rate if feasible else -entry.violation

    def state_dict(self) -> dict[str, Any]:
        """The history, and the state of what follows."""
        state: dict[str, Any] = {"history": [dataclasses.asdict(entry) for entry in self.history]}
        if self._then is not None:
            state["then"] = self._then.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.history = convert_json(state["history"], list[Evaluation])
        if self._then is not None:
            self._then.load_state_dict(state["then"])


class StopOnConvergence:
    """Ends the training once evaluations no longer improve; for :class:`EvaluationCallback`.

    An evaluation improves on the best one before if its constraints hold and its rate is higher by
    ``min_improvement`` or more. Until constraints hold, nothing is counted.

    Args:
        patience: Evaluations without improvement after which the training ends.
        min_improvement: Least relative improvement of the rate that counts.
        tolerance: Relative excess of a constraint's mean up to which it holds.
    """

    def __init__(
        self, patience: int = 5, min_improvement: float = 1e-3, tolerance: float = 5e-3
    ) -> None:
        self.patience = check_integer("patience", patience, 1)
        allowed = "a finite number >= 0"
        self.min_improvement = check_real(
            "min_improvement", min_improvement, allowed, lambda x: x >= 0
        )
        self.tolerance = check_real("tolerance", tolerance, allowed, lambda x: x >= 0)
        self._best: float | None = None
        self._waited = 0

    def __call__(self, evaluation: Evaluation) -> bool | None:
        """False if it is time to end."""
        if evaluation.violation <= self.tolerance and (
            self._best is None or evaluation.sum_rate > self._best * (1.0 + self.min_improvement)
        ):
            self._best, self._waited = evaluation.sum_rate, 0
        elif self._best is not None:
            self._waited += 1
        return False if self._waited >= self.patience else None

    def state_dict(self) -> dict[str, Any]:
        """The best rate so far, and the evaluations since."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self._best = convert_json(state["best"], Real | None)  # type: ignore[arg-type]
        self._waited = convert_json(state["waited"], Count)


class CheckpointCallback:
    """Saves snapshots of an agent, ``NAME_000500.zip`` and so on.

    Args:
        agent: The agent that trains.
        folder: Where to.
        every: Iterations between two snapshots.
        name: Beginning of their names.
    """

    def __init__(
        self, agent: LearningAgent, folder: str | Path, every: int = 500, name: str = "agent"
    ) -> None:
        self._agent, self._folder, self._name = agent, Path(folder), name
        self.every = check_integer("every", every, 1)

    def __call__(self, progress: TrainingProgress) -> None:
        """Save if it is time."""
        if progress.iteration % self.every == 0:
            path = self._folder / f"{self._name}_{progress.iteration:06d}.zip"
            self._agent.save(path, iteration=str(progress.iteration))


class CallbackList:
    """Several callbacks as one: all are called, and the training ends if any of them says so.

    Args:
        callbacks: The callbacks, in the order in which they are called.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)

    def __call__(self, progress: TrainingProgress) -> bool | None:
        """Call all."""
        answers = [callback(progress) for callback in self._callbacks]
        return False if any(answer is False for answer in answers) else None

    def state_dict(self) -> dict[str, Any]:
        """The states of those that have one, by their place."""
        return {
            str(place): callback.state_dict()
            for place, callback in enumerate(self._callbacks)
            if isinstance(callback, StatefulCallback)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the states."""
        for place, callback in enumerate(self._callbacks):
            if isinstance(callback, StatefulCallback):
                callback.load_state_dict(state[str(place)])
