"""What a reset of the single environment takes: channels, users' positions, options."""

from __future__ import annotations

import re
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL
from single_env import make

import isac_gym
from isac_gym import ISACEnv, RicianChannel


@pytest.mark.parametrize("cells", [1, 2])
def test_reset_starts_from_given_channels(cells: int) -> None:
    env = make(**SMALL, num_cells=cells)
    env.reset(seed=0)
    shape = env.channels.shape
    assert shape == ((3, 9) if cells == 1 else (2, 2, 3, 9))
    rng = np.random.default_rng(0)
    given = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    observation, _ = env.reset(seed=1, options={"channels": given})
    np.testing.assert_array_equal(env.channels, given.astype(np.complex64))
    expected = np.concatenate([given.real.ravel(), given.imag.ravel()]).astype(np.float32)
    np.testing.assert_array_equal(observation, expected)
    given[...] = 0
    assert env.channels.any()
    with pytest.raises(ValueError, match=r"options\['channels'\] must have shape"):
        env.reset(options={"channels": given[..., :-1]})
    given.flat[4] = np.nan
    with pytest.raises(ValueError, match=r"options\['channels'\] must be finite"):
        env.reset(options={"channels": given})


def test_reset_lets_users_stand_at_given_points() -> None:
    """Without scattering and shadowing a path has the power that its length gives it."""
    env = make(
        **SMALL,
        num_cells=2,
        layout="line",
        shadowing_std_db=0.0,
        channel_model=RicianChannel(200.0),
        episode_length=3,
    )
    users = np.array(
        [[[30.0, 40.0], [-100.0, 0.0], [0.0, 200.0]], [[250.0, 0.0], [500.0, 60.0], [560.0, 80.0]]]
    )
    apart = [
        [[50, 100, 200], [250, np.hypot(500, 60), np.hypot(560, 80)]],
        [[np.hypot(470, 40), 600, np.hypot(500, 200)], [250, 60, 100]],
    ]
    expected = np.repeat((np.array(apart) / 250.0)[..., None] ** -3.7, 9, -1)
    env.reset(seed=0, options={"user_positions": users})
    for _ in range(3):
        np.testing.assert_allclose(np.abs(env.channels) ** 2, expected, rtol=1e-4)
        np.testing.assert_array_equal(env.simulation.positions, users[None])
        env.step(env.action_space.sample())
    # The same points as lists; and with channels for the first block.
    env.reset(options={"user_positions": users.tolist()})
    np.testing.assert_allclose(np.abs(env.channels) ** 2, expected, rtol=1e-4)
    given = np.ones(env.channels.shape)
    env.reset(options={"user_positions": users, "channels": given})
    np.testing.assert_array_equal(env.channels, given)
    env.step(env.action_space.sample())
    np.testing.assert_allclose(np.abs(env.channels) ** 2, expected, rtol=1e-4)
    # The next episode's users are drawn.
    env.reset()
    assert (np.abs(np.abs(env.channels) ** 2 / expected - 1) > 1e-4).all()
    users[1, 2] = [500.0, 24.0]
    with pytest.raises(ValueError, match=r"^options\['user_positions'\] must be at least") as error:
        env.reset(options={"user_positions": users})
    for part in ("least_distance=25 m", "user 2 of cell 1 at 24 m from station 1"):
        assert part in str(error.value)
    with pytest.raises(
        ValueError, match=r"options\['user_positions'\] must have shape \(2, 3, 2\)"
    ):
        env.reset(options={"user_positions": users[0]})
    with pytest.raises(TypeError, match=r"options\['user_positions'\] must hold real numbers"):
        env.reset(options={"user_positions": 1j * users})


def test_shadowing_is_drawn_for_given_points() -> None:
    env = make(**SMALL, num_cells=1, layout="hexagonal")
    users = np.array([[[30.0, 40.0], [-100.0, 0.0], [0.0, 200.0]]])
    gains = []
    for seed in (0, 1, 0):
        env.reset(seed=seed, options={"user_positions": users})
        assert env.simulation.gains is not None
        gains.append(env.simulation.gains)
    np.testing.assert_array_equal(gains[0], gains[2])
    assert (gains[0] != gains[1]).all()


