"""Policies of several stations, each of which decides from its own channels and a few bits.

A station's part is an object of its own. Its functions see the station's local channels and what
has arrived, and nothing else, so that what it transmits cannot depend on anything else. Between the
parts an :class:`~isac_gym.system.stations.Exchange` moves bits and counts them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from isac_gym.channels.base import LARGEST_MAGNITUDE
from isac_gym.policy import SystemPolicy
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import ISACSystem
from isac_gym.system.stations import Exchange, isolate_station, view_from_stations
from isac_gym.threads import run_in_threads
from isac_gym.validation import check_real, not_allowed

__all__ = ["DistributedPolicy", "Memory", "Received", "StationPolicy"]

_LEAST_SHARE: Final = 64
"""Blocks a thread below which a batch is not shared out."""
Memory = dict[str, Any]
"""What a station's part keeps of its own work between the calls of one block."""
Received = Sequence[Tensor]
"""What a station has received, a tensor (n, J-1, L) a round, as :meth:`Exchange.swap` gives it."""


class StationPolicy(ABC):
    """A station's part of a distributed policy: what it tells its neighbours, what it transmits.

    Both are functions of their arguments alone. ``memory`` spares work that was done before in the
    same block; leaving it out changes nothing but time. A subclass says what they are by
    ``_compose_message`` and ``_choose_action``, which are called with checked arguments.

    Args:
        scenario: The scenario of all stations.
        station: Index of this one, 0 … J-1; only its targets follow from it.
        device: Torch device.

    Raises:
        ValueError: If there is no such station.

    Attributes:
        scenario: The scenario of all stations.
        system: The system of this station by itself, with its own targets.
        message_bits: Bits L of a message to one neighbour in a round; None sends real numbers.
        message_numbers: Numbers of a message to one neighbour where they are real.
        rounds: Rounds of messages before the station acts.
    """

    message_bits: int | None = 0
    message_numbers: int = 0
    rounds: int = 1

    def __init__(
        self, scenario: Scenario, station: int, device: torch.device | str = "cpu"
    ) -> None:
        self.scenario = scenario
        self.station = station
        self.system = ISACSystem(isolate_station(scenario, station), device=device)

    def message(
        self, local_csi: Tensor, received: Received = (), memory: Memory | None = None
    ) -> Tensor:
        """What the station tells each neighbour.

        Args:
            local_csi: Channels from this station to the users of all cells, own cell first, complex
                (n, J, K, M); see :func:`~isac_gym.system.stations.view_from_stations`.
            received: What has arrived in the rounds before.
            memory: Its own work of this block, or None.

        Returns:
            Tensor (n, J-1, L) with entries -1 and +1; entry p-1 is for the station p places further
            on.

        Raises:
            ValueError: If the channels have another shape, are not complex or not finite, or what
                has arrived is no message of L bits from every other station a round.
        """
        self._check_channels(local_csi)
        if len(received) >= self.rounds:
            allowed = f"the messages of fewer than {self.rounds} rounds before another message"
            raise not_allowed("received", f"{len(received)} rounds", allowed)
        self._check_received(received, len(local_csi))
        if self.scenario.num_cells == 1:
            return self._make_silence(local_csi)
        return self._compose_message(local_csi, received, memory)

    def act(
        self, local_csi: Tensor, received: Received = (), memory: Memory | None = None
    ) -> Tensor:
        """What the station transmits.

        Args:
            local_csi: As for :meth:`message`.
            received: What has arrived, a tensor (n, J-1, L) a round; nothing is as good as messages
                without bits.
            memory: Its own work of this block, or None.

        Returns:
            This station's part of the action, real (n, A/J) within [-1, 1].

        Raises:
            ValueError: As for :meth:`message`, or if a round is missing.
        """
        self._check_channels(local_csi)
        if not received and 0 in self._message_shape:
            received = (self._make_silence(local_csi),) * self.rounds
        if len(received) != self.rounds:
            allowed = f"the messages of {self.rounds} {'round' if self.rounds == 1 else 'rounds'}"
            raise not_allowed("received", f"{len(received)}", allowed)
        self._check_received(received, len(local_csi))
        return self._choose_action(local_csi, received, memory)

    def _compose_message(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """What :meth:`message` returns, of arguments that are checked; by default no bits.

        It is not asked where there is no other station.
        """
        return self._make_silence(local_csi)

    @abstractmethod
    def _choose_action(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """What :meth:`act` returns, of arguments that are checked."""

    def _make_silence(self, local_csi: Tensor) -> Tensor:
        """A message (n, J-1, L) in which there is nothing: of no bits, or to nobody."""
        return local_csi.real.new_empty(len(local_csi), *self._message_shape)

    @property
    def _message_shape(self) -> tuple[int, int]:
        """Receivers of a message, and what is told to each, in bits or in real numbers."""
        length = self.message_numbers if self.message_bits is None else self.message_bits
        return self.scenario.num_cells - 1, length

    def _check_channels(self, local_csi: Tensor) -> None:
        scenario = self.scenario
        expected = (scenario.num_cells, scenario.num_users, scenario.num_antennas)
        if local_csi.ndim != 4 or tuple(local_csi.shape[1:]) != expected:
            allowed = f"channels of shape (n, {', '.join(map(str, expected))})"
            raise not_allowed("local_csi", f"shape {tuple(local_csi.shape)}", allowed)
        if not local_csi.is_complex():
            raise not_allowed("local_csi", local_csi.dtype, "complex")
        parts = torch.view_as_real(local_csi.resolve_conj())
        if not bool(torch.isfinite(parts).all()):
            raise ValueError("local_csi must be finite, got NaN or infinite entries")
        if local_csi.numel() and float(parts.abs().amax()) > LARGEST_MAGNITUDE:
            raise ValueError(
                f"local_csi must be of magnitude {LARGEST_MAGNITUDE:g} or less, got one of "
                f"{float(parts.abs().amax()):g}"
            )

    def _check_received(self, received: Received, count: int) -> None:
        expected = (count, *self._message_shape)
        for number, messages in enumerate(received):
            shape = tuple(messages.shape)
            if shape != expected:
                allowed = f"messages of shape {expected} in round {number}"
                raise not_allowed("received", f"shape {shape}", allowed)
            if self.message_bits is None:
                if not bool(torch.isfinite(messages).all()):
                    raise ValueError(
                        f"received must be finite, got NaN or infinite entries in round {number}"
                    )
            elif not bool((messages.abs() == 1).all()):
                raise ValueError(
                    f"received must hold nothing but -1 and +1, got others in round {number}"
                )


class DistributedPolicy(SystemPolicy):
    """Stations that act at the same time, each by its own part.

    Args:
        env: Environment, single, batched or wrapped, whose scenario the policy is for.

    Attributes:
        stations: The parts, one a station.
        exchange: What moved the messages of the last call of :meth:`act`; None before.
    """

    stations: Sequence[StationPolicy]
    _shares_batches: ClassVar[bool] = False
    """Whether large batches are shared out to threads: for parts of many small operations."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._flip_probability = 0.0
        self._calls = 0
        self.exchange: Exchange | None = None

    @property
    def flip_probability(self) -> float:
        """Probability with which a bit arrives inverted, bits one by one; 0 unless it is set.

        Every call inverts other bits. Setting the probability begins anew: the same calls after it
        have the same bits inverted.

        Raises:
            ValueError: If it is no number in [0, 1].
        """
        return self._flip_probability

    @flip_probability.setter
    def flip_probability(self, probability: float) -> None:
        self._flip_probability = check_real(
            "flip_probability", probability, "a number in [0, 1]", lambda x: 0 <= x <= 1
        )
        self._calls = 0

    @property
    def bits_per_link(self) -> int | None:
        """Bits that each station tells each other in a block; None for real numbers."""
        first = self.stations[0]
        return None if first.message_bits is None else first.message_bits * first.rounds

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Actions (n, A) for observations (n, N): every station sends, receives and acts."""
        return self.converse(self.system.codec.channels(observation))

    def converse(self, estimates: Tensor) -> Tensor:
        """Actions for the channels that the stations know.

        Args:
            estimates: H as observed, complex (n, J, J, K, M).

        Returns:
            Real tensor (n, A) within [-1, 1].
        """
        workers = torch.get_num_threads() if self._shares_batches else 1
        if estimates.device.type != "cpu" or len(estimates) < workers * _LEAST_SHARE:
            workers = 1
        if self.flip_probability > 0:
            workers = 1  # which bits are inverted must not depend on the number of threads
        parts = estimates.chunk(workers)
        exchanges = [
            Exchange(
                self.scenario.num_cells,
                self.stations[0].message_bits,
                flip_probability=self.flip_probability,
                seed=self._calls,
            )
            for _ in parts
        ]
        self._calls += 1
        if len(parts) == 1:
            actions = [self._converse(estimates, exchanges[0])]
        else:
            actions = run_in_threads(self._converse, workers, parts, exchanges)
        self.exchange = exchanges[0]
        for other in exchanges[1:]:
            self.exchange.add(other)
        return torch.cat(actions)

    def _converse(self, estimates: Tensor, exchange: Exchange) -> Tensor:
        # A thread of its own does not know that its caller wants no gradient.
        with torch.inference_mode():
            views = view_from_stations(estimates).unbind(1)
            memories: list[Memory] = [{} for _ in self.stations]
            received: list[tuple[Tensor, ...]] = [() for _ in self.stations]
            for _ in range(self.stations[0].rounds):
                sent = [
                    part.message(view, heard, memory)
                    for part, view, heard, memory in zip(
                        self.stations, views, received, memories, strict=True
                    )
                ]
                arrived = exchange.swap(sent)
                received = [(*heard, new) for heard, new in zip(received, arrived, strict=True)]
            actions = [
                part.act(view, heard, memory)
                for part, view, heard, memory in zip(
                    self.stations, views, received, memories, strict=True
                )
            ]
            return torch.cat(actions, -1)
