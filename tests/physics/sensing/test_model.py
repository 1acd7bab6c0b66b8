"""The sensing loss and its gradient against the direct formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import unitary_group

from isac_gym.physics.sensing.model import SensingLoss, SensingModel
from isac_gym.solvers.beampattern import best_beampattern

Scale = float | Literal["optimal"]

TARGETS = (-70.0, 0.0, 40.0)
SKEWED = (-63.0, -8.0, 17.0, 52.0)
SCALES: tuple[Scale, ...] = (1.0, 0.37, "optimal")
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]
GRIDS = {
    "coarse": np.linspace(-90.0, 90.0, 37),
    "even count": np.linspace(-90.0, 90.0, 36),
    "one-sided": np.linspace(-64.0, 81.0, 59),
    "irregular": np.sort(np.random.default_rng(3).uniform(-90.0, 90.0, 70)),
    "unsorted": np.random.default_rng(4).permutation(np.linspace(-75.0, 60.0, 55)),
    "two directions": np.array([-10.0, 50.0]),
}


@pytest.fixture(scope="module", autouse=True)
def tensor_operations() -> Iterator[None]:
    """Single precision by tensor operations; test_compiled.py has the compiled loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISAC_GYM_COMPILED", "0")
        yield


def covariances(size: int, *batch: int, seed: int = 0) -> reference.Complex:
    rng = np.random.default_rng([seed, size, *batch])
    matrices = [
        reference.random_covariance(rng, size, 1 + index % size)
        for index in range(math.prod(batch))
    ]
    return np.array(matrices).reshape(*batch, size, size)


def evaluate(model: SensingModel, covariance: reference.Complex, dtype: torch.dtype) -> SensingLoss:
    return model(torch.from_numpy(covariance).to(dtype.to_complex()))


def expected_terms(covariance: reference.Complex, *args: Any, **kwargs: Any) -> reference.Real:
    """(L_r1, L_r2) along a leading axis, over the flattened batch."""
    flat = covariance.reshape(-1, *covariance.shape[-2:])
    terms = np.array([reference.sensing_loss(matrix, *args, **kwargs) for matrix in flat])
    return terms.T.reshape(2, *covariance.shape[:-2])


