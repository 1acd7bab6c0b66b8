"""What an experiment is: settings, points, what is computed at a point, a table, a picture."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import gymnasium as gym

import isac_gym  # noqa: F401  (registers the ids)
from isac_gym.channels.base import ChannelModel
from isac_gym.evaluation.channel_set import EvaluationSet, evaluation_set
from isac_gym.evaluation.provenance import provenance
from isac_gym.evaluation.table import Row, Table
from isac_gym.learning.checkpoint_writer import DEFAULT_SECONDS
from isac_gym.registry import EXPERIMENTS
from isac_gym.scenario import Scenario
from isac_gym.system.constraints import Constraint
from isac_gym.validation import check_integer, check_real

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Experiment", "Point", "Report", "Workspace", "check_evaluation_seed", "setting"]

Point: TypeAlias = Mapping[str, Any]
"""What tells a point from the others, as plain JSON types."""
Report: TypeAlias = Callable[[str], None]
"""Called with what is computed now, and with nothing where other output may come."""


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    option: str | None = None,
    only_selects: bool = False,
) -> Any:
    """A field of an experiment, which is an option of its command.

    Args:
        default: Its default.
        help: What it is, for the command's help.
        minimum: The least value allowed, of the type that values have; None allows any.
        option: Name of the option, or several with spaces between; None makes ``--like-this`` of
            ``like_this``.
        only_selects: Whether it only says which points there are. A run that goes on where another
            was killed may then have another value.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "option": option,
        "only_selects": only_selects,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _check_setting(name: str, minimum: float, value: object) -> float:
    if isinstance(minimum, int):
        return check_integer(name, value, minimum)
    return check_real(name, value, f"a number >= {minimum:g}", lambda x: x >= minimum)


def check_evaluation_seed(evaluation_seed: int, seeds: int) -> None:
    """Check that no training of the seeds 0, 1, … sees the channels of an evaluation.

    Args:
        evaluation_seed: Seed of the evaluation's channels.
        seeds: Number of seeds of the trainings.

    Raises:
        ValueError: If it is among them.
    """
    if evaluation_seed < seeds:
        raise ValueError(
            "evaluation_seed must be none of the seeds, whose training would see its channels, "
            f"got {evaluation_seed!r}"
        )


_PLAIN: Final = re.compile("[a-z0-9_.-]{1,80}")
"""Names that differ as files on every system if they differ at all."""


@dataclasses.dataclass(frozen=True)
class Workspace:
    """Where a point is computed.

    Attributes:
        folder: Where it may keep what a killed run goes on from; it is removed once the results are
            written. None keeps nothing.
        report: Says what is computed now; None says nothing.
        checkpoint_seconds: Time between two savings of a training, at most, in s.
    """

    folder: Path | None = None
    report: Report | None = None
    checkpoint_seconds: float = DEFAULT_SECONDS

    def keep_training(self, name: str) -> dict[str, Any]:
        """Those arguments of an agent's ``learn`` by which it goes on after it was killed.

        Args:
            name: What tells this training from others of the run.
        """
        if self.folder is None:
            return {"checkpoint": None}
        return {
            "checkpoint": self.folder / f"{_make_file_name(name)}.checkpoint.zip",
            "checkpoint_seconds": self.checkpoint_seconds,
        }

    def say(self, line: str) -> None:
        """Report a line; an empty one where a progress bar follows."""
        if self.report is not None:
            self.report(line)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """What is computed at several points; subclass it and register it to bring your own.

    A subclass is a frozen dataclass whose further fields, made by :func:`setting`, are its settings
    and the options of its command.

    Attributes:
        keeps_parts: Whether the rows make a table also where agents failed at some of the points.
        scenario: The scenario.
        channel_model: How channels are drawn: a model, its name, or None for the scenario's.
        constraints: Constraints beside those of every system: objects or registered names.

    Raises:
        ValueError: If a setting is less than its minimum, or of another type.
    """

    keeps_parts: ClassVar[bool] = False
    scenario: Scenario = dataclasses.field(default_factory=lambda: Scenario.preset("paper"))
    channel_model: ChannelModel | str | None = None
    constraints: tuple[Constraint | str, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            minimum, given = field.metadata.get("minimum"), getattr(self, field.name)
            if minimum is None or given is None:
                continue
            check = functools.partial(_check_setting, field.name, minimum)
            is_several = isinstance(given, Sequence) and not isinstance(given, str)
            checked = type(given)(map(check, given)) if is_several else check(given)
            object.__setattr__(self, field.name, checked)

    @property
    def name(self) -> str:
        """The name that it is registered by, or that of its class."""
        return str(EXPERIMENTS.describe(self)["name"]).rpartition(":")[2]

    @abstractmethod
    def points(self) -> Sequence[Point]:
        """The points, all different, in the order in which they are computed.

        Raises:
            ValueError: If a setting is not allowed.
        """

    @abstractmethod
    def run(self, point: Point, workspace: Workspace) -> Row:
        """Compute a point.

        Args:
            point: One of :meth:`points`.
            workspace: Where it is computed.

        Returns:
            Further entries of the point's row, as JSON types: numbers, texts, and lists that the
            picture is drawn from.
        """

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """The table of the rows, each with the entries of its point first."""
        return Table(self.name, tuple(rows), self.settings())

    def draw(self, table: Table) -> Figure | None:
        """The picture of a table, if there is one."""
        return None

    def settings(self) -> dict[str, Any]:
        """All that the results depend on, as plain JSON types: what tables and files state."""
        own = {field.name: getattr(self, field.name) for field in self.find_settings()}
        scenario = self.scenario.to_dict()
        return {**provenance(self.env), "scenario": scenario, "experiment": self.name, **own}

    @functools.cached_property
    def env(self) -> Any:
        """An environment of the experiment."""
        return self.make_env()

    def make_env(self, **changes: Any) -> Any:
        """An environment of the experiment with some fields of the scenario changed."""
        return gym.make(
            "ISAC-MISO-v0",
            scenario=self.scenario.replace(**changes),
            channel_model=self.channel_model,
            constraints=self.constraints,
            disable_env_checker=True,
        )

    def draw_channels(self, env: Any, channels: int, seed: int) -> EvaluationSet:
        """The evaluation set of an environment; see :func:`isac_gym.evaluation.evaluation_set`."""
        unwrapped = env.unwrapped
        return evaluation_set(unwrapped.scenario, unwrapped.channel_model, channels, seed)

    @classmethod
    def find_settings(cls) -> list[dataclasses.Field[Any]]:
        """The fields that are settings of this experiment alone."""
        common = {field.name for field in dataclasses.fields(Experiment)}
        return [field for field in dataclasses.fields(cls) if field.name not in common]


def _make_file_name(name: str) -> str:
    """A name that file systems take, of any; plain names are as they are."""
    if _PLAIN.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{re.sub('[^A-Za-z0-9_-]+', '.', name)[:80]}-{digest}"
