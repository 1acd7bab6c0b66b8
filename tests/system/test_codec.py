"""Observations and actions: round trips, layout errors, and the budget."""

from __future__ import annotations

import itertools
from typing import Any

import direct_model
import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from direct_model import SMALL
from torch import Tensor

from isac_gym import Scenario
from isac_gym.system.codec import Codec, check_action, select_own_channels
from isac_gym.system.downlink import ISACSystem

CONTROLS = ("power", "amplitude", "beamforming")
MODES = list(
    itertools.product(CONTROLS, ("learned", "fixed"), ("all", "contention"), ("project", "cost"))
)
BATCH = 6


def scenario_of(control: str, radar: str, scheduling: str, limit: str, **changes: Any) -> Scenario:
    return Scenario(
        **{
            **SMALL,
            "control": control,
            "radar": radar,
            "scheduling": scheduling,
            "power_limit": limit,
            **changes,
        }
    )


def channels_of(scenario: Scenario, seed: int = 0) -> Tensor:
    cells = scenario.num_cells
    shape = (BATCH, cells, cells, scenario.num_users, scenario.num_antennas)
    return torch.from_numpy(reference.complex_normal(np.random.default_rng(seed), *shape))


def codec_of(scenario: Scenario) -> Codec:
    return ISACSystem(scenario, dtype=torch.float64).codec


