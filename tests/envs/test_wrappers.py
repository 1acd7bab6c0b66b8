"""The cost dialects, against the plain environment stepped with the same actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL
from gymnasium.utils.env_checker import check_env

from isac_gym.envs.wrappers import (
    EpisodeCostStatistics,
    PenalisedReward,
    SafetyGymnasium,
    VectorReward,
)

LENGTH = 4


def plain(scheduling: str = "contention") -> gym.Env[Any, Any]:
    return gym.make(
        "ISAC-MISO-v0",
        **SMALL,
        power_limit="cost",
        scheduling=scheduling,
        episode_length=LENGTH,
    )


def pair(
    wrap: Callable[[gym.Env[Any, Any]], Any], scheduling: str = "contention"
) -> tuple[gym.Env[Any, Any], Any]:
    bare, wrapped = plain(scheduling), wrap(plain(scheduling))
    observations = bare.reset(seed=3)[0], wrapped.reset(seed=3)[0]
    np.testing.assert_array_equal(*observations)
    bare.action_space.seed(0)
    return bare, wrapped


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return set(left) == set(right) and all(np.array_equal(left[k], right[k]) for k in left)


def test_safety_gymnasium_puts_the_cost_after_the_reward() -> None:
    bare, wrapped = pair(SafetyGymnasium)
    costs = []
    for _ in range(LENGTH):
        action = bare.action_space.sample()
        observation, reward, terminated, truncated, info = bare.step(action)
        found = wrapped.step(action)
        assert len(found) == 6
        np.testing.assert_array_equal(found[0], observation)
        assert found[1:5] == (reward, info["cost"], terminated, truncated)
        assert [type(entry) for entry in found[1:5]] == [float, float, bool, bool]
        assert same(found[5], info)
        costs.append(found[2])
    assert max(costs) > 0


@pytest.mark.parametrize(
    "weights",
    [
        10.0,
        0,
        {"cost_power": 2.0, "cost_sensing": 0.5},
        {"cost_scheduling": 3},
        {"cost": 1.5, "cost_sensing": 0.0},
    ],
)
def test_penalised_reward(weights: Any) -> None:
    bare, wrapped = pair(lambda env: PenalisedReward(env, weights))
    for _ in range(LENGTH):
        action = bare.action_space.sample()
        _, reward, *_, info = bare.step(action)
        _, found, *_, found_info = wrapped.step(action)
        named = weights if isinstance(weights, dict) else {"cost": weights}
        expected = reward - sum(weight * float(info[name]) for name, weight in named.items())
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert isinstance(found, float)
        assert found_info["sum_rate"] == reward
        assert same(found_info, info)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_penalised_reward_rejects_weights(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weights\['cost_power'\]"):
        PenalisedReward(plain(), {"cost_power": weight})
    with pytest.raises(ValueError, match=r"weights\['cost'\]"):
        PenalisedReward(plain(), weight)


def test_penalised_reward_names_the_costs_it_knows() -> None:
    with pytest.raises(ValueError, match=r"cost_power.*cost_sensing.*cost_scheduling"):
        PenalisedReward(plain("all"), {"cost_scheduling": 1.0})


@pytest.mark.parametrize("scheduling", ["all", "contention"])
def test_vector_reward(scheduling: str) -> None:
    bare, wrapped = pair(VectorReward, scheduling)
    names = ["sum_rate", "cost_power", "cost_sensing"]
    names += ["cost_scheduling"] if scheduling == "contention" else []
    assert list(wrapped.reward_names) == names
    assert wrapped.reward_space.shape == (len(names),)
    for _ in range(LENGTH):
        action = bare.action_space.sample()
        _, reward, *_, info = bare.step(action)
        found = wrapped.step(action)[1]
        assert found.dtype == np.float32
        assert found in wrapped.reward_space
        expected = [reward] + [-info[name] for name in names[1:]]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert (found[1:] <= 0).all()


def test_episode_cost_statistics() -> None:
    bare, wrapped = pair(EpisodeCostStatistics)
    for episode in range(3):
        sums: dict[str, float] = {"r": 0.0, "c": 0.0, "l": 0}
        for step in range(1, LENGTH + 1):
            action = bare.action_space.sample()
            _, reward, *_, info = bare.step(action)
            found = wrapped.step(action)
            assert found[1] == reward
            sums["r"] += reward
            sums["c"] += info["cost"]
            sums["l"] += 1
            for name in ("cost_power", "cost_sensing", "cost_scheduling"):
                sums[name] = sums.get(name, 0.0) + info[name]
            if step < LENGTH:
                assert same(found[4], info)
        assert found[4]["episode_cost"] == pytest.approx(sums)
        kept = dict(found[4]["episode_cost"])
        bare.reset()
        wrapped.reset()
        if episode == 1:
            # A reset in the middle of an episode forgets what was summed.
            action = bare.action_space.sample()
            bare.step(action)
            wrapped.step(action)
            bare.reset()
            wrapped.reset()
        assert found[4]["episode_cost"] == kept


def test_penalised_reward_passes_the_checker() -> None:
    with pytest.warns(UserWarning, match="different from the unwrapped version") as caught:
        check_env(PenalisedReward(plain().unwrapped), skip_render_check=True)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        SafetyGymnasium,
        lambda env: PenalisedReward(env, {"cost_power": 2.0}),
        VectorReward,
        EpisodeCostStatistics,
    ],
    ids=["safety", "penalised", "vector", "episode"],
)
def test_a_wrapped_environment_can_be_made_again_from_its_spec(
    wrap: Callable[[gym.Env[Any, Any]], Any],
) -> None:
    wrapped = wrap(plain())
    again = gym.make(wrapped.spec)
    assert type(again) is type(wrapped)
    wrapped.reset(seed=0)
    again.reset(seed=0)
    action = np.full(wrapped.action_space.shape, 0.3, np.float32)
    first, second = wrapped.step(action), again.step(action)
    np.testing.assert_array_equal(first[1], second[1])
    assert len(first) == len(second)


def test_wrappers_combine() -> None:
    env = SafetyGymnasium(EpisodeCostStatistics(PenalisedReward(plain(), 2.0)))
    env.reset(seed=0)
    total = cost = 0.0
    for _ in range(LENGTH):
        _, reward, paid, _, truncated, info = env.step(env.action_space.sample())
        assert reward == pytest.approx(info["sum_rate"] - 2.0 * paid)
        total += reward
        cost += paid
    assert truncated
    assert info["episode_cost"]["r"] == pytest.approx(total)
    assert info["episode_cost"]["c"] == pytest.approx(cost)
