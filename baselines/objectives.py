"""What a waveform search minimises: the lost rate, or the radar power that users receive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isac_gym.baselines.links import Link

__all__ = ["LeakageObjective", "RateObjective"]


class RateObjective:
    """Minus the sum rate that WMMSE reaches when the users also receive q.

    The precoder is carried along: each evaluation improves it by an iteration or two, and by the
    envelope theorem the derivative by q is that with the precoder held.

    Args:
        link: The downlinks, n of them.
        noise_power: N0, in W.
        iterate: WMMSE's iterates, (n, ...).
        iterations: Iterations an evaluation.
    """

    def __init__(self, link: Link, noise_power: float, iterate: Tensor, iterations: int = 2):
        self.link = link
        self.noise_power = noise_power
        self.iterate = iterate
        self._iterations = iterations

    def evaluate(self, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`~isac_gym.physics.waveform.Objective.evaluate`."""
        noise = received.double() + self.noise_power
        point = self.link.iterate(self.iterate, noise)
        for _ in range(self._iterations - 1):
            point = self.link.iterate(point.image, noise)
        return -point.rate.to(received.dtype), point.slope.to(received.dtype), point.image

    def accept(self, mask: Tensor, state: Tensor) -> None:
        """See :meth:`~isac_gym.physics.waveform.Objective.accept`."""
        shape = (-1,) + (1,) * (state.ndim - 1)
        self.iterate = torch.where(mask.view(shape), state, self.iterate)


class LeakageObjective:
    """log2(c + Σ_k v_k q_k): the weighted radar power that users receive.

    The logarithm makes it as steep as a rate, so that the same penalty suits both.

    Args:
        weights: v >= 0, (n, K).
        offset: c > 0, (n,), in W.
    """

    def __init__(self, weights: Tensor, offset: Tensor) -> None:
        self._weights, self._offset = weights, offset

    def slope(self, received: Tensor) -> Tensor:
        """∂φ/∂(Σ v q), (n,), at q (n, K)."""
        return 1.0 / (math.log(2.0) * (self._offset + (self._weights * received).sum(-1)))

    def evaluate(self, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`~isac_gym.physics.waveform.Objective.evaluate`."""
        total = self._offset + (self._weights * received).sum(-1)
        return total.log2(), self.slope(received)[:, None] * self._weights, total

    def accept(self, mask: Tensor, state: Tensor) -> None:
        """Nothing to keep."""