def assert_agrees(found: SensingLoss, expected: reference.Real, tolerance: float) -> None:
    for value, wanted in zip(
        (found.beampattern_error, found.cross_correlation, found.total),
        (*expected, expected.sum(0)),
        strict=True,
    ):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("spacing", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("size", [1, 2, 5, 11, 12, 16])
def test_loss_agrees_with_the_direct_formula(
    size: int, spacing: float, form: reference.Form, dtype: torch.dtype, tolerance: float
) -> None:
    covariance = covariances(size, 2)
    for targets, width in ((TARGETS, 10.0), (SKEWED, 7.0)):
        for scale in SCALES:
            model = SensingModel(
                size,
                spacing,
                targets,
                width,
                cross_correlation=form,
                pattern_scale=scale,
                dtype=dtype,
            )
            expected = expected_terms(
                covariance, spacing, targets, width=width, form=form, scale=scale
            )
            assert_agrees(evaluate(model, covariance, dtype), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [2, 5, 12])
def test_other_grids_stay_exact(
    size: int, grid: str, form: reference.Form, dtype: torch.dtype, tolerance: float
) -> None:
    angles, targets = GRIDS[grid], (-10.0, 50.0)
    covariance = covariances(size, 3, seed=1)
    model = SensingModel(
        size,
        0.5,
        targets,
        8.0,
        cross_correlation=form,
        grid_deg=torch.from_numpy(angles),
        dtype=dtype,
    )
    expected = expected_terms(covariance, 0.5, targets, width=8.0, form=form, angles=angles)
    assert_agrees(evaluate(model, covariance, dtype), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("form", reference.FORMS)
def test_designed_waveform_agrees_with_the_direct_formula(
    form: reference.Form, dtype: torch.dtype, tolerance: float
) -> None:
    # A good waveform has a small loss: the terms cancel more than for a random one.
    design = best_beampattern(
        num_antennas=12,
        spacing=0.5,
        targets_deg=TARGETS,
        beam_width_deg=10.0,
        power=2.5,
        cross_correlation=form,
        stop_below=0.125,
    )
    covariance = (design.streams @ design.streams.mH).numpy()
    model = SensingModel(12, 0.5, TARGETS, cross_correlation=form, dtype=dtype)
    expected = expected_terms(covariance, 0.5, TARGETS, form=form)
    assert_agrees(evaluate(model, covariance, dtype), expected, tolerance)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("spacing", [0.5, 0.7])
def test_beampattern_agrees_with_the_direct_formula(size: int, spacing: float) -> None:
    covariance = covariances(size, 2)
    model = SensingModel(size, spacing, TARGETS, dtype=torch.float64)
    found = evaluate(model, covariance, torch.float64).beampattern.numpy()
    for pattern, matrix in zip(found, covariance, strict=True):
        wanted = reference.beampattern(matrix, reference.GRID, spacing)
        np.testing.assert_allclose(pattern, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (64,), (65,), (130,)])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_batch_shapes_and_sizes_beyond_a_block(
    batch: tuple[int, ...], form: reference.Form, with_gradient: bool
) -> None:
    covariance = covariances(5, *batch, seed=2)
    angles = GRIDS["coarse"]
    model = SensingModel(
        5,
        0.5,
        TARGETS,
        cross_correlation=form,
        grid_deg=torch.from_numpy(angles),
        dtype=torch.float64,
    )
    leaf = torch.from_numpy(covariance).requires_grad_(with_gradient)
    found = model(leaf)
    assert found.beampattern.shape == (*batch, len(angles))
    assert_agrees(found, expected_terms(covariance, 0.5, TARGETS, form=form, angles=angles), 1e-9)


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_an_empty_batch_gives_an_empty_loss(form: reference.Form, with_gradient: bool) -> None:
    model = SensingModel(4, 0.5, TARGETS, cross_correlation=form, dtype=torch.float64)
    covariance = torch.zeros(0, 4, 4, dtype=torch.complex128, requires_grad=with_gradient)
    assert model(covariance).total.shape == (0,)


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_targets_by_station(batch: tuple[int, ...], scale: Scale, form: reference.Form) -> None:
    by_station = ((-40.0, 0.0, 40.0), (-70.0, 25.0), (60.0,))
    covariance = covariances(5, *batch, 3, seed=5)
    model = SensingModel(
        5, 0.5, by_station, cross_correlation=form, pattern_scale=scale, dtype=torch.float64
    )
    found = evaluate(model, covariance, torch.float64)
    assert found.beampattern.shape == (*batch, 3, 181)
    assert found.total.shape == (*batch, 3)
    for station, targets in enumerate(by_station):
        part = SensingLoss(
            found.beampattern[..., station, :],
            found.beampattern_error[..., station],
            found.cross_correlation[..., station],
        )
        matrices = covariance[..., station, :, :]
        assert_agrees(part, expected_terms(matrices, 0.5, targets, form=form, scale=scale), 1e-9)


def test_one_station_by_name_keeps_its_axis() -> None:
    covariance = covariances(4, 2, 1)
    nested = SensingModel(4, 0.5, (TARGETS,), dtype=torch.float64)
    flat = SensingModel(4, 0.5, TARGETS, dtype=torch.float64)
    expected = evaluate(flat, covariance[:, 0], torch.float64).total
    torch.testing.assert_close(
        evaluate(nested, covariance, torch.float64).total[:, 0], expected, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("form", reference.FORMS)
def test_memory_layout_of_the_input_does_not_matter(form: reference.Form) -> None:
    covariance = torch.from_numpy(covariances(5, 4))
    model = SensingModel(5, 0.5, SKEWED, cross_correlation=form, dtype=torch.float64)
    expected = model(covariance).total
    lazily_conjugated = covariance.mT.contiguous().conj()
    assert lazily_conjugated.is_conj()
    strided = torch.stack([covariance, -covariance], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    for layout in (covariance.mH, lazily_conjugated, strided):
        torch.testing.assert_close(model(layout).total, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (70,)])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_value_is_the_same_with_and_without_gradients(
    size: int, batch: tuple[int, ...], form: reference.Form
) -> None:
    covariance = torch.from_numpy(covariances(size, *batch))
    model = SensingModel(size, 0.5, TARGETS, cross_correlation=form, dtype=torch.float64)
    plain = model(covariance).total
    leaf = covariance.clone().requires_grad_(True)
    with torch.no_grad():
        switched_off = model(leaf).total
    assert not switched_off.requires_grad
    torch.testing.assert_close(plain, switched_off, rtol=0, atol=0)
    torch.testing.assert_close(model(leaf).total.detach(), plain, rtol=1e-12, atol=0)


def test_input_is_not_changed() -> None:
    for form in reference.FORMS:
        model = SensingModel(4, 0.5, TARGETS, cross_correlation=form, dtype=torch.float64)
        covariance = torch.from_numpy(covariances(4, 3))
        leaf = covariance.clone().requires_grad_(True)
        model(leaf).total.sum().backward()
        torch.testing.assert_close(leaf.detach(), covariance, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_optimal_scale_minimises_the_beampattern_error(size: int) -> None:
    wanted = reference.desired(reference.GRID, TARGETS, 10.0)
    model = SensingModel(size, 0.5, TARGETS, pattern_scale="optimal", dtype=torch.float64)
    for covariance in covariances(size, 5, seed=6):
        pattern = reference.beampattern(covariance, reference.GRID, 0.5)
        search = minimize_scalar(lambda scale, p=pattern: np.mean((scale * wanted - p) ** 2))
        found = evaluate(model, covariance, torch.float64).beampattern_error.item()
        assert found == pytest.approx(search.fun, rel=1e-9)


def test_optimal_scale_is_not_negative() -> None:
    model = SensingModel(3, 0.5, TARGETS, pattern_scale="optimal", dtype=torch.float64)
    pattern = torch.full((181,), -2.0, dtype=torch.float64)
    assert model.beampattern_error(pattern).item() == pytest.approx(4.0)


def test_single_target_has_no_cross_correlation_between_targets() -> None:
    model = SensingModel(6, 0.5, (20.0,), cross_correlation="target_sq", dtype=torch.float64)
    covariance = torch.from_numpy(covariances(6, 2)).requires_grad_(True)
    found = model(covariance).cross_correlation
    assert found.tolist() == [0.0, 0.0]
    found.sum().backward()


def test_single_antenna_closed_form() -> None:
    # One antenna radiates P = R everywhere: L_r2 is R, and the loss needs no steering vector.
    wanted = reference.desired(reference.GRID, TARGETS, 10.0)
    model = SensingModel(1, 0.5, TARGETS, dtype=torch.float64)
    found = model(torch.full((1, 1), 0.3, dtype=torch.complex128))
    assert found.beampattern_error.item() == pytest.approx(np.mean((wanted - 0.3) ** 2), rel=1e-13)
    assert found.cross_correlation.item() == pytest.approx(0.3, rel=1e-13)


def test_without_radar_power_the_loss_is_the_share_of_wanted_directions() -> None:
    model = SensingModel(12, 0.5, TARGETS, dtype=torch.float64)
    found = model(torch.zeros(12, 12, dtype=torch.complex128))
    assert found.total.item() == pytest.approx(33 / 181, rel=1e-14)
    assert found.cross_correlation.item() == 0.0


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (3, 3), (2, 5, 4)])
def test_wrong_covariance_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = SensingModel(4, 0.5, TARGETS)
    with pytest.raises(
        ValueError, match=r"covariance must have shape \(\.\.\., 4, 4\), got"
    ) as error:
        model(torch.zeros(shape, dtype=torch.complex64))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("grid", [torch.tensor([0.0]), torch.zeros(0), torch.zeros(3, 3)])
def test_grid_needs_two_directions(grid: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="grid_deg must hold at least two directions"):
        SensingModel(4, 0.5, TARGETS, grid_deg=grid)


def test_beam_that_misses_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beam_width_deg must be wide enough.*got 0\.4"):
        SensingModel(4, 0.5, ((0.0,), (12.3,)), 0.4)


# --- Gradients -------------------------------------------------------------------------------


def loss_of_streams(model: SensingModel) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda streams: model(streams @ streams.mH).total


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("size", "batch"), [(1, ()), (2, (2,)), (3, ()), (3, (2,)), (4, ())])
def test_gradcheck(size: int, batch: tuple[int, ...], scale: Scale, form: reference.Form) -> None:
    rng = np.random.default_rng(size)
    model = SensingModel(
        size,
        0.5,
        (-50.0, 20.0),
        10.0,
        cross_correlation=form,
        pattern_scale=scale,
        grid_deg=torch.tensor([-71.0, -50.0, -32.0, 5.0, 20.0, 66.0]),
        dtype=torch.float64,
    )
    streams = torch.from_numpy(reference.complex_normal(rng, *batch, size, 2)).requires_grad_(True)
    assert torch.autograd.gradcheck(loss_of_streams(model), (streams,))


