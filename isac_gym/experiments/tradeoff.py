"""Spectral efficiency against the sensing threshold: what coordination is worth.

On one set of channels, for a range of thresholds ε: the joint optimum with ε kept on every channel
and on the mean, null steering, and a certified upper bound; beside them the two corners, the best
beampattern whatever the users receive and the highest rate whatever the sensing loss, and the rate
without any radar.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure

from isac_gym import __version__
from isac_gym.baselines import WMMSE, JointOracle, NullSteering, joint_upper_bound, wmmse
from isac_gym.baselines.wmmse import scalar_wmmse
from isac_gym.channels import ChannelModel
from isac_gym.codec import own_channels
from isac_gym.evaluation import EvaluationSet, evaluate, evaluation_set
from isac_gym.results import finite_or_none, mean_interval
from isac_gym.scenario import Scenario
from isac_gym.system import system_of
from isac_gym.validation import integer

__all__ = ["TradeOff", "TradeOffPoint", "run_tradeoff", "tradeoff_figure"]

FACTORS = (1.0, 1.03, 1.06, 1.12, 1.21, 1.3, 1.41, 1.6, 1.8, 2.0)
"""Default thresholds, in units of the smallest sensing loss that can be attained."""

_STYLES = {
    "upper bound": ("0.35", "--", ""),
    "joint, ε on the mean": ("tab:green", "-", "s"),
    "joint, ε on every channel": ("tab:blue", "-", "o"),
    "null steering": ("tab:orange", "-", "^"),
    "decoupled": ("tab:red", "-", ""),
}


@dataclasses.dataclass(frozen=True)
class TradeOffPoint:
    """A design at a threshold.

    Attributes:
        design: Name of the design.
        threshold: ε that it was given; NaN for the corners.
        spectral_efficiency: Mean over channels, in bit/s/Hz.
        confidence_low: Lower end of the 95 % interval of that mean.
        confidence_high: Upper end.
        sensing_loss: Mean L_r; NaN for the bound.
        worst_excess: Largest L_r/ε - 1 over channels and stations; NaN where ε is not kept on each.
        channels: Number of channels.
        seconds: Time for a channel, in s.
    """

    design: str
    threshold: float
    spectral_efficiency: float
    confidence_low: float
    confidence_high: float
    sensing_loss: float
    worst_excess: float
    channels: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class TradeOff:
    """All points, with what they were computed from.

    Attributes:
        points: The points.
        without_radar: Mean spectral efficiency of WMMSE if the radar is off, in bit/s/Hz.
        floors: Smallest attainable L_r, one a station.
        settings: Scenario, seed, hash and versions.
    """

    points: tuple[TradeOffPoint, ...]
    without_radar: float
    floors: tuple[float, ...]
    settings: dict[str, Any]

    def of(self, design: str) -> list[TradeOffPoint]:
        """The points of a design, by threshold."""
        found = [point for point in self.points if point.design == design]
        return sorted(found, key=lambda point: point.threshold)

    def to_csv(self) -> str:
        """One row a point."""
        buffer = io.StringIO()
        rows = [dataclasses.asdict(point) for point in self.points]
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()

    def to_json(self) -> str:
        """Settings and points; what is not a number is null."""
        points = [
            {key: finite_or_none(value) for key, value in row.items()}
            for row in map(dataclasses.asdict, self.points)
        ]
        content = {
            "settings": self.settings,
            "without_radar": self.without_radar,
            "floors": list(self.floors),
            "points": points,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def __rich__(self) -> Any:
        """The table, for rich."""
        from rich.table import Table

        table = Table(
            title=f"{self.settings['channels']} channels, seed {self.settings['seed']}, set "
            f"{self.settings['evaluation_set']}; without radar {self.without_radar:.2f} bit/s/Hz",
            caption="95 % intervals of the mean; excess: largest L_r/ε - 1 over the channels",
        )
        table.add_column("design")
        for heading in ("ε", "bit/s/Hz", "95 % interval", "L_r mean", "excess", "ms a channel"):
            table.add_column(heading, justify="right")

        def shown(value: float, form: str) -> str:
            return "" if value != value else format(value, form)

        for point in self.points:
            table.add_row(
                f"{point.design} ({point.channels})"
                if point.channels != self.settings["channels"]
                else point.design,
                shown(point.threshold, ".4f"),
                f"{point.spectral_efficiency:.3f}",
                f"{point.confidence_low:.3f} … {point.confidence_high:.3f}",
                shown(point.sensing_loss, ".4f"),
                shown(point.worst_excess, ".1e"),
                f"{1e3 * point.seconds:.1f}",
            )
        return table


def run_tradeoff(
    scenario: Scenario,
    *,
    model: ChannelModel | None = None,
    thresholds: Sequence[float] | None = None,
    channels: int = 200,
    bound_channels: int | None = None,
    subdivisions: int = 10,
    seed: int = 7,
    callback: Callable[[TradeOffPoint], None] | None = None,
) -> TradeOff:
    """Compute the trade-off.

    Args:
        scenario: Scenario with a learned radar and control ``"beamforming"`` or ``"power"``; its
            threshold is replaced.
        model: Channel model; None means the scenario's default.
        thresholds: Values of ε; None means :data:`FACTORS` times the largest floor of a station.
        channels: Channels in the evaluation set.
        bound_channels: How many of them the upper bound is computed for: None means all, 0 leaves
            it out.
        subdivisions: As in :func:`~isac_gym.baselines.joint_upper_bound`.
        seed: Seed of the evaluation set.
        callback: Called with each point as it comes.

    Returns:
        The trade-off.

    Raises:
        ValueError: If an option is not allowed, or a threshold cannot be attained.
    """
    if bound_channels is not None:
        integer("bound_channels", bound_channels, 0)
    floors = scenario.sensing_floor()
    # Above the floor by more than the rounding of single precision.
    limits = [max(floors) * max(factor, 1.0005) for factor in FACTORS]
    if thresholds is not None:
        limits = [float(limit) for limit in thresholds]
    if not limits:
        raise ValueError("thresholds must hold at least one value, got none")
    points: list[TradeOffPoint] = []

    def add(point: TradeOffPoint) -> None:
        points.append(point)
        if callback is not None:
            callback(point)

    def made(threshold: float) -> Any:
        changed = scenario.replace(sensing_threshold=threshold)
        return gym.make(
            "ISAC-MISO-v0", scenario=changed, channel_model=model, disable_env_checker=True
        )

    envs = {limit: made(limit) for limit in dict.fromkeys(limits)}
    env = envs[limits[0]]
    blocks = evaluation_set(scenario, env.unwrapped.channel_model, channels, seed)
    true, seen = (
        torch.from_numpy(part.reshape(-1, *part.shape[2:]))
        for part in (blocks.channels, blocks.estimates)
    )
    bounded = true if bound_channels is None else true[:bound_channels]

    for limit, env in envs.items():
        expected = JointOracle(env, constraint="expected")
        expected = JointOracle(
            env, constraint="expected", price=expected.find_price(seen, tolerance=5e-4)
        )
        if len(bounded):
            add(_bound_point(env, limit, bounded, subdivisions))
        add(_point("joint, ε on every channel", JointOracle(env), env, blocks, limit, kept=True))
        add(_point("joint, ε on the mean", expected, env, blocks, limit))
        add(_point("null steering", NullSteering(env), env, blocks, limit, kept=True))
    add(_point("decoupled", WMMSE(env), env, blocks))
    corner = JointOracle(env, constraint="expected", price=0.0)
    add(_point("communication only", corner, env, blocks))
    return TradeOff(
        points=tuple(points),
        without_radar=_without_radar(env, true),
        floors=floors,
        settings={
            "scenario": scenario.to_dict(),
            "channel_model": repr(env.unwrapped.channel_model),
            "channels": blocks.count,
            "seed": seed,
            "evaluation_set": blocks.digest,
            "bound_channels": len(bounded),
            "subdivisions": subdivisions,
            "torch_threads": torch.get_num_threads(),
            "version": __version__,
        },
    )


def _point(
    name: str,
    agent: Any,
    env: Any,
    blocks: EvaluationSet,
    threshold: float = float("nan"),
    kept: bool = False,
) -> TradeOffPoint:
    """A design's point; ``kept``: it keeps the threshold on every channel."""
    result = evaluate(agent, env, blocks, name=name)
    worst = float(result.sensing_losses.max()) / threshold - 1.0 if kept else float("nan")
    return TradeOffPoint(
        design=name,
        threshold=threshold,
        spectral_efficiency=result.spectral_efficiency,
        confidence_low=result.confidence_low,
        confidence_high=result.confidence_high,
        sensing_loss=result.sensing_loss_mean,
        worst_excess=worst,
        channels=blocks.count,
        seconds=result.seconds_batched,
    )