def test_given_channels_start_an_episode_with_distances() -> None:
    env = make(**SMALL, num_cells=2, layout="hexagonal")
    given = np.ones((2, 2, 3, 9), np.complex64)
    observation, _ = env.reset(seed=0, options={"channels": given})
    np.testing.assert_array_equal(env.channels, given)
    assert env.observation_space.contains(observation)
    assert env.simulation.positions is not None
    assert env.simulation.positions.shape == (1, 2, 3, 2)
    env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"csi_error_variance": 0.1}, "csi_error_variance=0.1"),
        ({"doppler": 0.05}, r"GaussMarkovChannel\(doppler=0.05\)"),
        ({"channel_model": isac_gym.GaussMarkovChannel(0.2)}, r"GaussMarkovChannel\(doppler=0.2\)"),
        ({"doppler": 0.05, "csi_error_variance": 0.1}, r"csi_error_variance=0.1 and Gauss"),
    ],
    ids=["estimates", "doppler", "model", "both"],
)
def test_channels_to_which_gains_matter_need_the_positions_of_their_users(
    changes: dict[str, Any], reason: str
) -> None:
    settings = {**SMALL, "num_cells": 2, "layout": "line", **changes}
    env, twin = make(**settings), make(**settings)
    given = np.ones((2, 2, 3, 9), np.complex64)
    env.reset(seed=4)
    observation, _ = twin.reset(seed=4)
    with pytest.raises(ValueError, match=rf"^options\['user_positions'\] must.*'line'.*{reason}"):
        env.reset(seed=9, options={"channels": given})
    # Nothing has happened: the generator goes on where it was.
    np.testing.assert_array_equal(env.simulation.observe()[0], observation)
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])
    uniform = make(**{**settings, "layout": "uniform"})
    uniform.reset(seed=0, options={"channels": given})
    np.testing.assert_array_equal(uniform.channels, given)


def test_the_error_of_given_channels_is_that_of_the_users_given_with_them() -> None:
    """A user ten times as near has an error that is as much larger as its gain."""
    variance = 0.2
    env = make(
        **{**SMALL, "num_radar_antennas": 40, "num_comm_antennas": 40, "radar_power": 8.0},
        num_cells=1,
        layout="line",
        shadowing_std_db=0.0,
        csi_error_variance=variance,
    )
    users = np.array([[[25.0, 0.0], [0.0, 100.0], [-250.0, 0.0]]])
    given = np.ones((3, 80), np.complex64)
    observation, _ = env.reset(seed=0, options={"channels": given, "user_positions": users})
    np.testing.assert_array_equal(env.channels, given)
    seen = direct_model.observed_channels(env.scenario, observation)[0, 0]
    error = np.mean(np.abs(seen - given) ** 2, -1)
    expected = variance * np.array([10.0, 2.5, 1.0]) ** 3.7
    # abs(E)² has its mean as standard deviation; five standard errors.
    np.testing.assert_allclose(error / expected, 1.0, atol=5 / np.sqrt(80))


def test_points_for_users_need_a_layout_with_distances() -> None:
    env = make(**SMALL)
    with pytest.raises(ValueError, match=r"options\['user_positions'\] must be None with layout"):
        env.reset(options={"user_positions": np.full((1, 3, 2), 100.0)})
    with pytest.raises(ValueError, match=r"options must hold nothing but 'channels' and 'user_pos"):
        env.reset(options={"positions": np.full((1, 3, 2), 100.0)})


@pytest.mark.parametrize("options", [3, 0, "", "channels", [], ["channels"], [("channels", 1)]])
@pytest.mark.parametrize("how", ["single", "made", "batch"])
def test_options_must_be_a_dictionary(options: Any, how: str) -> None:
    env: Any = {
        "single": lambda: ISACEnv(**SMALL),
        "made": lambda: gym.make("ISAC-MISO-v0", **SMALL),
        "batch": lambda: gym.make_vec("ISAC-MISO-v0", num_envs=2, **SMALL),
    }[how]()
    env.reset(seed=0)
    message = f"^options must be None or a dictionary, got {re.escape(repr(options))}$"
    with pytest.raises(TypeError, match=message):
        env.reset(options=options)


def test_unknown_options_of_any_type_are_named() -> None:
    with pytest.raises(ValueError, match=r"options must hold nothing but .*\[1, 'users'\]"):
        make(**SMALL).reset(options={1: 2, "users": 3})


def test_options_in_rows_of_different_lengths_are_named() -> None:
    env = make(**SMALL, layout="line")
    for name in ("channels", "user_positions"):
        with pytest.raises(ValueError, match=rf"^options\['{name}'\] must be an array with rows"):
            env.reset(options={name: [[1.0], [1.0, 2.0]]})


@pytest.mark.parametrize("channels", ["text", np.array([["a"] * 9] * 3), np.full((3, 9), None)])
def test_channels_that_are_no_numbers_are_rejected(channels: Any) -> None:
    env = make(**SMALL)
    with pytest.raises((TypeError, ValueError), match=r"options\['channels'\]"):
        env.reset(options={"channels": channels})
