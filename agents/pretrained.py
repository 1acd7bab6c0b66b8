"""Trained agents that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

__all__ = ["PREFIX", "pretrained_names", "pretrained_path"]

PREFIX: Final = "pretrained:"


def _folder() -> Path:
    return Path(str(files("isac_gym") / "pretrained"))


def pretrained_names() -> list[str]:
    """Names of the agents that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.zip"))


def pretrained_path(path: str | Path) -> Path:
    """The file of a ``pretrained:NAME``; other paths as they are.

    Raises:
        ValueError: If there is no such agent.
    """
    if not (isinstance(path, str) and path.startswith(PREFIX)):
        return Path(path)
    name = path.removeprefix(PREFIX)
    if name not in pretrained_names():
        raise ValueError(
            f"path must name one of {', '.join(map(repr, pretrained_names()))} after "
            f"{PREFIX!r}, got {path!r}"
        )
    return _folder() / f"{name}.zip"
