"""Draw channels, apply actions, advance: the one loop behind environments, judging and training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.channels.base import ChannelModel, Complex, check_magnitude
from isac_gym.channels.process import ChannelProcess
from isac_gym.system.codec import check_action
from isac_gym.system.downlink import ISACSystem, Outcome

__all__ = ["Simulation"]


class Simulation(ChannelProcess):
    """n downlinks of a system over time.

    ``start``, ``advance`` and ``place`` (see :class:`~isac_gym.channels.process.ChannelProcess`)
    set the current blocks, ``observe`` says what an agent sees of them, and ``apply`` what an
    action achieves on them.

    Args:
        system: The system.
        model: How channels are drawn.
        num: Downlinks n.
    """

    def __init__(self, system: ISACSystem, model: ChannelModel, num: int) -> None:
        super().__init__(model, system.scenario, num)
        self.system = system

    def hold(self, channels: Complex, estimates: Complex) -> None:
        """Make given blocks the current ones, without positions of users or gains.

        Args:
            channels: True channels, complex64 (n, J, J, K, M), of any number n.
            estimates: What the agent observes, same shape.

        Raises:
            ValueError: If an entry is not finite or too large.
        """
        check_magnitude("channels", channels)
        if estimates is not channels:
            check_magnitude("estimates", estimates)
        self.channels, self.estimates = channels, estimates
        self._forget_users()

    def observe(self) -> npt.NDArray[np.float32]:
        """Observations of the current blocks, float32 (n, 2·J·J·K·M)."""
        return self.system.codec.observation(self.estimates)

    def to_tensors(self) -> tuple[Tensor, Tensor]:
        """True and estimated channels on the system's device, complex (n, J, J, K, M)."""
        channels = torch.from_numpy(self.channels).to(self.system.device)
        if self.estimates is self.channels:
            return channels, channels
        return channels, torch.from_numpy(self.estimates).to(self.system.device)

    def apply(self, action: Tensor, noise_power: Tensor | None = None) -> Outcome:
        """What actions achieve on the current blocks; differentiable.

        Args:
            action: Real tensor (n, A) within [-1, 1].
            noise_power: N0 of each block instead of the scenario's, (n,), in W.

        Returns:
            The outcome of each block.
        """
        channels, estimates = self.to_tensors()
        return self.system.transmit(channels, action, estimates, noise_power)

    def apply_checked(self, action: npt.ArrayLike) -> tuple[npt.NDArray[np.float32], Outcome]:
        """What anybody's actions achieve on the current blocks; no gradient.

        Args:
            action: Array (n, A) of real numbers within [-1, 1].

        Returns:
            The actions as float32, and the outcome of each block.

        Raises:
            TypeError: If the actions do not hold real numbers.
            ValueError: If the shape differs, or an entry is NaN, infinite or outside [-1, 1].
        """
        checked = check_action(action, (len(self.channels), self.system.codec.action_size))
        with torch.inference_mode():
            outcome = self.apply(torch.from_numpy(checked).to(self.system.device))
        return checked, outcome
