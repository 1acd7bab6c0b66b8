"""Spectral efficiency against the sensing threshold: what coordination is worth.

On one set of channels, for a range of thresholds ε: the joint optimum with ε kept on every channel
and on the mean, null steering, and a certified upper bound; beside them the two corners, the best
beampattern whatever the users receive and the highest rate whatever the sensing loss, and the rate
without any radar.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isac_gym.baselines import WMMSE, JointOracle, NullSteering, joint_upper_bound, wmmse
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.judging import evaluate
from isac_gym.evaluation.statistics import mean_interval
from isac_gym.evaluation.table import Column, Row, Table
from isac_gym.experiments.base import Experiment, Point, Workspace, setting
from isac_gym.experiments.style import make_figure, style_axes
from isac_gym.registry import register_experiment
from isac_gym.solvers.wmmse import scalar_wmmse

__all__ = ["FACTORS", "TradeOff"]

FACTORS: Final = (1.0, 1.03, 1.06, 1.12, 1.21, 1.3, 1.41, 1.6, 1.8, 2.0)
"""Default thresholds, in units of the smallest sensing loss that can be attained."""

BOUND: Final = "upper bound"
JOINT: Final = "joint, ε on every channel"
MEAN: Final = "joint, ε on the mean"
NULLING: Final = "null steering"
DECOUPLED: Final = "decoupled"
CORNER: Final = "communication only"
SILENT: Final = "without radar"

_STYLES: Final = {
    BOUND: ("0.35", "--", ""),
    MEAN: ("tab:green", "-", "s"),
    JOINT: ("tab:blue", "-", "o"),
    NULLING: ("tab:orange", "-", "^"),
}


@register_experiment("tradeoff", "rate against the sensing threshold: references, corners, bound")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TradeOff(Experiment):
    """Designs at a range of thresholds; the scenario's own is replaced.

    A row holds ``design``, ``threshold`` (ε that the design was given; None for the corners),
    ``spectral_efficiency`` (mean over channels, in bit/s/Hz) with ``confidence_low`` and
    ``confidence_high`` (its 95 % interval), ``sensing_loss`` (mean L_r), ``worst_excess`` (largest
    L_r/ε - 1 over channels and stations, where ε is kept on each), ``channels``, and ``seconds``
    for a channel.

    Attributes:
        thresholds: Values of ε; None means :data:`FACTORS` times the largest floor of a station.
        channels: Channels in the evaluation set.
        bound_channels: How many of them the upper bound is computed for: None means all, 0 leaves
            it out.
        subdivisions: Refinement of the bound; see :func:`~isac_gym.baselines.joint_upper_bound`.
        evaluation_seed: Seed of the evaluation set.
    """

    thresholds: Sequence[float] | None = setting(
        None,
        "Value of the sensing threshold (repeatable).",
        minimum=0.0,
        option="--threshold",
        only_selects=True,
    )
    channels: int = setting(200, "Channels in the evaluation set.", minimum=1)
    bound_channels: int | None = setting(
        None, "Channels of the upper bound; all by default, 0 leaves it out.", minimum=0
    )
    subdivisions: int = setting(10, "Refinement of the upper bound.", minimum=0)
    evaluation_seed: int = setting(7, "Seed of the evaluation set.", minimum=0)

    @functools.cached_property
    def limits(self) -> list[float]:
        """The thresholds, all different.

        Raises:
            ValueError: If there are none.
        """
        if self.thresholds is None:
            floor = max(self.scenario.sensing_floor())
            # Above the floor by more than the rounding of single precision.
            return [floor * max(factor, 1.0005) for factor in FACTORS]
        if not len(self.thresholds):
            raise ValueError("thresholds must hold at least one value, got none")
        return list(dict.fromkeys(map(float, self.thresholds)))

    @functools.cached_property
    def env(self) -> Any:
        """An environment with one of the thresholds: the scenario's own need not be attainable."""
        return self.make_env(sensing_threshold=self.limits[-1])

    @functools.cached_property
    def _blocks(self) -> EvaluationSet:
        return self.draw_channels(self.env, self.channels, self.evaluation_seed)

    def points(self) -> list[Point]:
        """Every design at every threshold, then the corners.

        Raises:
            ValueError: If a threshold cannot be attained.
        """
        for limit in self.limits:
            self.make_env(sensing_threshold=limit)
        swept = (
            (JOINT, MEAN, NULLING) if self.bound_channels == 0 else (BOUND, JOINT, MEAN, NULLING)
        )
        return [
            *({"design": design, "threshold": limit} for limit in self.limits for design in swept),
            *({"design": design, "threshold": None} for design in (DECOUPLED, CORNER, SILENT)),
        ]

    def run(self, point: Point, workspace: Workspace) -> Row:
        """One design at one threshold."""
        design, limit = point["design"], point["threshold"]
        env = self.env if limit is None else self.make_env(sensing_threshold=limit)
        true, seen = (
            torch.from_numpy(part.reshape(-1, *part.shape[2:]))
            for part in (self._blocks.channels, self._blocks.estimates)
        )
        start = time.perf_counter()
        if design == BOUND:
            bounded = true if self.bound_channels is None else true[: self.bound_channels]
            found = joint_upper_bound(env, bounded, subdivisions=self.subdivisions)
            return _summarise(found.upper_bound.sum(-1), start)
        if design == SILENT:
            return _summarise(_silence_radar(env, true), start)
        if design == JOINT:
            agent: Any = JointOracle(env)
        elif design == MEAN:
            searching = JointOracle(env, constraint="expected")
            price = searching.find_price(seen, tolerance=5e-4)
            agent = JointOracle(env, constraint="expected", price=price)
        elif design == NULLING:
            agent = NullSteering(env)
        elif design == DECOUPLED:
            agent = WMMSE(env)
        else:
            agent = JointOracle(env, constraint="expected", price=0.0)
        result = evaluate(agent, env, self._blocks, name=design)
        losses = result.constraints["sensing"]
        is_kept = design in (JOINT, NULLING)
        return {
            "spectral_efficiency": result.spectral_efficiency,
            "confidence_low": result.confidence_low,
            "confidence_high": result.confidence_high,
            "sensing_loss": losses.mean,
            "worst_excess": float(losses.values.max()) / limit - 1.0 if is_kept else None,
            "channels": self._blocks.count,
            "seconds": result.seconds_batched,
        }

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """The table, with the number of channels where it is another."""
        count = self._blocks.count
        settings = {**self.settings(), "channels": count, "evaluation_set": self._blocks.digest}

        def show_design(row: Row) -> str:
            some = "" if row["channels"] == count else f" ({row['channels']})"
            return f"{row['design']}{some}"

        return Table(
            title=f"{count} channels, seed {self.evaluation_seed}, set {self._blocks.digest}",
            rows=tuple(rows),
            settings={**settings, "floors": list(self.scenario.sensing_floor())},
            columns=[
                Column("design", show_design, "left"),
                Column("ε", "{threshold:.4f}"),
                Column("bit/s/Hz", "{spectral_efficiency:.3f}"),
                Column("95 % interval", "{confidence_low:.3f} … {confidence_high:.3f}"),
                Column("L_r mean", "{sensing_loss:.4f}"),
                Column("excess", "{worst_excess:.1e}"),
                Column("ms a channel", lambda row: f"{1e3 * row['seconds']:.1f}"),
            ],
            caption="95 % intervals of the mean; excess: largest L_r/ε - 1 over the channels",
        )

    def draw(self, table: Table) -> Figure:
        """Spectral efficiency against the sensing loss, with both corners and the bound."""
        scenario, rows = self.scenario, table.rows
        figure, axes = make_figure(8.0, 5.6)
        ends = [row["threshold"] for row in rows if row["threshold"] is not None]
        left, right = min(ends), max(ends)
        (decoupled,), (corner,), (silent,) = (
            [row for row in rows if row["design"] == design]
            for design in (DECOUPLED, CORNER, SILENT)
        )
        axes.axhline(silent["spectral_efficiency"], color="0.6", lw=1, ls=":")
        axes.annotate(
            f"without radar {silent['spectral_efficiency']:.2f}",
            (left, silent["spectral_efficiency"]),
            xytext=(0, 4),
            textcoords="offset points",
            color="0.4",
        )
        for design in _STYLES:
            found = [row for row in rows if row["design"] == design]
            if found:
                _draw_curve(axes, sorted(found, key=lambda row: row["threshold"]), table)
        # It does not use what ε allows: the same waveform for every threshold.
        axes.plot(
            [left, right],
            [decoupled["spectral_efficiency"]] * 2,
            color="tab:red",
            label="decoupled: best beampattern, WMMSE",
        )
        for row, text in ((decoupled, "best beampattern"), (corner, "highest rate")):
            place = (row["sensing_loss"], row["spectral_efficiency"])
            axes.plot(*place, "*", color="black", ms=12, zorder=5, clip_on=False)
            axes.annotate(
                f"{text}\nL_r {place[0]:.3f}, {place[1]:.2f}",
                place,
                xytext=(8, -26),
                textcoords="offset points",
                fontsize="small",
            )
        axes.axvspan(axes.get_xlim()[0], max(scenario.sensing_floor()), color="0.93", lw=0)
        axes.set(
            title=f"Spectral efficiency and sensing (K = {scenario.num_users}, "
            f"M_C = {scenario.num_comm_antennas}, M_R = {scenario.num_radar_antennas}, "
            f"SNR {scenario.snr_db:g} dB; {table.settings['channels']} channels)",
            xlabel="sensing threshold ε (grey: below the floor of the sensing loss)",
            ylabel="spectral efficiency (bit/s/Hz)",
        )
        style_axes(axes, fontsize="small", loc="lower right")
        return figure


