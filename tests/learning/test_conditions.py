"""What a policy is told: noise, price, and a grid of conditions between which it interpolates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from direct_model import SMALL
from scipy import stats

from isac_gym import Scenario
from isac_gym.learning.conditions import ConditionGrid, Conditions
from isac_gym.system.constraints import SensingConstraint
from isac_gym.system.downlink import ISACSystem

SNR = (-3.0, 14.0)
EPSILON = (0.2, 0.6)


def scenario(**changes: Any) -> Scenario:
    return Scenario(**{**SMALL, **changes})


def height(epsilon: Any, floor: float) -> Any:
    return np.log(np.asarray(epsilon) / floor - 1.0)


def points(grid: ConditionGrid, floor: float) -> tuple[Any, Any]:
    """SNR and log(ε/floor - 1) of the points, (P,): where one weight is 1."""
    snrs = np.linspace(*SNR, 5)
    heights = np.linspace(height(EPSILON[0], floor), height(EPSILON[1], floor), 8)
    assert grid.size == len(snrs) * len(heights)
    return np.repeat(snrs, 8), np.tile(heights, 5)


@pytest.fixture(scope="module")
def floor() -> float:
    return max(scenario().sensing_floor())


@pytest.fixture(scope="module")
def grid() -> ConditionGrid:
    return ConditionGrid(scenario(), SensingConstraint(), SNR, EPSILON)


def drawn(seed: int, count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.uniform(*SNR, count), rng.uniform(*EPSILON, count)


def test_weights_are_shares_of_at_most_four_points(grid: ConditionGrid) -> None:
    weights = grid.weights(*drawn(0, 300))
    assert weights.shape == (300, grid.size)
    assert bool((weights >= 0).all())
    assert int((weights > 0).sum(-1).max()) == 4
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)


def test_a_point_has_its_own_weight_alone(grid: ConditionGrid, floor: float) -> None:
    snrs, heights = points(grid, floor)
    found = grid.weights(snrs, floor * (1.0 + np.exp(heights)))
    np.testing.assert_allclose(found, np.eye(grid.size), rtol=0, atol=1e-5)


def test_what_is_bilinear_in_the_axes_is_reproduced(grid: ConditionGrid, floor: float) -> None:
    def surface(snr: Any, over: Any) -> Any:
        return 2.0 + 0.3 * snr - 1.7 * over + 0.05 * snr * over

    values = torch.from_numpy(surface(*points(grid, floor))).float()
    snr, epsilon = drawn(1, 300)
    expected = surface(snr, height(epsilon, floor))
    np.testing.assert_allclose(grid.weights(snr, epsilon) @ values, expected, atol=1e-4)


def test_the_weights_are_held_beyond_the_ends(grid: ConditionGrid) -> None:
    inside = grid.weights([SNR[0], SNR[1]], [EPSILON[1], EPSILON[0]])
    beyond = grid.weights([SNR[0] - 20.0, SNR[1] + 20.0], [5.0 * EPSILON[1], 0.98 * EPSILON[0]])
    np.testing.assert_allclose(beyond, inside, rtol=0, atol=1e-6)


def test_draws_are_uniform_on_the_axes(grid: ConditionGrid, floor: float) -> None:
    snr, epsilon = grid.draw(np.random.default_rng(2), 2000)
    assert snr.shape == epsilon.shape == (2000,)
    assert SNR[0] <= snr.min() <= snr.max() <= SNR[1]
    assert EPSILON[0] - 1e-12 <= epsilon.min() <= epsilon.max() <= EPSILON[1] + 1e-12
    low, high = height(EPSILON, floor)
    for values, start, end in ((snr, *SNR), (height(epsilon, floor), low, high)):
        assert stats.kstest(values, stats.uniform(start, end - start).cdf).pvalue > 0.01
    assert abs(np.corrcoef(snr, height(epsilon, floor))[0, 1]) < 0.1
    again = grid.draw(np.random.default_rng(2), 2000)
    np.testing.assert_array_equal(again, (snr, epsilon))


def test_a_range_that_is_missing_is_the_scenarios(floor: float) -> None:
    own = scenario(snr_db=7.0, sensing_threshold=0.25)
    by_snr = ConditionGrid(own, SensingConstraint(), SNR, None)
    assert by_snr.size == 5
    np.testing.assert_allclose(by_snr.draw(np.random.default_rng(3), 9)[1], 0.25)
    by_threshold = ConditionGrid(own, SensingConstraint(), None, EPSILON)
    assert by_threshold.size == 8
    np.testing.assert_array_equal(by_threshold.draw(np.random.default_rng(3), 9)[0], 7.0)
    single = ConditionGrid(own, SensingConstraint(), None, None)
    np.testing.assert_array_equal(single.weights([1.0, 20.0], [0.3, 0.2]), np.ones((2, 1)))


@pytest.mark.parametrize(
    ("changes", "covered"),
    [
        ({"snr_db": 14.0, "sensing_threshold": 0.2}, True),
        ({"snr_db": 14.1, "sensing_threshold": 0.2}, False),
        ({"snr_db": -3.1, "sensing_threshold": 0.3}, False),
        ({"snr_db": 0.0, "sensing_threshold": 0.61}, False),
        ({"snr_db": 0.0, "sensing_threshold": 0.19}, False),
    ],
)
def test_what_a_grid_covers(grid: ConditionGrid, changes: dict[str, float], covered: bool) -> None:
    assert grid.covers(scenario(**changes)) is covered


def test_ranges_that_are_empty_or_cannot_be_attained(floor: float) -> None:
    with pytest.raises(ValueError, match=r"snr_range_db.*\(5\.0, 1\.0\)"):
        ConditionGrid(scenario(), SensingConstraint(), (5.0, 1.0), None)
    with pytest.raises(ValueError, match=r"threshold_range.*\(0\.6, 0\.2\)"):
        ConditionGrid(scenario(), SensingConstraint(), None, (0.6, 0.2))
    with pytest.raises(ValueError, match=f"threshold_range.*{floor:.4f}"):
        ConditionGrid(scenario(), SensingConstraint(), None, (floor, 0.6))
    ConditionGrid(scenario(), SensingConstraint(), None, (1.002 * floor, 0.6))


def test_with_several_stations_the_highest_floor_counts() -> None:
    groups = ((-50.0, 10.0), (-70.0, 0.0, 40.0))
    own = scenario(num_cells=2, target_angles_deg=groups, sensing_threshold=0.5)
    floors = own.sensing_floor()
    assert abs(floors[0] - floors[1]) > 0.01
    with pytest.raises(ValueError, match="threshold_range"):
        ConditionGrid(own, SensingConstraint(), None, (0.5 * sum(floors), 1.0))


def test_conditions_of_a_scenario() -> None:
    system = ISACSystem(scenario(num_cells=2, snr_db=3.0, comm_power=2.0))
    plain = Conditions.of(system, 4)
    assert plain.price.shape == (4, 2)
    assert float(plain.price.abs().max()) == 0.0
    np.testing.assert_allclose(plain.noise_power, np.full(4, 2.0 / 10**0.3), rtol=1e-6)
    multiplier = torch.tensor([1.0, 6.0], dtype=torch.float64)
    priced = Conditions.of(system, 3, multiplier, system.constraints["sensing"])
    np.testing.assert_allclose(priced.price, [[5.0, 30.0]] * 3, rtol=1e-6)
    assert priced.price.dtype == priced.noise_power.dtype == system.dtype
    # μ·(L_r/ε - 1) and π·L_r differ by a constant alone.
    loss = 0.37
    assert 6.0 * (loss / 0.2 - 1.0) - float(priced.price[0, 1]) * loss == pytest.approx(-6.0)
    assert math.isclose(system.scenario.sensing_threshold, 0.2)
