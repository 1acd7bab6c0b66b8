from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")  # of the same extra

from sb3_contrib import TQC
from simple_bandits import Bandit, Chain, DictBandit
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from isac_gym.agents.loading import load_agent
from isac_gym.rl import OffPolicyLagrangian, PIDMultiplier, PlainMultiplier, SACLagrangian
from isac_gym.rl.sac import find_actor_loss
from isac_gym.rl.tqc import TQCLagrangian


class Average(BaseCallback):
    """Actions and multipliers, averaged over the last steps; λ moves about its optimum."""

    def __init__(self, begin: float) -> None:
        super().__init__()
        self.begin = begin
        self.rows: list[np.ndarray] = []

    def _on_step(self) -> bool:
        model: Any = self.model
        if model.num_timesteps >= self.begin:
            env: Any = self.training_env
            values = [each.value for each in model.multipliers.values()]
            self.rows.append(np.concatenate([env.chosen.mean(0), values]))
        return True


def make(env: VecEnv, names: Any, kind: Any = SACLagrangian, **settings: Any) -> Any:
    given: dict[str, Any] = {"gamma": 0.0, "batch_size": 32, "learning_starts": 32, "seed": 0}
    given |= {"device": "cpu", "buffer_size": 1024}
    given |= {"policy_kwargs": {"net_arch": [8]}} | settings
    return kind(given.pop("policy", "MlpPolicy"), env, names, **given)


@pytest.mark.parametrize("kind", [SACLagrangian, TQCLagrangian])
def test_each_constraint_has_the_multiplier_of_its_closed_form(kind: Any) -> None:
    # The entropy-regularised optimum is ∝ exp((r - λ·c)/α), a Gaussian of the mean of the bandit
    # without entropy and of the variance α/2, far from the bounds: λ = 2·(0.8 - limit)₊ again.
    # The multiplier sees the slopes of learned critics, hence its wider bound.
    env = Bandit(64, [0.3, 1.2], arrays=True, noise=0.02)
    agent = make(
        env,
        ["constraint_0", "constraint_1"],
        kind,
        multiplier=PIDMultiplier(0.1, initial=0.3),
        multiplier_interval=64,
        learning_starts=1000,
        buffer_size=20_000,
        batch_size=256,
        learning_rate=lambda remaining: 0.01 * remaining,
        ent_coef=0.01,
        policy_kwargs={
            "net_arch": {"pi": [8], "qf": [64, 64]},
            "activation_fn": torch.nn.SiLU,
        },
    )
    average = Average(0.85 * 800 * 64)
    agent.learn(800 * 64, callback=average, log_interval=None)
    found = np.mean(average.rows, 0)
    np.testing.assert_allclose(found[:2], [0.3, 0.8], rtol=0.02)
    assert found[2] == pytest.approx(1.0, rel=0.03)
    assert found[3] == pytest.approx(0.0, abs=1e-3)

    # The constraints' critics have learned them where the policy goes.
    actions = np.array([[0.2, 0.7], [0.4, 0.9]], np.float32)
    given = torch.as_tensor(agent.policy.scale_action(actions))
    with torch.no_grad():
        values = agent.cost_critics(torch.ones(2, 1), given).numpy()
    np.testing.assert_allclose(values, actions - env.limits, atol=0.05)


def test_the_loss_of_the_actor_is_divided_as_a_whole() -> None:
    log_probs, rewards = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [-2.0]])
    costs, multipliers = torch.tensor([[1.0, 2.0], [0.0, -4.0]]), torch.tensor([0.5, 1.5])
    found = find_actor_loss(log_probs, rewards, costs, multipliers, torch.tensor(0.1))
    expected = ((0.1 - 2.0 + 0.5 + 3.0) + (0.3 + 2.0 - 6.0)) / 2.0 / 3.0
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_targets_of_the_constraints_critics(gamma: float) -> None:
    names = ["constraint_0", "constraint_1"]
    agent = make(Chain([3, 2], [False, True], 2), names, gamma=gamma)
    agent.learn(64, log_interval=None)
    data = agent.replay_buffer.sample(32)
    assert set(data.dones.unique().tolist()) == {0.0, 1.0}
    with torch.no_grad():
        next_actions = agent.actor(data.next_observations) if gamma else None
        found = agent._find_cost_losses(data, next_actions)
        targets = data.constraints.clone()
        if gamma:
            ahead = agent.cost_critics_target(data.next_observations, next_actions)
            targets += gamma * ahead * (1.0 - data.dones)
        values = agent.cost_critics(data.observations, data.actions)
    torch.testing.assert_close(found, (values - targets).square().mean(0))


def test_the_replay_keeps_each_transition_with_its_constraints() -> None:
    env = Chain([3, 2], [False, True], 2)
    agent = make(env, ["constraint_1", "constraint_0"], learning_starts=1000)
    agent.learn(20, log_interval=None)
    expected = np.stack(env.constraints)[:, :, ::-1]
    np.testing.assert_array_equal(agent.replay_buffer.constraints[:10], expected)
    data = agent.replay_buffer.sample(50)
    rewards, rows = np.stack(env.rewards).ravel(), expected.reshape(20, 2)
    for reward, row in zip(data.rewards.numpy().ravel(), data.constraints.numpy(), strict=True):
        np.testing.assert_array_equal(row, rows[rewards == reward][0])


