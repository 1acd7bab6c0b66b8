"""Channel models: who draws the channels, in which order.

A model draws arrays of shape (n, J, J, K, M): n realisations of the channels from station i to
user k of cell j, each row [f, g] with the M_R radar antennas first. It draws from the generator
that it is given and keeps no state of its own, so one object serves any number of environments.

Order of the draws: the whole array at once, in C order, real and imaginary part of an entry next
to each other. A batch of n environments and n draws for one environment therefore use up the
generator alike, but hand the numbers to different blocks.
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
import zlib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isac_gym.scenario import Scenario
from isac_gym.validation import real

__all__ = [
    "ChannelModel",
    "ChannelProcess",
    "Complex",
    "FileChannels",
    "GaussMarkovChannel",
    "Links",
    "RayleighChannel",
    "RicianChannel",
    "complex_normal",
    "default_channel_model",
    "observe_channels",
    "resolve_channel_model",
]

Complex = npt.NDArray[np.complex64]


@dataclasses.dataclass(frozen=True)
class Links:
    """What a channel model needs to know of a scenario.

    Attributes:
        num_cells: J.
        num_users: K.
        num_radar_antennas: M_R.
        num_comm_antennas: M_C.
        antenna_spacing: Element spacing in wavelengths.
        intercell_gain: Mean power β of the paths between a station and another cell's users.
    """

    num_cells: int
    num_users: int
    num_radar_antennas: int
    num_comm_antennas: int
    antenna_spacing: float
    intercell_gain: float

    @classmethod
    def of(cls, scenario: Scenario) -> Links:
        """The links of a scenario."""
        return cls(
            **{field.name: getattr(scenario, field.name) for field in dataclasses.fields(cls)}
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (J, J, K, M) of one realisation."""
        antennas = self.num_radar_antennas + self.num_comm_antennas
        return (self.num_cells, self.num_cells, self.num_users, antennas)

    @property
    def amplitude(self) -> npt.NDArray[np.float32]:
        """Square root of the mean power of each path, shape (J, J, 1, 1)."""
        gain = np.full((self.num_cells, self.num_cells), self.intercell_gain)
        np.fill_diagonal(gain, 1.0)
        amplitude: npt.NDArray[np.float32] = np.sqrt(gain).astype(np.float32)
        return amplitude[:, :, None, None]


def complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Complex:
    """Independent CN(0, 1) entries, complex64."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32)
    parts *= np.float32(math.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


class ChannelModel(ABC):
    """How channels are drawn; subclass this to bring your own.

    Attributes:
        is_time_correlated: Whether a block depends on the one before it; tells evaluation to keep
            the blocks of an episode together.
    """

    is_time_correlated: bool = False

    @abstractmethod
    def draw(self, rng: np.random.Generator, num: int, links: Links) -> Complex:
        """Draw independent realisations, as at the start of an episode.

        Args:
            rng: The only source of randomness.
            num: Number of realisations n.
            links: Dimensions and gains.

        Returns:
            complex64 array (n, J, J, K, M).
        """

    def advance(self, rng: np.random.Generator, channels: Complex, links: Links) -> Complex:
        """Draw the next coherence block; independent of the current one unless overridden.

        Args:
            rng: The only source of randomness.
            channels: Current block, complex64 (n, J, J, K, M); must not be changed in place.
            links: Dimensions and gains.

        Returns:
            complex64 array of the same shape.
        """
        return self.draw(rng, len(channels), links)


@dataclasses.dataclass(frozen=True)
class RayleighChannel(ChannelModel):
    """Independent flat Rayleigh fading: CN(0, 1) within a cell, CN(0, β) between cells."""

    def draw(self, rng: np.random.Generator, num: int, links: Links) -> Complex:
        """See :meth:`ChannelModel.draw`."""
        return _between_cells(complex_normal(rng, (num, *links.shape)), links)


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

    def __post_init__(self) -> None:
        if not 0.0 <= self.doppler <= 0.5:
            raise ValueError(f"doppler must be a number in [0, 0.5], got {self.doppler!r}")

    @cached_property
    def correlation(self) -> float:
        """ρ = J0(2π·doppler)."""
        import torch

        argument = torch.tensor(2.0 * math.pi * self.doppler, dtype=torch.float64)
        return float(torch.special.bessel_j0(argument))

    def draw(self, rng: np.random.Generator, num: int, links: Links) -> Complex:
        """See :meth:`ChannelModel.draw`."""
        return _between_cells(complex_normal(rng, (num, *links.shape)), links)

    def advance(self, rng: np.random.Generator, channels: Complex, links: Links) -> Complex:
        """See :meth:`ChannelModel.advance`."""
        rho = self.correlation
        innovation = self.draw(rng, len(channels), links)
        return np.float32(rho) * channels + np.float32(math.sqrt(1.0 - rho * rho)) * innovation


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

    def __post_init__(self) -> None:
        real("k_factor_db", self.k_factor_db, "a finite number (dB)", lambda value: True)
        low, high = self.angle_range_deg
        if not -90.0 <= low <= high <= 90.0:
            raise ValueError(
                "angle_range_deg must be (low, high) with -90 <= low <= high <= 90, "
                f"got {self.angle_range_deg!r}"
            )

    def draw(self, rng: np.random.Generator, num: int, links: Links) -> Complex:
        """See :meth:`ChannelModel.draw`; directions and phases are drawn before the scattering."""
        paths = (num, *links.shape[:3], 1)
        low, high = np.deg2rad(self.angle_range_deg)
        direction = low + (high - low) * rng.random(paths)
        phase = 2.0 * np.pi * rng.random(paths)
        along = np.arange(links.shape[3]) * (2.0 * np.pi * links.antenna_spacing)
        line_of_sight = np.exp(1j * (phase - along * np.sin(direction)))
        scattered = complex_normal(rng, (num, *links.shape))
        # κ/(κ+1), in a form that overflows for no κ.
        share = 0.5 * (1.0 + math.tanh(0.05 * math.log(10.0) * self.k_factor_db))
        mixed = math.sqrt(share) * line_of_sight + math.sqrt(1.0 - share) * scattered
        return _between_cells(mixed.astype(np.complex64), links)


class FileChannels(ChannelModel):
    """Channels drawn with replacement from samples in a file: DeepMIMO, Sionna, measurements.

    The samples are used as they are; scale them so that the scenario's SNR means what you want.

    Args:
        path: ``.npy`` file, or ``.npz`` file with an array ``channels`` (or a single array), of
            shape (N, K, M) for one cell or (N, J, J, K, M), complex; row [f, g] of a user holds
            the M_R radar antennas first. Nothing in the file is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such array, is empty, or holds non-finite entries; the message
            names the file and the index.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        loaded = _load_samples(self.path)
        if loaded.ndim == 3:
            loaded = loaded[:, None, None]
        with np.errstate(over="ignore"):  # what overflows is found below
            samples = loaded.astype(np.complex64)
        bad = np.argwhere(~np.isfinite(samples))
        if len(bad):
            raise ValueError(
                f"{self.path}: channels must be finite, got {loaded[tuple(bad[0])]} at index "
                f"{tuple(int(i) for i in bad[0])} of shape {samples.shape}"
            )
        self.samples: Complex = samples

    def __repr__(self) -> str:
        return f"FileChannels({str(self.path)!r})"

    def draw(self, rng: np.random.Generator, num: int, links: Links) -> Complex:
        """See :meth:`ChannelModel.draw`.

        Raises:
            ValueError: If the samples do not have the scenario's dimensions.
        """
        if self.samples.shape[1:] != links.shape:
            raise ValueError(
                f"{self.path}: channels must have shape (N, J, J, K, M) = (N, "
                f"{', '.join(map(str, links.shape))}) for this scenario, or (N, K, M) with one "
                f"cell, got {self.samples.shape}"
            )
        return self.samples[rng.integers(len(self.samples), size=num)]


