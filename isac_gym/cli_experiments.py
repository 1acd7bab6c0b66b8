"""Commands of ``isac-gym`` for experiments and data sets."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from isac_gym.cli_common import (
    EXPECTED_ERRORS,
    AgentSettings,
    Channels,
    EvaluationSeed,
    ScenarioName,
    Settings,
    console,
    fail,
    find_modules_here,
    make_env,
    named_agent,
    parse_assignments,
    parse_scenario,
    print_files,
    require_trained,
)

__all__ = ["labels", "study", "tradeoff"]


class StudyName(str, Enum):
    """The studies."""

    paper = "paper"
    conditions = "conditions"
    sizes = "sizes"
    transfer = "transfer"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def tradeoff(
    scenario: ScenarioName = "paper",
    settings: Settings = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(min=0.0, help="Value of the sensing threshold (repeatable)."),
    ] = None,
    channels: Channels = 200,
    bound_channels: Annotated[
        int | None,
        typer.Option(min=0, help="Channels of the upper bound; all by default, 0 leaves it out."),
    ] = None,
    subdivisions: Annotated[int, typer.Option(min=0, help="Refinement of the upper bound.")] = 10,
    evaluation_seed: EvaluationSeed = 7,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "results/tradeoff"
    ),
) -> None:
    """Spectral efficiency against the sensing threshold: references, corners and bound.

    Writes tradeoff.csv, tradeoff.json (with settings) and tradeoff.png.
    """
    from isac_gym.experiments.tradeoff import FACTORS, TradeOffPoint, run_tradeoff, tradeoff_figure
    from isac_gym.files import write_atomically
    from isac_gym.plotting import save_figure

    chosen = parse_scenario(scenario, settings)
    designs = 3 + (bound_channels != 0)
    total = designs * len(set(threshold or FACTORS)) + 2
    try:
        output.mkdir(parents=True, exist_ok=True)
        with _progress() as progress:
            task = progress.add_task("trade-off", total=total)

            def report(point: TradeOffPoint) -> None:
                progress.update(task, advance=1, description=point.design)

            result = run_tradeoff(
                chosen,
                thresholds=threshold,
                channels=channels,
                bound_channels=bound_channels,
                subdivisions=subdivisions,
                seed=evaluation_seed,
                callback=report,
            )
        Console(width=max(console.width, 110)).print(result)
        write_atomically(output / "tradeoff.csv", result.to_csv().encode())
        write_atomically(output / "tradeoff.json", result.to_json().encode())
        save_figure(tradeoff_figure(result), output / "tradeoff.png")
    except EXPECTED_ERRORS as error:
        fail(error)
    print_files(output, "tradeoff", 110)


def study(
    name: Annotated[
        StudyName,
        typer.Argument(
            help="paper: the paper's network to the letter, several seeds. conditions: one agent "
            "over SNR and thresholds. sizes: at other numbers of users and antennas. transfer: "
            "from power control to beamforming, against direct learning."
        ),
    ],
    scenario: ScenarioName = "paper",
    settings: Settings = None,
    agent: Annotated[
        str, typer.Option(help="Saved agent or pretrained:NAME, for conditions and sizes.")
    ] = "pretrained:wide",
    preset: Annotated[str, typer.Option(help="Preset of the agents, for transfer.")] = "paper",
    agent_settings: AgentSettings = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Gradient steps, for paper and transfer.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the evaluations.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the results; results/NAME by default."),
    ] = None,
) -> None:
    """Study learning agents: print a table, write NAME.csv, NAME.json and, of some, NAME.png."""
    from isac_gym.agents.trainer import TrainingError
    from isac_gym.experiments.conditions import conditions_figure, run_conditions, run_sizes
    from isac_gym.experiments.paper_network import run_paper_network
    from isac_gym.experiments.transfer import run_transfer, transfer_figure
    from isac_gym.files import write_atomically
    from isac_gym.plotting import save_figure

    chosen = parse_scenario(scenario, settings)
    options = parse_assignments("--agent-set", agent_settings)
    folder = Path("results") / name.value if output is None else output
    some: dict[str, Any] = {} if channels is None else {"channels": channels}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with console.status("") as status:

            def report(line: str) -> None:
                status.update(line)

            figure = None
            if name is StudyName.paper:
                result = run_paper_network(
                    chosen, seeds=range(seeds), iterations=iterations, report=report, **some
                )
            elif name is StudyName.conditions:
                result = run_conditions(agent, chosen, report=report, **some)
                figure = conditions_figure(result)
            elif name is StudyName.sizes:
                result = run_sizes(agent, chosen, report=report, **some)
            else:
                if iterations is not None:
                    options["iterations"] = iterations
                result = run_transfer(
                    chosen,
                    preset=preset,
                    settings=options,
                    seeds=range(seeds),
                    report=report,
                    **some,
                )
                figure = transfer_figure(result)
        Console(width=max(console.width, 160)).print(result)
        write_atomically(folder / f"{name.value}.csv", result.to_csv().encode())
        write_atomically(folder / f"{name.value}.json", result.to_json().encode())
        if figure is not None:
            save_figure(figure, folder / f"{name.value}.png")
    except (*EXPECTED_ERRORS, TrainingError) as error:
        fail(error)
    endings = ("csv", "json") if figure is None else ("png", "csv", "json")
    print_files(folder, name.value, 160, endings)


def labels(
    agent: Annotated[
        str, typer.Argument(help="Name of an agent, module:Class, or a saved .zip file.")
    ] = "joint",
    count: Annotated[int, typer.Option(min=1, help="Channels to solve.")] = 10_000,
    scenario: ScenarioName = "paper",
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the channels.")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Channels a file.")] = 1024,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the labels.")] = Path(
        "results/labels"
    ),
) -> None:
    """Generate a data set of channels and an agent's solutions, for supervised learning.

    A generation that was killed goes on where it was; a larger --count extends a data set.
    """
    from isac_gym.labels import generate_labels

    find_modules_here()
    env = make_env(scenario, settings)
    require_trained([agent])
    try:
        solver = named_agent(agent, env)
        with _progress() as progress:
            task = progress.add_task(f"labels of {agent}", total=count)
            generate_labels(
                solver,
                env,
                output,
                count,
                name=agent,
                seed=seed,
                shard_size=shard_size,
                callback=lambda done: progress.update(task, completed=done),
            )
    except EXPECTED_ERRORS as error:
        fail(error)
    console.print(f"labels: {output}", highlight=False, soft_wrap=True)
