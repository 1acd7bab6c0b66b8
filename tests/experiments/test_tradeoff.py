"""The trade-off: what must hold between its designs at every threshold, its files, its figure."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from matplotlib.axes import Axes

import isac_gym
from isac_gym import RayleighChannel, RicianChannel, Scenario
from isac_gym.baselines import joint_upper_bound
from isac_gym.evaluation import evaluation_set
from isac_gym.experiments import run_experiment
from isac_gym.experiments.style import save_figure
from isac_gym.experiments.tradeoff import FACTORS, TradeOff
from isac_gym.registry import CHANNELS

SCENARIO = Scenario(
    num_users=2,
    num_comm_antennas=4,
    num_radar_antennas=4,
    radar_power=0.8,
    target_angles_deg=(0.0,),
)
BOUND, JOINT, MEAN = "upper bound", "joint, ε on every channel", "joint, ε on the mean"
NULLING, DECOUPLED, CORNER = "null steering", "decoupled", "communication only"
SILENT = "without radar"
SWEPT = (BOUND, JOINT, MEAN, NULLING)
COUNT = 10
# Searches end in local optima; a mean over channels may be that much off the best one's.
SLACK = 0.01


class Found:
    """A trade-off that was computed: the table, and its rows by design."""

    def __init__(self, scenario: Scenario, **settings: Any) -> None:
        self.lines: list[str] = []
        self.experiment = TradeOff(scenario=scenario, **settings)
        self.table = run_experiment(self.experiment, report=self.lines.append)
        self.points = [SimpleNamespace(**row) for row in self.table.rows]
        self.settings = self.table.settings
        self.floors = scenario.sensing_floor()

    @property
    def without_radar(self) -> float:
        return float(self.of(SILENT)[0].spectral_efficiency)

    def of(self, design: str) -> list[Any]:
        """The points of a design, by threshold."""
        found = [point for point in self.points if point.design == design]
        return sorted(found, key=lambda point: point.threshold or 0.0)


@pytest.fixture(scope="module")
def floor() -> float:
    return SCENARIO.sensing_floor()[0]


@pytest.fixture(params=["beamforming", "power"])
def control(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def limits(floor: float) -> list[float]:
    return [floor * factor for factor in (1.03, 1.3, 1.7)]


@pytest.fixture(scope="module")
def both(limits: list[float]) -> dict[str, Found]:
    """The trade-off of each control mode on the same channels."""
    options: dict[str, Any] = {"channels": COUNT, "subdivisions": 2, "evaluation_seed": 3}
    return {
        control: Found(SCENARIO.replace(control=control), thresholds=limits, **options)
        for control in ("beamforming", "power")
    }


@pytest.fixture
def found(both: dict[str, Found], control: str) -> Found:
    return both[control]


@pytest.fixture(scope="module")
def part(floor: float) -> Found:
    """A bound on the first channels alone."""
    return Found(
        SCENARIO,
        thresholds=[1.3 * floor],
        channels=3,
        bound_channels=2,
        subdivisions=1,
        evaluation_seed=4,
    )


@pytest.fixture(scope="module")
def tiny(floor: float) -> Found:
    """Two thresholds and no bound."""
    return Found(
        SCENARIO,
        thresholds=[1.5 * floor, 1.2 * floor],
        channels=4,
        bound_channels=0,
        evaluation_seed=1,
    )


def rates(found: Found, design: str) -> list[float]:
    return [point.spectral_efficiency for point in found.of(design)]


# What holds between the designs


def test_all_designs_at_every_threshold(found: Found, limits: list[float]) -> None:
    for design in SWEPT:
        assert [point.threshold for point in found.of(design)] == limits
    for design in (DECOUPLED, CORNER):
        (point,) = found.of(design)
        assert point.threshold is None
    assert len(found.points) == 4 * 3 + 3
    assert len([line for line in found.lines if line]) == len(found.points)
    assert found.lines[1] == f"design {JOINT}, threshold {limits[0]} (2 of 15)"
    assert found.of("nosuch") == []
    for point in found.points:
        assert point.channels == COUNT
        assert point.seconds > 0
        assert point.confidence_low < point.spectral_efficiency < point.confidence_high
    assert found.floors == SCENARIO.sensing_floor()


def test_the_threshold_is_kept_on_every_channel(found: Found) -> None:
    for design in (JOINT, NULLING):
        for point in found.of(design):
            assert -1.0 < point.worst_excess <= 1e-4
            assert point.sensing_loss <= point.threshold * (1 + 1e-4)
            assert point.sensing_loss >= found.floors[0] * (1 - 1e-5)
    for point in found.points:
        if point.design not in (JOINT, NULLING):
            assert point.worst_excess is None


def test_nothing_that_keeps_the_threshold_exceeds_the_bound(found: Found) -> None:
    for design in (JOINT, NULLING):
        for rate, bound in zip(rates(found, design), rates(found, BOUND), strict=True):
            assert rate <= bound * (1 + 1e-5)
    # A bound that is far off would hold as well.
    assert rates(found, JOINT)[0] > 0.8 * rates(found, BOUND)[0]


def test_a_looser_threshold_costs_no_rate(found: Found) -> None:
    for design in (BOUND, JOINT, MEAN):
        values = rates(found, design)
        assert all(later >= rate - SLACK for rate, later in itertools.pairwise(values))
        assert values[-1] > values[0] + 0.2


def test_the_mean_meets_the_threshold_where_it_binds(found: Found) -> None:
    (corner,) = found.of(CORNER)
    for point in found.of(MEAN):
        assert corner.sensing_loss > 1.2 * point.threshold, "would not bind"
        # One channel of 10 that changes its optimum moves the mean by a few percent.
        assert point.sensing_loss == pytest.approx(point.threshold, rel=0.03)


def test_a_constraint_on_the_mean_is_weaker_than_on_every_channel(found: Found) -> None:
    for point, strict in zip(found.of(MEAN), found.of(JOINT), strict=True):
        # For as much as the mean is off ε, at the rate's slope by ε: a few bit/s/Hz for ε itself.
        off = 5.0 * abs(point.sensing_loss / point.threshold - 1.0)
        assert point.spectral_efficiency >= strict.spectral_efficiency - SLACK - off


def test_null_steering_is_not_better_than_the_joint_optimum(found: Found) -> None:
    for rate, joint in zip(rates(found, NULLING), rates(found, JOINT), strict=True):
        assert rate <= joint + SLACK
    assert rates(found, JOINT)[1] > rates(found, NULLING)[1] + 0.02


def test_nothing_exceeds_the_rate_without_radar(found: Found) -> None:
    for point in found.points:
        if point.design != BOUND:
            assert point.spectral_efficiency <= found.without_radar + SLACK


def test_the_rate_without_radar_is_within_closed_forms(found: Found, control: str) -> None:
    """Not below zero forcing and one user alone; not above users that do not interfere."""
    G = evaluation_set(SCENARIO, RayleighChannel(), COUNT, 3).channels[:, 0, 0, 0, :, 4:]
    G = G.astype(np.complex128)
    snr = 1 / SCENARIO.noise_power
    gains = np.sum(np.abs(G) ** 2, -1)
    alone = np.log2(1 + snr * gains.max(-1))
    free = [max(np.log2(1 + snr * s * gain).sum() for s in shares()) for gain in gains]
    assert found.without_radar <= np.mean(free) * (1 + 1e-9)
    inverse = np.linalg.pinv(G)
    forced = np.log2(1 + snr / 2 / np.sum(np.abs(inverse) ** 2, -2)).sum(-1)
    matched = G.conj().swapaxes(-1, -2) / np.linalg.norm(G, axis=-1)[:, None]
    mrt = [equal_power_rate(G[index], matched[index]) for index in range(COUNT)]
    lower = forced if control == "beamforming" else np.array(mrt)
    # One start a channel: a local optimum may stay below on single channels.
    assert found.without_radar >= np.mean(lower)
    assert found.without_radar >= np.mean(alone)


def shares() -> npt.NDArray[np.float64]:
    first = np.linspace(0.0, 1.0, 2001)
    return np.stack([first, 1 - first], -1)


def equal_power_rate(G: Any, directions: Any) -> float:
    silent = np.zeros((1, 4, 4))
    H = np.concatenate([np.zeros((2, 4)), G], -1)[None, None]
    ratio = reference.sinr(H, directions[None] * np.sqrt(0.5), silent, SCENARIO.noise_power)
    return float(reference.spectral_efficiency(ratio).sum())


def test_the_corners(found: Found) -> None:
    (decoupled,), (corner,) = found.of(DECOUPLED), found.of(CORNER)
    assert decoupled.sensing_loss == pytest.approx(found.floors[0], rel=1e-5)
    assert corner.sensing_loss > 1.5 * found.floors[0]
    for point in found.points:
        if point.design not in (BOUND, CORNER, SILENT):
            assert point.spectral_efficiency <= corner.spectral_efficiency + SLACK
            assert point.spectral_efficiency >= decoupled.spectral_efficiency - SLACK


def test_at_the_floor_only_the_best_beampattern_is_left(floor: float) -> None:
    found = Found(SCENARIO, thresholds=[1.0005 * floor], channels=4, bound_channels=0)
    (decoupled,) = found.of(DECOUPLED)
    for design in (JOINT, NULLING):
        (point,) = found.of(design)
        assert floor * (1 - 1e-5) <= point.sensing_loss <= 1.0006 * floor
        assert point.worst_excess <= 1e-4
        near = decoupled.spectral_efficiency
        assert near - SLACK <= point.spectral_efficiency < near + 0.25


def test_power_control_cannot_beat_beamforming(both: dict[str, Found]) -> None:
    power, beamforming = both["power"], both["beamforming"]
    assert power.settings["evaluation_set"] == beamforming.settings["evaluation_set"]
    for design in (JOINT, MEAN, NULLING, DECOUPLED, CORNER):
        pairs = zip(rates(power, design), rates(beamforming, design), strict=True)
        assert all(rate <= more + SLACK for rate, more in pairs)


# Options


def test_the_same_seed_gives_the_same_result(tiny: Found, floor: float) -> None:
    def numbers(result: Found) -> Any:
        rows = [{**row, "seconds": None} for row in result.table.rows]
        return result.settings, rows

    options: dict[str, Any] = {"thresholds": [1.5 * floor, 1.2 * floor], "bound_channels": 0}
    again = Found(SCENARIO, channels=4, evaluation_seed=1, **options)
    assert numbers(again) == numbers(tiny)


def test_the_seed_changes_the_channels(tiny: Found, part: Found) -> None:
    assert part.settings["evaluation_set"] != tiny.settings["evaluation_set"]
    assert not set(rates(part, JOINT)) & set(rates(tiny, JOINT))


def test_without_bound_channels_the_bound_is_left_out(tiny: Found) -> None:
    assert tiny.of(BOUND) == []
    designs = {JOINT, MEAN, NULLING, DECOUPLED, CORNER, SILENT}
    assert {point.design for point in tiny.points} == designs


def test_points_of_a_design_come_by_threshold(tiny: Found) -> None:
    given = [point.threshold for point in tiny.points if point.design == JOINT]
    assert given == sorted(given, reverse=True)
    assert [point.threshold for point in tiny.of(JOINT)] == sorted(given)


def test_the_bound_on_the_first_channels(part: Found, floor: float) -> None:
    (point,) = part.of(BOUND)
    assert point.channels == part.settings["bound_channels"] == 2
    assert part.of(JOINT)[0].channels == part.settings["channels"] == 3
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO.replace(sensing_threshold=1.3 * floor))
    blocks = evaluation_set(SCENARIO, RayleighChannel(), 3, 4)
    expected = joint_upper_bound(env, torch.from_numpy(blocks.channels[:2, 0]), subdivisions=1)
    assert point.spectral_efficiency == pytest.approx(float(expected.upper_bound.mean()), rel=1e-9)


def test_the_channel_model_is_used(floor: float) -> None:
    model = RicianChannel(3.0)
    options: dict[str, Any] = {"thresholds": [1.3 * floor], "bound_channels": 0}
    found = Found(SCENARIO, channel_model=model, channels=3, evaluation_seed=2, **options)
    expected = evaluation_set(SCENARIO, model, 3, 2)
    assert found.settings["evaluation_set"] == expected.digest
    assert found.settings["channel_model"] == CHANNELS.describe(model)


def test_by_default_the_thresholds_are_multiples_of_the_floor(
    monkeypatch: pytest.MonkeyPatch, floor: float
) -> None:
    monkeypatch.setattr("isac_gym.experiments.tradeoff.FACTORS", FACTORS[:1] + FACTORS[-1:])
    found = Found(SCENARIO, channels=2, bound_channels=0)
    low, high = (point.threshold for point in found.of(JOINT))
    assert floor < low < 1.001 * floor
    assert high == pytest.approx(2 * floor)
    assert found.of(JOINT)[0].worst_excess <= 1e-4


def test_settings_say_what_was_computed(found: Found, control: str) -> None:
    settings = found.settings
    assert Scenario.from_dict(settings["scenario"]) == SCENARIO.replace(control=control)
    assert (settings["channels"], settings["evaluation_seed"]) == (COUNT, 3)
    assert settings["subdivisions"] == 2
    assert settings["bound_channels"] is None
    assert settings["experiment"] == "tradeoff"
    assert settings["versions"]["isac-gym"] == isac_gym.__version__
    assert settings["floors"] == list(found.floors)
    digest = evaluation_set(SCENARIO, RayleighChannel(), COUNT, 3).digest
    assert settings["evaluation_set"] == digest


# Channels that are not known, or not independent


@pytest.mark.parametrize("seed", [4, 11])
def test_the_bound_is_one_for_the_true_channels(seed: int) -> None:
    """One user, one antenna: a true channel that is stronger than its estimate."""
    scenario = Scenario(
        num_users=1,
        num_comm_antennas=1,
        num_radar_antennas=2,
        radar_power=0.1,
        target_angles_deg=(0.0,),
        csi_error_variance=1.0,
    )
    found = Found(
        scenario,
        thresholds=[1.02 * scenario.sensing_floor()[0]],
        channels=1,
        subdivisions=0,
        evaluation_seed=seed,
    )
    assert rates(found, NULLING)[0] <= rates(found, BOUND)[0] + 1e-4


def test_the_bound_of_correlated_channels_says_how_many_it_is_for(floor: float) -> None:
    scenario = SCENARIO.replace(doppler=0.1, episode_length=3)
    found = Found(scenario, thresholds=[1.05 * floor], channels=6, subdivisions=0)
    assert found.settings["channels"] == 6
    assert found.of(BOUND)[0].channels == 6


def test_the_bound_of_several_cells_is_that_of_each_alone(floor: float) -> None:
    scenario = SCENARIO.replace(num_cells=2, target_angles_deg=((0.0,), (30.0,)))
    floors = scenario.sensing_floor()
    found = Found(scenario, thresholds=[1.2 * max(floors)], channels=3, subdivisions=1)
    (bound,) = found.of(BOUND)
    assert bound.channels == 3
    # What other cells send only disturbs.
    for point in found.of(JOINT):
        assert point.spectral_efficiency < bound.spectral_efficiency
    H = torch.from_numpy(evaluation_set(scenario, RayleighChannel(), 3, 7).channels[:, 0])
    alone = 0.0
    for station, targets in enumerate(scenario.targets_by_cell):
        held = SCENARIO.replace(target_angles_deg=targets, sensing_threshold=1.2 * max(floors))
        own = H[:, station : station + 1, station : station + 1]
        env = gym.make("ISAC-MISO-v0", scenario=held)
        alone += float(joint_upper_bound(env, own, subdivisions=1).upper_bound.mean())
    assert bound.spectral_efficiency == pytest.approx(alone, rel=3e-3)
    assert found.floors == floors
    assert found.floors[0] == pytest.approx(floor)
    assert found.of(JOINT)[0].worst_excess <= 1e-4
    (decoupled,) = found.of(DECOUPLED)
    assert decoupled.sensing_loss == pytest.approx(np.mean(floors), rel=1e-5)


def test_contention_is_not_compared_with_users_that_all_transmit(floor: float) -> None:
    scenario = SCENARIO.replace(scheduling="contention")
    found = Found(
        scenario, thresholds=[1.05 * floor], channels=3, subdivisions=1, evaluation_seed=2
    )
    (bound,) = found.of(BOUND)
    assert bound.spectral_efficiency > found.of(JOINT)[0].spectral_efficiency
    # Only a user that is alone in its block gets through: at best the stronger one.
    H = evaluation_set(scenario, RayleighChannel(), 3, 2).channels[:, 0, 0, 0]
    gains = np.sum(np.abs(H[..., 4:]) ** 2, -1).max(-1)
    best = np.mean(np.log2(1 + gains / scenario.noise_power))
    for point in found.points:
        assert point.design == BOUND or point.spectral_efficiency <= best * (1 + 1e-5)
    assert found.without_radar == pytest.approx(best, rel=1e-4)


# Files


def test_csv_round_trip(found: Found, tmp_path: Path) -> None:
    found.table.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, found.table.rows, strict=True):
        assert list(row) == list(expected)
        assert row == {name: "" if v is None else str(v) for name, v in expected.items()}


def strict(text: str) -> Any:
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=no_constants)


def test_json_round_trip(found: Found, tmp_path: Path) -> None:
    found.table.to_json(tmp_path / "table.json")
    content = strict((tmp_path / "table.json").read_text())
    assert content["settings"] == json.loads(json.dumps(found.settings))
    assert content["rows"] == list(found.table.rows)


def test_a_single_channel_has_no_interval_and_json_is_strict(floor: float, tmp_path: Path) -> None:
    found = Found(SCENARIO, thresholds=[1.3 * floor], channels=1, bound_channels=9, subdivisions=0)
    assert found.of(BOUND)[0].channels == 1
    assert found.of(JOINT)[0].confidence_high == math.inf
    save_figure(found.experiment.draw(found.table), tmp_path / "single.png")
    found.table.to_json(tmp_path / "table.json")
    content = strict((tmp_path / "table.json").read_text())
    assert content["rows"][0]["confidence_low"] is None


def test_the_table(found: Found) -> None:
    text = str(found.table)
    assert found.settings["evaluation_set"] in text
    assert f"{COUNT} channels, seed 3" in text
    assert f"{found.without_radar:.3f}" in text
    assert "nan" not in text
    for point in found.points:
        lines = [line for line in text.splitlines() if f" {point.design} " in line]
        assert any(f"{point.spectral_efficiency:.3f}" in line for line in lines)


def drawn(figure: Any) -> Axes:
    (axes,) = figure.axes
    assert isinstance(axes, Axes)
    return axes


def test_the_figure(found: Found, limits: list[float], tmp_path: Path) -> None:
    figure = found.experiment.draw(found.table)
    axes = drawn(figure)
    assert "sensing threshold" in axes.get_xlabel()
    assert axes.get_ylabel() == "spectral efficiency (bit/s/Hz)"
    for part in ("K = 2", "M_C = 4", "M_R = 4", "10 dB", f"{COUNT} channels"):
        assert part in axes.get_title()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "upper bound, ε on every channel",
        MEAN,
        JOINT,
        NULLING,
        "decoupled: best beampattern, WMMSE",
    ]
    lines = {line.get_label(): line for line in axes.get_lines()}
    for design in (JOINT, MEAN, NULLING):
        assert list(lines[design].get_xdata()) == limits  # type: ignore[arg-type]
        assert list(lines[design].get_ydata()) == rates(found, design)  # type: ignore[arg-type]
    stars = [line for line in axes.get_lines() if line.get_marker() == "*"]
    corners = [found.of(design)[0] for design in (DECOUPLED, CORNER)]
    assert [(float(s.get_xdata()[0]), float(s.get_ydata()[0])) for s in stars] == [  # type: ignore[index]
        (point.sensing_loss, point.spectral_efficiency) for point in corners
    ]
    assert axes.get_ylim()[0] == 0
    path = tmp_path / "new" / "tradeoff.png"
    save_figure(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [p.name for p in path.parent.iterdir()] == ["tradeoff.png"]


def test_the_figure_without_a_bound_and_with_a_bound_on_some_channels(
    tiny: Found, part: TradeOff
) -> None:
    legend = drawn(tiny.experiment.draw(tiny.table)).get_legend()
    assert legend is not None
    assert not any("bound" in text.get_text() for text in legend.get_texts())
    legend = drawn(part.experiment.draw(part.table)).get_legend()
    assert legend is not None
    assert "(first 2 channels)" in legend.get_texts()[0].get_text()


# Errors


def test_a_threshold_below_the_floor_names_the_floor(floor: float) -> None:
    with pytest.raises(ValueError, match="sensing_threshold must be at least") as error:
        TradeOff(scenario=SCENARIO, thresholds=[1.5 * floor, 0.9 * floor]).points()
    named = float(str(error.value).split("at least ")[1].split(",")[0])
    assert floor <= named <= floor * 1.002
    assert repr(0.9 * floor) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"radar": "fixed"}, {}, "radar 'learned', got 'fixed'"),
        ({"control": "amplitude"}, {}, "control must be .*got 'amplitude'"),
        ({}, {"bound_channels": -1}, "bound_channels must be an integer >= 0, got -1"),
        ({}, {"bound_channels": 1.5}, "bound_channels must be an integer >= 0"),
        ({}, {"channels": 0}, "channels must be an integer >= 1, got 0"),
        ({}, {"channels": 2.5}, "channels must be an integer >= 1"),
        ({}, {"subdivisions": -1}, "subdivisions must be an integer >= 0, got -1"),
        ({}, {"thresholds": []}, "thresholds must hold at least one value"),
        ({}, {"thresholds": [0.0]}, "sensing_threshold must be a finite number > 0"),
        ({}, {"thresholds": [-0.1]}, "thresholds must be a number >= 0, got -0.1"),
        ({}, {"thresholds": [0.15, math.nan]}, "thresholds must be a number >= 0, got nan"),
    ],
    ids=str,
)
def test_what_is_not_allowed(
    changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"thresholds": [0.15], "channels": 2, "subdivisions": 0, **options}
    with pytest.raises(ValueError, match=message):
        Found(SCENARIO.replace(**changes), **given)


@pytest.mark.parametrize("kind", [list, tuple])
def test_thresholds_may_be_any_sequence(kind: Any, floor: float) -> None:
    found = Found(
        SCENARIO, thresholds=kind([1.2 * floor, 1.5 * floor]), channels=1, bound_channels=0
    )
    assert [p.threshold for p in found.of(JOINT)] == pytest.approx([1.2 * floor, 1.5 * floor])
