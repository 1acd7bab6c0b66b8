"""Observations by features: against the formulas, and what they do not change with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from direct_model import SMALL, directions

from isac_gym import Scenario
from isac_gym.system.downlink import ISACSystem
from isac_gym.system.features import FeatureLayout, Features
from isac_gym.system.stations import view_from_stations

MODES: list[dict[str, Any]] = [
    {"control": "structured"},
    {"control": "structured", "radar": "fixed"},
    {"control": "power", "radar": "fixed"},
    {"control": "power", "radar": "fixed", "precoder_directions": "rzf"},
]
Complex = npt.NDArray[np.complex128]


def make(**changes: Any) -> ISACSystem:
    scenario = Scenario(**{**SMALL, "observation": "features", **changes})
    return ISACSystem(scenario, dtype=torch.float64)


def views_of(system: ISACSystem, batch: int = 2) -> Complex:
    rng = np.random.default_rng(3)
    drawn = reference.complex_normal(rng, batch, *system.codec.deployment.shape)
    return view_from_stations(torch.from_numpy(drawn)).numpy()


def described(system: ISACSystem, views: Complex) -> tuple[Any, Any]:
    scenario = system.scenario
    features = Features(scenario, system.best_streams()).describe(torch.from_numpy(views))
    layout = FeatureLayout.of(scenario, views.shape[2])
    assert features.shape[-1] == layout.size
    users, pairs = layout.split(features)
    names = zip(layout.user_names, users.unbind(-1), strict=True)
    pair_names = zip(layout.pair_names, pairs.unbind(-1), strict=True)
    return (
        {name: value.numpy() for name, value in names},
        {name: value.numpy() for name, value in pair_names},
    )


def decades(power: float, scenario: Scenario) -> float:
    return float(np.log10(1.0 + power / scenario.noise_power))


def cosine(one: Complex, other: Complex) -> float:
    return float(abs(np.vdot(one, other)) / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.mark.parametrize("cells", [1, 3])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_feature_is_that_of_its_formula(mode: dict[str, Any], cells: int) -> None:
    system = make(**mode, num_cells=cells)
    scenario, views = system.scenario, views_of(system)
    users, pairs = described(system, views)
    antennas = scenario.num_radar_antennas
    best = system.best_streams().numpy()
    for block, station in np.ndindex(len(views), cells):
        rows = views[block, station].reshape(-1, views.shape[-1])
        f, g = rows[:, :antennas], rows[:, antennas:]
        for user in range(len(rows)):
            at = (block, station, user)
            waveform = np.sum(np.abs(f[user] @ best[station]) ** 2)
            assert users["radar"][at] == pytest.approx(decades(waveform, scenario))
            if "gain" in users:
                power = scenario.comm_power * np.sum(np.abs(g[user]) ** 2)
                assert users["gain"][at] == pytest.approx(decades(power, scenario))
            if "even_radar" in users:
                power = scenario.radar_power / antennas * np.sum(np.abs(f[user]) ** 2)
                assert users["even_radar"][at] == pytest.approx(decades(power, scenario))
            for own in range(scenario.num_users):
                pair = (block, station, own, user)
                if "stream" in pairs:
                    columns = directions(scenario, g[: scenario.num_users])
                    power = scenario.comm_power * abs(g[user] @ columns[:, own]) ** 2
                    assert pairs["stream"][pair] == pytest.approx(decades(power, scenario))
                else:
                    assert pairs["alignment"][pair] == pytest.approx(cosine(g[own], g[user]))
                if "radar_alignment" in pairs:
                    assert pairs["radar_alignment"][pair] == pytest.approx(cosine(f[own], f[user]))
    learned = scenario.radar == "learned"
    assert ("even_radar" in users, "radar_alignment" in pairs) == (learned, learned)
    assert ("gain" in users) == ("alignment" in pairs) == (scenario.control == "structured")


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_phases_of_channels_change_no_feature_and_no_reward(mode: dict[str, Any]) -> None:
    system = make(**mode)
    views = views_of(system, 5)
    rng = np.random.default_rng(1)
    antennas = system.scenario.num_radar_antennas
    turned = views.copy()
    for part in (slice(None, antennas), slice(antennas, None)):
        phases = np.exp(2j * np.pi * rng.random((*views.shape[:-1], 1)))
        turned[..., part] *= phases
    codec = system.codec
    seen = codec.observation(views)
    np.testing.assert_allclose(codec.observation(turned), seen, rtol=1e-6)
    action = torch.from_numpy(rng.uniform(-1, 1, (5, codec.action_size)))
    outcomes = [system.transmit(torch.from_numpy(each), action) for each in (views, turned)]
    torch.testing.assert_close(outcomes[0].rates, outcomes[1].rates)
    assert float(outcomes[0].rates.min()) > 0


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_users_in_another_order_are_the_same_in_another_order(mode: dict[str, Any]) -> None:
    system = make(**mode)
    views = views_of(system, 4)
    order = [2, 0, 1]
    before, after = described(system, views), described(system, views[..., order, :])
    for name, value in before[0].items():
        np.testing.assert_allclose(after[0][name], value[..., order], rtol=1e-12)
    for name, value in before[1].items():
        np.testing.assert_allclose(after[1][name], value[..., order, :][..., order], rtol=1e-12)
    numbers = system.codec.action_size // 3
    action = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (4, numbers, 3)))
    rates = [
        system.transmit(torch.from_numpy(each), given.flatten(1)).rates
        for each, given in ((views, action), (views[..., order, :], action[..., order]))
    ]
    torch.testing.assert_close(rates[1], rates[0][..., order])


def test_a_channel_that_vanishes_has_finite_features() -> None:
    system = make(control="structured")
    views = views_of(system)
    views[:, :, :, 1] = 0.0
    seen = system.codec.observation(views.astype(np.complex64))
    assert np.isfinite(seen).all()
    action = torch.zeros(len(views), system.codec.action_size, dtype=torch.float64)
    assert torch.isfinite(system.transmit(torch.from_numpy(views), action).rates).all()


def test_channels_cannot_be_had_of_features() -> None:
    codec = make(control="structured").codec
    with pytest.raises(ValueError, match=r"observation must be 'channels'.*got 'features'"):
        codec.channels(torch.zeros(1, codec.observation_size))
