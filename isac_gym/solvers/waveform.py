r"""Search for radar waveforms, batched: what users receive against the sensing loss.

Minimises φ(q) over V with rows of norm √(P_R/M), where q_k = ‖f_kᵀV‖² is the radar power that user
k receives, subject to L_r(VVᴴ) <= ε by an augmented Lagrangian, or with L_r at a fixed price. All
problems of a batch advance together (:mod:`isac_gym.solvers.lbfgs`). Where φ is convex and V has as
many columns as rows, every local minimum is global (see :mod:`isac_gym.solvers.beampattern`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import torch
from torch import Tensor

from isac_gym.physics.sensing.coarse import Sensing
from isac_gym.physics.waveform import normalise_rows
from isac_gym.solvers.lbfgs import BatchedLBFGS

__all__ = ["Objective", "WaveformSearch", "move_within_limit"]

_LARGEST_MULTIPLIER = 1e4
_MARGIN: Final = 1e-5
"""Relative excess over ε up to which a waveform is feasible: rounding in single precision."""
_HALVINGS: Final = 14


class Objective(Protocol):
    """φ, for n problems; may hold a state that goes with the accepted points."""

    def evaluate(self, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value (n,), ∂φ/∂q (n, K) and new state (n, ...) at q (n, K), in W."""

    def accept(self, mask: Tensor, state: Tensor) -> None:
        """Keep the state of the problems of a mask (n,)."""

    def renew(self) -> Tensor | None:
        """Renew what was held while the multipliers were; called whenever they are raised.

        Returns:
            The factors (n,) by which φ grew through that, or None if it did not.
        """


