"""The door that every file is read through.

Whatever goes wrong while a file is opened, unpacked or interpreted becomes one error that names the
file and the reason. Nothing is unpacked before the sizes that the file states are known to be
allowed, so that a small file cannot fill the memory. Nothing in a file is executed.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "CHUNK",
    "Count",
    "FileError",
    "Real",
    "Seconds",
    "StoredArray",
    "ZipEntries",
    "blame_file",
    "check_counts",
    "convert_json",
    "make_file_error",
    "open_file",
    "read_array_header",
    "read_exactly",
    "read_json",
]

_T = TypeVar("_T")

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number of things, as files may state it."""
Real: TypeAlias = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
"""A finite number, as files may state it."""
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e300)]
"""A duration, as files may state it."""

CHUNK: Final = 2**20
"""Bytes that are unpacked or converted at a time."""
_LONGEST_REASON: Final = 600
_LARGEST_JSON: Final = 2**24
_MOST_CONTAINERS: Final = 2**19
"""Lists and mappings of a JSON text, each of which takes many times its own two bytes."""
_LARGEST_DIRECTORY: Final = 2**20
"""Bytes of a zip file's list of entries, of which the package's files have two or a few."""
_LARGEST_ARRAY_HEADER: Final = 10_000
_LARGEST_RATIO: Final = 20
_ALWAYS_ALLOWED: Final = 2**26


class FileError(ValueError):
    """A file cannot be read, or is not what it should be; the message begins with its name.

    Attributes:
        path: The file.
    """

    path: str = ""


_Error = TypeVar("_Error", bound=FileError)


def make_file_error(kind: type[_Error], path: str | Path, message: str) -> _Error:
    """An error that names a file.

    Args:
        kind: Its class.
        path: The file.
        message: What is wrong with it.
    """
    error = kind(f"{path}: {message}")
    error.path = str(path)
    return error


@contextmanager
def blame_file(
    path: str | Path, problem: str, *, advice: str = "", kind: type[FileError] = FileError
) -> Iterator[None]:
    """Turn whatever is raised inside into one error that names a file.

    Args:
        path: The file.
        problem: What is then wrong with it, such as ``"not a saved agent, or damaged"``; the reason
            follows in brackets. Empty leaves the reason alone.
        advice: What can be done about it.
        kind: Class of the error.

    Raises:
        FileError: If anything is raised inside. FileNotFoundError and ImportError stay, and an
            error of the class that names this file already.
    """
    ending = f"; {advice}" if advice else ""
    try:
        yield
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, FileError) and error.path == str(path):
            if isinstance(error, kind):
                raise
            message = str(error).removeprefix(f"{path}: ")
            raise make_file_error(kind, path, message + ending) from error
        reason = _describe(error)
        message = f"{problem} ({reason})" if problem else reason
        raise make_file_error(kind, path, message + ending) from error


def _describe(error: Exception) -> str:
    """What an error says, with its kind where it says too little."""
    says_all = isinstance(error, (ValueError, OSError, zipfile.BadZipFile)) and str(error)
    text = str(error) if says_all else f"{type(error).__name__}: {error}".removesuffix(": ")
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


@contextmanager
def open_file(
    path: str | Path, problem: str, *, advice: str = "", kind: type[FileError] = FileError
) -> Iterator[IO[bytes]]:
    """Open a file; arguments and errors are those of :func:`blame_file`.

    Folders, devices, sockets and named pipes, whose reading may never end, are refused before they
    are opened.
    """
    with blame_file(path, problem, advice=advice, kind=kind):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            raise FileNotFoundError(f"no such file: {path}") from None
        if not stat.S_ISREG(mode):
            found = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
            raise ValueError(f"it must be a regular file, and is {found}")
        with open(path, "rb") as file:
            yield file


def read_exactly(file: IO[bytes], size: int) -> bytearray:
    """Read a number of bytes, in parts, so that no more is taken than there is.

    Raises:
        ValueError: If there are fewer.
    """
    found = bytearray()
    while len(found) < size:
        part = file.read(min(size - len(found), CHUNK))
        if not part:
            raise ValueError(f"it ends after {len(found)} of {size} bytes")
        found += part
    return found


def read_json(file: IO[bytes], schema: type[_T], size: int | None = None) -> _T:
    """Read JSON of known structure.

    Args:
        file: The file.
        schema: What it must hold: a ``msgspec.Struct`` or another type.
        size: Bytes to read; None means all that there are.

    Raises:
        ValueError: If it is larger than 16 MiB, no JSON, or does not hold that.
        RecursionError: If it is nested too deeply.
    """
    given = os.fstat(file.fileno()).st_size if size is None else size
    if given > _LARGEST_JSON:
        raise ValueError(f"JSON must have at most {_LARGEST_JSON} bytes, got {given}")
    content = bytes(read_exactly(file, given))
    if content.count(b"[") + content.count(b"{") > _MOST_CONTAINERS:
        raise ValueError(f"JSON must have at most {_MOST_CONTAINERS} lists and mappings")
    return convert_json(json.loads(content), schema)


def convert_json(value: Any, schema: type[_T]) -> _T:
    """Check what JSON held against a schema; numbers and texts are not turned into each other.

    Raises:
        ValueError: If it does not fit; the message says where.
    """
    return msgspec.convert(value, schema)


