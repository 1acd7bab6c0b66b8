r"""A policy that unfolds the joint design of precoder and radar waveform into a few learned steps.

At a stationary point of rate - π·L_r with a price π on the sensing loss, the waveform minimises
Σ_k s_k f_kᵀRf_k* + π L_r(R), a convex function of R, where s_k is what a watt of radar power at
user k costs in rate; and the precoder has the structure F_k ∝ (I + Σ_l λ_l/σ_l² g_l* g_lᵀ)⁻¹ g_k*
(Björnson, Bengtsson and Ottersten, 2014) with σ² the noise-plus-radar power. The policy alternates
between the two: a network over the graph of the users sets λ, the powers p and a correction of the
slopes s, and forward-backward steps move V,

    V ← rows normalised of (I + Σ_k w_k f_k* f_kᵀ)⁻¹ [V + β (V - V_before) - η κ (∂L_r/∂R) V],

with w_k = κ s_k/π times the correction: the users' interference implicitly, the sensing loss on a
coarse grid explicitly. Without any learning this is a descent on the problem itself.

The network treats users alike and knows neither their number nor that of the antennas. It knows the
noise and the price, so that one set of weights serves every SNR and every threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn

from isac_gym.agents.networks.unfolded.downlink import Downlink, StageControls
from isac_gym.agents.networks.unfolded.options import LARGEST_WIDTH, check_stages
from isac_gym.agents.networks.unfolded.stage import advance
from isac_gym.learning.conditions import Conditions
from isac_gym.learning.network import Network
from isac_gym.physics.links import radar_interference
from isac_gym.physics.precoding import rzf_directions
from isac_gym.physics.sensing.coarse import CoarseSensing, ExactSensing, Sensing
from isac_gym.registry import register_network
from isac_gym.system.downlink import ISACSystem
from isac_gym.validation import check_integer

__all__ = ["UnfoldedNetwork"]

STAGES: Final = ((6.0, 4), (6.0, 4), (3.0, 5), (3.0, 5))
"""Stages of the waveform search: spacing of the grid in degrees, and steps."""

_EDGE_FEATURES = 5
_USER_FEATURES = 7
_EDGE_WIDTH = 16
_LARGEST_CORRECTION = 8.0
_LEAST_PRICE = 1e-3
_SOFTNESS = 5e-3
"""Initial smoothing of the cross-correlation, relative to the square of an antenna's power."""
_SCALAR_PACE = 10.0
"""Steps and momenta are few numbers that have far to go: they learn ten times as fast."""
_TINY = 1e-12


