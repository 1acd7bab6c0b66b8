"""The batched environment: the single one many times over, with Gymnasium's vector contract."""

from __future__ import annotations

import itertools
import pickle
import warnings
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from direct_model import SMALL
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from isac_gym import ISACEnv, ISACVectorEnv, RicianChannel, Scenario
from isac_gym.channels.process import ChannelProcess

CONTROLS = ("power", "amplitude", "beamforming", "structured")


def make_vec(num_envs: int, **settings: Any) -> ISACVectorEnv:
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=num_envs, **settings)
    assert isinstance(envs, ISACVectorEnv)
    return envs


def test_make_vec_gives_the_native_class() -> None:
    envs = make_vec(5, scenario="power", snr_db=4.0)
    assert envs.num_envs == 5
    assert envs.scenario == Scenario(control="power", snr_db=4.0)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    single = gym.make("ISAC-MISO-v0", scenario="power", snr_db=4.0)
    assert envs.single_observation_space == single.observation_space
    assert envs.single_action_space == single.action_space
    assert envs.action_space.shape == (5, *single.action_space.shape)
    assert envs.observation_space.shape == (5, *single.observation_space.shape)
    observations, info = envs.reset(seed=0)
    assert info == {}
    assert observations in envs.observation_space
    observations, rewards, terminations, truncations, _ = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space
    assert (rewards.shape, rewards.dtype) == ((5,), np.float64)
    assert (terminations.shape, terminations.dtype) == ((5,), np.bool_)
    assert (truncations.shape, truncations.dtype) == ((5,), np.bool_)
    envs.close()


SETTINGS: list[dict[str, Any]] = [
    *(
        {**SMALL, "control": control, "radar": radar, "power_limit": limit, "scheduling": access}
        for control, radar, limit, access in itertools.product(
            CONTROLS, ("learned", "fixed"), ("project", "cost"), ("all", "contention")
        )
    ),
    {},
    {**SMALL, "doppler": 0.05, "csi_error_variance": 0.2},
    {**SMALL, "channel_model": RicianChannel(), "csi_error_variance": 0.2},
    {**SMALL, "num_cells": 2, "doppler": 0.1},
    {**SMALL, "num_cells": 2, "control": "structured", "observation": "features"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_one_environment_is_the_single_one_bit_for_bit(settings: dict[str, Any]) -> None:
    env = gym.make("ISAC-MISO-v0", **settings, episode_length=3)
    envs = make_vec(1, **settings, episode_length=3)
    env.action_space.seed(9)
    observation, _ = env.reset(seed=21)
    observations, _ = envs.reset(seed=21)
    np.testing.assert_array_equal(observations[0], observation)
    ends = 0
    for _ in range(10):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        observations, rewards, terminations, truncations, infos = envs.step(action[None])
        assert rewards[0] == reward
        assert (terminations[0], truncations[0]) == (terminated, truncated)
        if truncated:
            ends += 1
            assert infos["_final_obs"].tolist() == [True]
            assert infos["_final_info"].tolist() == [True]
            np.testing.assert_array_equal(infos["final_obs"][0], observation)
            found = infos["final_info"]
            observation, _ = env.reset()
        else:
            assert "final_obs" not in infos
            found = infos
        np.testing.assert_array_equal(observations[0], observation)
        for name, value in info.items():
            for entries in (infos, found):
                np.testing.assert_array_equal(entries[name][0], value, err_msg=name)
                assert entries[f"_{name}"].tolist() == [True]
    assert ends == 3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"control": "power", "precoder_directions": "rzf", "power_limit": "cost"},
        {**SMALL, "control": "amplitude", "power_limit": "cost", "scheduling": "contention"},
        {**SMALL, "num_cells": 2, "cross_correlation": "target_sq", "csi_error_variance": 0.1},
    ],
    ids=["default", "power", "contention", "cells"],
)
def test_batch_agrees_with_the_formulas_environment_by_environment(
    settings: dict[str, Any],
) -> None:
    num = 256
    envs = make_vec(num, **settings)
    scenario = envs.scenario
    observations, _ = envs.reset(seed=1)
    process = ChannelProcess(envs.channel_model, scenario, num)
    process.start(np.random.default_rng(1))
    true = process.channels.astype(np.complex128)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, envs.action_space.shape).astype(np.float32)
    if scenario.scheduling == "contention":
        actions[::2, -scenario.num_users :] = [0.5, -0.5, -0.5]
    _, rewards, _, _, infos = envs.step(actions)
    paid = 0
    for index in range(num):
        estimates = direct_model.observed_channels(scenario, observations[index])
        precoders, covariances, access = direct_model.decode(scenario, actions[index], estimates)
        assert covariances is not None
        expected = direct_model.earned(scenario, true[index], precoders, covariances, access)
        assert rewards[index] == pytest.approx(expected["sum_rate"], rel=1e-4, abs=1e-9)
        paid += rewards[index] > 0
        for name, value in expected.items():
            found = infos[name][index]
            value = np.asarray(value).reshape(np.shape(found))
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert paid >= num // 2


