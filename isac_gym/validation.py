"""Checks of parameters: what passes is a plain Python value in its range.

Errors name the parameter, the value and what is allowed. Whoever checks a value keeps what the
check returns: a NumPy scalar counts as the number that it is, but would fail later, where settings
are written as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, get_args

import numpy as np

__all__ = [
    "LARGEST_INTEGER",
    "check_choice",
    "check_flag",
    "check_integer",
    "check_real",
    "not_allowed",
    "show_value",
]

LARGEST_INTEGER: Final = 2**63 - 1
"""The largest integer of NumPy's and torch's arrays; their generators take it as a seed."""
_NAMES: Final = {2**power - 1: f"2^{power} - 1" for power in (32, 63, 128)}
_LONGEST_TEXT: Final = 200


def show_value(value: object) -> str:
    """A value as messages show it: its ``repr``, shortened where that is long or fails."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an integer of more than 4300 digits
        kind = type(value).__name__
        if isinstance(value, int):
            sign = "-" if value < 0 else ""
            return f"{sign}{kind} of about {int(abs(value).bit_length() * math.log10(2))} digits"
        return f"{kind} with an integer too long to be shown"
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]} … {text[-half:]}"


def not_allowed(name: str, value: object, allowed: str) -> ValueError:
    """The error for a value that is not allowed."""
    return ValueError(f"{name} must be {allowed}, got {show_value(value)}")


def check_integer(name: str, value: object, minimum: int, maximum: int = LARGEST_INTEGER) -> int:
    """Check an integer, of Python or NumPy.

    Returns:
        The integer of Python.

    Raises:
        ValueError: If it is none (a boolean is none), or outside the range.
    """
    allowed = f"an integer >= {minimum}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise not_allowed(name, value, allowed)
    if value > maximum:
        raise not_allowed(name, value, f"{allowed} and <= {_NAMES.get(maximum, maximum)}")
    return int(value)


def check_real(
    name: str,
    value: object,
    allowed: str,
    test: Callable[[float], bool],
    largest: float = math.inf,
) -> float:
    """Check a finite real number, an integer or float of Python or NumPy.

    Returns:
        The float of Python.

    Raises:
        ValueError: If it is none (a boolean, a decimal number and a fraction are none), the test
            says no, or it is larger than the largest.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise not_allowed(name, value, allowed)
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        raise not_allowed(name, value, allowed) from None
    if not math.isfinite(number) or not test(number):
        raise not_allowed(name, value, allowed)
    if number > largest:
        raise not_allowed(name, value, f"{allowed} and <= {largest:g}")
    return number


def check_flag(name: str, value: object) -> bool:
    """Check a boolean, of Python or NumPy.

    Returns:
        The boolean of Python.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise not_allowed(name, value, "True or False")
    return bool(value)


def check_choice(name: str, value: object, alias: Any) -> Any:
    """Check a value against the options of a ``Literal``.

    Returns:
        The option.

    Raises:
        ValueError: If it is none of them.
    """
    options = get_args(alias)
    if not isinstance(value, str) or value not in options:
        raise not_allowed(name, value, "one of " + ", ".join(map(repr, options)))
    return options[options.index(value)]
