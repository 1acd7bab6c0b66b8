r"""The sensing loss: beampattern error plus cross-correlation, by exact reductions.

With the phase reference at the centre of the array a fixed unitary makes every steering vector
real, so with S + jT = QᴴRQ the cross-correlation pattern is ãᵀSã' + j·ãᵀTã': two real products.
The beampattern needs only the M lag sums of R. The literal L x L pattern is never held for a
whole batch: blocks of it are made, reduced and, when gradients are wanted, differentiated while
they are in the processor's cache (or in its registers: :mod:`isac_gym.physics.sensing.compiled`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from isac_gym.physics.array import (
    angular_grid,
    centred_real_steering,
    desired_pattern,
    realifying_unitary,
    steering_vectors,
)
from isac_gym.physics.sensing.compiled import CompiledPairs
from isac_gym.physics.sensing.pairs import PairPlan, PairSum, PairwiseMagnitude

__all__ = ["SensingLoss", "SensingModel"]

_TINY_SQUARE = 1e-14
"""Keeps the second derivative of a magnitude finite where it vanishes, W²."""


_TILES = 4
_TILE = 16
"""Rows and columns that libraries multiply at once, or a multiple of theirs."""


@dataclasses.dataclass(frozen=True)
class SensingLoss:
    """The two terms of the sensing loss and the pattern they come from.

    Attributes:
        beampattern: P(θ), shape (..., L), in W.
        beampattern_error: L_r1, shape (...), in W².
        cross_correlation: L_r2, shape (...), in W (``grid_abs``) or W² (the squared forms).
    """

    beampattern: Tensor
    beampattern_error: Tensor
    cross_correlation: Tensor

    @property
    def total(self) -> Tensor:
        """L_r = L_r1 + L_r2, equation (10), shape (...)."""
        return self.beampattern_error + self.cross_correlation


class SensingModel:
    """Sensing loss L_r(R) = L_r1 + L_r2 of a uniform linear array, equations (7), (9) and (10).

    Args:
        num_antennas: Radar antennas M.
        spacing: Element spacing d/λ in wavelengths.
        targets_deg: Target directions in degrees; one tuple, or one tuple a station. With several
            tuples, inputs carry a station axis J before the matrix axes.
        beam_width_deg: Beam width Δ in degrees.
        cross_correlation: ``"grid_abs"``, ``"grid_sq"`` or ``"target_sq"``.
        pattern_scale: Scale α of the desired pattern, or ``"optimal"``.
        grid_deg: Directions in degrees, (L,), L >= 2, any spacing; default -90 ... 90 in steps
            of 1 degree.
        dtype: Real dtype of the constants.
        device: Where the constants are.

    Raises:
        ValueError: If the grid has fewer than two directions, or one on which the desired pattern
            of a station is zero throughout.
    """

    # Its constants take part in gradients, wherever the model is made.
    @torch.inference_mode(mode=False)
    def __init__(
        self,
        num_antennas: int,
        spacing: float,
        targets_deg: Sequence[float] | Sequence[Sequence[float]],
        beam_width_deg: float = 10.0,
        *,
        cross_correlation: Literal["grid_abs", "grid_sq", "target_sq"] = "grid_abs",
        pattern_scale: float | Literal["optimal"] = 1.0,
        grid_deg: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        grid = angular_grid() if grid_deg is None else grid_deg.to("cpu", torch.float64)
        if grid.ndim != 1 or len(grid) < 2:
            raise ValueError(
                f"grid_deg must hold at least two directions, got shape {tuple(grid.shape)}"
            )
        groups = [
            tuple(entry) if isinstance(entry, Sequence) else (entry,) for entry in targets_deg
        ]
        self.per_station = any(isinstance(entry, Sequence) for entry in targets_deg)
        if not self.per_station:
            groups = [tuple(angle for group in groups for angle in group)]
        self.num_antennas = num_antennas
        self.spacing = spacing
        self.cross_correlation_form = cross_correlation
        self.pattern_scale = pattern_scale
        self.grid_deg = grid
        self.targets_deg = tuple(groups)

        def constant(value: Tensor) -> Tensor:
            real = value.real.dtype == value.dtype
            return value.to(device, dtype if real else dtype.to_complex())

        desired = torch.stack([desired_pattern(grid, group, beam_width_deg) for group in groups])
        if not desired.any(-1).all():
            raise ValueError(
                f"beam_width_deg must be wide enough for every desired beam to hold a direction of "
                f"the grid, got {beam_width_deg!r}"
            )
        self.desired = constant(desired if self.per_station else desired[0])

        if pattern_scale != "optimal":
            self._wanted = pattern_scale * self.desired

        steering = steering_vectors(grid, num_antennas, spacing)
        real_steering = constant(centred_real_steering(grid, num_antennas, spacing))
        # A single matrix is bound by the number of operations, a batch by the arithmetic.
        self._plans = (PairPlan(real_steering, 1), PairPlan(real_steering, _TILES))
        self.compiled = (
            CompiledPairs(grid, num_antennas, spacing) if CompiledPairs.supports(grid) else None
        )
        self._real_steering = real_steering
        self._off_diagonal = 1.0 - torch.eye(len(grid), dtype=dtype, device=device)
        self._unitary = constant(realifying_unitary(num_antennas))
        self._unitary_adjoint = self._unitary.mH.resolve_conj().contiguous()
        lags, lag_pattern = _make_lag_maps(grid, num_antennas, spacing)
        self._lags, self.lag_pattern = constant(lags), constant(lag_pattern)
        self._even_lags, self._even_lag_pattern = (
            _pad_evenly(value).to(device) for value in (lags, lag_pattern)
        )
        self._lag_products = constant(lag_pattern @ lag_pattern.mT)
        # Of P(θ) and of d(θ) what the gradient of L_r1 takes.
        desired_lags = desired @ lag_pattern.mT
        self._desired_lags = constant(desired_lags if self.per_station else desired_lags[0])
        self._gram = constant(steering.mT @ steering.conj())
        self.pair_weight = 2.0 / (len(grid) * (len(grid) - 1))
        if cross_correlation == "target_sq":
            self._target_steering = [
                constant(steering_vectors(group, num_antennas, spacing)) for group in groups
            ]

    def beampattern(self, covariance: Tensor) -> Tensor:
        """Transmit beampattern P(θ) = aᴴ(θ) R a(θ) on the grid.

        Args:
            covariance: Hermitian R, complex, shape (..., M, M), in W.

        Returns:
            Real tensor (..., L), in W.
        """
        sums = self._sum_lags(covariance)
        return _multiply_rows(sums, self.lag_pattern, self._even_lag_pattern)

    def beampattern_error(self, pattern: Tensor) -> Tensor:
        """Beampattern error L_r1, equation (7), from the pattern.

        With ``pattern_scale="optimal"`` the scale is α = <d, P> / <d, d>, the minimiser over
        α >= 0.

        Args:
            pattern: P(θ), shape (..., L), in W (station axis before L if there are several).

        Returns:
            Real tensor (...), in W².
        """
        return (self._scale_pattern(pattern) - pattern).square().mean(-1)

    def _scale_pattern(self, pattern: Tensor) -> Tensor:
        """α d(θ), which with a fixed scale does not depend on the pattern (..., L)."""
        if self.pattern_scale != "optimal":
            return self._wanted
        scale = (self.desired * pattern).sum(-1) / self.desired.sum(-1)
        return scale.clamp_min(0.0)[..., None] * self.desired

    def cross_correlation(self, covariance: Tensor, pattern: Tensor | None = None) -> Tensor:
        """Cross-correlation term L_r2, equation (9) or one of its squared forms.

        Args:
            covariance: Hermitian R, complex, shape (..., M, M), in W.
            pattern: P(θ) if it is at hand, shape (..., L); only ``grid_sq`` uses it.

        Returns:
            Real tensor (...), in W or W².
        """
        if self.cross_correlation_form == "grid_abs":
            if self._can_compile(covariance):
                assert self.compiled is not None
                summed: PairSum = self.compiled
            else:
                summed = self._plans[covariance.numel() > self.num_antennas**2]
                covariance = self._unitary_adjoint @ covariance @ self._unitary
            if not (torch.is_grad_enabled() and covariance.requires_grad):
                return self.pair_weight * summed(covariance, False)[0]
            return self.pair_weight * PairwiseMagnitude.apply(covariance, summed)  # type: ignore[no-any-return, no-untyped-call]
        if self.cross_correlation_form == "grid_sq":
            if pattern is None:
                pattern = self.beampattern(covariance)
            product = covariance @ self._gram
            trace = (product * product.mT).real.sum((-2, -1))
            # A difference of sums: rounding may leave it just below zero.
            return 0.5 * self.pair_weight * (trace - pattern.square().sum(-1)).clamp_min(0.0)
        return self._correlate_targets(covariance)

    def _correlate_targets(self, covariance: Tensor) -> Tensor:
        terms = []
        stations = covariance.unbind(-3) if self.per_station else (covariance,)
        for matrix, steering in zip(stations, self._target_steering, strict=True):
            count = len(steering)
            correlation = steering.conj() @ matrix @ steering.mT
            squares = correlation.real.square() + correlation.imag.square()
            terms.append(
                squares.triu(1).sum((-2, -1)) * (2.0 / (count * (count - 1)) if count > 1 else 0.0)
            )
        return torch.stack(terms, -1) if self.per_station else terms[0]

    def with_gradient(
        self, covariance: Tensor, smoothing: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """L_r and its gradient by R, both differentiable: for algorithms that are learned through.

        Args:
            covariance: Hermitian R, complex (..., M, M), in W.
            smoothing: δ² in √(abs(·)² + δ²), which stands for the magnitudes of ``"grid_abs"``, in
                W²; a number or a scalar tensor.

        Returns:
            L_r (...) and G = ∂L_r/∂R, complex Hermitian (..., M, M): dL_r = Re tr(G dR).
        """
        if self.cross_correlation_form != "grid_abs":
            return self._differentiate_by_tape(covariance)
        error, by_error = self.error_with_gradient(covariance)
        correlation, by_correlation = self.correlation_with_gradient(covariance, smoothing)
        return error + correlation, by_error + by_correlation

    def gradient(self, covariance: Tensor, smoothing: Tensor | float = 0.0) -> Tensor:
        """G of :meth:`with_gradient` alone, in less time."""
        if self.cross_correlation_form != "grid_abs":
            return self._differentiate_by_tape(covariance)[1]
        _, by_correlation = self.correlation_with_gradient(covariance, smoothing)
        return self.error_gradient(covariance) + by_correlation

    def error_with_gradient(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """L_r1 and its gradient by R, as :meth:`with_gradient`."""
        return self.beampattern_error(self.beampattern(covariance)), self.error_gradient(covariance)

    def error_gradient(self, covariance: Tensor) -> Tensor:
        """The gradient of L_r1 by R, Hermitian (..., M, M), from the 2M-1 lag sums of R alone."""
        lag_sums = self._sum_lags(covariance)
        wanted = self._desired_lags
        # At the optimal scale the derivative by the scale vanishes.
        if self.pattern_scale == "optimal":
            scale = (wanted * lag_sums).sum(-1) / self.desired.sum(-1)
            wanted = scale.clamp_min(0.0)[..., None] * wanted
        else:
            wanted = self.pattern_scale * wanted
        return self._spread_lags(
            (2.0 / len(self.grid_deg)) * (lag_sums @ self._lag_products - wanted)
        )

    def by_pattern(self, slope: Tensor) -> Tensor:
        """The gradient by R, Hermitian (..., M, M), of what has the gradient (..., L) by P(θ)."""
        return self._spread_lags(slope @ self.lag_pattern.mT)

    def _sum_lags(self, covariance: Tensor) -> Tensor:
        """Lag sums of R, real (..., 2M-1)."""
        parts = torch.view_as_real(covariance.resolve_conj()).flatten(-3)
        return _multiply_rows(parts, self._lags, self._even_lags)

    def _spread_lags(self, slope: Tensor) -> Tensor:
        """The gradient by R of what has the gradient (..., 2M-1) by the lag sums."""
        matrix = (slope @ self._lags.mT).unflatten(-1, (self.num_antennas, self.num_antennas, 2))
        return torch.view_as_complex(matrix.contiguous())

    def correlation_with_gradient(
        self, covariance: Tensor, smoothing: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """L_r2 of ``"grid_abs"`` and its gradient by R, as :meth:`with_gradient`.

        Holds the pattern of all pairs: meant for coarse grids.
        """
        learned = covariance.requires_grad or (
            isinstance(smoothing, Tensor) and smoothing.requires_grad
        )
        if self._can_compile(covariance) and not (torch.is_grad_enabled() and learned):
            assert self.compiled is not None
            value, gradient = self.compiled(covariance, True, float(smoothing))
            assert gradient is not None
            # Its loop visits each pair once, so its gradient is not Hermitian by itself.
            return self.pair_weight * value, 0.5 * self.pair_weight * (gradient + gradient.mH)
        turned = self._unitary_adjoint @ covariance @ self._unitary
        steering = self._real_steering
        real = steering @ turned.real @ steering.mT
        imaginary = steering @ turned.imag @ steering.mT
        magnitude = (real.square() + imaginary.square() + (smoothing + _TINY_SQUARE)).sqrt()
        weight = self._off_diagonal / magnitude
        value = 0.5 * self.pair_weight * (magnitude * self._off_diagonal).sum((-2, -1))
        inner = torch.complex(
            steering.mT @ (real * weight) @ steering, steering.mT @ (imaginary * weight) @ steering
        )
        return value, 0.5 * self.pair_weight * (self._unitary @ inner @ self._unitary_adjoint)

    def _differentiate_by_tape(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        taped = torch.is_grad_enabled() and covariance.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            leaf = covariance if covariance.requires_grad else covariance.clone()
            leaf.requires_grad_(True)
            value = self(leaf).total
            (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=taped)
        if not taped:
            value = value.detach()
        return value, 0.5 * (gradient + gradient.mH)

    def _can_compile(self, covariance: Tensor) -> bool:
        return (
            self.compiled is not None
            and covariance.dtype == torch.complex64
            and covariance.device.type == "cpu"
        )

    def __call__(self, covariance: Tensor) -> SensingLoss:
        """Sensing loss of a batch of covariances.

        Args:
            covariance: Hermitian R, complex, shape (..., M, M) or, with targets by station,
                (..., J, M, M), in W.

        Returns:
            The loss terms, with the leading dimensions of the input.

        Raises:
            ValueError: If the matrix axes are not M x M.
        """
        if covariance.shape[-2:] != (self.num_antennas, self.num_antennas):
            raise ValueError(
                f"covariance must have shape (..., {self.num_antennas}, {self.num_antennas}), "
                f"got {tuple(covariance.shape)}"
            )
        pattern = self.beampattern(covariance)
        return SensingLoss(
            beampattern=pattern,
            beampattern_error=self.beampattern_error(pattern),
            cross_correlation=self.cross_correlation(covariance, pattern),
        )


class _EvenProduct(torch.autograd.Function):
    """Rows (..., L) by a matrix (L, N), rounded alike whatever the other rows are.

    Libraries round the product of a row by where it stands and by how many there are, above all at
    the edges of their tiles. A search over waveforms makes so much of the last digit that it would
    end elsewhere for one channel than for a batch. So there are no edges, and products are rounded
    from double precision. The matrix is one of :func:`_pad_evenly`.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, even: Tensor, width: int) -> Tensor:
        """The product (..., N), with N = ``width``."""
        ctx.even, ctx.length = even, rows.shape[-1]
        return _multiply_evenly(rows, even, width)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """The gradient by the rows; differentiable in its turn."""
        multiply = _EvenProduct.apply if torch.is_grad_enabled() else _multiply_evenly
        return multiply(grad_outputs[0], ctx.even.mT, ctx.length), None, None


