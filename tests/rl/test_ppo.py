from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from simple_bandits import Bandit, Chain, DictBandit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from isac_gym.agents.loading import load_agent
from isac_gym.rl import PIDMultiplier, PlainMultiplier, PPOLagrangian
from isac_gym.rl.multipliers import Multiplier
from isac_gym.rl.repeating import RepeatingPolicy


class Average(BaseCallback):
    """Policy means and multipliers, averaged over the last rollouts; λ moves about its optimum."""

    def __init__(self, begin: float) -> None:
        super().__init__()
        self.begin = begin
        self.rows: list[np.ndarray] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        if model.num_timesteps >= self.begin:
            env: Any = self.training_env
            contexts = np.unique(env.contexts)[:, None].astype(np.float32)
            actions = model.predict(contexts, deterministic=True)[0]
            values = [each.value for each in model.multipliers.values()]
            self.rows.append(np.concatenate([actions.ravel(), values]))


def make(env: VecEnv, names: Any, policy: Any = "MlpPolicy", **settings: Any) -> PPOLagrangian:
    given = {"gamma": 0.0, "n_steps": 4, "batch_size": 2 * env.num_envs, "n_epochs": 3, "seed": 0}
    kwargs = {"net_arch": [], "log_std_init": -1.5}
    return PPOLagrangian(
        policy, env, names, **{**given, "policy_kwargs": kwargs, "device": "cpu", **settings}
    )


def settle(
    env: Bandit, multiplier: Multiplier, rollouts: int = 100, **settings: Any
) -> tuple[np.ndarray, PPOLagrangian]:
    """Means of the policy by context and dimension, then the multipliers; and the agent."""
    names = [f"constraint_{d}" for d in range(len(env.limits))]
    schedule: Callable[[float], float] = lambda remaining: 0.03 * remaining  # noqa: E731
    agent = make(env, names, multiplier=multiplier, learning_rate=schedule, **settings)
    agent.policy.log_std.requires_grad_(False)
    total = 4 * env.num_envs * rollouts
    average = Average(0.5 * total)
    agent.learn(total, callback=average)
    return np.mean(average.rows, 0), agent


@pytest.mark.parametrize(
    "multiplier",
    [
        PlainMultiplier(0.3, initial=0.5),
        PIDMultiplier(0.3, initial=0.5, gain=0.5, derivative_gain=0.2),
    ],
    ids=lambda m: type(m).__name__,
)
def test_each_constraint_has_the_multiplier_of_its_closed_form(multiplier: Multiplier) -> None:
    # λ = 2·(0.8 - limit)₊; the third constraint is not active.
    found, agent = settle(Bandit(256, [0.3, 0.55, 1.2], arrays=True), multiplier)
    np.testing.assert_allclose(found[:5], [0.3, 0.55, 0.8, 1.0, 0.5], rtol=0.02)
    assert found[5] == pytest.approx(0.0, abs=1e-3)
    assert [type(m) for m in agent.multipliers.values()] == [type(multiplier)] * 3


# b = (0.8, 0.4) and w = (1, 4): E b - λ·E[1/(2w)] = 0.6 - 0.3125·λ = 0.2875 at λ = 1.
TWO_CONTEXTS: dict[str, Any] = {
    "limits": [0.2875],
    "arrays": True,
    "contexts": [-1.0, 1.0],
    "target": lambda x: 0.6 - 0.2 * x,
    "weight": lambda x: 2.5 + 1.5 * x,
}


def test_one_multiplier_couples_contexts_by_equal_slopes() -> None:
    found, agent = settle(Bandit(512, **TWO_CONTEXTS), PlainMultiplier(0.5))
    np.testing.assert_allclose(found, [0.3, 0.275, 1.0], rtol=0.02)

    # The constraint's critic has learned its mean in each context.
    contexts = torch.tensor([[-1.0], [1.0]])
    with torch.no_grad():
        values = agent.cost_critics(contexts).numpy().ravel()
    actions = agent.predict(contexts.numpy(), deterministic=True)[0].ravel()
    np.testing.assert_allclose(values, actions - 0.2875, atol=0.02)


class NoisyBandit(Bandit):
    """A bandit whose rewards have a large part that is drawn anew for each episode."""

    def draw(self) -> np.ndarray:
        self.luck = self.rng.normal(0.0, 10.0, self.num_envs)
        return super().draw()

    def step_wait(self) -> Any:
        luck = self.luck
        new, rewards, dones, infos = super().step_wait()
        return new, (rewards + luck).astype(np.float32), dones, infos


@pytest.mark.parametrize("policy", ["MlpPolicy", RepeatingPolicy])
def test_actions_on_the_same_context_are_compared_instead_of_criticised(policy: Any) -> None:
    """The optimum of the test before, though episodes differ a hundred times as much as actions."""
    env = NoisyBandit(512, **TWO_CONTEXTS, hold=2)  # two episodes a rollout
    found, agent = settle(env, PlainMultiplier(0.5), baseline="episode", policy=policy)
    np.testing.assert_allclose(found, [0.3, 0.275, 1.0], rtol=0.02)
    assert agent.cost_critics is None
    assert "train/cost_value_loss_constraint_0" not in agent.logger.name_to_value


