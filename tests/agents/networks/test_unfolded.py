"""The unfolded policy: symmetries, validity, structure, gradients, prices, calibration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import reference
import torch
from direct_model import SMALL
from torch import Tensor

from isac_gym.agents import NoDual, PrimalDual
from isac_gym.agents.networks.unfolded import stage
from isac_gym.agents.networks.unfolded.network import UnfoldedNetwork
from isac_gym.channels.process import ChannelProcess
from isac_gym.learning.conditions import Conditions
from isac_gym.policy import find_system
from isac_gym.system.codec import Transmission

STAGES = ((6.0, 2), (6.0, 1))
TARGETS = (-50.0, 10.0)


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


def policy_of(env: gym.Env[Any, Any], noise: float = 0.0, seed: int = 0) -> UnfoldedNetwork:
    """With ``noise``, weights that no longer start as plain descent."""
    generator = torch.Generator().manual_seed(seed)
    policy = UnfoldedNetwork(find_system(env), generator, 8, STAGES)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return policy


def channels_of(env: gym.Env[Any, Any], count: int, seed: int = 7) -> Tensor:
    process = ChannelProcess(env.unwrapped.channel_model, env.unwrapped.scenario, count)
    process.start(np.random.default_rng(seed))
    return torch.from_numpy(process.channels)


def observed(channels: Tensor) -> Tensor:
    flat = channels.reshape(len(channels), -1)
    return torch.cat([flat.real, flat.imag], -1)


def sent(policy: UnfoldedNetwork, channels: Tensor, multiplier: float = 20.0) -> Transmission:
    with torch.no_grad():
        action = policy(observed(channels), conditions(policy, len(channels), multiplier))
    return policy.system.codec.decode(action, channels)


def conditions(policy: UnfoldedNetwork, count: int, multiplier: float) -> Conditions:
    cells = policy.system.scenario.num_cells
    priced = policy.system.constraints["sensing"]
    return Conditions.of(policy.system, count, torch.full((cells,), multiplier), priced)


def covariance(transmission: Transmission) -> Tensor:
    return transmission.streams @ transmission.streams.mH


@pytest.fixture(params=["compiled", "tensors"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.delenv("ISAC_GYM_COMPILED", raising=False)
    if name == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(stage, "_can_run_compiled", lambda *_: False)
    return name


# Symmetries


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("control", ["beamforming", "power"])
@pytest.mark.parametrize("scheduling", ["all", "contention"])
def test_permuted_users_have_permuted_beams_and_the_same_waveform(
    control: str, scheduling: str
) -> None:
    env = make(num_users=4, control=control, scheduling=scheduling)
    policy = policy_of(env, 0.1)
    channels = channels_of(env, 30)
    order = [2, 0, 3, 1]
    plain, permuted = sent(policy, channels), sent(policy, channels[..., order, :])
    torch.testing.assert_close(permuted.precoders, plain.precoders[..., order], rtol=0, atol=3e-4)
    assert not torch.allclose(permuted.precoders, plain.precoders, rtol=0, atol=0.05)
    torch.testing.assert_close(covariance(permuted), covariance(plain), rtol=0, atol=3e-4)
    if scheduling == "contention":
        assert plain.access is not None
        assert permuted.access is not None
        assert torch.equal(permuted.access, plain.access[..., order])


def test_the_parameters_depend_on_no_number_of_users_or_antennas() -> None:
    weights = policy_of(make(), 0.3).state_dict()
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    for changes in (
        {"num_users": 1},
        {"num_users": 7, "num_comm_antennas": 3},
        {"num_radar_antennas": 5},
        {"radar_streams": 2},
        {"num_cells": 2},
        {"control": "power", "radar": "fixed"},
    ):
        env = make(**changes, sensing_threshold=0.5)
        policy = policy_of(env)
        assert {name: tuple(v.shape) for name, v in policy.state_dict().items()} == shapes
        policy.load_state_dict(weights)
        channels = channels_of(env, 3)
        found = sent(policy, channels)
        fresh = sent(policy_of(env), channels)
        assert bool(found.precoders.isfinite().all())
        if changes.get("num_users") != 1:
            assert not torch.allclose(found.precoders, fresh.precoders, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("path")
def test_one_observation_and_a_batch_have_the_same_actions() -> None:
    agent = PrimalDual(make(), "tuned", width=8, stages=STAGES)
    batch = observed(channels_of(make(), 40)).numpy()
    together = agent.predict(batch)[0]
    for row in range(0, 40, 7):
        np.testing.assert_allclose(agent.predict(batch[row])[0], together[row], atol=2e-4)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.usefixtures("path")
def test_every_station_decides_as_if_it_were_alone() -> None:
    groups = (TARGETS, (-20.0, 60.0))
    both = make(num_cells=2, target_angles_deg=groups, sensing_threshold=0.5)
    policy = policy_of(both, 0.1)
    channels = channels_of(both, 20)
    found = sent(policy, channels)
    for cell, group in enumerate(groups):
        alone = policy_of(make(target_angles_deg=group, sensing_threshold=0.5))
        alone.load_state_dict(policy.state_dict())
        expected = sent(alone, channels[:, cell : cell + 1, cell : cell + 1])
        for name in ("precoders", "streams"):
            torch.testing.assert_close(
                getattr(found, name)[:, cell : cell + 1],
                getattr(expected, name),
                rtol=0,
                atol=3e-4,
            )


def test_both_paths_give_the_same_action(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.delenv("ISAC_GYM_COMPILED", raising=False)
    policy = policy_of(make(), 0.1)
    observation = observed(channels_of(make(), 20))
    given = conditions(policy, 20, 20.0)
    taped = policy(observation, given)
    assert taped.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(policy(observation, given), taped.detach(), rtol=0, atol=3e-4)


# Validity


def degenerate(channels: Tensor) -> Tensor:
    """Blocks without any channel, with a deaf user, identical users, and extreme strengths."""
    found = channels.clone()
    found[0] = 0.0
    found[1, ..., 0, :] = 0.0
    found[2] = found[2, ..., :1, :]
    found[3] *= 1e5
    found[4] *= 1e-12
    found[5, ..., 0, :] *= 1e5
    found[6, ..., :4] = 0.0
    found[7, ..., 4:] = 0.0
    return found


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"control": "power"},
        {"radar": "fixed"},
        {"num_users": 7, "scheduling": "contention"},
        {"num_cells": 2, "control": "power", "scheduling": "contention"},
        {"num_users": 1, "radar_streams": 2, "sensing_threshold": 0.5},
    ],
    ids=["beams", "powers", "fixed", "contention", "cells", "one-user"],
)
def test_actions_are_valid_whatever_weights_and_channels(
    noise: float, changes: dict[str, Any]
) -> None:
    env = make(**{"power_limit": "cost", **changes})
    policy = policy_of(env, noise)
    channels = degenerate(channels_of(env, 12))
    with torch.no_grad():
        action = policy(observed(channels), conditions(policy, 12, 20.0))
    assert bool(action.isfinite().all())
    assert float(action.abs().max()) <= 1.0
    found = policy.system.codec.decode(action, channels)
    scenario = env.unwrapped.scenario
    if scenario.scheduling == "all":
        np.testing.assert_allclose(found.comm_power, scenario.comm_power, rtol=1e-5)
    else:
        assert found.access is not None
        np.testing.assert_array_equal((found.access > 0).sum(-1), 1)
    rows = found.streams.abs().square().sum(-1)
    np.testing.assert_allclose(rows, 0.8 / 4, rtol=1e-5)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("control", ["beamforming", "power"])
def test_the_noise_and_the_price_may_be_extreme(control: str) -> None:
    policy = policy_of(make(control=control), 0.1)
    channels = channels_of(make(), 4)
    noise = torch.tensor([1e-10, 1e10, 0.1, 0.1])
    price = torch.tensor([[1.0], [1.0], [0.0], [1e5]])
    with torch.no_grad():
        action = policy(observed(channels), Conditions(noise, price))
    assert bool(action.isfinite().all())
    assert float(action.abs().max()) <= 1.0


def test_amplitude_control_has_no_such_structure() -> None:
    with pytest.raises(ValueError, match=r"control.*amplitude"):
        policy_of(make(control="amplitude"))


# Structure


@pytest.mark.usefixtures("path")
def test_beams_are_those_of_some_dual_powers() -> None:
    """F_k ∝ (I + Σ μ_l g_l* g_lᵀ)⁻¹ g_k* with one μ >= 0 for all k, in double precision."""
    env = make()
    policy = policy_of(env, 0.3)
    channels = channels_of(env, 5)
    found = sent(policy, channels).precoders[:, 0].to(torch.complex128).numpy()
    for H, F in zip(channels[:, 0, 0].to(torch.complex128).numpy(), found, strict=True):
        g = H[:, 4:]
        # F = g*(ggᴴ + D)⁻¹S, so C = (gᵀ-pseudo-inverse)F has C⁻¹ = S⁻¹(ggᴴ + D).
        C = np.linalg.pinv(g.conj().T) @ F
        beside = g.conj().T @ C - F
        assert np.abs(beside).max() < 1e-4 * np.abs(F).max()
        inverse = np.linalg.inv(C)
        gram = g @ g.conj().T
        off = ~np.eye(3, dtype=bool)
        scale = np.array([inverse[k, off[k]] / gram[k, off[k]] for k in range(3)])
        # Each row of C⁻¹ is a positive multiple of that of ggᴴ + D.
        np.testing.assert_allclose(scale[:, 0], scale[:, 1], rtol=2e-2)
        assert (scale.real > 0).all()
        assert np.abs(scale.imag / scale.real).max() < 2e-2
        loading = (inverse.diagonal() / scale.mean(1) - gram.diagonal()).real
        assert (loading > -0.02 * gram.diagonal().real).all()
        signal = (g @ F).diagonal()
        assert np.abs(signal.imag / signal.real).max() < 1e-3
        assert (signal.real > 0).all()


def test_a_single_user_gets_maximum_ratio_with_all_the_power() -> None:
    env = make(num_users=1, sensing_threshold=0.5)
    channels = channels_of(env, 6)
    F = sent(policy_of(env, 0.3), channels).precoders[:, 0, :, 0]
    g = channels[:, 0, 0, 0, 4:]
    np.testing.assert_allclose((g * F).sum(-1), torch.linalg.vector_norm(g, dim=-1), rtol=1e-4)


@pytest.mark.usefixtures("path")
def test_the_fixed_radar_stays_the_best_beampattern() -> None:
    env = make(radar="fixed")
    policy = policy_of(env, 0.3)
    channels = channels_of(env, 5)
    found = sent(policy, channels)
    assert env.action_space.shape == (2 * 5 * 3,)
    torch.testing.assert_close(
        found.streams, policy.system.best_streams().expand(5, -1, -1, -1), rtol=0, atol=0
    )
    # What the radar sends to the users counts: without it there are other beams.
    quiet = channels.clone()
    quiet[..., :4] = 0.0
    assert not torch.allclose(sent(policy, quiet).precoders, found.precoders, atol=1e-2)


@pytest.mark.usefixtures("path")
def test_without_a_network_it_is_a_descent(path: str) -> None:
    """Untrained, a higher price gives a lower sensing loss, down to the best beampattern's."""
    env = make()
    policy = policy_of(env)
    channels = channels_of(env, 60)
    floor = sum(
        reference.sensing_loss(
            covariance(Transmission(*[policy.system.best_streams()] * 2, torch.zeros(1)))[0]
            .to(torch.complex128)
            .numpy(),
            0.5,
            TARGETS,
        )
    )
    losses, received = [], []
    for multiplier in (0.3, 1.0, 3.0, 10.0, 30.0, 1e5):
        R = covariance(sent(policy, channels, multiplier))[:, 0].to(torch.complex128).numpy()
        losses.append(np.mean([sum(reference.sensing_loss(each, 0.5, TARGETS)) for each in R]))
        f = channels[:, 0, 0, :, :4].to(torch.complex128).numpy()
        received.append(np.einsum("nkm,nmp,nkp->", f, R, f.conj()).real)
    assert (np.diff(losses) < 0).all()
    assert (np.diff(received) > 0).all()
    assert losses[0] > 1.3 * floor
    assert losses[-1] == pytest.approx(floor, rel=0.02)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("radar", ["learned", "fixed"])
