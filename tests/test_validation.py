"""Checks of parameters: what passes is plain, and what does not is an error of the usual form."""

from __future__ import annotations

import decimal
import fractions
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from isac_gym.learning.multipliers import DualRule
from isac_gym.validation import (
    LARGEST_INTEGER,
    check_choice,
    check_flag,
    check_integer,
    check_real,
    show_value,
)

HUGE = 10**400
ENDLESS = 10**5000  # Python refuses to write it out


def real(value: object) -> float:
    return check_real("x", value, "a finite number", lambda x: True)


@pytest.mark.parametrize("kind", [int, np.int8, np.int64, np.uint64, np.uint8])
def test_integers_become_those_of_python(kind: Callable[[int], Any]) -> None:
    found = check_integer("n", kind(7), 0)
    assert (found, type(found)) == (7, int)


@pytest.mark.parametrize("kind", [int, float, np.float16, np.float32, np.float64, np.int16])
def test_reals_become_floats_of_python(kind: Callable[[int], Any]) -> None:
    found = real(kind(3))
    assert (found, type(found)) == (3.0, float)


def test_flags_and_choices_become_those_of_python() -> None:
    for value in (True, np.True_, False, np.False_):
        found = check_flag("f", value)
        assert (found, type(found)) == (bool(value), bool)
    assert type(check_choice("rule", np.str_("pi"), DualRule)) is str


NO_NUMBERS = [
    True,
    np.True_,
    "1",
    None,
    1 + 0j,
    np.complex64(1),
    decimal.Decimal(1),
    fractions.Fraction(1, 2),
    fractions.Fraction(HUGE),
    np.array(1.0),
    np.array([1]),
    torch.tensor(1.0),
    [1],
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^n must be an integer >= 0, got "):
        check_integer("n", value, 0)
    with pytest.raises(ValueError, match=r"^x must be a finite number, got "):
        real(value)


@pytest.mark.parametrize(
    "value", [HUGE, -HUGE, ENDLESS, -ENDLESS], ids=["huge", "-huge", "endless", "-endless"]
)
def test_huge_integers_are_refused_like_others(value: int) -> None:
    with pytest.raises(ValueError, match=r"^x must be a finite number, got .{1,300}$"):
        real(value)
    with pytest.raises(ValueError, match=r"^n must be an integer >= 0.*, got .{1,300}$"):
        check_integer("n", value, 0)
    with pytest.raises(ValueError, match=r"^seed must be an integer >= 0.*, got .{1,300}$"):
        check_integer("seed", value, 0)
    with pytest.raises(ValueError, match=r"^f must be True or False, got .{1,300}$"):
        check_flag("f", value)


def test_ranges_end_where_arrays_and_generators_do() -> None:
    assert check_integer("n", LARGEST_INTEGER, 0) == 2**63 - 1
    with pytest.raises(ValueError, match=re.escape("n must be an integer >= 0 and <= 2^63 - 1")):
        check_integer("n", 2**63, 0)
    with pytest.raises(ValueError, match=r"n must be an integer >= 1 and <= 5, got 6"):
        check_integer("n", 6, 1, 5)
    with pytest.raises(ValueError, match=r"x must be a number and <= 5, got 6"):
        check_real("x", 6, "a number", lambda x: True, 5.0)
    np.random.default_rng(LARGEST_INTEGER)
    torch.Generator().manual_seed(LARGEST_INTEGER)


def test_long_values_are_shown_in_part() -> None:
    assert show_value([1, "a"]) == "[1, 'a']"
    shown = show_value("a" * 1000 + "z")
    assert len(shown) < 250
    assert shown.startswith("'aaa")
    assert shown.endswith("z'")
    assert show_value(ENDLESS) == "int of about 5000 digits"
    assert show_value(-ENDLESS) == "-int of about 5000 digits"
    assert len(show_value([ENDLESS])) < 250
