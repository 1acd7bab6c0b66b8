"""The joint optimum and null steering: feasibility, optimality, prices, and odd scenarios."""

from __future__ import annotations

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

from isac_gym import Scenario
from isac_gym.baselines import WMMSE, JointOracle, NullSteering, joint_upper_bound, scalar_wmmse
from isac_gym.baselines.joint import _choose_subsets
from isac_gym.evaluation.comparison import compare
from isac_gym.registry import make_agent
from isac_gym.system.downlink import find_system

Complex = npt.NDArray[np.complex128]

BINDING: dict[str, Any] = {**SMALL, "sensing_threshold": 0.16}
"""SMALL with a threshold 12 % above its floor."""


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**BINDING, **changes})


def drawn(env: gym.Env[Any, Any], count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    shape = find_system(env).codec.deployment.shape
    return torch.from_numpy(reference.complex_normal(rng, count, *shape).astype(np.complex64))


def acted(agent: Any, env: gym.Env[Any, Any], channels: torch.Tensor) -> list[dict[str, Any]]:
    """What the actions earn, by the direct model in double precision."""
    codec = find_system(env).codec
    scenario = env.unwrapped.scenario
    actions, _ = agent.predict(codec.observation(channels.numpy()), deterministic=True)
    found = []
    for H, action in zip(channels.numpy().astype(np.complex128), actions, strict=True):
        F, R, access = direct_model.decode(scenario, action, H)
        assert R is not None
        found.append(direct_model.earned(scenario, H, F, R, access))
    return found


@pytest.mark.parametrize("kind", [JointOracle, NullSteering])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"control": "power"},
        {"control": "power", "precoder_directions": "zf"},
        {"cross_correlation": "grid_sq", "sensing_threshold": 0.12},
        {"cross_correlation": "target_sq", "sensing_threshold": 0.12},
        {"pattern_scale": "optimal", "sensing_threshold": 0.12},
        {"radar_streams": 2},
        {"power_limit": "cost", "comm_power": 2.5},
        {"num_users": 1},
        {"num_users": 7},
        {"antenna_spacing": 0.7, "sensing_threshold": 0.3},
    ],
    ids=str,
)
def test_every_constraint_holds_on_every_channel(kind: Any, changes: dict[str, Any]) -> None:
    env = make(**changes)
    channels = drawn(env, 12)
    agent = kind(env)
    plain = acted(WMMSE(env), env, channels)
    found = acted(agent, env, channels)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours["constraint_sensing"].max() <= 1e-4
        assert ours["constraint_power"].max() <= 1e-4
        if kind is JointOracle:
            assert ours["sum_rate"] >= theirs["sum_rate"] * (1 - 1e-3)
    gained = np.mean([row["sum_rate"] for row in found]) / np.mean(
        [row["sum_rate"] for row in plain]
    )
    assert gained > 1.02
    # What solve() reports is what the environment sees.
    design = agent.solve(channels)
    for index, row in enumerate(found):
        assert float(design.rate[index].sum()) == pytest.approx(row["sum_rate"], rel=1e-3)
        loss = float(design.sensing_loss[index, 0])
        limit = env.unwrapped.scenario.sensing_threshold
        assert loss == pytest.approx(
            float(row["beampattern_error"][0] + row["cross_correlation"][0]), rel=1e-4
        )
        assert float(design.excess[index, 0]) == pytest.approx(loss / limit - 1, abs=1e-5)
    assert float(design.change.median()) < 1e-3


def test_joint_lies_between_null_steering_and_the_bound() -> None:
    for threshold in (0.147, 0.16, 0.25):
        env = make(sensing_threshold=threshold)
        channels = drawn(env, 24)
        joint, nulled = JointOracle(env).solve(channels), NullSteering(env).solve(channels)
        bound = joint_upper_bound(env, channels, subdivisions=3)
        assert bool((joint.rate <= bound.upper_bound).all())
        assert float((joint.rate / nulled.rate).min()) > 0.995
        assert float(joint.rate.mean()) > float(nulled.rate.mean()) * 0.9999