def _draw_curve(axes: Axes, rows: Sequence[Row], table: Table) -> None:
    design, channels = rows[0]["design"], rows[0]["channels"]
    colour, line, marker = _STYLES[design]
    label = f"{design}, ε on every channel" if design == BOUND else str(design)
    if channels != table.settings["channels"]:
        label += f" (first {channels} channels)"
    x = [row["threshold"] for row in rows]
    y, low, high = (
        np.array([row[name] for row in rows])
        for name in ("spectral_efficiency", "confidence_low", "confidence_high")
    )
    axes.plot(x, y, line, color=colour, label=label)
    if marker:
        error = np.array([y - low, high - y])
        axes.errorbar(x, y, yerr=error, fmt=marker, color=colour, ms=5, capsize=2, lw=1)


def _summarise(rates: torch.Tensor, start: float) -> Row:
    """Row of rates that are no agent's; their loss means nothing."""
    values = rates.cpu().numpy()
    low, high = mean_interval(values)
    return {
        "spectral_efficiency": float(values.mean()),
        "confidence_low": low,
        "confidence_high": high,
        "sensing_loss": None,
        "worst_excess": None,
        "channels": len(values),
        "seconds": (time.perf_counter() - start) / len(values),
    }


def _silence_radar(env: Any, channels: torch.Tensor) -> torch.Tensor:
    """Sum rates of WMMSE for noise alone, each cell by itself, with the true channels."""
    system = env.unwrapped.system
    scenario = system.scenario
    _, comm = system.codec.split_own_channels(channels)
    noise, power = scenario.noise_power, scenario.comm_power
    if scenario.scheduling == "contention":
        strongest = comm.abs().square().sum(-1).amax(-1)
        return torch.log2(1.0 + power * strongest / noise).sum(-1)
    if scenario.control == "power":
        gains = (comm @ system.codec.directions(channels)).abs().square()
        return scalar_wmmse(gains, noise, power, num_starts=8).rate.sum(-1)
    return wmmse(comm, noise, power, num_starts=8).rate.sum(-1)
