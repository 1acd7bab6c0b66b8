"""Saved agents and checkpoints: a zip archive of JSON and safetensors, nothing executable."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

import isac_gym
from isac_gym.files import write_atomically

__all__ = ["META_NAME", "read_archive", "read_kind", "select_prefix", "write_archive"]

_FORMAT = "isac-gym agent"
_FORMAT_VERSION = 4
META_NAME = "agent.json"
_TENSORS = "tensors.safetensors"
_LARGEST = 2**31


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
    }
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(META_NAME, json.dumps(header, indent=2))
        archive.writestr(_TENSORS, tensors_to_bytes(held))
    write_atomically(path, buffer.getvalue())


def read_archive(path: str | Path, kind: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an archive written by :func:`write_archive`; executes nothing from it.

    Args:
        path: The file.
        kind: Expected value of the description's ``kind``; None takes any.

    Returns:
        Description and tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no such archive, is damaged, or is of another kind.
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"no such file: {source}")
    try:
        with zipfile.ZipFile(source) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LARGEST:
                raise ValueError(f"larger than {_LARGEST} bytes when unpacked")
            meta = json.loads(archive.read(META_NAME))
            tensors = tensors_from_bytes(archive.read(_TENSORS))
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        ValueError,
        EOFError,
        OSError,
        SafetensorError,
        RuntimeError,  # encrypted, or an unknown compression (NotImplementedError)
    ) as error:
        raise ValueError(f"{source}: not a saved isac-gym agent, or damaged ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise ValueError(f"{source}: not a saved isac-gym agent")
    if meta.get("format_version") != _FORMAT_VERSION:
        raise ValueError(
            f"{source}: format_version must be {_FORMAT_VERSION}, "
            f"got {meta.get('format_version')!r}"
        )
    if kind is not None and meta.get("kind") != kind:
        raise ValueError(f"{source}: kind must be {kind!r}, got {meta.get('kind')!r}")
    return meta, tensors


def read_kind(path: str | Path) -> Any:
    """The ``kind`` of an archive.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no archive of the package, or is damaged.
    """
    meta, _ = read_archive(path, None)
    return meta.get("kind")


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
