"""Dual variables of the expected constraints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["DualVariables"]


class DualVariables:
    """Multipliers λ >= 0, one for every constraint and station, raised by projected ascent.

    λ ← [λ + η·(mean of the constraint over the batch)]₊, the reading of equations (21), (37) and
    (38) in which a violated constraint raises its multiplier.

    Args:
        names: Names of the constraints.
        num_cells: Stations J.
        step_size: η.
        device: Where the multipliers are.
    """

    def __init__(
        self, names: list[str], num_cells: int, step_size: float, device: torch.device | str = "cpu"
    ) -> None:
        self.step_size = step_size
        self.values = {name: torch.zeros(num_cells, device=device) for name in names}

    def penalty(self, constraints: Mapping[str, Tensor]) -> Tensor:
        """Σ λ·mean(constraint), the dual part of the Lagrangian.

        Args:
            constraints: Signed constraints by name, each (n, J).

        Returns:
            Scalar tensor with gradient.
        """
        terms = [(value * constraints[name].mean(0)).sum() for name, value in self.values.items()]
        return torch.stack(terms).sum()

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over multipliers.

        Raises:
            ValueError: If names or shapes differ.
        """
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        expected = {name: tuple(value.shape) for name, value in self.values.items()}
        if shapes != expected:
            raise ValueError(f"multipliers must have the shapes {expected}, got {shapes}")
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def ascend(self, constraints: Mapping[str, Tensor]) -> None:
        """One step of projected ascent; arguments as in :meth:`penalty`."""
        for name, value in self.values.items():
            value.add_(self.step_size * constraints[name].detach().mean(0)).clamp_min_(0.0)
