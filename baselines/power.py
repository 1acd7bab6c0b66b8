"""Power control without optimisation: equal and random powers along fixed directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from isac_gym.baselines.decoupled import DirectedPolicy
from isac_gym.physics.precoding import precoder_directions
from isac_gym.registry import register_baseline
from isac_gym.validation import check_integer, check_real

__all__ = ["EqualPower", "RandomPower"]


class _FixedDirections(DirectedPolicy):
    def directions(self, channels: Tensor, noise_power: Tensor) -> Tensor:
        """Directions of the scenario's ``precoder_directions``."""
        scenario = self.scenario
        return precoder_directions(
            scenario.precoder_directions, channels, scenario.noise_power, scenario.comm_power
        )

    def _check_limit(self, name: str, value: float | None) -> float | None:
        budget = self.scenario.comm_power
        if value is None:
            return None
        allowed = f"None or a number in [0, {budget:g}] W"
        return check_real(name, value, allowed, lambda x: 0.0 <= x <= budget)


@register_baseline(
    "equal-power",
    "the budget shared equally along fixed directions",
    controls=("power", "beamforming"),
    rank=10,
)
@register_baseline(
    "equal-power-paper",
    "0.1 W for every user, as in the paper",
    options={"power": 0.1},
    controls=("power", "beamforming"),
    rank=11,
)
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
        self.power = self._check_limit("power", power)

    def shares(self, shape: torch.Size, device: torch.device) -> Tensor:
        """See :meth:`DirectedPolicy.shares`."""
        scenario = self.scenario
        served = 1 if scenario.scheduling == "contention" else scenario.num_users
        each = scenario.comm_power / served if self.power is None else self.power
        return torch.full(shape, each, device=device)


@register_baseline(
    "random-power",
    "the budget shared at random along fixed directions",
    controls=("power", "beamforming"),
    rank=12,
)
@register_baseline(
    "random-power-paper",
    "uniform between 0 and 0.1 W for every user, as in the paper",
    options={"highest": 0.1},
    controls=("power", "beamforming"),
    rank=13,
)
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
        self.highest = self._check_limit("highest", highest)
        self._rng = np.random.default_rng(check_integer("seed", seed, 0))

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
