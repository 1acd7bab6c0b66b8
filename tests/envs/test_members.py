"""A batch whose environments are addressed one by one: names, seeds, given channels."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import reference
from direct_model import SMALL
from gymnasium.vector import SyncVectorEnv

from isac_gym import ISACEnv, ISACVectorEnv
from isac_gym.envs.members import MEMBER_NAMES

LENGTH = 3
LINE: dict[str, Any] = {"num_cells": 2, "layout": "line"}


def make_vec(num_envs: int, **settings: Any) -> ISACVectorEnv:
    envs = gym.make_vec(
        "ISAC-MISO-v0", num_envs=num_envs, **{**SMALL, "episode_length": LENGTH, **settings}
    )
    assert isinstance(envs, ISACVectorEnv)
    return envs


def make_loop(num_envs: int, **settings: Any) -> SyncVectorEnv:
    envs = gym.make_vec(
        "ISAC-MISO-v0",
        num_envs=num_envs,
        vectorization_mode="sync",
        **{**SMALL, "episode_length": LENGTH, **settings},
    )
    assert isinstance(envs, SyncVectorEnv)
    return envs


def assert_same(found: Any, expected: Any, name: str) -> None:
    if isinstance(expected, tuple) and expected and isinstance(expected[0], np.ndarray):
        assert len(found) == len(expected)
        for mine, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6, err_msg=name)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, err_msg=name)
    elif isinstance(expected, np.random.Generator):
        assert found.bit_generator.state == expected.bit_generator.state, name
    elif name in ("scenario", "observation_space", "action_space", "channel_model"):
        assert found == expected, name
    elif name == "system":
        assert found.scenario == expected.scenario
    elif name == "spec":
        assert found.id == expected.id
    else:
        assert found == expected, name


@pytest.mark.parametrize("settings", [{}, {"num_cells": 2}], ids=["cell", "cells"])
def test_attributes_are_those_of_gymnasiums_vector(settings: dict[str, Any]) -> None:
    ours, theirs = make_vec(3, **settings), make_loop(3, **settings)
    ours.reset(seed=[5, 6, 7])
    theirs.reset(seed=[5, 6, 7])
    action = np.linspace(-1, 1, ours.single_action_space.shape[0])  # type: ignore[index]
    arguments = {"decode_action": (action,), "render": ()}
    for name in MEMBER_NAMES:
        if name == "render":
            continue
        given = arguments.get(name, ())
        found, expected = ours.call(name, *given), theirs.call(name, *given)
        assert isinstance(found, tuple)
        assert len(found) == 3
        for mine, other in zip(found, expected, strict=True):
            assert_same(mine, other, name)
        if not given:
            for mine, other in zip(ours.get_attr(name), expected, strict=True):
                assert_same(mine, other, name)
    channels = ours.get_attr("channels")
    assert not np.array_equal(channels[0], channels[1])
    channels[0][:] = 0.0
    assert ours.get_attr("channels")[0].any()


def test_pictures_by_call() -> None:
    envs = make_vec(2, render_mode="rgb_array")
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    for picture, other in zip(envs.call("render"), envs.render() or (), strict=True):
        np.testing.assert_array_equal(picture, other)
    envs.close()


def test_attributes_of_the_callers() -> None:
    envs = make_vec(3)
    with pytest.raises(AttributeError, match=r"name must be one of scenario, .*got 'level'"):
        envs.get_attr("level")
    envs.set_attr("level", [1, 2, 3])
    assert envs.get_attr("level") == (1, 2, 3) == envs.call("level")
    envs.set_attr("level", "all")
    assert envs.get_attr("level") == ("all",) * 3
    envs.set_attr("add", lambda left, right=0: left + right)
    assert envs.call("add", 1, right=2) == (3, 3, 3)
    with pytest.raises(ValueError, match=r"list or tuple of 3, .*got 2"):
        envs.set_attr("level", [1, 2])
    for name in ("scenario", "system", "channels", "num_envs", "simulation", "step"):
        with pytest.raises(AttributeError, match=f"name must not be '{name}'"):
            envs.set_attr(name, None)
    for name in ("step", "reset", "simulation", "_outcome"):
        with pytest.raises(AttributeError, match=f"got '{name}'"):
            envs.call(name)


def test_generators_are_set_like_seeds() -> None:
    ours, other = make_vec(2), make_vec(2)
    ours.reset(seed=[3, 4])
    other.reset(seed=0)
    other.set_attr("np_random", [np.random.default_rng(3), np.random.default_rng(4)])
    expected, _ = ours.reset(seed=[3, 4])
    np.testing.assert_array_equal(other.reset()[0], expected)
    assert isinstance(other.np_random, tuple)
    assert other.np_random_seed == (-1, -1)
    with pytest.raises(TypeError, match="generators"):
        other.set_attr("np_random", [1, 2])
    other.np_random = np.random.default_rng(9)
    again = make_vec(2)
    np.testing.assert_array_equal(other.reset()[0], again.reset(seed=9)[0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"doppler": 0.05, "csi_error_variance": 0.2},
        {"channel_model": "rician", "num_cells": 2},
        {**LINE, "csi_error_variance": 0.1, "doppler": 0.1},
    ],
    ids=["fading", "moving", "rician", "line"],
)
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_each_environment_sees_what_a_single_one_with_its_seed_sees(
    settings: dict[str, Any], kind: Any
) -> None:
    """Bit for bit, over several episodes, whatever the other environments do."""
    seeds = [11, 2, 11, 10**9]
    envs = make_vec(4, **settings)
    envs.reset(seed=77)
    observations, _ = envs.reset(seed=kind(seeds))
    assert envs.np_random_seed == tuple(seeds)
    singles = [ISACEnv(**{**SMALL, "episode_length": LENGTH, **settings}) for _ in seeds]
    rows = [env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)]
    envs.action_space.seed(0)
    for _ in range(3 * LENGTH + 1):
        np.testing.assert_array_equal(observations, np.stack(rows))
        for mine, env in zip(envs.get_attr("channels"), singles, strict=True):
            np.testing.assert_array_equal(mine, env.channels)
        actions = envs.action_space.sample()
        observations, rewards, *_ = envs.step(actions)
        for index, (env, action) in enumerate(zip(singles, actions, strict=True)):
            rows[index], reward, _, truncated, _ = env.step(action)
            assert rewards[index] == pytest.approx(reward, rel=1e-5)
            if truncated:
                rows[index] = env.reset()[0]
    np.testing.assert_array_equal(observations[0] == observations[2], True)
    assert not np.array_equal(observations[0], observations[1])


def test_an_integer_seed_leads_back_to_one_generator() -> None:
    plain, mixed = make_vec(3), make_vec(3)
    expected = [plain.reset(seed=1)[0], plain.reset()[0]]
    mixed.reset(seed=[7, 8, 9])
    assert isinstance(mixed.np_random, tuple)
    assert len(mixed.np_random) == 3
    np.testing.assert_array_equal(mixed.reset(seed=1)[0], expected[0])
    assert isinstance(mixed.np_random, np.random.Generator)
    np.testing.assert_array_equal(mixed.reset()[0], expected[1])


def test_seeds_of_some_environments() -> None:
    def run(second: int | None) -> npt.NDArray[Any]:
        envs = make_vec(3)
        envs.reset(seed=0)
        return envs.reset(seed=[7, second, None])[0]

    first = run(8)
    np.testing.assert_array_equal(first, run(8))
    other = run(None)
    np.testing.assert_array_equal(first[[0, 2]], other[[0, 2]])
    assert not np.array_equal(first[1], other[1])
    assert len(np.unique(other, axis=0)) == 3

    envs = make_vec(3)
    envs.reset(seed=[1, 2, 3])
    mask = np.array([False, True, False])
    before = envs.simulation.observe()
    seen, _ = envs.reset(seed=[9, 1, 9], options={"reset_mask": mask})
    np.testing.assert_array_equal(seen[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(seen[1], before[0])
    assert envs.np_random_seed == (1, 1, 3)
    # None goes on with an environment's own generator.
    single = ISACEnv(**SMALL)
    single.reset(seed=3)
    np.testing.assert_array_equal(envs.reset(seed=[1, 2, None])[0][2], single.reset()[0])
    nobody = np.zeros(3, np.bool_)
    before = envs.simulation.observe()
    np.testing.assert_array_equal(envs.reset(options={"reset_mask": nobody})[0], before)


@pytest.mark.parametrize(
    ("seed", "text"),
    [
        ([1, 2], "list of 3 of them, .*got 2"),
        ([1, 2, -1], r"seed\[2\] must be an integer >= 0, got -1"),
        ([1, 2.5, 3], r"seed\[1\] must be"),
        ([True, 1, 2], r"seed\[0\] must be"),
        (np.ones((3, 1), int), r"seed\[0\] must be"),
    ],
)
def test_seeds_that_are_not_allowed(seed: Any, text: str) -> None:
    envs, twin = make_vec(3), make_vec(3)
    envs.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(ValueError, match=text):
        envs.reset(seed=seed)
    np.testing.assert_array_equal(envs.reset()[0], twin.reset()[0])


def test_a_batch_with_seeds_can_be_pickled() -> None:
    envs = make_vec(2, doppler=0.1)
    envs.reset(seed=[0, 1])
    twin = pickle.loads(pickle.dumps(envs))
    actions = np.full(envs.action_space.shape, 0.5)
    for _ in range(4):
        np.testing.assert_array_equal(envs.step(actions)[0], twin.step(actions)[0])


def draw(seed: int, *shape: int) -> npt.NDArray[np.complex64]:
    return reference.complex_normal(np.random.default_rng(seed), *shape).astype(np.complex64)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (3, 9)),
        ({"doppler": 0.05, "csi_error_variance": 0.1}, (3, 9)),
        ({"num_cells": 2}, (2, 2, 3, 9)),
    ],
    ids=["cell", "moving", "cells"],
)
def test_given_channels_are_those_of_single_environments(
    settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    envs = make_vec(3, **settings)
    singles = [ISACEnv(**{**SMALL, "episode_length": LENGTH, **settings}) for _ in range(3)]
    each, shared = draw(0, 3, *shape), draw(1, *shape)
    actions = np.full(envs.action_space.shape, 0.3, np.float32)
    for given in (each, shared):
        seen, _ = envs.reset(seed=[4, 5, 6], options={"channels": given})
        for index, env in enumerate(singles):
            own = given[index] if given is each else given
            row, _ = env.reset(seed=4 + index, options={"channels": own})
            np.testing.assert_array_equal(seen[index], row)
            np.testing.assert_array_equal(envs.get_attr("channels")[index], own)
        seen, rewards, *_ = envs.step(actions)
        for index, env in enumerate(singles):
            row, reward, *_ = env.step(actions[index])
            np.testing.assert_array_equal(seen[index], row)
            assert rewards[index] == pytest.approx(reward, rel=1e-5)
    # A mask selects which environments they are for.
    mask = np.array([True, False, True])
    before = envs.get_attr("channels")
    envs.reset(options={"channels": each, "reset_mask": mask})
    after = envs.get_attr("channels")
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[0], each[0])
    np.testing.assert_array_equal(after[2], each[2])


def test_given_channels_with_positions() -> None:
    settings = {**LINE, "csi_error_variance": 0.2, "doppler": 0.05}
    envs, single = make_vec(2, **settings), ISACEnv(**{**SMALL, **settings})
    users = np.array([[[0.0, 0.0]], [[500.0, 0.0]]]) + np.full((2, 3, 2), 60.0)
    users[:, 1:] += [[[40.0, 0.0]], [[0.0, 30.0]]]
    channels = draw(0, 2, 2, 3, 9)
    with pytest.raises(ValueError, match=r"options\['user_positions'\] must be given with"):
        envs.reset(options={"channels": channels})
    options = {"channels": channels, "user_positions": users}
    seen, _ = envs.reset(seed=[1, 2], options=options)
    for index in range(2):
        np.testing.assert_array_equal(seen[index], single.reset(seed=1 + index, options=options)[0])


def test_one_generator_sees_given_channels_as_a_single_environment_does() -> None:
    settings = {"csi_error_variance": 0.2, "doppler": 0.05}
    envs, single = make_vec(1, **settings), ISACEnv(**{**SMALL, **settings})
    channels = draw(2, 3, 9)
    seen, _ = envs.reset(seed=3, options={"channels": channels})
    row, _ = single.reset(seed=3, options={"channels": channels})
    actions = np.full(envs.action_space.shape, 0.3, np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(seen[0], row)
        seen, row = envs.step(actions)[0], single.step(actions[0])[0]


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (np.ones((2, 3, 9)), ValueError, r"shape \(3, 9\) or \(4, 3, 9\), got \(2, 3, 9\)"),
        (np.ones((4, 1, 1, 3, 9)), ValueError, "must have shape"),
        (np.full((4, 3, 9), np.nan), ValueError, "must be finite"),
        (np.full((3, 9), 1e200), ValueError, "must be finite"),
        ("far", TypeError, "must hold numbers"),
        ([[1.0], [1.0, 2.0]], ValueError, "rows of equal length"),
    ],
)
def test_given_channels_that_are_not_allowed(given: Any, kind: Any, text: str) -> None:
    envs, twin = make_vec(4), make_vec(4)
    envs.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(kind, match=rf"^options\['channels'\].*{text}"):
        envs.reset(seed=5, options={"channels": given})
    np.testing.assert_array_equal(envs.reset()[0], twin.reset()[0])
