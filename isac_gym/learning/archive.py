"""Saved agents and checkpoints: a zip archive of JSON and safetensors, nothing executable."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

import isac_gym
from isac_gym.files import write_atomically
from isac_gym.reading import (
    FileError,
    ZipEntries,
    blame_file,
    convert_json,
    make_file_error,
    open_file,
    read_exactly,
    read_json,
)

__all__ = [
    "META_NAME",
    "Archive",
    "check_finite",
    "check_shapes",
    "open_archive",
    "read_archive",
    "read_kind",
    "select_prefix",
    "write_archive",
]

_Schema = TypeVar("_Schema")

_FORMAT = "isac-gym agent"
_FORMAT_VERSION = 4
META_NAME = "agent.json"
_TENSORS = "tensors.safetensors"
_NAMES: Final = "tensors"
"""Entry of the description with the names of all tensors; files of the same format may lack it."""
_LARGEST_TENSOR_HEADER: Final = 2**23
_LARGEST_EMPTY: Final = 1024
"""Dimension of a tensor without entries, which no number of bytes speaks for."""
_DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class _Header(msgspec.Struct):
    """What every description holds."""

    format: str
    format_version: Any = None
    kind: Any = None
    tensors: list[str] | None = None


class _StoredTensor(msgspec.Struct):
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=2**40)]]
    data_offsets: tuple[int, int]


class Archive(Generic[_Schema]):
    """An archive that is open: its description is read, its tensors are not yet.

    Args:
        meta: The description.
        held: The description as its schema says.
        entries: The entries.

    Attributes:
        meta: The description.
        held: The description as its schema says.
        shapes: Tensors without content, on the device ``meta``, by name.
    """

    def __init__(self, meta: dict[str, Any], held: _Schema, entries: ZipEntries) -> None:
        self.meta, self.held, self._entries = meta, held, entries
        size = entries.measure(_TENSORS)
        with entries.open(_TENSORS) as file:
            length = int.from_bytes(read_exactly(file, 8), "little")
            if length > _LARGEST_TENSOR_HEADER:
                raise ValueError(f"{_TENSORS} has a header of {length} bytes")
            header = read_json(file, dict[str, Any], length)
        header.pop("__metadata__", None)
        self.shapes: dict[str, Tensor] = {}
        needed = 8 + length
        for name, stored in convert_json(header, dict[str, _StoredTensor]).items():
            if stored.dtype not in _DTYPES:
                raise ValueError(
                    f"dtype of {name} must be one of {list(_DTYPES)}, got {stored.dtype}"
                )
            dtype = _DTYPES[stored.dtype]
            count = math.prod(stored.shape)
            needed += count * dtype.itemsize
            if needed > size or max(stored.shape, default=0) > max(count, _LARGEST_EMPTY):
                raise ValueError(
                    f"{name} must fit into {_TENSORS} of {size} bytes, got shape {stored.shape}"
                )
            self.shapes[name] = torch.empty(stored.shape, dtype=dtype, device="meta")
        if needed != size:
            raise ValueError(f"{_TENSORS} must have {needed} bytes for its tensors, got {size}")
        names = convert_json(meta, _Header).tensors
        if names is not None and set(names) != set(self.shapes):
            differing = sorted(set(names) ^ set(self.shapes))
            raise ValueError(f"tensors are missing, or not of this file: {differing[:5]}")

    def read_tensors(self) -> dict[str, Tensor]:
        """The tensors, by name.

        Raises:
            ValueError: If the file is not what it states.
            SafetensorError: If it is damaged.
        """
        content = self._entries.read(_TENSORS)
        return tensors_from_bytes(bytes(content))


def write_archive(path: str | Path, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write an archive; the file appears whole or not at all.

    Args:
        path: Where to; missing folders are made.
        meta: JSON-serialisable description.
        tensors: Tensors by name.
    """
    header = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "isac_gym": isac_gym.__version__,
        **meta,
        _NAMES: sorted(tensors),
    }
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(META_NAME, json.dumps(header, indent=2))
        archive.writestr(_TENSORS, tensors_to_bytes(held))
    write_atomically(path, buffer.getvalue())


