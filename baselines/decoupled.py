"""What baselines without coordination share: the best beampattern, and who is served."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from isac_gym.physics.links import radar_interference
from isac_gym.policy import SystemPolicy

__all__ = ["DecoupledPolicy", "DirectedPolicy"]


class DecoupledPolicy(SystemPolicy):
    """Communication alone is decided; the radar uses the covariance with the smallest loss.

    Under contention every station serves the user with the strongest channel.

    Args:
        env: Environment, single, batched or wrapped, whose scenario the policy is for.

    Raises:
        ValueError: If the policy cannot be expressed in the scenario's control mode.

    Attributes:
        bits_per_link: Bits that stations tell each other.
    """

    bits_per_link: ClassVar[int | None] = 0

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        if self.scenario.control == "amplitude":
            raise ValueError(
                f"{type(self).__name__} needs control 'power' or 'beamforming', got 'amplitude' "
                "(its precoders are complex)"
            )
        self._streams = self.system.best_streams()

    @abstractmethod
    def precoders(self, channels: Tensor, noise_power: Tensor) -> Tensor:
        """Precoders within the budget, for ``control="beamforming"``.

        Args:
            channels: G with row k = g_kᵀ, complex (n, J, K, M_C); under contention zero for users
                that are not served.
            noise_power: Noise plus the radar power of the own station, (n, J, K), in W.

        Returns:
            Complex tensor (n, J, M_C, K), in √W.
        """

    @abstractmethod
    def powers(self, gains: Tensor, noise_power: Tensor) -> Tensor:
        """Powers within the budget along the scenario's directions, for ``control="power"``.

        Args:
            gains: abs(g_kᵀd_l)² for user k and the direction of user l, (n, J, K, K); under
                contention zero where either is not served.
            noise_power: Noise plus the radar power of the own station, (n, J, K), in W.

        Returns:
            p_k, shape (n, J, K), in W.
        """

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """See :meth:`SystemPolicy.act`."""
        scenario, codec = self.scenario, self.system.codec
        estimates = codec.channels(observation)
        radar, comm = codec.split_own_channels(estimates)
        noise = scenario.noise_power + radar_interference(radar, self._streams)
        access = None
        if scenario.scheduling == "contention":
            strongest = torch.linalg.vector_norm(comm, dim=-1).argmax(-1)
            access = torch.nn.functional.one_hot(strongest, scenario.num_users).to(noise.dtype)
            comm = comm * access.unsqueeze(-1)  # no direction avoids a user that hears nothing
        if scenario.control == "power":
            gains = (comm @ codec.directions(estimates)).abs().square()
            if access is not None:
                gains = gains * access.unsqueeze(-2)
            powers = self.powers(gains, noise)
            return codec.encode(powers=powers, streams=self._streams, access=access)
        precoders = self.precoders(comm, noise)
        return codec.encode(precoders=precoders, streams=self._streams, access=access)


class DirectedPolicy(DecoupledPolicy):
    """Directions and powers are decided one without the other."""

    @abstractmethod
    def directions(self, channels: Tensor, noise_power: Tensor) -> Tensor:
        """Unit-norm directions, complex (n, J, M_C, K), of :meth:`DecoupledPolicy.precoders`."""

    @abstractmethod
    def shares(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Power of each user, of the given shape (n, J, K), in W."""

    def precoders(self, channels: Tensor, noise_power: Tensor) -> Tensor:
        """See :meth:`DecoupledPolicy.precoders`."""
        powers = self.shares(noise_power.shape, noise_power.device)
        return self.directions(channels, noise_power) * powers.sqrt().unsqueeze(-2)

    def powers(self, gains: Tensor, noise_power: Tensor) -> Tensor:
        """See :meth:`DecoupledPolicy.powers`."""
        return self.shares(noise_power.shape, noise_power.device)
