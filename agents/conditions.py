"""What a policy is told beside the channels: the noise, and what sensing loss costs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.scenario import Scenario
from isac_gym.system import ISACSystem

__all__ = ["ConditionGrid", "Conditions"]

_SNR_SPACING_DB = 5.0
_THRESHOLD_POINTS = 8


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Conditions of n observations.

    Attributes:
        noise_power: N0, (n,), in W.
        price: What a unit of sensing loss costs each station, π = μ/ε, (n, J), in bit/s/Hz.
    """

    noise_power: Tensor
    price: Tensor

    @classmethod
    def of(cls, system: ISACSystem, count: int, multiplier: Tensor | None = None) -> Conditions:
        """Those of a system's scenario.

        Args:
            system: The system.
            count: n.
            multiplier: μ of the relative constraint L_r/ε - 1, (J,); None means 0.
        """
        scenario = system.scenario
        if multiplier is None:
            multiplier = torch.zeros(scenario.num_cells)
        price = multiplier.to(system.device, system.dtype) / scenario.sensing_threshold
        noise = torch.full((count,), scenario.noise_power, dtype=system.dtype, device=system.device)
        return cls(noise, price.expand(count, -1))


class ConditionGrid:
    """Points of SNR and threshold between which multipliers are interpolated.

    The points are equally spaced in the SNR in dB, and in log(ε/floor - 1), because a multiplier
    grows without bound as ε comes down to the floor of L_r.

    Args:
        scenario: The scenario.
        snr_range_db: Least and largest SNR, in dB; None means the scenario's alone.
        threshold_range: Least and largest ε; None means the scenario's alone.

    Raises:
        ValueError: If a range is empty, or ε comes down to the floor.

    Attributes:
        size: Number of points P.
    """

    def __init__(
        self,
        scenario: Scenario,
        snr_range_db: tuple[float, float] | None,
        threshold_range: tuple[float, float] | None,
    ) -> None:
        self._power = scenario.comm_power
        self._floor = max(scenario.sensing_floor())
        self._snr = snr_range_db or (scenario.snr_db, scenario.snr_db)
        self._threshold = threshold_range or (scenario.sensing_threshold,) * 2
        for name, bounds in (("snr_range_db", self._snr), ("threshold_range", self._threshold)):
            if not bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be (least, largest), got {bounds!r}")
        if not self._threshold[0] > self._floor * (1.0 + 1e-3):
            raise ValueError(
                f"threshold_range must lie above the least sensing loss of the scenario, "
                f"{self._floor:.4f}, got {self._threshold!r}"
            )
        span = self._snr[1] - self._snr[0]
        self._axes = (
            np.linspace(*self._snr, 1 + math.ceil(span / _SNR_SPACING_DB)),
            np.linspace(
                float(self._height(self._threshold[0])),
                float(self._height(self._threshold[1])),
                1 if self._threshold[0] == self._threshold[1] else _THRESHOLD_POINTS,
            ),
        )
        self.size = len(self._axes[0]) * len(self._axes[1])

    def _height(self, threshold: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Where on the axis of ε a threshold is."""
        found: npt.NDArray[np.float64] = np.log(np.asarray(threshold, float) / self._floor - 1.0)
        return found

    def covers(self, scenario: Scenario) -> bool:
        """Whether a scenario's SNR and ε lie within the ranges."""
        return (
            self._snr[0] <= scenario.snr_db <= self._snr[1]
            and self._threshold[0] <= scenario.sensing_threshold <= self._threshold[1]
        )

    def draw(
        self, rng: np.random.Generator, count: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """SNR in dB and ε of n samples, each (n,): uniform on the axes of the grid."""
        snr = rng.uniform(*self._snr, count)
        heights = rng.uniform(self._axes[1][0], self._axes[1][-1], count)
        return snr, self._floor * (1.0 + np.exp(heights))

    def weights(self, snr_db: npt.ArrayLike, threshold: npt.ArrayLike) -> Tensor:
        """Weights of bilinear interpolation, (n, P), for SNR in dB and ε, each (n,)."""
        by_snr = _hats(self._axes[0], np.asarray(snr_db, float))
        by_threshold = _hats(self._axes[1], self._height(threshold))
        product = by_snr[:, :, None] * by_threshold[:, None, :]
        return torch.from_numpy(product.reshape(len(product), -1)).float()


def _hats(axis: npt.NDArray[np.float64], where: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Hat functions of the points of an axis, (n, points); held beyond its ends."""
    if len(axis) == 1:
        return np.ones((len(where), 1))
    spacing = axis[1] - axis[0]
    inside = where.clip(axis[0], axis[-1])
    hats: npt.NDArray[np.float64] = (1.0 - np.abs(inside[:, None] - axis) / spacing).clip(0.0)
    return hats
