"""What a station's network needs of physics: its sensing loss, and its links to all users."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from isac_gym.agents.networks.unfolded.downlink import find_structured_gains
from isac_gym.physics.precoding import find_least_loading
from isac_gym.physics.sensing.coarse import CoarseSensing, ExactSensing, Sensing
from isac_gym.system.downlink import ISACSystem

__all__ = [
    "EDGE_FEATURES",
    "OTHER_FEATURES",
    "OWN_FEATURES",
    "Links",
    "Stations",
    "resolve_weighted",
]

EDGE_FEATURES: Final = 5
OWN_FEATURES: Final = 8
OTHER_FEATURES: Final = 6
_SOFTNESS = 5e-3
_LEAST_SHARE = 1e-6
_TINY = 1e-12


class Stations:
    """One station, or several side by side, each with its own targets.

    Args:
        system: Their system: that of all stations, or that of one by itself.
        steps_deg: Spacing of the angular grid of each stage of the waveform search, in degrees.

    Attributes:
        system: The system.
        best_streams: V of the best beampattern of each, complex (S, M_R, r), in √W.
        sensing: The sensing loss of each stage.
    """

    def __init__(self, system: ISACSystem, steps_deg: Sequence[float]) -> None:
        self.system = system
        self.best_streams = system.best_streams()
        self.sensing: list[Sensing] = [self._make_sensing(step) for step in steps_deg]
        scenario = system.scenario
        self.antenna_power = scenario.radar_power / scenario.num_radar_antennas
        self.smoothing = _SOFTNESS * self.antenna_power**2

    def _make_sensing(self, step_deg: float) -> Sensing:
        scenario = self.system.scenario
        if scenario.cross_correlation != "grid_abs":
            return ExactSensing(self.system.sensing)
        return CoarseSensing(self.system.sensing, step_deg, scenario.beam_width_deg)


@dataclasses.dataclass(frozen=True)
class Links:
    """Links from S stations to the users of all cells, own users first: T = J·K of them.

    Attributes:
        radar: f, complex (n, S, T, M_R).
        comm: g, complex (n, S, T, M_C).
        users: K, the users of the own cell.
        noise_power: N0, (n, 1, 1), in W.
        budget: P_C, in W.
        gram: g_kᵀ g_u* of own users k and all users u, complex (n, S, K, T).
    """

    radar: Tensor
    comm: Tensor
    users: int
    noise_power: Tensor
    budget: float
    gram: Tensor

    @classmethod
    def of(cls, view: Tensor, system: ISACSystem, noise_power: Tensor) -> Links:
        """Those of views (n, S, J, K, M), with the own cell first, and N0 (n,)."""
        scenario = system.scenario
        antennas = [scenario.num_radar_antennas, scenario.num_comm_antennas]
        radar, comm = view.flatten(-3, -2).split(antennas, dim=-1)
        own = comm[..., : scenario.num_users, :]
        noise = noise_power[:, None, None]
        return cls(radar, comm, scenario.num_users, noise, scenario.comm_power, own @ comm.mH)

    def loading(self, dual: Tensor, noise: Tensor) -> Tensor:
        """σ_k²/λ_k of own users, (n, S, K), with Σ λ_k = P_C, for logits of λ and σ²."""
        return noise / (self.budget * torch.softmax(dual, -1).clamp_min(_LEAST_SHARE))

    def slopes(self, power: Tensor, dual: Tensor, noise: Tensor) -> Tensor:
        """What a watt of interference at each own user costs in rate, in bit/s/Hz/W.

        Args:
            power: Logits of the powers, (n, S, K).
            dual: Logits of the dual powers, (n, S, K).
            noise: Noise, radar power and interference from other cells, (n, S, K), in W.
        """
        gram = self.gram[..., : self.users]
        gains = find_structured_gains(gram, self.loading(dual, noise))
        powers = gains * (self.budget * torch.softmax(power, -1)).unsqueeze(-2)
        signal = powers.diagonal(dim1=-2, dim2=-1)
        disturbance = (powers.sum(-1) - signal).clamp_min(0.0) + noise
        slopes: Tensor = signal / (disturbance * (disturbance + signal)) / math.log(2.0)
        return slopes

    def steer(self, importance: Tensor) -> Tensor:
        """Unit-norm directions F_k ∝ (I + Σ_u ρ_u g_u* g_uᵀ)⁻¹ g_k* of own users.

        Args:
            importance: ρ of all users, (n, S, T), in 1/W.

        Returns:
            Complex tensor (n, S, M_C, K).
        """
        own = self.comm[..., : self.users, :].mH
        columns = resolve_weighted(self.comm, importance) @ own
        norm = torch.linalg.vector_norm(columns, dim=-2, keepdim=True)
        directions: Tensor = columns / norm.clamp_min(_TINY)
        return directions

    def describe_edges(self) -> Tensor:
        """How alike the channels of an own user and of any user are, (n, S, K, T, 5)."""
        features = []
        radar = self.radar[..., : self.users, :] @ self.radar.mH
        for gram, size in ((self.gram, self._strength), (radar, self._echo)):
            squared = torch.view_as_real(gram).square().sum(-1)
            scale = size[..., : self.users, None] * size[..., None, :]
            cosine = squared / scale.clamp_min(_TINY)
            features += [cosine, (cosine + _TINY).sqrt()]
        itself = torch.eye(self.users, cosine.shape[-1], dtype=cosine.dtype, device=cosine.device)
        return torch.stack([*features, itself.expand_as(cosine)], -1)

    def describe_users(
        self, price: Tensor, antenna_power: float, received: Tensor, arriving: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What describes each user at a waveform, all without a unit.

        Args:
            price: π, (n, S).
            antenna_power: P_R/M_R, in W.
            received: Radar power of the station at all users, (n, S, T), in W.
            arriving: Expected interference from other stations at own users, (n, S, K), in W; None
                means none.

        Returns:
            Features of own users, (n, S, K, 8), and of others, (n, S, V, 6).
        """
        users, noise = self.users, self.noise_power
        signal = self.budget * self._strength / users
        common = torch.stack(
            [
                torch.log1p(signal / noise),
                torch.log1p(antenna_power * self._echo / noise),
                (torch.log(self.budget / noise) / 3.0).expand_as(signal),
                (torch.log(price.unsqueeze(-1)) / 3.0 - 1.5).expand_as(signal),
                torch.log1p(received / noise),
            ],
            -1,
        )
        at_own = received[..., :users]
        coming = torch.zeros_like(at_own) if arriving is None else arriving
        disturbance = noise + at_own + coming
        expected = torch.log1p(coming / noise)
        special = [torch.log1p(signal[..., :users] / disturbance), at_own / disturbance, expected]
        own = torch.cat([common[..., :users, :], torch.stack(special, -1)], -1)
        level = expected.mean(-1, keepdim=True).unsqueeze(-1)
        others = common[..., users:, :]
        return own, torch.cat([others, level.expand(*others.shape[:-1], 1)], -1)

    @cached_property
    def _strength(self) -> Tensor:
        """‖g‖² of all users, (n, S, T)."""
        return torch.view_as_real(self.comm).square().sum((-2, -1))

    @cached_property
    def _echo(self) -> Tensor:
        """‖f‖² of all users, (n, S, T)."""
        return torch.view_as_real(self.radar).square().sum((-2, -1))


def resolve_weighted(channels: Tensor, weights: Tensor) -> Tensor:
    """(I + Σ_u w_u h_u* h_uᵀ)⁻¹, complex (n, S, M, M), for any number of users.

    Args:
        channels: h, complex (n, S, T, M).
        weights: w >= 0, (n, S, T).
    """
    # A larger weight changes nothing but that single precision loses the identity beside it.
    strength = torch.view_as_real(channels.resolve_conj()).square().sum((-2, -1))
    least = find_least_loading(channels.shape[-2], strength.dtype)
    weights = torch.minimum(weights, 1.0 / (least * strength).clamp_min(_TINY))
    system = channels.mH @ (weights.unsqueeze(-1) * channels)
    identity = torch.eye(channels.shape[-1], dtype=system.dtype, device=system.device)
    inverse, _ = torch.linalg.inv_ex(identity + system)
    resolvent: Tensor = inverse
    return resolvent
