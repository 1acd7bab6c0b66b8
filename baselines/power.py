"""Power control without optimisation: equal and random powers along fixed directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from isac_gym.baselines.decoupled import DirectedPolicy
from isac_gym.physics.precoding import precoder_directions
from isac_gym.validation import integer

__all__ = ["EqualPower", "RandomPower"]


class _FixedDirections(DirectedPolicy):
    def directions(self, channels: Tensor, noise_power: Tensor) -> Tensor:
        """Directions of the scenario's ``precoder_directions``."""
        scenario = self.scenario
        return precoder_directions(
            scenario.precoder_directions, channels, scenario.noise_power, scenario.comm_power
        )

    def _limited(self, name: str, value: float | None) -> float | None:
        budget = self.scenario.comm_power
        if value is not None and not 0.0 <= value <= budget:
            raise ValueError(f"{name} must be None or a number in [0, {budget:g}] W, got {value!r}")
        return value


class EqualPower(_FixedDirections):
    """The same power for every user.

    Args:
        env: Environment whose scenario the policy is for.
        power: Power of each user in W; None shares the budget, P_C/K (under contention the one
            active user gets all of it).

    Raises:
        ValueError: If ``power`` is outside [0, P_C].
    """

    def __init__(self, env: Any, power: float | None = None) -> None:
        super().__init__(env)
        self.power = self._limited("power", power)

    def shares(self, shape: torch.Size, device: torch.device) -> Tensor:
        """See :meth:`DirectedPolicy.shares`."""
        scenario = self.scenario
        served = 1 if scenario.scheduling == "contention" else scenario.num_users
        each = scenario.comm_power / served if self.power is None else self.power
        return torch.full(shape, each, device=device)


class RandomPower(_FixedDirections):
    """Random powers, drawn anew for every observation.

    Args:
        env: Environment whose scenario the policy is for.
        highest: Powers are uniform in [0, highest] W; None draws them uniform and scales them to
            the budget (under contention the one active user gets all of it).
        seed: Seed of the draws; they go on from call to call.

    Raises:
        ValueError: If ``highest`` is outside [0, P_C].
    """

    def __init__(self, env: Any, highest: float | None = None, seed: int = 0) -> None:
        super().__init__(env)
        self.highest = self._limited("highest", highest)
        self._rng = np.random.default_rng(integer("seed", seed, 0))

    def shares(self, shape: torch.Size, device: torch.device) -> Tensor:
        """See :meth:`DirectedPolicy.shares`."""
        scenario = self.scenario
        if self.highest is None and scenario.scheduling == "contention":
            return torch.full(shape, scenario.comm_power, device=device)
        drawn = self._rng.random(shape, dtype=np.float32)
        if self.highest is None:
            drawn *= scenario.comm_power / drawn.sum(-1, keepdims=True)
        else:
            drawn *= self.highest
        return torch.from_numpy(drawn).to(device)
