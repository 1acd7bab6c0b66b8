"""The comparison: train what needs training, judge all on one set of channels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isac_gym.agents.loading import PreparedAgent, digest_file, prepare_agent
from isac_gym.evaluation.calling import AgentError, AgentValueError
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.comparison import tabulate_comparison
from isac_gym.evaluation.judging import evaluate
from isac_gym.evaluation.table import Row, Table
from isac_gym.experiments.base import Experiment, Point, Workspace, setting
from isac_gym.experiments.style import MARKERS, make_figure, make_palette, style_axes
from isac_gym.files import OutputInUseError
from isac_gym.learning.trainer import TrainingError
from isac_gym.reading import FileError
from isac_gym.registry import AGENTS, register_experiment
from isac_gym.system.constraints import Constraint

__all__ = ["Compare"]


@register_experiment("compare", "trains what needs training, compares all on one set of channels")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Experiment):
    """Agents on one set of channels, a row an agent; see :class:`~isac_gym.evaluation.AgentResult`.

    Attributes:
        agents: Agents to add, as for :func:`~isac_gym.agents.loading.prepare_agent`.
        only: Whether those are all; otherwise all that are compared by default and suit the
            scenario are there as well.
        allow_pickle: Whether agents may be loaded from files that hold pickles.
        channels: Blocks in the evaluation set; None means 2000, and 256 with several stations,
            whose references take longer.
        evaluation_seed: Its seed.
        seed: Seed of training and initial weights.
    """

    keeps_parts: ClassVar[bool] = True
    agents: tuple[str, ...] = setting(
        (),
        "Agent to add: a name of `isac-gym agents`, module:Class, a saved file, CLASS@FILE, or "
        "pretrained:NAME (repeatable).",
        option="--agent",
        only_selects=True,
    )
    only: bool = setting(
        False, "Compare only the agents given by --agent.", option="--only", only_selects=True
    )
    allow_pickle: bool = setting(
        False,
        "Load agents from files that hold pickles, such as those of Stable-Baselines3, which can "
        "execute anything.",
        option="--allow-pickle",
        only_selects=True,
    )
    channels: int | None = setting(
        None,
        "Channels in the evaluation set; 2000 by default, 256 with several stations.",
        minimum=1,
    )
    evaluation_seed: int = setting(7, "Seed of the evaluation set.", minimum=0)
    seed: int = setting(0, "Seed of training and initial weights.", minimum=0)

    @functools.cached_property
    def _prepared(self) -> tuple[dict[str, PreparedAgent], dict[str, str]]:
        """The agents, and why others are left out: they do not suit, and nobody asked for them."""
        env = self.env
        entries = {} if self.only else AGENTS.entries()
        names = [name for name, entry in entries.items() if entry.is_used(self.scenario)]
        if self.scenario.control == "beamforming" and self.scenario.precoder_directions == "mrt":
            names = [name for name in names if name != "equal-power"]  # "mrt" is the same
        made: dict[str, PreparedAgent] = {}
        left_out: dict[str, str] = {}
        for name in dict.fromkeys([*names, *self.agents]):
            with self._leave_out(name, left_out):
                made[name] = prepare_agent(
                    name, env, seed=self.seed, allow_pickle=self.allow_pickle
                )
        return made, left_out

    @contextmanager
    def _leave_out(self, name: str, left_out: dict[str, str]) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if name in self.agents:
                raise
            left_out[name] = str(error)

    @functools.cached_property
    def _blocks(self) -> EvaluationSet:
        usual = 2000 if self.scenario.num_cells == 1 else 256
        channels = usual if self.channels is None else self.channels
        return self.draw_channels(self.env, channels, self.evaluation_seed)

    def points(self) -> list[Point]:
        """The agents.

        Raises:
            ValueError: If there are none, one that was asked for cannot be made, or training would
                see the channels of the evaluation.
        """
        if self.seed == self.evaluation_seed:
            raise ValueError(
                f"seed and evaluation_seed must differ, got {self.seed}: training would see the "
                "channels"
            )
        made, _ = self._prepared
        if not made:
            raise ValueError("agents must hold at least one agent, got none")
        digests = {name: digest_file(name) for name in made}
        return [
            {"name": name} if digest is None else {"name": name, "file_digest": digest}
            for name, digest in digests.items()
        ]

    def run(self, point: Point, workspace: Workspace) -> Row:
        """Train an agent if it needs training, and judge it."""
        name = point["name"]
        prepared = self._prepared[0][name]
        if prepared.needs_training:
            workspace.say("")
            try:
                prepared.train(
                    progress_bar=workspace.report is not None, **workspace.keep_training(name)
                )
            except (OSError, ImportError, FileError, OutputInUseError):
                raise  # of the folder or the installation, not of the agent
            except (TypeError, ValueError, TrainingError) as error:
                raise AgentValueError(f"agent {name!r} cannot be trained: {error}") from error
            except Exception as error:
                raise AgentError(f"agent {name!r} failed in learn: {error!r}") from error
            workspace.say(f"evaluating {name}")
        result = evaluate(prepared.agent, self.env, self._blocks, name=name)
        return {**result.row(), "beampattern": result.beampattern.tolist()}

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """The table, which also says what was left out."""
        left_out = self._prepared[1]
        settings = {
            **self.settings(),
            "channels": self._blocks.count,
            "evaluation_set": self._blocks.digest,
            "left_out": left_out,
        }
        table = tabulate_comparison(rows, self.env.unwrapped.system, settings)
        lines = [f"left out: {name} ({reason})" for name, reason in left_out.items()]
        return dataclasses.replace(table, caption="\n".join([table.caption, *lines]))

    def draw(self, table: Table) -> Figure:
        """Beampatterns beside the desired one, and rate against what each constraint limits."""
        scenario, system = self.scenario, self.env.unwrapped.system
        shown = [each for each in system.constraints.values() if each.can_be_exceeded(scenario)]
        columns = 1 + len(shown)
        figure, (pattern_axes, *rate_axes) = make_figure(5.5 * columns, 5.4, columns=columns)
        self._draw_patterns(pattern_axes, table.rows)
        for axes, constraint in zip(rate_axes, shown, strict=True):
            self._draw_rates(axes, table.rows, constraint)
        for axes in (pattern_axes, *rate_axes):
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
            style_axes(axes, fontsize="small", **below)
        figure.suptitle(
            f"K = {scenario.num_users}, M_C = {scenario.num_comm_antennas}, "
            f"M_R = {scenario.num_radar_antennas}, SNR {scenario.snr_db:g} dB, "
            f"{scenario.control} control; {self._blocks.count} channels, "
            f"seed {self.evaluation_seed}",
            fontsize="medium",
        )
        return figure

    def _draw_patterns(self, axes: Axes, rows: Sequence[Row]) -> None:
        """The mean beampattern of each agent; equal ones share a curve."""
        sensing = self.env.unwrapped.system.sensing
        grid = sensing.grid_deg.numpy()
        desired = sensing.desired.cpu().numpy().reshape(self.scenario.num_cells, -1)[0]
        if isinstance(sensing.pattern_scale, float):
            desired = desired * sensing.pattern_scale
        axes.fill_between(grid, desired, step="mid", color="0.85", lw=0, label="desired")
        sharing: dict[bytes, list[str]] = {}
        for row in rows:
            sharing.setdefault(_round_pattern(row), []).append(row["name"])
        palette = make_palette()
        for index, row in enumerate(rows):
            names = sharing.pop(_round_pattern(row), None)
            if names is not None:
                label = ", ".join(names)
                label = label if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"
                colour = palette[index % len(palette)]
                axes.plot(
                    grid, row["beampattern"][0], color=colour, lw=1.4, label=_make_label(label)
                )
        axes.set(
            title="Mean beampattern" + " of station 0" * (self.scenario.num_cells > 1),
            xlabel="direction (degrees)",
            ylabel="power (W)",
            xlim=(-90, 90),
        )
        axes.set_xticks(np.arange(-90, 91, 30))

    def _draw_rates(self, axes: Axes, rows: Sequence[Row], constraint: Constraint) -> None:
        limit, palette = constraint.limit(self.scenario), make_palette()
        for index, row in enumerate(rows):
            rate = row["spectral_efficiency"]
            error = [[rate - row["confidence_low"]], [row["confidence_high"] - rate]]
            axes.errorbar(
                row[f"{constraint.name}_mean"],
                rate,
                yerr=error if np.isfinite(error).all() else None,
                fmt=MARKERS[index % len(MARKERS)],
                color=palette[index % len(palette)],
                capsize=3,
                label=_make_label(f"{row['name']} ({rate:.2f})"),
            )
        axes.axvline(limit, color="0.4", ls="--", lw=1)
        axes.annotate(
            f"limit {limit:g}",
            (limit, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -12),
            textcoords="offset points",
            color="0.4",
        )
        axes.set(
            title=f"Rate against {constraint.symbol} (95 % intervals)",
            xlabel=f"mean {constraint.symbol} ({constraint.unit})",
            ylabel="spectral efficiency (bit/s/Hz)",
        )
        axes.margins(x=0.12)


def _make_label(name: str) -> str:
    """A name as a label of a picture, where it is neither a formula nor hidden from legends."""
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _round_pattern(row: Row) -> bytes:
    return bytes(np.round(row["beampattern"][0], 4))
