"""The policy to which the order and the number of users make no difference."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL
from small_features import FEATURES, ORDER, draw_features, turn_actions

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO

from isac_gym.envs.sb3 import make_sb3_env
from isac_gym.rl.critics import CostCritics
from isac_gym.rl.equivariant import UserExtractor, UserPolicy, make_policy_kwargs

MODES: list[dict[str, Any]] = [
    {},
    {"radar": "fixed"},
    {"control": "power", "radar": "fixed"},
    {"scheduling": "contention"},
    {"num_cells": 2},
]


def policy_of(width: int = 8, **changes: Any) -> UserPolicy:
    envs = make_sb3_env(2, **{**FEATURES, **changes})
    torch.manual_seed(0)
    model = PPO(
        UserPolicy,
        envs,
        n_steps=2,
        batch_size=4,
        policy_kwargs=make_policy_kwargs(envs.envs, width),
    )
    policy = model.policy
    assert isinstance(policy, UserPolicy)
    with torch.no_grad():  # it begins as the middle of the box, which is the same in any order
        for parameter in policy.parameters():
            parameter.normal_(0.0, 0.4)
    return policy


@pytest.mark.parametrize("mode", MODES[:4], ids=str)
def test_users_in_another_order_have_the_same_numbers_in_that_order(mode: dict[str, Any]) -> None:
    policy = policy_of(**mode)
    extractor = policy.features_extractor
    assert isinstance(extractor, UserExtractor)
    features, turned = (draw_features(extractor.layout, 4, order) for order in (None, ORDER))
    with torch.no_grad():
        means = policy.get_distribution(features).distribution.mean
        values = policy.predict_values(features)
        other = policy.get_distribution(turned).distribution.mean
        other_values = policy.predict_values(turned)
    torch.testing.assert_close(other, turn_actions(means, ORDER))
    torch.testing.assert_close(other_values, values)
    assert float(means.unflatten(1, (-1, 3)).std(-1).min()) > 1e-3


def test_every_station_is_decided_by_its_own_features() -> None:
    policy = policy_of(num_cells=2)
    extractor = policy.features_extractor
    assert isinstance(extractor, UserExtractor)
    layout = extractor.layout
    one, other = (torch.rand(1, layout.size) for _ in range(2))
    with torch.no_grad():
        first = policy.get_distribution(torch.cat([one, other], -1)).distribution.mean
        second = policy.get_distribution(torch.cat([other, one], -1)).distribution.mean
    size = first.shape[1] // 2
    torch.testing.assert_close(first[:, :size], second[:, size:])
    assert not torch.allclose(first[:, :size], first[:, size:])


def test_the_weights_fit_any_number_of_users() -> None:
    weights = policy_of().state_dict()
    larger = policy_of(num_users=5)
    larger.load_state_dict(weights)
    envs = gym.make("ISAC-MISO-v0", **{**FEATURES, "num_users": 5})
    observation, _ = envs.reset(seed=0)
    action, _ = larger.predict(observation, deterministic=True)
    assert action.shape == (15,)


def test_the_deviation_is_the_same_for_all_users_and_differs_by_kind() -> None:
    policy = policy_of(num_cells=2)
    with torch.no_grad():
        policy.log_std[:] = torch.tensor([-1.0, -2.0, -3.0])
        found = policy.get_distribution(torch.rand(1, policy.observation_space.shape[0]))  # type: ignore[index]
    deviation = found.distribution.stddev.log().view(2, 3, 3)
    expected = torch.tensor([-1.0, -2.0, -3.0])[:, None].expand(2, 3, 3)
    torch.testing.assert_close(deviation, expected)


def test_another_critic_is_as_indifferent_to_the_order() -> None:
    policy = policy_of()
    extractor = policy.features_extractor
    assert isinstance(extractor, UserExtractor)
    features, turned = (draw_features(extractor.layout, 4, order) for order in (None, ORDER))
    critic = policy.make_critic()
    with torch.no_grad():
        value, other = critic(features), critic(turned)
    assert value.shape == (4, 1)
    torch.testing.assert_close(other, value)
    critics = CostCritics(policy, 2, 1e-3)
    assert critics(features).shape == (4, 2)


def test_it_learns_with_ppo() -> None:
    envs = make_sb3_env(64, **FEATURES, bootstraps=False)
    model = PPO(
        UserPolicy,
        envs,
        n_steps=4,
        batch_size=128,
        gamma=0.0,
        seed=0,
        device="cpu",
        policy_kwargs=make_policy_kwargs(envs.envs, 16),
    )
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(512)
    changed = [
        name
        for name, value in model.policy.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert set(changed) == set(before)


def test_what_does_not_fit_is_refused() -> None:
    channels = gym.make("ISAC-MISO-v0", **SMALL)
    with pytest.raises(ValueError, match="observation must be 'features'"):
        make_policy_kwargs(channels)
    envs = make_sb3_env(2, **FEATURES)
    with pytest.raises(ValueError, match="width must be an integer >= 1, got 0"):
        make_policy_kwargs(envs.envs, 0)
    with pytest.raises(ValueError, match="use_sde must be False"):
        PPO(
            UserPolicy,
            envs,
            n_steps=2,
            batch_size=4,
            use_sde=True,
            policy_kwargs=make_policy_kwargs(envs.envs),
        )
    with pytest.raises(ValueError, match="features_extractor_class must be UserExtractor"):
        PPO(UserPolicy, envs, n_steps=2, batch_size=4)


def test_the_extractor_alone_gives_what_is_known_of_every_own_user() -> None:
    envs = make_sb3_env(2, **FEATURES, num_cells=2)
    kwargs = make_policy_kwargs(envs.envs, 8)
    extractor = UserExtractor(envs.observation_space, **kwargs["features_extractor_kwargs"])
    observation = torch.from_numpy(np.asarray(envs.reset()))
    assert extractor(observation).shape == (2, extractor.features_dim) == (2, 2 * 3 * 8)
