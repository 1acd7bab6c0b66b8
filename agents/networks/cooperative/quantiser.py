"""From values in [-1, 1] to bits, with a gradient: the quantiser of a station's messages."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from isac_gym.validation import check_choice

__all__ = ["Quantiser", "QuantiserKind"]

QuantiserKind: TypeAlias = Literal["stochastic", "hardened", "annealed", "gumbel"]

_LARGEST_SLOPE: Final = 20.0


class _StochasticBits(torch.autograd.Function):
    """+1 with probability (1+cv)/2, else -1; the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(ctx: object, values: Tensor, drawn: Tensor, slope: float) -> Tensor:
        return torch.where(drawn < 0.5 * (1.0 + slope * values), 1.0, -1.0).to(values.dtype)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class Quantiser:
    """Bits of values v in [-1, 1], equations (27)-(29), while a network is trained.

    * ``"stochastic"``: each bit is +1 with probability (1+v)/2, else -1. Its expectation is v, so
      its gradient passes straight through.
    * ``"hardened"``: the same in the first half of a training; in the second the odds steepen until
      nearly all bits are signs, so that those who hear them learn what they will hear.
    * ``"annealed"``: tanh of v times a slope that rises as training goes: values that become bits.
    * ``"gumbel"``: the binary concrete distribution, a differentiable relaxation of the first, with
      a temperature that falls.

    At deployment a bit is the sign of its value, whatever it was trained with (:meth:`decide`).

    Args:
        kind: Which.

    Attributes:
        progress: Share of the training that is done, in [0, 1); sets slope and temperature.
    """

    def __init__(self, kind: QuantiserKind = "stochastic") -> None:
        self.kind: QuantiserKind = check_choice("kind", kind, QuantiserKind)
        self.progress = 0.0

    def draw(self, values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bits, or what stands for them in training, with gradient.

        Args:
            values: v in [-1, 1], any shape.
            generator: Source of randomness; None means torch's global one.

        Returns:
            Tensor of the same shape.
        """
        if self.kind == "annealed":
            return torch.tanh((1.0 + _LARGEST_SLOPE * self.progress) * torch.atanh(0.999 * values))
        drawn = torch.rand(values.shape, generator=generator, dtype=values.dtype)
        drawn = drawn.to(values.device)
        if self.kind in ("stochastic", "hardened"):
            slope = 1.0
            if self.kind == "hardened":
                slope += _LARGEST_SLOPE * max(0.0, 2.0 * self.progress - 1.0)
            bits: Tensor = _StochasticBits.apply(values, drawn, slope)  # type: ignore[no-untyped-call]
            return bits
        noise = torch.logit(drawn.clamp(1e-6, 1.0 - 1e-6))
        temperature = 1.0 - 0.9 * self.progress
        return torch.tanh((2.0 * torch.atanh(0.999 * values) + noise) / (2.0 * temperature))

    @staticmethod
    def decide(values: Tensor) -> Tensor:
        """The sign of each value, +1 at zero: the bits at deployment."""
        return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
