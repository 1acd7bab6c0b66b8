"""What the studies of learning agents share: rows, tables and files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from isac_gym import __version__
from isac_gym.results import finite_or_none, mean_interval
from isac_gym.scenario import Scenario

__all__ = ["Report", "Row", "Study", "over_seeds", "study_settings"]

Row: TypeAlias = Mapping[str, Any]
Report: TypeAlias = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Study:
    """Rows of a study, with what they were computed from.

    Attributes:
        title: What it is about.
        rows: The rows, all with the same keys.
        settings: Scenario, seeds, number of channels and versions.
    """

    title: str
    rows: tuple[Row, ...]
    settings: dict[str, Any]

    def to_csv(self) -> str:
        """One line a row; what is not a finite number is empty."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_finite(row) for row in self.rows)
        return buffer.getvalue()

    def to_json(self) -> str:
        """Settings and rows; what is not a number is null."""
        rows = [_finite(row) for row in self.rows]
        content = {"title": self.title, "settings": self.settings, "rows": rows}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def __rich__(self) -> Any:
        """The table, for rich."""
        from rich.table import Table

        table = Table(title=self.title)
        names = [name for name in self.rows[0] if not name.startswith("± ")]
        for name in names:
            table.add_column(name, justify="left" if name == "agent" else "right")
        for row in self.rows:
            table.add_row(*(_shown(row, name) for name in names))
        return table


def _finite(row: Row) -> dict[str, Any]:
    return {key: finite_or_none(value) for key, value in row.items()}


def _shown(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, float):
        return str(value)
    digits = ".2f" if abs(value) >= 1 else ".4f"
    spread = row.get(f"± {name}")
    known = spread is not None and math.isfinite(spread)
    return f"{value:{digits}} ± {spread:{digits}}" if known else f"{value:{digits}}"


def over_seeds(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean of values over seeds and the half-width of its 95 % Student interval.

    A single value says nothing of its spread: the half-width is infinite, and not shown.
    """
    array = np.asarray(values, float)
    low, high = mean_interval(array)
    return {name: float(array.mean()), f"± {name}": (high - low) / 2.0}


def study_settings(scenario: Scenario, **settings: Any) -> dict[str, Any]:
    """Settings that every study states."""
    return {
        "scenario": scenario.to_dict(),
        **settings,
        "torch_threads": torch.get_num_threads(),
        "version": __version__,
    }
