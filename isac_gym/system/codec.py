"""Observation <-> channels, action <-> what is transmitted.

The only place that knows the order of the numbers in an observation or an action. Everything is
torch with leading batch dimensions and differentiable, so that agents train through it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.channels.base import Complex, Deployment, convert_to_array
from isac_gym.physics.links import radar_interference
from isac_gym.physics.precoding import precoder_directions
from isac_gym.physics.structure import (
    find_duals,
    find_structured_directions,
    find_structured_streams,
)
from isac_gym.physics.waveform import normalise_rows
from isac_gym.scenario import Scenario
from isac_gym.system.features import Features
from isac_gym.system.stations import view_from_stations
from isac_gym.validation import not_allowed

__all__ = ["Codec", "Transmission", "check_action"]


@dataclasses.dataclass(frozen=True)
class Transmission:
    """What the base stations transmit.

    Attributes:
        precoders: F as transmitted, complex (..., J, M_C, K), in √W.
        streams: V, complex (..., J, M_R, r), in √W; R = VVᴴ.
        comm_power: Transmitted communication power Σ_k ‖F_k‖², shape (..., J), in W.
        access: Access variables τ, shape (..., J, K); None unless users contend.
    """

    precoders: Tensor
    streams: Tensor
    comm_power: Tensor
    access: Tensor | None = None


def check_action(action: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Check an action and convert it to float32; nothing is clipped.

    Args:
        action: Array of any real number type.
        shape: Expected shape.

    Returns:
        float32 array of that shape.

    Raises:
        TypeError: If the action does not hold real numbers.
        ValueError: If the shape differs, or an entry is NaN, infinite or outside [-1, 1].
    """
    given = convert_to_array("action", action)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"action must be an array of real numbers, got dtype {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"action must have shape {shape}, got {given.shape}")
    if given.dtype == np.float32:
        array = given.copy()
    else:
        with np.errstate(over="ignore"):  # what overflows is found below
            array = given.astype(np.float32)
    if not (array.size == 0 or (array.min() >= -1.0 and array.max() <= 1.0)):
        outside = ~(np.abs(array) <= 1.0)
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"action must be finite and within [-1, 1], got {array[index]} at index {index} "
            f"({int(outside.sum())} such entries); gymnasium.wrappers.ClipAction clips"
        )
    return array