def test_the_noise_comes_from_the_conditions(radar: str) -> None:
    loud, quiet = (policy_of(make(snr_db=snr, radar=radar), 0.1) for snr in (0.0, 20.0))
    channels = channels_of(make(), 8)
    observation = observed(channels)
    told = Conditions(torch.full((8,), 1.0), torch.full((8, 1), 100.0))
    with torch.no_grad():
        found, expected = quiet(observation, told), loud(observation, told)
        other = quiet(observation, conditions(quiet, 8, 20.0))
        by_default = quiet(observation)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.allclose(found, other, rtol=0, atol=0.02)
    # None means the scenario's own noise and no price.
    with torch.no_grad():
        torch.testing.assert_close(by_default, quiet(observation, conditions(quiet, 8, 0.0)))


# Gradients


def without_gradient(policy: UnfoldedNetwork, env: gym.Env[Any, Any]) -> dict[str, list[int]]:
    """Parameters of which some first indices have no gradient of the Lagrangian, up to rounding."""
    channels = channels_of(env, 32)
    action = policy(observed(channels), conditions(policy, 32, 20.0))
    outcome = policy.system.transmit(channels, action)
    loss = 20.0 * outcome.constraints["sensing"].mean() - outcome.sum_rate.mean()
    loss.backward()
    sizes = {}
    for name, parameter in policy.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert bool(gradient.isfinite().all())
        sizes[name] = gradient.reshape(len(gradient), -1).abs().amax(-1)
    least = 1e-7 * max(float(size.max()) for size in sizes.values())
    missing = {name: (size <= least).nonzero().flatten().tolist() for name, size in sizes.items()}
    return {name: indices for name, indices in missing.items() if indices}


