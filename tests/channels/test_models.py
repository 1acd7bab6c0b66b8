"""The channel models: moments, correlations, and who uses which random numbers.

Statistical bounds are five standard errors of the estimate for the number of samples drawn, which
the comments derive; for a Gaussian estimate that fails by chance once in 1.7 million comparisons,
whatever the seed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import reference
from scipy.special import j0
from scipy.stats import kstest
from small_channels import ONE_CELL, SEEDS, SIGMAS, THREE_CELLS, correlation, gains, rng

from isac_gym.channels.base import (
    ChannelModel,
    Deployment,
    draw_complex_normal,
)
from isac_gym.channels.gauss_markov import GaussMarkovChannel
from isac_gym.channels.rayleigh import RayleighChannel
from isac_gym.channels.rician import RicianChannel
from isac_gym.channels.selection import make_default_channel_model
from isac_gym.scenario import Scenario

MODELS: list[ChannelModel] = [RayleighChannel(), GaussMarkovChannel(0.1), RicianChannel()]


# --- Rayleigh --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
@pytest.mark.parametrize("model", [RayleighChannel(), GaussMarkovChannel(0.1)], ids=repr)
def test_fading_is_zero_mean_white_and_circular(
    model: ChannelModel, deployment: Deployment, seed: int
) -> None:
    count = 20_000
    drawn = model.draw(rng(seed), count, deployment)
    assert drawn.shape == (count, *deployment.shape)
    assert drawn.dtype == np.complex64
    power = gains(deployment)
    flat = drawn.reshape(count, -1).astype(np.complex128)
    # The mean of n entries of power p has real and imaginary parts of variance p/(2n).
    bound = SIGMAS * np.sqrt(power / 2 / count)
    assert (np.abs(flat.mean(0).real) <= bound).all()
    assert (np.abs(flat.mean(0).imag) <= bound).all()
    # The mean of h_i h_j* has variance p_i p_j / n: E|h_i|²|h_j|² = p_i p_j for i != j, and
    # E|h_i|⁴ - p_i² = p_i² for i = j.
    error = correlation(flat, flat) - np.diag(power)
    scale = np.sqrt(np.outer(power, power))
    assert (np.abs(error) <= SIGMAS * scale / np.sqrt(count)).all()
    # Without conjugate the mean is zero, with variance p_i p_j / n, or E|h_i|⁴ / n = 2 p_i² / n.
    pseudo = correlation(flat, flat.conj())
    assert (np.abs(pseudo) <= SIGMAS * scale * np.sqrt(2.0 / count)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_complex_normal_has_the_moments_of_a_gaussian(seed: int) -> None:
    count = 200_000
    power = np.abs(draw_complex_normal(rng(seed), (count,)).astype(np.complex128)) ** 2
    # |h|² is exponential: E|h|^{2m} = m!, so |h|⁴ has mean 2 and variance 24 - 4.
    assert abs(power.mean() - 1.0) <= SIGMAS / math.sqrt(count)
    assert abs((power**2).mean() - 2.0) <= SIGMAS * math.sqrt(20.0 / count)
    assert kstest(power, "expon").pvalue > 1e-6


def test_complex_normal_draws_real_and_imaginary_parts_in_turn() -> None:
    entries = draw_complex_normal(rng(3), (4, 5))
    parts = rng(3).standard_normal((4, 5, 2), dtype=np.float32)
    np.testing.assert_allclose(entries.real, parts[..., 0] / math.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(entries.imag, parts[..., 1] / math.sqrt(2), rtol=1e-6)


def test_no_paths_between_cells_without_intercell_gain() -> None:
    deployment = Deployment(3, 2, 2, 1, 0.5, 0.0)
    for model in MODELS:
        drawn = model.draw(rng(), 10, deployment)
        for source in range(3):
            for cell in range(3):
                silent = (drawn[:, source, cell] == 0).all()
                assert silent == (source != cell)


# --- Gauss-Markov ----------------------------------------------------------------------------


@pytest.mark.parametrize("doppler", [0.0, 0.01, 0.1, 0.3, 0.3827, 0.5])
def test_correlation_is_the_bessel_function_of_jakes_model(doppler: float) -> None:
    expected = j0(2 * np.pi * doppler)
    # Far below the resolution of the single-precision channels that it multiplies.
    assert GaussMarkovChannel(doppler).correlation == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("doppler", [0.02, 0.15, 0.5])
@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
def test_blocks_are_stationary_with_geometric_correlation(
    deployment: Deployment, doppler: float, seed: int
) -> None:
    count, generator, model = 20_000, rng(seed), GaussMarkovChannel(doppler)
    assert model.is_time_correlated
    rho, power = j0(2 * np.pi * doppler), gains(deployment)
    bound = SIGMAS * np.sqrt(np.outer(power, power) / count)
    first = model.draw(generator, count, deployment)
    block = first
    for lag in range(1, 5):
        block = model.advance(generator, block, deployment)
        assert block.dtype == np.complex64
        # Mean of h_n,i h_0,j*: Gaussian factors have variance p_i p_j, correlated or not.
        across = correlation(block, first) - rho**lag * np.diag(power)
        assert (np.abs(across) <= bound).all()
        within = correlation(block, block) - np.diag(power)
        assert (np.abs(within) <= bound).all()


def test_static_channel_stays_bit_for_bit() -> None:
    model = GaussMarkovChannel(0.0)
    first = model.draw(rng(), 5, ONE_CELL)
    np.testing.assert_array_equal(model.advance(rng(1), first, ONE_CELL), first)


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_advance_leaves_the_current_block_alone(model: ChannelModel) -> None:
    first = model.draw(rng(), 5, ONE_CELL)
    kept = first.copy()
    following = model.advance(rng(1), first, ONE_CELL)
    np.testing.assert_array_equal(first, kept)
    assert following.shape == first.shape
    assert (following != first).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("model", [RayleighChannel(), RicianChannel()], ids=repr)
def test_other_models_have_independent_blocks(model: ChannelModel, seed: int) -> None:
    count, generator = 20_000, rng(seed)
    assert not model.is_time_correlated
    first = model.draw(generator, count, ONE_CELL)
    following = model.advance(generator, first, ONE_CELL)
    # Entries of power 1 and mean 0 by their phase; the mean of independent products has variance
    # 1/n.
    assert (np.abs(correlation(following, first)) <= SIGMAS / math.sqrt(count)).all()


@pytest.mark.parametrize("doppler", [-0.01, 0.51, float("nan"), float("inf")])
def test_doppler_outside_its_range_is_refused(doppler: float) -> None:
    with pytest.raises(ValueError, match=r"doppler must be a number in \[0, 0\.5\], got"):
        GaussMarkovChannel(doppler)


# --- Rician ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k_factor_db", [-10.0, 0.0, 5.0, 12.0])
def test_rician_power_split(k_factor_db: float, seed: int) -> None:
    count = 20_000
    drawn = RicianChannel(k_factor_db).draw(rng(seed), count, ONE_CELL)
    assert drawn.dtype == np.complex64
    # |√(κ/(κ+1))·u + √(1/(κ+1))·w|² with |u| = 1 and w circular: entries are independent, with
    # E|h|² = 1 and E|h|⁴ = (κ² + 4κ + 2)/(κ+1)².
    kappa = 10.0 ** (k_factor_db / 10)
    power = np.abs(drawn.astype(np.complex128)).ravel() ** 2
    second, fourth = power, power**2
    error = SIGMAS / math.sqrt(power.size)
    assert abs(second.mean() - 1.0) <= error * second.std()
    expected = (kappa**2 + 4 * kappa + 2) / (kappa + 1) ** 2
    assert abs(fourth.mean() - expected) <= error * fourth.std()
    # The random phase makes the mean zero; parts of variance 1/2 each.
    flat = drawn.reshape(count, -1)
    assert (np.abs(flat.mean(0)) <= SIGMAS * np.sqrt(1.0 / count)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_rician_power_between_cells(seed: int) -> None:
    count = 20_000
    drawn = RicianChannel(3.0).draw(rng(seed), count, THREE_CELLS)
    power = np.abs(drawn.reshape(count, -1).astype(np.complex128)) ** 2
    # The variance of |h|² is below that of Rayleigh fading, the square of its mean.
    expected = gains(THREE_CELLS)
    assert (np.abs(power.mean(0) - expected) <= SIGMAS * expected / math.sqrt(count)).all()


@pytest.mark.parametrize("direction", [-75.0, -20.0, 0.0, 33.0, 90.0])
@pytest.mark.parametrize("spacing", [0.5, 0.8])
def test_line_of_sight_receives_the_beampattern(direction: float, spacing: float) -> None:
    deployment = Deployment(1, 3, 5, 4, spacing, 0.1)
    model = RicianChannel(200.0, (direction, direction))
    drawn = model.draw(rng(), 20, deployment).astype(np.complex128).reshape(-1, 9)
    covariance = reference.random_covariance(rng(1), 5, 3)
    pattern = reference.beampattern(covariance, [direction], spacing)[0]
    radar = drawn[:, :5]
    received = np.einsum("np,pq,nq->n", radar, covariance, radar.conj()).real
    np.testing.assert_allclose(received, 5 * pattern, rtol=1e-5)
    # All nine antennas form one array.
    steering = 3.0 * reference.steering([direction], 9, spacing)[0].conj()
    np.testing.assert_allclose(drawn / drawn[:, :1], np.tile(steering, (60, 1)), atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_directions_are_uniform_and_users_and_blocks_have_their_own(seed: int) -> None:
    low, high = -30.0, 60.0
    generator, model = rng(seed), RicianChannel(200.0, (low, high))
    first = model.draw(generator, 5_000, ONE_CELL)
    following = model.advance(generator, first, ONE_CELL)
    paths = np.concatenate([first, following]).astype(np.complex128)[:, 0, 0]
    # Half a wavelength: neighbours differ by the phase -π·sin φ, unambiguous within ±90 degrees.
    angles = np.rad2deg(np.arcsin(-np.angle(paths[..., 1] / paths[..., 0]) / np.pi))
    assert kstest(angles.ravel(), "uniform", (low, high - low)).pvalue > 1e-6
    phases = np.angle(paths[..., 0])
    assert kstest(phases.ravel(), "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-6
    # Correlation coefficients of n independent pairs have variance 1/n.
    of_users = np.corrcoef(angles[:, 0], angles[:, 1])[0, 1]
    of_blocks = np.corrcoef(angles[:5_000, 0], angles[5_000:, 0])[0, 1]
    assert abs(of_users) <= SIGMAS / math.sqrt(10_000)
    assert abs(of_blocks) <= SIGMAS / math.sqrt(5_000)


@pytest.mark.parametrize("k_factor_db", [float("nan"), float("inf"), -float("inf")])
def test_k_factor_must_be_finite(k_factor_db: float) -> None:
    with pytest.raises(ValueError, match=r"k_factor_db must be a finite number \(dB\), got"):
        RicianChannel(k_factor_db)


@pytest.mark.parametrize("angles", [(10.0, -10.0), (-91.0, 0.0), (0.0, 90.5), (float("nan"), 0.0)])
def test_angle_range_must_increase_within_90_degrees(angles: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"angle_range_deg must be \(low, high\)") as error:
        RicianChannel(angle_range_deg=angles)
    assert repr(angles) in str(error.value)


# --- Randomness ------------------------------------------------------------------------------


@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_same_seed_same_bits(model: ChannelModel, deployment: Deployment) -> None:
    def sequence(seed: int) -> list[Any]:
        generator = rng(seed)
        blocks = [model.draw(generator, 4, deployment)]
        for _ in range(3):
            blocks.append(model.advance(generator, blocks[-1], deployment))
        return blocks

    for one, other in zip(sequence(5), sequence(5), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (sequence(5)[0] != sequence(6)[0]).any()


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_global_random_state_is_not_touched(model: ChannelModel) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    model.advance(rng(), model.draw(rng(), 3, ONE_CELL), ONE_CELL)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
@pytest.mark.parametrize("model", [RayleighChannel(), GaussMarkovChannel(0.1)], ids=repr)
def test_a_batch_uses_the_generator_like_single_draws(
    model: ChannelModel, deployment: Deployment
) -> None:
    together, apart = rng(8), rng(8)
    batch = model.draw(together, 6, deployment)
    singles = np.concatenate([model.draw(apart, 1, deployment) for _ in range(6)])
    np.testing.assert_array_equal(batch, singles)
    assert together.bit_generator.state == apart.bit_generator.state


def test_default_model_follows_the_doppler_frequency() -> None:
    assert make_default_channel_model(Scenario()) == RayleighChannel()
    assert make_default_channel_model(Scenario(doppler=0.0)) == GaussMarkovChannel(0.0)
    assert make_default_channel_model(Scenario(doppler=0.2)) == GaussMarkovChannel(0.2)
    for doppler in (None, 0.2):
        scenario = Scenario(doppler=doppler)
        expected = make_default_channel_model(scenario).is_time_correlated
        assert scenario.is_time_correlated == expected


def test_links_of_a_scenario() -> None:
    scenario = Scenario(
        num_users=3,
        num_comm_antennas=4,
        num_radar_antennas=2,
        antenna_spacing=0.7,
        num_cells=2,
        intercell_gain=0.04,
    )
    deployment = Deployment.of(scenario)
    assert deployment == Deployment(2, 3, 2, 4, 0.7, 0.04)
    assert deployment.shape == (2, 2, 3, 6)
    np.testing.assert_allclose(
        deployment.amplitude[:, :, 0, 0], [[1.0, 0.2], [0.2, 1.0]], rtol=1e-6
    )


@pytest.mark.parametrize("model", MODELS, ids=repr)
@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
def test_given_gains_scale_every_path(model: ChannelModel, deployment: Deployment) -> None:
    """With the same draws, in proportion to the roots; and from block to block as well."""
    power = rng(9).uniform(0.2, 3.0, (6, *deployment.shape[:3])).astype(np.float32)
    placed = dataclasses.replace(deployment, gains=power)
    alike = dataclasses.replace(deployment, gains=np.ones_like(power))
    np.testing.assert_allclose(placed.amplitude, np.sqrt(power)[..., None], rtol=1e-6)
    root = np.sqrt(power.astype(np.float64))[..., None]
    one, other = (model.draw(rng(1), 6, each) for each in (placed, alike))
    assert one.dtype == np.complex64
    np.testing.assert_allclose(one, root * other, rtol=1e-5)
    one, other = (
        model.advance(rng(2), start, each) for start, each in ((one, placed), (other, alike))
    )
    np.testing.assert_allclose(one, root * other, rtol=1e-4, atol=1e-6)
    # One realisation's gains serve all.
    shared = dataclasses.replace(deployment, gains=power[:1])
    drawn = model.draw(rng(1), 6, shared)
    np.testing.assert_allclose(drawn, root[:1] * model.draw(rng(1), 6, alike), rtol=1e-5)


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_a_geometric_deployment_draws_nothing_without_gains(
    model: ChannelModel, cells: int
) -> None:
    deployment = Deployment.of(Scenario(num_cells=cells, layout="hexagonal"))
    assert deployment.gains is None
    with pytest.raises(ValueError, match=r"gains must be given with layout='hexagonal', got None"):
        model.draw(rng(), 2, deployment)


def test_gains_do_not_tell_deployments_apart() -> None:
    placed = dataclasses.replace(ONE_CELL, gains=np.ones((4, 1, 1, 2), np.float32))
    assert placed == ONE_CELL
    assert hash(placed) == hash(ONE_CELL)
    assert placed != dataclasses.replace(placed, layout="line")
