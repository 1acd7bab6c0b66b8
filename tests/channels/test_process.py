"""Channels over time and their estimates.

Statistical bounds are five standard errors of the estimate for the number of samples drawn, which
the comments derive; for a Gaussian estimate that fails by chance once in 1.7 million comparisons,
whatever the seed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from small_channels import ONE_CELL, SEEDS, SIGMAS, THREE_CELLS, correlation, gains, rng, samples

from isac_gym.channels.base import (
    Deployment,
)
from isac_gym.channels.gauss_markov import GaussMarkovChannel
from isac_gym.channels.process import ChannelProcess, observe_channels
from isac_gym.channels.rayleigh import RayleighChannel
from isac_gym.channels.selection import make_default_channel_model
from isac_gym.scenario import Scenario


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variance", [0.01, 0.5])
@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
def test_estimation_error_is_white_and_independent_of_the_channel(
    deployment: Deployment, variance: float, seed: int
) -> None:
    count, generator = 20_000, rng(seed)
    true = RayleighChannel().draw(generator, count, deployment)
    kept = true.copy()
    seen = observe_channels(generator, true, deployment, variance)
    np.testing.assert_array_equal(true, kept)
    assert seen.dtype == np.complex64
    error = (seen.astype(np.complex128) - true).reshape(count, -1)
    power = gains(deployment)
    bound = SIGMAS * np.sqrt(np.outer(power, power) / count)
    # As for the channels themselves, with the powers of the two factors.
    assert (np.abs(error.mean(0)) <= SIGMAS * np.sqrt(variance * power / count)).all()
    assert (np.abs(correlation(error, error) - variance * np.diag(power)) <= variance * bound).all()
    assert (np.abs(correlation(error, true)) <= math.sqrt(variance) * bound).all()


def test_perfect_knowledge_draws_nothing() -> None:
    generator = rng()
    true = RayleighChannel().draw(generator, 3, ONE_CELL)
    before = generator.bit_generator.state
    assert observe_channels(generator, true, ONE_CELL, 0.0) is true
    assert generator.bit_generator.state == before


def process(num: int = 4, variance: float = 0.0, **changes: Any) -> ChannelProcess:
    scenario = Scenario(
        num_users=2,
        num_radar_antennas=2,
        num_comm_antennas=3,
        csi_error_variance=variance,
        **changes,
    )
    return ChannelProcess(make_default_channel_model(scenario), scenario, num)


def test_start_draws_channels_then_estimates() -> None:
    found, generator = process(variance=0.1), rng(2)
    found.start(generator)
    same = rng(2)
    true = RayleighChannel().draw(same, 4, ONE_CELL)
    np.testing.assert_array_equal(found.channels, true)
    np.testing.assert_array_equal(found.estimates, observe_channels(same, true, ONE_CELL, 0.1))
    assert generator.bit_generator.state == same.bit_generator.state


@pytest.mark.parametrize("variance", [0.0, 0.1])
def test_mask_restarts_only_the_chosen_environments(variance: float) -> None:
    found, generator = process(variance=variance), rng(2)
    found.start(generator)
    channels, estimates = found.channels, found.estimates
    kept_channels, kept_estimates = channels.copy(), estimates.copy()
    where = np.array([True, False, False, True])
    same = np.random.Generator(type(generator.bit_generator)())
    same.bit_generator.state = generator.bit_generator.state
    found.start(generator, where)

    np.testing.assert_array_equal(found.channels[~where], kept_channels[~where])
    np.testing.assert_array_equal(found.estimates[~where], kept_estimates[~where])
    true = RayleighChannel().draw(same, 2, ONE_CELL)
    np.testing.assert_array_equal(found.channels[where], true)
    np.testing.assert_array_equal(
        found.estimates[where], observe_channels(same, true, ONE_CELL, variance)
    )
    assert generator.bit_generator.state == same.bit_generator.state
    # Arrays that were handed out before do not change.
    np.testing.assert_array_equal(channels, kept_channels)
    np.testing.assert_array_equal(estimates, kept_estimates)


def test_empty_mask_changes_nothing() -> None:
    found, generator = process(variance=0.1), rng(2)
    found.start(generator)
    channels, estimates = found.channels.copy(), found.estimates.copy()
    state = generator.bit_generator.state
    found.start(generator, np.zeros(4, bool))
    np.testing.assert_array_equal(found.channels, channels)
    np.testing.assert_array_equal(found.estimates, estimates)
    assert generator.bit_generator.state == state


def test_advance_continues_from_the_true_channels() -> None:
    found, generator = process(variance=0.1, doppler=0.05), rng(2)
    found.start(generator)
    before = found.channels
    same = np.random.Generator(type(generator.bit_generator)())
    same.bit_generator.state = generator.bit_generator.state
    found.advance(generator)
    true = GaussMarkovChannel(0.05).advance(same, before, ONE_CELL)
    np.testing.assert_array_equal(found.channels, true)
    np.testing.assert_array_equal(found.estimates, observe_channels(same, true, ONE_CELL, 0.1))


def test_given_channels_become_the_current_block() -> None:
    found = process()
    given = samples(4, *ONE_CELL.shape)
    found.place(rng(), given)
    np.testing.assert_array_equal(found.channels, given)
    assert found.estimates is found.channels
