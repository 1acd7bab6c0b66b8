"""Where stations and users stand, and what that makes of the gains of the paths between them.

For the layouts of a :class:`~isac_gym.scenario.Scenario` other than ``"uniform"``. Positions are
(x, y) in m. Cell j is the hexagon or disc around station j: its points are nearer to station j than
to any other, so that a user of a cell that is far enough from its own station is from all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from isac_gym.channels.base import LARGEST_GAIN, convert_to_array
from isac_gym.scenario import Scenario
from isac_gym.validation import not_allowed

__all__ = [
    "check_user_positions",
    "draw_path_gains",
    "draw_user_positions",
    "measure_distances",
    "place_stations",
]

Real = npt.NDArray[np.float64]

_TOLERANCE = 1e-9
"""Relative shortfall of a distance that is put down to rounding."""


def place_stations(scenario: Scenario) -> Real:
    """Positions of the stations.

    ``"hexagonal"``: station 0 at the origin, the others on a spiral of rings around it, each of
    which begins on the positive x axis and goes round counterclockwise; neighbours are √3·R apart,
    with R the cell radius. ``"line"``: along the positive x axis, 2·R apart.

    Args:
        scenario: Layout, number of cells and their radius.

    Returns:
        Array (J, 2), in m.

    Raises:
        ValueError: If the layout is ``"uniform"``, which has no positions.
    """
    _require_geometry(scenario)
    count, radius = scenario.num_cells, scenario.cell_radius
    if scenario.layout == "line":
        return np.stack([2.0 * radius * np.arange(count), np.zeros(count)], axis=1)
    return math.sqrt(3.0) * radius * np.array(list(itertools.islice(_walk_spiral(), count)))


def _walk_spiral() -> Iterator[Real]:
    """Points of the triangular lattice of unit distance, ring after ring."""
    turns = np.arange(8) * (np.pi / 3.0)
    corners = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    yield np.zeros(2)
    for ring in itertools.count(1):
        for side in range(6):
            # From one corner of the ring to the next it goes in the direction two corners on.
            for step in range(ring):
                yield ring * corners[side] + step * corners[side + 2]


def draw_user_positions(rng: np.random.Generator, num: int, scenario: Scenario) -> Real:
    """Draw users uniformly in their cells, at least ``least_distance`` from every station.

    In a hexagon a point that is too near is drawn again: at least 9 % of the area is far enough,
    whatever the least distance that a scenario allows. Of a disc that share may be as small as one
    likes, so that its points are drawn from the ring that is far enough, at once.

    Args:
        rng: The only source of randomness.
        num: Number of realisations n.
        scenario: Layout, dimensions, cell radius and least distance.

    Returns:
        Array (n, J, K, 2), in m.

    Raises:
        ValueError: If the layout is ``"uniform"``, which has no positions.
    """
    stations = place_stations(scenario)
    count = num * scenario.num_cells * scenario.num_users
    draw = _draw_in_hexagon if scenario.layout == "hexagonal" else _draw_in_ring
    offsets = draw(rng, count, scenario.cell_radius, scenario.least_distance)
    shaped = offsets.reshape(num, scenario.num_cells, scenario.num_users, 2)
    positions: Real = stations[:, None] + shaped
    return positions


def _draw_in_hexagon(rng: np.random.Generator, count: int, radius: float, least: float) -> Real:
    """Uniform points (count, 2) of the hexagon, at least a distance from its centre."""
    points = np.empty((count, 2))
    missing = np.arange(count)
    while len(missing):
        points[missing] = _draw_in_whole_hexagon(rng, len(missing), radius)
        missing = missing[np.hypot(*points[missing].T) < least]
    return points


def _draw_in_whole_hexagon(rng: np.random.Generator, count: int, radius: float) -> Real:
    """Uniform points (count, 2) of the hexagon whose sides face the neighbours in the lattice."""
    # Two corners 120 degrees apart span a rhombus, and three such rhombi are the hexagon.
    turns = np.pi / 6.0 + np.arange(4) * (2.0 * np.pi / 3.0)
    corners = radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    rhombus = rng.integers(3, size=count)
    along = rng.random((count, 2, 1))
    points: Real = along[:, 0] * corners[rhombus] + along[:, 1] * corners[rhombus + 1]
    return points


def _draw_in_ring(rng: np.random.Generator, count: int, radius: float, least: float) -> Real:
    """Uniform points (count, 2) of a disc, at least a distance from its centre."""
    share, turn = rng.random((count, 2)).T
    # Area grows with the square of the distance.
    nearest = (least / radius) ** 2
    distance = radius * np.sqrt(nearest + (1.0 - nearest) * share)
    angle = 2.0 * np.pi * turn
    directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points: Real = distance[:, None] * directions
    return points


def measure_distances(positions: Real, scenario: Scenario) -> Real:
    """Lengths of the paths from every station to every user.

    Args:
        positions: Users, (…, J, K, 2), in m.
        scenario: Where the stations stand.

    Returns:
        Array (…, J, J, K) for [station, cell, user], in m.
    """
    stations = place_stations(scenario)[:, None, None]
    away = positions[..., None, :, :, :] - stations
    distances: Real = np.hypot(away[..., 0], away[..., 1])
    return distances


def draw_path_gains(
    rng: np.random.Generator, positions: Real, scenario: Scenario
) -> npt.NDArray[np.float32]:
    """Mean power gains of the paths: (d/R)^(-η)·10^(s/10) with s ~ N(0, std²), in dB.

    R is the cell radius, η the path loss exponent, std the standard deviation of the log-normal
    shadowing, which is drawn independently for every path, and drawn even if std is 0: the same
    seed goes on with the same numbers.

    Args:
        rng: The only source of randomness.
        positions: Users, (n, J, K, 2), in m.
        scenario: Layout, cell radius, exponent and standard deviation.

    Returns:
        float32 array (n, J, J, K) for [station, cell, user].

    Raises:
        ValueError: If a gain is above :data:`~isac_gym.channels.base.LARGEST_GAIN`, beyond which
            single precision does not hold what is computed with it.
    """
    distances = measure_distances(positions, scenario)
    shadowing = scenario.shadowing_std_db * rng.standard_normal(distances.shape)
    # What overflows is found below.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        fall = scenario.path_loss_exponent * np.log10(distances / scenario.cell_radius)
        level = shadowing / 10.0 - fall
        gains: npt.NDArray[np.float32] = (10.0**level).astype(np.float32)
    if not gains.max(initial=0.0) <= LARGEST_GAIN:
        raise ValueError(
            f"path_loss_exponent={scenario.path_loss_exponent!r} and "
            f"shadowing_std_db={scenario.shadowing_std_db!r} must leave gains below "
            f"{LARGEST_GAIN:g}, got one of {10.0 * level.max():.0f} dB"
        )
    return gains


def check_user_positions(
    given: npt.ArrayLike,
    scenario: Scenario,
    lead: tuple[int, ...] = (),
    *,
    name: str = "positions",
) -> Real:
    """Check given positions of users, who may stand anywhere but on top of a station.

    Args:
        given: Positions, (*lead, J, K, 2), in m; not necessarily inside the user's cell.
        scenario: Layout, dimensions and least distance.
        lead: Leading dimensions.
        name: What the positions are called in messages.

    Returns:
        The positions as a new float64 array.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If the layout is ``"uniform"``, which has no positions, the shape differs or is
            none, a coordinate is not finite, or a user is closer to a station than
            ``least_distance``.
    """
    array = convert_to_array(name, given)
    if not scenario.is_geometric:
        raise ValueError(
            f"{name} must be None with layout={scenario.layout!r}, which has no positions, got "
            f"shape {array.shape}"
        )
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    shape = (*lead, scenario.num_cells, scenario.num_users, 2)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    positions = array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(positions))
    if len(bad):
        raise ValueError(
            f"{name} must be finite, got {positions[tuple(bad[0])]} for "
            f"{_name_user(tuple(bad[0][:-1]))}"
        )
    distances = measure_distances(positions, scenario)
    near = np.argwhere(distances < scenario.least_distance * (1.0 - _TOLERANCE))
    if len(near):
        *before, station, cell, user = (int(index) for index in near[0])
        raise ValueError(
            f"{name} must be at least least_distance={scenario.least_distance:g} m from every "
            f"station, got {_name_user((*before, cell, user))} at "
            f"{distances[tuple(near[0])]:g} m from station {station}"
        )
    return positions


def _name_user(index: tuple[int, ...]) -> str:
    *before, cell, user = index
    where = f" in environment {before[0]}" if before else ""
    return f"user {user} of cell {cell}{where}"


def _require_geometry(scenario: Scenario) -> None:
    if not scenario.is_geometric:
        raise not_allowed("layout", scenario.layout, "'hexagonal' or 'line' to have positions")
