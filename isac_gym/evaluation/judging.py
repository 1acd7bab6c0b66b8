"""Evaluating one agent on a set of channels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from isac_gym.evaluation.calling import (
    AgentError,
    AgentTypeError,
    act_on_blocks,
    ask_agent,
    check_answer,
    read_integer,
    read_real,
    read_truth,
)
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.statistics import mean_interval
from isac_gym.policy import Policy
from isac_gym.system.downlink import find_system
from isac_gym.system.simulation import Simulation
from isac_gym.system.stations import Exchange

__all__ = ["FEASIBILITY_TOLERANCE", "AgentError", "AgentResult", "ConstraintResult", "evaluate"]

FEASIBILITY_TOLERANCE: Final = 1e-4
"""Relative excess of a constraint up to which a block counts as feasible."""
_CHUNK: Final = 1024
_PART: Final = 64
"""Observations that are timed again where a whole batch would take long."""


@dataclasses.dataclass(frozen=True)
class ConstraintResult:
    """What a constraint bounds, on an evaluation set.

    Attributes:
        values: The quantity in each block at each station, (E, T, J), in the constraint's unit.
        feasible_share: Share of blocks in which the constraint holds to a relative 1e-4.
    """

    values: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    feasible_share: float

    @property
    def mean(self) -> float:
        """Mean over blocks and stations."""
        return float(self.values.mean())

    @property
    def worst_mean(self) -> float:
        """Mean over blocks at the station where it is largest."""
        return float(self.values.mean((0, 1)).max())

    @property
    def p95(self) -> float:
        """95th percentile over blocks and stations."""
        return float(np.quantile(self.values, 0.95))


@dataclasses.dataclass(frozen=True)
class AgentResult:
    """What one agent achieves on an evaluation set.

    Attributes:
        name: Name of the agent.
        is_reference: Whether others are stated in percent of it.
        spectral_efficiency: Mean over blocks, in bit/s/Hz, summed over users (and cells).
        confidence_low: Lower end of the 95 % interval of that mean.
        confidence_high: Upper end.
        percent_of_reference: Mean relative to that of the best reference, in percent; NaN without
            references.
        constraints: What each constraint of the system bounds, by its name.
        feasible_share: Share of blocks in which every constraint holds to a relative 1e-4.
        mean_cost: Mean of ``cost`` over blocks.
        worst_mean_constraint: Mean over blocks of the signed constraint for which it is largest
            (over constraints and stations); feasible on the mean where <= 0.
        seconds_single: Median time of ``predict`` for one observation, in s.
        bits_per_link: Bits that each station told each other in a block, on the mean: those that
            the agent's ``exchange`` has counted, a real number as 32, or what the agent says of
            itself if it has none; None if it does not say so, as one that sees the channels of all.
        seconds_batched: Median time of ``predict`` for a batch of up to 1024 observations, divided
            by their number, in s.
        channels_seen: Blocks that the agent says it was trained on; None if it does not.
        training_seconds: Time that it says its training took, in s; None if it does not.
        sum_rates: Spectral efficiency of each block, (E, T), in bit/s/Hz.
        beampattern: Mean beampattern over blocks, (J, L), in W.
    """

    name: str
    is_reference: bool
    spectral_efficiency: float
    confidence_low: float
    confidence_high: float
    percent_of_reference: float
    constraints: Mapping[str, ConstraintResult]
    feasible_share: float
    mean_cost: float
    worst_mean_constraint: float
    seconds_single: float
    seconds_batched: float
    bits_per_link: float | None
    channels_seen: int | None
    training_seconds: float | None
    sum_rates: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    beampattern: npt.NDArray[np.float64] = dataclasses.field(repr=False)

    def row(self) -> dict[str, Any]:
        """The scalar entries by name, with mean, p95, worst and feasible share of constraints."""
        left_out = {"constraints", "sum_rates", "beampattern"}
        names = (field.name for field in dataclasses.fields(self))
        row = {name: getattr(self, name) for name in names if name not in left_out}
        for name, found in self.constraints.items():
            row |= {f"{name}_mean": found.mean, f"{name}_p95": found.p95}
            row[f"{name}_worst"] = found.worst_mean
            row[f"{name}_feasible"] = found.feasible_share
        return row


def evaluate(
    agent: Policy,
    env: Any,
    blocks: EvaluationSet,
    *,
    name: str = "agent",
    deterministic: bool = True,
) -> AgentResult:
    """Evaluate one agent.

    Args:
        agent: Any object with ``predict``.
        env: Environment whose scenario the set was drawn for.
        blocks: The evaluation set.
        name: Name for the result.
        deterministic: Passed on to ``predict``.

    Returns:
        The result, with ``percent_of_reference`` NaN.

    Raises:
        AgentError: If the agent's ``predict`` raises, for a batch or for a single observation, or
            does not return an action and a state; if an attribute that the result states is not
            what it may be. The message names the agent.
        TypeError: If the agent has no ``predict``, or its actions hold no real numbers; an
            AgentError as well.
        ValueError: If an action has the wrong shape, is not finite or outside [-1, 1]; an
            AgentError as well.
    """
    if not callable(getattr(agent, "predict", None)):
        raise AgentTypeError(f"agent {name!r} must have predict(observation, …), got {agent!r}")
    system = find_system(env)
    episodes, length = blocks.channels.shape[:2]
    parts = [slice(first, min(first + _CHUNK, episodes)) for first in range(0, episodes, _CHUNK)]
    simulation = Simulation(system, env.unwrapped.channel_model, episodes)
    rates, costs = np.empty((2, episodes, length))
    values = {n: np.empty((episodes, length, system.scenario.num_cells)) for n in system.limits}
    holds = {n: np.empty((episodes, length), np.bool_) for n in system.limits}
    pattern = np.zeros((system.scenario.num_cells, len(system.sensing.grid_deg)))
    excess: Any = 0.0
    moved = 0
    calls: list[tuple[float, int]] = []
    for part in parts:
        state: Any = None
        for block in range(length):
            simulation.hold(blocks.channels[part, block], blocks.estimates[part, block])
            exchange, before = _read_exchange(agent)
            outcome, state, seconds = act_on_blocks(
                agent,
                simulation,
                name,
                state=state,
                is_first=block == 0,
                deterministic=deterministic,
            )
            calls.append((seconds, len(simulation.channels)))
            current, after = _read_exchange(agent)
            moved += after - before if current is exchange else after
            rates[part, block] = outcome.sum_rate.cpu().numpy()
            costs[part, block] = sum(value.cpu().numpy() for value in outcome.costs.values())
            for key, signed in outcome.constraints.items():
                quantity = system.constraints[key].quantity(outcome, system)
                values[key][part, block] = quantity.cpu().numpy()
                holds[key][part, block] = (signed.amax(-1) <= FEASIBILITY_TOLERANCE).cpu().numpy()
            constraints = torch.cat(list(outcome.constraints.values()), dim=-1)
            excess += constraints.sum(0).double().cpu().numpy()
            pattern += outcome.sensing.beampattern.sum(0).double().cpu().numpy()
    low, high = mean_interval(rates.mean(1))
    first = system.codec.observation(blocks.estimates[:_CHUNK, 0])
    return AgentResult(
        name=name,
        is_reference=read_truth(agent, "is_reference", name),
        spectral_efficiency=float(rates.mean()),
        confidence_low=low,
        confidence_high=high,
        percent_of_reference=float("nan"),
        constraints={
            key: ConstraintResult(values[key], float(holds[key].mean())) for key in values
        },
        feasible_share=float(np.all(list(holds.values()), axis=0).mean()),
        mean_cost=float(costs.mean()),
        worst_mean_constraint=float(np.max(excess)) / blocks.count,
        seconds_single=_measure_latency(
            agent, first[0], deterministic, name, system.codec.action_size
        ),
        seconds_batched=_measure_batch(
            agent, first, deterministic, calls, name, system.codec.action_size
        ),
        bits_per_link=_state_bits(agent, moved, blocks.count, name),
        channels_seen=read_integer(
            agent,
            "channels_seen" if hasattr(agent, "channels_seen") else "num_timesteps",
            name,
        ),
        training_seconds=read_real(agent, "training_seconds", name),
        sum_rates=rates,
        beampattern=pattern / blocks.count,
    )


def _read_exchange(agent: Policy) -> tuple[Exchange | None, int]:
    """What moves an agent's messages, if it has such a thing, and all bits that this has moved."""
    exchange = getattr(agent, "exchange", None)
    if not isinstance(exchange, Exchange):
        return None, 0
    return exchange, int(exchange.counts.sum())


