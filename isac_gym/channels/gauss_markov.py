"""Rayleigh fading with Jakes' correlation from block to block."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import numpy as np

from isac_gym.channels.base import (
    ChannelModel,
    Complex,
    Deployment,
    draw_complex_normal,
    scale_between_cells,
)
from isac_gym.registry import register_channel
from isac_gym.validation import check_real

__all__ = ["GaussMarkovChannel"]


@register_channel(
    "gauss-markov", "Rayleigh fading with Jakes' correlation from block to block: doppler="
)
@dataclasses.dataclass(frozen=True)
class GaussMarkovChannel(ChannelModel):
    """Rayleigh fading that follows H' = ρH + √(1-ρ²)·W from block to block.

    ρ = J0(2π·doppler) is Jakes' autocorrelation at a lag of one block; at a lag of n blocks this
    first-order process has ρⁿ.

    Args:
        doppler: Normalised Doppler frequency in [0, 0.5]; 0 is a static channel.

    Raises:
        ValueError: If ``doppler`` is outside [0, 0.5].
    """

    doppler: float
    is_time_correlated = True
    follows_gains = True

    def __post_init__(self) -> None:
        checked = check_real(
            "doppler", self.doppler, "a number in [0, 0.5]", lambda x: 0 <= x <= 0.5
        )
        object.__setattr__(self, "doppler", checked)

    @cached_property
    def correlation(self) -> float:
        """ρ = J0(2π·doppler)."""
        import torch

        argument = torch.tensor(2.0 * math.pi * self.doppler, dtype=torch.float64)
        return float(torch.special.bessel_j0(argument))

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        """See :meth:`ChannelModel.draw`."""
        return scale_between_cells(draw_complex_normal(rng, (num, *deployment.shape)), deployment)

    def advance(
        self, rng: np.random.Generator, channels: Complex, deployment: Deployment
    ) -> Complex:
        """See :meth:`ChannelModel.advance`."""
        rho = self.correlation
        innovation = self.draw(rng, len(channels), deployment)
        return np.float32(rho) * channels + np.float32(math.sqrt(1.0 - rho * rho)) * innovation
