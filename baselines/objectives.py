"""What a waveform search minimises: the lost rate, or the radar power that users receive."""

from __future__ import annotations

from typing import Final

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
    """A multiple of log(c + Σ_k v_k q_k): the weighted radar power that users receive.

    The logarithm only sets the scale, so that the same penalty suits every weight.

    Attributes:
        SCALE: The multiple.

    Args:
        weights: v >= 0, (n, K).
        offset: c > 0, (n,), in W.
    """

    SCALE: Final = 10.0

    def __init__(self, weights: Tensor, offset: Tensor) -> None:
        self._weights, self._offset = weights, offset

    def evaluate(self, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`~isac_gym.physics.waveform.Objective.evaluate`."""
        total = self._offset + (self._weights * received).sum(-1)
        slope = (self.SCALE / total)[:, None] * self._weights
        return self.SCALE * total.log(), slope, total

    def accept(self, mask: Tensor, state: Tensor) -> None:
        """Nothing to keep."""
