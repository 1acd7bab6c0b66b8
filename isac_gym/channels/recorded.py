"""Channels from a file: measured, or computed by another program."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isac_gym.channels.base import ChannelModel, Complex, Deployment
from isac_gym.registry import register_channel

__all__ = ["FileChannels"]


@register_channel("file", "samples from a .npy or .npz file: file:PATH")
class FileChannels(ChannelModel):
    """Channels drawn with replacement from samples in a file: DeepMIMO, Sionna, measurements.

    The samples are used as they are; scale them so that the scenario's SNR means what you want.
    They have gains of their own, so that the layout must be ``"uniform"``.

    Args:
        path: ``.npy`` file, or ``.npz`` file with an array ``channels`` (or a single array), of
            shape (N, K, M) for one cell or (N, J, J, K, M), complex; row [f, g] of a user holds
            the M_R radar antennas first. Nothing in the file is executed.

    Attributes:
        samples: The samples, complex64 (N, J, J, K, M).
        digest: Hash of the samples, by which results of another file of the same name are told.

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
        self.digest = hashlib.sha256(samples.tobytes()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"FileChannels({str(self.path)!r})"

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        """See :meth:`ChannelModel.draw`.

        Raises:
            ValueError: If the samples do not have the scenario's dimensions.
        """
        if self.samples.shape[1:] != deployment.shape:
            wanted = ", ".join(map(str, deployment.shape))
            raise ValueError(
                f"{self.path}: channels must have shape (N, J, J, K, M) = (N, {wanted}) for this "
                f"scenario, or (N, K, M) with one cell, got {self.samples.shape}"
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
