"""All stations together: feasibility, what is reported, one cell, no coupling, and prices."""

from __future__ import annotations

from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import pytest
import reference
import torch
from network_wmmse import wmmse_of_network
from small_network import acted
from small_network import drawn_by_model as drawn
from small_network import make_tight as make

from isac_gym.baselines.joint import JointOracle
from isac_gym.baselines.network import JointNetwork, NetworkDesign
from isac_gym.baselines.pricing import DistributedWMMSE, InterferencePricing
from isac_gym.channels.process import ChannelProcess
from isac_gym.evaluation import evaluation_set
from isac_gym.registry import AGENTS, make_agent
from isac_gym.solvers.network import NetworkSearch, pose_network
from isac_gym.solvers.network_starts import start_search


def sum_rates(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.array([row["sum_rate"] for row in rows])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_users": 1},
        {"radar_streams": 2},
        {"cross_correlation": "grid_sq", "sensing_threshold": 0.12},
        {"num_cells": 2, "target_angles_deg": (-50.0, 10.0), "intercell_gain": 1.0},
        {"layout": "line", "num_cells": 2, "target_angles_deg": (-50.0, 10.0)},
    ],
    ids=str,
)
def test_every_constraint_holds_on_every_channel(changes: dict[str, Any]) -> None:
    env = make(**changes)
    channels = drawn(env, 6)
    agent = JointNetwork(env, num_starts=6)
    rows = acted(agent, channels)
    for row in rows:
        assert row["constraint_sensing"].max() <= 1e-4
        assert row["constraint_power"].max() <= 1e-5
    # Together stations earn at least what each for itself does.
    alone = acted(JointOracle(env), channels)
    assert (sum_rates(rows) / sum_rates(alone)).min() > 0.99
    assert sum_rates(rows).mean() > 1.02 * sum_rates(alone).mean()
    # What solve() reports is what the environment sees.
    design = agent.solve(channels)
    assert isinstance(design, NetworkDesign)
    for index, row in enumerate(rows):
        np.testing.assert_allclose(design.rate[index], row["rates"].sum(-1), rtol=1e-3, atol=1e-3)
        loss = row["beampattern_error"] + row["cross_correlation"]
        np.testing.assert_allclose(design.sensing_loss[index], loss, rtol=1e-4)
        np.testing.assert_allclose(design.excess[index], row["constraint_sensing"], atol=1e-4)
        np.testing.assert_allclose(
            design.powers[index].sum(-1), row["comm_power"], rtol=1e-4, atol=1e-6
        )
    assert float(design.change.median()) < 1e-4
    assert float(design.stationarity.median()) < 1e-2
    for field in (design.change, design.start, design.stationarity):
        assert torch.equal(field, field[:, :1].expand_as(field))


def test_one_cell_is_the_joint_optimum() -> None:
    env = make(num_cells=1, target_angles_deg=(-50.0, 10.0))
    channels = drawn(env, 40)
    joint, network = JointOracle(env).solve(channels), JointNetwork(env).solve(channels)
    ratio = network.rate / joint.rate
    assert float(ratio.mean()) == pytest.approx(1.0, abs=2e-3)
    assert float((ratio - 1).abs().median()) < 5e-4


def test_without_paths_between_cells_each_station_is_at_its_own_optimum() -> None:
    env = make(intercell_gain=0.0)
    channels = drawn(env, 16)
    alone = JointOracle(env).solve(channels)
    # Every start is for all stations at once, so that more of them are needed than for one.
    together = JointNetwork(env, num_starts=48, refined=3).solve(channels)
    ratio = together.rate / alone.rate
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5e-3)
    assert float((ratio - 1).abs().median()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.1, 0.3])
