"""The paper's distributed network: a quantiser and an optimiser for each station."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from isac_gym.agents.networks.cooperative.quantiser import Quantiser, QuantiserKind
from isac_gym.agents.networks.direct import FullyConnected, resolve_hidden_sizes
from isac_gym.distributed import Memory, Received
from isac_gym.learning.conditions import Conditions
from isac_gym.learning.stations import LearnedStation, StationNetwork
from isac_gym.registry import register_network
from isac_gym.scenario import Scenario
from isac_gym.system.codec import Codec
from isac_gym.system.downlink import ISACSystem
from isac_gym.system.stations import view_from_stations
from isac_gym.validation import check_choice, check_integer

__all__ = ["DirectStation", "DistributedDirectNetwork", "LocalCSI", "StationLayers"]

LocalCSI: TypeAlias = Literal["own", "transmit"]

_MESSAGE_BITS: Final = 8
_UNUSED_BITS: Final = 1024
"""Bits that a file may state where there is nobody to send them to."""


class StationLayers(nn.Module):
    """The two fully connected networks of one station, equations (27)-(31).

    Args:
        scenario: The scenario of all stations.
        generator: Source of the initial weights.
        hidden_sizes: Widths of the hidden layers of both; None means the paper's 2K, 3K, 2K.
        message_bits: Length L of a message. With 0, or without other stations, there is no
            quantiser.
        local_csi: Whether the channels to the station's own users are known, or those to all.
    """

    def __init__(
        self,
        scenario: Scenario,
        generator: torch.Generator,
        hidden_sizes: Sequence[int] | None,
        message_bits: int,
        local_csi: LocalCSI,
    ) -> None:
        super().__init__()
        sizes = resolve_hidden_sizes(hidden_sizes, scenario.num_users)
        others = scenario.num_cells - 1
        self._places = 1 if local_csi == "own" else scenario.num_cells
        self.expected = (others, message_bits)
        inputs = 2 * self._places * scenario.num_users * scenario.num_antennas
        self.quantiser = (
            FullyConnected(inputs, sizes, message_bits, generator)
            if others and message_bits
            else None
        )
        outputs = Codec(scenario).station_size
        self.optimiser = FullyConnected(inputs + others * message_bits, sizes, outputs, generator)

    def speak(self, local_csi: Tensor) -> Tensor | None:
        """Values of equation (27), (n, L) within (-1, 1), of channels (n, J, K, M), own cell first.

        None if there is nothing to say, or nobody to say it to.
        """
        if self.quantiser is None:
            return None
        return torch.tanh(self.quantiser(self._describe(local_csi)))

    def act(self, local_csi: Tensor, heard: Tensor) -> Tensor:
        """The station's part of the action, (n, A/J) within (-1, 1), equations (30) and (31).

        Args:
            local_csi: Channels (n, J, K, M), own cell first.
            heard: Bits of the other stations, (n, J-1, L), in turn from the next one.
        """
        inputs = torch.cat([self._describe(local_csi), heard.flatten(1)], -1)
        return torch.tanh(self.optimiser(inputs))

    def _describe(self, local_csi: Tensor) -> Tensor:
        """h_j as real numbers, all real parts first."""
        known = local_csi[:, : self._places].flatten(1)
        return torch.cat([known.real, known.imag], -1)


class DirectStation(LearnedStation):
    """A station's part of the paper's distributed policy; see :class:`StationLayers`.

    It sends the same bits to all of its neighbours.
    """

    layers: StationLayers

    def __init__(
        self,
        scenario: Scenario,
        station: int,
        layers: StationLayers,
        price: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(scenario, station, layers, price, device)
        self.message_bits = layers.expected[1]

    def _compose_message(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """The same bits for all neighbours."""
        others, length = self.layers.expected
        values = self.layers.speak(local_csi)
        if values is None:
            return local_csi.real.new_empty(len(local_csi), others, length)
        return Quantiser.decide(values).unsqueeze(1).expand(-1, others, -1)

    def _choose_action(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """What the optimiser makes of the channels and the bits, equation (30)."""
        return self.layers.act(local_csi, received[0])


@register_network(
    "distributed-direct",
    "two fully connected networks a station, quantiser and optimiser, as in the paper",
)
class DistributedDirectNetwork(StationNetwork):
    """The paper's distributed network: stations with weights of their own, which exchange bits.

    Every station maps its channels to L values in (-1, 1), equation (27), which become bits,
    (28)-(29), and are sent to all others; and its channels and the bits of the others (31) to its
    part of the action (30). While it is trained the bits are drawn with a gradient that passes
    straight through (:class:`~isac_gym.agents.networks.cooperative.quantiser.Quantiser`); otherwise
    each is the sign of its value.

    Args:
        system: System whose observations and actions it maps.
        generator: Source of the initial weights.
        hidden_sizes: Widths of the hidden layers of quantisers and optimisers; None means the
            paper's 2K, 3K, 2K.
        message_bits: Bits L of a message, which the paper does not give; with 0 nothing is sent.
        local_csi: ``"own"``: a station knows its channels to its own users, 2·K·M numbers, as in
            the paper; ``"transmit"``: to the users of all cells, 2·J·K·M numbers.
        quantiser: How bits are drawn in training: ``"stochastic"`` as in the paper, or another kind
            of :class:`~isac_gym.agents.networks.cooperative.quantiser.Quantiser`.

    Raises:
        ValueError: If an option is not allowed.

    Attributes:
        parts: The layers of each station.
    """

    outputs_are_actions = True

    def __init__(
        self,
        system: ISACSystem,
        generator: torch.Generator,
        hidden_sizes: Sequence[int] | None = None,
        message_bits: int = _MESSAGE_BITS,
        local_csi: LocalCSI = "own",
        quantiser: QuantiserKind = "stochastic",
    ) -> None:
        super().__init__()
        self.system = system
        self.message_bits = check_integer("message_bits", message_bits, 0)
        check_choice("local_csi", local_csi, LocalCSI)
        check_choice("quantiser", quantiser, QuantiserKind)
        self.quantiser = Quantiser(quantiser)
        self._drawing = torch.Generator()
        self.parts = nn.ModuleList(
            StationLayers(system.scenario, generator, hidden_sizes, self.message_bits, local_csi)
            for _ in range(system.scenario.num_cells)
        )

    def prepare_batch(self, rng: np.random.Generator, progress: float) -> None:
        """Draw the seed of the next batch's bits, if there are any, and anneal the quantiser."""
        self.quantiser.progress = progress
        if self._get(0).quantiser is not None:
            self._drawing.manual_seed(int(rng.integers(2**63)))

    def forward(self, observation: Tensor, conditions: Conditions | None = None) -> Tensor:
        """Map observations (n, N) to actions (n, A) within (-1, 1); conditions are ignored."""
        views = view_from_stations(self.system.codec.channels(observation)).unbind(1)
        cells = len(self.parts)
        said = [self._get(station).speak(view) for station, view in enumerate(views)]
        values = [each for each in said if each is not None]
        if values:
            stacked = torch.stack(values, 1)  # (n, J, L)
            bits = (
                self.quantiser.draw(stacked, self._drawing)
                if self.training
                else self.quantiser.decide(stacked)
            )
        else:
            bits = observation.new_empty(len(observation), cells, self.message_bits or 0)
        actions = [
            self._get(station).act(view, bits.roll(-station, 1)[:, 1:])
            for station, view in enumerate(views)
        ]
        return torch.cat(actions, -1)

    def output_layers(self) -> list[nn.Linear]:
        """The last layer of each station's optimiser."""
        optimisers = [self._get(station).optimiser for station in range(len(self.parts))]
        return [layer for optimiser in optimisers for layer in optimiser.output_layers()]

    def make_station(self, station: int, price: float = 0.0) -> DirectStation:
        """See :meth:`~isac_gym.learning.stations.StationNetwork.make_station`."""
        scenario = self.system.scenario
        # An index that is none is refused by the part, which all layers would serve.
        layers = self._get(station if station in range(len(self.parts)) else 0)
        return DirectStation(scenario, station, layers, price, self.system.device)

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
    ) -> DirectStation:
        """See :meth:`~isac_gym.learning.stations.StationNetwork.restore_station`."""
        _check_widths(options, weights, "")
        layers = StationLayers(
            scenario,
            torch.Generator(),
            options.get("hidden_sizes"),
            check_integer("message_bits", options.get("message_bits", _MESSAGE_BITS), 0),
            check_choice("local_csi", options.get("local_csi", "own"), LocalCSI),
        )
        layers.load_state_dict(dict(weights))
        layers.to(device)
        return DirectStation(scenario, station, layers, price, device)

    @classmethod
    def check_weights(cls, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Check that the widths of all layers fit the tensors."""
        _check_widths(options, weights, "parts.0.")

    def _get(self, station: int) -> StationLayers:
        layers = self.parts[station]
        assert isinstance(layers, StationLayers)
        return layers


def _check_widths(options: Mapping[str, Any], weights: Mapping[str, Tensor], prefix: str) -> None:
    """Check that the widths of a station's layers are those of its tensors.

    Raises:
        ValueError: If they are not.
        KeyError: If a tensor is missing.
    """
    sizes = resolve_hidden_sizes(options.get("hidden_sizes"), 1)  # None: they are the scenario's
    given = () if options.get("hidden_sizes") is None else sizes
    length = options.get("message_bits", _MESSAGE_BITS)
    expected = {f"optimiser.layers.{layer}": size for layer, size in enumerate(given)}
    if f"{prefix}quantiser.layers.0.weight" in weights:
        expected |= {f"quantiser.layers.{layer}": size for layer, size in enumerate(given)}
        expected[f"quantiser.layers.{len(sizes)}"] = length
    for name, size in expected.items():
        found, columns = weights[f"{prefix}{name}.weight"].shape
        body, _, layer = name.rpartition(".")
        # The widths before are not known where they are the scenario's.
        before = expected.get(f"{body}.{int(layer) - 1}", columns)
        if int(layer) and columns != before:
            raise ValueError(f"hidden_sizes {given} are not the file's")
        if found != size:
            raise ValueError(f"{name} must have {size} outputs as {dict(options)} say, got {found}")
    inputs = weights[f"{prefix}optimiser.layers.0.weight"].shape[-1]
    if length > max(inputs, _UNUSED_BITS):
        raise ValueError(f"message_bits must be at most {inputs}, the inputs, got {length}")