LAST = len(STAGES)
# There is no momentum in the first step, and the last precoder corrects no slopes. Powers and dual
# powers are softmaxes over the users: what is added to all of them alike makes no difference.
NEVER = {
    "tempo": [2],
    "pace.0.weight": [2],
    "pace.0.bias": [2],
    f"settings.{LAST}.weight": [2],
    **{f"settings.{stage}.bias": [0, 1] for stage in range(LAST)},
    f"settings.{LAST}.bias": [0, 1, 2],
    f"layers.{LAST}.outer.bias": [*range(8)],
}


def test_gradients_reach_every_parameter() -> None:
    env = make()
    assert without_gradient(policy_of(env, 0.05), env) == NEVER


def test_power_control_uses_no_dual_powers() -> None:
    env = make(control="power")
    expected = {**NEVER, f"settings.{LAST}.weight": [1, 2]}
    expected |= {f"settings.{stage}.weight": [1] for stage in range(LAST)}
    assert without_gradient(policy_of(env, 0.05), env) == expected


def test_the_fixed_radar_uses_the_last_layer_alone() -> None:
    env = make(radar="fixed")
    policy = policy_of(env, 0.05)
    missing = without_gradient(policy, env)
    used = {"edges", "entry", f"layers.{LAST}", f"settings.{LAST}"}
    for name, parameter in policy.named_parameters():
        if name.startswith("gates."):
            assert missing[name] == [*range(8 * LAST)], name
        elif any(name.startswith(f"{prefix}.") for prefix in used):
            assert missing.get(name) == NEVER.get(name), name
        else:
            assert parameter.grad is None, name


