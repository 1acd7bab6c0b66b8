"""Agents of reinforcement learning through the interface that all agents have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.torch_layers import FlattenExtractor

from isac_gym.agents.loading import load_agent
from isac_gym.agents.reinforcement import Reinforcement
from isac_gym.evaluation import compare
from isac_gym.learning.archive import read_archive, write_archive
from isac_gym.learning.checkpoint import CheckpointError
from isac_gym.learning.trainer import TrainingError
from isac_gym.registry import AGENTS, make_agent
from isac_gym.rl import keeping, lagrangian
from isac_gym.rl.equivariant import UserExtractor
from isac_gym.rl.settings import ALGORITHMS

NAMES = ALGORITHMS
QUICK: dict[str, Any] = {
    "timesteps": 512,
    "num_envs": 32,
    "rollout_length": 4,
    "repeats": 2,
    "batch_size": 64,
    "epochs": 2,
    "gradient_steps": 1,
    "width": 8,
    "penalty": 5.0,
}


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


def weights_of(agent: Reinforcement) -> torch.Tensor:
    return torch.cat([value.flatten() for value in agent.model.policy.state_dict().values()])


def first_layer_of(agent: Reinforcement) -> torch.Tensor:
    layer: torch.Tensor = agent.model.policy.state_dict()["features_extractor.enter.weight"]
    return layer


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in NAMES), ("ppo-lagrangian", {"control": "beamforming"})],
    ids=str,
)
def test_trained_saved_and_loaded_it_acts_as_it_did(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    env = make()
    agent = make_agent(name, env, **QUICK, **options)
    before = weights_of(agent).clone()
    agent.learn()
    assert not torch.equal(weights_of(agent), before)
    assert agent.channels_seen * agent.blocks_per_channel >= 512
    assert agent.training_seconds > 0
    observation = np.stack([env.reset(seed=seed)[0] for seed in range(5)])
    action, _ = agent.predict(observation, deterministic=True)
    assert action.shape == (5, *env.action_space.shape)
    assert np.abs(action).max() <= 1.0
    agent.save(tmp_path / "agent.zip")
    for loaded in (
        load_agent(tmp_path / "agent.zip", env),
        load_agent(tmp_path / "agent.zip"),
    ):
        assert loaded.algorithm == name
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], action)
        assert loaded.multipliers == agent.multipliers
        assert loaded.channels_seen == agent.channels_seen


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"control": "structured"},
        {"control": "structured", "observation": "features"},
        {"control": "power", "radar": "fixed"},
        {"control": "power", "radar": "fixed", "observation": "features"},
        {"control": "amplitude"},
        {"radar": "fixed"},
        {"scheduling": "contention"},
        {"num_cells": 2},
    ],
    ids=str,
)
def test_it_acts_in_the_spaces_of_its_environment(changes: dict[str, Any]) -> None:
    env = make(**changes)
    agent = make_agent("ppo", env, **QUICK)
    observation, _ = env.reset(seed=0)
    for deterministic in (True, False):
        action, _ = agent.predict(observation, deterministic=deterministic)
        assert action in env.action_space


def test_what_it_means_in_its_own_spaces_is_transmitted_in_others() -> None:
    env, own = make(), make(control="structured", observation="features")
    agents = [Reinforcement(each, "ppo", **QUICK) for each in (env, own)]
    agents[1].model.policy.load_state_dict(agents[0].model.policy.state_dict())
    results = [
        compare({"it": agent}, each, channels=64, seed=3)["it"]
        for agent, each in zip(agents, (env, own), strict=True)
    ]
    np.testing.assert_allclose(results[0].sum_rates, results[1].sum_rates, rtol=1e-4)
    sensing = [result.constraints["sensing"].values for result in results]
    np.testing.assert_allclose(sensing[0], sensing[1], rtol=1e-4)


def test_equal_seeds_give_equal_agents_and_others_do_not() -> None:
    env = make()
    found = [
        weights_of(make_agent("ppo-lagrangian", env, seed=seed, **QUICK).learn())
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    env = make()
    settings = {**QUICK, "timesteps": 1280}
    whole = make_agent("ppo-lagrangian", env, **settings).learn()
    path = tmp_path / "checkpoint.zip"

    def stop(progress: Any) -> bool:
        return not path.exists()

    first = make_agent("ppo-lagrangian", env, **{**settings, "blocks_per_checkpoint": 256})
    first.learn(callback=stop, checkpoint=path)
    assert path.exists()
    assert first.channels_seen < whole.channels_seen
    second = make_agent("ppo-lagrangian", env, **{**settings, "blocks_per_checkpoint": 256})
    second.learn(checkpoint=path)
    assert torch.equal(weights_of(second), weights_of(whole))
    assert second.multipliers == whole.multipliers


@pytest.mark.parametrize(("name", "module"), [("ppo", keeping), ("ppo-lagrangian", lagrangian)])
def test_the_time_before_a_resumption_counts(name: str, module: Any, tmp_path: Path) -> None:
    env, path = make(), tmp_path / "checkpoint.zip"
    settings = {**QUICK, "timesteps": 1280, "blocks_per_checkpoint": 256}
    make_agent(name, env, **settings).learn(
        callback=lambda progress: not path.exists(), checkpoint=path
    )
    meta, tensors = read_archive(path, module.CHECKPOINT_KIND)
    assert 0.0 < meta["seconds"] < 100.0
    assert meta["num_timesteps"] < 1280
    write_archive(path, {**meta, "seconds": 1000.0}, tensors)
    # How often it is written makes no other training of it.
    second = make_agent(name, env, **{**settings, "blocks_per_checkpoint": 512})
    second.learn(checkpoint=path)
    assert 1000.0 <= second.training_seconds < 1100.0
    assert 1000.0 <= read_archive(path, module.CHECKPOINT_KIND)[0]["seconds"] < 1100.0


@pytest.mark.parametrize(("name", "module"), [("ppo", keeping), ("ppo-lagrangian", lagrangian)])
def test_a_checkpoint_that_kept_no_time_is_gone_on_from(
    name: str, module: Any, tmp_path: Path
) -> None:
    env, path = make(), tmp_path / "checkpoint.zip"
    make_agent(name, env, **QUICK).learn(checkpoint=path)
    meta, tensors = read_archive(path, module.CHECKPOINT_KIND)
    del meta["seconds"]
    write_archive(path, meta, tensors)
    second = make_agent(name, env, **QUICK).learn(checkpoint=path)
    assert second.channels_seen is not None
    assert second.training_seconds < 100.0


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_killed_training_without_constraints_goes_on(name: str, tmp_path: Path) -> None:
    env = make()
    path = tmp_path / "checkpoint.zip"
    settings = {**QUICK, "timesteps": 2048, "blocks_per_checkpoint": 128}
    first = make_agent(name, env, **settings)
    first.learn(callback=lambda _: not path.exists(), checkpoint=path)
    done = first.channels_seen
    assert path.exists()
    assert done < 2048
    second = make_agent(name, env, **settings).learn(checkpoint=path)
    assert 2048 <= second.channels_seen < 2048 + 128
    third = make_agent(name, env, **settings).learn(checkpoint=path)  # it is over
    assert torch.equal(weights_of(third), weights_of(second))


@pytest.mark.parametrize("name", ["ppo", "ppo-lagrangian"])
@pytest.mark.parametrize(
    ("changes", "settings", "named"),
    [
        ({"snr_db": 0.0}, {}, "scenario"),
        ({}, {"clip_range": 0.01}, "settings"),
        ({}, {"timesteps": 1024}, "timesteps"),
        ({"channel_model": "rician"}, {}, "channel_model"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_training_is_refused(
    name: str,
    changes: dict[str, Any],
    settings: dict[str, Any],
    named: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoint.zip"
    make_agent(name, make(), **QUICK).learn(checkpoint=path)
    other = make_agent(name, make(**changes), **{**QUICK, **settings})
    with pytest.raises(CheckpointError, match=f"another .*{named}"):
        other.learn(checkpoint=path)


def test_a_loaded_agent_goes_on_from_its_weights(tmp_path: Path) -> None:
    env = make()
    agent = make_agent("ppo-lagrangian", env, **QUICK).learn()
    agent.save(tmp_path / "agent.zip")
    loaded = Reinforcement.load(tmp_path / "agent.zip", env)
    tiny = {"learning_rate": 1e-6, "final_learning_rate": 1e-6}
    fresh = make_agent("ppo-lagrangian", env, **{**QUICK, **tiny}).learn(128)
    before = first_layer_of(loaded).clone()
    loaded.settings = dataclasses.replace(loaded.settings, **tiny)
    loaded.learn(128)
    # With steps that small, each stays where it began.
    torch.testing.assert_close(first_layer_of(loaded), before, rtol=0, atol=1e-4)
    assert float((first_layer_of(fresh) - before).abs().max()) > 1e-3
    assert loaded.channels_seen == agent.channels_seen + 128 // QUICK["repeats"]


@pytest.mark.parametrize("name", ["ppo-lagrangian", "sac-lagrangian", "tqc-lagrangian"])
def test_every_station_has_a_multiplier(name: str) -> None:
    env = make(num_cells=2)
    agent = make_agent(name, env, **QUICK).learn()
    assert set(agent.multipliers) == {"sensing[0]", "sensing[1]"}
    assert agent.predict(env.reset(seed=0)[0])[0] in env.action_space


def test_the_step_size_never_falls_below_its_end() -> None:
    agent = make_agent("ppo", make(), **QUICK)
    for remaining in (1.0, 0.5, 0.0, -0.3):
        rate = agent.model.lr_schedule(remaining)
        assert agent.settings.final_learning_rate <= rate <= agent.settings.learning_rate


@pytest.mark.parametrize(
    ("name", "changes", "options", "message"),
    [
        ("ppo", {}, {"algorithm": "dqn"}, "algorithm must be one of ppo"),
        ("ppo", {}, {"timesteps": 0}, "timesteps must be an integer >= 1, got 0"),
        ("ppo", {}, {"clip_range": -1.0}, "clip_range must be a finite number > 0, got -1"),
        ("ppo", {}, {"multiplier_gain": -1.0}, "multiplier_gain must be a finite number >= 0"),
        ("ppo", {}, {"penalty": -1.0}, "penalty must be None or a finite number >= 0, got -1"),
        ("ppo", {}, {"learning_rate": True}, "learning_rate must be a finite number > 0, got True"),
        ("ppo", {}, {"seed": 2**32}, r"seed must be an integer >= 0 and <= 2\^32 - 1"),
        ("ppo", {}, {"batch_size": 1}, "batch_size must be an integer >= 2, got 1"),
        ("ppo", {}, {"batch_size": 60}, "batch_size must be a divisor of .* = 128, got 60"),
        ("ppo", {}, {"policy": "cnn"}, "policy must be 'users' or 'mlp'"),
        ("ppo", {}, {"observation": "features", "control": "beamforming"}, "observation must be"),
        ("ppo", {"control": "amplitude"}, {"control": "structured"}, "control must be"),
    ],
    ids=str,
)
def test_bad_input_is_named(
    name: str, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(name, make(**changes), **{**QUICK, **options})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["ppo", "sac-lagrangian"])
def test_a_training_that_diverges_says_so(name: str) -> None:
    agent = make_agent(
        name, make(), **{**QUICK, "learning_rate": 1e12, "final_learning_rate": 1e12}
    )
    with torch.no_grad():
        for weight in agent.model.policy.parameters():
            weight.fill_(3e38)
    with pytest.raises(TrainingError, match=f"training of '{name}' diverged: .* is not finite"):
        agent.learn()


def test_settings_and_seeds_of_numpy_are_saved(tmp_path: Path) -> None:
    env = make()
    given = {**QUICK, "seed": np.int64(3), "width": np.int64(8), "learning_rate": np.float32(0.125)}
    agent = make_agent("ppo", env, **given).learn(np.int64(128))
    agent.save(tmp_path / "agent.zip")
    again = Reinforcement.load(tmp_path / "agent.zip", make())
    assert again.settings == agent.settings
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(
        again.predict(observation, deterministic=True)[0],
        agent.predict(observation, deterministic=True)[0],
    )


def test_unknown_settings_are_named() -> None:
    with pytest.raises(TypeError, match=r"unknown setting\(s\) \['learning'\]"):
        make_agent("ppo", make(), learning=1)


def test_a_file_of_another_scenario_is_refused(tmp_path: Path) -> None:
    agent = make_agent("ppo", make(control="amplitude"), **QUICK)
    agent.save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=r"agent\.zip: saved for another scenario"):
        Reinforcement.load(tmp_path / "agent.zip", make(control="amplitude", num_users=4))


@pytest.mark.parametrize("name", ["ppo", "sac", "td3"])
def test_one_agent_serves_other_numbers_of_users(name: str, tmp_path: Path) -> None:
    make_agent(name, make(), **QUICK).save(tmp_path / "agent.zip")
    env = make(num_users=4)
    loaded = Reinforcement.load(tmp_path / "agent.zip", env)
    assert loaded.predict(env.reset(seed=0)[0])[0] in env.action_space


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_the_same_for_every_user_where_there_are_features(name: str) -> None:
    chosen = {**QUICK, "width": 24, "rounds": 3}
    policy = make_agent(name, make(), **chosen).model.policy
    extractor = getattr(policy, "actor", policy).features_extractor
    assert isinstance(extractor, UserExtractor)
    assert (extractor.width, len(extractor.think)) == (24, 3)
    others = [
        make_agent(name, make(), **chosen, policy="mlp"),
        make_agent(name, make(control="amplitude"), **chosen, observation="channels"),
    ]
    for other in others:
        held = other.model.policy
        assert isinstance(getattr(held, "actor", held).features_extractor, FlattenExtractor)
        assert held.net_arch == [48, 48]


def test_all_are_registered_and_none_is_compared_unless_asked_for() -> None:
    for name in NAMES:
        entry = AGENTS.find(name)
        assert entry.learns
        assert not entry.is_default


def test_actions_are_tried_on_the_same_channels_unless_critics_judge_them() -> None:
    env = make()
    for name, repeats, is_held in (
        ("ppo-lagrangian", 2, True),
        ("ppo-lagrangian", 1, False),
        ("ppo", 2, False),
    ):
        agent = Reinforcement(env, name, **{**QUICK, "repeats": repeats})
        envs = agent._make_env(4, is_training=True)
        seen = [envs.reset()]
        for _ in range(2):
            actions = np.stack([envs.action_space.sample() for _ in range(4)])
            seen.append(envs.step(actions)[0])
        assert np.array_equal(seen[0], seen[1]) is is_held
        assert not np.array_equal(seen[1], seen[2])
        has_critics = getattr(agent.model, "cost_critics", None) is not None
        assert has_critics is (name == "ppo-lagrangian" and not is_held)