def _apply_layer(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The layer without a module's hooks, which for one observation take as long as the product."""
    assert isinstance(layer, nn.Linear)
    return nn.functional.linear(inputs, layer.weight, layer.bias)


class _UserLayer(nn.Module):
    """One round of messages between the users of a station.

    Args:
        width: Length d of a user's state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message = nn.Linear(width, width, bias=False)
        self.inner = nn.Linear(2 * width + _USER_FEATURES, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, state: Tensor, gates: Tensor, features: Tensor) -> Tensor:
        """New states (..., K, d) from states, gates (..., K, K, d) and features (..., K, u)."""
        sent = gates * _apply_layer(self.message, state).unsqueeze(-3)
        summed, compared = sent.tensor_split(2, dim=-1)
        # What interferes adds up; who matters most is a comparison.
        heard = [summed.sum(-2) / 5.0, compared.amax(-2)]
        inner = nn.functional.silu(
            _apply_layer(self.inner, torch.cat([state, *heard, features], -1))
        )
        return state + _apply_layer(self.outer, inner)


@register_network(
    "unfolded",
    "a network over the graph of the users within unfolded steps of the joint design",
    controls=("power", "beamforming"),
)
class UnfoldedNetwork(Network):
    """Learned steps of the joint design of precoder and waveform, as this module describes them.

    Args:
        system: System whose observations and actions it maps; its control must be ``"power"`` or
            ``"beamforming"``. With several cells every station decides as if it were alone.
        generator: Source of the initial weights.
        width: Length of a user's state in the network.
        stages: Stages of the waveform search, each the spacing of its angular grid in degrees (a
            divisor of 90) and its number of steps.

    Raises:
        ValueError: If the control mode has no such structure, or an option is not allowed.
    """

    answers_to_price = True
    fits_other_sizes = True

    def __init__(
        self,
        system: ISACSystem,
        generator: torch.Generator,
        width: int = 32,
        stages: Sequence[tuple[float, int]] = STAGES,
    ) -> None:
        super().__init__()
        scenario = system.scenario
        stages, width = check_stages(stages), check_integer("width", width, 1, LARGEST_WIDTH)
        if scenario.control == "amplitude":
            raise ValueError(
                "the unfolded policy needs control 'power' or 'beamforming', got 'amplitude'"
            )
        self.system = system
        self.steps = tuple(steps for _, steps in stages)
        self.edges = nn.Sequential(
            nn.Linear(_EDGE_FEATURES, 2 * _EDGE_WIDTH),
            nn.SiLU(),
            nn.Linear(2 * _EDGE_WIDTH, _EDGE_WIDTH),
        )
        self.entry = nn.Linear(_USER_FEATURES, width)
        # One layer before each stage, and one before the last precoder; the gates of all at once.
        self.gates = nn.Linear(_EDGE_WIDTH, width * (len(stages) + 1))
        self.layers = nn.ModuleList(_UserLayer(width) for _ in range(len(stages) + 1))
        # Power, dual power and the correction of the slope of every user.
        self.settings = nn.ModuleList(nn.Linear(width, 3) for _ in range(len(stages) + 1))
        self.pace = nn.ModuleList(nn.Linear(width, 2 * steps) for steps in self.steps)
        # Logarithms of the lengths, and momenta, of the steps of every stage.
        self.tempo = nn.Parameter(torch.zeros(2 * sum(self.steps)))
        self.log_softness = nn.Parameter(torch.zeros(len(stages)))
        self.access = nn.Linear(width, 1) if scenario.scheduling == "contention" else None
        self.register_buffer("best_streams", system.best_streams(), persistent=False)
        self._sensing = [self._make_sensing(step_deg) for step_deg, _ in stages]
        self._softness = _SOFTNESS * (scenario.radar_power / scenario.num_radar_antennas) ** 2
        self._initialise(generator)

    def _make_sensing(self, step_deg: float) -> Sensing:
        # The squared forms of the cross-correlation are fast as they are.
        if self.system.scenario.cross_correlation != "grid_abs":
            return ExactSensing(self.system.sensing)
        return CoarseSensing(self.system.sensing, step_deg, self.system.scenario.beam_width_deg)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        # So that it starts as the descent that it unfolds.
        for heads in (self.settings, self.pace):
            for head in heads:
                assert isinstance(head, nn.Linear)
                head.weight *= 0.1

    def forward(self, observation: Tensor, conditions: Conditions | None = None) -> Tensor:
        """Map observations to actions.

        Args:
            observation: Real tensor (n, N).
            conditions: Noise power and price of each observation; None means those of the system's
                scenario with a price of 0.

        Returns:
            Real tensor (n, A) within [-1, 1].
        """
        scenario, codec = self.system.scenario, self.system.codec
        if conditions is None:
            conditions = Conditions.of(self.system, len(observation))
        price = conditions.price.clamp_min(_LEAST_PRICE)
        channels = codec.channels(observation)
        radar, comm = codec.split_own_channels(channels)
        gains = None
        if scenario.control == "power":
            gains = torch.view_as_real(comm @ codec.directions(channels)).square().sum(-1)
        noise = conditions.noise_power.unsqueeze(-1).expand(price.shape)
        downlink = Downlink(radar, comm @ comm.mH, gains, noise, scenario.comm_power)
        features = _UserFeatures(
            downlink, scenario.radar_power / scenario.num_radar_antennas, price
        )
        gates = self.gates(self.edges(_describe_edges(downlink))).chunk(len(self.layers), -1)

        streams = before = self._start_from_best(len(radar))
        received = radar_interference(radar, streams)
        state = self.entry(features.at(received))
        tempos = (_SCALAR_PACE * self.tempo).split([2 * steps for steps in self.steps])
        softness = (self._softness * torch.exp(_SCALAR_PACE * self.log_softness)).unbind()
        stages = range(len(self.steps)) if scenario.radar == "learned" else ()
        for number in stages:
            state = self.layers[number](state, gates[number], features.at(received))
            controls = StageControls(
                outputs=_apply_layer(self.settings[number], state),
                tempo=_apply_layer(self.pace[number], state.mean(-2)) + tempos[number],
                price=price,
                length=scenario.num_radar_antennas / 3.0,
                largest_correction=_LARGEST_CORRECTION,
                smoothing=softness[number],
            )
            streams, before, received = advance(
                self._sensing[number],
                downlink,
                controls,
                streams,
                before,
                received,
                scenario.radar_power,
            )
        state = self.layers[-1](state, gates[-1], features.at(received))
        power, dual, _ = _apply_layer(self.settings[-1], state).unbind(-1)

        # The root of a softmax, formed so that its gradient is finite where a power vanishes.
        amplitudes = scenario.comm_power**0.5 * torch.exp(0.5 * power.log_softmax(-1))
        access = None
        if self.access is not None:
            # One user is active, whatever the scores: were none, there would be no gradient.
            share = torch.softmax(self.access(state).squeeze(-1), -1)
            chosen = nn.functional.one_hot(share.argmax(-1), scenario.num_users)
            access = chosen.to(share.dtype) + share - share.detach()
        if scenario.control == "power":
            return codec.encode(
                powers=amplitudes.square(), streams=streams, access=access, check=False
            )
        loading = downlink.loading(dual, received)
        directions = rzf_directions(comm, loading, scenario.num_users)
        precoders = directions * amplitudes.unsqueeze(-2)
        return codec.encode(precoders=precoders, streams=streams, access=access, check=False)

    def output_layers(self) -> list[nn.Linear]:
        """The layers whose outputs are the numbers in the formulas."""
        return [layer for layer in self.settings if isinstance(layer, nn.Linear)]

    @classmethod
    def check_weights(cls, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Check that the width and the numbers of steps fit the tensors."""
        width, stages = options.get("width", 32), check_stages(options.get("stages", STAGES))
        steps = [2 * count for _, count in stages]
        held = sum(value.numel() for value in weights.values())
        if len(weights["entry.weight"]) != width or held < width**2:
            raise ValueError(f"width {width} is not the file's")
        if [len(weights[f"pace.{stage}.weight"]) for stage in range(len(steps))] != steps:
            raise ValueError(f"stages {stages} are not the file's")

    def _start_from_best(self, count: int) -> Tensor:
        best = self.best_streams
        assert isinstance(best, Tensor)
        return best.expand(count, -1, -1, -1)


def _describe_edges(downlink: Downlink) -> Tensor:
    """How alike the channels of two users are, (n, J, K, K, 5)."""
    features = []
    for gram in (downlink.gram, downlink.radar @ downlink.radar.mH):
        squared = torch.view_as_real(gram).square().sum(-1)
        size = squared.diagonal(dim1=-2, dim2=-1).sqrt()
        cosine = squared / (size.unsqueeze(-1) * size.unsqueeze(-2)).clamp_min(_TINY)
        features += [cosine, (cosine + _TINY).sqrt()]
    itself = _make_identity(cosine.shape[-1], cosine.dtype, cosine.device)
    return torch.stack([*features, itself.expand_as(cosine)], -1)


@lru_cache(maxsize=32)
def _make_identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Not an inference tensor even if first asked for in inference mode: training uses it too.
    with torch.inference_mode(False):
        return torch.eye(size, dtype=dtype, device=device)


class _UserFeatures:
    """What describes each user at a waveform, all without a unit.

    Args:
        downlink: The users.
        antenna_power: P_R/M_R, in W.
        price: π, (n, J).
    """

    def __init__(self, downlink: Downlink, antenna_power: float, price: Tensor) -> None:
        self._noise = noise = downlink.noise_power.unsqueeze(-1)
        strength = downlink.gram.diagonal(dim1=-2, dim2=-1).real
        echo = torch.view_as_real(downlink.radar).square().sum((-2, -1))
        self._signal = downlink.budget * strength / strength.shape[-1]
        self._constant = torch.stack(
            [
                torch.log1p(self._signal / noise),
                torch.log1p(antenna_power * echo / noise),
                (torch.log(downlink.budget / noise) / 3.0).expand_as(strength),
                (torch.log(price.unsqueeze(-1)) / 3.0 - 1.5).expand_as(strength),
            ],
            -1,
        )

    def at(self, received: Tensor) -> Tensor:
        """Features (n, J, K, 7) where the users receive the radar power (n, J, K), in W."""
        disturbance = self._noise + received
        present = [
            torch.log1p(received / self._noise),
            torch.log1p(self._signal / disturbance),
            received / disturbance,
        ]
        return torch.cat([torch.stack(present, -1), self._constant], -1)