class WaveformSearch:
    """n problems, of which every J in a row belong to the J stations of one channel.

    Args:
        sensing: The sensing loss; None leaves it out of account, with ``penalty=0``.
        threshold: ε, a number or a tensor (n,).
        radar_channels: f, complex (n, K, M).
        power: P_R, in W.
        objective: φ; None means 0: only the sensing loss counts.
        streams: Starting V, complex (n, M, r).
        multiplier: Starting multipliers of the relative excess L_r/ε - 1, (n,).
        stations: J.
        penalty: Curvature ρ of the augmented Lagrangian; 0 leaves the multipliers as they are: a
            price on L_r instead of a constraint.
        memory: Of the quasi-Newton search.

    Attributes:
        multiplier: Current multipliers, (n,).
        excess: L_r/ε - 1 at the current points, (n,).
    """

    def __init__(
        self,
        sensing: Sensing | None,
        threshold: Tensor | float,
        radar_channels: Tensor,
        power: float,
        objective: Objective | None,
        streams: Tensor,
        multiplier: Tensor,
        *,
        stations: int = 1,
        penalty: float = 2000.0,
        memory: int = 6,
    ) -> None:
        self._sensing, self._threshold = sensing, threshold
        self._stations = stations
        self._antennas, self._streams = streams.shape[-2:]
        self._channels = radar_channels
        self._adjoint = self._channels.mH.resolve_conj().contiguous()
        self._power = power
        self.objective = objective
        self.multiplier = multiplier.clone()
        self._penalty = penalty
        self.excess = torch.zeros_like(self.multiplier)
        self._objective_value = torch.zeros_like(self.multiplier)
        # Entries of order 1, so that the search is scaled the same whatever the power.
        start = normalise_rows(streams, self._antennas)
        self._search = BatchedLBFGS(
            self._evaluate, self._accept, torch.view_as_real(start).flatten(1), memory
        )

    @property
    def streams(self) -> Tensor:
        """Current V, complex (n, M, r), in √W."""
        return self._make_matrices(self._search.point)

    @property
    def loss(self) -> Tensor:
        """L_r at the current points, (n,)."""
        return (1.0 + self.excess) * self._threshold

    @property
    def value(self) -> Tensor:
        """φ + multiplier·excess at the current points, (n,): what a price would pay."""
        return self._objective_value + self.multiplier * self.excess

    def run(self, iterations: int, update_every: int = 10) -> None:
        """Advance all problems, raising the multipliers every ``update_every`` iterations."""
        if self._penalty == 0.0:
            self._search.run(iterations)
            return
        done = 0
        while done < iterations:
            part = min(update_every, iterations - done)
            self._search.run(part)
            done += part
            raised = self.multiplier + self._penalty * self.excess
            grown = None if self.objective is None else self.objective.renew()
            if grown is not None:
                raised = raised * grown
            self.multiplier = raised.clamp(0.0, _LARGEST_MULTIPLIER)
            self._search.restart()

    def _make_matrices(self, point: Tensor) -> Tensor:
        parts = point.view(len(point), self._antennas, self._streams, 2)
        return normalise_rows(torch.view_as_complex(parts), self._power)

    def _evaluate(self, point: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        streams = self._make_matrices(point)
        excess, by_covariance = self._compute_excess(streams)
        echoes = self._channels @ streams
        received = torch.view_as_real(echoes).square().sum((-2, -1))
        if self.objective is None:
            value = state = torch.zeros_like(excess)
            burden = torch.zeros_like(received)
        else:
            value, burden, state = self.objective.evaluate(received)
        pressure, total = self.multiplier, value + self.multiplier * excess
        if self._penalty > 0.0:
            pressure = (self.multiplier + self._penalty * excess).clamp_min(0.0)
            total = value + (pressure.square() - self.multiplier.square()) / (2.0 * self._penalty)
        gradient = self._adjoint @ (burden.unsqueeze(-1) * echoes)
        if by_covariance is not None:
            scale = (pressure / self._threshold)[:, None, None]
            gradient = gradient + (by_covariance * scale) @ streams
        return (
            total,
            self._differentiate_by_point(point, streams, 2.0 * gradient),
            (value, excess, state),
        )

    def _compute_excess(self, streams: Tensor) -> tuple[Tensor, Tensor | None]:
        """L_r/ε - 1, (n,), and the Hermitian part of the gradient of L_r by R, (n, M, M)."""
        if self._sensing is None:
            return torch.zeros_like(self.multiplier), None
        covariance = (streams @ streams.mH).unflatten(0, (-1, self._stations))
        with torch.inference_mode(False), torch.enable_grad():
            leaf = covariance.clone().requires_grad_(True)
            loss = self._sensing.loss(leaf)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        slope = slope.flatten(0, 1)
        return loss.detach().flatten() / self._threshold - 1.0, 0.5 * (slope + slope.mH)

    def _differentiate_by_point(self, point: Tensor, streams: Tensor, gradient: Tensor) -> Tensor:
        """The gradient by V, turned into that by the entries before normalisation."""
        rows = torch.view_as_real(streams).flatten(2)
        slopes = torch.view_as_real(gradient.contiguous()).flatten(2)
        share = self._power / self._antennas
        along = (rows * slopes).sum(-1, keepdim=True) / share
        raw = point.view(rows.shape)
        norm = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(1e-12)
        tangent: Tensor = (slopes - along * rows) * (share**0.5 / norm)
        return tangent.flatten(1)

    def _accept(self, mask: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> None:
        value, excess, inner = state
        self._objective_value = torch.where(mask, value, self._objective_value)
        self.excess = torch.where(mask, excess, self.excess)
        if self.objective is not None:
            self.objective.accept(mask, inner)


def move_within_limit(
    streams: Tensor,
    best: Tensor,
    compute_loss: Callable[[Tensor], Tensor],
    threshold: float,
    power: float,
) -> Tensor:
    """Waveforms, those whose sensing loss exceeds ε moved towards the best until it does not.

    Args:
        streams: V, complex (n, M, r), in √W.
        best: V with the smallest loss, of a shape that expands to that of ``streams``.
        compute_loss: L_r (n,) of V (n, M, r).
        threshold: ε.
        power: P_R, in W.

    Returns:
        V, complex (n, M, r); what kept ε is as it was.
    """
    limit = (1.0 + _MARGIN) * threshold
    outside = compute_loss(streams) > limit
    if not bool(outside.any()):
        return streams
    # Turned so that the path between the two is short; R does not change by that.
    left, _, right = torch.linalg.svd(best.mH @ streams)
    best = best @ (left @ right)
    low = torch.zeros_like(streams.real[:, :1, :1])
    high = torch.ones_like(low)
    inside = best
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        trial = normalise_rows((1.0 - middle) * streams + middle * best, power)
        over = (compute_loss(trial) > limit)[:, None, None]
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        inside = torch.where(over, inside, trial)
    return torch.where(outside[:, None, None], inside, streams)
