"""WMMSE: closed forms, monotonicity, stationarity, other solvers, and the policy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from direct_model import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from isac_gym.baselines import WMMSE, EqualPower, scalar_wmmse, wmmse
from isac_gym.solvers.capacity import dpc_capacity
from isac_gym.solvers.rate_problems import PowerProblem, PrecoderProblem
from isac_gym.solvers.wmmse import maximise_rate

Real = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]


def channels(seed: int, count: int, users: int, antennas: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(reference.complex_normal(rng, count, users, antennas))


def rate_of(comm: Complex, precoders: Complex, noise: Real) -> float:
    """Σ log2(1 + SINR) by the definition."""
    received = np.abs(comm @ precoders) ** 2
    signal = np.diag(received)
    return float(np.log2(1 + signal / (received.sum(1) - signal + noise)).sum())


def rate_of_powers(gains: Real, powers: Real, noise: Real) -> float:
    received = gains * powers
    signal = np.diag(received)
    return float(np.log2(1 + signal / (received.sum(1) - signal + noise)).sum())


def water_filling(gains: Real, power: float) -> Real:
    """Powers that maximise Σ log(1 + gain·p), by bisection on the level."""
    low, high = 0.0, power + 1.0 / gains.min()
    for _ in range(200):
        level = 0.5 * (low + high)
        if np.maximum(level - 1 / gains, 0).sum() > power:
            high = level
        else:
            low = level
    return np.asarray(np.maximum(low - 1 / gains, 0))


@pytest.mark.parametrize(("users", "antennas"), [(1, 4), (5, 12), (12, 12), (8, 3)])
@pytest.mark.parametrize("snr_db", [-10.0, 10.0, 40.0])
@pytest.mark.parametrize("momentum", [True, False])
def test_the_rate_never_falls(users: int, antennas: int, snr_db: float, momentum: bool) -> None:
    G = channels(users, 50, users, antennas)
    noise = torch.full((50, users), 10 ** (-snr_db / 10), dtype=torch.float64)
    for kind in ("rzf", "mrt", "random"):
        downlinks = PrecoderProblem(G, 1.0)
        start = downlinks.start(
            kind, noise, torch.ones_like(noise), torch.Generator().manual_seed(0)
        )
        history: list[torch.Tensor] = []
        maximise_rate(
            downlinks, start, noise, max_iterations=150, momentum=momentum, history=history
        )
        assert len(history) == 151
        assert float(torch.stack(history).diff(dim=0).min()) >= -1e-9
        assert float((history[-1] - history[0]).min()) >= 0.0


@pytest.mark.parametrize("momentum", [True, False])
def test_the_rate_never_falls_with_powers(momentum: bool) -> None:
    G = channels(3, 100, 6, 6)
    gains = (G @ (G.mH / torch.linalg.vector_norm(G, dim=-1)[:, None])).abs().square()
    noise = torch.full((100, 6), 0.1, dtype=torch.float64)
    downlinks = PowerProblem(gains, 2.0)
    start = downlinks.start(
        "random", noise, torch.ones_like(noise), torch.Generator().manual_seed(0)
    )
    history: list[torch.Tensor] = []
    maximise_rate(downlinks, start, noise, max_iterations=200, momentum=momentum, history=history)
    assert float(torch.stack(history).diff(dim=0).min()) >= -1e-9


@pytest.mark.parametrize("users", [1, 3, 6])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_the_rate_is_that_of_the_precoder(users: int, noise: float) -> None:
    G = channels(1, 8, users, 4)
    levels = noise * (1.0 + torch.arange(users, dtype=torch.float64))
    found = wmmse(G, levels, 2.5, num_starts=3)
    assert found.precoders is not None
    for index in range(8):
        F = found.precoders[index].numpy()
        assert np.sum(np.abs(F) ** 2) == pytest.approx(2.5, rel=1e-12)
        np.testing.assert_allclose(found.powers[index], np.sum(np.abs(F) ** 2, 0), rtol=1e-12)
        expected = rate_of(G[index].numpy(), F, levels.numpy())
        assert float(found.rate[index]) == pytest.approx(expected, rel=1e-10)


def test_one_user_gets_maximum_ratio_transmission() -> None:
    G = channels(2, 20, 1, 6)
    found = wmmse(G, 0.3, 1.7)
    norm = torch.linalg.vector_norm(G, dim=-1)[:, 0]
    expected = torch.log2(1 + 1.7 * norm.square() / 0.3)
    torch.testing.assert_close(found.rate, expected, rtol=1e-12, atol=0)
    assert bool(found.converged.all())


@pytest.mark.parametrize("power", [0.05, 1.0, 20.0])
def test_orthogonal_channels_are_filled_with_water(power: float) -> None:
    rng = np.random.default_rng(0)
    noise = np.array([0.1, 0.5, 0.2, 1.0])
    for _ in range(5):
        basis = np.linalg.qr(reference.complex_normal(rng, 6, 4))[0].T
        strength = rng.uniform(0.2, 2.0, 4)
        G = basis * strength[:, None]
        gains = strength**2 / noise
        expected = water_filling(gains, power)
        found = wmmse(
            torch.from_numpy(G), torch.from_numpy(noise), power, tolerance=1e-14,
            max_iterations=20_000,
        )  # fmt: skip
        best = np.log2(1 + gains * expected).sum()
        assert float(found.rate) == pytest.approx(best, rel=1e-6)
        np.testing.assert_allclose(found.powers, expected, atol=2e-3 * power)


@pytest.mark.parametrize(("users", "antennas", "noise"), [(2, 2, 0.1), (3, 2, 0.5), (3, 4, 0.05)])
def test_an_independent_solver_finds_nothing_better(
    users: int, antennas: int, noise: float
) -> None:
    """SciPy's quasi-Newton from many starts, over F of any norm scaled to the budget."""
    G = channels(11, 4, users, antennas)
    levels = np.full(users, noise)
    rng = np.random.default_rng(5)
    for index in range(4):
        comm = G[index].numpy()

        def loss(flat: Real, comm: Complex = comm) -> float:
            F = flat[: antennas * users] + 1j * flat[antennas * users :]
            F = F.reshape(antennas, users) / np.linalg.norm(F)
            return -rate_of(comm, F, levels)

        starts = rng.standard_normal((25, 2 * antennas * users))
        best = max(-minimize(loss, start, method="BFGS", tol=1e-10).fun for start in starts)
        found = wmmse(G[index], noise, 1.0, num_starts=25, tolerance=1e-12, max_iterations=20_000)
        assert float(found.rate) == pytest.approx(best, rel=1e-4)


