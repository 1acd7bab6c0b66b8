"""The commands: those of agents and lists stand here, those of experiments are made."""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isac_gym.cli.agents import evaluate, labels, train
from isac_gym.cli.experiments import ExperimentGroup
from isac_gym.cli.options import Environment, console, print_table, takes_environment
from isac_gym.registry import AGENTS, CHANNELS, CONSTRAINTS, EXPERIMENTS, NETWORKS, Registry

__all__ = ["app"]

app = typer.Typer(cls=ExperimentGroup, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(
    typer.Typer(cls=ExperimentGroup, no_args_is_help=True),
    name="study",
    help="Run an experiment: one of those below, or module:Class.",
)
for _command in (train, evaluate, labels):
    app.command()(_command)


def _import_modules(names: list[str] | None) -> list[str]:
    """Import modules as soon as the option is read, so that the names in them are known.

    Modules of the current folder are found from here on, where a console script does not look.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        for name in names or ():
            importlib.import_module(name)
    except (ImportError, ValueError, SyntaxError) as error:
        raise typer.BadParameter(f"must be an importable module, got {name!r} ({error})") from error
    return names or []


@app.callback()
def start(
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Import a module, whose decorators register agents, channel models and so on "
            "(repeatable).",
            is_eager=True,
            callback=_import_modules,
        ),
    ] = None,
) -> None:
    """Integrated sensing and communication as a Gymnasium environment."""


def _add_list(plural: str, registry: Registry) -> None:
    def show() -> None:
        table = Table()
        table.add_column("name", no_wrap=True)
        entries = registry.entries().values()
        has_learners = any(entry.learns for entry in entries)
        has_controls = len({entry.controls for entry in entries}) > 1
        for heading in ["learns"] * has_learners + ["control"] * has_controls + ["what it is"]:
            table.add_column(heading)
        for entry in entries:
            learns = ["yes" if entry.learns else ""] * has_learners
            controls = [", ".join(sorted(entry.controls))] * has_controls
            table.add_row(entry.name, *learns, *controls, entry.description)
        console.print(table)
        if registry is AGENTS:
            from isac_gym.learning.pretrained import PREFIX, list_pretrained

            trained = ", ".join(f"{PREFIX}{name}" for name in list_pretrained())
            console.print(f"trained agents: {trained}", highlight=False, soft_wrap=True)

    app.command(plural, help=f"List the {plural}.", rich_help_panel="Lists")(show)


for _name, _registry in (
    ("agents", AGENTS),
    ("networks", NETWORKS),
    ("channels", CHANNELS),
    ("constraints", CONSTRAINTS),
    ("studies", EXPERIMENTS),
):
    _add_list(_name, _registry)


@app.command(rich_help_panel="Lists")
def scenarios() -> None:
    """List the presets and their parameters."""
    from isac_gym.scenario import PRESETS, Scenario

    table = Table()
    table.add_column("parameter", no_wrap=True)
    for preset in PRESETS:
        table.add_column(preset, no_wrap=True)
    for name in Scenario.field_names():
        values = [getattr(preset, name) for preset in PRESETS.values()]
        shown = [
            _show_value(value) if index == 0 or value != values[0] else "·"
            for index, value in enumerate(values)
        ]
        table.add_row(name, *shown)
    print_table(table)


def _show_value(value: object) -> str:
    """A value as text; sets of angles below each other."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "\n".join(map(str, value))
    return str(value)


@app.command()
@takes_environment
def bench(
    environment: Environment,
    num_envs: Annotated[int, typer.Option(min=1, help="Size of the batch.")] = 1024,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each measurement.")] = 3.0,
) -> None:
    """Measure steps per second of the single and the batched environment on this machine."""
    import gymnasium as gym
    import torch

    from isac_gym.physics.sensing.compiled import CompiledPairs

    env = environment.make()
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=num_envs, **environment.to_arguments())
    table = Table("environment", "env-steps/s, median", "best")
    for title, each, stepped in (("single", 1, env), (f"batch of {num_envs}", num_envs, envs)):
        stepped.reset(seed=0)
        stepped.action_space.seed(0)
        action = stepped.action_space.sample()
        for _ in range(3):
            stepped.step(action)
        times: list[float] = []
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            begin = time.perf_counter()
            if each == 1 and stepped.step(action)[3]:
                stepped.reset()
            elif each > 1:
                stepped.step(action)
            times.append(time.perf_counter() - begin)
        table.add_row(title, f"{each / statistics.median(times):,.0f}", f"{each / min(times):,.0f}")
    compiled = CompiledPairs.supports(env.unwrapped.system.sensing.grid_deg)
    console.print(table)
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, sensing loss "
        f"{'compiled' if compiled else 'in tensor operations'}",
        highlight=False,
    )
