"""WMMSE as a reference: the communication converged, the radar at its best beampattern."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from isac_gym.baselines.decoupled import DecoupledPolicy
from isac_gym.registry import register_baseline
from isac_gym.solvers.rate_problems import Start
from isac_gym.solvers.wmmse import scalar_wmmse, wmmse
from isac_gym.validation import check_choice, check_integer, check_real

__all__ = ["WMMSE"]


@register_baseline(
    "wmmse", "converged WMMSE, best beampattern", controls=("power", "beamforming"), rank=30
)
class WMMSE(DecoupledPolicy):
    """Converged WMMSE for the communication, the best beampattern for the radar.

    Precoders with ``control="beamforming"``, powers along the scenario's directions with
    ``control="power"``. The radar interference that each user receives counts as its noise. With
    several cells every station optimises as if it were alone.

    Args:
        env: Environment whose scenario the policy is for.
        start: First start of the precoders: ``"rzf"``, ``"mrt"``, ``"zf"`` or ``"random"``; power
            control starts from equal powers.
        num_starts: Starts; those after the first serve random subsets of the users or are random.
        seed: Seed of the random starts.
        tolerance: Relative increase of the rate, three times in a row, at which a problem ends.
        max_iterations: Iterations after which a problem ends in any case.

    Raises:
        ValueError: If the control mode is another one, or an option is not allowed.

    Attributes:
        converged_share: Share of the problems of the last call that ended by tolerance; NaN before.
    """

    def __init__(
        self,
        env: Any,
        *,
        start: Start = "rzf",
        num_starts: int = 1,
        seed: int = 0,
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
    ) -> None:
        super().__init__(env)
        self._options: dict[str, Any] = {
            "num_starts": check_integer("num_starts", num_starts, 1),
            "seed": check_integer("seed", seed, 0),
            "tolerance": check_real(
                "tolerance", tolerance, "a number >= 0", lambda value: value >= 0
            ),
            "max_iterations": check_integer("max_iterations", max_iterations, 1),
        }
        self._start = check_choice("start", start, Start)
        self.converged_share = math.nan

    def precoders(self, channels: Tensor, noise_power: Tensor) -> Tensor:
        """See :meth:`DecoupledPolicy.precoders`."""
        budget = self.scenario.comm_power
        found = wmmse(channels, noise_power, budget, start=self._start, **self._options)
        self.converged_share = float(found.converged.double().mean())
        assert found.precoders is not None
        return found.precoders.to(channels.dtype)

    def powers(self, gains: Tensor, noise_power: Tensor) -> Tensor:
        """See :meth:`DecoupledPolicy.powers`."""
        found = scalar_wmmse(gains, noise_power, self.scenario.comm_power, **self._options)
        self.converged_share = float(found.converged.double().mean())
        return found.powers.to(gains.dtype)
