r"""Precoders and radar waveforms of several stations at once: rate, leakage and sensing loss.

With S stations and U users, of which the first S·K are served, it minimises

  φ = -Σ_served log2(1 + SINR_u) + Σ_others c_u P_u

over F_s with Σ_k ‖F_sk‖² <= P_C and V_s with rows of norm √(P_R/M_R), subject to L_r(V_s V_sᴴ) <= ε
at every station by an augmented Lagrangian, or with L_r at given prices. The streams and the radar
of every station disturb every user; P_u is the power that a user receives who is not served, and
c_u its price.

All variables of a problem are one vector for :mod:`isac_gym.solvers.lbfgs`. The power constraint is
smooth in it: F_s = √P_C·X_s/‖(X_s, x_s)‖ with a complex slack x_s. The problem has many local
optima, which differ in the users that are given up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isac_gym.physics.links import BITS_PER_NAT
from isac_gym.physics.sensing.coarse import Sensing
from isac_gym.physics.waveform import normalise_rows
from isac_gym.solvers.lbfgs import BatchedLBFGS
from isac_gym.solvers.network_problems import (
    NetworkProblem,
    StreamPowers,
    pose_network,
    pose_stations,
    radar_received,
)
from isac_gym.validation import check_integer, check_real

__all__ = ["NetworkProblem", "NetworkSearch", "pose_network", "pose_stations"]

_LARGEST_MULTIPLIER = 1e4
_LEAST_SLACK = 1e-6
"""Share of the budget that a start leaves free: from none at all there is no way to less power."""

_State = tuple[Tensor, Tensor, Tensor]


class NetworkSearch:
    """A local search in every problem of a batch, all advancing together.

    Args:
        problem: The n problems.
        sensing: The sensing loss of covariances (..., J, M_R, M_R), J being S times ``stations``;
            None leaves it out of account, with ``penalty=0``.
        threshold: ε, a number or a tensor that broadcasts to (n, S).
        precoders: Starting F within the budget, complex (n, S, M_C, K), in √W.
        streams: Starting V, complex (n, S, M_R, r), in √W; its dtype is that of the search.
        multiplier: Starting multipliers of the relative excess L_r/ε - 1, (n, S), in bit/s/Hz.
        stations: Problems in a row that belong to one channel: 1, or J where each is of one
            station.
        penalty: Curvature ρ of the augmented Lagrangian; 0 leaves the multipliers as they are:
            prices on L_r instead of constraints.
        hold_streams: Whether V stays as it is, so that only F is searched.
        memory: Of the quasi-Newton search.

    Raises:
        ValueError: If the shapes do not fit together, or a number is not allowed; the message names
            them.

    Attributes:
        problem: The problems.
        multiplier: Current multipliers, (n, S).
        excess: L_r/ε - 1 at the current points, (n, S).
        rates: Rates of the served users, (n, S·K), in bit/s/Hz.
        objective: φ at the current points, (n,), in bit/s/Hz.
    """

    def __init__(
        self,
        problem: NetworkProblem,
        sensing: Sensing | None,
        threshold: Tensor | float,
        precoders: Tensor,
        streams: Tensor,
        multiplier: Tensor,
        *,
        stations: int = 1,
        penalty: float = 2000.0,
        hold_streams: bool = False,
        memory: int = 6,
    ) -> None:
        self.problem = problem
        self._sensing, self._threshold = sensing, threshold
        self._group = check_integer("stations", stations, 1) * problem.comm.shape[1]
        self._penalty = check_real("penalty", penalty, "a finite number >= 0", lambda x: x >= 0)
        self._check_shapes(precoders, streams, multiplier)
        self._shape, self._radar_shape = precoders.shape, streams.shape
        self._served = precoders.shape[1] * precoders.shape[3]
        self._comm_adjoint = problem.comm.mH.resolve_conj().contiguous()
        self._radar_adjoint = problem.radar.mH.resolve_conj().contiguous()
        self._held: Tensor | None = None
        self.multiplier = multiplier.clone()
        self.excess = torch.zeros_like(multiplier)
        self.rates = problem.noise.new_zeros(len(problem), self._served)
        self.objective = problem.noise.new_zeros(len(problem))
        if hold_streams:
            self._held = normalise_rows(streams, problem.radar_power)
            self._echoes = self._receive_radar(self._held)[1]
            self.excess, _ = self._compute_excess(self._held)
        start = self._make_point(precoders, streams)
        self._search = BatchedLBFGS(self._evaluate, self._accept, start, memory)

    @property
    def precoders(self) -> Tensor:
        """Current F, complex (n, S, M_C, K), in √W."""
        return self._split(self._search.point)[0]

    @property
    def streams(self) -> Tensor:
        """Current V, complex (n, S, M_R, r), in √W."""
        return self._split(self._search.point)[1]

    @property
    def value(self) -> Tensor:
        """φ + Σ_s multiplier·excess at the current points, (n,): what a price would pay."""
        total: Tensor = self.objective + (self.multiplier * self.excess).sum(-1)
        return total

    def measure_gradient(self) -> Tensor:
        """Norm of the gradient of what is minimised, (n,): by the unit rows of V and F/√P_C.

        The power constraints are within; with ``penalty=0`` it is that of the Lagrangian.
        """
        norm: Tensor = torch.linalg.vector_norm(self._evaluate(self._search.point)[1], dim=-1)
        return norm

    def run(self, iterations: int, update_every: int = 10) -> None:
        """Advance all problems, raising the multipliers every ``update_every`` iterations."""
        if self._penalty == 0.0 or self._held is not None:
            self._search.run(iterations)
            return
        done = 0
        while done < iterations:
            part = min(update_every, iterations - done)
            self._search.run(part)
            done += part
            raised = self.multiplier + self._penalty * self.excess
            self.multiplier = raised.clamp(0.0, _LARGEST_MULTIPLIER)
            self._search.restart()

    def _check_shapes(self, precoders: Tensor, streams: Tensor, multiplier: Tensor) -> None:
        count, stations, users, antennas = self.problem.comm.shape
        if count * stations % self._group:
            raise ValueError(
                f"stations must divide the number of problems, {count}, got "
                f"{self._group // stations}"
            )
        if (
            precoders.shape[:-1] != (count, stations, antennas)
            or stations * precoders.shape[-1] > users
            or streams.shape[:-1] != (count, stations, self.problem.radar.shape[-1])
            or multiplier.shape != (count, stations)
        ):
            raise ValueError(
                "precoders, streams and multiplier must have shapes (n, S, M_C, K) with S·K <= U, "
                f"(n, S, M_R, r) and (n, S) for comm (n, S, U, M_C) = "
                f"{tuple(self.problem.comm.shape)}, got {tuple(precoders.shape)}, "
                f"{tuple(streams.shape)} and {tuple(multiplier.shape)}"
            )

    def _make_point(self, precoders: Tensor, streams: Tensor) -> Tensor:
        """Variables (n, d): of each station X and its slack, then rows of V of norm 1."""
        power = self.problem.comm_power
        weights = torch.view_as_real(precoders.to(streams.dtype).resolve_conj()) / power**0.5
        weights = weights.flatten(2)
        used = weights.square().sum(-1, keepdim=True)
        slack = (1.0 - used).clamp_min(_LEAST_SLACK).sqrt()
        parts = [torch.cat([weights, slack, torch.zeros_like(slack)], -1).flatten(1)]
        if self._held is None:
            rows = normalise_rows(streams, streams.shape[-2])
            parts.append(torch.view_as_real(rows).flatten(1))
        return torch.cat(parts, -1)

    def _split(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """F and V of variables."""
        weights, rows = self._split_variables(point)
        norm = torch.linalg.vector_norm(weights, dim=-1, keepdim=True).clamp_min(1e-30)
        entries = weights[..., :-2] * (self.problem.comm_power**0.5 / norm)
        precoders = torch.view_as_complex(entries.unflatten(-1, (*self._shape[2:], 2)))
        if self._held is not None:
            return precoders, self._held
        raw = torch.view_as_complex(rows.unflatten(-1, (*self._radar_shape[1:], 2)))
        return precoders, normalise_rows(raw, self.problem.radar_power)

    def _split_variables(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """(X, x) as (n, S, 2·M_C·K + 2), and the entries of V, (n, S·2·M_R·r)."""
        stations = self._shape[1]
        length = stations * (2 * self._shape[2] * self._shape[3] + 2)
        return point[:, :length].unflatten(1, (stations, -1)), point[:, length:]

    def _receive_radar(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        """f_suᵀV_s, (n, S, U, r), and the radar power that every user receives, (n, U)."""
        echoes = self.problem.radar @ streams
        return echoes, radar_received(echoes)

    def _evaluate(self, point: Tensor) -> tuple[Tensor, Tensor, _State]:
        problem, served = self.problem, self._served
        precoders, streams = self._split(point)
        received = problem.comm @ precoders
        powers = StreamPowers(received, served)
        if self._held is None:
            echoes, radar = self._receive_radar(streams)
            excess, by_covariance = self._compute_excess(streams)
        else:
            radar, excess = self._echoes, self.excess
        disturbance = powers.disturbance + (problem.noise + radar)[:, :served]
        rates = torch.log1p(powers.signal / disturbance) * BITS_PER_NAT
        price = problem.price[:, served:]
        objective = (price * (powers.leaked + radar[:, served:])).sum(-1) - rates.sum(-1)
        # What a watt costs at each user, and what a watt of its own stream brings.
        burden = torch.cat([powers.price(disturbance), price], 1)
        gain = BITS_PER_NAT / (disturbance + powers.signal)
        pressure, value = self.multiplier, objective + (self.multiplier * excess).sum(-1)
        if self._penalty > 0.0:
            pressure = (self.multiplier + self._penalty * excess).clamp_min(0.0)
            squares = pressure.square() - self.multiplier.square()
            value = objective + squares.sum(-1) / (2.0 * self._penalty)
        parts = [self._differentiate_precoders(point, precoders, received, burden, gain)]
        if self._held is None:
            gradient = self._radar_adjoint @ (burden[:, None, :, None] * echoes)
            if by_covariance is not None:
                scale = (pressure / self._threshold)[..., None, None]
                gradient = gradient + (by_covariance * scale) @ streams
            parts.append(self._differentiate_streams(point, streams, 2.0 * gradient))
        return value, torch.cat(parts, -1), (objective, excess, rates)

    def _compute_excess(self, streams: Tensor) -> tuple[Tensor, Tensor | None]:
        """L_r/ε - 1, (n, S), and the Hermitian part of the gradient of L_r by R."""
        if self._sensing is None:
            return torch.zeros_like(self.multiplier), None
        flat = (streams @ streams.mH).flatten(0, 1).unflatten(0, (-1, self._group))
        with torch.inference_mode(False), torch.enable_grad():
            leaf = flat.clone().requires_grad_(True)
            loss = self._sensing.loss(leaf)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        slope = slope.view(*streams.shape[:2], *slope.shape[-2:])
        excess = loss.detach().view(streams.shape[:2]) / self._threshold - 1.0
        return excess, 0.5 * (slope + slope.mH)

    def _differentiate_precoders(
        self, point: Tensor, precoders: Tensor, received: Tensor, burden: Tensor, gain: Tensor
    ) -> Tensor:
        """The gradient by (X, x) of every station, (n, S·(2·M_C·K + 2))."""
        stations, columns = self._shape[1], self._shape[3]
        weights = burden[:, None, :, None].expand(received.shape).clone()
        own = weights[:, :, : self._served].unflatten(2, (stations, columns))
        # A view (n, K, S) of the entries of users with their own stations and columns.
        diagonal = own.diagonal(dim1=1, dim2=2).diagonal(dim1=1, dim2=2)
        diagonal.copy_(-gain.unflatten(1, (stations, columns)))
        by_precoder = 2.0 * (self._comm_adjoint @ (weights * received))
        slopes = torch.view_as_real(by_precoder).flatten(2)
        raw, _ = self._split_variables(point)
        entries = torch.view_as_real(precoders).flatten(2)
        along = (slopes * entries).sum(-1, keepdim=True)
        square = raw.square().sum(-1, keepdim=True).clamp_min(1e-30)
        scaled = torch.nn.functional.pad(slopes, (0, 2)) * (self.problem.comm_power / square).sqrt()
        return (scaled - (along / square) * raw).flatten(1)

    def _differentiate_streams(self, point: Tensor, streams: Tensor, gradient: Tensor) -> Tensor:
        """The gradient by V, turned into that by the entries before normalisation."""
        rows = torch.view_as_real(streams).flatten(3)
        slopes = torch.view_as_real(gradient.contiguous()).flatten(3)
        share = self.problem.radar_power / streams.shape[2]
        along = (rows * slopes).sum(-1, keepdim=True) / share
        raw = self._split_variables(point)[1].view(rows.shape)
        norm = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(1e-12)
        tangent: Tensor = (slopes - along * rows) * (share**0.5 / norm)
        return tangent.flatten(1)

    def _accept(self, mask: Tensor, state: _State) -> None:
        objective, excess, rates = state
        self.objective = torch.where(mask, objective, self.objective)
        self.excess = torch.where(mask[:, None], excess, self.excess)
        self.rates = torch.where(mask[:, None], rates, self.rates)
