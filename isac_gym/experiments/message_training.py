"""How bits are trained: ways to quantise a message, between no message and full CSI."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import numpy as np
from matplotlib.figure import Figure

from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.agents.networks.cooperative.quantiser import QuantiserKind
from isac_gym.agents.primal_dual import PrimalDual
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.statistics import over_seeds
from isac_gym.evaluation.table import Column, Row, Table
from isac_gym.experiments.base import Point, Workspace, check_evaluation_seed, setting
from isac_gym.experiments.by_station import OfStations, judge_stations
from isac_gym.experiments.style import make_figure, style_axes
from isac_gym.learning.agent import LearningAgent
from isac_gym.learning.config import DISTRIBUTED_PRESETS
from isac_gym.registry import register_experiment
from isac_gym.validation import not_allowed

__all__ = ["MessageTraining"]

_NOTHING: Final = "no message"
_REAL: Final = "real numbers"
_FULL: Final = "full CSI"
_RATE: Final = "bit/s/Hz a station"
_EFFICIENCY: Final = "η"


@register_experiment(
    "message-training", "ways to train the bits of a message, from no message to full CSI"
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MessageTraining(OfStations):
    """Agents of preset ``tuned``, each trained for one kind of message and judged with it.

    Between stations that say nothing and stations that know the channels of all stand messages of
    real numbers, and of L bits that are quantised in several ways while the network is trained
    (:class:`~isac_gym.agents.networks.cooperative.quantiser.Quantiser`). At deployment a bit is a
    sign, whatever it was trained with. The efficiency η relates the gain over no message to that of
    real numbers, seed by seed.

    Attributes:
        quantisers: Ways to train bits.
        message_bits: Bits L of a message.
        agent_settings: Settings of all agents to change.
        iterations: Gradient steps; None means the preset's.
        seeds: Number of seeds of the trainings, from 0.
        channels: Channels of the evaluation.
        evaluation_seed: Their seed.
    """

    quantisers: tuple[str, ...] = setting(
        get_args(QuantiserKind),
        "Way to train bits (repeatable).",
        option="--quantiser",
        only_selects=True,
    )
    message_bits: int = setting(8, "Bits of a message.", minimum=1, option="--bits")
    agent_settings: Mapping[str, Any] = setting(
        {},
        "Change a setting of the agents, for example -a batch_size=64 (repeatable).",
        option="--agent-set -a",
    )
    iterations: int | None = setting(None, "Gradient steps; the preset's by default.", minimum=1)
    seeds: int = setting(3, "Number of seeds, from 0.", minimum=1, only_selects=True)
    channels: int = setting(2000, "Channels of the evaluation.", minimum=1)
    evaluation_seed: int = setting(7, "Their seed.", minimum=0)

    def points(self) -> list[Point]:
        """Every kind of message with every seed.

        Raises:
            ValueError: If there is one station or no such quantiser, the control is no beamforming,
                or training would see the channels of the evaluation.
        """
        self.check_stations()
        for kind in self.quantisers:
            if kind not in get_args(QuantiserKind):
                allowed = f"names among {', '.join(map(repr, get_args(QuantiserKind)))}"
                raise not_allowed("quantisers", kind, allowed)
        if self.scenario.control != "beamforming":
            raise not_allowed("control", self.scenario.control, "'beamforming'")
        check_evaluation_seed(self.evaluation_seed, self.seeds)
        return [
            {"message": message, "seed": seed}
            for message in (_NOTHING, *self.quantisers, _REAL, _FULL)
            for seed in range(self.seeds)
        ]

    @functools.cached_property
    def _blocks(self) -> EvaluationSet:
        return self.draw_channels(self.env, self.channels, self.evaluation_seed)

    def run(self, point: Point, workspace: Workspace) -> Row:
        """Train an agent for a kind of message and judge it with the same."""
        message, seed = point["message"], point["seed"]
        agent = self._make_agent(message, seed)
        agent.learn(**workspace.keep_training(f"{message}-{seed}"))
        return judge_stations(agent, self.env, self._blocks, name=message).row()

    def _make_agent(self, message: str, seed: int) -> LearningAgent:
        options = dict(self.agent_settings)
        if self.iterations is not None:
            options["iterations"] = self.iterations
        if message == _FULL:
            # The agent that decides for all stations at once is trained as the others are.
            preset = DISTRIBUTED_PRESETS["tuned"]
            fields = {each.name: getattr(preset, each.name) for each in dataclasses.fields(preset)}
            settings = {**fields, **fields.pop("options"), **options, "full_csi": True}
            return PrimalDual(self.env, "tuned", seed=seed, **settings)
        if message == _NOTHING:
            options["message_bits"] = 0
        elif message == _REAL:
            options["message_bits"] = None
        else:
            options |= {"message_bits": self.message_bits, "quantiser": message}
        return DistributedPrimalDual(self.env, "tuned", seed=seed, **options)

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row a kind of message: means over the seeds with their intervals."""
        rates: dict[str, list[float]] = {}
        for row in rows:
            rates.setdefault(row["message"], []).append(row["rate"])
        none, real = np.array(rates[_NOTHING]), np.array(rates[_REAL])
        made = []
        for message, found in rates.items():
            gained, most = np.array(found) - none, real - none
            share = np.divide(gained, most, out=np.full_like(most, math.nan), where=most != 0.0)
            of_message = [row for row in rows if row["message"] == message]
            made.append(
                {
                    "message": message,
                    **over_seeds(_RATE, found),
                    **over_seeds(_EFFICIENCY, share.tolist()),
                    "mean L_r": float(np.mean([row["sensing_mean"] for row in of_message])),
                    "worst": max(row["worst_mean_constraint"] for row in of_message),
                }
            )
        scenario = self.scenario
        return Table(
            f"Messages of {self.message_bits} bits by how they were trained, β = "
            f"{scenario.intercell_gain:g}; {self._count_seeds()}, {self._blocks.count} channels, "
            f"seed {self.evaluation_seed}; ± 95 % interval over seeds",
            tuple(made),
            {**self.settings(), "evaluation_set": self._blocks.digest},
            columns=[
                Column("message", "{message}", "left"),
                *(
                    Column(name, functools.partial(_show_interval, name=name))
                    for name in (_RATE, _EFFICIENCY)
                ),
                Column("mean L_r", "{mean L_r:.4f}"),
                Column("worst", "{worst:+.1e}"),
            ],
            caption="worst: largest mean constraint relative to its limit, over seeds and stations",
        )

    def _count_seeds(self) -> str:
        return f"{self.seeds} seed" + ("" if self.seeds == 1 else "s")

    def draw(self, table: Table) -> Figure:
        """Rate by the kind of message; the axis does not begin at zero."""
        figure, axes = make_figure(7.0, 4.4)
        places = range(len(table.rows))
        for place, row in zip(places, table.rows, strict=True):
            half = row[f"± {_RATE}"]
            error = half if math.isfinite(half) else 0.0
            axes.errorbar(row[_RATE], place, xerr=error, fmt="o", color="C0", capsize=3)
        axes.set_yticks(places, [row["message"] for row in table.rows])
        axes.set(
            xlabel=f"spectral efficiency of a station (bit/s/Hz); {self._count_seeds()}",
            title=f"{self.message_bits} bits by how they were trained, "
            f"β = {self.scenario.intercell_gain:g}",
        )
        style_axes(axes, handles=[])
        axes.set_ylim(len(places) - 0.5, -0.5)
        return figure


def _show_interval(row: Row, name: str) -> str:
    value, half = row[name], row[f"± {name}"]
    if not math.isfinite(value):
        return ""
    return f"{value:.3f}" + (f" ± {half:.3f}" if 0.0 < half < math.inf else "")