def test_without_radar_it_is_as_good_as_wmmse_from_the_same_starts(gain: float) -> None:
    """The best of WMMSE's ends, from every start of the policy, without screening."""
    env = gym.make("ISAC-MISO-v0", scenario="three-cells", intercell_gain=gain)
    scenario = env.unwrapped.scenario
    agent = JointNetwork(env, constraint="expected", price=0.0, num_starts=8)
    channels = drawn(env, 12)
    channels[..., : scenario.num_radar_antennas] = 0.0  # no radar reaches a user
    found = agent.solve(channels).rate.sum(-1)
    radar, comm = channels.to(torch.complex128).split(
        [scenario.num_radar_antennas, scenario.num_comm_antennas], -1
    )
    noise, budget = scenario.noise_power, scenario.comm_power
    problem = pose_network(radar, comm, noise, budget, scenario.radar_power)
    best = torch.ones(12, 3, scenario.num_radar_antennas, 1, dtype=torch.complex128)
    ends = []
    for subset in agent.starts.double():
        F, _ = start_search(problem, subset.expand(12, 3, 5), best)
        end = wmmse_of_network(comm.numpy(), F.numpy(), noise, budget, 500)
        ends.append(problem.measure(torch.from_numpy(end), best)[0].sum(-1))
    other = torch.stack(ends).amax(0)
    assert float(found.mean() / other.mean()) > 0.999
    assert float((found / other).min()) > 0.98


@pytest.mark.slow
def test_stations_that_exchange_messages_are_not_better_on_any_channel() -> None:
    """On channels where a search from few starts ends up to 2 % of the mean below them."""
    env = gym.make("ISAC-MISO-v0", scenario="three-cells", intercell_gain=0.3)
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, 200, 7)
    channels = torch.from_numpy(blocks.channels[[1, 135, 193], 0])
    together = sum_rates(acted(JointNetwork(env), channels))
    options: dict[str, Any] = {"rounds": 40, "bits": None}
    for method in (InterferencePricing, DistributedWMMSE):
        apart = sum_rates(acted(method(env, **options), channels))
        assert ((together - apart) / together.mean()).min() > -0.01
        assert apart.mean() > 0.9 * together.mean()


def test_no_move_of_a_station_betters_the_network() -> None:
    """Random moves of F and V, with twice the multiplier to pay for what exceeds the threshold.

    At a local optimum under constraints that merit has a maximum.
    """
    env = make()
    channels = drawn(env, 3)
    design = JointNetwork(env, num_starts=6).solve(channels)
    assert design.precoders is not None
    assert bool((design.multiplier > 0.1).any())
    rng = np.random.default_rng(0)
    gained = []
    for index in range(3):
        H = channels[index].numpy().astype(np.complex128)
        F = design.precoders[index].numpy().astype(np.complex128)
        V = design.streams[index].numpy().astype(np.complex128)
        price = 2.0 * design.multiplier[index].numpy()
        best = measure_merit(env, H, F, V, price)
        for size in 10.0 ** rng.uniform(-3, 0, 30):
            station = rng.integers(3)
            G, W = F.copy(), V.copy()
            G[station] += 0.3 * size * reference.complex_normal(rng, *G[station].shape)
            G[station] *= min(1.0, 1.0 / np.linalg.norm(G[station]))
            W[station] += 0.3 * size * reference.complex_normal(rng, *W[station].shape)
            W[station] *= np.sqrt(0.8 / 4) / np.linalg.norm(W[station], axis=1, keepdims=True)
            gained.append(measure_merit(env, H, G, W, price) / best - 1)
    assert max(gained) < 5e-4
    assert np.mean(gained) < -0.02


def measure_merit(env: gym.Env[Any, Any], H: Any, F: Any, V: Any, price: Any) -> float:
    scenario = env.unwrapped.scenario
    row = direct_model.earned(scenario, H, F, V @ V.conj().swapaxes(-1, -2), np.ones((3, 3)))
    return float(row["sum_rate"] - price @ np.maximum(row["constraint_sensing"], 0.0))