def test_gradcheck_by_station() -> None:
    model = SensingModel(
        3,
        0.7,
        ((-50.0,), (20.0, 60.0)),
        10.0,
        grid_deg=torch.tensor([-50.0, -32.0, 20.0, 60.0]),
        dtype=torch.float64,
    )
    rng = np.random.default_rng(0)
    streams = torch.from_numpy(reference.complex_normal(rng, 2, 2, 3, 3)).requires_grad_(True)
    assert torch.autograd.gradcheck(loss_of_streams(model), (streams,))


def gradient_of(model: SensingModel, streams: reference.Complex) -> reference.Complex:
    leaf = torch.from_numpy(streams).to(model.desired.dtype.to_complex()).requires_grad_(True)
    loss_of_streams(model)(leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.to(torch.complex128).numpy()


def slope(gradient: reference.Complex, direction: reference.Complex) -> float:
    return float((gradient.conj() * direction).real.sum())


def reference_loss(
    streams: reference.Complex, form: reference.Form, scale: Scale = 1.0, **kwargs: Any
) -> float:
    covariance = streams @ streams.conj().T
    return sum(reference.sensing_loss(covariance, 0.5, TARGETS, form=form, scale=scale, **kwargs))


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [11, 12])
def test_gradient_agrees_with_central_differences(
    size: int, scale: Scale, form: reference.Form
) -> None:
    rng = np.random.default_rng([9, size])
    streams = reference.feasible_streams(rng, size, 2.5)
    model = SensingModel(
        size, 0.5, TARGETS, cross_correlation=form, pattern_scale=scale, dtype=torch.float64
    )
    gradient = gradient_of(model, streams)
    step = 1e-6
    for _ in range(4):
        direction = reference.complex_normal(rng, size, size)
        ahead = reference_loss(streams + step * direction, form, scale)
        behind = reference_loss(streams - step * direction, form, scale)
        # Absolute part: the rounding of the two losses, 1e-15 / step.
        assert slope(gradient, direction) == pytest.approx(
            (ahead - behind) / (2 * step), rel=1e-6, abs=1e-8
        )


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_gradient_of_a_batch_beyond_a_block(
    dtype: torch.dtype, tolerance: float, form: reference.Form
) -> None:
    # Weights differ, so that mixing up the entries of the batch shows.
    size, batch = 5, 130
    rng = np.random.default_rng(10)
    angles = np.linspace(-90.0, 90.0, 19)
    weights = np.linspace(-1.0, 2.0, batch)
    streams = reference.complex_normal(rng, batch, size, 3)
    expected = np.array(
        [
            weight * reference.sensing_gradient(V, 0.5, TARGETS, form=form, angles=angles)
            for weight, V in zip(weights, streams, strict=True)
        ]
    )
    model = SensingModel(
        size,
        0.5,
        TARGETS,
        cross_correlation=form,
        grid_deg=torch.from_numpy(angles),
        dtype=dtype,
    )
    leaf = torch.from_numpy(streams).to(dtype.to_complex()).requires_grad_(True)
    (torch.from_numpy(weights).to(dtype) * loss_of_streams(model)(leaf)).sum().backward()
    assert leaf.grad is not None
    found = leaf.grad.to(torch.complex128).numpy()
    bound = tolerance * np.abs(expected).max((-2, -1), keepdims=True)
    assert (np.abs(found - expected) <= bound).all()


