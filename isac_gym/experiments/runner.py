"""Running an experiment: point after point, in files that a killed run goes on from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from isac_gym.evaluation.calling import AgentError, join_failures
from isac_gym.evaluation.table import Row, Table
from isac_gym.experiments.base import Experiment, Point, Report, Workspace
from isac_gym.experiments.style import save_figure
from isac_gym.files import write_atomically

__all__ = ["run_experiment"]

_ROWS: Final = "rows.json"


def run_experiment(
    experiment: Experiment, folder: str | Path | None = None, report: Report | None = None
) -> Table:
    """Compute all points of an experiment.

    Rows are kept as they come, in the folder ``NAME.unfinished`` of the output folder; a run that
    was killed goes on from there and ends with the same table.

    Args:
        experiment: The experiment.
        folder: Where NAME.csv, NAME.json and, of some, NAME.png are written; None writes nothing.
        report: Called with a line of text for every point, and with an empty one at the end and
            where other output may come.

    Returns:
        The table.

    Raises:
        AgentError: If an agent fails at a point. It is raised once the other points have been
            computed; their rows are kept, so that the next run computes what failed alone. Where
            they make a table by themselves (``keeps_parts``), this is written as well, says what is
            left out, and is the error's ``results``.
        ValueError: If a setting is not allowed, there are no points, or the folder holds rows of
            other settings.
        OSError: If the folder cannot be written to.
    """
    points = [_as_json(point) for point in experiment.points()]
    for point in points:
        if points.count(point) > 1:
            raise ValueError(f"points must all be different, got {_describe(point)} twice")
    if not points:
        raise ValueError(f"experiment {experiment.name!r} must have at least one point, got none")
    folder = None if folder is None else Path(folder)
    kept = None if folder is None else folder / f"{experiment.name}.unfinished"
    rows, failures = _compute(experiment, points, Workspace(kept, report))
    if failures and not (rows and experiment.keeps_parts):
        raise join_failures(failures, None)
    table = experiment.tabulate(rows)
    if failures:
        table = _state_failures(table, failures)
    if folder is not None:
        _write(experiment, table, folder)
    if failures:
        raise join_failures(failures, table)
    if kept is not None:
        shutil.rmtree(kept)
    return table


def _state_failures(table: Table, failures: Mapping[str, AgentError]) -> Table:
    """The table, which also says which points are missing, and why."""
    lines = [f"left out: {point} ({error})" for point, error in failures.items()]
    return dataclasses.replace(
        table,
        caption="\n".join([table.caption, *lines]),
        settings={**table.settings, "failed": {key: str(each) for key, each in failures.items()}},
    )


def _write(experiment: Experiment, table: Table, folder: Path) -> None:
    table.to_csv(folder / f"{experiment.name}.csv")
    table.to_json(folder / f"{experiment.name}.json")
    figure = experiment.draw(table)
    if figure is not None:
        save_figure(figure, folder / f"{experiment.name}.png")


def _compute(
    experiment: Experiment, points: list[Any], workspace: Workspace
) -> tuple[list[Row], dict[str, AgentError]]:
    """The rows, and the errors of points at which an agent failed."""
    fingerprint = _fingerprint(experiment)
    path = None if workspace.folder is None else workspace.folder / _ROWS
    kept: list[list[Any]] = []
    if path is not None:
        kept = _read_rows(path, fingerprint)
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
    return rows, failures


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
    advice = f"delete {path.parent} to start anew, or choose another folder"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, rows = dict(content["settings"]), [[dict(p), dict(r)] for p, r in content["rows"]]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); {advice}") from error
    for key in dict.fromkeys([*fingerprint, *settings] if rows else []):
        held, own = settings.get(key), fingerprint.get(key)
        if held != own:
            raise ValueError(f"{path}: rows must be for {key}={own!r}, got {held!r}; {advice}")
    return rows


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
