"""Joint optimum of precoder and radar waveform: the reference for everything that learns.

For a given waveform, WMMSE finds the precoder; the derivative of its rate by each user's radar
interference then moves the waveform, with the sensing loss as a constraint
(:mod:`isac_gym.solvers.waveform`). The problem has many local optima, which differ in the users
that the radar spares. So one start for each of many subsets of users is followed for a while on a
coarse grid, and the best are refined with the exact loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from isac_gym.baselines.coordinated import CoordinatedDesign, CoordinatedPolicy, Problems
from isac_gym.baselines.prices import check_prices
from isac_gym.channels.process import ChannelProcess
from isac_gym.physics.links import radar_interference
from isac_gym.physics.sensing.coarse import CoarseSensing, Sensing
from isac_gym.registry import register_baseline
from isac_gym.solvers.objectives import LeakageObjective, RateObjective
from isac_gym.solvers.price import Prices, settle_prices
from isac_gym.solvers.waveform import WaveformSearch
from isac_gym.validation import check_choice, check_integer, check_real, not_allowed

__all__ = ["JointConstraint", "JointOracle"]

JointConstraint: TypeAlias = Literal["per_channel", "expected"]

_SCREENING: Final = ((6.0, 8, 8), (6.0, 12, 3), (3.0, 30, 0))
"""Spacing of the grid in degrees, iterations, and starts kept (0: those to refine), by phase."""
_MULTIPLIER = 20.0
_PENALTY = 2000.0
_NULLING_ITERATIONS = 30
_LEAST_LOG_PRICE: Final = -14.0


@register_baseline(
    "communication-only",
    "highest rate of each station, whatever the sensing loss",
    options={"constraint": "expected", "price": 0.0},
    controls=("power", "beamforming"),
    radars=("learned",),
    most_cells=1,
    rank=50,
)
@register_baseline(
    "joint",
    "joint optimum of each station, threshold kept on every channel",
    controls=("power", "beamforming"),
    radars=("learned",),
    rank=51,
)
@register_baseline(
    "joint-expected",
    "joint optimum of each station, threshold kept on the mean",
    options={"constraint": "expected"},
    controls=("power", "beamforming"),
    radars=("learned",),
    most_cells=1,
    rank=52,
)
class JointOracle(CoordinatedPolicy):
    """Precoder and waveform that maximise the spectral efficiency under L_r <= ε.

    Args:
        env: Environment whose scenario the policy is for, with ``radar="learned"`` and control
            ``"beamforming"`` or ``"power"``.
        constraint: ``"per_channel"``: L_r <= ε on every channel. ``"expected"``: the mean of L_r
            over channels equals ε at every station, reached by one price on L_r for all channels.
            The price is found on channels drawn from the environment's channel model when first
            needed.
        price: Price in bit/s/Hz for a relative unit of ε, instead of the one that is found; with
            several cells one a station. 0 leaves the sensing loss out of account.
        num_starts: Starts a channel; None takes all subsets of half of the users or more where
            these are at most 32, and otherwise 32 of them, drawn at random. The first start is for
            all users, from null steering; the second for all users as well. Under contention there
            is one start a user.
        refined: Starts that are refined.
        iterations: Iterations of the refinement, after which channels whose objective still
            changes are continued with twice as many, and so on.
        tolerance: Relative change over the last quarter of them at which a channel ends.
        max_iterations: Iterations of the refinement at most, if more than ``iterations``; they cut
            the last round short.
        calibration_channels: Channels on which the price is found.
        seed: Seed of those channels and of random starts.

    Raises:
        ValueError: If the scenario has another control mode or a fixed radar, or an option is not
            allowed.

    Attributes:
        stations_interact: Whether a station's design depends on the prices of the others.
    """

    stations_interact: ClassVar[bool] = False

    def __init__(
        self,
        env: Any,
        *,
        constraint: JointConstraint = "per_channel",
        price: float | Sequence[float] | None = None,
        num_starts: int | None = None,
        refined: int = 1,
        iterations: int = 40,
        tolerance: float = 3e-4,
        max_iterations: int = 600,
        calibration_channels: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__(env)
        scenario = self.scenario
        self.constraint: JointConstraint = check_choice("constraint", constraint, JointConstraint)
        self._prices: Tensor | None = None
        if price is not None:
            if constraint != "expected":
                raise not_allowed("price", price, "None unless constraint is 'expected'")
            checked = check_prices(price, scenario.num_cells)
            self._prices = torch.tensor(checked, device=self.system.device)
        if num_starts is not None:
            check_integer("num_starts", num_starts, 1)
        self.seed = check_integer("seed", seed, 0)
        contends = scenario.scheduling == "contention"
        self.starts = _choose_subsets(scenario.num_users, num_starts, contends, seed)
        self.refined = min(check_integer("refined", refined, 1), len(self.starts))
        self.iterations = check_integer("iterations", iterations, 1)
        self.tolerance = check_real(
            "tolerance", tolerance, "a number >= 0", lambda value: value >= 0
        )
        self.max_iterations = check_integer("max_iterations", max_iterations, 1)
        self.calibration_channels = check_integer("calibration_channels", calibration_channels, 1)
        self._model = env.unwrapped.channel_model
        # The squared forms of the cross-correlation are fast as they are.
        self._coarse: dict[float, Sensing] = {}
        if scenario.cross_correlation == "grid_abs":
            for step, _, _ in _SCREENING:
                self._coarse[step] = CoarseSensing(
                    self.system.sensing, step, scenario.beam_width_deg
                )

    @property
    def price(self) -> tuple[float, ...]:
        """Price of the expected constraint, in bit/s/Hz for a relative unit of ε, one a station.

        Raises:
            ValueError: Under the per-channel constraint.
        """
        if self.constraint != "expected":
            raise not_allowed("constraint", self.constraint, "'expected' for a price")
        if self._prices is None:
            process = ChannelProcess(self._model, self.scenario, self.calibration_channels)
            process.start(np.random.default_rng((0x0AC1E, self.seed)))
            found = self.find_price(torch.from_numpy(process.estimates))
            self._prices = torch.tensor(found, device=self.system.device)
        return tuple(self._prices.tolist())

    def find_price(self, channels: Tensor, tolerance: float = 2e-3) -> tuple[float, ...]:
        """The price at which the mean sensing loss over channels is ε, one a station.

        Args:
            channels: H, complex (n, J, J, K, M).
            tolerance: How far the mean may stay below ε, relative; it does not exceed it.

        Returns:
            The prices, in bit/s/Hz for a relative unit of ε; 0 if ε is not exceeded without one.

        Raises:
            ValueError: If the channels are not those of the scenario, or no price keeps ε.
        """
        self.system.codec.check_channels(channels)

        def mean(prices: Prices | None, field: str) -> Prices:
            given = None
            if prices is not None:
                given = torch.tensor(prices, dtype=torch.float32, device=self.system.device)
            parts = [getattr(self._design_at(part, given), field) for part in self._split(channels)]
            found: Prices = torch.cat(parts).double().mean(0).cpu().numpy()
            return found

        with torch.inference_mode():
            found = settle_prices(
                lambda prices: mean(prices, "excess"),
                # What ε is worth where it is kept on every channel is a good guess.
                lambda: np.log(np.maximum(mean(None, "multiplier"), 1e-9)),
                self.scenario.num_cells,
                method="coupled" if self.stations_interact else "together",
                tolerance=tolerance,
                least=_LEAST_LOG_PRICE,
                limit=("sensing_threshold", self.scenario.sensing_threshold),
            )
        return tuple(found.tolist())

    def _design(self, channels: Tensor) -> CoordinatedDesign:
        if self.constraint == "per_channel":
            return self._design_at(channels, None)
        _ = self.price  # found when first needed
        return self._design_at(channels, self._prices)

    def _design_at(self, channels: Tensor, prices: Tensor | None) -> CoordinatedDesign:
        """Designs at given prices (J,), or with L_r <= ε enforced."""
        whole, streams, iterate, multiplier = self._screen_starts(channels, prices)
        change = torch.full_like(multiplier, math.inf)
        problems, index = whole, torch.arange(len(multiplier), device=multiplier.device)
        sensing = self._choose_sensing(prices, None)
        done, iterations = 0, self.iterations
        while True:
            objective, search = self._begin_search(
                sensing, problems, streams[index], iterate[index], multiplier[index], prices, 3
            )
            late = -(-iterations // 4)
            search.run(iterations - late)
            before = search.value
            search.run(late)
            streams[index], iterate[index] = search.streams, objective.iterate
            multiplier[index] = search.multiplier
            change[index] = (search.value - before).abs() / search.value.abs().clamp_min(1.0)
            done += iterations
            iterations = min(2 * iterations, self.max_iterations - done)
            moving = (change > self.tolerance).view(whole.starts.shape).flatten(1).any(1)
            if iterations <= 0 or not bool(moving.any()):
                break
            problems, index = whole.of_channels(moving)
        return self._complete(
            whole, streams, iterate, multiplier, change, priced=prices is not None
        )

    def _choose_sensing(self, prices: Tensor | None, step_deg: float | None) -> Sensing | None:
        """The loss on a grid of that spacing, or exact; None where it costs nothing."""
        if prices is not None and not bool(prices.any()):
            return None
        return self._exact if step_deg is None else self._coarse.get(step_deg, self._exact)

    def _screen_starts(
        self, channels: Tensor, prices: Tensor | None
    ) -> tuple[Problems, Tensor, Tensor, Tensor]:
        """The starts to refine, found on coarse grids: problems, V, iterates and multipliers."""
        problems = self._pose_problems(channels)
        count = len(problems.served)
        if prices is None:
            multiplier = torch.full_like(problems.served[:, 0], _MULTIPLIER)
        else:
            multiplier = prices.to(problems.served.dtype).repeat(count // len(prices))
        streams = self._find_starting_streams(problems, multiplier, prices)
        noise = self._compute_noise(problems.radar, streams)
        iterate = problems.downlinks.start(
            "rzf", noise, problems.served.double(), torch.Generator()
        )
        for step_deg, iterations, kept in _SCREENING:
            sensing = self._choose_sensing(prices, step_deg)
            objective, search = self._begin_search(
                sensing, problems, streams, iterate, multiplier, prices
            )
            search.run(iterations)
            value = search.value.view(problems.starts.shape)
            among = value.topk(
                min(max(kept, self.refined), value.shape[1]), 1, largest=False
            ).indices
            index = problems.flat_index(among)
            problems = problems.keep(among)
            streams, iterate = search.streams[index], objective.iterate[index]
            multiplier = search.multiplier[index]
        return problems, streams, iterate, multiplier

    def _find_starting_streams(
        self, problems: Problems, multiplier: Tensor, prices: Tensor | None
    ) -> Tensor:
        """V that spares the users of each start, (n, M_R, r); in the first by null steering.

        Where ε hardly binds, nulls towards all users are the optimum, which a start that has yet to
        find them can miss: it gives a user up who already suffers.
        """
        scenario = self.scenario
        streams = self._avoid_users(problems)
        first = problems.flat_index(torch.zeros_like(problems.starts[:, :1]))
        radar, served = problems.radar[first], problems.served[first]
        offset = torch.full_like(served[:, 0], scenario.noise_power)
        search = WaveformSearch(
            self._choose_sensing(prices, _SCREENING[0][0]),
            scenario.sensing_threshold,
            radar,
            scenario.radar_power,
            LeakageObjective(served, offset, radar_interference(radar, streams[first])),
            streams[first],
            multiplier[first],
            stations=scenario.num_cells,
            penalty=_PENALTY if prices is None else 0.0,
        )
        search.run(_NULLING_ITERATIONS)
        streams[first] = search.streams
        return streams

    def _begin_search(
        self,
        sensing: Sensing | None,
        problems: Problems,
        streams: Tensor,
        iterate: Tensor,
        multiplier: Tensor,
        prices: Tensor | None,
        wmmse_iterations: int = 2,
    ) -> tuple[RateObjective, WaveformSearch]:
        scenario = self.scenario
        objective = RateObjective(
            problems.downlinks, scenario.noise_power, iterate, wmmse_iterations
        )
        search = WaveformSearch(
            sensing,
            scenario.sensing_threshold,
            problems.radar,
            scenario.radar_power,
            objective,
            streams,
            multiplier,
            stations=scenario.num_cells,
            penalty=_PENALTY if prices is None else 0.0,
        )
        return objective, search


def _choose_subsets(users: int, wanted: int | None, contends: bool, seed: int) -> Tensor:
    """Users that each start is for, (c, K)."""
    if contends:
        return torch.eye(users)
    limit = 32 if wanted is None else wanted
    sizes = range(-(-users // 2), users)
    # Everybody twice: the first start is that of null steering.
    chosen = [tuple(range(users))] * min(2, limit)
    if 2 + sum(math.comb(users, size) for size in sizes) <= limit:
        for size in reversed(sizes):
            chosen += itertools.combinations(range(users), size)
    else:
        rng = np.random.default_rng((0x57A27, seed))
        while len(chosen) < limit:
            size = int(rng.choice(sizes))
            subset = tuple(sorted(rng.choice(users, size, replace=False).tolist()))
            if subset not in chosen:
                chosen.append(subset)
    served = torch.zeros(len(chosen), users)
    for row, subset in enumerate(chosen):
        served[row, list(subset)] = 1.0
    return served
