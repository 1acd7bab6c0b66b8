"""Numbers as words of a few bits: uniform in the log domain, with a word for nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import torch
from torch import Tensor

from isac_gym.validation import check_integer, check_real, not_allowed

__all__ = ["ScalarCode"]

MOST_BITS: Final = 16


@dataclasses.dataclass(frozen=True)
class ScalarCode:
    """A code for numbers >= 0, of B bits each.

    One word says "nothing", which is decoded as 0. The others stand for 2^B - 1 levels from ``low``
    to ``high`` whose ratios are equal; with a single bit the one level is their geometric mean. A
    number has the word of the level that is nearest in the log domain. What exceeds ``high`` is
    coded as the highest level, and what is nearer to the level that would follow below ``low`` than
    to ``low``, or with a single bit less than ``low``, as nothing. Words are read as binary
    numbers, the most significant bit first, so that a larger number has no smaller word.

    Args:
        low: Lowest level but nothing, > 0.
        high: Highest level, > ``low``.
        bits: Bits B of a word, 1 … 16.

    Raises:
        ValueError: If an argument is not allowed.
    """

    low: float
    high: float
    bits: int

    def __post_init__(self) -> None:
        check_real("low", self.low, "a finite number > 0", lambda value: value > 0)
        allowed = f"a finite number > low={self.low:g}"
        check_real("high", self.high, allowed, lambda value: value > self.low)
        if check_integer("bits", self.bits, 1) > MOST_BITS:
            raise not_allowed("bits", self.bits, f"an integer in 1 … {MOST_BITS}")

    @property
    def step(self) -> float:
        """Natural logarithm of the ratio of neighbouring levels."""
        return math.log(self.high / self.low) / max((1 << self.bits) - 2, 1)

    @property
    def levels(self) -> Tensor:
        """What the words stand for in rising order, 0 first, float64 (2^B,)."""
        if self.bits == 1:
            steps = torch.tensor([0.5], dtype=torch.float64)
        else:
            steps = torch.arange(2**self.bits - 1, dtype=torch.float64)
        found = self.low * torch.exp(steps * self.step)
        return torch.cat([found.new_zeros(1), found])

    def encode(self, values: Tensor) -> Tensor:
        """The words of numbers.

        Args:
            values: Real tensor (...), >= 0.

        Returns:
            Tensor (..., B) of the same dtype with entries -1 and +1.
        """
        steps = torch.log(values.double() / self.low) / self.step
        if self.bits == 1:
            index = (steps >= 0).long()
        else:
            index = (steps.clamp(-1.0, 2.0**self.bits - 2.0) + 0.5).floor().long() + 1
        places = torch.arange(self.bits - 1, -1, -1, device=values.device)
        return (2 * ((index.unsqueeze(-1) >> places) & 1) - 1).to(values.dtype)

    def decode(self, words: Tensor) -> Tensor:
        """The numbers that words stand for.

        Args:
            words: Real tensor (..., B) with entries -1 and +1.

        Returns:
            Tensor (...) of the same dtype.

        Raises:
            ValueError: If the words have another length.
        """
        if words.shape[-1:] != (self.bits,):
            raise ValueError(f"words must have shape (..., {self.bits}), got {tuple(words.shape)}")
        places = torch.arange(self.bits - 1, -1, -1, device=words.device)
        index = ((words > 0).long() << places).sum(-1)
        return self.levels.to(words.device, words.dtype)[index]