def broadside_null(size: int) -> reference.Complex:
    """Streams that vanish exactly towards broadside: the two of mirrored antennas cancel.

    The powers are powers of two, so that no rounding, fused or not, spoils the cancellation.
    """
    streams = np.zeros((size, size // 2), complex)
    for pair in range(size // 2):
        streams[[pair, size - 1 - pair], pair] = np.array([1.0, -1.0]) * 1j**pair * 2.0**-pair
    return streams


@pytest.mark.parametrize("size", [2, 5, 12])
def test_gradient_where_some_magnitudes_vanish(size: int) -> None:
    angles, targets = np.arange(0.0, 81.0), (0.0, 40.0)
    streams = broadside_null(size)
    covariance = streams @ streams.conj().T
    magnitudes = np.abs(reference.patterns(covariance, reference.steering(angles, size, 0.5)))
    assert magnitudes[0].max() < 1e-14
    assert magnitudes[1:, 1:].min() > 1e-6

    model = SensingModel(size, 0.5, targets, grid_deg=torch.from_numpy(angles), dtype=torch.float64)
    gradient = gradient_of(model, streams)
    assert np.isfinite(gradient).all()
    rng = np.random.default_rng(1)
    step = 1e-7
    for _ in range(4):
        direction = reference.complex_normal(rng, *streams.shape)
        ahead, behind = (
            sum(reference.sensing_loss(V @ V.conj().T, 0.5, targets, angles=angles))
            for V in (streams + step * direction, streams - step * direction)
        )
        # abs(P_c) has a kink at 0, where the central difference is that of the subgradient 0.
        assert slope(gradient, direction) == pytest.approx(
            (ahead - behind) / (2 * step), rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("size", [2, 5, 12])
def test_subgradient_at_exact_zeros_is_zero(size: int) -> None:
    # The grid holds broadside, where the pattern is exactly zero, and one other direction, so that
    # the only pair of the cross-correlation is a kink.
    streams = torch.from_numpy(broadside_null(size))
    covariance = (streams @ streams.mH).requires_grad_(True)
    model = SensingModel(size, 0.5, (0.0,), grid_deg=torch.tensor([0.0, 37.0]), dtype=torch.float64)
    value = model(covariance).cross_correlation
    assert value.item() == 0.0
    value.backward()
    assert covariance.grad is not None
    assert (covariance.grad == 0).all()


KINKS: dict[str, Callable[[], reference.Complex]] = {
    "no power": lambda: np.zeros((6, 6), complex),
    "identity": lambda: np.eye(6, dtype=complex) * 0.4,
    "one antenna silent": lambda: np.diag([0.3, 0.0, 0.2, 0.5, 0.0, 0.1]).astype(complex),
    "one antenna only": lambda: np.diag([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]).astype(complex),
    "null at broadside": lambda: broadside_null(6) @ broadside_null(6).conj().T,
    "rank one": lambda: np.outer(np.exp(1j * np.arange(6)), np.exp(-1j * np.arange(6))),
}


@pytest.mark.parametrize("kink", KINKS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("orthogonal", [False, True])
def test_gradient_is_a_subgradient_at_kinks(kink: str, batch: int, orthogonal: bool) -> None:
    # L_r is convex in R, so G is a subgradient iff L_r(R') >= L_r(R) + <G, R' - R> for all R'.
    # On the orthogonal grid the six steering vectors of six antennas are orthogonal, and R = cI
    # makes every cross-correlation vanish.
    sines = np.arange(-2, 4) / 3.0 if orthogonal else np.linspace(-1.0, 1.0, 13)
    angles = np.rad2deg(np.arcsin(sines))
    covariance = KINKS[kink]()
    model = SensingModel(
        6, 0.5, (0.0,), 10.0, grid_deg=torch.from_numpy(angles), dtype=torch.float64
    )
    leaf = torch.from_numpy(np.array([covariance] * batch)).requires_grad_(True)
    model(leaf).total.sum().backward()
    assert leaf.grad is not None
    gradient = leaf.grad[-1].numpy()
    assert np.isfinite(gradient).all()

    def loss(matrix: reference.Complex) -> float:
        return sum(reference.sensing_loss(matrix, 0.5, (0.0,), angles=angles))

    start = loss(covariance)
    rng = np.random.default_rng(2)
    for step in (1.0, 1e-2, 1e-4):
        for _ in range(10):
            direction = reference.complex_normal(rng, 6, 6)
            direction = step * (direction + direction.conj().T)
            assert loss(covariance + direction) >= start + slope(gradient, direction) - 1e-13


def test_gradient_vanishes_without_power() -> None:
    for form in reference.FORMS:
        for dtype, _ in PRECISIONS:
            model = SensingModel(5, 0.5, TARGETS, cross_correlation=form, dtype=dtype)
            gradient = gradient_of(model, np.zeros((3, 5, 5), complex))
            np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("power", [1.0, 1e-15, 1e-22, 1e-24, 1e-26, 1e-28])
def test_gradient_of_a_faint_waveform_is_bounded(power: float, dtype: torch.dtype) -> None:
    # grid_abs is a norm of the pattern, whose subgradients G satisfy <G, D> <= L_r2(D) at any R.
    rng = np.random.default_rng(15)
    model = SensingModel(4, 0.5, TARGETS, dtype=dtype)
    covariance = power * reference.random_covariance(rng, 4, 2)
    leaf = torch.from_numpy(covariance).to(dtype.to_complex()).requires_grad_(True)
    model(leaf).cross_correlation.backward()
    assert leaf.grad is not None
    gradient = leaf.grad.to(torch.complex128).numpy()
    for _ in range(10):
        direction = reference.complex_normal(rng, 4, 4)
        direction += direction.conj().T
        bound = reference.cross_correlation(direction, reference.GRID, TARGETS, 0.5, "grid_abs")
        assert slope(gradient, direction) <= bound * (1 + 1e-4)


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_covariance_is_seen_in_value_and_gradient(
    bad: float, form: reference.Form
) -> None:
    model = SensingModel(4, 0.5, TARGETS, cross_correlation=form, dtype=torch.float64)
    covariance = torch.from_numpy(covariances(4, 3))
    covariance[1, 2, 2] = bad
    leaf = covariance.requires_grad_(True)
    total = model(leaf).total
    assert total.isfinite().tolist() == [True, False, True]
    total.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all(-1).all(-1).tolist() == [True, False, True]


def test_gradient_with_silent_antennas_is_finite_and_agrees() -> None:
    rng = np.random.default_rng(12)
    streams = reference.complex_normal(rng, 6, 3)
    streams[[0, 4]] = 0.0
    for form in reference.FORMS:
        model = SensingModel(6, 0.5, TARGETS, cross_correlation=form, dtype=torch.float64)
        gradient = gradient_of(model, streams)
        direction = reference.complex_normal(rng, 6, 3)
        ahead = reference_loss(streams + 1e-6 * direction, form)
        behind = reference_loss(streams - 1e-6 * direction, form)
        assert slope(gradient, direction) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)


# --- Properties ------------------------------------------------------------------------------

PROPERTY = settings(deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def streams_strategy(draw: st.DrawFn) -> reference.Complex:
    rng = np.random.default_rng(draw(SEEDS))
    size, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    streams = reference.complex_normal(rng, size, columns) * draw(st.floats(1e-3, 10.0))
    for row in draw(st.sets(st.integers(0, size - 1), max_size=size)):
        streams[row] = draw(st.sampled_from([0.0, 1.0, 1j]))
    return streams


def small_model(size: int, spacing: float, form: reference.Form, scale: Scale) -> SensingModel:
    return SensingModel(
        size,
        spacing,
        SKEWED,
        cross_correlation=form,
        pattern_scale=scale,
        grid_deg=torch.from_numpy(GRIDS["coarse"]),
        dtype=torch.float64,
    )


@PROPERTY
@given(
    streams=streams_strategy(),
    spacing=st.floats(0.3, 1.0),
    form=st.sampled_from(reference.FORMS),
    scale=st.sampled_from(SCALES),
    seed=SEEDS,
)
def test_loss_is_invariant_to_a_unitary_mix_of_the_streams(
    streams: reference.Complex, spacing: float, form: reference.Form, scale: Scale, seed: int
) -> None:
    size, columns = streams.shape
    mix = np.ones((1, 1)) * 1j
    if columns > 1:
        mix = unitary_group.rvs(columns, random_state=np.random.default_rng(seed))
    loss = loss_of_streams(small_model(size, spacing, form, scale))
    mixed = loss(torch.from_numpy(streams @ mix)).item()
    assert mixed == pytest.approx(loss(torch.from_numpy(streams)).item(), rel=1e-9, abs=1e-12)


@PROPERTY
@given(
    streams=streams_strategy(),
    spacing=st.floats(0.3, 1.0),
    form=st.sampled_from(reference.FORMS),
    scale=st.sampled_from(SCALES),
)
def test_both_terms_are_nonnegative(
    streams: reference.Complex, spacing: float, form: reference.Form, scale: Scale
) -> None:
    model = small_model(len(streams), spacing, form, scale)
    covariance = streams @ streams.conj().T
    found = evaluate(model, covariance, torch.float64)
    # The trace form of grid_sq subtracts sums of the order of this square.
    rounding = 1e-14 * np.linalg.norm(covariance) ** 2
    assert found.beampattern_error.item() >= 0.0
    assert found.cross_correlation.item() >= -(rounding if form == "grid_sq" else 0.0)
    assert (found.beampattern >= -1e-14 * np.linalg.norm(covariance)).all()


@PROPERTY
@given(
    seed=SEEDS,
    size=st.integers(1, 8),
    weight=st.floats(0.0, 1.0),
    form=st.sampled_from(reference.FORMS),
    scale=st.sampled_from(SCALES),
)
def test_loss_is_convex_between_feasible_covariances(
    seed: int, size: int, weight: float, form: reference.Form, scale: Scale
) -> None:
    rng = np.random.default_rng(seed)
    ends = []
    for _ in range(2):
        streams = reference.feasible_streams(rng, size, 2.5, int(rng.integers(1, size + 1)))
        ends.append(streams @ streams.conj().T)
    model = small_model(size, 0.5, form, scale)
    between = weight * ends[0] + (1.0 - weight) * ends[1]
    low, high, middle = (
        evaluate(model, matrix, torch.float64).total.item() for matrix in (*ends, between)
    )
    assert middle <= weight * low + (1.0 - weight) * high + 1e-12
