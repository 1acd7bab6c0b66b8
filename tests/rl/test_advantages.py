from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from isac_gym.rl.advantages import compare_in_episodes, estimate_advantages, mix_advantages


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.9, 0.8), (0.99, 1.0), (0.7, 0.0), (0.0, 0.9)])
def test_advantages_are_the_double_sum_of_errors(gamma: float, gae_lambda: float) -> None:
    rng = np.random.default_rng(0)
    steps, envs, m = 7, 3, 2
    signals, values = rng.standard_normal((2, steps, envs, m)).astype(np.float32)
    last_values = rng.standard_normal((envs, m)).astype(np.float32)
    starts = rng.random((steps, envs)) < 0.3
    dones = np.array([True, False, False])
    found = estimate_advantages(signals, values, last_values, starts, dones, gamma, gae_lambda)
    ends = np.concatenate([starts[1:], dones[None]])
    following = np.concatenate([values[1:], last_values[None]])
    for i in range(envs):
        for t in range(steps):
            expected, weight = np.zeros(m), 1.0
            for k in range(t, steps):
                ahead = 0.0 if ends[k, i] else gamma * following[k, i]
                expected += weight * (signals[k, i] + ahead - values[k, i])
                weight *= gamma * gae_lambda
                if ends[k, i]:
                    break
            np.testing.assert_allclose(found[t, i], expected, rtol=1e-4, atol=1e-5)


def test_the_mixture_is_of_advantages_as_they_stand() -> None:
    rewards = np.array([[1.0, 2.0, 6.0]], np.float32)
    constraints = np.array([[[1.0, 10.0], [0.0, 20.0], [-1.0, 60.0]]], np.float32)
    found = mix_advantages(rewards, constraints, np.array([2.0, 0.5], np.float32))
    expected = [[(1 - 2 - 5) / 3.5, (2 - 10) / 3.5, (6 + 2 - 30) / 3.5]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_a_reward_in_another_unit_and_its_multiplier_mix_to_the_same_direction() -> None:
    rng = np.random.default_rng(1)
    rewards = rng.standard_normal(50).astype(np.float32)
    constraints = rng.standard_normal((50, 2)).astype(np.float32)
    multipliers = np.array([0.4, 3.0], np.float32)

    def normalise(advantages: np.ndarray) -> np.ndarray:
        return (advantages - advantages.mean()) / advantages.std()

    one = normalise(mix_advantages(rewards, constraints, multipliers))
    other = normalise(mix_advantages(10 * rewards, constraints, 10 * multipliers))
    np.testing.assert_allclose(one, other, atol=1e-5)
    changed = normalise(mix_advantages(10 * rewards, constraints, multipliers))
    assert abs(one - changed).max() > 0.1


def test_steps_are_compared_within_their_episodes() -> None:
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(6, 3, 2)).astype(np.float32)
    starts = np.zeros((6, 3), np.float32)
    starts[[0, 3], 0] = 1.0  # two episodes of three steps
    starts[2, 1] = 1.0  # one that had begun before, of two steps, then one of four
    found = compare_in_episodes(signals, starts)
    episodes = [
        (0, slice(0, 3)),
        (0, slice(3, 6)),
        (1, slice(0, 2)),
        (1, slice(2, 6)),
        (2, slice(0, 6)),
    ]
    expected = np.full_like(signals, np.nan)
    for env, steps in episodes:
        part = signals[steps, env].astype(float)
        expected[steps, env] = part - part.mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not compare_in_episodes(signals, np.ones((6, 3), np.float32)).any()
