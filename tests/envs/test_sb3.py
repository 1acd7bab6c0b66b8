"""The adapter to Stable-Baselines3, against its own vector environments of single ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from isac_gym import ISACEnv
from isac_gym.envs.sb3 import SB3VecEnv, make_sb3_env
from isac_gym.envs.wrappers.vector import EpisodeCostStatistics, PenalisedReward

LENGTH = 4
SETTINGS: dict[str, Any] = {**SMALL, "power_limit": "cost", "episode_length": LENGTH}
MODES = list(AutoresetMode)
OF_AN_END = {"terminal_observation", "TimeLimit.truncated"}


def choose_small(seed: int = 0) -> dict[str, Any]:
    """Arguments of a small algorithm; anew, because some write into them."""
    return {"policy_kwargs": {"net_arch": [8]}, "seed": seed, "device": "cpu"}


def make_native(num: int = 3, **changes: Any) -> VectorEnv[Any, Any, Any]:
    return gym.make_vec("ISAC-MISO-v0", num_envs=num, **{**SETTINGS, **changes})


def make_loop(
    num: int = 3, autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP, **changes: Any
) -> VectorEnv[Any, Any, Any]:
    settings = {**SETTINGS, **changes}
    makers = [lambda: gym.make("ISAC-MISO-v0", **settings)] * num
    return SyncVectorEnv(makers, autoreset_mode=autoreset_mode)


def make_poles(
    num: int = 3, mode: AutoresetMode = AutoresetMode.SAME_STEP, length: int = 12, **settings: Any
) -> SyncVectorEnv[Any, Any]:
    makers = [lambda: gym.make("CartPole-v1", max_episode_steps=length)] * num
    return SyncVectorEnv(makers, autoreset_mode=mode, **settings)


def make_dummy(num: int = 3, **changes: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: ISACEnv(**{**SETTINGS, **changes})] * num)


class Stopwatch(gym.Env[Any, Any]):
    """Counts steps; its resets report entries, one of them under the name of a step's.

    Environment ``index`` ends its episodes after ``index + 2`` steps, by turns as a termination, as
    a truncation, and as both.
    """

    observation_space = gym.spaces.Dict(
        {"time": gym.spaces.Box(-np.inf, np.inf, (2,)), "turn": gym.spaces.Discrete(3)}
    )
    action_space = gym.spaces.Discrete(2)

    def __init__(self, index: int) -> None:
        self.index, self.turn, self.time = index, -1, np.zeros(2, np.float32)

    def observe(self) -> dict[str, Any]:
        return {"time": self.time.copy(), "turn": self.turn % 3}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.turn += 1
        self.time[:] = 10.0 * self.turn
        return self.observe(), {"both": float(self.turn), "only_reset": self.turn}

    def step(self, action: Any) -> Any:
        self.time += 1.0
        now = self.time[0] - 10.0 * self.turn
        ended = now >= self.index + 2
        info: dict[str, Any] = {"both": float(-now), "pair": self.time.copy(), "nested": {"x": now}}
        if ended:
            info["only_last"] = "end"
        terminated, truncated = ended and self.turn % 3 != 1, ended and self.turn % 3 != 0
        return self.observe(), float(now), bool(terminated), bool(truncated), info


class Reuse(gym.vector.VectorWrapper):  # type: ignore[type-arg]
    """Reports the time in one array for all steps, one row an environment."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.time = np.zeros((self.num_envs, 2))

    def step(self, actions: Any) -> Any:
        self.time += 1
        *result, info = self.env.step(actions)
        return *result, {**info, "time": self.time}


def assert_same(found: Any, expected: Any) -> None:
    """Equality of nested observations or infos; floats to the accuracy of a batched computation."""
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, (str, bool)):
        assert found == expected
    else:
        assert np.asarray(found).shape == np.asarray(expected).shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def strip_infos(infos: list[dict[str, Any]], dones: Any) -> list[dict[str, Any]]:
    """What ``DummyVecEnv`` says of the ends of episodes, where there is one."""
    kept = [{k: v for k, v in info.items() if k not in OF_AN_END} for info in infos]
    return [info if done else rest for info, rest, done in zip(infos, kept, dones, strict=True)]


