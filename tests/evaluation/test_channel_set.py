"""Evaluation sets: the same for the same arguments, and known by a hash."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL
from scipy import special

from isac_gym import GaussMarkovChannel, RayleighChannel, Scenario
from isac_gym.baselines import MRT
from isac_gym.evaluation import (
    compare,
    evaluation_set,
)


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


def test_the_set_depends_on_its_arguments_alone() -> None:
    scenario = Scenario(**SMALL, csi_error_variance=0.1)
    first = evaluation_set(scenario, RayleighChannel(), 50, 7)
    np.random.seed(123)  # noqa: NPY002  (the global generator must not matter)
    env = make(csi_error_variance=0.1)
    env.reset(seed=99)
    env.step(env.action_space.sample())
    second = evaluation_set(scenario, RayleighChannel(), 50, 7)
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.channels, second.channels)
    np.testing.assert_array_equal(first.estimates, second.estimates)
    assert first.channels.shape == (50, 1, 1, 1, 3, 9)
    assert (first.count, first.seed) == (50, 7)


def test_the_hash_changes_with_every_argument() -> None:
    base = Scenario(**SMALL)
    arguments = {
        "base": (base, RayleighChannel(), 50, 7),
        "seed": (base, RayleighChannel(), 50, 8),
        "count": (base, RayleighChannel(), 51, 7),
        "dimensions": (base.replace(num_users=2), RayleighChannel(), 50, 7),
        "estimate": (base.replace(csi_error_variance=0.1), RayleighChannel(), 50, 7),
        "estimates": (base.replace(csi_error_variance=0.2), RayleighChannel(), 50, 7),
        "model": (base, GaussMarkovChannel(0.1), 50, 7),
        "cells": (base.replace(num_cells=2), RayleighChannel(), 50, 7),
        "gain": (base.replace(num_cells=2, intercell_gain=0.2), RayleighChannel(), 50, 7),
    }
    digests = {name: evaluation_set(*given).digest for name, given in arguments.items()}
    assert len(set(digests.values())) == len(digests)
    assert all(len(digest) >= 16 for digest in digests.values())
    # What the channels do not depend on does not make another set.
    assert (
        evaluation_set(base.replace(snr_db=3.0), RayleighChannel(), 50, 7).digest
        == (digests["base"])
    )


def test_correlated_channels_come_as_whole_episodes() -> None:
    scenario = Scenario(**SMALL, doppler=0.1, episode_length=4, csi_error_variance=0.05)
    blocks = evaluation_set(scenario, GaussMarkovChannel(0.1), 401, 7)
    assert blocks.channels.shape == (101, 4, 1, 1, 3, 9)
    assert blocks.count == 404
    rho = special.j0(2 * np.pi * 0.1)
    H = blocks.channels
    bound = 4 / np.sqrt(H[:, 0].size)
    for lag in (1, 2, 3):
        assert abs(np.mean(H[:, lag] * H[:, 0].conj()) - rho**lag) < bound
    assert abs(np.mean(H[1:, 0] * H[:-1, 3].conj())) < bound
    error = blocks.estimates - H
    assert np.mean(np.abs(error) ** 2) == pytest.approx(0.05, abs=4 * 0.05 / np.sqrt(error.size))


@pytest.mark.parametrize("count", [0, -3, 2.5, True, "9", None])
def test_bad_counts(count: Any) -> None:
    with pytest.raises(ValueError, match="channels must be an integer >= 1"):
        evaluation_set(Scenario(**SMALL), RayleighChannel(), count, 7)


def test_single_batched_and_wrapped_environments_give_the_same_set() -> None:
    single = make()
    wrapped = gym.wrappers.RecordEpisodeStatistics(make())
    batched = gym.make_vec("ISAC-MISO-v0", num_envs=3, **SMALL)
    found = [
        compare({"mrt": MRT(env)}, env, channels=20, seed=3) for env in (single, wrapped, batched)
    ]
    assert len({c.settings["evaluation_set"] for c in found}) == 1
    assert len({c["mrt"].spectral_efficiency for c in found}) == 1
