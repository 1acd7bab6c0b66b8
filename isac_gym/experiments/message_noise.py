"""What errors do to stations that talk: bits that arrive inverted, channels known inexactly."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final

from matplotlib.figure import Figure

from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.agents.loading import load_agent
from isac_gym.evaluation.table import Column, Row, Table
from isac_gym.experiments.base import Point, Workspace, setting
from isac_gym.experiments.by_station import DistributedAgent, judge_stations
from isac_gym.experiments.style import MARKERS, make_figure, style_axes
from isac_gym.registry import register_experiment
from isac_gym.validation import check_real

__all__ = ["MessageNoise"]

_FLIPPED: Final = "bits inverted"
_UNKNOWN: Final = "CSI error variance"


@register_experiment(
    "message-noise", "one distributed agent with inverted bits and inexact channel knowledge"
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MessageNoise(DistributedAgent):
    """A distributed agent whose bits arrive inverted at random, or whose channels are inexact.

    For every length of the messages the price of the sensing loss is settled once, without any
    errors. It is not changed with them: what errors do to the mean sensing loss is part of the
    result. One of the two errors is varied at a time, the other is 0. All points have the same true
    channels if blocks are independent; the gain between cells is the scenario's.

    Attributes:
        message_bits: Values of L; with L = 0 no bit can be inverted.
        flip_probabilities: Probabilities with which a bit arrives inverted.
        csi_error_variances: Variances of the error of the channels that stations know, relative to
            the mean power of a path; they replace the scenario's.
    """

    message_bits: tuple[int, ...] = setting(
        (0, 2, 8), "Bits of a message (repeatable).", minimum=0, option="--bits", only_selects=True
    )
    flip_probabilities: tuple[float, ...] = setting(
        (0.0, 0.01, 0.02, 0.05, 0.1),
        "Probability with which a bit arrives inverted (repeatable).",
        minimum=0.0,
        option="--flip",
        only_selects=True,
    )
    csi_error_variances: tuple[float, ...] = setting(
        (0.0, 0.02, 0.05, 0.1, 0.2),
        "Variance of the error of the channels that are known (repeatable).",
        minimum=0.0,
        option="--csi-error",
        only_selects=True,
    )

    def points(self) -> list[Point]:
        """For every L all probabilities, then all variances.

        Raises:
            FileNotFoundError: If there is no file of the agent.
            ValueError: If there is one station, the agent cannot send messages of a length, or a
                probability is none.
        """
        self.check_stations()
        flips = [
            check_real("flip_probabilities", value, "numbers in [0, 1]", lambda x: 0 <= x <= 1)
            for value in self.flip_probabilities
        ]
        self.check_agent(self.message_bits)
        errors = [
            *((value, 0.0) for value in flips),
            *((0.0, value) for value in self.csi_error_variances),
        ]
        return [
            {"L": length, _FLIPPED: flipped, _UNKNOWN: unknown}
            for length in self.message_bits
            for flipped, unknown in dict.fromkeys(errors)
        ]

    @functools.cached_property
    def _agent(self) -> DistributedPrimalDual:
        agent: DistributedPrimalDual = load_agent(self.agent, self.make_env(csi_error_variance=0.0))
        return agent

    @functools.cached_property
    def _settled(self) -> set[int]:
        """The length of messages that the agent's price is settled for."""
        return set()

    def run(self, point: Point, workspace: Workspace) -> Row:
        """The agent with errors, its price settled without any."""
        agent, length = self._agent, point["L"]
        if length not in self._settled:
            self._settled.clear()
            self.ask_for(agent, length)
            self._settled.add(length)
        env = self.make_env(csi_error_variance=point[_UNKNOWN])
        blocks = self.draw_channels(env, self.channels, self.evaluation_seed)
        agent.flip_probability = point[_FLIPPED]
        found = judge_stations(agent, env, blocks)
        return {**found.row(), "channels": blocks.count}

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row a point."""
        scenario = self.scenario
        return Table(
            f"{self.agent} with errors, β = {scenario.intercell_gain:g}; {rows[0]['channels']} "
            f"channels, seed {self.evaluation_seed}; L_r ≤ {scenario.sensing_threshold:g} on the "
            "mean without errors",
            tuple(rows),
            self.settings(),
            columns=[
                Column("L", "{L}"),
                Column(_FLIPPED, lambda row: f"{100 * row[_FLIPPED]:g} %"),
                Column(_UNKNOWN, lambda row: f"{row[_UNKNOWN]:g}"),
                Column("bit/s/Hz a station", "{rate:.3f}"),
                Column("95 % interval", "{confidence_low:.3f} … {confidence_high:.3f}"),
                Column("mean L_r", "{sensing_mean:.4f}"),
                Column("worst mean constraint", "{worst_mean_constraint:+.4f}"),
            ],
            caption="the price of the sensing loss is settled without errors, and not changed with "
            "them",
        )

    def draw(self, table: Table) -> Figure:
        """Rate and mean sensing loss against both errors, a curve for each L.

        All points have the same channels, and differences are small: no axis begins at zero.
        """
        figure, axes = make_figure(16.0, 4.8, columns=4)
        limit = self.scenario.sensing_threshold
        labels = {
            _FLIPPED: "bits that arrive inverted (%)",
            _UNKNOWN: "CSI error variance, of a path's mean power",
        }
        for place, (varied, other) in enumerate(((_FLIPPED, _UNKNOWN), (_UNKNOWN, _FLIPPED))):
            rate_axes, loss_axes = axes[2 * place : 2 * place + 2]
            shown = [row for row in table.rows if row[other] == 0.0]
            scale = 100.0 if varied == _FLIPPED else 1.0
            for number, length in enumerate(dict.fromkeys(row["L"] for row in shown)):
                rows = sorted(
                    (row for row in shown if row["L"] == length), key=lambda row: float(row[varied])
                )
                look: dict[str, Any] = {
                    "color": f"C{number}",
                    "marker": MARKERS[number % len(MARKERS)],
                    "ms": 5,
                    "lw": 1.3,
                    "label": f"L = {length}",
                }
                x = [scale * row[varied] for row in rows]
                rate_axes.plot(x, [row["rate"] for row in rows], **look)
                loss_axes.plot(x, [row["sensing_mean"] for row in rows], **look)
            rate_axes.set(title="Rate of a station", ylabel="spectral efficiency (bit/s/Hz)")
            loss_axes.set(title="Sensing loss", ylabel="mean L_r")
            loss_axes.axhline(limit, color="0.4", ls="--", lw=1, zorder=0, label=f"ε = {limit:g}")
            for each, key, known in ((rate_axes, "rate", []), (loss_axes, "sensing_mean", [limit])):
                style_axes(each, fontsize="small")
                each.set_xlabel(labels[varied])
                each.set_ylim(*_find_range([*known, *(row[key] for row in shown)]))
        scenario = self.scenario
        figure.suptitle(
            f"{scenario.num_cells} stations, K = {scenario.num_users}, "
            f"M_C = {scenario.num_comm_antennas}, M_R = {scenario.num_radar_antennas}, "
            f"SNR {scenario.snr_db:g} dB, β = {scenario.intercell_gain:g}; price settled without "
            f"errors; {table.rows[0]['channels']} channels, seed {self.evaluation_seed}",
            fontsize="medium",
        )
        return figure


def _find_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis around positive values, no narrower than 2 % of the largest."""
    low, high = min(values), max(values)
    space = max(0.1 * (high - low), 0.01 * high)
    return low - space, high + space
