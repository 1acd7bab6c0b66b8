"""The search for prices: closed-form roots, limits that do not bind, and prices that none is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isac_gym.solvers.price import Prices, settle_prices

Method = Literal["together", "each"]
METHODS: tuple[Method, ...] = ("together", "each")
FLOOR = 0.4


class Falling:
    """Quantities that fall with their station's price: excess c·(1 + p/p₀)^(-1/2) + FLOOR - 1.

    It is zero at p₀·((c/(1 - FLOOR))² - 1), and positive at price 0 if c > 1 - FLOOR.
    """

    def __init__(self, heights: list[float], scales: list[float]) -> None:
        self.heights, self.scales = np.array(heights), np.array(scales)
        self.asked: list[npt.NDArray[np.float64]] = []

    def __call__(self, prices: Prices) -> Prices:
        assert prices.shape == self.heights.shape
        self.asked.append(prices.copy())
        found: Prices = self.heights / np.sqrt(1.0 + prices / self.scales) + FLOOR - 1.0
        return found

    def root(self, aim: float = 0.0) -> Prices:
        """Prices at which the excess is the aim; 0 where it is lower without one."""
        found: Prices = self.scales * ((self.heights / (1.0 - FLOOR + aim)) ** 2 - 1.0)
        return np.where(self.heights > 1.0 - FLOOR, found, 0.0)


def settle(excess: Callable[[Prices], Prices], cells: int, method: Method, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "tolerance": 1e-3,
        "least": -5.0,
        "limit": ("my_limit", 0.25),
        "guess": lambda: np.log(np.full(cells, 10.0)),
    }
    settings |= changes
    guess = settings.pop("guess")
    return settle_prices(excess, guess, cells, method=method, **settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guess", [0.05, 3.0, 10.0, 400.0])
@pytest.mark.parametrize("scale", [0.5, 6.0, 90.0])
def test_one_station(method: Method, guess: float, scale: float) -> None:
    excess = Falling([1.1], [scale])
    (price,) = settle(excess, 1, method, guess=lambda: np.log([guess]))
    (left,) = excess(np.array([price]))
    # Brent's method aims at the tolerance below the limit; regula falsi at half of it.
    if method == "each":
        assert price == pytest.approx(excess.root(-1e-3)[0], rel=2.5e-3)
    else:
        assert excess.root()[0] <= price <= excess.root(-1e-3)[0] * (1 + 1e-9)
    assert -2e-3 < left < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_stations_with_prices_of_their_own(method: Method) -> None:
    excess = Falling([0.9, 1.4, 0.75, 0.5], [7.0, 2.0, 30.0, 1.0])
    prices = settle(excess, 4, method, tolerance=2e-3)
    assert (excess.root() <= prices * (1 + 2.5e-3)).all()
    assert (prices <= excess.root(-2e-3) * (1 + 2.5e-3)).all()
    assert prices[3] == 0.0, "its limit does not bind"
    left = excess(prices)
    assert (left[:3] <= 1e-4).all()
    assert (left[:3] >= -4e-3).all()
    assert left[3] < 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tolerance", [1e-4, 5e-2])
def test_the_tolerance_is_how_far_below_the_limit(method: Method, tolerance: float) -> None:
    excess = Falling([1.0, 0.8], [4.0, 4.0])
    prices = settle(excess, 2, method, tolerance=tolerance)
    assert (excess.root() <= prices * (1 + 2.5e-3)).all()
    assert (prices <= excess.root(-tolerance) * (1 + 2.5e-3)).all()
    if method == "each":
        np.testing.assert_allclose(prices, excess.root(-tolerance), rtol=2.5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_limits_that_do_not_bind_have_no_price(method: Method) -> None:
    excess = Falling([0.5, 0.59], [1.0, 1.0])
    np.testing.assert_array_equal(settle(excess, 2, method), [0.0, 0.0])


def test_together_asks_for_no_guess_where_none_is_needed() -> None:
    def refused() -> Prices:
        raise AssertionError("no guess is needed")

    excess = Falling([0.5], [1.0])
    assert settle(excess, 1, "together", guess=refused).tolist() == [0.0]
    assert len(excess.asked) == 1


def test_together_takes_few_evaluations_of_all_stations() -> None:
    excess = Falling([0.9, 1.4, 0.75], [7.0, 2.0, 30.0])
    settle(excess, 3, "together", tolerance=2e-3)
    # That none binds, the search, and that the prices found keep the limit beside each other.
    assert len(excess.asked) <= 18
    assert any(len(set(asked)) == 3 for asked in excess.asked)


def test_together_leaves_those_that_do_not_bind_at_zero() -> None:
    excess = Falling([0.9, 0.5], [7.0, 1.0])
    settle(excess, 2, "together")
    assert all(asked[1] == 0.0 for asked in excess.asked)


def test_each_asks_for_the_same_price_everywhere_and_never_twice() -> None:
    excess = Falling([0.9, 1.4, 0.75], [7.0, 2.0, 30.0])
    settle(excess, 3, "each")
    assert all(len(set(asked)) == 1 for asked in excess.asked)
    asked = [float(each[0]) for each in excess.asked]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("method", METHODS)
def test_a_mean_that_jumps_across_the_limit(method: Method) -> None:
    def excess(prices: Prices) -> Prices:
        return np.where(prices < 20.0, 0.3, -0.3)

    (price,) = settle(excess, 1, method)
    assert price == pytest.approx(20.0, rel=3e-3)
    if method == "together":
        assert excess(np.array([price])) < 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("heights", [[50.0], [0.9, 50.0], [0.5, 50.0]], ids=str)
def test_no_price_is_enough(method: Method, heights: list[float]) -> None:
    """exp(9) is the highest: c·(1 + e⁹)^(-1/2) > 1 - FLOOR for c = 60."""
    excess = Falling([height * 1.2 for height in heights], [1.0] * len(heights))
    assert excess(np.full(len(heights), math.exp(9.0)))[-1] > 0.05
    with pytest.raises(ValueError, match=r"my_limit must be kept .*got 0\.25.* up to 8103"):
        settle(excess, len(heights), method)


@pytest.mark.parametrize("method", METHODS)
def test_the_highest_price_is_considered(method: Method) -> None:
    excess = Falling([50.0], [1.0])
    root = float(excess.root()[0])
    assert math.exp(8.5) < root < math.exp(9.0)
    (price,) = settle(excess, 1, method)
    assert price == pytest.approx(root, rel=6e-3)


@given(
    own=st.lists(st.floats(0.1, 0.5), min_size=3, max_size=3),
    cross=st.floats(-0.15, 0.15),
    height=st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3),
    begin=st.floats(-1.0, 4.0),
)
@settings(deadline=None, max_examples=40)
def test_coupled_stations_are_settled_together(
    own: list[float], cross: float, height: list[float], begin: float
) -> None:
    # Means that fall with the own price, and move with the others': linear in the logarithms.
    system = -np.diag(own) + 0.3 * cross * (1.0 - np.eye(3))
    wanted = np.linalg.solve(system, -np.array(height) - 0.5e-3)
    assume((np.abs(wanted) < 5.5).all())

    def excess(prices: Prices) -> Prices:
        logarithms = np.log(np.maximum(prices, 1e-6))
        found: Prices = system @ logarithms + np.array(height)
        return found

    found = settle_prices(
        excess,
        lambda: np.full(3, begin),
        3,
        method="coupled",
        tolerance=1e-3,
        least=-6.0,
        limit=("limit", 1.0),
    )
    left = excess(found)
    assert -2e-3 <= left.min() <= left.max() <= 2e-3
    np.testing.assert_allclose(np.log(found), wanted, atol=0.05)


def test_brackets_that_cease_to_hold_are_noticed() -> None:
    """A price that was seen to keep its limit does not once another station's price has moved."""

    def excess(prices: Prices) -> Prices:
        own = 0.3 * np.log(np.maximum(prices, 1e-6))
        found: Prices = np.array([0.9, 0.4]) - own + 0.2 * own[::-1]
        return found

    message = r"method must be 'coupled' where .*, got 'together', whose prices leave an excess of"
    with pytest.raises(ValueError, match=message):
        settle(excess, 2, "together", guess=lambda: np.array([5.0, -2.0]))