class Codec:
    """Translates between the numbers of the Gymnasium interface and complex matrices.

    Args:
        scenario: The scenario.
        dtype: Real dtype of what :meth:`decode` returns.
        device: Device of what :meth:`decode` returns.
        best_streams: V of every station's best beampattern, complex (J, M_R, r); needed for
            ``radar="fixed"``, ``control="structured"`` and ``observation="features"``.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        best_streams: Tensor | None = None,
    ) -> None:
        self.scenario = scenario
        self.deployment = Deployment.of(scenario)
        self.dtype = dtype
        self.device = torch.device(device)
        self._best_streams = best_streams
        self._features: Features | None = None
        if scenario.observation == "features":
            self._features = Features(scenario, self._require_best_streams())
        # Held as tensors: an operation with a Python number takes twice as long.
        self._budget = torch.tensor(scenario.comm_power, dtype=dtype, device=device)
        self._amplitude = torch.tensor(scenario.comm_power**0.5, dtype=dtype, device=device)
        users, comm = scenario.num_users, scenario.num_comm_antennas
        self.comm_size = {
            "power": users,
            "amplitude": comm * users,
            "beamforming": 2 * comm * users,
            "structured": 2 * users,
        }[scenario.control]
        self.radar_size = 0
        if scenario.radar == "learned":
            entries = 2 * scenario.num_radar_antennas * scenario.num_radar_streams
            self.radar_size = users if scenario.control == "structured" else entries
        self.access_size = users if scenario.scheduling == "contention" else 0
        self.station_size = self.comm_size + self.radar_size + self.access_size

    @property
    def action_size(self) -> int:
        """Numbers in an action: those of station 1, then those of station 2, and so on."""
        return self.scenario.num_cells * self.station_size

    @property
    def observation_size(self) -> int:
        """Numbers in an observation: 2·J·J·K·M, or J·F features."""
        if self._features is not None:
            return self.scenario.num_cells * self._features.layout.size
        return 2 * math.prod(self.deployment.shape)

    def observation(self, channels: Complex) -> npt.NDArray[np.float32]:
        """Observations of a batch: [Re H, Im H], or the features of station after station.

        Args:
            channels: H as observed, complex64 (n, J, J, K, M).

        Returns:
            float32 array (n, N).
        """
        if self._features is not None:
            views = view_from_stations(torch.from_numpy(channels))
            return self.describe_views(views.numpy()).reshape(len(channels), -1)
        flat = channels.reshape(len(channels), -1)
        return np.concatenate([flat.real, flat.imag], axis=1)

    def describe_views(self, views: Complex) -> npt.NDArray[np.float32]:
        """What every station observes of its own channels: [Re H, Im H], or features.

        Args:
            views: Channels from every station to users, its own cell first, complex64
                (n, J, P, K, M).

        Returns:
            float32 array (n, J, N/J) for all places P = J.
        """
        if self._features is None:
            flat = views.reshape(*views.shape[:2], -1)
            return np.concatenate([flat.real, flat.imag], axis=-1)
        with torch.inference_mode():
            given = torch.from_numpy(views).to(self.device, self.dtype.to_complex())
            found: npt.NDArray[np.float32] = self._features.describe(given).float().cpu().numpy()
        return found

    def describe_channels(self, channels: Tensor) -> Tensor:
        """Features of channels, with gradients.

        Args:
            channels: Channels as observed, complex (n, J, J, K, M).

        Returns:
            Real tensor (n, N).

        Raises:
            ValueError: If observations are no features.
        """
        if self._features is None:
            raise not_allowed("observation", self.scenario.observation, "'features'")
        return self._features.describe(view_from_stations(channels)).flatten(1)

    def channels(self, observation: Tensor) -> Tensor:
        """Channels of a batch of observations.

        Args:
            observation: Real tensor (..., 2·J·J·K·M).

        Returns:
            Complex tensor (..., J, J, K, M), on the codec's device and in its dtype.

        Raises:
            ValueError: If the last dimension is not that of an observation, or observations are
                features, of which channels cannot be had.
        """
        if self._features is not None:
            raise ValueError(
                "observation must be 'channels' for what works on channels, got "
                f"{self.scenario.observation!r}"
            )
        if observation.shape[-1:] != (self.observation_size,):
            raise ValueError(
                f"observation must have shape (..., {self.observation_size}), "
                f"got {tuple(observation.shape)}"
            )
        parts = observation.to(self.device, self.dtype)
        parts = parts.unflatten(-1, (2, *self.deployment.shape))
        return torch.complex(*parts.unbind(-5))

    def decode(self, action: Tensor, estimates: Tensor) -> Transmission:
        """What an action means.

        Args:
            action: Real tensor (..., A) within [-1, 1].
            estimates: Channels as observed, complex (..., J, J, K, M); the directions of power
                control, and what structured control means, are computed from them.

        Returns:
            The transmission, in W and √W.
        """
        scenario = self.scenario
        stations = (*action.shape[:-1], scenario.num_cells, self.station_size)
        parts = action.to(self.device, self.dtype).reshape(stations)
        sizes = [self.comm_size, self.radar_size, self.access_size]
        comm, radar, access = parts.split(sizes, dim=-1)
        active = None
        if scenario.scheduling == "contention":
            # The value is the hard decision; the gradient passes straight through it.
            active = (access > 0).to(access.dtype) + 0.5 * (access - access.detach())
        if scenario.control == "structured":
            return self._decode_structured(comm, radar, estimates, active)
        if scenario.control == "power":
            precoders, power = self._powered(comm, self.directions(estimates), active)
        else:
            precoders, power = self._weighted(comm, active)
        return Transmission(precoders, self._decode_streams(radar), power, active)

    def _decode_structured(
        self, comm: Tensor, radar: Tensor, estimates: Tensor, active: Tensor | None
    ) -> Transmission:
        """What three numbers a user mean: dual powers and powers, and weights for the radar."""
        scenario = self.scenario
        echo, own = self.split_own_channels(estimates.to(self.device, self.dtype.to_complex()))
        best = self._require_best_streams()
        streams = best.expand(*radar.shape[:-2], -1, -1, -1)
        if scenario.radar == "learned":
            streams = find_structured_streams(best, echo, radar, scenario.radar_power)
        duals, powers = comm.tensor_split(2, -1)
        noise = scenario.noise_power + radar_interference(echo, streams)
        directions = find_structured_directions(own, find_duals(duals, scenario.comm_power), noise)
        precoders, power = self._powered(powers, directions, active)
        return Transmission(precoders, streams, power, active)

    def _require_best_streams(self) -> Tensor:
        if self._best_streams is None:
            raise ValueError(
                "best_streams must be given for radar='fixed', control='structured' and "
                "observation='features', got None"
            )
        return self._best_streams

    def _powered(
        self, comm: Tensor, directions: Tensor, active: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """F (..., J, M_C, K) and its power (..., J) from powers along given directions."""
        budget = self.scenario.comm_power
        powers = 0.5 * budget * (comm + 1.0)
        if active is not None:
            powers = powers * active
        total = powers.sum(-1)
        if self.scenario.power_limit == "project":
            powers = powers * (budget / total.clamp_min(budget)).unsqueeze(-1)
            total = torch.minimum(total, self._budget)
        positive = powers > 0
        # sqrt has no gradient at 0, where a saturated policy ends up.
        amplitudes = torch.where(positive, torch.where(positive, powers, 1.0).sqrt(), 0.0)
        return directions * amplitudes.unsqueeze(-2), total

    def _weighted(self, comm: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """F (..., J, M_C, K) and its power (..., J) from weights."""
        scenario = self.scenario
        antennas, users = scenario.num_comm_antennas, scenario.num_users
        if active is not None:
            comm = (comm.unflatten(-1, (-1, users)) * active.unsqueeze(-2)).flatten(-2)
        norm = torch.linalg.vector_norm(comm, dim=-1, keepdim=True)
        power = (norm * self._amplitude).square().squeeze(-1)
        if scenario.power_limit == "project":
            comm = comm * (self._amplitude / norm.clamp_min(1.0))
            power = torch.minimum(power, self._budget)  # what rounding adds is no excess
        else:
            comm = comm * self._amplitude
        parts = comm.reshape(*comm.shape[:-1], -1, antennas, users).unbind(-3)
        imaginary = parts[1] if len(parts) == 2 else torch.zeros_like(parts[0])
        return torch.complex(parts[0], imaginary), power

    def check_channels(self, channels: Tensor) -> None:
        """Check that channels are those of the scenario.

        Raises:
            ValueError: If their shape is not (n, J, J, K, M), or an entry is not finite.
        """
        expected = self.deployment.shape
        if tuple(channels.shape[1:]) != expected or not bool(torch.isfinite(channels).all()):
            raise ValueError(
                f"channels must be finite and of shape (n, {', '.join(map(str, expected))}), got "
                f"{tuple(channels.shape)}"
            )

    def split_own_channels(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Channels from each station to its own users, by antennas.

        Args:
            channels: H, complex (..., J, J, K, M).

        Returns:
            f (..., J, K, M_R) from the radar antennas and g (..., J, K, M_C) from the others.
        """
        antennas = [self.scenario.num_radar_antennas, self.scenario.num_comm_antennas]
        radar, comm = select_own_channels(channels).split(antennas, dim=-1)
        return radar, comm

    def directions(self, estimates: Tensor) -> Tensor:
        """Unit-norm directions of power control.

        Args:
            estimates: Channels as observed, complex (..., J, J, K, M).

        Returns:
            Complex tensor (..., J, M_C, K).
        """
        return precoder_directions(
            self.scenario.precoder_directions,
            self.split_own_channels(estimates)[1],
            self.scenario.noise_power,
            self.scenario.comm_power,
        )

    def _decode_streams(self, radar: Tensor) -> Tensor:
        scenario = self.scenario
        if scenario.radar == "fixed":
            return self._require_best_streams().expand(*radar.shape[:-2], -1, -1, -1)
        parts = radar.reshape(
            *radar.shape[:-1], 2, scenario.num_radar_antennas, scenario.num_radar_streams
        )
        return normalise_rows(torch.complex(*parts.unbind(-3)), scenario.radar_power)

    def encode(
        self,
        *,
        precoders: Tensor | None = None,
        powers: Tensor | None = None,
        streams: Tensor | None = None,
        access: Tensor | None = None,
        check: bool = True,
    ) -> Tensor:
        """The action that transmits the given matrices; the inverse of :meth:`decode`.

        Args:
            precoders: F within the power budget, complex (..., J, M_C, K), in √W; for
                ``control="amplitude"`` it must be real.
            powers: p_k, shape (..., J, K), in W; for ``control="power"`` instead of ``precoders``.
            streams: V, complex (..., J, M_R, c) with c <= r, in √W; needed if the radar is
                learned. Its rows are normalised by the environment in any case.
            access: τ, shape (..., J, K); needed if users contend.
            check: Whether to check that powers and precoders can be expressed. A network that
                respects the budget by construction can do without; what exceeds it is clamped.

        Returns:
            Real tensor (..., A) within [-1, 1].

        Raises:
            ValueError: If a needed part is missing, or cannot be expressed as an action, as with
                ``control="structured"`` nothing can.
        """
        scenario = self.scenario
        budget = scenario.comm_power
        if scenario.control == "structured":
            raise not_allowed(
                "control",
                scenario.control,
                "another: matrices are not made of a few numbers a user",
            )
        if scenario.control == "power":
            if powers is None:
                raise ValueError("powers must be given for control='power', got None")
            parts = [_clamp_to_box("powers", 2.0 * powers / budget - 1.0, check)]
        else:
            if precoders is None:
                raise ValueError(
                    f"precoders must be given for control={scenario.control!r}, got None"
                )
            weights = precoders / budget**0.5
            parts = [_clamp_to_box("precoders", weights.real.flatten(-2), check)]
            if scenario.control == "beamforming":
                parts.append(_clamp_to_box("precoders", weights.imag.flatten(-2), check))
            elif weights.imag.abs().max() > 1e-6:
                raise ValueError("precoders must be real for control='amplitude', got complex ones")
        if scenario.radar == "learned":
            if streams is None:
                raise ValueError("streams must be given for radar='learned', got None")
            parts.append(self.encoded_streams(streams))
        if scenario.scheduling == "contention":
            if access is None:
                raise ValueError("access must be given for scheduling='contention', got None")
            parts.append(access.to(parts[0].dtype) * 2.0 - 1.0)
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*lead, -1) for part in parts], -1).flatten(-2)

    def encoded_streams(self, streams: Tensor) -> Tensor:
        """The radar part of an action, (..., 2·M_R·r), for V, complex (..., M_R, c) with c <= r.

        Raises:
            ValueError: If V has more than r columns.
        """
        missing = self.scenario.num_radar_streams - streams.shape[-1]
        if missing < 0:
            raise ValueError(
                f"streams must have at most radar_streams={self.scenario.num_radar_streams} "
                f"columns, got {streams.shape[-1]}"
            )
        padded = torch.nn.functional.pad(streams, (0, missing))
        unit = normalise_rows(padded, self.scenario.num_radar_antennas)
        return torch.cat([unit.real.flatten(-2), unit.imag.flatten(-2)], -1).clamp(-1.0, 1.0)


def select_own_channels(channels: Tensor) -> Tensor:
    """Channels from each station to its own users: (..., J, J, K, M) -> (..., J, K, M)."""
    if channels.shape[-3] == 1:
        return channels.squeeze(-4)
    return channels.diagonal(dim1=-4, dim2=-3).movedim(-1, -3)


def _clamp_to_box(name: str, values: Tensor, check: bool) -> Tensor:
    """Clamp rounding errors; anything larger is the caller's mistake."""
    if check:
        largest = float(values.detach().abs().max())
        if not largest <= 1.0 + 1e-4:
            raise ValueError(
                f"{name} must be finite and within the power budget of the scenario, got an "
                f"action entry of magnitude {largest:g}"
            )
    return values.clamp(-1.0, 1.0)
