"""The training loop of all learning agents: gradient steps on a loss and updates of its state.

In primal-dual learning the loss is a Lagrangian and its state the multipliers: channels are drawn
from the environment's own model, and the gradient flows from rates and constraints through the
physics into the network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from isac_gym.agents.losses import LossValue, TrainingLoss
from isac_gym.agents.serialization import read_archive, write_archive
from isac_gym.validation import integer

__all__ = [
    "Callback",
    "CheckpointError",
    "StatefulCallback",
    "TrainingError",
    "TrainingProgress",
    "TrainingSettings",
    "check_checkpoint",
    "digest",
    "reporting",
    "train",
]

_CHECKPOINT: Final = "training checkpoint"
_STUCK: Final = 20
"""Iterations without any gradient after which a training counts as failed: nothing could move."""


class TrainingError(RuntimeError):
    """Training had to stop."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, or of another training."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        iterations: Gradient steps.
        learning_rate: Step size of Adam.
        final_learning_rate: Step size at the end, reached by a cosine; None keeps it constant.
        warmup_iterations: Iterations in which the step size rises to its full value.
        gradient_clip: Largest norm of a gradient; None does not clip.
    """

    iterations: int
    learning_rate: float
    final_learning_rate: float | None = None
    warmup_iterations: int = 0
    gradient_clip: float | None = None

    def learning_rate_at(self, iteration: int) -> float:
        """Step size of an iteration, counted from 0."""
        rate = self.learning_rate
        if self.final_learning_rate is not None:
            fall = 0.5 * (1.0 + math.cos(math.pi * iteration / self.iterations))
            rate = self.final_learning_rate + (rate - self.final_learning_rate) * fall
        if iteration < self.warmup_iterations:
            rate *= (iteration + 1) / self.warmup_iterations
        return rate


@dataclasses.dataclass(frozen=True)
class TrainingProgress:
    """State of the training after an iteration, means over the batch.

    Attributes:
        iteration: Iterations done.
        iterations: Iterations in all.
        loss: Loss.
        sum_rate: Mean spectral efficiency, in bit/s/Hz.
        constraints: Mean of each signed constraint, relative to its limit, over the stations.
        multipliers: Mean of each multiplier over the stations.
        learning_rate: Step size.
    """

    iteration: int
    iterations: int
    loss: float
    sum_rate: float
    constraints: dict[str, float]
    multipliers: dict[str, float]
    learning_rate: float


Callback: TypeAlias = Callable[[TrainingProgress], bool | None]
"""Called after every iteration; returning False ends the training."""


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback whose state belongs to a checkpoint, as plain JSON types."""

    def __call__(self, progress: TrainingProgress) -> bool | None:
        """See :data:`Callback`."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""


def train(
    network: nn.Module,
    loss: TrainingLoss,
    settings: TrainingSettings,
    *,
    rng: np.random.Generator,
    identity: Mapping[str, Any],
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
) -> int:
    """Train a network in place; parameters that require no gradient stay as they are.

    With a checkpoint file a training that was killed goes on where it was last saved and ends
    with the result of an uninterrupted one.

    Args:
        network: Maps observations (n, N) to actions (n, A) within [-1, 1].
        loss: What is minimised; its state changes as training goes.
        settings: How to train.
        rng: The only source of randomness; its state is saved with the checkpoint.
        identity: What tells this training from others, as plain JSON types; a checkpoint of
            another one is refused.
        callback: Called after every iteration; returning False ends the training. The state of a
            :class:`StatefulCallback` is saved with the checkpoint.
        checkpoint: File to go on from and to save to.
        checkpoint_every: Iterations between two savings.

    Returns:
        Iterations done, in this call and before it.

    Raises:
        TrainingError: If the loss or a gradient is not finite, or the gradient vanishes for many
            iterations; the message names the iteration and the last good checkpoint.
        ValueError: If ``checkpoint_every`` is no integer >= 1.
        CheckpointError: If the checkpoint is damaged, or of another training.
    """
    integer("checkpoint_every", checkpoint_every, 1)
    parameters = [value for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    described = {
        "kind": _CHECKPOINT,
        "identity": {
            **identity,
            "settings": dataclasses.asdict(settings),
            "start": digest({**network.state_dict(), **loss.state_dict()}),
        },
    }
    state = callback if isinstance(callback, StatefulCallback) else None
    training = _Training(network, loss, optimiser, rng, state)
    done = 0
    if checkpoint is not None and Path(checkpoint).exists():
        done, ended = _restore(checkpoint, described, training)
        if ended:
            return done
    limit = math.inf if settings.gradient_clip is None else settings.gradient_clip
    stuck = 0
    for iteration in range(done, settings.iterations):
        rate = settings.learning_rate_at(iteration)
        for group in optimiser.param_groups:
            group["lr"] = rate
        value = loss.evaluate(network, rng)
        optimiser.zero_grad(set_to_none=True)
        value.loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        stuck = stuck + 1 if bool(norm == 0) else 0
        finite = bool(torch.isfinite(value.loss.detach()) & torch.isfinite(norm))
        if not finite or stuck == _STUCK:
            saved = "none was saved"
            if checkpoint is not None and Path(checkpoint).exists():
                saved = f"the last good checkpoint is {checkpoint}"
            what = "diverged" if not finite else f"has had no gradient for {_STUCK} iterations"
            raise TrainingError(
                f"training {what} at iteration {iteration + 1}: loss {value.loss.item()}, "
                f"gradient norm {norm.item()}; {saved}"
            )
        optimiser.step()
        loss.update(value, iteration / settings.iterations)
        done = iteration + 1
        go_on = True
        if callback is not None:
            progress = _progress(done, settings.iterations, value, loss, rate)
            go_on = callback(progress) is not False
        last = done == settings.iterations or not go_on
        if checkpoint is not None and stuck == 0 and (last or done % checkpoint_every == 0):
            _save(checkpoint, described, training, done, ended=last)
        if not go_on:
            break
    return done


@dataclasses.dataclass(frozen=True)
class _Training:
    """All that a checkpoint holds."""

    network: nn.Module
    loss: TrainingLoss
    optimiser: torch.optim.Adam
    rng: np.random.Generator
    callback: StatefulCallback | None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """What tells weights from others: a loaded agent from a fresh one, a source from another."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _progress(
    done: int, iterations: int, value: LossValue, loss: TrainingLoss, rate: float
) -> TrainingProgress:
    return TrainingProgress(
        iteration=done,
        iterations=iterations,
        loss=float(value.loss.detach()),
        sum_rate=float(value.sum_rate.detach().mean()),
        constraints={
            name: float(constraint.detach().mean())
            for name, constraint in value.constraints.items()
        },
        multipliers=loss.multipliers(),
        learning_rate=rate,
    )


