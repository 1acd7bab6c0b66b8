"""The sensing loss against the direct formula, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isac_gym.physics.array import angular_grid, desired_pattern, steering_vectors
from isac_gym.physics.sensing.model import SensingModel

_ANTENNAS = 12
_TARGETS = (-70.0, 0.0, 40.0)


def _covariances(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    streams = torch.randn(batch, _ANTENNAS, _ANTENNAS, dtype=torch.complex64, generator=generator)
    return streams @ streams.mH * (0.2 / _ANTENNAS)


def _model(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> SensingModel:
    if compiled:
        pytest.importorskip("numba")
    monkeypatch.setenv("ISAC_GYM_COMPILED", str(int(compiled)))
    return SensingModel(_ANTENNAS, 0.5, _TARGETS)


def _state_time(benchmark: Any, batch: int) -> None:
    benchmark.extra_info["us_per_matrix"] = round(1e6 * benchmark.stats["median"] / batch, 1)
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()


def _direct_torch(steering: Tensor, desired: Tensor, covariance: Tensor) -> Tensor:
    pattern = steering.conj() @ covariance @ steering.mT
    count = len(steering)
    error = (desired - pattern.diagonal(dim1=-2, dim2=-1).real).square().mean(-1)
    return error + 2.0 / (count * (count - 1)) * pattern.abs().triu(1).sum((-2, -1))


@pytest.mark.parametrize("batch", [1, 64, 1024])
@pytest.mark.parametrize("compiled", [False, True], ids=["tensor", "compiled"])
def bench_forward(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, batch: int, compiled: bool
) -> None:
    """The reduced loss without gradient."""
    model, covariances = _model(compiled, monkeypatch), _covariances(batch)
    benchmark.pedantic(model, (covariances,), rounds=max(20, 2000 // batch), warmup_rounds=3)
    _state_time(benchmark, batch)


@pytest.mark.parametrize("batch", [64, 1024])
@pytest.mark.parametrize("compiled", [False, True], ids=["tensor", "compiled"])
def bench_forward_and_backward(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, batch: int, compiled: bool
) -> None:
    """The reduced loss and its gradient."""
    model, covariances = _model(compiled, monkeypatch), _covariances(batch).requires_grad_()

    def run() -> None:
        torch.autograd.grad(model(covariances).total.sum(), covariances)

    benchmark.pedantic(run, rounds=max(10, 1000 // batch), warmup_rounds=3)
    _state_time(benchmark, batch)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "forward_and_backward"])
def bench_direct_torch(benchmark: Any, gradient: bool) -> None:
    """The formula as it is written, batched in torch, 64 matrices."""
    steering = steering_vectors(angular_grid(), _ANTENNAS, 0.5).to(torch.complex64)
    desired = desired_pattern(angular_grid(), _TARGETS, 10.0).float()
    covariances = _covariances(64).requires_grad_(gradient)

    def run() -> None:
        loss = _direct_torch(steering, desired, covariances).sum()
        if gradient:
            torch.autograd.grad(loss, covariances)

    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
    _state_time(benchmark, 64)


def bench_direct_numpy(benchmark: Any) -> None:
    """The formula as it is written, one matrix in NumPy."""
    steering = steering_vectors(angular_grid(), _ANTENNAS, 0.5).numpy().astype(np.complex64)
    desired = desired_pattern(angular_grid(), _TARGETS, 10.0).numpy().astype(np.float32)
    covariance = _covariances(1)[0].numpy()
    above = np.triu_indices(len(steering), 1)

    def run() -> None:
        pattern = steering.conj() @ covariance @ steering.T
        np.mean((desired - pattern.diagonal().real) ** 2) + np.abs(pattern[above]).mean()

    benchmark.pedantic(run, rounds=500, warmup_rounds=10)
    _state_time(benchmark, 1)
