"""Joint optimum of precoder and radar waveform: the reference for everything that learns.

For a given waveform, WMMSE finds the precoder; the derivative of its rate by each user's radar
interference then moves the waveform, with the sensing loss as a constraint
(:mod:`isac_gym.physics.waveform`). The problem has many local optima, which differ in the users
that the radar spares. So one start for each of many subsets of users is followed for a while on a
coarse grid, and the best are refined with the exact loss.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from isac_gym.baselines.coordinated import CoordinatedDesign, CoordinatedPolicy, Problems
from isac_gym.baselines.objectives import LeakageObjective, RateObjective
from isac_gym.channels import ChannelProcess
from isac_gym.physics.links import radar_interference
from isac_gym.physics.waveform import CoarseSensing, Sensing, WaveformSearch
from isac_gym.validation import choice, integer, not_allowed, real

__all__ = ["JointConstraint", "JointOracle"]

JointConstraint: TypeAlias = Literal["per_channel", "expected"]

_SCREENING: Final = ((6.0, 8, 8), (6.0, 12, 3), (3.0, 30, 0))
"""Spacing of the grid in degrees, iterations, and starts kept (0: those to refine), by phase."""
_MULTIPLIER = 20.0
_PENALTY = 2000.0
_NULLING_ITERATIONS = 30
_PRICE_STEP = 0.05
_LOG_PRICES: Final = (-14.0, 9.0)


class JointOracle(CoordinatedPolicy):
    """Precoder and waveform that maximise the spectral efficiency under L_r <= ε.

    Args:
        env: As in :class:`CoordinatedPolicy`.
        constraint: ``"per_channel"``: L_r <= ε on every channel. ``"expected"``: the mean of L_r
            over channels equals ε, reached by one price on L_r for all channels. The price is found
            on channels drawn from the environment's channel model when first needed.
        price: Price in bit/s/Hz for a relative unit of ε, instead of the one that is found; 0
            leaves the sensing loss out of account.
        num_starts: Starts a channel; None takes all subsets of half of the users or more where
            these are at most 32, and otherwise 32 of them, drawn at random. The first start is for
            all users, from null steering; the second for all users as well.
        refined: Starts that are refined.
        iterations: Iterations of the refinement.
        calibration_channels: Channels on which the price is found.
        seed: Seed of those channels and of random starts.

    Raises:
        ValueError: If the scenario has another control mode or a fixed radar, or an option is not
            allowed.
    """

    def __init__(
        self,
        env: Any,
        *,
        constraint: JointConstraint = "per_channel",
        price: float | None = None,
        num_starts: int | None = None,
        refined: int = 1,
        iterations: int = 40,
        calibration_channels: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__(env)
        scenario = self.scenario
        self.constraint: JointConstraint = choice("constraint", constraint, JointConstraint)
        if price is not None:
            if constraint != "expected":
                raise not_allowed("price", price, "None unless constraint is 'expected'")
            real("price", price, "None or a finite number >= 0", lambda value: value >= 0)
        self._price = price
        if num_starts is not None:
            integer("num_starts", num_starts, 1)
        self.seed = integer("seed", seed, 0)
        contends = scenario.scheduling == "contention"
        self.starts = _subsets(scenario.num_users, num_starts, contends, seed)
        self.refined = min(integer("refined", refined, 1), len(self.starts))
        self.iterations = integer("iterations", iterations, 1)
        self.calibration_channels = integer("calibration_channels", calibration_channels, 1)
        self._model = env.unwrapped.channel_model
        # The squared forms of the cross-correlation are fast as they are.
        self._coarse: dict[float, Sensing] = {}
        if scenario.cross_correlation == "grid_abs":
            for step, _, _ in _SCREENING:
                self._coarse[step] = CoarseSensing(
                    self.system.sensing, step, scenario.beam_width_deg
                )

    @property
    def price(self) -> float:
        """Price of the expected constraint, in bit/s/Hz for a relative unit of ε.

        Raises:
            ValueError: Under the per-channel constraint.
        """
        if self.constraint != "expected":
            raise not_allowed("constraint", self.constraint, "'expected' for a price")
        if self._price is None:
            process = ChannelProcess(self._model, self.scenario, self.calibration_channels)
            process.start(np.random.default_rng((0x0AC1E, self.seed)))
            self._price = self.find_price(torch.from_numpy(process.estimates))
        return self._price

    def find_price(self, channels: Tensor, tolerance: float = 2e-3) -> float:
        """The price at which the mean sensing loss over channels and stations equals ε.

        Args:
            channels: H, complex (n, J, J, K, M).
            tolerance: Relative deviation of the mean that is accepted.

        Returns:
            The price, in bit/s/Hz for a relative unit of ε; 0 if ε is not exceeded without one.
        """
        from scipy.optimize import brentq

        def designs(price: float | None) -> list[CoordinatedDesign]:
            return [self._designed(part, price) for part in self._chunks(channels)]

        seen: dict[float, float] = {}

        def excess(log_price: float) -> float:
            if log_price not in seen:
                found = torch.cat([part.excess for part in designs(math.exp(log_price))])
                seen[log_price] = float(found.mean())
            # Zero ends the search for a root.
            return 0.0 if abs(seen[log_price]) <= tolerance else seen[log_price]

        with torch.inference_mode():
            free = torch.cat([part.excess for part in designs(0.0)])
            if float(free.mean()) <= tolerance:
                return 0.0
            # What ε is worth on average where it is kept on every channel is a good guess.
            worth = float(torch.cat([part.multiplier for part in designs(None)]).mean())
            low = high = min(max(math.log(max(worth, 1e-300)), _LOG_PRICES[0]), _LOG_PRICES[1])
            step = _PRICE_STEP
            while excess(high) > 0.0 and high < _LOG_PRICES[1]:
                low, high, step = high, high + step, 2.0 * step
            while excess(low) < 0.0 and low > _LOG_PRICES[0]:
                low, high, step = low - step, low, 2.0 * step
            if excess(low) > 0.0 > excess(high):
                high = brentq(excess, low, high, xtol=1e-3)
            elif excess(low) == 0.0:
                high = low
            return math.exp(high)

    def _design(self, channels: Tensor) -> CoordinatedDesign:
        return self._designed(channels, self.price if self.constraint == "expected" else None)

    def _designed(self, channels: Tensor, price: float | None) -> CoordinatedDesign:
        candidates = self._narrowed(channels, price)
        late = self.iterations // 4
        candidates.search.run(self.iterations - late)
        before = candidates.search.value
        candidates.search.run(late)
        after = candidates.search.value
        return self._completed(
            candidates.problems,
            candidates.search.streams,
            candidates.objective.iterate,
            price,
            candidates.search.multiplier,
            (after - before).abs() / after.abs().clamp_min(1e-12),
        )

    def _narrowed(self, channels: Tensor, price: float | None) -> _Candidates:
        """The starts to refine, found on coarse grids, with their exact search begun."""
        problems = self._problems(channels)
        first = _MULTIPLIER if price is None else price
        multiplier = torch.full_like(problems.served[:, 0], first)
        streams = self._starting_streams(problems, multiplier, price)
        noise = self._noise(problems.radar, streams)
        iterate = problems.link.start("rzf", noise, problems.served.double(), torch.Generator())
        for step_deg, iterations, kept in _SCREENING:
            sensing = None if price == 0.0 else self._coarse.get(step_deg, self._exact)
            phase = self._begin(sensing, problems, streams, iterate, multiplier, price)
            phase.search.run(iterations)
            value = phase.search.value.view(problems.starts.shape)
            count = min(max(kept, self.refined), value.shape[1])
            among = value.topk(count, 1, largest=False).indices
            index = problems.flat_index(among)
            problems = problems.keep(among)
            streams, iterate = phase.search.streams[index], phase.objective.iterate[index]
            multiplier = phase.search.multiplier[index]
        sensing = None if price == 0.0 else self._exact
        return self._begin(sensing, problems, streams, iterate, multiplier, price, 3)

    def _starting_streams(
        self, problems: Problems, multiplier: Tensor, price: float | None
    ) -> Tensor:
        """V that spares the users of each start, (n, M_R, r); in the first by null steering.

        Where ε hardly binds, nulls towards all users are the optimum, which a start that has yet to
        find them can miss: it gives a user up who already suffers.
        """
        scenario = self.scenario
        streams = self._avoiding(problems)
        first = problems.flat_index(torch.zeros_like(problems.starts[:, :1]))
        radar, served = problems.radar[first], problems.served[first]
        offset = torch.full_like(served[:, 0], scenario.noise_power)
        search = WaveformSearch(
            None if price == 0.0 else self._coarse.get(_SCREENING[0][0], self._exact),
            scenario.sensing_threshold,
            radar,
            scenario.radar_power,
            LeakageObjective(served, offset, radar_interference(radar, streams[first])),
            streams[first],
            multiplier[first],
            stations=scenario.num_cells,
            penalty=_PENALTY if price is None else 0.0,
        )
        search.run(_NULLING_ITERATIONS)
        streams[first] = search.streams
        return streams

    def _begin(
        self,
        sensing: Sensing | None,
        problems: Problems,
        streams: Tensor,
        iterate: Tensor,
        multiplier: Tensor,
        price: float | None,
        wmmse_iterations: int = 2,
    ) -> _Candidates:
        scenario = self.scenario
        objective = RateObjective(problems.link, scenario.noise_power, iterate, wmmse_iterations)
        search = WaveformSearch(
            sensing,
            scenario.sensing_threshold,
            problems.radar,
            scenario.radar_power,
            objective,
            streams,
            multiplier,
            stations=scenario.num_cells,
            penalty=_PENALTY if price is None else 0.0,
        )
        return _Candidates(problems, objective, search)


class _Candidates(NamedTuple):
    """Problems, and the search that is under way for them."""

    problems: Problems
    objective: RateObjective
    search: WaveformSearch


def _subsets(users: int, wanted: int | None, contends: bool, seed: int) -> Tensor:
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
