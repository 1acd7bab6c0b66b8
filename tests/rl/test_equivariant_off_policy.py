"""Policies of SAC, TD3 and TQC to which the order and the number of users make no difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from small_features import FEATURES, ORDER, draw_features, turn_actions

pytest.importorskip("sb3_contrib")

from stable_baselines3 import SAC, TD3

from isac_gym.envs.sb3 import make_sb3_env
from isac_gym.rl.critics import ActionCostCritics
from isac_gym.rl.equivariant import count_kinds, make_policy_kwargs
from isac_gym.rl.equivariant_off_policy import UserSACPolicy, UserTD3Policy, UserValues
from isac_gym.rl.sac import SACLagrangian
from isac_gym.rl.tqc import TQC, TQCLagrangian, UserTQCPolicy

KINDS: dict[str, Any] = {
    "sac": (SAC, UserSACPolicy),
    "td3": (TD3, UserTD3Policy),
    "tqc": (TQC, UserTQCPolicy),
}


def make_model(algorithm: str, envs_count: int = 2, rounds: int = 2, **changes: Any) -> Any:
    envs = make_sb3_env(envs_count, **{**FEATURES, **changes})
    kind, policy = KINDS[algorithm]
    return kind(
        policy,
        envs,
        gamma=0.0,
        seed=0,
        device="cpu",
        batch_size=32,
        learning_starts=envs_count,
        policy_kwargs=make_policy_kwargs(envs.envs, 8, rounds),
    )


def make_policy(algorithm: str, **changes: Any) -> Any:
    policy = make_model(algorithm, **changes).policy
    torch.manual_seed(0)
    with torch.no_grad():  # actors begin as the middle of the box, which is the same in any order
        for parameter in policy.parameters():
            parameter.normal_(0.0, 0.4)
    return policy


def read_actor(actor: Any, features: torch.Tensor) -> list[torch.Tensor]:
    """All that an actor sets: means and deviations, or actions alone."""
    if not hasattr(actor, "log_std"):
        return [actor(features)]
    mean, log_deviation, _ = actor.get_action_dist_params(features)
    return [mean, log_deviation]


@pytest.mark.parametrize("scheduling", ["all", "contention"])
@pytest.mark.parametrize("algorithm", list(KINDS))
def test_users_in_another_order_have_the_same_numbers_and_values(
    algorithm: str, scheduling: str
) -> None:
    policy = make_policy(algorithm, scheduling=scheduling)
    extractor = policy.actor.features_extractor
    features, turned = (draw_features(extractor.layout, 4, order) for order in (None, ORDER))
    actions = torch.rand(4, policy.action_space.shape[0], generator=torch.Generator())
    with torch.no_grad():
        for before, after in zip(
            read_actor(policy.actor, features), read_actor(policy.actor, turned), strict=True
        ):
            torch.testing.assert_close(after, turn_actions(before, ORDER))
            assert float(before.unflatten(1, (-1, 3)).std(-1).max()) > 1e-3
        values = policy.critic(features, actions)
        others = policy.critic(turned, turn_actions(actions, ORDER))
        moved = policy.critic(features, turn_actions(actions, ORDER))
    torch.testing.assert_close(others, values)
    # That users change places without what was done for them makes a difference.
    assert not torch.allclose(moved[0], values[0], rtol=1e-3)


def test_what_a_users_numbers_cost_another_depends_on_the_pair() -> None:
    """In a single round: features alone would not have told it of both in time."""
    policy = make_policy("sac", rounds=1)
    layout = policy.actor.features_extractor.layout
    features = draw_features(layout, 1)
    of_users = layout.all_users * len(layout.user_names)
    actions = torch.zeros(1, policy.action_space.shape[0], requires_grad=True)
    pairs = features[:, of_users:].clone().requires_grad_()
    value = policy.critic(torch.cat([features[:, :of_users], pairs], 1), actions)[0]
    (slopes,) = torch.autograd.grad(value.sum(), actions, create_graph=True)
    of_last = slopes.unflatten(1, (-1, layout.own_users))[..., -1]
    (mixed,) = torch.autograd.grad(of_last.square().sum(), pairs)
    by_pair = mixed.view(layout.own_users, layout.all_users, -1).abs().amax(-1)
    assert float(by_pair[0, -1]) > 1e-4


@pytest.mark.parametrize("algorithm", list(KINDS))
def test_the_weights_fit_any_number_of_users(algorithm: str) -> None:
    weights = make_policy(algorithm).state_dict()
    larger = make_policy(algorithm, num_users=5)
    larger.load_state_dict(weights)
    envs = make_sb3_env(2, **{**FEATURES, "num_users": 5})
    action, _ = larger.predict(envs.reset(), deterministic=True)
    assert action.shape == (2, 15)


def test_every_station_is_valued_with_its_own_numbers() -> None:
    policy = make_policy("sac", num_cells=2)
    size = policy.actor.features_extractor.layout.size
    one, other = torch.rand(1, size), torch.rand(1, size)
    first, second = torch.rand(1, 9), torch.rand(1, 9)
    with torch.no_grad():
        value = policy.critic(torch.cat([one, other], 1), torch.cat([first, second], 1))
        turned = policy.critic(torch.cat([other, one], 1), torch.cat([second, first], 1))
        mixed = policy.critic(torch.cat([one, other], 1), torch.cat([second, first], 1))
    torch.testing.assert_close(turned, value)
    assert not torch.allclose(mixed[0], value[0], rtol=1e-3)


@pytest.mark.parametrize("algorithm", list(KINDS))
def test_all_of_it_learns_and_is_kept_by_the_library(algorithm: str, tmp_path: Any) -> None:
    model = make_model(algorithm, 16)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(16 * 12)
    held = model.policy.state_dict()
    unchanged = {name for name, value in held.items() if torch.equal(value, before[name])}
    assert not unchanged
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", device="cpu")
    observation = model.env.reset()
    for each in (model, loaded):
        assert isinstance(each.policy, KINDS[algorithm][1])
    expected, _ = model.predict(observation, deterministic=True)
    found, _ = loaded.predict(observation, deterministic=True)
    assert (found == expected).all()


@pytest.mark.parametrize(
    ("kind", "policy"), [(SACLagrangian, UserSACPolicy), (TQCLagrangian, UserTQCPolicy)]
)
def test_critics_of_constraints_are_as_indifferent(kind: Any, policy: Any) -> None:
    envs = make_sb3_env(2, **FEATURES)
    model = kind(policy, envs, gamma=0.0, policy_kwargs=make_policy_kwargs(envs.envs, 8))
    assert isinstance(model.cost_critics, ActionCostCritics)
    (network,) = model.cost_critics.networks
    assert isinstance(network.q_networks[0], UserValues)
    layout = model.actor.features_extractor.layout
    features, turned = (draw_features(layout, 4, order) for order in (None, ORDER))
    actions = torch.rand(4, 9)
    with torch.no_grad():
        values = model.cost_critics(features, actions)
        others = model.cost_critics(turned, turn_actions(actions, ORDER))
    assert values.shape == (4, 1)
    torch.testing.assert_close(others, values)
    before = {name: weight.clone() for name, weight in model.cost_critics.state_dict().items()}
    model.learn(120)
    held = model.cost_critics.state_dict()
    assert not [name for name, weight in held.items() if torch.equal(weight, before[name])]


@pytest.mark.parametrize("algorithm", list(KINDS))
def test_another_extractor_is_refused(algorithm: str) -> None:
    kind, policy = KINDS[algorithm]
    envs = make_sb3_env(2, **FEATURES)
    with pytest.raises(ValueError, match="features_extractor_class must be UserExtractor"):
        kind(policy, envs)


@pytest.mark.parametrize("algorithm", ["sac", "tqc"])
def test_exploration_that_depends_on_the_state_is_refused(algorithm: str) -> None:
    kind, policy = KINDS[algorithm]
    envs = make_sb3_env(2, **FEATURES)
    with pytest.raises(ValueError, match="use_sde must be False"):
        kind(policy, envs, use_sde=True, policy_kwargs=make_policy_kwargs(envs.envs))


def test_actions_that_are_not_the_same_numbers_for_every_user_are_refused() -> None:
    box = spaces.Box(-1.0, 1.0, (10,))
    assert count_kinds(box, 5) == 2
    with pytest.raises(ValueError, match="action_space must be some numbers for each of 3 users"):
        count_kinds(box, 3)
