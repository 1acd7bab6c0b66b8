"""Cost dialects of a single environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from isac_gym.envs.wrappers.penalty import check_weights, find_cost_names

__all__ = [
    "EpisodeCostStatistics",
    "PenalisedReward",
    "SafetyGymnasium",
    "VectorReward",
    "make_reward_space",
]

_Observation = npt.NDArray[np.float32]
_Action = npt.NDArray[np.float32]
_Env = gym.Env[_Observation, _Action]


def make_reward_space(size: int) -> gym.spaces.Box:
    """Where a reward vector of a rate and the negative of costs lies."""
    low = np.array([0.0] + [-np.inf] * (size - 1), np.float32)
    high = np.array([np.inf] + [0.0] * (size - 1), np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)


class SafetyGymnasium(
    gym.Wrapper[_Observation, _Action, _Observation, _Action], gym.utils.RecordConstructorArgs
):
    """``step`` returns the 6-tuple of Safety-Gymnasium, with the cost after the reward.

    Args:
        env: An environment whose ``info`` has ``cost``.
    """

    def __init__(self, env: _Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, action: _Action) -> Any:
        """Step the environment.

        Returns:
            observation, reward, cost, terminated, truncated, info.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward), float(info["cost"]), terminated, truncated, info


class PenalisedReward(
    gym.Wrapper[_Observation, _Action, _Observation, _Action], gym.utils.RecordConstructorArgs
):
    """Reward minus weighted costs, for algorithms without constraints.

    The plain reward stays in ``info["sum_rate"]``.

    Args:
        env: An environment whose ``info`` has the costs.
        weights: One weight for ``cost``, or a weight for each named cost, for example
            ``{"cost_power": 10.0, "cost_sensing": 20.0}``; in bit/s/Hz a unit of relative excess.
            None takes for ``cost`` what :func:`~isac_gym.envs.wrappers.find_penalty_weight` finds
            for the scenario, in some seconds; it is about 31 at the default scenario.

    Raises:
        ValueError: If a weight is negative or not finite, there is no cost of its name, or there is
            no weight that keeps the constraints.

    Attributes:
        weights: The weights by the names of costs in ``info``.
    """

    def __init__(self, env: _Env, weights: float | Mapping[str, float] | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, weights=weights)
        super().__init__(env)
        self.weights = check_weights(env, weights)

    def step(self, action: _Action) -> tuple[_Observation, float, bool, bool, dict[str, Any]]:
        """Step the environment; the reward is the penalised one."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        penalty = sum(weight * float(info[name]) for name, weight in self.weights.items())
        return observation, float(reward) - penalty, terminated, truncated, info


class VectorReward(
    gym.Wrapper[_Observation, _Action, _Observation, _Action], gym.utils.RecordConstructorArgs
):
    """Vector reward [spectral efficiency, -cost_power, -cost_sensing, …] as in MO-Gymnasium.

    Attributes:
        reward_space: Box of the reward vector; also given to the unwrapped environment, where
            MO-Gymnasium's vector environments and recorders look for it.
        reward_names: What its entries are.

    Args:
        env: An environment whose ``info`` has the costs.
    """

    def __init__(self, env: _Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.reward_names = ("sum_rate", *find_cost_names(env))
        self.reward_space = make_reward_space(len(self.reward_names))
        env.unwrapped.reward_space = self.reward_space  # type: ignore[attr-defined]

    def step(self, action: _Action) -> Any:
        """Step the environment; the reward is a float32 array (1 + number of costs,)."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        costs = (-float(info[name]) for name in self.reward_names[1:])
        vector = np.array([float(reward), *costs], np.float32)
        return observation, vector, terminated, truncated, info


class EpisodeCostStatistics(
    gym.Wrapper[_Observation, _Action, _Observation, _Action], gym.utils.RecordConstructorArgs
):
    """Adds ``info["episode_cost"]`` when an episode ends: sums of reward and costs, and length.

    Keys: ``r`` (sum of rewards), ``c`` (sum of ``cost``), ``l`` (steps), and the sum of every
    ``cost_…`` under its own name, as loggers of constrained RL expect.

    Args:
        env: An environment whose ``info`` has the costs.
    """

    def __init__(self, env: _Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._costs = find_cost_names(env)
        self._sums: dict[str, float] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[_Observation, dict[str, Any]]:
        """Reset the environment and the sums."""
        self._sums = {}
        return self.env.reset(seed=seed, options=options)

    def step(self, action: _Action) -> tuple[_Observation, float, bool, bool, dict[str, Any]]:
        """Step the environment and add up."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        addends = {name: float(info[name]) for name in self._costs}
        addends |= {"r": float(reward), "c": float(info["cost"]), "l": 1}
        for key, value in addends.items():
            self._sums[key] = self._sums.get(key, 0) + value
        if terminated or truncated:
            info = {**info, "episode_cost": dict(self._sums)}
        return observation, float(reward), terminated, truncated, info
