"""Batched L-BFGS on functions whose minimum is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import rosen
from torch import Tensor

from isac_gym.solvers.lbfgs import BatchedLBFGS


def differentiated(function: object, point: Tensor) -> tuple[Tensor, Tensor, None]:
    leaf = point.detach().requires_grad_(True)
    value = function(leaf)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient, None


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(-1)


def test_rosenbrock_agrees_with_scipys_and_is_minimised() -> None:
    start = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (20, 6)))
    np.testing.assert_allclose(rosenbrock(start), [rosen(row.numpy()) for row in start])
    search = BatchedLBFGS(
        lambda x: differentiated(rosenbrock, x), lambda mask, state: None, start, memory=8
    )
    search.run(400)
    # The other local minimum has its first coordinate near -1.
    near_one = search.point[:, 0] > 0
    assert int(near_one.sum()) > 5
    torch.testing.assert_close(
        search.point[near_one], torch.ones_like(search.point[near_one]), atol=1e-4, rtol=0
    )
    np.testing.assert_allclose(
        search.value, [rosen(row.numpy()) for row in search.point], atol=1e-12
    )


def test_quadratics_of_very_different_scale_side_by_side() -> None:
    rng = np.random.default_rng(1)
    factor = torch.from_numpy(rng.standard_normal((30, 12, 12)))
    scale = torch.logspace(-6, 6, 30, dtype=torch.float64)
    matrix = (factor @ factor.mT + torch.eye(12)) * scale[:, None, None]
    target = torch.from_numpy(rng.standard_normal((30, 12)))

    def function(x: Tensor) -> tuple[Tensor, Tensor, None]:
        pull = (matrix @ (x - target).unsqueeze(-1)).squeeze(-1)
        return 0.5 * ((x - target) * pull).sum(-1), pull, None

    start = torch.from_numpy(rng.standard_normal((30, 12)))
    search = BatchedLBFGS(function, lambda mask, state: None, start)
    search.run(300)
    torch.testing.assert_close(search.point, target, atol=1e-5, rtol=0)
    # Each problem goes its own way: alone it takes the same steps.
    for index in (0, 13, 29):

        def single(x: Tensor, i: int = index) -> tuple[Tensor, Tensor, None]:
            pull = (matrix[i] @ (x - target[i]).unsqueeze(-1)).squeeze(-1)
            return 0.5 * ((x - target[i]) * pull).sum(-1), pull, None

        alone = BatchedLBFGS(single, lambda mask, state: None, start[index : index + 1])
        together = BatchedLBFGS(function, lambda mask, state: None, start)
        alone.run(15)
        together.run(15)
        torch.testing.assert_close(alone.point[0], together.point[index], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_never_rise_and_the_state_goes_with_the_points(dtype: torch.dtype) -> None:
    start = torch.from_numpy(np.random.default_rng(2).uniform(-3, 3, (50, 4))).to(dtype)
    held = torch.full_like(start, torch.nan)

    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, gradient, _ = differentiated(rosenbrock, x)
        return value, gradient, x.clone()

    def accept(mask: Tensor, state: Tensor) -> None:
        held[mask] = state[mask]

    search = BatchedLBFGS(function, accept, start)
    torch.testing.assert_close(held, start)
    last = search.value
    for _ in range(60):
        search.run(1)
        slack = 16 * torch.finfo(dtype).eps * last.abs()
        assert bool((search.value <= last + slack).all())
        assert torch.equal(held, search.point)
        last = search.value


def test_restart_follows_a_function_that_changed() -> None:
    centre = torch.full((3, 2), 5.0, dtype=torch.float64)

    def function(x: Tensor) -> tuple[Tensor, Tensor, None]:
        return (x - centre).square().sum(-1), 2 * (x - centre), None

    search = BatchedLBFGS(function, lambda mask, state: None, torch.ones(3, 2).double())
    search.run(30)
    torch.testing.assert_close(search.point, centre, atol=1e-6, rtol=0)
    centre += torch.tensor([1.0, -2.0])
    search.restart()
    search.run(30)
    torch.testing.assert_close(search.point, centre, atol=1e-6, rtol=0)


def test_a_stationary_start_stays_finite() -> None:
    zero = torch.zeros(2, 3)
    search = BatchedLBFGS(
        lambda x: (x.square().sum(-1), 2 * x, None), lambda mask, state: None, zero
    )
    search.run(5)
    assert torch.equal(search.point, zero)
