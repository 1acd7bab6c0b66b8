"""Optimum of several stations together: what a central controller with all channels would do.

Precoders and waveforms of all stations are searched at once for the highest spectral efficiency of
the network (:mod:`isac_gym.solvers.network`). The problem has many local optima, which differ in
the users that are given up. So starts for many subsets of users are followed for a while on a
coarse grid, and the best are refined with the exact loss.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from isac_gym.baselines.coordinated import CoordinatedDesign
from isac_gym.baselines.joint import JointOracle
from isac_gym.registry import register_baseline
from isac_gym.solvers.network import NetworkProblem, NetworkSearch, pose_network
from isac_gym.solvers.network_starts import choose_subsets, start_search
from isac_gym.validation import check_integer, not_allowed

__all__ = ["JointNetwork", "NetworkDesign", "NetworkPolicy"]

_ROUNDS: Final = 6
_ROUND_ITERATIONS: Final = 10
"""Of each station's search by itself, between rounds, before those of all stations together."""
_SCREENING: Final = ((6.0, 30, 8, 3), (6.0, 30, 3, 2), (3.0, 40, 1, 1))
"""Spacing of the grid in degrees, iterations, and starts kept, by phase: at least so many, and at
least so many for one that is refined."""
_MULTIPLIER: Final = 10.0
_SCREENING_PENALTY: Final = 300.0
"""Low: the points need not be feasible yet, and are sooner near those that are best."""
_PENALTY: Final = 2000.0
_LAST_ITERATIONS: Final = 60


@dataclasses.dataclass(frozen=True)
class NetworkDesign(CoordinatedDesign):
    """Designs for a batch of n channels.

    ``rate`` is with the interference of all stations. What belongs to a channel stands at each of
    its stations.

    Attributes:
        stationarity: Norm of the gradient of the Lagrangian by F/√P_C and the unit rows of V, with
            the power constraints, relative to the objective or to 1 if that is more, (n, J).
    """

    stationarity: Tensor


@dataclasses.dataclass(frozen=True)
class _Points:
    """Points of b channels, c starts and G problems a channel: n = b·c·G, in that order.

    Attributes:
        problem: The n problems, each of S = J/G stations.
        precoders: F, complex (n, S, M_C, K), in √W.
        streams: V, complex (n, S, M_R, r), in √W.
        multiplier: Multipliers of L_r/ε - 1, (n, S).
        starts: Index of the start, (b, c, G).
    """

    problem: NetworkProblem
    precoders: Tensor
    streams: Tensor
    multiplier: Tensor
    starts: Tensor

    def keep(self, among: Tensor) -> _Points:
        """The points at ``among`` (b, ·, G) along the axis of the starts."""
        count = torch.arange(self.starts.numel(), device=among.device).view(self.starts.shape)
        return self._select(count.gather(1, among).flatten(), self.starts.gather(1, among))

    def of_channels(self, mask: Tensor) -> tuple[_Points, Tensor]:
        """The points of the channels of a mask (b,), and their flat indices."""
        count = torch.arange(self.starts.numel(), device=mask.device).view(self.starts.shape)
        index = count[mask].flatten()
        return self._select(index, self.starts[mask]), index

    def _select(self, index: Tensor, starts: Tensor) -> _Points:
        moved = (self.precoders[index], self.streams[index], self.multiplier[index])
        return _Points(self.problem.select(index), *moved, starts)

    def move(self, search: NetworkSearch) -> _Points:
        """The points that a search has reached from here."""
        moved = (search.precoders, search.streams, search.multiplier)
        return _Points(self.problem, *moved, self.starts)

    def put(self, index: Tensor, points: _Points, mask: Tensor) -> None:
        """Put the points of a mask (m,) in the place of those at ``index`` (m,)."""
        into = index[mask]
        self.precoders[into] = points.precoders[mask]
        self.streams[into] = points.streams[mask]
        self.multiplier[into] = points.multiplier[mask]


