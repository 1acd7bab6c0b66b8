"""Convex waveform design, against searches, closed forms and another formulation."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import reference
import torch

from isac_gym.physics.array import angular_grid
from isac_gym.physics.sensing.coarse import ExactSensing
from isac_gym.physics.sensing.model import SensingModel
from isac_gym.solvers.beampattern import best_beampattern
from isac_gym.solvers.objectives import LeakageObjective
from isac_gym.solvers.waveform import WaveformSearch

cp = pytest.importorskip("cvxpy")
beampattern = pytest.importorskip("isac_gym.solvers.convex")

ConvexWaveform = beampattern.ConvexWaveform
SolverError = beampattern.SolverError
convex_beampattern = beampattern.convex_beampattern
minimum_sidelobe = beampattern.minimum_sidelobe

BASE: dict[str, Any] = {
    "num_antennas": 4,
    "spacing": 0.5,
    "targets_deg": (-50.0, 10.0),
    "beam_width_deg": 10.0,
    "power": 0.8,
}
COARSE = {"grid_deg": angular_grid(5.0)}


def loss_of(covariance: reference.Complex, case: dict[str, Any]) -> float:
    grid = case.get("grid_deg")
    return sum(
        reference.sensing_loss(
            covariance,
            case["spacing"],
            case["targets_deg"],
            width=case["beam_width_deg"],
            form=case.get("cross_correlation", "grid_abs"),
            scale=case.get("pattern_scale", 1.0),
            angles=reference.GRID if grid is None else grid.numpy(),
        )
    )


def check_residuals(found: Any, case: dict[str, Any], threshold: float | None = None) -> None:
    R, antennas, share = found.covariance, case["num_antennas"], case["power"] / len(found.streams)
    assert R.shape == (antennas, antennas)
    np.testing.assert_allclose(R, R.conj().T, atol=1e-12)
    assert found.status in ("optimal", "optimal_inaccurate")
    assert found.sensing_loss == pytest.approx(loss_of(R, case), rel=1e-9)
    deviation = np.abs(np.diag(R) / share - 1.0).max()
    assert found.diagonal_residual == pytest.approx(deviation, abs=1e-13)
    assert deviation < 1e-7
    smallest = np.linalg.eigvalsh(R)[0] / share
    assert found.smallest_eigenvalue == pytest.approx(smallest, abs=1e-12)
    assert smallest > -1e-6
    excess = 0.0 if threshold is None else max(found.sensing_loss / threshold - 1.0, 0.0)
    assert found.loss_residual == pytest.approx(excess, abs=1e-13)
    assert excess < 1e-6
    assert found.iterations > 0
    assert found.seconds > 0.0
    V = found.streams
    np.testing.assert_allclose(np.linalg.norm(V, axis=1), np.sqrt(share), rtol=1e-12)
    np.testing.assert_allclose(V @ V.conj().T, R, atol=1e-6 * share)


def toward(
    R: reference.Complex, inside: reference.Complex, threshold: float, case: dict[str, Any]
) -> reference.Complex:
    """The mixture of R with a feasible covariance that just meets the threshold, by convexity."""
    if loss_of(R, case) <= threshold:
        return R
    low, high = 0.0, 1.0
    for _ in range(25):
        middle = 0.5 * (low + high)
        over = loss_of((1 - middle) * R + middle * inside, case) > threshold
        low, high = (middle, high) if over else (low, middle)
    return (1 - high) * R + high * inside


def covariances(
    rng: np.random.Generator, streams: reference.Complex, power: float, count: int
) -> list[reference.Complex]:
    """Covariances with the right diagonal, two in three of them near the given streams."""
    antennas = len(streams)
    found = []
    for index in range(count):
        V = reference.feasible_streams(rng, antennas, power, 1 + index % antennas)
        if index % 3:
            V = streams + 10.0 ** -(index % 5) * reference.complex_normal(rng, *streams.shape)
            V *= np.sqrt(power / antennas) / np.linalg.norm(V, axis=1, keepdims=True)
        found.append(V @ V.conj().T)
    return found


def burden_of(channels: reference.Complex, weights: reference.Real) -> reference.Complex:
    """C with <C, R> = Σ c_k f_kᵀ R f_k*."""
    return np.einsum("k,kp,kq->pq", weights, channels.conj(), channels)


def received(channels: reference.Complex, weights: reference.Real, R: reference.Complex) -> float:
    """Σ c_k f_kᵀ R f_k*."""
    powers = [(f @ R @ f.conj()).real for f in channels]
    return float(np.dot(weights, powers))


# --- The smallest sensing loss ----------------------------------------------------------------


FINE_CASES: list[dict[str, Any]] = [
    {},
    {"num_antennas": 5, "targets_deg": (-70.0, 0.0, 40.0)},
    {"num_antennas": 5, "cross_correlation": "grid_sq", "power": 2.5},
    {"cross_correlation": "target_sq", "targets_deg": (-30.0, 5.0, 60.0)},
    {"pattern_scale": 0.5, "spacing": 0.4},
    {"pattern_scale": "optimal", "num_antennas": 3},
    {"cross_correlation": "target_sq", "targets_deg": (20.0,), "num_antennas": 3},
    {"num_antennas": 1},
]


@pytest.mark.parametrize("changes", FINE_CASES, ids=str)
def test_agrees_with_the_search(changes: dict[str, Any]) -> None:
    case = BASE | changes
    found = convex_beampattern(**case)
    searched = best_beampattern(**case)
    assert found.objective == pytest.approx(searched.loss, rel=1e-4)
    assert found.objective == pytest.approx(found.sensing_loss, rel=1e-6)
    assert searched.lower_bound <= found.objective * (1 + 1e-7)
    check_residuals(found, case)


@pytest.mark.slow
def test_agrees_with_the_search_for_eight_antennas() -> None:
    case = BASE | {"num_antennas": 8, "power": 1.6, "targets_deg": (-70.0, 0.0, 40.0)}
    found = convex_beampattern(**case)
    searched = best_beampattern(**case)
    assert found.objective == pytest.approx(searched.loss, rel=1e-4)
    assert searched.lower_bound <= found.objective * (1 + 1e-7)
    check_residuals(found, case)


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("scale", [1.0, 0.5, "optimal"])
@pytest.mark.parametrize(
    ("antennas", "spacing", "targets"), [(4, 0.5, (-50.0, 10.0)), (7, 0.7, (-70.0, 0.0, 40.0))]
)
def test_no_covariance_has_less_loss(
    antennas: int,
    spacing: float,
    targets: tuple[float, ...],
    scale: float | str,
    form: reference.Form,
) -> None:
    changes = {"num_antennas": antennas, "spacing": spacing, "targets_deg": targets}
    case = BASE | COARSE | changes | {"cross_correlation": form, "pattern_scale": scale}
    found = convex_beampattern(**case)
    check_residuals(found, case)
    assert found.objective == pytest.approx(found.sensing_loss, rel=1e-6)
    rng = np.random.default_rng(antennas)
    for R in covariances(rng, found.streams, case["power"], 60):
        assert loss_of(R, case) >= found.objective * (1 - 1e-6)


def test_as_many_streams_as_antennas_may_be_asked_for() -> None:
    found = convex_beampattern(**BASE, **COARSE, streams=4)
    assert found.objective == convex_beampattern(**BASE, **COARSE).objective
    with pytest.raises(ValueError, match=r"streams must be None or 4 .*got 3"):
        ConvexWaveform(**BASE, **COARSE, streams=3)


# --- The least power at users -----------------------------------------------------------------


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("scale", [1.0, "optimal"])
def test_no_feasible_covariance_has_less_burden(scale: float | str, form: reference.Form) -> None:
    case = BASE | COARSE | {"cross_correlation": form, "pattern_scale": scale}
    rng = np.random.default_rng(3)
    f = reference.complex_normal(rng, 5, 4)
    weights = rng.uniform(0.1, 2.0, 5)
    waveform = ConvexWaveform(**case)
    best = waveform.least_loss()
    threshold = 1.2 * best.sensing_loss
    found = waveform.least_burden(burden_of(f, weights), threshold)
    check_residuals(found, case, threshold)
    assert found.objective == pytest.approx(received(f, weights, found.covariance), rel=1e-6)
    # The threshold binds: without it there would be less to receive.
    assert found.sensing_loss == pytest.approx(threshold, rel=1e-5)
    assert found.objective < 0.99 * received(f, weights, best.covariance)
    for R in covariances(rng, found.streams, case["power"], 90):
        R = toward(R, best.covariance, threshold, case)
        assert received(f, weights, R) >= found.objective * (1 - 1e-5)


@pytest.mark.parametrize("form", reference.FORMS)
def test_two_antennas_by_exhaustive_search(form: reference.Form) -> None:
    # R is P_R/2·[[1, z], [z*, 1]] with abs(z) <= 1, so that the design is a search over a disc.
    power, targets = 1.0, (-30.0, 50.0)
    grid = COARSE["grid_deg"].numpy()
    radii, phases = np.meshgrid(np.linspace(0, 1, 81), np.linspace(0, 2 * np.pi, 301)[:-1])
    z = (radii * np.exp(1j * phases)).ravel()
    R = power / 2 * np.stack([np.ones_like(z), z, z.conj(), np.ones_like(z)], -1).reshape(-1, 2, 2)
    vectors = reference.steering(grid, 2, 0.5)
    pattern = np.einsum("lp,npq,lq->nl", vectors.conj(), R, vectors).real
    rows = vectors if form != "target_sq" else reference.steering(targets, 2, 0.5)
    first, second = np.triu_indices(len(rows), 1)
    pairs = np.abs(np.einsum("lp,npq,lq->nl", rows[first].conj(), R, rows[second]))
    wanted = reference.desired(grid, targets, 10.0)
    cross = pairs if form == "grid_abs" else pairs**2
    loss = np.mean((wanted - pattern) ** 2, -1) + cross.mean(-1)
    case = BASE | COARSE | {"num_antennas": 2, "power": power, "targets_deg": targets}
    case["cross_correlation"] = form
    assert loss[7] == pytest.approx(loss_of(R[7], case), rel=1e-12)

    waveform = ConvexWaveform(**case)
    assert waveform.least_loss().objective <= loss.min() + 1e-9
    f = reference.complex_normal(np.random.default_rng(1), 2, 2)
    weights = np.array([1.0, 0.3])
    C = burden_of(f, weights)
    burden = np.einsum("pq,nqp->n", C, R).real
    threshold = loss.min() + 0.3 * (np.quantile(loss, 0.5) - loss.min())
    found = waveform.least_burden(C, threshold)
    assert found.objective <= burden[loss <= threshold].min() + 1e-7
    # Some point of the search lies within h of the optimum. Over h, with every abs(aᴴRa') moving
    # by at most P_R/2·h and errors and correlations of at most 1, the loss rises by 1.5·P_R·h or 2.
    h = np.hypot(0.5 / 80, np.pi / 300)
    near = loss <= threshold + 2.0 * power * h
    assert found.objective >= burden[near].min() - power * abs(C[0, 1]) * h
    assert burden.min() < found.objective - 0.01


def test_one_object_serves_for_many_burdens() -> None:
    rng = np.random.default_rng(5)
    case = BASE | COARSE
    shared = ConvexWaveform(**case)
    floor = shared.least_loss().sensing_loss
    for index, factor in enumerate((1.1, 2.0, 1.02, 1.1)):
        weights = 10.0 ** rng.uniform(-3, 1, 3)
        C = burden_of(reference.complex_normal(rng, 3, 4), weights)
        again = shared.least_burden(C, factor * floor)
        fresh = ConvexWaveform(**case).least_burden(C, factor * floor)
        assert again.objective == pytest.approx(fresh.objective, rel=1e-5, abs=1e-7 * weights.max())
        if index == 0:
            # The optimum scales with the burden.
            scaled = shared.least_burden(1e6 * C, factor * floor)
            assert scaled.objective == pytest.approx(1e6 * fresh.objective, rel=1e-5)
            np.testing.assert_allclose(scaled.covariance, fresh.covariance, atol=1e-4)
    assert shared.least_loss().sensing_loss == pytest.approx(floor, rel=1e-9)


def test_nothing_to_spare() -> None:
    waveform = ConvexWaveform(**BASE, **COARSE)
    floor = waveform.least_loss().sensing_loss
    found = waveform.least_burden(np.zeros((4, 4), complex), 1.5 * floor)
    assert found.objective == pytest.approx(0.0, abs=1e-9)
    assert found.sensing_loss <= 1.5 * floor * (1 + 1e-6)


@pytest.mark.parametrize("factor", [0.5, 0.99])
def test_threshold_below_the_floor(factor: float) -> None:
    waveform = ConvexWaveform(**BASE, **COARSE)
    floor = waveform.least_loss().sensing_loss
    C = burden_of(reference.complex_normal(np.random.default_rng(0), 2, 4), np.ones(2))
    with pytest.raises(SolverError, match="infeasible"):
        waveform.least_burden(C, factor * floor)
    # The failure leaves nothing behind.
    found = waveform.least_burden(C, 1.01 * floor)
    assert found.sensing_loss <= 1.01 * floor * (1 + 1e-6)


@pytest.mark.parametrize(("antennas", "form"), [(4, "grid_abs"), (5, "grid_sq")])
def test_agrees_with_the_waveform_search(antennas: int, form: reference.Form) -> None:
    case = BASE | {"num_antennas": antennas, "cross_correlation": form}
    rng = np.random.default_rng(antennas)
    f = reference.complex_normal(rng, 3, antennas)
    weights = np.array([0.2, 0.5, 0.3])
    waveform = ConvexWaveform(**case)
    threshold = 1.3 * best_beampattern(**case).loss
    found = waveform.least_burden(burden_of(f, weights), threshold)
    model = SensingModel(
        antennas, 0.5, case["targets_deg"], 10.0, cross_correlation=form, dtype=torch.float64
    )
    search = WaveformSearch(
        ExactSensing(model),
        torch.tensor([threshold], dtype=torch.float64),
        torch.from_numpy(f)[None],
        case["power"],
        LeakageObjective(
            torch.from_numpy(weights)[None],
            torch.tensor([0.1], dtype=torch.float64),
            torch.ones(1, 3, dtype=torch.float64),
        ),
        torch.from_numpy(reference.complex_normal(rng, 1, antennas, antennas)),
        torch.tensor([20.0], dtype=torch.float64),
    )
    search.run(300)
    V = search.streams[0].numpy()
    R = V @ V.conj().T
    assert loss_of(R, case) == pytest.approx(threshold, rel=1e-4)
    assert received(f, weights, R) == pytest.approx(found.objective, rel=2e-3)
    check_residuals(found, case, threshold)


# --- Minimum sidelobes ------------------------------------------------------------------------


BEAM: dict[str, Any] = {
    "num_antennas": 8,
    "spacing": 0.5,
    "target_deg": 0.0,
    "beam_width_deg": 20.0,
    "power": 1.0,
}
BEAMS: list[dict[str, Any]] = [
    {},
    {"num_antennas": 7, "target_deg": 15.0, "spacing": 0.45},
    {"num_antennas": 5, "beam_width_deg": 30.0, "power": 2.5, "sidelobe_margin_deg": 40.0},
    {"num_antennas": 12, "target_deg": -30.5, "beam_width_deg": 10.0},
]


def lobes(
    R: reference.Complex, case: dict[str, Any]
) -> tuple[float, reference.Real, reference.Real]:
    """Power in the target's direction, at the edges of the beam and in the sidelobe region."""
    target, width = case["target_deg"], case["beam_width_deg"]
    margin = case.get("sidelobe_margin_deg") or width
    outside = reference.GRID[np.abs(reference.GRID - target) > margin + 1e-9]
    edges = [target - width / 2, target + width / 2]
    spacing = case["spacing"]
    peak = reference.beampattern(R, [target], spacing)[0]
    return (
        float(peak),
        reference.beampattern(R, edges, spacing),
        reference.beampattern(R, outside, spacing),
    )


