"""Signal-to-leakage-and-noise precoding: what it maximises, its waveform, and that nobody talks."""

from __future__ import annotations

from typing import Any

import direct_model
import numpy as np
import pytest
import scipy.linalg
from small_network import acted, drawn, make, mean_rate, predicted, replay

from isac_gym.baselines.slnr import SLNR
from isac_gym.registry import make_agent


@pytest.mark.parametrize("waveform", ["best", "nulls"])
@pytest.mark.parametrize("changes", [{}, {"num_cells": 1, "target_angles_deg": (-50.0, 10.0)}])
def test_every_stream_has_the_largest_signal_to_leakage_and_noise_ratio(
    waveform: Any, changes: dict[str, Any]
) -> None:
    env = make(**changes)
    agent, channels = SLNR(env, waveform=waveform), drawn(env, 4)
    scenario = agent.scenario
    share = scenario.comm_power / scenario.num_users
    for H, action in zip(channels.numpy(), predicted(agent, channels), strict=True):
        F, R, _ = direct_model.decode(scenario, action, H)
        assert R is not None
        for station in range(scenario.num_cells):
            # Users of all cells in any order; those of the own cell are the first K after rolling.
            seen = np.roll(H[station], -station, axis=0).reshape(-1, scenario.num_antennas)
            f, g = np.split(seen.astype(np.complex128), [scenario.num_radar_antennas], axis=1)
            for user in range(scenario.num_users):
                column = F[station][:, user]
                assert np.linalg.norm(column) ** 2 == pytest.approx(share, rel=1e-4)
                noise = scenario.noise_power + (f[user] @ R[station] @ f[user].conj()).real
                others = np.delete(g, user, axis=0)
                below = others.conj().T @ others + noise / share * np.eye(g.shape[1])
                above = np.outer(g[user].conj(), g[user])
                largest = scipy.linalg.eigh(above, below, eigvals_only=True)[-1]
                leaked = np.sum(np.abs(others @ column) ** 2)
                reached = np.abs(g[user] @ column) ** 2 / (leaked + noise)
                assert reached == pytest.approx(largest, rel=1e-3)


def test_nulls_leave_less_radar_power_at_the_users_of_all_cells_and_keep_the_threshold() -> None:
    env = make()
    channels = drawn(env, 8)
    plain, nulling = SLNR(env), SLNR(env, waveform="nulls")
    found = {}
    for agent in (plain, nulling):
        scenario, powers = agent.scenario, []
        for H, action in zip(channels.numpy(), predicted(agent, channels), strict=True):
            _, R, _ = direct_model.decode(scenario, action, H)
            assert R is not None
            f = H[..., : scenario.num_radar_antennas].reshape(3, -1, scenario.num_radar_antennas)
            powers.append(np.einsum("jua,jab,jub->j", f, R, f.conj()).real)
        found[agent.waveform] = np.array(powers)
    assert (found["nulls"] < found["best"]).all()
    for each in acted(nulling, channels):
        assert each["constraint_sensing"].max() <= 1e-4
    assert mean_rate(nulling, channels) > mean_rate(plain, channels)


def test_no_bit_is_exchanged_and_no_station_heeds_what_others_know() -> None:
    env = make()
    agent, channels = SLNR(env, waveform="nulls", iterations=20), drawn(env, 2)
    before = predicted(agent, channels).reshape(2, 3, -1)
    assert agent.bits_per_link == 0
    assert agent.exchange is not None
    assert not agent.exchange.counts.any()
    changed = channels.clone()
    changed[:, [1, 2]] = drawn(env, 2, seed=1)[:, [1, 2]]
    after = predicted(agent, changed).reshape(2, 3, -1)
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert (after[:, 1:] != before[:, 1:]).any()
    views, received = replay(agent, channels)
    alone = agent.stations[2].act(views[2], received[2])
    np.testing.assert_array_equal(alone.numpy(), before[:, 2])


def test_what_it_is_not_for_is_refused() -> None:
    for field, value in (("control", "power"), ("radar", "fixed"), ("scheduling", "contention")):
        with pytest.raises(ValueError, match=field):
            SLNR(make(**{field: value}))
    with pytest.raises(ValueError, match="waveform must be one of 'best', 'nulls', got 'flat'"):
        SLNR(make(), waveform="flat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations must be an integer >= 1, got 0"):
        SLNR(make(), iterations=0)
    assert isinstance(make_agent("slnr", make()), SLNR)
