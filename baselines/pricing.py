r"""Stations that tell each other prices of interference, and what interference they cause.

In every round a station tells each other station 2·K numbers: for each of its own users the price
of a watt of interference there, -∂rate/∂I, and for each user of the receiver the power that its
present design would cause there. So every station knows the interference at its own users without
a measurement, and what a watt costs elsewhere. Then all redesign at the same time.

Interference pricing: Shi, Schmidt, Berry, Honig and Utschick, "Distributed interference pricing for
the MISO interference channel", IEEE ICC, 2009. Distributed WMMSE: Shi, Razaviyayn, Luo and He, "An
iteratively weighted MMSE approach to distributed sum-utility maximization for a MIMO interfering
broadcast channel", IEEE Transactions on Signal Processing 59(9), 2011. Neither knows a radar, a
limit of the bits, or forecasts in the place of measurements: these are additions of this package.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
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
from isac_gym.solvers.waveform import WaveformSearch
from isac_gym.validation import check_integer

__all__ = [
    "DistributedWMMSE",
    "InterferencePricing",
    "MessageCodes",
    "PricingPolicy",
    "PricingStation",
    "SearchStation",
    "WMMSEStation",
    "update_precoders",
]

_FIRST_ITERATIONS: Final = 60
"""Of the search before the first message."""
_LAST_ITERATIONS: Final = 20
"""Of the search for precoders after the last, with a feasible waveform."""
_HIGHEST_PRICE: Final = 1.5
_HIGHEST_POWER: Final = 2.5
_BISECTIONS: Final = 50


@dataclasses.dataclass(frozen=True)
class MessageCodes:
    """The codes of prices and powers, which follow from the scenario and the number of bits.

    With q the power that a user is expected to receive from one other station
    (:func:`~isac_gym.baselines.local_design.expected_interference`), codes of one or two bits reach
    up to the power 2.5·q and the price 1.5/(ln 2·(N0 + (J-1)·q)): half as much again as what a watt
    costs a user with high SINR that receives as much as is expected. Every bit beyond the second
    raises both by √2. The lowest are smaller than the highest by the factor 2^(B+1). Where users
    have positions, the highest power and that factor are 8 times as large
    (:func:`~isac_gym.baselines.local_design.expected_spread`). Without coupling between the cells,
    N0/1000 takes the place of q.

    Attributes:
        price: In bit/s/Hz/W.
        power: In W.
    """

    price: ScalarCode
    power: ScalarCode

    @classmethod
    def choose(cls, scenario: Scenario, bits: int) -> MessageCodes:
        """The codes with B bits a number."""
        expected = max(expected_interference(scenario), 1e-3 * scenario.noise_power)
        total = scenario.noise_power + (scenario.num_cells - 1) * expected
        wider = 2.0 ** (0.5 * max(bits - 2, 0))
        spread = expected_spread(scenario)
        price = wider * _HIGHEST_PRICE * BITS_PER_NAT / total
        power = wider * spread * _HIGHEST_POWER * expected
        span = spread * 2.0 ** (bits + 1)
        return cls(ScalarCode(price / span, price, bits), ScalarCode(power / span, power, bits))


@dataclasses.dataclass(frozen=True)
class Report:
    """What the other stations have told in a round.

    Attributes:
        price: Of their users, (n, J-1, K), in bit/s/Hz/W.
        power: What each causes at the own users, (n, J-1, K), in W.
    """

    price: Tensor
    power: Tensor


class PricingStation(StationPolicy):
    """A station that tells prices and powers, and redesigns after every round.

    Args:
        scenario: The scenario of all stations.
        station: Index of this one.
        device: Torch device.
        rounds: Rounds of messages.
        bits: Bits B a number, so that a message has 2·K·B; None sends real numbers.
        iterations: Iterations of the redesign.
    """

    def __init__(
        self,
        scenario: Scenario,
        station: int,
        device: torch.device | str = "cpu",
        *,
        rounds: int,
        bits: int | None,
        iterations: int,
    ) -> None:
        super().__init__(scenario, station, device)
        self.rounds = rounds
        self.iterations = iterations
        self.message_numbers = 2 * scenario.num_users
        self.message_bits = None if bits is None else self.message_numbers * bits
        self._codes = None if bits is None else MessageCodes.choose(scenario, bits)
        self._designer = LocalDesigner(self.system, scenario)

    def _compose_message(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """Prices of the own users, then powers at the receiver's, in bits."""
        design = self._find_design(local_csi, received, memory)
        links = self._designer.measure(self._pose(local_csi, received), design)
        price = links.price.unsqueeze(1).expand_as(links.leaked)
        if self._codes is None:
            return torch.cat([price, links.leaked], -1)
        words = [self._codes.price.encode(price), self._codes.power.encode(links.leaked)]
        return torch.cat([word.flatten(-2) for word in words], -1)

    def _choose_action(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """The design after the last round."""
        found = self._find_design(local_csi, received, memory)
        found = self._finish(self._pose(local_csi, received), found)
        return self.system.codec.encode(
            precoders=found.precoders.unsqueeze(1), streams=found.streams.unsqueeze(1)
        )

    @abstractmethod
    def _redesign(self, problem: NetworkProblem, design: LocalDesign) -> LocalDesign:
        """The design after a round, from the one before it."""

    @abstractmethod
    def _finish(self, problem: NetworkProblem, design: LocalDesign) -> LocalDesign:
        """The design made feasible."""

    def _find_design(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> LocalDesign:
        """The design after the rounds whose messages have arrived, from the last one remembered."""
        designs: list[LocalDesign] = [] if memory is None else memory.setdefault("designs", [])
        for rounds in range(len(designs), len(received) + 1):
            problem = self._pose(local_csi, received[:rounds])
            if rounds == 0:
                start = self._designer.begin(problem)
                designs.append(self._designer.improve(problem, start, _FIRST_ITERATIONS))
            else:
                designs.append(self._redesign(problem, designs[-1]))
        return designs[len(received)]

    def _pose(self, local_csi: Tensor, received: Received) -> NetworkProblem:
        """The problem as the last messages state it; before any, as it is expected to be."""
        if not received:
            return self._designer.pose(local_csi, *self._designer.expect(local_csi))
        report = self._read(received[-1])
        return self._designer.pose(local_csi, report.power.sum(1), report.price)

    def _read(self, message: Tensor) -> Report:
        """What a message (n, J-1, L) of each other station says."""
        if self._codes is None:
            return Report(*message.chunk(2, -1))
        words = message.unflatten(-1, (2, self.scenario.num_users, self._codes.price.bits))
        price, power = words.unbind(2)
        return Report(self._codes.price.decode(price), self._codes.power.decode(power))


class SearchStation(PricingStation):
    """A station that searches for precoder and waveform together after every round."""

    def _redesign(self, problem: NetworkProblem, design: LocalDesign) -> LocalDesign:
        return self._designer.improve(problem, design, self.iterations)

    def _finish(self, problem: NetworkProblem, design: LocalDesign) -> LocalDesign:
        return self._designer.finish(problem, design, _LAST_ITERATIONS)


class WMMSEStation(PricingStation):
    """A station that moves its waveform a step and updates its precoder after every round."""

    def _redesign(self, problem: NetworkProblem, design: LocalDesign) -> LocalDesign:
        scenario = self.scenario
        links = self._designer.measure(problem, design)
        weights = torch.cat([links.price, problem.price[:, scenario.num_users :]], 1)
        search = WaveformSearch(
            self._designer.sensing,
            scenario.sensing_threshold,
            problem.radar.squeeze(1),
            scenario.radar_power,
            _PricedPower(weights),
            design.streams,
            design.multiplier,
        )
        search.run(self.iterations)
        moved = LocalDesign(design.precoders, search.streams, search.multiplier)
        return self._update(problem, moved, self.iterations)

    def _finish(self, problem: NetworkProblem, design: LocalDesign) -> LocalDesign:
        streams = self._designer.make_feasible(design.streams)
        feasible = dataclasses.replace(design, streams=streams)
        return self._update(problem, feasible, _LAST_ITERATIONS)

    def _update(self, problem: NetworkProblem, design: LocalDesign, updates: int) -> LocalDesign:
        """The design after some updates of the precoder by WMMSE."""
        for _ in range(updates):
            links = self._designer.measure(problem, design)
            price = torch.cat([links.price, problem.price[:, self.scenario.num_users :]], 1)
            precoders = update_precoders(
                problem.comm.squeeze(1),
                price / BITS_PER_NAT,
                links.amplitude / links.disturbance,  # w·u, with u = amplitude/total
                self.scenario.comm_power,
            )
            design = dataclasses.replace(design, precoders=precoders)
        return design


class _PricedPower:
    """Σ_u c_u q_u, the priced radar power that users receive, for a waveform search.

    Args:
        price: c, (n, U), in bit/s/Hz/W.
    """

    def __init__(self, price: Tensor) -> None:
        self._price = price

    def evaluate(self, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`~isac_gym.solvers.waveform.Objective.evaluate`."""
        value = (self._price * received).sum(-1)
        return value, self._price, value

    def accept(self, mask: Tensor, state: Tensor) -> None:
        """Nothing is held."""

    def renew(self) -> Tensor | None:
        """Nothing is held."""
        return None


def update_precoders(comm: Tensor, burden: Tensor, target: Tensor, power: float) -> Tensor:
    """Precoders with the least weighted mean square error for given receivers and weights.

    F = (Σ_u d_u g_u* g_uᵀ + μ I)⁻¹ [b_1 g_1* … b_K g_K*] with the least μ >= 0 that keeps
    Σ_k ‖F_k‖² <= P, found by bisection.

    Args:
        comm: g of the own K users, then of all others, complex (n, U, M_C).
        burden: d = w·abs(u)² >= 0, what a watt costs at a user, (n, U), in nat/s/Hz/W.
        target: b = w·u of the own users, with u the MMSE receiver, complex (n, K).
        power: P, in W.

    Returns:
        Complex tensor (n, M_C, K), in √W.
    """
    channels = comm.to(torch.complex128)
    system = channels.mH @ (burden.unsqueeze(-1) * channels)
    values, basis = torch.linalg.eigh(system)
    columns = channels[:, : target.shape[1]].mH * target.unsqueeze(-2)
    turned = basis.mH @ columns
    strength = turned.abs().square().sum(-1)
    # Where nothing is burdened, nothing is aimed at either.
    values = values.clamp_min(0.0) + 1e-12 * values.amax(-1, keepdim=True) + 1e-150
    low = torch.zeros_like(values[:, :1])
    high = (strength.sum(-1, keepdim=True) / power).sqrt()
    fits = (strength / values.square()).sum(-1, keepdim=True) <= power
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        over = (strength / (values + middle).square()).sum(-1, keepdim=True) > power
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    loading = torch.where(fits, 0.0, high)
    found: Tensor = basis @ (turned / (values + loading).unsqueeze(-1))
    return found.to(comm.dtype)


class PricingPolicy(DistributedPolicy):
    """Base of policies whose stations tell prices and powers.

    Args:
        env: Environment whose scenario the policy is for, with ``control="beamforming"``,
            ``radar="learned"`` and all users served.
        rounds: Rounds of messages R.
        bits: Bits B a number, 1 … 16, so that 2·K·B·R bits go from each station to each other;
            None sends real numbers, each counted as 32 bits.
        iterations: Iterations of the redesign after a round.

    Raises:
        ValueError: If the scenario is of another kind, or an option is not allowed.
    """

    def __init__(
        self, env: Any, *, rounds: int = 2, bits: int | None = 3, iterations: int = 30
    ) -> None:
        super().__init__(env)
        check_beamforming(self.scenario)
        self.rounds = check_integer("rounds", rounds, 1)
        self.bits = bits if bits is None else check_integer("bits", bits, 1)
        self.iterations = check_integer("iterations", iterations, 1)
        self.stations = self._make_stations()

    @abstractmethod
    def _make_stations(self) -> Sequence[StationPolicy]:
        """The stations' parts."""

    def _make_all(self, kind: type[PricingStation]) -> Sequence[StationPolicy]:
        return [
            kind(
                self.scenario,
                station,
                self.system.device,
                rounds=self.rounds,
                bits=self.bits,
                iterations=self.iterations,
            )
            for station in range(self.scenario.num_cells)
        ]


@register_baseline(
    "interference-pricing",
    "each station's joint search at prices that the others tell, threshold kept on every channel",
    controls=("beamforming",),
    radars=("learned",),
    schedulings=("all",),
    least_cells=2,
    rank=58,
)
class InterferencePricing(PricingPolicy):
    """Stations that solve their joint problem anew after every round of prices.

    The search goes on from the design before, with an iteration being one of L-BFGS in precoder and
    waveform. Arguments as :class:`PricingPolicy`.
    """

    def _make_stations(self) -> Sequence[StationPolicy]:
        return self._make_all(SearchStation)


@register_baseline(
    "distributed-wmmse",
    "WMMSE at weights that the stations tell, a step of the waveform a round, threshold kept",
    controls=("beamforming",),
    radars=("learned",),
    schedulings=("all",),
    least_cells=2,
    is_default=False,
    rank=59,
)
class DistributedWMMSE(PricingPolicy):
    """Stations that follow WMMSE, whose weights for the others' users are the prices told.

    After a round a station moves its waveform, by a search for the least priced radar power within
    ε with receivers and weights held, and then updates its precoder. With exact messages the
    precoders' part never lowers the rate of the network. The first design is that of interference
    pricing. Arguments as :class:`PricingPolicy`, with an iteration being one of L-BFGS in the
    waveform and one update of the precoder.
    """

    def _make_stations(self) -> Sequence[StationPolicy]:
        return self._make_all(WMMSEStation)