@pytest.mark.parametrize("changes", BEAMS, ids=str)
def test_minimum_sidelobe_is_what_it_says(changes: dict[str, Any]) -> None:
    case = BEAM | changes
    found = minimum_sidelobe(**case)
    share = case["power"] / case["num_antennas"]
    R = found.covariance
    np.testing.assert_allclose(np.diag(R), share, rtol=1e-6)
    assert np.linalg.eigvalsh(R)[0] >= -1e-6 * share
    assert found.diagonal_residual <= 1e-6
    peak, edges, outside = lobes(R, case)
    np.testing.assert_allclose(edges, 0.5 * peak, rtol=1e-5)
    assert found.objective == pytest.approx(peak - outside.max(), abs=1e-5 * case["power"])
    V = found.streams
    np.testing.assert_allclose(np.linalg.norm(V, axis=1), np.sqrt(share), rtol=1e-12)
    np.testing.assert_allclose(V @ V.conj().T, R, atol=1e-5 * share)
    expected = sum(
        reference.sensing_loss(
            R, case["spacing"], (case["target_deg"],), width=case["beam_width_deg"]
        )
    )
    assert found.sensing_loss == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("changes", BEAMS[:3], ids=str)
def test_minimum_sidelobe_agrees_with_a_hermitian_program(changes: dict[str, Any]) -> None:
    case = BEAM | changes
    antennas, target, width = case["num_antennas"], case["target_deg"], case["beam_width_deg"]
    margin = case.get("sidelobe_margin_deg") or width
    R = cp.Variable((antennas, antennas), hermitian=True)
    t = cp.Variable()

    def pattern(angles: list[float]) -> list[Any]:
        return [
            cp.real(vector.conj() @ R @ vector)
            for vector in reference.steering(angles, antennas, case["spacing"])
        ]

    (peak,) = pattern([target])
    limits = [R >> 0, cp.real(cp.diag(R)) == case["power"] / antennas]
    limits += [edge == 0.5 * peak for edge in pattern([target - width / 2, target + width / 2])]
    outside = reference.GRID[np.abs(reference.GRID - target) > margin + 1e-9]
    limits += [peak - lobe >= t for lobe in pattern(list(outside))]
    problem = cp.Problem(cp.Maximize(t), limits)
    problem.solve(solver="SCS", eps=1e-7, max_iters=50_000)
    assert problem.status == "optimal"
    found = minimum_sidelobe(**case)
    assert found.objective == pytest.approx(problem.value, abs=3e-5 * case["power"])


