"""One loop for environments, judging and training: equal numbers for equal seeds and actions."""

from __future__ import annotations

from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL

from isac_gym import GaussMarkovChannel, RayleighChannel, Scenario
from isac_gym.system.downlink import ISACSystem, Outcome
from isac_gym.system.simulation import Simulation

STEPS = 5
HARD: dict[str, Any] = {
    **SMALL,
    "csi_error_variance": 0.2,
    "doppler": 0.05,
    "power_limit": "cost",
    "episode_length": 3,
}
SCENARIOS = [
    {**HARD},
    {**HARD, "control": "power", "precoder_directions": "zf", "scheduling": "contention"},
    {**HARD, "num_cells": 2, "control": "power"},
    {**HARD, "radar": "fixed", "doppler": None},
]


def actions_of(count: int, size: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    return rng.uniform(-1.0, 1.0, (STEPS, count, size)).astype(np.float32)


def simulation_of(scenario: Scenario, count: int) -> Simulation:
    doppler = scenario.doppler
    model = RayleighChannel() if doppler is None else GaussMarkovChannel(doppler)
    return Simulation(ISACSystem(scenario), model, count)


def entries(outcome: Outcome, scenario: Scenario) -> dict[str, np.ndarray[Any, Any]]:
    """The entries of ``info``, by the names that they have there."""
    found = {
        "sum_rate": outcome.sum_rate,
        "beampattern_error": outcome.sensing.beampattern_error,
        "cross_correlation": outcome.sensing.cross_correlation,
        "comm_power": outcome.transmission.comm_power,
        "rates": outcome.rates,
        "sinr": outcome.sinr,
        **{f"constraint_{name}": value for name, value in outcome.constraints.items()},
    }
    by_station = set(found) - {"sum_rate"}
    return {
        name: value.numpy()[:, 0] if name in by_station and scenario.num_cells == 1
        else value.numpy()
        for name, value in found.items()
    }  # fmt: skip


@pytest.mark.parametrize("parameters", SCENARIOS, ids=["beams", "contention", "cells", "fixed"])
def test_single_batched_and_simulation_give_equal_numbers(parameters: dict[str, Any]) -> None:
    scenario = Scenario(**parameters)
    single = gym.make("ISAC-MISO-v0", disable_env_checker=True, **parameters)
    batched = gym.make_vec("ISAC-MISO-v0", num_envs=1, **parameters)
    simulation, rng = simulation_of(scenario, 1), np.random.default_rng(11)
    seen = [single.reset(seed=11)[0], batched.reset(seed=11)[0][0]]
    simulation.start(rng)
    for step, action in enumerate(actions_of(1, single.action_space.shape[0])):
        np.testing.assert_array_equal(seen[0], simulation.observe()[0])
        np.testing.assert_array_equal(seen[1], simulation.observe()[0])
        assert not np.array_equal(simulation.estimates, simulation.channels)
        given, outcome = simulation.apply_checked(action)
        np.testing.assert_array_equal(given, action)
        expected = entries(outcome, scenario)
        observation, reward, _, truncated, info = single.step(action[0])
        observations, rewards, _, truncations, infos = batched.step(action)
        assert reward == pytest.approx(expected["sum_rate"][0], rel=1e-6)
        assert truncated == truncations[0] == (step % 3 == 2)
        shown = infos["final_info"] if truncated else infos
        for name, value in expected.items():
            np.testing.assert_allclose(info[name], value[0], rtol=1e-6, atol=1e-7, err_msg=name)
            np.testing.assert_array_equal(shown[name][0], np.asarray(info[name], np.float32))
        assert rewards[0] == pytest.approx(reward, rel=1e-7)
        simulation.advance(rng)
        if truncated:
            # The batched environment has already begun the next episode.
            np.testing.assert_array_equal(infos["final_obs"][0], observation)
            observation = single.reset()[0]
            simulation.start(rng)
        seen = [observation, observations[0]]


@pytest.mark.parametrize("parameters", SCENARIOS, ids=["beams", "contention", "cells", "fixed"])
def test_a_batch_is_that_of_the_batched_environment(parameters: dict[str, Any]) -> None:
    scenario = Scenario(**{**parameters, "episode_length": 100})
    batched = gym.make_vec("ISAC-MISO-v0", num_envs=4, scenario=scenario)
    simulation, rng = simulation_of(scenario, 4), np.random.default_rng(5)
    observations = batched.reset(seed=5)[0]
    simulation.start(rng)
    for action in actions_of(4, batched.single_action_space.shape[0]):
        np.testing.assert_array_equal(observations, simulation.observe())
        expected = entries(simulation.apply_checked(action)[1], scenario)
        observations, rewards, *_, infos = batched.step(action)
        for name, value in expected.items():
            np.testing.assert_array_equal(infos[name], value, err_msg=name)
        np.testing.assert_array_equal(rewards, expected["sum_rate"])
        simulation.advance(rng)


@pytest.mark.parametrize("parameters", SCENARIOS[:3], ids=["beams", "contention", "cells"])
def test_actions_meet_the_true_channels_and_directions_the_estimates(
    parameters: dict[str, Any],
) -> None:
    """By hand, in double precision."""
    scenario = Scenario(**parameters)
    simulation, rng = simulation_of(scenario, 6), np.random.default_rng(2)
    simulation.start(rng)
    for _ in range(2):
        action = np.random.default_rng(4).uniform(-1, 1, (6, simulation.system.codec.action_size))
        _, outcome = simulation.apply_checked(action)
        for n in range(6):
            seen = direct_model.observed_channels(scenario, simulation.observe()[n])
            np.testing.assert_array_equal(seen, simulation.estimates[n])
            F, R, access = direct_model.decode(scenario, action[n].astype(np.float32), seen)
            assert R is not None
            true = simulation.channels[n].astype(np.complex128)
            expected = direct_model.earned(scenario, true, F, R, access)
            assert float(outcome.sum_rate[n]) == pytest.approx(expected["sum_rate"], rel=1e-4)
            for name, value in outcome.constraints.items():
                np.testing.assert_allclose(
                    value[n], expected[f"constraint_{name}"], rtol=1e-4, atol=1e-5
                )
        simulation.advance(rng)


def test_channels_follow_the_doppler_and_errors_are_drawn_anew() -> None:
    simulation, rng = simulation_of(Scenario(**HARD), 4000), np.random.default_rng(0)
    simulation.start(rng)
    first, error = simulation.channels, simulation.estimates - simulation.channels
    simulation.advance(rng)
    second, other = simulation.channels, simulation.estimates - simulation.channels
    rho = GaussMarkovChannel(0.05).correlation
    assert np.mean(first.conj() * second).real == pytest.approx(rho, abs=0.01)
    assert np.mean(np.abs(error) ** 2) == pytest.approx(0.2, rel=0.01)
    assert abs(np.mean(error.conj() * other)) < 0.005
    assert abs(np.mean(error.conj() * first)) < 0.005


def test_blocks_that_are_held_may_be_of_another_number() -> None:
    scenario = Scenario(**HARD)
    simulation = simulation_of(scenario, 10)
    simulation.start(np.random.default_rng(0))
    channels, estimates = simulation.channels, simulation.estimates
    action = torch.from_numpy(actions_of(10, simulation.system.codec.action_size)[0])
    whole = simulation.apply(action)
    simulation.hold(channels[3:6], estimates[3:6])
    assert simulation.observe().shape[0] == 3
    part = simulation.apply(action[3:6])
    torch.testing.assert_close(part.sum_rate, whole.sum_rate[3:6], rtol=1e-5, atol=1e-6)
    # Actions are decoded by the estimates: where there are others, powers go elsewhere.
    powers = simulation_of(scenario.replace(control="power"), 10)
    powers.hold(channels, estimates)
    given = torch.from_numpy(actions_of(10, powers.system.codec.action_size)[0])
    steered = powers.apply(given)
    powers.hold(channels, channels)
    assert float((powers.apply(given).sum_rate - steered.sum_rate).abs().min()) > 1e-4


def test_noise_power_of_each_block() -> None:
    scenario = Scenario(**HARD)
    simulation = simulation_of(scenario, 4)
    simulation.start(np.random.default_rng(0))
    action = torch.from_numpy(actions_of(4, simulation.system.codec.action_size)[0])
    noise = torch.tensor([0.05, 0.1, 0.4, 2.0])
    found = simulation.apply(action, noise).sum_rate
    for n, level in enumerate(noise.tolist()):
        snr = 10.0 * np.log10(scenario.comm_power / level)
        other = simulation_of(scenario.replace(snr_db=snr), 4)
        other.hold(simulation.channels, simulation.estimates)
        assert float(found[n]) == pytest.approx(float(other.apply(action).sum_rate[n]), rel=1e-5)


def test_gradients_by_action() -> None:
    simulation = simulation_of(Scenario(**HARD), 3)
    simulation.start(np.random.default_rng(0))
    size = simulation.system.codec.action_size
    action = torch.from_numpy(actions_of(3, size)[0]).requires_grad_(True)
    simulation.apply(action).sum_rate.sum().backward()
    assert action.grad is not None
    assert bool(action.grad.abs().amax(-1).gt(0).all())
    _, outcome = simulation.apply_checked(action.detach().numpy())
    assert not outcome.sum_rate.requires_grad


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda a: a[:, 1:], ValueError),
        (lambda a: a[1:], ValueError),
        (lambda a: a * np.nan, ValueError),
        (lambda a: 1.5 * np.sign(a), ValueError),
        (lambda a: a + 0j, TypeError),
    ],
    ids=["size", "number", "nan", "beyond", "complex"],
)
def test_actions_are_checked(change: Any, error: type[Exception]) -> None:
    simulation = simulation_of(Scenario(**HARD), 3)
    simulation.start(np.random.default_rng(0))
    action = actions_of(3, simulation.system.codec.action_size)[0]
    with pytest.raises(error, match="action"):
        simulation.apply_checked(change(action))
