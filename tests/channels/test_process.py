"""Channels over time and their estimates.

Statistical bounds are five standard errors of the estimate for the number of samples drawn, which
the comments derive; for a Gaussian estimate that fails by chance once in 1.7 million comparisons,
whatever the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_channels import ONE_CELL, SEEDS, SIGMAS, THREE_CELLS, correlation, gains, rng, samples

from isac_gym.channels.base import ChannelModel, Deployment
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


def process(
    num: int = 4, variance: float = 0.0, *, model: ChannelModel | None = None, **changes: Any
) -> ChannelProcess:
    scenario = Scenario(
        num_users=2,
        num_radar_antennas=2,
        num_comm_antennas=3,
        csi_error_variance=variance,
        **changes,
    )
    return ChannelProcess(model or make_default_channel_model(scenario), scenario, num)


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


class Drawn(RayleighChannel):
    """Rayleigh channels, of which something is changed in first blocks or in later ones."""

    def __init__(self, change: Callable[[Any], Any], *, later: bool) -> None:
        self._change, self._later = change, later

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Any:
        drawn = super().draw(rng, num, deployment)
        return drawn if self._later else self._change(drawn)

    def advance(self, rng: np.random.Generator, channels: Any, deployment: Deployment) -> Any:
        return self._change(super().draw(rng, len(channels), deployment))


def put(value: complex, kind: Any = np.complex64) -> Callable[[Any], Any]:
    def change(drawn: Any) -> Any:
        changed = drawn.astype(kind)
        changed[2, 0, 0, 1, 3] = value
        return changed

    return change


INDEX = r"at index \(2, 0, 0, 1, 3\) of shape \(4, 1, 1, 2, 5\)"


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (put(math.nan), ValueError, f"must be finite, got .* {INDEX}"),
        (put(complex(0.0, math.nan)), ValueError, f"must be finite, got .* {INDEX}"),
        (put(-math.inf), ValueError, f"must be finite, got .* {INDEX}"),
        (put(1e300, np.complex128), ValueError, f"must be finite, got .* {INDEX}"),
        (put(1.01e8), ValueError, rf"must be of magnitude 1e\+08 or less, got .* {INDEX}"),
        (put(-8e7j + 8e7), ValueError, rf"must be of magnitude 1e\+08 or less, got .* {INDEX}"),
        (lambda drawn: drawn.astype(str), TypeError, "must be numbers, got dtype <U"),
        (lambda drawn: drawn.astype(object), TypeError, "must be numbers, got dtype object"),
    ],
)
def test_what_a_model_draws_is_checked(
    change: Callable[[Any], Any], kind: type[Exception], message: str, later: bool
) -> None:
    found = process(model=Drawn(change, later=later))
    if later:
        found.start(rng())
    go_on = found.advance if later else found.start
    with pytest.raises(kind, match=rf"^channels drawn by Drawn\(\) {message}"):
        go_on(rng())


def test_what_a_model_draws_may_be_as_large_as_is_said_and_of_any_type() -> None:
    for change in (put(1e8), put(7.07e7 + 7.07e7j), put(1.0, np.complex128)):
        found = process(model=Drawn(change, later=False))
        found.start(rng())
        assert found.channels.dtype == np.complex64
    found = process(model=Drawn(lambda drawn: drawn.real.tolist(), later=False))
    found.start(rng())
    assert not found.channels.imag.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, 2e8])
def test_blocks_that_are_given_are_checked(value: complex) -> None:
    found = process()
    channels = put(value)(RayleighChannel().draw(rng(), 4, found.deployment))
    with pytest.raises(ValueError, match=f"^channels must be .* {INDEX}"):
        found.place(rng(), channels)


def test_estimates_are_checked() -> None:
    found = process(variance=1e6, model=Drawn(lambda drawn: drawn * 0 + 1e8, later=False))
    with pytest.raises(ValueError, match=r"^channel estimates with csi_error_variance=1e\+06 must"):
        found.start(rng())
