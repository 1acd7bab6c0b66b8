"""What the commands of ``isac-gym`` share: options, output, and how names become objects."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from isac_gym.scenario import Scenario

__all__ = [
    "EXPECTED_ERRORS",
    "AgentSettings",
    "Channels",
    "EvaluationSeed",
    "Output",
    "ScenarioName",
    "Seed",
    "Settings",
    "console",
    "fail",
    "find_modules_here",
    "is_file",
    "make_env",
    "named_agent",
    "parse_assignments",
    "parse_scenario",
    "print_files",
    "require_trained",
]

console = Console()
_errors = Console(stderr=True)

# What a user can cause; anything else is a defect and shows its traceback.
EXPECTED_ERRORS = (TypeError, ValueError, ImportError, OSError)

ScenarioName = Annotated[str, typer.Option("--scenario", help="Name of a preset.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="Change a scenario parameter, for example -s snr_db=5 (repeatable).",
    ),
]
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
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
Channels = Annotated[int, typer.Option(min=1, help="Channels in the evaluation set.")]
EvaluationSeed = Annotated[int, typer.Option(min=0, help="Seed of the evaluation set.")]


def fail(message: object) -> NoReturn:
    """End the command with an error message and exit status 2."""
    _errors.print(f"error: {message}", style="red", markup=False, highlight=False)
    raise typer.Exit(2)


def parse_assignments(option: str, settings: list[str] | None) -> dict[str, Any]:
    """``NAME=VALUE`` settings with JSON values; what is no JSON is a string."""
    changes: dict[str, Any] = {}
    for setting in settings or []:
        key, separator, value = setting.partition("=")
        if not separator:
            fail(f"{option} must be NAME=VALUE, got {setting!r}")
        try:
            changes[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            changes[key.strip()] = value
    return changes


def parse_scenario(name: str, settings: list[str] | None) -> Scenario:
    """The scenario of a preset with ``NAME=VALUE`` settings; fails where they are invalid."""
    changes = parse_assignments("--set", settings)
    unknown = sorted(set(changes) - set(Scenario.field_names()))
    if unknown:
        fail(
            f"--set must name parameters of the scenario ({', '.join(Scenario.field_names())}), "
            f"got {', '.join(unknown)}"
        )
    try:
        return Scenario.preset(name).replace(**changes)
    except (TypeError, ValueError) as error:
        fail(error)


def make_env(scenario: str, settings: list[str] | None) -> Any:
    """The environment of a preset with ``NAME=VALUE`` settings; fails where they are invalid."""
    import gymnasium as gym

    import isac_gym  # noqa: F401  (registers the ids)

    parsed = parse_scenario(scenario, settings)
    try:
        return gym.make("ISAC-MISO-v0", scenario=parsed, disable_env_checker=True)
    except (TypeError, ValueError) as error:
        fail(error)


def find_modules_here() -> None:
    """Let ``module:Class`` mean a module of the current folder.

    A console script does not look for modules where it is run.
    """
    sys.path.insert(0, str(Path.cwd()))


def is_file(name: str) -> bool:
    """Whether a name is that of a saved agent, or of one that comes with the package."""
    return name.endswith(".zip") or name.startswith("pretrained:")


def named_agent(name: str, env: Any, seed: int = 0) -> Any:
    """The agent of a name, of ``module:Class``, of a saved file or of ``pretrained:NAME``."""
    from isac_gym.policy import REGISTRY, make_agent

    if is_file(name):
        from isac_gym.agents import load_agent

        return load_agent(name, env)
    if name in REGISTRY and REGISTRY[name].learns:
        return make_agent(name, env, seed=seed)
    return make_agent(name, env)


def require_trained(names: list[str]) -> None:
    """Fail if a name is that of an agent that has to be trained first."""
    from isac_gym.policy import REGISTRY

    untrained = [name for name in names if name in REGISTRY and REGISTRY[name].learns]
    if untrained:
        fail(f"not trained: {', '.join(untrained)}; train first, and give the saved .zip")


def print_files(
    folder: Path, stem: str, width: int, endings: Sequence[str] = ("png", "csv", "json")
) -> None:
    """Say where the picture, the table and the settings are."""
    wide = Console(width=max(console.width, width))
    contents = {"png": "picture", "csv": "table", "json": "settings and table"}
    for ending in endings:
        content = contents[ending]
        wide.print(f"{content}: {folder / f'{stem}.{ending}'}", highlight=False, soft_wrap=True)