@pytest.mark.parametrize("begin", [-4.0, 0.0, 2.0, 6.0])
def test_coupled_stations_whose_mean_jumps_end_below_the_limit(begin: float) -> None:
    def excess(prices: Prices) -> Prices:
        found: Prices = np.where(prices < np.array([20.0, 3.0]), 0.3, -0.05)
        return found

    found = settle_prices(
        excess,
        lambda: np.full(2, begin),
        2,
        method="coupled",
        tolerance=1e-3,
        least=-5.0,
        limit=("limit", 0.3),
    )
    assert (excess(found) < 0.0).all()


@pytest.mark.parametrize("left", [1.0, 0.004])
def test_coupled_stations_that_no_price_settles(left: float) -> None:
    with pytest.raises(ValueError, match="no price"):
        settle_prices(
            lambda prices: np.full(2, left),
            lambda: np.zeros(2),
            2,
            method="coupled",
            tolerance=1e-3,
            least=-5.0,
            limit=("limit", 0.3),
        )


def test_a_coupled_station_whose_limit_does_not_bind_has_no_price() -> None:
    def excess(prices: Prices) -> Prices:
        return np.array([-0.2 - 0.1 * prices[0], 0.5 - 0.25 * np.log(prices[1])])

    found = settle_prices(
        excess,
        lambda: np.zeros(2),
        2,
        method="coupled",
        tolerance=1e-3,
        least=-5.0,
        limit=("limit", 0.3),
    )
    assert found[0] == 0.0
    assert found[1] == pytest.approx(np.exp(2.0), rel=0.01)
