"""What a policy is told beside the channels: the noise, and the price on a constraint."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.scenario import Scenario
from isac_gym.system.constraints import Constraint
from isac_gym.system.downlink import ISACSystem

__all__ = ["ConditionGrid", "Conditions"]

_SNR_SPACING_DB = 5.0
_THRESHOLD_POINTS = 8


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Conditions of n observations.

    Attributes:
        noise_power: N0, (n,), in W.
        price: What a unit of the priced quantity costs each station, π = μ/limit, (n, J), in
            bit/s/Hz a unit.
    """

    noise_power: Tensor
    price: Tensor

    @classmethod
    def of(
        cls,
        system: ISACSystem,
        count: int,
        multiplier: Tensor | None = None,
        priced: Constraint | None = None,
    ) -> Conditions:
        """Those of a system's scenario.

        Args:
            system: The system.
            count: n.
            multiplier: μ of the priced constraint, quantity/limit - 1, (J,); None means 0.
            priced: The constraint; None where there is no multiplier.
        """
        scenario = system.scenario
        if multiplier is None:
            multiplier = torch.zeros(scenario.num_cells)
        limit = 1.0 if priced is None else system.limits[priced.name]
        price = multiplier.to(system.device, system.dtype) / limit
        noise = torch.full((count,), scenario.noise_power, dtype=system.dtype, device=system.device)
        return cls(noise, price.expand(count, -1))


class ConditionGrid:
    """Points of SNR and of a constraint's limit between which multipliers are interpolated.

    The points are equally spaced in the SNR in dB, and in log(limit/floor - 1), because a
    multiplier grows without bound as the limit comes down to the least value of the quantity.

    Args:
        scenario: The scenario.
        priced: The constraint.
        snr_range_db: Least and largest SNR, in dB; None means the scenario's alone.
        threshold_range: Least and largest limit; None means the scenario's alone.

    Raises:
        ValueError: If a range is empty, or the limit comes down to the floor.

    Attributes:
        size: Number of points P.
    """

    def __init__(
        self,
        scenario: Scenario,
        priced: Constraint,
        snr_range_db: tuple[float, float] | None,
        threshold_range: tuple[float, float] | None,
    ) -> None:
        self._power = scenario.comm_power
        self._priced, self._floor = priced, priced.floor(scenario)
        self._snr = snr_range_db or (scenario.snr_db, scenario.snr_db)
        self._threshold = threshold_range or (priced.limit(scenario),) * 2
        for name, bounds in (("snr_range_db", self._snr), ("threshold_range", self._threshold)):
            if not bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be (least, largest), got {bounds!r}")
        if not self._threshold[0] > self._floor * (1.0 + 1e-3):
            raise ValueError(
                f"threshold_range must lie above the least {priced.symbol} of the scenario, "
                f"{self._floor:.4f}, got {self._threshold!r}"
            )
        span = self._snr[1] - self._snr[0]
        self._axes = (
            np.linspace(*self._snr, 1 + math.ceil(span / _SNR_SPACING_DB)),
            np.linspace(
                float(self._find_height(self._threshold[0])),
                float(self._find_height(self._threshold[1])),
                1 if self._threshold[0] == self._threshold[1] else _THRESHOLD_POINTS,
            ),
        )
        self.size = len(self._axes[0]) * len(self._axes[1])

    def _find_height(self, threshold: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Where on its axis a limit is."""
        limit = np.asarray(threshold, float)
        found: npt.NDArray[np.float64] = np.log(limit / self._floor - 1.0 if self._floor else limit)
        return found

    def covers(self, scenario: Scenario) -> bool:
        """Whether a scenario's SNR and limit lie within the ranges."""
        return (
            self._snr[0] <= scenario.snr_db <= self._snr[1]
            and self._threshold[0] <= self._priced.limit(scenario) <= self._threshold[1]
        )

    def draw(
        self, rng: np.random.Generator, count: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """SNR in dB and limit of n samples, each (n,): uniform on the axes of the grid."""
        snr = rng.uniform(*self._snr, count)
        heights = rng.uniform(self._axes[1][0], self._axes[1][-1], count)
        above = np.exp(heights)
        return snr, self._floor * (1.0 + above) if self._floor else above

    def weights(self, snr_db: npt.ArrayLike, threshold: npt.ArrayLike) -> Tensor:
        """Weights of bilinear interpolation, (n, P), for SNR in dB and limit, each (n,)."""
        by_snr = _evaluate_hats(self._axes[0], np.asarray(snr_db, float))
        by_threshold = _evaluate_hats(self._axes[1], self._find_height(threshold))
        product = by_snr[:, :, None] * by_threshold[:, None, :]
        return torch.from_numpy(product.reshape(len(product), -1)).float()


def _evaluate_hats(
    axis: npt.NDArray[np.float64], where: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Hat functions of the points of an axis, (n, points); held beyond its ends."""
    if len(axis) == 1:
        return np.ones((len(where), 1))
    spacing = axis[1] - axis[0]
    inside = where.clip(axis[0], axis[-1])
    hats: npt.NDArray[np.float64] = (1.0 - np.abs(inside[:, None] - axis) / spacing).clip(0.0)
    return hats
