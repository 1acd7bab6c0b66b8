r"""Waveform design as convex programs, solved by CVXPY with Clarabel (extra ``solvers``).

Slow and exact: what the fast searches are checked against. In the basis in which steering vectors
are real (:func:`~isac_gym.physics.array.realifying_unitary`) the covariance is S + jT, and
aᴴRa' = ãᵀSã' + j·ãᵀTã', so that the program is real from the start.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from isac_gym.physics.array import (
    angular_grid,
    centred_real_steering,
    desired_pattern,
    realifying_unitary,
)
from isac_gym.physics.sensing.model import SensingModel
from isac_gym.validation import check_real, not_allowed

__all__ = [
    "ConvexDesign",
    "ConvexWaveform",
    "SolverError",
    "convex_beampattern",
    "minimum_sidelobe",
]

Complex = npt.NDArray[np.complex128]
Real = npt.NDArray[np.float64]


class SolverError(RuntimeError):
    """A convex program was not solved; the message holds the solver's status."""


@dataclasses.dataclass(frozen=True)
class ConvexDesign:
    """What the solver found.

    Attributes:
        covariance: R, complex128 (M, M), in W, as the solver left it.
        objective: Value of the objective.
        sensing_loss: L_r(R), evaluated by :class:`~isac_gym.physics.sensing.model.SensingModel`.
        status: The solver's status, ``"optimal"`` or ``"optimal_inaccurate"``.
        diagonal_residual: Largest relative deviation of diag(R) from P_R/M.
        smallest_eigenvalue: λ_min(R)·M/P_R; negative by as much as R ⪰ 0 is violated.
        loss_residual: L_r/ε - 1 as far as it is positive; 0 without a limit on L_r.
        iterations: Iterations of the solver.
        seconds: Time in the solver, in s.
    """

    covariance: Complex
    objective: float
    sensing_loss: float
    status: str
    diagonal_residual: float
    smallest_eigenvalue: float
    loss_residual: float
    iterations: int
    seconds: float

    @property
    def streams(self) -> Complex:
        """V with VVᴴ = R as far as R ⪰ 0, (M, M), its rows of norm √(P_R/M)."""
        values, vectors = np.linalg.eigh(self.covariance)
        raw = vectors * np.sqrt(values.clip(0.0))
        share = np.trace(self.covariance).real / len(raw)
        found: Complex = raw * np.sqrt(share) / np.linalg.norm(raw, axis=1, keepdims=True)
        return found


def _import_cvxpy() -> Any:
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError(
            "convex waveform design needs CVXPY and Clarabel: pip install 'isac-gym[solvers]'"
        ) from error
    return cvxpy