def test_multipliers_see_fresh_transitions_of_the_policy_only() -> None:
    env = Chain([3, 2], [False, True], 1)
    agent = make(
        env,
        ["constraint_0"],
        learning_starts=10,
        multiplier=PlainMultiplier(0.1, initial=5.0),
        multiplier_interval=8,
    )
    agent.learn(30, log_interval=None)
    constraints = np.stack(env.constraints)[..., 0]
    # Steps of two transitions: 5 are random, and of the 10 of the policy 8 are used.
    means = [constraints[5:9].mean(), constraints[9:13].mean()]
    assert agent.multipliers["constraint_0"].value == pytest.approx(5.0 + 0.1 * sum(means))
    assert agent._fresh[1] == 4


@pytest.mark.parametrize(("constrained", "plain"), [(SACLagrangian, SAC), (TQCLagrangian, TQC)])
def test_without_a_multiplier_the_policy_is_that_of_the_algorithm(
    constrained: Any, plain: Any
) -> None:
    found = []
    for kind in (constrained, plain):
        env = Chain([3, 2], [False, True], 1)
        own = {"multiplier": PlainMultiplier(1e-30)} if kind is constrained else {}
        given: dict[str, Any] = {"learning_starts": 16, "buffer_size": 100, "seed": 0}
        given |= {"device": "cpu", "policy_kwargs": {"net_arch": [8]}} | own
        given |= {"constraints": ["constraint_0"]} if kind is constrained else {}
        agent: Any = kind("MlpPolicy", env, **given)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        agent.learn(40, log_interval=None)
        found.append(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]))
    torch.testing.assert_close(found[0], found[1])


class MeanOfCritics(OffPolicyLagrangian, SAC):
    """An algorithm with critics of its own."""

    def _find_critic_loss(
        self, data: Any, next_actions: Any, next_log_probs: Any, ent_coef: Any
    ) -> torch.Tensor:
        found = torch.stack(self.critic(data.observations, data.actions)).mean(0)
        return (found - data.rewards).square().mean()

    def _value_actions(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        self.valued = True
        return torch.stack(self.critic(observations, actions)).mean(0)


def test_an_algorithm_of_other_critics_is_had_by_the_mixin() -> None:
    agent = make(Bandit(8, [0.0]), ["constraint_0"], MeanOfCritics)
    agent.learn(64, log_interval=None)
    assert agent.valued
    assert agent.num_timesteps == 64


def test_observations_may_be_dictionaries() -> None:
    env = DictBandit(8, [0.0], truncated=True)
    agent = make(env, ["constraint_0"], policy="MultiInputPolicy", gamma=0.9)
    agent.learn(64, log_interval=None)
    meta, tensors = agent.get_state()
    assert tensors["replay/observations/context"].shape == (8, 8, 1)
    assert "replay/next_observations/context" in tensors
    agent.set_state(meta, tensors)


def test_a_checkpoint_of_a_bandit_holds_no_next_observations() -> None:
    agent = make(Bandit(8, [0.0]), ["constraint_0"], gamma=0.0)
    agent.learn(64, log_interval=None)
    _, tensors = agent.get_state()
    assert "replay/observations/" in tensors
    assert not any("next" in name for name in tensors)


def test_what_is_logged() -> None:
    agent = make(Bandit(8, [0.0, 1.0]), ["constraint_0", "constraint_1"], multiplier_interval=8)
    agent.learn(64, log_interval=None)
    logged = agent.logger.name_to_value
    for name in ("constraint_0", "constraint_1"):
        assert np.isfinite(logged[f"rollout/{name}"])
        assert logged[f"train/multiplier_{name}"] == pytest.approx(agent.multipliers[name].value)
        assert logged[f"train/cost_value_loss_{name}"] > 0.0


@pytest.mark.parametrize("kind", [SACLagrangian, TQCLagrangian])
def test_a_saved_agent_is_loaded_with_critics_and_multipliers(kind: Any, tmp_path: Path) -> None:
    env = Bandit(8, [0.0, 1.0])
    agent = make(env, ["constraint_0", "constraint_1"], kind, multiplier=PIDMultiplier(1.0))
    agent.learn(128, log_interval=None)
    agent.save(tmp_path / "agent.zip")
    expected = agent.get_parameters()
    assert {"cost_critics", "cost_critics_target", "cost_critics.optimizer"} <= expected.keys()
    for loaded in (
        kind.load(tmp_path / "agent.zip", env, device="cpu"),
        load_agent(tmp_path / "agent.zip", allow_pickle=True),
    ):
        assert type(loaded) is kind
        assert loaded.multipliers == agent.multipliers
        for name in ("cost_critics", "cost_critics_target", "policy"):
            for key, value in loaded.get_parameters()[name].items():
                assert torch.equal(value, expected[name][key])
    resumed = kind.load(tmp_path / "agent.zip", env, device="cpu")
    resumed.learn(64, log_interval=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_steps": 3}, "n_steps must be 1, got 3"),
        ({"multiplier_interval": 0}, "multiplier_interval must be an integer >= 1, got 0"),
        (
            {
                "optimize_memory_usage": True,
                "replay_buffer_kwargs": {"handle_timeout_termination": False},
            },
            "optimize_memory_usage must be False, got True",
        ),
        ({"replay_buffer_class": dict}, "replay_buffer_class must be a ConstrainedReplayBuffer"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Bandit(4, [0.0]), ["constraint_0"], **settings)