@contextmanager
def open_archive(
    path: str | Path,
    kind: str | None,
    schema: type[_Schema],
    *,
    problem: str = "",
    advice: str = "",
    error: type[FileError] = FileError,
) -> Iterator[Archive[_Schema]]:
    """Open an archive written by :func:`write_archive`; executes nothing from it.

    What is raised while it is open becomes an error that names it, as by
    :func:`~isac_gym.reading.blame_file`.

    Args:
        path: The file.
        kind: Expected value of the description's ``kind``; None takes any.
        schema: What the description must hold: a ``msgspec.Struct``, or ``dict[str, Any]``.
        problem: What is wrong with it if something is raised.
        advice: What can be done about it.
        error: Class of the error.

    Raises:
        FileNotFoundError: If there is no such file.
        FileError: If the file is no such archive, is damaged, or is of another kind.
    """
    foreign = "not a saved isac-gym agent"
    named = {"advice": advice, "kind": error}
    problem = problem or f"{foreign}, or damaged"
    with open_file(path, problem, **named) as file:  # type: ignore[arg-type]
        with blame_file(path, f"{foreign}, or damaged", **named):  # type: ignore[arg-type]
            entries = ZipEntries(file)
            size = entries.measure(META_NAME)
            with entries.open(META_NAME) as entry:
                meta = read_json(entry, dict[str, Any], size)
            header = convert_json(meta, _Header)
            if header.format != _FORMAT:
                raise make_file_error(FileError, path, foreign)
            for name, wanted in (("format_version", _FORMAT_VERSION), ("kind", kind)):
                found = getattr(header, name)
                if wanted is not None and found != wanted:
                    raise make_file_error(
                        FileError, path, f"{name} must be {wanted!r}, got {found!r}"
                    )
        yield Archive(meta, convert_json(meta, schema), entries)


def read_archive(path: str | Path, kind: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an archive written by :func:`write_archive`; executes nothing from it.

    Args:
        path: The file.
        kind: Expected value of the description's ``kind``; None takes any.

    Returns:
        Description and tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        FileError: If the file is no such archive, is damaged, or is of another kind.
    """
    with open_archive(path, kind, dict[str, Any]) as archive:
        return archive.meta, archive.read_tensors()


def read_kind(path: str | Path) -> str:
    """The ``kind`` of an archive, whose tensors are not read.

    Raises:
        FileNotFoundError: If there is no such file.
        FileError: If the file is no archive of the package, or is damaged.
    """
    with open_archive(path, None, _Kind) as archive:
        return archive.held.kind


class _Kind(msgspec.Struct):
    kind: str


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def check_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that tensors have the names and shapes of those that they are for.

    Args:
        found: Tensors of a file, whose content need not be read yet.
        wanted: What they are for.

    Raises:
        ValueError: If one is missing, unknown, of another shape, or holds no such numbers.
    """
    if set(found) != set(wanted):
        missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        raise ValueError(
            f"tensors must be those that are needed, got none of {missing[:5]} and unknown "
            f"{unknown[:5]}"
        )
    for name, value in wanted.items():
        given = found[name]
        if given.shape != value.shape or given.is_floating_point() != value.is_floating_point():
            raise ValueError(
                f"{name} must be {value.dtype} of shape {tuple(value.shape)}, got {given.dtype} of "
                f"shape {tuple(given.shape)}"
            )


def check_finite(tensors: Mapping[str, Tensor], *, largest: str = "") -> None:
    """Check that tensors hold finite numbers.

    Args:
        tensors: The tensors.
        largest: Names that end so may hold infinity, but not what is no number.

    Raises:
        ValueError: If one does not.
    """
    for name, value in tensors.items():
        may_overflow = bool(largest) and name.endswith(largest)
        if bool(value.isnan().any()) or not (may_overflow or bool(value.isfinite().all())):
            raise ValueError(f"holds weights that are not finite in {name}")
