"""A line of sight on top of Rayleigh fading."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from isac_gym.channels.base import (
    ChannelModel,
    Complex,
    Deployment,
    draw_complex_normal,
    scale_between_cells,
)
from isac_gym.registry import register_channel
from isac_gym.validation import check_real, not_allowed

__all__ = ["RicianChannel"]


@register_channel(
    "rician", "a line of sight on top of Rayleigh fading: k_factor_db=, angle_range_deg="
)
@dataclasses.dataclass(frozen=True)
class RicianChannel(ChannelModel):
    """A line of sight on top of Rayleigh fading: √(κ/(κ+1))·LOS + √(1/(κ+1))·CN(0, 1).

    All M antennas form one linear array, radar antennas first. A user in direction φ sees
    √M·a*(φ) times a random phase, so that f_kᵀ R f_k* = M_R·P(φ) without scattering. Each user's
    direction is drawn anew at every block, uniformly in angle.

    Args:
        k_factor_db: Ratio κ of line-of-sight to scattered power, in dB.
        angle_range_deg: Lowest and highest direction of a user, in degrees.

    Raises:
        ValueError: If κ is not finite or the range is not increasing within [-90, 90].
    """

    k_factor_db: float = 5.0
    angle_range_deg: tuple[float, float] = (-60.0, 60.0)
    follows_gains = True

    def __post_init__(self) -> None:
        factor = check_real(
            "k_factor_db", self.k_factor_db, "a finite number (dB)", lambda value: True
        )
        object.__setattr__(self, "k_factor_db", factor)
        given, allowed = self.angle_range_deg, "(low, high) with -90 <= low <= high <= 90"
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
            raise not_allowed("angle_range_deg", given, allowed)
        try:
            low, high = (check_real("angle", each, allowed, math.isfinite) for each in given)
        except ValueError:  # shown whole
            raise not_allowed("angle_range_deg", given, allowed) from None
        if not -90.0 <= low <= high <= 90.0:
            raise not_allowed("angle_range_deg", given, allowed)
        object.__setattr__(self, "angle_range_deg", (low, high))

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        """See :meth:`ChannelModel.draw`; directions and phases are drawn before the scattering."""
        paths = (num, *deployment.shape[:3], 1)
        low, high = np.deg2rad(self.angle_range_deg)
        direction = low + (high - low) * rng.random(paths)
        phase = 2.0 * np.pi * rng.random(paths)
        along = np.arange(deployment.shape[3]) * (2.0 * np.pi * deployment.antenna_spacing)
        line_of_sight = np.exp(1j * (phase - along * np.sin(direction)))
        scattered = draw_complex_normal(rng, (num, *deployment.shape))
        # κ/(κ+1), in a form that overflows for no κ.
        share = 0.5 * (1.0 + math.tanh(0.05 * math.log(10.0) * self.k_factor_db))
        mixed = math.sqrt(share) * line_of_sight + math.sqrt(1.0 - share) * scattered
        return scale_between_cells(mixed.astype(np.complex64), deployment)
