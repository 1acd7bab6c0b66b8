"""The compiled loop over pairs of directions: the same loss and gradient, in single precision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import reference
import torch

from isac_gym.physics.array import angular_grid
from isac_gym.physics.sensing.compiled import CompiledPairs
from isac_gym.physics.sensing.model import SensingModel

pytest.importorskip("numba")

TARGETS = (-63.0, -8.0, 17.0, 52.0)
TOLERANCE = 1e-4
# Symmetric, and without broadside.
EVEN = np.array([-80.0, -61.5, -33.0, -8.0, -2.5, 2.5, 8.0, 33.0, 61.5, 80.0])


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISAC_GYM_COMPILED", raising=False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def streams_of(size: int, *batch: int) -> reference.Complex:
    rng = np.random.default_rng([size, *batch])
    return reference.complex_normal(rng, *batch, size, 3) / np.sqrt(size)


def single(array: reference.Complex) -> torch.Tensor:
    return torch.from_numpy(array).to(torch.complex64)


def gradient_of(model: SensingModel, streams: reference.Complex) -> reference.Complex:
    leaf = single(streams).requires_grad_(True)
    model(leaf @ leaf.mH).total.sum().backward()
    assert leaf.grad is not None
    return leaf.grad.to(torch.complex128).numpy()


def test_needs_an_increasing_symmetric_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CompiledPairs.supports(angular_grid())
    assert CompiledPairs.supports(torch.from_numpy(EVEN))
    for grid in (EVEN[:-1], EVEN[::-1].copy(), np.array([-1.0, 0.5, 1.0]), np.zeros(2)):
        assert not CompiledPairs.supports(torch.from_numpy(grid))
    monkeypatch.setenv("ISAC_GYM_COMPILED", "0")
    assert not CompiledPairs.supports(angular_grid())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 12, 16, 33])
@pytest.mark.parametrize("spacing", [0.3, 0.5, 0.7, 1.0])
def test_value_agrees_with_the_direct_formula(size: int, spacing: float) -> None:
    streams = streams_of(size, 2, 2)
    covariance = streams @ np.swapaxes(streams.conj(), -1, -2)
    found = SensingModel(size, spacing, TARGETS)(single(covariance))
    expected = np.array(
        [reference.sensing_loss(R, spacing, TARGETS) for R in covariance.reshape(-1, size, size)]
    )
    assert found.total.shape == (2, 2)
    np.testing.assert_allclose(
        found.cross_correlation.flatten(), expected[:, 1], rtol=TOLERANCE, atol=0
    )
    np.testing.assert_allclose(found.total.flatten(), expected.sum(1), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 11, 12, 33])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_gradient_agrees_with_the_direct_formula(size: int, batch: int) -> None:
    streams = streams_of(size, batch)
    found = gradient_of(SensingModel(size, 0.5, TARGETS), streams)
    for matrix, gradient in zip(streams, found, strict=True):
        expected = reference.sensing_gradient(matrix, 0.5, TARGETS)
        np.testing.assert_allclose(gradient, expected, atol=TOLERANCE * np.abs(expected).max())


def test_symmetric_grid_without_broadside() -> None:
    streams, targets = streams_of(5, 1)[0], (-8.0, 33.0)
    model = SensingModel(5, 0.7, targets, grid_deg=torch.from_numpy(EVEN))
    found = model(single(streams @ streams.conj().T)).cross_correlation.item()
    covariance = streams @ streams.conj().T
    expected = reference.cross_correlation(covariance, EVEN, targets, 0.7, "grid_abs")
    assert found == pytest.approx(expected, rel=TOLERANCE)
    gradient = reference.sensing_gradient(streams, 0.7, targets, angles=EVEN)
    np.testing.assert_allclose(
        gradient_of(model, streams), gradient, atol=TOLERANCE * np.abs(gradient).max()
    )


def test_value_is_the_same_with_and_without_gradients() -> None:
    streams = single(streams_of(5, 7))
    model = SensingModel(5, 0.5, TARGETS)
    plain = model(streams @ streams.mH).total
    leaf = streams.clone().requires_grad_(True)
    torch.testing.assert_close(model(leaf @ leaf.mH).total.detach(), plain, rtol=1e-5, atol=0)


def test_models_of_one_size_do_not_disturb_each_other() -> None:
    """They work on the same memory in turn; only their arrays differ."""
    streams = streams_of(5, 2)
    covariance = single(streams @ np.swapaxes(streams.conj(), -1, -2))
    models = [SensingModel(5, spacing, TARGETS) for spacing in (0.4, 0.9)]
    for _ in range(2):
        for model in models:
            alone = SensingModel(5, model.spacing, TARGETS)
            np.testing.assert_array_equal(model(covariance).total, alone(covariance).total)
            expected = [
                sum(reference.sensing_loss(R, model.spacing, TARGETS))
                for R in covariance.to(torch.complex128).numpy()
            ]
            np.testing.assert_allclose(model(covariance).total, expected, rtol=TOLERANCE)
            np.testing.assert_array_equal(gradient_of(model, streams), gradient_of(alone, streams))


def test_memory_layout_of_the_input_does_not_matter() -> None:
    streams = single(streams_of(5, 3))
    covariance = streams @ streams.mH
    model = SensingModel(5, 0.5, TARGETS)
    expected = model(covariance).total
    strided = torch.stack([covariance, -covariance], dim=-1)[..., 0]
    for layout in (covariance.mT.contiguous().conj(), strided):
        torch.testing.assert_close(model(layout).total, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_an_empty_batch_gives_an_empty_loss(with_gradient: bool) -> None:
    covariance = torch.zeros(0, 5, 5, dtype=torch.complex64, requires_grad=with_gradient)
    assert SensingModel(5, 0.5, TARGETS)(covariance).total.shape == (0,)


@pytest.mark.usefixtures("two_threads")
def test_two_threads_give_the_same_bits_as_one() -> None:
    # Enough of them that the threads are at work at the same time.
    streams = streams_of(12, 2000)
    model = SensingModel(12, 0.5, TARGETS)
    covariance = single(streams @ np.swapaxes(streams.conj(), -1, -2))
    on_two = model(covariance).cross_correlation, gradient_of(model, streams)
    torch.set_num_threads(1)
    torch.testing.assert_close(model(covariance).cross_correlation, on_two[0], rtol=0, atol=0)
    expected = gradient_of(model, streams)
    # Matrix products of torch depend on the number of threads, the loop does not.
    np.testing.assert_allclose(on_two[1], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "covariance",
    [
        np.zeros((5, 5), complex),
        np.eye(5, dtype=complex),
        np.diag([0.0, 0.0, 1.0, 0.0, 0.0]).astype(complex),
        np.outer([1.0, -1.0, 0.0, 1.0, -1.0], [1.0, -1.0, 0.0, 1.0, -1.0]).astype(complex),
        *(power * streams_of(5) @ streams_of(5).conj().T for power in (1e-22, 1e-24, 1e-26, 1e-28)),
    ],
    ids=[
        "no power",
        "identity",
        "one antenna",
        "null at broadside",
        *["1e-22", "1e-24", "1e-26", "1e-28"],
    ],
)
@pytest.mark.parametrize("spacing", [0.3, 0.5])
def test_gradient_at_kinks_is_a_subgradient(covariance: reference.Complex, spacing: float) -> None:
    # grid_abs is a norm of the pattern: its subgradients are the G with <G, D> <= L_r2(D) for
    # every D and <G, R> = L_r2(R).
    model = SensingModel(5, spacing, TARGETS)
    leaf = single(covariance).requires_grad_(True)
    value = model(leaf).cross_correlation
    value.backward()
    assert leaf.grad is not None
    gradient = leaf.grad.to(torch.complex128).numpy()
    rng = np.random.default_rng(0)
    for _ in range(10):
        direction = reference.complex_normal(rng, 5, 5)
        direction += direction.conj().T
        bound = reference.cross_correlation(direction, reference.GRID, TARGETS, spacing, "grid_abs")
        assert (gradient.conj() * direction).real.sum() <= bound * (1 + TOLERANCE)
    if np.abs(covariance).max() > 1e-3:
        along = (gradient.conj() * covariance).real.sum()
        assert along == pytest.approx(value.item(), rel=TOLERANCE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_covariance_is_seen_in_value_and_gradient(bad: float) -> None:
    covariance = single(streams_of(5, 3) @ np.swapaxes(streams_of(5, 3).conj(), -1, -2))
    covariance[1, 2, 2] = bad
    leaf = covariance.requires_grad_(True)
    total = SensingModel(5, 0.5, TARGETS)(leaf).total
    assert total.isfinite().tolist() == [True, False, True]
    total.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all(-1).all(-1).tolist() == [True, False, True]
