"""Channels that stay as they are for an episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from direct_model import SMALL

from isac_gym import RayleighChannel, Scenario
from isac_gym.channels import FileChannels, HeldChannels, RicianChannel
from isac_gym.channels.process import ChannelProcess


def test_blocks_of_an_episode_are_alike_and_episodes_are_not() -> None:
    process = ChannelProcess(HeldChannels(RayleighChannel()), Scenario(**SMALL), 4)
    rng = np.random.default_rng(0)
    process.start(rng)
    first = process.channels.copy()
    for _ in range(3):
        process.advance(rng)
        np.testing.assert_array_equal(process.channels, first)
    process.start(rng, np.array([True, False, False, False]))
    assert not np.array_equal(process.channels[0], first[0])
    np.testing.assert_array_equal(process.channels[1:], first[1:])


def test_what_is_drawn_is_what_the_model_draws() -> None:
    process, plain = (
        ChannelProcess(model, Scenario(**SMALL), 4)
        for model in (HeldChannels(RicianChannel()), RicianChannel())
    )
    process.start(np.random.default_rng(1))
    plain.start(np.random.default_rng(1))
    np.testing.assert_array_equal(process.channels, plain.channels)


def test_estimates_err_anew_in_every_block() -> None:
    scenario = Scenario(**SMALL, csi_error_variance=0.1)
    process = ChannelProcess(HeldChannels(RayleighChannel()), scenario, 4)
    rng = np.random.default_rng(0)
    process.start(rng)
    first, channels = process.estimates.copy(), process.channels.copy()
    process.advance(rng)
    np.testing.assert_array_equal(process.channels, channels)
    assert not np.array_equal(process.estimates, first)


def test_gains_are_followed_where_the_model_does(tmp_path: Any) -> None:
    assert HeldChannels(RayleighChannel()).follows_gains
    shape = (5, SMALL["num_users"], 8)
    np.save(tmp_path / "channels.npy", np.ones(shape, np.complex64))
    held = HeldChannels(FileChannels(tmp_path / "channels.npy"))
    assert not held.follows_gains
    assert held.is_time_correlated


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(ValueError, match="model must be a ChannelModel, got 'rayleigh'"):
        HeldChannels("rayleigh")  # type: ignore[arg-type]