def test_powers_by_exhaustive_search() -> None:
    rng = np.random.default_rng(8)
    fine = np.linspace(0.0, 1.0, 201)
    for _ in range(5):
        gains = np.abs(reference.complex_normal(rng, 3, 3)) ** 2 + np.eye(3)
        noise = rng.uniform(0.02, 0.3, 3)
        best = max(
            rate_of_powers(gains, np.array([a, b, 1 - a - b]), noise)
            for a, b in itertools.product(fine, fine)
            if a + b <= 1.0
        )
        found = scalar_wmmse(
            torch.from_numpy(gains), torch.from_numpy(noise), 1.0, num_starts=20, tolerance=1e-10
        )
        powers = found.powers.numpy()
        assert powers.min() >= 0
        assert powers.sum() == pytest.approx(1.0, rel=1e-12)
        assert float(found.rate) == pytest.approx(rate_of_powers(gains, powers, noise), rel=1e-10)
        # The grid is 0.005 wide: at an interior optimum it is that close to second order.
        assert best - 1e-9 <= float(found.rate) + 1e-6
        assert float(found.rate) <= best * (1 + 2e-3)
        assert found.precoders is None


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    users=st.integers(1, 5),
    antennas=st.integers(1, 5),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_properties(seed: int, users: int, antennas: int, scale: float) -> None:
    G = channels(seed, 1, users, antennas)[0]
    found = wmmse(G, 0.2, 1.0)
    # Scaling channels, noise and power alike changes nothing.
    scaled = wmmse(G * scale, 0.2 * scale**2, 1.0)
    torch.testing.assert_close(scaled.rate, found.rate, rtol=1e-6, atol=1e-9)
    louder = wmmse(G, 0.2 * scale, scale)
    torch.testing.assert_close(louder.rate, found.rate, rtol=1e-6, atol=1e-9)
    # So do rotations of the antennas and of the users' phases.
    rng = np.random.default_rng(seed)
    turn = torch.from_numpy(np.linalg.qr(reference.complex_normal(rng, antennas, antennas))[0])
    phases = torch.polar(torch.ones(users).double(), torch.from_numpy(rng.uniform(0, 6, users)))
    turned = wmmse(phases[:, None] * G @ turn, 0.2, 1.0)
    torch.testing.assert_close(turned.rate, found.rate, rtol=1e-6, atol=1e-9)
    # More starts are never worse; the capacity is never exceeded.
    many = wmmse(G, 0.2, 1.0, num_starts=4, seed=seed)
    assert float(many.rate) >= float(found.rate)
    assert float(many.rate) <= float(dpc_capacity(G, 0.2, 1.0).upper_bound) * (1 + 1e-9)