def _multiply_evenly(rows: Tensor, even: Tensor, width: int) -> Tensor:
    flat = rows.reshape(-1, rows.shape[-1])
    count, length = flat.shape
    padded = even.new_zeros(count + -count % _TILE, even.shape[0])
    padded[:count, :length].copy_(flat)
    product = (padded @ even)[:count, :width]
    return product.to(rows.dtype).view(*rows.shape[:-1], width)


def _multiply_rows(rows: Tensor, matrix: Tensor, even: Tensor) -> Tensor:
    """``rows @ matrix``, evenly where gradients are wanted; ``even`` is the matrix for that."""
    if rows.requires_grad and torch.is_grad_enabled():
        found: Tensor = _EvenProduct.apply(rows, even, matrix.shape[1])  # type: ignore[no-untyped-call]
        return found
    return rows @ matrix


def _pad_evenly(matrix: Tensor) -> Tensor:
    """A matrix with zeros behind its rows and columns, up to whole tiles of both."""
    rows, columns = matrix.shape
    return torch.nn.functional.pad(matrix, (0, -columns % _TILE, 0, -rows % _TILE))


def _make_lag_maps(grid_deg: Tensor, num_antennas: int, spacing: float) -> tuple[Tensor, Tensor]:
    """Linear maps from (Re R, Im R) to the lag sums of R, and from those to the beampattern.

    P(θ) = (1/M) Σ_{p,q} R_pq e^{j(q-p)φ} = (1/M) [ρ_0 + 2 Σ_n (Re ρ_n cos nφ - Im ρ_n sin nφ)],
    φ = 2π(d/λ) sin θ, with the lag sums ρ_n = Σ_p R_{p,p+n}. Both triangles are read, each with
    half weight, so that the map is right for any R of which the Hermitian part is meant.
    """
    size = num_antennas
    lags = torch.zeros(size, size, 2, 2 * size - 1, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            lag = abs(column - row)
            if lag == 0:
                lags[row, column, 0, 0] = 1.0
                continue
            lags[row, column, 0, 2 * lag - 1] = 0.5
            lags[row, column, 1, 2 * lag] = 0.5 if column > row else -0.5
    phase = (2.0 * math.pi * spacing * torch.sin(torch.deg2rad(grid_deg)))[None, :] * torch.arange(
        1, size, dtype=torch.float64
    )[:, None]
    pattern = torch.ones(2 * size - 1, len(grid_deg), dtype=torch.float64)
    pattern[1::2] = 2.0 * torch.cos(phase)
    pattern[2::2] = -2.0 * torch.sin(phase)
    return lags.flatten(0, 2), pattern / size
