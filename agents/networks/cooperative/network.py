"""The stations' unfolded designs as one network to train, and each as a part of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from isac_gym.agents.networks.cooperative.model import Draft, StationModel
from isac_gym.agents.networks.cooperative.physics import Stations
from isac_gym.agents.networks.cooperative.planes import (
    count_bits,
    deal_bits,
    gather_bits,
    mask_planes,
)
from isac_gym.agents.networks.cooperative.quantiser import Quantiser, QuantiserKind
from isac_gym.agents.networks.unfolded.options import LARGEST_WIDTH, check_stages
from isac_gym.distributed import Memory, Received
from isac_gym.learning.conditions import Conditions
from isac_gym.learning.stations import LearnedStation, StationNetwork
from isac_gym.registry import register_network
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import ISACSystem
from isac_gym.system.stations import view_from_stations
from isac_gym.validation import check_choice, check_flag, check_integer, not_allowed

__all__ = ["CooperativeNetwork", "CooperativeStation"]

STAGES: Final = ((6.0, 4), (6.0, 4), (3.0, 5), (3.0, 5))
"""Stages of the waveform search: spacing of the grid in degrees, and steps."""


class CooperativeStation(LearnedStation):
    """A station's part: its draft becomes a message, and all messages its design.

    Args:
        scenario: The scenario of all stations.
        station: Index of this one, 0 … J-1.
        model: The weights.
        stages: Stages of the waveform search.
        message_bits: Bits L of its message; None sends real numbers.
        price: What a unit of L_r costs it, in bit/s/Hz a unit.
        device: Torch device.
    """

    layers: StationModel

    def __init__(
        self,
        scenario: Scenario,
        station: int,
        model: StationModel,
        stages: Sequence[tuple[float, int]],
        message_bits: int | None,
        *,
        price: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(scenario, station, model, price, device)
        self.message_bits = message_bits
        self.message_numbers = (
            scenario.num_cells * scenario.num_users * model.enter_own.out_features
        )
        self._stations = Stations(self.system, [step for step, _ in stages])

    def _compose_message(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """The same bits for all neighbours."""
        said = self._say(self._draft(local_csi, memory))[:, 0]
        return said.unsqueeze(1).expand(-1, self.scenario.num_cells - 1, -1)

    def _choose_action(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """The design that heeds what all have said, its own message among it."""
        draft = self._draft(local_csi, memory)
        said = None
        if self.scenario.num_cells > 1:
            meant = self._understand(torch.cat([self._say(draft), received[0]], 1))
            said = self.layers.talk(*meant, stations=1)
        precoders, streams = self.layers.design(draft, self._stations, said)
        action: Tensor = self.system.codec.encode(precoders=precoders, streams=streams, check=False)
        return action

    def _draft(self, local_csi: Tensor, memory: Memory | None) -> Draft:
        held = None if memory is None else memory.get("draft")
        if isinstance(held, Draft):
            return held
        count = len(local_csi)
        real = local_csi.real
        price = real.new_full((count, 1), self.price)
        noise = real.new_full((count,), self.scenario.noise_power)
        draft = self.layers.draft(local_csi.unsqueeze(1), price, noise, self._stations)
        if memory is not None:
            memory["draft"] = draft
        return draft

    def _say(self, draft: Draft) -> Tensor:
        """The message, (n, 1, L)."""
        if self.message_bits is None:
            return torch.cat([draft.own.flatten(-2), draft.other.flatten(-2)], -1)
        own, other = self.layers.say(draft)
        return Quantiser.decide(gather_bits(own, other, self.message_bits))

    def _understand(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        """What messages (n, J, L) mean, in the order in which this station counts the others."""
        users = self.scenario.num_users
        others = (self.scenario.num_cells - 1) * users
        if self.message_bits is None:
            states = messages.unflatten(-1, (users + others, -1))
            return self.layers.hear_states(states[:, :, :users], states[:, :, users:])
        own, other = deal_bits(messages, users, others)
        bits = torch.full((1,), self.message_bits, device=messages.device)
        sent = mask_planes(bits, users, others)
        return self.layers.hear(own, other, *sent)


@register_network(
    "cooperative",
    "unfolded designs of several stations that tell each other a few bits",
    controls=("beamforming",),
)
class CooperativeNetwork(StationNetwork):
    """Unfolded designs of all stations (:mod:`~isac_gym.agents.networks.cooperative.model`).

    One set of weights serves all stations, any number of them, of users and of antennas, any
    coupling and any number of bits. In training every block of a batch has a number of bits drawn
    from ``train_bits``, and the quantiser draws the bits; otherwise they are signs.

    Args:
        system: System whose observations and actions it maps; its control must be
            ``"beamforming"``, and all users must be served.
        generator: Source of the initial weights.
        width: Length of a user's state in the network.
        stages: Stages of the waveform search, each the spacing of its angular grid in degrees and
            its number of steps.
        talks: Rounds of the conversation.
        message_bits: Bits L of a message to one neighbour; None sends real numbers: the states of
            all users.
        train_bits: Numbers of bits to train for, each as ``message_bits``; None means
            ``message_bits`` alone.
        quantiser: How bits are drawn in training, a kind of
            :class:`~isac_gym.agents.networks.cooperative.quantiser.Quantiser`.
        full_csi: Whether every station knows the channels of all, and so what all the others think
            at every stage: what the messages are held against. There are no parts then, and no
            messages; it is a network for :class:`~isac_gym.agents.PrimalDual`.
        local_csi: ``"transmit"``: a station knows its channels to the users of all cells, as its
            design needs them; nothing else is possible.

    Raises:
        ValueError: If an option is not allowed.
    """

    answers_to_price = True
    fits_other_sizes = True
    couples_stations = True

    def __init__(
        self,
        system: ISACSystem,
        generator: torch.Generator,
        width: int = 32,
        stages: Sequence[tuple[float, int]] = STAGES,
        talks: int = 3,
        message_bits: int | None = 8,
        train_bits: Sequence[int | None] | None = None,
        quantiser: QuantiserKind = "hardened",
        full_csi: bool = False,
        local_csi: Literal["transmit"] = "transmit",
    ) -> None:
        super().__init__()
        check_choice("local_csi", local_csi, Literal["transmit"])
        scenario = system.scenario
        if scenario.control != "beamforming":
            raise not_allowed("control", scenario.control, "'beamforming' for this network")
        if scenario.scheduling != "all":
            raise not_allowed("scheduling", scenario.scheduling, "'all' for this network")
        self.system = system
        self.stages = check_stages(stages)
        self.message_bits = _check_bits("message_bits", message_bits, scenario)
        self._given_bits = _check_train_bits(train_bits)
        self.full_csi = check_flag("full_csi", full_csi)
        self._quantiser = Quantiser(quantiser)
        self._generator: torch.Generator | None = None
        steps = tuple(count for _, count in self.stages)
        self.model = StationModel(
            generator,
            check_integer("width", width, 2, LARGEST_WIDTH),
            steps,
            check_integer("talks", talks, 0, 1024),
            trades=full_csi,
        )
        self._stations: Stations | None = None
        self._others: dict[ISACSystem, Stations] = {}

    def on(self, system: ISACSystem) -> CooperativeNetwork:
        """See :meth:`~isac_gym.learning.network.Network.on`."""
        found = copy.copy(self)  # the weights are shared, and what a training has set
        found.system = system
        found._stations = self._others.get(system)
        if found._stations is None:
            found._stations = self._others[system] = self._make_stations(system)
        return found

    def prepare_batch(self, rng: np.random.Generator, progress: float) -> None:
        """See :meth:`~isac_gym.learning.network.Network.prepare_batch`."""
        self._generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self._quantiser.progress = progress

    def forward(self, observation: Tensor, conditions: Conditions | None = None) -> Tensor:
        """See :meth:`~isac_gym.learning.network.Network.forward`."""
        if conditions is None:
            conditions = Conditions.of(self.system, len(observation))
        if self._stations is None:
            self._stations = self._make_stations(self.system)
        view = view_from_stations(self.system.codec.channels(observation))
        draft = self.model.draft(view, conditions.price, conditions.noise_power, self._stations)
        said = None
        if self.system.scenario.num_cells > 1:
            said = self.model.talk(*self._exchange(draft))
        precoders, streams = self.model.design(draft, self._stations, said)
        return self.system.codec.encode(precoders=precoders, streams=streams, check=False)

    def _make_stations(self, system: ISACSystem) -> Stations:
        # No inference tensors even if first asked for in inference mode: training uses them.
        with torch.inference_mode(False):
            return Stations(system, [step for step, _ in self.stages])

    def _exchange(self, draft: Draft) -> tuple[Tensor, Tensor]:
        """What the messages of all stations mean, (n, J, K, w) and (n, J, V, w)."""
        if self.full_csi:
            return self.model.hear_states(draft.own, draft.other)
        own, other = self.model.say(draft)
        count, users, others = len(own), own.shape[-2], other.shape[-2]
        fixed = -1 if self.message_bits is None else self.message_bits
        bits = torch.full((count,), fixed)
        if self.training:
            given = [self.message_bits] if self._given_bits is None else self._given_bits
            # Real numbers as -1, for tensors.
            trained = torch.tensor([-1 if length is None else length for length in given])
            chosen = torch.randint(len(trained), (count,), generator=self._generator)
            bits = trained[chosen]
            own = self._quantiser.draw(own, self._generator)
            other = self._quantiser.draw(other, self._generator)
        else:
            own, other = Quantiser.decide(own), Quantiser.decide(other)
        bits = bits.to(own.device)
        sent_own, sent_other = (mask[:, None] for mask in mask_planes(bits, users, others))
        meant = self.model.hear(own * sent_own, other * sent_other, sent_own, sent_other)
        is_real = (bits < 0)[:, None, None, None]
        if not bool(is_real.any()):
            return meant
        exact = self.model.hear_states(draft.own, draft.other)
        return torch.where(is_real, exact[0], meant[0]), torch.where(is_real, exact[1], meant[1])

    def make_station(self, station: int, price: float = 0.0) -> CooperativeStation:
        """See :meth:`~isac_gym.learning.stations.StationNetwork.make_station`."""
        if self.full_csi:
            raise not_allowed("full_csi", True, "False for parts that know their own channels")
        return CooperativeStation(
            self.system.scenario,
            station,
            self.model,
            self.stages,
            self.message_bits,
            price=price,
            device=self.system.device,
        )

    @classmethod
    def restore_station(
        cls,
        scenario: Scenario,
        station: int,
        weights: Mapping[str, Tensor],
        options: Mapping[str, Any],
        *,
        price: float,
        device: torch.device,
    ) -> CooperativeStation:
        """See :meth:`~isac_gym.learning.stations.StationNetwork.restore_station`."""
        if options.get("full_csi"):
            raise not_allowed("full_csi", True, "False for a station")
        cls.check_weights(options, {f"model.{name}": value for name, value in weights.items()})
        stages = check_stages(options.get("stages", STAGES))
        model = StationModel(
            torch.Generator(),
            options.get("width", 32),
            tuple(count for _, count in stages),
            options.get("talks", 3),
        )
        model.load_state_dict(dict(weights))
        bits = _check_bits("message_bits", options.get("message_bits", 8), scenario)
        return CooperativeStation(
            scenario, station, model.to(device), stages, bits, price=price, device=device
        )

    def output_layers(self) -> list[nn.Linear]:
        """The layers whose outputs are the numbers in the formulas."""
        return [layer for layer in self.model.settings if isinstance(layer, nn.Linear)]

    @classmethod
    def check_weights(cls, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Check that the width, the numbers of steps and of talks fit the tensors."""
        width, stages = options.get("width", 32), check_stages(options.get("stages", STAGES))
        steps = [2 * count for _, count in stages]
        held = sum(value.numel() for value in weights.values())
        if len(weights["model.enter_own.weight"]) != width or held < width**2:
            raise ValueError(f"width {width} is not the file's")
        if [len(weights[f"model.pace.{k}.weight"]) for k in range(len(steps))] != steps:
            raise ValueError(f"stages {stages} are not the file's")
        talks = {name.split(".")[2] for name in weights if name.startswith("model.talks.")}
        if options.get("talks", 3) != len(talks):
            raise ValueError(f"talks {options.get('talks', 3)} are not the file's")


def _check_train_bits(given: Any) -> tuple[int | None, ...] | None:
    """Numbers of bits to train for; what goes beyond the users there are is left out later."""
    if given is None:
        return None
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise not_allowed("train_bits", given, "None or a non-empty sequence of integers and None")
    return tuple(
        None if length is None else check_integer("train_bits", length, 0) for length in given
    )


def _check_bits(name: str, bits: int | None, scenario: Scenario) -> int | None:
    if bits is None:
        return None
    most = count_bits(scenario.num_users, (scenario.num_cells - 1) * scenario.num_users)
    checked = check_integer(name, bits, 0)
    if checked > most and scenario.num_cells > 1:
        raise not_allowed(name, bits, f"at most {most} bits for these users, or None")
    return checked
