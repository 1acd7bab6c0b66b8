"""The policy of precoders: structured in the mean, and indifferent to order and phases."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL
from torch import Tensor

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO

from isac_gym.envs.sb3 import make_sb3_env
from isac_gym.rl.critics import CostCritics
from isac_gym.rl.equivariant import UserPolicy, make_policy_kwargs
from isac_gym.rl.precoding import PrecoderPolicy, make_precoder_kwargs

MODES: list[dict[str, Any]] = [
    {},
    {"radar": "fixed"},
    {"num_cells": 2},
    {"scheduling": "contention"},
]


def make_model(width: int = 8, seed: int = 0, **changes: Any) -> Any:
    envs = make_sb3_env(2, **{**SMALL, **changes}, bootstraps=False)
    torch.manual_seed(seed)
    model = PPO(
        PrecoderPolicy,
        envs,
        n_steps=2,
        batch_size=4,
        gamma=0.0,
        policy_kwargs=make_precoder_kwargs(envs.envs, width),
    )
    with torch.no_grad():  # it begins in the middle of the numbers' box, whatever it sees
        for parameter in model.policy.parameters():
            parameter.normal_(0.0, 0.4)
    return model


def observe(count: int = 3, **changes: Any) -> Tensor:
    envs = make_sb3_env(count, **{**SMALL, **changes})
    envs.seed(3)
    return torch.from_numpy(np.asarray(envs.reset()))


def as_channels(observation: Tensor, **changes: Any) -> Tensor:
    codec = gym.make("ISAC-MISO-v0", **{**SMALL, **changes}).unwrapped.system.codec
    return codec.channels(observation)


def as_observation(channels: Tensor) -> Tensor:
    flat = channels.flatten(1)
    return torch.cat([flat.real, flat.imag], -1)


def mean_of(policy: PrecoderPolicy, observation: Tensor) -> Tensor:
    with torch.no_grad():
        return policy.get_distribution(observation).distribution.mean


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_its_mean_is_an_action_of_the_structure(mode: dict[str, Any]) -> None:
    """A policy of the numbers with the same weights transmits the same."""
    policy = make_model(**mode).policy
    numbers_of = {**SMALL, **mode, "control": "structured", "observation": "features"}
    envs = make_sb3_env(2, **numbers_of)
    kwargs = make_policy_kwargs(envs.envs, 8)
    inner = PPO(UserPolicy, envs, n_steps=2, batch_size=4, policy_kwargs=kwargs).policy
    state = policy.state_dict()
    renamed = {name.replace(".layer.", "."): value for name, value in state.items()}
    kinds = inner.log_std.shape
    renamed["log_std"] = torch.zeros(kinds)
    inner.load_state_dict({name: renamed[name] for name in inner.state_dict()})
    observation = observe(**mode)
    system = gym.make("ISAC-MISO-v0", **numbers_of).unwrapped.system
    channels = as_channels(observation, **mode)
    features = torch.from_numpy(system.codec.observation(channels.numpy()))
    with torch.no_grad():
        numbers = torch.tanh(inner.get_distribution(features).distribution.mean)
    sent = system.codec.decode(numbers, channels)
    outer = gym.make("ISAC-MISO-v0", **{**SMALL, **mode}).unwrapped.system
    found = outer.codec.decode(mean_of(policy, observation), channels)
    torch.testing.assert_close(found.precoders, sent.precoders, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.streams, sent.streams, rtol=1e-4, atol=1e-5)
    assert float(numbers.std()) > 0.01


def test_users_in_another_order_have_the_same_precoders_in_that_order() -> None:
    policy, order = make_model().policy, [2, 0, 1]
    channels = as_channels(observe())
    codec = gym.make("ISAC-MISO-v0", **SMALL).unwrapped.system.codec
    turned = channels[..., order, :]
    first, second = (
        codec.decode(mean_of(policy, as_observation(each)), each) for each in (channels, turned)
    )
    torch.testing.assert_close(second.precoders, first.precoders[..., order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second.streams, first.streams, rtol=1e-3, atol=1e-4)


def test_a_channel_that_turns_its_phase_turns_its_precoder_back() -> None:
    policy = make_model().policy
    channels = as_channels(observe())
    codec = gym.make("ISAC-MISO-v0", **SMALL).unwrapped.system.codec
    phases = torch.exp(1j * torch.tensor([0.3, -2.0, 1.1]))
    turned = channels * phases[:, None]
    first, second = (
        codec.decode(mean_of(policy, as_observation(each)), each) for each in (channels, turned)
    )
    expected = first.precoders * phases.conj()
    torch.testing.assert_close(second.precoders, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second.streams, first.streams, rtol=1e-3, atol=1e-4)


def test_deviations_are_in_proportion_to_what_entries_usually_are() -> None:
    policy = make_model(num_cells=2).policy
    scenario = gym.make("ISAC-MISO-v0", **SMALL, num_cells=2).unwrapped.scenario
    with torch.no_grad():
        policy.log_std.fill_(np.log(0.1))
        spread = policy.get_distribution(observe(num_cells=2)).distribution.stddev
    entries = scenario.num_comm_antennas * scenario.num_users
    streams = scenario.num_radar_antennas * scenario.num_radar_streams
    station = [0.1 / np.sqrt(2 * entries)] * (2 * entries)
    station += [0.1 / np.sqrt(2 * scenario.num_radar_streams)] * (2 * streams)
    np.testing.assert_allclose(spread.numpy(), np.tile([station * 2], (3, 1)), rtol=1e-5)


def test_it_learns_with_ppo_and_has_critics_of_constraints() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(16)
    after = model.policy.state_dict()
    kept = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert kept == {"_scales"}
    assert all(bool(value.isfinite().all()) for value in after.values())
    observation = observe()
    assert CostCritics(model.policy, 2, 1e-3)(observation).shape == (3, 2)


def test_what_does_not_fit_is_refused() -> None:
    structured = gym.make("ISAC-MISO-v0", **SMALL, control="structured")
    with pytest.raises(ValueError, match="control must be 'beamforming' for this policy"):
        make_precoder_kwargs(structured)
    envs = make_sb3_env(2, **SMALL)
    with pytest.raises(ValueError, match="rounds must be an integer >= 1, got 0"):
        make_precoder_kwargs(envs.envs, rounds=0)
    with pytest.raises(ValueError, match="features_extractor_class must be ChannelExtractor"):
        PPO(PrecoderPolicy, envs, n_steps=2, batch_size=4)
