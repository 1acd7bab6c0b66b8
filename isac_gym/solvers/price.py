"""The price on a constraint at which the mean of its quantity over channels is its limit.

What a price leads to is the caller's: a design, or a policy that is told the price. Both answer a
higher price with a lower mean, so that the price is a root, one for each station.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

__all__ = ["Prices", "settle_prices"]

Prices: TypeAlias = npt.NDArray[np.float64]
_Excess: TypeAlias = Callable[[Prices], Prices]

_LARGEST_LOG: Final = 9.0
_MOST_EVALUATIONS: Final = 16
_USUAL_FALL: Final = 0.25
"""By what a mean falls, relative to its limit, as the price is e-folded."""
_MOST_COUPLED_EVALUATIONS: Final = 20
_PATIENCE: Final = 8
"""Evaluations in a row without better prices, once some keep the limit."""
_SETTLED: Final = 2e-3
"""Excess up to which the prices of coupled stations count as settled: policies are held to 0.5 %
above their limit on other channels, which leaves the rest to the difference between channels."""
_ROUNDING: Final = 1e-5
"""Excess of a mean that is at its limit whatever the price, as of a power that is used up."""


def settle_prices(
    excess: _Excess,
    guess: Callable[[], Prices],
    cells: int,
    *,
    method: Literal["together", "each", "coupled"],
    tolerance: float,
    least: float,
    limit: tuple[str, float],
) -> Prices:
    """Prices at which every station's mean is its limit, or a little below it.

    The mean is taken to fall as the price rises.

    Args:
        excess: Mean of quantity/limit - 1 at every station, (J,), for prices (J,).
        guess: Logarithms of prices to begin with, (J,); asked for only where they are needed.
        cells: Stations J.
        method: ``"together"`` moves the prices of all stations at once, by regula falsi in their
            logarithms, and ends by the excess: few evaluations, for those that take long.
            ``"each"`` asks for the same price at all stations and finds every station's by Brent's
            method, to 0.2 % of the price, for evaluations that are cheap; a mean may then exceed
            its limit by what that changes, less the tolerance. ``"coupled"`` is for means that
            depend on the prices of other stations as well: secant steps of all stations at once.
            Where means jump, as of designs that end in one local optimum or another, it ends with
            the best prices that were tried, and the limit counts as kept by means of up to 0.2 %
            above it.
        tolerance: How far a mean may stay below its limit, relative.
        least: Logarithm of the least price that is considered.
        limit: Name and value of the limit, for the message.

    Returns:
        The prices, (J,); 0 where the limit is not exceeded without one.

    Raises:
        ValueError: If no price keeps the limit, or ``method`` is ``"together"`` and the means
            depend on the prices of other stations.
    """
    searches = {"together": _search_together, "each": _search_each, "coupled": _search_coupled}
    found = searches[method](excess, guess, cells, tolerance, least)
    if not np.isfinite(found).all():
        name, value = limit
        raise ValueError(
            f"{name} must be kept by the mean at some price, got {value!r}, which no price up to "
            f"{math.exp(_LARGEST_LOG):.0f} does on these channels"
        )
    return found


def _search_together(
    excess: _Excess, guess: Callable[[], Prices], cells: int, tolerance: float, least: float
) -> Prices:
    """Regula falsi; infinite where no price was found."""
    binds = excess(np.zeros(cells)) > 0.0
    point = np.zeros(cells)
    if binds.any():
        point = np.where(binds, guess().clip(least, _LARGEST_LOG), 0.0)
    low, high = np.full(cells, -np.inf), np.full(cells, np.inf)
    above, below = np.zeros(cells), np.zeros(cells)
    aim = -0.5 * tolerance
    for _ in range(_MOST_EVALUATIONS if binds.any() else 0):
        found = excess(np.where(binds, np.exp(point), 0.0))
        over = found > 0.0
        low, above = np.where(over, point, low), np.where(over, found, above)
        high, below = np.where(over, high, point), np.where(over, below, found)
        done = ~binds | (~over & (found >= -tolerance)) | (high - low < 1e-3)
        if done.all():
            break
        with np.errstate(invalid="ignore", divide="ignore"):
            share = ((above - aim) / (above - below)).clip(0.1, 0.9)
            inside = low + share * (high - low)
        # Outside a bracket yet: the mean falls by about a quarter as the price is e-folded.
        outside = point + np.sign(found - aim) * (4.0 * np.abs(found - aim)).clip(0.02, 1.0)
        bracketed = np.isfinite(low) & np.isfinite(high)
        point = np.where(done, point, np.where(bracketed, inside, outside)).clip(
            least, _LARGEST_LOG
        )
    prices = np.where(binds, np.exp(high), 0.0)
    if cells > 1 and binds.any() and np.isfinite(prices).all():
        # Each price was seen to keep its limit, but beside other prices of the other stations.
        left = float(excess(prices).max())
        if left > _ROUNDING:
            raise ValueError(
                "method must be 'coupled' where means depend on the prices of other stations, got "
                f"'together', whose prices leave an excess of {left:.3g}"
            )
    return prices


def _search_coupled(
    excess: _Excess, guess: Callable[[], Prices], cells: int, tolerance: float, least: float
) -> Prices:
    """Secant steps; what a bracket says ceases to hold when another station's price moves."""
    aim = -0.5 * tolerance
    point = guess().clip(least, _LARGEST_LOG)
    slope, reach = np.full(cells, -_USUAL_FALL), np.ones(cells)
    before, last, step = point, np.zeros(cells), np.zeros(cells)
    best, smallest, latest = np.full(cells, np.inf), math.inf, 0
    for number in range(_MOST_COUPLED_EVALUATIONS):
        found = excess(np.exp(point))
        idle = (point <= least) & (found <= 0.0)
        # What is above the limit counts more than what stays below it.
        miss = np.where(idle, 0.0, np.maximum(found, 0.2 * (-tolerance - found)).clip(0.0))
        if found.max() <= _SETTLED and miss.max() < smallest:
            best, smallest, latest = point, float(miss.max()), number
        if smallest == 0.0 or (smallest < math.inf and number - latest >= _PATIENCE):
            break
        moved = point - before
        if number:
            with np.errstate(invalid="ignore", divide="ignore"):
                secant = (found - last) / moved
            known = np.isfinite(secant) & (np.abs(moved) > 1e-3)
            slope = np.where(known, secant.clip(-2.0, -0.3 * _USUAL_FALL), slope)
        wanted = (aim - found) / slope
        # Steps as long as they may be, in one direction, may be twice as long the next time.
        goes_on = (np.abs(step) >= reach) & (step * wanted > 0.0)
        reach = np.where(goes_on, 2.0 * reach, 1.0)
        step = np.where(miss > 0.0, wanted.clip(-reach, reach), 0.0)
        before, last = point, found
        point = (point + step).clip(least, _LARGEST_LOG)
    return np.where(best <= least, 0.0, np.exp(best))


def _search_each(
    excess: _Excess, guess: Callable[[], Prices], cells: int, tolerance: float, least: float
) -> Prices:
    """Brent's method, outwards from the guess; infinite where no price was found."""
    begin = guess()
    found = np.zeros(cells)
    known: dict[float, Prices] = {}
    for cell in range(cells):

        def of_cell(log_price: float, cell: int = cell) -> float:
            if log_price not in known:
                known[log_price] = excess(np.full(cells, np.exp(log_price)))
            return float(known[log_price][cell]) + tolerance

        low = high = float(begin[cell].clip(least, _LARGEST_LOG))
        width = 0.1
        while of_cell(high) > 0.0 and high < _LARGEST_LOG:
            low, high = high, min(high + width, _LARGEST_LOG)
            width *= 2.0
        while of_cell(low) <= 0.0 and low > least:
            low, high = max(low - width, least), low
            width *= 2.0
        if of_cell(low) <= 0.0:
            continue
        if of_cell(high) <= 0.0:
            found[cell] = float(np.exp(brentq(of_cell, low, high, xtol=2e-3)))
        elif of_cell(least) > tolerance + _ROUNDING:  # not even at its limit without a price
            found[cell] = np.inf
    return found
