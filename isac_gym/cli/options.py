"""Options that commands share, and what becomes of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from isac_gym.scenario import Scenario

__all__ = [
    "AgentSettings",
    "Channels",
    "CheckpointSeconds",
    "Environment",
    "EvaluationSeed",
    "Seed",
    "console",
    "name_output",
    "parse_assignments",
    "print_table",
    "printing_results",
    "set_parameters",
    "takes_environment",
]

console = Console()
_TABLE_WIDTH = 160

AgentSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--agent-set",
        "-a",
        metavar="NAME=VALUE",
        help="Change a setting of the agent, for example -a batch_size=64 (repeatable).",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of training and initial weights.")]
CheckpointSeconds = Annotated[
    float,
    typer.Option(
        min=0.01,
        help="Seconds of a training that a kill can cost: from one checkpoint to the next.",
    ),
]
Channels = Annotated[int, typer.Option(min=1, help="Channels in the evaluation set.")]
EvaluationSeed = Annotated[int, typer.Option(min=0, help="Seed of the evaluation set.")]


def _parse_path(text: str | Path) -> Path:
    """A path; an empty one would be the current folder, which nobody means by it."""
    if not str(text).strip():
        raise typer.BadParameter("must be a path, got ''")
    return Path(text)


def name_output(help: str) -> Any:
    """The option that says where results go."""
    return typer.Option("--output", "-o", metavar="PATH", parser=_parse_path, help=help)


def parse_assignments(option: str, assignments: Iterable[str] | None) -> dict[str, Any]:
    """``NAME=VALUE`` settings with JSON values; what is no JSON is a string.

    Raises:
        ValueError: If one has no ``=``.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments or ():
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ValueError(f"{option} must be NAME=VALUE, got {assignment!r}")
        try:
            changes[key.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            changes[key.strip()] = value
    return changes


@dataclasses.dataclass(frozen=True)
class Environment:
    """What the options of a command say of the environment.

    Attributes:
        scenario: The scenario.
        channel_model: The channel model, or None for the scenario's.
        constraints: Names of constraints beside those of every system.
    """

    scenario: Scenario
    channel_model: Any
    constraints: tuple[str, ...]

    @classmethod
    def of_options(
        cls,
        scenario: Annotated[str, typer.Option(help="Name of a preset.")] = "paper",
        settings: Annotated[
            list[str] | None,
            typer.Option(
                "--set",
                "-s",
                metavar="NAME=VALUE",
                help="Change a scenario parameter, for example -s snr_db=5 (repeatable).",
            ),
        ] = None,
        channel: Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                help="Channel model: a name of `isac-gym channels`, file:PATH, or module:Class.",
            ),
        ] = None,
        channel_settings: Annotated[
            list[str] | None,
            typer.Option(
                "--channel-set",
                "-c",
                metavar="NAME=VALUE",
                help="Argument of the channel model, for example -c k_factor_db=7 (repeatable).",
            ),
        ] = None,
        constraint: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME",
                help="Constraint to add: a name of `isac-gym constraints`, NAME:VALUE with its "
                "first argument, or module:Class (repeatable).",
            ),
        ] = None,
    ) -> Environment:
        """Read the options, which are the parameters of this function.

        Raises:
            TypeError: If the channel model is none.
            ValueError: If there is no such name, or a value is not allowed.
        """
        changes = parse_assignments("--set", settings)
        unknown = sorted(set(changes) - set(Scenario.field_names()))
        if unknown:
            raise ValueError(
                f"--set must name parameters of the scenario ({', '.join(Scenario.field_names())}),"
                f" got {', '.join(unknown)}"
            )
        chosen = Scenario.preset(scenario).replace(**changes)
        arguments = parse_assignments("--channel-set", channel_settings)
        if channel is None and arguments:
            raise ValueError(f"--channel-set needs --channel, got {', '.join(arguments)}")
        model = None
        if channel is not None:
            from isac_gym.channels.selection import make_channel_model

            model = make_channel_model(channel, **arguments)
        return cls(chosen, model, tuple(constraint or ()))

    def to_arguments(self) -> dict[str, Any]:
        """The attributes as keywords of ``gym.make``, and of every experiment."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def make(self) -> Any:
        """The environment."""
        import gymnasium as gym

        return gym.make("ISAC-MISO-v0", **self.to_arguments(), disable_env_checker=True)


ENVIRONMENT_OPTIONS = tuple(
    inspect.signature(Environment.of_options, eval_str=True).parameters.values()
)


def set_parameters(function: Any, parameters: Iterable[inspect.Parameter]) -> None:
    """Let a function that takes any keywords say which ones there are."""
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    function.__signature__ = inspect.Signature(keywords)
    function.__annotations__ = {}


def takes_environment(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is an :class:`Environment`, the options of one."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        chosen = {option.name: values.pop(option.name) for option in ENVIRONMENT_OPTIONS}
        command(Environment.of_options(**chosen), **values)

    _, *others = inspect.signature(command, eval_str=True).parameters.values()
    set_parameters(run, [*others, *ENVIRONMENT_OPTIONS])
    return run


@contextmanager
def printing_results(folder: Path | None = None, name: str = "") -> Iterator[None]:
    """Print the table of the others before the message about an agent that failed among them."""
    from isac_gym.evaluation import AgentError

    try:
        yield
    except AgentError as error:
        if error.results is not None:
            print_table(error.results, folder, name)
        raise


def print_table(table: Any, folder: Path | None = None, name: str = "") -> None:
    """Print a table, and where its files are."""
    wide = Console(width=max(console.width, _TABLE_WIDTH))
    wide.print(table)
    contents = {"png": "picture", "csv": "table", "json": "settings and table"}
    for ending, content in contents.items() if folder is not None else ():
        path = Path(folder or "") / f"{name}.{ending}"
        if path.exists():
            wide.print(f"{content}: {path}", highlight=False, soft_wrap=True, markup=False)
