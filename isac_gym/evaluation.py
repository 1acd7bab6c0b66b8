"""Comparing agents: any number of them on one fixed set of channels, with intervals.

An evaluation set is determined by (scenario, channel model, seed, count) and identified by a hash
of its numbers. Every agent sees the same observations, and what it transmits is judged by the
same physics, so differences between agents are differences between agents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isac_gym.channels import ChannelModel, ChannelProcess, Complex
from isac_gym.codec import checked_action
from isac_gym.policy import Policy
from isac_gym.results import FEASIBILITY_TOLERANCE, AgentResult, Comparison, mean_interval
from isac_gym.scenario import Scenario
from isac_gym.system import ISACSystem, system_of
from isac_gym.validation import integer

__all__ = [
    "AgentError",
    "AgentResult",
    "Comparison",
    "EvaluationSet",
    "compare",
    "evaluate",
    "evaluation_set",
]

REFERENCE_TOLERANCE = 5e-3
"""Relative excess of a constraint's mean up to which an agent counts as a feasible reference."""

_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Channels that agents are compared on.

    Attributes:
        channels: True channels, complex64 (E, T, J, J, K, M): E episodes of T blocks; T is 1
            unless the channel model is correlated in time.
        estimates: What agents observe, same shape.
        seed: Seed of the set.
        digest: Hash of channels and estimates.
    """

    channels: Complex
    estimates: Complex
    seed: int
    digest: str

    @property
    def count(self) -> int:
        """Blocks in the set."""
        episodes, length = self.channels.shape[:2]
        return int(episodes * length)


def evaluation_set(
    scenario: Scenario, model: ChannelModel, channels: int, seed: int
) -> EvaluationSet:
    """Draw an evaluation set.

    Args:
        scenario: Dimensions, gains, quality of the estimates and length of episodes.
        model: How channels are drawn.
        channels: Number of blocks; rounded up to whole episodes if they are correlated in time.
        seed: Seed.

    Returns:
        The set, the same for the same arguments.

    Raises:
        ValueError: If ``channels`` is less than 1.
    """
    channels = integer("channels", channels, 1)
    rng = np.random.default_rng(seed)
    length = scenario.episode_length if model.is_time_correlated else 1
    process = ChannelProcess(model, scenario, math.ceil(channels / length))
    blocks, estimates = [], []
    for block in range(length):
        if block == 0:
            process.start(rng)
        else:
            process.advance(rng)
        blocks.append(process.channels)
        estimates.append(process.estimates)
    true, seen = np.stack(blocks, 1), np.stack(estimates, 1)
    digest = hashlib.sha256(np.ascontiguousarray(true).tobytes())
    digest.update(np.ascontiguousarray(seen).tobytes())
    return EvaluationSet(true, seen, seed, digest.hexdigest()[:16])


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
        AgentError: If the agent's ``predict`` raises.
        TypeError: If the agent has no ``predict``, or its actions hold no real numbers.
        ValueError: If an action has the wrong shape, is not finite or outside [-1, 1]; the
            message names the agent.
    """
    if not isinstance(agent, Policy):
        raise TypeError(f"agent {name!r} must have predict(observation, …), got {agent!r}")
    system = system_of(env)
    episodes, length = blocks.channels.shape[:2]
    sums = np.empty((episodes, length))
    losses = np.empty((episodes, length, system.scenario.num_cells))
    costs = np.empty((episodes, length))
    feasible = np.empty((episodes, length), np.bool_)
    pattern = np.zeros((system.scenario.num_cells, len(system.sensing.grid_deg)))
    excess: Any = 0.0
    calls: list[tuple[float, int]] = []
    for first in range(0, episodes, _CHUNK):
        part = slice(first, min(first + _CHUNK, episodes))
        state: Any = None
        for block in range(length):
            estimates = blocks.estimates[part, block]
            observation = system.codec.observation(estimates)
            started = np.full(len(observation), block == 0)
            begin = time.perf_counter()
            action, state = _predict(agent, name, observation, state, started, deterministic)
            calls.append((time.perf_counter() - begin, len(observation)))
            outcome = _judge(system, blocks.channels[part, block], estimates, action, name)
            sums[part, block] = outcome.sum_rate.cpu().numpy()
            losses[part, block] = outcome.sensing.total.cpu().numpy()
            costs[part, block] = sum(value.cpu().numpy() for value in outcome.costs.values())
            constraints = torch.cat(list(outcome.constraints.values()), dim=-1)
            feasible[part, block] = (constraints.amax(-1) <= FEASIBILITY_TOLERANCE).cpu().numpy()
            excess += constraints.sum(0).double().cpu().numpy()
            pattern += outcome.sensing.beampattern.sum(0).double().cpu().numpy()
    low, high = mean_interval(sums.mean(1))
    return AgentResult(
        name=name,
        spectral_efficiency=float(sums.mean()),
        confidence_low=low,
        confidence_high=high,
        percent_of_reference=float("nan"),
        sensing_loss_mean=float(losses.mean()),
        sensing_loss_p95=float(np.quantile(losses, 0.95)),
        feasible_share=float(feasible.mean()),
        mean_cost=float(costs.mean()),
        worst_mean_constraint=float(np.max(excess)) / blocks.count,
        seconds_single=_latency(agent, system, blocks.estimates[:1, 0], deterministic, single=True),
        seconds_batched=_batched_latency(agent, system, blocks, deterministic, calls),
        sum_rates=sums,
        sensing_losses=losses,
        beampattern=pattern / blocks.count,
    )


