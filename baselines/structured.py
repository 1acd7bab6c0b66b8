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
from isac_gym.solvers.lbfgs import BatchedLBFGS
from isac_gym.solvers.price import Prices, settle_prices
from isac_gym.system.downlink import ISACSystem
from isac_gym.validation import check_integer, not_allowed

__all__ = ["StructuredSearch"]

_PROBLEMS: Final = 2048
"""Problems searched at a time: enough for long vectors, few enough for their memory."""
_FIRST_POINT: Final = 0.3
_SPREAD: Final = 0.7
_LOG_PRICE_GUESS: Final = 2.5
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
    points. The price π is one for all channels, found where the mean of L_r is ε, on channels drawn
    from the environment's channel model when first needed. With several cells every station decides
    as if it were alone, and has a price of its own.

    Args:
        env: Environment whose scenario the policy is for, with control ``"structured"`` or
            ``"beamforming"``, and all users served.
        price: Price in bit/s/Hz for a relative unit of ε, instead of the one that is found; with
            several cells one a station.
        num_starts: Points that each search begins at: the first has all numbers alike, the others
            are drawn.
        iterations: Iterations of each search.
        calibration_channels: Channels on which the price is found.
        seed: Seed of those channels and of the points.

    Raises:
        ValueError: If the scenario has another control mode or users that contend, or an option is
            not allowed.
    """

    def __init__(
        self,
        env: Any,
        *,
        price: float | Sequence[float] | None = None,
        num_starts: int = 4,
        iterations: int = 60,
        calibration_channels: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(env)
        scenario = self.scenario
        if scenario.scheduling != "all":
            raise not_allowed("scheduling", scenario.scheduling, "'all' for this policy")
        self.inner = ISACSystem(
            scenario.replace(control="structured"),
            self.system.chosen_constraints,
            device=self.system.device,
        )
        self._translation = Translation(self.system, self.inner)
        self.num_starts = check_integer("num_starts", num_starts, 1)
        self.iterations = check_integer("iterations", iterations, 1)
        self.calibration_channels = check_integer("calibration_channels", calibration_channels, 1)
        self.seed = check_integer("seed", seed, 0)
        cells = torch.eye(scenario.num_cells, device=self.system.device)
        self._own = cells[:, :, None, None]
        """Keeps what a station sends to its own users, of channels (n, J, J, K, M)."""
        self._prices: tuple[float, ...] | None = None
        if price is not None:
            self._prices = check_prices(price, scenario.num_cells)
        elif scenario.radar == "fixed":
            self._prices = (0.0,) * scenario.num_cells  # nothing moves the sensing loss
        self._model = env.unwrapped.channel_model

    @property
    def price(self) -> tuple[float, ...]:
        """Price of the constraint, in bit/s/Hz for a relative unit of ε, one a station."""
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

        def excess(prices: Prices) -> Prices:
            numbers = self.solve(channels, prices.tolist())
            found: Prices = self._transmit(channels, numbers)[1].double().mean(0).cpu().numpy()
            return found

        cells = self.scenario.num_cells
        found = settle_prices(
            excess,
            lambda: np.full(cells, _LOG_PRICE_GUESS),
            cells,
            method="together",
            tolerance=tolerance,
            least=_LEAST_LOG_PRICE,
            limit=("sensing_threshold", self.scenario.sensing_threshold),
        )
        return tuple(found.tolist())

    def solve(self, channels: Tensor, price: Sequence[float]) -> Tensor:
        """The best numbers for each of n channels at a price.

        Args:
            channels: H, complex (n, J, J, K, M).
            price: π of every station, in bit/s/Hz for a relative unit of ε.

        Returns:
            Actions of structured control, (n, J·3·K), or (n, J·2·K) where the radar is fixed.

        Raises:
            ValueError: If the channels are not those of the scenario.
        """
        self.system.codec.check_channels(channels)
        parts = channels.split(max(1, _PROBLEMS // self.num_starts))
        # Gradients are wanted here also where a policy is asked to predict.
        with torch.inference_mode(False), torch.enable_grad():
            prices = torch.tensor(price, dtype=self.inner.dtype, device=self.inner.device)
            return torch.cat([self._search(part.clone(), prices) for part in parts])

    def _search(self, channels: Tensor, prices: Tensor) -> Tensor:
        count, size = len(channels), self.inner.codec.action_size
        repeated = channels.repeat_interleave(self.num_starts, 0)
        drawn = np.random.default_rng((0x57C8, self.seed)).normal(
            scale=_SPREAD, size=(self.num_starts, size)
        )
        drawn[0] = _FIRST_POINT
        start = torch.tensor(drawn, dtype=self.inner.dtype, device=self.inner.device)

        def evaluate(point: Tensor) -> tuple[Tensor, Tensor, None]:
            moved = point.detach().requires_grad_()
            rate, excess = self._transmit(repeated, moved.tanh())
            value = excess @ prices - rate
            (gradient,) = torch.autograd.grad(value.sum(), moved)
            return value.detach(), gradient, None

        search = BatchedLBFGS(evaluate, lambda mask, state: None, start.repeat(count, 1))
        search.run(self.iterations)
        best = search.value.view(count, self.num_starts).argmin(1)
        points = search.point.view(count, self.num_starts, size)
        return points[torch.arange(count, device=best.device), best].tanh()

    def _transmit(self, channels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Rates of all users (n,) without what stations do to each other, and L_r/ε - 1 (n, J)."""
        seen = channels.to(self.inner.device, self.inner.dtype.to_complex()) * self._own
        outcome = self.inner.transmit(seen, numbers)
        return outcome.sum_rate, outcome.constraints["sensing"]

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """See :meth:`SystemPolicy.act`."""
        numbers = self.solve(self.system.codec.channels(observation), self.price)
        return self._translation.express(numbers, observation)
