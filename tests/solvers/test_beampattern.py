"""The best radar covariance, its certificate, and the check of the sensing threshold."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isac_gym.physics.waveform import normalise_rows
from isac_gym.solvers.beampattern import BeampatternDesign, best_beampattern, check_threshold

TARGETS = (-70.0, 0.0, 40.0)
# The floor of the sensing loss at P_R = 2.5 W, half-wavelength spacing and beams of 10 degrees.
FLOORS = [
    (TARGETS, 12, 0.099),
    ((-40.0, 0.0, 40.0), 12, 0.069),
    ((-50.0, 0.0, 70.0), 12, 0.106),
    (TARGETS, 10, 0.118),
]


def design(**changes: Any) -> BeampatternDesign:
    settings_ = {
        "num_antennas": 12,
        "spacing": 0.5,
        "targets_deg": TARGETS,
        "beam_width_deg": 10.0,
        "power": 2.5,
    }
    return best_beampattern(**(settings_ | changes))


def covariance_of(found: BeampatternDesign) -> reference.Complex:
    return (found.streams @ found.streams.mH).numpy()


@pytest.mark.parametrize(("targets", "antennas", "floor"), FLOORS)
def test_known_floors(targets: tuple[float, ...], antennas: int, floor: float) -> None:
    found = design(targets_deg=targets, num_antennas=antennas)
    assert found.loss == pytest.approx(floor, abs=1e-3)


CASES: list[dict[str, Any]] = [
    *({"targets_deg": targets, "num_antennas": antennas} for targets, antennas, _ in FLOORS),
    {"cross_correlation": "grid_sq"},
    {"cross_correlation": "target_sq"},
    {"pattern_scale": "optimal"},
    {"pattern_scale": 0.5},
    {"num_antennas": 5, "spacing": 0.7, "power": 1.0},
    {"num_antennas": 2, "targets_deg": (25.0,)},
    {"num_antennas": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_design_is_feasible_and_certified(case: dict[str, Any]) -> None:
    found = design(**case)
    antennas, power = case.get("num_antennas", 12), case.get("power", 2.5)
    covariance = covariance_of(found)
    np.testing.assert_allclose(np.diag(covariance), power / antennas, rtol=1e-14)
    loss = sum(
        reference.sensing_loss(
            covariance,
            case.get("spacing", 0.5),
            case.get("targets_deg", TARGETS),
            form=case.get("cross_correlation", "grid_abs"),
            scale=case.get("pattern_scale", 1.0),
        )
    )
    assert found.loss == pytest.approx(loss, rel=1e-9)
    assert found.lower_bound <= found.loss * (1 + 1e-12)
    assert found.loss - found.lower_bound <= 0.01 * found.loss


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("scale", [1.0, "optimal"])
@pytest.mark.parametrize("antennas", [3, 6])
def test_no_feasible_covariance_is_below_the_bound(
    antennas: int, scale: float | Literal["optimal"], form: reference.Form
) -> None:
    found = design(num_antennas=antennas, cross_correlation=form, pattern_scale=scale)
    rng = np.random.default_rng(antennas)
    best = found.streams.numpy()
    share = np.sqrt(2.5 / antennas)
    for index in range(150):
        streams = reference.feasible_streams(rng, antennas, 2.5, 1 + index % antennas)
        if index % 3:
            # Near the optimum, where a bound that is slightly too high would show.
            streams = best + 10.0 ** -(index % 5) * reference.complex_normal(rng, *best.shape)
            streams *= share / np.linalg.norm(streams, axis=1, keepdims=True)
        covariance = streams @ streams.conj().T
        loss = sum(reference.sensing_loss(covariance, 0.5, TARGETS, form=form, scale=scale))
        assert found.lower_bound <= loss + 1e-12
        assert found.loss <= loss + 1e-6


def test_early_stop_still_gives_a_valid_bound() -> None:
    floor = design().loss
    for threshold in (1.0, 0.3, 0.12):
        found = design(stop_below=threshold)
        assert found.loss <= threshold
        assert found.lower_bound <= floor + 1e-12
        loss = sum(reference.sensing_loss(covariance_of(found), 0.5, TARGETS))
        assert found.loss == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("targets", [(25.0,), (-30.0, 50.0)])
def test_two_antennas_by_exhaustive_search(
    targets: tuple[float, ...], form: reference.Form
) -> None:
    # R is P_R/2·[[1, z], [z*, 1]] with abs(z) <= 1, so that the floor is a search over a disc.
    power, floor = 2.0, np.inf
    for radius in np.linspace(0.0, 1.0, 13):
        for phase in np.linspace(0.0, 2 * np.pi, 24, endpoint=False):
            z = radius * np.exp(1j * phase)
            covariance = power / 2 * np.array([[1.0, z], [z.conjugate(), 1.0]])
            floor = min(floor, sum(reference.sensing_loss(covariance, 0.5, targets, form=form)))
    found = design(num_antennas=2, targets_deg=targets, power=power, cross_correlation=form)
    assert found.loss <= floor + 1e-9
    # The search comes within 0.05 of the best radius and 0.14 rad of the best phase.
    assert found.loss >= floor - 0.02
    assert found.lower_bound <= floor


def test_single_antenna_closed_form() -> None:
    # R = P_R whatever V is: L_r = mean (d - P_R)² + P_R.
    wanted = reference.desired(reference.GRID, TARGETS, 10.0)
    found = design(num_antennas=1, power=0.4)
    expected = np.mean((wanted - 0.4) ** 2) + 0.4
    assert found.loss == pytest.approx(expected, rel=1e-12)
    assert found.lower_bound == pytest.approx(expected, rel=1e-12)


def test_fewer_streams_cannot_do_better() -> None:
    full = design(num_antennas=6)
    for streams in (1, 2):
        found = design(num_antennas=6, streams=streams)
        assert found.streams.shape == (6, streams)
        np.testing.assert_allclose(np.diag(covariance_of(found)), 2.5 / 6, rtol=1e-14)
        assert found.loss >= full.lower_bound
        # The bound is one for any number of streams.
        assert found.lower_bound <= full.loss + 1e-12
    assert design(num_antennas=6, streams=1).loss > full.loss * 1.01


def test_same_arguments_give_the_same_design() -> None:
    first = design(num_antennas=4)
    state = torch.random.get_rng_state()
    best_beampattern.cache_clear()
    second = design(num_antennas=4)
    torch.testing.assert_close(first.streams, second.streams, rtol=0, atol=0)
    assert design(num_antennas=4) is second
    assert torch.equal(torch.random.get_rng_state(), state)


def test_design_works_where_gradients_are_switched_off() -> None:
    best_beampattern.cache_clear()
    with torch.no_grad():
        found = design(num_antennas=3)
    assert not found.streams.requires_grad
    assert found.lower_bound <= found.loss


# --- Threshold -------------------------------------------------------------------------------


def check(threshold: float, **changes: Any) -> None:
    settings_ = {
        "num_antennas": 12,
        "spacing": 0.5,
        "targets_deg": TARGETS,
        "beam_width_deg": 10.0,
        "power": 2.5,
        "streams": 12,
    }
    check_threshold(threshold=threshold, **(settings_ | changes))


@pytest.mark.parametrize(
    ("changes", "floor"),
    [
        ({}, 0.099),
        ({"num_antennas": 1, "streams": 1, "power": 1e-3}, None),
        ({"num_antennas": 3, "streams": 3, "power": 300.0}, None),
        ({"num_antennas": 5, "streams": 2}, None),
    ],
    ids=str,
)
def test_message_names_a_floor_that_is_itself_accepted(
    changes: dict[str, Any], floor: float | None
) -> None:
    with pytest.raises(ValueError, match="sensing_threshold must be at least") as error:
        check(1e-5, **changes)
    match = re.search(r"at least ([0-9.e+-]+), .*got 1e-05$", str(error.value))
    assert match is not None
    named = float(match[1])
    if floor is not None:
        assert named == pytest.approx(floor, abs=1e-3)
    check(named, **changes)
    with pytest.raises(ValueError, match="sensing_threshold must be at least"):
        check(named * 0.995, **changes)


def test_message_says_whether_the_floor_holds_for_any_covariance() -> None:
    with pytest.raises(ValueError, match="that any radar covariance attains"):
        check(1e-5, num_antennas=4, streams=4)
    with pytest.raises(ValueError, match="found with radar_streams=2"):
        check(1e-5, num_antennas=4, streams=2)


# --- Rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.complex128, 1e-15), (torch.complex64, 1e-6)]
)
@pytest.mark.parametrize("shape", [(12, 12), (12, 1), (1, 1), (3, 5, 2), (2, 3, 4, 4)])
def test_diagonal_is_exact(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    rng = np.random.default_rng(shape)
    raw = torch.from_numpy(reference.complex_normal(rng, *shape)).to(dtype)
    found = normalise_rows(raw, 2.5)
    assert found.dtype == dtype
    power = np.sum(np.abs(found.to(torch.complex128).numpy()) ** 2, axis=-1)
    np.testing.assert_allclose(power, 2.5 / shape[-2], rtol=4 * tolerance)
    # Each row keeps its direction.
    aligned = np.sum(raw.to(torch.complex128).numpy().conj() * found.numpy(), axis=-1)
    expected = np.sqrt(2.5 / shape[-2]) * np.linalg.norm(raw.numpy(), axis=-1)
    np.testing.assert_allclose(aligned, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_zero_row_becomes_uniform(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    raw = torch.from_numpy(reference.complex_normal(rng, 2, 4, 9)).to(dtype)
    raw[1, 2] = 0.0
    raw.requires_grad_(True)
    found = normalise_rows(raw, 3.0)
    np.testing.assert_allclose(found.detach()[1, 2], np.sqrt(3.0 / 4 / 9), rtol=1e-6)
    found.real.sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_gradcheck() -> None:
    rng = np.random.default_rng(1)
    raw = torch.from_numpy(reference.complex_normal(rng, 2, 3, 2)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda V: normalise_rows(V, 2.5), (raw,))


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    antennas=st.integers(1, 12),
    columns=st.integers(1, 12),
    power=st.floats(1e-3, 1e3),
    size=st.floats(1e-6, 1.0),
    zeros=st.sets(st.integers(0, 11), max_size=12),
    dtype=st.sampled_from([torch.complex64, torch.complex128]),
)
def test_diagonal_is_exact_for_any_streams(
    seed: int,
    antennas: int,
    columns: int,
    power: float,
    size: float,
    zeros: set[int],
    dtype: torch.dtype,
) -> None:
    raw = size * reference.complex_normal(np.random.default_rng(seed), antennas, columns)
    raw[[row for row in zeros if row < antennas]] = 0.0
    found = normalise_rows(torch.from_numpy(raw).to(dtype), power).to(torch.complex128)
    diagonal = (found @ found.mH).diagonal().real.numpy()
    tolerance = 1e-14 if dtype == torch.complex128 else 1e-6
    np.testing.assert_allclose(diagonal, power / antennas, rtol=tolerance)
