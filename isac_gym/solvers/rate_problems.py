r"""The downlinks that WMMSE iterates on: precoders, or powers along fixed directions.

The sum power budget is absorbed into the noise: with every user's noise scaled by the transmitted
power, σ_k² Σ_l‖F_l‖²/P, the rate no longer depends on the scale of F and is that of F scaled to the
full budget (Zhao, Lu, Shi and Luo, “Rethinking WMMSE: Can its complexity scale linearly with the
number of BS antennas?”, 2023). No search for a power multiplier remains. Nothing is lost by keeping
F in the space that the users' channels span, so that an iteration solves one system of at most K
equations.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["PowerProblem", "PrecoderProblem", "RatePoint", "RateProblem", "Start"]

Start: TypeAlias = Literal["rzf", "mrt", "zf", "random"]

_OFF_SHARE = 0.01
"""Power of a user outside a start's subset, relative to an equal share: zero would stay zero."""
_TIE_BREAK = 0.1
_TINY = 1e-150


@dataclasses.dataclass(frozen=True)
class RatePoint:
    """An iterate and what it achieves.

    Attributes:
        rate: Sum rate at full power, (n,), in bit/s/Hz.
        slope: -∂rate/∂σ_k² with the iterate held, (n, K), in bit/s/Hz/W. At a stationary point
            this is the total derivative.
        image: The next iterate of WMMSE.
    """

    rate: Tensor
    slope: Tensor
    image: Tensor


def _break_ties(served: Tensor) -> Tensor:
    """Factors near 1: users with the same channel would share it for ever, a saddle point."""
    users = served.shape[-1]
    return 1.0 - _TIE_BREAK * torch.arange(users, device=served.device) / users


