"""The sum over pairs of directions in tensor operations, in blocks that stay in the cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["PairPlan", "PairSum", "PairwiseMagnitude"]

PairSum: TypeAlias = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]


_CPU_BLOCK = 64
_GPU_BLOCK = 1024


class PairPlan:
    """The pairs l < m of a grid, cut into strips of rows, with all that does not depend on R.

    Args:
        steering: Real steering vectors (L, M).
        count: Number of strips.
    """

    def __init__(self, steering: Tensor, count: int) -> None:
        length, self.size = steering.shape
        # Strips of about equal area of the triangle above the diagonal.
        edges = [round(length * (1.0 - math.sqrt(1.0 - i / count))) for i in range(count)]
        bounds = [(low, high) for low, high in itertools.pairwise([*edges, length]) if high > low]
        columns = steering.t().contiguous()
        self.tiles = []
        for low, high in bounds:
            above = torch.ones_like(steering[:1, :1]).expand(high - low, length - low).triu(1)
            self.tiles.append((steering[low:high], columns[:, low:], above.flatten()))
        self.rows = max(high - low for low, high in bounds)
        self.area = max((high - low) * (length - low) for low, high in bounds)

    def __call__(self, matrices: Tensor, want_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Sum (...) for Z (..., M, M) and, if wanted, its gradient (..., M, M)."""
        return _sum_magnitudes(matrices, self, want_gradient)


class PairwiseMagnitude(torch.autograd.Function):
    """Σ_{l<m} abs(ã_lᵀ Z ã_m) for complex Z (..., M, M) and real ã (L, M).

    The gradient is formed with the value, block by block; where a magnitude is zero its
    subgradient 0 is taken.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, summed: PairSum) -> Tensor:
        """The sum (...), by a function that gives it with its gradient."""
        value, gradient = summed(matrices.detach(), ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """The gradient, which was formed with the sum."""
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0][..., None, None] * gradient, None


def _sum_magnitudes(
    matrices: Tensor, plan: PairPlan, want_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Value (...) and, if wanted, gradient (..., M, M) of the sum over pairs."""
    size = plan.size
    stacked = torch.view_as_real(matrices.resolve_conj()).reshape(-1, size, size, 2)
    stacked = stacked.permute(3, 0, 1, 2).contiguous()
    batch = stacked.shape[1]
    if batch == 1 and not want_gradient and len(plan.tiles) == 1:
        left, right, above = plan.tiles[0]
        parts = torch.mm((left @ stacked).view(-1, size), right)
        parts.mul_(parts)
        real, imaginary = parts.chunk(2)
        value = real.add_(imaginary).sqrt_().view(-1).dot(above)
        return value.view(matrices.shape[:-2]), None
    block = min(max(batch, 1), _CPU_BLOCK if stacked.device.type == "cpu" else _GPU_BLOCK)
    # One workspace for all blocks: fresh memory for each would cost more than the arithmetic.
    rows_space = stacked.new_empty(2 * block * plan.rows * size)
    tile_space = stacked.new_empty(2 * block * plan.area)
    magnitude_space = stacked.new_empty(block * plan.area) if want_gradient else tile_space
    value = stacked.new_zeros(batch)
    gradient = torch.zeros_like(stacked) if want_gradient else None

    for start in range(0, batch, block):
        part = stacked[:, start : start + block]
        count = part.shape[1]
        for left, right, above in plan.tiles:
            height, width = left.shape[0], right.shape[1]
            area = height * width
            rows = rows_space[: 2 * count * height * size].view(2, count, height, size)
            torch.matmul(left, part, out=rows)
            flat = tile_space[: 2 * count * area]
            torch.mm(rows.view(-1, size), right, out=flat.view(-1, width))
            tile = flat.view(2, count, area)
            if gradient is None:
                tile.mul_(tile)
                magnitude = tile[0].add_(tile[1]).sqrt_()
            else:
                magnitude = magnitude_space[: count * area].view(count, area)
                torch.mul(tile[0], tile[0], out=magnitude)
                magnitude.addcmul_(tile[1], tile[1]).sqrt_()
            value[start : start + count] += magnitude.mv(above)
            if gradient is not None:
                magnitude.reciprocal_().nan_to_num_(posinf=0.0)
                tile.mul_(magnitude)
                tile.view(2, count, height, width)[..., :height].mul_(
                    above.view(height, width)[:, :height]
                )
                torch.mm(flat.view(-1, width), right.t(), out=rows.view(-1, size))
                gradient[:, start : start + count] += left.t() @ rows
    merged = None
    if gradient is not None:
        merged = torch.view_as_complex(gradient.permute(1, 2, 3, 0).contiguous())
        merged = merged.view(matrices.shape)
    return value.view(matrices.shape[:-2]), merged
