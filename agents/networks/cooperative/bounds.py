"""Bounds on what a network sets that do not trap it.

A plain clamp has no gradient outside its bounds. Where a training has driven all of a head's
outputs beyond them, nothing brings them back, whatever the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["bound"]


class _Bound(torch.autograd.Function):
    """``clamp``, with the gradient outside wherever it leads back inside."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, largest: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.largest = largest
        return values.clamp(-largest, largest)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grad_outputs
        (values,) = ctx.saved_tensors
        # A step goes against the gradient.
        leads_away = (values.abs() > ctx.largest) & (values * gradient < 0)
        return gradient.masked_fill(leads_away, 0.0), None


def bound(values: Tensor, largest: float) -> Tensor:
    """Values within [-largest, largest].

    Args:
        values: Tensor of any shape.
        largest: Bound on their magnitude.

    Returns:
        ``values.clamp(-largest, largest)``. Its gradient is that of the identity, but for values
        beyond the bounds that a step against it would drive further out; there it is 0.
    """
    if not (torch.is_grad_enabled() and values.requires_grad):
        return values.clamp(-largest, largest)
    found: Tensor = _Bound.apply(values, largest)  # type: ignore[no-untyped-call]
    return found