def _state_bits(agent: Policy, moved: int, count: int, name: str) -> float | None:
    """Bits on each link in a block, of those moved in all blocks; else what the agent says."""
    exchange, _ = _read_exchange(agent)
    if exchange is None or exchange.num_cells == 1:
        return read_real(agent, "bits_per_link", name)
    links = exchange.num_cells * (exchange.num_cells - 1)
    whole, rest = divmod(moved, links * count)
    return moved / (links * count) if rest else whole


def _measure_latency(
    agent: Policy,
    observation: npt.NDArray[np.float32],
    deterministic: bool,
    name: str,
    size: int,
) -> float:
    """Median time of ``predict``, over at most 30 calls or one second.

    What it returns must be ``size`` numbers for each observation.

    Taken after the evaluation: the first call also pays for what torch sets up at first use.
    """
    single = observation.ndim == 1
    started = None if single else np.ones(len(observation), np.bool_)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 30 and (not times or time.perf_counter() - start < 1.0):
        begin = time.perf_counter()
        action, _ = ask_agent(
            agent, observation, name, single, episode_start=started, deterministic=deterministic
        )
        times.append(time.perf_counter() - begin)
        if len(times) == 1:
            check_answer(action, (*observation.shape[:-1], size), name, single)
    return float(np.median(times))


def _measure_batch(
    agent: Policy,
    observation: npt.NDArray[np.float32],
    deterministic: bool,
    calls: list[tuple[float, int]],
    name: str,
    size: int,
) -> float:
    """Time an observation of a batch; a slow agent's calls in the evaluation are not repeated.

    Of those, the first is left out: it may hold what is done once. If it was the only one, a part
    of the batch is timed.
    """
    repeated = calls[1:]
    if repeated and np.median([seconds for seconds, _ in repeated]) > 1.0:
        return float(np.median([seconds / count for seconds, count in repeated]))
    if not repeated and calls[0][0] > 1.0:
        observation = observation[:_PART]
    return _measure_latency(agent, observation, deterministic, name, size) / len(observation)
