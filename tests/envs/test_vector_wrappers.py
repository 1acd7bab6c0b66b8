"""The cost dialects of vector environments, against single environments in their wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from isac_gym.envs import wrappers
from isac_gym.envs.wrappers import vector

LENGTH = 3
NUM = 3
MODES = list(AutoresetMode)
SETTINGS: dict[str, Any] = {
    **SMALL,
    "power_limit": "cost",
    "scheduling": "contention",
    "episode_length": LENGTH,
}
COSTS = ("cost_power", "cost_sensing", "cost_scheduling")


def make_native(mode: AutoresetMode, num: int = NUM, **changes: Any) -> VectorEnv[Any, Any, Any]:
    return gym.make_vec(
        "ISAC-MISO-v0", num_envs=num, autoreset_mode=mode, **{**SETTINGS, **changes}
    )


def make_loop(mode: AutoresetMode, num: int = NUM, **changes: Any) -> VectorEnv[Any, Any, Any]:
    settings = {**SETTINGS, **changes}
    makers = [lambda: gym.make("ISAC-MISO-v0", **settings) for _ in range(num)]
    return SyncVectorEnv(makers, autoreset_mode=mode)


MAKERS = pytest.mark.parametrize("make", [make_native, make_loop], ids=["native", "loop"])


@MAKERS
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_autoreset_mode_is_an_attribute(make: Any, mode: AutoresetMode) -> None:
    for kind in (
        vector.SafetyGymnasium,
        vector.PenalisedReward,
        vector.VectorReward,
        vector.EpisodeCostStatistics,
    ):
        options = {"weights": 1.0} if kind is vector.PenalisedReward else {}
        assert kind(make(mode), **options).autoreset_mode is mode


def run(
    envs: Any, wrap_single: Callable[[Any], Any], steps: int = 4 * LENGTH, stagger: bool = True
) -> list[tuple[Any, list[Any]]]:
    """Steps of a vector, beside those of single environments in the same phases.

    Returns:
        For every step the vector's result, and the result of each single environment, None where a
        step only restarts it.
    """
    mode = envs.metadata["autoreset_mode"]
    singles = [wrap_single(gym.make("ISAC-MISO-v0", **SETTINGS)) for _ in range(NUM)]
    seeds = list(range(NUM))
    envs.reset(seed=seeds)
    for seed, env in zip(seeds, singles, strict=True):
        env.reset(seed=seed)
    envs.action_space.seed(0)
    ended = [False] * NUM
    found = []
    for step in range(1, steps + 1):
        actions = envs.action_space.sample()
        result = envs.step(actions)
        expected: list[Any] = []
        for index, env in enumerate(singles):
            if ended[index] and mode is AutoresetMode.NEXT_STEP:
                env.reset()
                expected.append(None)
                ended[index] = False
                continue
            expected.append(env.step(actions[index]))
            ended[index] = expected[-1][-2]
            if ended[index] and mode is AutoresetMode.SAME_STEP:
                env.reset()
                ended[index] = False
        found.append((result, expected))
        restart = np.array(ended) & (mode is AutoresetMode.DISABLED)
        if step == 1 and stagger:
            restart[1] = True
        if restart.any():
            envs.reset(options={"reset_mask": restart.copy()})
            for index in np.flatnonzero(restart):
                singles[index].reset()
                ended[index] = False
    return found


@MAKERS
@pytest.mark.parametrize("mode", MODES)
def test_safety_gymnasium(mode: AutoresetMode, make: Any) -> None:
    last = []
    for result, expected in run(vector.SafetyGymnasium(make(mode)), wrappers.SafetyGymnasium):
        assert len(result) == 6
        _, rewards, costs, _, truncated, _ = result
        assert (costs.shape, costs.dtype) == ((NUM,), np.float64)
        for index, single in enumerate(expected):
            reward, cost = (0.0, 0.0) if single is None else single[1:3]
            assert rewards[index] == pytest.approx(reward, rel=1e-5)
            assert costs[index] == pytest.approx(cost, rel=1e-4, abs=1e-5)
            last += [costs[index]] if truncated[index] else []
    assert len(last) >= 6
    assert min(last) > 0.1


@MAKERS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [5.0, {"cost_power": 2.0, "cost_scheduling": 3.0}])
def test_penalised_reward(mode: AutoresetMode, make: Any, weights: Any) -> None:
    def wrap(env: Any) -> Any:
        return wrappers.PenalisedReward(env, weights)

    for result, expected in run(vector.PenalisedReward(make(mode), weights), wrap):
        assert result[1].dtype == np.float64
        earned = [0.0 if single is None else single[1] for single in expected]
        np.testing.assert_allclose(result[1], earned, rtol=1e-4, atol=1e-4)


@MAKERS
@pytest.mark.parametrize("mode", MODES)
def test_vector_reward(mode: AutoresetMode, make: Any) -> None:
    envs = vector.VectorReward(make(mode))
    assert envs.reward_names == ("sum_rate", *COSTS)
    assert envs.unwrapped.reward_space == envs.reward_space
    for result, expected in run(envs, wrappers.VectorReward):
        assert (result[1].shape, result[1].dtype) == ((NUM, 4), np.float32)
        earned = [np.zeros(4) if single is None else single[1] for single in expected]
        np.testing.assert_allclose(result[1], earned, rtol=1e-4, atol=1e-5)
        assert all(row in envs.reward_space for row in result[1])


@MAKERS
@pytest.mark.parametrize("mode", MODES)
def test_episode_cost_statistics(mode: AutoresetMode, make: Any) -> None:
    episodes = np.zeros(NUM, int)
    for result, expected in run(
        vector.EpisodeCostStatistics(make(mode)), wrappers.EpisodeCostStatistics
    ):
        info, truncated = result[4], result[3]
        if not truncated.any():
            assert "episode_cost" not in info
            continue
        np.testing.assert_array_equal(info["_episode_cost"], truncated)
        assert set(info["episode_cost"]) == {"r", "c", "l", *COSTS}
        for index, single in enumerate(expected):
            for key, values in info["episode_cost"].items():
                wanted = single[4]["episode_cost"][key] if truncated[index] else 0.0
                assert values[index] == pytest.approx(wanted, rel=1e-4, abs=1e-5), key
            assert info["episode_cost"]["l"][index] == (LENGTH if truncated[index] else 0)
        episodes += truncated
    assert episodes.min() >= 2


@pytest.mark.parametrize("mode", MODES)
def test_statistics_forget_what_a_reset_breaks_off(mode: AutoresetMode) -> None:
    envs = vector.EpisodeCostStatistics(make_native(mode))
    envs.reset(seed=0)
    envs.action_space.seed(0)
    envs.step(envs.action_space.sample())
    envs.reset()
    for _ in range(LENGTH):
        info = envs.step(envs.action_space.sample())[4]
    assert info["episode_cost"]["l"].tolist() == [LENGTH] * NUM


def test_wrappers_combine_and_are_passed_through_make_vec() -> None:
    envs = gym.make_vec(
        "ISAC-MISO-v0",
        num_envs=4,
        vector_wrappers=[
            lambda envs: vector.PenalisedReward(envs, 2.0),
            vector.EpisodeCostStatistics,
            vector.SafetyGymnasium,
        ],
        **SETTINGS,
    )
    assert isinstance(envs, vector.SafetyGymnasium)
    assert isinstance(envs.env, vector.EpisodeCostStatistics)
    envs.reset(seed=0)
    total = np.zeros(4)
    for _ in range(LENGTH):
        _, rewards, costs, _, _, info = envs.step(envs.action_space.sample())  # type: ignore[misc]
        np.testing.assert_allclose(rewards, info["sum_rate"] - 2.0 * costs, rtol=1e-5, atol=1e-5)
        total += costs
    np.testing.assert_allclose(info["episode_cost"]["c"], total, rtol=1e-6)
    assert envs.spec is not None
    again = gym.make_vec(envs.spec)
    assert isinstance(again, vector.SafetyGymnasium)
    with pytest.raises(TypeError, match="vector_wrappers must hold functions or classes, got 3"):
        gym.make_vec("ISAC-MISO-v0", num_envs=1, vector_wrappers=[3])


def test_wrappers_of_single_environments_go_through_make_vec() -> None:
    """Gymnasium hands ``wrappers`` to single environments, and refuses them for a batch."""
    envs = gym.make_vec(
        "ISAC-MISO-v0",
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        wrappers=[lambda env: wrappers.PenalisedReward(env, 2.0), wrappers.EpisodeCostStatistics],
        **SETTINGS,
    )
    envs.reset(seed=[0, 1])
    for _ in range(LENGTH):
        _, rewards, _, _, info = envs.step(envs.action_space.sample())
    last = info["final_info"]
    np.testing.assert_allclose(rewards, last["sum_rate"] - 2.0 * last["cost"], rtol=1e-5, atol=1e-5)
    assert last["episode_cost"]["l"].tolist() == [LENGTH] * 2
    with pytest.raises(gym.error.Error, match="wrappers"):
        gym.make_vec("ISAC-MISO-v0", num_envs=2, wrappers=[wrappers.EpisodeCostStatistics])


def test_environments_that_have_no_costs() -> None:
    envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    with pytest.raises(TypeError, match="env must be an ISAC-MISO environment"):
        vector.PenalisedReward(envs, 1.0)
    with pytest.raises(ValueError, match=r"weights must be keyed by costs.*cost_nothing"):
        vector.PenalisedReward(make_native(AutoresetMode.SAME_STEP), {"cost_nothing": 1.0})