def test_one_user_attains_the_bound() -> None:
    """With one user the problem is convex: nothing is left between the optimum and the bound."""
    env = make(num_users=1, sensing_threshold=0.15)
    channels = drawn(env, 20)
    found = JointOracle(env, iterations=150).solve(channels)
    bound = joint_upper_bound(env, channels, subdivisions=0)
    assert float((bound.upper_bound - found.rate).min()) >= -1e-4
    gap = (bound.upper_bound - found.rate) / bound.upper_bound
    assert float(gap.median()) < 2e-3
    assert float(gap.max()) < 2e-2


def alternating(env: gym.Env[Any, Any], H: Complex, served: npt.NDArray[np.float64]) -> float:
    """WMMSE for R fixed, a convex program for the weights that result, in turn."""
    cvxpy = pytest.importorskip("cvxpy")
    assert cvxpy
    from isac_gym.solvers.convex import ConvexWaveform
    from isac_gym.solvers.wmmse import wmmse

    scenario = env.unwrapped.scenario
    radar = scenario.num_radar_antennas
    f, g = H[:, :radar], H[:, radar:]
    waveform = ConvexWaveform(**scenario.list_beampattern_arguments()[0])
    weights, rate = served, 0.0
    for _ in range(10):
        burden = np.einsum("k,km,kn->mn", weights, f.conj(), f)
        R = waveform.least_burden(burden, scenario.sensing_threshold).covariance
        noise = scenario.noise_power + np.einsum("km,mn,kn->k", f, R, f.conj()).real
        found = wmmse(torch.from_numpy(g), torch.from_numpy(noise), scenario.comm_power)
        assert found.precoders is not None
        powers = np.abs(g @ found.precoders.numpy()) ** 2
        total = powers.sum(1) + noise
        disturbance = total - np.diag(powers)
        weights = 1 / disturbance - 1 / total
        improved = float(found.rate) / max(rate, 1e-9) - 1
        rate = max(rate, float(found.rate))
        if improved < 1e-3:
            break
    return rate


@pytest.mark.slow
def test_an_alternating_scheme_with_a_convex_program_finds_nothing_better() -> None:
    env = make(num_users=3, num_radar_antennas=4, sensing_threshold=0.17)
    channels = drawn(env, 2, seed=5)
    found = JointOracle(env, iterations=100).solve(channels)
    starts = [np.array(s, float) for s in ((1, 1, 1), (1, 1, 0))]
    for index in range(2):
        H = channels[index, 0, 0].numpy().astype(np.complex128)
        best = max(alternating(env, H, start) for start in starts)
        assert float(found.rate[index, 0]) >= best * (1 - 2e-3)
        assert float(found.rate[index, 0]) <= best * 1.05


def test_powers_along_fixed_directions_agree_with_a_search_over_waveforms() -> None:
    """No random feasible waveform with optimal powers does better."""
    env = make(control="power", num_users=2)
    scenario = env.unwrapped.scenario
    channels = drawn(env, 3)
    found = JointOracle(env, iterations=100).solve(channels)
    rng = np.random.default_rng(0)
    best = find_system(env).best_streams()[0].numpy().astype(np.complex128)
    for index in range(3):
        H = channels[index, 0, 0].numpy().astype(np.complex128)
        f, g = H[:, :4], H[:, 4:]
        gains = torch.from_numpy(np.abs(g @ direct_model.directions(scenario, g)) ** 2)
        own = found.streams[index, 0].numpy().astype(np.complex128)
        tried = 0
        for trial in range(300):
            V = (own if trial % 2 else best) + 10.0 ** -(trial % 4) * reference.complex_normal(
                rng, 4, 4
            )
            V *= math.sqrt(0.8 / 4) / np.linalg.norm(V, axis=1, keepdims=True)
            R = V @ V.conj().T
            if sum(reference.sensing_loss(R, 0.5, scenario.target_angles_deg)) > 0.16:
                continue
            tried += 1
            noise = scenario.noise_power + np.einsum("km,mn,kn->k", f, R, f.conj()).real
            rate = scalar_wmmse(gains, torch.from_numpy(noise), 1.0, num_starts=3).rate
            assert float(rate) <= float(found.rate[index, 0]) + 2e-3
        assert tried > 40


def test_more_starts_are_never_much_worse_and_help_on_average() -> None:
    env = make(num_users=4)
    channels = drawn(env, 60)
    single = JointOracle(env, num_starts=1).solve(channels)
    many = JointOracle(env).solve(channels)
    assert float(many.rate.mean()) > float(single.rate.mean())
    assert float((many.rate / single.rate).min()) > 0.99
    assert int(many.start.max()) > 0
    assert int(single.start.max()) == 0


