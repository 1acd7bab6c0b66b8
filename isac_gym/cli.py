"""The command line ``isac-gym``."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from isac_gym.cli_common import (
    EXPECTED_ERRORS,
    AgentSettings,
    Channels,
    EvaluationSeed,
    Output,
    ScenarioName,
    Seed,
    Settings,
    console,
    fail,
    find_modules_here,
    is_file,
    make_env,
    named_agent,
    parse_assignments,
    print_files,
    require_trained,
)
from isac_gym.cli_experiments import labels, study, tradeoff

app = typer.Typer(
    help="Integrated sensing and communication as a Gymnasium environment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _train(agent: Any, name: str, folder: Path) -> Path | None:
    """Train an agent that can learn, with progress bar and checkpoint if it knows them.

    Returns:
        The checkpoint, which the caller removes once the results are safe.
    """
    import inspect

    from isac_gym.agents.trainer import CheckpointError, TrainingError

    learn = getattr(agent, "learn", None)
    if learn is None:
        return None
    known = inspect.signature(learn).parameters
    needed = [
        parameter.name
        for parameter in known.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if needed:
        fail(
            f"agent {name!r} learns, but its learn() needs {', '.join(needed)}: hand in a trained "
            "agent, or give learn() defaults"
        )
    options: dict[str, Any] = {}
    if "progress_bar" in known:
        options["progress_bar"] = True
    checkpoint = None
    if "checkpoint" in known:
        checkpoint = folder / f"{name.replace(':', '.')}.checkpoint.zip"
        if checkpoint.exists():
            console.print(f"{name}: going on from {checkpoint}", highlight=False)
        options["checkpoint"] = checkpoint
    try:
        learn(**options)
    except (TrainingError, CheckpointError) as error:
        fail(error)
    return checkpoint


@app.command()
def compare(
    agent: Annotated[
        list[str] | None,
        typer.Option(
            help="Agent to add: a name of `isac-gym agents`, module:Class, a saved .zip, or "
            "pretrained:NAME (repeatable)."
        ),
    ] = None,
    only: Annotated[
        bool, typer.Option("--only", help="Compare only the agents given by --agent.")
    ] = False,
    scenario: ScenarioName = "paper",
    settings: Settings = None,
    channels: Channels = 2000,
    evaluation_seed: EvaluationSeed = 7,
    seed: Seed = 0,
    output: Output = Path("results/compare"),
) -> None:
    """Train what needs training, evaluate all on one set of channels, print the table.

    Writes compare.csv, compare.json (with settings and versions) and compare.png. A run that was
    killed before its results were written goes on from its checkpoints.
    """
    from isac_gym.agents.learner import LearningAgent
    from isac_gym.evaluation import AgentError, AgentResult
    from isac_gym.evaluation import compare as compare_agents
    from isac_gym.plotting import comparison_figure, save_figure
    from isac_gym.policy import REGISTRY, agent_names
    from isac_gym.system import system_of

    started = time.perf_counter()
    if seed == evaluation_seed:
        fail(
            f"--seed and --evaluation-seed must differ, got {seed}: training would see the channels"
        )
    find_modules_here()
    env = make_env(scenario, settings)
    own = system_of(env).scenario
    control = own.control
    names = [
        name
        for name in ([] if only else agent_names(control))
        if name in REGISTRY and REGISTRY[name].compared and own.radar in REGISTRY[name].radars
    ]
    if not only and control == "beamforming" and own.precoder_directions == "mrt":
        names.remove("equal-power")  # "mrt" is the same
    names += [name for name in agent or [] if name not in names]
    agents: dict[str, Any] = {}
    checkpoints: list[tuple[Any, Path]] = []
    try:
        for name in names:
            made = _agent_if_possible(name, env, seed, asked_for=name in (agent or []))
            if made is not None:
                agents[name] = made
        if not agents:
            raise ValueError("agents must hold at least one agent, got none")
        output.mkdir(parents=True, exist_ok=True)  # before the training, whose result it holds
    except EXPECTED_ERRORS as error:
        fail(error)
    for name, made in agents.items():
        if (name not in REGISTRY or REGISTRY[name].learns) and not is_file(name):
            checkpoint = _train(made, name, output)
            if checkpoint is not None:
                checkpoints.append((made, checkpoint))
    try:
        waiting = iter(agents)
        with console.status(f"evaluating {next(waiting)}") as status:

            def report(result: AgentResult) -> None:
                status.update(f"evaluating {next(waiting, 'done')}")

            comparison = compare_agents(
                agents, env, channels=channels, seed=evaluation_seed, callback=report
            )
    except AgentError as error:
        traceback.print_exception(error.__cause__)
        fail(error)
    except EXPECTED_ERRORS as error:
        fail(error)
    comparison.settings["seconds"] = round(time.perf_counter() - started, 1)
    comparison.settings["training_seed"] = seed
    wide = Console(width=max(console.width, 132))
    wide.print(comparison)
    try:
        comparison.to_csv(output / "compare.csv")
        comparison.to_json(output / "compare.json")
        save_figure(comparison_figure(comparison, system_of(env)), output / "compare.png")
    except OSError as error:
        fail(error)
    for made, checkpoint in checkpoints:
        if isinstance(made, LearningAgent):
            made.forget_checkpoint(checkpoint)
        else:
            checkpoint.unlink(missing_ok=True)
    print_files(output, "compare", 132)


def _agent_if_possible(name: str, env: Any, seed: int, asked_for: bool) -> Any:
    """The agent, or None with a word why: it does not suit the scenario and nobody asked for it."""
    try:
        return named_agent(name, env, seed)
    except ValueError as error:
        if asked_for:
            raise
        console.print(f"left out: {name} ({error})", style="yellow", highlight=False)
        return None


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A learning agent of `isac-gym agents`.")],
    scenario: ScenarioName = "paper",
    settings: Settings = None,
    agent_settings: AgentSettings = None,
    seed: Seed = 0,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Gradient steps; short for -a iterations=.")
    ] = None,
    device: Annotated[str, typer.Option(help="A torch device; auto is CUDA if present.")] = "auto",
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None,
    evaluate_every: Annotated[
        int, typer.Option(min=0, help="Iterations between evaluations; 0 makes none.")
    ] = 0,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="End after so many evaluations without improvement."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the agent.")] = Path(
        "results/agent.zip"
    ),
) -> None:
    """Train an agent and save it; goes on where a killed run of the same output was.

    With --evaluate-every the best agent is kept beside it, as NAME.best.zip: the highest rate among
    those whose constraints hold, or the least violation while none does.
    """
    from isac_gym.agents.callbacks import EvaluationCallback, StopOnConvergence
    from isac_gym.agents.trainer import TrainingError
    from isac_gym.policy import REGISTRY, make_agent

    if name not in REGISTRY or not REGISTRY[name].learns:
        fail(
            f"agent must be one of {', '.join(k for k, v in REGISTRY.items() if v.learns)}, "
            f"got {name!r}"
        )
    if patience is not None and not evaluate_every:
        fail("--patience needs --evaluate-every")
    options = parse_assignments("--agent-set", agent_settings)
    if iterations is not None:
        if "iterations" in options:
            fail("--iterations and -a iterations= must not both be given")
        options["iterations"] = iterations
    env = make_env(scenario, settings)
    checkpoint = output.with_suffix(".checkpoint.zip")
    best = output.with_suffix(".best.zip")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        learner: Any = make_agent(name, env, seed=seed, device=device, **options)
        callback = None
        if evaluate_every:
            then = None if patience is None else StopOnConvergence(patience)
            callback = EvaluationCallback(learner, evaluate_every, best=best, then=then)
        learner.learn(
            progress_bar=True,
            callback=callback,
            tensorboard_log=tensorboard,
            checkpoint=checkpoint,
        )
        learner.save(output, command=shlex.join(["isac-gym", *sys.argv[1:]]))
    except (*EXPECTED_ERRORS, TrainingError) as error:
        fail(error)
    learner.forget_checkpoint(checkpoint)
    console.print(f"agent: {output}", highlight=False)
    if callback is not None and best.exists():
        found = next(entry for entry in reversed(callback.history) if entry.is_best)
        kept = found.violation <= callback.tolerance
        console.print(
            f"best: {best} (iteration {found.iteration}, {found.sum_rate:.3f} bit/s/Hz"
            + (
                ")"
                if kept
                else f"; no agent kept the constraints, least excess {found.violation:.1%})"
            ),
            highlight=False,
        )


@app.command()
def evaluate(
    agent: Annotated[
        list[str], typer.Argument(help="Names, module:Class, saved .zip files, or pretrained:NAME.")
    ],
    scenario: ScenarioName = "paper",
    settings: Settings = None,
    channels: Channels = 2000,
    evaluation_seed: EvaluationSeed = 7,
) -> None:
    """Evaluate agents without training them, and print the table."""
    from isac_gym.evaluation import AgentError
    from isac_gym.evaluation import compare as compare_agents

    find_modules_here()
    env = make_env(scenario, settings)
    try:
        agents = {name: named_agent(name, env) for name in agent}
        require_trained(list(agents))
        comparison = compare_agents(agents, env, channels=channels, seed=evaluation_seed)
    except AgentError as error:
        traceback.print_exception(error.__cause__)
        fail(error)
    except EXPECTED_ERRORS as error:
        fail(error)
    Console(width=max(console.width, 132)).print(comparison)


@app.command()
def agents() -> None:
    """List the agents that can be compared by name."""
    from isac_gym.agents.pretrained import pretrained_names
    from isac_gym.policy import REGISTRY, agent_names

    table = Table()
    table.add_column("name", no_wrap=True)
    for heading in ("learns", "control", "what it does"):
        table.add_column(heading)
    for name in agent_names():
        entry = REGISTRY.get(name)
        if entry is None:
            table.add_row(name, "", "", "from an installed package")
        else:
            learns = "yes" if entry.learns else ""
            table.add_row(name, learns, ", ".join(sorted(entry.controls)), entry.description)
    console.print(table)
    console.print(
        "trained agents: " + ", ".join(f"pretrained:{name}" for name in pretrained_names()),
        highlight=False,
        soft_wrap=True,
    )


@app.command()
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
            str(value) if index == 0 or value != values[0] else "·"
            for index, value in enumerate(values)
        ]
        table.add_row(name, *shown)
    Console(width=max(console.width, 150)).print(table)


@app.command()
def bench(
    scenario: ScenarioName = "paper",
    settings: Settings = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Size of the batch.")] = 1024,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each measurement.")] = 3.0,
) -> None:
    """Measure steps per second of the single and the batched environment on this machine."""
    import gymnasium as gym
    import torch

    from isac_gym.physics.compiled import CompiledPairs
    from isac_gym.system import system_of

    env = make_env(scenario, settings)
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=num_envs, scenario=system_of(env).scenario)
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
    compiled = CompiledPairs.supports(system_of(env).sensing.grid_deg)
    console.print(table)
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, sensing loss "
        f"{'compiled' if compiled else 'in tensor operations'}",
        highlight=False,
    )


app.command()(tradeoff)
app.command()(labels)
app.command()(study)
