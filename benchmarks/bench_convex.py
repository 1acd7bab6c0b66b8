"""The fast searches against convex programs: how close, and how much sooner (extra ``solvers``).

The programs of large arrays take minutes.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import isac_gym  # noqa: F401
from isac_gym.baselines import JointOracle, wmmse
from isac_gym.solvers.beampattern import best_beampattern

pytest.importorskip("cvxpy")

TARGETS = [
    (-70.0, 0.0, 40.0),
    (-40.0, 0.0, 40.0),
    (-50.0, 0.0, 70.0),
    (0.0,),
    (-60.0, -20.0, 20.0, 60.0),
]


@pytest.mark.parametrize("antennas", [8, 12, 16, 20])
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def bench_beampattern(benchmark: Any, targets: tuple[float, ...], antennas: int) -> None:
    """The first-order search; the convex program is timed beside it."""
    from isac_gym.solvers.convex import convex_beampattern

    design: dict[str, Any] = {
        "num_antennas": antennas,
        "spacing": 0.5,
        "targets_deg": targets,
        "beam_width_deg": 10.0,
        "power": 2.5,
    }
    found = benchmark.pedantic(
        best_beampattern.__wrapped__, kwargs=design, rounds=3, warmup_rounds=1
    )
    start = time.perf_counter()
    exact = convex_beampattern(**design)
    seconds = time.perf_counter() - start
    benchmark.extra_info.update(
        floor=f"{found.loss:.5f}",
        above_convex=f"{100 * (found.loss / exact.sensing_loss - 1):.4f} %",
        certified_within=f"{100 * (found.loss / found.lower_bound - 1):.2f} %",
        status=exact.status,
        convex_seconds=round(seconds, 1),
        times_faster=round(seconds / benchmark.stats["median"]),
        torch_threads=torch.get_num_threads(),
    )
    assert found.loss <= exact.sensing_loss * 1.005


@pytest.mark.parametrize("channel", [0, 1, 2])
def bench_joint_against_alternating_programs(benchmark: Any, channel: int) -> None:
    """WMMSE and a convex program for R in turn, from all users and from the oracle's weights."""
    from isac_gym.solvers.convex import ConvexWaveform

    env = gym.make("ISAC-MISO-v0")
    scenario = env.unwrapped.scenario
    generator = torch.Generator().manual_seed(2)
    shape = (3, *env.unwrapped.system.codec.links.shape)
    channels = torch.randn(shape, dtype=torch.complex64, generator=generator)[[channel]]
    oracle = JointOracle(env)
    found = benchmark.pedantic(oracle.solve, (channels,), rounds=1, warmup_rounds=1)
    H = channels[0, 0, 0].numpy().astype(np.complex128)
    f, g = H[:, :12], H[:, 12:]
    waveform = ConvexWaveform(**scenario.list_beampattern_arguments()[0])

    def answer(R: Any) -> tuple[float, Any]:
        """WMMSE's rate for a covariance, and what a watt at each user costs."""
        noise = scenario.noise_power + np.einsum("km,mn,kn->k", f, R, f.conj()).real
        best = wmmse(torch.from_numpy(g), torch.from_numpy(noise), scenario.comm_power)
        assert best.precoders is not None
        powers = np.abs(g @ best.precoders.numpy()) ** 2
        total = powers.sum(1) + noise
        return float(best.rate), 1 / (total - np.diag(powers)) - 1 / total

    V = found.streams[0, 0].numpy().astype(np.complex128)
    starts = {"all users": np.ones(5), "oracle": answer(V @ V.conj().T)[1]}
    for name, weights in starts.items():
        rate = 0.0
        for _ in range(8):
            burden = np.einsum("k,km,kn->mn", weights, f.conj(), f)
            R = waveform.least_burden(burden, scenario.sensing_threshold).covariance
            last, (rate, weights) = rate, answer(R)
            if rate < last * 1.001:
                break
        benchmark.extra_info[f"alternating from {name}"] = round(max(rate, last), 4)
    benchmark.extra_info["oracle"] = round(float(found.rate[0, 0]), 4)
    benchmark.extra_info["excess"] = f"{float(found.excess[0, 0]):.1e}"
