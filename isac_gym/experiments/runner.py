"""Running an experiment: point after point, in files that a killed run goes on from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from isac_gym.evaluation.calling import AgentError, join_failures
from isac_gym.evaluation.table import Row, Table
from isac_gym.experiments.base import Experiment, Point, Report, Workspace
from isac_gym.experiments.style import save_figure
from isac_gym.files import (
    check_output_file,
    check_output_folder,
    lock_output,
    write_atomically,
)
from isac_gym.learning.checkpoint_writer import DEFAULT_SECONDS
from isac_gym.reading import FileError, blame_file, make_file_error, open_file, read_json
from isac_gym.stopping import state_what_is_kept

__all__ = ["run_experiment"]

_ROWS: Final = "rows.json"


def run_experiment(
    experiment: Experiment,
    folder: str | Path | None = None,
    report: Report | None = None,
    checkpoint_seconds: float = DEFAULT_SECONDS,
) -> Table:
    """Compute all points of an experiment.

    Rows are kept as they come, in the folder ``NAME.unfinished`` of the output folder; a run that
    was killed goes on from there and ends with the same table.

    Args:
        experiment: The experiment.
        folder: Where NAME.csv, NAME.json and, of some, NAME.png are written; None writes nothing.
        report: Called with a line of text for every point, and with an empty one at the end and
            where other output may come.
        checkpoint_seconds: Time between two savings of a training, at most, in s.

    Returns:
        The table.

    Raises:
        AgentError: If an agent fails at a point. It is raised once the other points have been
            computed; their rows are kept, so that the next run computes what failed alone. Where
            they make a table by themselves (``keeps_parts``), this is written as well, says what is
            left out, and is the error's ``results``.
        ValueError: If a setting is not allowed, there are no points, the folder holds rows of
            other settings, or something else is where results belong.
        OutputInUseError: If another run of the experiment writes there.
        OSError: If the folder cannot be written to.
        Stopped: If a signal came while :func:`~isac_gym.stopping.raise_on_signals` is in force, or
            while an agent trains; the message says what is kept.
    """
    points = [_as_json(point) for point in experiment.points()]
    for point in points:
        if points.count(point) > 1:
            raise ValueError(f"points must all be different, got {_describe(point)} twice")
    if not points:
        raise ValueError(f"experiment {experiment.name!r} must have at least one point, got none")
    if folder is None:
        computed = _compute(experiment, points, Workspace(None, report))
        computed.require_table(experiment)
        table = computed.tabulate(experiment)
        computed.raise_failures(table)
        return table
    folder = Path(folder)
    check_output_folder(folder)
    written = [folder / f"{experiment.name}.{ending}" for ending in ("json", "csv", "png")]
    for path in written:
        check_output_file(path)
    unfinished = folder / f"{experiment.name}.unfinished"
    check_output_folder(unfinished)
    told = state_what_is_kept(experiment.name, f"finished points are kept in {unfinished}")
    with lock_output(*written, unfinished), told:
        computed = _compute(experiment, points, Workspace(unfinished, report, checkpoint_seconds))
        computed.require_table(experiment)
        with _blame_rows(experiment, unfinished / _ROWS) if computed.goes_on else nullcontext():
            table = computed.tabulate(experiment)
        figure = experiment.draw(table)
        as_json, as_csv, as_png = written
        table.to_csv(as_csv)
        table.to_json(as_json)
        if figure is not None:
            save_figure(figure, as_png)
        computed.raise_failures(table)
        shutil.rmtree(unfinished)
    return table


def _blame_rows(experiment: Experiment, path: Path) -> AbstractContextManager[None]:
    """Errors are of rows that an earlier run kept: what is in a row, only its experiment knows."""
    problem = f"rows do not fit experiment {experiment.name!r}"
    return blame_file(path, problem, advice=_advise(path))


@dataclasses.dataclass(frozen=True)
class _Computed:
    """What has been computed.

    Attributes:
        rows: The rows.
        failures: The errors of points at which an agent failed.
        goes_on: Whether some rows come from a file of an earlier run.
    """

    rows: list[Row]
    failures: dict[str, AgentError]
    goes_on: bool

    def require_table(self, experiment: Experiment) -> None:
        """Check that there are enough rows for a table.

        Raises:
            AgentError: If there are not, for agents failed.
        """
        if self.failures and not (self.rows and experiment.keeps_parts):
            raise join_failures(self.failures, None)

    def tabulate(self, experiment: Experiment) -> Table:
        """The table, which also says which points are missing, and why."""
        table = experiment.tabulate(self.rows)
        if not self.failures:
            return table
        lines = [f"left out: {point} ({error})" for point, error in self.failures.items()]
        failed = {point: str(error) for point, error in self.failures.items()}
        return dataclasses.replace(
            table,
            caption="\n".join([table.caption, *lines]),
            settings={**table.settings, "failed": failed},
        )

    def raise_failures(self, table: Table) -> None:
        """Raise what failed, once the table of the others is written.

        Raises:
            AgentError: If an agent failed.
        """
        if self.failures:
            raise join_failures(self.failures, table)


class _Kept(msgspec.Struct):
    """What a file of rows holds; what is in a row, only its experiment knows."""

    settings: dict[str, Any]
    rows: list[tuple[dict[str, Any], dict[str, Any]]]


def _compute(experiment: Experiment, points: list[Any], workspace: Workspace) -> _Computed:
    fingerprint = _fingerprint(experiment)
    path = None if workspace.folder is None else workspace.folder / _ROWS
    kept: list[list[Any]] = []
    goes_on = False
    if path is not None:
        kept = _read_rows(path, fingerprint)
        goes_on = bool(kept)
        _write_rows(path, fingerprint, kept)
    rows: list[Row] = []
    failures: dict[str, AgentError] = {}
    for number, point in enumerate(points, 1):
        row = next((held for of, held in kept if of == point), None)
        if row is None:
            workspace.say(f"{_describe(point)} ({number} of {len(points)})")
            try:
                row = _as_json(experiment.run(point, workspace))
            except AgentError as error:
                failures[_describe(point)] = error
                continue
            kept.append([point, row])
            if path is not None:
                _write_rows(path, fingerprint, kept)
        rows.append({**point, **row})
    workspace.say("")
    return _Computed(rows, failures, goes_on)


def _fingerprint(experiment: Experiment) -> dict[str, Any]:
    """The settings without those that only select points."""
    selecting = {f.name for f in experiment.find_settings() if f.metadata.get("only_selects")}
    settings = experiment.settings()
    return dict(_as_json({key: settings[key] for key in settings if key not in selecting}))


def _read_rows(path: Path, fingerprint: dict[str, Any]) -> list[list[Any]]:
    """Pairs of point and row that an earlier run kept.

    Raises:
        ValueError: If the file is damaged, or of other settings.
    """
    advice = _advise(path)
    try:
        with open_file(path, "damaged", advice=advice) as file:
            kept = read_json(file, _Kept)
    except FileNotFoundError:
        return []
    settings, rows = kept.settings, [[point, row] for point, row in kept.rows]
    for key in dict.fromkeys([*fingerprint, *settings] if rows else []):
        held, own = settings.get(key), fingerprint.get(key)
        if held != own:
            message = f"rows must be for {key}={own!r}, got {held!r}; {advice}"
            raise make_file_error(FileError, path, message)
    return rows


def _advise(path: Path) -> str:
    return f"delete {path.parent} to start anew, or choose another folder"


def _write_rows(path: Path, fingerprint: dict[str, Any], rows: list[list[Any]]) -> None:
    content = {"settings": fingerprint, "rows": rows}
    write_atomically(path, json.dumps(content, ensure_ascii=False).encode())


def _as_json(value: Any) -> Any:
    """As it would come from a file, so that a run that goes on has the same numbers."""
    return json.loads(json.dumps(value, default=_convert))


def _convert(value: Any) -> Any:
    """Numbers of NumPy as Python's, and paths as text."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"rows and settings must hold JSON types, got {value!r}")


def _describe(point: Point) -> str:
    return ", ".join(f"{key} {value}" for key, value in point.items())