def test_under_contention_the_choice_has_a_gradient() -> None:
    env = make(scheduling="contention")
    policy = policy_of(env, 0.05)
    without_gradient(policy, env)
    assert policy.access is not None
    assert float(policy.access.weight.grad.abs().max()) > 0.0  # type: ignore[union-attr]


def test_gradients_survive_degenerate_channels() -> None:
    env = make(power_limit="cost")
    policy = policy_of(env, 0.1)
    channels = degenerate(channels_of(env, 12))
    action = policy(observed(channels), conditions(policy, 12, 20.0))
    policy.system.transmit(channels, action).sum_rate.sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all()), name


# Agents


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_batch_shared_out_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = PrimalDual(make(), "tuned", width=8, stages=STAGES)
    batch = observed(channels_of(make(), 300)).numpy()
    sizes: list[int] = []
    answer = agent._answer

    def counted(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return answer(part)

    monkeypatch.setattr(agent, "_answer", counted)
    shared = agent.predict(batch)[0]
    assert sorted(sizes) == [150, 150]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    sizes.clear()
    np.testing.assert_allclose(agent.predict(batch)[0], shared, rtol=0, atol=2e-4)
    assert sizes == [300]


def test_training_after_acting() -> None:
    """Nothing that inference leaves behind gets in the way of gradients."""
    settings: dict[str, Any] = {"width": 8, "stages": STAGES, "batch_size": 4}
    settings |= {"calibration_channels": 0}
    env = make(num_users=5)
    agent = PrimalDual(env, "tuned", **settings)
    agent.predict(env.reset(seed=0)[0])
    fresh = PrimalDual(env, "tuned", **settings).learn(2)
    for used, untouched in zip(
        agent.learn(2).network.parameters(), fresh.network.parameters(), strict=True
    ):
        assert torch.equal(used, untouched)


def mean_loss(agent: PrimalDual, channels: Tensor) -> float:
    """Mean L_r by the direct formula."""
    scenario = agent.scenario
    action = torch.from_numpy(agent.predict(observed(channels).numpy())[0])
    R = covariance(agent.system.codec.decode(action, channels))[:, 0].to(torch.complex128).numpy()
    targets = scenario.targets_by_cell[0]
    return float(np.mean([sum(reference.sensing_loss(each, 0.5, targets)) for each in R]))


def calibration_channels(agent: PrimalDual, count: int, seed: int) -> Tensor:
    process = ChannelProcess(agent.channel_model, agent.scenario, count)
    process.start(np.random.default_rng((0xCA11B, seed)))
    return torch.from_numpy(process.channels)


def test_calibration_adapts_a_loaded_agent(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    PrimalDual(make(), "tuned", width=8, stages=STAGES).save(path)
    multipliers = []
    for changes in (
        {"num_users": 2, "sensing_threshold": 0.21},
        {"num_users": 5, "sensing_threshold": 0.18, "snr_db": 5.0},
    ):
        agent = PrimalDual.load(path, make(**changes))
        by_loading = agent.multiplier.clone()
        channels = calibration_channels(agent, 256, 3)
        (multiplier,) = agent.calibrate(256, seed=3)
        assert float(agent.multiplier) == pytest.approx(multiplier)
        assert mean_loss(agent, channels) == pytest.approx(changes["sensing_threshold"], rel=5e-3)
        # Other channels were drawn when it was loaded.
        assert float(by_loading) == pytest.approx(multiplier, rel=0.3)
        assert float(by_loading) != multiplier
        multipliers.append(multiplier)
    assert multipliers[1] > 1.2 * multipliers[0]


def test_calibration_aims_below_the_threshold_by_the_margin() -> None:
    agent = PrimalDual(make(), "tuned", width=8, stages=STAGES)
    channels = calibration_channels(agent, 128, 0)
    agent.calibrate(128, margin=0.04)
    assert mean_loss(agent, channels) == pytest.approx(0.96 * 0.2, rel=2e-3)


def test_a_threshold_that_does_not_bind_has_no_price() -> None:
    agent = PrimalDual(make(sensing_threshold=50.0), "tuned", width=8, stages=STAGES)
    assert agent.calibrate(32) == (0.0,)
    assert float(agent.multiplier) == 0.0


def test_each_station_has_a_price_of_its_own() -> None:
    groups = (TARGETS, (-20.0, 60.0))
    env = make(num_cells=2, target_angles_deg=groups, sensing_threshold=0.24)
    agent = PrimalDual(env, "tuned", width=8, stages=STAGES)
    first, second = agent.calibrate(128)
    assert abs(first - second) > 0.02 * first
    channels = calibration_channels(agent, 128, 0)
    action = torch.from_numpy(agent.predict(observed(channels).numpy())[0])
    R = covariance(agent.system.codec.decode(action, channels)).to(torch.complex128).numpy()
    for cell, targets in enumerate(groups):
        found = np.mean([sum(reference.sensing_loss(each, 0.5, targets)) for each in R[:, cell]])
        assert found == pytest.approx(0.24, rel=5e-3)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"radar": "fixed"}, {}),
        ({}, {"architecture": "direct"}),
        ({}, {"dual_rule": "none"}),
        ({"control": "amplitude"}, {}),
    ],
    ids=["fixed", "direct", "no-dual", "amplitude"],
)
def test_only_a_price_can_be_calibrated(changes: dict[str, Any], settings: dict[str, Any]) -> None:
    agent = PrimalDual(make(**changes), "tuned", width=8, stages=STAGES, **settings)
    with pytest.raises(ValueError, match="calibrate"):
        agent.calibrate(8)


