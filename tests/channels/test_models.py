"""The channel models: moments, correlations, files, and who uses which random numbers.

Statistical bounds are five standard errors of the estimate for the number of samples drawn, which
the comments derive; for a Gaussian estimate that fails by chance once in 1.7 million comparisons,
whatever the seed.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import reference
from scipy.special import j0
from scipy.stats import chisquare, kstest

from isac_gym.channels.base import (
    ChannelModel,
    Complex,
    Deployment,
    draw_complex_normal,
    scale_between_cells,
)
from isac_gym.channels.gauss_markov import GaussMarkovChannel
from isac_gym.channels.process import ChannelProcess, observe_channels
from isac_gym.channels.rayleigh import RayleighChannel
from isac_gym.channels.recorded import FileChannels
from isac_gym.channels.rician import RicianChannel
from isac_gym.channels.selection import make_default_channel_model
from isac_gym.evaluation import evaluation_set
from isac_gym.scenario import Scenario

SIGMAS = 5.0
SEEDS = [0, 1, 2]
ONE_CELL = Deployment(1, 2, 2, 3, 0.5, 0.1)
THREE_CELLS = Deployment(3, 2, 2, 1, 0.5, 0.25)
MODELS: list[ChannelModel] = [RayleighChannel(), GaussMarkovChannel(0.1), RicianChannel()]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gains(deployment: Deployment) -> reference.Real:
    """Mean power of every entry of a realisation, flattened."""
    gain = np.full(deployment.shape, deployment.intercell_gain)
    for cell in range(deployment.num_cells):
        gain[cell, cell] = 1.0
    return gain.ravel()


def correlation(left: Any, right: Any) -> reference.Complex:
    """Matrix of sample means of left_i·conj(right_j), over the first axis."""
    a, b = (np.asarray(x, np.complex128).reshape(len(x), -1) for x in (left, right))
    return a.T @ b.conj() / len(a)


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


# --- Files -----------------------------------------------------------------------------------


def samples(*shape: int) -> Any:
    return draw_complex_normal(rng(4), shape)


def saved(path: Path, array: Any, **arrays: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, **({"channels": array} | arrays))
    return path


@pytest.mark.parametrize("name", ["some.npy", "some.npz"])
@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
def test_samples_from_a_file(tmp_path: Path, deployment: Deployment, name: str) -> None:
    array = samples(7, *deployment.shape)
    model = FileChannels(saved(tmp_path / name, array))
    drawn = model.draw(rng(), 50, deployment)
    assert drawn.dtype == np.complex64
    assert drawn.shape == (50, *deployment.shape)
    for sample in drawn:
        assert any(np.array_equal(sample, kept) for kept in array)
    assert not model.is_time_correlated
    np.testing.assert_array_equal(model.draw(rng(), 50, deployment), drawn)


def test_one_cell_needs_no_cell_axes(tmp_path: Path) -> None:
    array = samples(3, 2, 5)
    model = FileChannels(str(saved(tmp_path / "some.npy", array)))
    drawn = model.draw(rng(), 20, ONE_CELL)
    assert drawn.shape == (20, 1, 1, 2, 5)
    assert all(any(np.array_equal(one[0, 0], kept) for kept in array) for one in drawn)


def test_every_sample_is_drawn_equally_often(tmp_path: Path) -> None:
    array = np.arange(8.0).reshape(8, 1, 1).repeat(2, 1).repeat(5, 2)
    model = FileChannels(saved(tmp_path / "some.npy", array.astype(np.complex64)))
    drawn = model.draw(rng(), 8_000, ONE_CELL)
    counts = np.bincount(drawn[:, 0, 0, 0, 0].real.astype(int), minlength=8)
    assert chisquare(counts).pvalue > 1e-6


def test_array_names_in_an_archive(tmp_path: Path) -> None:
    array = samples(3, 2, 5)
    both = saved(tmp_path / "both.npz", array, other=np.zeros(3))
    np.testing.assert_array_equal(FileChannels(both).samples[:, 0, 0], array)
    np.savez(tmp_path / "single.npz", measured=array)
    single = FileChannels(tmp_path / "single.npz")
    np.testing.assert_array_equal(single.samples[:, 0, 0], array)
    np.savez(tmp_path / "unclear.npz", a=array, b=array)
    with pytest.raises(ValueError, match=r"unclear\.npz: channels must be .*'a', 'b'"):
        FileChannels(tmp_path / "unclear.npz")


@pytest.mark.parametrize("dtype", [np.complex128, np.float32, np.int16])
def test_other_numeric_types_are_converted(tmp_path: Path, dtype: Any) -> None:
    array = (3 * samples(3, 2, 5).real).astype(dtype)
    model = FileChannels(saved(tmp_path / "some.npy", array))
    assert model.samples.dtype == np.complex64
    np.testing.assert_allclose(model.samples[:, 0, 0], array, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, complex(0, np.nan), complex(1, -np.inf)])
def test_non_finite_entry_is_named_with_file_and_index(tmp_path: Path, bad: complex) -> None:
    array = samples(4, 1, 1, 2, 5)
    array[2, 0, 0, 1, 3] = array[3, 0, 0, 0, 0] = bad
    path = saved(tmp_path / "some.npz", array)
    with pytest.raises(ValueError, match="channels must be finite") as error:
        FileChannels(path)
    assert str(path) in str(error.value)
    assert "index (2, 0, 0, 1, 3) of shape (4, 1, 1, 2, 5)" in str(error.value)


def test_entries_too_large_for_single_precision_are_refused(tmp_path: Path) -> None:
    array = samples(4, 1, 1, 2, 5).astype(np.complex128)
    array[1, 0, 0, 1, 2] = 1e300
    path = saved(tmp_path / "some.npy", array)
    with pytest.raises(ValueError, match=r"channels must be finite.*index \(1, 0, 0, 1, 2\)"):
        FileChannels(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 5), np.complex64),
        np.zeros((3, 1, 2, 5), np.complex64),
        np.zeros((0, 2, 5), np.complex64),
        np.zeros((3, 2, 0), np.complex64),
        np.complex64(1.0),
        np.full((3, 2, 5), "text"),
        np.zeros((3, 2, 5), bool),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_other_arrays_are_refused(tmp_path: Path, array: Any) -> None:
    path = saved(tmp_path / "some.npy", array)
    with pytest.raises(ValueError, match="must be a non-empty numeric array of shape") as error:
        FileChannels(path)
    assert str(path) in str(error.value)
    assert f"got shape {array.shape} and dtype {array.dtype}" in str(error.value)


@pytest.mark.parametrize(
    "shape", [(4, 3, 5), (4, 2, 6), (4, 2, 2, 2, 5), (4, 1, 1, 5, 2), (4, 1, 2, 2, 5)]
)
def test_dimensions_of_another_scenario_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = saved(tmp_path / "some.npy", samples(*shape))
    model = FileChannels(path)
    with pytest.raises(ValueError, match=r"= \(N, 1, 1, 2, 5\) for this scenario") as error:
        model.draw(rng(), 1, ONE_CELL)
    assert str(path) in str(error.value)
    assert f"{shape[-2]}, {shape[-1]})" in str(error.value)


@pytest.mark.parametrize("layout", ["hexagonal", "line"])
def test_recorded_channels_have_gains_of_their_own(tmp_path: Path, layout: Any) -> None:
    path = saved(tmp_path / "some.npy", samples(3, 5, 24))
    for model in (f"file:{path}", FileChannels(path)):
        assert isinstance(gym.make("ISAC-MISO-v0", channel_model=model), gym.Env)
        with pytest.raises(ValueError, match="layout must be 'uniform' with a channel") as error:
            gym.make("ISAC-MISO-v0", channel_model=model, layout=layout)
        assert repr(layout) in str(error.value)
        assert str(path) in str(error.value)


class Steady(ChannelModel):
    """The same power on every path, or that of the deployment."""

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        channels = np.ones((num, *deployment.shape), np.complex64)
        return scale_between_cells(channels, deployment) if self.follows_gains else channels


class Obedient(Steady):
    """One that has the power of the deployment, and says so."""

    follows_gains = True


@pytest.mark.parametrize("layout", ["hexagonal", "line"])
def test_a_model_that_says_nothing_of_gains_is_refused_where_there_are_distances(
    layout: Any,
) -> None:
    model, few = Steady(), Scenario(num_cells=2, num_users=2)
    apart = few.replace(layout=layout)
    message = r"^layout must be 'uniform' with a channel model .*follows_gains is False.*Steady"
    for make in (
        lambda: ChannelProcess(model, apart, 1),
        lambda: evaluation_set(apart, model, 2, 0),
        lambda: gym.make("ISAC-MISO-v0", scenario=apart, channel_model=model),
        lambda: gym.make_vec("ISAC-MISO-v0", num_envs=2, scenario=apart, channel_model=model),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert repr(layout) in str(error.value)
    alike = ChannelProcess(model, few, 1)
    alike.start(rng())
    assert (alike.channels == 1).all()


@pytest.mark.parametrize("layout", ["hexagonal", "line"])
def test_a_model_that_follows_gains_has_them(layout: Any) -> None:
    found = ChannelProcess(Obedient(), Scenario(num_cells=2, num_users=2, layout=layout), 3)
    found.start(rng())
    assert found.gains is not None
    np.testing.assert_allclose(
        np.abs(found.channels) ** 2, np.repeat(found.gains[..., None], 24, -1), rtol=1e-5
    )


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.npy"):
        FileChannels(tmp_path / "missing.npy")


@pytest.mark.parametrize("name", ["some.npy", "some.npz"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path: Path, name: str, kept: float) -> None:
    path = saved(tmp_path / name, samples(20, 2, 5))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=f"{name}: channels must be a .npy file"):
        FileChannels(path)


def test_corrupt_and_empty_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    np.savez_compressed(path, channels=samples(20, 2, 5))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.npz: channels must be"):
        FileChannels(path)
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match=r"empty\.npz: channels must be"):
        FileChannels(tmp_path / "empty.npz")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=tmp_path.name):
        FileChannels(tmp_path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_pickled_objects_are_refused_and_not_executed(tmp_path: Path, kind: str) -> None:
    witness = tmp_path / "executed"
    array = np.empty((2, 2, 5), object)
    array[:] = Payload(witness)
    path = tmp_path / f"some.{'npz' if kind == 'npz' else 'npy'}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez(path, channels=array)
    else:
        path.write_bytes(pickle.dumps(array))
    assert not witness.exists()
    with pytest.raises(ValueError, match=f"{path.name}: channels must be"):
        FileChannels(path)
    assert not witness.exists()
    if kind == "npy":
        # The file is what it claims to be.
        np.load(path, allow_pickle=True)
        assert witness.exists()


# --- Channel estimates -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variance", [0.01, 0.5])
@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
def test_estimation_error_is_white_and_independent_of_the_channel(
    deployment: Deployment, variance: float, seed: int
) -> None:
    count, generator = 20_000, rng(seed)
    true = RayleighChannel().draw(generator, count, deployment)
    kept = true.copy()
    seen = observe_channels(generator, true, deployment, variance)
    np.testing.assert_array_equal(true, kept)
    assert seen.dtype == np.complex64
    error = (seen.astype(np.complex128) - true).reshape(count, -1)
    power = gains(deployment)
    bound = SIGMAS * np.sqrt(np.outer(power, power) / count)
    # As for the channels themselves, with the powers of the two factors.
    assert (np.abs(error.mean(0)) <= SIGMAS * np.sqrt(variance * power / count)).all()
    assert (np.abs(correlation(error, error) - variance * np.diag(power)) <= variance * bound).all()
    assert (np.abs(correlation(error, true)) <= math.sqrt(variance) * bound).all()


def test_perfect_knowledge_draws_nothing() -> None:
    generator = rng()
    true = RayleighChannel().draw(generator, 3, ONE_CELL)
    before = generator.bit_generator.state
    assert observe_channels(generator, true, ONE_CELL, 0.0) is true
    assert generator.bit_generator.state == before


# --- Process ---------------------------------------------------------------------------------


def process(num: int = 4, variance: float = 0.0, **changes: Any) -> ChannelProcess:
    scenario = Scenario(
        num_users=2,
        num_radar_antennas=2,
        num_comm_antennas=3,
        csi_error_variance=variance,
        **changes,
    )
    return ChannelProcess(make_default_channel_model(scenario), scenario, num)


def test_start_draws_channels_then_estimates() -> None:
    found, generator = process(variance=0.1), rng(2)
    found.start(generator)
    same = rng(2)
    true = RayleighChannel().draw(same, 4, ONE_CELL)
    np.testing.assert_array_equal(found.channels, true)
    np.testing.assert_array_equal(found.estimates, observe_channels(same, true, ONE_CELL, 0.1))
    assert generator.bit_generator.state == same.bit_generator.state


@pytest.mark.parametrize("variance", [0.0, 0.1])
def test_mask_restarts_only_the_chosen_environments(variance: float) -> None:
    found, generator = process(variance=variance), rng(2)
    found.start(generator)
    channels, estimates = found.channels, found.estimates
    kept_channels, kept_estimates = channels.copy(), estimates.copy()
    where = np.array([True, False, False, True])
    same = np.random.Generator(type(generator.bit_generator)())
    same.bit_generator.state = generator.bit_generator.state
    found.start(generator, where)

    np.testing.assert_array_equal(found.channels[~where], kept_channels[~where])
    np.testing.assert_array_equal(found.estimates[~where], kept_estimates[~where])
    true = RayleighChannel().draw(same, 2, ONE_CELL)
    np.testing.assert_array_equal(found.channels[where], true)
    np.testing.assert_array_equal(
        found.estimates[where], observe_channels(same, true, ONE_CELL, variance)
    )
    assert generator.bit_generator.state == same.bit_generator.state
    # Arrays that were handed out before do not change.
    np.testing.assert_array_equal(channels, kept_channels)
    np.testing.assert_array_equal(estimates, kept_estimates)


def test_empty_mask_changes_nothing() -> None:
    found, generator = process(variance=0.1), rng(2)
    found.start(generator)
    channels, estimates = found.channels.copy(), found.estimates.copy()
    state = generator.bit_generator.state
    found.start(generator, np.zeros(4, bool))
    np.testing.assert_array_equal(found.channels, channels)
    np.testing.assert_array_equal(found.estimates, estimates)
    assert generator.bit_generator.state == state


def test_advance_continues_from_the_true_channels() -> None:
    found, generator = process(variance=0.1, doppler=0.05), rng(2)
    found.start(generator)
    before = found.channels
    same = np.random.Generator(type(generator.bit_generator)())
    same.bit_generator.state = generator.bit_generator.state
    found.advance(generator)
    true = GaussMarkovChannel(0.05).advance(same, before, ONE_CELL)
    np.testing.assert_array_equal(found.channels, true)
    np.testing.assert_array_equal(found.estimates, observe_channels(same, true, ONE_CELL, 0.1))


def test_given_channels_become_the_current_block() -> None:
    found = process()
    given = samples(4, *ONE_CELL.shape)
    found.place(rng(), given)
    np.testing.assert_array_equal(found.channels, given)
    assert found.estimates is found.channels