def compare(found: SB3VecEnv, expected: DummyVecEnv, seed: int, steps: int) -> int:
    """Step both with the same actions, compare everything; the number of ended episodes."""
    for env in (found, expected):
        env.seed(seed)
    assert_same(found.reset(), expected.reset())
    assert_same(found.reset_infos[0], expected.reset_infos[0])
    spaces = [env.action_space for env in (found, expected)]
    spaces[0].seed(0)
    count = 0
    for _ in range(steps):
        actions = np.stack([spaces[0].sample() for _ in range(found.num_envs)])
        observations, rewards, dones, infos = found.step(actions)
        others, other_rewards, other_dones, other_infos = expected.step(actions)
        assert_same(observations, others)
        assert rewards.dtype == np.float32
        assert dones.dtype == np.bool_
        assert_same(rewards, other_rewards)
        np.testing.assert_array_equal(dones, other_dones)
        other_infos = strip_infos(other_infos, dones)
        for index in range(found.num_envs):
            assert_same(infos[index], other_infos[index])
            assert_same(found.reset_infos[index], expected.reset_infos[index])
            for name in set(other_infos[index]) - OF_AN_END:
                assert found.step_info.get(f"_{name}", np.ones(found.num_envs))[index]
                if not isinstance(other_infos[index][name], dict):
                    assert_same(found.step_info[name][index], other_infos[index][name])
        count += int(dones.sum())
    return count


class TestAgainstDummyVecEnv:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("make", [make_native, make_loop])
    def test_one(self, make: Callable[..., Any], mode: AutoresetMode) -> None:
        found = SB3VecEnv(make(1, autoreset_mode=mode), info_names=None)
        assert compare(found, make_dummy(1), 7, 3 * LENGTH + 1) == 3

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("make", [make_native, make_loop])
    def test_several(self, make: Callable[..., Any], mode: AutoresetMode) -> None:
        found = SB3VecEnv(make(3, autoreset_mode=mode), info_names=None, seed_each=True)
        assert compare(found, make_dummy(3), 7, 2 * LENGTH + 1) == 6

    @pytest.mark.parametrize("copies", [True, False])
    @pytest.mark.parametrize("mode", MODES)
    def test_episodes_that_end_apart(self, mode: AutoresetMode, copies: bool) -> None:
        """Terminations, truncations and both, nested entries, entries of resets, reused arrays."""
        makers = [lambda index=index: Stopwatch(index) for index in range(3)]
        envs = SyncVectorEnv(makers, autoreset_mode=mode, copy=copies)
        assert compare(SB3VecEnv(envs, info_names=None), DummyVecEnv(makers), 0, 13) > 10

    def test_same_statistics(self) -> None:
        """One generator or sixty-four: rewards come from the same distribution."""

        def collect(env: Any) -> Any:
            env.seed(1)
            env.reset()
            actions = np.random.default_rng(2).uniform(-1, 1, (12, 64, *env.action_space.shape))
            return np.array([env.step(rows)[1] for rows in actions.astype(np.float32)]).ravel()

        found, expected = collect(SB3VecEnv(make_native(64))), collect(make_dummy(64))
        spread = np.sqrt((found.var() + expected.var()) / len(found))
        assert abs(found.mean() - expected.mean()) < 4 * spread
        assert not np.allclose(found, expected)


