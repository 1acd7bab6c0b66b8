"""Comparing agents: any number of them on one fixed set of channels, with intervals.

An evaluation set is determined by (scenario, channel model, seed, count) and identified by a hash
of its numbers. Every agent sees the same observations, and what it transmits is judged by the
same physics, so differences between agents are differences between agents.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isac_gym.channels import ChannelModel, ChannelProcess, Complex
from isac_gym.codec import checked_action
from isac_gym.files import write_atomically
from isac_gym.policy import Policy, system_of
from isac_gym.scenario import Scenario
from isac_gym.system import ISACSystem

__all__ = [
    "AgentResult",
    "Comparison",
    "EvaluationSet",
    "compare",
    "evaluate",
    "evaluation_set",
]

FEASIBILITY_TOLERANCE = 1e-4
"""Relative excess of a constraint up to which a block counts as feasible."""

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
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels must be an integer >= 1, got {channels!r}")
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


@dataclasses.dataclass(frozen=True)
class AgentResult:
    """What one agent achieves on an evaluation set.

    Attributes:
        name: Name of the agent.
        spectral_efficiency: Mean over blocks, in bit/s/Hz, summed over users (and cells).
        confidence_low: Lower end of the 95 % interval of that mean.
        confidence_high: Upper end.
        percent_of_reference: Mean relative to that of the best reference, in percent; NaN without
            references.
        sensing_loss_mean: Mean L_r over blocks and stations.
        sensing_loss_p95: 95th percentile of L_r.
        feasible_share: Share of blocks in which every constraint holds to a relative 1e-4.
        mean_cost: Mean of ``cost`` over blocks.
        seconds_single: Median time of ``predict`` for one observation, in s.
        seconds_batched: Time of ``predict`` for the whole set, divided by its blocks, in s.
        sum_rates: Spectral efficiency of each block, (E, T), in bit/s/Hz.
        sensing_losses: L_r of each block and station, (E, T, J).
        beampattern: Mean beampattern over blocks, (J, L), in W.
    """

    name: str
    spectral_efficiency: float
    confidence_low: float
    confidence_high: float
    percent_of_reference: float
    sensing_loss_mean: float
    sensing_loss_p95: float
    feasible_share: float
    mean_cost: float
    seconds_single: float
    seconds_batched: float
    sum_rates: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    sensing_losses: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    beampattern: npt.NDArray[np.float64] = dataclasses.field(repr=False)

    def row(self) -> dict[str, Any]:
        """The scalar entries by name."""
        arrays = {"sum_rates", "sensing_losses", "beampattern"}
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in arrays
        }


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
    spent = 0.0
    for first in range(0, episodes, _CHUNK):
        part = slice(first, min(first + _CHUNK, episodes))
        state: Any = None
        for block in range(length):
            estimates = blocks.estimates[part, block]
            observation = system.codec.observation(estimates)
            started = np.full(len(observation), block == 0)
            begin = time.perf_counter()
            action, state = agent.predict(
                observation, state=state, episode_start=started, deterministic=deterministic
            )
            spent += time.perf_counter() - begin
            outcome = _judge(system, blocks.channels[part, block], estimates, action, name)
            sums[part, block] = outcome.sum_rate.cpu().numpy()
            losses[part, block] = outcome.sensing.total.cpu().numpy()
            costs[part, block] = sum(value.cpu().numpy() for value in outcome.costs.values())
            worst = torch.stack([value.amax(-1) for value in outcome.constraints.values()]).amax(0)
            feasible[part, block] = (worst <= FEASIBILITY_TOLERANCE).cpu().numpy()
            pattern += outcome.sensing.beampattern.sum(0).double().cpu().numpy()
    low, high = _mean_interval(sums.mean(1))
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
        seconds_single=_single_latency(agent, system, blocks, deterministic),
        seconds_batched=spent / blocks.count,
        sum_rates=sums,
        sensing_losses=losses,
        beampattern=pattern / blocks.count,
    )


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


def _single_latency(
    agent: Policy, system: ISACSystem, blocks: EvaluationSet, deterministic: bool
) -> float:
    """Median time of ``predict`` for one observation, over at most 50 calls or one second."""
    times: list[float] = []
    start = time.perf_counter()
    for index in range(50):
        episode = index % len(blocks.estimates)
        observation = system.codec.observation(blocks.estimates[episode : episode + 1, 0])[0]
        begin = time.perf_counter()
        agent.predict(observation, deterministic=deterministic)
        times.append(time.perf_counter() - begin)
        if time.perf_counter() - start > 1.0:
            break
    return float(np.median(times))


def _mean_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % Student interval of the mean of independent values; infinite for a single one."""
    from scipy import stats

    if len(values) < 2:
        return -math.inf, math.inf
    error = stats.sem(values)
    if error == 0.0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of several agents on one evaluation set.

    Attributes:
        results: One result an agent, in the order given.
        references: Names of the agents that count as references.
        settings: Scenario, seed, hash, versions and threads, as plain JSON types.
    """

    results: tuple[AgentResult, ...]
    references: tuple[str, ...]
    settings: dict[str, Any]

    def __getitem__(self, name: str) -> AgentResult:
        """The result of an agent.

        Raises:
            KeyError: If there is none of that name.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no result for {name!r}; there are {[r.name for r in self.results]}")

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        Console(file=buffer, width=132, no_color=True).print(self.__rich__())
        return buffer.getvalue()

    def __rich__(self) -> Any:
        """The table, for rich."""
        from rich.table import Table

        scenario = self.settings["scenario"]
        table = Table(
            title=f"{self.settings['channels']} channels, seed {self.settings['seed']}, "
            f"set {self.settings['evaluation_set']}; ε = {scenario['sensing_threshold']:g}",
            caption="95 % intervals of the mean; * reference; feasible: every constraint holds to "
            f"{FEASIBILITY_TOLERANCE:g} on the channel",
        )
        table.add_column("agent")
        for heading in (
            "bit/s/Hz",
            "95 % interval",
            "% of best ref.",
            "L_r mean",
            "L_r p95",
            "feasible",
            "µs, one",
            "µs, batch",
        ):
            table.add_column(heading, justify="right")
        for result in self.results:
            table.add_row(
                result.name + (" *" if result.name in self.references else ""),
                f"{result.spectral_efficiency:.3f}",
                f"{result.confidence_low:.3f} … {result.confidence_high:.3f}",
                f"{result.percent_of_reference:.1f}",
                f"{result.sensing_loss_mean:.4f}",
                f"{result.sensing_loss_p95:.4f}",
                f"{100 * result.feasible_share:.1f} %",
                f"{1e6 * result.seconds_single:.0f}",
                f"{1e6 * result.seconds_batched:.1f}",
            )
        return table

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(record=True, file=io.StringIO(), width=132)
        console.print(self.__rich__())
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def to_csv(self, path: str | Path) -> None:
        """Write the scalar entries, a row an agent; the file appears whole or not at all."""
        buffer = io.StringIO()
        rows = [result.row() for result in self.results]
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, buffer.getvalue().encode())

    def to_json(self, path: str | Path) -> None:
        """Write settings and scalar entries; the file appears whole or not at all."""
        content = {
            "settings": self.settings,
            "references": list(self.references),
            "results": [
                {key: _finite(value) for key, value in result.row().items()}
                for result in self.results
            ],
        }
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


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
    best = max(
        (result.spectral_efficiency for result in results if result.name in chosen),
        default=float("nan"),
    )
    return Comparison(
        results=tuple(
            dataclasses.replace(
                result, percent_of_reference=100.0 * result.spectral_efficiency / best
            )
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


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
