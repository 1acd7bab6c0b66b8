"""Trained agents that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

__all__ = ["PREFIX", "find_pretrained", "list_pretrained"]

PREFIX: Final = "pretrained:"


def _find_folder() -> Path:
    return Path(str(files("isac_gym") / "pretrained"))


def list_pretrained() -> list[str]:
    """Names of the agents that come with the package."""
    return sorted(path.stem for path in _find_folder().glob("*.zip"))


def find_pretrained(path: str | Path) -> Path:
    """The file of a ``pretrained:NAME``; other paths as they are.

    Raises:
        ValueError: If there is no such agent.
    """
    if not (isinstance(path, str) and path.startswith(PREFIX)):
        return Path(path)
    name = path.removeprefix(PREFIX)
    if name not in list_pretrained():
        raise ValueError(
            f"path must name one of {', '.join(map(repr, list_pretrained()))} after "
            f"{PREFIX!r}, got {path!r}"
        )
    return _find_folder() / f"{name}.zip"