@pytest.mark.parametrize("gain", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_on_the_mean_the_threshold_is_met_by_every_station(gain: float) -> None:
    """With paths as strong between cells as within, a price moves the means of all stations."""
    env = make(intercell_gain=gain)
    options: dict[str, Any] = {"num_starts": 4, "refined": 1}
    agent = JointNetwork(env, constraint="expected", calibration_channels=12, **options)
    assert len(agent.price) == 3
    assert min(agent.price) > 0.0
    process = ChannelProcess(env.unwrapped.channel_model, env.unwrapped.scenario, 12)
    process.start(np.random.default_rng((0x0AC1E, 0)))
    calibrated = torch.from_numpy(process.estimates)
    design = agent.solve(calibrated)
    mean = design.excess.mean(0)
    assert float(mean.max()) <= 2e-3
    assert float(mean.min()) >= -0.02
    assert float(design.excess.max()) > 0.01
    strict = JointNetwork(env, **options).solve(calibrated)
    assert float(design.rate.sum(-1).mean()) > float(strict.rate.sum(-1).mean())
    free = JointNetwork(env, constraint="expected", price=0.0, **options).solve(calibrated)
    assert float(free.rate.sum(-1).mean()) > float(design.rate.sum(-1).mean())
    assert float(free.excess.mean()) > 0.05


def test_blocks_do_not_know_of_each_other() -> None:
    env = make(num_cells=2, target_angles_deg=(-50.0, 10.0))
    channels = drawn(env, 5)
    agent = JointNetwork(env, num_starts=3, refined=2)
    together = agent.solve(channels)
    for index in (0, 4):
        alone = agent.solve(channels[index : index + 1])
        torch.testing.assert_close(alone.rate[0], together.rate[index], rtol=1e-3, atol=0)
    assert torch.equal(agent.solve(channels).streams, together.streams)


def test_the_last_round_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refinements of 6, 12 and 24 iterations, unless their sum is more than is allowed."""
    run, counted = NetworkSearch.run, [0]

    def counting(self: NetworkSearch, iterations: int, update_every: int = 10) -> None:
        counted[0] += iterations
        run(self, iterations, update_every)

    monkeypatch.setattr(NetworkSearch, "run", counting)
    env = make(num_cells=2, target_angles_deg=(-50.0, 10.0))
    channels = drawn(env, 1)

    def count(most: int) -> int:
        counted[0] = 0
        options: dict[str, Any] = {"num_starts": 1, "tolerance": 0.0, "iterations": 6}
        JointNetwork(env, max_iterations=most, **options).solve(channels)
        return counted[0]

    once = count(1)
    assert [count(most) - once for most in (6, 7, 18, 30, 42)] == [0, 1, 12, 24, 36]


def test_it_is_found_by_name_and_for_whom_it_is() -> None:
    for name in ("joint-network", "joint-network-expected"):
        entry = AGENTS.find(name)
        assert entry.is_reference
        assert entry.is_used(make().unwrapped.scenario) is (name == "joint-network")
        agent = make_agent(name, make(), num_starts=2)
        assert isinstance(agent, JointNetwork)
        assert agent.constraint == entry.options.get("constraint", "per_channel")
        with pytest.raises(ValueError, match=rf"control must be 'beamforming' for '{name}'"):
            make_agent(name, make(control="power"))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"control": "power"}, {}, "control must be 'beamforming', got 'power'"),
        ({"scheduling": "contention"}, {}, "scheduling must be 'all', got 'contention'"),
        ({"radar": "fixed"}, {}, "needs radar 'learned', got 'fixed'"),
        ({}, {"num_starts": 0}, "num_starts must be an integer >= 1, got 0"),
        ({}, {"num_starts": None}, "num_starts must be an integer >= 1, got None"),
        ({}, {"refined": 0}, "refined must be an integer >= 1, got 0"),
        ({}, {"iterations": 1.5}, "iterations must be an integer >= 1, got 1.5"),
        ({}, {"price": 1.0}, "price must be None unless constraint is 'expected', got 1.0"),
    ],
)
def test_bad_inputs(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointNetwork(make(**changes), **options)


def test_channels_of_another_shape_are_refused() -> None:
    agent = JointNetwork(make(), num_starts=1)
    with pytest.raises(ValueError, match="channels must be finite and of shape"):
        agent.solve(torch.zeros(1, 2, 2, 3, 9, dtype=torch.complex64))