def test_a_batch_is_its_members() -> None:
    G = channels(4, 30, 5, 6)
    noise = torch.from_numpy(np.random.default_rng(0).uniform(0.05, 0.5, (30, 5)))
    together = wmmse(G.view(5, 6, 5, 6), noise.view(5, 6, 5), 1.0)
    assert together.precoders is not None
    assert together.precoders.shape == (5, 6, 6, 5)
    for index in range(30):
        alone = wmmse(G[index], noise[index], 1.0)
        assert alone.rate.shape == ()
        torch.testing.assert_close(alone.rate, together.rate.flatten()[index], rtol=1e-9, atol=0)


def test_the_report_of_convergence_is_true() -> None:
    G = channels(6, 200, 10, 12)
    short = wmmse(G, 0.1, 1.0, tolerance=1e-6, max_iterations=5)
    assert not bool(short.converged.any())
    assert short.iterations.unique().tolist() == [5]
    assert float(short.increase.min()) > 1e-6
    long = wmmse(G, 0.1, 1.0, tolerance=1e-6, max_iterations=5000)
    assert bool(long.converged.all())
    assert float(long.increase.max()) <= 1e-6
    assert int(long.iterations.max()) < 5000
    # What ended by tolerance is stationary: a hundred more iterations bring next to nothing.
    assert float((long.rate / short.rate).min()) >= 1.0
    further = wmmse(G, 0.1, 1.0, tolerance=0.0, max_iterations=2000)
    assert float((further.rate / long.rate - 1).mean()) < 1e-3


def test_momentum_gets_there_sooner() -> None:
    G = channels(7, 300, 12, 12)
    fast = wmmse(G, 0.1, 1.0, max_iterations=30, tolerance=0.0)
    plain = wmmse(G, 0.1, 1.0, max_iterations=30, tolerance=0.0, momentum=False)
    assert float(fast.rate.mean()) > float(plain.rate.mean())


def test_multi_start_names_the_start() -> None:
    G = channels(9, 100, 8, 8)
    found = wmmse(G, 0.01, 1.0, num_starts=6, seed=3)
    single = wmmse(G, 0.01, 1.0)
    assert int(found.start.max()) <= 5
    assert len(found.start.unique()) > 2
    gained = found.rate > single.rate * (1 + 1e-9)
    assert bool((found.start[gained] > 0).all())
    torch.testing.assert_close(found.rate[found.start == 0], single.rate[found.start == 0])
    again = wmmse(G, 0.01, 1.0, num_starts=6, seed=3)
    assert torch.equal(found.rate, again.rate)


@pytest.mark.parametrize("kind", ["rzf", "mrt", "zf", "random"])
@pytest.mark.parametrize(("users", "antennas"), [(3, 5), (5, 3)])
def test_any_start(kind: Any, users: int, antennas: int) -> None:
    G = channels(10, 20, users, antennas)
    found = wmmse(G, 0.1, 1.0, start=kind)
    best = wmmse(G, 0.1, 1.0, num_starts=10)
    assert bool(torch.isfinite(found.rate).all())
    assert float(found.rate.mean()) > 0.9 * float(best.rate.mean())