def test_the_expected_constraint_trades_between_channels() -> None:
    env = make()
    channels = drawn(env, 80)
    separate = JointOracle(env).solve(channels)
    (price,) = JointOracle(env, constraint="expected").find_price(channels)
    assert price > 0.0
    agent = JointOracle(env, constraint="expected", price=price)
    shared = agent.solve(channels)
    assert agent.price == (pytest.approx(price),)
    assert -3e-3 < float(shared.excess.mean()) <= 1e-4
    assert float(shared.excess.max()) > 1e-2
    assert float(shared.rate.mean()) > float(separate.rate.mean())
    assert float((shared.multiplier - price).abs().max()) < 1e-4 * price
    # At that price hardly a channel would rather have the design of the other constraint.
    gain = shared.rate - price * shared.excess - (separate.rate - price * separate.excess)
    assert float((gain > -0.02).double().mean()) > 0.9
    assert float(gain.mean()) > 0.05
    # On each channel the design is within the bound for the loss that it has.
    bound = joint_upper_bound(
        env, channels[:20], sensing_threshold=shared.sensing_loss[:20] * (1 + 1e-5), subdivisions=4
    )
    assert bool((shared.rate[:20] <= bound.upper_bound).all())


def test_the_price_is_found_once_and_reproducibly() -> None:
    env = make()
    first = JointOracle(env, constraint="expected", calibration_channels=24, seed=3)
    again = JointOracle(env, constraint="expected", calibration_channels=24, seed=3)
    other = JointOracle(env, constraint="expected", calibration_channels=24, seed=4)
    assert first.price == first.price == again.price
    assert first.price != other.price
    assert 0.5 < other.price[0] / first.price[0] < 2.0


def test_a_threshold_that_does_not_bind_has_no_price() -> None:
    env = make(sensing_threshold=9.0)
    agent = JointOracle(env, constraint="expected", calibration_channels=8)
    assert agent.price == (0.0,)
    free = make_agent("communication-only", env)
    channels = drawn(env, 20)
    torch.testing.assert_close(
        agent.solve(channels).rate, free.solve(channels).rate, rtol=1e-3, atol=0  # type: ignore[attr-defined]
    )  # fmt: skip


def test_the_threshold_at_its_floor() -> None:
    floor = Scenario(**SMALL).sensing_floor()[0]
    env = make(sensing_threshold=floor * (1 + 1e-7))
    channels = drawn(env, 6)
    plain = acted(WMMSE(env), env, channels)
    for kind in (JointOracle, NullSteering):
        for ours, theirs in zip(acted(kind(env), env, channels), plain, strict=True):
            assert ours["constraint_sensing"].max() <= 1e-4
            assert ours["sum_rate"] == pytest.approx(theirs["sum_rate"], rel=0.05)


