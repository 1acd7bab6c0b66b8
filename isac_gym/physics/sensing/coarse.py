"""The sensing loss as searches see it: exact, or with a coarser grid of directions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from isac_gym.physics.array import angular_grid
from isac_gym.physics.sensing.model import SensingModel

__all__ = ["CoarseSensing", "ExactSensing", "Sensing"]


class Sensing(Protocol):
    """Anything that gives the total sensing loss (..., J) of covariances (..., J, M, M)."""

    def loss(self, covariance: Tensor) -> Tensor:
        """L_r."""

    def with_gradient(
        self, covariance: Tensor, smoothing: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """L_r and its gradient by R, Hermitian (..., J, M, M), both differentiable."""

    def gradient(self, covariance: Tensor, smoothing: Tensor | float = 0.0) -> Tensor:
        """The gradient alone, in less time."""


class ExactSensing:
    """The sensing loss as it is.

    Args:
        model: The model, with targets by station.
    """

    def __init__(self, model: SensingModel) -> None:
        self.model = model

    def loss(self, covariance: Tensor) -> Tensor:
        """See :meth:`Sensing.loss`."""
        return self.model(covariance).total

    def with_gradient(
        self, covariance: Tensor, smoothing: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Sensing.with_gradient`."""
        return self.model.with_gradient(covariance, smoothing)

    def gradient(self, covariance: Tensor, smoothing: Tensor | float = 0.0) -> Tensor:
        """See :meth:`Sensing.gradient`."""
        return self.model.gradient(covariance, smoothing)


class CoarseSensing:
    """The sensing loss with the cross-correlation from a coarser grid: a few percent off, fast.

    The beampattern error stays exact. The mean over all ordered pairs of directions, l = m
    included, hardly depends on the grid; the sum over l = m is known exactly on both grids. Only
    for ``cross_correlation="grid_abs"``; the squared forms are fast as they are.

    Args:
        model: The model.
        step_deg: Spacing of the coarse grid in degrees, a divisor of 90.
        beam_width_deg: Beam width in degrees.

    Attributes:
        model: The model.
        coarse: The model on the coarse grid.
        scale: Factor of the coarse model's cross-correlation.
        diagonals: Constant part of the gradient of L_r2, Hermitian and Toeplitz (..., M, M).
    """

    def __init__(self, model: SensingModel, step_deg: float, beam_width_deg: float) -> None:
        self.model = model
        self.coarse = SensingModel(
            model.num_antennas,
            model.spacing,
            model.targets_deg,
            max(beam_width_deg, 2.0 * step_deg),
            grid_deg=angular_grid(step_deg),
            dtype=model.desired.dtype,
            device=model.desired.device,
        )
        many, few = len(model.grid_deg), len(self.coarse.grid_deg)
        self.scale = many * (few - 1) / (few * (many - 1))
        fine, coarse = (
            model.by_pattern(_make_ones(model)),
            self.coarse.by_pattern(_make_ones(self.coarse)),
        )
        self.diagonals = ((many / few) ** 2 * coarse - fine) / (many * (many - 1))

    def loss(self, covariance: Tensor) -> Tensor:
        """See :meth:`Sensing.loss`."""
        pattern = self.model.beampattern(covariance)
        correlation = self.coarse.cross_correlation(covariance)
        return self.model.beampattern_error(pattern) + self._scale_up(correlation, covariance)

    def with_gradient(
        self, covariance: Tensor, smoothing: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Sensing.with_gradient`."""
        error, by_error = self.model.error_with_gradient(covariance)
        correlation, gradient = self.coarse.correlation_with_gradient(covariance, smoothing)
        value = error + self._scale_up(correlation, covariance)
        return value, by_error + self.scale * gradient + self.diagonals

    def gradient(self, covariance: Tensor, smoothing: Tensor | float = 0.0) -> Tensor:
        """See :meth:`Sensing.gradient`."""
        _, by_correlation = self.coarse.correlation_with_gradient(covariance, smoothing)
        return self.model.error_gradient(covariance) + self.scale * by_correlation + self.diagonals

    def _scale_up(self, correlation: Tensor, covariance: Tensor) -> Tensor:
        """The correlation on the fine grid."""
        diagonals = (covariance * self.diagonals.conj()).real.sum((-2, -1))
        return self.scale * correlation + diagonals


def _make_ones(model: SensingModel) -> Tensor:
    return torch.ones_like(model.desired[..., -1:]).expand_as(model.desired)
