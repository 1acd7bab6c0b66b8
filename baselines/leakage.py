"""Every station alone, with a constant price on the power that leaks to users of other cells.

What can be had without a single bit of messages. A station knows its own channels to the users of
all cells; that others are disturbed by what reaches their users, and how much its own users receive
from elsewhere, it knows on average only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from isac_gym.baselines.network import NetworkPolicy
from isac_gym.channels.process import ChannelProcess
from isac_gym.physics.links import BITS_PER_NAT, link_powers, sinr, spectral_efficiency
from isac_gym.registry import register_baseline
from isac_gym.solvers.network import NetworkProblem, pose_stations
from isac_gym.validation import check_integer, check_real, not_allowed

__all__ = ["LeakagePriced"]

_FIRST_PRICE: Final = 0.4
"""Relative to what a watt costs a user with high SINR."""
_FACTOR: Final = 2.0
_MOST_STEPS: Final = 6


@register_baseline(
    "joint-leakage",
    "joint optimum of each station, constant price on leakage, no messages",
    controls=("beamforming",),
    radars=("learned",),
    schedulings=("all",),
    least_cells=2,
    rank=55,
)
class LeakagePriced(NetworkPolicy):
    """Each station's joint optimum, less a constant price on what its power does to other cells.

    Station j maximises Σ_k log2(1 + SINR_k) of its own users minus c·P_u, summed over the users u
    of all other cells, with the threshold kept on every channel. P_u is the power, of precoders and
    radar, that u receives from it, and the noise of its own users is N0 plus the interference that
    they receive on average. Its design depends on its own channels alone.

    Both constants are found, when first needed, on channels drawn from the environment's channel
    model: the price by a line search for the highest spectral efficiency of the network, with the
    interference that the designs really cause, and the expected interference as its mean at each
    station's users.

    Args:
        env: Environment whose scenario the policy is for, with ``radar="learned"``, control
            ``"beamforming"`` and all users served.
        leakage_price: c, in bit/s/Hz/W, instead of the one that is found.
        interference: Expected interference in W, one number for all stations or one each, instead
            of the one that is found; given if and only if the price is.
        tuning_channels: Channels on which they are found.
        num_starts: Starts a station; see :class:`~isac_gym.baselines.network.NetworkPolicy`.
        refined: Starts that are refined.
        iterations: Iterations of the refinement.
        max_iterations: Iterations of it at most, if more than that; None for no more.
        **options: Further options of :class:`~isac_gym.baselines.network.NetworkPolicy`. Under
            ``constraint="expected"`` the constants are those of the per-channel constraint.

    Raises:
        ValueError: If the scenario has another control mode, a fixed radar or users that contend,
            or an option is not allowed.
    """

    bits_per_link: ClassVar[int] = 0

    def __init__(
        self,
        env: Any,
        *,
        leakage_price: float | None = None,
        interference: float | Sequence[float] | None = None,
        tuning_channels: int = 64,
        num_starts: int = 12,
        refined: int = 1,
        iterations: int = 60,
        max_iterations: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            env,
            num_starts=num_starts,
            refined=refined,
            iterations=iterations,
            max_iterations=iterations if max_iterations is None else max_iterations,
            **options,
        )
        self.tuning_channels = check_integer("tuning_channels", tuning_channels, 1)
        self._constants: tuple[float, tuple[float, ...]] | None = None
        if (leakage_price is None) != (interference is None):
            raise not_allowed("interference", interference, "given if and only if the price is")
        if leakage_price is not None and interference is not None:
            cells = self.scenario.num_cells
            allowed = f"a finite number >= 0, or {cells} of them"
            levels = [*interference] if isinstance(interference, Sequence) else [interference]
            if len(levels) not in (1, cells):
                raise not_allowed("interference", interference, allowed)
            levels = [check_real("interference", x, allowed, _is_no_loss) for x in levels]
            price = check_real("leakage_price", leakage_price, "a number >= 0", _is_no_loss)
            self._constants = price, tuple(levels * (cells // len(levels)))

    @property
    def leakage_price(self) -> float:
        """Price c on what users of other cells receive, in bit/s/Hz/W."""
        return self._find_constants()[0]

    @property
    def interference(self) -> tuple[float, ...]:
        """What users of each station are expected to receive from the others, in W."""
        return self._find_constants()[1]

    def _find_constants(self) -> tuple[float, tuple[float, ...]]:
        if self._constants is None:
            process = ChannelProcess(self._model, self.scenario, self.tuning_channels)
            process.start(np.random.default_rng((0x1EA4, self.seed)))
            self._constants = self.tune(
                torch.from_numpy(process.channels), torch.from_numpy(process.estimates)
            )
        return self._constants

    def tune(self, channels: Tensor, estimates: Tensor) -> tuple[float, tuple[float, ...]]:
        """The constants that suit given channels.

        From a first guess the price is doubled or halved as long as that helps, every time with the
        interference that the price before led to. A parabola through the logarithms of the best
        three then gives the price, of which the interference follows.

        Args:
            channels: H, complex (n, J, J, K, M).
            estimates: The same as stations observe them.

        Returns:
            Price in bit/s/Hz/W, and the interference that users of each station receive, in W.

        Raises:
            ValueError: If the channels are not those of the scenario.
        """
        self.system.codec.check_channels(channels)
        self.system.codec.check_channels(estimates)
        selfish = torch.zeros(self.scenario.num_cells, dtype=torch.float64)
        with torch.inference_mode():
            level = self._try_constants(channels, estimates, 0.0, selfish)[1]
            if not bool(level.any()):
                return 0.0, tuple(level.tolist())
            rates: dict[int, float] = {}
            noise = self.scenario.noise_power
            first = _FIRST_PRICE * BITS_PER_NAT / (noise + float(level.mean()))

            def attempt(step: int) -> float:
                nonlocal level
                if step not in rates:
                    price = first * _FACTOR**step
                    rates[step], level = self._try_constants(channels, estimates, price, level)
                return rates[step]

            best, _ = 0, attempt(0)
            direction = 1 if attempt(1) > rates[0] else -1
            while abs(best) < _MOST_STEPS and attempt(best + direction) > rates[best]:
                best += direction
            below, above = attempt(best - 1), attempt(best + 1)
            price = first * _FACTOR ** (best + _find_vertex(below, rates[best], above))
            level = self._try_constants(channels, estimates, price, level)[1]
        return price, tuple(level.tolist())

    def _try_constants(
        self, channels: Tensor, estimates: Tensor, price: float, level: Tensor
    ) -> tuple[float, Tensor]:
        """Spectral efficiency, and interference at the users of each station, (J,)."""
        rates, received = [], []
        for true, seen in zip(self._split(channels), self._split(estimates), strict=True):
            problem = self._pose_stations(seen, price, level)
            found = self._design_problems(seen, problem, None)
            assert found.precoders is not None
            powers = link_powers(true, found.precoders, found.streams)
            ratio = sinr(powers, self.scenario.noise_power)
            rates.append(spectral_efficiency(ratio).sum((-2, -1)).double())
            other = powers.intercell
            received.append((torch.zeros_like(ratio) if other is None else other).mean(-1).double())
        return float(torch.cat(rates).mean()), torch.cat(received).mean(0).cpu()

    def _pose(self, channels: Tensor) -> NetworkProblem:
        price, level = self._find_constants()
        return self._pose_stations(channels, price, torch.tensor(level, dtype=torch.float64))

    def _pose_stations(self, channels: Tensor, price: float, level: Tensor) -> NetworkProblem:
        """One problem for every station of each channel."""
        scenario = self.scenario
        radar, comm = channels.split([scenario.num_radar_antennas, scenario.num_comm_antennas], -1)
        noise = (scenario.noise_power + level)[:, None, None]
        return pose_stations(radar, comm, noise, price, scenario.comm_power, scenario.radar_power)


def _is_no_loss(value: float) -> bool:
    return value >= 0.0


def _find_vertex(below: float, middle: float, above: float) -> float:
    """Where the parabola through values at -1, 0 and 1 is highest, within these."""
    curvature = below - 2.0 * middle + above
    if not curvature < 0.0:
        return 0.0
    return math.copysign(min(abs(0.5 * (below - above) / curvature), 1.0), above - below)
