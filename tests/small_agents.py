"""Agents small enough to be trained within a test."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from isac_gym import ChannelModel, RayleighChannel
from isac_gym.agents import PrimalDual
from isac_gym.channels.base import Complex, Deployment
from isac_gym.learning.agent import LearningAgent

TOY: dict[str, Any] = {
    "num_users": 2,
    "num_comm_antennas": 4,
    "num_radar_antennas": 4,
    "radar_power": 0.8,
    "target_angles_deg": (-50.0, 10.0),
    "sensing_threshold": 0.16,
}
QUICK: dict[str, Any] = {
    "hidden_sizes": (16,),
    "width": 8,
    "stages": ((6.0, 2),),
    "batch_size": 8,
    "learning_rate": 1e-3,
    "dual_step_size": 0.1,
}
ARCHITECTURES = ["direct", "model_based", "unfolded"]


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**TOY, **changes})


def quick(env: Any, kind: type[LearningAgent] = PrimalDual, **settings: Any) -> Any:
    return kind(env, "paper", **{**QUICK, **settings})


def weights(agent: LearningAgent) -> dict[str, npt.NDArray[Any]]:
    """The network's parameters and all of the multipliers' state."""
    found = {name: value.numpy().copy() for name, value in agent.network.state_dict().items()}
    return found | {
        f"dual {k}": v.numpy().copy() for k, v in agent.multipliers.state_dict().items()
    }


def same(first: LearningAgent, second: LearningAgent) -> bool:
    left, right = weights(first), weights(second)
    return set(left) == set(right) and all(np.array_equal(left[k], right[k]) for k in left)


def finite(agent: LearningAgent) -> bool:
    return all(bool(np.isfinite(value).all()) for value in weights(agent).values())


class Poisoned(ChannelModel):
    """Rayleigh channels of which the n-th draw holds one bad entry; no file says which."""

    def __init__(self, at: int, value: complex = float("nan")) -> None:
        self._at, self._value, self.draws = at, value, 0

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        drawn = RayleighChannel().draw(rng, num, deployment)
        self.draws += 1
        if self.draws == self._at:
            drawn.flat[1] = self._value
        return drawn