class AgentError(RuntimeError):
    """An agent failed in ``predict``; the cause is the agent's own exception."""


def _predict(
    agent: Policy,
    name: str,
    observation: npt.NDArray[np.float32],
    state: Any,
    started: npt.NDArray[np.bool_],
    deterministic: bool,
) -> tuple[Any, Any]:
    try:
        return agent.predict(
            observation, state=state, episode_start=started, deterministic=deterministic
        )
    except Exception as error:
        raise AgentError(f"agent {name!r} failed in predict: {error!r}") from error


def _judge(
    system: ISACSystem, channels: Complex, estimates: Complex, action: Any, name: str
) -> Any:
    try:
        checked = checked_action(action, (len(channels), system.codec.action_size))
    except (TypeError, ValueError) as error:
        raise type(error)(f"agent {name!r}: {error}") from error
    device = system.device
    with torch.inference_mode():
        return system.step(
            torch.from_numpy(channels).to(device),
            torch.from_numpy(checked).to(device),
            torch.from_numpy(estimates).to(device),
        )


def _latency(
    agent: Policy,
    system: ISACSystem,
    estimates: Complex,
    deterministic: bool,
    single: bool = False,
) -> float:
    """Median time of ``predict`` an observation, over at most 30 calls or one second.

    Taken after the evaluation: the first call also pays for what torch sets up at first use.
    """
    observation = system.codec.observation(estimates)
    started = None if single else np.ones(len(observation), np.bool_)
    asked = observation[0] if single else observation
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 30 and (not times or time.perf_counter() - start < 1.0):
        begin = time.perf_counter()
        agent.predict(asked, episode_start=started, deterministic=deterministic)
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) / len(observation)


def _batched_latency(
    agent: Policy,
    system: ISACSystem,
    blocks: EvaluationSet,
    deterministic: bool,
    calls: list[tuple[float, int]],
) -> float:
    """As :func:`_latency` for a batch; a slow agent's calls in the evaluation are not repeated.

    Of those, the first is left out: it may hold what is done once.
    """
    repeated = calls[1:]
    if repeated and np.median([seconds for seconds, _ in repeated]) > 1.0:
        return float(np.median([seconds / count for seconds, count in repeated]))
    return _latency(agent, system, blocks.estimates[:_CHUNK, 0], deterministic)


def compare(
    agents: Mapping[str, Policy],
    env: Any,
    *,
    channels: int = 2000,
    seed: int = 7,
    references: Sequence[str] = (),
    deterministic: bool = True,
    callback: Callable[[AgentResult], None] | None = None,
) -> Comparison:
    """Compare agents on one fixed set of channels.

    Args:
        agents: Agents by name; each has ``predict``.
        env: Environment, single, batched or wrapped, whose scenario and channel model are used.
        channels: Number of blocks.
        seed: Seed of the evaluation set.
        references: Names of agents that count as references; the others are stated in percent of
            the best of them. Empty means the agents that are not trained: those of
            :mod:`isac_gym.baselines`.
        deterministic: Passed on to ``predict``.
        callback: Called with the result of each agent as it comes.

    Returns:
        The comparison.

    Raises:
        ValueError: If there are no agents, a reference is none of them, or an action is invalid.
        TypeError: If an agent has no ``predict``.
    """
    if not agents:
        raise ValueError("agents must hold at least one agent, got none")
    unknown = sorted(set(references) - set(agents))
    if unknown:
        raise ValueError(f"references must be among the agents {list(agents)}, got {unknown}")
    system = system_of(env)
    model = env.unwrapped.channel_model
    blocks = evaluation_set(system.scenario, model, channels, seed)
    results = []
    for name, agent in agents.items():
        result = evaluate(agent, env, blocks, name=name, deterministic=deterministic)
        results.append(result)
        if callback is not None:
            callback(result)
    chosen = tuple(references) or tuple(
        name
        for name, agent in agents.items()
        if type(agent).__module__.startswith("isac_gym.baselines")
    )
    # One that violates a constraint on the mean is a reference only if all of them do.
    held = [result for result in results if result.name in chosen]
    feasible = [result for result in held if result.worst_mean_constraint <= REFERENCE_TOLERANCE]
    best = max((result.spectral_efficiency for result in feasible or held), default=0.0)
    scale = 100.0 / best if best > 0.0 else float("nan")
    return Comparison(
        results=tuple(
            dataclasses.replace(result, percent_of_reference=scale * result.spectral_efficiency)
            for result in results
        ),
        references=chosen,
        settings={
            "scenario": system.scenario.to_dict(),
            "channel_model": repr(model),
            "channels": blocks.count,
            "seed": seed,
            "evaluation_set": blocks.digest,
            "deterministic": deterministic,
            "torch_threads": torch.get_num_threads(),
            "device": str(system.device),
            "python": platform.python_version(),
            "versions": {
                package: _version(package)
                for package in ("isac-gym", "torch", "numpy", "gymnasium")
            },
        },
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