def test_channels_differ_between_environments_and_episodes() -> None:
    envs = make_vec(6, **SMALL, episode_length=2)
    seen = [envs.reset(seed=0)[0]]
    for _ in range(6):
        observations, _, _, _, info = envs.step(envs.action_space.sample())
        seen.append(observations)
        if "final_obs" in info:
            seen.append(np.stack(list(info["final_obs"])))
    rows = np.concatenate(seen)
    assert len(np.unique(rows, axis=0)) == len(rows) == 6 * 10


def test_autoreset_over_staggered_episodes() -> None:
    """Environments in different phases: masks, final entries and first observations."""
    num, length = 5, 4
    envs = make_vec(num, **SMALL, episode_length=length)
    envs.action_space.seed(0)
    envs.reset(seed=2)
    elapsed = np.zeros(num, int)
    for shift in range(3):
        actions = envs.action_space.sample()
        envs.step(actions)
        elapsed += 1
        mask = np.arange(num) == shift
        previous, _ = envs.reset(options={"reset_mask": mask})
        elapsed[mask] = 0
    finished, paid = np.zeros(num, int), 0.0
    for _ in range(12):
        actions = envs.action_space.sample()
        true = [direct_model.observed_channels(envs.scenario, row) for row in previous]
        observations, rewards, terminations, truncations, info = envs.step(actions)
        elapsed += 1
        over = elapsed == length
        finished += over
        elapsed[over] = 0
        assert not terminations.any()
        np.testing.assert_array_equal(truncations, over)
        expected = [
            direct_model.earned(
                envs.scenario,
                true[i],
                *direct_model.decode(envs.scenario, actions[i], true[i]),
            )
            for i in range(num)
        ]
        np.testing.assert_allclose(rewards, [e["sum_rate"] for e in expected], rtol=1e-4)
        costs = np.array([e["cost"] for e in expected])
        assert info["_cost"].all()
        np.testing.assert_allclose(info["cost"], costs, rtol=1e-3, atol=1e-5)
        paid += costs[over].sum()
        assert info["rates"].shape == (num, 3)
        np.testing.assert_allclose(
            info["rates"], [e["rates"][0] for e in expected], rtol=1e-3, atol=1e-5
        )
        assert ("final_obs" in info) == over.any() == ("final_info" in info)
        if over.any():
            np.testing.assert_array_equal(info["_final_obs"], over)
            np.testing.assert_array_equal(info["_final_info"], over)
            final = info["final_info"]
            np.testing.assert_array_equal(final["_cost"], over)
            np.testing.assert_allclose(
                final["cost"], np.where(over, costs, 0.0), rtol=1e-3, atol=1e-5
            )
            np.testing.assert_array_equal(final["sum_rate"][over], rewards[over].astype(np.float32))
            for index in range(num):
                if over[index]:
                    last = info["final_obs"][index]
                    assert last.shape == observations[index].shape
                    assert not np.array_equal(last, observations[index])
                    assert not np.array_equal(last, previous[index])
                else:
                    assert info["final_obs"][index] is None
        previous = observations
    assert finished.tolist() == [3] * num
    assert paid > 0.1


