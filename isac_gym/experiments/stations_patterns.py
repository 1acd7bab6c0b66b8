"""Where stations send their radar power: mean beampatterns beside the desired ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isac_gym.agents.loading import PreparedAgent, digest_file, prepare_agent
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.table import Column, Row, Table
from isac_gym.experiments.base import Point, Workspace, setting
from isac_gym.experiments.by_station import OfStations, judge_stations
from isac_gym.experiments.style import make_figure, make_palette, style_axes
from isac_gym.registry import register_experiment

__all__ = ["StationsPatterns"]


@register_experiment(
    "stations-patterns", "mean beampattern of each station, beside the desired one"
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StationsPatterns(OfStations):
    """Beampatterns of agents that need no training or are saved, station by station.

    Stated is L_r1, the mean squared distance from the desired pattern over all directions, in W²,
    its mean and its 95th percentile over channels.

    Attributes:
        agents: The agents, as for :func:`~isac_gym.agents.loading.prepare_agent`.
        channels: Channels.
        evaluation_seed: Their seed.
    """

    agents: tuple[str, ...] = setting(
        ("pretrained:distributed", "joint"),
        "Agent: a name of `isac-gym agents` that needs no training, module:Class, a saved file, "
        "CLASS@FILE, or pretrained:NAME (repeatable).",
        option="--agent",
        only_selects=True,
    )
    channels: int = setting(500, "Channels.", minimum=1)
    evaluation_seed: int = setting(7, "Their seed.", minimum=0)

    @functools.cached_property
    def _prepared(self) -> dict[str, PreparedAgent]:
        return {name: prepare_agent(name, self.env) for name in self.agents}

    @functools.cached_property
    def _blocks(self) -> EvaluationSet:
        return self.draw_channels(self.env, self.channels, self.evaluation_seed)

    def points(self) -> list[Point]:
        """The agents.

        Raises:
            FileNotFoundError: If there is no file of an agent.
            ValueError: If there is one station, no such agent, or one has to be trained.
        """
        self.check_stations()
        points: list[Point] = []
        for name, prepared in self._prepared.items():
            prepared.require_trained()
            digest = digest_file(name)
            points.append({"agent": name, **({} if digest is None else {"file_digest": digest})})
        return points

    def run(self, point: Point, workspace: Workspace) -> Row:
        """Judge an agent."""
        name = point["agent"]
        found = judge_stations(self._prepared[name].agent, self.env, self._blocks, name=name)
        return {
            "rates": found.rates.mean((0, 1)).tolist(),
            "errors": found.errors.mean((0, 1)).tolist(),
            "errors_p95": np.quantile(found.errors, 0.95, (0, 1)).tolist(),
            "losses": found.losses.mean((0, 1)).tolist(),
            "beampattern": found.beampattern.tolist(),
        }

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row an agent and station, with its mean beampattern in W."""
        made = [
            {
                "agent": row["agent"],
                "station": station,
                "rate": row["rates"][station],
                "error_mean": row["errors"][station],
                "error_p95": row["errors_p95"][station],
                "sensing_mean": row["losses"][station],
                "beampattern": row["beampattern"][station],
            }
            for row in rows
            for station in range(self.scenario.num_cells)
        ]
        return Table(
            f"Beampatterns of {self.scenario.num_cells} stations; {self._blocks.count} channels, "
            f"seed {self.evaluation_seed}, set {self._blocks.digest}; "
            f"L_r ≤ {self.scenario.sensing_threshold:g}",
            tuple(made),
            {**self.settings(), "evaluation_set": self._blocks.digest},
            columns=[
                Column("agent", "{agent}", "left"),
                Column("station", "{station}"),
                Column("MSE, W²", "{error_mean:.5f}"),
                Column("MSE p95", "{error_p95:.5f}"),
                Column("mean L_r", "{sensing_mean:.4f}"),
                Column("bit/s/Hz", "{rate:.3f}"),
            ],
            caption="MSE: L_r1, mean squared distance of the beampattern from the desired one over "
            "directions; mean and 95th percentile over channels",
        )

    def draw(self, table: Table) -> Figure:
        """Mean beampatterns, a picture for each station, beside the desired one."""
        scenario = self.scenario
        cells = scenario.num_cells
        figure, made = make_figure(5.2 * cells, 5.2, columns=cells)
        every = list(np.atleast_1d(made))
        for station, axes in enumerate(every):
            rows = [row for row in table.rows if row["station"] == station]
            self._draw_station(axes, station, rows)
            style_axes(
                axes, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1
            )
        top = max(axes.get_ylim()[1] for axes in every)
        for axes in every:
            axes.set_ylim(top=top)
        figure.suptitle(
            f"Mean beampatterns; K = {scenario.num_users}, M_C = {scenario.num_comm_antennas}, "
            f"M_R = {scenario.num_radar_antennas}, SNR {scenario.snr_db:g} dB, "
            f"β = {scenario.intercell_gain:g}, ε = {scenario.sensing_threshold:g}; "
            f"{self._blocks.count} channels, seed {self.evaluation_seed}",
            fontsize="medium",
        )
        return figure

    def _draw_station(self, axes: Axes, station: int, rows: Sequence[Row]) -> None:
        sensing: Any = self.env.unwrapped.system.sensing
        grid = sensing.grid_deg.numpy()
        desired = sensing.desired.cpu().numpy().reshape(-1, len(grid))
        wanted = desired[min(station, len(desired) - 1)]
        if isinstance(sensing.pattern_scale, float):
            wanted = wanted * sensing.pattern_scale
        axes.fill_between(grid, wanted, step="mid", color="0.85", lw=0, label="desired")
        palette = make_palette()
        for number, row in enumerate(rows):
            mean, p95 = row["error_mean"], row["error_p95"]
            short = row["agent"].rpartition("/")[2]
            label = f"{short}: MSE {mean:.4f} W² (95th percentile {p95:.4f})"
            colour = palette[number % len(palette)]
            axes.plot(grid, row["beampattern"], color=colour, lw=1.4, label=label)
        angles = ", ".join(f"{angle:g}°" for angle in self.scenario.targets_by_cell[station])
        axes.set(
            title=f"station {station}: targets at {angles}",
            xlabel="direction (degrees)",
            ylabel="power (W)",
            xlim=(-90, 90),
        )
        axes.set_xticks(np.arange(-90, 91, 30))
