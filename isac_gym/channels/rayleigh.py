"""Rayleigh fading: no line of sight, blocks independent."""

from __future__ import annotations

import dataclasses

import numpy as np

from isac_gym.channels.base import (
    ChannelModel,
    Complex,
    Deployment,
    draw_complex_normal,
    scale_between_cells,
)
from isac_gym.registry import register_channel

__all__ = ["RayleighChannel"]


@register_channel("rayleigh", "independent flat Rayleigh fading")
@dataclasses.dataclass(frozen=True)
class RayleighChannel(ChannelModel):
    """Independent flat Rayleigh fading: CN(0, 1) within a cell, CN(0, β) between cells."""

    follows_gains = True

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        """See :meth:`ChannelModel.draw`."""
        return scale_between_cells(draw_complex_normal(rng, (num, *deployment.shape)), deployment)
