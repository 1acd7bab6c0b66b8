"""Stations that learn together and act alone: what each may know, bits, phases, files."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import make, quick, same, weights
from small_stations import run_station
from torch import Tensor

from isac_gym import RayleighChannel
from isac_gym.agents import PRESETS, PrimalDual, TransferBeamforming, load_agent
from isac_gym.agents.distributed import DistributedPrimalDual, load_station
from isac_gym.channels.process import ChannelProcess
from isac_gym.distributed import DistributedPolicy
from isac_gym.learning import trainer
from isac_gym.learning.archive import read_archive, write_archive
from isac_gym.learning.config import DISTRIBUTED_PRESETS
from isac_gym.learning.network import Network
from isac_gym.learning.progress import TrainingProgress
from isac_gym.registry import make_agent
from isac_gym.system.stations import Exchange, view_from_stations

USERS, ANTENNAS, BITS = 2, 8, 5
ACTION = 2 * 4 * USERS + 2 * 4 * 4


def agent_of(cells: int = 3, **changes: Any) -> DistributedPrimalDual:
    scenario = {n: changes.pop(n) for n in ("control", "csi_error_variance") if n in changes}
    settings = {"architecture": "distributed-direct", "message_bits": BITS, **changes}
    made: DistributedPrimalDual = quick(
        make(num_cells=cells, **scenario), DistributedPrimalDual, **settings
    )
    return made


def draw(cells: int, seed: int, count: int = 4) -> Tensor:
    shape = (count, cells, cells, USERS, ANTENNAS)
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def observe(channels: Tensor) -> Tensor:
    flat = channels.flatten(1)
    return torch.cat([flat.real, flat.imag], -1)


# The paper's settings


def test_preset_paper_is_the_papers() -> None:
    paper, central = DISTRIBUTED_PRESETS["paper"].to_dict(), PRESETS["paper"].to_dict()
    assert paper.pop("architecture") == "distributed-direct"
    assert central.pop("architecture") == "direct"
    assert paper == central


def test_every_station_has_two_networks_of_its_own_of_2k_3k_2k() -> None:
    agent = DistributedPrimalDual(make(num_cells=3, num_users=3), "paper")
    hidden, inputs, bits = [6, 9, 6], 2 * 3 * ANTENNAS, 8
    found = {name: value for name, value in agent.network.named_parameters() if value.ndim == 2}
    for j in range(3):
        for part, sizes in (
            ("quantiser", [inputs, *hidden, bits]),
            ("optimiser", [inputs + 2 * bits, *hidden, 2 * 4 * 3 + 2 * 4 * 4]),
        ):
            for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
                weight = found.pop(f"parts.{j}.{part}.layers.{layer}.weight")
                assert tuple(weight.shape) == (after, before)
    assert not found
    first = [next(iter(part.parameters())) for part in agent.network.parts]
    assert not torch.equal(first[0], first[1])
    assert agent.bits_per_link == bits


@pytest.mark.parametrize(("control", "kind"), [("power", PrimalDual), ("beamforming", None)])
def test_one_station_alone_is_the_central_agent(control: str, kind: Any) -> None:
    env = make(control=control)
    own = quick(env, DistributedPrimalDual, iterations=4, architecture="distributed-direct")
    central = quick(env, kind or TransferBeamforming, iterations=4)
    observation = np.stack([env.reset(seed=seed)[0] for seed in range(3)])
    for _ in range(2):
        np.testing.assert_array_equal(own.predict(observation)[0], central.predict(observation)[0])
        own.learn(), central.learn()
    for name, value in central.multipliers.values.items():
        assert torch.equal(own.multipliers.values[name], value)


# What a station knows


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
@pytest.mark.parametrize("local_csi", ["own", "transmit"])
@pytest.mark.parametrize("bits", [0, BITS])
def test_the_parts_do_what_the_whole_network_does(cells: int, local_csi: str, bits: int) -> None:
    agent = agent_of(cells, local_csi=local_csi, message_bits=bits)
    observation = observe(draw(cells, 0, 7))
    assert not agent.network.training
    whole = agent.network(observation).detach().numpy()
    np.testing.assert_array_equal(agent.predict(observation.numpy())[0], whole)
    assert agent.exchange is not None
    expected = 7 * bits * (1 - np.eye(cells, dtype=int))
    np.testing.assert_array_equal(agent.exchange.counts, expected)


def layers_of(agent: DistributedPrimalDual, name: str) -> list[npt.NDArray[np.float64]]:
    held = {k: v.double().numpy() for k, v in agent.network.state_dict().items()}
    parts = ("weight", "bias")
    return [held[f"parts.{name}.layers.{layer}.{part}"] for layer in range(2) for part in parts]


def run_layers(layers: list[npt.NDArray[np.float64]], inputs: Any) -> npt.NDArray[np.float64]:
    hidden = np.maximum(layers[0] @ inputs + layers[1], 0.0)
    return np.tanh(layers[2] @ hidden + layers[3])


def test_messages_and_actions_by_hand() -> None:
    """In double precision, from H[station, cell, user, antenna] and the formulas alone."""
    agent = agent_of(3)
    H = draw(3, 1, 6)
    actions = agent.predict(observe(H).numpy())[0]
    for block, action in zip(H.numpy(), actions, strict=True):
        own = [
            np.concatenate([block[j, j].real.ravel(), block[j, j].imag.ravel()]) for j in range(3)
        ]
        values = [run_layers(layers_of(agent, f"{j}.quantiser"), own[j]) for j in range(3)]
        bits = [np.where(value >= 0, 1.0, -1.0) for value in values]
        for j in range(3):
            inputs = np.concatenate([own[j], bits[(j + 1) % 3], bits[(j + 2) % 3]])
            expected = run_layers(layers_of(agent, f"{j}.optimiser"), inputs)
            np.testing.assert_allclose(action[j * ACTION : (j + 1) * ACTION], expected, atol=1e-5)


@functools.cache
def twins(cells: int, station: int, local_csi: str) -> tuple[DistributedPrimalDual, ...]:
    """Two agents of which nothing but the weights of one station is the same."""
    first, second = (agent_of(cells, local_csi=local_csi, seed=seed) for seed in (1, 2))
    second.network.parts[station].load_state_dict(first.network.parts[station].state_dict())
    return first, second


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(2, 4), st.sampled_from(["own", "transmit"]), st.integers(0, 2**16))
def test_a_station_depends_on_its_channels_and_what_it_hears_alone(
    data: st.DataObject, cells: int, local_csi: str, seed: int
) -> None:
    station = data.draw(st.integers(0, cells - 1))
    first, second = twins(cells, station, local_csi)
    channels, others = draw(cells, seed), draw(cells, seed + 1)
    others[:, station, station] = channels[:, station, station]
    if local_csi == "transmit":
        others[:, station] = channels[:, station]
    bits = torch.randint(2, (4, cells - 1, BITS), generator=torch.Generator().manual_seed(seed))
    heard = 2.0 * bits - 1.0
    message, action = run_station(first, channels, station, heard)
    again, same_action = run_station(second, others, station, heard)
    assert torch.equal(message, again)
    assert torch.equal(action, same_action)
    assert torch.equal(message, message[:, :1].expand_as(message)), "all neighbours hear the same"


@pytest.mark.parametrize("local_csi", ["own", "transmit"])
def test_a_station_does_depend_on_its_channels_and_what_it_hears(local_csi: str) -> None:
    agent, _ = twins(3, 1, local_csi)
    channels, others = draw(3, 0, 200), draw(3, 1, 200)
    heard = torch.ones(200, 2, BITS)
    message, action = run_station(agent, channels, 1, heard)
    assert not torch.equal(run_station(agent, channels, 1, -heard)[1], action)
    own = channels.clone()
    own[:, 1, 1] = others[:, 1, 1]
    assert not torch.equal(run_station(agent, own, 1, heard)[0], message)
    assert not torch.equal(run_station(agent, own, 1, heard)[1], action)
    across = channels.clone()
    across[:, 1, 0] = others[:, 1, 0]
    is_known = local_csi == "transmit"
    assert torch.equal(run_station(agent, across, 1, heard)[1], action) != is_known


def test_bits_are_all_that_joins_the_stations_in_training_as_well() -> None:
    agent = agent_of(3)
    network = agent.network
    observation = observe(draw(3, 2)).requires_grad_()
    network.eval()
    network(observation)[:, :ACTION].sum().backward()
    gradient = agent.system.codec.channels(observation.grad.detach())
    assert bool(gradient[:, 0, 0].abs().min() > 0)
    gradient[:, 0, 0] = 0.0
    assert not bool(gradient.any()), "a sign has no gradient"
    network.zero_grad()
    network.train()
    network(observation)[:, :ACTION].sum().backward()
    reached = {name for name, value in network.named_parameters() if value.grad is not None}
    kept = ("parts.0.optimiser", "parts.1.quantiser", "parts.2.quantiser")
    moved = {n for n in reached if network.get_parameter(n).grad.any()}
    assert {name.rsplit(".layers", 1)[0] for name in moved} == set(kept)


def test_inverted_bits_are_heard_inverted() -> None:
    agent = agent_of(2)
    channels = draw(2, 3)
    views = view_from_stations(channels).unbind(1)
    agent.flip_probability = 1.0
    with torch.inference_mode():
        actions = agent.converse(channels)
        message = agent.stations[1].message(views[1])
        expected = agent.stations[0].act(views[0], (-message,))
    assert torch.equal(actions[:, :ACTION], expected)


def is_inverted(agent: DistributedPrimalDual, channels: Tensor) -> Tensor:
    """Which bits arrive inverted at the first station, (n, J-1, L)."""
    views = view_from_stations(channels).unbind(1)
    heard: list[Tensor] = []

    class Tapped(Exchange):
        def swap(self, messages: Any) -> tuple[Tensor, ...]:
            heard.append(super().swap(messages)[0])
            return super().swap(messages)

    with mock.patch("isac_gym.distributed.Exchange", Tapped), torch.inference_mode():
        agent.converse(channels)
        sent = [part.message(view) for part, view in zip(agent.stations, views, strict=True)]
    clear = Exchange(len(views), BITS).swap(sent)[0]
    return heard[0] != clear


def test_bits_are_inverted_at_random_block_by_block() -> None:
    """A tenth of the bits, and in each call others: five standard deviations at most beside it."""
    agent = agent_of(3)
    agent.flip_probability = 0.1
    found = torch.cat([is_inverted(agent, draw(3, seed, 1)) for seed in range(300)])
    error = math.sqrt(0.1 * 0.9 / found.numel())
    assert abs(float(found.double().mean()) - 0.1) < 5 * error
    by_bit = found.double().mean(0)
    assert float(by_bit.max()) < 0.1 + 5 * math.sqrt(0.09 / 300), "no bit more than the others"
    assert float(by_bit.min()) > 0.0
    agent.flip_probability = 0.1
    again = torch.cat([is_inverted(agent, draw(3, seed, 1)) for seed in range(300)])
    assert torch.equal(again, found), "setting the probability begins anew"


def test_which_bits_are_inverted_does_not_depend_on_threads() -> None:
    agent, threads = agent_of(3), torch.get_num_threads()
    channels = draw(3, 0, 200)
    actions = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            agent.flip_probability = 0.2
            actions.append(agent.converse(channels))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*actions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("probability", [-0.1, 1.5, math.nan, "0.1", True])
def test_a_probability_of_errors_that_is_none_is_refused_at_once(probability: Any) -> None:
    with pytest.raises(ValueError, match=r"flip_probability must be a number in \[0, 1\], got"):
        agent_of(2).flip_probability = probability


def cooperative(cells: int = 3, **changes: Any) -> DistributedPrimalDual:
    """A small agent whose weights serve messages of any length."""
    options = {"width": 8, "stages": ((6.0, 2),), "calibration_channels": 0, **changes}
    return DistributedPrimalDual(make(num_cells=cells), "tuned", **options)


@pytest.mark.parametrize("bits", [0, 1, 12, None])
def test_another_length_of_the_messages(bits: int | None, tmp_path: Path) -> None:
    """The same as an agent of that length with the same weights."""
    agent, expected = cooperative(message_bits=3), cooperative(message_bits=bits)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in agent.network.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    expected.network.load_state_dict(agent.network.state_dict())
    observation = observe(draw(3, 6)).numpy()
    before = agent.predict(observation)[0]
    agent.calibrated = torch.ones(3)
    agent.message_bits = bits
    assert agent.calibrated is None
    assert agent.message_bits == agent.bits_per_link == bits
    action = agent.predict(observation)[0]
    assert not np.array_equal(action, before)
    np.testing.assert_array_equal(action, expected.predict(observation)[0])
    assert agent.exchange is not None
    moved = agent.exchange.counts[0, 1] / len(observation)
    assert moved == (32 * 8 * 3 * USERS if bits is None else bits), "real ones are all states"
    agent.save(tmp_path / "agent.zip")
    loaded = DistributedPrimalDual.load(tmp_path / "agent.zip")
    assert loaded.message_bits == bits
    np.testing.assert_array_equal(loaded.predict(observation)[0], action)
    agent.save_station(1, tmp_path / "station.zip")
    assert load_station(tmp_path / "station.zip").message_bits == bits


def test_a_length_that_the_weights_do_not_serve() -> None:
    own, able = agent_of(3), cooperative(3)
    own.message_bits = BITS
    stations = own.stations
    for bits in (0, BITS - 1, BITS + 1):
        with pytest.raises(ValueError, match=rf"message_bits must be {BITS}, .*got {bits}"):
            own.message_bits = bits
    for bits in (-1, 2.5, True, 10**6):
        with pytest.raises(ValueError, match=rf"message_bits must be .*got {bits}"):
            able.message_bits = bits  # type: ignore[assignment]
    assert (own.message_bits, able.message_bits) == (BITS, 8)
    assert own.stations is stations


# Training


def test_every_station_has_multipliers_for_its_own_radar() -> None:
    """One step by hand: nothing is said, so the batch alone decides."""
    targets = ((-50.0, 10.0), (-10.0, 50.0))
    env = make(num_cells=2, target_angles_deg=targets)
    agent = quick(
        env,
        DistributedPrimalDual,
        architecture="distributed-direct",
        message_bits=0,
        transfer=False,
        seed=4,
        batch_size=6,
        dual_step_size=0.25,
    )
    process = ChannelProcess(RayleighChannel(), env.unwrapped.scenario, 6)
    process.start(np.random.default_rng(4))
    excess = []
    for H in process.channels:
        env.reset(seed=0, options={"channels": H})
        action, _ = agent.predict(observe(torch.from_numpy(H)[None])[0].numpy())
        info = env.step(action)[4]
        excess.append(info["constraint_sensing"] * 0.16)
    raised = agent.learn(1).multipliers.values["sensing"].numpy()
    np.testing.assert_allclose(raised, 0.25 * np.mean(excess, axis=0), rtol=1e-4)
    assert raised[0] != raised[1]
    agent.predict(env.reset(seed=0)[0])
    for part, value in zip(agent.stations, raised, strict=True):
        assert part.price == pytest.approx(value, rel=1e-5), "the paper's multiplier is of L_r"


@pytest.mark.parametrize("quantiser", ["stochastic", "annealed", "gumbel"])
@pytest.mark.parametrize("control", ["power", "beamforming"])
def test_an_interrupted_training_goes_on(tmp_path: Path, quantiser: str, control: str) -> None:
    made = functools.partial(
        agent_of, 2, quantiser=quantiser, control=control, csi_error_variance=0.1, iterations=12
    )
    whole = made().learn()
    torch.manual_seed(7)  # bits are drawn from the seed of the training alone

    def interrupt(progress: TrainingProgress) -> None:
        if progress.iteration == 9:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "training.zip"
    with pytest.raises(KeyboardInterrupt):
        made().learn(callback=interrupt, checkpoint=checkpoint, checkpoint_every=4)
    seen: list[int] = []
    resumed = made().learn(
        checkpoint=checkpoint,
        checkpoint_every=4,
        callback=lambda progress: seen.append(progress.iteration),
    )
    assert seen == [9, 10, 11, 12]
    assert same(resumed, whole)
    assert same(resumed.learn(2), whole.learn(2))
    assert not same(made(quantiser="stochastic", seed=1).learn(), whole)


def test_the_mode_and_the_progress_of_a_training() -> None:
    agent = agent_of(2, control="power")
    network: Any = agent.network
    modes: list[tuple[bool, float]] = []
    network.register_forward_pre_hook(
        lambda module, _: modes.append((module.training, module.quantiser.progress))
    )
    seen: list[bool] = []

    def note(progress: TrainingProgress) -> None:
        seen.append(network.training)

    agent.learn(4, callback=note)
    assert modes == [(True, 0.0), (True, 0.25), (True, 0.5), (True, 0.75)]
    assert seen == [False] * 4
    assert not network.training


def test_other_networks_draw_nothing_more() -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    network = quick(make()).network
    assert isinstance(network, Network)
    network.prepare_batch(rng, 0.5)
    assert rng.bit_generator.state == before


def test_two_phases() -> None:
    agent = agent_of(2, iterations=4, seed=3)
    source = agent_of(2, iterations=4, seed=3, control="power").learn()
    assert source.source is None
    assert not source.transfer
    fresh = weights(agent)
    agent.learn(3)
    assert agent.source is not None
    assert same(agent.source, source)
    own, theirs = weights(agent), weights(source)
    outputs = {
        f"parts.{j}.optimiser.layers.1.{part}" for j in (0, 1) for part in ("weight", "bias")
    }
    trained = {name for name, value in agent.network.named_parameters() if value.requires_grad}
    assert trained == outputs
    for name in (n for n in own if not n.startswith("dual") and n not in outputs):
        np.testing.assert_array_equal(own[name], theirs[name])
        assert name.endswith("bias") or not np.array_equal(own[name], fresh[name])
    taken = agent_of(2, iterations=4, seed=3, source=source)
    for name in outputs:
        held, given_rows = weights(taken)[name], theirs[name]
        assert (len(held), len(given_rows)) == (ACTION, USERS + 32)
        np.testing.assert_array_equal(held[-32:], given_rows[-32:])
        np.testing.assert_array_equal(held[:-32], fresh[name][:-32])
    assert same(taken.learn(3), agent)


def test_a_training_that_is_killed_in_its_first_phase_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = agent_of(2, iterations=4).learn()
    file, calls = tmp_path / "agent.zip", itertools.count()
    evaluate = trainer._evaluate

    def kill(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_evaluate", kill)
        with pytest.raises(KeyboardInterrupt):
            agent_of(2, iterations=4).learn(checkpoint=file, checkpoint_every=2)
    assert not file.exists(), "it was killed in the first phase"
    again = agent_of(2, iterations=4).learn(checkpoint=file, checkpoint_every=2)
    assert same(again, whole)


def test_without_a_transfer_all_layers_are_trained() -> None:
    agent = agent_of(2, transfer=False)
    before = weights(agent)
    after = weights(agent.learn(3))
    assert agent.source is None
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert set(before) - set(moved) <= {"dual power", "dual sensing"}


def test_the_rate_rises() -> None:
    changes = {"hidden_sizes": (64, 64), "batch_size": 32, "learning_rate": 3e-3}
    agent = agent_of(2, transfer=False, dual_rule="none", **changes)
    rates: list[float] = []

    def note(progress: TrainingProgress) -> None:
        rates.append(progress.sum_rate)

    agent.learn(150, callback=note)
    assert np.mean(rates[-20:]) > 1.5 * np.mean(rates[:20])


# Files


def test_save_and_load(tmp_path: Path) -> None:
    agent = agent_of(3, iterations=3).learn()
    agent.save(tmp_path / "agent.zip")
    loaded = DistributedPrimalDual.load(tmp_path / "agent.zip")
    assert same(agent, loaded)
    assert loaded.transfer
    observation = observe(draw(3, 4)).numpy()
    np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])
    assert type(load_agent(tmp_path / "agent.zip")) is DistributedPrimalDual
    with pytest.raises(ValueError, match="num_cells=3; the environment has 2"):
        DistributedPrimalDual.load(tmp_path / "agent.zip", make(num_cells=2))
    hidden = weights(loaded)["parts.0.optimiser.layers.0.weight"]
    further = weights(loaded.learn(2))["parts.0.optimiser.layers.0.weight"]
    np.testing.assert_array_equal(hidden, further)


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
@pytest.mark.parametrize("local_csi", ["own", "transmit"])
def test_stations_are_saved_and_act_alone(tmp_path: Path, cells: int, local_csi: str) -> None:
    agent = agent_of(cells, local_csi=local_csi, transfer=False).learn(2)
    channels = draw(cells, 5)
    expected = agent.predict(observe(channels).numpy())[0]
    files = [tmp_path / f"{j}.zip" for j in range(cells)]
    for j, path in enumerate(files):
        agent.save_station(j, path)
        _, tensors = read_archive(path, "Station")
        own = {f"weights.{n}": v for n, v in agent.network.parts[j].state_dict().items()}
        assert set(tensors) == set(own), "nothing of the others"
        assert all(torch.equal(tensors[name], value) for name, value in own.items())
    parts = [load_station(path) for path in files]
    assert [part.station for part in parts] == list(range(cells))
    assert [part.price for part in parts] == [part.price for part in agent.stations]
    views = view_from_stations(channels).unbind(1)
    received = Exchange(cells, BITS).swap(
        [part.message(view) for part, view in zip(parts, views, strict=True)]
    )
    actions = [
        part.act(view, (heard,)) for part, view, heard in zip(parts, views, received, strict=True)
    ]
    np.testing.assert_array_equal(torch.cat(actions, -1), expected)


@pytest.mark.parametrize(
    ("meta", "tensors", "message"),
    [
        ({"station": 3}, {}, "station must be in 0 … 2"),
        ({"price": -1.0}, {}, r"0\.0 - at `\$\.price`"),
        ({"architecture": "direct"}, {}, "must have parts"),
        ({"architecture": "other"}, {}, "architecture must be one of"),
        (
            {"options": {"message_bits": 10**9, "hidden_sizes": [16]}},
            {},
            "must have 1000000000 out",
        ),
        ({"options": {"hidden_sizes": [65000]}}, {}, "must have 65000 outputs"),
        ({"options": {"message_bits": BITS, "hidden_sizes": [16], "x": 1}}, {}, r"\['x'\]"),
        ({"scenario": {"num_cells": 2}}, {}, "damaged"),
        ({"scenario": {"num_users": 5000, "num_comm_antennas": 5000}}, {}, "<= 1024"),
        ({}, {"weights.quantiser.layers.0.bias": torch.full((16,), torch.nan)}, "finite"),
        ({}, {"weights.optimiser.layers.0.weight": None}, "damaged"),
    ],
)
def test_a_damaged_station_is_refused(
    tmp_path: Path, meta: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    path = tmp_path / "station.zip"
    agent_of(3).save_station(0, path)
    held, kept = read_archive(path, "Station")
    kept = {name: value for name, value in {**kept, **tensors}.items() if value is not None}
    write_archive(path, {**held, **meta}, kept)
    with pytest.raises(ValueError, match=rf"station\.zip: not a saved station.*{message}"):
        load_station(path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    agent = agent_of(2)
    agent.save(tmp_path / "agent.zip")
    agent.save_station(0, tmp_path / "station.zip")
    with pytest.raises(ValueError, match=r"kind must be 'Station', got 'DistributedPrimalDual'"):
        load_station(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=r"kind must be .*got 'Station'"):
        load_agent(tmp_path / "station.zip")
    with pytest.raises(FileNotFoundError, match="none"):
        load_station(tmp_path / "none.zip")
    with pytest.raises(ValueError, match=r"station must be in 0 … 1, got 2"):
        agent.save_station(2, tmp_path / "other.zip")


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "direct"}, r"architecture must be a network of stations.*'direct'"),
        ({"message_bits": -1}, r"message_bits must be .*-1"),
        ({"message_bits": 2.5}, r"message_bits must be .*2\.5"),
        ({"local_csi": "all"}, r"local_csi must be .*'all'"),
        ({"quantiser": "sign"}, r"quantiser must be .*'sign'"),
        ({"hidden_sizes": ()}, r"hidden_sizes must be"),
        ({"transfer": 1}, r"transfer must be .*1"),
        ({"control": "power", "transfer": True}, r"control must be 'beamforming'.*'power'"),
        ({"control": "power", "source": "a.zip"}, r"source must be None.*'a.zip'"),
    ],
)
def test_what_is_not_allowed_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent_of(2, **changes)


def test_a_source_of_other_stations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"source must be an agent for num_cells=3, got 2"):
        agent_of(3, source=agent_of(2, control="power"))
    with pytest.raises(ValueError, match="layers of the same sizes"):
        agent_of(2, source=agent_of(2, control="power", message_bits=4))


@pytest.mark.parametrize("shape", [(4, 2, BITS - 1), (4, 1, BITS), (3, 2, BITS)])
def test_messages_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    part = agent_of(3).stations[0]
    view = view_from_stations(draw(3, 0)).unbind(1)[0]
    allowed = r"received must be messages of shape \(4, 2, 5\) in round 0, got 'shape"
    with pytest.raises(ValueError, match=allowed):
        part.act(view, (torch.ones(shape),))
    for rounds in (0, 2):
        with pytest.raises(
            ValueError, match=f"received must be the messages of 1 round, .*{rounds}"
        ):
            part.act(view, (torch.ones(4, 2, BITS),) * rounds)


@pytest.mark.parametrize("name", ["distributed", "few-bits", "interference-pricing", "slnr"])
def test_a_station_alone_says_what_is_wrong_with_its_input(name: str) -> None:
    policy = agent_of(3) if name == "distributed" else make_agent(name, make(num_cells=3))
    assert isinstance(policy, DistributedPolicy)
    part, view = policy.stations[0], view_from_stations(draw(3, 0))[:, 0]
    for wrong, message in (
        (view[0], r"local_csi must be channels of shape \(n, 3, 2, 8\), got 'shape"),
        (view[:, :2], r"local_csi must be channels of shape \(n, 3, 2, 8\), got 'shape"),
        (view.real, r"local_csi must be complex, got torch.float32"),
        (view * math.nan, r"local_csi must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            part.act(wrong)
        with pytest.raises(ValueError, match=message):
            part.message(wrong)
    with pytest.raises(ValueError, match=r"received must be the messages of fewer than \d"):
        part.message(view, (torch.ones(4, 2, 0),) * part.rounds)
    if not part.message_bits:
        mute = (torch.ones(4, 2, 0),) * part.rounds
        assert torch.equal(part.act(view), part.act(view, mute)), "silence needs no messages"
        return
    good = [torch.ones(4, 2, part.message_bits) for _ in range(part.rounds)]
    part.act(view, good)
    for entry in (0.37, 0.0, math.nan):
        good[-1][0, 0, 0] = entry
        with pytest.raises(ValueError, match="received must hold nothing but -1 and \\+1"):
            part.act(view, good)
    with pytest.raises(ValueError, match=r"received must be messages of shape .* in round 0"):
        part.act(view, [message[:, :, 1:] for message in good])


def test_a_missing_station_is_noticed() -> None:
    agent = agent_of(3)
    agent.stations.pop()
    with pytest.raises(ValueError, match="stations must be the parts of 3 stations, got 2"):
        agent.converse(draw(3, 0))
    with pytest.raises(ValueError, match="station must be in 0 … 2, got 3"):
        agent.network.make_station(3)
