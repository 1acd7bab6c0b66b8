"""The agents that come with the package, against the joint optimum on fresh channels."""

from __future__ import annotations

import json
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch

from isac_gym.agents import PrimalDual, load_agent
from isac_gym.baselines import JointOracle
from isac_gym.channels.process import ChannelProcess
from isac_gym.evaluation import evaluate, evaluation_set
from isac_gym.learning.pretrained import find_pretrained, list_pretrained


def test_names() -> None:
    assert list_pretrained() == ["distributed", "paper", "power", "unfolded", "wide"]


@pytest.mark.parametrize("name", ["distributed", "paper", "power", "unfolded", "wide"])
def test_it_loads_without_an_environment_and_says_how_it_was_made(name: str) -> None:
    agent = load_agent(f"pretrained:{name}")
    scenario = {"distributed": "three-cells", "power": "power"}.get(name)
    env = gym.make("ISAC-MISO-v0", scenario=scenario)
    assert agent.scenario == env.unwrapped.scenario  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=1)
    action, _ = agent.predict(observation, deterministic=True)
    assert env.action_space.contains(action)
    with zipfile.ZipFile(find_pretrained(f"pretrained:{name}")) as archive:
        notes = json.loads(archive.read("agent.json"))["notes"]
    assert notes["command"].startswith(("isac-gym train primal-dual", "isac-gym train distributed"))
    assert "--seed 0" in notes["command"]


def test_an_unknown_name() -> None:
    with pytest.raises(
        ValueError, match=r"'paper', 'power', 'unfolded', 'wide'.*got 'pretrained:best'"
    ):
        PrimalDual.load("pretrained:best")


@pytest.mark.parametrize("name", ["power", "unfolded", "wide"])
def test_it_comes_close_to_the_joint_optimum_under_the_same_constraint(name: str) -> None:
    env = gym.make("ISAC-MISO-v0", control="power" if name == "power" else "beamforming")
    agent = PrimalDual.load(f"pretrained:{name}", env)
    process = ChannelProcess(agent.channel_model, agent.scenario, 200)
    process.start(np.random.default_rng(1234))
    channels = torch.from_numpy(process.channels)
    price = float(agent.multiplier[0])
    best = JointOracle(env, constraint="expected", price=price).solve(channels)
    action, _ = agent.predict(agent.system.codec.observation(process.estimates))
    found = agent.system.transmit(channels, torch.from_numpy(action))
    # At the same price both maximise the same Lagrangian, whose maximum is the optimum's.
    theirs = float((best.rate - price * best.excess).mean())
    ours = float((found.sum_rate - price * found.constraints["sensing"][:, 0]).mean())
    assert 0.95 * theirs < ours < theirs


def test_the_wide_one_meets_another_scenario() -> None:
    env = gym.make("ISAC-MISO-v0", num_users=3, snr_db=4.0, sensing_threshold=0.13)
    agent = PrimalDual.load("pretrained:wide", env)
    process = ChannelProcess(agent.channel_model, agent.scenario, 1000)
    process.start(np.random.default_rng(5))
    channels = torch.from_numpy(process.channels)
    action, _ = agent.predict(agent.system.codec.observation(process.estimates))
    found = agent.system.transmit(channels, torch.from_numpy(action))
    assert abs(float(found.constraints["sensing"].mean())) < 0.015


def test_the_wide_one_warns_outside_its_range() -> None:
    env = gym.make("ISAC-MISO-v0", snr_db=30.0)
    with pytest.warns(UserWarning, match=r"snr_range_db=\(0\.0, 20\.0\).*snr_db=30"):
        PrimalDual.load("pretrained:wide", env)


@pytest.mark.slow
def test_the_distributed_one_needs_no_more_for_its_scenario_and_talking_pays() -> None:
    env = gym.make("ISAC-MISO-v0", scenario="three-cells", intercell_gain=0.3)
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, 96, 3)  # type: ignore[attr-defined]
    agent = load_agent("pretrained:distributed", env)
    rates = []
    for bits in (0, 32):
        agent.message_bits = bits
        agent.calibrate(128)
        result = evaluate(agent, env, blocks)
        assert result.constraints["sensing"].worst_mean <= 1.03 * 0.12
        rates.append(result.spectral_efficiency)
    assert rates[1] > 1.15 * rates[0]


@pytest.mark.slow
def test_the_price_of_the_distributed_one_is_settled_at_every_station() -> None:
    """As it is shipped: the mean over other channels is ε, to 1 % for the finite set."""
    env = gym.make("ISAC-MISO-v0", scenario="three-cells")
    agent = load_agent("pretrained:distributed", env)
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, 400, 3)  # type: ignore[attr-defined]
    result = evaluate(agent, env, blocks)
    losses = result.constraints["sensing"].values.mean((0, 1))
    np.testing.assert_allclose(losses, 0.12, rtol=0.01)
