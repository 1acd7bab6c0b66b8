"""Stations that learn together and decide each by itself: Algorithm 2 of the paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from isac_gym.agents.primal_dual import PrimalDual
from isac_gym.agents.transfer import TransferAgent
from isac_gym.distributed import DistributedPolicy
from isac_gym.learning.conditions import Conditions
from isac_gym.learning.config import DISTRIBUTED_PRESETS
from isac_gym.learning.network import make_network
from isac_gym.learning.stations import (
    LearnedStation,
    StationNetwork,
    load_station,
    save_station,
)
from isac_gym.registry import NETWORKS, register_agent
from isac_gym.validation import check_flag, check_integer, not_allowed

__all__ = ["DistributedPrimalDual", "load_station"]


@register_agent(
    "distributed-primal-dual",
    "stations that exchange bits, unfolded designs, one set of weights",
    options={"preset": "tuned"},
    controls=("beamforming",),
    schedulings=("all",),
    least_cells=2,
    learns=True,
    rank=70,
)
@register_agent(
    "distributed-primal-dual-wide",
    "the same for any number of bits, a range of couplings and numbers of stations",
    options={"preset": "wide"},
    controls=("beamforming",),
    schedulings=("all",),
    learns=True,
    is_default=False,
    rank=71,
)
@register_agent(
    "distributed-primal-dual-paper",
    "stations with networks of their own that exchange bits, to the letter of the paper",
    options={"preset": "paper"},
    controls=("power", "beamforming"),
    learns=True,
    is_default=False,
    rank=72,
)
class DistributedPrimalDual(TransferAgent, DistributedPolicy):
    """Primal-dual learning of stations that decide from their own channels and a few bits.

    All stations are trained together, equations (32)-(38) with the signs made consistent: what is
    maximised is the sum of the rates of all cells, whose gradient reaches every station's weights,
    those of a quantiser through the bits that other stations receive; every station has multipliers
    of its own, for its own power and its own sensing loss. After the training each station is an
    object of its own, and :meth:`act` moves nothing between them but the bits, so that what a
    station transmits depends on nothing else.

    A beamformer is trained in two phases, Algorithm 2: power control first, by an agent of the same
    class, then new output layers for beamforming, the others staying as they are
    (:class:`~isac_gym.agents.transfer.TransferAgent`). With ``control="power"`` there is the first
    phase alone.

    Args:
        env: Environment, single, batched or wrapped.
        preset: Name of a preset (see :data:`~isac_gym.learning.config.DISTRIBUTED_PRESETS`).
        source: Trained power-control agent, its file, or None: it is trained by :meth:`learn`
            before the transfer. Callbacks see the second phase alone.
        transfer: Whether a beamformer takes over a power-control agent; None means where the
            network serves power control as well.
        seed: Seed of the initial weights and of the training channels.
        device: Torch device, or ``"auto"`` for CUDA if present.
        **settings: Fields of :class:`~isac_gym.learning.config.AgentConfig` to change, and options
            of networks, such as ``message_bits``.

    Raises:
        ValueError: If the network has no parts for the stations, a transfer is asked for and the
            control is not ``"beamforming"``, the source does not fit, or a setting is not allowed.

    Attributes:
        stations: The parts, one a station, with the weights of ``network``.
        transfer: Whether there are two phases.
    """

    kind: ClassVar[str] = "DistributedPrimalDual"
    saved_options: ClassVar[tuple[str, ...]] = ("transfer",)
    presets = DISTRIBUTED_PRESETS
    _shares_batches: ClassVar[bool] = True
    network: StationNetwork

    def __init__(
        self,
        env: Any,
        preset: str = "tuned",
        *,
        source: PrimalDual | str | Path | None = None,
        transfer: bool | None = None,
        seed: int = 0,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(env, preset, seed=seed, device=device, **settings)
        if not isinstance(self.network, StationNetwork):
            raise not_allowed(
                "architecture",
                self.architecture,
                "a network of stations for this control, such as 'distributed-direct'",
            )
        control = self.scenario.control
        self.transfer = self._resolve_transfer(transfer)
        if self.transfer and control != "beamforming":
            raise not_allowed("control", control, "'beamforming' for the transfer")
        if source is not None and not self.transfer:
            raise not_allowed("source", source, "None without a transfer")
        self.stations: list[LearnedStation] = self._make_stations()
        if self.transfer:
            self._plan_transfer(source, preset, settings, device)

    def _make_stations(self) -> list[LearnedStation]:
        return [self.network.make_station(station) for station in range(self.scenario.num_cells)]

    @property
    def message_bits(self) -> int | None:
        """Bits L of a message to one neighbour in a round; None sends real numbers.

        Another number may be set where the same weights serve it, as those of ``"cooperative"`` do.
        The stations are then made anew, and the price is that of the training until
        :meth:`calibrate` settles it for such messages. Files keep the number.

        Raises:
            ValueError: If the number is not allowed, or the weights do not serve it.
        """
        return self.network.message_bits

    @message_bits.setter
    def message_bits(self, bits: int | None) -> None:
        options = {**self.config.options, "message_bits": bits}
        made = make_network(self.architecture, self.system, torch.Generator(), options)
        try:
            made.load_state_dict(self.network.state_dict())
        except RuntimeError as error:
            allowed = f"{self.message_bits}, which is what the weights are for"
            raise not_allowed("message_bits", bits, allowed) from error
        self.config = dataclasses.replace(self.config, options=options)
        self.network.message_bits = self.config.options["message_bits"]
        self.stations = self._make_stations()
        self.calibrated = None

    def _resolve_transfer(self, transfer: bool | None) -> bool:
        if transfer is None:
            serves_power = "power" in NETWORKS.find(self.architecture).controls
            return serves_power and self.scenario.control == "beamforming"
        return check_flag("transfer", transfer)

    @classmethod
    def _source_kind(cls) -> type[PrimalDual]:
        return DistributedPrimalDual

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Actions (n, A) for observations (n, N): every station sends, receives and acts."""
        return DistributedPolicy.act(self, observation, deterministic)

    def converse(self, estimates: Tensor) -> Tensor:
        """See :meth:`~isac_gym.distributed.DistributedPolicy.converse`."""
        cells = self.scenario.num_cells
        if len(self.stations) != cells:
            raise ValueError(
                f"stations must be the parts of {cells} stations, got {len(self.stations)}"
            )
        self._tell_prices()
        return super().converse(estimates)

    def save_station(self, station: int, path: str | Path) -> None:
        """Save the part of one station: its weights and its price, nothing of the others.

        :func:`~isac_gym.learning.stations.load_station` reads it.

        Args:
            station: Index of the station, 0 … J-1.
            path: File, by custom with the ending ``.zip``.

        Raises:
            ValueError: If there is no such station.
        """
        if check_integer("station", station, 0) >= len(self.stations):
            raise not_allowed("station", station, f"in 0 … {len(self.stations) - 1}")
        self._tell_prices()
        save_station(self.stations[station], path, self.architecture, self.config.options)

    def _tell_prices(self) -> None:
        """Tell every station its price, as training or calibration have left it."""
        price = Conditions.of(self.system, 1, self.multiplier, self.priced).price[0]
        for part, value in zip(self.stations, price.tolist(), strict=True):
            part.price = value
