"""Cost dialects of a vector environment: the batch, or Gymnasium's SyncVectorEnv of single ones.

The costs of a step are found where the environment has them in each of Gymnasium's autoreset
modes: at the top level of ``info`` and, of an episode's last step, in ``final_info`` where the top
level is already that of the next episode. Steps that only restart an environment cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from isac_gym.envs.wrappers.penalty import check_weights, find_cost_names
from isac_gym.envs.wrappers.single import make_reward_space

__all__ = [
    "EpisodeCostStatistics",
    "PenalisedReward",
    "SafetyGymnasium",
    "VectorReward",
    "read_step_entry",
]

_Array: TypeAlias = npt.NDArray[Any]
_VectorEnv: TypeAlias = VectorEnv[_Array, _Array, _Array]
_Result: TypeAlias = tuple[_Array, _Array, _Array, _Array, dict[str, Any]]
if TYPE_CHECKING:
    _VectorWrapper = VectorWrapper[_Array, _Array, _Array, _Array, _Array]
else:  # before Gymnasium 1.4 it takes no type arguments
    _VectorWrapper = VectorWrapper


class _Dialect(_VectorWrapper):
    @property
    def autoreset_mode(self) -> AutoresetMode:
        """What happens when an episode ends, for libraries that do not ask ``metadata`` for it."""
        mode: AutoresetMode = self.env.metadata["autoreset_mode"]
        return mode


def read_step_entry(info: Mapping[str, Any], name: str, num_envs: int) -> npt.NDArray[np.float64]:
    """An entry of ``info``, of the step that was taken.

    Args:
        info: What a vector environment's ``step`` returned.
        name: Name of an entry of one number an environment.
        num_envs: Environments n.

    Returns:
        The entries, (n,); 0 where an environment has none, because it was only restarted.
    """
    values = np.zeros(num_envs)
    for entries in (info, info.get("final_info", {})):
        if name in entries:
            there = entries.get(f"_{name}", True)
            values = np.where(there, entries[name], values)
    return values.astype(np.float64, copy=False)


class SafetyGymnasium(_Dialect, gym.utils.RecordConstructorArgs):
    """``step`` returns the 6-tuple of Safety-Gymnasium, with the costs after the rewards.

    Args:
        env: A vector environment whose ``info`` has ``cost``.
    """

    def __init__(self, env: _VectorEnv) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, actions: _Array) -> Any:
        """Step the environments.

        Returns:
            observations, rewards, costs (n,) float64, terminations, truncations, info.
        """
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        costs = read_step_entry(info, "cost", self.num_envs)
        return observations, rewards, costs, terminations, truncations, info


class PenalisedReward(_Dialect, gym.utils.RecordConstructorArgs):
    """Rewards minus weighted costs, for algorithms without constraints.

    Args:
        env: A vector environment whose ``info`` has the costs.
        weights: As of :class:`isac_gym.envs.wrappers.PenalisedReward`: one for ``cost``, one for
            each named cost, or None for the calibrated price of the scenario.

    Raises:
        ValueError: If a weight is negative or not finite, there is no cost of its name, or there is
            no weight that keeps the constraints.

    Attributes:
        weights: The weights by the names of costs in ``info``.
    """

    def __init__(self, env: _VectorEnv, weights: float | Mapping[str, float] | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, weights=weights)
        super().__init__(env)
        self.weights = check_weights(env, weights)

    def step(self, actions: _Array) -> _Result:
        """Step the environments; the rewards (n,) are the penalised ones."""
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        for name, weight in self.weights.items():
            rewards = rewards - weight * read_step_entry(info, name, self.num_envs)
        return observations, rewards, terminations, truncations, info


class VectorReward(_Dialect, gym.utils.RecordConstructorArgs):
    """Vector rewards [spectral efficiency, -cost_power, -cost_sensing, …] as in MO-Gymnasium.

    MO-Gymnasium's ``MORecordEpisodeStatistics`` is right with ``autoreset_mode="NextStep"`` alone:
    it takes the step after an episode for one that restarts the environment.

    Args:
        env: A vector environment whose ``info`` has the costs.

    Attributes:
        reward_space: Box of the reward vector of one environment; also given to the unwrapped
            environment, where MO-Gymnasium's recorder looks for it.
        reward_names: What its entries are.
    """

    def __init__(self, env: _VectorEnv) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.reward_names = ("sum_rate", *find_cost_names(env))
        self.reward_space = make_reward_space(len(self.reward_names))
        env.unwrapped.reward_space = self.reward_space  # type: ignore[attr-defined]

    def step(self, actions: _Array) -> _Result:
        """Step the environments; the rewards are a float32 array (n, 1 + number of costs)."""
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        costs = [-read_step_entry(info, name, self.num_envs) for name in self.reward_names[1:]]
        vectors = np.stack([rewards, *costs], axis=-1).astype(np.float32)
        return observations, vectors, terminations, truncations, info


class EpisodeCostStatistics(_Dialect, gym.utils.RecordConstructorArgs):
    """Adds ``info["episode_cost"]`` when episodes end: sums of reward and costs, and length.

    Keys: ``r`` (sum of rewards), ``c`` (sum of ``cost``), ``l`` (steps), and the sum of every
    ``cost_…`` under its own name, each an array (n,), 0 where no episode has ended;
    ``info["_episode_cost"]`` says where one has.

    Args:
        env: A vector environment whose ``info`` has the costs.
    """

    def __init__(self, env: _VectorEnv) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._names = {"c": "cost", **{name: name for name in find_cost_names(env)}}
        self._sums = {key: np.zeros(self.num_envs) for key in ("r", *self._names)}
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._ended = np.zeros(self.num_envs, np.bool_)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[_Array, dict[str, Any]]:
        """Reset the environments and the sums of those that are restarted."""
        # Before the environment sees them: Gymnasium's own take the mask out of the options.
        restarted = None if options is None else options.get("reset_mask")
        result = self.env.reset(seed=seed, options=options)
        mask = np.ones(self.num_envs, np.bool_) if restarted is None else np.asarray(restarted)
        self._forget(mask)
        self._ended[mask] = False
        return result

    def step(self, actions: _Array) -> _Result:
        """Step the environments and add up."""
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        acting = np.ones(self.num_envs, np.bool_)
        if self.env.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP:
            self._forget(self._ended)
            acting = ~self._ended
        self._sums["r"] += np.where(acting, rewards, 0.0)
        for key, name in self._names.items():
            self._sums[key] += read_step_entry(info, name, self.num_envs)
        self._lengths += acting
        ended = terminations | truncations
        if ended.any():
            sums = {key: np.where(ended, value, 0.0) for key, value in self._sums.items()}
            lengths = np.where(ended, self._lengths, 0)
            info = {**info, "episode_cost": {**sums, "l": lengths}, "_episode_cost": ended.copy()}
            if self.env.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP:
                self._forget(ended)
        self._ended = ended
        return observations, rewards, terminations, truncations, info

    def _forget(self, mask: npt.NDArray[np.bool_]) -> None:
        for value in (*self._sums.values(), self._lengths):
            value[mask] = 0
