"""Several actions for one observation: equal numbers and gradients, and when it is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from direct_model import SMALL
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from simple_bandits import Bandit, DictBandit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy

from isac_gym.channels import HeldChannels, RayleighChannel
from isac_gym.envs.sb3 import make_sb3_env
from isac_gym.rl import PPOLagrangian
from isac_gym.rl.equivariant import UserPolicy, make_policy_kwargs
from isac_gym.rl.precoding import PrecoderPolicy, make_precoder_kwargs
from isac_gym.rl.repeating import EpisodeRolloutBuffer, RepeatingPolicy

FEATURES: dict[str, Any] = {"control": "structured", "observation": "features"}


def make_policy(kind: str) -> ActorCriticPolicy:
    envs = make_sb3_env(2, **{**SMALL, **({} if kind == "precoders" else FEATURES)})
    torch.manual_seed(0)
    policy: Any = RepeatingPolicy
    kwargs: dict[str, Any] = {"net_arch": [8]}
    if kind != "mlp":
        make_kwargs = make_precoder_kwargs if kind == "precoders" else make_policy_kwargs
        policy, kwargs = PrecoderPolicy if kind == "precoders" else UserPolicy, {}
        kwargs = make_kwargs(envs.envs, 8)
    found = policy(envs.observation_space, envs.action_space, lambda _: 1e-3, **kwargs)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(0.0, 0.3)
    return found


@pytest.mark.parametrize("kind", ["mlp", "users", "precoders"])
def test_reading_an_observation_once_changes_neither_numbers_nor_gradients(kind: str) -> None:
    policy = make_policy(kind)
    envs = make_sb3_env(3, **{**SMALL, **({} if kind == "precoders" else FEATURES)})
    envs.seed(1)
    observations = torch.from_numpy(np.asarray(envs.reset()))
    generator = torch.Generator().manual_seed(2)
    actions = torch.randn(12, *envs.action_space.shape, generator=generator)
    found = []
    for given in (observations, observations.repeat_interleave(4, 0)):
        policy.zero_grad()
        values, log_probs, entropy = policy.evaluate_actions(given, actions)
        assert entropy is not None
        (log_probs.square().mean() + entropy.mean()).backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None and p.grad.any()]
        found.append((log_probs.detach(), entropy.detach().mean(), *gradients))
        assert values.shape == (12, 1)
    assert len(found[0]) == len(found[1]) > 4
    for once, several in zip(*found, strict=True):
        error = (once - several).abs().max()
        assert error <= 5e-4 * several.abs().max()


def test_actions_that_belong_to_no_observation_are_refused() -> None:
    policy = RepeatingPolicy(
        spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), lambda _: 1e-3, net_arch=[]
    )
    for count in (0, 1, 3):
        with pytest.raises(ValueError, match=rf"multiple of 2 of them, got \({count}, 1\)"):
            policy.evaluate_actions(torch.zeros(2, 2), torch.zeros(count, 1))
    with pytest.raises(ValueError, match="multiple of 0 of them"):
        policy.evaluate_actions(torch.zeros(0, 2), torch.zeros(3, 1))
    choices = RepeatingPolicy(
        spaces.Box(-1, 1, (2,)), spaces.Discrete(3), lambda _: 1e-3, net_arch=[]
    )
    with pytest.raises(ValueError, match="action_dist must be a Gaussian"):
        choices.evaluate_actions(torch.zeros(2, 2), torch.zeros(4))


def fill(
    observations: np.ndarray, starts: np.ndarray
) -> tuple[EpisodeRolloutBuffer, dict[str, np.ndarray]]:
    """A buffer, and what was put into it, environment after environment."""
    steps, envs = starts.shape
    box = spaces.Box(-np.inf, np.inf, observations.shape[2:], np.float32)
    buffer = EpisodeRolloutBuffer(
        steps, box, spaces.Box(-1, 1, (2,), np.float32), device="cpu", gamma=0.0, n_envs=envs
    )
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (steps, envs, 2)).astype(np.float32)
    rewards = rng.normal(size=(steps, envs)).astype(np.float32)
    for t in range(steps):
        numbers = torch.from_numpy(10.0 * np.arange(envs) + t)
        buffer.add(observations[t], actions[t], rewards[t], starts[t], numbers[:, None], numbers)
    buffer.compute_returns_and_advantage(torch.zeros(envs), np.ones(envs, bool))
    flat = {
        "observations": observations.swapaxes(0, 1).reshape(steps * envs, -1),
        "actions": actions.swapaxes(0, 1).reshape(-1, 2),
        "returns": rewards.T.ravel(),
    }
    return buffer, flat


def episodes(steps: int, envs: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    starts = np.zeros((steps, envs), np.float32)
    starts[length::length] = 1.0  # the first may go on from the rollout before
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(-(-steps // length), envs, 3)).astype(np.float32)
    return drawn.repeat(length, 0)[:steps], starts


@pytest.mark.parametrize("length", [3, 6])
def test_minibatches_are_whole_episodes_and_every_step_is_seen_once_a_pass(length: int) -> None:
    observations, starts = episodes(6, 5, length)
    buffer, flat = fill(observations, starts)
    for _ in range(2):  # passes
        seen = []
        for batch in buffer.get(12):
            assert len(batch.actions) == length * len(batch.observations) <= 12
            told = batch.old_values.numpy()
            # The value tells which step it is; with its environment's it is its place.
            place = ((told // 10) * 6 + told % 10).astype(int)
            seen.extend(place)
            for name, given in (("actions", batch.actions), ("returns", batch.returns)):
                np.testing.assert_allclose(given.numpy(), flat[name][place], atol=1e-4)
            whole = batch.observations.numpy().repeat(length, 0)
            np.testing.assert_array_equal(whole, flat["observations"][place])
        assert sorted(seen) == list(range(30))


def test_the_order_of_episodes_is_drawn_anew() -> None:
    buffer, _ = fill(*episodes(6, 50, 3))
    passes = [np.concatenate([b.old_values.numpy() for b in buffer.get(12)]) for _ in range(2)]
    assert (passes[0] != passes[1]).any()
    (whole,) = buffer.get()
    assert len(whole.actions) == 300
    # At least an episode, and no part of one.
    assert [len(batch.actions) for batch in buffer.get(2)] == [3] * 100
    assert {len(batch.actions) for batch in buffer.get(8)} == {6}


@pytest.mark.parametrize("case", ["other observations", "uneven", "not together", "length 1"])
def test_steps_that_differ_keep_observations_of_their_own(case: str) -> None:
    observations, starts = episodes(6, 5, 3)
    if case == "other observations":
        observations = observations + np.linspace(0, 1e-3, 6, dtype=np.float32)[:, None, None]
    elif case == "uneven":
        observations, starts = observations[[0, 0, 0, 0, 3, 3]], starts[[0, 1, 2, 2, 3, 5]]
    elif case == "not together":
        starts[3, 0] = 0.0
    else:
        starts[:] = 1.0
    buffer, flat = fill(observations, starts)
    seen = 0
    for batch in buffer.get(12):
        assert len(batch.observations) == len(batch.actions)
        told = batch.old_values.numpy()
        place = ((told // 10) * 6 + told % 10).astype(int)
        np.testing.assert_array_equal(batch.observations.numpy(), flat["observations"][place])
        seen += len(place)
    assert seen == 30


def test_it_is_chosen_where_actions_are_compared_and_learns_from_fewer_reads() -> None:
    envs = make_sb3_env(
        8, {**SMALL, **FEATURES, "episode_length": 4}, channel_model=HeldChannels(RayleighChannel())
    )
    agent = PPOLagrangian(
        UserPolicy,
        envs,
        baseline="episode",
        gamma=0.0,
        n_steps=8,
        batch_size=16,
        n_epochs=2,
        policy_kwargs=make_policy_kwargs(envs.envs, 8),
        device="cpu",
    )
    assert type(agent.rollout_buffer) is EpisodeRolloutBuffer
    read: list[int] = []
    extractor = agent.policy.features_extractor
    extractor.register_forward_hook(lambda _, given, found: read.append(len(found)))
    agent.learn(64)
    # Each of 16 channels once while acting, and in each of two passes.
    assert sum(read) == 16 + 2 * 16


class Watcher(BaseCallback):
    """Asks the policy during a rollout, and compares what is stored at its end."""

    def __init__(self, asks_for: int) -> None:
        super().__init__()
        self.asks_for = asks_for
        self.errors: list[float] = []

    def _on_step(self) -> bool:
        if self.asks_for:
            contexts = np.full((self.asks_for, 1), 7.0, np.float32)
            self.model.predict(contexts, deterministic=False)
        return True

    def _on_rollout_end(self) -> None:
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        flat = [
            torch.from_numpy(given.reshape(-1, given.shape[-1]))
            for given in (buffer.observations, buffer.actions)
        ]
        with torch.no_grad():
            _, found, _ = self.model.policy.evaluate_actions(*flat)
        error = found.numpy() - buffer.log_probs.ravel()
        self.errors.append(float(np.abs(error).max()))


@pytest.mark.parametrize("asks_for", [0, 1, 16], ids="asks for {}".format)
@pytest.mark.parametrize("hold", [2, 8], ids="hold {}".format)
def test_the_log_probabilities_are_those_of_the_policy_that_acted(asks_for: int, hold: int) -> None:
    """Also where a callback asks it about others, and in episodes that outlast a rollout."""
    env = Bandit(16, [0.0], contexts=[-1.0, 1.0], hold=hold)
    agent = PPOLagrangian(
        RepeatingPolicy,
        env,
        ["constraint_0"],
        baseline="episode",
        gamma=0.0,
        n_steps=4,
        batch_size=32,
        learning_rate=0.1,
        seed=0,
        policy_kwargs={"net_arch": [8]},
        device="cpu",
    )
    watcher = Watcher(asks_for)
    agent.learn(6 * 64, callback=watcher)
    assert len(watcher.errors) == 6
    assert max(watcher.errors) < 1e-4


@pytest.mark.parametrize("case", ["critic", "other policy", "dictionary"])
def test_it_is_not_chosen_where_it_does_not_fit(case: str) -> None:
    env: Any = DictBandit(4, [0.0]) if case == "dictionary" else Bandit(4, [0.0], hold=2)
    policy: Any = RepeatingPolicy
    if case != "critic":
        policy = "MultiInputPolicy" if case == "dictionary" else "MlpPolicy"
    baseline = "critic" if case == "critic" else "episode"
    agent = PPOLagrangian(
        policy, env, ["constraint_0"], baseline=baseline, gamma=0.0, n_steps=4, batch_size=8
    )
    assert type(agent.rollout_buffer) is not EpisodeRolloutBuffer