def test_two_antennas_leave_no_choice() -> None:
    # P(θ) = P_R/2·(1 + Re(z e^{jφ})), φ = π sin θ. Half the power at ±φ makes z real and equal to
    # 0.5/(0.5 - cos φ), which is within the disc for cos φ <= 0 only.
    case = BEAM | {"num_antennas": 2, "beam_width_deg": 80.0, "power": 0.8}
    z = 0.5 / (0.5 - np.cos(np.pi * np.sin(np.deg2rad(40.0))))
    found = minimum_sidelobe(**case)
    np.testing.assert_allclose(found.covariance, 0.4 * np.array([[1, z], [z, 1]]), atol=1e-6)
    lobe = 0.4 * (1 + z * np.cos(np.pi * np.sin(np.deg2rad(81.0))))
    assert found.objective == pytest.approx(0.4 * (1 + z) - lobe, abs=1e-6)
    with pytest.raises(SolverError, match="around 0 degrees"):
        minimum_sidelobe(**(case | {"beam_width_deg": 20.0}))


def test_a_single_antenna_forms_no_beam() -> None:
    with pytest.raises(SolverError, match="minimum sidelobes"):
        minimum_sidelobe(**(BEAM | {"num_antennas": 1}))


def test_tolerance_widens_the_set() -> None:
    last, strict = -np.inf, minimum_sidelobe(**BEAM).objective
    for tolerance in (0.0, 0.05, 0.2, 0.5):
        found = minimum_sidelobe(**BEAM, half_power_tolerance=tolerance)
        peak, edges, outside = lobes(found.covariance, BEAM)
        assert (edges >= (0.5 - tolerance) * peak - 1e-5).all()
        assert (edges <= (0.5 + tolerance) * peak + 1e-5).all()
        assert found.objective == pytest.approx(peak - outside.max(), abs=1e-5)
        assert found.objective >= last - 1e-6
        last = found.objective
    assert last > strict + 1e-3


