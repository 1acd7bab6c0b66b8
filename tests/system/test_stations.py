"""What a station sees of the whole, and what arrives of what another one says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isac_gym import Scenario
from isac_gym.system.stations import Exchange, isolate_station, view_from_stations


def draw_bits(rng: np.random.Generator, cells: int, blocks: int, bits: int) -> list[Tensor]:
    """Messages of every station, (blocks, J-1, bits) each."""
    shape = (cells, blocks, cells - 1, bits)
    return list(torch.from_numpy(rng.choice([-1.0, 1.0], shape).astype(np.float32)))


def place_of(station: int, seen_from: int, cells: int) -> int:
    """At which place a station is, counted onwards from another one."""
    place = 0
    while (seen_from + place) % cells != station:
        place += 1
    return place


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_a_station_sees_its_own_cell_first_and_then_those_that_follow(
    cells: int, lead: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    shape = (*lead, cells, cells, 2, 3)
    given = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    seen = view_from_stations(torch.from_numpy(given)).numpy()
    assert seen.shape == shape
    for station in range(cells):
        for cell in range(cells):
            place = place_of(cell, station, cells)
            np.testing.assert_array_equal(
                seen[..., station, place, :, :], given[..., station, cell, :, :]
            )


def test_a_view_passes_gradients_on() -> None:
    channels = torch.ones(3, 3, 1, 1, requires_grad=True)
    view_from_stations(channels)[1, 2].sum().backward()
    assert channels.grad is not None
    assert channels.grad.nonzero().tolist() == [[1, 0, 0, 0]]


def test_a_station_by_itself_has_its_own_targets_and_all_else_alike() -> None:
    targets = ((-40.0, 10.0), (0.0,), (-60.0, 30.0))
    together = Scenario(num_cells=3, target_angles_deg=targets, snr_db=7.0, num_users=4)
    for station in range(3):
        expected = Scenario(target_angles_deg=targets[station], snr_db=7.0, num_users=4)
        assert isolate_station(together, station) == expected


def test_stations_with_the_same_targets_are_alike() -> None:
    together = Scenario(num_cells=2, target_angles_deg=(-20.0, 20.0))
    assert isolate_station(together, 0) == isolate_station(together, 1)
    alone = Scenario(target_angles_deg=(-20.0, 20.0))
    assert isolate_station(together, 0) == isolate_station(alone, 0) == alone


@pytest.mark.parametrize("station", [-1, 3, 1.0, True, "0"])
def test_there_is_no_such_station(station: Any) -> None:
    with pytest.raises(ValueError, match="station must be"):
        isolate_station(Scenario(num_cells=3), station)


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5])
def test_every_message_arrives_where_it_was_sent(cells: int) -> None:
    """What a sender puts at the receiver's place, the receiver finds at the sender's place."""
    sent = draw_bits(np.random.default_rng(cells), cells, blocks=7, bits=6)
    before = [message.clone() for message in sent]
    received = Exchange(cells, 6).swap(sent)
    assert len(received) == cells
    pairs = [(a, b) for a in range(cells) for b in range(cells) if a != b]
    for sender, receiver in pairs:
        written = sent[sender][:, place_of(receiver, sender, cells) - 1]
        read = received[receiver][:, place_of(sender, receiver, cells) - 1]
        assert torch.equal(read, written), (sender, receiver)
    for message, same, heard in zip(sent, before, received, strict=True):
        assert torch.equal(message, same)
        assert heard.shape == (7, cells - 1, 6)


def test_real_numbers_arrive_as_they_are_and_keep_their_gradient() -> None:
    cells = 3
    sent = [
        torch.tensor([[[100.0 * s + (s + p) % cells] * 2 for p in (1, 2)]], requires_grad=True)
        for s in range(cells)
    ]
    exchange = Exchange(cells, None, flip_probability=1.0)
    received = exchange.swap(sent)
    for receiver in range(cells):
        for place in (1, 2):
            expected = 100.0 * ((receiver + place) % cells) + receiver
            assert received[receiver][0, place - 1].tolist() == [expected] * 2
    received[0][0, 0].sum().backward()
    assert [s.grad is not None and bool(s.grad.any()) for s in sent] == [False, True, False]


@pytest.mark.parametrize("bits", [0, 1, 5])
def test_each_link_counts_its_bits_in_each_block(bits: int) -> None:
    exchange = Exchange(3, bits)
    rng = np.random.default_rng(0)
    for blocks in (4, 1, 10):
        exchange.swap(draw_bits(rng, 3, blocks, bits))
    each = 15 * bits
    assert exchange.counts.tolist() == [[0, each, each], [each, 0, each], [each, each, 0]]
    assert exchange.blocks == 15


def test_a_real_number_counts_as_thirty_two_bits() -> None:
    exchange = Exchange(2, None)
    exchange.swap([torch.zeros(5, 1, 3), torch.ones(5, 1, 3)])
    assert exchange.counts.tolist() == [[0, 5 * 3 * 32], [5 * 3 * 32, 0]]


def test_a_single_station_talks_to_nobody() -> None:
    exchange = Exchange(1, 4)
    (received,) = exchange.swap([torch.zeros(2, 0, 4)])
    assert received.shape == (2, 0, 4)
    assert exchange.counts.tolist() == [[0]]


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_bits_are_inverted_with_the_probability_and_independently(probability: float) -> None:
    sent = draw_bits(np.random.default_rng(1), 3, blocks=4000, bits=2)
    received = Exchange(3, 2, flip_probability=probability, seed=3).swap(sent)
    straight = Exchange(3, 2).swap(sent)
    wrong = torch.stack([a != b for a, b in zip(received, straight, strict=True)]).double()
    assert torch.equal(torch.stack(received).abs(), torch.ones(3, 4000, 2, 2))
    # Each of the 12 bits of a block: mean and correlation within five standard errors.
    rows = wrong.movedim(1, 0).reshape(4000, 12).numpy()
    spread = (probability * (1 - probability)) ** 0.5
    np.testing.assert_allclose(rows.mean(0), probability, atol=5 * spread / 4000**0.5)
    correlation = np.corrcoef(rows.T) - np.eye(12)
    assert np.abs(correlation).max() < 5 / 4000**0.5


def test_certain_inversion_and_the_seed() -> None:
    sent = draw_bits(np.random.default_rng(1), 2, blocks=50, bits=3)
    inverted = Exchange(2, 3, flip_probability=1.0).swap(sent)
    assert torch.equal(inverted[0], -sent[1])
    runs = [Exchange(2, 3, flip_probability=0.3, seed=seed).swap(sent)[0] for seed in (5, 5, 6)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_missing_and_misshapen_messages() -> None:
    exchange = Exchange(3, 2)
    good = draw_bits(np.random.default_rng(0), 3, blocks=4, bits=2)
    with pytest.raises(ValueError, match="messages of 3 stations, got 2"):
        exchange.swap(good[:2])
    for bad in (good[0][:, :, :1], good[0][:, :1], good[0][:3], good[0][0], torch.ones(4, 2, 3)):
        with pytest.raises(ValueError, match=r"message of station 1 must have shape \(4, 2, 2\)"):
            exchange.swap([good[0], bad, good[2]])
    assert not exchange.counts.any()
    assert exchange.blocks == 0


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0, np.nan, np.inf])
def test_values_that_are_no_bits(value: float) -> None:
    exchange = Exchange(3, 2)
    sent = draw_bits(np.random.default_rng(0), 3, blocks=4, bits=2)
    sent[2][3, 1, 0] = value
    with pytest.raises(ValueError, match=r"message of station 2 must hold nothing but -1 and \+1"):
        exchange.swap(sent)
    assert not exchange.counts.any()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_cells": 0}, "num_cells"),
        ({"message_bits": -1}, "message_bits"),
        ({"message_bits": 1.5}, "message_bits"),
        ({"flip_probability": 1.1}, "flip_probability"),
        ({"flip_probability": np.nan}, "flip_probability"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_that_are_not_allowed(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        Exchange(**{"num_cells": 3, "message_bits": 2, **changes})
