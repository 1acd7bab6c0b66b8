"""Channels over time, as they are and as an agent observes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from isac_gym.channels.base import (
    ChannelModel,
    Complex,
    Deployment,
    check_magnitude,
    convert_to_array,
    draw_complex_normal,
    has_allowed_magnitude,
    scale_between_cells,
)
from isac_gym.channels.placement import (
    check_user_positions,
    draw_path_gains,
    draw_user_positions,
)
from isac_gym.scenario import Scenario

__all__ = ["ChannelProcess", "Randomness", "observe_channels"]

Randomness: TypeAlias = np.random.Generator | Sequence[np.random.Generator]
"""One generator for all environments, or one for each."""

_Entry = TypeVar("_Entry", bound=np.generic)


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
        rng: Randomness,
        where: npt.NDArray[np.bool_] | None = None,
        positions: npt.ArrayLike | None = None,
    ) -> None:
        """Draw first blocks, for all environments or those of a mask (n,).

        Args:
            rng: The only source of randomness: one generator, or one for each of the n
                environments, which then draws what a process of this environment alone would.
            where: Which environments; None means all.
            positions: Where the users of these m environments stand, (m, J, K, 2), in m; None draws
                them.

        Raises:
            TypeError: If the positions are no real numbers, or what the model draws no numbers.
            ValueError: If positions are not allowed, the mask leaves out an environment whose users
                have no positions yet, or what the model draws is of another shape, not finite or
                too large (:data:`~isac_gym.channels.base.LARGEST_MAGNITUDE`).
        """
        self._begin(rng, len(self.channels), where, positions, None)

    def advance(self, rng: Randomness, where: npt.NDArray[np.bool_] | None = None) -> None:
        """Draw the next block; users stay where they are.

        Args:
            rng: The only source of randomness: one generator, or one for each environment.
            where: Which environments, (n,); None means all.

        Raises:
            TypeError: If what the model draws is no numbers.
            ValueError: If it is of another shape, not finite or too large.
        """
        parts = []
        for share in _share_out(rng, len(self.channels), where):
            deployment = self.deployment
            if self.gains is not None:
                deployment = dataclasses.replace(deployment, gains=self.gains[share.where])
            current = self.channels[share.where]
            drawn = self.model.advance(share.generator, current, deployment)
            parts.append(self._complete(share, self._check_drawn(drawn, share.num), deployment))
        self._put(parts, where)

    def change_gain(self, gains: npt.NDArray[np.float64]) -> None:
        """Give the paths between cells another mean power, in the current block alone.

        Args:
            gains: Mean power in each environment instead of ``intercell_gain``, (n,).

        Raises:
            ValueError: If the layout has distances, ``intercell_gain`` is 0, or channels become
                too large.
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
        check_magnitude("channels with gains in gain_range", self.channels)
        self.estimates = (
            self.channels if known else np.where(own, self.estimates, factors * self.estimates)
        )

    def place(
        self,
        rng: Randomness,
        channels: Complex,
        positions: npt.ArrayLike | None = None,
        where: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Make given channels the first blocks and draw their estimates.

        Args:
            rng: The only source of randomness: one generator, or one for each environment.
            channels: True channels, complex64 (m, J, J, K, M), for the m environments of the mask.
                Without a mask they are those of all environments, of any number.
            positions: Where users stand, (m, J, K, 2), in m; None draws them where the layout has
                positions. The gains that follow are those of the estimate's error and of the blocks
                to come.
            where: Which environments, (n,); None means all.

        Raises:
            TypeError: If the positions are no real numbers.
            ValueError: If channels are not finite or too large, positions are not allowed, or the
                mask leaves out an environment whose users have no positions yet.
        """
        check_magnitude("channels", channels)
        num = len(channels) if where is None else len(self.channels)
        self._begin(rng, num, where, positions, channels)

    def _begin(
        self,
        rng: Randomness,
        num: int,
        where: npt.NDArray[np.bool_] | None,
        given: npt.ArrayLike | None,
        channels: Complex | None,
    ) -> None:
        """Put first blocks, drawn or given, into those of ``num`` environments that are chosen."""
        leaves_out = where is not None and not where.all()
        if self._scenario.is_geometric and self.positions is None and leaves_out:
            raise ValueError("where must be all true as long as users have no positions")
        positions = None
        if given is not None:
            count = num if where is None else int(np.count_nonzero(where))
            positions = check_user_positions(given, self._scenario, (count,))
        parts = []
        for share in _share_out(rng, num, where):
            stand = None if positions is None else positions[share.given]
            users, deployment = self._draw_users(share.generator, share.num, stand)
            if channels is None:
                drawn = self.model.draw(share.generator, share.num, deployment)
                drawn = self._check_drawn(drawn, share.num)
            else:
                drawn = channels[share.given]
            parts.append(self._complete(share, drawn, deployment, users))
        self._put(parts, where)

    def _complete(
        self,
        share: _Share,
        channels: Complex,
        deployment: Deployment,
        users: npt.NDArray[np.float64] | None = None,
    ) -> _Blocks:
        """Blocks with the estimates that are drawn of them."""
        estimates = observe_channels(
            share.generator, channels, deployment, self._scenario.csi_error_variance
        )
        if estimates is not channels:
            variance = self._scenario.csi_error_variance
            check_magnitude(f"channel estimates with csi_error_variance={variance:g}", estimates)
        return _Blocks(channels, estimates, users, None if users is None else deployment.gains)

    def _put(self, parts: list[_Blocks], where: npt.NDArray[np.bool_] | None) -> None:
        """Make blocks the current ones; arrays that were handed out stay as they are."""
        if not parts:
            return
        blocks = _join(parts)
        if blocks.users is not None and blocks.gains is not None:
            self.positions = _replace_rows(self.positions, blocks.users, where)
            gains = _replace_rows(self.gains, blocks.gains, where)
            self.deployment = dataclasses.replace(self.deployment, gains=gains)
        known = blocks.estimates is blocks.channels
        estimates = None if known else _replace_rows(self.estimates, blocks.estimates, where)
        self.channels = _replace_rows(self.channels, blocks.channels, where)
        self.estimates = self.channels if estimates is None else estimates

    def _draw_users(
        self, rng: np.random.Generator, num: int, users: npt.NDArray[np.float64] | None
    ) -> tuple[npt.NDArray[np.float64] | None, Deployment]:
        """Positions (num, J, K, 2), and the deployment with their gains."""
        if users is None and not self._scenario.is_geometric:
            return None, self.deployment
        if users is None:
            users = draw_user_positions(rng, num, self._scenario)
        gains = draw_path_gains(rng, users, self._scenario)
        return users, dataclasses.replace(self.deployment, gains=gains)

    def _forget_users(self) -> None:
        """Drop positions and gains: the blocks to come belong to no episode of this process."""
        self.positions, self.deployment = None, dataclasses.replace(self.deployment, gains=None)

    def _check_drawn(self, drawn: Complex, num: int) -> Complex:
        shape = (num, *self.deployment.shape)
        array = drawn
        if not isinstance(drawn, np.ndarray):
            array = convert_to_array(f"channels drawn by {self.model!r}", drawn)
        if array.shape != shape:
            raise ValueError(
                f"{self.model!r} must draw channels of shape {shape}, got {array.shape}"
            )
        if array.dtype != np.complex64:
            if array.dtype.kind not in "iufc":
                raise TypeError(
                    f"channels drawn by {self.model!r} must be numbers, got dtype {array.dtype}"
                )
            with np.errstate(over="ignore"):  # what overflows is found below
                array = array.astype(np.complex64)
        if not has_allowed_magnitude(array):  # the name takes longer than the check
            check_magnitude(f"channels drawn by {self.model!r}", array)
        return array


class _Share(NamedTuple):
    """What one generator draws: for which environments, and which of the m chosen these are."""

    generator: np.random.Generator
    where: npt.NDArray[np.bool_] | slice
    given: slice
    num: int


class _Blocks(NamedTuple):
    """Blocks of m environments; the users and gains are None where they stay as they are."""

    channels: Complex
    estimates: Complex
    users: npt.NDArray[np.float64] | None
    gains: npt.NDArray[np.float32] | None


def _share_out(rng: Randomness, num: int, where: npt.NDArray[np.bool_] | None) -> list[_Share]:
    """Who draws what: one generator for all, or each for its own environment."""
    if isinstance(rng, np.random.Generator):
        if where is None:
            return [_Share(rng, slice(None), slice(None), num)]
        return [_Share(rng, where, slice(None), int(np.count_nonzero(where)))]
    chosen = range(num) if where is None else np.flatnonzero(where).tolist()
    return [
        _Share(rng[index], slice(index, index + 1), slice(place, place + 1), 1)
        for place, index in enumerate(chosen)
    ]


def _join(parts: list[_Blocks]) -> _Blocks:
    """The blocks of all parts, of which there is one at least, together."""
    if len(parts) == 1:
        return parts[0]
    channels = np.concatenate([part.channels for part in parts])
    known = all(part.estimates is part.channels for part in parts)
    users = [part.users for part in parts if part.users is not None]
    gains = [part.gains for part in parts if part.gains is not None]
    return _Blocks(
        channels,
        channels if known else np.concatenate([part.estimates for part in parts]),
        np.concatenate(users) if users else None,
        np.concatenate(gains) if gains else None,
    )


def _replace_rows(
    held: npt.NDArray[_Entry] | None,
    rows: npt.NDArray[_Entry],
    where: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[_Entry]:
    """Rows in place of those of a mask, or of all."""
    if where is None or held is None:
        return rows
    result = held.copy()
    result[where] = rows
    return result