def transmitted(scenario: Scenario, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random F within the budget, p, V with normalised rows and τ, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    lead = (BATCH, scenario.num_cells)
    users, antennas = scenario.num_users, scenario.num_comm_antennas
    access = rng.integers(0, 2, (*lead, users)).astype(float)
    if scenario.scheduling == "all":
        access[...] = 1.0
    precoders = reference.complex_normal(rng, *lead, antennas, users)
    if scenario.control == "amplitude":
        precoders = precoders.real + 0j
    precoders *= access[..., None, :]
    norm = np.sqrt(np.sum(np.abs(precoders) ** 2, (-2, -1), keepdims=True)) + 1e-12
    share = rng.uniform(0.2, 1.0, norm.shape)
    precoders *= share * np.sqrt(scenario.comm_power) / norm
    powers = rng.dirichlet(np.ones(users), lead) * scenario.comm_power * 0.9 * access
    streams = np.stack(
        [
            [
                reference.feasible_streams(
                    rng,
                    scenario.num_radar_antennas,
                    scenario.radar_power,
                    scenario.num_radar_streams,
                )
                for _ in range(scenario.num_cells)
            ]
            for _ in range(BATCH)
        ]
    )
    return {"precoders": precoders, "powers": powers, "streams": streams, "access": access}


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize(("control", "radar", "scheduling", "limit"), MODES)
def test_decode_inverts_encode(
    control: str, radar: str, scheduling: str, limit: str, cells: int
) -> None:
    scenario = scenario_of(
        control, radar, scheduling, limit, num_cells=cells, radar_streams=3, comm_power=2.5
    )
    codec = codec_of(scenario)
    wanted = transmitted(scenario)
    given = {name: torch.from_numpy(value) for name, value in wanted.items()}
    del given["precoders" if control == "power" else "powers"]
    channels = channels_of(scenario)
    # Rows of V of any scale mean the same waveform.
    scales = np.random.default_rng(1).uniform(0.1, 40.0, (BATCH, cells, 4, 1))
    action = codec.encode(**{**given, "streams": given["streams"] * torch.from_numpy(scales)})
    assert action.shape == (BATCH, codec.action_size)
    assert float(action.abs().max()) <= 1.0
    sent = codec.decode(action, channels)

    if control == "power":
        power = np.sum(np.abs(sent.precoders.numpy()) ** 2, axis=-2)
        np.testing.assert_allclose(power, wanted["powers"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(sent.comm_power, wanted["powers"].sum(-1), rtol=1e-9, atol=1e-12)
    else:
        np.testing.assert_allclose(sent.precoders, wanted["precoders"], rtol=1e-9, atol=1e-12)
        total = np.sum(np.abs(wanted["precoders"]) ** 2, (-2, -1))
        np.testing.assert_allclose(sent.comm_power, total, rtol=1e-9, atol=1e-12)
    if radar == "learned":
        np.testing.assert_allclose(sent.streams, wanted["streams"], rtol=1e-9, atol=1e-12)
    if scheduling == "contention":
        assert sent.access is not None
        np.testing.assert_array_equal(sent.access, wanted["access"])
    else:
        assert sent.access is None


@pytest.mark.parametrize(("control", "radar", "scheduling", "limit"), MODES)
def test_decode_agrees_with_the_layout_by_hand(
    control: str, radar: str, scheduling: str, limit: str
) -> None:
    scenario = scenario_of(
        control, radar, scheduling, limit, num_cells=2, radar_streams=2, comm_power=0.7
    )
    codec = codec_of(scenario)
    channels = channels_of(scenario)
    rng = np.random.default_rng(2)
    action = rng.uniform(-1, 1, (BATCH, codec.action_size))
    sent = codec.decode(torch.from_numpy(action), channels)
    for index in range(BATCH):
        precoders, covariances, access = direct_model.decode(
            scenario, action[index], channels[index].numpy()
        )
        np.testing.assert_allclose(sent.precoders[index], precoders, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            sent.comm_power[index], np.sum(np.abs(precoders) ** 2, (1, 2)), rtol=1e-9, atol=1e-12
        )
        if covariances is not None:
            streams = sent.streams[index].numpy()
            found = streams @ streams.conj().swapaxes(-1, -2)
            np.testing.assert_allclose(found, covariances, rtol=1e-9, atol=1e-12)
        if sent.access is not None:
            np.testing.assert_array_equal(sent.access[index], access)


@pytest.mark.parametrize("cells", [1, 3])
def test_observation_and_channels_are_inverse(cells: int) -> None:
    scenario = Scenario(**SMALL, num_cells=cells)
    codec = Codec(scenario)
    channels = channels_of(scenario).numpy().astype(np.complex64)
    observation = codec.observation(channels)
    assert observation.dtype == np.float32
    assert observation.shape == (BATCH, codec.observation_size)
    np.testing.assert_array_equal(codec.channels(torch.from_numpy(observation)), channels)
    for index in range(BATCH):
        np.testing.assert_array_equal(
            direct_model.observed_channels(scenario, observation[index]), channels[index]
        )
    single = codec.channels(torch.from_numpy(observation[0]))
    np.testing.assert_array_equal(single, channels[0])


@pytest.mark.parametrize("shape", [(53,), (55,), (2, 27), ()])
def test_observation_of_wrong_length(shape: tuple[int, ...]) -> None:
    codec = Codec(Scenario(**SMALL))
    assert codec.observation_size == 54
    with pytest.raises(ValueError, match=r"observation must have shape \(\.\.\., 54\)"):
        codec.channels(torch.zeros(shape))


def test_own_channels() -> None:
    channels = channels_of(Scenario(**SMALL, num_cells=3))
    own = select_own_channels(channels)
    assert own.shape == (BATCH, 3, 3, 9)
    for cell in range(3):
        np.testing.assert_array_equal(own[:, cell], channels[:, cell, cell])
    one = channels_of(Scenario(**SMALL))
    np.testing.assert_array_equal(select_own_channels(one), one[:, 0])


def test_fewer_streams_are_padded() -> None:
    scenario = scenario_of("beamforming", "learned", "all", "project", radar_streams=4)
    codec = codec_of(scenario)
    wanted = transmitted(scenario)
    streams = torch.from_numpy(wanted["streams"][..., :2])
    action = codec.encode(precoders=torch.from_numpy(wanted["precoders"]), streams=streams)
    sent = codec.decode(action, channels_of(scenario)).streams
    assert sent.shape[-1] == 4
    scaled = streams / torch.linalg.vector_norm(streams, dim=-1, keepdim=True) * 0.2**0.5
    np.testing.assert_allclose(sent @ sent.mH, scaled @ scaled.mH, atol=1e-12)
    five = torch.ones(BATCH, 1, 4, 5, dtype=torch.complex128)
    with pytest.raises(ValueError, match=r"streams.*radar_streams=4.*5"):
        codec.encode(precoders=torch.from_numpy(wanted["precoders"]), streams=five)


def test_zero_rows_of_the_waveform_become_uniform() -> None:
    scenario = scenario_of("beamforming", "learned", "all", "project", radar_streams=3)
    codec = codec_of(scenario)
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (BATCH, codec.action_size))
    waveform = action[:, 30:].reshape(BATCH, 2, 4, 3)
    waveform[:, :, [0, 2]] = 0.0
    streams = codec.decode(torch.from_numpy(action), channels_of(scenario)).streams.numpy()
    np.testing.assert_allclose(
        streams[:, 0, [0, 2]], np.full((BATCH, 2, 3), np.sqrt(0.2 / 3)), rtol=1e-9
    )
    others = (waveform[:, 0] + 1j * waveform[:, 1])[:, [1, 3]]
    others *= np.sqrt(0.2) / np.linalg.norm(others, axis=-1, keepdims=True)
    np.testing.assert_allclose(streams[:, 0, [1, 3]], others, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_entry_of_the_box_gives_a_row_that_is_not_finite(dtype: torch.dtype) -> None:
    """Rows of one repeated tiny number, in both signs and down to the smallest subnormal."""
    codec = ISACSystem(Scenario(**SMALL), dtype=dtype).codec
    exponents = np.arange(-45 if dtype == torch.float32 else -300, 1)
    values = np.concatenate([10.0**exponents, -(10.0**exponents)])
    action = np.zeros((len(values), codec.action_size))
    action[:, 30:46] = values[:, None]
    channels = channels_of(Scenario(**SMALL))[:1].expand(len(values), -1, -1, -1, -1)
    streams = codec.decode(torch.from_numpy(action).to(dtype), channels).streams
    power = (streams.abs() ** 2).sum(-1)
    np.testing.assert_allclose(power, np.full(power.shape, 0.2), rtol=1e-5)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("budget", [0.3, 1.0, 7.0])
def test_projection_is_exact_at_and_inside_the_budget(control: str, budget: float) -> None:
    scenario = scenario_of(control, "fixed", "all", "project", comm_power=budget)
    free = scenario_of(control, "fixed", "all", "cost", comm_power=budget)
    codec, unlimited = codec_of(scenario), codec_of(free)
    rng = np.random.default_rng(0)
    channels = channels_of(scenario)
    inside_seen = outside_seen = 0
    for scale in (0.02, 0.2, 0.4, 1.0):
        raw = rng.uniform(-1, 1, (BATCH, codec.action_size))
        action = torch.from_numpy(scale * (raw + 1) - 1 if control == "power" else scale * raw)
        asked, sent = unlimited.decode(action, channels), codec.decode(action, channels)
        power = np.sum(np.abs(asked.precoders.numpy()) ** 2, (-3, -2, -1))
        inside = power <= budget
        inside_seen += inside.sum()
        outside_seen += (~inside).sum()
        np.testing.assert_allclose(sent.precoders[inside], asked.precoders[inside], rtol=1e-12)
        limited = np.sum(np.abs(sent.precoders.numpy()) ** 2, (-3, -2, -1))
        np.testing.assert_allclose(limited[~inside], budget, rtol=1e-12)
    assert inside_seen > 3
    assert outside_seen > 3


def test_encode_needs_every_part() -> None:
    wanted = {
        name: torch.from_numpy(value)
        for name, value in transmitted(
            scenario_of("power", "learned", "contention", "cost")
        ).items()
    }
    for control, part in (("power", "powers"), ("amplitude", "precoders")):
        codec = codec_of(scenario_of(control, "learned", "contention", "cost"))
        real = {**wanted, "precoders": wanted["precoders"].real + 0j}
        assert codec.encode(**real).shape == (BATCH, codec.action_size)
        for missing in (part, "streams", "access"):
            with pytest.raises(ValueError, match=f"{missing} must be given"):
                codec.encode(**{**real, missing: None})


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("bad", [2.0, -1.1, np.nan, np.inf])
def test_encode_rejects_what_no_action_can_say(control: str, bad: float) -> None:
    scenario = scenario_of(control, "fixed", "all", "cost")
    codec = codec_of(scenario)
    wanted = transmitted(scenario)
    name = "powers" if control == "power" else "precoders"
    value = wanted[name].copy()
    value.flat[3] = bad
    with pytest.raises(ValueError, match=f"{name} must be finite and within the power budget"):
        codec.encode(**{name: torch.from_numpy(value)})


def test_amplitude_cannot_express_complex_precoders() -> None:
    scenario = scenario_of("amplitude", "fixed", "all", "cost")
    precoders = transmitted(scenario)["precoders"] * np.exp(0.01j)
    with pytest.raises(ValueError, match="real"):
        codec_of(scenario).encode(precoders=torch.from_numpy(precoders))


def test_fixed_radar_needs_its_streams() -> None:
    scenario = scenario_of("power", "fixed", "all", "project")
    codec = Codec(scenario, dtype=torch.float64)
    with pytest.raises(ValueError, match="best_streams"):
        codec.decode(torch.zeros(BATCH, 3), channels_of(scenario))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_the_most_negative_integer_is_outside_the_box(dtype: type[np.signedinteger[Any]]) -> None:
    lowest = np.full(3, np.iinfo(dtype).min, dtype)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"within \[-1, 1\]"):
        check_action(lowest, (3,))


def test_an_action_in_rows_of_different_lengths_is_named() -> None:
    with pytest.raises(ValueError, match=r"^action must be an array with rows of equal length: "):
        check_action([[0.5, 0.5], [0.5]], (2, 2))


def test_checked_action_keeps_values() -> None:
    values = np.array([-1.0, 1.0, 0.0, -0.0, 0.5, 1e-40], np.float64)
    checked = check_action(values, (6,))
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(checked, values.astype(np.float32))
    assert not np.shares_memory(checked, values)
    single = values.astype(np.float32)
    assert not np.shares_memory(check_action(single, (6,)), single)


def test_matrices_are_no_action_of_structured_control() -> None:
    codec = ISACSystem(Scenario(**SMALL, control="structured")).codec
    with pytest.raises(ValueError, match=r"control must be another.*got 'structured'"):
        codec.encode(precoders=torch.zeros(1, 1, 5, 3, dtype=torch.complex64))
