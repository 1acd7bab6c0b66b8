r"""The radar covariance with the smallest sensing loss, and how small that can be.

Minimising L_r(R) over R ⪰ 0 with diag(R) = P_R/M is convex. It is solved over R = VVᴴ with the
rows of V normalised; for V with M columns every local minimum is global (Boumal, Voroninski and
Bandeira, 2016, for the same constraint set), and a dual bound certifies the result without
relying on that.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from isac_gym.physics.sensing.coarse import ExactSensing
from isac_gym.physics.sensing.model import SensingModel
from isac_gym.solvers.waveform import WaveformSearch

__all__ = ["BeampatternDesign", "best_beampattern", "check_threshold"]

_TOLERANCE = 1e-7
"""Relative decrease over a number of iterations at which the search ends."""
_CHECK_EVERY = 10
_MOST_ITERATIONS = 1000


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


def _search_design(
    model: SensingModel, power: float, streams: int, stop_below: float
) -> BeampatternDesign:
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.num_antennas, streams)
    search = WaveformSearch(
        ExactSensing(model),
        1.0,
        torch.zeros(1, 0, model.num_antennas, dtype=torch.complex128),
        power,
        None,
        torch.randn(shape, generator=generator, dtype=torch.complex128),
        torch.ones(1, dtype=torch.float64),
        penalty=0.0,
    )
    last = math.inf
    for _ in range(_MOST_ITERATIONS // _CHECK_EVERY):
        loss = float(search.loss)
        if loss <= stop_below or last - loss <= _TOLERANCE * loss:
            break
        last = loss
        search.run(_CHECK_EVERY)
    matrix = search.streams[0]
    return BeampatternDesign(matrix, float(search.loss), _bound_from_below(model, matrix, power))


def _bound_from_below(model: SensingModel, streams: Tensor, power: float) -> float:
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
        return _search_design(model, power, columns, stop_below)


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
