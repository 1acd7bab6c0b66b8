"""Learned agents beside the joint optimum: time a channel, measured in the same run."""

from __future__ import annotations

import statistics
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from isac_gym import Scenario
from isac_gym.agents import PrimalDual, load_agent
from isac_gym.baselines import JointOracle
from isac_gym.evaluation.channel_set import evaluation_set


def _seconds(agent: Any, observation: Any, calls: int) -> float:
    agent.predict(observation)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        agent.predict(observation)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.mark.parametrize("count", [1, 1024])
def bench_pretrained_against_joint(benchmark: Any, count: int) -> None:
    """The unfolded policy and both joint optima on the same channels, default scenario."""
    env = gym.make("ISAC-MISO-v0")
    system = env.unwrapped.system
    agent = PrimalDual.load("pretrained:unfolded", env)
    price = float(agent.multiplier[0])
    oracles = {
        "expected": JointOracle(env, constraint="expected", price=price),
        "per channel": JointOracle(env),
    }
    blocks = evaluation_set(system.scenario, env.unwrapped.channel_model, count, 3)
    observation = system.codec.observation(blocks.estimates[:, 0])
    asked = observation[0] if count == 1 else observation
    benchmark.pedantic(agent.predict, (asked,), rounds=50, warmup_rounds=5)
    learned = benchmark.stats["median"]
    benchmark.extra_info["us_per_channel"] = round(1e6 * learned / count, 1)
    for name, oracle in oracles.items():
        seconds = _seconds(oracle, asked, 11 if count == 1 else 3)
        benchmark.extra_info[f"joint_{name.replace(' ', '_')}_us"] = round(1e6 * seconds / count)
        benchmark.extra_info[f"times_faster_than_{name.replace(' ', '_')}"] = round(
            seconds / learned, 1
        )
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()


@pytest.mark.parametrize("count", [1, 1024])
def bench_stations_that_talk(benchmark: Any, count: int) -> None:
    """Three stations, each with its message of eight bits and its action; the time of one."""
    scenario = Scenario.preset("three-cells")
    env = gym.make("ISAC-MISO-v0", scenario=scenario)
    agent = load_agent("pretrained:distributed", env)
    blocks = evaluation_set(scenario, env.unwrapped.channel_model, count, 3)
    observation = agent.system.codec.observation(blocks.estimates[:, 0])
    benchmark.pedantic(agent.predict, (observation,), rounds=10, warmup_rounds=1)
    of_one = benchmark.stats["median"] / (count * scenario.num_cells)
    benchmark.extra_info["us_per_station_and_block"] = round(1e6 * of_one, 1)
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()


@pytest.mark.parametrize("preset", ["paper", "tuned"])
def bench_training(benchmark: Any, preset: str) -> None:
    """A whole training at the default scenario, with the rate after each twentieth of it."""
    from isac_gym.learning.callbacks import EvaluationCallback

    env = gym.make("ISAC-MISO-v0")
    agent = PrimalDual(env, preset, calibration_channels=0)
    every = agent.config.iterations // 20
    evaluation = EvaluationCallback(agent, every, channels=1024)
    spent: list[float] = []
    clock = {"last": 0.0, "sum": 0.0}

    def watch(progress: Any) -> None:
        clock["sum"] += time.perf_counter() - clock["last"]
        seen = len(evaluation.history)
        evaluation(progress)
        if len(evaluation.history) > seen:
            spent.append(clock["sum"])
        clock["last"] = time.perf_counter()

    def run() -> None:
        clock["last"] = time.perf_counter()
        agent.learn(callback=watch)

    benchmark.pedantic(run, rounds=1)
    rates = np.array([entry.sum_rate for entry in evaluation.history])
    final = rates[-1]
    below = np.flatnonzero(rates < 0.99 * final)
    first = int(below[-1]) + 1 if len(below) else 0
    benchmark.extra_info.update(
        seconds_in_all=round(clock["sum"], 1),
        seconds_to_99_percent=round(spent[min(first, len(spent) - 1)], 1),
        final_rate=round(float(final), 3),
        torch_threads=torch.get_num_threads(),
    )
