"""All stations together: time a channel, and each channel beside stations that talk."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import isac_gym  # noqa: F401
from isac_gym.baselines import JointNetwork
from isac_gym.evaluation import evaluation_set
from isac_gym.policy import Policy
from isac_gym.registry import make_agent
from isac_gym.system.downlink import find_system

METHODS: dict[str, dict[str, Any]] = {
    "joint": {},
    "joint-leakage": {},
    "few-bits": {"bits": 8},
    "interference-pricing": {"rounds": 12, "bits": None},
    "distributed-wmmse": {"rounds": 40, "bits": None},
}
"""Far more messages than by default, so that each is about as good as it gets."""


def _measure(agent: Policy, env: Any, channels: torch.Tensor) -> tuple[Any, float]:
    """Rate of the network on every channel, and the largest excess over ε of any station."""
    system = find_system(env)
    actions, _ = agent.predict(system.codec.observation(channels.numpy()), deterministic=True)
    outcome = system.transmit(channels, torch.from_numpy(actions))
    return outcome.sum_rate.double().numpy(), float(outcome.constraints["sensing"].max())


@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("gain", [0.1, 0.3])
def bench_network(benchmark: Any, gain: float, count: int) -> None:
    """``JointNetwork`` with three stations of five users."""
    env = gym.make("ISAC-MISO-v0", scenario="three-cells", intercell_gain=gain)
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, count, 7)
    channels = torch.from_numpy(blocks.channels).flatten(0, 1)
    found = benchmark.pedantic(JointNetwork(env).solve, (channels,), rounds=1, warmup_rounds=0)
    benchmark.extra_info["s_per_channel"] = round(benchmark.stats["median"] / count, 3)
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()
    benchmark.extra_info["rate_per_station"] = round(float(found.rate.mean()), 3)


@pytest.mark.parametrize("gain", [0.03, 0.1, 0.3, 1.0, "hexagonal"])
def bench_network_beside_messages(benchmark: Any, gain: float | str) -> None:
    """The lowest lead over each method on any channel, relative to the mean; 200 or 40 channels."""
    changes = {"layout": gain} if isinstance(gain, str) else {"intercell_gain": gain}
    env = gym.make("ISAC-MISO-v0", scenario="three-cells", **changes)
    count = 40 if isinstance(gain, str) else 200
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, count, 7)
    channels = torch.from_numpy(blocks.channels).flatten(0, 1)
    best, excess = benchmark.pedantic(
        _measure, (JointNetwork(env), env, channels), rounds=1, warmup_rounds=0
    )
    facts = {"rate_per_station": f"{best.mean() / 3:.3f}", "largest_excess": f"{excess:.1e}"}
    for name, options in METHODS.items():
        rates, _ = _measure(make_agent(name, env, **options), env, channels)
        lead = (best - rates) / best.mean()
        facts[name] = f"{rates.mean() / 3:.3f} (lowest lead {100 * np.min(lead):.2f} %)"
    benchmark.extra_info.update(facts)
