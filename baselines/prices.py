"""Prices that a policy is given in place of those that it would find."""

from __future__ import annotations

from collections.abc import Sequence

from isac_gym.validation import check_real, not_allowed

__all__ = ["check_prices"]


def check_prices(price: float | Sequence[float], cells: int) -> tuple[float, ...]:
    """One price a station.

    Args:
        price: The same for all stations, or one for each.
        cells: Stations J.

    Returns:
        The prices, J of them.

    Raises:
        ValueError: If one is negative or not finite, or there are not J.
    """
    allowed = f"None, a finite number >= 0, or {cells} of them"
    values = [*price] if isinstance(price, Sequence) else [price] * cells
    if len(values) != cells:
        raise not_allowed("price", price, allowed)
    return tuple(check_real("price", value, allowed, lambda x: x >= 0) for value in values)