def check_counts(value: Any, name: str) -> None:
    """Check that the numbers in settings from a file are finite and fit into 64 bits.

    Args:
        value: What JSON held.
        name: Its name, for the message.

    Raises:
        ValueError: If one does not.
    """
    if isinstance(value, Mapping):
        for key, held in value.items():
            check_counts(held, f"{name}.{key}")
    elif isinstance(value, list):
        for held in value:
            check_counts(held, name)
    elif isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError(
            f"{name} must be less than 2^64, got a number of {value.bit_length()} bits"
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


class ZipEntries:
    """The entries of a zip file, none of which is unpacked before its size is known to be allowed.

    Honest data of this package hardly shrink in a zip file: weights to nine tenths, channels to
    between a half and nine tenths. An entry may state at most 20 times its packed size and 64 MiB;
    what goes beyond is refused unread, and nothing is read beyond what it states.

    Args:
        file: The file, as :func:`open_file` yields it.

    Raises:
        ValueError: If its list of entries is larger than 1 MiB.
        zipfile.BadZipFile: If it is no zip file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._size = os.fstat(file.fileno()).st_size
        _check_directory(file, self._size)
        self._file = zipfile.ZipFile(file)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries."""
        return tuple(self._file.namelist())

    def measure(self, name: str) -> int:
        """The size of an entry when unpacked, in bytes, checked.

        Raises:
            KeyError: If there is no such entry.
            ValueError: If it is encrypted, packed in another way than zip files usually are, or
                larger than allowed.
        """
        entry = self._file.getinfo(name)
        if entry.flag_bits & 0x1:
            raise ValueError(f"{name} must not be encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} must be stored or deflated, got type {entry.compress_type}")
        if entry.compress_size > self._size:
            raise ValueError(f"{name} must end within the file, got {entry.compress_size} bytes")
        self.check_swelling(name, entry.file_size)
        return entry.file_size

    def check_swelling(self, name: str, size: int) -> None:
        """Check what is made of an entry against its packed size.

        Raises:
            ValueError: If it is larger than an honest file makes it.
        """
        packed = min(self._file.getinfo(name).compress_size, self._size)
        most = _LARGEST_RATIO * packed + _ALWAYS_ALLOWED
        if size > most:
            raise ValueError(
                f"{name} must have at most {most} bytes when unpacked, as it has {packed} packed, "
                f"got {size}"
            )

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open an entry; errors are those of :meth:`measure`."""
        self.measure(name)
        with self._file.open(name) as entry:
            yield entry

    def read(self, name: str) -> bytearray:
        """Read an entry; its checksum is checked with its last byte.

        Raises:
            KeyError: If there is no such entry.
            ValueError: If its size is not allowed, or not what the file states.
            zipfile.BadZipFile: If it is damaged.
        """
        size = self.measure(name)
        with self._file.open(name) as entry:
            return read_exactly(entry, size)


def _check_directory(file: IO[bytes], size: int) -> None:
    """Check the size of a zip file's list of entries, which is read at once when it is opened."""
    start = max(0, size - 2**16 - 22)
    file.seek(start)
    end = file.read()
    place = end.rfind(b"PK\x05\x06")
    if place < 0:
        raise zipfile.BadZipFile("File is not a zip file")
    fields = [end[place + 12 : place + 16].ljust(4, b"\xff")]
    # Files of more than 4 GiB state it in another record, whose place stands right before this one.
    if end[max(0, place - 20) : place].startswith(b"PK\x06\x07"):
        wide = end.rfind(b"PK\x06\x06", 0, place)
        if wide < 0:
            raise zipfile.BadZipFile("the record of a large zip file is missing")
        fields.append(end[wide + 40 : wide + 48].ljust(8, b"\xff"))
    largest = max(int.from_bytes(field, "little") for field in fields)
    if largest > _LARGEST_DIRECTORY:
        raise ValueError(
            f"the list of entries must have at most {_LARGEST_DIRECTORY} bytes, got {largest}"
        )
    file.seek(0)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """What the header of a ``.npy`` file says.

    Attributes:
        dtype: Type of the entries.
        shape: The shape.
        is_transposed: Whether the first index runs fastest (Fortran's order).
        offset: Bytes of the header.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_transposed: bool
    offset: int

    @property
    def count(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of the entries."""
        return self.count * self.dtype.itemsize

    def read(self, file: IO[bytes]) -> npt.NDArray[Any]:
        """The entries, from a file that stands behind the header.

        Raises:
            ValueError: If there are fewer.
        """
        content: npt.NDArray[Any] = np.frombuffer(read_exactly(file, self.size), self.dtype)
        return content.reshape(self.shape, order="F" if self.is_transposed else "C")


def read_array_header(file: IO[bytes]) -> StoredArray:
    """Read the header of a ``.npy`` file, and nothing behind it.

    Raises:
        ValueError: If it is none, of a later version, longer than NumPy reads, or describes no
            array of numbers.
    """
    start = bytes(read_exactly(file, 8))
    if start[:6] != b"\x93NUMPY":
        raise ValueError("it does not begin as a NumPy array does")
    if start[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise ValueError(f"its NumPy format must be 1.0 or 2.0, got {start[6]}.{start[7]}")
    width = 2 if start[6] == 1 else 4
    (length,) = struct.unpack("<H" if width == 2 else "<I", read_exactly(file, width))
    if length > _LARGEST_ARRAY_HEADER:
        raise ValueError(f"its header must have at most {_LARGEST_ARRAY_HEADER} bytes")
    held = ast.literal_eval(bytes(read_exactly(file, length)).decode("latin1").strip())
    if not isinstance(held, dict) or set(held) != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header must hold descr, fortran_order and shape")
    description, is_transposed, shape = held["descr"], held["fortran_order"], held["shape"]
    if not isinstance(description, str) or not isinstance(is_transposed, bool):
        raise ValueError(f"its entries must be plain numbers, got {description!r}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its shape must be a tuple of integers >= 0, got {shape!r}")
    dtype = np.dtype(description)
    if dtype.hasobject:
        raise ValueError("its entries must be plain numbers, got pickled objects")
    return StoredArray(dtype, shape, is_transposed, 8 + width + length)
