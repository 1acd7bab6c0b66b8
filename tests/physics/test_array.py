"""Steering vectors, the angular grid and the desired pattern against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from isac_gym.physics.array import (
    angular_grid,
    centred_real_steering,
    desired_pattern,
    realifying_unitary,
    steering_vectors,
)

SIZES = (1, 2, 5, 11, 12, 16)
SPACINGS = (0.3, 0.5, 0.7, 1.0)


def test_default_grid_has_181_directions() -> None:
    grid = angular_grid().numpy()
    np.testing.assert_array_equal(grid, np.arange(-90, 91))


@pytest.mark.parametrize(
    ("step", "count"), [(5.0, 37), (0.5, 361), (45.0, 5), (90.0, 3), (0.1, 1801)]
)
def test_grid_is_symmetric_and_reaches_both_ends(step: float, count: int) -> None:
    grid = angular_grid(step).numpy()
    assert len(grid) == count
    assert grid[0] == -90.0
    assert grid[-1] == 90.0
    np.testing.assert_array_equal(grid, -grid[::-1])
    np.testing.assert_allclose(np.diff(grid), step, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [0.0, -1.0, 7.0, 91.0, float("inf")])
def test_grid_step_must_divide_90(step: float) -> None:
    with pytest.raises(ValueError, match="step_deg must be a positive divisor of 90"):
        angular_grid(step)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_steering_vectors_follow_their_definition(size: int, spacing: float) -> None:
    angles = [-90.0, -37.5, 0.0, 12.0, 64.25, 90.0]
    found = steering_vectors(angles, size, spacing).numpy()
    np.testing.assert_allclose(found, reference.steering(angles, size, spacing), atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_realifying_matrix_is_unitary(size: int) -> None:
    unitary = realifying_unitary(size).numpy()
    np.testing.assert_allclose(unitary.conj().T @ unitary, np.eye(size), atol=1e-15)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_unitary_makes_centred_steering_vectors_real(size: int, spacing: float) -> None:
    angles = np.array([-88.0, -41.0, -3.5, 0.0, 7.0, 66.6])
    turn = 2j * np.pi * spacing * np.sin(np.deg2rad(angles))
    centre = np.exp(-turn * (size - 1) / 2)
    centred = reference.steering(angles, size, spacing) * centre[:, None]
    rotated = centred @ realifying_unitary(size).numpy().conj()
    np.testing.assert_allclose(rotated.imag, 0.0, atol=1e-13)
    found = centred_real_steering(angles, size, spacing).numpy()
    np.testing.assert_allclose(found, rotated.real, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_mirrored_direction_flips_the_signs_of_the_sine_parts(size: int) -> None:
    angles = np.array([3.0, 20.0, 55.0, 90.0])
    signs = np.ones(size)
    signs[size - size // 2 :] = -1.0
    mirrored = centred_real_steering(-angles, size, 0.7).numpy()
    found = centred_real_steering(angles, size, 0.7).numpy()
    np.testing.assert_array_equal(mirrored, found * signs)


def test_edges_belong_to_the_beam() -> None:
    pattern = desired_pattern(angular_grid(), [0.0], 10.0).numpy()
    np.testing.assert_array_equal(np.flatnonzero(pattern) - 90, np.arange(-5, 6))


@pytest.mark.parametrize(
    ("targets", "width", "directions"),
    [
        ([90.0], 10.0, [85, 86, 87, 88, 89, 90]),
        ([-90.0], 3.0, [-90, -89]),
        ([0.5], 1.0, [0, 1]),
        ([12.3], 0.8, [12]),
        ([10.0, 13.0], 4.0, [8, 9, 10, 11, 12, 13, 14, 15]),
        ([-20.0, 30.0], 2.0, [-21, -20, -19, 29, 30, 31]),
        ([0.0], 0.01, [0]),
        ([12.3], 0.4, []),
    ],
)
def test_desired_pattern_is_one_within_half_a_width_of_a_target(
    targets: list[float], width: float, directions: list[int]
) -> None:
    pattern = desired_pattern(angular_grid(), targets, width).numpy()
    assert set(np.unique(pattern)) <= {0.0, 1.0}
    np.testing.assert_array_equal(np.flatnonzero(pattern) - 90, directions)


def test_desired_pattern_on_an_irregular_grid() -> None:
    grid = torch.tensor([-30.0, 2.49, 2.5, 2.51, 80.0], dtype=torch.float32)
    pattern = desired_pattern(grid, [0.0], 5.0).numpy()
    np.testing.assert_array_equal(pattern, [0.0, 1.0, 1.0, 0.0, 0.0])