class TestInfos:
    def test_empty_until_an_episode_ends(self) -> None:
        env = SB3VecEnv(make_native())
        env.reset()
        actions = np.zeros((3, *env.action_space.shape), np.float32)
        for step in range(1, 2 * LENGTH + 1):
            _, rewards, _, infos = env.step(actions)
            np.testing.assert_allclose(env.step_info["sum_rate"], rewards)
            assert len({id(info) for info in infos}) == 3
            if step % LENGTH:
                assert infos == [{}, {}, {}]
            else:
                assert all({"cost", "rates"} | set(info) >= OF_AN_END for info in infos)

    def test_chosen_names(self) -> None:
        env = SB3VecEnv(make_native(), info_names=("cost", "rates", "episode_cost"))
        env.reset()
        actions = np.zeros((3, *env.action_space.shape), np.float32)
        _, _, _, infos = env.step(actions)
        for index, info in enumerate(infos):
            assert set(info) == {"cost", "rates"}
            np.testing.assert_array_equal(info["rates"], env.step_info["rates"][index])

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("make", [make_native, make_loop])
    def test_entries_of_wrappers(self, make: Callable[..., Any], mode: AutoresetMode) -> None:
        env = SB3VecEnv(EpisodeCostStatistics(make(2, autoreset_mode=mode)))
        env.reset()
        actions = np.full((2, *env.action_space.shape), 0.7, np.float32)
        for episode in range(2):
            total, costs = np.zeros(2), np.zeros(2)
            for _ in range(LENGTH):
                _, rewards, dones, infos = env.step(actions)
                total, costs = total + rewards, costs + env.step_info["cost"]
            assert dones.all(), episode
            assert (costs > 0).all()
            for index, info in enumerate(infos):
                assert info["episode_cost"]["r"] == pytest.approx(total[index], rel=1e-5)
                assert info["episode_cost"]["c"] == pytest.approx(costs[index], rel=1e-5)
                assert info["episode_cost"]["l"] == LENGTH

    def test_statistics_of_episodes_that_end_apart(self) -> None:
        """Entries in a dictionary belong to those to whom the dictionary does."""
        env = SB3VecEnv(RecordEpisodeStatistics(make_poles(4)))
        env.seed(0)
        env.reset()
        lengths, partly = np.zeros(4), 0
        rng = np.random.default_rng(0)
        for _ in range(40):
            _, _, dones, infos = env.step(rng.integers(0, 2, 4) | (np.arange(4) == 0))
            lengths += 1
            partly += 0 < dones.sum() < 4
            if 0 < dones.sum() < 4:
                np.testing.assert_array_equal(env.step_info["_episode"], dones)
                np.testing.assert_array_equal(env.step_info["episode"]["_l"], dones)
            for index in np.flatnonzero(dones):
                assert infos[index]["episode"]["l"] == lengths[index]
            lengths[dones] = 0
        assert partly > 3

    def test_kept_results_stay(self) -> None:
        """Nothing that was handed out is written to by later steps."""
        env = SB3VecEnv(Reuse(make_poles(2, copy=False)), info_names=None)
        env.seed(0)
        kept = [env.reset()]
        copies = [kept[0].copy()]
        for _ in range(15):
            observations, rewards, dones, infos = env.step(np.ones(2, np.int64))
            ends = [info["terminal_observation"] for info in infos if set(info) >= OF_AN_END]
            times = [env.step_info["time"], *(info["time"] for info in infos)]
            kept += [observations, rewards, dones, *ends, *times]
            copies += [v.copy() for v in (observations, rewards, dones, *ends, *times)]
        for value, copy in zip(kept, copies, strict=True):
            np.testing.assert_array_equal(value, copy)


