"""The bound on the joint problem: closed forms, a convex solver, and many designs that try."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import reference
import torch
from direct_model import SMALL

from isac_gym.baselines import JointOracle, NullSteering, bounds
from isac_gym.baselines.bounds import JointBound, joint_upper_bound
from isac_gym.solvers.beampattern import best_beampattern
from isac_gym.solvers.capacity import dpc_capacity
from isac_gym.system.downlink import find_system


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
                reference.full_power(
                    reference.complex_normal(rng, *g[index].T.shape), scenario.comm_power
                ),
                reference.regularised(g[index], level, powers),
            ]
            if attempt < 2:
                found = (oracle, steered)[attempt].precoders
                assert found is not None
                designs.append(
                    reference.full_power(
                        found[index, 0].to(torch.complex128).numpy(), scenario.comm_power
                    )
                )
            for F in designs:
                ratio = reference.sinr(full, F[None], R[None], noise)
                assert reference.spectral_efficiency(ratio).sum() <= upper[index]
            # What dirty-paper coding attains with this waveform, which the bound covers as well.
            duals = dpc_capacity(
                torch.from_numpy(g[index]), torch.from_numpy(level), scenario.comm_power
            ).duals.numpy()
            attained = reference.uplink_rate(g[index], level, duals)
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
    free = dpc_capacity(torch.from_numpy(g), scenario.noise_power, scenario.comm_power)
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
    free = dpc_capacity(torch.from_numpy(g), scenario.noise_power, scenario.comm_power)
    found = joint_upper_bound(env, H, sensing_threshold=1e3, subdivisions=3)
    for bound in (found.upper_bound, found.apart):
        np.testing.assert_allclose(bound[:, 0], free.rate, rtol=1e-4)
    np.testing.assert_allclose(found.attained[:, 0], free.rate, rtol=1e-2)


def test_without_radar_channels_the_capacity_remains(env: gym.Env[Any, Any]) -> None:
    H = draw(env, 3, seed=7)
    H[..., : SMALL["num_radar_antennas"]] = 0.0
    _, g = own(env, H)
    scenario = find_system(env).scenario
    free = dpc_capacity(torch.from_numpy(g), scenario.noise_power, scenario.comm_power)
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
    # How far a search gets hangs on rounding: the best of copies that differ in the last digits.
    noise = 2e-7 * torch.randn(5, *H.shape, generator=torch.Generator().manual_seed(0))
    copies = (H * (1.0 + noise)).flatten(0, 1)
    floors, found = floors_of(env, copies, limits.repeat(5, 1), np.tile(weights, (5, 1, 1)))
    floors, found = floors.reshape(5, 2, 2), found.reshape(5, 2, 2, 3)
    floor, burden = floors.max(0), np.sum(weights * found, -1).min(0)
    waveform = ConvexWaveform(**find_system(env).scenario.list_beampattern_arguments()[0])
    optima = np.zeros((2, 2))
    for index, row in np.ndindex(2, 2):
        C = np.einsum("k,kp,kq->pq", weights[index, row], f[index].conj(), f[index])
        optima[index, row] = waveform.least_burden(C, float(limits[index, 0])).objective
    assert optima.max() > 0.1
    assert (floors <= optima * (1 + 1e-5) + 1e-7).all()
    # What the bound rests on is noise plus radar power.
    noise = env.unwrapped.scenario.noise_power
    assert (noise + floor >= 0.98 * (noise + optima)).all()
    np.testing.assert_allclose(burden, optima, rtol=0.01, atol=1e-4)


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
