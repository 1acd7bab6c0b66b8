"""The best that three numbers a user allow: what an action space of that structure costs.

What learns in ``control="structured"`` is compared with this as well as with the joint optimum: how
far this is from the optimum is due to the space, the rest is due to the learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from isac_gym.baselines.prices import check_prices
from isac_gym.channels.process import ChannelProcess
from isac_gym.policy import SystemPolicy, Translation
from isac_gym.registry import register_baseline
from isac_gym.scenario import Scenario
from isac_gym.solvers.lbfgs import BatchedLBFGS
from isac_gym.solvers.price import Prices, settle_prices
from isac_gym.system.downlink import ISACSystem
from isac_gym.validation import check_integer, not_allowed

__all__ = ["StructuredSearch"]

_PROBLEMS: Final = 2048
"""Problems searched at a time: enough for long vectors, few enough for their memory."""
_FIRST_POINT: Final = 0.3
"""All free numbers of the first point."""
_SPREAD: Final = 0.7
"""Standard deviation of those of the others."""
_LOG_PRICE_GUESS: Final = 2.5
"""Logarithm of the price to begin with, in bit/s/Hz."""
_LEAST_LOG_PRICE: Final = -14.0


@register_baseline(
    "structured-expected",
    "best three numbers a user, threshold kept on the mean",
    controls=("structured", "beamforming"),
    schedulings=("all",),
    is_default=False,
    rank=53,
)
class StructuredSearch(SystemPolicy):
    """Actions of structured control that maximise the spectral efficiency with E[L_r] <= ε.

    On every channel rate - π·(L_r/ε - 1) is maximised over λ, p and w of
    :mod:`isac_gym.physics.structure`, written as tanh of free numbers, by L-BFGS from several
    points: a local search, of which more points find a little more. The price π is one for all
    channels, found where the mean of L_r is ε, on channels drawn from the environment's
    channel model when first needed. With several cells every station decides as if it were alone,
    and has a price of its own.

    Args:
        env: Environment whose scenario the policy is for, with control ``"structured"`` or
            ``"beamforming"``, which shows channels and serves all users.
        price: Price in bit/s/Hz for a relative unit of ε, instead of the one that is found; with
            several cells one a station.
        num_starts: Points that each search begins at: the first has all numbers alike, the others
            are drawn.
        iterations: Iterations of each search.
        calibration_channels: Channels on which the price is found.
        seed: Seed of those channels and of the points.

    Raises:
        ValueError: If the scenario has another control mode, other observations or users that
            contend, or an option is not allowed.
    """

    def __init__(
        self,
        env: Any,
        *,
        price: float | Sequence[float] | None = None,
        num_starts: int = 16,
        iterations: int = 60,
        calibration_channels: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(env)
        scenario = self.scenario
        if scenario.scheduling != "all":
            raise not_allowed("scheduling", scenario.scheduling, "'all' for this policy")
        if scenario.observation != "channels":
            raise not_allowed("observation", scenario.observation, "'channels' for this policy")
        inner = scenario.replace(control="structured")
        self._translation = Translation(self.system, self._make_system(inner))
        alone = {"num_cells": 1, "layout": "uniform", "intercell_gain": 0.0}
        self._stations = [
            self._make_system(inner.replace(**alone, target_angles_deg=targets))
            for targets in scenario.targets_by_cell
        ]
        self.num_starts = check_integer("num_starts", num_starts, 1)
        self.iterations = check_integer("iterations", iterations, 1)
        self.calibration_channels = check_integer("calibration_channels", calibration_channels, 1)
        self.seed = check_integer("seed", seed, 0)
        self._prices: tuple[float, ...] | None = None
        if price is not None:
            self._prices = check_prices(price, scenario.num_cells)
        elif scenario.radar == "fixed":
            self._prices = (0.0,) * scenario.num_cells  # nothing moves the sensing loss
        self._model = env.unwrapped.channel_model

    def _make_system(self, scenario: Scenario) -> ISACSystem:
        return ISACSystem(scenario, self.system.chosen_constraints, device=self.system.device)

    @property
    def price(self) -> tuple[float, ...]:
        """Price of the constraint, in bit/s/Hz for a relative unit of ε, one a station.

        Raises:
            ValueError: If no price keeps ε.
        """
        if self._prices is None:
            process = ChannelProcess(self._model, self.scenario, self.calibration_channels)
            process.start(np.random.default_rng((0x57C7, self.seed)))
            self._prices = self.find_price(torch.from_numpy(process.estimates))
        return self._prices

    def find_price(self, channels: Tensor, tolerance: float = 2e-3) -> tuple[float, ...]:
        """The price at which the mean sensing loss over channels is ε, one a station.

        Args:
            channels: H, complex (n, J, J, K, M).
            tolerance: How far the mean may stay below ε, relative; it does not exceed it.

        Returns:
            The prices, in bit/s/Hz for a relative unit of ε; 0 if ε is not exceeded without one.

        Raises:
            ValueError: If the channels are not those of the scenario, or no price keeps ε.
        """
        self.system.codec.check_channels(channels)
        found: list[float] = []
        for station, system in enumerate(self._stations):

            def excess(
                prices: Prices, system: ISACSystem = system, station: int = station
            ) -> Prices:
                own = _select_station(channels, station, system)
                numbers = self._solve_alone(system, own, float(prices[0]))
                mean = _transmit(system, own, numbers)[1].double().mean()
                return np.array([mean.item()])

            found += settle_prices(
                excess,
                lambda: np.array([_LOG_PRICE_GUESS]),
                1,
                method="together",
                tolerance=tolerance,
                least=_LEAST_LOG_PRICE,
                limit=("sensing_threshold", self.scenario.sensing_threshold),
            ).tolist()
        return tuple(found)

    def solve(self, channels: Tensor, price: float | Sequence[float]) -> Tensor:
        """The best numbers for each of n channels at a price.

        Args:
            channels: H, complex (n, J, J, K, M).
            price: π in bit/s/Hz for a relative unit of ε, the same for all stations or one for
                each.

        Returns:
            Actions of structured control, (n, J·3·K), or (n, J·2·K) where the radar is fixed.

        Raises:
            ValueError: If the channels are not those of the scenario, or a price is not allowed.
        """
        self.system.codec.check_channels(channels)
        prices = check_prices(price, self.scenario.num_cells)
        return torch.cat(
            [
                self._solve_alone(system, _select_station(channels, station, system), each)
                for station, (system, each) in enumerate(zip(self._stations, prices, strict=True))
            ],
            -1,
        )

    def _solve_alone(self, system: ISACSystem, channels: Tensor, price: float) -> Tensor:
        """The numbers of a station that is alone, (n, ·), for channels (n, 1, 1, K, M)."""
        parts = channels.split(max(1, _PROBLEMS // self.num_starts))
        # Gradients are wanted here also where a policy is asked to predict.
        with torch.inference_mode(False), torch.enable_grad():
            return torch.cat([self._search(system, part.clone(), price) for part in parts])

    def _search(self, system: ISACSystem, channels: Tensor, price: float) -> Tensor:
        count, size = len(channels), system.codec.action_size
        repeated = channels.repeat_interleave(self.num_starts, 0)
        drawn = np.random.default_rng((0x57C8, self.seed)).normal(
            scale=_SPREAD, size=(self.num_starts, size)
        )
        drawn[0] = _FIRST_POINT
        start = torch.tensor(drawn, dtype=system.dtype, device=system.device)

        def evaluate(point: Tensor) -> tuple[Tensor, Tensor, None]:
            moved = point.detach().requires_grad_()
            rate, excess = _transmit(system, repeated, moved.tanh())
            value = price * excess - rate
            (gradient,) = torch.autograd.grad(value.sum(), moved)
            return value.detach(), gradient, None

        search = BatchedLBFGS(evaluate, lambda mask, state: None, start.repeat(count, 1))
        search.run(self.iterations)
        best = search.value.view(count, self.num_starts).argmin(1)
        points = search.point.view(count, self.num_starts, size)
        return points[torch.arange(count, device=best.device), best].tanh()

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """See :meth:`SystemPolicy.act`."""
        numbers = self.solve(self.system.codec.channels(observation), self.price)
        return self._translation.express(numbers, observation)


def _select_station(channels: Tensor, station: int, system: ISACSystem) -> Tensor:
    """What a station sends to its own users, complex (n, 1, 1, K, M)."""
    own = channels[:, station, station, None, None]
    return own.to(system.device, system.dtype.to_complex())


def _transmit(system: ISACSystem, channels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral efficiency and L_r/ε - 1 of a station that is alone, each (n,)."""
    outcome = system.transmit(channels, numbers)
    return outcome.sum_rate, outcome.constraints["sensing"].squeeze(-1).expand(len(channels))
