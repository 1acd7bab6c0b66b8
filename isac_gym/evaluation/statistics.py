"""Intervals of means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["mean_interval", "over_seeds"]


def mean_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % Student interval of the mean of independent values; infinite for a single one."""
    from scipy import stats

    if len(values) < 2:
        return -math.inf, math.inf
    error = stats.sem(values)
    if error == 0.0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    return float(low), float(high)


def over_seeds(name: str, values: Sequence[float]) -> dict[str, float]:
    """Entries of a row: the mean over seeds, and as ``± name`` half its 95 % interval.

    A single value says nothing of its spread: the half-width is infinite, and not shown.
    """
    array = np.asarray(values, float)
    low, high = mean_interval(array)
    return {name: float(array.mean()), f"± {name}": (high - low) / 2.0}
