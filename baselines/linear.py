"""Linear precoders with equal power, decoupled from the radar."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from isac_gym.baselines.decoupled import DirectedPolicy
from isac_gym.physics.precoding import mrt_directions, rzf_directions, zf_directions
from isac_gym.registry import register_baseline

__all__ = ["MRT", "RZF", "ZF", "LinearPrecoder"]


class LinearPrecoder(DirectedPolicy):
    """A linear precoder with P_C/K for every user.

    Args:
        env: Environment whose scenario the policy is for, with ``control="beamforming"``.

    Raises:
        ValueError: If the control mode is another one, or zero forcing has K > M_C.
    """

    kind: ClassVar[Literal["mrt", "zf", "rzf"]]

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        scenario = self.scenario
        if scenario.control != "beamforming":
            raise ValueError(
                f"{type(self).__name__} needs control 'beamforming', got {scenario.control!r}; for "
                f"power control set precoder_directions={self.kind!r} and use EqualPower"
            )
        if self.kind == "zf" and scenario.num_users > scenario.num_comm_antennas:
            raise ValueError(
                f"ZF needs num_users <= num_comm_antennas, got {scenario.num_users} > "
                f"{scenario.num_comm_antennas}"
            )

    def directions(self, channels: Tensor, noise_power: Tensor) -> Tensor:
        """See :meth:`DirectedPolicy.directions`."""
        if self.kind == "mrt":
            return mrt_directions(channels)
        if self.kind == "zf":
            return zf_directions(channels)
        return rzf_directions(channels, noise_power, self.scenario.comm_power)

    def shares(self, shape: torch.Size, device: torch.device) -> Tensor:
        """See :meth:`DirectedPolicy.shares`."""
        scenario = self.scenario
        served = 1 if scenario.scheduling == "contention" else scenario.num_users
        return torch.full(shape, scenario.comm_power / served, device=device)


@register_baseline(
    "mrt", "maximum-ratio transmission, best beampattern", controls=("beamforming",), rank=20
)
class MRT(LinearPrecoder):
    """Maximum-ratio transmission: F_k along g_k*."""

    kind = "mrt"


@register_baseline("zf", "zero forcing, best beampattern", controls=("beamforming",), rank=21)
class ZF(LinearPrecoder):
    """Zero forcing: no user hears another's stream."""

    kind = "zf"


@register_baseline(
    "rzf", "regularised zero forcing, best beampattern", controls=("beamforming",), rank=22
)
class RZF(LinearPrecoder):
    """Regularised zero forcing, each user weighted by its noise plus radar interference."""

    kind = "rzf"
