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

import math
from typing import Final

import torch
from torch import Tensor, nn

from isac_gym.agents.conditions import Conditions
from isac_gym.codec import own_channels
from isac_gym.physics.links import radar_interference
from isac_gym.physics.precoding import rzf_directions
from isac_gym.physics.waveform import CoarseSensing, ExactSensing, Sensing, descend
from isac_gym.system import ISACSystem

__all__ = ["UnfoldedPolicy"]

STAGES: Final = ((6.0, 3), (6.0, 3), (3.0, 4))
"""Stages of the waveform search: spacing of the grid in degrees, and steps."""

_EDGE_FEATURES = 5
_USER_FEATURES = 7
_EDGE_WIDTH = 16
_LARGEST_CORRECTION = 8.0
_LEAST_PRICE = 1e-3
_LEAST_SHARE = 1e-6
_SCALAR_PACE = 10.0
"""Steps and momenta are few numbers that have far to go: they learn ten times as fast."""
_TINY = 1e-12


class _UserLayer(nn.Module):
    """One round of messages between the users of a station.

    Args:
        width: Length d of a user's state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.message = nn.Linear(width, 2 * width, bias=False)
        self.gate = nn.Linear(_EDGE_WIDTH, 2 * width)
        self.update = nn.Sequential(
            nn.Linear(3 * width + _USER_FEATURES, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, state: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        """New states (..., K, d) from states, edges (..., K, K, e) and features (..., K, u)."""
        sent = self.gate(edges) * self.message(state).unsqueeze(-3)
        summed, compared = sent.split(self.width, dim=-1)
        # What interferes adds up; who matters most is a comparison.
        heard = [summed.sum(-2) / 5.0, compared.amax(-2)]
        moved: Tensor = self.update(torch.cat([state, *heard, features], -1))
        return state + moved


class UnfoldedPolicy(nn.Module):
    """Learned steps of the joint design; see :mod:`isac_gym.agents.unfolded`.

    Args:
        system: System whose observations and actions it maps; its control must be ``"power"`` or
            ``"beamforming"``. With several cells every station decides as if it were alone.
        generator: Source of the initial weights.
        width: Length of a user's state in the network.
        stages: Stages of the waveform search, each the spacing of its angular grid in degrees (a
            divisor of 90) and its number of steps.

    Raises:
        ValueError: If the control mode has no such structure.
    """

    def __init__(
        self,
        system: ISACSystem,
        generator: torch.Generator,
        width: int = 32,
        stages: tuple[tuple[float, int], ...] = STAGES,
    ) -> None:
        super().__init__()
        scenario = system.scenario
        if scenario.control == "amplitude":
            raise ValueError(
                "the unfolded policy needs control 'power' or 'beamforming', got 'amplitude'"
            )
        self.system = system
        self.steps = tuple(steps for _, steps in stages)
        total = sum(self.steps)
        self.edges = nn.Sequential(
            nn.Linear(_EDGE_FEATURES, 2 * _EDGE_WIDTH),
            nn.SiLU(),
            nn.Linear(2 * _EDGE_WIDTH, _EDGE_WIDTH),
        )
        self.entry = nn.Linear(_USER_FEATURES, width)
        # One layer before each stage, and one before the last precoder.
        self.layers = nn.ModuleList(_UserLayer(width) for _ in range(len(stages) + 1))
        # Power, dual power and the correction of the slope of every user.
        self.settings = nn.ModuleList(nn.Linear(width, 3) for _ in range(len(stages) + 1))
        self.pace = nn.ModuleList(nn.Linear(width, 2 * steps) for steps in self.steps)
        self.log_step = nn.Parameter(torch.zeros(total))
        self.momentum = nn.Parameter(torch.zeros(total))
        self.access = nn.Linear(width, 1) if scenario.scheduling == "contention" else None
        self.register_buffer("best_streams", system.best_streams(), persistent=False)
        self._sensing = [self._on_grid(step_deg) for step_deg, _ in stages]
        self._initialise(generator)

    def _on_grid(self, step_deg: float) -> Sensing:
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
        noise = conditions.noise_power[:, None, None]
        price = conditions.price.clamp_min(_LEAST_PRICE)
        channels = codec.channels(observation)
        own = own_channels(channels)
        radar, comm = own.split([scenario.num_radar_antennas, scenario.num_comm_antennas], dim=-1)
        users = _Users(self.system, channels, radar, comm, noise, price)
        edges = self.edges(users.edge_features())

        streams = before = self._start(len(own))
        received = radar_interference(radar, streams)
        state = self.entry(users.features(received))
        length = scenario.num_radar_antennas / 3.0
        index = 0
        for number, steps in enumerate(self.steps if scenario.radar == "learned" else ()):
            state = self.layers[number](state, edges, users.features(received))
            power, dual, correction = self.settings[number](state).unbind(-1)
            slopes = users.slopes(power, dual, received)
            bounded = correction.clamp(-_LARGEST_CORRECTION, _LARGEST_CORRECTION)
            weights = length * slopes / price.unsqueeze(-1) * torch.exp(bounded)
            resolvent = _resolvent(radar, weights)
            pace, inertia = self.pace[number](state.mean(-2)).split(steps, dim=-1)
            own_steps = slice(index, index + steps)
            streams, before = descend(
                self._sensing[number],
                streams,
                before,
                resolvent,
                length * torch.exp(_SCALAR_PACE * self.log_step[own_steps] + pace),
                _SCALAR_PACE * self.momentum[own_steps] + inertia,
                scenario.radar_power,
            )
            index += steps
            received = radar_interference(radar, streams)
        state = self.layers[-1](state, edges, users.features(received))
        power, dual, _ = self.settings[-1](state).unbind(-1)

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
        loading = users.loading(dual, received)
        directions = rzf_directions(comm, loading, scenario.num_users)
        precoders = directions * amplitudes.unsqueeze(-2)
        return codec.encode(precoders=precoders, streams=streams, access=access, check=False)

    def output_layers(self) -> list[nn.Linear]:
        """The layers whose outputs are the numbers in the formulas."""
        return [layer for layer in self.settings if isinstance(layer, nn.Linear)]

    def _start(self, count: int) -> Tensor:
        best = self.best_streams
        assert isinstance(best, Tensor)
        return best.expand(count, -1, -1, -1)


class _Users:
    """What the network and the slopes need to know of the users, with everything in W.

    Args:
        system: The system.
        channels: H, complex (n, J, J, K, M).
        radar: f, complex (n, J, K, M_R).
        comm: g, complex (n, J, K, M_C).
        noise: N0, (n, 1, 1).
        price: π, (n, J).
    """

    def __init__(
        self,
        system: ISACSystem,
        channels: Tensor,
        radar: Tensor,
        comm: Tensor,
        noise: Tensor,
        price: Tensor,
    ) -> None:
        scenario = system.scenario
        self._budget, self._noise = scenario.comm_power, noise
        self._gram = comm @ comm.mH
        self._radar_gram = radar @ radar.mH
        self._gains: Tensor | None = None
        if scenario.control == "power":
            received = torch.view_as_real(comm @ system.codec.directions(channels))
            self._gains = received.square().sum(-1)
        self._users = scenario.num_users
        strength = self._gram.diagonal(dim1=-2, dim2=-1).real
        echo = self._radar_gram.diagonal(dim1=-2, dim2=-1).real
        self._signal = self._budget * strength / self._users
        self._static = torch.stack(
            [
                torch.log1p(self._signal / noise),
                torch.log1p(scenario.radar_power / scenario.num_radar_antennas * echo / noise),
                (torch.log(self._budget / noise) / 3.0).expand_as(strength),
                (torch.log(price.unsqueeze(-1)) / 3.0 - 1.5).expand_as(strength),
            ],
            -1,
        )

    def edge_features(self) -> Tensor:
        """How alike the channels of two users are, (n, J, K, K, 5)."""
        features = []
        for gram in (self._gram, self._radar_gram):
            squared = torch.view_as_real(gram).square().sum(-1)
            size = squared.diagonal(dim1=-2, dim2=-1).sqrt()
            cosine = squared / (size.unsqueeze(-1) * size.unsqueeze(-2)).clamp_min(_TINY)
            features += [cosine, (cosine + _TINY).sqrt()]
        itself = torch.eye(self._users, dtype=cosine.dtype, device=cosine.device)
        return torch.stack([*features, itself.expand_as(cosine)], -1)

    def features(self, received: Tensor) -> Tensor:
        """What describes each user at the present waveform, (n, J, K, 7)."""
        present = [
            torch.log1p(received / self._noise),
            torch.log1p(self._signal / (self._noise + received)),
            received / (self._noise + received),
        ]
        return torch.cat([torch.stack(present, -1), self._static], -1)

    def loading(self, dual: Tensor, received: Tensor) -> Tensor:
        """σ_k²/λ_k, (n, J, K), with Σ λ_k = P and λ given by its logits."""
        shares = torch.softmax(dual, -1).clamp_min(_LEAST_SHARE)
        return (self._noise + received) / (self._budget * shares)

    def slopes(self, power: Tensor, dual: Tensor, received: Tensor) -> Tensor:
        """What a watt of radar power at each user costs in rate, (n, J, K), in bit/s/Hz/W.

        Args:
            power: Logits of the powers, (n, J, K).
            dual: Logits of the dual powers, (n, J, K).
            received: Radar power at each user, (n, J, K).
        """
        gains = self._gains
        if gains is None:
            loaded = self._gram + torch.diag_embed(self.loading(dual, received))
            inverse, _ = torch.linalg.inv_ex(loaded)
            columns = self._gram @ inverse
            norm = (inverse.mT * columns).sum(-2, keepdim=True).real.clamp_min(_TINY)
            gains = torch.view_as_real(columns).square().sum(-1) / norm
        powers = gains * (self._budget * torch.softmax(power, -1)).unsqueeze(-2)
        signal = powers.diagonal(dim1=-2, dim2=-1)
        disturbance = (powers.sum(-1) - signal).clamp_min(0.0) + received + self._noise
        slopes: Tensor = signal / (disturbance * (disturbance + signal)) / math.log(2.0)
        return slopes


def _resolvent(radar: Tensor, weights: Tensor) -> Tensor:
    """(I + Σ_k w_k f_k* f_kᵀ)⁻¹, complex (n, J, M_R, M_R), by a K x K system."""
    scaled = weights.sqrt().unsqueeze(-1) * radar
    users, antennas = radar.shape[-2:]
    small = scaled @ scaled.mH + torch.eye(users, dtype=radar.dtype, device=radar.device)
    inner, _ = torch.linalg.solve_ex(small, scaled)
    identity = torch.eye(antennas, dtype=radar.dtype, device=radar.device)
    resolvent: Tensor = identity - scaled.mH @ inner
    return resolvent
