"""The quantiser: bits with the right odds, a gradient that means something, and its limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from isac_gym.agents.networks.cooperative.quantiser import Quantiser, QuantiserKind

VALUES = torch.tensor([-1.0, -0.9, -0.5, -0.01, 0.0, 0.3, 0.8, 1.0])
DRAWS = 20_000


def draw(kind: QuantiserKind, values: Tensor, seed: int = 0, progress: float = 0.0) -> Tensor:
    quantiser = Quantiser(kind)
    quantiser.progress = progress
    return quantiser.draw(values, torch.Generator().manual_seed(seed))


def within_binomial(positive: Tensor, probability: Tensor) -> bool:
    """Whether counts of DRAWS are such as all but one in 10⁹ runs would give."""
    low, high = stats.binom.interval(1 - 1e-9 / len(positive), DRAWS, probability.double().numpy())
    counts = positive.numpy()
    return bool(((counts >= low) & (counts <= high)).all())


def test_the_expectation_of_a_stochastic_bit_is_its_value() -> None:
    bits = draw("stochastic", VALUES.expand(DRAWS, -1))
    assert set(bits.unique().tolist()) == {-1.0, 1.0}
    assert bits.dtype == VALUES.dtype
    # E[bit] = v if and only if it is +1 with probability (1 + v)/2.
    assert within_binomial((bits > 0).sum(0), (1 + VALUES.double()) / 2)


def test_bits_are_independent_of_each_other() -> None:
    bits = draw("stochastic", torch.full((DRAWS, 4), 0.4)).double().numpy()
    covariance = np.cov(bits.T)
    np.testing.assert_allclose(np.diag(covariance), 1 - 0.4**2, atol=0.02)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 6.5 / np.sqrt(DRAWS)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6), st.integers(0, 2**20))
def test_the_gradient_passes_straight_through(values: list[float], seed: int) -> None:
    given_values = torch.tensor(values, requires_grad=True)
    weights = torch.linspace(-2.0, 3.0, len(values))
    (weights * draw("stochastic", given_values, seed)).sum().backward()
    assert given_values.grad is not None
    assert torch.equal(given_values.grad, weights)


def test_the_gradient_is_that_of_the_expectation_where_bits_enter_one_by_one() -> None:
    """E[f(b)] = f(v) for a function that is linear in every bit, so ∇ must be ∇f(v) on average."""

    def f(b: Tensor) -> Tensor:
        return 2.0 * b[..., 0] * b[..., 1] - b[..., 1] * b[..., 2] + 0.5 * b[..., 2]

    values = torch.tensor([0.6, -0.2, 0.1])
    exact = torch.autograd.functional.jacobian(f, values)
    repeated = values.expand(DRAWS, -1).clone().requires_grad_()
    f(draw("stochastic", repeated)).sum().backward()
    assert repeated.grad is not None
    found = repeated.grad.double()
    error = (found.mean(0) - exact).abs()
    # An estimate of a standard deviation of at most 2 a draw; six of its standard errors.
    assert (error < 6 * found.std(0) / DRAWS**0.5 + 1e-12).all()
    assert (found.std(0) > 0).all()


def test_bits_come_from_the_generator_alone() -> None:
    values = torch.zeros(64)
    before = torch.random.get_rng_state()
    first, again, other = (draw("stochastic", values, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_decided_bit_is_the_sign() -> None:
    before = torch.random.get_rng_state()
    bits = Quantiser.decide(VALUES)
    assert bits.tolist() == [-1.0] * 4 + [1.0] * 4
    assert torch.equal(Quantiser.decide(VALUES), bits)
    assert torch.equal(Quantiser.decide(torch.tensor([-0.0])), torch.tensor([1.0]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_annealed_values_become_bits_as_training_goes() -> None:
    values = torch.linspace(-0.95, 0.95, 20)
    stages = [draw("annealed", values, progress=progress) for progress in (0.0, 0.3, 0.6, 0.999)]
    np.testing.assert_allclose(stages[0], values, rtol=2e-3)
    for before, after in itertools.pairwise(stages):
        assert (after.abs() > before.abs()).logical_or(before.abs() > 1 - 1e-6).all()
        assert torch.equal(after.sign(), values.sign())
    outside = values.abs() > 0.2
    np.testing.assert_allclose(stages[-1][outside], values[outside].sign(), atol=1e-3)
    assert torch.equal(stages[1], draw("annealed", values, seed=9, progress=0.3)), "no randomness"


def test_hardened_bits_are_stochastic_at_first_and_signs_in_the_end() -> None:
    hardened, stochastic = Quantiser("hardened"), Quantiser("stochastic")
    values = torch.linspace(-0.9, 0.9, 1001, requires_grad=True)
    for progress in (0.0, 0.5):
        hardened.progress = progress
        drawn = [q.draw(values, torch.Generator().manual_seed(3)) for q in (hardened, stochastic)]
        assert torch.equal(*drawn)
    hardened.progress = 1.0
    bits = hardened.draw(values, torch.Generator().manual_seed(3))
    (bits * torch.arange(1001.0)).sum().backward()
    clear = values.detach().abs() > 1.0 / 21.0
    assert torch.equal(bits[clear], Quantiser.decide(values.detach())[clear])
    assert values.grad is not None
    assert torch.equal(values.grad, torch.arange(1001.0))


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.999])
def test_the_binary_concrete_has_the_odds_of_the_bit_at_every_temperature(progress: float) -> None:
    inside = VALUES[1:-1]
    relaxed = draw("gumbel", inside.expand(DRAWS, -1), progress=progress)
    assert relaxed.abs().max() <= 1.0
    # The values are held off ±1 by 0.1 %, which no count of this many tells.
    assert within_binomial((relaxed > 0).sum(0), (1 + inside.double()) / 2)


def test_the_binary_concrete_becomes_a_bit_as_it_cools() -> None:
    values = VALUES.expand(DRAWS, -1)
    share = [
        float((draw("gumbel", values, progress=progress).abs() > 0.9).float().mean())
        for progress in (0.0, 0.5, 0.999)
    ]
    assert share[0] < share[1] < share[2]
    assert share[2] > 0.85


@pytest.mark.parametrize("kind", ["annealed", "gumbel"])
def test_relaxed_bits_have_a_finite_gradient_everywhere(kind: QuantiserKind) -> None:
    values = VALUES.clone().requires_grad_()
    draw(kind, values, progress=0.999).sum().backward()
    assert values.grad is not None
    assert bool(torch.isfinite(values.grad).all())


def test_the_kind_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of 'stochastic'.*got 'sign'"):
        Quantiser("sign")  # type: ignore[arg-type]
