from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from isac_gym.rl import PIDMultiplier, PlainMultiplier


def test_the_plain_step_is_projected_ascent() -> None:
    multiplier = PlainMultiplier(0.5, initial=1.0)
    found = []
    for mean in (2.0, -1.0, -9.0, 0.2):
        multiplier.ascend(mean)
        found.append(multiplier.value)
    assert found == pytest.approx([2.0, 1.5, 0.0, 0.1])


@pytest.mark.parametrize(
    ("initial", "integral"), [(0.0, [0.1, 0.3, 0.0, 0.0, 0.6]), (9.0, [9.1, 9.3, 8.9, 8.5, 9.1])]
)
def test_the_controller_follows_its_equations(initial: float, integral: list[float]) -> None:
    multiplier = PIDMultiplier(0.1, initial, gain=2.0, derivative_gain=3.0, smoothing=0.75)
    means = (1.0, 2.0, -4.0, -4.0, 6.0)
    smoothed = [1.0, 1.25, -0.0625, -1.046875, 0.71484375]
    growth = [0.0, 0.25, 0.0, 0.0, 1.76171875]
    for mean, s, i, g in zip(means, smoothed, integral, growth, strict=True):
        multiplier.ascend(mean)
        assert multiplier.smoothed == pytest.approx(s)
        assert multiplier.integral == pytest.approx(i)
        assert multiplier.value == pytest.approx(max(0.0, i + 2.0 * s + 3.0 * g))


@pytest.mark.parametrize("kind", [PlainMultiplier, PIDMultiplier])
def test_a_state_goes_through_json(kind: Any) -> None:
    one, other = kind(0.3), kind(0.3)
    one.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for mean in (0.1, 0.7):
        one.ascend(mean)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    one.ascend(-0.123)
    other.ascend(-0.123)
    assert one == other
    assert one.value > 0.0


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (PlainMultiplier, {"step_size": 0.0}, "step_size must be a finite number > 0, got 0.0"),
        (PlainMultiplier, {"initial": -1}, "initial must be a finite number >= 0, got -1"),
        (PIDMultiplier, {"gain": -1.0}, "gain must be a finite number >= 0, got -1.0"),
        (PIDMultiplier, {"derivative_gain": "x"}, "derivative_gain must be .* got 'x'"),
        (PIDMultiplier, {"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_numbers_are_checked(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"state must be of the entries \['value'\]"):
        PlainMultiplier().load_state_dict(PIDMultiplier().state_dict())
