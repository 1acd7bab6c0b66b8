"""Where stations and users stand, the gains that follow, and that an episode keeps them.

Statistical bounds are five standard errors, as in ``test_models.py``.
"""

from __future__ import annotations

import math
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from direct_model import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, kstest

from isac_gym.channels.base import ChannelModel, Deployment
from isac_gym.channels.gauss_markov import GaussMarkovChannel
from isac_gym.channels.placement import (
    check_user_positions,
    draw_path_gains,
    draw_user_positions,
    measure_distances,
    place_stations,
)
from isac_gym.channels.process import ChannelProcess
from isac_gym.channels.rayleigh import RayleighChannel
from isac_gym.channels.rician import RicianChannel
from isac_gym.channels.selection import make_default_channel_model
from isac_gym.evaluation import evaluation_set
from isac_gym.scenario import Layout, Scenario
from isac_gym.system.downlink import ISACSystem
from isac_gym.system.simulation import Simulation

Real = npt.NDArray[np.float64]

SIGMAS = 5.0
SEEDS = [0, 1, 2]
LAYOUTS: list[Layout] = ["hexagonal", "line"]
SIGHT = RicianChannel(200.0)
"""No scattering: every entry has exactly the power of its path."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scenario(layout: Layout = "hexagonal", **changes: Any) -> Scenario:
    few = {"num_users": 2, "num_radar_antennas": 2, "num_comm_antennas": 3, "num_cells": 3}
    return Scenario(**{**few, "layout": layout, **changes})


def process(
    num: int = 4, model: ChannelModel | None = None, layout: Layout = "hexagonal", **changes: Any
) -> ChannelProcess:
    chosen = scenario(layout, **changes)
    return ChannelProcess(model or make_default_channel_model(chosen), chosen, num)


def known(values: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    assert values is not None
    return values


def power_of(channels: npt.NDArray[Any]) -> Real:
    """Mean of abs(h)² over the antennas of a path."""
    power: Real = np.mean(np.abs(channels.astype(np.complex128)) ** 2, axis=-1)
    return power


def between(points: Real, others: Real) -> Real:
    """All distances between two sets of points of the plane."""
    distances: Real = np.abs((points @ [1, 1j])[:, None] - (others @ [1, 1j])[None])
    return distances


# --- Stations --------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [250.0, 3.0])
def test_nineteen_stations_are_two_rings_of_a_hexagonal_grid(radius: float) -> None:
    stations = place_stations(scenario(num_cells=19, cell_radius=radius, least_distance=1.0))
    assert stations.shape == (19, 2)
    # Unit: the distance √3·R of neighbours. The second ring has corners at 2 and middles at √3.
    apart = between(stations, stations) / (math.sqrt(3) * radius)
    expected = [0.0] + 6 * [1.0] + 6 * [math.sqrt(3)] + 6 * [2.0]
    np.testing.assert_allclose(np.sort(apart[0]), expected, atol=1e-12)
    np.testing.assert_allclose(apart[0, 1:7], 1.0)
    # Inside the grid every station has six neighbours, at multiples of 60 degrees.
    for inner in range(7):
        near = np.flatnonzero(np.isclose(apart[inner], 1.0))
        assert len(near) == 6
        turns = np.angle((stations[near] - stations[inner]) @ [1, 1j])
        # Rounded to whole sixths of a turn, all of them are met.
        sixths = turns / (np.pi / 3)
        np.testing.assert_allclose(sixths, np.round(sixths), atol=1e-9)
        assert len(set(np.round(sixths).astype(int) % 6)) == 6
    assert np.sort(apart + 9 * np.eye(19), axis=1)[:, 0] == pytest.approx(np.ones(19))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12, 20, 37, 50])
def test_spiral_grows_from_the_centre_without_gaps(count: int) -> None:
    stations = place_stations(scenario(num_cells=count))
    assert stations.shape == (count, 2)
    np.testing.assert_array_equal(stations[0], [0.0, 0.0])
    spacing = math.sqrt(3) * 250.0
    for index in range(1, count):
        to_others = between(stations[index : index + 1], stations[:index])
        assert to_others.min() == pytest.approx(spacing)
    rings = [math.ceil((math.sqrt(12 * index + 9) - 3) / 6) for index in range(count)]
    distance = np.hypot(*stations.T) / spacing
    # A ring lies between the circles through its corners and through the middles of its sides.
    assert (distance <= np.array(rings) + 1e-9).all()
    assert (distance >= np.array(rings) * math.sqrt(0.75) - 1e-9).all()
    more = place_stations(scenario(num_cells=count + 5))
    np.testing.assert_array_equal(more[:count], stations)


@pytest.mark.parametrize("count", [1, 2, 5, 19])
def test_stations_along_a_line_are_two_radii_apart(count: int) -> None:
    stations = place_stations(scenario("line", num_cells=count, cell_radius=80.0))
    index = np.arange(count)
    np.testing.assert_allclose(
        between(stations, stations), 160.0 * np.abs(index[:, None] - index), atol=1e-9
    )
    np.testing.assert_array_equal(stations[0], [0.0, 0.0])


def test_a_uniform_layout_has_no_positions() -> None:
    uniform = scenario("uniform")
    for call in (place_stations, lambda given: draw_user_positions(rng(), 1, given)):
        with pytest.raises(ValueError, match=r"layout must be 'hexagonal' or 'line'.*'uniform'"):
            call(uniform)


# --- Users -----------------------------------------------------------------------------------


def is_in_hexagon(offsets: Real, radius: float) -> npt.NDArray[np.bool_]:
    """Whether points (…, 2) are within the three strips between opposite sides."""
    turns = np.arange(3) * np.pi / 3
    across = offsets @ np.stack([np.cos(turns), np.sin(turns)])
    inside: npt.NDArray[np.bool_] = (np.abs(across) <= math.sqrt(0.75) * radius + 1e-9).all(-1)
    return inside


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cells", [1, 2, 7, 19])
@pytest.mark.parametrize("least", [1e-3, 25.0, 80.0])
def test_users_stand_in_their_cell_and_apart_from_every_station(
    layout: Layout, cells: int, least: float
) -> None:
    chosen = scenario(layout, num_cells=cells, cell_radius=100.0, least_distance=least)
    stations = place_stations(chosen)
    users = draw_user_positions(rng(3), 200, chosen)
    assert users.shape == (200, cells, 2, 2)
    offsets = users - stations[:, None]
    if layout == "hexagonal":
        assert is_in_hexagon(offsets, 100.0).all()
    else:
        assert (np.hypot(offsets[..., 0], offsets[..., 1]) <= 100.0 + 1e-9).all()
    apart = between(users.reshape(-1, 2), stations).reshape(200, cells, 2, cells)
    assert apart.min() >= least
    # A cell is what is nearest to its station.
    assert (apart.argmin(-1) == np.arange(cells)[:, None]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_users_are_uniform_in_the_hexagon(seed: int) -> None:
    count = 40_000
    chosen = scenario(num_cells=1, num_users=1, cell_radius=3.0, least_distance=1e-6)
    x, y = draw_user_positions(rng(seed), count, chosen)[:, 0, 0].T
    # Second moments of a hexagon of circumradius R: E x² = E y² = 5R²/24, so E(x² + y²) = 5R²/12;
    # it is symmetric, so the means and E xy are 0.
    for values, mean in (
        (x**2 + y**2, 5 * 9.0 / 12),
        (x**2, 5 * 9.0 / 24),
        (y**2, 5 * 9.0 / 24),
        (x, 0.0),
        (y, 0.0),
        (x * y, 0.0),
    ):
        assert abs(values.mean() - mean) <= SIGMAS * values.std() / math.sqrt(count)
    # Six triangles by angle, each cut in two by whether the point is in the inner half of the area:
    # twelve parts of equal area.
    sector = np.floor((np.arctan2(y, x) - np.pi / 6) / (np.pi / 3)).astype(int) % 6
    inner = is_in_hexagon(np.stack([x, y], -1), 3.0 / math.sqrt(2))
    assert chisquare(np.bincount(2 * sector + inner, minlength=12)).pvalue > 1e-6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("least", [0.2, 0.85])
def test_users_are_uniform_outside_the_least_distance(least: float, seed: int) -> None:
    count = 20_000
    chosen = scenario(num_cells=1, num_users=1, cell_radius=1.0, least_distance=least)
    radius = np.hypot(*draw_user_positions(rng(seed), count, chosen)[:, 0, 0].T)
    inradius = math.sqrt(0.75)
    area = 1.5 * math.sqrt(3) - math.pi * least**2
    for limit in np.linspace(least, inradius, 4)[1:]:
        share = math.pi * (limit**2 - least**2) / area
        assert binomtest(int((radius < limit).sum()), count, share).pvalue > 1e-6
    disc = draw_user_positions(rng(seed), count, chosen.replace(layout="line"))[:, 0, 0]
    # Area grows with the square of the radius; nothing prefers an angle.
    squared = (disc**2).sum(-1)
    assert kstest(squared, "uniform", (least**2, 1 - least**2)).pvalue > 1e-6
    angle = np.arctan2(disc[:, 1], disc[:, 0])
    assert kstest(angle, "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("margin", [1e-3, 4e-7])
def test_drawing_ends_where_almost_nothing_is_far_enough(layout: Layout, margin: float) -> None:
    inradius = 100.0 * (math.sqrt(0.75) if layout == "hexagonal" else 1.0)
    chosen = scenario(layout, cell_radius=100.0, least_distance=inradius * (1 - margin))
    users = draw_user_positions(rng(), 5, chosen)
    check_user_positions(users, chosen, (5,))


@pytest.mark.parametrize("seed", SEEDS)
def test_users_are_uniform_in_a_thin_ring(seed: int) -> None:
    chosen = scenario("line", num_cells=1, num_users=1, cell_radius=250.0, least_distance=249.9999)
    x, y = draw_user_positions(rng(seed), 20_000, chosen)[:, 0, 0].T
    squared = np.hypot(x, y) ** 2
    low, high = 249.9999**2, 250.0**2
    assert kstest(squared, "uniform", (low, high - low)).pvalue > 1e-6
    assert kstest(np.arctan2(y, x), "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-6


def test_points_of_a_hexagon_are_drawn_again_until_they_are_far_enough() -> None:
    """What a seed gave before the least distance was raised is kept wherever it is far enough."""
    near, far = (scenario(num_users=50, least_distance=least) for least in (1.0, 200.0))
    stations = place_stations(near)[:, None]
    first, kept = (draw_user_positions(rng(8), 4, each) - stations for each in (near, far))
    is_kept = np.hypot(first[..., 0], first[..., 1]) >= 200.0
    assert 0.1 < is_kept.mean() < 0.9
    np.testing.assert_array_equal(kept[is_kept], first[is_kept])
    assert (np.hypot(kept[..., 0], kept[..., 1]) >= 200.0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_seed_same_positions_and_gains(layout: Layout) -> None:
    def draw(seed: int) -> tuple[Real, npt.NDArray[np.float32]]:
        generator, chosen = rng(seed), scenario(layout)
        users = draw_user_positions(generator, 6, chosen)
        return users, draw_path_gains(generator, users, chosen)

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for one, same, other in zip(draw(4), draw(4), draw(5), strict=True):
        np.testing.assert_array_equal(one, same)
        assert (one != other).all()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_nobody_is_drawn_for_no_realisation() -> None:
    generator = rng()
    before = generator.bit_generator.state
    assert draw_user_positions(generator, 0, scenario()).shape == (0, 3, 2, 2)
    assert draw_path_gains(generator, np.zeros((0, 3, 2, 2)), scenario()).shape == (0, 3, 3, 2)
    assert generator.bit_generator.state == before


# --- Path gains ------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 2.0, 3.7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gain_by_distance(layout: Layout, exponent: float) -> None:
    chosen = scenario(layout, num_cells=4, path_loss_exponent=exponent, shadowing_std_db=0.0)
    users = draw_user_positions(rng(1), 10, chosen)
    gains = draw_path_gains(rng(2), users, chosen)
    assert gains.dtype == np.float32
    assert gains.shape == (10, 4, 4, 2)
    stations = place_stations(chosen)
    for index in np.ndindex(*gains.shape):
        n, station, cell, user = index
        distance = math.dist(stations[station], users[n, cell, user])
        assert gains[index] == pytest.approx((250.0 / distance) ** exponent, rel=1e-5)
        assert measure_distances(users, chosen)[index] == pytest.approx(distance, rel=1e-12)


def test_gain_is_one_at_the_radius_of_the_cell() -> None:
    chosen = scenario("line", num_cells=2, num_users=1, cell_radius=70.0, shadowing_std_db=0.0)
    # One user at the edge between the cells, one at the far end of the second.
    gains = draw_path_gains(rng(), np.array([[[[70.0, 0.0]], [[210.0, 0.0]]]]), chosen)
    expected = [[1.0, 3.0**-3.7], [1.0, 1.0]]
    np.testing.assert_allclose(gains[0, :, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_shadowing_is_normal_in_decibels_and_independent(seed: int) -> None:
    count, std = 5_000, 7.5
    chosen = scenario(shadowing_std_db=std)
    users = draw_user_positions(rng(100 + seed), count, chosen)
    plain = draw_path_gains(rng(), users, chosen.replace(shadowing_std_db=0.0))
    shadowed = draw_path_gains(rng(seed), users, chosen)
    decibels = 10 * np.log10(shadowed.astype(np.float64) / plain)
    size = decibels.size
    # The standard deviation of n normal numbers has the standard error σ/√(2n).
    assert abs(decibels.mean()) <= SIGMAS * std / math.sqrt(size)
    assert abs(decibels.std() - std) <= SIGMAS * std / math.sqrt(2 * size)
    assert kstest(decibels.ravel(), "norm", (0.0, std)).pvalue > 1e-6
    paths = decibels.reshape(count, -1)
    across = np.corrcoef(paths.T) - np.eye(paths.shape[1])
    assert (np.abs(across) <= SIGMAS / math.sqrt(count)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_ratios_of_lengths_matter(layout: Layout) -> None:
    gains = []
    for scale in (1.0, 40.0):
        chosen = scenario(layout, cell_radius=3.0 * scale, least_distance=1.5 * scale)
        generator = rng(6)
        users = draw_user_positions(generator, 20, chosen)
        gains.append(draw_path_gains(generator, users, chosen))
    np.testing.assert_allclose(gains[0], gains[1], rtol=1e-5)


def test_the_generator_goes_on_alike_with_and_without_shadowing() -> None:
    users = draw_user_positions(rng(), 3, scenario())
    states = []
    for std in (0.0, 6.0):
        generator = rng(1)
        draw_path_gains(generator, users, scenario(shadowing_std_db=std))
        states.append(generator.bit_generator.state)
    assert states[0] == states[1]


def test_gains_beyond_single_precision_are_refused() -> None:
    chosen = scenario(path_loss_exponent=60.0)
    users = place_stations(chosen)[:, None] + np.full((1, 3, 2, 2), 20.0)
    expected = r"path_loss_exponent=60\.0 and shadowing_std_db=6\.0 must leave gains below 1e\+14"
    with pytest.raises(ValueError, match=expected):
        draw_path_gains(rng(), users, chosen)


# --- Given positions -------------------------------------------------------------------------


def valid_positions() -> Real:
    return draw_user_positions(rng(), 2, scenario(least_distance=60.0))


def test_given_positions_are_kept_in_double_precision() -> None:
    users = valid_positions()
    kept = check_user_positions(users, scenario(), (2,))
    np.testing.assert_array_equal(kept, users)
    assert kept is not users
    whole = np.round(users[0]).astype(np.int32)
    found = check_user_positions(whole.tolist(), scenario())
    np.testing.assert_array_equal(found, whole)
    assert found.dtype == np.float64
    # Outside of its cell, but far enough from all stations.
    users[0, 0, 0] = [1e4, -1e4]
    check_user_positions(users, scenario(), (2,))


@pytest.mark.parametrize("station", [0, 2])
@pytest.mark.parametrize("distance", [0.0, 24.9])
def test_a_user_on_top_of_any_station_is_named(station: int, distance: float) -> None:
    users = valid_positions()
    at = place_stations(scenario())[station]
    users[1, 1, 0] = at[0], at[1] + distance
    with pytest.raises(ValueError, match=r"^positions must be at least") as error:
        check_user_positions(users, scenario(), (2,))
    assert str(error.value) == (
        "positions must be at least least_distance=25 m from every station, got user 0 of cell 1 "
        f"in environment 1 at {distance:g} m from station {station}"
    )
    users[1, 1, 0] = at[0], at[1] + 25.0
    check_user_positions(users, scenario(), (2,))
    with pytest.raises(ValueError, match=r"least_distance=30 m .*got user 0 of cell 1 at 25 m"):
        check_user_positions(users[1], scenario(least_distance=30.0), name="given")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_positions_must_be_finite(bad: float) -> None:
    users = valid_positions()
    users[1, 2, 1, 0] = bad
    with pytest.raises(ValueError, match=r"^positions must be finite, got (nan|-?inf)") as error:
        check_user_positions(users, scenario(), (2,))
    assert "user 1 of cell 2 in environment 1" in str(error.value)


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 3, 2, 2), (2, 2, 3, 2), (2, 3, 2, 3), (2, 2), ()])
def test_positions_must_have_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^positions must have shape \(2, 3, 2, 2\)") as error:
        check_user_positions(np.full(shape, 100.0), scenario(), (2,))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("layout", ["hexagonal", "uniform"])
def test_positions_in_rows_of_different_lengths_are_named(layout: Layout) -> None:
    with pytest.raises(ValueError, match=r"^given must be an array with rows of equal length: "):
        check_user_positions([[[1.0, 2.0]], [[3.0]]], scenario(layout), name="given")


@pytest.mark.parametrize("dtype", [complex, bool, object, "U5"])
def test_positions_must_be_real_numbers(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"^positions must hold real numbers, got dtype"):
        check_user_positions(np.full((2, 3, 2, 2), 100).astype(dtype), scenario(), (2,))


def test_positions_are_refused_without_a_geometry() -> None:
    with pytest.raises(ValueError, match=r"^positions must be None with layout='uniform'"):
        check_user_positions(valid_positions(), scenario("uniform"), (2,))
    for call in ("start", "place"):
        found = process(2, layout="uniform")
        arguments = () if call == "start" else (found.channels,)
        with pytest.raises(ValueError, match=r"^positions must be None with layout='uniform'"):
            getattr(found, call)(rng(), *arguments, positions=valid_positions())


# --- Process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_start_draws_users_then_gains_then_channels_then_estimates(layout: Layout) -> None:
    found, generator, same = process(layout=layout, csi_error_variance=0.1), rng(2), rng(2)
    found.start(generator)
    chosen = scenario(layout)
    users = draw_user_positions(same, 4, chosen)
    gains = draw_path_gains(same, users, chosen)
    np.testing.assert_array_equal(known(found.positions), users)
    np.testing.assert_array_equal(known(found.gains), gains)

    def normal() -> npt.NDArray[Any]:
        parts = same.standard_normal((4, 3, 3, 2, 5, 2), dtype=np.float32) / np.sqrt(2)
        unit: npt.NDArray[Any] = parts[..., 0] + 1j * parts[..., 1]
        return np.sqrt(gains)[..., None] * unit

    true = normal()
    np.testing.assert_allclose(found.channels, true, rtol=1e-5)
    np.testing.assert_allclose(found.estimates, true + 0.1**0.5 * normal(), rtol=1e-4, atol=1e-5)
    assert generator.bit_generator.state == same.bit_generator.state


def test_a_uniform_layout_has_neither_users_nor_gains() -> None:
    found = process(layout="uniform")
    found.start(rng())
    assert found.positions is None
    assert found.gains is None


@pytest.mark.parametrize(
    "model",
    [RayleighChannel(), GaussMarkovChannel(0.3827), RicianChannel(5.0)],
    ids=["rayleigh", "gauss-markov", "rician"],
)
@pytest.mark.parametrize("cells", [1, 3])
def test_an_episode_keeps_gains_that_are_the_power_of_the_channels(
    cells: int, model: ChannelModel
) -> None:
    found, generator, blocks = process(1, model, num_cells=cells), rng(cells), 3_000
    found.start(generator)
    users, gains = known(found.positions).copy(), known(found.gains).copy()
    assert len(np.unique(gains)) == gains.size
    power = np.zeros(gains.shape)
    for _ in range(blocks):
        found.advance(generator)
        power += power_of(found.channels)
    np.testing.assert_array_equal(known(found.positions), users)
    np.testing.assert_array_equal(known(found.gains), gains)
    # abs(h)² has at most the variance of its mean squared, five antennas and all blocks average (a
    # Doppler frequency of 0.3827 is at a zero of the correlation).
    bound = SIGMAS / math.sqrt(5 * blocks)
    np.testing.assert_allclose(power / blocks / gains, 1.0, atol=bound)
    found.start(generator)
    assert (known(found.gains) != gains).all()
    assert (known(found.positions) != users).all()


def test_correlated_fading_goes_on_while_users_stay() -> None:
    found, generator = process(2_000, doppler=0.05), rng(3)
    found.start(generator)
    first, gains = found.channels, known(found.gains)[..., None]
    found.advance(generator)
    # Relative to the power of the path the correlation is Jakes'.
    product = (first.conj() * found.channels / gains).astype(np.complex128)
    rho = GaussMarkovChannel(0.05).correlation
    assert abs(product.mean() - rho) <= SIGMAS * product.std() / math.sqrt(product.size)


def test_error_of_the_estimate_is_relative_to_the_gain() -> None:
    found, generator, blocks = process(1, csi_error_variance=0.3), rng(4), 3_000
    found.start(generator)
    error = np.zeros(known(found.gains).shape)
    for _ in range(blocks):
        found.advance(generator)
        error += power_of(found.estimates - found.channels)
    relative = error / blocks / known(found.gains)
    np.testing.assert_allclose(relative, 0.3, atol=0.3 * SIGMAS / math.sqrt(5 * blocks))


@pytest.mark.parametrize("variance", [0.0, 0.1])
def test_a_mask_moves_only_the_users_of_the_chosen_environments(variance: float) -> None:
    found, generator = process(4, SIGHT, csi_error_variance=variance), rng(2)
    found.start(generator)
    users, gains = known(found.positions), known(found.gains)
    kept = users.copy(), gains.copy(), found.channels.copy()
    where = np.array([True, False, False, True])
    found.start(generator, where)
    for after, before in zip(
        (known(found.positions), known(found.gains), found.channels), kept, strict=True
    ):
        np.testing.assert_array_equal(after[~where], before[~where])
        assert (after[where] != before[where]).all()
    np.testing.assert_allclose(power_of(found.channels), known(found.gains), rtol=1e-5)
    # Arrays that were handed out before do not change.
    np.testing.assert_array_equal(users, kept[0])
    np.testing.assert_array_equal(gains, kept[1])
    found.advance(generator)
    np.testing.assert_allclose(power_of(found.channels), known(found.gains), rtol=1e-5)


def test_an_empty_mask_draws_nothing() -> None:
    found, generator = process(), rng()
    found.start(generator)
    gains, state = known(found.gains).copy(), generator.bit_generator.state
    found.start(generator, np.zeros(4, bool))
    np.testing.assert_array_equal(known(found.gains), gains)
    assert generator.bit_generator.state == state


def test_a_mask_of_all_starts_what_never_started() -> None:
    found = process()
    with pytest.raises(ValueError, match="where must be all true as long as users have no pos"):
        found.start(rng(), np.array([True, True, False, True]))
    found.start(rng(), np.ones(4, bool))
    other = process()
    other.start(rng())
    np.testing.assert_array_equal(found.channels, other.channels)
    np.testing.assert_array_equal(known(found.gains), known(other.gains))


def test_users_stand_where_they_are_told_to() -> None:
    found, generator = process(2, SIGHT, shadowing_std_db=0.0), rng()
    users = valid_positions()
    found.start(generator, positions=users)
    np.testing.assert_array_equal(known(found.positions), users)
    stations = place_stations(scenario())
    apart = between(stations, users.reshape(-1, 2)).reshape(3, 2, 3, 2).swapaxes(0, 1)
    np.testing.assert_allclose(known(found.gains), (apart / 250.0) ** -3.7, rtol=1e-5)
    for _ in range(2):
        np.testing.assert_allclose(power_of(found.channels), (apart / 250.0) ** -3.7, rtol=1e-5)
        found.advance(generator)
    moved = users[1:] + 3.0
    found.start(generator, np.array([False, True]), moved)
    np.testing.assert_array_equal(known(found.positions), [users[0], moved[0]])
    with pytest.raises(ValueError, match=r"^positions must have shape \(1, 3, 2, 2\)"):
        found.start(generator, np.array([False, True]), users)


def test_given_channels_begin_an_episode_with_users() -> None:
    found, generator = process(2, SIGHT), rng()
    start = np.ones((2, 3, 3, 2, 5), np.complex64)
    found.place(generator, start)
    np.testing.assert_array_equal(found.channels, start)
    assert known(found.positions).shape == (2, 3, 2, 2)
    gains = known(found.gains)
    found.advance(generator)
    np.testing.assert_allclose(power_of(found.channels), gains, rtol=1e-5)
    users = valid_positions()
    found.place(generator, start, users)
    np.testing.assert_array_equal(known(found.positions), users)


def test_held_blocks_belong_to_no_users() -> None:
    chosen = scenario(target_angles_deg=(0.0,), radar_power=0.4, sensing_threshold=1.0)
    simulation, generator = Simulation(ISACSystem(chosen), RayleighChannel(), 4), rng()
    simulation.start(generator)
    simulation.hold(simulation.channels[:3], simulation.estimates[:3])
    assert simulation.positions is None
    assert simulation.gains is None
    assert simulation.observe().shape[0] == 3
    with pytest.raises(ValueError, match=r"gains must be given with layout='hexagonal'"):
        simulation.advance(generator)
    simulation.start(generator)
    assert known(simulation.gains).shape == (3, 3, 3, 2)


def test_a_failed_start_changes_nothing() -> None:
    found = process(2)
    found.start(rng())
    kept = found.channels, found.positions, found.gains
    with pytest.raises(ValueError, match="positions must have shape"):
        found.start(rng(), positions=np.zeros((2, 2)))
    assert (found.channels, found.positions, found.gains) == kept


# --- Environments and evaluation -------------------------------------------------------------

GEOMETRIES: list[dict[str, Any]] = [
    {"num_cells": 1, "layout": "hexagonal"},
    {"num_cells": 3, "layout": "hexagonal", "doppler": 0.05, "csi_error_variance": 0.1},
    {"num_cells": 2, "layout": "line", "channel_model": RicianChannel()},
]


@pytest.mark.parametrize("changes", GEOMETRIES, ids=["one", "three", "line"])
def test_a_batch_of_one_is_the_single_environment_bit_for_bit(changes: dict[str, Any]) -> None:
    parameters = {**SMALL, "episode_length": 3, **changes}
    single = gym.make("ISAC-MISO-v0", disable_env_checker=True, **parameters)
    batched = gym.make_vec("ISAC-MISO-v0", num_envs=1, **parameters)
    single.action_space.seed(0)
    seen, batch = single.reset(seed=11)[0], batched.reset(seed=11)[0]
    gains = []
    for _ in range(7):
        np.testing.assert_array_equal(seen, batch[0])
        action = single.action_space.sample()
        seen, reward, _, truncated, _ = single.step(action)
        batch, rewards, *_ = batched.step(action[None])
        assert rewards[0] == reward
        if truncated:
            seen, _ = single.reset()
        simulations = [env.unwrapped.simulation for env in (single, batched)]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(simulations[0].gains, simulations[1].gains)
        np.testing.assert_array_equal(simulations[0].positions, simulations[1].positions)
        gains.append(simulations[0].gains.tobytes())
    # Users move where an episode ends, and there alone.
    assert [gains.index(each) for each in gains] == [0, 0, 2, 2, 2, 5, 5]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_evaluation_sets_keep_the_users_of_an_episode(layout: Layout) -> None:
    chosen = scenario(layout, episode_length=4)
    found = evaluation_set(chosen, SIGHT, 41, 7)
    assert found.channels.shape == (11, 4, 3, 3, 2, 5)
    power = power_of(found.channels)
    np.testing.assert_allclose(power, np.repeat(power[:, :1], 4, axis=1), rtol=1e-4)
    assert (np.abs(power[1:, 0] / power[:-1, 0] - 1) > 1e-4).all()
    digests = {
        evaluation_set(each, RayleighChannel(), 8, 7).digest
        for each in (
            chosen,
            chosen.replace(layout="uniform"),
            chosen.replace(cell_radius=60.0),
            chosen.replace(least_distance=150.0),
            chosen.replace(path_loss_exponent=3.0),
            chosen.replace(shadowing_std_db=0.0),
        )
    }
    assert len(digests) == 6
    alone = evaluation_set(chosen.replace(episode_length=1), SIGHT, 41, 7)
    assert alone.channels.shape[:2] == (41, 1)


@settings(max_examples=25, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    cells=st.integers(1, 4),
    exponent=st.floats(0.0, 5.0),
    shadowing=st.floats(0.0, 10.0),
    seed=st.integers(0, 2**32),
)
def test_rates_of_unequal_cells_agree_with_the_formulas(
    layout: Layout, cells: int, exponent: float, shadowing: float, seed: int
) -> None:
    system = ISACSystem(
        Scenario(
            **SMALL,
            layout=layout,
            num_cells=cells,
            path_loss_exponent=exponent,
            shadowing_std_db=shadowing,
            power_limit="cost",
        ),
        dtype=torch.float64,
    )
    chosen, generator = system.scenario, rng(seed)
    simulation = Simulation(system, RayleighChannel(), 2)
    simulation.start(generator)
    channels = simulation.channels.astype(np.complex128)
    action = generator.uniform(-1.0, 1.0, (2, system.codec.action_size))
    outcome = system.transmit(torch.from_numpy(channels), torch.from_numpy(action))
    for n in range(2):
        F, R, access = direct_model.decode(chosen, action[n], channels[n])
        assert R is not None
        expected = direct_model.earned(chosen, channels[n], F, R, access)
        np.testing.assert_allclose(outcome.sinr[n], expected["sinr"], rtol=1e-9)
        np.testing.assert_allclose(outcome.rates[n], expected["rates"], rtol=1e-9)


def test_deployments_differ_by_what_is_not_drawn() -> None:
    found = process()
    plain = found.deployment
    found.start(rng())
    assert found.deployment == plain
    assert hash(found.deployment) == hash(plain)
    assert found.deployment != Deployment.of(scenario("line"))
