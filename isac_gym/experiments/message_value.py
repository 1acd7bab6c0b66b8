"""What a bit that stations tell each other is worth: rate against bits, for several couplings."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.agents.loading import digest_file, load_agent, prepare_agent
from isac_gym.distributed import DistributedPolicy
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.statistics import mean_interval
from isac_gym.evaluation.table import Column, Row, Table
from isac_gym.experiments.base import Point, Workspace, setting
from isac_gym.experiments.by_station import REAL, DistributedAgent, judge_stations
from isac_gym.experiments.style import MARKERS, make_figure, style_axes
from isac_gym.policy import Policy
from isac_gym.registry import register_experiment
from isac_gym.validation import not_allowed

__all__ = ["MessageValue", "bootstrap_efficiency"]

_LEARNED: Final = "agent"
_RESAMPLES: Final = 4000
# A value, and both ends of its interval.
_RATE: Final = ("rate", "confidence_low", "confidence_high")
_GAINED: Final = ("gained", "gained_low", "gained_high")
_EFFICIENCY: Final = ("efficiency", "efficiency_low", "efficiency_high")
_DASHES: Final = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))


@register_experiment(
    "message-value", "one distributed agent over bits of a message and gains between cells"
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MessageValue(DistributedAgent):
    """A distributed agent with messages of L bits, at several mean powers β between cells.

    At every β and L the price of the sensing loss is settled anew, so that its mean is ε at every
    station, and the agent is judged on the same channels for all L. The efficiency of L bits is
    η(L) = (R_L − R_0)/(R_∞ − R_0), with R_0 without messages and R_∞ with messages of real numbers;
    both are always computed. Its 95 % interval is that of a bootstrap over channels, paired: what a
    finite set of channels leaves open, not what another training would change.

    References are judged on the first of the channels, and the agent is stated in percent of them
    on these same channels.

    Attributes:
        gains: Values of β, which replace the scenario's ``intercell_gain``.
        message_bits: Values of L beside 0 and real numbers.
        references: Names of agents that need no training, or files.
        reference_channels: Channels that they are judged on; 0 leaves them out.
    """

    gains: tuple[float, ...] = setting(
        (0.03, 0.1, 0.3, 1.0),
        "Mean power of the paths between cells (repeatable).",
        minimum=0.0,
        option="--gain",
        only_selects=True,
    )
    message_bits: tuple[int, ...] = setting(
        (0, 1, 2, 4, 8, 16, 32),
        "Bits of a message, beside none and real numbers (repeatable).",
        minimum=0,
        option="--bits",
        only_selects=True,
    )
    references: tuple[str, ...] = setting(
        ("joint", "joint-leakage", "joint-network"),
        "Agent to compare with: a name of `isac-gym agents` or a saved file (repeatable).",
        option="--reference",
        only_selects=True,
    )
    reference_channels: int = setting(
        64,
        "Channels that the references are judged on; 0 leaves them out.",
        minimum=0,
        only_selects=True,
    )

    def points(self) -> list[Point]:
        """For every β all L, then the references.

        Raises:
            FileNotFoundError: If there is no file of the agent.
            ValueError: If there is one station, gains follow from distances, the agent cannot send
                messages of a length, or a reference has to be trained.
        """
        self.check_stations()
        if self.scenario.is_geometric:
            allowed = "'uniform' for given gains between cells"
            raise not_allowed("layout", self.scenario.layout, allowed)
        lengths = [*sorted({0, *self.message_bits}), None]
        self.check_agent(lengths)
        references: list[Point] = []
        for name in self.references if self.reference_channels else ():
            prepare_agent(name, self.env).require_trained()
            digest = digest_file(name)
            known = {} if digest is None else {"reference_digest": digest}
            count = self.reference_channels
            references.append({"agent": name, "L": None, "channels": count, **known})
        learned = [
            {"agent": _LEARNED, "L": REAL if length is None else length} for length in lengths
        ]
        return [{"β": gain, **each} for gain in self.gains for each in (*learned, *references)]

    @functools.cached_property
    def _held(self) -> dict[float, tuple[Any, EvaluationSet, DistributedPrimalDual]]:
        """Environment, channels and agent of one β at a time."""
        return {}

    @functools.cached_property
    def _count(self) -> int:
        """Channels of a set, which may be more than asked for."""
        return self.draw_channels(self.env, self.channels, self.evaluation_seed).count

    def run(self, point: Point, workspace: Workspace) -> Row:
        """The agent with messages of a length, or a reference."""
        gain, name = point["β"], point["agent"]
        if gain not in self._held:
            self._held.clear()
            env = self.make_env(intercell_gain=gain)
            blocks = self.draw_channels(env, self.channels, self.evaluation_seed)
            self._held[gain] = env, blocks, load_agent(self.agent, env)
        env, blocks, agent = self._held[gain]
        if name == _LEARNED:
            self.ask_for(agent, None if point["L"] == REAL else point["L"])
            judged: Policy = agent
        else:
            blocks = _take_first(blocks, point["channels"])
            judged = prepare_agent(name, env).agent
        found = judge_stations(judged, env, blocks, name=name)
        return {
            **found.row(),
            "bits_per_link": _count_bits(judged),
            "channels": blocks.count,
            "rates": found.by_episode.tolist(),
        }

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """The rows, with the efficiency of every length and percentages of the references."""
        made: list[Row] = []
        for gain in dict.fromkeys(row["β"] for row in rows):
            made += _complete_rows([row for row in rows if row["β"] == gain])
        names = list(dict.fromkeys(row["agent"] for row in rows if row["agent"] != _LEARNED))
        return Table(
            f"{self.agent}: what a bit is worth; {self._count} channels, seed "
            f"{self.evaluation_seed}; L_r ≤ {self.scenario.sensing_threshold:g} on the mean",
            tuple(made),
            self.settings(),
            columns=[
                Column("β", "{β:g}"),
                Column("agent", self._show_agent, "left"),
                Column("L", "{L}"),
                Column("bits a link", "{bits_per_link}"),
                Column("bit/s/Hz a station", lambda row: _show_mean(row, _RATE)),
                Column("R_L − R_0", lambda row: _show_mean(row, _GAINED)),
                Column("η", _show_efficiency),
                Column("mean L_r", "{sensing_mean:.4f}"),
                Column("worst", "{worst_mean_constraint:+.1e}"),
                *(Column(f"% of {name}", f"{{{_name_percentage(name)}:.1f}}") for name in names),
            ],
            caption="β: mean power between cells; L: bits of a message to one neighbour; "
            "95 % intervals, those of R_L − R_0 and of η = (R_L − R_0)/(R_∞ − R_0) paired over "
            "channels;\nworst: largest mean constraint relative to its limit; percentages on the "
            "channels of the reference",
        )

    def _show_agent(self, row: Row) -> str:
        some = "" if row["channels"] == self._count else f" ({row['channels']})"
        return f"{row['agent']}{some}"

    def draw(self, table: Table) -> Figure:
        """Rate and efficiency against the bits of a message, a curve for each β.

        Efficiencies are left out where it is not certain that messages of real numbers gain
        anything. A reference, judged on fewer channels, is drawn where it stands relative to the
        agent with such messages on the same channels.
        """
        figure, (rate_axes, share_axes) = make_figure(12.0, 5.6, columns=2)
        learned = [row for row in table.rows if row["agent"] == _LEARNED]
        lengths = list(dict.fromkeys(row["L"] for row in learned))
        place = {length: position for position, length in enumerate(lengths)}
        names = list(dict.fromkeys(r["agent"] for r in table.rows if r["agent"] != _LEARNED))
        gains = list(dict.fromkeys(row["β"] for row in learned))
        for number, gain in enumerate(gains):
            rows = [row for row in learned if row["β"] == gain]
            look = {
                "color": f"C{number}",
                "marker": MARKERS[number % len(MARKERS)],
                "ms": 5,
                "lw": 1.3,
                "capsize": 2,
                "label": f"β = {gain:g}",
            }
            x = np.array([place[row["L"]] for row in rows], float)
            _draw_curve(rate_axes, x, rows, _RATE, look)
            unlimited = next(row for row in rows if row["L"] == REAL)
            if unlimited["gained_low"] > 0.0:
                shift = 0.08 * (number - (len(gains) - 1) / 2)
                _draw_curve(share_axes, x + shift, rows, _EFFICIENCY, look)
            for name, dash in zip(names, itertools.cycle(_DASHES), strict=False):
                level = 100.0 * unlimited["rate"] / unlimited[_name_percentage(name)]
                rate_axes.axhline(level, color=f"C{number}", lw=1, ls=dash, alpha=0.8)
        rate_axes.set(
            title="Rate of a station (95 % intervals)", ylabel="spectral efficiency (bit/s/Hz)"
        )
        share_axes.set(
            title="Share of what messages can gain (paired 95 % intervals)",
            ylabel=r"$\eta = (R_L - R_0)\,/\,(R_\infty - R_0)$",
        )
        ticks = ["real\nnumbers" if length == REAL else str(length) for length in lengths]
        for axes in (rate_axes, share_axes):
            axes.set_xticks(range(len(lengths)), ticks)
            axes.set_xlabel("bits L of a message to one neighbour")
            style_axes(axes, handles=[])
        for level in (0.0, 1.0):
            share_axes.axhline(level, color="0.6", lw=0.8, zorder=0)
        share_axes.set_ylim(
            *_find_share_range([v for line in share_axes.lines for v in line.get_ydata()])
        )
        handles = [*rate_axes.get_legend_handles_labels()[0], *_make_levels(table.rows, names)]
        columns = min(len(handles), 5)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
        scenario = self.scenario
        figure.suptitle(
            f"{scenario.num_cells} stations, K = {scenario.num_users}, "
            f"M_C = {scenario.num_comm_antennas}, M_R = {scenario.num_radar_antennas}, "
            f"SNR {scenario.snr_db:g} dB, mean L_r ≤ {scenario.sensing_threshold:g}; "
            f"{self._count} channels, seed {self.evaluation_seed}",
            fontsize="medium",
        )
        return figure


def bootstrap_efficiency(
    rates: npt.NDArray[np.float64],
    without: npt.NDArray[np.float64],
    unlimited: npt.NDArray[np.float64],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Efficiency η = (R − R_0)/(R_∞ − R_0) of mean rates, with a 95 % interval.

    The interval is that of the percentiles of a bootstrap that draws channels, each with all three
    of its rates.

    Args:
        rates: R of each of n independent channels, (n,).
        without: R_0 of the same channels, (n,).
        unlimited: R_∞ of the same channels, (n,).
        resamples: Resamples of the bootstrap.
        seed: Their seed.

    Returns:
        η, and both ends of its interval; NaN where it is not certain that R_∞ is more than R_0, as
        the 95 % interval of their difference says.
    """
    if not mean_interval(unlimited - without)[0] > 0.0:
        return math.nan, math.nan, math.nan
    values = np.stack([rates, without, unlimited], -1)
    count = len(values)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1.0 / count), size=resamples) / count
    means = np.concatenate([values.mean(0, keepdims=True), weights @ values])
    gained, most = means[:, 0] - means[:, 1], means[:, 2] - means[:, 1]
    shares = np.divide(gained, most, out=np.full_like(gained, np.nan), where=most != 0.0)
    low, high = np.nanquantile(shares[1:], (0.025, 0.975))
    return float(shares[0]), float(low), float(high)


