r"""One message of few bits a user, without iteration: who is served, and so whom to spare.

After Kim, Jang and Yang, arXiv:2404.02477, of whose text only the aim was at hand: the exchange
between base stations brought down to a few bits. The abstracts of two papers that lead there say
more: Kim and Yang, "Two-stage downlink beamforming in MISO multicell networks with limited backhaul
signaling", Asilomar, 2016, and "Sum-rate maximization of multicell MISO networks with limited
information exchange", arXiv:1904.05121.

Taken from them: two stages, of which the first is a design from local channels alone that spares
all other cells; between the two a single exchange, of quantised scalars and of no vector; in the
second every station designs for the sum rate of the network, from its local channels and the
scalars, without further iteration.

A reading of this package: the scalar is the price of interference at a user in the first design,
one of few levels or nothing for a user that is given up; the first design is the joint one of
precoder and waveform at a constant price on all leakage, where theirs is the precoder of the
largest signal-to-leakage-and-noise ratio; the second is the joint one at the prices told, with the
interference that is expected on average; their stations have no radar and, in the later paper, one
user each.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from isac_gym.baselines.local_design import (
    LocalDesign,
    LocalDesigner,
    check_beamforming,
    expected_interference,
    expected_spread,
)
from isac_gym.baselines.scalar_code import ScalarCode
from isac_gym.distributed import DistributedPolicy, Memory, Received, StationPolicy
from isac_gym.physics.links import BITS_PER_NAT
from isac_gym.registry import register_baseline
from isac_gym.scenario import Scenario
from isac_gym.solvers.network_problems import NetworkProblem
from isac_gym.validation import check_integer

__all__ = ["FewBits", "FewBitsStation", "choose_price_code"]

_FIRST_ITERATIONS: Final = 60
_LAST_ITERATIONS: Final = 20
_LOWEST: Final = 0.3
_HIGHEST: Final = 1.0


def choose_price_code(scenario: Scenario, bits: int) -> ScalarCode:
    """The code of prices with B bits a user.

    A watt costs a user with high SINR that receives as much interference as is expected
    1/(ln 2·(N0 + (J-1)·q)), with q from
    :func:`~isac_gym.baselines.local_design.expected_interference`. The levels go from 0.3 times
    that to that; with one bit the level is 0.55 times that. Where users have positions, some
    receive far more, of the radar or of others: the lowest level is 8 times as low
    (:func:`~isac_gym.baselines.local_design.expected_spread`), and with one bit the level is 0.19
    times that.
    """
    others = (scenario.num_cells - 1) * expected_interference(scenario)
    usual = BITS_PER_NAT / (scenario.noise_power + others)
    lowest = _LOWEST / expected_spread(scenario)
    return ScalarCode(lowest * usual, _HIGHEST * usual, bits)


class FewBitsStation(StationPolicy):
    """A station that announces its users once, and designs twice.

    Args:
        scenario: The scenario of all stations.
        station: Index of this one.
        device: Torch device.
        bits: Bits B a user, so that a message has K·B.
        iterations: Iterations of the second design.
    """

    def __init__(
        self,
        scenario: Scenario,
        station: int,
        device: torch.device | str = "cpu",
        *,
        bits: int = 1,
        iterations: int = 40,
    ) -> None:
        super().__init__(scenario, station, device)
        self.iterations = iterations
        self.message_bits = scenario.num_users * bits
        self._code = choose_price_code(scenario, bits)
        self._designer = LocalDesigner(self.system, scenario)

    def _compose_message(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """The words of the own users' prices, the same to every other station."""
        problem, design = self._design_first(local_csi, memory)
        words = self._code.encode(self._designer.measure(problem, design).price)
        return words.flatten(1).unsqueeze(1).repeat(1, self.scenario.num_cells - 1, 1)

    def _choose_action(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """The design that heeds the prices of the others."""
        designer, users = self._designer, self.scenario.num_users
        _, design = self._design_first(local_csi, memory)
        words = received[-1].unflatten(-1, (users, self._code.bits))
        interference, _ = designer.expect(local_csi)
        problem = designer.pose(local_csi, interference, self._code.decode(words))
        found = designer.improve(problem, design, self.iterations)
        found = designer.finish(problem, found, _LAST_ITERATIONS)
        return self.system.codec.encode(
            precoders=found.precoders.unsqueeze(1), streams=found.streams.unsqueeze(1)
        )

    def _design_first(
        self, local_csi: Tensor, memory: Memory | None
    ) -> tuple[NetworkProblem, LocalDesign]:
        """The design before the message, and its problem."""
        if memory is not None and "first" in memory:
            found: tuple[NetworkProblem, LocalDesign] = memory["first"]
            return found
        designer = self._designer
        problem = designer.pose(local_csi, *designer.expect(local_csi))
        found = problem, designer.improve(problem, designer.begin(problem), _FIRST_ITERATIONS)
        if memory is not None:
            memory["first"] = found
        return found


@register_baseline(
    "few-bits",
    "each station's joint design, told once whom of the others to spare, a bit a user",
    controls=("beamforming",),
    radars=("learned",),
    schedulings=("all",),
    least_cells=2,
    rank=57,
)
class FewBits(DistributedPolicy):
    """Two designs of every station with one exchange of K·B bits a link in between.

    Args:
        env: Environment whose scenario the policy is for, with ``control="beamforming"``,
            ``radar="learned"`` and all users served.
        bits: Bits B a user, 1 … 16; with one bit a user is announced as served or as given up.
        iterations: Iterations of the second design.

    Raises:
        ValueError: If the scenario is of another kind, or an option is not allowed.
    """

    def __init__(self, env: Any, *, bits: int = 1, iterations: int = 40) -> None:
        super().__init__(env)
        check_beamforming(self.scenario)
        self.bits = check_integer("bits", bits, 1)
        self.iterations = check_integer("iterations", iterations, 1)
        self.stations = [
            FewBitsStation(
                self.scenario,
                station,
                self.system.device,
                bits=self.bits,
                iterations=self.iterations,
            )
            for station in range(self.scenario.num_cells)
        ]