class TestCartPole:
    @pytest.mark.parametrize("mode", MODES)
    def test_ends(self, mode: AutoresetMode) -> None:
        env = SB3VecEnv(make_poles(4, mode))
        singles = [gym.make("CartPole-v1", max_episode_steps=12) for _ in range(4)]
        env.seed(3)
        rows = [single.reset(seed=3 + index)[0] for index, single in enumerate(singles)]
        np.testing.assert_array_equal(env.reset(), rows)
        seen = set()
        rng = np.random.default_rng(0)
        for _ in range(50):
            actions = rng.integers(0, 2, 4) | (np.arange(4) == 0)
            observations, _, dones, infos = env.step(actions)
            for index, single in enumerate(singles):
                row, _, terminated, truncated, _ = single.step(actions[index])
                assert dones[index] == (terminated or truncated)
                if dones[index]:
                    np.testing.assert_array_equal(infos[index]["terminal_observation"], row)
                    cut = infos[index]["TimeLimit.truncated"]
                    assert cut is (truncated and not terminated)
                    seen.add(cut)
                    row = single.reset()[0]
                else:
                    assert infos[index] == {}
                np.testing.assert_array_equal(observations[index], row)
        assert seen == {True, False}

    def test_a_vector_that_knows_only_all(self) -> None:
        env = SB3VecEnv(gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point"))
        assert env.get_attr("observation_space", [0, 2]) == [env.observation_space] * 2
        env.set_attr("gravity", 5.0)
        assert env.get_attr("gravity") == [5.0] * 3
        with pytest.raises(ValueError, match="indices must be None with CartPoleVectorEnv"):
            env.set_attr("gravity", 5.0, indices=0)
        assert env.env_is_wrapped(Monitor) == [False] * 3

    def test_a_vector_that_cannot_restart_some(self) -> None:
        """Gymnasium's own batch of poles restarts all, whatever the mask."""
        envs = gym.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
        env = SB3VecEnv(envs)
        env.seed(0)
        env.reset()
        rng = np.random.default_rng(0)

        def step_to_an_end() -> None:
            for _ in range(100):
                env.step(rng.integers(0, 2, 4))

        with pytest.raises(ValueError, match=r"envs must be .*SAME_STEP.*reset_mask.*, got .*Cart"):
            step_to_an_end()


def count_critic_calls(env: SB3VecEnv, gamma: float) -> tuple[int, int, Any]:
    """Calls of the critic beside the policy's own, rollouts, and the returns of the last one."""
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=2 * LENGTH,
        batch_size=8,
        n_epochs=1,
        gamma=gamma,
        **choose_small(),
    )
    calls = 0
    predict = model.policy.predict_values

    def count(observations: Any) -> Any:
        nonlocal calls
        calls += 1
        return predict(observations)

    model.policy.predict_values = count  # type: ignore[method-assign]
    model.learn(3 * 2 * LENGTH * env.num_envs)
    return calls, model.num_timesteps // (2 * LENGTH * env.num_envs), model.rollout_buffer.returns


class TestBootstraps:
    def test_no_critic_at_truncations(self) -> None:
        calls, rollouts, _ = count_critic_calls(SB3VecEnv(make_native(), bootstraps=False), 0.0)
        assert (calls, rollouts) == (3, 3)

    def test_one_critic_call_a_truncation(self) -> None:
        calls, rollouts, _ = count_critic_calls(SB3VecEnv(make_native()), 0.0)
        assert (calls, rollouts) == (3 + 3 * 3 * 2, 3)

    def test_nothing_else_changes_without_discount(self) -> None:
        found = [
            count_critic_calls(SB3VecEnv(make_native(), bootstraps=bootstraps), gamma)[2]
            for gamma in (0.0, 0.9)
            for bootstraps in (True, False)
        ]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
        assert not np.allclose(found[2], found[3], rtol=1e-3)

    def test_an_end_is_a_termination(self) -> None:
        env = SB3VecEnv(make_poles(), bootstraps=False)
        env.reset()
        ends = 0
        for _ in range(30):
            _, _, dones, infos = env.step(np.ones(3, np.int64))
            for info in (info for info, done in zip(infos, dones, strict=True) if done):
                assert set(info) == {"terminal_observation"}
                ends += 1
        assert ends > 0


