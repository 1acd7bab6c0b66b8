"""Results of a comparison: the table, and the files that it is kept in."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isac_gym.files import write_atomically

__all__ = ["FEASIBILITY_TOLERANCE", "AgentResult", "Comparison", "finite_or_none", "mean_interval"]

FEASIBILITY_TOLERANCE = 1e-4
"""Relative excess of a constraint up to which a block counts as feasible."""


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
        worst_mean_constraint: Mean over blocks of the signed constraint for which it is largest
            (over constraints and stations); feasible on the mean where <= 0.
        seconds_single: Median time of ``predict`` for one observation, in s.
        seconds_batched: Median time of ``predict`` for a batch of up to 1024 observations, divided
            by their number, in s.
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
    worst_mean_constraint: float
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
                {key: finite_or_none(value) for key, value in result.row().items()}
                for result in self.results
            ],
        }
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def finite_or_none(value: Any) -> Any:
    """The value, or None if it is a float that is NaN or infinite, for which JSON has no token."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % Student interval of the mean of independent values; infinite for a single one."""
    from scipy import stats

    if len(values) < 2:
        return -math.inf, math.inf
    error = stats.sem(values)
    if error == 0.0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    return float(low), float(high)
