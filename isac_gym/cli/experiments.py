"""Commands of experiments, made from the registry and the fields of their settings."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from isac_gym.cli.options import (
    ENVIRONMENT_OPTIONS,
    CheckpointSeconds,
    Environment,
    console,
    name_output,
    parse_assignments,
    print_table,
    printing_results,
    set_parameters,
)
from isac_gym.learning.checkpoint_writer import DEFAULT_SECONDS
from isac_gym.registry import EXPERIMENTS
from isac_gym.stopping import Stopped, raise_on_signals

__all__ = ["ExperimentGroup"]

_EXPECTED_ERRORS = (TypeError, ValueError, ImportError, OSError)
"""What a user can cause; anything else is a defect and shows its traceback."""
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


class ExperimentGroup(TyperGroup):
    """Commands, and one more for every registered experiment; errors of users become messages."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands, then those of the experiments."""
        return list(dict.fromkeys([*super().list_commands(ctx), *EXPERIMENTS.names()]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command; of an experiment only what lists say, because its module imports torch."""
        found = super().get_command(ctx, cmd_name)
        if found is not None or not (":" in cmd_name or cmd_name in EXPERIMENTS.names()):
            return found
        return _make_command(cmd_name, lambda: None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the arguments, with its options."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and super().get_command(ctx, name) is None:
            with _ErrorMessages():
                command = _make_experiment_command(name)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with _ErrorMessages(), raise_on_signals():
            return super().invoke(ctx)


class _ErrorMessages:
    """What ends with a message and exit status 2 instead of a traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Stopped):
            typer.secho(str(error) or f"stopped by {error.name}", fg="yellow", err=True)
            # What shells give for a process that a signal has ended.
            raise typer.Exit(128 + error.number) from error
        if isinstance(error, RuntimeError) and "torch" in sys.modules:
            from isac_gym.evaluation.judging import AgentError
            from isac_gym.learning.trainer import TrainingError

            # What the package finds wrong needs no traceback; what an agent raises does.
            if isinstance(error, AgentError) and not isinstance(error, (TypeError, ValueError)):
                traceback.print_exception(error.__cause__)
            if not isinstance(error, (AgentError, TrainingError)):
                return
        elif not isinstance(error, _EXPECTED_ERRORS):
            return
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def _make_command(name: str, function: Callable[..., None]) -> Any:
    entry = EXPERIMENTS.entries().get(name)
    help = "" if entry is None else f"{entry.description[:1].upper()}{entry.description[1:]}."
    made = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    made.command(name, help=help, rich_help_panel="Experiments")(function)
    return typer.main.get_command(made)


def _make_experiment_command(name: str) -> Any:
    """The command of an experiment, with an option for each of its settings."""
    from isac_gym.experiments import Experiment, run_experiment

    kind = EXPERIMENTS.load(name)
    if not (isinstance(kind, type) and issubclass(kind, Experiment)):
        raise TypeError(f"experiment {name!r} must be a subclass of Experiment, got {kind!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in kind.find_settings()}

    def run(output: Path | None, checkpoint_seconds: float, **values: Any) -> None:
        given = {option.name: values.pop(option.name) for option in ENVIRONMENT_OPTIONS}
        for setting, value in values.items():
            if _is_mapping(hints[setting]):
                given_pairs = parse_assignments(_name_options(fields[setting])[0], value)
                values[setting] = {**_find_default(fields[setting]), **given_pairs}
            elif isinstance(value, list):
                values[setting] = tuple(value)
        experiment = kind(**Environment.of_options(**given).to_arguments(), **values)
        folder = Path("results") / experiment.name if output is None else output
        with printing_results(folder, experiment.name), console.status("") as status:

            def report(line: str) -> None:
                status.update(Text(line))  # names in it may look like markup
                status.start() if line else status.stop()

            table = run_experiment(experiment, folder, report, checkpoint_seconds)
        print_table(table, folder, experiment.name)

    where = name_output("Folder for the results; results/NAME by default.")
    output = inspect.Parameter(
        "output", _KEYWORD, default=None, annotation=Annotated[Path | None, where]
    )
    seconds = inspect.Parameter(
        "checkpoint_seconds", _KEYWORD, default=DEFAULT_SECONDS, annotation=CheckpointSeconds
    )
    options = [_make_parameter(field, hints[name]) for name, field in fields.items()]
    scenario = _name_scenario(kind)
    environment = [
        each.replace(default=scenario) if each.name == "scenario" else each
        for each in ENVIRONMENT_OPTIONS
    ]
    set_parameters(run, [*options, *environment, seconds, output])
    return _make_command(name, run)


def _name_scenario(kind: Any) -> str:
    """The preset that an experiment is for unless another is chosen.

    Raises:
        TypeError: If its default scenario is no preset, which a command cannot name.
    """
    from isac_gym.scenario import PRESETS

    (field,) = (field for field in dataclasses.fields(kind) if field.name == "scenario")
    default = _find_default(field)
    found = [name for name, preset in PRESETS.items() if preset == default]
    if not found:
        raise TypeError(
            f"the default scenario of {kind.__name__} must be a preset, one of "
            f"{', '.join(PRESETS)}, got {default!r}"
        )
    return found[0]


def _make_parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    """The parameter of a command for a field: a number, a text, or several of them."""
    default: Any = _find_default(field)
    alternatives = typing.get_args(hint)
    if type(None) in alternatives:
        (hint,) = (kind for kind in alternatives if kind is not type(None))
    origin = typing.get_origin(hint)
    metavar = "NAME=VALUE" if _is_mapping(hint) else None
    if metavar is not None:
        hint, default = list[str], []
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        hint = types.GenericAlias(list, typing.get_args(hint)[:1])
        default = None if default is None else list(default)
    option = typer.Option(
        *_name_options(field),
        min=field.metadata.get("minimum"),
        help=field.metadata.get("help"),
        metavar=metavar,
    )
    hint = hint if default is not None else hint | None
    return inspect.Parameter(
        field.name, _KEYWORD, default=default, annotation=Annotated[hint, option]
    )


def _find_default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _is_mapping(hint: Any) -> bool:
    return hint is dict or typing.get_origin(hint) in (dict, Mapping)


def _name_options(field: dataclasses.Field[Any]) -> list[str]:
    name = field.name.replace("_", "-")
    plain = f"--{name}/--no-{name}" if isinstance(field.default, bool) else f"--{name}"
    return str(field.metadata.get("option") or plain).split()
