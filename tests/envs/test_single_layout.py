"""The order of the numbers in an observation and an action."""

from __future__ import annotations

import numpy as np
import pytest
from direct_model import SMALL
from single_env import make


@pytest.mark.parametrize("cells", [1, 3])
def test_observation_layout(cells: int) -> None:
    env = make(**SMALL, num_cells=cells)
    observation, _ = env.reset(seed=8)
    channels = env.channels
    parts = [[], []]
    for row in channels.reshape(-1, channels.shape[-1]):
        for entry in row:
            parts[0].append(entry.real)
            parts[1].append(entry.imag)
    np.testing.assert_array_equal(observation, np.array(parts[0] + parts[1], np.float32))
    assert observation.shape == (2 * cells * cells * 3 * 9,)


def test_radar_antennas_come_first_in_a_row() -> None:
    """Radar power reaches a user through the first M_R entries only, signals through the rest."""
    env = make(**SMALL)
    scenario = env.scenario
    action = np.zeros(env.action_space.shape, np.float32)
    action[:3] = 0.5
    only_comm = np.zeros((3, 9), np.complex64)
    only_comm[0, 4] = 1.0
    env.reset(seed=0, options={"channels": only_comm})
    # User 1 hears antenna 1 alone, on which all three streams have the amplitude 0.5.
    expected = 0.25 / (0.5 + scenario.noise_power)
    info = env.step(action)[4]
    np.testing.assert_allclose(info["sinr"], [expected, 0.0, 0.0], rtol=1e-5)
    with_radar = only_comm.copy()
    with_radar[0, 2] = 3.0
    env.reset(seed=0, options={"channels": with_radar})
    disturbed = 0.25 / (0.5 + 9.0 * scenario.radar_power / 4 + scenario.noise_power)
    np.testing.assert_allclose(env.step(action)[4]["sinr"], [disturbed, 0.0, 0.0], rtol=1e-5)


def test_action_layout_beamforming() -> None:
    env = make(**SMALL, comm_power=4.0, radar_streams=2, power_limit="cost")
    env.reset(seed=0)
    assert env.action_space.shape == (2 * 5 * 3 + 2 * 4 * 2,)
    action = np.zeros(46, np.float32)
    action[1] = 0.5  # Re F[0, 1]
    action[3] = -0.25  # Re F[1, 0]
    action[15 + 14] = 1.0  # Im F[4, 2]
    action[30 + 0] = 0.1  # Re V[0, 0]
    action[30 + 3] = 0.2  # Re V[1, 1]
    action[38 + 3] = 0.2  # Im V[1, 1]
    action[38 + 4] = -0.7  # Im V[2, 0]
    action[30 + 7] = 1.0  # Re V[3, 1]
    F, R = env.decode_action(action)
    expected = np.zeros((5, 3), complex)
    expected[0, 1], expected[1, 0], expected[4, 2] = 1.0, -0.5, 2.0j
    np.testing.assert_allclose(F, expected, atol=1e-6)
    amplitude = np.sqrt(0.8 / 4)
    V = amplitude * np.array([[1, 0], [0, (1 + 1j) / np.sqrt(2)], [-1j, 0], [0, 1]])
    np.testing.assert_allclose(R, V @ V.conj().T, atol=1e-6)


def test_action_layout_amplitude() -> None:
    env = make(**SMALL, comm_power=4.0, control="amplitude", radar="fixed", power_limit="cost")
    env.reset(seed=0)
    assert env.action_space.shape == (15,)
    action = np.linspace(-1, 1, 15).astype(np.float32)
    F, R = env.decode_action(action)
    np.testing.assert_allclose(F, 2.0 * action.reshape(5, 3), atol=1e-6)
    np.testing.assert_allclose(R.diagonal(), np.full(4, 0.2), rtol=1e-5)
    np.testing.assert_allclose(R, R.conj().T, atol=1e-7)


def test_action_layout_power() -> None:
    env = make(**SMALL, comm_power=4.0, control="power", radar="fixed", power_limit="cost")
    env.reset(seed=0)
    assert env.action_space.shape == (3,)
    F, _ = env.decode_action(np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(np.sum(np.abs(F) ** 2, 0), [0.0, 2.0, 4.0], rtol=1e-5)
    for user in (1, 2):
        along = env.channels[user, 4:].conj()
        cosine = np.vdot(along, F[:, user]) / np.linalg.norm(along) / np.linalg.norm(F[:, user])
        assert cosine == pytest.approx(1.0, abs=1e-5)


def test_action_layout_contention_and_cells() -> None:
    env = make(**SMALL, num_cells=2, control="power", radar="fixed", scheduling="contention")
    env.reset(seed=0)
    action = np.array([1, 0, 0, 1, -1, -1, 1, 0, 0, -1, 1, -1], np.float32)
    F, _ = env.decode_action(action)
    powers = np.sum(np.abs(F) ** 2, axis=1)
    np.testing.assert_allclose(powers, [[1.0, 0, 0], [0, 0.5, 0]], atol=1e-5)
    np.testing.assert_array_equal(env.step(action)[4]["constraint_scheduling"], [0.0, 0.0])


def test_a_zero_waveform_row_becomes_uniform() -> None:
    env = make(**SMALL)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    R = env.decode_action(action)[1]
    np.testing.assert_allclose(R, np.full((4, 4), 0.2), rtol=1e-5)


@pytest.mark.parametrize("tiny", [1e-18, -1e-18, 1e-30, -1e-30, -1e-38, 1e-12])
def test_tiny_waveform_entries_keep_the_antenna_power(tiny: float) -> None:
    env = make(**SMALL)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    action[30:46] = tiny
    R = env.decode_action(action)[1]
    np.testing.assert_allclose(R.diagonal(), np.full(4, 0.2), rtol=1e-5)
    assert np.isfinite(env.step(action)[1])
