"""Checks of parameters whose errors name the parameter, the value and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, get_args

__all__ = ["check_choice", "check_integer", "check_real", "not_allowed"]


def not_allowed(name: str, value: object, allowed: str) -> ValueError:
    """The error for a value that is not allowed."""
    return ValueError(f"{name} must be {allowed}, got {value!r}")


def check_integer(name: str, value: object, minimum: int) -> int:
    """Check an integer.

    Raises:
        ValueError: If it is none (a boolean is none), or less than the minimum.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise not_allowed(name, value, f"an integer >= {minimum}")
    return int(value)


def check_real(name: str, value: object, allowed: str, test: Callable[[float], bool]) -> float:
    """Check a finite real number.

    Raises:
        ValueError: If it is none (a boolean is none), or the test says no.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise not_allowed(name, value, allowed)
    number = float(value)
    if not math.isfinite(number) or not test(number):
        raise not_allowed(name, value, allowed)
    return number


def check_choice(name: str, value: object, alias: Any) -> Any:
    """Check a value against the options of a ``Literal``.

    Raises:
        ValueError: If it is none of them.
    """
    options = get_args(alias)
    if not isinstance(value, str) or value not in options:
        raise not_allowed(name, value, "one of " + ", ".join(map(repr, options)))
    return value
