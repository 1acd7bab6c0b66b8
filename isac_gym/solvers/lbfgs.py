"""Limited-memory BFGS for many small problems side by side.

Every iteration evaluates all problems once: those whose step is good enough take it, the others try
a shorter one, so that no problem waits for another's line search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["BatchedLBFGS"]

_State = TypeVar("_State")
_Function = Callable[[Tensor], tuple[Tensor, Tensor, _State]]

_SUFFICIENT = 1e-4
_SHORTEN = 0.4
_LONGEST = 0.3
"""Longest step, relative to the norm of the point, which is to be far from 0 throughout."""
_FIRST = 0.1


class BatchedLBFGS(Generic[_State]):
    """Minimises n functions of d real variables each, by L-BFGS with backtracking.

    A problem whose step was refused keeps its oldest pair in the place of the newest: its direction
    still descends. The two-loop recursion runs on inner products (Chen, Wang and Zhou, “Large-scale
    L-BFGS using MapReduce”, 2014), which costs two passes over the stored vectors an iteration.

    Args:
        function: Maps points (n, d) to values (n,), gradients (n, d) and any state of the caller's.
        accept: Called with a mask (n,) and that state whenever points are taken, so that the caller
            keeps what belongs to them.
        point: Starting points (n, d).
        memory: Pairs of steps and gradient changes that are kept.

    Attributes:
        point: Best points so far, (n, d).
        value: Their values, (n,).
    """

    def __init__(
        self,
        function: _Function[_State],
        accept: Callable[[Tensor, _State], None],
        point: Tensor,
        memory: int = 6,
    ) -> None:
        self._function, self._accept = function, accept
        count, size = point.shape
        self.point = point.clone()
        self._memory, self._slot = memory, 0
        # Steps, gradient changes and the gradient; rows of one array, so that all inner products
        # are one product of matrices.
        self._basis = point.new_zeros(count, 2 * memory + 1, size)
        self._gram = point.new_zeros(count, 2 * memory + 1, 2 * memory + 1)
        self.value = point.new_zeros(count)
        self.restart()

    def restart(self) -> None:
        """Evaluate anew, after the function has changed a little; the curvature is kept."""
        self.value, gradient, state = self._function(self.point)
        self._accept(torch.ones_like(self.value, dtype=torch.bool), state)
        self._length = torch.ones_like(self.value)
        self._basis[:, -1] = gradient
        self._update_gram([2 * self._memory])
        self._direction, self._slope = self._find_direction()

    def run(self, iterations: int) -> None:
        """Evaluate all problems ``iterations`` times."""
        last = 2 * self._memory
        for _ in range(iterations):
            moved = self.point + self._length[:, None] * self._direction
            value, gradient, state = self._function(moved)
            expected = _SUFFICIENT * self._length * self._slope
            # Rounding alone must not make a step that no longer changes anything fail.
            rounding = 8.0 * torch.finfo(value.dtype).eps * self.value.abs()
            taken = value <= self.value + expected + rounding
            mask = taken[:, None]
            step = torch.where(mask, moved - self.point, 0.0)
            change = torch.where(mask, gradient - self._basis[:, last], 0.0)
            curved = (step * change).sum(-1) > 1e-8 * change.square().sum(-1)
            kept = (taken & curved)[:, None]
            slot = self._slot
            pair = self._basis[:, slot], self._basis[:, self._memory + slot]
            self._basis[:, slot] = torch.where(kept, step, pair[0])
            self._basis[:, self._memory + slot] = torch.where(kept, change, pair[1])
            self._basis[:, last] = torch.where(mask, gradient, self._basis[:, last])
            self.point = torch.where(mask, moved, self.point)
            self.value = torch.where(taken, value, self.value)
            self._accept(taken, state)
            self._update_gram([slot, self._memory + slot, last])
            self._slot = (slot + 1) % self._memory
            direction, slope = self._find_direction()
            self._direction = torch.where(mask, direction, self._direction)
            self._slope = torch.where(taken, slope, self._slope)
            self._length = torch.where(taken, 1.0, self._length * _SHORTEN)

    def _update_gram(self, rows: list[int]) -> None:
        basis = _pair_up(self._basis)
        products = (basis @ basis[:, rows].mT)[: len(self._basis)]
        self._gram[:, :, rows] = products
        self._gram[:, rows, :] = products.mT

    def _find_direction(self) -> tuple[Tensor, Tensor]:
        """-H·gradient for every problem, (n, d), and the slope along it, (n,)."""
        memory, gram = self._memory, self._gram
        last = 2 * memory
        order = [(self._slot - 1 - age) % memory for age in range(memory)]
        curvature = [gram[:, i, memory + i] for i in range(memory)]
        inverse = [torch.where(c > 0, 1.0 / c.clamp_min(1e-38), 0.0) for c in curvature]
        # Coefficients of the result in the basis.
        weights = torch.zeros_like(gram[:, 0])
        weights[:, last] = 1.0
        shares: dict[int, Tensor] = {}
        for i in order:
            shares[i] = inverse[i] * (gram[:, i] * weights).sum(-1)
            weights[:, memory + i] -= shares[i]
        newest = order[0]
        norm = gram[:, memory + newest, memory + newest]
        gradient_norm = gram[:, last, last].clamp_min(1e-38).sqrt()
        point_norm = torch.linalg.vector_norm(self.point, dim=-1)
        scale = torch.where(
            (inverse[newest] > 0) & (norm > 0),
            curvature[newest] / norm.clamp_min(1e-38),
            _FIRST * point_norm / gradient_norm,
        )
        weights *= scale[:, None]
        for i in reversed(order):
            weights[:, i] += shares[i] - inverse[i] * (gram[:, memory + i] * weights).sum(-1)
        slope = -(gram[:, last] * weights).sum(-1)
        steepest = torch.zeros_like(weights)
        steepest[:, last] = _FIRST * point_norm / gradient_norm
        descends = slope < 0
        weights = torch.where(descends[:, None], weights, steepest)
        slope = torch.where(descends, slope, -steepest[:, last] * gradient_norm.square())
        combined = _pair_up(weights)[:, None, :] @ _pair_up(self._basis)
        direction = -combined[: len(weights)].squeeze(1)
        longest = _LONGEST * point_norm
        shorten = (longest / torch.linalg.vector_norm(direction, dim=-1).clamp_min(1e-38)).clamp(
            max=1.0
        )
        return direction * shorten[:, None], slope * shorten


def _pair_up(values: Tensor) -> Tensor:
    """A single problem's values (1, ...) twice; those of more problems as they are.

    Libraries multiply a single pair of matrices in another way than many. What that changes in the
    last digit grows from iteration to iteration: a problem by itself would end elsewhere than in a
    batch.
    """
    return torch.cat([values, values]) if len(values) == 1 else values
