"""Time a channel of the references, beside textbook forms measured in the same run."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import isac_gym  # noqa: F401
from isac_gym.baselines import JointOracle, NullSteering, dpc_capacity, joint_upper_bound, wmmse

_NOISE = 0.1


def _channels(count: int, users: int = 5, antennas: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, users, antennas, dtype=torch.complex64, generator=generator)


def _state_time(benchmark: Any, channels: int, **facts: Any) -> None:
    benchmark.extra_info["us_per_channel"] = round(1e6 * benchmark.stats["median"] / channels, 1)
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()
    benchmark.extra_info.update(facts)


def _share(rate: Tensor, channels: Tensor) -> str:
    """Mean rate in percent of the converged one."""
    converged = wmmse(channels, _NOISE, 1.0, tolerance=1e-12, max_iterations=5000).rate
    return f"{100 * float(rate.mean() / converged.mean()):.3f} %"


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
@pytest.mark.parametrize("users", [5, 12])
def bench_wmmse(benchmark: Any, users: int, tolerance: float) -> None:
    """Batched WMMSE, 1024 channels, M_C = 12, 10 dB."""
    channels = _channels(1024, users)
    found = benchmark.pedantic(
        wmmse, (channels, _NOISE, 1.0), {"tolerance": tolerance}, rounds=10, warmup_rounds=2
    )
    _state_time(benchmark, 1024, of_converged=_share(found.rate, channels))


@pytest.mark.parametrize("snr_db", [5, 10, 20])
@pytest.mark.parametrize("users", [5, 10, 12])
def bench_wmmse_against_capacity(benchmark: Any, users: int, snr_db: int) -> None:
    """Converged WMMSE without radar, the gain of 16 starts, and the capacity, 2000 channels."""
    channels, noise = _channels(2000, users), 10 ** (-snr_db / 10)
    single = wmmse(channels, noise, 1.0, tolerance=1e-8, max_iterations=5000)
    many = benchmark.pedantic(wmmse, (channels, noise, 1.0), {"num_starts": 16}, rounds=1)
    capacity = dpc_capacity(channels, noise, 1.0, tolerance=1e-5)
    _state_time(
        benchmark,
        2000,
        rate=round(float(single.rate.mean()), 2),
        rate_of_16_starts=round(float(many.rate.mean()), 2),
        capacity=round(float(capacity.rate.mean()), 2),
        converged=float(single.converged.double().mean()),
        channels_above_capacity=int((many.rate > capacity.upper_bound).sum()),
    )


def _textbook(channel: Any, iterations: int) -> float:
    """Shi et al. as written: M x M inverse, bisection for the power multiplier, one channel."""
    antennas = channel.shape[1]
    precoders = channel.conj().T / np.linalg.norm(channel)
    for _ in range(iterations):
        received = channel @ precoders
        total = np.sum(np.abs(received) ** 2, 1) + _NOISE
        receivers = np.diag(received) / total
        weights = 1.0 / (1.0 - np.abs(np.diag(received)) ** 2 / total)
        pull = weights * np.abs(receivers) ** 2
        quadratic = (channel.conj().T * pull) @ channel
        target = channel.conj().T * (weights * receivers)

        def sent(
            multiplier: float, quadratic: Any = quadratic, target: Any = target
        ) -> tuple[Any, float]:
            found = np.linalg.inv(quadratic + multiplier * np.eye(antennas)) @ target
            return found, float(np.sum(np.abs(found) ** 2))

        low, high = 1e-9, 1.0
        while sent(high)[1] > 1.0:
            high *= 2.0
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if sent(middle)[1] > 1.0 else (low, middle)
        precoders = sent(high)[0]
    powers = np.abs(channel @ precoders) ** 2
    signal = np.diag(powers)
    return float(np.log2(1 + signal / (powers.sum(1) - signal + _NOISE)).sum())


def bench_wmmse_textbook(benchmark: Any) -> None:
    """The textbook form in NumPy, one channel after another, 30 iterations."""
    channels = _channels(16)
    rows = channels.numpy().astype(np.complex128)

    def run() -> list[float]:
        return [_textbook(row, 30) for row in rows]

    rates = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    _state_time(benchmark, 16, of_converged=_share(torch.tensor(rates), channels))


def _drawn(env: Any, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, *env.unwrapped.system.codec.links.shape)
    return torch.randn(shape, dtype=torch.complex64, generator=generator)


@pytest.mark.parametrize("threshold", [0.12, 0.14])
@pytest.mark.parametrize("count", [1, 1024])
@pytest.mark.parametrize("kind", ["joint", "one start", "expected", "null steering"])
def bench_joint(benchmark: Any, kind: str, count: int, threshold: float) -> None:
    """Joint optimum and null steering at the default scenario."""
    env = gym.make("ISAC-MISO-v0", sensing_threshold=threshold)
    options: dict[str, Any] = {
        "one start": {"num_starts": 1},
        "expected": {"constraint": "expected", "price": 30.0 if threshold == 0.12 else 18.0},
    }.get(kind, {})
    agent = NullSteering(env) if kind == "null steering" else JointOracle(env, **options)
    channels = _drawn(env, count)
    found = benchmark.pedantic(agent.solve, (channels,), rounds=3, warmup_rounds=1)
    _state_time(
        benchmark,
        count,
        rate=round(float(found.rate.mean()), 3),
        largest_excess=f"{float(found.excess.max()):.1e}",
    )


@pytest.mark.parametrize("subdivisions", [0, 10])
def bench_bound(benchmark: Any, subdivisions: int) -> None:
    """Certified upper bound at the default scenario, 64 channels."""
    env = gym.make("ISAC-MISO-v0")
    channels = _drawn(env, 64)
    options = {"subdivisions": subdivisions}
    found = benchmark.pedantic(joint_upper_bound, (env, channels), options, rounds=1)
    _state_time(benchmark, 64, bound=round(float(found.upper_bound.mean()), 2))
