"""The sum capacity: closed forms, another solver, and linear precoders, which do not exceed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch

from isac_gym.baselines import wmmse
from isac_gym.solvers.capacity import Capacity, dpc_capacity

SNRS = (5.0, 10.0, 20.0)


def capacity(G: reference.Complex, noise: Any, power: float, **options: Any) -> Capacity:
    return dpc_capacity(torch.from_numpy(G), noise, power, **options)


def linear_rates(G: reference.Complex, F: reference.Complex, noise: Any) -> reference.Real:
    """Sum rates (...) of precoders F (..., M_C, K) on channels G (..., K, M_C)."""
    received = np.abs(G @ F) ** 2
    signal = np.einsum("...kk->...k", received)
    total = received.sum(-1) + noise
    found: reference.Real = np.log2(total / (total - signal)).sum(-1)
    return found


def test_single_user_closed_form() -> None:
    rng = np.random.default_rng(0)
    G = reference.complex_normal(rng, 6, 1, 4)
    noise = rng.uniform(0.01, 3.0, (6, 1))
    found = capacity(G, torch.from_numpy(noise), 2.5)
    gain = np.sum(np.abs(G[:, 0]) ** 2, -1)
    expected = np.log2(1 + 2.5 * gain / noise[:, 0])
    np.testing.assert_allclose(found.rate, expected, rtol=1e-12)
    np.testing.assert_allclose(found.upper_bound, expected, rtol=1e-12)
    np.testing.assert_allclose(found.duals, 2.5)


@pytest.mark.parametrize("power", [0.01, 1.0, 30.0])
def test_orthogonal_users_fill_water(power: float) -> None:
    rng = np.random.default_rng(1)
    unitary = np.linalg.qr(reference.complex_normal(rng, 5, 5))[0]
    amplitudes = np.array([2.0, 1.0, 0.5, 0.05])
    G = amplitudes[:, None] * unitary[:4]
    noise = np.array([0.1, 0.3, 0.02, 0.4])
    floors = noise / amplitudes**2
    low, high = 0.0, power + floors.max()
    for _ in range(200):
        level = 0.5 * (low + high)
        over = np.maximum(level - floors, 0.0).sum() > power
        low, high = (low, level) if over else (level, high)
    filled = np.maximum(low - floors, 0.0)
    found = capacity(G, torch.from_numpy(noise), power, tolerance=1e-10)
    expected = np.log2(1 + filled / floors).sum()
    assert float(found.rate) == pytest.approx(expected, rel=1e-9)
    assert float(found.upper_bound) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(found.duals, filled, atol=1e-4 * power)


@pytest.mark.parametrize("antennas", [1, 3])
def test_two_users_by_a_search_over_the_split(antennas: int) -> None:
    rng = np.random.default_rng(antennas)
    for scale in (0.1, 1.0, 10.0):
        G = reference.complex_normal(rng, 2, antennas) * np.array([[1.0], [0.6]])
        noise = rng.uniform(0.05, 0.5, 2)
        low, high = 0.0, 1.0
        for _ in range(4):
            shares = np.linspace(low, high, 401)
            rates = [
                reference.uplink_rate(G, noise, scale * np.array([share, 1.0 - share]))
                for share in shares
            ]
            best = int(np.argmax(rates))
            low, high = shares[max(best - 1, 0)], shares[min(best + 1, 400)]
        found = capacity(G, torch.from_numpy(noise), scale, tolerance=1e-9)
        assert float(found.rate) == pytest.approx(max(rates), rel=1e-8)
        assert float(found.upper_bound) >= max(rates) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("users", "antennas", "snr_db"),
    [(2, 4, 10.0), (3, 3, 5.0), (5, 2, 10.0), (6, 3, 20.0), (4, 1, 10.0), (4, 6, -10.0)],
)
def test_agrees_with_a_general_solver(users: int, antennas: int, snr_db: float) -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(users * 10 + antennas)
    power = 2.0
    for _ in range(3):
        G = reference.complex_normal(rng, users, antennas)
        noise = power / 10 ** (snr_db / 10) * rng.uniform(0.3, 3.0, users)

        def cost(duals: reference.Real, G: Any = G, noise: Any = noise) -> float:
            return -reference.uplink_rate(G, noise, duals)

        starts = [np.full(users, power / users), *(power * rng.dirichlet(np.ones(users), 3))]
        best = 0.0
        for start in starts:
            result = minimize(
                cost,
                start,
                method="SLSQP",
                bounds=[(0.0, power)] * users,
                constraints={"type": "eq", "fun": lambda duals: duals.sum() - power},
                options={"ftol": 1e-13, "maxiter": 300},
            )
            duals = np.clip(result.x, 0.0, None)
            best = max(best, reference.uplink_rate(G, noise, duals * power / duals.sum()))
        found = capacity(G, torch.from_numpy(noise), power, tolerance=1e-8, max_iterations=5000)
        assert float(found.rate) == pytest.approx(best, rel=1e-6)
        assert float(found.upper_bound) >= best * (1 - 1e-12)


@pytest.mark.parametrize(("users", "antennas"), [(5, 12), (12, 12), (7, 3), (1, 2)])
def test_rate_and_bound_enclose_the_capacity(users: int, antennas: int) -> None:
    rng = np.random.default_rng(users)
    G = reference.complex_normal(rng, 20, users, antennas)
    noise = rng.uniform(0.02, 0.5, (20, users))
    found = capacity(G, torch.from_numpy(noise), 1.5)
    rate, upper, duals = (value.numpy() for value in (found.rate, found.upper_bound, found.duals))
    assert (upper >= rate * (1 - 1e-12)).all()
    assert (upper - rate <= 1e-6 * rate * (1 + 1e-9)).all()
    assert found.iterations < 1000
    assert (duals >= 0).all()
    np.testing.assert_allclose(duals.sum(-1), 1.5, rtol=1e-12)
    recomputed = [reference.uplink_rate(*each) for each in zip(G, noise, duals, strict=True)]
    np.testing.assert_allclose(rate, recomputed, rtol=1e-11)
    last = np.zeros(20)
    for iterations in (1, 2, 3, 7):
        early = capacity(G, torch.from_numpy(noise), 1.5, tolerance=0.0, max_iterations=iterations)
        assert early.iterations == iterations
        assert (early.upper_bound.numpy() >= rate * (1 - 1e-12)).all()
        assert (early.rate.numpy() <= upper * (1 + 1e-12)).all()
        assert (early.rate.numpy() >= last * (1 - 1e-12)).all()
        last = early.rate.numpy()


def test_invariances() -> None:
    rng = np.random.default_rng(4)
    G = reference.complex_normal(rng, 8, 5, 3)
    noise = rng.uniform(0.05, 0.5, (8, 5))

    def solved(channels: reference.Complex, sigma: reference.Real, power: float) -> Capacity:
        # Far enough that where it stops does not show.
        return capacity(channels, torch.from_numpy(sigma), power, tolerance=1e-10)

    base = solved(G, noise, 1.0)
    order = rng.permutation(5)
    turned = np.linalg.qr(reference.complex_normal(rng, 3, 3))[0]
    for other in (
        solved(1e-4 * G, 1e-8 * noise, 1.0),
        solved(1e3 * G, 1e6 * noise, 1.0),
        solved(G, 7.0 * noise, 7.0),
        solved(G[:, order], noise[:, order], 1.0),
        solved(G @ turned, noise, 1.0),
        solved(G.conj(), noise, 1.0),
    ):
        np.testing.assert_allclose(other.rate, base.rate, rtol=1e-9)
        np.testing.assert_allclose(other.upper_bound, base.upper_bound, rtol=1e-9)
    permuted = solved(G[:, order], noise[:, order], 1.0)
    np.testing.assert_allclose(permuted.duals, base.duals[:, order], atol=1e-4)


def test_batch_shapes_and_broadcast_noise() -> None:
    rng = np.random.default_rng(5)
    G = reference.complex_normal(rng, 2, 3, 4, 5)
    noise = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    found = capacity(G, noise, 1.0, tolerance=1e-9)
    assert found.rate.shape == found.upper_bound.shape == (2, 3)
    assert found.duals.shape == (2, 3, 4)
    assert found.rate.dtype == torch.float64
    for index in np.ndindex(2, 3):
        alone = capacity(G[index], noise, 1.0, tolerance=1e-9)
        assert alone.rate.shape == ()
        assert float(found.rate[index]) == pytest.approx(float(alone.rate), rel=1e-8)
    uniform = capacity(G, 0.25, 1.0, tolerance=1e-9)
    same = capacity(G, torch.full((2, 3, 4), 0.25, dtype=torch.float64), 1.0, tolerance=1e-9)
    torch.testing.assert_close(uniform.rate, same.rate)
    single = dpc_capacity(torch.from_numpy(G).to(torch.complex64), 0.25, 1.0, tolerance=1e-9)
    assert single.rate.dtype == torch.float64
    torch.testing.assert_close(single.rate, uniform.rate, rtol=1e-6, atol=0)


def test_identical_users_share_one_capacity() -> None:
    g = reference.complex_normal(np.random.default_rng(6), 1, 4)
    found = capacity(np.repeat(g, 3, 0), 0.2, 1.5)
    expected = np.log2(1 + 1.5 * np.sum(np.abs(g) ** 2) / 0.2)
    assert float(found.rate) == pytest.approx(expected, rel=1e-9)
    # The one with the least noise gets everything.
    noise = torch.tensor([0.4, 0.2, 0.3], dtype=torch.float64)
    found = capacity(np.repeat(g, 3, 0), noise, 1.5)
    assert float(found.rate) == pytest.approx(expected, rel=2e-6)
    assert float(found.upper_bound) >= expected * (1 - 1e-12)


def test_a_user_that_cannot_be_reached() -> None:
    G = reference.complex_normal(np.random.default_rng(7), 3, 4)
    G[1] = 0.0
    found = capacity(G, 0.1, 1.0, tolerance=1e-9)
    others = capacity(G[[0, 2]], 0.1, 1.0, tolerance=1e-9)
    assert float(found.rate) == pytest.approx(float(others.rate), rel=1e-8)


def test_a_channel_that_reaches_nobody() -> None:
    nothing = capacity(np.zeros((3, 4), complex), 0.1, 1.0)
    assert float(nothing.rate) == float(nothing.upper_bound) == 0.0
    G = reference.complex_normal(np.random.default_rng(8), 3, 3, 4)
    G[1] = 0.0
    found = capacity(G, 0.1, 1.0)
    assert found.rate[1] == found.upper_bound[1] == 0.0
    alone = capacity(G[[0, 2]], 0.1, 1.0)
    torch.testing.assert_close(found.rate[[0, 2]], alone.rate, rtol=1e-5, atol=0)
    assert found.iterations < 1000


@pytest.mark.parametrize(("users", "antennas"), [(2, 3), (3, 3), (5, 3)])
def test_tiny_noise(users: int, antennas: int) -> None:
    # Rate - min(K, M_C)·log2(P/N0) tends to a constant.
    G = reference.complex_normal(np.random.default_rng(users), users, antennas)
    offsets = []
    for noise in (1e-8, 1e-10, 1e-12):
        found = capacity(G, noise, 1.0, tolerance=1e-8, max_iterations=5000)
        assert float(found.upper_bound) >= float(found.rate)
        assert float(found.upper_bound - found.rate) <= 1e-8 * float(found.rate)
        offsets.append(float(found.rate) + min(users, antennas) * np.log2(noise))
    np.testing.assert_allclose(offsets, offsets[0], atol=1e-4)


@pytest.mark.parametrize("snr_db", SNRS)
@pytest.mark.parametrize("users", [5, 10, 12])
def test_no_linear_precoder_exceeds_the_capacity(users: int, snr_db: float) -> None:
    rng = np.random.default_rng((users, int(snr_db)))
    count, antennas = 40, 12
    noise = 10 ** (-snr_db / 10)
    G = reference.complex_normal(rng, count, users, antennas)
    found = capacity(G, noise, 1.0)
    upper = found.upper_bound.numpy()
    for shape in range(6):
        F = reference.full_power(reference.complex_normal(rng, count, antennas, users), 1.0)
        if shape >= 3:
            powers = rng.dirichlet(np.full(users, 1.0 + shape))
            F = reference.regularised(G, np.full(users, noise), powers)
        assert (np.sum(np.abs(F) ** 2, (1, 2)) <= 1 + 1e-12).all()
        assert (linear_rates(G, F, noise) <= upper).all()
    solution = wmmse(torch.from_numpy(G), noise, 1.0)
    assert solution.precoders is not None
    F = solution.precoders.numpy()
    assert (np.sum(np.abs(F) ** 2, (1, 2)) <= 1 + 1e-9).all()
    rates = linear_rates(G, F, noise)
    assert (rates <= upper).all()
    # Not by a margin that would hide an error.
    assert rates.mean() > (0.9 if users == 5 else 0.75) * upper.mean()


GOOD = torch.ones(2, 3, dtype=torch.complex128)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: dpc_capacity(GOOD, 0.1, 0.0), "power"),
        (lambda: dpc_capacity(GOOD, 0.1, float("nan")), "power"),
        (lambda: dpc_capacity(GOOD, 0.1, 1.0, tolerance=-1e-9), "tolerance"),
        (lambda: dpc_capacity(GOOD, 0.1, 1.0, max_iterations=0), "max_iterations"),
        (lambda: dpc_capacity(GOOD[0], 0.1, 1.0), "channels"),
        (lambda: dpc_capacity(GOOD * float("inf"), 0.1, 1.0), "channels"),
        (lambda: dpc_capacity(GOOD * float("nan"), 0.1, 1.0), "channels"),
        (lambda: dpc_capacity(GOOD, 0.0, 1.0), "noise_power"),
        (lambda: dpc_capacity(GOOD, -0.1, 1.0), "noise_power"),
        (lambda: dpc_capacity(GOOD, torch.tensor([0.1, float("inf")]), 1.0), "noise_power"),
    ],
)
def test_errors_name_the_argument(call: Callable[[], Capacity], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        call()
