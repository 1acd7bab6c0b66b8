r"""An unfolded joint design of one station among others, in the parts that its messages divide.

At a stationary point of the network's rate, less the price of the sensing loss, a station's
waveform minimises Σ_u s_u f_uᵀRf_u* + π L_r(R) over the users u of *all* cells, and its precoder
has the structure F_k ∝ (I + Σ_u ρ_u g_u* g_uᵀ)⁻¹ g_k*. Of its own users the slopes s_u and the
weights ρ_u follow from the design itself, as in :mod:`isac_gym.agents.networks.unfolded`. Of those
of other cells they are what a watt costs there, and the interference that its own users must expect
is what the others will do: neither can be known from a station's own channels.

So a station drafts (a network over the users as it sees them), says what it has to say, talks the
matter over by itself with what all have said, as every other station does with the same words, and
then designs, by forward-backward steps on V as the unfolded policy takes them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import torch
from torch import Tensor, nn

from isac_gym.agents.networks.cooperative.bounds import bound
from isac_gym.agents.networks.cooperative.layers import (
    EDGE_WIDTH,
    TalkLayer,
    TradeLayer,
    UserLayer,
    apply_layer,
)
from isac_gym.agents.networks.cooperative.physics import (
    EDGE_FEATURES,
    OTHER_FEATURES,
    OWN_FEATURES,
    Links,
    Stations,
    resolve_weighted,
)
from isac_gym.agents.networks.cooperative.planes import OTHER_PLANES, OWN_PLANES
from isac_gym.agents.networks.unfolded.downlink import StageControls
from isac_gym.agents.networks.unfolded.stage import descend
from isac_gym.physics.links import radar_interference

__all__ = ["Draft", "StationModel"]

_DRAFTS: Final = 2
_LARGEST: Final = 8.0
"""Bound on the magnitude of logarithms that the network sets."""
_LARGEST_STATE: Final = 512.0
"""Bound on what messages change in a state. Layers multiply what they hear, so that real numbers
without a bound can grow from round to round; it is far above what networks need that have
learned."""
_SCALAR_PACE: Final = 10.0
"""Steps and momenta are few numbers that have far to go: they learn ten times as fast."""
_LEAST_PRICE: Final = 1e-3


@dataclasses.dataclass(frozen=True)
class Draft:
    """What a station has worked out before it hears from others.

    Attributes:
        links: Its links.
        edges: Of own users with own ones, (n, S, K, K, e), and with others, (n, S, K, V, e).
        price: π, (n, S), in bit/s/Hz a unit of L_r.
        own: States of own users, (n, S, K, w).
        other: States of other users, (n, S, V, w).
        received: Power of the best beampattern at all users, (n, S, T), in W.
    """

    links: Links
    edges: tuple[Tensor, Tensor]
    price: Tensor
    own: Tensor
    other: Tensor
    received: Tensor


class StationModel(nn.Module):
    """The weights of a station, and what it does with them; all stations have the same.

    Args:
        generator: Source of the initial weights.
        width: Length w of a user's state.
        steps: Steps of each stage of the waveform search.
        talks: Rounds of the conversation.
        trades: Whether stations know each other's states all the time.
    """

    def __init__(
        self,
        generator: torch.Generator,
        width: int,
        steps: tuple[int, ...],
        talks: int,
        trades: bool = False,
    ) -> None:
        super().__init__()
        self.steps = steps
        stages = len(steps)
        self.edges = nn.Sequential(
            nn.Linear(EDGE_FEATURES, 2 * EDGE_WIDTH),
            nn.SiLU(),
            nn.Linear(2 * EDGE_WIDTH, EDGE_WIDTH),
        )
        self.enter_own = nn.Linear(OWN_FEATURES, width)
        self.enter_other = nn.Linear(OTHER_FEATURES, width)
        self.drafts = nn.ModuleList(
            UserLayer(width, OWN_FEATURES, OTHER_FEATURES) for _ in range(_DRAFTS)
        )
        self.say_own = nn.Linear(width, OWN_PLANES)
        self.say_other = nn.Linear(width, OTHER_PLANES)
        # Of each plane its value, and whether it was sent; or the states, for real numbers.
        self.hear_own = nn.Linear(2 * OWN_PLANES, width)
        self.hear_other = nn.Linear(2 * OTHER_PLANES, width)
        self.hear_own_state = nn.Linear(width, width)
        self.hear_other_state = nn.Linear(width, width)
        self.talks = nn.ModuleList(TalkLayer(width) for _ in range(talks))
        self.join_own = nn.Linear(width, width, bias=False)
        self.join_other = nn.Linear(width, width, bias=False)
        # One layer before each stage, and one before the last precoder.
        self.layers = nn.ModuleList(
            UserLayer(width, OWN_FEATURES, OTHER_FEATURES) for _ in range(stages + 1)
        )
        self.trades = nn.ModuleList(TradeLayer(width) for _ in range(trades * (stages + 1)))
        # Of own users power, dual power, correction of the slope, interference to expect.
        self.settings = nn.ModuleList(nn.Linear(width, 4) for _ in range(stages + 1))
        # Of other users the slope, and the weight in the precoder.
        self.burdens = nn.ModuleList(nn.Linear(width, 2) for _ in range(stages + 1))
        self.slack = nn.Linear(width, 1)
        self.pace = nn.ModuleList(nn.Linear(width, 2 * count) for count in steps)
        # Logarithms of the lengths, and momenta, of the steps of every stage.
        self.tempo = nn.Parameter(torch.zeros(2 * sum(steps)))
        self.log_softness = nn.Parameter(torch.zeros(stages))
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        # So that it starts as the descent that it unfolds.
        for head in (*self.settings, *self.burdens, *self.pace, self.slack):
            assert isinstance(head, nn.Linear)
            head.weight *= 0.1
        for trade in self.trades:
            assert isinstance(trade, TradeLayer)
            trade.to_own.weight *= 0.3
            trade.to_other.weight *= 0.3
        for talk in self.talks:
            assert isinstance(talk, TalkLayer)
            talk.own_outer.weight *= 0.3
            talk.other_outer.weight *= 0.3
        self.slack.bias.fill_(-5.0)  # nearly all of the power is used

    @property
    def width(self) -> int:
        """Length of a user's state."""
        return self.enter_own.out_features

    def draft(self, view: Tensor, price: Tensor, noise_power: Tensor, stations: Stations) -> Draft:
        """Work out what can be said.

        Args:
            view: Channels of S stations to the users of all cells, own cell first, complex
                (n, S, J, K, M).
            price: π, (n, S), in bit/s/Hz a unit of L_r.
            noise_power: N0, (n,), in W.
            stations: The S stations.
        """
        links = Links.of(view, stations.system, noise_power)
        price = price.clamp_min(_LEAST_PRICE)
        described: Tensor = self.edges(links.describe_edges())
        sizes = [links.users, described.shape[-2] - links.users]
        within, across = described.split(sizes, -2)
        edges = within.contiguous(), across.contiguous()
        best = stations.best_streams.expand(len(view), -1, -1, -1)
        received = radar_interference(links.radar, best)
        features = links.describe_users(price, stations.antenna_power, received, None)
        own = apply_layer(self.enter_own, features[0])
        other = apply_layer(self.enter_other, features[1])
        for layer in self.drafts:
            own, other = layer(own, other, edges, features)
        return Draft(links, edges, price, own, other, received)

    def say(self, draft: Draft) -> tuple[Tensor, Tensor]:
        """Values in [-1, 1] of all planes: (n, S, K, planes) and (n, S, V, planes)."""
        own = torch.tanh(apply_layer(self.say_own, draft.own))
        return own, torch.tanh(apply_layer(self.say_other, draft.other))

    def hear(
        self, own: Tensor, other: Tensor, sent_own: Tensor, sent_other: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the bits of messages mean, (..., K, w) and (..., V, w).

        Args:
            own: Bits of own users, 0 where none was sent, (..., K, planes).
            other: Bits of other users, (..., V, planes).
            sent_own: Whether they were sent, of a shape that expands to that of ``own``.
            sent_other: The same for ``other``.
        """
        whole_own = torch.cat([own, sent_own.expand_as(own)], -1)
        whole_other = torch.cat([other, sent_other.expand_as(other)], -1)
        return apply_layer(self.hear_own, whole_own), apply_layer(self.hear_other, whole_other)

    def hear_states(self, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """What real numbers mean, (..., K, w) and (..., V, w)."""
        return apply_layer(self.hear_own_state, own), apply_layer(self.hear_other_state, other)

    def talk(
        self, own: Tensor, other: Tensor, stations: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """What follows from what all have said, for the first stations, None for all of them.

        Args:
            own: What was meant about own users, (n, J, K, w).
            other: What was meant about other users, (n, J, V, w).
            stations: S, for which it is wanted; all J have to be gone through to the last round.

        Returns:
            Tensors (n, S, K, w) and (n, S, V, w).
        """
        cells = own.shape[1]
        wanted = cells if stations is None else stations
        for number, layer in enumerate(self.talks, start=1):
            own, other = layer(own, other, wanted if number == len(self.talks) else cells)
        own, other = own[:, :wanted], other[:, :wanted]  # where there is no round at all
        joined = apply_layer(self.join_own, own), apply_layer(self.join_other, other)
        return bound(joined[0], _LARGEST_STATE), bound(joined[1], _LARGEST_STATE)

    def design(
        self, draft: Draft, stations: Stations, said: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Precoders and waveforms.

        Args:
            draft: What was worked out before.
            stations: The S stations.
            said: What follows from the messages, (n, S, K, w) and (n, S, V, w); None with one cell.

        Returns:
            F, complex (n, S, M_C, K), within the budget, and V, complex (n, S, M_R, r), in √W.
        """
        links, price, users = draft.links, draft.price, draft.links.users
        scenario, power = stations.system.scenario, stations.antenna_power
        own, other = draft.own, draft.other
        if said is not None:
            own, other = own + said[0], other + said[1]
        streams = before = stations.best_streams.expand(len(price), -1, -1, -1)
        received, arriving = draft.received, None
        length = scenario.num_radar_antennas / 3.0
        tempos = (_SCALAR_PACE * self.tempo).split([2 * count for count in self.steps])
        softness = (stations.smoothing * torch.exp(_SCALAR_PACE * self.log_softness)).unbind()
        stages = range(len(self.steps)) if scenario.radar == "learned" else ()
        for number in stages:
            features = links.describe_users(price, power, received, arriving)
            own, other = self._deliberate(number, own, other, draft.edges, features)
            set_power, dual, correction, forecast = self._set(number, own)
            arriving = links.noise_power * torch.exp(forecast)
            noise = links.noise_power + arriving
            slopes = links.slopes(set_power, dual, noise + received[..., :users])
            burden, _ = self._set_burden(number, other)
            level = noise.mean(-1, keepdim=True)
            costs = torch.cat(
                [slopes * torch.exp(correction), torch.exp(burden) / (math.log(2.0) * level)], -1
            )
            controls = StageControls(
                outputs=own,
                tempo=bound(
                    apply_layer(self.pace[number], own.mean(-2)) + tempos[number], _LARGEST
                ),
                price=price,
                length=length,
                largest_correction=_LARGEST,
                smoothing=softness[number],
            )
            resolvent = resolve_weighted(links.radar, costs * (length / price.unsqueeze(-1)))
            streams, before = descend(
                stations.sensing[number], streams, before, resolvent, controls, scenario.radar_power
            )
            received = radar_interference(links.radar, streams)
        features = links.describe_users(price, power, received, arriving)
        own, other = self._deliberate(-1, own, other, draft.edges, features)
        set_power, dual, _, forecast = self._set(-1, own)
        noise = links.noise_power * (1.0 + torch.exp(forecast))
        _, weight = self._set_burden(-1, other)
        level = noise.mean(-1, keepdim=True)
        importance = torch.cat(
            [
                1.0 / links.loading(dual, noise + received[..., :users]),
                links.budget / (users * level) * torch.exp(weight),
            ],
            -1,
        )
        unused = apply_layer(self.slack, own.mean(-2))
        # The root of a softmax, formed so that its gradient is finite where a power vanishes.
        shares = torch.cat([set_power, unused], -1).log_softmax(-1)[..., :users]
        amplitudes = links.budget**0.5 * torch.exp(0.5 * shares)
        return links.steer(importance) * amplitudes.unsqueeze(-2), streams

    def _deliberate(
        self,
        number: int,
        own: Tensor,
        other: Tensor,
        edges: tuple[Tensor, Tensor],
        features: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """States before a stage."""
        if len(self.trades) and other.shape[-2]:
            heard_own, heard_other = self.trades[number](own, other)
            own, other = own + heard_own, other + heard_other
        new_own, new_other = self.layers[number](own, other, edges, features)
        return new_own, new_other

    def _set(self, number: int, own: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of power and dual power, and two bounded logarithms, each (n, S, K)."""
        power, dual, correction, forecast = apply_layer(self.settings[number], own).unbind(-1)
        return (
            power,
            dual,
            bound(correction, _LARGEST),
            bound(forecast, _LARGEST),
        )

    def _set_burden(self, number: int, other: Tensor) -> tuple[Tensor, Tensor]:
        """Two bounded logarithms, each (n, S, V)."""
        set_to = bound(apply_layer(self.burdens[number], other), _LARGEST)
        return set_to[..., 0], set_to[..., 1]
