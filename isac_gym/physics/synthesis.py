r"""The radar covariance with the smallest sensing loss, and how small that can be.

Minimising L_r(R) over R ⪰ 0 with diag(R) = P_R/M is convex. It is solved over R = VVᴴ with the
rows of V normalised; for V with M columns every local minimum is global (Boumal, Voroninski and
Bandeira, 2016, for the same constraint set), and a dual bound certifies the result without
relying on that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from isac_gym.physics.sensing import SensingModel

__all__ = ["BeampatternDesign", "best_beampattern", "check_threshold", "normalise_rows"]

_ZERO_NORM = 1e-12


@dataclasses.dataclass(frozen=True)
class BeampatternDesign:
    """A radar waveform and its sensing loss.

    Attributes:
        streams: V, complex128, shape (M, r), in √W; R = VVᴴ has diag(R) = P_R/M.
        loss: L_r(R).
        lower_bound: Certified lower bound on the loss of any R with the same diagonal.
    """

    streams: Tensor
    loss: float
    lower_bound: float


def normalise_rows(streams: Tensor, power: float) -> Tensor:
    """Scale each row to norm √(P_R/M), which makes diag(VVᴴ) = P_R/M exact.

    Args:
        streams: Complex, shape (..., M, r), entries of order 1. A zero row (norm below 1e-12)
            becomes a uniform one.
        power: P_R, in W.

    Returns:
        Complex tensor of the same shape, in √W.
    """
    antennas, columns = streams.shape[-2:]
    wanted = (power / antennas) ** 0.5
    parts = torch.view_as_real(streams.resolve_conj())
    # The norm of the real parts: that of a complex tensor is not vectorised.
    norm = torch.linalg.vector_norm(parts.flatten(-2), dim=-1)[..., None, None]
    scaled = torch.view_as_complex(parts * (wanted / norm.clamp_min(_ZERO_NORM)))
    return torch.where((norm < _ZERO_NORM).squeeze(-1), wanted * columns**-0.5, scaled)


def _design(
    model: SensingModel, power: float, streams: int, stop_below: float
) -> BeampatternDesign:
    generator = torch.Generator().manual_seed(0)
    shape = (model.num_antennas, streams, 2)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)

    def value_and_gradient(raw: Tensor) -> tuple[float, Tensor]:
        leaf = raw.detach().requires_grad_(True)
        matrix = normalise_rows(torch.view_as_complex(leaf), power)
        loss = model(matrix @ matrix.mH).total
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.item(), gradient

    loss, raw = _gradient_phase(value_and_gradient, start, stop_below)
    if loss > stop_below:
        # SciPy is imported here: a threshold that a few gradient steps reach, the usual case when
        # an environment is made, does not pay for the import.
        from scipy.optimize import minimize

        def flat(vector: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = value_and_gradient(torch.from_numpy(vector).view(shape))
            return value, gradient.flatten().numpy()

        result = minimize(
            flat,
            raw.flatten().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 2000, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-9},
        )
        loss, raw = float(result.fun), torch.from_numpy(result.x).view(shape)
    matrix = normalise_rows(torch.view_as_complex(raw), power)
    return BeampatternDesign(matrix, loss, _lower_bound(model, matrix, power))


def _gradient_phase(
    value_and_gradient: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    stop_below: float,
    max_evaluations: int = 60,
) -> tuple[float, Tensor]:
    """Gradient descent with Barzilai-Borwein steps; returns the best point seen."""
    point = start
    value, gradient = value_and_gradient(point)
    best_value, best = value, point
    step = 0.1 * float(point.norm() / gradient.norm().clamp_min(1e-300))
    for _ in range(max_evaluations):
        if best_value <= stop_below:
            break
        moved = point - step * gradient
        value, next_gradient = value_and_gradient(moved)
        if value < best_value:
            best_value, best = value, moved
        shift, change = moved - point, next_gradient - gradient
        curvature = float((shift * change).sum())
        step = float((shift * shift).sum()) / curvature if curvature > 0 else 2.0 * step
        point, gradient = moved, next_gradient
    return best_value, best


def _lower_bound(model: SensingModel, streams: Tensor, power: float) -> float:
    """Certified lower bound on L_r over all R ⪰ 0 with diag(R) = P_R/M.

    Convexity: L_r(R') >= L_r(R) + <G, R' - R>. Among the feasible R', <G, R'> is at least
    (P_R/M)·(Σ y_m + M·λ_min(G - Diag y)) for any real y; the best y at an optimum is the diagonal
    of G R divided by P_R/M.
    """
    covariance = (streams @ streams.mH).requires_grad_(True)
    loss = model(covariance).total
    (gradient,) = torch.autograd.grad(loss, covariance)
    gradient = 0.5 * (gradient + gradient.mH)
    share = power / model.num_antennas
    fixed = covariance.detach()
    dual = (gradient @ fixed).diagonal().real / share
    slack = torch.linalg.eigvalsh(gradient - torch.diag(dual).to(gradient.dtype))[0]
    minimum = share * (dual.sum() + model.num_antennas * slack)
    return float(loss.detach() + minimum - (gradient.conj() * fixed).real.sum())


@lru_cache(maxsize=256)
def best_beampattern(
    *,
    num_antennas: int,
    spacing: float,
    targets_deg: tuple[float, ...],
    beam_width_deg: float,
    power: float,
    cross_correlation: Literal["grid_abs", "grid_sq", "target_sq"] = "grid_abs",
    pattern_scale: float | Literal["optimal"] = 1.0,
    streams: int | None = None,
    stop_below: float = 0.0,
) -> BeampatternDesign:
    """The waveform with the smallest sensing loss under the per-antenna power constraint (5).

    Args:
        num_antennas: Radar antennas M.
        spacing: Element spacing d/λ in wavelengths.
        targets_deg: Target directions in degrees.
        beam_width_deg: Beam width Δ in degrees.
        power: Radar power P_R, in W.
        cross_correlation: Form of the cross-correlation term.
        pattern_scale: Scale α of the desired pattern, or ``"optimal"``.
        streams: Streams r; None means M. With r < M the result is a local optimum.
        stop_below: Stop as soon as the loss is at most this.

    Returns:
        The design, the same object at every call with the same arguments.
    """
    with torch.inference_mode(False), torch.enable_grad():
        model = SensingModel(
            num_antennas,
            spacing,
            targets_deg,
            beam_width_deg,
            cross_correlation=cross_correlation,
            pattern_scale=pattern_scale,
            dtype=torch.float64,
        )
        columns = num_antennas if streams is None else streams
        return _design(model, power, columns, stop_below)


def check_threshold(threshold: float, **design: Any) -> None:
    """Raise unless some covariance has a sensing loss of at most ``threshold``.

    Args:
        threshold: ε.
        **design: Arguments of :func:`best_beampattern`.

    Raises:
        ValueError: If no such covariance was found; the message names the floor.
    """
    found = best_beampattern(stop_below=threshold, **design)
    antennas, streams = found.streams.shape
    if found.loss > threshold:
        best = "that any radar covariance attains"
        if streams < antennas:
            best = f"found with radar_streams={streams}"
        raise ValueError(
            f"sensing_threshold must be at least {_round_up(found.loss)}, the smallest sensing "
            f"loss {best} in this scenario, got {threshold!r}"
        )


def _round_up(value: float) -> str:
    """Four significant digits, never below the value: what the message states is accepted."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / unit) * unit:.4g}"