class TestStableBaselines3:
    def test_monitor(self, tmp_path: Path) -> None:
        path = tmp_path / "log.monitor.csv"
        env = VecMonitor(SB3VecEnv(make_native()), str(path), info_keywords=("cost", "sum_rate"))
        env.reset()
        actions = np.zeros((3, *env.action_space.shape), np.float32)
        total = np.zeros(3)
        for _ in range(LENGTH):
            _, rewards, dones, infos = env.step(actions)
            total += rewards
        assert dones.all()
        for index, info in enumerate(infos):
            assert info["episode"]["r"] == pytest.approx(total[index], rel=1e-5)
            assert info["episode"]["l"] == LENGTH
            assert info["episode"]["cost"] == info["cost"]
        env.close()
        lines = path.read_text().splitlines()
        assert "ISAC-MISO-v0" in lines[0]
        assert len(lines) == 2 + 3

    def test_normalize_round_trip(self, tmp_path: Path) -> None:
        env = VecNormalize(SB3VecEnv(make_native(8)), clip_obs=5.0)
        env.seed(0)
        env.reset()
        actions = np.zeros((8, *env.action_space.shape), np.float32)
        for _ in range(2 * LENGTH):
            _, _, _, infos = env.step(actions)
        last = infos[0]["terminal_observation"]
        assert last.dtype == np.float32
        assert np.abs(last).max() <= 5.0
        env.save(str(tmp_path / "statistics.pkl"))
        other = VecNormalize.load(str(tmp_path / "statistics.pkl"), SB3VecEnv(make_native(8)))
        other.training = env.training = False
        assert isinstance(other.obs_rms, type(env.ret_rms))
        assert isinstance(env.obs_rms, type(env.ret_rms))
        assert env.obs_rms.count > 64
        np.testing.assert_array_equal(other.obs_rms.mean, env.obs_rms.mean)
        for one in (env, other):
            one.seed(5)
        np.testing.assert_array_equal(env.reset(), other.reset())
        for found, expected in zip(env.step(actions)[:3], other.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_ppo_learns(self) -> None:
        """In much noise the reward rises with every power, which nothing but a cost limits."""
        scenario = {**SETTINGS, "control": "power", "snr_db": -10.0, "episode_length": 1}
        env = make_sb3_env(64, scenario, seed=0, bootstraps=False)
        settings = {"n_steps": 8, "batch_size": 128, "learning_rate": 3e-3, "gamma": 0.0}
        model = PPO("MlpPolicy", env, **settings, **choose_small())
        test = VecMonitor(make_sb3_env(64, scenario))

        def evaluate() -> float:
            test.seed(1)
            return float(np.mean(evaluate_policy(model, test, n_eval_episodes=640)[0]))

        before = evaluate()
        model.learn(12 * 512)
        assert evaluate() > before + 0.2

    @pytest.mark.parametrize("algorithm", [SAC, TD3])
    def test_off_policy(self, algorithm: Any) -> None:
        """Transitions across an episode's end go to its own last observation."""
        env = SB3VecEnv(make_native(3))
        model = algorithm("MlpPolicy", env, learning_starts=9, buffer_size=3 * 64, **choose_small())
        model.learn(3 * 2 * LENGTH)
        buffer = model.replay_buffer
        assert buffer.pos == 2 * LENGTH
        np.testing.assert_array_equal(buffer.timeouts[: buffer.pos], buffer.dones[: buffer.pos])
        assert buffer.dones[: buffer.pos].sum() == 6
        following = buffer.next_observations[:LENGTH]
        np.testing.assert_array_equal(following[:-1], buffer.observations[1:LENGTH])
        assert not np.isclose(following[-1], buffer.observations[LENGTH]).any()
        assert model._n_updates > 0

    def test_evaluate_policy(self) -> None:
        """The same as of single environments with the same seeds."""
        model = PPO("MlpPolicy", make_dummy(1), **choose_small())
        results = []
        for env in (
            VecMonitor(SB3VecEnv(make_native(), seed_each=True)),
            VecMonitor(make_dummy(3)),
        ):
            env.seed(4)
            results.append(evaluate_policy(model, env, 6, return_episode_rewards=True))
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
        assert results[0][1] == results[1][1] == [LENGTH] * 6

    def test_eval_callback(self, tmp_path: Path) -> None:
        env = VecMonitor(SB3VecEnv(make_native()))
        callback = EvalCallback(
            VecMonitor(SB3VecEnv(make_native(2))),
            n_eval_episodes=4,
            eval_freq=LENGTH,
            log_path=str(tmp_path),
            best_model_save_path=str(tmp_path),
            verbose=0,
        )
        model = PPO(
            "MlpPolicy", env, n_steps=2 * LENGTH, batch_size=12, n_epochs=1, **choose_small()
        )
        model.learn(3 * 2 * LENGTH, callback=callback)
        found = np.load(tmp_path / "evaluations.npz")
        assert found["timesteps"].tolist() == [3 * LENGTH, 6 * LENGTH]
        assert found["ep_lengths"].tolist() == [[LENGTH] * 4] * 2
        assert (tmp_path / "best_model.zip").exists()
        assert len(model.ep_info_buffer or ()) == 6


class TestSeeds:
    def test_only_the_next_reset(self) -> None:
        env = SB3VecEnv(make_native())
        assert list(env.seed(5)) == [5, 6, 7]
        first, second = env.reset(), env.reset()
        assert not np.array_equal(first, second)
        env.seed(5)
        np.testing.assert_array_equal(env.reset(), first)
        np.testing.assert_array_equal(env.reset(), second)

    def test_one_generator_or_one_each(self) -> None:
        expected = make_native().reset(seed=5)[0]
        env = SB3VecEnv(make_native())
        env.seed(5)
        np.testing.assert_array_equal(env.reset(), expected)
        each = SB3VecEnv(make_native(), seed_each=True)
        each.seed(5)
        expected = make_native().reset(seed=[5, 6, 7])[0]  # type: ignore[arg-type]
        np.testing.assert_array_equal(each.reset(), expected)

    def test_the_algorithm_seeds(self) -> None:
        model = PPO("MlpPolicy", SB3VecEnv(make_native()), **choose_small(9))
        model._setup_learn(0)
        np.testing.assert_array_equal(model._last_obs, make_native().reset(seed=9)[0])

    def test_given_when_made(self) -> None:
        found = [make_sb3_env(2, SETTINGS, seed=3).reset() for _ in range(2)]
        np.testing.assert_array_equal(found[0], found[1])


class TestMembers:
    def test_options(self) -> None:
        env = SB3VecEnv(make_native())
        channels = np.random.default_rng(0).normal(size=(3, 3, 9)) + 0j
        for options in ({"channels": channels}, [{"channels": channels}] * 3):
            env.set_options(options)
            env.reset()
            np.testing.assert_allclose(env.get_attr("channels"), channels, rtol=1e-6)
            env.reset()
            assert not np.isclose(env.get_attr("channels", 1)[0], channels[1]).any()

    @pytest.mark.parametrize("make", [make_native, make_loop])
    def test_attributes_and_methods(self, make: Callable[..., Any]) -> None:
        env = SB3VecEnv(make())
        env.reset()
        assert [scenario.num_users for scenario in env.get_attr("scenario")] == [3, 3, 3]
        assert env.has_attr("scenario")
        assert not env.has_attr("no_such_thing")
        assert env.get_attr("observation_space", 2) == [env.observation_space]
        action = np.full(env.action_space.shape, 0.3, np.float32)
        precoders = [found[0] for found in env.env_method("decode_action", action)]
        assert len(precoders) == 3
        np.testing.assert_array_equal(
            env.env_method("decode_action", action, indices=[-1])[0][0], precoders[2]
        )
        env.set_attr("note", "all")
        env.set_attr("note", "one", indices=1)
        assert env.get_attr("note") == ["all", "one", "all"]
        assert env.get_attr("note", [1, 0]) == ["one", "all"]

    def test_wrappers(self) -> None:
        env = SB3VecEnv(PenalisedReward(make_native(), 2.0))
        assert env.get_attr("weights") == [{"cost": 2.0}] * 3
        assert env.env_is_wrapped(PenalisedReward) == [True] * 3
        assert env.env_is_wrapped(Monitor, [0]) == [False]
        env.reset()
        _, rewards, _, _ = env.step(np.ones((3, *env.action_space.shape), np.float32))
        np.testing.assert_allclose(
            rewards, env.step_info["sum_rate"] - 2.0 * env.step_info["cost"], rtol=1e-5
        )
        monitored = SyncVectorEnv(
            [lambda: Monitor(ISACEnv(**SETTINGS))] * 2, autoreset_mode=AutoresetMode.SAME_STEP
        )
        loop = SB3VecEnv(monitored)
        assert loop.env_is_wrapped(Monitor) == [True, True]
        loop.reset()
        actions = np.zeros((2, *loop.action_space.shape), np.float32)
        infos = [loop.step(actions)[3] for _ in range(LENGTH)][-1]
        assert infos[1]["episode"]["l"] == LENGTH

    @pytest.mark.parametrize("make", [make_native, make_loop])
    def test_pictures(self, make: Callable[..., Any]) -> None:
        env = SB3VecEnv(make(2, render_mode="rgb_array"))
        env.reset()
        assert env.render_mode == "rgb_array"
        assert env.metadata["render_fps"] == 4
        images = env.get_images()
        assert len(images) == 2
        assert images[0] is not None
        picture = env.render()
        assert picture is not None
        assert picture.shape[1] == 2 * images[0].shape[1] or picture.shape[0] > images[0].shape[0]
        env.close()

    def test_no_pictures(self) -> None:
        env = SB3VecEnv(make_native(2))
        assert env.render_mode is None
        with pytest.warns(UserWarning, match="render_mode"):
            assert list(env.get_images()) == [None, None]

    def test_other_processes(self) -> None:
        """Environments in processes of their own can only be asked all together."""
        makers = [lambda: gym.make("CartPole-v1", max_episode_steps=5)] * 2
        env = SB3VecEnv(AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
        try:
            env.seed(0)
            expected = make_poles(2, length=5).reset(seed=0)[0]
            np.testing.assert_array_equal(env.reset(), expected)
            ends = [env.step(np.array([0, 1]))[2] for _ in range(5)]
            np.testing.assert_array_equal(ends, [[False] * 2] * 4 + [[True] * 2])
            env.set_attr("gravity", 5.0, indices=1)
            assert env.get_attr("gravity") == [9.8, 5.0]
            assert env.env_method("has_wrapper_attr", "gravity") == [True, True]
            with pytest.raises(ValueError, match="indices must be None with AsyncVectorEnv"):
                env.env_method("has_wrapper_attr", "gravity", indices=[0])
        finally:
            env.close()


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"envs": "CartPole-v1"}, r"envs must be a gymnasium\.vector\.VectorEnv, got 'Cart"),
            ({"envs": gym.Env()}, r"envs must be a gymnasium\.vector\.VectorEnv"),
            ({"bootstraps": 1}, "bootstraps must be True or False, got 1"),
            ({"seed_each": None}, "seed_each must be True or False, got None"),
            ({"info_names": "cost"}, "info_names must be None or a sequence of names, got 'cost'"),
            ({"info_names": [1]}, r"info_names must be None or a sequence of names, got \[1\]"),
            ({"info_names": 3}, "info_names must be None or a sequence of names, got 3"),
        ],
    )
    def test_arguments(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SB3VecEnv(**{"envs": make_native(), **settings})

    def test_autoreset_mode(self) -> None:
        envs = make_native()
        envs.metadata = {}
        with pytest.raises(ValueError, match=r"envs\.metadata\['autoreset_mode'\] must be .* None"):
            SB3VecEnv(envs)

    def test_calls(self) -> None:
        env = SB3VecEnv(make_native())
        with pytest.raises(ValueError, match="seed must be an integer >= 0, got -1"):
            env.seed(-1)
        with pytest.raises(ValueError, match="options must be None, a dictionary, or a list of 3"):
            env.set_options([{}, {}])
        with pytest.raises(ValueError, match="equal dictionaries, got"):
            env.set_options([{"a": 1}, {"a": 1}, {"a": 2}])
        with pytest.raises(ValueError, match=r"indices must be None, an integer in \[-3, 3\).*5"):
            env.get_attr("scenario", 5)
        with pytest.raises(ValueError, match="indices must be"):
            env.env_is_wrapped(Monitor, ["a"])  # type: ignore[list-item]
        with pytest.raises(AttributeError, match="no_such_thing"):
            env.env_method("no_such_thing")
        with pytest.raises(ValueError, match="num_envs must be an integer >= 1, got 0"):
            make_sb3_env(0)
        with pytest.raises(TypeError, match="no_such_field"):
            make_sb3_env(2, no_such_field=1)

    def test_without_the_library(self) -> None:
        code = (
            "import sys; sys.modules['stable_baselines3'] = None\n"
            "import isac_gym\n"
            "try: import isac_gym.envs.sb3\n"
            "except ImportError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "pip install 'isac-gym[rl]'" in done.stdout, done.stderr