def _bound_point(
    env: Any, threshold: float, channels: torch.Tensor, subdivisions: int
) -> TradeOffPoint:
    start = time.perf_counter()
    bound = joint_upper_bound(env, channels, subdivisions=subdivisions)
    values = bound.upper_bound.sum(-1).cpu().numpy()
    low, high = mean_interval(values)
    return TradeOffPoint(
        design="upper bound",
        threshold=threshold,
        spectral_efficiency=float(values.mean()),
        confidence_low=low,
        confidence_high=high,
        sensing_loss=float("nan"),
        worst_excess=float("nan"),
        channels=len(values),
        seconds=(time.perf_counter() - start) / len(values),
    )


def _without_radar(env: Any, channels: torch.Tensor) -> float:
    """Mean sum rate of WMMSE for noise alone, each cell by itself, with the true channels."""
    system = system_of(env)
    scenario = system.scenario
    comm = own_channels(channels)[..., scenario.num_radar_antennas :]
    noise, power = scenario.noise_power, scenario.comm_power
    if scenario.scheduling == "contention":
        strongest = comm.abs().square().sum(-1).amax(-1)
        return float(torch.log2(1.0 + power * strongest / noise).sum(-1).mean())
    if scenario.control == "power":
        gains = (comm @ system.codec.directions(channels)).abs().square()
        return float(scalar_wmmse(gains, noise, power, num_starts=8).rate.sum(-1).mean())
    return float(wmmse(comm, noise, power, num_starts=8).rate.sum(-1).mean())


