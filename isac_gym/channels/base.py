"""What a channel model is, and what it needs to know of a scenario."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from isac_gym.scenario import Layout, Scenario

__all__ = [
    "LARGEST_GAIN",
    "LARGEST_MAGNITUDE",
    "ChannelModel",
    "Complex",
    "Deployment",
    "check_magnitude",
    "convert_to_array",
    "draw_complex_normal",
    "has_allowed_magnitude",
    "scale_between_cells",
]

Complex = npt.NDArray[np.complex64]

LARGEST_MAGNITUDE: Final = 1e8
"""Of an entry of a channel, where paths have a mean power of about 1: 160 dB above that. What is
computed of channels, fourth powers among it, single precision holds up to here."""
_SAFE_BOUND: Final = LARGEST_MAGNITUDE * math.sqrt(0.5)
"""With both parts within it, the magnitude of a complex number is allowed."""
_FEW: Final = 4096
LARGEST_GAIN: Final = LARGEST_MAGNITUDE**2 / 100.0
"""Of a path's mean power, so that fading does not exceed the largest magnitude."""


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What a channel model needs to know of a scenario.

    Attributes:
        num_cells: J.
        num_users: K.
        num_radar_antennas: M_R.
        num_comm_antennas: M_C.
        antenna_spacing: Element spacing in wavelengths.
        intercell_gain: Mean power β of the paths between a station and another cell's users, with
            the layout ``"uniform"``.
        layout: How stations and users stand.
        gains: Mean power of each path of each realisation, float32 (n, J, J, K) for [station, cell,
            user] (or one realisation's, (1, J, J, K), for all); None with the layout ``"uniform"``.
            It is left out when deployments are compared.
    """

    num_cells: int
    num_users: int
    num_radar_antennas: int
    num_comm_antennas: int
    antenna_spacing: float
    intercell_gain: float
    layout: Layout = "uniform"
    gains: npt.NDArray[np.float32] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    @classmethod
    def of(cls, scenario: Scenario) -> Deployment:
        """The deployment of a scenario, without gains."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "gains"]
        return cls(**{name: getattr(scenario, name) for name in names})

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (J, J, K, M) of one realisation."""
        antennas = self.num_radar_antennas + self.num_comm_antennas
        return (self.num_cells, self.num_cells, self.num_users, antennas)

    @property
    def amplitude(self) -> npt.NDArray[np.float32]:
        """Square root of each path's mean power, (n, J, J, K, 1) with gains, else (J, J, 1, 1).

        Raises:
            ValueError: If the layout needs gains and there are none.
        """
        if self.gains is not None:
            root: npt.NDArray[np.float32] = np.sqrt(self.gains)
            return root[..., None]
        if self.layout != "uniform":
            raise ValueError(
                f"gains must be given with layout={self.layout!r}, got None; a ChannelProcess "
                "draws them when it starts"
            )
        gain = np.full((self.num_cells, self.num_cells), self.intercell_gain)
        np.fill_diagonal(gain, 1.0)
        amplitude: npt.NDArray[np.float32] = np.sqrt(gain).astype(np.float32)
        return amplitude[:, :, None, None]


def convert_to_array(name: str, given: npt.ArrayLike) -> npt.NDArray[Any]:
    """What somebody gives as an array, of whatever type its entries are.

    Raises:
        ValueError: If it is nested sequences of different lengths; the message names it.
    """
    try:
        return np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name} must be an array with rows of equal length: {error}") from error


def check_magnitude(name: str, channels: npt.NDArray[Any]) -> None:
    """Check that channels are finite and not too large for what is computed of them.

    Args:
        name: What they are called in messages.
        channels: Complex or real array of single precision.

    Raises:
        ValueError: If an entry is NaN, infinite, or of a magnitude above
            :data:`LARGEST_MAGNITUDE`; the message names it and its index.
    """
    if has_allowed_magnitude(channels):
        return
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and too large
        bad = np.argwhere(~(np.abs(channels) <= LARGEST_MAGNITUDE))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        value = channels[index]
        allowed = f"of magnitude {LARGEST_MAGNITUDE:g} or less" if np.isfinite(value) else "finite"
        raise ValueError(
            f"{name} must be {allowed}, got {value} at index {index} of shape {channels.shape}"
        )


def has_allowed_magnitude(channels: npt.NDArray[Any]) -> bool:
    """Whether all entries are finite and certainly not too large; quick, for every step.

    Args:
        channels: Complex or real array of single precision.

    Returns:
        False where an entry is not allowed, or a few numbers are all but too large together, for
        :func:`check_magnitude` to decide.
    """
    parts = channels.reshape(-1).view(np.float32)
    if parts.size <= _FEW:
        # The fastest for few numbers. NaN passes no comparison.
        return bool(parts.dot(parts) <= _SAFE_BOUND**2)
    return bool(parts.min() >= -_SAFE_BOUND and parts.max() <= _SAFE_BOUND)


def draw_complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Complex:
    """Independent CN(0, 1) entries, complex64."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32)
    parts *= np.float32(math.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


class ChannelModel(ABC):
    """How channels are drawn; subclass this to bring your own.

    Attributes:
        is_time_correlated: Whether a block depends on the one before it; tells evaluation to keep
            the blocks of an episode together.
        follows_gains: Whether paths have the mean power that the deployment gives them, as by
            :func:`scale_between_cells`. A model that has gains of its own is refused with a layout
            that has distances, because the distances would mean nothing.
    """

    is_time_correlated: bool = False
    follows_gains: bool = False

    @abstractmethod
    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        """Draw independent realisations, as at the start of an episode.

        Args:
            rng: The only source of randomness.
            num: Number of realisations n.
            deployment: Dimensions and gains.

        Returns:
            complex64 array (n, J, J, K, M), whose entries are finite and of a magnitude of 1e8 or
            less.
        """

    def advance(
        self, rng: np.random.Generator, channels: Complex, deployment: Deployment
    ) -> Complex:
        """Draw the next coherence block; independent of the current one unless overridden.

        Args:
            rng: The only source of randomness.
            channels: Current block, complex64 (n, J, J, K, M); must not be changed in place.
            deployment: Dimensions and gains.

        Returns:
            complex64 array of the same shape.
        """
        return self.draw(rng, len(channels), deployment)


def scale_between_cells(channels: Complex, deployment: Deployment) -> Complex:
    """Give paths of mean power 1 that of the deployment: its gains, or β between cells.

    Args:
        channels: complex64 array (n, J, J, K, M).
        deployment: Dimensions and gains.

    Returns:
        complex64 array of the same shape; the same array if nothing is to be scaled.

    Raises:
        ValueError: If the layout needs gains and there are none.
    """
    if deployment.num_cells == 1 and deployment.layout == "uniform" and deployment.gains is None:
        return channels
    return channels * deployment.amplitude
