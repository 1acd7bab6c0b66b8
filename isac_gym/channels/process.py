"""Channels over time, as they are and as an agent observes them."""

from __future__ import annotations

import dataclasses
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
from isac_gym.channels.placement import (
    check_user_positions,
    draw_path_gains,
    draw_user_positions,
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

    With a layout other than ``"uniform"`` an episode begins with the positions of its users and the
    gains of the paths to them, which are drawn before the first block and kept until the next
    episode. With ``"uniform"`` there are none, and nothing is drawn for them.

    Args:
        model: How channels are drawn.
        scenario: Dimensions, gains and the variance of the estimate's error.
        num: Environments n.

    Raises:
        ValueError: If the layout has distances whose gains the model does not follow.

    Attributes:
        deployment: What the model is told, with the current gains.
        channels: True channels, complex64 (n, J, J, K, M).
        estimates: What the agent observes; the same array if the error variance is 0.
        positions: Where users stand, float64 (n, J, K, 2), in m; None without positions.
    """

    def __init__(self, model: ChannelModel, scenario: Scenario, num: int) -> None:
        if scenario.is_geometric and not model.follows_gains:
            raise ValueError(
                "layout must be 'uniform' with a channel model that has gains of its own "
                f"(follows_gains is False), got {scenario.layout!r} and {model!r}"
            )
        self.model = model
        self.deployment = Deployment.of(scenario)
        self._scenario = scenario
        self.channels: Complex = np.zeros((num, *self.deployment.shape), np.complex64)
        self.estimates = self.channels
        self.positions: npt.NDArray[np.float64] | None = None

    @property
    def gains(self) -> npt.NDArray[np.float32] | None:
        """Mean power of each path, (n, J, J, K) for [station, cell, user]; None if uniform."""
        return self.deployment.gains

    def start(
        self,
        rng: np.random.Generator,
        where: npt.NDArray[np.bool_] | None = None,
        positions: npt.ArrayLike | None = None,
    ) -> None:
        """Draw first blocks, for all environments or those of a mask (n,).

        Args:
            rng: The only source of randomness.
            where: Which environments; None means all.
            positions: Where the users of these m environments stand, (m, J, K, 2), in m; None draws
                them.

        Raises:
            TypeError: If the positions are no real numbers.
            ValueError: If positions are not allowed, or the mask leaves out an environment whose
                users have no positions yet.
        """
        chosen = np.ones(len(self.channels), np.bool_) if where is None else where
        if self._scenario.is_geometric and self.positions is None and not chosen.all():
            raise ValueError("where must be all true as long as users have no positions")
        num = int(chosen.sum())
        users, deployment = self._draw_users(rng, num, positions)
        drawn = self._check_drawn(self.model.draw(rng, num, deployment), num)
        if where is None:
            self.positions, self.deployment = users, deployment
            self._set_blocks(rng, drawn)
            return
        channels, estimates = self.channels.copy(), self.estimates.copy()
        channels[where] = drawn
        estimates[where] = self._observe(rng, drawn, deployment)
        self.channels, self.estimates = channels, estimates
        if users is not None and deployment.gains is not None:
            self._replace_users(where, users, deployment.gains)

    def advance(self, rng: np.random.Generator) -> None:
        """Draw the next block of every environment; users stay where they are."""
        drawn = self.model.advance(rng, self.channels, self.deployment)
        self._set_blocks(rng, self._check_drawn(drawn, len(self.channels)))

    def change_gain(self, gains: npt.NDArray[np.float64]) -> None:
        """Give the paths between cells another mean power, in the current block alone.

        Args:
            gains: Mean power in each environment instead of ``intercell_gain``, (n,).

        Raises:
            ValueError: If the layout has distances, or ``intercell_gain`` is 0.
        """
        base = self._scenario.intercell_gain
        if self._scenario.is_geometric or base == 0.0:
            raise ValueError(
                "gains need layout 'uniform' and intercell_gain > 0, got "
                f"{self._scenario.layout!r} and {base!r}"
            )
        factors = np.sqrt(gains / base).astype(np.float32)[:, None, None, None, None]
        own = np.eye(self._scenario.num_cells, dtype=np.bool_)[:, :, None, None]
        known = self.estimates is self.channels
        self.channels = np.where(own, self.channels, factors * self.channels)
        self.estimates = (
            self.channels if known else np.where(own, self.estimates, factors * self.estimates)
        )

    def place(
        self, rng: np.random.Generator, channels: Complex, positions: npt.ArrayLike | None = None
    ) -> None:
        """Make ``channels`` the first block of all environments and draw its estimate.

        Args:
            rng: The only source of randomness.
            channels: True channels, complex64 (n, J, J, K, M).
            positions: Where users stand, (n, J, K, 2), in m; None draws them where the layout has
                positions. The gains that follow are those of the estimate's error and of the blocks
                to come.

        Raises:
            TypeError: If the positions are no real numbers.
            ValueError: If positions are not allowed.
        """
        self.positions, self.deployment = self._draw_users(rng, len(channels), positions)
        self._set_blocks(rng, channels)

    def _draw_users(
        self, rng: np.random.Generator, num: int, positions: npt.ArrayLike | None
    ) -> tuple[npt.NDArray[np.float64] | None, Deployment]:
        """Positions (num, J, K, 2), and the deployment with their gains."""
        if positions is None and not self._scenario.is_geometric:
            return None, self.deployment
        if positions is None:
            users = draw_user_positions(rng, num, self._scenario)
        else:
            users = check_user_positions(positions, self._scenario, (num,))
        gains = draw_path_gains(rng, users, self._scenario)
        return users, dataclasses.replace(self.deployment, gains=gains)

    def _replace_users(
        self,
        where: npt.NDArray[np.bool_],
        users: npt.NDArray[np.float64],
        gains: npt.NDArray[np.float32],
    ) -> None:
        """Positions and gains of the environments of a mask; arrays handed out stay as they are."""
        if self.positions is not None and self.gains is not None:
            kept, held = self.positions.copy(), self.gains.copy()
            kept[where], held[where] = users, gains
            users, gains = kept, held
        self.positions, self.deployment = users, dataclasses.replace(self.deployment, gains=gains)

    def _forget_users(self) -> None:
        """Drop positions and gains: the blocks to come belong to no episode of this process."""
        self.positions, self.deployment = None, dataclasses.replace(self.deployment, gains=None)

    def _set_blocks(self, rng: np.random.Generator, channels: Complex) -> None:
        self.channels = channels
        self.estimates = self._observe(rng, channels, self.deployment)

    def _check_drawn(self, drawn: Complex, num: int) -> Complex:
        shape = (num, *self.deployment.shape)
        if np.shape(drawn) != shape:
            raise ValueError(
                f"{self.model!r} must draw channels of shape {shape}, got {np.shape(drawn)}"
            )
        return drawn.astype(np.complex64, copy=False)

    def _observe(
        self, rng: np.random.Generator, channels: Complex, deployment: Deployment
    ) -> Complex:
        return observe_channels(rng, channels, deployment, self._scenario.csi_error_variance)