def test_info_has_the_structure_of_a_synchronous_vector_of_single_environments() -> None:
    num, length = 3, 2
    native = make_vec(num, **SMALL, episode_length=length, scheduling="contention")
    loop = SyncVectorEnv(
        [
            lambda: gym.make(
                "ISAC-MISO-v0", **SMALL, episode_length=length, scheduling="contention"
            )
            for _ in range(num)
        ],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    native.reset(seed=0)
    loop.reset(seed=0)
    native.action_space.seed(0)

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shape(entry) for name, entry in value.items()}
        return (value.shape, value.dtype.kind)

    for step in range(1, 5):
        actions = native.action_space.sample()
        ours, theirs = native.step(actions), loop.step(actions)
        for mine, reference in zip(ours[:4], theirs[:4], strict=True):
            assert (mine.shape, mine.dtype) == (reference.shape, reference.dtype)
        if step % length:
            assert shape(ours[4]) == shape(theirs[4])
            for name in theirs[4]:
                if name.startswith("_"):
                    np.testing.assert_array_equal(ours[4][name], theirs[4][name])
            continue
        # With all episodes over, the loop has the entries of the step in ``final_info`` alone; the
        # native one has them at the top level too.
        final = {"final_obs", "_final_obs", "final_info", "_final_info"}
        assert set(theirs[4]) == final
        assert {name: shape(ours[4][name]) for name in final} == shape(theirs[4])
        assert set(ours[4]) - final == set(ours[4]["final_info"])
        for name in set(ours[4]) - final:
            assert shape(ours[4][name]) == shape(ours[4]["final_info"][name])
            np.testing.assert_array_equal(ours[4][name], ours[4]["final_info"][name])
            assert not np.shares_memory(ours[4][name], ours[4]["final_info"][name])
            if name.startswith("_"):
                assert ours[4][name].all(), name
    native.close()
    loop.close()


def test_same_seed_same_trajectory() -> None:
    def run(seed: int) -> list[npt.NDArray[Any]]:
        envs = make_vec(4, **SMALL, episode_length=3, doppler=0.02, csi_error_variance=0.1)
        envs.action_space.seed(0)
        trace = [envs.reset(seed=seed)[0]]
        for _ in range(8):
            observations, rewards, _, truncations, info = envs.step(envs.action_space.sample())
            trace += [observations, rewards, truncations, info["cost"], info["rates"]]
        return trace

    first, second, other = run(5), run(5), run(6)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_reset_without_seed_goes_on_with_the_generator() -> None:
    envs = make_vec(2, **SMALL)
    first, _ = envs.reset(seed=0)
    second, _ = envs.reset()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(envs.reset(seed=0)[0], first)


def test_reset_mask_restarts_some() -> None:
    envs = make_vec(4, **SMALL, episode_length=3, doppler=0.0, csi_error_variance=0.1)
    envs.reset(seed=0)
    actions = np.zeros(envs.action_space.shape, np.float32)
    seen = envs.step(actions)[0]
    mask = np.array([False, True, False, True])
    observations, info = envs.reset(options={"reset_mask": mask})
    assert info == {}
    for index in range(4):
        assert np.array_equal(observations[index], seen[index]) == (not mask[index])
    assert envs.step(actions)[3].tolist() == [False] * 4
    assert envs.step(actions)[3].tolist() == [True, False, True, False]
    assert envs.step(actions)[3].tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    "mask",
    [np.ones(3, np.bool_), np.ones(2), np.ones((2, 1), np.bool_), [1, 0], "yes", [[True], []]],
)
def test_bad_reset_masks(mask: Any) -> None:
    envs = make_vec(2, **SMALL)
    envs.reset(seed=0)
    with pytest.raises((TypeError, ValueError), match="reset_mask"):
        envs.reset(options={"reset_mask": mask})