class RateProblem(ABC):
    """n downlinks whose sum rate WMMSE maximises; what differs between precoders and powers."""

    users: int

    @abstractmethod
    def start(self, kind: Start, noise: Tensor, served: Tensor, rng: torch.Generator) -> Tensor:
        """An iterate to start from.

        Args:
            kind: Which.
            noise: σ² > 0, (n, K), in W.
            served: 1 for users to serve, 0 for users with next to no power, (n, K).
            rng: Randomness of ``kind="random"``.
        """

    @abstractmethod
    def iterate(self, iterate: Tensor, noise: Tensor) -> RatePoint:
        """One iteration of WMMSE for noise σ² > 0, (n, K), in W."""

    @abstractmethod
    def select(self, index: Tensor) -> RateProblem:
        """Some of the downlinks."""

    def _balance(
        self, received: Tensor, squares: Tensor, sent: Tensor, noise: Tensor, power: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rate, slope, w u, w abs(u)² and Σ_k w_k abs(u_k)² σ_k²/P for MMSE receivers u, weights w.

        Args:
            received: g_kᵀF_k, (n, K).
            squares: abs(g_kᵀF_l)², (n, K, K).
            sent: Σ_l ‖F_l‖², (n,).
            noise: σ², (n, K).
            power: P.
        """
        scale = (sent / power).clamp_min(_TINY)[:, None]
        signal = squares.diagonal(dim1=-2, dim2=-1)
        others = 1.0 - torch.eye(self.users, dtype=squares.dtype, device=squares.device)
        disturbance = (squares * others).sum(-1) + noise * scale
        total = disturbance + signal
        rate = torch.log2(total / disturbance).sum(-1)
        slope = scale * signal / (disturbance * total) / math.log(2.0)
        receivers = received / total
        weights = total / disturbance
        demand = weights * receivers.abs().square()
        multiplier = ((demand * noise).sum(-1) / power).clamp_min(_TINY)
        return rate, slope, weights * receivers, demand, multiplier


class PrecoderProblem(RateProblem):
    """Precoders F = QZ with Q a basis of the users' channels; the iterate is Z, of any scale.

    Args:
        channels: G with row k = g_kᵀ, complex128 (n, K, M_C).
        power: Budget P, in W.
    """

    def __init__(self, channels: Tensor, power: float) -> None:
        # Orthonormal also where channels coincide, so that ‖Z‖ = ‖F‖ holds to the last digit.
        self._basis = torch.linalg.qr(channels.mH)[0]
        self._reduced = channels @ self._basis
        self.power = power
        self.users = channels.shape[-2]

    def select(self, index: Tensor) -> PrecoderProblem:
        """See :meth:`RateProblem.select`."""
        chosen = PrecoderProblem.__new__(PrecoderProblem)
        chosen._basis, chosen._reduced = self._basis[index], self._reduced[index]
        chosen.power, chosen.users = self.power, self.users
        return chosen

    def start(self, kind: Start, noise: Tensor, served: Tensor, rng: torch.Generator) -> Tensor:
        """See :meth:`RateProblem.start`."""
        reduced = self._reduced
        adjoint = reduced.mH
        shares = served.clamp_min(_OFF_SHARE) * _break_ties(served)
        if kind == "random":
            drawn = torch.randn(adjoint.shape, dtype=adjoint.dtype, generator=rng)
            drawn = drawn.to(adjoint.device) * shares.sqrt().unsqueeze(-2)
            return drawn
        if kind == "mrt":
            columns = adjoint
        else:
            gram = reduced @ adjoint
            loading = noise * self.users / self.power
            if kind == "zf":  # its limit; the regularisation only keeps the system solvable
                loading = 1e-10 * gram.diagonal(dim1=-2, dim2=-1).real + 1e-100
            # A user that is not served does not constrain the directions of the others. Rounding
            # must not make the system singular where users coincide and the noise is next to none.
            least = 1e-13 * gram.diagonal(dim1=-2, dim2=-1).real + _TINY
            weak = torch.maximum(loading / served.clamp_min(1e-6), least)
            inverse, _ = torch.linalg.inv_ex(gram + torch.diag_embed(weak).to(gram.dtype))
            columns = adjoint @ inverse
        norm = torch.linalg.vector_norm(columns, dim=-2)
        silent = norm <= _TINY
        amplitude = torch.where(silent, 0.0, shares.sqrt() / torch.where(silent, 1.0, norm))
        scaled: Tensor = columns * amplitude.unsqueeze(-2)
        return scaled

    def iterate(self, iterate: Tensor, noise: Tensor) -> RatePoint:
        """See :meth:`RateProblem.iterate`."""
        reduced = self._reduced
        received = reduced @ iterate
        squares = received.real.square() + received.imag.square()
        sent = torch.view_as_real(iterate).square().sum((-3, -2, -1))
        rate, slope, target, demand, multiplier = self._balance(
            received.diagonal(dim1=-2, dim2=-1), squares, sent, noise, self.power
        )
        adjoint = reduced.mH
        system = adjoint @ (demand.unsqueeze(-1) * reduced)
        system.diagonal(dim1=-2, dim2=-1).add_(multiplier.unsqueeze(-1))
        image, _ = torch.linalg.solve_ex(system, adjoint * target.unsqueeze(-2))
        return RatePoint(rate, slope, image)

    def precoders(self, iterate: Tensor) -> Tensor:
        """F at full power, complex (n, M_C, K), in √W; zero where no user can be reached."""
        matrix = self._basis @ iterate
        norm = torch.linalg.matrix_norm(matrix)[:, None, None]
        scaled: Tensor = self.power**0.5 * matrix / torch.where(norm > 0, norm, 1.0)
        return scaled


class PowerProblem(RateProblem):
    """Powers along fixed directions; the iterate is the amplitudes v ≥ 0, (n, K), of any scale.

    Args:
        gains: abs(g_kᵀd_l)² for user k and the direction of user l, (n, K, K).
        power: Budget P, in W.
    """

    def __init__(self, gains: Tensor, power: float) -> None:
        self.gains = gains
        self.power = power
        self.users = gains.shape[-1]

    def select(self, index: Tensor) -> PowerProblem:
        """See :meth:`RateProblem.select`."""
        return PowerProblem(self.gains[index], self.power)

    def start(self, kind: Start, noise: Tensor, served: Tensor, rng: torch.Generator) -> Tensor:
        """See :meth:`RateProblem.start`; every kind but ``"random"`` is nearly equal power."""
        shares = served.clamp_min(_OFF_SHARE) * _break_ties(served)
        if kind == "random":
            drawn = torch.rand(shares.shape, dtype=shares.dtype, generator=rng)
            shares = shares * drawn.to(shares.device)
        return (self.power * shares / shares.sum(-1, keepdim=True)).sqrt()

    def iterate(self, iterate: Tensor, noise: Tensor) -> RatePoint:
        """See :meth:`RateProblem.iterate`; Sun et al., 2018, under a sum power budget."""
        squares = self.gains * iterate.square().unsqueeze(-2)
        direct = self.gains.diagonal(dim1=-2, dim2=-1).sqrt()
        rate, slope, target, demand, multiplier = self._balance(
            direct * iterate, squares, iterate.square().sum(-1), noise, self.power
        )
        burden = (demand.unsqueeze(-1) * self.gains).sum(-2) + multiplier.unsqueeze(-1)
        return RatePoint(rate, slope, target * direct / burden)

    def powers(self, iterate: Tensor) -> Tensor:
        """p_k at full power, (n, K), in W."""
        squares = iterate.square()
        total = squares.sum(-1, keepdim=True)
        return self.power * squares / torch.where(total > 0, total, 1.0)
