"""Commands for agents: train one, evaluate some, label channels with one's solutions."""

from __future__ import annotations

import inspect
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from isac_gym.cli.options import (
    AgentSettings,
    Channels,
    CheckpointSeconds,
    Environment,
    EvaluationSeed,
    Seed,
    console,
    name_output,
    parse_assignments,
    print_table,
    printing_results,
    takes_environment,
)
from isac_gym.files import check_output_file, check_output_folder, lock_output
from isac_gym.learning.checkpoint_writer import DEFAULT_SECONDS
from isac_gym.registry import AGENTS
from isac_gym.stopping import state_what_is_kept

__all__ = ["evaluate", "labels", "train"]

AGENT_HELP = (
    "Name of `isac-gym agents`, module:Class, a saved file, CLASS@FILE, or pretrained:NAME."
)


@takes_environment
def train(
    environment: Environment,
    name: Annotated[
        str, typer.Argument(help="Learning agent of `isac-gym agents`, or module:Class.")
    ],
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
    checkpoint_seconds: CheckpointSeconds = DEFAULT_SECONDS,
    output: Annotated[Path, name_output("File for the agent.")] = Path("results/agent.zip"),
) -> None:
    """Train an agent and save it; goes on where a killed run of the same output was.

    With --evaluate-every the best agent is kept beside it, as NAME.best.zip: the highest rate among
    those whose constraints hold, or the least violation while none does.
    """
    checkpoint, best = output.with_suffix(".checkpoint.zip"), output.with_suffix(".best.zip")
    for path in (output, checkpoint, best):
        check_output_file(path)
    if tensorboard is not None:
        check_output_folder(tensorboard, "tensorboard")
    options = parse_assignments("--agent-set", agent_settings)
    if patience is not None and not evaluate_every:
        raise ValueError("--patience needs --evaluate-every")
    if iterations is not None:
        if "iterations" in options:
            raise ValueError("--iterations and -a iterations= must not both be given")
        options["iterations"] = iterations

    from isac_gym.agents.loading import prepare_agent
    from isac_gym.learning.agent import LearningAgent

    prepared = prepare_agent(name, environment.make(), seed=seed, device=device, **options)
    agent = prepared.agent
    if not prepared.needs_training or not callable(getattr(agent, "save", None)):
        learners = ", ".join(key for key, entry in AGENTS.entries().items() if entry.learns)
        raise ValueError(
            f"agent must be one of {learners}, or a class with learn() and save(path), got {name!r}"
        )
    if evaluate_every and not isinstance(agent, LearningAgent):
        raise ValueError(f"--evaluate-every needs a LearningAgent, got {name!r}")
    callback = _make_callback(agent, evaluate_every, patience, best) if evaluate_every else None
    notes = {"command": shlex.join(["isac-gym", *sys.argv[1:]])}
    takes_notes = any(
        parameter.kind is parameter.VAR_KEYWORD
        for parameter in inspect.signature(agent.save).parameters.values()
    )
    told = state_what_is_kept("training", f"what was saved of it is in {checkpoint}")
    with lock_output(output, best), told:
        prepared.train(
            progress_bar=True,
            callback=callback,
            tensorboard_log=tensorboard,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
        )
        agent.save(output, **(notes if takes_notes else {}))
        if isinstance(agent, LearningAgent):
            agent.forget_checkpoint(checkpoint)
        else:
            checkpoint.unlink(missing_ok=True)
    console.print(f"agent: {output}", highlight=False, markup=False)
    if callback is not None and best.exists():
        found = next(entry for entry in reversed(callback.history) if entry.is_best)
        excess = f"; no agent kept the constraints, least excess {found.violation:.1%}"
        console.print(
            f"best: {best} (iteration {found.iteration}, {found.sum_rate:.3f} bit/s/Hz"
            f"{excess * (found.violation > callback.tolerance)})",
            highlight=False,
            markup=False,
        )


def _make_callback(agent: Any, every: int, patience: int | None, best: Path) -> Any:
    from isac_gym.learning.callbacks import EvaluationCallback, StopOnConvergence

    then = None if patience is None else StopOnConvergence(patience)
    return EvaluationCallback(agent, every, best=best, then=then)


@takes_environment
def evaluate(
    environment: Environment,
    agent: Annotated[list[str], typer.Argument(help=AGENT_HELP)],
    channels: Channels = 2000,
    evaluation_seed: EvaluationSeed = 7,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Load files that hold pickles, such as those of Stable-Baselines3, which can "
            "execute anything.",
        ),
    ] = False,
) -> None:
    """Evaluate agents without training them, and print the table."""
    from isac_gym.agents.loading import prepare_agent
    from isac_gym.evaluation import compare

    env = environment.make()
    prepared = [prepare_agent(name, env, allow_pickle=allow_pickle) for name in agent]
    for each in prepared:
        each.require_trained()
    agents = {each.name: each.agent for each in prepared}
    with printing_results():
        print_table(compare(agents, env, channels=channels, seed=evaluation_seed))


@takes_environment
def labels(
    environment: Environment,
    agent: Annotated[str, typer.Argument(help=AGENT_HELP)] = "joint",
    count: Annotated[int, typer.Option(min=1, help="Channels to solve.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the channels.")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Channels a file.")] = 1024,
    output: Annotated[Path, name_output("Folder for the labels.")] = Path("results/labels"),
) -> None:
    """Generate a data set of channels and an agent's solutions, for supervised learning.

    A generation that was killed goes on where it was; a larger --count extends a data set.
    """
    from isac_gym.agents.loading import prepare_agent
    from isac_gym.learning.labels import generate_labels

    env = environment.make()
    prepared = prepare_agent(agent, env)
    prepared.require_trained()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(f"labels of {agent}", total=count)
        generate_labels(
            prepared.agent,
            env,
            output,
            count,
            name=agent,
            seed=seed,
            shard_size=shard_size,
            callback=lambda done: progress.update(task, completed=done),
        )
    console.print(f"labels: {output}", highlight=False, soft_wrap=True, markup=False)