def _save(
    path: str | Path, described: dict[str, Any], training: _Training, done: int, ended: bool
) -> None:
    network, loss = training.network.state_dict(), training.loss.state_dict()
    tensors = {f"network.{name}": value for name, value in network.items()}
    tensors |= {f"loss.{name}": value for name, value in loss.items()}
    for index, state in training.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    meta = {
        **described,
        "iterations_done": done,
        "ended": ended,
        "rng": training.rng.bit_generator.state,
    }
    if training.callback is not None:
        meta["callback"] = training.callback.state_dict()
    write_archive(path, meta, tensors)


def check_checkpoint(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another training before anything is done for this one.

    Args:
        path: The checkpoint; it need not exist.
        identity: Some of what tells this training from others.

    Raises:
        CheckpointError: If it is damaged, or of another training.
    """
    if path.exists():
        _read(path, identity)


def _read(
    path: str | Path, identity: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a checkpoint, if it is of this training."""
    try:
        meta, tensors = read_archive(path, _CHECKPOINT)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    saved = meta.get("identity", {})
    differing = [key for key in identity if saved.get(key) != identity[key]]
    if differing:
        raise CheckpointError(
            f"{path}: checkpoint must be of this training, got one with another "
            f"{', '.join(differing)}; delete it to start anew, or choose another place"
        )
    return meta, tensors


def _restore(path: str | Path, described: dict[str, Any], training: _Training) -> tuple[int, bool]:
    meta, tensors = _read(path, described["identity"])
    if training.callback is not None:
        try:
            training.callback.load_state_dict(meta.get("callback", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: checkpoint must be of a training with the same callbacks, got a state "
                f"that does not fit them ({error!r})"
            ) from error

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    try:
        training.network.load_state_dict(part("network."))
        training.loss.load_state_dict(part("loss."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimiser.").items():
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = value
        groups = training.optimiser.state_dict()["param_groups"]
        training.optimiser.load_state_dict({"state": state, "param_groups": groups})
        training.rng.bit_generator.state = meta["rng"]
        return int(meta["iterations_done"]), bool(meta["ended"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error})") from error


@contextmanager
def reporting(
    progress_bar: bool, tensorboard_log: str | Path | None, callback: Callback | None, title: str
) -> Iterator[Reporting]:
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
        task = bar.add_task(title, total=None, state="")

    def show(progress: TrainingProgress) -> None:
        last = progress.iteration == progress.iterations
        if bar is not None and (last or progress.iteration % 10 == 0):
            state = f"{progress.sum_rate:.2f} bit/s/Hz"
            for name, value in progress.constraints.items():
                multiplier = progress.multipliers.get(name, 0.0)
                if value > 1e-6 or multiplier > 0.0:
                    state += f", {name} {value:+.1%} (λ {multiplier:.2g})"
            bar.update(task, total=progress.iterations, completed=progress.iteration, state=state)
        if writer is not None and (last or progress.iteration % 10 == 0):
            scalars = {
                "loss": progress.loss,
                "sum_rate": progress.sum_rate,
                "learning_rate": progress.learning_rate,
            }
            scalars |= {f"constraint_{name}": x for name, x in progress.constraints.items()}
            scalars |= {f"multiplier_{name}": x for name, x in progress.multipliers.items()}
            for name, value in scalars.items():
                writer.add_scalar(f"train/{name}", value, progress.iteration)

    try:
        yield Reporting(show, callback, lambda: None if bar is None else bar.start())
    finally:
        if bar is not None:
            bar.stop()
        if writer is not None:
            writer.close()


class Reporting:
    """Shows the progress, then calls the user's callback, whose state it passes on.

    Args:
        show: Shows it.
        callback: The user's callback, or None.
        begin: Shows the bar: not before, since what precedes a training has a bar of its own.
    """

    def __init__(
        self,
        show: Callable[[TrainingProgress], None],
        callback: Callback | None,
        begin: Callable[[], None],
    ) -> None:
        self._show, self._callback, self.begin = show, callback, begin

    def __call__(self, progress: TrainingProgress) -> bool | None:
        self._show(progress)
        return self._callback(progress) if self._callback is not None else None

    def state_dict(self) -> dict[str, Any]:
        held = self._callback
        return held.state_dict() if isinstance(held, StatefulCallback) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if isinstance(self._callback, StatefulCallback) and state:
            self._callback.load_state_dict(state)
