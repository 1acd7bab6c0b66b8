"""Stations that talk: planes of bits, what each knows, links to all users, the learned design."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import TOY, make, same
from small_stations import run_station
from torch import Tensor

from isac_gym import Scenario
from isac_gym.agents import PrimalDual
from isac_gym.agents.distributed import DistributedPrimalDual, load_station
from isac_gym.agents.networks.cooperative.model import StationModel
from isac_gym.agents.networks.cooperative.network import CooperativeNetwork, CooperativeStation
from isac_gym.agents.networks.cooperative.physics import Links, Stations, resolve_weighted
from isac_gym.agents.networks.cooperative.planes import (
    PLANES,
    count_bits,
    deal_bits,
    gather_bits,
    mask_planes,
)
from isac_gym.agents.networks.cooperative.quantiser import Quantiser, QuantiserKind
from isac_gym.learning.conditions import Conditions
from isac_gym.system.downlink import ISACSystem
from isac_gym.system.stations import Exchange, view_from_stations

QUICK: dict[str, Any] = {
    "width": 8,
    "stages": ((6.0, 2), (6.0, 1)),
    "talks": 2,
    "batch_size": 6,
    "iterations": 8,
    "calibration_channels": 0,
}
BITS = [0, 1, 3, 7, 12, None]


def agent_of(cells: int = 3, shaken: float = 0.3, **changes: Any) -> DistributedPrimalDual:
    """A small agent whose weights are not those of the plain descent."""
    scenario = {n: changes.pop(n) for n in (*TOY, "intercell_gain") if n in changes}
    env = make(num_cells=cells, **scenario)
    agent = DistributedPrimalDual(env, "tuned", **{**QUICK, **changes})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in agent.network.parameters():
            value += shaken * torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5
    return agent


def observations(agent: DistributedPrimalDual, count: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = agent.system.codec.observation_size
    return torch.randn(count, size, generator=generator) * 0.5**0.5


def expected(agent: DistributedPrimalDual, observation: Tensor) -> Tensor:
    """The actions of the network as one, without parts and exchange."""
    conditions = Conditions.of(agent.system, len(observation), agent.multiplier, agent.priced)
    with torch.inference_mode():
        result: Tensor = agent.network(observation, conditions)
    return result


# Planes


@pytest.mark.parametrize("users", [1, 2, 5])
@pytest.mark.parametrize("others", [0, 3, 10])
def test_dealing_is_the_inverse_of_gathering(users: int, others: int) -> None:
    most = count_bits(users, others)
    assert most == PLANES.count("o") * users + PLANES.count("t") * others
    own = torch.randn(4, users, PLANES.count("o"))
    other = torch.randn(4, others, PLANES.count("t"))
    whole = gather_bits(own, other, most)
    assert whole.shape == (4, most)
    back = deal_bits(whole, users, others)
    assert torch.equal(back[0], own)
    assert torch.equal(back[1], other)
    for bits in range(most + 1):
        short = gather_bits(own, other, bits)
        assert torch.equal(short, whole[:, :bits])
        masks = mask_planes(torch.tensor([bits]), users, others)
        dealt = deal_bits(short, users, others)
        assert torch.equal(dealt[0], own * masks[0])
        assert torch.equal(dealt[1], other * masks[1])
        assert float(sum(mask.sum() for mask in masks)) == bits


def test_the_first_plane_is_about_own_users_one_bit_each() -> None:
    own = torch.arange(10.0).reshape(5, 2)
    planes = torch.cat([own, torch.zeros(5, PLANES.count("o") - 2)], -1)
    message = gather_bits(planes, torch.zeros(4, PLANES.count("t")), 5)
    assert message.tolist() == own[:, 0].tolist()


# Links


def draw_links(seed: int = 0, users: int = 2, cells: int = 3) -> tuple[Links, ISACSystem]:
    system = ISACSystem(Scenario(**TOY).replace(num_users=users))
    generator = torch.Generator().manual_seed(seed)
    view = torch.randn(3, 1, cells, users, 8, dtype=torch.complex64, generator=generator)
    return Links.of(view, system, torch.tensor([0.1, 0.2, 0.4])), system


def test_weighted_inverse_is_the_inverse() -> None:
    generator = torch.Generator().manual_seed(1)
    for users in (1, 4, 9):
        channels = torch.randn(2, 1, users, 4, dtype=torch.complex128, generator=generator)
        weights = torch.rand(2, 1, users, dtype=torch.float64, generator=generator)
        direct = torch.eye(4, dtype=torch.complex128).repeat(2, 1, 1, 1)
        for k in range(users):
            row = channels[..., k, :]
            direct = direct + weights[..., k, None, None] * (
                row.conj().unsqueeze(-1) * row.unsqueeze(-2)
            )
        product = resolve_weighted(channels, weights) @ direct
        assert torch.allclose(product, torch.eye(4, dtype=torch.complex128), atol=1e-10)


def test_beams_of_equal_weights_are_those_of_regularised_zero_forcing() -> None:
    links, _ = draw_links()
    beams = links.steer(torch.full((3, 1, 6), 0.7))
    channels = links.comm[:, 0].numpy().astype(np.complex128)
    for block in range(3):
        matrix = np.eye(4) + 0.7 * channels[block].conj().T @ channels[block]
        direct = np.linalg.solve(matrix, channels[block, :2].conj().T)
        direct /= np.linalg.norm(direct, axis=0)
        assert np.allclose(beams[block, 0].numpy(), direct, atol=1e-5)


def test_beams_avoid_a_user_whose_weight_is_large() -> None:
    links, _ = draw_links()
    weights = torch.full((3, 1, 6), 0.1)
    before = (links.comm[..., 4:5, :] @ links.steer(weights)).abs()
    weights[..., 4] = 1e4
    after = (links.comm[..., 4:5, :] @ links.steer(weights)).abs()
    assert float(after.max()) < 0.01 * float(before.max())


def test_slopes_are_what_a_watt_of_interference_costs_in_rate() -> None:
    links, _ = draw_links()
    generator = torch.Generator().manual_seed(2)
    power, dual = torch.randn(2, 3, 1, 2, generator=generator)
    noise = 0.2 + torch.rand(3, 1, 2, generator=generator)
    slopes = links.slopes(power, dual, noise)
    # The rate by hand: beams of regularised zero forcing with the weights λ/σ², noise apart.
    channels = links.comm[..., :2, :].to(torch.complex128)
    shares = torch.softmax(dual.double(), -1) / noise.double()
    system = channels.mH @ (shares.unsqueeze(-1) * channels)
    beams = torch.linalg.solve(torch.eye(4, dtype=torch.complex128) + system, channels.mH)
    beams = beams / torch.linalg.vector_norm(beams, dim=-2, keepdim=True)
    received = (channels @ beams).abs().square() * torch.softmax(power.double(), -1).unsqueeze(-2)
    signal = received.diagonal(dim1=-2, dim2=-1)
    others = received.sum(-1) - signal
    step = 1e-6

    def rate(level: Tensor) -> Tensor:
        return torch.log2(1.0 + signal / (others + level))

    wanted = (rate(noise.double() - step) - rate(noise.double() + step)) / (2 * step)
    assert torch.allclose(slopes.double(), wanted, rtol=1e-3)


def test_features_are_finite_for_silent_channels() -> None:
    system = ISACSystem(Scenario(**TOY))
    links = Links.of(torch.zeros(1, 1, 2, 2, 8, dtype=torch.complex64), system, torch.ones(1))
    parts = [
        links.describe_edges(),
        *links.describe_users(torch.ones(1, 1), 0.2, torch.zeros(1, 1, 4), None),
        links.steer(torch.ones(1, 1, 4)),
    ]
    assert all(
        bool(torch.isfinite(torch.view_as_real(p) if p.is_complex() else p).all()) for p in parts
    )


# The network as one, and as parts


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("cells", [1, 2, 3])
def test_the_parts_do_what_the_network_does(bits: int | None, cells: int) -> None:
    agent = agent_of(cells, message_bits=bits)
    observation = observations(agent)
    action, _ = agent.predict(observation.numpy(), deterministic=True)
    assert np.allclose(action, expected(agent, observation).numpy(), atol=2e-4)
    assert agent.exchange is not None
    if bits is not None:
        assert (agent.exchange.counts == 5 * bits * (1 - np.eye(cells, dtype=int))).all()


@pytest.mark.parametrize("bits", [0, 4, None])
@settings(deadline=None, max_examples=8)
@given(station=st.integers(0, 2), seed=st.integers(0, 1000))
def test_a_station_depends_on_its_channels_and_on_what_arrived_alone(
    bits: int | None, station: int, seed: int
) -> None:
    """With what it hears fixed, other channels of the other stations change nothing."""
    agent = agent_of(message_bits=bits)
    agent.predict(observations(agent).numpy())
    channels, others = (
        agent.system.codec.channels(observations(agent, 4, seed + k)) for k in (0, 1)
    )
    others[:, station] = channels[:, station]
    width = agent.stations[0].message_numbers if bits is None else bits
    heard = torch.randn(4, 2, width, generator=torch.Generator().manual_seed(seed))
    if bits is not None:
        heard = Quantiser.decide(heard)
    message, action = run_station(agent, channels, station, heard)
    same_message, same_action = run_station(agent, others, station, heard)
    assert torch.equal(message, same_message)
    assert torch.equal(action, same_action)
    assert torch.equal(message, message[:, :1].expand_as(message)), "all neighbours hear the same"


def test_memory_changes_nothing_but_time() -> None:
    agent = agent_of(message_bits=6)
    agent.predict(observations(agent).numpy())
    view = view_from_stations(agent.system.codec.channels(observations(agent))).unbind(1)
    with torch.inference_mode():
        memories: list[dict[str, Any]] = [{}, {}, {}]
        said = [
            part.message(seen, (), memory)
            for part, seen, memory in zip(agent.stations, view, memories, strict=True)
        ]
        for station, heard in enumerate(Exchange(3, 6).swap(said)):
            part = agent.stations[station]
            kept = part.act(view[station], (heard,), memories[station])
            assert torch.equal(kept, part.act(view[station], (heard,)))


def test_what_arrives_matters_where_there_are_bits_and_nowhere_else() -> None:
    for bits, differs in ((0, False), (6, True)):
        agent = agent_of(message_bits=bits)
        agent.predict(observations(agent).numpy())
        view = view_from_stations(agent.system.codec.channels(observations(agent)))[:, 0]
        with torch.inference_mode():
            actions = [
                agent.stations[0].act(view, (sign * torch.ones(5, 2, bits),)) for sign in (1, -1)
            ]
        assert torch.equal(*actions) is not differs


def test_users_in_another_order_have_the_same_beams_in_that_order() -> None:
    agent = agent_of(2, message_bits=None)
    codec = agent.system.codec
    channels = codec.channels(observations(agent))
    swapped = channels.clone()
    swapped[:, :, 1] = channels[:, :, 1].flip(2)

    def transmit(given: Tensor) -> Any:
        flat = given.flatten(1)
        action = agent.predict(torch.cat([flat.real, flat.imag], -1).numpy())[0]
        return codec.decode(torch.from_numpy(action), given)

    straight, turned = transmit(channels), transmit(swapped)
    assert torch.allclose(straight.precoders[:, 0], turned.precoders[:, 0], atol=1e-4)
    assert torch.allclose(straight.precoders[:, 1].flip(-1), turned.precoders[:, 1], atol=1e-4)
    assert torch.allclose(straight.streams, turned.streams, atol=1e-4)


def test_stations_in_another_order_act_the_same_in_that_order() -> None:
    agent = agent_of(3, message_bits=8)
    channels = agent.system.codec.channels(observations(agent))
    turned = channels.roll((1, 1), (1, 2))
    with torch.inference_mode():
        straight = agent.converse(channels).unflatten(-1, (3, -1))
        moved = agent.converse(turned).unflatten(-1, (3, -1))
    assert torch.allclose(straight.roll(1, 1), moved, atol=1e-4)


def test_one_set_of_weights_serves_other_numbers_of_stations_users_and_antennas(
    tmp_path: Path,
) -> None:
    agent = agent_of(3, message_bits=4)
    agent.save(tmp_path / "agent.zip")
    for cells, users, antennas in itertools.product((1, 2, 4), (2, 3), (4, 5)):
        env = make(
            num_cells=cells,
            num_users=users,
            num_comm_antennas=antennas,
            sensing_threshold=0.4,
        )
        loaded = DistributedPrimalDual.load(tmp_path / "agent.zip", env)
        action, _ = loaded.predict(env.reset(seed=0)[0])
        assert env.action_space.contains(action)


def test_a_saved_station_acts_as_it_did(tmp_path: Path) -> None:
    agent = agent_of(3, message_bits=7)
    action, _ = agent.predict(observations(agent).numpy())
    view = view_from_stations(agent.system.codec.channels(observations(agent))).unbind(1)
    parts = []
    for station in range(3):
        agent.save_station(station, tmp_path / f"{station}.zip")
        parts.append(load_station(tmp_path / f"{station}.zip"))
    assert all(isinstance(part, CooperativeStation) for part in parts)
    with torch.inference_mode():
        said = [part.message(seen) for part, seen in zip(parts, view, strict=True)]
        heard = Exchange(3, 7).swap(said)
        acted = [
            part.act(seen, (message,))
            for part, seen, message in zip(parts, view, heard, strict=True)
        ]
    assert torch.equal(torch.cat(acted, -1), torch.from_numpy(action))


# Training


def test_every_weight_is_reached_by_the_gradient() -> None:
    agent = agent_of(3, shaken=0.1, message_bits=None, train_bits=(26, None))
    loss = agent._make_loss()
    network = agent.network
    network.prepare_batch(np.random.default_rng(0), 0.0)
    network.train()
    loss.evaluate(network, np.random.default_rng(1)).loss.backward()
    silent = [
        name
        for name, value in network.named_parameters()
        if value.grad is None or not bool(value.grad.abs().sum() > 0)
    ]
    assert silent == []


@pytest.mark.parametrize("quantiser", get_args(QuantiserKind))
def test_a_training_goes_on_where_it_was_killed(tmp_path: Path, quantiser: str) -> None:
    options = {
        "train_bits": (0, 5, None),
        "quantiser": quantiser,
        "gain_range": (0.01, 1.0),
        "more_cells": (1, 3),
    }
    whole = agent_of(2, **options, price_spread=2.0).learn()

    killed = agent_of(2, **options, price_spread=2.0)
    file = tmp_path / "half.zip"
    with pytest.raises(KeyboardInterrupt):
        killed.learn(callback=_interrupt_at(5), checkpoint=file, checkpoint_every=2)
    again = agent_of(2, **options, price_spread=2.0).learn(checkpoint=file, checkpoint_every=2)
    assert same(whole, again)


def test_another_length_is_what_a_further_training_is_for(tmp_path: Path) -> None:
    agent = agent_of(2, message_bits=3)
    agent.message_bits = 7
    agent.save(tmp_path / "agent.zip")
    again = DistributedPrimalDual.load(tmp_path / "agent.zip")
    assert same(agent, again)
    assert same(agent.learn(2), again.learn(2))


def test_ranges_that_are_not_possible_are_named() -> None:
    apart = make(num_cells=2, layout="line")
    agent = DistributedPrimalDual(apart, "tuned", **QUICK, gain_range=(0.1, 1.0))
    with pytest.raises(ValueError, match=r"gain_range must be None unless layout is 'uniform'"):
        agent.learn(1)
    alone = agent_of(2, gain_range=(0.1, 1.0), intercell_gain=0.0)
    with pytest.raises(ValueError, match=r"gain_range must be None .* intercell_gain 0, got"):
        alone.learn(1)
    with pytest.raises(ValueError, match=r"more_cells must be \(\) for a network .*'direct', got"):
        PrimalDual(make(num_cells=2), "paper", more_cells=(3,)).learn(1)


def _interrupt_at(iteration: int) -> Any:
    def callback(progress: Any) -> bool:
        if progress.iteration == iteration:
            raise KeyboardInterrupt
        return True

    return callback


def test_training_raises_the_lagrangian_of_stations_that_disturb_each_other() -> None:
    agent = agent_of(2, shaken=0.0, iterations=60, learning_rate=3e-3, intercell_gain=0.5)
    seen: list[float] = []
    agent.learn(callback=lambda progress: seen.append(progress.loss) or True)
    assert np.mean(seen[-15:]) < np.mean(seen[:15])


def test_with_full_csi_every_station_reacts_to_channels_that_it_does_not_see() -> None:
    env = make(num_cells=3)
    agent = PrimalDual(env, "tuned", architecture="cooperative", **{**QUICK, "full_csi": True})
    first = agent.system.codec.channels(torch.randn(2, agent.system.codec.observation_size))
    second = first.clone()
    second[:, 2, 2] *= 1.5

    def act(channels: Tensor) -> Any:
        flat = channels.flatten(1)
        action = agent.predict(torch.cat([flat.real, flat.imag], -1).numpy())[0]
        return action.reshape(2, 3, -1)

    assert not np.allclose(act(first)[:, 0], act(second)[:, 0], atol=1e-5)
    agent.learn(2)
    with pytest.raises(ValueError, match="full_csi must be False for parts"):
        DistributedPrimalDual(env, "tuned", **{**QUICK, "full_csi": True})


# Errors


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"message_bits": -1}, "message_bits"),
        ({"message_bits": 1000}, "message_bits"),
        ({"message_bits": 2.5}, "message_bits"),
        ({"train_bits": (4, -3)}, "train_bits"),
        ({"train_bits": ()}, "train_bits must be None or a non-empty sequence"),
        ({"train_bits": 4}, "train_bits must be None or a non-empty sequence"),
        ({"local_csi": "own"}, "local_csi must be one of 'transmit', got 'own'"),
        ({"talks": -1}, "talks"),
        ({"width": 1}, "width"),
        ({"stages": ()}, "stages"),
        ({"quantiser": "dithered"}, "kind"),
        ({"full_csi": 1}, "full_csi"),
        ({"gain_range": (0.5, 0.1)}, "gain_range"),
        ({"price_spread": 0.5}, "price_spread"),
        ({"more_cells": (0,)}, "more_cells"),
        ({"more_cells": "3"}, "more_cells"),
    ],
)
def test_what_is_not_allowed_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DistributedPrimalDual(make(num_cells=2), "tuned", **{**QUICK, **options})


def test_a_message_of_another_length_is_an_error() -> None:
    agent = agent_of(3, message_bits=4)
    agent.predict(observations(agent).numpy())
    view = view_from_stations(agent.system.codec.channels(observations(agent)))[:, 0]
    for heard in ((), (torch.ones(5, 2, 3),), (torch.ones(5, 1, 4),), (torch.ones(5, 2, 4),) * 2):
        with pytest.raises(ValueError, match="received must be"):
            agent.stations[0].act(view, heard)
    agent.message_bits = None
    with pytest.raises(ValueError, match=r"received must be messages of shape \(5, 2, "):
        agent.stations[0].act(view, (torch.ones(5, 2, 4),))


def test_the_network_says_which_control_it_needs() -> None:
    system = ISACSystem(Scenario(**TOY, control="power", num_cells=2))
    with pytest.raises(ValueError, match="control must be 'beamforming'"):
        CooperativeNetwork(system, torch.Generator())


def test_a_model_starts_as_a_descent_that_uses_nearly_all_of_its_power() -> None:
    system = ISACSystem(Scenario(**TOY, num_cells=2))
    model = StationModel(torch.Generator().manual_seed(0), 8, (2,), 1)
    view = torch.randn(4, 2, 2, 2, 8, dtype=torch.complex64)
    stations = Stations(system, [6.0])
    with torch.no_grad():
        draft = model.draft(view, torch.full((4, 2), 100.0), torch.full((4,), 0.1), stations)
        precoders, streams = model.design(draft, stations, model.talk(draft.own, draft.other))
    power = precoders.abs().square().sum((-2, -1))
    assert bool((power < 1.0).all())
    assert bool((power > 0.95).all())
    assert math.isclose(float(streams.abs().square().sum()), 4 * 2 * 0.8, rel_tol=1e-4)


@pytest.mark.parametrize("head", ["burdens", "settings", "pace"])
def test_a_head_that_has_left_its_bounds_is_led_back(head: str) -> None:
    """Where all of its outputs are beyond them, a plain clamp would have no gradient."""
    agent = agent_of()
    model = agent.network.model
    assert isinstance(model, StationModel)
    layer = getattr(model, head)[0]
    observation = observations(agent, 8)
    conditions = Conditions.of(agent.system, len(observation), agent.multiplier, agent.priced)
    H = agent.system.codec.channels(observation)
    moved = []
    for far in (-60.0, 60.0):
        with torch.no_grad():
            layer.bias.fill_(far)
        agent.network.zero_grad()
        outcome = agent.system.transmit(H, agent.network(observation, conditions))
        (outcome.sum_rate - 5.0 * outcome.sensing.total.sum(-1)).sum().backward()
        moved.append(layer.bias.grad)
    # Of what is set for own users, logits of powers have no bounds.
    bounded = [gradient[2:] if head == "settings" else gradient for gradient in moved]
    assert any(bool(gradient.any()) for gradient in bounded)
    for far, gradient in zip((-60.0, 60.0), bounded, strict=True):
        assert (gradient * far >= 0.0).all()