def tradeoff_figure(result: TradeOff) -> Figure:
    """Spectral efficiency against the sensing loss, with both corners and the bound.

    Args:
        result: What to draw.

    Returns:
        A matplotlib figure, not attached to any window.
    """
    scenario = Scenario.from_dict(result.settings["scenario"])
    figure = Figure(figsize=(8.0, 5.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.axhline(result.without_radar, color="0.6", lw=1, ls=":")
    ends = [point.threshold for point in result.points if point.threshold == point.threshold]
    left, right = min(ends), max(ends)
    axes.annotate(
        f"without radar {result.without_radar:.2f}",
        (left, result.without_radar),
        xytext=(0, 4),
        textcoords="offset points",
        color="0.4",
    )
    for design, (colour, line, marker) in _STYLES.items():
        points = result.of(design)
        if not points:
            continue
        label = design
        if design == "upper bound":
            label = "upper bound, ε on every channel"
            if points[0].channels != result.settings["channels"]:
                label += f" (first {points[0].channels} channels)"
        if design == "decoupled":
            # It does not use what ε allows: the same waveform for every threshold.
            axes.plot(
                [left, right],
                [points[0].spectral_efficiency] * 2,
                color=colour,
                ls=line,
                label="decoupled: best beampattern, WMMSE",
            )
            continue
        x = [point.threshold for point in points]
        axes.plot(x, [p.spectral_efficiency for p in points], line, color=colour, label=label)
        if marker:
            y = np.array([p.spectral_efficiency for p in points])
            error = np.array(
                [
                    [p.spectral_efficiency - p.confidence_low for p in points],
                    [p.confidence_high - p.spectral_efficiency for p in points],
                ]
            )
            axes.errorbar(x, y, yerr=error, fmt=marker, color=colour, ms=5, capsize=2, lw=1)
    for point, text in (
        (result.of("decoupled")[0], "best beampattern"),
        (result.of("communication only")[0], "highest rate"),
    ):
        axes.plot(
            point.sensing_loss,
            point.spectral_efficiency,
            "*",
            color="black",
            ms=12,
            zorder=5,
            clip_on=False,
        )
        axes.annotate(
            f"{text}\nL_r {point.sensing_loss:.3f}, {point.spectral_efficiency:.2f}",
            (point.sensing_loss, point.spectral_efficiency),
            xytext=(8, -26),
            textcoords="offset points",
            fontsize="small",
        )
    axes.axvspan(axes.get_xlim()[0], max(result.floors), color="0.93", lw=0)
    axes.set(
        title=f"Spectral efficiency and sensing (K = {scenario.num_users}, "
        f"M_C = {scenario.num_comm_antennas}, M_R = {scenario.num_radar_antennas}, "
        f"SNR {scenario.snr_db:g} dB; {result.settings['channels']} channels)",
        xlabel="sensing threshold ε (grey: below the floor of the sensing loss)",
        ylabel="spectral efficiency (bit/s/Hz)",
    )
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure
