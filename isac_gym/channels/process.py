"""Channels over time, as they are and as an agent observes them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from isac_gym.channels.base import (
    ChannelModel,
    Complex,
    Deployment,
    draw_complex_normal,
    scale_between_cells,
)
from isac_gym.scenario import Scenario

__all__ = ["ChannelProcess", "observe_channels"]


def observe_channels(
    rng: np.random.Generator, channels: Complex, deployment: Deployment, error_variance: float
) -> Complex:
    """The channel estimate that an agent sees: H + E with E ~ CN(0, σ²·gain of the path).

    This is a least-squares estimate from noisy pilots: unbiased, its error independent of the
    channel. Nothing is drawn if the variance is 0.

    Args:
        rng: The only source of randomness.
        channels: True channels, complex64 (n, J, J, K, M).
        deployment: Dimensions and gains.
        error_variance: σ² relative to the mean power of a path.

    Returns:
        complex64 array of the same shape.
    """
    if error_variance == 0.0:
        return channels
    error = scale_between_cells(draw_complex_normal(rng, channels.shape), deployment)
    return channels + np.float32(math.sqrt(error_variance)) * error


class ChannelProcess:
    """The channels of n environments over time, true and as observed.

    Args:
        model: How channels are drawn.
        scenario: Dimensions, gains and the variance of the estimate's error.
        num: Environments n.

    Attributes:
        channels: True channels, complex64 (n, J, J, K, M).
        estimates: What the agent observes; the same array if the error variance is 0.
    """

    def __init__(self, model: ChannelModel, scenario: Scenario, num: int) -> None:
        self.model = model
        self.deployment = Deployment.of(scenario)
        self._error_variance = scenario.csi_error_variance
        self.channels: Complex = np.zeros((num, *self.deployment.shape), np.complex64)
        self.estimates = self.channels

    def start(self, rng: np.random.Generator, where: npt.NDArray[np.bool_] | None = None) -> None:
        """Draw first blocks, for all environments or those of a mask (n,)."""
        if where is None:
            self.place(
                rng, self._check_drawn(self.model.draw(rng, len(self.channels), self.deployment))
            )
            return
        channels, estimates = self.channels.copy(), self.estimates.copy()
        drawn = self.model.draw(rng, int(where.sum()), self.deployment)
        channels[where] = self._check_drawn(drawn, int(where.sum()))
        estimates[where] = self._observe(rng, channels[where])
        self.channels, self.estimates = channels, estimates

    def advance(self, rng: np.random.Generator) -> None:
        """Draw the next block of every environment."""
        self.place(rng, self._check_drawn(self.model.advance(rng, self.channels, self.deployment)))

    def place(self, rng: np.random.Generator, channels: Complex) -> None:
        """Make ``channels`` the current block and draw its estimate."""
        self.channels = channels
        self.estimates = self._observe(rng, channels)

    def _check_drawn(self, drawn: Complex, num: int | None = None) -> Complex:
        shape = (len(self.channels) if num is None else num, *self.deployment.shape)
        if np.shape(drawn) != shape:
            raise ValueError(
                f"{self.model!r} must draw channels of shape {shape}, got {np.shape(drawn)}"
            )
        return drawn.astype(np.complex64, copy=False)

    def _observe(self, rng: np.random.Generator, channels: Complex) -> Complex:
        return observe_channels(rng, channels, self.deployment, self._error_variance)
