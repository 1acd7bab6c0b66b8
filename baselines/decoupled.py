"""What baselines without coordination share: the best beampattern, and who is served."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from isac_gym.codec import own_channels
from isac_gym.policy import SystemPolicy

__all__ = ["DecoupledPolicy"]


class DecoupledPolicy(SystemPolicy):
    """Communication alone is decided; the radar uses the covariance with the smallest loss.

    Under contention every station serves the user with the strongest channel.

    Args:
        env: Environment, single, batched or wrapped, whose scenario the policy is for.

    Raises:
        ValueError: If the policy cannot be expressed in the scenario's control mode.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        if self.scenario.control == "amplitude":
            raise ValueError(
                f"{type(self).__name__} needs control 'power' or 'beamforming', got 'amplitude' "
                "(its precoders are complex)"
            )
        self._streams = self.system.best_streams()

    @abstractmethod
    def directions(self, channels: Tensor, noise_power: Tensor) -> Tensor:
        """Unit-norm directions.

        Args:
            channels: G with row k = g_kᵀ, complex (n, J, K, M_C).
            noise_power: Noise plus the radar power of the own station, (n, J, K), in W.

        Returns:
            Complex tensor (n, J, M_C, K).
        """

    @abstractmethod
    def powers(self, channels: Tensor) -> Tensor:
        """Power of each user, (n, J, K), in W, for channels as in :meth:`directions`."""

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """See :meth:`SystemPolicy.act`."""
        scenario = self.scenario
        own = own_channels(self.system.codec.channels(observation))
        radar, comm = own.split([scenario.num_radar_antennas, scenario.num_comm_antennas], dim=-1)
        powers = self.powers(comm)
        access = None
        if scenario.scheduling == "contention":
            strongest = torch.linalg.vector_norm(comm, dim=-1).argmax(-1)
            access = torch.nn.functional.one_hot(strongest, scenario.num_users).to(powers.dtype)
            comm = comm * access.unsqueeze(-1)  # no direction avoids a user that hears nothing
        if scenario.control == "power":
            return self.system.codec.encode(powers=powers, streams=self._streams, access=access)
        noise = (
            scenario.noise_power + torch.linalg.vector_norm(radar @ self._streams, dim=-1).square()
        )
        precoders = self.directions(comm, noise) * powers.sqrt().unsqueeze(-2)
        return self.system.codec.encode(precoders=precoders, streams=self._streams, access=access)
