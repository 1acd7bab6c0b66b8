"""Judging one agent: rates, losses and feasibility by the formulas, and the time that it takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import pytest
import small_network
import torch
from direct_model import SMALL
from scipy import special, stats
from simple_agents import Constant, Hashing
from torch import Tensor

from isac_gym import RayleighChannel
from isac_gym.baselines import MRT
from isac_gym.baselines.few_bits import FewBits
from isac_gym.baselines.pricing import InterferencePricing
from isac_gym.distributed import DistributedPolicy, Memory, Received, StationPolicy
from isac_gym.evaluation import (
    calling,
    compare,
    evaluate,
    evaluation_set,
    judging,
)
from isac_gym.evaluation.statistics import mean_interval
from isac_gym.system.stations import Exchange


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


# What is measured


def test_mean_rate_agrees_with_the_ergodic_capacity() -> None:
    """One user, MRT, next to no radar: E log2(1 + ρ‖g‖²) in exponential integrals."""
    antennas, snr = 4, 10.0
    env = make(num_users=1, num_comm_antennas=antennas, radar_power=1e-7, sensing_threshold=1.0)
    closed = math.exp(1 / snr) * sum(special.expn(k, 1 / snr) for k in range(1, antennas + 1))
    closed /= math.log(2)
    result = compare({"mrt": MRT(env)}, env, channels=4000, seed=1)["mrt"]
    error = result.sum_rates.std(ddof=1) / np.sqrt(4000)
    assert abs(result.spectral_efficiency - closed) < 4 * error
    assert error < 0.02

    covered = 0
    for seed in range(120):
        short = evaluate(
            MRT(env), env, evaluation_set(env.unwrapped.scenario, RayleighChannel(), 25, 100 + seed)
        )
        covered += short.confidence_low <= closed <= short.confidence_high
    # 120 draws of a binomial with 0.95, four standard deviations down; all 120 would be too wide.
    assert 104 <= covered < 120


@pytest.mark.parametrize(
    "changes",
    [
        {"power_limit": "cost", "control": "power"},
        {"scheduling": "contention", "csi_error_variance": 0.2},
        {"num_cells": 2, "power_limit": "cost", "control": "amplitude"},
        {"doppler": 0.1, "episode_length": 3, "sensing_threshold": 0.22},
    ],
    ids=["power", "contention", "cells", "doppler"],
)
def test_every_entry_agrees_with_the_formulas(changes: dict[str, Any]) -> None:
    env = make(**changes)
    scenario = env.unwrapped.scenario
    agent = Hashing(env.action_space.shape[0])
    blocks = evaluation_set(scenario, env.unwrapped.channel_model, 60, 5)
    result = evaluate(agent, env, blocks, name="hashing")

    rates, losses, costs, feasible, patterns = [], [], [], [], []
    powers, kept = [], []
    for episode, block in np.ndindex(*blocks.channels.shape[:2]):
        true, seen = (part[episode, block] for part in (blocks.channels, blocks.estimates))
        observation = np.concatenate([seen.real.ravel(), seen.imag.ravel()])
        action = agent.predict(observation)[0].astype(np.float32)
        precoders, covariances, access = direct_model.decode(scenario, action, seen)
        assert covariances is not None
        paid = direct_model.earned(
            scenario, true.astype(np.complex128), precoders, covariances, access
        )
        rates.append(paid["sum_rate"])
        losses.append(paid["beampattern_error"] + paid["cross_correlation"])
        costs.append(paid["cost"])
        worst = max(np.max(v) for name, v in paid.items() if name.startswith("constraint"))
        assert abs(worst - 1e-4) > 1e-5, "too close to the tolerance to tell"
        feasible.append(worst <= 1e-4)
        kept.append(np.max(paid["constraint_sensing"]) <= 1e-4)
        powers.append(paid["comm_power"])
        patterns.append(
            [
                direct_model.reference.beampattern(R, direct_model.reference.GRID, 0.5)
                for R in covariances
            ]
        )
    shape = blocks.channels.shape[:2]
    np.testing.assert_allclose(result.sum_rates, np.reshape(rates, shape), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        result.constraints["sensing"].values,
        np.reshape(losses, (*shape, scenario.num_cells)),
        rtol=1e-4,
    )
    assert result.name == "hashing"
    assert result.spectral_efficiency == pytest.approx(np.mean(rates), rel=1e-4)
    sensing = result.constraints["sensing"]
    assert sensing.mean == pytest.approx(np.mean(losses), rel=1e-4)
    assert sensing.p95 == pytest.approx(np.percentile(losses, 95), rel=1e-4)
    assert sensing.feasible_share == pytest.approx(np.mean(kept))
    assert result.constraints["power"].mean == pytest.approx(np.mean(powers), rel=1e-4)
    assert result.feasible_share == pytest.approx(np.mean(feasible))
    assert result.mean_cost == pytest.approx(np.mean(costs), rel=1e-4)
    np.testing.assert_allclose(result.beampattern, np.mean(patterns, 0), rtol=1e-3, atol=1e-5)
    assert math.isnan(result.percent_of_reference)
    assert 0 < result.seconds_single < 1
    assert 0 < result.seconds_batched < 1

    # Episodes, not blocks, are independent: the interval is that of the episodes' means.
    means = np.reshape(rates, shape).mean(1)
    half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    assert result.confidence_low == pytest.approx(means.mean() - half, rel=1e-3, abs=1e-4)
    assert result.confidence_high == pytest.approx(means.mean() + half, rel=1e-3, abs=1e-4)
    rng = np.random.default_rng(0)
    resampled = rng.choice(means, (4000, len(means))).mean(1)
    width = np.diff(np.quantile(resampled, [0.025, 0.975]))[0]
    assert result.confidence_high - result.confidence_low == pytest.approx(width, rel=0.2)


def test_feasible_share_is_neither_always_none_nor_all() -> None:
    env = make(sensing_threshold=0.22, doppler=0.1, episode_length=3)
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, 60, 5)
    share = evaluate(Hashing(env.action_space.shape[0]), env, blocks).feasible_share
    assert 0 < share < 1


def test_a_single_block_has_no_interval() -> None:
    env = make()
    result = compare({"mrt": MRT(env)}, env, channels=1, seed=0)["mrt"]
    assert (result.confidence_low, result.confidence_high) == (-math.inf, math.inf)


def test_equal_values_have_an_interval_of_no_width() -> None:
    env = make(control="power", radar="fixed")
    result = compare({"silent": Constant(np.full(3, -1.0))}, env, channels=9)["silent"]
    assert result.spectral_efficiency == result.confidence_low == result.confidence_high == 0.0


def test_more_blocks_than_one_chunk() -> None:
    env = make()
    blocks = evaluation_set(env.unwrapped.scenario, RayleighChannel(), 1100, 0)
    whole = evaluate(MRT(env), env, blocks)
    assert whole.sum_rates.shape == (1100, 1)
    tail = dataclasses.replace(
        blocks, channels=blocks.channels[1020:], estimates=blocks.estimates[1020:]
    )
    np.testing.assert_allclose(evaluate(MRT(env), env, tail).sum_rates, whole.sum_rates[1020:])
    agent = Hashing(env.action_space.shape[0])
    result = evaluate(agent, env, blocks)
    assert result.beampattern.mean() == pytest.approx(SMALL["radar_power"] / 4, rel=0.2)


@pytest.mark.parametrize("count", [2, 3, 10, 400])
def test_the_interval_is_that_of_the_t_test(count: int) -> None:
    values = np.random.default_rng(count).exponential(3.0, count)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_the_interval_of_equal_values_and_of_a_single_one() -> None:
    assert mean_interval(np.array([3.0])) == (-math.inf, math.inf)
    assert mean_interval(np.full(7, 2.5)) == (2.5, 2.5)
    assert mean_interval(np.full(7, 0.1)) == pytest.approx((0.1, 0.1), abs=1e-12)


# What stations tell each other


class Chatty(StationPolicy):
    """A station that says whatever its channels' signs are, and always does the same."""

    def __init__(self, scenario: Any, station: int, bits: int | None, rounds: int) -> None:
        super().__init__(scenario, station)
        self.message_bits, self.rounds = bits, rounds
        self.message_numbers = 7

    def _compose_message(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        width = self.message_numbers if self.message_bits is None else self.message_bits
        said = local_csi.real[:, 1:, 0, :width]
        return said if self.message_bits is None else torch.where(said > 0, 1.0, -1.0)

    def _choose_action(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        return local_csi.real.new_zeros(len(local_csi), self.system.codec.action_size)


class Gossip(DistributedPolicy):
    """Stations that talk to no end; what it says of itself is wrong."""

    bits_per_link = 1_000_000

    def __init__(self, env: Any, bits: int | None, rounds: int) -> None:
        super().__init__(env)
        cells = range(self.scenario.num_cells)
        self.stations = [Chatty(self.scenario, station, bits, rounds) for station in cells]


@pytest.mark.parametrize("changes", [{}, {"doppler": 0.05, "episode_length": 4}], ids=["1", "4"])
@pytest.mark.parametrize(("bits", "rounds"), [(4, 1), (3, 2), (0, 3), (None, 2)])
def test_bits_are_those_that_were_moved_and_not_those_that_are_declared(
    bits: int | None, rounds: int, changes: dict[str, Any]
) -> None:
    env = small_network.make(**changes)
    agent = Gossip(env, bits, rounds)
    found = compare({"gossip": agent}, env, channels=10)["gossip"]
    assert found.bits_per_link == (32 * 7 if bits is None else bits) * rounds
    assert found.row()["bits_per_link"] == found.bits_per_link
    assert isinstance(found.bits_per_link, int)


def test_bits_of_designs_that_talk() -> None:
    env = small_network.make()
    agents = {
        "few": FewBits(env, bits=2, iterations=2),
        "pricing": InterferencePricing(env, bits=2, rounds=3, iterations=2),
        "exact": InterferencePricing(env, bits=None, rounds=2, iterations=2),
    }
    table = compare(agents, env, channels=3)
    # K = 3 users; a price and a power for each of them in every round.
    expected = {"few": 3 * 2, "pricing": 2 * 3 * 2 * 3, "exact": 2 * 3 * 32 * 2}
    assert {name: table[name].bits_per_link for name in agents} == expected
    for bits in expected.values():
        assert f" {bits} " in str(table)


class Sharing(Constant):
    """Moves messages by one exchange that it keeps, of another length in every call."""

    def __init__(self, action: Any, exchange: Exchange) -> None:
        super().__init__(action)
        self.exchange = exchange

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.exchange.message_bits = bits = 1 + (self.exchange.message_bits or 0)
        count = len(np.atleast_2d(observation))
        self.exchange.swap([torch.ones(count, 2, bits)] * 3)
        return super().predict(observation, *args, **kwargs)


def test_bits_that_were_moved_before_or_to_measure_times_are_not_counted() -> None:
    env = small_network.make()
    size, blocks = env.action_space.shape[0], 1100
    exchange = Exchange(3, 5)
    exchange.swap([torch.ones(9, 2, 5)] * 3)
    found = evaluate(
        Sharing(np.zeros(size), exchange),
        env,
        evaluation_set(env.unwrapped.scenario, RayleighChannel(), blocks, 0),
    )
    # A call of 1024 blocks with six bits, one of the other 76 with seven.
    assert found.bits_per_link == pytest.approx((1024 * 6 + 76 * 7) / 1100, rel=1e-12)


def test_without_an_exchange_bits_are_what_an_agent_says() -> None:
    class Telling(Constant):
        bits_per_link = 24
        exchange = None

    env = small_network.make()
    silent = np.zeros(env.action_space.shape, np.float32)
    agents = {"telling": Telling(silent), "central": Constant(silent)}
    table = compare(agents, env, channels=4)
    assert table["telling"].bits_per_link == 24
    assert table["central"].bits_per_link is None


# How long an agent takes


class Clock:
    """A clock that only agents move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed:
    """Takes the seconds that ``duration`` names for a call, given its number and its batch."""

    def __init__(self, clock: Clock, duration: Callable[[int, int], float]) -> None:
        self.clock, self.duration = clock, duration
        self.batches: list[int] = []
        self.singles = 0

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if np.ndim(observation) == 1:
            self.singles += 1
            self.clock.now += self.duration(-1, 1)
            return np.zeros(3, np.float32), None
        self.clock.now += self.duration(len(self.batches), len(observation))
        self.batches.append(len(observation))
        return np.zeros((len(observation), 3), np.float32), None


def timed(
    monkeypatch: pytest.MonkeyPatch,
    duration: Callable[[int, int], float],
    channels: int,
    **changes: Any,
) -> tuple[Timed, Any]:
    clock = Clock()
    for module in (calling, judging):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    env = make(control="power", radar="fixed", **changes)
    agent = Timed(clock, duration)
    scenario, model = env.unwrapped.scenario, env.unwrapped.channel_model
    return agent, evaluate(agent, env, evaluation_set(scenario, model, channels, 0))


EPISODES: dict[str, Any] = {"doppler": 0.05, "episode_length": 4}


def test_a_slow_agent_is_not_called_again_to_measure_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [50.0, 3.0, 5.0, 4.0]
    agent, result = timed(
        monkeypatch, lambda call, size: 2.0 if call < 0 else seconds[call], 40, **EPISODES
    )
    assert agent.batches == [10] * 4
    assert agent.singles == 1  # one call is more than a second
    # The first call, which also pays for what is set up at first use, is left out.
    assert result.seconds_batched == pytest.approx(4.0 / 10)
    assert result.seconds_single == pytest.approx(2.0)


def test_a_quick_agent_is_called_for_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, result = timed(monkeypatch, lambda call, size: 0.26, 40, **EPISODES)
    assert agent.batches == [10] * (4 + 4)
    assert agent.singles == 4
    assert result.seconds_batched == pytest.approx(0.026)
    assert result.seconds_single == pytest.approx(0.26)


def test_a_very_quick_agent_is_called_thirty_times(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, result = timed(monkeypatch, lambda call, size: 1e-4 * size, 40, **EPISODES)
    assert len(agent.batches) == 4 + 30
    assert agent.singles == 30
    assert result.seconds_batched == pytest.approx(1e-4)


def test_one_slow_call_among_quick_ones_does_not_make_an_agent_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, result = timed(monkeypatch, lambda call, size: 9.0 if call == 2 else 0.3, 40, **EPISODES)
    assert len(agent.batches) > 4
    assert result.seconds_batched == pytest.approx(0.03)


def test_a_slow_agent_with_more_blocks_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, result = timed(monkeypatch, lambda call, size: 0.01 * size, 2000)
    assert agent.batches == [1024, 976]
    assert result.seconds_batched == pytest.approx(0.01)


def test_a_small_last_chunk_does_not_make_a_quick_agent_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call takes as long for 6 observations as for 1024: it is the batch of 1024 that counts."""
    _, result = timed(monkeypatch, lambda call, size: 0.02, 1030)
    assert result.seconds_batched == pytest.approx(0.02 / 1024)
