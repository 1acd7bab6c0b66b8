"""Steps per second of the environments, beside peers measured in the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import isac_gym  # noqa: F401

Benchmark = Callable[..., Any]


def _state_rate(benchmark: Any, steps_a_call: int) -> None:
    benchmark.extra_info["steps_per_second"] = round(steps_a_call / benchmark.stats["median"])
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()


@pytest.mark.parametrize("radar", ["learned", "fixed"])
def bench_single(benchmark: Any, radar: str) -> None:
    """The single environment through gym.make; a learned radar has the literal costs."""
    env = gym.make("ISAC-MISO-v0", radar=radar)
    env.reset(seed=0)
    env.action_space.seed(0)
    action = env.action_space.sample()
    benchmark.pedantic(env.step, (action,), rounds=2000, warmup_rounds=100)
    _state_rate(benchmark, 1)


@pytest.mark.parametrize("num_envs", [64, 1024])
def bench_batched(benchmark: Any, num_envs: int) -> None:
    """The batched environment with literal costs."""
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=num_envs)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = envs.action_space.sample()
    benchmark.pedantic(envs.step, (actions,), rounds=8192 // num_envs, warmup_rounds=5)
    _state_rate(benchmark, num_envs)


def bench_batched_stations(benchmark: Any) -> None:
    """The batched environment with three stations; a step of one environment is a step of all."""
    num_envs = 1024
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=num_envs, scenario="three-cells")
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = envs.action_space.sample()
    benchmark.pedantic(envs.step, (actions,), rounds=8, warmup_rounds=3)
    _state_rate(benchmark, num_envs)


def bench_loop_of_environments(benchmark: Any) -> None:
    """Sixty-four single environments in Gymnasium's SyncVectorEnv, for comparison."""
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=64, vectorization_mode="sync")
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = envs.action_space.sample()
    benchmark.pedantic(envs.step, (actions,), rounds=30, warmup_rounds=2)
    _state_rate(benchmark, 64)


@pytest.mark.parametrize("info_names", [(), None], ids=["arrays", "dictionaries"])
def bench_stable_baselines3(benchmark: Any, info_names: Any) -> None:
    """The batched environment for Stable-Baselines3, beside ``bench_batched[1024]`` (extra ``rl``).

    With ``None`` every environment gets a dictionary of all entries in every step.
    """
    sb3 = pytest.importorskip("isac_gym.envs.sb3", exc_type=ImportError)
    envs = sb3.make_sb3_env(1024, seed=0, info_names=info_names)
    envs.reset()
    envs.envs.action_space.seed(0)
    actions = envs.envs.action_space.sample()
    # Whole episodes, so that the steps in which they end count as often as they occur.
    length = envs.get_attr("scenario", 0)[0].episode_length

    def step_an_episode() -> None:
        for _ in range(length):
            envs.step(actions)

    benchmark.pedantic(step_an_episode, rounds=5, warmup_rounds=1)
    _state_rate(benchmark, 1024 * length)


def bench_stable_baselines3_loop(benchmark: Any) -> None:
    """Sixty-four single environments in Stable-Baselines3's own DummyVecEnv, for comparison."""
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = vec_env.DummyVecEnv([lambda: gym.make("ISAC-MISO-v0")] * 64)
    envs.seed(0)
    envs.reset()
    envs.action_space.seed(0)
    actions = np.stack([envs.action_space.sample() for _ in range(64)])
    benchmark.pedantic(envs.step, (actions,), rounds=30, warmup_rounds=2)
    _state_rate(benchmark, 64)


def bench_cartpole(benchmark: Any) -> None:
    """Gymnasium's CartPole, reset when an episode ends."""
    env = gym.make("CartPole-v1")
    env.reset(seed=0)

    def step() -> None:
        if any(env.step(0)[2:4]):
            env.reset()

    benchmark.pedantic(step, rounds=5000, warmup_rounds=100)
    _state_rate(benchmark, 1)


@pytest.mark.filterwarnings("ignore")
def bench_mobile_env(benchmark: Any) -> None:
    """mobile-env, small scenario under central control (extra ``bench``)."""
    pytest.importorskip("mobile_env")
    env = gym.make("mobile-small-central-v0")
    env.reset(seed=0)
    env.action_space.seed(0)
    action = env.action_space.sample()

    def step() -> None:
        if any(env.step(action)[2:4]):
            env.reset()

    benchmark.pedantic(step, rounds=1000, warmup_rounds=50)
    _state_rate(benchmark, 1)
