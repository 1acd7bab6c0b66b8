"""The progress of a training: what callbacks are told, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

__all__ = ["Callback", "Reporting", "StatefulCallback", "TrainingProgress", "report_progress"]


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


@contextmanager
def report_progress(
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
        """Show, then call."""
        self._show(progress)
        return self._callback(progress) if self._callback is not None else None

    def state_dict(self) -> dict[str, Any]:
        """The state of the user's callback."""
        held = self._callback
        return held.state_dict() if isinstance(held, StatefulCallback) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of the user's callback."""
        if isinstance(self._callback, StatefulCallback) and state:
            self._callback.load_state_dict(state)