class _Program:
    """Variables and constraints that every design has: R ⪰ 0 with diag(R) = P_R/M.

    Args:
        num_antennas: M.
        spacing: d/λ in wavelengths.
        power: P_R, in W.
    """

    def __init__(self, num_antennas: int, spacing: float, power: float) -> None:
        cp = self.cp = _import_cvxpy()
        self.size, self.spacing, self.power = num_antennas, spacing, power
        self.unitary: Complex = realifying_unitary(num_antennas).numpy()
        self._above = np.triu_indices(num_antennas, 1)
        self.symmetric = cp.Variable((num_antennas, num_antennas), symmetric=True)
        # T by its entries above the diagonal: an equality T = -Tᵀ would be redundant by half.
        rows, columns = self._above
        unfold = np.zeros((num_antennas, num_antennas, len(rows)))
        unfold[rows, columns, np.arange(len(rows))] = 1.0
        unfold[columns, rows, np.arange(len(rows))] = -1.0
        self._entries = cp.Variable(len(rows)) if len(rows) else np.zeros(0)
        shape = (num_antennas, num_antennas)
        self.skew = cp.reshape(
            unfold.reshape(num_antennas**2, len(rows)) @ self._entries, shape, order="C"
        )
        # diag(QZQᴴ)_m = Σ_pq Q_mp Q*_mq Z_pq, a real linear map of S and T.
        outer = np.einsum("mp,mq->mpq", self.unitary, self.unitary.conj())
        diagonal = cp.hstack(
            [
                cp.sum(cp.multiply(entry.real, self.symmetric))
                - cp.sum(cp.multiply(entry.imag, self.skew))
                for entry in outer
            ]
        )
        self.constraints = [
            cp.bmat([[self.symmetric, -self.skew], [self.skew, self.symmetric]]) >> 0,
            diagonal == power / num_antennas,
        ]

    def inner(self, matrix: Any) -> Any:
        """<C̃, Z> for a Hermitian C̃ given by its (real part, imaginary part)."""
        real, imaginary = matrix
        return self.cp.sum(self.cp.multiply(real, self.symmetric)) + self.cp.sum(
            self.cp.multiply(imaginary, self.skew)
        )

    def pattern(self, angles: Sequence[float] | torch.Tensor) -> Any:
        """P(θ) in the directions given, in W."""
        steering = centred_real_steering(angles, self.size, self.spacing).numpy()
        return self.cp.sum(self.cp.multiply(steering @ self.symmetric, steering), axis=1)

    def correlations(self, angles: Sequence[float] | torch.Tensor) -> tuple[Any, Any]:
        """Re and Im of aᴴ(θ_l) R a(θ_m), l < m, each as one long vector."""
        steering = centred_real_steering(angles, self.size, self.spacing).numpy()
        first, second = np.triu_indices(len(steering), 1)
        left, right = steering[first], steering[second]
        rows, columns = self._above
        diagonal = np.arange(self.size)
        even = np.concatenate(
            [
                left * right,
                left[:, rows] * right[:, columns] + left[:, columns] * right[:, rows],
            ],
            axis=1,
        )
        odd = left[:, rows] * right[:, columns] - left[:, columns] * right[:, rows]
        cp = self.cp
        entries = cp.hstack([self.symmetric[diagonal, diagonal], self.symmetric[rows, columns]])
        return even @ entries, odd @ self._entries

    def covariance(self) -> Complex:
        """R at the solution."""
        turned = self.symmetric.value + 1j * self.skew.value
        found: Complex = self.unitary @ turned @ self.unitary.conj().T
        return found

    def solve(self, problem: Any, what: str, solver: str = "CLARABEL", **options: Any) -> None:
        """Solve, with Clarabel unless another solver is named.

        Raises:
            SolverError: If no solution was found.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # inaccuracy is in the status that is returned
                problem.solve(solver=solver, **options)
        except self.cp.error.SolverError as error:
            raise SolverError(f"{what}: {error}") from error
        if problem.status not in ("optimal", "optimal_inaccurate"):
            raise SolverError(f"{what}: the solver ended with status {problem.status!r}")


class ConvexWaveform:
    """Waveforms under the sensing loss (10): the least loss, or the least power at some users.

    Args:
        num_antennas: Radar antennas M.
        spacing: Element spacing d/λ in wavelengths.
        targets_deg: Target directions in degrees.
        beam_width_deg: Beam width Δ in degrees.
        power: Radar power P_R, in W.
        cross_correlation: Form of the cross-correlation term.
        pattern_scale: Scale α of the desired pattern, or ``"optimal"``.
        streams: Must be None or M: a smaller rank is not a convex constraint.
        grid_deg: Directions of the grid; None means -90 ... 90 in steps of 1 degree.

    Raises:
        ImportError: If CVXPY is not installed; the message names the extra.
        ValueError: If another number of streams is asked for.
    """

    def __init__(
        self,
        *,
        num_antennas: int,
        spacing: float,
        targets_deg: tuple[float, ...],
        beam_width_deg: float,
        power: float,
        cross_correlation: Literal["grid_abs", "grid_sq", "target_sq"] = "grid_abs",
        pattern_scale: float | Literal["optimal"] = 1.0,
        streams: int | None = None,
        grid_deg: torch.Tensor | None = None,
    ) -> None:
        if streams is not None and streams != num_antennas:
            raise not_allowed("streams", streams, f"None or {num_antennas} in a convex program")
        self._model = SensingModel(
            num_antennas,
            spacing,
            targets_deg,
            beam_width_deg,
            cross_correlation=cross_correlation,
            pattern_scale=pattern_scale,
            grid_deg=grid_deg,
            dtype=torch.float64,
        )
        self._program = _Program(num_antennas, spacing, power)
        self._loss = self._sensing_loss(targets_deg, beam_width_deg)
        self._burden: tuple[Any, Any] | None = None
        self._limited: Any = None

    def _sensing_loss(self, targets: tuple[float, ...], beam_width: float) -> Any:
        program, model, cp = self._program, self._model, self._program.cp
        grid = model.grid_deg
        wanted = desired_pattern(grid, targets, beam_width).numpy()
        scale: Any = model.pattern_scale
        if scale == "optimal":
            scale = cp.Variable(nonneg=True)
        error = cp.sum_squares(scale * wanted - program.pattern(grid)) / len(grid)
        angles = targets if model.cross_correlation_form == "target_sq" else grid
        if len(angles) < 2:
            return error
        pairs = 2.0 / (len(angles) * (len(angles) - 1))
        real, imaginary = program.correlations(angles)
        if model.cross_correlation_form == "grid_abs":
            return error + pairs * cp.sum(cp.norm(cp.vstack([real, imaginary]), 2, axis=0))
        return error + pairs * (cp.sum_squares(real) + cp.sum_squares(imaginary))

    def least_loss(self) -> ConvexDesign:
        """The covariance with the smallest L_r.

        Raises:
            SolverError: If it was not found.
        """
        cp = self._program.cp
        problem = cp.Problem(cp.Minimize(self._loss), self._program.constraints)
        self._program.solve(problem, "least sensing loss")
        return self._design(problem, None)

    def least_burden(self, burden: Complex, threshold: float) -> ConvexDesign:
        """The covariance with the smallest <C, R> that keeps L_r <= ε.

        Args:
            burden: Hermitian C ⪰ 0, (M, M); Σ_k c_k f_k* f_kᵀ weighs what users receive.
            threshold: ε.

        Raises:
            SolverError: If it was not found, in particular if ε is below the floor.
        """
        program, cp = self._program, self._program.cp
        if self._burden is None:
            shape = (program.size, program.size)
            self._burden = cp.Parameter(shape, symmetric=True), cp.Parameter(shape)
            self._threshold = cp.Parameter(nonneg=True)
            self._limited = cp.Problem(
                cp.Minimize(program.inner(self._burden)),
                [*program.constraints, self._loss <= self._threshold],
            )
        turned = program.unitary.conj().T @ burden @ program.unitary
        scale = max(np.abs(turned).max(), 1e-300)
        self._burden[0].value = 0.5 * (turned.real + turned.real.T) / scale
        self._burden[1].value = turned.imag / scale
        self._threshold.value = threshold
        program.solve(self._limited, f"waveform with L_r <= {threshold:g}")
        found = self._design(self._limited, threshold)
        return dataclasses.replace(found, objective=found.objective * scale)

    def _design(self, problem: Any, threshold: float | None) -> ConvexDesign:
        program = self._program
        return _design(program, problem, self._model, threshold)


def _design(
    program: _Program, problem: Any, model: SensingModel, threshold: float | None
) -> ConvexDesign:
    covariance = program.covariance()
    loss = float(model(torch.from_numpy(covariance)).total)
    unit = program.power / program.size
    return ConvexDesign(
        covariance=covariance,
        objective=float(problem.value),
        sensing_loss=loss,
        status=problem.status,
        diagonal_residual=float(np.abs(covariance.diagonal() / unit - 1.0).max()),
        smallest_eigenvalue=float(np.linalg.eigvalsh(covariance)[0] / unit),
        loss_residual=0.0 if threshold is None else max(loss / threshold - 1.0, 0.0),
        iterations=int(problem.solver_stats.num_iters or 0),
        seconds=float(problem.solver_stats.solve_time or 0.0),
    )


def convex_beampattern(**design: Any) -> ConvexDesign:
    """The covariance with the smallest sensing loss, problem (5) with (9).

    Args:
        **design: Arguments of :class:`ConvexWaveform`; those of
            :func:`~isac_gym.solvers.beampattern.best_beampattern` and
            :meth:`~isac_gym.scenario.Scenario.list_beampattern_arguments` among them.

    Returns:
        The design.

    Raises:
        ImportError: If CVXPY is not installed.
        SolverError: If the program was not solved.
    """
    return ConvexWaveform(**design).least_loss()


def minimum_sidelobe(
    *,
    num_antennas: int,
    spacing: float,
    target_deg: float,
    beam_width_deg: float,
    power: float,
    sidelobe_margin_deg: float | None = None,
    half_power_tolerance: float = 0.0,
) -> ConvexDesign:
    """The minimum-sidelobe design (6) of Stoica, Li and Xie, 2007.

    Maximises t = P(θ_0) - max P(θ) over the sidelobe region, with half the peak's power at the
    edges of the beam, θ_0 ± Δ/2.

    Args:
        num_antennas: Radar antennas M.
        spacing: Element spacing d/λ in wavelengths.
        target_deg: Direction θ_0 of the beam, in degrees.
        beam_width_deg: Distance Δ between the two directions of half power, in degrees.
        power: Radar power P_R, in W.
        sidelobe_margin_deg: The sidelobe region is everything farther than this from θ_0, in
            degrees; None means Δ.
        half_power_tolerance: δ in [0, 0.5]: the power at the edges may be (0.5 ± δ) of the peak's.

    Returns:
        The design; its objective is t, in W.

    Raises:
        ImportError: If CVXPY is not installed.
        ValueError: If the region is empty, or the tolerance is not allowed.
        SolverError: If the program was not solved, in particular if it is infeasible because so
            narrow a beam cannot be formed.
    """
    power = check_real("power", power, "a finite number > 0", lambda value: value > 0)
    half = beam_width_deg / 2.0
    inside = f"a number > 0 with target_deg ± half of it within [-90, 90] (target {target_deg:g})"
    widest = 180.0 - 2.0 * abs(target_deg)
    beam_width_deg = check_real(
        "beam_width_deg", beam_width_deg, inside, lambda width: 0 < width <= widest
    )
    if sidelobe_margin_deg is not None:
        allowed = f"None or a number >= {half:g}, half the beam's width"
        sidelobe_margin_deg = check_real(
            "sidelobe_margin_deg", sidelobe_margin_deg, allowed, lambda value: value >= half
        )
    allowed = "a number in [0, 0.5]"
    half_power_tolerance = check_real(
        "half_power_tolerance", half_power_tolerance, allowed, lambda x: 0 <= x <= 0.5
    )
    program = _Program(num_antennas, spacing, power)
    cp = program.cp
    margin = beam_width_deg if sidelobe_margin_deg is None else sidelobe_margin_deg
    grid = angular_grid()
    outside = grid[(grid - target_deg).abs() > margin + 1e-9]
    if len(outside) == 0:
        raise not_allowed("sidelobe_margin_deg", margin, "small enough to leave a sidelobe region")
    peak = program.pattern([target_deg])
    edges = program.pattern([target_deg - half, target_deg + half])
    below = cp.Variable()
    ones = np.ones(2)
    if half_power_tolerance == 0.0:
        halved = [edges == 0.5 * peak * ones]
    else:
        halved = [
            edges >= (0.5 - half_power_tolerance) * peak * ones,
            edges <= (0.5 + half_power_tolerance) * peak * ones,
        ]
    limited = peak - program.pattern(outside) >= below
    problem = cp.Problem(cp.Maximize(below), [*program.constraints, limited, *halved])
    # Interior points stall here: equal powers at two edges leave the dual solution undetermined.
    what = f"minimum sidelobes around {target_deg:g} degrees"
    program.solve(problem, what, solver="SCS", eps=1e-8, max_iters=100_000)
    model = SensingModel(num_antennas, spacing, (target_deg,), beam_width_deg, dtype=torch.float64)
    return _design(program, problem, model, None)