def test_a_price_that_no_multiplier_attains() -> None:
    floor = make().unwrapped.scenario.sensing_floor()[0]
    agent = PrimalDual(make(sensing_threshold=floor * 1.0001), "tuned", width=8, stages=STAGES)
    with pytest.raises(ValueError, match="sensing_threshold must be kept"):
        agent.calibrate(16)


def test_without_multipliers_the_policy_is_told_no_price() -> None:
    agent = NoDual(make(), "tuned", width=8, stages=STAGES)
    assert float(agent.multiplier) == 0.0
    assert not agent.has_price


@pytest.mark.slow
def test_a_short_training_at_the_paper_scenario() -> None:
    env = gym.make("ISAC-MISO-v0")
    agent = PrimalDual(env, "tuned", seed=0).learn(60)
    channels = channels_of(env, 1500, seed=11)
    action = torch.from_numpy(agent.predict(observed(channels).numpy())[0])
    outcome = agent.system.transmit(channels, action)
    assert float(outcome.sum_rate.mean()) > 12.5
    assert abs(float(outcome.sensing.total.mean()) / 0.12 - 1.0) < 0.01


ANSWER = """
import hashlib, torch
import numpy as np
from small_agents import make, quick
torch.set_num_threads(1)
agent = quick(make(), architecture="unfolded")
env = make()
observations = np.stack([env.reset(seed=seed)[0] for seed in range(64)])
print(hashlib.sha256(agent.predict(observations)[0].tobytes()).hexdigest())
"""


def test_kept_machine_code_answers_as_that_just_compiled(tmp_path: Path) -> None:
    """A training that is resumed in another process would otherwise not be the same."""
    pytest.importorskip("numba")
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    environment.pop("ISAC_GYM_COMPILED", None)
    compiled, loaded = (
        subprocess.run(
            [sys.executable, "-c", ANSWER],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*stage*.nbc")), "it was kept"
    assert compiled == loaded