def _complete_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of one β with efficiencies and percentages, without the rates of the channels."""
    learned = {row["L"]: np.array(row["rates"]) for row in rows if row["agent"] == _LEARNED}
    references = {row["agent"]: row["rates"] for row in rows if row["agent"] != _LEARNED}
    made: list[Row] = []
    for row in rows:
        kept = {key: value for key, value in row.items() if key != "rates"}
        if row["agent"] == _LEARNED:
            own = learned[row["L"]]
            more = own - learned[0]
            kept |= dict(zip(_GAINED, (float(more.mean()), *mean_interval(more)), strict=True))
            found = bootstrap_efficiency(own, learned[0], learned[REAL])
            kept |= dict(zip(_EFFICIENCY, found, strict=True))
            for name, rates in references.items():
                share = own[: len(rates)].mean() / np.mean(rates)
                kept[_name_percentage(name)] = 100.0 * float(share)
        else:
            missing = (*_GAINED, *_EFFICIENCY, *map(_name_percentage, references))
            kept |= dict.fromkeys(missing, math.nan)
        made.append(kept)
    return made


def _name_percentage(name: str) -> str:
    return f"percent_of_{''.join(c if c.isalnum() else '_' for c in name)}"


def _show_mean(row: Row, keys: Sequence[str]) -> str:
    """A mean, and half its interval where that is finite and wider than 0."""
    value, low, high = (row[key] for key in keys)
    half = f" ± {(high - low) / 2:.3f}" if math.isfinite(high - low) and low < high else ""
    return f"{value:.3f}{half}" if math.isfinite(value) else ""


def _show_efficiency(row: Row) -> str:
    """An efficiency, and its interval where that is wider than 0."""
    value, low, high = (row[key] for key in _EFFICIENCY)
    interval = f" ({low:.2f} … {high:.2f})" if low < high else ""
    return f"{value:.2f}{interval}" if math.isfinite(value) else ""


def _find_share_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that shows 0, 1 and values, with some space."""
    finite = [value for value in values if math.isfinite(value)]
    return min(0.0, *finite) - 0.08, max(1.0, *finite) + 0.12


