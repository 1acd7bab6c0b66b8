r"""What a station designs by itself, for its own users and at a price on what it does to the rest.

A station reckons with the interference that its own users receive from elsewhere, and with a price
on every watt that reaches a user of another cell. Given both it minimises

  -Σ_own log2(1 + SINR_k) + Σ_others c_u P_u   subject to L_r <= ε

by the local search of :mod:`isac_gym.solvers.network`, from one start. All functions take its local
channels: those to its own users first, then those to the users of the following stations in turn.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from isac_gym.physics.links import BITS_PER_NAT
from isac_gym.physics.sensing.coarse import ExactSensing
from isac_gym.scenario import Scenario
from isac_gym.solvers.network import NetworkSearch
from isac_gym.solvers.network_problems import NetworkProblem, StreamPowers, radar_received
from isac_gym.solvers.network_starts import start_search
from isac_gym.solvers.waveform import move_within_limit
from isac_gym.system.downlink import ISACSystem
from isac_gym.validation import not_allowed

__all__ = [
    "LocalDesign",
    "LocalDesigner",
    "LocalLinks",
    "check_beamforming",
    "expected_interference",
    "expected_spread",
]

_SHARE = 0.5
"""Of the power that would reach other cells if nobody spared them: what is expected to remain."""
_PRICE = 0.5
"""Of what a watt costs a user with high SINR: not all users are served."""
_MULTIPLIER = 20.0
_SPREAD = 8.0


@dataclasses.dataclass(frozen=True)
class LocalDesign:
    """A station's designs for a batch of n channels.

    Attributes:
        precoders: F, complex (n, M_C, K), in √W.
        streams: V, complex (n, M_R, r), in √W.
        multiplier: Multiplier of L_r/ε - 1, (n,), in bit/s/Hz.
    """

    precoders: Tensor
    streams: Tensor
    multiplier: Tensor


@dataclasses.dataclass(frozen=True)
class LocalLinks:
    """What a design leads to at the users.

    Attributes:
        amplitude: g_kᵀF_k of the own users, complex (n, K), in √W.
        signal: Its square, (n, K), in W.
        disturbance: All else that the own users receive, noise included, (n, K), in W.
        leaked: What the users of each other cell receive from this station, precoders and radar,
            (n, J-1, K), in W.
    """

    amplitude: Tensor
    signal: Tensor
    disturbance: Tensor
    leaked: Tensor

    @property
    def price(self) -> Tensor:
        """-∂rate/∂I: what a watt more of interference costs, (n, K), in bit/s/Hz/W.

        In WMMSE with MMSE receiver u and weight w this is w·abs(u)², up to the factor 1/ln 2.
        """
        total = self.disturbance + self.signal
        return BITS_PER_NAT * self.signal / (self.disturbance * total)


class LocalDesigner:
    """Searches a station's designs.

    Args:
        system: The system of this station by itself.
        scenario: The scenario of all stations.

    Attributes:
        sensing: The station's sensing loss.
        best: V of the best beampattern, complex (1, M_R, r), in √W.
    """

    def __init__(self, system: ISACSystem, scenario: Scenario) -> None:
        self.scenario = scenario
        self.sensing = ExactSensing(system.sensing)
        self.best = system.best_streams()

    def pose(self, local_csi: Tensor, interference: Tensor, price: Tensor) -> NetworkProblem:
        """The problems of n channels.

        Args:
            local_csi: Channels to the users of all cells, own first, complex (n, J, K, M).
            interference: What the own users are reckoned to receive from elsewhere, (n, K), in W.
            price: c of the users of the other cells, (n, J-1, K), in bit/s/Hz/W.

        Returns:
            n problems of one station and J·K users.
        """
        scenario = self.scenario
        antennas = [scenario.num_radar_antennas, scenario.num_comm_antennas]
        radar, comm = local_csi.flatten(1, 2).unsqueeze(1).split(antennas, -1)
        others = price.flatten(1)
        noise = torch.cat([interference, torch.zeros_like(others)], 1) + scenario.noise_power
        whole = torch.cat([torch.zeros_like(interference), others], 1)
        return NetworkProblem(
            radar.contiguous(),
            comm.contiguous(),
            noise,
            whole,
            scenario.comm_power,
            scenario.radar_power,
        )

    def expect(self, local_csi: Tensor) -> tuple[Tensor, Tensor]:
        """What a station reckons with before it has heard anything.

        The mean power of its channels to the users of a cell says what they receive from it if it
        does not spare them. Half of that, summed over the other cells, is what its own users are
        expected to receive in return. The price is half of what a watt costs a user with that
        interference and a high SINR. Without paths between cells nothing is expected.

        Args:
            local_csi: Complex (n, J, K, M).

        Returns:
            Interference (n, K), in W, and price (n, J-1, K), in bit/s/Hz/W, for :meth:`pose`.
        """
        scenario = self.scenario
        count, cells, users, _ = local_csi.shape
        # With one cell there are no channels to take the mean of.
        gain = local_csi[:, 1:].abs().square().sum((1, 2)).mean(-1) / users
        power = scenario.comm_power + scenario.radar_power
        interference = (_SHARE * power * gain)[:, None].expand(-1, users)
        price = _PRICE * BITS_PER_NAT / (scenario.noise_power + interference)
        return interference, price[:, None].expand(count, cells - 1, users)

    def begin(self, problem: NetworkProblem) -> LocalDesign:
        """A start for all own users; see :func:`~isac_gym.solvers.network_starts.start_search`."""
        served = problem.noise[:, None, : self.scenario.num_users]
        precoders, streams = start_search(
            problem,
            torch.ones_like(served),
            self.best.expand(len(problem), 1, -1, -1),
        )
        multiplier = torch.full_like(served[:, 0, 0], _MULTIPLIER)
        return LocalDesign(precoders.squeeze(1), streams.squeeze(1), multiplier)

    def improve(self, problem: NetworkProblem, design: LocalDesign, iterations: int) -> LocalDesign:
        """The designs after some iterations of the search; L_r may still exceed ε a little."""
        search = NetworkSearch(
            problem,
            self.sensing,
            self.scenario.sensing_threshold,
            design.precoders.unsqueeze(1),
            design.streams.unsqueeze(1),
            design.multiplier.unsqueeze(1),
        )
        search.run(iterations)
        return _make_design(search)

    def finish(self, problem: NetworkProblem, design: LocalDesign, iterations: int) -> LocalDesign:
        """The designs with L_r <= ε, and with precoders that suit the waveform."""
        search = NetworkSearch(
            problem,
            None,
            self.scenario.sensing_threshold,
            design.precoders.unsqueeze(1),
            self.make_feasible(design.streams).unsqueeze(1),
            design.multiplier.unsqueeze(1),
            penalty=0.0,
            hold_streams=True,
        )
        search.run(iterations)
        return _make_design(search)

    def measure(self, problem: NetworkProblem, design: LocalDesign) -> LocalLinks:
        """What designs lead to, with the interference that the problems state."""
        users = self.scenario.num_users
        received = problem.comm @ design.precoders.unsqueeze(1)
        radar = radar_received(problem.radar @ design.streams.unsqueeze(1))
        powers = StreamPowers(received, users)
        leaked = powers.leaked + radar[:, users:]
        return LocalLinks(
            received[:, 0, :users].diagonal(dim1=-2, dim2=-1),
            powers.signal,
            powers.disturbance + (problem.noise + radar)[:, :users],
            leaked.unflatten(1, (self.scenario.num_cells - 1, users)),
        )

    def make_feasible(self, streams: Tensor) -> Tensor:
        """V (n, M_R, r), those that exceed ε moved towards the best until they do not."""
        best = self.best.expand(len(streams), -1, -1)
        threshold, power = self.scenario.sensing_threshold, self.scenario.radar_power
        return move_within_limit(streams, best, self._compute_loss, threshold, power)

    def _compute_loss(self, streams: Tensor) -> Tensor:
        """L_r (n,) of V (n, M_R, r)."""
        return self.sensing.loss((streams @ streams.mH).unsqueeze(1)).squeeze(1)


def _make_design(search: NetworkSearch) -> LocalDesign:
    return LocalDesign(
        search.precoders.squeeze(1), search.streams.squeeze(1), search.multiplier.squeeze(1)
    )


def expected_interference(scenario: Scenario) -> float:
    """What a user is expected to receive from one other station, in W; 0 without coupling.

    Half of β(P_C + P_R): the rest is spared. With positions, β is the mean gain without shadowing
    at the distance between neighbouring stations. Both ends of a link know it, so that the range of
    a code may follow from it.
    """
    gain = scenario.intercell_gain
    if scenario.is_geometric:
        apart = 3.0**0.5 if scenario.layout == "hexagonal" else 2.0
        gain = apart**-scenario.path_loss_exponent
    return _SHARE * gain * (scenario.comm_power + scenario.radar_power)


def expected_spread(scenario: Scenario) -> float:
    """How many times as wide the range of a code is as it is where all users are alike.

    1 with equal gains. Where users have positions, the strengths of their paths differ by orders of
    magnitude, and with them what a watt costs them and what they receive: 8.
    """
    return _SPREAD if scenario.is_geometric else 1.0


def check_beamforming(scenario: Scenario) -> None:
    """Check that stations decide precoders and waveforms for all their users.

    Raises:
        ValueError: If they do not; the message names the field.
    """
    for field, wanted in (("control", "beamforming"), ("radar", "learned"), ("scheduling", "all")):
        value = getattr(scenario, field)
        if value != wanted:
            raise not_allowed(field, value, repr(wanted))