DEGENERATE: dict[str, Any] = {
    "zero user": lambda H: H * torch.tensor([0.0, 1.0, 1.0])[:, None],
    "all zero": lambda H: H * 0.0,
    "radar unheard": lambda H: H * (torch.arange(9) >= 4),
    "identical": lambda H: H[..., :1, :].expand_as(H).contiguous(),
    "loud": lambda H: H * 1e3,
    "faint": lambda H: H * 1e-3,
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("snr_db", [10.0, 100.0])
def test_degenerate_channels(case: str, snr_db: float) -> None:
    env = make(snr_db=snr_db)
    channels = DEGENERATE[case](drawn(env, 4))
    for agent in (JointOracle(env), NullSteering(env), WMMSE(env)):
        for row in acted(agent, env, channels):
            assert np.isfinite(row["sum_rate"])
            assert row["constraint_sensing"].max() <= 1e-4
            if case == "all zero":
                assert row["sum_rate"] == 0.0
    if case == "radar unheard":
        # The radar does not matter, so it need not leave the best beampattern.
        joint, plain = acted(JointOracle(env), env, channels), acted(WMMSE(env), env, channels)
        for ours, theirs in zip(joint, plain, strict=True):
            assert ours["sum_rate"] == pytest.approx(theirs["sum_rate"], rel=2e-2)


@pytest.mark.parametrize("control", ["power", "beamforming"])
def test_contention_serves_the_best_user_alone(control: str) -> None:
    env = make(control=control, scheduling="contention")
    scenario = env.unwrapped.scenario
    channels = drawn(env, 15)
    joint = acted(JointOracle(env), env, channels)
    nulled = acted(NullSteering(env), env, channels)
    for index, (row, other) in enumerate(zip(joint, nulled, strict=True)):
        assert row["cost_scheduling"] == 0.0
        assert int((row["rates"] > 0).sum()) == 1
        strongest = max(
            float(torch.linalg.vector_norm(channels[index, 0, 0, k, 4:]) ** 2) for k in range(3)
        )
        assert row["sum_rate"] <= math.log2(1 + strongest / scenario.noise_power) + 1e-6
        # One user is spared either way.
        assert row["sum_rate"] == pytest.approx(other["sum_rate"], rel=2e-2)


def test_stations_are_designed_alone() -> None:
    changes: dict[str, Any] = {
        "num_cells": 2,
        "target_angles_deg": ((-50.0, 10.0), (0.0, 40.0)),
        "sensing_threshold": 0.2,
    }
    env = make(**changes)
    channels = drawn(env, 5)
    for kind in (JointOracle, NullSteering):
        found = kind(env).solve(channels)
        for cell in range(2):
            alone = make(
                target_angles_deg=changes["target_angles_deg"][cell], sensing_threshold=0.2
            )
            own = channels[:, cell : cell + 1, cell : cell + 1]
            single = kind(alone).solve(own)
            torch.testing.assert_close(found.rate[:, cell], single.rate[:, 0], rtol=2e-2, atol=1e-3)


def test_every_station_has_its_price() -> None:
    env = make(num_cells=2, target_angles_deg=((-50.0, 10.0), (0.0, 40.0)), sensing_threshold=0.17)
    channels = drawn(env, 60)
    prices = JointOracle(env, constraint="expected").find_price(channels)
    assert len(prices) == 2
    assert prices[0] != prices[1]
    found = JointOracle(env, constraint="expected", price=prices).solve(channels)
    for cell in range(2):
        mean = float(found.excess[:, cell].mean())
        assert mean <= 1e-4
        assert mean > -2e-2 or prices[cell] == 0.0
    assert max(prices) > 0.0


def test_what_has_not_converged_is_continued() -> None:
    env = make(snr_db=35.0)
    channels = drawn(env, 12)
    short = JointOracle(env, max_iterations=1).solve(channels)
    long = JointOracle(env, max_iterations=1200).solve(channels)
    thorough = JointOracle(env, refined=3, iterations=800, max_iterations=800).solve(channels)
    assert float(long.change.max()) <= float(short.change.max())
    assert float(long.rate.mean()) >= float(short.rate.mean())
    assert float(long.rate.mean()) > 0.97 * float(thorough.rate.mean())


def test_a_batch_in_pieces_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from isac_gym.baselines import coordinated

    env = make()
    channels = drawn(env, 9)
    whole = JointOracle(env).solve(channels)
    monkeypatch.setattr(coordinated, "_PROBLEMS", 16)
    pieces = JointOracle(env).solve(channels)
    torch.testing.assert_close(whole.rate, pieces.rate, rtol=5e-3, atol=0)
    again = JointOracle(env).solve(channels)
    assert torch.equal(pieces.streams, again.streams)


def test_single_observations_and_batches() -> None:
    env = make()
    agent = JointOracle(env)
    observation, _ = env.reset(seed=0)
    action, state = agent.predict(observation, deterministic=True)
    assert action.shape == env.action_space.shape
    assert state is None
    assert env.action_space.contains(action)
    batch, _ = agent.predict(np.stack([observation] * 3))
    first = env.unwrapped.system.transmit(
        torch.from_numpy(env.unwrapped.channels)[None, None, None], torch.from_numpy(action)[None]
    )
    second = env.unwrapped.system.transmit(
        torch.from_numpy(env.unwrapped.channels)[None, None, None], torch.from_numpy(batch[:1])
    )
    torch.testing.assert_close(first.sum_rate, second.sum_rate, rtol=5e-3, atol=0)


def test_references_in_a_comparison() -> None:
    env = make()
    names = ("wmmse", "null-steering", "joint", "joint-expected", "communication-only")
    agents = {name: make_agent(name, env) for name in names[:-2]}
    agents["joint-expected"] = make_agent("joint-expected", env, calibration_channels=64)
    agents["communication-only"] = make_agent("communication-only", env)
    table = compare(agents, env, channels=64, seed=2)
    assert table.references == names
    assert table["joint"].feasible_share == 1.0
    assert table["joint-expected"].spectral_efficiency > table["joint"].spectral_efficiency * 0.98
    assert table["communication-only"].feasible_share < 0.5
    rates = [table[name].spectral_efficiency for name in ("wmmse", "null-steering", "joint")]
    assert rates == sorted(rates)
    # What ignores a constraint is no reference, however high its rate.
    assert table["communication-only"].percent_of_reference > 100.0


def test_the_starts() -> None:
    five = _choose_subsets(5, None, False, 0)
    assert five.shape == (17, 5)
    assert five[:2].tolist() == [[1.0] * 5] * 2
    assert sorted({int(n) for n in five.sum(-1)}) == [3, 4, 5]
    assert len({tuple(row) for row in five.tolist()}) == 16
    assert _choose_subsets(1, None, False, 0).tolist() == [[1.0], [1.0]]
    many = _choose_subsets(12, None, False, 0)
    assert len(many) == 32
    assert len({tuple(row) for row in many.tolist()}) == 31
    assert float(many.sum(-1).min()) >= 6
    assert not torch.equal(many, _choose_subsets(12, None, False, 1))
    assert _choose_subsets(5, 1, False, 0).tolist() == [[1.0] * 5]
    assert torch.equal(_choose_subsets(4, None, True, 0), torch.eye(4))


def test_errors() -> None:
    for kind in (JointOracle, NullSteering):
        with pytest.raises(ValueError, match="control must be 'beamforming' or 'power'"):
            kind(make(control="amplitude"))
        with pytest.raises(ValueError, match=f"{kind.__name__} needs radar 'learned', got 'fixed'"):
            kind(make(radar="fixed"))
        with pytest.raises(ValueError, match="iterations must be an integer >= 1, got 0"):
            kind(make(), iterations=0)
        with pytest.raises(ValueError, match="channels must be finite and of shape"):
            kind(make()).solve(torch.zeros(2, 1, 1, 3, 8, dtype=torch.complex64))
        with pytest.raises(ValueError, match="channels must be finite and of shape"):
            kind(make()).solve(drawn(make(), 2) * math.nan)
    for options, match in (
        ({"constraint": "always"}, "constraint must be one of 'per_channel', 'expected'"),
        ({"price": 3.0}, "price must be None unless constraint is 'expected', got 3.0"),
        (
            {"price": -1.0, "constraint": "expected"},
            "price must be None, a finite number >= 0, or 1 of them, got -1.0",
        ),
        ({"num_starts": 0}, "num_starts must be an integer >= 1"),
        ({"refined": 0}, "refined must be an integer >= 1"),
        ({"calibration_channels": 0}, "calibration_channels must be an integer >= 1"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"tolerance": -1.0}, "tolerance must be a number >= 0"),
        ({"max_iterations": 0}, "max_iterations must be an integer >= 1"),
        ({"price": (1.0, 2.0), "constraint": "expected"}, "price must be None, a finite number"),
    ):
        with pytest.raises(ValueError, match=match):
            JointOracle(make(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels must be finite and of shape"):
        JointOracle(make(), constraint="expected").find_price(torch.randn(2, 3))
    with pytest.raises(ValueError, match="constraint must be 'expected' for a price"):
        _ = JointOracle(make()).price


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "least"), [(0.12, 13.5), (0.14, 17.0)])
def test_the_default_scenario(threshold: float, least: float) -> None:
    env = gym.make("ISAC-MISO-v0", sensing_threshold=threshold)
    channels = drawn(env, 256, seed=9)
    found = JointOracle(env).solve(channels)
    assert float(found.excess.max()) <= 1e-4
    error = float(found.rate.std()) / 16
    assert float(found.rate.mean()) >= least - 2 * error
    bound = joint_upper_bound(env, channels[:16], subdivisions=5)
    assert bool((found.rate[:16] <= bound.upper_bound).all())