def test_it_needs_no_constraints() -> None:
    schedule: Callable[[float], float] = lambda remaining: 0.03 * remaining  # noqa: E731
    env = Bandit(256, [5.0], hold=4, weight=lambda x: np.full_like(x, 5.0))
    agent = make(env, [], baseline="episode", learning_rate=schedule)
    agent.learn(60 * 4 * 256)
    assert agent.multipliers == {}
    found = agent.predict(np.ones((1, 1), np.float32), deterministic=True)[0]
    np.testing.assert_allclose(found, [[0.8]], rtol=0.02)
    critical = make(Bandit(16, [5.0]), [])
    critical.learn(64)
    assert critical.cost_critics is None


def test_the_multiplier_scales_with_the_reward() -> None:
    env = Bandit(256, [0.3], arrays=True, weight=lambda x: np.full_like(x, 10.0))
    found, _ = settle(env, PlainMultiplier(3.0))
    np.testing.assert_allclose(found, [0.3, 10.0], rtol=0.02)


def test_critics_of_constraints_learn_their_values() -> None:
    # The policy begins where the reward is greatest, and no multiplier moves it from there.
    agent = make(
        Bandit(64, [0.5, -1.5], target=np.zeros_like),
        ["constraint_0", "constraint_1"],
        multiplier=PlainMultiplier(1e-9),
        learning_rate=0.03,
    )
    agent.learn(40 * 4 * 64)
    with torch.no_grad():
        values = agent.cost_critics(torch.ones(1, 1)).numpy()[0]
    np.testing.assert_allclose(values, [-0.5, 1.5], atol=0.1)
    losses = [agent.logger.name_to_value[f"train/cost_value_loss_constraint_{d}"] for d in (0, 1)]
    np.testing.assert_allclose(
        losses, agent.policy.log_std.detach().exp()[:2].numpy() ** 2, rtol=0.5
    )


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_critics_at_truncations(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    env = Chain([3, 3, 3, 5], [True, False, True, True], 2)
    agent = make(env, ["constraint_0", "constraint_1"], gamma=gamma, n_steps=6, batch_size=24)
    monkeypatch.setattr(agent, "train", lambda: None)
    calls: dict[str, list[int]] = {"reward": [], "cost": []}
    predict_values, forward = agent.policy.predict_values, agent.cost_critics.forward

    def count_reward(given: torch.Tensor) -> torch.Tensor:
        calls["reward"].append(len(given))
        return predict_values(given)

    def count_cost(given: torch.Tensor) -> torch.Tensor:
        calls["cost"].append(len(given))
        return forward(given)

    monkeypatch.setattr(agent.policy, "predict_values", count_reward)
    monkeypatch.setattr(agent.cost_critics, "forward", count_cost)
    agent.learn(24)
    if gamma == 0.0:
        assert calls == {"reward": [], "cost": [24]}
    else:
        # Two truncations at once, one, two at once, what follows the rollout, and the rollout.
        assert calls == {"reward": [2, 1, 2, 4], "cost": [2, 1, 2, 4, 24]}

    observations = torch.as_tensor(agent.rollout_buffer.observations)
    with torch.no_grad():
        values = forward(observations.reshape(24, 2)).reshape(6, 4, 2).numpy()
        ends = forward(torch.as_tensor(np.stack(env.reached)).reshape(24, 2)).reshape(6, 4, 2)
        last = forward(torch.as_tensor(agent._last_obs)).numpy()
    following = np.concatenate([values[1:], last[None]])
    for i in range(4):
        for t in range(6):
            expected, weight = np.zeros(2), 1.0
            for k in range(t, 6):
                done = env.ended[k][i]
                ahead = following[k, i] if not done else ends[k, i].numpy() * env.truncated[i]
                expected += weight * (env.constraints[k][i] + gamma * ahead - values[k, i])
                weight *= gamma * agent.gae_lambda
                if done:
                    break
            np.testing.assert_allclose(agent._rollout[2][t, i], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(agent._rollout[1], np.mean(env.constraints, (0, 1)), atol=1e-6)


def test_the_reward_is_bootstrapped_as_in_ppo(monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_baselines3 import PPO

    found = []
    for own in (True, False):
        env = Chain([3, 3, 3, 5], [True, False, True, True], 1)
        given: dict[str, Any] = {"n_steps": 6, "batch_size": 24, "seed": 0, "device": "cpu"}
        agent = (
            PPOLagrangian("MlpPolicy", env, ["constraint_0"], **given)
            if own
            else PPO("MlpPolicy", env, **given)
        )
        torch.manual_seed(0)
        monkeypatch.setattr(agent, "train", lambda: None)
        agent.learn(24)
        found.append((agent.rollout_buffer.advantages, agent.rollout_buffer.returns))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_without_a_multiplier_the_policy_is_that_of_ppo() -> None:
    from stable_baselines3 import PPO

    found = []
    for kind in (PPOLagrangian, PPO):
        given: dict[str, Any] = {"n_steps": 6, "batch_size": 24, "seed": 0, "device": "cpu"}
        given |= {"constraints": ["constraint_0"]} if kind is PPOLagrangian else {}
        agent = kind("MlpPolicy", Chain([3, 3, 3, 5], [True, False, True, True], 1), **given)
        if isinstance(agent, PPOLagrangian):
            agent.multipliers["constraint_0"].step_size = 1e-30
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        agent.learn(24)
        found.append(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_hard_constraints_are_positive_parts() -> None:
    found = []
    for name, form in (("constraint_0", "hard"), ("cost_0", "mean"), ("constraint_0", "mean")):
        agent = make(
            Bandit(16, [0.0]), [name], constraint_form=form, multiplier=PlainMultiplier(1.0)
        )
        agent.learn(64)
        found.append(agent.multipliers[name].value)
    assert found[0] == found[1] > found[2]


def test_what_is_logged() -> None:
    agent = make(Bandit(16, [0.0, 1.0]), ["constraint_0", "constraint_1"])
    agent.learn(64, log_interval=None)
    logged = agent.logger.name_to_value
    for name in ("constraint_0", "constraint_1"):
        assert logged[f"rollout/{name}"] == pytest.approx(agent._rollout[1][int(name[-1])])
        assert logged[f"train/multiplier_{name}"] == pytest.approx(agent.multipliers[name].value)
        assert logged[f"train/cost_value_loss_{name}"] > 0.0


def test_a_saved_agent_is_loaded_with_critics_and_multipliers(tmp_path: Path) -> None:
    env = Bandit(16, [0.0, 1.0])
    names = ["constraint_0", "constraint_1"]
    agent = make(env, names, multiplier=PIDMultiplier(1.0))
    agent.learn(128)
    agent.save(tmp_path / "agent.zip")
    for loaded in (
        PPOLagrangian.load(tmp_path / "agent.zip", env, device="cpu"),
        load_agent(tmp_path / "agent.zip", allow_pickle=True),
    ):
        assert isinstance(loaded, PPOLagrangian)
        assert loaded.constraints == tuple(names)
        assert loaded.multipliers == agent.multipliers
        _compare(loaded.get_parameters(), agent.get_parameters())
    assert "cost_critics.optimizer" in agent.get_parameters()


def _compare(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            _compare(found[name], expected[name])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_observations_may_be_dictionaries() -> None:
    env = DictBandit(16, [0.0], truncated=True)
    agent = PPOLagrangian(
        "MultiInputPolicy", env, ["constraint_0"], gamma=0.9, n_steps=4, batch_size=32, device="cpu"
    )
    agent.learn(64)
    meta, tensors = agent.get_state()
    agent.set_state(meta, tensors)
    assert agent._last_obs is not None


def test_state_dependent_exploration_and_discrete_actions() -> None:
    env = Bandit(16, [0.0])
    make(env, ["constraint_0"], use_sde=True, sde_sample_freq=2, policy_kwargs=None).learn(64)
    env.action_space = gym.spaces.Discrete(3)
    env.step_async = lambda actions: setattr(env, "chosen", actions[:, None] / 2.0)  # type: ignore[method-assign]
    agent = make(env, ["constraint_0"], policy_kwargs=None)
    agent.learn(64)
    assert agent.rollout_buffer.actions.max() == 2


def test_the_environment_of_the_package_is_learned() -> None:
    env = gym.make("ISAC-MISO-v0")
    agent = PPOLagrangian(
        "MlpPolicy", env, gamma=0.0, n_steps=8, batch_size=8, n_epochs=1, device="cpu"
    )
    agent.learn(16)
    assert agent.multipliers["constraint_sensing"].value > 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "mean"}, "baseline must be one of 'critic', 'episode', got 'mean'"),
        ({"baseline": "episode", "gamma": 0.9}, "gamma must be 0 with baseline='episode', got 0.9"),
        ({"names": ["a", "a"]}, "constraints must be different names"),
        ({"constraint_form": "soft"}, "constraint_form must be one of 'mean', 'hard', got 'soft'"),
        ({"multiplier": 0.1}, r"multiplier must be a Multiplier, or a mapping .* got 0.1"),
        ({"multiplier": {"b": PlainMultiplier()}}, r"to one from each of \['constraint_0'\]"),
        ({"reseed_rollouts": True, "seed": None}, "seed must be an integer with reseed_rollouts"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    names = settings.pop("names", ["constraint_0"])
    with pytest.raises(ValueError, match=message):
        make(Bandit(4, [0.0]), names, **settings)


def test_episodes_of_one_step_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="episodes must have at least two steps of a rollout"):
        make(Bandit(4, [0.0]), ["constraint_0"], baseline="episode").learn(16)


def test_a_constraint_that_no_info_has_ends_the_training() -> None:
    with pytest.raises(ValueError, match=r"which has 'constraint_0', 'cost_0', got 'constraint_x'"):
        make(Bandit(4, [0.0]), ["constraint_x"]).learn(16)
