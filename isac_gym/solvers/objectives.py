"""What a waveform search minimises: the lost rate, or the radar power that users receive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isac_gym.solvers.rate_problems import RateProblem

__all__ = ["LeakageObjective", "RateObjective"]


class RateObjective:
    """Minus the sum rate that WMMSE reaches when the users also receive q.

    The precoder is carried along: each evaluation improves it by an iteration or two, and by the
    envelope theorem the derivative by q is that with the precoder held.

    Args:
        downlinks: The downlinks, n of them.
        noise_power: N0, in W.
        iterate: WMMSE's iterates, (n, ...).
        iterations: Iterations an evaluation.
    """

    def __init__(
        self, downlinks: RateProblem, noise_power: float, iterate: Tensor, iterations: int = 2
    ):
        self.downlinks = downlinks
        self.noise_power = noise_power
        self.iterate = iterate
        self._iterations = iterations

    def evaluate(self, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`~isac_gym.solvers.waveform.Objective.evaluate`."""
        noise = received.double() + self.noise_power
        point = self.downlinks.iterate(self.iterate, noise)
        for _ in range(self._iterations - 1):
            point = self.downlinks.iterate(point.image, noise)
        return -point.rate.to(received.dtype), point.slope.to(received.dtype), point.image

    def accept(self, mask: Tensor, state: Tensor) -> None:
        """See :meth:`~isac_gym.solvers.waveform.Objective.accept`."""
        shape = (-1,) + (1,) * (state.ndim - 1)
        self.iterate = torch.where(mask.view(shape), state, self.iterate)

    def renew(self) -> Tensor | None:
        """Nothing is held between updates of the multipliers."""
        return None


class LeakageObjective:
    """Σ_k v_k q_k, the weighted radar power that users receive, in bits.

    A bit is what it is worth to a rate log2(1/(c + Σ v q)): the slope of that logarithm, held until
    :meth:`renew`. So the same penalty suits every weight, and the problem stays convex.

    Args:
        weights: v >= 0, (n, K).
        offset: c > 0, (n,), in W.
        received: q to begin with, (n, K), in W.
    """

    def __init__(self, weights: Tensor, offset: Tensor, received: Tensor) -> None:
        self._weights, self._offset = weights, offset
        self._total = (weights * received).sum(-1)
        self.scale = torch.zeros_like(offset)
        self.renew()

    def evaluate(self, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`~isac_gym.solvers.waveform.Objective.evaluate`."""
        total = (self._weights * received).sum(-1)
        return self.scale * total, self.scale[:, None] * self._weights, total

    def accept(self, mask: Tensor, state: Tensor) -> None:
        """See :meth:`~isac_gym.solvers.waveform.Objective.accept`."""
        self._total = torch.where(mask, state, self._total)

    def renew(self) -> Tensor:
        """See :meth:`~isac_gym.solvers.waveform.Objective.renew`."""
        before = self.scale
        self.scale = 1.0 / (math.log(2.0) * (self._offset + self._total))
        return torch.where(before > 0, self.scale / torch.where(before > 0, before, 1.0), 1.0)
