"""The scenario: what is accepted, what is refused and how, and its plain forms."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import reference
from scipy import optimize

from isac_gym.scenario import PRESETS, Scenario, resolve_scenario

NAN, INF = float("nan"), float("inf")


def integer_rejections(minimum: int) -> list[tuple[Any, str]]:
    allowed = f"an integer >= {minimum}"
    values = [minimum - 1, -3, 2.0, 2.5, "2", None, True, NAN, INF, [2], 1 + 0j]
    return [(value, allowed) for value in values]


def number_rejections(allowed: str, *outside: float) -> list[tuple[Any, str]]:
    values = [*outside, NAN, INF, -INF, "1", True, [1.0], 1 + 0j]
    return [(value, allowed) for value in values]


def choice_rejections(*options: str) -> list[tuple[Any, str]]:
    allowed = "one of " + ", ".join(map(repr, options))
    return [(value, allowed) for value in ("nonsense", "", options[0].upper(), None, 1, [])]


POSITIVE = "a finite number > 0"
NONNEGATIVE = "a finite number >= 0"
ANGLES = "a non-empty sequence of distinct angles within [-90, 90] degrees"

# For every parameter: a value, what the message must say is allowed, and the value that it shows if
# that is another one.
REJECTED: dict[str, list[tuple[Any, ...]]] = {
    "num_users": integer_rejections(1),
    "num_comm_antennas": integer_rejections(1),
    "num_radar_antennas": integer_rejections(1),
    "antenna_spacing": [*number_rejections(POSITIVE, 0.0, -0.5), (None, POSITIVE)],
    "target_angles_deg": [
        *((value, ANGLES) for value in ((), (10.0, 10.0), 40.0, "40", b"40", None)),
        # Of a longer sequence the message shows the part that is wrong.
        ((0.0, 90.5), ANGLES, 90.5),
        ((-91.0, 0.0), ANGLES, -91.0),
        ((0.0, NAN), ANGLES, NAN),
        ((INF,), ANGLES, INF),
        ((0.0, "a"), ANGLES, "a"),
        ((True,), ANGLES, True),
        ((1j,), ANGLES, 1j),
        (((),), ANGLES, ()),
        (((0.0, 0.0),), ANGLES, (0.0, 0.0)),
        (((0.0,), 3.0), ANGLES, 3.0),
        (((0.0,), (10.0,)), "one set of angles for each of 1 cells"),
    ],
    "beam_width_deg": [
        *number_rejections("a number in (0, 180] degrees", 0.0, -10.0, 180.5),
        (None, "a number in (0, 180] degrees"),
    ],
    "comm_power": [*number_rejections(POSITIVE, 0.0, -1.0), (None, POSITIVE)],
    "radar_power": [*number_rejections(POSITIVE, 0.0, -2.5), (None, POSITIVE)],
    "snr_db": [
        *number_rejections("a number between -100 and 100 (dB)", -100.1, 101.0),
        (None, "a number between -100 and 100 (dB)"),
    ],
    "sensing_threshold": [*number_rejections(POSITIVE, 0.0, -0.12), (None, POSITIVE)],
    "cross_correlation": choice_rejections("grid_abs", "grid_sq", "target_sq"),
    "pattern_scale": [
        *number_rejections("'optimal' or a finite number > 0", 0.0, -1.0),
        (None, "'optimal' or a finite number > 0"),
        ("best", "'optimal' or a finite number > 0"),
    ],
    "control": choice_rejections("power", "amplitude", "beamforming", "structured"),
    "precoder_directions": choice_rejections("mrt", "zf", "rzf"),
    "radar": choice_rejections("learned", "fixed"),
    "radar_streams": [
        *((value, allowed) for value, allowed in integer_rejections(1) if value is not None),
        (13, "at most num_radar_antennas=12"),
    ],
    "power_limit": choice_rejections("project", "cost"),
    "scheduling": choice_rejections("all", "contention"),
    "observation": [
        *choice_rejections("channels", "features"),
        # The default control needs the phases of channels.
        (
            "features",
            "'channels' unless control is 'structured', or 'power' with radar='fixed' (other "
            "actions depend on the phases of channels)",
        ),
    ],
    "doppler": number_rejections("None or a number in [0, 0.5]", -0.01, 0.51),
    "csi_error_variance": [*number_rejections(NONNEGATIVE, -0.1), (None, NONNEGATIVE)],
    "num_cells": integer_rejections(1),
    "intercell_gain": [*number_rejections(NONNEGATIVE, -0.1), (None, NONNEGATIVE)],
    "layout": choice_rejections("uniform", "hexagonal", "line"),
    "cell_radius": [*number_rejections(POSITIVE, 0.0, -250.0), (None, POSITIVE)],
    "least_distance": [*number_rejections(POSITIVE, 0.0, -25.0), (None, POSITIVE)],
    "path_loss_exponent": [*number_rejections(NONNEGATIVE, -3.7), (None, NONNEGATIVE)],
    "shadowing_std_db": [*number_rejections(NONNEGATIVE, -6.0), (None, NONNEGATIVE)],
    "episode_length": integer_rejections(1),
}

CASES = [
    pytest.param(name, value, allowed, *(shown or (value,)), id=f"{name}={value!r}")
    for name, rejections in REJECTED.items()
    for value, allowed, *shown in rejections
]


def test_every_field_has_a_rejection_test() -> None:
    assert list(REJECTED) == [field.name for field in dataclasses.fields(Scenario)]
    assert all(REJECTED.values())


@pytest.mark.parametrize(("name", "value", "allowed", "shown"), CASES)
def test_bad_value_is_refused_with_name_value_and_what_is_allowed(
    name: str, value: Any, allowed: str, shown: Any
) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be ") as error:
        Scenario(**{name: value})
    assert f"{name} must be {allowed}, got {shown!r}" == str(error.value)
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Scenario().replace(**{name: value})
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Scenario.from_dict({name: value})


ACCEPTED: list[dict[str, Any]] = [
    {"num_users": 1, "num_comm_antennas": 1, "num_radar_antennas": 1},
    {"num_users": 13},
    {"target_angles_deg": (-90.0, 90.0)},
    {"target_angles_deg": ((10.0,), (20.0, 30.0)), "num_cells": 2},
    {"target_angles_deg": (10.0,), "num_cells": 3},
    {"beam_width_deg": 180.0},
    {"target_angles_deg": (12.3,), "beam_width_deg": 0.6},
    {"snr_db": -100},
    {"snr_db": 100.0},
    {"pattern_scale": "optimal"},
    {"pattern_scale": 2},
    {"radar_streams": 1},
    {"radar_streams": 12},
    {"doppler": 0.0},
    {"doppler": 0.5},
    {"csi_error_variance": 0},
    {"intercell_gain": 0.0},
    {"intercell_gain": 2.0},
    *({"layout": layout} for layout in ("uniform", "hexagonal", "line")),
    {"layout": "hexagonal", "least_distance": 216.5},  # √3/2·250 = 216.506…
    {"layout": "line", "least_distance": 249.9},
    {"layout": "line", "num_cells": 19, "cell_radius": 26.0},
    {"cell_radius": 10.0},  # of no effect without distances
    {"path_loss_exponent": 0.0},
    {"shadowing_std_db": 0},
    {"episode_length": 1},
    *({"cross_correlation": form} for form in ("grid_abs", "grid_sq", "target_sq")),
    {"observation": "features", "control": "structured"},
    {"observation": "features", "control": "power", "radar": "fixed"},
    *({"control": control} for control in ("power", "amplitude", "beamforming", "structured")),
    *({"precoder_directions": kind} for kind in ("mrt", "zf", "rzf")),
    {"radar": "fixed"},
    {"power_limit": "cost"},
    {"scheduling": "contention"},
    # Zero forcing only matters to power control, and needs K <= M_C there.
    {"precoder_directions": "zf", "control": "power", "num_users": 12},
    {"precoder_directions": "zf", "control": "beamforming", "num_users": 13},
    {"precoder_directions": "rzf", "control": "power", "num_users": 13},
]


BEYOND: list[tuple[str, Any, str]] = [
    *((f"num_{name}", 1025, "an integer >= 1 and <= 1024") for name in ("users", "cells")),
    *((f"num_{name}_antennas", 2**70, "an integer >= 1 and <= 1024") for name in ("comm", "radar")),
    ("episode_length", 2**63, "an integer >= 1 and <= 2^63 - 1"),
    ("comm_power", 1e39, "in [1e-06, 1e+06]"),
    ("comm_power", 9e-7, "in [1e-06, 1e+06]"),
    ("radar_power", 1e20, "in [1e-09, 1e+06]"),
    ("intercell_gain", 1e100, "0 or in [1e-12, 1e+06]"),
    ("intercell_gain", 1e-300, "0 or in [1e-12, 1e+06]"),
    ("antenna_spacing", 1e300, "in [1e-09, 1000]"),
    ("sensing_threshold", 1e-40, "in [1e-09, 1e+24]"),
    ("pattern_scale", 1e10, "in [1e-09, 1e+09]"),
    ("csi_error_variance", 1e7, "in [0, 1e+06]"),
    ("cell_radius", 1e10, "in [1e-06, 1e+09]"),
    ("least_distance", 1e-10, "in [1e-09, 1e+09]"),
    ("path_loss_exponent", 101.0, "in [0, 100]"),
    ("shadowing_std_db", 1e30, "in [0, 100]"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BEYOND)
def test_values_beyond_the_ranges_are_refused(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name} must be {allowed}, got {value!r}")):
        Scenario(**{name: value})


@pytest.mark.parametrize("name", [name for name, *_ in BEYOND if not name.startswith("num_")])
@pytest.mark.parametrize("value", [10**400, 10**5000], ids=["huge", "endless"])
def test_huge_integers_are_refused_like_other_values(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .{{1,200}}, got .{{1,250}}$"):
        Scenario(**{name: value})


def test_presets_are_well_inside_the_ranges() -> None:
    for scenario in PRESETS.values():
        for name in ("comm_power", "radar_power", "sensing_threshold"):
            scenario.replace(**{name: 1e3 * getattr(scenario, name)})


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_values_at_the_limits_are_accepted_and_kept(changes: dict[str, Any]) -> None:
    scenario = Scenario(**changes)
    for name, value in changes.items():
        assert getattr(scenario, name) == value
    for name in set(Scenario.field_names()) - set(changes):
        assert getattr(scenario, name) == getattr(Scenario(), name)


def test_zero_forcing_needs_no_more_users_than_antennas() -> None:
    with pytest.raises(ValueError, match=r"^precoder_directions must be") as error:
        Scenario(control="power", precoder_directions="zf", num_users=5, num_comm_antennas=4)
    for part in ("'mrt' or 'rzf'", "num_users=5", "num_comm_antennas=4", "got 'zf'"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("layout", "radius", "least", "inradius"),
    [
        ("hexagonal", 250.0, 216.6, "216.506"),
        ("hexagonal", 10.0, 25.0, "8.66025"),
        ("line", 250.0, 250.0, "250"),
        ("line", 20.0, 25.0, "20"),
    ],
)
def test_least_distance_must_leave_room_in_the_cell(
    layout: Any, radius: float, least: float, inradius: str
) -> None:
    with pytest.raises(ValueError, match=r"^least_distance must be less than") as error:
        Scenario(layout=layout, cell_radius=radius, least_distance=least)
    for part in (f"than {inradius} m", repr(layout), f"cell_radius={radius:g}", f"got {least}"):
        assert part in str(error.value)


def test_targets_by_station_must_match_the_number_of_cells() -> None:
    for cells in (1, 3):
        with pytest.raises(ValueError, match=f"^target_angles_deg .* for each of {cells} cells"):
            Scenario(target_angles_deg=((0.0,), (10.0,)), num_cells=cells)


@pytest.mark.parametrize(
    ("target", "width", "needed"), [(12.3, 0.5, 0.6), (-0.5, 0.9, 1.0), (89.6, 0.7, 0.8)]
)
def test_beam_between_two_directions_of_the_grid_is_refused(
    target: float, width: float, needed: float
) -> None:
    with pytest.raises(ValueError, match=r"^beam_width_deg must be wide enough") as error:
        Scenario(target_angles_deg=(0.0, target), beam_width_deg=width)
    match = re.search(r"\(>= ([0-9.]+)\), got (.*)$", str(error.value))
    assert match is not None
    assert float(match[1]) == pytest.approx(needed)
    assert match[2] == repr(width)
    assert str(target) in str(error.value)
    Scenario(target_angles_deg=(0.0, target), beam_width_deg=float(match[1]))


# --- Forms -----------------------------------------------------------------------------------

EXAMPLES: dict[str, Scenario] = {
    **PRESETS,
    "values of NumPy": Scenario(
        num_users=np.int64(3),  # type: ignore[arg-type]
        radar_streams=np.int32(2),  # type: ignore[arg-type]
        radar_power=np.float32(1.5),  # type: ignore[arg-type]
        target_angles_deg=np.array([-20.0, 30.0]),  # type: ignore[arg-type]
    ),
    "line": Scenario(
        num_cells=4, layout="line", cell_radius=80, least_distance=5, shadowing_std_db=0
    ),
    "lists": Scenario(
        num_cells=2,
        target_angles_deg=[[-20, 30], [5]],  # type: ignore[arg-type]
        pattern_scale="optimal",
        doppler=0.1,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_round_trip_through_a_dictionary_and_json(name: str) -> None:
    scenario = EXAMPLES[name]
    values = scenario.to_dict()
    assert list(values) == list(Scenario.field_names())
    assert Scenario.from_dict(values) == scenario
    through_json = Scenario.from_dict(json.loads(json.dumps(values, allow_nan=False)))
    assert through_json == scenario
    assert hash(through_json) == hash(scenario)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_attainable(name: str) -> None:
    preset = Scenario.preset(name)
    assert preset is PRESETS[name]
    assert preset.replace() == preset
    preset.check_attainable()


def test_default_scenario() -> None:
    default = Scenario()
    assert default == Scenario.preset("paper")
    assert (default.num_users, default.num_comm_antennas, default.num_radar_antennas) == (5, 12, 12)
    assert default.target_angles_deg == (-70.0, 0.0, 40.0)
    assert (default.beam_width_deg, default.comm_power, default.radar_power) == (10.0, 1.0, 2.5)
    assert (default.snr_db, default.sensing_threshold) == (10.0, 0.12)
    assert (default.antenna_spacing, default.pattern_scale) == (0.5, 1.0)
    assert default.cross_correlation == "grid_abs"
    assert default.num_cells == 1
    assert default.layout == "uniform"
    assert not default.is_geometric


def test_multicell_preset_has_the_targets_of_its_stations() -> None:
    preset = Scenario.preset("multicell")
    assert preset.num_cells == 3
    assert preset.intercell_gain == 0.1
    expected = ((-40.0, 0.0, 40.0), (-70.0, 0.0, 40.0), (-50.0, 0.0, 70.0))
    assert preset.targets_by_cell == expected
    assert Scenario.preset("three-cells") == preset


def test_hexagonal_preset_is_a_station_with_six_around_it() -> None:
    preset = Scenario.preset("hexagonal")
    assert (preset.num_cells, preset.layout, preset.is_geometric) == (7, "hexagonal", True)
    assert preset.targets_by_cell == ((-70.0, 0.0, 40.0),) * 7
    assert preset.replace(num_cells=1, layout="uniform") == Scenario()


def test_what_was_saved_before_there_were_layouts_is_uniform() -> None:
    new = {"layout", "cell_radius", "least_distance", "path_loss_exponent", "shadowing_std_db"}
    for name in ("paper", "multicell"):
        preset = Scenario.preset(name)
        values = {key: value for key, value in preset.to_dict().items() if key not in new}
        assert len(values) == len(preset.to_dict()) - 5
        assert Scenario.from_dict(values) == preset


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^scenario must be one of") as error:
        Scenario.preset("papr")
    assert "got 'papr'" in str(error.value)
    for name in PRESETS:
        assert repr(name) in str(error.value)


def test_replace_changes_only_what_is_named() -> None:
    changed = Scenario().replace(num_users=7, snr_db=3)
    assert changed == Scenario(num_users=7, snr_db=3.0)
    assert Scenario().num_users == 5


def test_unknown_parameter_is_refused_and_the_known_ones_are_listed() -> None:
    calls = (
        lambda: Scenario().replace(num_user=3, snr=1.0),
        lambda: Scenario.from_dict({"num_user": 3, "snr": 1.0}),
        lambda: resolve_scenario(None, {"num_user": 3, "snr": 1.0}),
    )
    for call in calls:
        with pytest.raises(TypeError, match="'num_user', 'snr'") as error:
            call()
        for name in Scenario.field_names():
            assert name in str(error.value)


def test_resolving_a_scenario() -> None:
    assert resolve_scenario(None, {}) == Scenario()
    assert resolve_scenario("dense", {}) == PRESETS["dense"]
    custom = Scenario(num_users=2)
    assert resolve_scenario(custom, {}) == custom
    assert resolve_scenario(custom, {"snr_db": 5.0}) == Scenario(num_users=2, snr_db=5.0)
    assert resolve_scenario("power", {"num_users": 3}) == Scenario(control="power", num_users=3)
    with pytest.raises(ValueError, match="scenario must be one of"):
        resolve_scenario("nonsense", {})
    for wrong in (3, ["num_users"], Scenario):
        with pytest.raises(TypeError, match="scenario must be a Scenario, the name of a preset"):
            resolve_scenario(wrong, {})  # type: ignore[arg-type]


def test_a_mapping_of_fields_is_a_scenario() -> None:
    """As configuration files and libraries hand it in, with lists where there are tuples."""
    nested = {"num_cells": 2, "target_angles_deg": [[-40, 0, 40], [-70.0, 0.0]], "num_users": 3}
    expected = Scenario(num_cells=2, target_angles_deg=((-40, 0, 40), (-70, 0)), num_users=3)
    assert resolve_scenario(nested, {}) == expected
    assert resolve_scenario(types.MappingProxyType(nested), {}) == expected
    assert resolve_scenario(expected.to_dict(), {}) == expected
    assert resolve_scenario(json.loads(json.dumps(expected.to_dict())), {}) == expected
    assert resolve_scenario({}, {}) == Scenario()
    assert resolve_scenario({"snr_db": 3.0}, {"snr_db": 5.0}) == Scenario(snr_db=5.0)
    # Fields that are allowed only together may come from both.
    targets = [[-40.0], [0.0], [40.0]]
    together = resolve_scenario({"target_angles_deg": targets}, {"num_cells": 3})
    assert together.targets_by_cell == ((-40.0,), (0.0,), (40.0,))
    assert resolve_scenario({"snr_db": 5.0}, {}, "three-cells") == Scenario.preset(
        "three-cells"
    ).replace(snr_db=5.0)
    assert nested["num_users"] == 3
    for wrong, kind, text in (
        ({"num_user": 3}, TypeError, r"unexpected keyword argument 'num_user'.*allowed are num_"),
        ({"num_users": 0}, ValueError, "num_users must be an integer >= 1, got 0"),
        ({3: 4}, TypeError, "keywords must be strings"),
    ):
        with pytest.raises(kind, match=text):
            resolve_scenario(wrong, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("vectorization_mode", ["sync", "vector_entry_point"])
def test_environments_take_a_mapping(vectorization_mode: str) -> None:
    fields = {"num_users": 3, "target_angles_deg": [-20.0, 30.0], "sensing_threshold": 0.3}
    env = gym.make("ISAC-MISO-v0", scenario=fields)
    assert env.unwrapped.scenario == Scenario.from_dict(fields)  # type: ignore[attr-defined]
    envs = gym.make_vec(
        "ISAC-MISO-v0",
        num_envs=2,
        vectorization_mode=vectorization_mode,
        scenario=fields,
        num_users=2,
    )
    assert envs.call("scenario")[0] == Scenario.from_dict({**fields, "num_users": 2})


def test_scenario_is_frozen_and_hashable() -> None:
    scenario = Scenario()
    with pytest.raises(dataclasses.FrozenInstanceError):
        scenario.num_users = 3  # type: ignore[misc]
    assert len({scenario, Scenario(), Scenario(num_users=4), *EXAMPLES.values()}) >= 4
    for example in EXAMPLES.values():
        hash(example)


def test_equal_values_of_other_types_make_equal_scenarios() -> None:
    plain = Scenario(num_users=3, snr_db=10.0, target_angles_deg=(-20.0, 30.0))
    other = Scenario(
        num_users=np.int64(3),  # type: ignore[arg-type]
        snr_db=10,
        target_angles_deg=[np.float64(-20), 30],  # type: ignore[arg-type]
    )
    assert other == plain
    assert hash(other) == hash(plain)
    for name, value in other.to_dict().items():
        assert type(value) is type(plain.to_dict()[name])


def test_one_nested_set_of_targets_is_that_set() -> None:
    assert Scenario(target_angles_deg=((10.0, 20.0),)) == Scenario(target_angles_deg=(10.0, 20.0))


@pytest.mark.parametrize(
    ("power", "snr_db", "noise"), [(1.0, 10.0, 0.1), (2.0, 0.0, 2.0), (1.0, -20.0, 100.0)]
)
def test_noise_power(power: float, snr_db: float, noise: float) -> None:
    assert Scenario(comm_power=power, snr_db=snr_db).noise_power == pytest.approx(noise, rel=1e-14)


def test_derived_numbers() -> None:
    scenario = Scenario(num_radar_antennas=7, num_comm_antennas=4)
    assert scenario.num_antennas == 11
    assert scenario.num_radar_streams == 7
    assert scenario.replace(radar_streams=3).num_radar_streams == 3
    assert scenario.targets_by_cell == ((-70.0, 0.0, 40.0),)
    assert scenario.replace(num_cells=2).targets_by_cell == ((-70.0, 0.0, 40.0),) * 2


# --- Attainable thresholds -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "floor"),
    [
        ({"sensing_threshold": 0.09}, 0.099),
        ({"sensing_threshold": 0.05, "target_angles_deg": (-40.0, 0.0, 40.0)}, 0.069),
        ({"sensing_threshold": 0.1, "target_angles_deg": (-50.0, 0.0, 70.0)}, 0.106),
        ({"sensing_threshold": 0.11, "num_radar_antennas": 10}, 0.118),
    ],
    ids=str,
)
def test_threshold_below_the_floor_is_refused(changes: dict[str, Any], floor: float) -> None:
    scenario = Scenario(**changes)
    with pytest.raises(ValueError, match=r"^sensing_threshold must be at least") as error:
        scenario.check_attainable()
    match = re.search(r"at least ([0-9.e-]+), .*got ([0-9.]+)$", str(error.value))
    assert match is not None
    named = float(match[1])
    assert named == pytest.approx(floor, abs=1e-3)
    assert float(match[2]) == changes["sensing_threshold"]
    scenario.replace(sensing_threshold=named).check_attainable()


def test_threshold_is_checked_for_the_targets_of_every_station() -> None:
    # 0.1 can be met for the first two stations, not for the third (0.106).
    preset = Scenario.preset("multicell").replace(sensing_threshold=0.1)
    with pytest.raises(ValueError, match=r"sensing_threshold must be at least 0\.106"):
        preset.check_attainable()
    preset.replace(sensing_threshold=0.107).check_attainable()


def test_attainable_floor_depends_on_the_waveform_only() -> None:
    below = Scenario(sensing_threshold=0.09, num_radar_antennas=20, radar_streams=20)
    below.check_attainable()
    with pytest.raises(ValueError, match="found with radar_streams=1"):
        below.replace(radar_streams=1).check_attainable()


# --- The floor of the sensing loss -----------------------------------------------------------


@pytest.mark.parametrize("power", [0.05, 0.3, 2.0])
def test_floor_of_a_single_antenna_in_closed_form(power: float) -> None:
    """R = P_R alone: the pattern is P_R everywhere, and so is every cross-correlation."""
    scenario = Scenario(num_radar_antennas=1, target_angles_deg=(-30.0, 40.0), radar_power=power)
    share = 22 / 181  # two beams of 11 directions
    error = share * (1 - power) ** 2 + (1 - share) * power**2
    assert scenario.sensing_floor() == pytest.approx((error + power,), rel=1e-9)
    squared = scenario.replace(cross_correlation="grid_sq").sensing_floor()
    assert squared == pytest.approx((error + power**2,), rel=1e-9)


@pytest.mark.parametrize(
    ("form", "targets"),
    [
        *((form, (-50.0, 10.0)) for form in reference.FORMS),
        *((form, (0.0,)) for form in ("grid_abs", "grid_sq")),
    ],
)
def test_floor_of_two_antennas_by_search(form: reference.Form, targets: tuple[float, ...]) -> None:
    """R = P_R/2·[[1, z], [z*, 1]] with abs(z) <= 1: a convex problem in two numbers."""
    scenario = Scenario(
        num_radar_antennas=2, target_angles_deg=targets, radar_power=0.5, cross_correlation=form
    )

    def loss(numbers: Any) -> float:
        z = complex(*numbers) / max(1.0, abs(complex(*numbers)))
        R = 0.25 * np.array([[1.0, z], [np.conj(z), 1.0]])
        return sum(reference.sensing_loss(R, 0.5, targets, form=form))

    starts = [(0.0, 0.0), (0.7, 0.0), (-0.7, 0.0), (0.0, 0.7), (0.0, -0.7)]
    best = min(starts, key=loss)
    found = optimize.minimize(loss, best, method="Nelder-Mead", options={"xatol": 1e-5})
    assert found.success
    assert scenario.sensing_floor() == pytest.approx((found.fun,), rel=1e-6)


def test_floor_is_where_thresholds_become_attainable() -> None:
    scenario = Scenario(num_radar_antennas=5, target_angles_deg=(-20.0, 35.0), radar_power=1.0)
    (floor,) = scenario.sensing_floor()
    scenario.replace(sensing_threshold=floor * (1 + 1e-9)).check_attainable()
    with pytest.raises(ValueError, match=r"^sensing_threshold must be at least"):
        scenario.replace(sensing_threshold=floor * (1 - 1e-4)).check_attainable()
    rng = np.random.default_rng(0)
    for _ in range(200):
        V = reference.feasible_streams(rng, 5, 1.0)
        assert sum(reference.sensing_loss(V @ V.conj().T, 0.5, (-20.0, 35.0))) > floor


def test_floor_depends_on_the_waveform_only() -> None:
    base = Scenario(num_radar_antennas=3, target_angles_deg=(10.0,), radar_power=0.6)
    (floor,) = base.sensing_floor()
    for changes in (
        {"num_users": 2, "num_comm_antennas": 3, "snr_db": -5.0, "comm_power": 3.0},
        {"sensing_threshold": floor / 2},  # one that is itself not attainable
        {"control": "power", "radar": "fixed", "doppler": 0.1, "csi_error_variance": 0.2},
    ):
        assert base.replace(**changes).sensing_floor() == (floor,)
    for changes in ({"radar_power": 0.9}, {"beam_width_deg": 30.0}, {"antenna_spacing": 0.4}):
        assert base.replace(**changes).sensing_floor() != pytest.approx((floor,), rel=1e-3)
    assert base.replace(radar_streams=1).sensing_floor()[0] >= floor * (1 - 1e-9)


def test_every_station_has_its_floor() -> None:
    targets = ((-40.0,), (10.0, 50.0), (-40.0,))
    cells = Scenario(num_cells=3, num_radar_antennas=3, radar_power=0.6, target_angles_deg=targets)
    floors = cells.sensing_floor()
    alone = [
        cells.replace(num_cells=1, target_angles_deg=held).sensing_floor()[0] for held in targets
    ]
    assert floors == tuple(alone)
    assert floors[0] == floors[2] != floors[1]
    # One threshold holds for all stations.
    cells.replace(sensing_threshold=max(floors) * (1 + 1e-9)).check_attainable()
    with pytest.raises(ValueError, match=r"^sensing_threshold must be at least"):
        cells.replace(sensing_threshold=sum(floors) / 3).check_attainable()


def test_importing_the_scenario_is_light() -> None:
    code = (
        "import sys\n"
        "from isac_gym.scenario import Scenario\n"
        "Scenario(num_users=3).replace(snr_db=4.0).to_dict()\n"
        "heavy = {'torch', 'scipy', 'stable_baselines3', 'matplotlib', 'numba'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
