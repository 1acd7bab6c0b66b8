"""A fully connected network whose outputs set a few numbers in formulas of known structure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isac_gym.agents.networks.direct import FullyConnected, check_layers, resolve_hidden_sizes
from isac_gym.learning.conditions import Conditions
from isac_gym.learning.network import Network
from isac_gym.physics.precoding import rzf_directions
from isac_gym.physics.waveform import turn_from_users
from isac_gym.registry import register_network
from isac_gym.system.downlink import ISACSystem

__all__ = ["ModelBasedNetwork"]


@register_network(
    "model_based",
    "fully connected, sets a few numbers a user in formulas of known structure",
    controls=("power", "beamforming"),
)
class ModelBasedNetwork(Network):
    """A fully connected network that sets a few numbers a user in formulas of known structure.

    Its inputs are what the optimum can depend on through the users' geometry: the magnitudes of
    the Gram matrices of both channels, and each user's radar power under the best beampattern.
    Its outputs set, for each user, a dual power λ and a power p in

        F_k = √p_k · normalised (I + Σ_l λ_l/σ_l² g_l* g_lᵀ)⁻¹ g_k*,

    the structure of every Pareto-optimal precoder (Björnson, Bengtsson and Ottersten, 2014) with
    σ² the noise-plus-radar power, and a weight w in V = (I + Σ_k w_k f_k* f_kᵀ)⁻¹ V_best, rows
    normalised, which moves the radar's power away from the users that matter.

    Args:
        system: System whose observations and actions it maps; its control must be ``"power"`` or
            ``"beamforming"``.
        generator: Source of the initial weights.
        hidden_sizes: Widths of the hidden layers; None means the paper's 2K, 3K, 2K.

    Raises:
        ValueError: If the widths are not allowed.
    """

    def __init__(
        self,
        system: ISACSystem,
        generator: torch.Generator,
        hidden_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        scenario = system.scenario
        self.system = system
        users, cells = scenario.num_users, scenario.num_cells
        self.names = ["power"]
        if scenario.control == "beamforming":
            self.names.append("dual")
        if scenario.radar == "learned":
            self.names.append("avoidance")
        if scenario.scheduling == "contention":
            self.names.append("access")
        self.body = FullyConnected(
            cells * users * (2 * users + 1),
            resolve_hidden_sizes(hidden_sizes, users),
            cells * users * len(self.names),
            generator,
        )
        self.register_buffer("best_streams", system.best_streams(), persistent=False)
        with torch.no_grad():
            self.body.output_layers()[0].weight *= 0.1

    def output_layers(self) -> list[nn.Linear]:
        """The layers whose outputs are the numbers in the formulas."""
        return self.body.output_layers()

    @classmethod
    def check_weights(cls, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Check that the widths of the hidden layers fit the tensors."""
        check_layers(options, weights)

    def forward(self, observation: Tensor, conditions: Conditions | None = None) -> Tensor:
        """Map observations (n, N) to actions (n, A) within [-1, 1]; conditions are ignored."""
        scenario = self.system.scenario
        codec = self.system.codec
        radar, comm = codec.split_own_channels(codec.channels(observation))
        best = self.best_streams
        assert isinstance(best, Tensor)
        features = torch.cat(
            [
                (comm @ comm.mH).abs() / scenario.num_comm_antennas,
                (radar @ radar.mH).abs() / scenario.num_radar_antennas,
                torch.linalg.vector_norm(radar @ best, dim=-1, keepdim=True) ** 2,
            ],
            dim=-1,
        )
        outputs = self.body(features.flatten(1))
        outputs = outputs.view(-1, scenario.num_cells, len(self.names), scenario.num_users)
        settings = dict(zip(self.names, outputs.unbind(-2), strict=True))

        streams = best
        if "avoidance" in settings:
            # Starts at w = 0.1, where the sensing loss is about the default threshold.
            weights = torch.exp(settings["avoidance"].clamp(-10.0, 10.0) + math.log(0.1))
            streams = turn_from_users(best, radar, weights, scenario.radar_power)
        # The root of a softmax, formed so that its gradient is finite where a power vanishes.
        amplitudes = scenario.comm_power**0.5 * torch.exp(0.5 * settings["power"].log_softmax(-1))
        access = None
        if "access" in settings:
            # One user is active, whatever the scores: were none, there would be no gradient.
            share = torch.softmax(settings["access"], -1)
            chosen = nn.functional.one_hot(share.argmax(-1), scenario.num_users)
            access = chosen.to(share.dtype) + share - share.detach()
        if scenario.control == "power":
            return self.system.codec.encode(
                powers=amplitudes.square(), streams=streams, access=access, check=False
            )
        noise = scenario.noise_power + torch.linalg.vector_norm(radar @ streams, dim=-1) ** 2
        duals = scenario.num_users * torch.softmax(settings["dual"], -1)
        directions = rzf_directions(comm, noise / duals.clamp_min(1e-6), scenario.comm_power)
        precoders = directions * amplitudes.unsqueeze(-2)
        return self.system.codec.encode(
            precoders=precoders, streams=streams, access=access, check=False
        )
