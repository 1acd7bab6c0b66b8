"""Options that unfolded networks have in common, checked."""

from __future__ import annotations

from typing import Any, Final

from isac_gym.validation import check_integer, check_real, not_allowed

__all__ = ["LARGEST_WIDTH", "check_stages"]

LARGEST_WIDTH: Final = 2**12
_MOST_STEPS: Final = 10_000


def check_stages(given: Any) -> tuple[tuple[float, int], ...]:
    """Stages of a waveform search, each the spacing of its grid in degrees and its steps.

    Raises:
        ValueError: If they are not allowed.
    """
    allowed = "a non-empty sequence of (degrees >= 0.5 that divide 90, steps >= 1)"
    try:
        stages = tuple(
            (
                check_real("stages", degrees, allowed, _divides_quadrant),
                check_integer("stages", steps, 1, _MOST_STEPS),
            )
            for degrees, steps in given
        )
    except (TypeError, ValueError):
        raise not_allowed("stages", given, allowed) from None
    if not stages:
        raise not_allowed("stages", given, allowed)
    return stages


def _divides_quadrant(degrees: float) -> bool:
    return degrees >= 0.5 and abs(90.0 / degrees - round(90.0 / degrees)) < 1e-9
