"""Replay buffers that hold the constraints of each transition."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from isac_gym.validation import not_allowed

__all__ = ["ConstrainedDictReplayBuffer", "ConstrainedReplayBuffer", "ConstrainedSamples"]


class ConstrainedSamples(NamedTuple):
    """Transitions as those of Stable-Baselines3, and their constraints (n, m)."""

    observations: Any
    actions: Tensor
    next_observations: Any
    dones: Tensor
    rewards: Tensor
    constraints: Tensor


class _Constrained(ReplayBuffer):
    """What both kinds of buffers share."""

    def __init__(self, *args: Any, num_constraints: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.optimize_memory_usage:
            raise not_allowed("optimize_memory_usage", True, "False")
        shape = (self.buffer_size, self.n_envs, num_constraints)
        self.constraints = np.zeros(shape, np.float32)

    def put_constraints(self, values: npt.NDArray[np.float32]) -> None:
        """Hold the constraints, (n_envs, m), of the transitions that are added next."""
        self.constraints[self.pos] = values

    def list_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name, each (buffer_size, n_envs, …)."""
        found: dict[str, npt.NDArray[Any]] = {}
        for name in ("actions", "rewards", "dones", "timeouts", "constraints"):
            found[name] = getattr(self, name)
        for name in ("observations", "next_observations"):
            held = getattr(self, name)
            entries = held.items() if isinstance(held, dict) else [("", held)]
            found |= {f"{name}/{key}": value for key, value in entries}
        return found

    def _get_samples(  # type: ignore[override]
        self, batch_inds: npt.NDArray[np.intp], env: VecNormalize | None = None
    ) -> ConstrainedSamples:
        columns = np.random.randint(0, self.n_envs, len(batch_inds))  # noqa: NPY002
        chosen = (batch_inds, columns)
        ended = self.dones[chosen] * (1.0 - self.timeouts[chosen])
        rewards = self._normalize_reward(self.rewards[chosen].reshape(-1, 1), env)
        return ConstrainedSamples(
            self._pick(self.observations, chosen, env),
            self.to_torch(self.actions[chosen]),
            self._pick(self.next_observations, chosen, env),
            self.to_torch(ended.reshape(-1, 1).astype(np.float32)),
            self.to_torch(rewards),
            self.to_torch(self.constraints[chosen]),
        )

    def _pick(self, observations: Any, chosen: Any, env: VecNormalize | None) -> Any:
        if not isinstance(observations, dict):
            return self.to_torch(self._normalize_obs(observations[chosen], env))  # type: ignore[arg-type]
        held: Any = {name: value[chosen] for name, value in observations.items()}
        normalised: Any = self._normalize_obs(held, env)
        return {name: self.to_torch(value) for name, value in normalised.items()}


class ConstrainedReplayBuffer(_Constrained):
    """A ``ReplayBuffer`` with m constraints a transition.

    Args:
        args: As of ``ReplayBuffer``.
        num_constraints: m.
        kwargs: As of ``ReplayBuffer``.

    Raises:
        ValueError: With ``optimize_memory_usage``.
    """


class ConstrainedDictReplayBuffer(_Constrained, DictReplayBuffer):  # type: ignore[misc]
    """A ``DictReplayBuffer`` with m constraints a transition.

    Args:
        args: As of ``DictReplayBuffer``.
        num_constraints: m.
        kwargs: As of ``DictReplayBuffer``.

    Raises:
        ValueError: With ``optimize_memory_usage``.
    """
