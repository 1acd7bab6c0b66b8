"""The scenario: every parameter of the system model, with its unit, validated.

A :class:`Scenario` is immutable and hashable. It imports neither torch nor SciPy; the only check
that needs them, whether the sensing threshold can be reached at all, is made by
:meth:`Scenario.check_attainable`, which every environment calls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, cast

from isac_gym.validation import (
    LARGEST_INTEGER,
    check_choice,
    check_integer,
    check_real,
    not_allowed,
)

__all__ = [
    "PRESETS",
    "Control",
    "CrossCorrelation",
    "Layout",
    "ObservationKind",
    "PowerLimit",
    "PrecoderDirections",
    "Radar",
    "Scenario",
    "Scheduling",
    "resolve_scenario",
]

Control: TypeAlias = Literal["power", "amplitude", "beamforming", "structured"]
ObservationKind: TypeAlias = Literal["channels", "features"]
PrecoderDirections: TypeAlias = Literal["mrt", "zf", "rzf"]
Radar: TypeAlias = Literal["learned", "fixed"]
PowerLimit: TypeAlias = Literal["project", "cost"]
Scheduling: TypeAlias = Literal["all", "contention"]
CrossCorrelation: TypeAlias = Literal["grid_abs", "grid_sq", "target_sq"]
Layout: TypeAlias = Literal["uniform", "hexagonal", "line"]
Angles: TypeAlias = tuple[float, ...]

LARGEST_SIZE: Final = 1024
"""Largest number of users, antennas or cells."""

_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "antenna_spacing": (1e-9, 1e3),
    "comm_power": (1e-6, 1e6),
    "radar_power": (1e-9, 1e6),
    "sensing_threshold": (1e-9, 1e24),
    "pattern_scale": (1e-9, 1e9),
    "csi_error_variance": (0.0, 1e6),
    "cell_radius": (1e-6, 1e9),
    "least_distance": (1e-9, 1e9),
    "path_loss_exponent": (0.0, 100.0),
    "shadowing_std_db": (0.0, 100.0),
}
"""Least and largest values with which no square or ratio leaves single precision."""
_GAINS: Final = (1e-12, 1e6)
"""The same of ``intercell_gain``, which may also be 0."""

GRID_STEP_DEG: Final = 1.0
"""Spacing of the angular grid in degrees; -90 ... 90 gives L = 181 directions."""


def _check_angles(name: str, value: object) -> Angles:
    allowed = "a non-empty sequence of distinct angles within [-90, 90] degrees"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise not_allowed(name, value, allowed)
    angles = tuple(
        check_real(name, angle, allowed, lambda a: -90.0 <= a <= 90.0) for angle in value
    )
    if not angles or len(set(angles)) != len(angles):
        raise not_allowed(name, value, allowed)
    return angles


@dataclasses.dataclass(frozen=True)
class Scenario:
    """All parameters of the ISAC downlink, in the units given here.

    The defaults are the preset ``"paper"``: one base station, K = 5 users, 12 + 12 antennas and
    targets at -70, 0 and 40 degrees.

    Numbers of users, antennas and cells are at most 1024. Real fields have the ranges in square
    brackets: whatever they are together, single precision holds what is computed with them.

    Attributes:
        num_users: Single-antenna users K a cell.
        num_comm_antennas: Communication antennas M_C of a base station.
        num_radar_antennas: Radar antennas M_R of a base station.
        antenna_spacing: Element spacing of the uniform linear array, in wavelengths
            [1e-9, 1e3].
        target_angles_deg: Target directions in degrees within [-90, 90]; with several cells either
            one set for all stations or one set a station.
        beam_width_deg: Width of the desired beam around each target, in degrees. A beam that
            falls between two directions of the 1-degree grid is an error.
        comm_power: Communication power budget P_C of a station, in W [1e-6, 1e6].
        radar_power: Radar power P_R of a station, in W [1e-9, 1e6], split evenly over its radar
            antennas.
        snr_db: P_C / N0 in dB [-100, 100]; defines the noise power N0. With a layout that has
            distances it is the SNR at the edge of a cell (at ``cell_radius``) without shadowing.
        sensing_threshold: Largest allowed sensing loss (epsilon in equation (10)) [1e-9, 1e24].
        cross_correlation: Form of the cross-correlation term: ``"grid_abs"`` is equation (9),
            ``"grid_sq"`` squares it, ``"target_sq"`` squares it over pairs of target directions.
        pattern_scale: Scale alpha of the desired pattern: a positive number [1e-9, 1e9], or
            ``"optimal"`` for the value that minimises the beampattern error.
        control: What the communication part of an action means: ``"power"`` (K powers along
            fixed directions), ``"amplitude"`` (real M_C x K weights), ``"beamforming"``
            (complex M_C x K weights), or ``"structured"`` (a few numbers a user in formulas of
            known structure; see :mod:`isac_gym.physics.structure`).
        precoder_directions: Directions for ``control="power"``.
        radar: ``"learned"``: the action holds the radar streams; ``"fixed"``: the station uses
            the covariance with the smallest sensing loss.
        radar_streams: Radar streams r <= M_R; None means M_R.
        power_limit: ``"project"`` scales the transmitted power down to the budget, ``"cost"``
            transmits as asked and reports the excess as a cost.
        scheduling: ``"all"`` serves every user; ``"contention"`` makes the access variables part
            of the action, and only a block with exactly one active user succeeds.
        observation: ``"channels"``: the channel matrix; ``"features"``: what rates depend on and
            nothing else, log gains and the alignment of users' channels, which do not change with
            the phases of channels (see :mod:`isac_gym.system.features`). It needs an action that
            does not depend on phases either: ``control="structured"``, or ``control="power"`` with
            ``radar="fixed"``.
        doppler: Normalised Doppler frequency (Doppler frequency times block duration) of the
            Gauss-Markov fading process; None makes the blocks independent.
        csi_error_variance: Variance of the error of the observed channel estimate, relative to
            the mean power of the link [0, 1e6]. 0 is perfect channel knowledge.
        num_cells: Base stations J, each with its own K users.
        intercell_gain: Mean power of a path from a station to a user of another cell, with
            ``layout="uniform"``; without effect in the other layouts. 0, or [1e-12, 1e6].
        layout: ``"uniform"``: paths within a cell have the mean power 1, those between cells
            ``intercell_gain``. ``"hexagonal"`` and ``"line"``: stations on a hexagonal grid (from
            the centre outwards) or along a line, users at random in their cells for the length of
            an episode, and the mean power of a path of length d is
            (d/cell_radius)^(-path_loss_exponent)·10^(s/10), s being its shadowing in dB. The
            following fields are without effect with ``"uniform"``.
        cell_radius: Radius R of a cell, in m [1e-6, 1e9]: that of the corners of a hexagon, whose
            neighbours are √3·R apart, or that of a disc along the line, whose neighbours are 2·R
            apart.
        least_distance: Smallest distance of a user from any station, in m [1e-9, 1e9]; smaller than
            the inradius of a cell.
        path_loss_exponent: Exponent of the path gain's fall with distance [0, 100].
        shadowing_std_db: Standard deviation of the log-normal shadowing, in dB [0, 100],
            independent for each path from a station to a user.
        episode_length: Coherence blocks an episode, which ends by truncation.

    Raises:
        ValueError: If a value is not allowed; the message names field, value and what is allowed.
    """

    num_users: int = 5
    num_comm_antennas: int = 12
    num_radar_antennas: int = 12
    antenna_spacing: float = 0.5
    target_angles_deg: Angles | tuple[Angles, ...] = (-70.0, 0.0, 40.0)
    beam_width_deg: float = 10.0
    comm_power: float = 1.0
    radar_power: float = 2.5
    snr_db: float = 10.0
    sensing_threshold: float = 0.12
    cross_correlation: CrossCorrelation = "grid_abs"
    pattern_scale: float | Literal["optimal"] = 1.0
    control: Control = "beamforming"
    precoder_directions: PrecoderDirections = "mrt"
    radar: Radar = "learned"
    radar_streams: int | None = None
    power_limit: PowerLimit = "project"
    scheduling: Scheduling = "all"
    observation: ObservationKind = "channels"
    doppler: float | None = None
    csi_error_variance: float = 0.0
    num_cells: int = 1
    intercell_gain: float = 0.1
    layout: Layout = "uniform"
    cell_radius: float = 250.0
    least_distance: float = 25.0
    path_loss_exponent: float = 3.7
    shadowing_std_db: float = 6.0
    episode_length: int = 10

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name, minimum in (
            ("num_users", 1),
            ("num_comm_antennas", 1),
            ("num_radar_antennas", 1),
            ("num_cells", 1),
            ("episode_length", 1),
        ):
            largest = LARGEST_INTEGER if name == "episode_length" else LARGEST_SIZE
            put(name, check_integer(name, getattr(self, name), minimum, largest))
        for name in (
            "antenna_spacing",
            "comm_power",
            "radar_power",
            "sensing_threshold",
            "cell_radius",
            "least_distance",
        ):
            put(name, check_real(name, getattr(self, name), "a finite number > 0", lambda x: x > 0))
        for name in (
            "csi_error_variance",
            "intercell_gain",
            "path_loss_exponent",
            "shadowing_std_db",
        ):
            put(
                name,
                check_real(name, getattr(self, name), "a finite number >= 0", lambda x: x >= 0),
            )
        for name, alias in (
            ("cross_correlation", CrossCorrelation),
            ("control", Control),
            ("precoder_directions", PrecoderDirections),
            ("radar", Radar),
            ("power_limit", PowerLimit),
            ("scheduling", Scheduling),
            ("observation", ObservationKind),
            ("layout", Layout),
        ):
            put(name, check_choice(name, getattr(self, name), alias))

        decibels = "a number between -100 and 100 (dB)"
        put("snr_db", check_real("snr_db", self.snr_db, decibels, lambda x: -100 <= x <= 100))
        width = "a number in (0, 180] degrees"
        put("beam_width_deg", check_real("beam_width_deg", self.beam_width_deg, width, _is_width))
        if self.pattern_scale != "optimal":
            scale = "'optimal' or a finite number > 0"
            put(
                "pattern_scale",
                check_real("pattern_scale", self.pattern_scale, scale, lambda x: x > 0),
            )
        if self.doppler is not None:
            rate = "None or a number in [0, 0.5]"
            put("doppler", check_real("doppler", self.doppler, rate, lambda x: 0 <= x <= 0.5))
        if self.radar_streams is not None:
            put("radar_streams", check_integer("radar_streams", self.radar_streams, 1))
            if self.radar_streams > self.num_radar_antennas:
                raise not_allowed(
                    "radar_streams",
                    self.radar_streams,
                    f"at most num_radar_antennas={self.num_radar_antennas}",
                )
        if (
            self.control == "power"
            and self.precoder_directions == "zf"
            and self.num_users > self.num_comm_antennas
        ):
            raise not_allowed(
                "precoder_directions",
                self.precoder_directions,
                f"'mrt' or 'rzf' when num_users={self.num_users} exceeds "
                f"num_comm_antennas={self.num_comm_antennas} (zero-forcing needs K <= M_C)",
            )
        if self.observation == "features" and not self.needs_no_phases:
            raise not_allowed(
                "observation",
                self.observation,
                "'channels' unless control is 'structured', or 'power' with radar='fixed' (other "
                "actions depend on the phases of channels)",
            )
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if value != "optimal" and not lowest <= value <= highest:
                raise not_allowed(name, value, f"in [{lowest:g}, {highest:g}]")
        if self.intercell_gain and not _GAINS[0] <= self.intercell_gain <= _GAINS[1]:
            allowed = f"0 or in [{_GAINS[0]:g}, {_GAINS[1]:g}]"
            raise not_allowed("intercell_gain", self.intercell_gain, allowed)
        put("target_angles_deg", self._check_targets())
        if self.is_geometric:
            inradius = self.cell_radius * (math.sqrt(0.75) if self.layout == "hexagonal" else 1.0)
            if self.least_distance >= inradius:
                raise not_allowed(
                    "least_distance",
                    self.least_distance,
                    f"less than {inradius:g} m, the inradius of a cell with "
                    f"layout={self.layout!r} and cell_radius={self.cell_radius:g}",
                )

    def _check_targets(self) -> Angles | tuple[Angles, ...]:
        name = "target_angles_deg"
        value: Any = self.target_angles_deg
        if isinstance(value, Iterator):
            value = tuple(value)
        nested = isinstance(value, Iterable) and any(
            isinstance(entry, Iterable) and not isinstance(entry, (str, bytes)) for entry in value
        )
        if nested:
            groups = tuple(_check_angles(name, entry) for entry in value)
            if len(groups) != self.num_cells:
                allowed = f"one set of angles for each of {self.num_cells} cells"
                raise not_allowed(name, value, allowed)
        else:
            groups = (_check_angles(name, value),)
        for angle in (angle for group in groups for angle in group):
            nearest = min(max(round(angle / GRID_STEP_DEG) * GRID_STEP_DEG, -90.0), 90.0)
            if abs(nearest - angle) > self.beam_width_deg / 2 + 1e-9:
                raise not_allowed(
                    "beam_width_deg",
                    self.beam_width_deg,
                    f"wide enough for the beam at {angle} degrees to hold a direction of the "
                    f"{GRID_STEP_DEG:g}-degree grid (>= {2 * abs(nearest - angle):g})",
                )
        return groups if nested and self.num_cells > 1 else groups[0]

    @property
    def noise_power(self) -> float:
        """Noise power N0 = P_C / SNR, in W."""
        return cast(float, self.comm_power / 10.0 ** (self.snr_db / 10.0))

    @property
    def num_antennas(self) -> int:
        """Antennas M = M_R + M_C of a base station."""
        return self.num_radar_antennas + self.num_comm_antennas

    @property
    def num_radar_streams(self) -> int:
        """Radar streams r, with the default resolved."""
        return self.num_radar_antennas if self.radar_streams is None else self.radar_streams

    @property
    def targets_by_cell(self) -> tuple[Angles, ...]:
        """Target directions in degrees, one tuple a station."""
        if isinstance(self.target_angles_deg[0], tuple):
            return self.target_angles_deg
        return (self.target_angles_deg,) * self.num_cells

    @property
    def is_time_correlated(self) -> bool:
        """Whether consecutive blocks of the default channel model depend on each other."""
        return self.doppler is not None

    @property
    def needs_no_phases(self) -> bool:
        """Whether what an action means does not depend on the phases of channels."""
        return self.control == "structured" or (self.control == "power" and self.radar == "fixed")

    @property
    def is_geometric(self) -> bool:
        """Whether stations and users have positions, and the users theirs for an episode."""
        return self.layout != "uniform"

    def replace(self, **changes: Any) -> Scenario:
        """Return a copy with some fields changed.

        Raises:
            TypeError: If a name is not a field; the message lists the fields.
            ValueError: If a value is not allowed.
        """
        unknown = sorted(set(changes) - set(self.field_names()))
        if unknown:
            # Python's words, by which libraries know that a keyword of theirs can be left out.
            raise TypeError(
                f"unexpected keyword argument {', '.join(map(repr, unknown))}: no parameter of a "
                f"scenario; allowed are {', '.join(self.field_names())}"
            )
        return dataclasses.replace(self, **changes)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of all parameters, in the order of their definition."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def preset(cls, name: str) -> Scenario:
        """Return a named preset (see :data:`PRESETS`).

        Raises:
            ValueError: If there is no preset of that name; the message lists them.
        """
        if name not in PRESETS:
            raise not_allowed("scenario", name, "one of " + ", ".join(map(repr, PRESETS)))
        return PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types; :meth:`from_dict` is the inverse."""
        return {
            key: _to_lists(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scenario:
        """Build a scenario from :meth:`to_dict`'s output.

        Raises:
            TypeError: If a name is not a field.
            ValueError: If a value is not allowed.
        """
        return cls().replace(**dict(values))

    def check_attainable(self) -> None:
        """Check that some radar covariance meets the sensing threshold.

        The smallest sensing loss under the per-antenna power constraint does not depend on the
        channels or the SNR. It is a convex problem; the search stops as soon as it has found a
        covariance that meets the threshold, and its result is cached.

        Raises:
            ValueError: If ``sensing_threshold`` is below the attainable floor, which the message
                names.
        """
        from isac_gym.solvers.beampattern import check_threshold

        for design in self.list_beampattern_arguments():
            check_threshold(self.sensing_threshold, **design)

    def sensing_floor(self) -> tuple[float, ...]:
        """The smallest sensing loss of a radar covariance, one a station; cached.

        It depends neither on the channels nor on the SNR. With fewer streams than antennas it is
        the smallest that was found.
        """
        from isac_gym.solvers.beampattern import best_beampattern

        given = self.list_beampattern_arguments()
        return tuple(best_beampattern(**arguments).loss for arguments in given)

    def list_beampattern_arguments(self) -> tuple[dict[str, Any], ...]:
        """Arguments of :func:`~isac_gym.solvers.beampattern.best_beampattern`, for each station."""
        return tuple(
            {
                "num_antennas": self.num_radar_antennas,
                "spacing": self.antenna_spacing,
                "targets_deg": targets,
                "beam_width_deg": self.beam_width_deg,
                "power": self.radar_power,
                "cross_correlation": self.cross_correlation,
                "pattern_scale": self.pattern_scale,
                "streams": self.num_radar_streams,
            }
            for targets in self.targets_by_cell
        )


def _is_width(value: float) -> bool:
    return 0.0 < value <= 180.0


def _to_lists(value: tuple[Any, ...]) -> list[Any]:
    return [_to_lists(entry) if isinstance(entry, tuple) else entry for entry in value]


_THREE_CELLS: Final = Scenario(
    num_cells=3,
    target_angles_deg=((-40.0, 0.0, 40.0), (-70.0, 0.0, 40.0), (-50.0, 0.0, 70.0)),
)

PRESETS: Final[Mapping[str, Scenario]] = {
    "paper": Scenario(),
    "power": Scenario(control="power"),
    "dense": Scenario(num_users=12),
    "three-cells": _THREE_CELLS,
    "multicell": _THREE_CELLS,
    "hexagonal": Scenario(num_cells=7, layout="hexagonal"),
}
"""Named scenarios: ``paper`` (the default), ``power`` (power control along MRT directions),
``dense`` (as many users as communication antennas), ``three-cells`` (three stations, each with
targets of its own; ``multicell`` is the same), ``hexagonal`` (a station and the six around it,
users at random distances)."""


ScenarioLike: TypeAlias = Scenario | str | Mapping[str, Any] | None
"""A scenario, the name of a preset, fields that differ from the default, or the default (None)."""


def resolve_scenario(
    scenario: ScenarioLike, overrides: Mapping[str, Any], default: str = "paper"
) -> Scenario:
    """Return a scenario with keyword overrides.

    Args:
        scenario: A scenario, the name of a preset, a mapping of fields that differ from the
            default, or None for the default.
        overrides: Fields to change.
        default: Name of the default preset.

    Returns:
        The scenario.

    Raises:
        TypeError: If an override or a key of the mapping is not a field, or ``scenario`` is of
            another type.
        ValueError: If a value is not allowed, or there is no such preset.
    """
    if scenario is None:
        base = Scenario.preset(default)
    elif isinstance(scenario, str):
        base = Scenario.preset(scenario)
    elif isinstance(scenario, Scenario):
        base = scenario
    elif isinstance(scenario, Mapping):
        # At once, because fields may be allowed only together.
        base, overrides = Scenario.preset(default), {**scenario, **overrides}
    else:
        raise TypeError(
            "scenario must be a Scenario, the name of a preset, a mapping of fields or None, got "
            f"{scenario!r}"
        )
    return base.replace(**overrides) if overrides else base
