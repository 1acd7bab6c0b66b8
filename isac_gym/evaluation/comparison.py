"""Comparing agents on one set of channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from isac_gym.evaluation.calling import AgentError, join_failures
from isac_gym.evaluation.channel_set import evaluation_set
from isac_gym.evaluation.judging import FEASIBILITY_TOLERANCE, AgentResult, evaluate
from isac_gym.evaluation.provenance import provenance
from isac_gym.evaluation.table import Column, Row, Table
from isac_gym.policy import Policy
from isac_gym.system.downlink import ISACSystem, find_system
from isac_gym.validation import check_flag

__all__ = ["Comparison", "compare", "tabulate_comparison"]

_CAPTION_OF_STATIONS: Final = (
    "; rates of all stations together; worst: mean at the station where it is largest; bits/link: "
    "what each station told each other in a block, a real number as 32 bits, – where all is known"
)
REFERENCE_TOLERANCE: Final = 5e-3
"""Relative excess of a constraint's mean up to which an agent counts as a feasible reference."""


@dataclasses.dataclass(frozen=True)
class Comparison(Table):
    """Results of several agents on one evaluation set: a table, a row an agent.

    Attributes:
        results: One result an agent, in the order given.
    """

    results: tuple[AgentResult, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the agents that count as references."""
        return tuple(result.name for result in self.results if result.is_reference)

    def __getitem__(self, name: str) -> AgentResult:
        """The result of an agent.

        Raises:
            KeyError: If there is none of that name.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no result for {name!r}; there are {[r.name for r in self.results]}")


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
            the best of them. Empty means the agents that say ``is_reference`` of themselves, as
            those of :mod:`isac_gym.baselines` do.
        deterministic: Passed on to ``predict``.
        callback: Called with the result of each agent as it comes.

    Returns:
        The comparison.

    Raises:
        AgentError: If an agent fails in ``predict``, has none, or returns what is no action; see
            :func:`~isac_gym.evaluation.evaluate`. It is raised once the other agents have been
            judged, names all that failed, and has their comparison as ``results``.
        ValueError: If there are no agents, or a reference is none of them.
        TypeError: If the environment is none of the package's.
    """
    if not agents:
        raise ValueError("agents must hold at least one agent, got none")
    unknown = sorted(set(references) - set(agents))
    if unknown:
        raise ValueError(f"references must be among the agents {list(agents)}, got {unknown}")
    deterministic = check_flag("deterministic", deterministic)
    system = find_system(env)
    blocks = evaluation_set(system.scenario, env.unwrapped.channel_model, channels, seed)
    results: list[AgentResult] = []
    failures: dict[str, AgentError] = {}
    for name, agent in agents.items():
        try:
            result = evaluate(agent, env, blocks, name=name, deterministic=deterministic)
        except AgentError as error:
            failures[name] = error
            continue
        if references:
            result = dataclasses.replace(result, is_reference=name in references)
        results.append(result)
        if callback is not None:
            callback(result)
    if not results:
        raise join_failures(failures, None)
    settings = {
        **provenance(env),
        "channels": blocks.count,
        "evaluation_seed": blocks.seed,
        "evaluation_set": blocks.digest,
        "deterministic": deterministic,
    }
    table = tabulate_comparison([result.row() for result in results], system, settings)
    stated = tuple(
        dataclasses.replace(result, percent_of_reference=row["percent_of_reference"])
        for result, row in zip(results, table.rows, strict=True)
    )
    comparison = Comparison(**vars(table), results=stated)
    if failures:
        raise join_failures(failures, comparison)
    return comparison


def tabulate_comparison(
    rows: Sequence[Row], system: ISACSystem, settings: Mapping[str, Any]
) -> Table:
    """The table of a comparison.

    Args:
        rows: What :meth:`AgentResult.row` gives for each agent.
        system: The system that they were compared on.
        settings: Settings of the table, with ``channels``, ``evaluation_seed`` and
            ``evaluation_set``.

    Returns:
        The table, with ``percent_of_reference`` filled in.
    """
    # One that violates a constraint on the mean is a reference only if all of them do.
    held = [row for row in rows if row["is_reference"]]
    feasible = [row for row in held if row["worst_mean_constraint"] <= REFERENCE_TOLERANCE]
    best = max((row["spectral_efficiency"] for row in feasible or held), default=0.0)
    scale = 100.0 / best if best > 0.0 else float("nan")
    shown = [c for c in system.constraints.values() if c.can_be_exceeded(system.scenario)]
    is_several = system.scenario.num_cells > 1
    statistics = ("mean", "worst", "p95") if is_several else ("mean", "p95")
    limits = "".join(f"; {c.symbol} ≤ {system.limits[c.name]:g}" for c in shown)
    return Table(
        title=f"{settings['channels']} channels, seed {settings['evaluation_seed']}, "
        f"set {settings['evaluation_set']}{limits}",
        rows=tuple(
            {**row, "percent_of_reference": scale * row["spectral_efficiency"]} for row in rows
        ),
        settings=settings,
        columns=[
            Column("agent", lambda row: row["name"] + " *" * row["is_reference"], "left"),
            Column("bit/s/Hz", "{spectral_efficiency:.3f}"),
            Column("95 % interval", "{confidence_low:.3f} … {confidence_high:.3f}"),
            Column("% of best ref.", "{percent_of_reference:.1f}"),
            *(
                Column(f"{c.symbol} {what}", f"{{{c.name}_{what}:.4f}}")
                for c in shown
                for what in statistics
            ),
            Column("feasible", lambda row: f"{100 * row['feasible_share']:.1f} %"),
            *([Column("bits/link", _show_bits)] if is_several else []),
            *(
                [Column("channels seen", _show_channels), Column("training", _show_training)]
                if any(row["channels_seen"] is not None for row in rows)
                else []
            ),
            Column("µs, one", lambda row: f"{1e6 * row['seconds_single']:.0f}"),
            Column("µs, batch", lambda row: f"{1e6 * row['seconds_batched']:.1f}"),
        ],
        caption="95 % intervals of the mean; * reference; feasible: every constraint holds to "
        f"{FEASIBILITY_TOLERANCE:g} on the channel" + is_several * _CAPTION_OF_STATIONS,
    )


def _show_channels(row: Row) -> str:
    seen = row["channels_seen"]
    return "–" if seen is None else f"{seen:,}"


def _show_training(row: Row) -> str:
    seconds = row["training_seconds"]
    return "–" if seconds is None else f"{seconds:.0f} s"


def _show_bits(row: Row) -> str:
    bits = row["bits_per_link"]
    return "–" if bits is None else f"{bits:g}"
