"""Stations without messages: locality, what the price does, and how the constants are found."""

from __future__ import annotations

import math
from typing import Any

import direct_model
import numpy as np
import pytest
import torch
from small_network import drawn_by_model as drawn
from small_network import make_tight as make

from isac_gym.baselines import leakage
from isac_gym.baselines.joint import JointOracle
from isac_gym.baselines.leakage import LeakagePriced
from isac_gym.baselines.network import JointNetwork, NetworkDesign
from isac_gym.physics.links import link_powers
from isac_gym.registry import AGENTS, make_agent
from isac_gym.system.downlink import find_system

FEW: dict[str, Any] = {"num_starts": 4, "iterations": 40}


def leaked(channels: torch.Tensor, design: NetworkDesign) -> float:
    """Mean power that users receive from the stations of other cells."""
    assert design.precoders is not None
    powers = link_powers(channels, design.precoders, design.streams)
    assert powers.intercell is not None
    return float(powers.intercell.mean())


def test_a_station_acts_on_its_own_channels_alone() -> None:
    """Bit for bit: whatever the other stations' channels are."""
    env = make()
    codec = find_system(env).codec
    agent = LeakagePriced(env, leakage_price=0.7, interference=0.3, **FEW)
    channels = drawn(env, 5)
    size = codec.station_size
    before, _ = agent.predict(codec.observation(channels.numpy()))
    for station in range(3):
        changed = drawn(env, 5, seed=1) * 3.0
        changed[:, station] = channels[:, station]
        after, _ = agent.predict(codec.observation(changed.numpy()))
        own = slice(station * size, (station + 1) * size)
        np.testing.assert_array_equal(after[:, own], before[:, own])
        others = np.delete(after, np.arange(own.start, own.stop), axis=1)
        assert (others != np.delete(before, np.arange(own.start, own.stop), axis=1)).mean() > 0.9
    assert agent.bits_per_link == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"radar_streams": 2},
        {"layout": "line", "num_cells": 2, "target_angles_deg": (-50.0, 10.0)},
    ],
    ids=str,
)
def test_every_constraint_holds_and_what_is_reported_is_true(changes: dict[str, Any]) -> None:
    env = make(**changes)
    codec, scenario = find_system(env).codec, env.unwrapped.scenario
    channels = drawn(env, 5)
    agent = LeakagePriced(env, leakage_price=0.5, interference=0.4, **FEW)
    design = agent.solve(channels)
    actions, _ = agent.predict(codec.observation(channels.numpy()))
    for index, (H, action) in enumerate(
        zip(channels.numpy().astype(np.complex128), actions, strict=True)
    ):
        F, R, access = direct_model.decode(scenario, action, H)
        assert R is not None
        row = direct_model.earned(scenario, H, F, R, access)
        assert row["constraint_sensing"].max() <= 1e-4
        assert row["constraint_power"].max() <= 1e-5
        np.testing.assert_allclose(design.rate[index], row["rates"].sum(-1), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(design.excess[index], row["constraint_sensing"], atol=1e-4)
    assert float(design.stationarity.median()) < 1e-2


def test_without_a_price_a_station_is_selfish() -> None:
    env = make(intercell_gain=0.1)
    channels = drawn(env, 20)
    agent = LeakagePriced(env, leakage_price=0.0, interference=0.0, num_starts=24)
    ours, alone = agent.solve(channels), JointOracle(env).solve(channels)
    # Rates without the other stations' interference, which such stations know nothing of.
    assert ours.precoders is not None
    powers = link_powers(channels, ours.precoders, ours.streams)
    ratio = powers.signal / (powers.multiuser + powers.radar + env.unwrapped.scenario.noise_power)
    rate = torch.log2(1 + ratio).sum(-1)
    assert float((rate / alone.rate).mean()) == pytest.approx(1.0, abs=3e-3)
    assert float((rate / alone.rate - 1).abs().median()) < 5e-4


def test_the_higher_the_price_the_less_leaks() -> None:
    env = make()
    channels = drawn(env, 8)
    found = [
        LeakagePriced(env, leakage_price=price, interference=0.3, **FEW).solve(channels)
        for price in (0.0, 0.5, 3.0, 100.0)
    ]
    power = [leaked(channels, design) for design in found]
    assert power[0] > 1.05 * power[1] > 1.05**2 * power[2]
    assert power[2] > power[3]
    # At a price that no rate is worth, the stations are silent but for their radars.
    assert float(found[0].powers.sum(-1).min()) > 0.9
    assert float(found[3].powers.sum(-1).mean()) < 0.3


def test_the_constants_suit_other_channels() -> None:
    env = make()
    agent = LeakagePriced(env, tuning_channels=24, **FEW)
    price, level = agent.leakage_price, agent.interference
    assert price > 0.0
    again = LeakagePriced(env, tuning_channels=24, **FEW)
    assert (again.leakage_price, again.interference) == (price, level)
    channels = drawn(env, 40, seed=3)
    design = agent.solve(channels)
    assert design.precoders is not None
    # What is reckoned with is what is received, on channels that it was not found on.
    powers = link_powers(channels, design.precoders, design.streams)
    assert powers.intercell is not None
    assert powers.intercell.mean((0, 2)).tolist() == pytest.approx(level, rel=0.15)
    tuned = float(design.rate.mean())

    def earn(price: float, level: tuple[float, ...]) -> float:
        other = LeakagePriced(env, leakage_price=price, interference=level, **FEW)
        return float(other.solve(channels).rate.mean())

    assert tuned > 1.05 * earn(0.0, (0.0,) * 3)
    for factor in (0.2, 5.0):
        assert tuned > earn(factor * price, level)
    best = JointNetwork(env, num_starts=8).solve(channels)
    assert tuned < float(best.rate.mean())


def test_where_nothing_leaks_there_is_no_price() -> None:
    env = make(intercell_gain=0.0)
    agent = LeakagePriced(env, tuning_channels=4, **FEW)
    assert agent.leakage_price == 0.0
    assert agent.interference == (0.0, 0.0, 0.0)
    single = make(num_cells=1, target_angles_deg=(-50.0, 10.0))
    agent = LeakagePriced(single, tuning_channels=4, num_starts=24)
    assert (agent.leakage_price, agent.interference) == (0.0, (0.0,))
    channels = drawn(single, 16)
    ratio = agent.solve(channels).rate / JointOracle(single).solve(channels).rate
    assert float(ratio.mean()) == pytest.approx(1.0, abs=3e-3)


def test_stations_may_reckon_with_interference_of_their_own() -> None:
    env = make()
    channels = drawn(env, 3)
    each = LeakagePriced(env, leakage_price=0.5, interference=(0.1, 0.4, 2.0), **FEW)
    assert each.interference == (0.1, 0.4, 2.0)
    design = each.solve(channels)
    assert design.precoders is not None
    for station, level in enumerate(each.interference):
        same = LeakagePriced(env, leakage_price=0.5, interference=level, **FEW)
        assert same.interference == (level,) * 3
        found = same.solve(channels).precoders
        assert found is not None
        assert torch.equal(found[:, station], design.precoders[:, station])


@pytest.mark.parametrize(
    ("values", "vertex"),
    [
        ((1.0, 2.0, 1.0), 0.0),
        ((0.0, 1.0, 1.0), 0.5),
        ((1.0, 1.0, 0.0), -0.5),
        ((0.0, 1.0, 3.0), 0.0),
        ((0.0, 0.0, 0.0), 0.0),
    ],
)
def test_the_vertex_of_a_parabola(values: tuple[float, float, float], vertex: float) -> None:
    found = leakage._find_vertex(*values)
    assert found == pytest.approx(vertex)
    fit = np.polynomial.Polynomial.fit([-1, 0, 1], values, 2).convert(domain=[-1, 1])
    if len(fit.coef) == 3 and fit.coef[2] < -1e-9:
        assert math.isclose(found, -fit.coef[1] / (2 * fit.coef[2]), abs_tol=1e-9)


def test_it_is_found_by_name() -> None:
    assert AGENTS.find("joint-leakage").is_used(make().unwrapped.scenario)
    assert isinstance(make_agent("joint-leakage", make()), LeakagePriced)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"control": "power"}, {}, "control must be 'beamforming', got 'power'"),
        ({"scheduling": "contention"}, {}, "scheduling must be 'all', got 'contention'"),
        ({}, {"leakage_price": 1.0}, "interference must be given if and only if the price is"),
        ({}, {"interference": 1.0}, "interference must be given if and only if the price is"),
        (
            {},
            {"leakage_price": -1.0, "interference": 0.0},
            "leakage_price must be a number >= 0, got -1.0",
        ),
        (
            {},
            {"leakage_price": 1.0, "interference": (0.1, 0.2)},
            r"interference must be a finite number >= 0, or 3 of them, got \(0.1, 0.2\)",
        ),
        (
            {},
            {"leakage_price": 1.0, "interference": math.nan},
            "interference must be a finite number >= 0, or 3 of them, got nan",
        ),
        ({}, {"tuning_channels": 0}, "tuning_channels must be an integer >= 1, got 0"),
    ],
)
def test_bad_inputs(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeakagePriced(make(**changes), **options)