class NetworkPolicy(JointOracle):
    """Base of designs that heed users of other cells, by one search over F and V.

    Args:
        env: Environment whose scenario the policy is for, with ``radar="learned"``, control
            ``"beamforming"`` and all users served.
        num_starts: Starts a channel. The first is for all users, the others for random subsets of
            each station's users, of K // 2 (1 at least) to K of them.
        refined: Starts that are refined.
        iterations: Iterations of the refinement, after which channels whose objective still
            changes are continued with twice as many, and so on.
        tolerance: Relative change over the last quarter of them at which a problem ends.
        max_iterations: Iterations of the refinement at most, if more than ``iterations``; they cut
            the last round short.
        calibration_channels: Channels on which the price of the expected constraint is found.
        **options: ``constraint``, ``price`` and ``seed`` of
            :class:`~isac_gym.baselines.joint.JointOracle`.

    Raises:
        ValueError: If the scenario has another control mode, a fixed radar or users that contend,
            or an option is not allowed.

    Attributes:
        starts: Users that each start is for, (c, J, K).
    """

    def __init__(
        self,
        env: Any,
        *,
        num_starts: int = 24,
        refined: int = 4,
        iterations: int = 60,
        tolerance: float = 1e-4,
        max_iterations: int = 600,
        calibration_channels: int = 128,
        **options: Any,
    ) -> None:
        num_starts = check_integer("num_starts", num_starts, 1)
        super().__init__(
            env,
            num_starts=num_starts,
            iterations=iterations,
            tolerance=tolerance,
            max_iterations=max_iterations,
            calibration_channels=calibration_channels,
            **options,
        )
        scenario = self.scenario
        if scenario.control != "beamforming":
            raise not_allowed("control", scenario.control, "'beamforming'")
        if scenario.scheduling != "all":
            raise not_allowed("scheduling", scenario.scheduling, "'all'")
        self.starts = choose_subsets(scenario.num_cells, scenario.num_users, num_starts, self.seed)
        self.refined = min(check_integer("refined", refined, 1), num_starts)

    @abstractmethod
    def _pose(self, channels: Tensor) -> NetworkProblem:
        """The problems of channels (b, J, J, K, M), b·G of them in that order."""

    def solve(self, channels: Tensor) -> NetworkDesign:
        """See :meth:`CoordinatedPolicy.solve`."""
        self.system.codec.check_channels(channels)
        parts = [self._design(part) for part in self._split(channels)]
        names = [field.name for field in dataclasses.fields(NetworkDesign)]
        return NetworkDesign(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        )

    def _design_at(self, channels: Tensor, prices: Tensor | None) -> NetworkDesign:
        """See :meth:`JointOracle._design_at`."""
        return self._design_problems(channels, self._pose(channels), prices)

    def _design_problems(
        self, channels: Tensor, problem: NetworkProblem, prices: Tensor | None
    ) -> NetworkDesign:
        """Designs by given problems of the channels."""
        points = self._screen(self._begin(len(channels), problem, prices), prices)
        change = torch.full_like(points.multiplier[:, 0], math.inf)
        part, index = points, torch.arange(len(change), device=change.device)
        done, iterations = 0, self.iterations
        while True:
            search = self._search(part, prices, None, _PENALTY)
            late = -(-iterations // 4)
            search.run(iterations - late)
            before = search.value
            search.run(late)
            # Each problem ends by itself: what becomes of it does not depend on the others.
            moving = change[index] > self.tolerance
            points.put(index, part.move(search), moving)
            latest = (search.value - before).abs() / search.value.abs().clamp_min(1.0)
            change[index] = torch.where(moving, latest, change[index])
            done += iterations
            iterations = min(2 * iterations, self.max_iterations - done)
            left = (change > self.tolerance).view(points.starts.shape).flatten(1).any(1)
            if iterations <= 0 or not bool(left.any()):
                break
            part, index = points.of_channels(left)
        return self._complete_network(channels, points, change, prices)

    def _begin(self, batch: int, problem: NetworkProblem, prices: Tensor | None) -> _Points:
        """Every start for every problem."""
        stations = problem.comm.shape[1]
        count, groups = len(self.starts), self.scenario.num_cells // stations
        device = problem.noise.device
        which = torch.arange(batch * groups, device=device).view(batch, 1, groups)
        problem = problem.select(which.expand(-1, count, -1).flatten())
        served = self.starts.to(problem.noise).unflatten(1, (groups, stations))
        served = served.expand(batch, -1, -1, -1, -1).flatten(0, 2)
        starts = torch.arange(count, device=device)[None, :, None].expand(batch, -1, groups)
        best = self._repeat_best(len(problem) * stations).unflatten(0, (-1, stations))
        precoders, streams = start_search(problem, served, best)
        multiplier = torch.full_like(problem.noise[:, :stations], _MULTIPLIER)
        if prices is not None:
            multiplier = prices.to(multiplier).repeat(batch * count).view(multiplier.shape)
        return _Points(problem, precoders, streams, multiplier, starts)

    def _screen(self, points: _Points, prices: Tensor | None) -> _Points:
        """The starts to refine, found on coarse grids."""
        if points.multiplier.shape[1] > 1:
            for _ in range(_ROUNDS):
                points = self._redesign_separately(points, prices)
        for step_deg, iterations, least, factor in _SCREENING:
            search = self._search(points, prices, step_deg, _SCREENING_PENALTY)
            search.run(iterations)
            value = search.value.view(points.starts.shape)
            wanted = min(max(least, factor * self.refined), value.shape[1])
            points = points.move(search).keep(value.topk(wanted, 1, largest=False).indices)
        return points

    def _redesign_separately(self, points: _Points, prices: Tensor | None) -> _Points:
        """A round of interference pricing, in which every station has a line search of its own."""
        multiplier = points.multiplier
        search = NetworkSearch(
            points.problem.separate(points.precoders, points.streams),
            self._choose_sensing(prices, _SCREENING[0][0]),
            self.scenario.sensing_threshold,
            points.precoders.flatten(0, 1).unsqueeze(1),
            points.streams.flatten(0, 1).unsqueeze(1),
            multiplier.view(-1, 1),
            stations=self.scenario.num_cells,
            penalty=_SCREENING_PENALTY if prices is None else 0.0,
        )
        search.run(_ROUND_ITERATIONS)
        return dataclasses.replace(
            points,
            precoders=search.precoders.view(points.precoders.shape),
            streams=search.streams.view(points.streams.shape),
            multiplier=search.multiplier.view(multiplier.shape),
        )

    def _search(
        self, points: _Points, prices: Tensor | None, step_deg: float | None, penalty: float
    ) -> NetworkSearch:
        return NetworkSearch(
            points.problem,
            self._choose_sensing(prices, step_deg),
            self.scenario.sensing_threshold,
            points.precoders,
            points.streams,
            points.multiplier,
            stations=points.starts.shape[2],
            penalty=penalty if prices is None else 0.0,
        )

    def _complete_network(
        self, channels: Tensor, points: _Points, change: Tensor, prices: Tensor | None
    ) -> NetworkDesign:
        """The best start of each problem, with feasible waveforms and precoders that suit them."""
        scenario = self.scenario
        cells, limit, shape = scenario.num_cells, scenario.sensing_threshold, points.starts.shape
        streams = points.streams
        if prices is None:
            streams = self._make_feasible(streams.flatten(0, 1)).view(streams.shape)
        held = dataclasses.replace(points, streams=streams)
        search = NetworkSearch(
            held.problem,
            self._exact,
            limit,
            held.precoders,
            streams,
            held.multiplier,
            stations=shape[2],
            penalty=0.0,
            hold_streams=True,
        )
        search.run(_LAST_ITERATIONS)
        merit = search.objective if prices is None else search.value
        chosen = merit.view(shape).argmin(1, keepdim=True)
        best = held.move(search).keep(chosen)
        gradient = self._search(best, prices, None, 0.0).measure_gradient()
        size = merit.view(shape).gather(1, chosen).flatten().abs().clamp_min(1.0)

        def by_station(value: Tensor) -> Tensor:
            return value.repeat_interleave(cells // shape[2]).view(-1, cells)

        precoders = best.precoders.reshape(-1, cells, *best.precoders.shape[2:])
        streams = best.streams.reshape(-1, cells, *best.streams.shape[2:])
        loss = self._compute_loss(streams.flatten(0, 1)).view(-1, cells)
        rates, _ = self._pose_network(channels).measure(precoders, streams)
        powers = precoders.abs().square().sum(-2)
        return NetworkDesign(
            precoders=precoders,
            powers=powers,
            streams=streams,
            served=torch.ones_like(powers),
            rate=rates.unflatten(1, (cells, -1)).sum(-1),
            sensing_loss=loss,
            excess=loss / limit - 1.0,
            multiplier=best.multiplier.view(-1, cells),
            change=by_station(change.view(shape).gather(1, chosen).flatten()),
            start=by_station(best.starts.flatten()),
            stationarity=by_station(gradient / size),
        )

    def _pose_network(self, channels: Tensor) -> NetworkProblem:
        """One problem of all stations for each channel."""
        scenario = self.scenario
        radar, comm = channels.split([scenario.num_radar_antennas, scenario.num_comm_antennas], -1)
        noise, budget = scenario.noise_power, scenario.comm_power
        return pose_network(radar, comm, noise, budget, scenario.radar_power)


@register_baseline(
    "joint-network",
    "all stations together, threshold kept on every channel",
    controls=("beamforming",),
    radars=("learned",),
    schedulings=("all",),
    least_cells=2,
    rank=53,
)
@register_baseline(
    "joint-network-expected",
    "all stations together, threshold kept on the mean",
    options={"constraint": "expected"},
    controls=("beamforming",),
    radars=("learned",),
    schedulings=("all",),
    least_cells=2,
    is_default=False,
    rank=54,
)
class JointNetwork(NetworkPolicy):
    """Precoders and waveforms of all stations that maximise the network's spectral efficiency.

    What a controller with the channels of all stations would do; with one cell it is the joint
    optimum of :class:`~isac_gym.baselines.joint.JointOracle`. Arguments and errors are those of
    :class:`NetworkPolicy`.
    """

    bits_per_link: ClassVar[int | None] = None  # it sees the channels of all
    stations_interact: ClassVar[bool] = True

    def _pose(self, channels: Tensor) -> NetworkProblem:
        return self._pose_network(channels)
