"""How pictures look, and how they are saved."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isac_gym.files import write_atomically

__all__ = ["MARKERS", "make_figure", "make_palette", "save_figure", "style_axes"]

MARKERS: Final = "os^Dv<>pX*hP"


def make_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure that is not attached to any window, and its axes, several as an array.

    Args:
        width: In inches.
        height: In inches.
        columns: Axes side by side.
    """
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, figure.subplots(1, columns)


def make_palette() -> list[Any]:
    """Colours for many curves, without the grey that is for what is given."""
    tableau, dark = (mpl.colormaps[name].colors for name in ("tab10", "Dark2"))  # type: ignore[attr-defined]
    return [*tableau[:7], *tableau[8:], *dark[:7]]


def style_axes(axes: Axes, **legend: Any) -> None:
    """Give axes that begin at zero the common look, and a legend.

    Args:
        axes: The axes.
        **legend: Options of the legend.
    """
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, **legend)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the file's ending; it appears whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png")
    write_atomically(path, buffer.getvalue())