def _make_levels(rows: Sequence[Row], names: Sequence[str]) -> list[Line2D]:
    """What the dashes in a legend are."""
    counts = {row["agent"]: row["channels"] for row in rows}
    return [
        Line2D([], [], color="0.4", lw=1, ls=dash, label=f"{name} ({counts[name]} channels)")
        for name, dash in zip(names, itertools.cycle(_DASHES), strict=False)
    ]


def _draw_curve(
    axes: Axes, x: npt.NDArray[np.float64], rows: Sequence[Row], keys: Sequence[str], look: Any
) -> None:
    """Values with their intervals, where they are finite."""
    y, low, high = (np.array([row[key] for row in rows], float) for key in keys)
    error = np.array([y - low, high - y])
    axes.errorbar(x, y, yerr=np.where(np.isfinite(error), error, 0.0).clip(0.0), **look)


def _count_bits(agent: Policy) -> int | None:
    """Bits that were moved on each link in a block, a real number counted as 32; None for none."""
    if not isinstance(agent, DistributedPolicy) or agent.exchange is None:
        return None
    blocks = agent.exchange.blocks // agent.stations[0].rounds
    return int(agent.exchange.counts[0, 1]) // blocks


def _take_first(blocks: EvaluationSet, count: int) -> EvaluationSet:
    """The first episodes of a set that hold so many blocks."""
    episodes = math.ceil(count / blocks.channels.shape[1])
    first, seen = blocks.channels[:episodes], blocks.estimates[:episodes]
    return dataclasses.replace(blocks, channels=first, estimates=seen)
