"""One agent at many operating points: SNR, thresholds, and sizes that it was not trained for."""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from isac_gym.agents.loading import digest_file, load_agent
from isac_gym.baselines import JointOracle
from isac_gym.evaluation.judging import evaluate
from isac_gym.evaluation.table import Row, Table
from isac_gym.experiments.base import Experiment, Point, Workspace, setting
from isac_gym.experiments.style import make_figure, style_axes
from isac_gym.registry import register_experiment

__all__ = ["OperatingPoints", "OverConditions", "OverSizes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatingPoints(Experiment):
    """A saved agent against the joint optimum under the constraint on the mean.

    The optimum's price is found on the evaluation channels themselves, so that its mean sensing
    loss is ε there; the agent's is not, and its own mean is stated.

    Attributes:
        agent: Saved agent, or ``pretrained:NAME``.
        channels: Channels at every point, the same for all.
        evaluation_seed: Their seed.
    """

    agent: str = setting("pretrained:wide", "Saved agent or pretrained:NAME.")
    channels: int = setting(256, "Channels at every point.", minimum=1)
    evaluation_seed: int = setting(7, "Their seed.", minimum=0)

    @abstractmethod
    def change_scenario(self, point: Point) -> dict[str, Any]:
        """Fields of the scenario that are others at a point."""

    def settings(self) -> dict[str, Any]:
        """All that the results depend on, the agent's file among it."""
        return {**super().settings(), "file_digest": digest_file(self.agent)}

    def run(self, point: Point, workspace: Workspace) -> Row:
        """Agent and optimum at a point."""
        env = self.make_env(**self.change_scenario(point))
        blocks = self.draw_channels(env, self.channels, self.evaluation_seed)
        learned = evaluate(load_agent(self.agent, env), env, blocks, name="agent")
        searching = JointOracle(env, constraint="expected")
        price = searching.find_price(torch.from_numpy(blocks.estimates[:, 0]))
        oracle = JointOracle(env, constraint="expected", price=price)
        best = evaluate(oracle, env, blocks, name="joint-expected")
        return {
            "bit/s/Hz": learned.spectral_efficiency,
            "mean L_r": learned.constraints["sensing"].mean,
            "optimum": best.spectral_efficiency,
            "optimum's L_r": best.constraints["sensing"].mean,
            "% of optimum": 100.0 * learned.spectral_efficiency / best.spectral_efficiency,
        }


@register_experiment("conditions", "one agent over SNR and thresholds, against the joint optimum")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OverConditions(OperatingPoints):
    """Over SNR and thresholds, which replace the scenario's.

    Attributes:
        snr_db: Values of the SNR, in dB.
        thresholds: Values of ε.
    """

    snr_db: tuple[float, ...] = setting(
        (0.0, 5.0, 10.0, 15.0, 20.0),
        "Value of the SNR in dB (repeatable).",
        option="--snr-db",
        only_selects=True,
    )
    thresholds: tuple[float, ...] = setting(
        (0.105, 0.11, 0.12, 0.14, 0.16, 0.18),
        "Value of the sensing threshold (repeatable).",
        minimum=0.0,
        option="--threshold",
        only_selects=True,
    )

    @functools.cached_property
    def env(self) -> Any:
        """An environment at one of the points: the scenario's threshold need not be attainable."""
        return self.make_env(sensing_threshold=max(self.thresholds))

    def points(self) -> list[Point]:
        """All pairs."""
        return [{"SNR, dB": snr, "ε": limit} for snr in self.snr_db for limit in self.thresholds]

    def change_scenario(self, point: Point) -> dict[str, Any]:
        """SNR and threshold."""
        return {"snr_db": point["SNR, dB"], "sensing_threshold": point["ε"]}

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row a pair."""
        title = (
            f"{self.agent} against the joint optimum (mean constraint), {self.channels} channels"
        )
        return Table(title, tuple(rows), self.settings())

    def draw(self, table: Table) -> Figure:
        """Spectral efficiency against the threshold, one curve an SNR: agent and optimum."""
        figure, axes = make_figure(8.0, 5.2)
        by_snr: dict[float, list[Row]] = {}
        for row in table.rows:
            by_snr.setdefault(row["SNR, dB"], []).append(row)
        for number, (snr, rows) in enumerate(sorted(by_snr.items(), reverse=True)):
            colour = f"C{number}"
            axes.plot(
                [row["ε"] for row in rows],
                [row["optimum"] for row in rows],
                "-",
                color=colour,
                label=f"{snr:g} dB, joint optimum",
            )
            least = min(row["% of optimum"] for row in rows)
            axes.plot(
                [row["mean L_r"] for row in rows],
                [row["bit/s/Hz"] for row in rows],
                "o",
                color=colour,
                ms=5,
                label=f"{snr:g} dB, agent ({least:.1f} % or more)",
            )
        axes.set(
            title=f"One agent over SNR and threshold ({self.channels} channels a point)",
            xlabel="mean sensing loss (optimum: ε)",
            ylabel="spectral efficiency (bit/s/Hz)",
        )
        style_axes(axes, fontsize="small", ncols=2, loc="upper left")
        axes.set_ylim(top=1.35 * axes.get_ylim()[1])
        return figure


@register_experiment("sizes", "one agent at other numbers of users and antennas, not retrained")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OverSizes(OperatingPoints):
    """Over numbers of users and antennas; the agent's price is settled anew, its weights stay.

    Where M changes the least sensing loss does too: ε keeps its ratio to it.

    Attributes:
        users: Values of K, with the scenario's M.
        antennas: Values of M = M_C = M_R, with the scenario's K.
    """

    users: tuple[int, ...] = setting(
        (3, 4, 5, 6, 8),
        "Number of users (repeatable).",
        minimum=1,
        option="--users",
        only_selects=True,
    )
    antennas: tuple[int, ...] = setting(
        (8, 12, 16),
        "Number of antennas of either kind (repeatable).",
        minimum=1,
        option="--antennas",
        only_selects=True,
    )

    def points(self) -> list[Point]:
        """Other numbers of users, then other numbers of antennas."""
        scenario = self.scenario
        own = scenario.num_comm_antennas
        ratio = scenario.sensing_threshold / max(scenario.sensing_floor())
        limit = scenario.sensing_threshold
        points: list[Point] = [{"K": count, "M": own, "ε": limit} for count in self.users]
        for count in self.antennas:
            if count not in (own, scenario.num_radar_antennas):
                sized = scenario.replace(
                    num_comm_antennas=count, num_radar_antennas=count, sensing_threshold=1e3
                )
                limit = ratio * max(sized.sensing_floor())
                points.append({"K": scenario.num_users, "M": count, "ε": limit})
        return points

    def change_scenario(self, point: Point) -> dict[str, Any]:
        """Users and threshold, and both numbers of antennas where they are others."""
        changes = {"num_users": point["K"], "sensing_threshold": point["ε"]}
        if point["M"] != self.scenario.num_comm_antennas:
            changes |= {"num_comm_antennas": point["M"], "num_radar_antennas": point["M"]}
        return changes

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row a size."""
        title = f"{self.agent} at other sizes, without retraining, {self.channels} channels"
        return Table(title, tuple(rows), self.settings())