DEGENERATE: dict[str, Any] = {
    "zero user": lambda G: G * torch.tensor([0.0, 1.0, 1.0])[:, None],
    "all zero": lambda G: G * 0.0,
    "identical": lambda G: G[:, :1].expand_as(G),
    "one antenna": lambda G: G[..., :1],
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("noise", [1e-12, 0.1, 1e6])
def test_degenerate_channels(case: str, noise: float) -> None:
    G = DEGENERATE[case](channels(12, 10, 3, 4))
    found = wmmse(G, noise, 1.0, num_starts=3)
    assert found.precoders is not None
    assert bool(torch.isfinite(torch.view_as_real(found.precoders)).all())
    assert bool(torch.isfinite(found.rate).all())
    sent = found.precoders.abs().square().sum((-2, -1))
    if case == "all zero":
        assert float(found.rate.abs().max()) == 0.0
        assert float(sent.max()) == 0.0
    else:
        np.testing.assert_allclose(sent, 1.0, rtol=1e-9)
        # A channel of rank 1 serves one user at a time.
        strongest = torch.linalg.vector_norm(G, dim=-1).amax(-1)
        alone = torch.log2(1 + strongest.square() / noise)
        if case in ("identical", "one antenna"):
            assert bool((found.rate <= alone * (1 + 1e-9)).all())
            # Who is served is decided at once where the noise is next to nothing.
            assert bool((found.rate >= alone * (0.95 if noise < 0.1 else 0.999)).all())
        else:
            assert bool((found.rate >= alone * (1 - 1e-3)).all())
    if case == "zero user":
        assert float(found.powers[:, 0].max()) < 1e-9


@pytest.mark.parametrize(("snr_db", "expected"), [(5.0, 13.24), (10.0, 20.29), (20.0, 36.3)])
def test_known_rates_and_the_capacity(snr_db: float, expected: float) -> None:
    """Converged WMMSE at K = 5, M_C = 12 without radar, found elsewhere by other code."""
    noise = 10 ** (-snr_db / 10)
    G = channels(0, 2000, 5, 12)
    found = wmmse(G, noise, 1.0)
    error = float(found.rate.std()) / math.sqrt(2000)
    assert error < 0.06
    assert float(found.rate.mean()) == pytest.approx(expected, abs=0.1 + 2 * error)
    capacity = dpc_capacity(G, noise, 1.0)
    assert bool((found.rate <= capacity.upper_bound).all())
    share = float(found.rate.mean() / capacity.rate.mean())
    assert share > 0.9


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


@pytest.mark.parametrize("control", ["power", "beamforming"])
@pytest.mark.parametrize("radar", ["learned", "fixed"])
@pytest.mark.parametrize("limit", ["project", "cost"])
def test_policy_counts_the_radar_as_noise(control: str, radar: str, limit: str) -> None:
    env = make(control=control, radar=radar, power_limit=limit, comm_power=1.8)
    scenario = env.unwrapped.scenario
    agent = WMMSE(env)
    assert math.isnan(agent.converged_share)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        action, _ = agent.predict(observation)
        F, R = env.unwrapped.decode_action(action)
        H = env.unwrapped.channels.astype(np.complex128)
        f, g = H[:, :4], H[:, 4:]
        noise = scenario.noise_power + np.einsum("km,mn,kn->k", f, R, f.conj()).real
        if control == "beamforming":
            expected = float(wmmse(torch.from_numpy(g), torch.from_numpy(noise), 1.8).rate)
        else:
            gains = np.abs(g @ direct_model.directions(scenario, g)) ** 2
            expected = float(
                scalar_wmmse(torch.from_numpy(gains), torch.from_numpy(noise), 1.8).rate
            )
        assert rate_of(g, F, noise) == pytest.approx(expected, rel=1e-4)
        info = env.step(action)[4]
        assert info["sum_rate"] == pytest.approx(expected, rel=1e-4)
        assert info["cost"] < 1e-4
        assert info["comm_power"] == pytest.approx(1.8, rel=1e-4)
    assert agent.converged_share == 1.0


@pytest.mark.parametrize("control", ["power", "beamforming"])
def test_policy_serves_the_strongest_under_contention(control: str) -> None:
    env = make(control=control, scheduling="contention")
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        ours = env.step(WMMSE(env).predict(observation)[0])[4]
        observation, _ = env.reset(seed=seed)
        alone = env.step(EqualPower(env).predict(observation)[0])[4]
        # One user alone: maximum ratio transmission with the whole budget.
        assert ours["sum_rate"] == pytest.approx(alone["sum_rate"], rel=1e-4)
        assert ours["cost_scheduling"] == 0.0


def test_policy_with_several_cells_and_in_batches() -> None:
    env = make(num_cells=2, intercell_gain=0.3)
    agent = WMMSE(env, num_starts=2)
    rows = np.stack([env.reset(seed=seed)[0] for seed in range(4)])
    batch, _ = agent.predict(rows)
    for row, action in zip(rows, batch, strict=True):
        np.testing.assert_allclose(agent.predict(row)[0], action, atol=1e-3)


def test_errors() -> None:
    G = channels(0, 2, 3, 4)
    for bad, match in (
        ({"power": 0.0}, "power must be"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"max_iterations": 0}, "max_iterations must be"),
        ({"num_starts": 0}, "num_starts must be"),
        ({"start": "best"}, "start must be one of 'rzf'"),
        ({"noise_power": 0.0}, "noise_power must be finite and > 0"),
        ({"noise_power": math.nan}, "noise_power must be finite and > 0"),
        ({"channels": G.real}, "channels must be complex"),
        ({"channels": G * math.inf}, "channels must be finite"),
    ):
        options: dict[str, Any] = {"channels": G, "noise_power": 0.1, "power": 1.0, **bad}
        with pytest.raises(ValueError, match=match):
            wmmse(**options)
    with pytest.raises(ValueError, match="gains must be >= 0"):
        scalar_wmmse(-torch.ones(2, 2), 0.1, 1.0)
    with pytest.raises(ValueError, match=r"gains must be real of shape \(..., K, K\)"):
        scalar_wmmse(torch.ones(2, 3), 0.1, 1.0)
    with pytest.raises(ValueError, match=r"WMMSE needs control.*'amplitude'"):
        WMMSE(make(control="amplitude"))
    for option in ("num_starts", "max_iterations", "seed", "tolerance"):
        with pytest.raises(ValueError, match=f"{option} must be"):
            WMMSE(make(), **{option: -1})
    with pytest.raises(ValueError, match="start must be"):
        WMMSE(make(), start="none")  # type: ignore[arg-type]
