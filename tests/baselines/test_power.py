"""Equal and random powers along fixed directions."""

from __future__ import annotations

from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from direct_model import SMALL

from isac_gym.baselines import EqualPower, RandomPower
from isac_gym.registry import make_agent

CONTROLS = ("power", "beamforming")


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


def precoders(agent: Any, env: gym.Env[Any, Any], seed: int = 0) -> npt.NDArray[Any]:
    observation, _ = env.reset(seed=seed)
    found: npt.NDArray[Any] = env.unwrapped.decode_action(agent.predict(observation)[0])[0]
    return found.astype(np.complex128)


def powers(agent: Any, env: gym.Env[Any, Any], seed: int = 0) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.sum(np.abs(precoders(agent, env, seed)) ** 2, axis=-2)
    return found


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("kind", ["mrt", "zf", "rzf"])
@pytest.mark.parametrize("radar", ["learned", "fixed"])
def test_equal_power_along_the_scenarios_directions(control: str, kind: str, radar: str) -> None:
    env = make(control=control, precoder_directions=kind, radar=radar, comm_power=3.6)
    F = precoders(EqualPower(env), env, seed=2)
    g = env.unwrapped.channels[:, 4:].astype(np.complex128)
    expected = direct_model.directions(env.unwrapped.scenario, g) * np.sqrt(3.6 / 3)
    np.testing.assert_allclose(F, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("limit", ["project", "cost"])
def test_the_papers_equal_power_is_a_tenth_of_a_watt(control: str, limit: str) -> None:
    env = make(control=control, power_limit=limit)
    found = powers(make_agent("equal-power-paper", env), env)
    np.testing.assert_allclose(found, np.full(3, 0.1), rtol=1e-4)


def test_any_equal_power() -> None:
    env = make(control="power", power_limit="cost")
    for value in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(
            powers(EqualPower(env, value), env), np.full(3, value), atol=1e-6
        )
    # With the whole budget for each user, projection brings it back to P_C/K.
    limited = make(control="power", power_limit="project")
    found = powers(EqualPower(limited, 1.0), limited)
    np.testing.assert_allclose(found, np.full(3, 1 / 3), rtol=1e-5)


@pytest.mark.parametrize("control", CONTROLS)
def test_random_power_uses_up_the_budget(control: str) -> None:
    env = make(control=control, comm_power=2.5, num_users=4)
    agent = RandomPower(env, seed=3)
    drawn = np.array([powers(agent, env) for _ in range(300)])
    np.testing.assert_allclose(drawn.sum(1), np.full(300, 2.5), rtol=1e-4)
    assert drawn.min() >= 0
    assert len(np.unique(drawn.round(6), axis=0)) == 300
    error = drawn.std(0) / np.sqrt(300)
    assert (np.abs(drawn.mean(0) - 2.5 / 4) < 4 * error).all()
    # Normalised uniform numbers vary; equal ones would not.
    assert drawn.std() > 0.2


def test_the_papers_random_power() -> None:
    env = make(control="power", num_users=5)
    agent = make_agent("random-power-paper", env)
    drawn = np.array([powers(agent, env) for _ in range(400)])
    assert 0 <= drawn.min() < 0.002
    assert 0.098 < drawn.max() <= 0.1 + 1e-6
    # Uniform on [0, 0.1]: mean 0.05, standard deviation 0.1/√12.
    assert drawn.mean() == pytest.approx(0.05, abs=4 * 0.1 / np.sqrt(12 * drawn.size))
    assert drawn.std() == pytest.approx(0.1 / np.sqrt(12), rel=0.05)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.25


def test_random_power_depends_on_its_seed_alone() -> None:
    env = make(control="power")
    first, second, other = (
        [powers(agent, env).tolist() for _ in range(3)]
        for agent in (RandomPower(env, seed=1), RandomPower(env, seed=1), RandomPower(env, seed=2))
    )
    assert first == second
    assert first != other
    assert first[0] != first[1]


def test_random_power_draws_for_every_row_of_a_batch() -> None:
    env = make(control="power")
    observation, _ = env.reset(seed=0)
    actions, _ = RandomPower(env).predict(np.stack([observation] * 6))
    assert len(np.unique(actions[:, :3], axis=0)) == 6


@pytest.mark.parametrize("control", CONTROLS)
def test_contention_serves_one_user(control: str) -> None:
    env = make(control=control, scheduling="contention")
    for seed in range(4):
        found = powers(EqualPower(env), env, seed)
        strongest = np.linalg.norm(env.unwrapped.channels[:, 4:], axis=1).argmax()
        np.testing.assert_allclose(found, np.eye(3)[strongest], atol=1e-5)
        found = powers(RandomPower(env), env, seed)
        assert found[strongest] > 0
        assert found.sum() == pytest.approx(found[strongest])


@pytest.mark.parametrize("value", [-0.1, 1.01, np.nan, np.inf])
def test_powers_outside_the_budget(value: float) -> None:
    env = make(control="power")
    with pytest.raises(ValueError, match=r"power must be None or a number in \[0, 1\] W"):
        EqualPower(env, value)
    with pytest.raises(ValueError, match=r"highest must be None or a number in \[0, 1\] W"):
        RandomPower(env, value)


@pytest.mark.parametrize("kind", [EqualPower, RandomPower])
def test_amplitude_control_cannot_express_them(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} needs control.*'amplitude'"):
        kind(make(control="amplitude"))


@pytest.mark.parametrize("kind", [EqualPower, RandomPower])
def test_power_and_beamforming_control_transmit_the_same(kind: Any) -> None:
    found = []
    for control in CONTROLS:
        env = make(control=control)
        found.append(precoders(kind(env), env, seed=5))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
