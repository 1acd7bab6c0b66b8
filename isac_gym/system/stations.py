"""What each of several stations sees of the whole, and the bits that they tell each other.

Seen from a station the cells come in a fixed order: its own first, then those of the following
stations in turn, the first after the last. So a station's part needs no number of its own, and one
set of weights serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.scenario import Scenario
from isac_gym.validation import check_integer, check_real

__all__ = ["Exchange", "isolate_station", "view_from_stations"]

REAL_BITS: Final = 32
"""Bits that a real number of a message counts for."""


def view_from_stations(channels: Tensor) -> Tensor:
    """Channels of every station to all users, as the station orders the cells.

    Args:
        channels: H, complex (..., J, J, K, M) for [station, cell, user, antenna].

    Returns:
        Complex tensor of the same shape for [station, place, user, antenna]: place 0 is the own
        cell, place p the cell of the station p further on, modulo J.
    """
    cells = channels.shape[-4]
    if cells == 1:
        return channels
    return torch.stack(
        [channels.select(-4, station).roll(-station, -3) for station in range(cells)], -4
    )


def isolate_station(scenario: Scenario, station: int) -> Scenario:
    """The scenario of one station by itself: a single cell, with that station's targets.

    Args:
        scenario: The scenario of all stations.
        station: Index of the station, 0 … J-1.

    Raises:
        ValueError: If there is no such station.
    """
    cells = scenario.num_cells
    if check_integer("station", station, 0) >= cells:
        raise ValueError(f"station must be in 0 … {cells - 1}, got {station!r}")
    targets = scenario.targets_by_cell[station]
    return scenario.replace(num_cells=1, target_angles_deg=targets)


class Exchange:
    """Moves messages between stations and counts their bits; it does nothing else.

    Args:
        num_cells: Stations J.
        message_bits: Bits L of a message to one neighbour; None moves real numbers, each counted as
            32 bits, for the comparison with messages that cost nothing.
        flip_probability: Probability with which a bit arrives inverted. It says nothing of real
            numbers, which always arrive as they were sent, so that it may stay set where messages
            are sometimes bits and sometimes numbers.
        seed: Seed of the inversions.

    Raises:
        ValueError: If an argument is not allowed.

    Attributes:
        counts: Bits moved from each station to each, summed over blocks, int64 (J, J).
        blocks: Blocks whose messages were moved, each round counted.
    """

    def __init__(
        self,
        num_cells: int,
        message_bits: int | None,
        *,
        flip_probability: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.num_cells = check_integer("num_cells", num_cells, 1)
        self.message_bits = (
            None if message_bits is None else check_integer("message_bits", message_bits, 0)
        )
        self.flip_probability = check_real(
            "flip_probability", flip_probability, "a number in [0, 1]", lambda x: 0 <= x <= 1
        )
        self._seed = check_integer("seed", seed, 0)
        # Made when first needed, because some versions of torch cannot copy one.
        self._generator: torch.Generator | None = None
        self.counts: npt.NDArray[np.int64] = np.zeros((self.num_cells,) * 2, np.int64)
        self.blocks = 0

    def swap(self, sent: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Deliver what every station sends to every other.

        Args:
            sent: One message tensor a station, (n, J-1, L) with entries -1 and +1; entry p-1 is for
                the station p places further on, modulo J.

        Returns:
            One tensor a station, (n, J-1, L); entry p-1 came from the station p places further on.

        Raises:
            ValueError: If a station's messages are missing, of another shape, or no bits.
        """
        cells, bits = self.num_cells, self.message_bits
        if len(sent) != cells:
            raise ValueError(f"sent must hold the messages of {cells} stations, got {len(sent)}")
        for station, message in enumerate(sent):
            self._check_message(message, sent[0], station)
        arrived = [self._disturb(message) for message in sent]
        received = []
        for receiver in range(cells):
            parts = [
                arrived[(receiver + place) % cells][:, cells - place - 1]
                for place in range(1, cells)
            ]
            received.append(torch.stack(parts, 1) if parts else arrived[receiver])
        width = sent[0].shape[-1] * REAL_BITS if bits is None else bits
        self.counts += len(sent[0]) * width * (1 - np.eye(cells, dtype=np.int64))
        self.blocks += len(sent[0])
        return tuple(received)

    def add(self, other: Exchange) -> None:
        """Count what another exchange has moved as well."""
        self.counts += other.counts
        self.blocks += other.blocks

    def _check_message(self, message: Tensor, first: Tensor, station: int) -> None:
        width = first.shape[-1] if self.message_bits is None else self.message_bits
        expected = (len(first), self.num_cells - 1, width)
        if tuple(message.shape) != expected:
            raise ValueError(
                f"message of station {station} must have shape {expected}, got "
                f"{tuple(message.shape)}"
            )
        if self.message_bits is not None and not bool((message.abs() == 1).all()):
            raise ValueError(f"message of station {station} must hold nothing but -1 and +1")

    def _disturb(self, message: Tensor) -> Tensor:
        if self.flip_probability == 0.0 or self.message_bits is None:
            return message
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.rand(message.shape, generator=self._generator).to(message.device)
        return torch.where(drawn < self.flip_probability, -message, message)