LINE: dict[str, Any] = {**SMALL, "num_cells": 2, "layout": "line", "episode_length": 3}


def points(*lead: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Points (…, 2, 3, 2) for the users of two cells along the line."""
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(30.0, 150.0, (*lead, 2, 3, 2))
    return np.array([[[0.0, 0.0]], [[500.0, 0.0]]]) + offsets


def positions_of(env: Any) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = env.unwrapped.simulation.positions
    return found


@pytest.mark.parametrize("is_shared", [False, True])
def test_users_of_a_batch_of_one_stand_where_those_of_the_single_environment_do(
    is_shared: bool,
) -> None:
    changes = {**LINE, "doppler": 0.05, "csi_error_variance": 0.1}
    single, batched = gym.make("ISAC-MISO-v0", **changes), make_vec(1, **changes)
    users = points()
    seen, _ = single.reset(seed=3, options={"user_positions": users})
    given = users if is_shared else users[None]
    batch, info = batched.reset(seed=3, options={"user_positions": given})
    assert info == {}
    single.action_space.seed(0)
    for step in range(1, 6):
        np.testing.assert_array_equal(batch[0], seen)
        np.testing.assert_array_equal(positions_of(batched), positions_of(single))
        assert np.array_equal(positions_of(batched)[0], users) == (step <= 3)
        action = single.action_space.sample()
        seen, reward, _, truncated, _ = single.step(action)
        batch, rewards, *_ = batched.step(action[None])
        assert rewards[0] == reward
        if truncated:
            seen, _ = single.reset()


def test_users_of_each_environment_stand_where_a_reset_puts_them() -> None:
    """Without scattering and shadowing a path has the power that its length gives it."""
    envs = make_vec(4, **LINE, shadowing_std_db=0.0, channel_model=RicianChannel(200.0))
    stations = np.array([[0.0, 0.0], [500.0, 0.0]])

    def expect_powers_of(users: npt.NDArray[np.float64]) -> None:
        apart = np.linalg.norm(users[:, None] - stations[:, None, None], axis=-1)
        expected = np.repeat((apart / 250.0)[..., None] ** -3.7, 9, -1)
        np.testing.assert_allclose(
            np.abs(envs.simulation.channels) ** 2, expected, rtol=1e-4, atol=1e-12
        )

    each, shared = points(4), points(seed=1)
    envs.reset(seed=0, options={"user_positions": each.tolist()})
    np.testing.assert_array_equal(positions_of(envs), each)
    expect_powers_of(each)
    envs.step(envs.action_space.sample())
    expect_powers_of(each)
    envs.reset(options={"user_positions": shared})
    np.testing.assert_array_equal(positions_of(envs), np.stack([shared] * 4))
    # Of positions for all environments a mask selects those that it restarts.
    mask, before = np.array([True, False, False, True]), envs.simulation.channels
    envs.reset(options={"user_positions": each, "reset_mask": mask})
    moved = np.where(mask[:, None, None, None], each, shared)
    np.testing.assert_array_equal(positions_of(envs), moved)
    expect_powers_of(moved)
    np.testing.assert_array_equal(envs.simulation.channels[~mask], before[~mask])
    other = points(seed=2)
    envs.reset(options={"user_positions": other, "reset_mask": ~mask})
    np.testing.assert_array_equal(positions_of(envs)[~mask], np.stack([other] * 2))
    np.testing.assert_array_equal(positions_of(envs)[mask], each[mask])
    # The users of the next episode are drawn.
    for _ in range(3):
        envs.step(envs.action_space.sample())
    assert (positions_of(envs)[~mask] != other).all()
    assert (positions_of(envs)[mask] != each[mask]).all()


def test_points_for_users_of_a_batch_that_are_not_allowed() -> None:
    envs = make_vec(3, **LINE)
    observations, _ = envs.reset(seed=0)
    near = points(3)
    near[2, 1, 0] = [500.0, 1.0]
    faults: list[tuple[Any, type[Exception], str]] = [
        (near, ValueError, r"must be at least .*user 0 of cell 1 in environment 2 at 1 m"),
        (near[2], ValueError, r"must be at least .*user 0 of cell 1 at 1 m from station 1"),
        (points(2), ValueError, r"must have shape \(3, 2, 3, 2\), got \(2, 2, 3, 2\)"),
        (points(3)[:, 0], ValueError, r"must have shape \(2, 3, 2\), got \(3, 3, 2\)"),
        (points(3, 1), ValueError, r"must have shape \(3, 2, 3, 2\)"),
        (np.nan * points(3), ValueError, "must be finite"),
        (1j * points(3), TypeError, "must hold real numbers"),
        ("far", TypeError, "must hold real numbers"),
        ([[1.0], [1.0, 2.0]], ValueError, "must be an array with rows of equal length"),
    ]
    for given, kind, text in faults:
        with pytest.raises(kind, match=rf"^options\['user_positions'\] {text}"):
            envs.reset(seed=9, options={"user_positions": given})
    with pytest.raises(ValueError, match=r"options\['user_positions'\] must be None with layout"):
        make_vec(2, **SMALL).reset(options={"user_positions": points(2)})
    # Nothing has happened: the generator goes on where it was.
    twin = make_vec(3, **LINE)
    np.testing.assert_array_equal(twin.reset(seed=0)[0], observations)
    np.testing.assert_array_equal(twin.reset()[0], envs.reset()[0])


def test_first_reset_must_start_all() -> None:
    envs = make_vec(2, **SMALL)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(envs.action_space.shape))
    with pytest.raises(ValueError, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(options={"reset_mask": np.array([True, True])})
    envs.step(np.zeros(envs.action_space.shape))


def test_bad_actions() -> None:
    envs = make_vec(3, **SMALL)
    envs.reset(seed=0)
    size = envs.single_action_space.shape[0]
    for shape in ((size,), (3, size - 1), (2, size), (4, size), (3, size, 1), (size, 3)):
        with pytest.raises(ValueError, match=rf"action must have shape \(3, {size}\)"):
            envs.step(np.zeros(shape))
    for value in (np.nan, np.inf, -np.inf, 1.001):
        actions = np.zeros((3, size))
        actions[2, 4] = value
        with pytest.raises(ValueError, match=r"within \[-1, 1\].*\(2, 4\)"):
            envs.step(actions)
    for dtype in (np.complex64, object, "U1", np.bool_):
        with pytest.raises(TypeError, match="real numbers"):
            envs.step(np.zeros((3, size), np.int8).astype(dtype))
    actions = np.zeros((3, size))
    actions.flags.writeable = False
    envs.step(actions)


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, True, "3", None])
def test_bad_number_of_environments(num_envs: Any) -> None:
    with pytest.raises(ValueError, match="num_envs must be an integer >= 1"):
        ISACVectorEnv(num_envs)


def test_unknown_keyword_and_render_mode() -> None:
    with pytest.raises(TypeError, match=r"num_user.*allowed are num_users"):
        make_vec(2, num_user=3)
    with pytest.raises(ValueError, match="human"):
        ISACVectorEnv(2, render_mode="human")


def test_options_that_a_batch_does_not_know_are_not_ignored() -> None:
    envs = make_vec(2, **SMALL)
    with pytest.raises(ValueError, match=r"options must hold nothing but .*'channels'.*\['H'\]"):
        envs.reset(options={"H": np.ones((2, 3, 9), np.complex64)})


def test_what_is_handed_out_belongs_to_the_caller() -> None:
    clean, spoiled = (make_vec(3, **SMALL, episode_length=2) for _ in range(2))
    clean.reset(seed=0)
    spoiled.reset(seed=0)[0][:] = 5.0
    clean.action_space.seed(0)
    for _ in range(5):
        actions = clean.action_space.sample()
        expected, result = clean.step(actions), spoiled.step(actions)
        np.testing.assert_array_equal(result[0], expected[0])
        np.testing.assert_array_equal(result[1], expected[1])
        for array in result[:4]:
            array[...] = 1
        held = [result[4]] + ([result[4]["final_info"]] if "final_info" in result[4] else [])
        for info in held:
            for name, value in info.items():
                if isinstance(value, np.ndarray) and value.dtype != object:
                    value[...] = 1
                elif name == "final_obs":
                    for row in value:
                        row[:] = 3.0


def test_record_episode_statistics() -> None:
    envs = RecordEpisodeStatistics(make_vec(4, **SMALL, episode_length=3))
    envs.reset(seed=0)
    envs.action_space.seed(0)
    totals = np.zeros(4)
    for step in range(1, 10):
        _, rewards, _, _, info = envs.step(envs.action_space.sample())
        totals += rewards
        if step % 3:
            assert "episode" not in info
            continue
        np.testing.assert_allclose(info["episode"]["r"], totals, rtol=1e-5)
        assert info["episode"]["l"].tolist() == [3] * 4
        totals[:] = 0.0
    assert len(envs.return_queue) == 12
    envs.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_pictures_of_a_batch_are_those_of_its_environments(mode: AutoresetMode) -> None:
    settings: dict[str, Any] = {**SMALL, "episode_length": 2, "render_mode": "rgb_array"}
    envs = make_vec(2, **settings, autoreset_mode=mode)
    singles = [ISACEnv(**settings) for _ in range(2)]
    envs.reset(seed=[4, 5])
    for seed, env in zip((4, 5), singles, strict=True):
        env.reset(seed=seed)
    envs.action_space.seed(0)
    for step in range(1, 4):
        actions = envs.action_space.sample()
        envs.step(actions)
        for env, action in zip(singles, actions, strict=True):
            if step == 3:
                env.reset()
                if mode is AutoresetMode.NEXT_STEP:
                    continue
            env.step(action)
        pictures = envs.render()
        assert isinstance(pictures, tuple)
        for picture, env in zip(pictures, singles, strict=True):
            expected = env.render()
            assert expected is not None
            assert (picture.shape, picture.dtype) == (expected.shape, np.uint8)
            # Rates differ in their last bits with the size of a batch.
            assert np.mean(picture != expected) < 1e-3
        has_sent = step < 3 or mode is not AutoresetMode.NEXT_STEP
        assert np.array_equal(*pictures) != has_sent
        if step == 2 and mode is AutoresetMode.DISABLED:
            envs.reset(options={"reset_mask": np.ones(2, np.bool_)})
    envs.close()


def test_render_without_a_mode_warns() -> None:
    envs = make_vec(2, **SMALL)
    with pytest.warns(UserWarning, match="render_mode"):
        assert envs.render() is None


def test_pickling() -> None:
    envs = make_vec(3, **SMALL, doppler=0.1, episode_length=2)
    envs.reset(seed=0)
    envs.step(np.zeros(envs.action_space.shape))
    twin = pickle.loads(pickle.dumps(envs))
    for _ in range(3):
        ours, theirs = (e.step(np.full(envs.action_space.shape, 0.5)) for e in (envs, twin))
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_no_warnings_in_a_long_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = make_vec(64, episode_length=5)
        envs.reset(seed=0)
        envs.action_space.seed(0)
        for _ in range(20):
            observations, rewards, *_ = envs.step(envs.action_space.sample())
            assert np.isfinite(observations).all()
            assert (rewards > 0).all()
        envs.close()
