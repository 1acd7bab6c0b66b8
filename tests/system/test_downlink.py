"""From an action to rates and costs: values and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import direct_model
import numpy as np
import pytest
import reference
import torch
from direct_model import SMALL
from torch import Tensor

from isac_gym import RayleighChannel, Scenario
from isac_gym.channels.process import ChannelProcess
from isac_gym.system.downlink import ISACSystem, Outcome
from isac_gym.system.stations import isolate_station

CONTROLS = ("power", "amplitude", "beamforming", "structured")
MODES = list(
    itertools.product(CONTROLS, ("learned", "fixed"), ("all", "contention"), ("project", "cost"))
)
SOFT = [mode for mode in MODES if mode[2] == "all"]


def make(
    control: str, radar: str, scheduling: str, limit: str, dtype: torch.dtype, **changes: Any
) -> ISACSystem:
    scenario = Scenario(
        **{
            **SMALL,
            "control": control,
            "radar": radar,
            "scheduling": scheduling,
            "power_limit": limit,
            **changes,
        }
    )
    return ISACSystem(scenario, dtype=dtype)


def channels_of(system: ISACSystem, batch: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    channels = torch.from_numpy(
        reference.complex_normal(rng, batch, *system.codec.deployment.shape)
    )
    return channels.to(system.dtype.to_complex())


def objective(outcome: Outcome) -> Tensor:
    """Rates and all signed constraints, weighted so that no two can cancel."""
    weights = {"power": 0.7, "sensing": 1.3, "scheduling": 0.2}
    total = outcome.sum_rate
    for name, value in outcome.constraints.items():
        total = total - weights[name] * value.sum(-1)
    return total


@pytest.mark.parametrize("form", ["grid_abs", "grid_sq", "target_sq"])
@pytest.mark.parametrize("scale", [1.0, "optimal"])
@pytest.mark.parametrize("cells", [1, 2])
def test_double_precision_agrees_with_the_formulas(form: str, scale: Any, cells: int) -> None:
    targets = ((-50.0, 10.0), (-20.0, 35.0))[:cells] if cells > 1 else (-50.0, 10.0)
    system = make(
        *("beamforming", "learned", "all", "cost"),
        torch.float64,
        num_cells=cells,
        cross_correlation=form,
        pattern_scale=scale,
        target_angles_deg=targets,
        antenna_spacing=0.6,
        intercell_gain=0.4,
    )
    scenario = system.scenario
    channels = channels_of(system, 4)
    action = np.random.default_rng(1).uniform(-1, 1, (4, system.codec.action_size))
    outcome = system.transmit(channels, torch.from_numpy(action))
    for index in range(4):
        precoders, covariances, access = direct_model.decode(
            scenario, action[index], channels[index].numpy()
        )
        assert covariances is not None
        expected = direct_model.earned(
            scenario, channels[index].numpy(), precoders, covariances, access
        )
        found = {
            "sinr": outcome.sinr,
            "rates": outcome.rates,
            "sum_rate": outcome.sum_rate,
            "comm_power": outcome.transmission.comm_power,
            "beampattern_error": outcome.sensing.beampattern_error,
            "cross_correlation": outcome.sensing.cross_correlation,
            **{f"constraint_{name}": value for name, value in outcome.constraints.items()},
            **{f"cost_{name}": value for name, value in outcome.costs.items()},
        }
        for name, value in found.items():
            np.testing.assert_allclose(
                value[index], expected[name], rtol=1e-9, atol=1e-12, err_msg=name
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("control", "radar", "scheduling", "limit"), MODES)
def test_gradients_are_finite_in_the_corners_of_the_box(
    control: str, radar: str, scheduling: str, limit: str, dtype: torch.dtype
) -> None:
    system = make(control, radar, scheduling, limit, dtype, num_cells=2)
    size = system.codec.action_size
    rng = np.random.default_rng(0)
    corners = [
        np.full(size, -1.0),
        np.full(size, 1.0),
        np.zeros(size),
        rng.choice([-1.0, 1.0], size),
        rng.choice([-1.0, 0.0, 1.0], size),
        rng.choice([0.0, 1e-30], size),
        np.eye(1, size, 0)[0],
    ]
    action = torch.tensor(np.array(corners), dtype=dtype, requires_grad=True)
    outcome = system.transmit(channels_of(system, len(corners)), action)
    value = objective(outcome)
    assert torch.isfinite(value).all()
    (gradient,) = torch.autograd.grad(value.sum(), action)
    assert gradient.shape == action.shape
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("control", "radar", "scheduling", "limit"), SOFT)
@pytest.mark.parametrize("cells", [1, 2])
def test_gradient_agrees_with_finite_differences(
    control: str, radar: str, scheduling: str, limit: str, cells: int
) -> None:
    system = make(control, radar, scheduling, limit, torch.float64, num_cells=cells)
    size = system.codec.action_size
    rng = np.random.default_rng(3)
    channels = channels_of(system, 1)
    # Once clearly inside the budget, where projection does nothing, once clearly outside.
    for scale in (0.1, 0.9):
        raw = rng.uniform(-1, 1, (1, size))
        start = scale * (raw + 1) - 1 if control == "power" else scale * raw
        action = torch.tensor(start, requires_grad=True)
        (gradient,) = torch.autograd.grad(
            objective(system.transmit(channels, action)).sum(), action
        )
        for _ in range(4):
            direction = rng.normal(size=(1, size))
            step = 1e-6
            high, low = (
                float(objective(system.transmit(channels, torch.tensor(start + s * direction))))
                for s in (step, -step)
            )
            slope = float((gradient.numpy() * direction).sum())
            assert slope == pytest.approx((high - low) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("control", ["power", "beamforming"])
def test_contention_gradient_reaches_the_access_variables(control: str) -> None:
    """The value is the hard decision, the gradient passes straight through it."""
    system = make(control, "fixed", "contention", "project", torch.float64)
    users = system.scenario.num_users
    rng = np.random.default_rng(0)
    start = rng.uniform(-0.5, 0.5, (1, system.codec.action_size))
    start[0, -users:] = [0.3, -0.2, -0.4]
    action = torch.tensor(start, requires_grad=True)
    outcome = system.transmit(channels_of(system, 1), action)
    assert outcome.constraints["scheduling"].item() == 0.0
    (rate,) = torch.autograd.grad(outcome.sum_rate.sum(), action, retain_graph=True)
    assert rate[0, -users] > 0, "serving the only active user must pay"
    assert (rate[0, 1 - users :] < 0).all(), "a second active user must cost"
    (cost,) = torch.autograd.grad(outcome.constraints["scheduling"].sum(), action)
    assert (cost[0, -users:] > 0).all()
    assert not cost[0, :-users].any()


def test_gradient_reaches_every_input_that_matters() -> None:
    system = make("beamforming", "learned", "all", "project", torch.float64)
    rng = np.random.default_rng(0)
    action = torch.tensor(rng.uniform(-1, 1, (2, system.codec.action_size)), requires_grad=True)
    channels = channels_of(system, 2).requires_grad_(True)
    outcome = system.transmit(channels, action)
    gradients = torch.autograd.grad(outcome.sum_rate.sum(), (action, channels))
    assert all((gradient.abs() > 0).all() for gradient in gradients)


def test_estimates_only_steer_fixed_directions() -> None:
    for control, matters in (("power", True), ("beamforming", False), ("amplitude", False)):
        system = make(control, "fixed", "all", "project", torch.float64)
        channels, estimates = channels_of(system, 3), channels_of(system, 3, seed=5)
        rng = np.random.default_rng(0)
        action = torch.from_numpy(rng.uniform(-1, 1, (3, system.codec.action_size)))
        known = system.transmit(channels, action)
        unsure = system.transmit(channels, action, estimates)
        same = torch.equal(known.sum_rate, unsure.sum_rate)
        assert same != matters
        np.testing.assert_array_equal(
            system.transmit(channels, action, channels).sum_rate, known.sum_rate
        )
        if matters:
            precoders = np.array(
                [
                    direct_model.decode(system.scenario, action[i], estimates[i].numpy())[0]
                    for i in range(3)
                ]
            )
            np.testing.assert_allclose(unsure.transmission.precoders, precoders, rtol=1e-9)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_leading_dimensions(lead: tuple[int, ...]) -> None:
    system = make("beamforming", "learned", "contention", "project", torch.float64, num_cells=2)
    rng = np.random.default_rng(0)
    channels = torch.from_numpy(reference.complex_normal(rng, *lead, 2, 2, 3, 9))
    action = torch.from_numpy(rng.uniform(-1, 1, (*lead, system.codec.action_size)))
    outcome = system.transmit(channels, action)
    assert outcome.sum_rate.shape == lead
    assert outcome.rates.shape == (*lead, 2, 3)
    assert outcome.sensing.total.shape == (*lead, 2)
    for index in np.ndindex(*lead):
        single = system.transmit(channels[index], action[index])
        np.testing.assert_allclose(outcome.sum_rate[index], single.sum_rate, rtol=1e-12)
        for name, value in outcome.constraints.items():
            np.testing.assert_allclose(
                value[index], single.constraints[name], rtol=1e-9, atol=1e-12
            )


def parts_of(outcome: Outcome) -> dict[str, Tensor]:
    """What an outcome says of each station, (n, J, …)."""
    return {
        "rates": outcome.rates,
        "sinr": outcome.sinr,
        "beampattern_error": outcome.sensing.beampattern_error,
        "cross_correlation": outcome.sensing.cross_correlation,
        "comm_power": outcome.transmission.comm_power,
        **outcome.constraints,
    }


def uncoupled(mode: tuple[str, str, str, str], dtype: torch.dtype) -> tuple[ISACSystem, Tensor]:
    """Three stations without paths between cells, and channels for them."""
    targets = ((-50.0, 10.0), (-20.0, 40.0), (-60.0, 30.0))
    changes = {"num_cells": 3, "intercell_gain": 0.0, "target_angles_deg": targets}
    system = make(*mode, dtype, **changes)
    process = ChannelProcess(RayleighChannel(), system.scenario, 5)
    process.start(np.random.default_rng(0))
    return system, torch.from_numpy(process.channels).to(dtype.to_complex())


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_without_paths_between_cells_no_station_disturbs_another(
    mode: tuple[str, str, str, str],
) -> None:
    """Bit for bit: whatever one does, and whatever its channels are, the others have the same."""
    system, channels = uncoupled(mode, torch.float32)
    own, rng = system.codec.station_size, np.random.default_rng(1)
    action = torch.from_numpy(rng.uniform(-1, 1, (5, 3 * own)).astype(np.float32))
    if mode[2] == "contention":
        action.unflatten(-1, (3, own))[..., -3:] = torch.tensor([-0.5, 0.5, -0.5])
    before = parts_of(system.transmit(channels, action))
    for station in range(3):
        others = [index for index in range(3) if index != station]
        acts = action.clone()
        part = acts.unflatten(-1, (3, own))[:, station]
        part.copy_(part.flip(-1))
        met = channels.clone()
        met[:, station] *= 1.5
        for after in (system.transmit(channels, acts), system.transmit(met, action)):
            found = parts_of(after)
            for name, value in before.items():
                assert torch.equal(found[name][:, others], value[:, others]), name
            assert not torch.equal(found["sinr"][:, station], before["sinr"][:, station])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_without_paths_between_cells_stations_are_as_good_as_alone(
    mode: tuple[str, str, str, str], dtype: torch.dtype
) -> None:
    system, channels = uncoupled(mode, dtype)
    own, rng = system.codec.station_size, np.random.default_rng(2)
    action = torch.from_numpy(rng.uniform(-1, 1, (5, 3, own))).to(dtype)
    if mode[2] == "contention":
        action[..., -3:] = torch.tensor([0.5, -0.5, -0.5], dtype=dtype)
    together = parts_of(system.transmit(channels, action.flatten(1)))
    for station in range(3):
        alone = ISACSystem(isolate_station(system.scenario, station), dtype=dtype)
        met = channels[:, station : station + 1, station : station + 1]
        for name, value in parts_of(alone.transmit(met, action[:, station])).items():
            np.testing.assert_allclose(
                together[name][:, station], value[:, 0], rtol=1e-6, atol=1e-6, err_msg=name
            )


@pytest.mark.parametrize("targets", [(-50.0, 10.0), (-70.0, 0.0, 40.0)])
def test_fixed_radar_is_at_least_as_good_as_any_other(targets: tuple[float, ...]) -> None:
    changes = {"num_radar_antennas": 12, "radar_power": 2.5, "target_angles_deg": targets}
    system = make("power", "fixed", "all", "project", torch.float64, **changes)
    channels = channels_of(system, 1)
    fixed = system.transmit(channels, torch.zeros(1, 3, dtype=torch.float64))
    streams = fixed.transmission.streams[0, 0].numpy()
    R = streams @ streams.conj().T
    np.testing.assert_allclose(R.diagonal(), np.full(12, 2.5 / 12), rtol=1e-9)
    best = sum(reference.sensing_loss(R, 0.5, targets))
    assert fixed.sensing.total.item() == pytest.approx(best, rel=1e-9)
    rng = np.random.default_rng(0)
    # The problem is convex in R: no step towards any other covariance may go down.
    for rank in (1, 2, 4, 12) * 5:
        V = reference.feasible_streams(rng, 12, 2.5, rank)
        other = V @ V.conj().T
        for step in (1.0, 0.1, 0.01):
            moved = (1 - step) * R + step * other
            assert sum(reference.sensing_loss(moved, 0.5, targets)) > best - 1e-6


def test_unattainable_threshold_is_an_error() -> None:
    with pytest.raises(ValueError, match="sensing_threshold must be at least"):
        ISACSystem(Scenario(sensing_threshold=0.05))


@pytest.mark.parametrize("cells", [1, 2])
def test_each_block_may_have_a_noise_power_of_its_own(cells: int) -> None:
    system = make("beamforming", "learned", "all", "project", torch.float64, num_cells=cells)
    channels = channels_of(system, 6).unflatten(0, (2, 3))
    rng = np.random.default_rng(3)
    action = torch.from_numpy(rng.uniform(-1, 1, (2, 3, system.codec.action_size)))
    noise = rng.uniform(0.01, 2.0, (2, 3))
    found = system.transmit(channels, action, noise_power=torch.from_numpy(noise))
    again = system.judge(channels, found.transmission, torch.from_numpy(noise))
    assert torch.equal(again.rates, found.rates)
    F, V = (x.numpy() for x in (found.transmission.precoders, found.transmission.streams))
    for at in np.ndindex(2, 3):
        R = V[at] @ np.swapaxes(V[at].conj(), -1, -2)
        ratio = reference.sinr(channels[at].numpy(), F[at], R, noise[at])
        np.testing.assert_allclose(found.sinr[at], ratio, rtol=1e-9)
    plain = system.transmit(channels, action)
    own = torch.full((2, 3), system.scenario.noise_power, dtype=torch.float64)
    torch.testing.assert_close(
        system.transmit(channels, action, noise_power=own).rates, plain.rates
    )
    assert not torch.allclose(plain.rates, found.rates)