def _load_samples(path: Path) -> npt.NDArray[Any]:
    allowed = "a .npy file, or an .npz file with an array 'channels' or a single array"
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                name = "channels" if "channels" in loaded.files else loaded.files[0]
                if name != "channels" and len(loaded.files) > 1:
                    raise ValueError(f"found the arrays {loaded.files}")
                loaded = loaded[name]
            samples = np.asarray(loaded)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: channels must be {allowed} ({error})") from error
    if (
        samples.ndim not in (3, 5)
        or samples.size == 0
        or not np.issubdtype(samples.dtype, np.number)
    ):
        raise ValueError(
            f"{path}: channels must be a non-empty numeric array of shape (N, K, M) or "
            f"(N, J, J, K, M), got shape {samples.shape} and dtype {samples.dtype}"
        )
    return samples


def _between_cells(channels: Complex, links: Links) -> Complex:
    return channels if links.num_cells == 1 else channels * links.amplitude


def default_channel_model(scenario: Scenario) -> ChannelModel:
    """Rayleigh fading, or its Gauss-Markov sequence if the scenario has a Doppler frequency."""
    if scenario.doppler is None:
        return RayleighChannel()
    return GaussMarkovChannel(scenario.doppler)


def resolve_channel_model(model: ChannelModel | None, scenario: Scenario) -> ChannelModel:
    """The channel model of an environment: the one given, or the scenario's default.

    Raises:
        TypeError: If ``model`` is no :class:`ChannelModel`.
        ValueError: If the scenario has a Doppler frequency that the model does not follow.
    """
    if model is None:
        return default_channel_model(scenario)
    if not isinstance(model, ChannelModel):
        raise TypeError(f"channel_model must be None or a ChannelModel object, got {model!r}")
    if scenario.doppler is not None and getattr(model, "doppler", None) != scenario.doppler:
        raise ValueError(
            f"doppler must be None with a channel_model of its own, got {scenario.doppler!r} and "
            f"{model!r}"
        )
    return model


def observe_channels(
    rng: np.random.Generator, channels: Complex, links: Links, error_variance: float
) -> Complex:
    """The channel estimate that an agent sees: H + E with E ~ CN(0, σ²·gain of the path).

    This is a least-squares estimate from noisy pilots: unbiased, its error independent of the
    channel. Nothing is drawn if the variance is 0.

    Args:
        rng: The only source of randomness.
        channels: True channels, complex64 (n, J, J, K, M).
        links: Dimensions and gains.
        error_variance: σ² relative to the mean power of a path.

    Returns:
        complex64 array of the same shape.
    """
    if error_variance == 0.0:
        return channels
    error = _between_cells(complex_normal(rng, channels.shape), links)
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
        self.links = Links.of(scenario)
        self._error_variance = scenario.csi_error_variance
        self.channels: Complex = np.zeros((num, *self.links.shape), np.complex64)
        self.estimates = self.channels

    def start(self, rng: np.random.Generator, where: npt.NDArray[np.bool_] | None = None) -> None:
        """Draw first blocks, for all environments or those of a mask (n,)."""
        if where is None:
            self.place(rng, self._checked(self.model.draw(rng, len(self.channels), self.links)))
            return
        channels, estimates = self.channels.copy(), self.estimates.copy()
        drawn = self.model.draw(rng, int(where.sum()), self.links)
        channels[where] = self._checked(drawn, int(where.sum()))
        estimates[where] = self._observe(rng, channels[where])
        self.channels, self.estimates = channels, estimates

    def advance(self, rng: np.random.Generator) -> None:
        """Draw the next block of every environment."""
        self.place(rng, self._checked(self.model.advance(rng, self.channels, self.links)))

    def place(self, rng: np.random.Generator, channels: Complex) -> None:
        """Make ``channels`` the current block and draw its estimate."""
        self.channels = channels
        self.estimates = self._observe(rng, channels)

    def _checked(self, drawn: Complex, num: int | None = None) -> Complex:
        shape = (len(self.channels) if num is None else num, *self.links.shape)
        if np.shape(drawn) != shape:
            raise ValueError(
                f"{self.model!r} must draw channels of shape {shape}, got {np.shape(drawn)}"
            )
        return drawn.astype(np.complex64, copy=False)

    def _observe(self, rng: np.random.Generator, channels: Complex) -> Complex:
        return observe_channels(rng, channels, self.links, self._error_variance)
