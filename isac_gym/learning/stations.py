"""Networks whose stations decide each by itself, and files that hold one station alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import msgspec
import torch
from torch import Tensor, nn

from isac_gym.distributed import StationPolicy
from isac_gym.learning.archive import check_finite, open_archive, select_prefix, write_archive
from isac_gym.learning.config import AgentConfig
from isac_gym.learning.network import Network, list_network_options
from isac_gym.learning.saving import check_work
from isac_gym.reading import Count, check_counts
from isac_gym.registry import NETWORKS
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import choose_device
from isac_gym.validation import check_real

__all__ = ["STATION_KIND", "LearnedStation", "StationNetwork", "load_station", "save_station"]

STATION_KIND: Final = "Station"


class SavedStation(msgspec.Struct):
    """The description of a station in a file."""

    architecture: str
    options: dict[str, Any]
    scenario: dict[str, Any]
    station: Count
    price: Annotated[float, msgspec.Meta(ge=0.0, le=1e300)]


class LearnedStation(StationPolicy):
    """A station's part of a learned policy: the weights that it needs, and its price.

    Args:
        scenario: The scenario of all stations.
        station: Index of this one, 0 … J-1.
        layers: What holds its weights, on the device.
        price: What a unit of the priced quantity costs it, π = μ/limit, in bit/s/Hz a unit.
        device: Torch device.

    Raises:
        ValueError: If there is no such station, or the price is not allowed.

    Attributes:
        layers: What holds its weights.
        price: Its price; may be changed.
    """

    def __init__(
        self,
        scenario: Scenario,
        station: int,
        layers: nn.Module,
        price: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(scenario, station, device)
        self.layers = layers
        self.price = check_real("price", price, "a finite number >= 0", lambda x: x >= 0)


class StationNetwork(Network):
    """A network that is made of one part for each station, joined by messages of bits.

    For training it maps the observations of all stations at once, which is the same as what the
    parts do when they exchange their messages; it may use bits that are drawn, where the parts
    decide them.

    Attributes:
        message_bits: Bits L of a message to one neighbour in a round; None sends real numbers.
        rounds: Rounds of messages.
    """

    message_bits: int | None
    rounds: ClassVar[int] = 1

    @abstractmethod
    def make_station(self, station: int, price: float = 0.0) -> LearnedStation:
        """The part of one station, which shares this network's weights.

        Args:
            station: Its index, 0 … J-1.
            price: Its price, in bit/s/Hz a unit.

        Raises:
            ValueError: If there is no such station.
        """

    @classmethod
    @abstractmethod
    def restore_station(
        cls,
        scenario: Scenario,
        station: int,
        weights: Mapping[str, Tensor],
        options: Mapping[str, Any],
        *,
        price: float,
        device: torch.device,
    ) -> LearnedStation:
        """The part of one station, from its own weights alone.

        Args:
            scenario: The scenario of all stations.
            station: Its index.
            weights: What ``layers.state_dict()`` of the part was.
            options: Options of the network.
            price: Its price, in bit/s/Hz a unit.
            device: Torch device.

        Raises:
            ValueError: If options and weights do not fit each other.
            KeyError: If a weight is missing.
            RuntimeError: If weights do not fit the scenario.
        """


def save_station(
    part: LearnedStation, path: str | Path, architecture: str, options: Mapping[str, Any]
) -> None:
    """Save a station's part; the file appears whole or not at all.

    Args:
        part: The part.
        path: File, by custom with the ending ``.zip``.
        architecture: Registered name of the network that it is a part of.
        options: Options of networks; those that this one does not know are left out.
    """
    known = list_network_options(architecture)
    config = AgentConfig(options={k: v for k, v in options.items() if k in known})
    meta = {
        "kind": STATION_KIND,
        "architecture": architecture,
        "options": config.to_dict()["options"],
        "scenario": part.scenario.to_dict(),
        "station": part.station,
        "price": part.price,
    }
    weights = part.layers.state_dict()
    write_archive(path, meta, {f"weights.{name}": value for name, value in weights.items()})


def load_station(path: str | Path, *, device: str = "auto") -> LearnedStation:
    """Load a station's part, which acts without the others; executes nothing from the file.

    Args:
        path: File written by :func:`save_station`.
        device: Torch device, or ``"auto"`` for CUDA if present.

    Returns:
        The part; its weights need no gradient.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or foreign.
    """
    chosen = choose_device(device)
    problem = "not a saved station, or damaged"
    with open_archive(path, STATION_KIND, SavedStation, problem=problem) as archive:
        held = archive.held
        for name in ("options", "scenario"):
            check_counts(getattr(held, name), name)
        scenario = Scenario.from_dict(held.scenario)
        check_work(scenario)
        config = AgentConfig(architecture=held.architecture, options=held.options)
        # No module is imported because a file names it.
        if config.architecture not in NETWORKS.entries():
            raise ValueError(
                f"architecture must be one of {', '.join(NETWORKS.names())}, got "
                f"{config.architecture!r}: register the network and import its module first"
            )
        network = NETWORKS.load(config.architecture)
        if not issubclass(network, StationNetwork):
            raise ValueError(f"architecture must have parts, got {config.architecture!r}")
        unknown = sorted(set(config.options) - set(list_network_options(config.architecture)))
        if unknown:
            raise ValueError(f"options must be those of {config.architecture!r}, got {unknown}")
        tensors = archive.read_tensors()
        check_finite(tensors)
        part: LearnedStation = network.restore_station(
            scenario,
            held.station,
            select_prefix(tensors, "weights."),
            config.options,
            price=held.price,
            device=chosen,
        )
    part.layers.requires_grad_(False)
    part.layers.eval()
    return part
