"""Bounds that no design exceeds: closed forms, other solvers, and many designs that try."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import reference
import torch
from direct_model import SMALL

from isac_gym.baselines import JointOracle, NullSteering, bounds, wmmse
from isac_gym.baselines.bounds import JointBound, joint_upper_bound
from isac_gym.solvers.beampattern import best_beampattern
from isac_gym.solvers.capacity import Capacity, dpc_capacity
from isac_gym.system.downlink import find_system

SNRS = (5.0, 10.0, 20.0)


def uplink_rate(G: reference.Complex, noise: reference.Real, duals: reference.Real) -> float:
    """log2 det(I + Σ_k λ_k/σ_k² g_k* g_kᵀ), in the M_C x M_C form."""
    total = np.eye(G.shape[1]) + np.einsum("k,kp,kq->pq", duals / noise, G.conj(), G)
    return float(np.linalg.slogdet(total)[1] / np.log(2.0))


def capacity(G: reference.Complex, noise: Any, power: float, **options: Any) -> Capacity:
    return dpc_capacity(torch.from_numpy(G), noise, power, **options)


def linear_rates(G: reference.Complex, F: reference.Complex, noise: Any) -> reference.Real:
    """Sum rates (...) of precoders F (..., M_C, K) on channels G (..., K, M_C)."""
    received = np.abs(G @ F) ** 2
    signal = np.einsum("...kk->...k", received)
    total = received.sum(-1) + noise
    found: reference.Real = np.log2(total / (total - signal)).sum(-1)
    return found


def full_power(F: reference.Complex, power: float) -> reference.Complex:
    found: reference.Complex = F * np.sqrt(power) / np.linalg.norm(F, axis=(-2, -1), keepdims=True)
    return found


def regularised(
    G: reference.Complex, noise: reference.Real, powers: reference.Real
) -> reference.Complex:
    """Regularised zero forcing for users of different noise, columns of the given powers."""
    users = G.shape[-2]
    loading = np.eye(users) * (noise * users / powers.sum())[..., None, :]
    F = np.swapaxes(G.conj(), -1, -2) @ np.linalg.inv(G @ np.swapaxes(G.conj(), -1, -2) + loading)
    found: reference.Complex = F * np.sqrt(powers) / np.linalg.norm(F, axis=-2, keepdims=True)
    return found


# --- Sum capacity -----------------------------------------------------------------------------


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
                uplink_rate(G, noise, scale * np.array([share, 1.0 - share])) for share in shares
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
            return -uplink_rate(G, noise, duals)

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
            best = max(best, uplink_rate(G, noise, duals * power / duals.sum()))
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
    recomputed = [uplink_rate(*each) for each in zip(G, noise, duals, strict=True)]
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
        F = full_power(reference.complex_normal(rng, count, antennas, users), 1.0)
        if shape >= 3:
            powers = rng.dirichlet(np.full(users, 1.0 + shape))
            F = regularised(G, np.full(users, noise), powers)
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


# --- With the radar ---------------------------------------------------------------------------


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


def draw(env: gym.Env[Any, Any], count: int, seed: int = 0) -> torch.Tensor:
    scenario = find_system(env).scenario
    cells = scenario.num_cells
    shape = (count, cells, cells, scenario.num_users, scenario.num_antennas)
    H = reference.complex_normal(np.random.default_rng(seed), *shape)
    return torch.from_numpy(H).to(torch.complex64)


def own(env: gym.Env[Any, Any], H: torch.Tensor) -> tuple[reference.Complex, reference.Complex]:
    """f (n, K, M_R) and g (n, K, M_C) of a single cell, in double precision."""
    wide = H[:, 0, 0].to(torch.complex128).numpy()
    radar = find_system(env).scenario.num_radar_antennas
    return wide[..., :radar], wide[..., radar:]


def losses(env: gym.Env[Any, Any], R: reference.Complex, station: int = 0) -> float:
    scenario = find_system(env).scenario
    return sum(
        reference.sensing_loss(
            R,
            scenario.antenna_spacing,
            scenario.targets_by_cell[station],
            width=scenario.beam_width_deg,
            form=scenario.cross_correlation,
            scale=scenario.pattern_scale,
        )
    )


def best_covariance(env: gym.Env[Any, Any]) -> reference.Complex:
    design = best_beampattern(**find_system(env).scenario.list_beampattern_arguments()[0])
    found: reference.Complex = (design.streams @ design.streams.mH).numpy()
    return found


def toward(
    env: gym.Env[Any, Any], R: reference.Complex, best: reference.Complex, threshold: float
) -> reference.Complex:
    """The mixture of R with the best covariance that just meets the threshold, by convexity."""
    if losses(env, R) <= threshold:
        return R
    low, high = 0.0, 1.0
    for _ in range(16):
        middle = 0.5 * (low + high)
        over = losses(env, (1 - middle) * R + middle * best) > threshold
        low, high = (middle, high) if over else (low, middle)
    return (1 - high) * R + high * best


def normalised(V: reference.Complex, power: float) -> reference.Complex:
    found: reference.Complex = (
        V * np.sqrt(power / len(V)) / np.linalg.norm(V, axis=1, keepdims=True)
    )
    return found


def received(f: reference.Complex, R: reference.Complex) -> reference.Real:
    """q_k = f_kᵀ R f_k*."""
    return np.array([(row @ R @ row.conj()).real for row in f])


def check_designs(env: gym.Env[Any, Any], count: int, tries: int, subdivisions: int) -> None:
    """Feasible designs near and far from the optimum against the bound, on every channel."""
    scenario = find_system(env).scenario
    threshold, power, noise = (
        scenario.sensing_threshold,
        scenario.radar_power,
        scenario.noise_power,
    )
    H = draw(env, count)
    f, g = own(env, H)
    upper = joint_upper_bound(env, H, subdivisions=subdivisions).upper_bound[:, 0].numpy()
    oracle, steered = JointOracle(env).solve(H), NullSteering(env).solve(H)
    best = best_covariance(env)
    rng = np.random.default_rng(1)
    closest = 0.0
    for index in range(count):
        full = np.asarray(H[index], np.complex128)
        starts = [
            normalised(design.streams[index, 0].to(torch.complex128).numpy(), power)
            for design in (oracle, steered)
        ]
        for attempt in range(tries + 2):
            if attempt < 2:
                V = starts[attempt]
            elif attempt % 3 == 0:
                V = reference.feasible_streams(rng, len(best), power)
            else:
                V = starts[attempt % 2]
                V = V + 10.0 ** -(attempt % 4) * reference.complex_normal(rng, *V.shape)
                V = normalised(V, power)
            R = toward(env, V @ V.conj().T, best, threshold)
            np.testing.assert_allclose(np.diag(R).real, power / len(R), rtol=1e-12)
            assert losses(env, R) <= threshold * (1 + 1e-12)
            level = noise + received(f[index], R)
            powers = scenario.comm_power * rng.dirichlet(np.full(scenario.num_users, 3.0))
            designs = [
                full_power(reference.complex_normal(rng, *g[index].T.shape), scenario.comm_power),
                regularised(g[index], level, powers),
            ]
            if attempt < 2:
                found = (oracle, steered)[attempt].precoders
                assert found is not None
                designs.append(
                    full_power(found[index, 0].to(torch.complex128).numpy(), scenario.comm_power)
                )
            for F in designs:
                ratio = reference.sinr(full, F[None], R[None], noise)
                assert reference.spectral_efficiency(ratio).sum() <= upper[index]
            # What dirty-paper coding attains with this waveform, which the bound covers as well.
            duals = capacity(g[index], torch.from_numpy(level), scenario.comm_power).duals.numpy()
            attained = uplink_rate(g[index], level, duals)
            assert attained <= upper[index]
            closest = max(closest, attained / upper[index])
    # Otherwise the designs would not have tested much.
    assert closest > 0.97


def test_no_feasible_design_exceeds_the_bound() -> None:
    check_designs(make(), 5, 24, 6)


def test_no_feasible_design_exceeds_the_bound_after_many_subdivisions() -> None:
    check_designs(make(), 1, 60, 20)


@pytest.mark.parametrize(
    "changes",
    [
        {"snr_db": 20.0, "num_users": 2},
        {
            "num_users": 4,
            "num_comm_antennas": 3,
            "num_radar_antennas": 3,
            "sensing_threshold": 0.24,
        },
        {"cross_correlation": "target_sq", "pattern_scale": "optimal"},
        {"cross_correlation": "grid_sq", "comm_power": 3.0},
        {"num_users": 2, "radar_streams": 2, "sensing_threshold": 0.16},
    ],
    ids=str,
)
def test_no_feasible_design_exceeds_the_bound_elsewhere(changes: dict[str, Any]) -> None:
    check_designs(make(**changes), 2, 16, 4)


@pytest.fixture(scope="module")
def env() -> gym.Env[Any, Any]:
    return make()


@pytest.fixture(scope="module")
def split(env: gym.Env[Any, Any]) -> dict[int, JointBound]:
    """Bounds on the same channels after more and more subdivisions."""
    H = draw(env, 5, seed=2)
    return {count: joint_upper_bound(env, H, subdivisions=count) for count in (0, 1, 3, 12)}


def test_subdivisions_lower_the_bound(split: dict[int, JointBound]) -> None:
    first = split[0]
    assert first.upper_bound.shape == first.attained.shape == first.apart.shape == (5, 1)
    assert first.upper_bound.dtype == torch.float64
    torch.testing.assert_close(first.upper_bound, first.apart, rtol=0, atol=0)
    last = first
    for found in split.values():
        torch.testing.assert_close(found.apart, first.apart, rtol=1e-9, atol=0)
        assert (found.upper_bound <= last.upper_bound + 1e-9).all()
        assert (found.attained >= last.attained - 1e-9).all()
        last = found
    # The gap closes, to no more than a sixth of what it was on average.
    gap = last.upper_bound - last.attained
    assert float(gap.mean()) < float((first.apart - last.attained).mean()) / 6
    assert float((last.apart - last.upper_bound).mean()) > 0.1


def test_attained_is_below_the_bound_for_its_own_loss(
    env: gym.Env[Any, Any], split: dict[int, JointBound]
) -> None:
    # A waveform may exceed ε by 1e-4, and is judged in single precision.
    H = draw(env, 5, seed=2)
    threshold = find_system(env).scenario.sensing_threshold * (1 + 1.1e-4)
    relaxed = joint_upper_bound(env, H, sensing_threshold=threshold, subdivisions=12)
    for found in split.values():
        assert (found.attained <= relaxed.upper_bound).all()


def test_apart_is_below_the_capacity_without_radar(
    env: gym.Env[Any, Any], split: dict[int, JointBound]
) -> None:
    _, g = own(env, draw(env, 5, seed=2))
    scenario = find_system(env).scenario
    free = capacity(g, scenario.noise_power, scenario.comm_power)
    assert (split[0].apart[:, 0] <= free.upper_bound * (1 + 1e-9)).all()
    assert (split[0].apart[:, 0] < 0.99 * free.rate).any()


def test_grows_with_the_threshold(env: gym.Env[Any, Any]) -> None:
    H = draw(env, 6, seed=3)
    thresholds = (0.15, 0.25, 0.6)
    found = [
        joint_upper_bound(env, H, sensing_threshold=threshold, subdivisions=4)
        for threshold in thresholds
    ]
    for low, high in itertools.pairwise(found):
        assert (high.apart >= low.apart * (1 - 1e-3)).all()
        assert (high.upper_bound >= low.attained).all()
        # One by one only up to what is left of the gap, which depends on where cones were split.
        assert (high.upper_bound >= low.upper_bound * (1 - 0.02)).all()
        assert float(high.apart.mean()) > float(low.apart.mean())
        assert float(high.upper_bound.mean()) > float(low.upper_bound.mean())


def test_thresholds_by_channel(env: gym.Env[Any, Any]) -> None:
    H = draw(env, 3, seed=4)
    limits = torch.tensor([[0.16], [0.5], [0.25]])
    found = joint_upper_bound(env, H, sensing_threshold=limits, subdivisions=3)
    for index, limit in enumerate(limits[:, 0].tolist()):
        alone = joint_upper_bound(
            env, H[index : index + 1], sensing_threshold=limit, subdivisions=3
        )
        for name in ("upper_bound", "apart", "attained"):
            value, expected = getattr(found, name)[index], getattr(alone, name)[0]
            torch.testing.assert_close(value, expected, rtol=2e-3, atol=0)
    plain = joint_upper_bound(env, H, subdivisions=0).apart
    stated = joint_upper_bound(
        env, H, sensing_threshold=SMALL["sensing_threshold"], subdivisions=0
    ).apart
    torch.testing.assert_close(plain, stated, rtol=0, atol=0)


def test_large_batches_are_bounded_in_parts(
    env: gym.Env[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    H = draw(env, 5, seed=5)
    whole = joint_upper_bound(env, H, subdivisions=2)
    monkeypatch.setattr(bounds, "_PROBLEMS", 2)
    parts = joint_upper_bound(env, H, subdivisions=2)
    torch.testing.assert_close(parts.upper_bound, whole.upper_bound, rtol=2e-3, atol=0)
    torch.testing.assert_close(parts.apart, whole.apart, rtol=2e-3, atol=0)


def test_a_loose_threshold_leaves_the_capacity_without_radar() -> None:
    # Eight antennas can point nulls at two users, which four of equal power cannot always do.
    env = make(num_users=2, num_radar_antennas=8)
    H = draw(env, 6, seed=6)
    _, g = own(env, H)
    scenario = find_system(env).scenario
    free = capacity(g, scenario.noise_power, scenario.comm_power)
    found = joint_upper_bound(env, H, sensing_threshold=1e3, subdivisions=3)
    for bound in (found.upper_bound, found.apart):
        np.testing.assert_allclose(bound[:, 0], free.rate, rtol=1e-4)
    np.testing.assert_allclose(found.attained[:, 0], free.rate, rtol=1e-2)


def test_without_radar_channels_the_capacity_remains(env: gym.Env[Any, Any]) -> None:
    H = draw(env, 3, seed=7)
    H[..., : SMALL["num_radar_antennas"]] = 0.0
    _, g = own(env, H)
    scenario = find_system(env).scenario
    free = capacity(g, scenario.noise_power, scenario.comm_power)
    found = joint_upper_bound(env, H, subdivisions=2)
    np.testing.assert_allclose(found.upper_bound[:, 0], free.rate, rtol=1e-4)
    np.testing.assert_allclose(found.apart[:, 0], free.rate, rtol=1e-4)


def test_single_user_closed_form_with_radar() -> None:
    pytest.importorskip("cvxpy")
    from isac_gym.solvers.convex import ConvexWaveform

    env = make(num_users=1)
    scenario = find_system(env).scenario
    H = draw(env, 3, seed=8)
    f, g = own(env, H)
    waveform = ConvexWaveform(**scenario.list_beampattern_arguments()[0])
    found = joint_upper_bound(env, H, subdivisions=3)
    for index in range(3):
        least = waveform.least_burden(
            np.outer(f[index, 0].conj(), f[index, 0]), scenario.sensing_threshold
        ).objective
        gain = np.sum(np.abs(g[index, 0]) ** 2)
        exact = np.log2(1 + scenario.comm_power * gain / (scenario.noise_power + max(least, 0.0)))
        upper = float(found.upper_bound[index, 0])
        assert exact * (1 - 1e-6) <= upper <= exact * (1 + 2e-3)
        assert float(found.apart[index, 0]) == pytest.approx(upper, rel=2e-3)
        assert float(found.attained[index, 0]) == pytest.approx(exact, rel=2e-3)


def test_stations_are_bounded_alone() -> None:
    targets = ((-50.0, 10.0), (-20.0, 40.0))
    pair = make(num_cells=2, target_angles_deg=targets, num_users=2)
    H = draw(pair, 4, seed=9)
    limits = torch.tensor([[0.2, 0.25], [0.16, 0.4], [0.3, 0.2], [0.2, 0.2]])
    found = joint_upper_bound(pair, H, sensing_threshold=limits, subdivisions=3)
    assert found.upper_bound.shape == (4, 2)
    crossed = H.clone()
    crossed[:, 0, 1] *= 3.0
    crossed[:, 1, 0] = 0.0
    again = joint_upper_bound(pair, crossed, sensing_threshold=limits, subdivisions=3)
    for name in ("upper_bound", "apart", "attained"):
        torch.testing.assert_close(getattr(again, name), getattr(found, name), rtol=0, atol=0)
    for station in range(2):
        alone = joint_upper_bound(
            make(target_angles_deg=targets[station], num_users=2),
            H[:, station : station + 1, station : station + 1],
            sensing_threshold=limits[:, station : station + 1],
            subdivisions=3,
        )
        for name in ("upper_bound", "apart", "attained"):
            value, expected = getattr(found, name)[:, station], getattr(alone, name)[:, 0]
            torch.testing.assert_close(value, expected, rtol=3e-3, atol=0)


def floors_of(
    env: gym.Env[Any, Any], H: torch.Tensor, limits: torch.Tensor, weights: reference.Real
) -> tuple[reference.Real, reference.Real]:
    search = bounds._ConeSearch(find_system(env), H, limits)
    with torch.no_grad():
        floor, q = search._bound_floors(torch.from_numpy(weights))
    return floor.numpy(), q.numpy()


def test_certified_floors_of_the_radar_power(env: gym.Env[Any, Any]) -> None:
    H = draw(env, 2, seed=10)
    f, _ = own(env, H)
    threshold = 0.17
    rng = np.random.default_rng(10)
    weights = np.concatenate([np.eye(3)[:2], rng.dirichlet(np.ones(3), 4)])
    weights = np.stack([weights, weights[::-1]])
    floor, _ = floors_of(env, H, torch.full((2, 1), threshold), weights)
    assert floor.shape == (2, 6)
    best = best_covariance(env)
    closest = np.full((2, 6), np.inf)
    for index in range(2):
        # What the users receive, from designs that spare some of them and far ones.
        for attempt in range(60):
            V = reference.feasible_streams(rng, 4, 0.8)
            if attempt % 2:
                spared = 10.0 ** rng.uniform(-1, 3, 3)
                slope = np.eye(4) + np.einsum("k,kp,kq->pq", spared, f[index].conj(), f[index])
                V = normalised(np.linalg.solve(slope, np.linalg.cholesky(best)), 0.8)
            R = toward(env, V @ V.conj().T, best, threshold)
            burden = weights[index] @ received(f[index], R)
            assert (floor[index] <= burden).all()
            closest[index] = np.minimum(closest[index], burden)
    assert (closest < 3.0 * floor + 0.05).all()


@pytest.mark.parametrize("threshold", [0.15, 0.2])
def test_floors_are_close_to_the_convex_optimum(env: gym.Env[Any, Any], threshold: float) -> None:
    pytest.importorskip("cvxpy")
    from isac_gym.solvers.convex import ConvexWaveform

    H = draw(env, 2, seed=11)
    f, _ = own(env, H)
    limits = torch.full((2, 1), threshold)
    rng = np.random.default_rng(11)
    weights = np.stack(
        [np.vstack([np.eye(3)[index], rng.dirichlet(np.ones(3))]) for index in (0, 2)]
    )
    floor, q = floors_of(env, H, limits, weights)
    waveform = ConvexWaveform(**find_system(env).scenario.list_beampattern_arguments()[0])
    optima = np.zeros((2, 2))
    for index, row in np.ndindex(2, 2):
        C = np.einsum("k,kp,kq->pq", weights[index, row], f[index].conj(), f[index])
        optima[index, row] = waveform.least_burden(C, float(limits[index, 0])).objective
    assert optima.max() > 0.1
    assert (floor <= optima * (1 + 1e-5) + 1e-7).all()
    # What the bound rests on is noise plus radar power.
    noise = env.unwrapped.scenario.noise_power
    assert (noise + floor >= 0.98 * (noise + optima)).all()
    np.testing.assert_allclose(np.sum(weights * q, -1), optima, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_threshold(env: gym.Env[Any, Any], threshold: float) -> None:
    for value in (threshold, torch.tensor([[0.2], [threshold]])):
        with pytest.raises(ValueError, match=r"^sensing_threshold must be finite and > 0"):
            joint_upper_bound(env, draw(env, 2), sensing_threshold=value)


@pytest.mark.parametrize("subdivisions", [-1, 1.5, True])
def test_bad_subdivisions(env: gym.Env[Any, Any], subdivisions: Any) -> None:
    with pytest.raises(ValueError, match=r"^subdivisions must be an integer >= 0"):
        joint_upper_bound(env, draw(env, 1), subdivisions=subdivisions)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_channels(env: gym.Env[Any, Any], value: float) -> None:
    H = draw(env, 2)
    H[1, 0, 0, 1, 2] = value
    with pytest.raises(ValueError, match=r"^channels must be"):
        joint_upper_bound(env, H, subdivisions=0)
    with pytest.raises(ValueError, match=r"^channels must be"):
        joint_upper_bound(env, draw(env, 2)[0], subdivisions=0)


def test_needs_an_environment_of_this_package() -> None:
    with pytest.raises(TypeError, match="env must be an ISAC-MISO environment"):
        joint_upper_bound(
            gym.make("CartPole-v1"), torch.zeros(1, 1, 1, 3, 9, dtype=torch.complex64)
        )
