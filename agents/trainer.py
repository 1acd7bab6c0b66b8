"""The training loop: primal descent on the policy, dual ascent on the multipliers.

Training is unsupervised: channels are drawn from the environment's own model, and the gradient
flows from rates and constraints through the physics into the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from isac_gym.agents.duals import DualVariables
from isac_gym.agents.serialization import read_archive, write_archive
from isac_gym.channels import ChannelModel, ChannelProcess
from isac_gym.system import ISACSystem, Outcome
from isac_gym.validation import integer

__all__ = [
    "Callback",
    "CheckpointError",
    "TrainingError",
    "TrainingProgress",
    "TrainingSettings",
    "reporting",
    "train",
]

_CHECKPOINT = "training checkpoint"


class TrainingError(RuntimeError):
    """Training had to stop."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, or of another training."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        iterations: Gradient steps.
        batch_size: Channels a step.
        learning_rate: Initial step size of Adam.
        final_learning_rate: Step size at the end, reached by a cosine; None keeps it constant.
        gradient_clip: Largest norm of a gradient; None does not clip.
        relative_constraints: Whether the multipliers weigh excess/limit; otherwise plain excess.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float | None = None
    gradient_clip: float | None = None
    relative_constraints: bool = True


@dataclasses.dataclass(frozen=True)
class TrainingProgress:
    """State of the training after an iteration, means over the batch.

    Attributes:
        iteration: Iterations done.
        iterations: Iterations in all.
        sum_rate: Mean spectral efficiency, in bit/s/Hz.
        constraints: Mean of each signed constraint, relative to its limit, over the stations.
        multipliers: Mean of each multiplier over the stations.
    """

    iteration: int
    iterations: int
    sum_rate: float
    constraints: dict[str, float]
    multipliers: dict[str, float]


Callback: TypeAlias = Callable[[TrainingProgress], bool | None]
"""Called after every iteration; returning False ends the training."""


