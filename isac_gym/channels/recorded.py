"""Channels from a file: measured, or computed by another program."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Final

import numpy as np

from isac_gym.channels.base import ChannelModel, Complex, Deployment
from isac_gym.reading import (
    CHUNK,
    FileError,
    StoredArray,
    ZipEntries,
    make_file_error,
    open_file,
    read_array_header,
    read_exactly,
)
from isac_gym.registry import register_channel

__all__ = ["FileChannels"]

_ALLOWED: Final = "a .npy file, or an .npz file with an array 'channels' or a single array"


@register_channel("file", "samples from a .npy or .npz file: file:PATH")
class FileChannels(ChannelModel):
    """Channels drawn with replacement from samples in a file: DeepMIMO, Sionna, measurements.

    The samples are used as they are; scale them so that the scenario's SNR means what you want.
    They have gains of their own, so that the layout must be ``"uniform"``.

    Args:
        path: ``.npy`` file, or ``.npz`` file with an array ``channels`` (or a single array), of
            shape (N, K, M) for one cell or (N, J, J, K, M), complex; row [f, g] of a user holds
            the M_R radar antennas first. Nothing in the file is executed. As
            complex64 the samples of a compressed file may have at most 20 times the bytes that they
            have in the file, and 64 MiB; those of noise-like channels have less than twice.

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
        self.samples: Complex = _load_samples(self.path)
        found = hashlib.sha256()
        for start in range(0, len(self.samples), step := _count_blocks(self.samples)):
            found.update(self.samples[start : start + step].data)
        self.digest = found.hexdigest()[:16]

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


def _load_samples(path: Path) -> Complex:
    with open_file(path, f"channels must be {_ALLOWED}") as file:
        start = file.read(2)
        file.seek(0)
        if start != b"PK":
            array = read_array_header(file)
            held = os.fstat(file.fileno()).st_size - array.offset
            _check_array(path, array)
            if array.size > held:
                raise ValueError(f"it states {array.size} bytes of samples, and holds {held}")
            return _convert(path, array, file)
        entries = ZipEntries(file)
        arrays = [name.removesuffix(".npy") for name in entries.names]
        if "channels" not in arrays and len(arrays) != 1:
            raise ValueError(f"found the arrays {arrays[:20]}")
        name = entries.names[arrays.index("channels") if "channels" in arrays else 0]
        size = entries.measure(name)
        with entries.open(name) as entry:
            array = read_array_header(entry)
            _check_array(path, array)
            if array.offset + array.size != size:
                raise ValueError(f"{name} has {size} bytes, and states {array.size} of samples")
            entries.check_swelling(name, array.count * np.dtype(np.complex64).itemsize)
            return _convert(path, array, entry)


def _check_array(path: Path, array: StoredArray) -> None:
    is_numeric = array.dtype.kind in "iufc"
    if len(array.shape) not in (3, 5) or array.count == 0 or not is_numeric:
        raise make_file_error(
            FileError,
            path,
            "channels must be a non-empty numeric array of shape (N, K, M) or (N, J, J, K, M), got "
            f"shape {array.shape} and dtype {array.dtype}",
        )


def _convert(path: Path, array: StoredArray, file: IO[bytes]) -> Complex:
    """Samples as complex64 (N, J, J, K, M), a part at a time: a copy of all would be large."""
    samples = np.empty(array.count, np.complex64)
    shape = array.shape if len(array.shape) == 5 else (array.shape[0], 1, 1, *array.shape[1:])
    order: Final = "F" if array.is_transposed else "C"
    step = max(1, CHUNK // array.dtype.itemsize)
    for start in range(0, array.count, step):
        size = min(step, array.count - start) * array.dtype.itemsize
        part = np.frombuffer(read_exactly(file, size), array.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # found below
            samples[start : start + step] = part
        bad = np.flatnonzero(~np.isfinite(samples[start : start + step]))
        if len(bad):
            index = tuple(int(i) for i in np.unravel_index(start + bad[0], shape, order))
            raise make_file_error(
                FileError,
                path,
                f"channels must be finite, got {part[bad[0]]} at index {index} of shape {shape}",
            )
    return np.ascontiguousarray(samples.reshape(shape, order=order))


def _count_blocks(samples: Complex) -> int:
    """How many samples to take at a time."""
    return max(1, CHUNK // int(samples[0].nbytes))
