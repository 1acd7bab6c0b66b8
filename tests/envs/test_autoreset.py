"""What happens when episodes end, against Gymnasium's vector of single environments, by mode."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import (
    FlattenObservation,
    NormalizeObservation,
    RecordEpisodeStatistics,
    TransformObservation,
)

from isac_gym import ISACVectorEnv

LENGTH = 3
MODES = list(AutoresetMode)
FINAL = ("final_obs", "_final_obs", "final_info", "_final_info")
SETTINGS: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "doppler": 0.05, "csi_error_variance": 0.2},
    {**SMALL, "num_cells": 2, "layout": "line", "doppler": 0.1, "csi_error_variance": 0.1},
]


def make_vec(num_envs: int, mode: AutoresetMode | str, **settings: Any) -> ISACVectorEnv:
    settings = {**SMALL, "episode_length": LENGTH, **settings}
    envs = gym.make_vec(
        "ISAC-MISO-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        autoreset_mode=mode,
        **settings,
    )
    assert isinstance(envs, ISACVectorEnv)
    return envs


def make_loop(num_envs: int, mode: AutoresetMode, **settings: Any) -> SyncVectorEnv:
    settings = {**SMALL, "episode_length": LENGTH, **settings}
    envs = gym.make_vec(
        "ISAC-MISO-v0",
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **settings,
    )
    assert isinstance(envs, SyncVectorEnv)
    return envs


@pytest.mark.parametrize("mode", MODES)
def test_mode_is_an_argument_an_attribute_and_metadata(mode: AutoresetMode) -> None:
    for given in (mode, mode.value):
        envs = make_vec(2, given)
        assert envs.autoreset_mode is mode
        assert envs.metadata["autoreset_mode"] is mode
        assert envs.spec is not None
        again = gym.make_vec(copy.deepcopy(envs.spec))
        assert again.metadata["autoreset_mode"] is mode
    assert make_loop(2, mode).metadata["autoreset_mode"] is mode


def test_instances_share_no_metadata() -> None:
    first, second = make_vec(1, "NextStep"), make_vec(1, "Disabled")
    assert first.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    first.metadata["render_modes"].append("human")
    first.metadata["render_fps"] = 1
    for other in (second.metadata, ISACVectorEnv.metadata, ISACVectorEnv(1, **SMALL).metadata):
        assert other["render_modes"] == ["rgb_array"]
        assert other["render_fps"] == 4
    assert ISACVectorEnv(1, **SMALL).autoreset_mode is AutoresetMode.SAME_STEP


@pytest.mark.parametrize("mode", ["same_step", "", None, 1, True])
def test_modes_that_there_are_not(mode: Any) -> None:
    with pytest.raises(
        ValueError, match=r"autoreset_mode must be an AutoresetMode or one of .*'SameStep'"
    ):
        ISACVectorEnv(1, autoreset_mode=mode)


@pytest.mark.parametrize("settings", SETTINGS, ids=["fading", "moving", "cells"])
@pytest.mark.parametrize("mode", MODES)
def test_one_environment_is_gymnasiums_vector_of_one_bit_for_bit(
    mode: AutoresetMode, settings: dict[str, Any]
) -> None:
    """Several episodes, with the same seed; infos too, but for the last step in SAME_STEP."""
    ours, theirs = make_vec(1, mode, **settings), make_loop(1, mode, **settings)
    np.testing.assert_array_equal(ours.reset(seed=8)[0], theirs.reset(seed=8)[0])
    ours.action_space.seed(1)
    ends = []
    for step in range(1, 4 * LENGTH + 5):
        actions = ours.action_space.sample()
        found, expected = ours.step(actions), theirs.step(actions)
        for mine, reference in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(mine, reference)
            assert mine.dtype == reference.dtype
        ended = bool(expected[3][0])
        ends += [step] if ended else []
        infos, reference_infos = found[4], expected[4]
        if ended and mode is AutoresetMode.SAME_STEP:
            np.testing.assert_array_equal(infos["final_obs"][0], reference_infos["final_obs"][0])
            # The entries of the step are at the top level as well.
            rest = {name: value for name, value in infos.items() if name not in FINAL}
            assert_equal_infos(rest, reference_infos["final_info"])
            infos, reference_infos = infos["final_info"], reference_infos["final_info"]
        assert_equal_infos(infos, reference_infos)
        if ended and mode is AutoresetMode.DISABLED:
            for envs in (ours, theirs):
                with pytest.raises((gym.error.ResetNeeded, AssertionError)):
                    envs.step(actions)
            mask = np.ones(1, np.bool_)
            np.testing.assert_array_equal(
                ours.reset(options={"reset_mask": mask})[0],
                theirs.reset(options={"reset_mask": mask})[0],
            )
    period = LENGTH + (mode is AutoresetMode.NEXT_STEP)
    assert ends == list(range(LENGTH, 4 * LENGTH + 5, period))


def assert_equal_infos(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert found[name].dtype == value.dtype, name


@pytest.mark.parametrize("settings", SETTINGS, ids=["fading", "moving", "cells"])
@pytest.mark.parametrize("mode", MODES)
def test_staggered_episodes_are_those_of_gymnasiums_vector(
    mode: AutoresetMode, settings: dict[str, Any]
) -> None:
    """Environments with a seed each, whose episodes end in different steps."""
    num = 4
    ours, theirs = make_vec(num, mode, **settings), make_loop(num, mode, **settings)
    seeds = [3, 1, 4, 1]
    np.testing.assert_array_equal(ours.reset(seed=seeds)[0], theirs.reset(seed=seeds)[0])
    ours.action_space.seed(1)
    mixed = 0
    for step in range(1, 5 * LENGTH):
        actions = ours.action_space.sample()
        found, expected = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
        np.testing.assert_array_equal(found[3], expected[3])
        # A reward of exactly 0 is that of a step that only restarts.
        np.testing.assert_array_equal(found[1] == 0, expected[1] == 0)
        acted = found[1] > 0
        mixed += 0 < found[3].sum() < num or 0 < acted.sum() < num
        if acted.any():
            np.testing.assert_array_equal(found[4]["_cost"], acted)
            costs = expected[4].get("cost", np.zeros(num))
            if mode is AutoresetMode.SAME_STEP and expected[3].any():
                costs = np.where(expected[3], expected[4]["final_info"]["cost"], costs)
            np.testing.assert_allclose(found[4]["cost"], costs, rtol=1e-4, atol=1e-5)
        else:
            assert found[4] == {} == expected[4]
        restart = np.zeros(num, np.bool_)
        if step <= 2:
            restart[step] = True
        if mode is AutoresetMode.DISABLED:
            restart |= expected[3]
        if restart.any():
            np.testing.assert_array_equal(
                ours.reset(options={"reset_mask": restart})[0],
                theirs.reset(options={"reset_mask": restart})[0],
            )
    assert mixed >= 3


def test_a_step_that_only_restarts_heeds_no_action() -> None:
    envs = make_vec(2, "NextStep")
    envs.reset(seed=[0, 1])
    actions = np.full(envs.action_space.shape, 0.1, np.float32)
    envs.step(actions)
    envs.reset(options={"reset_mask": np.array([True, False])})
    envs.step(actions)
    assert envs.step(actions)[3].tolist() == [False, True]
    refused = actions.copy()
    refused[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"within \[-1, 1\]"):
        envs.step(refused)
    refused = actions.copy()
    refused[1] = np.nan
    _, rewards, _, truncated, info = envs.step(refused)
    assert rewards[0] > 0
    assert rewards[1] == 0
    assert truncated.tolist() == [True, False]
    assert info["_cost"].tolist() == [True, False]
    with pytest.raises(ValueError, match="action must have shape"):
        envs.step(actions[:, 1:])


def test_disabled_names_the_environments_that_have_to_be_restarted() -> None:
    envs = make_vec(3, "Disabled")
    envs.reset(seed=0)
    actions = np.zeros(envs.action_space.shape, np.float32)
    envs.step(actions)
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    envs.step(actions)
    assert envs.step(actions)[3].tolist() == [True, False, True]
    with pytest.raises(gym.error.ResetNeeded, match=r"environments \[0, 2\]"):
        envs.step(actions)
    envs.reset(options={"reset_mask": np.array([True, False, True])})
    assert envs.step(actions)[3].tolist() == [False, True, False]


@pytest.mark.parametrize("mode", MODES)
def test_a_reward_minus_a_weighted_cost_is_right_in_every_step(mode: AutoresetMode) -> None:
    """The plain expression, summed over episodes, against single environments."""
    num, weight = 3, 7.0
    envs = make_vec(num, mode, power_limit="cost")
    envs.reset(seed=list(range(num)))
    envs.action_space.seed(0)
    found = expected = 0.0
    singles = [gym.make("ISAC-MISO-v0", **SMALL, power_limit="cost") for _ in range(num)]
    for seed, env in enumerate(singles):
        env.reset(seed=seed)
    last_costs = []
    for _ in range(LENGTH):
        actions = envs.action_space.sample()
        _, rewards, _, truncated, info = envs.step(actions)
        found += (rewards - weight * info["cost"]).sum()
        for env, action in zip(singles, actions, strict=True):
            _, reward, _, _, entries = env.step(action)
            expected += reward - weight * entries["cost"]
            last_costs.append(float(entries["cost"]))
    assert truncated.all()
    assert min(last_costs[-num:]) > 0.1
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_gymnasiums_vector_observation_wrappers(mode: AutoresetMode) -> None:
    def wrap(envs: Any) -> Any:
        space = gym.spaces.Box(-np.inf, np.inf, envs.single_observation_space.shape, np.float64)
        envs = TransformObservation(
            envs, lambda rows: 2.0 * rows.astype(np.float64), single_observation_space=space
        )
        envs = RecordEpisodeStatistics(FlattenObservation(envs))
        # Gymnasium's running statistics are for NEXT_STEP alone.
        return NormalizeObservation(envs) if mode is AutoresetMode.NEXT_STEP else envs

    ours, theirs = wrap(make_vec(1, mode)), wrap(make_loop(1, mode))
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    ours.action_space.seed(1)
    episodes = 0
    for _ in range(9):
        actions = ours.action_space.sample()
        found, expected = ours.step(actions), theirs.step(actions)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
        if expected[3].any():
            episodes += 1
            for key in ("r", "l"):
                np.testing.assert_array_equal(found[4]["episode"][key], expected[4]["episode"][key])
            assert found[4]["episode"]["l"].tolist() == [LENGTH]
            if mode is AutoresetMode.DISABLED:
                mask = np.ones(1, np.bool_)
                np.testing.assert_array_equal(
                    ours.reset(options={"reset_mask": mask.copy()})[0],
                    theirs.reset(options={"reset_mask": mask.copy()})[0],
                )
    assert episodes >= 2