def train(
    network: nn.Module,
    system: ISACSystem,
    model: ChannelModel,
    duals: DualVariables,
    settings: TrainingSettings,
    *,
    rng: np.random.Generator,
    identity: Mapping[str, Any],
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
) -> None:
    """Train a network in place.

    With a checkpoint file a training that was killed goes on where it was last saved and ends
    with the result of an uninterrupted one.

    Args:
        network: Maps observations (n, N) to actions (n, A) within [-1, 1].
        system: Differentiable system.
        model: How channels are drawn.
        duals: Multipliers, changed in place.
        settings: How to train.
        rng: The only source of randomness; its state is saved with the checkpoint.
        identity: What tells this training from others, as plain JSON types; a checkpoint of
            another one is refused.
        callback: Called after every iteration; returning False ends the training.
        checkpoint: File to go on from and to save to.
        checkpoint_every: Iterations between two savings.

    Raises:
        TrainingError: If the loss or a gradient is not finite; the message names the iteration
            and the last good checkpoint.
        ValueError: If ``checkpoint_every`` is no integer >= 1.
        CheckpointError: If the checkpoint is damaged, or of another training.
    """
    integer("checkpoint_every", checkpoint_every, 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    process = ChannelProcess(model, system.scenario, settings.batch_size)
    described = {
        "kind": _CHECKPOINT,
        "identity": {
            **identity,
            "settings": dataclasses.asdict(settings),
            "scenario": system.scenario.to_dict(),
            "channel_model": type(model).__qualname__,
        },
    }
    done = 0
    if checkpoint is not None and Path(checkpoint).exists():
        done = _restore(checkpoint, described, network, optimiser, duals, rng)
    for iteration in range(done, settings.iterations):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(settings, iteration)
        process.start(rng)
        outcome = _outcome(network, system, process)
        constraints = outcome.constraints
        if not settings.relative_constraints:
            constraints = {name: value * system.limits[name] for name, value in constraints.items()}
        loss = duals.penalty(constraints) - outcome.sum_rate.mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = float("inf") if settings.gradient_clip is None else settings.gradient_clip
        norm = nn.utils.clip_grad_norm_(network.parameters(), limit)
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "none was saved"
            raise TrainingError(
                f"training diverged at iteration {iteration + 1}: loss {loss.item()}, gradient "
                f"norm {norm.item()}; {saved}"
            )
        optimiser.step()
        duals.ascend(constraints)
        done = iteration + 1
        last = done == settings.iterations
        if checkpoint is not None and (last or done % checkpoint_every == 0):
            _save(checkpoint, described, network, optimiser, duals, rng, done)
        if callback is not None and callback(_progress(done, settings, outcome, duals)) is False:
            break


def _outcome(network: nn.Module, system: ISACSystem, process: ChannelProcess) -> Outcome:
    observation = torch.from_numpy(system.codec.observation(process.estimates)).to(system.device)
    channels = torch.from_numpy(process.channels).to(system.device)
    estimates = torch.from_numpy(process.estimates).to(system.device)
    return system.step(channels, network(observation), estimates)


def _learning_rate(settings: TrainingSettings, iteration: int) -> float:
    if settings.final_learning_rate is None:
        return settings.learning_rate
    fraction = iteration / settings.iterations
    span = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + span * 0.5 * (1.0 + float(np.cos(np.pi * fraction)))


def _progress(
    done: int, settings: TrainingSettings, outcome: Outcome, duals: DualVariables
) -> TrainingProgress:
    return TrainingProgress(
        iteration=done,
        iterations=settings.iterations,
        sum_rate=float(outcome.sum_rate.detach().mean()),
        constraints={
            name: float(value.detach().mean()) for name, value in outcome.constraints.items()
        },
        multipliers={name: float(value.mean()) for name, value in duals.values.items()},
    )


def _save(
    path: str | Path,
    described: dict[str, Any],
    network: nn.Module,
    optimiser: torch.optim.Adam,
    duals: DualVariables,
    rng: np.random.Generator,
    done: int,
) -> None:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"duals.{name}": value for name, value in duals.values.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    meta = {**described, "iterations_done": done, "rng": rng.bit_generator.state}
    write_archive(path, meta, tensors)


def _restore(
    path: str | Path,
    described: dict[str, Any],
    network: nn.Module,
    optimiser: torch.optim.Adam,
    duals: DualVariables,
    rng: np.random.Generator,
) -> int:
    meta, tensors = read_archive(path, _CHECKPOINT)
    saved, own = meta.get("identity", {}), described["identity"]
    differing = [key for key in own if saved.get(key) != own[key]]
    if differing:
        raise CheckpointError(
            f"{path}: checkpoint must be of this training, got one with another "
            f"{', '.join(differing)}; delete it to start anew, or choose another place"
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    try:
        network.load_state_dict(part("network."))
        duals.load(part("duals."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimiser.").items():
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})
        rng.bit_generator.state = meta["rng"]
        return int(meta["iterations_done"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error})") from error


@contextmanager
def reporting(
    progress_bar: bool, tensorboard_log: str | Path | None, callback: Callback | None, title: str
) -> Iterator[Callback]:
    """A callback that shows a progress bar, logs to TensorBoard and calls the user's callback.

    Args:
        progress_bar: Whether to show a bar with rate, constraints and multipliers.
        tensorboard_log: Folder for TensorBoard, or None.
        callback: The user's callback, or None.
        title: Shown beside the bar.

    Raises:
        ImportError: If TensorBoard is asked for and not installed; the message names the extra.
    """
    writer: Any = None
    if tensorboard_log is not None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard_log needs TensorBoard: pip install 'isac-gym[tensorboard]'"
            ) from error
        writer = SummaryWriter(str(tensorboard_log))
    bar: Any = None
    if progress_bar:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = ("{task.description}", BarColumn(20), MofNCompleteColumn(), Remaining())
        bar = Progress(*columns, TextColumn("{task.fields[state]}"), refresh_per_second=4)
        bar.start()
        task = bar.add_task(title, total=None, state="")

    def report(progress: TrainingProgress) -> bool | None:
        last = progress.iteration == progress.iterations
        if bar is not None and (last or progress.iteration % 10 == 0):
            state = f"{progress.sum_rate:.2f} bit/s/Hz"
            for name, value in progress.constraints.items():
                multiplier = progress.multipliers[name]
                if value > 1e-6 or multiplier > 0.0:
                    state += f", {name} {value:+.1%} (λ {multiplier:.2g})"
            bar.update(task, total=progress.iterations, completed=progress.iteration, state=state)
        if writer is not None and (last or progress.iteration % 10 == 0):
            writer.add_scalar("train/sum_rate", progress.sum_rate, progress.iteration)
            for name, value in progress.constraints.items():
                writer.add_scalar(f"train/constraint_{name}", value, progress.iteration)
                multiplier = progress.multipliers[name]
                writer.add_scalar(f"train/multiplier_{name}", multiplier, progress.iteration)
        return callback(progress) if callback is not None else None

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()
        if writer is not None:
            writer.close()