def test_sidelobes_scale_with_power_and_shrink_with_the_region() -> None:
    base = minimum_sidelobe(**BEAM).objective
    double = minimum_sidelobe(**(BEAM | {"power": 5.0})).objective
    assert double == pytest.approx(5.0 * base, rel=1e-4)
    default = minimum_sidelobe(**BEAM, sidelobe_margin_deg=20.0).objective
    assert default == pytest.approx(base, rel=1e-6)
    smaller = minimum_sidelobe(**BEAM, sidelobe_margin_deg=35.0).objective
    assert smaller >= base - 1e-6


@pytest.mark.parametrize("tolerance", [-0.1, 0.51, float("nan"), "0.1", True])
def test_bad_tolerance(tolerance: Any) -> None:
    with pytest.raises(ValueError, match="half_power_tolerance must be"):
        minimum_sidelobe(**BEAM, half_power_tolerance=tolerance)


@pytest.mark.parametrize("margin", [90.0, 200.0])
def test_no_sidelobe_region(margin: float) -> None:
    with pytest.raises(ValueError, match="sidelobe_margin_deg must be small enough"):
        minimum_sidelobe(**BEAM, sidelobe_margin_deg=margin)


# --- Without the extra ------------------------------------------------------------------------


def test_missing_solver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    for design in (
        lambda: ConvexWaveform(**BASE),
        lambda: convex_beampattern(**BASE),
        lambda: minimum_sidelobe(**BEAM),
    ):
        with pytest.raises(ImportError, match=r"isac-gym\[solvers\]"):
            design()
