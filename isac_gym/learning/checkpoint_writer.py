"""When a training is saved: by count, by time, and when a signal ends it."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from isac_gym.files import lock_output
from isac_gym.stopping import SignalWatch, Stopped, watch_signals
from isac_gym.validation import check_real

__all__ = ["DEFAULT_SECONDS", "CheckpointWriter", "check_seconds", "write_checkpoints"]

DEFAULT_SECONDS: Final = 20.0
"""Time of a training that may be lost when it is killed, in s."""


class CheckpointWriter:
    """Saves a training; made by :func:`write_checkpoints`.

    Args:
        path: The file; None saves nothing.
        seconds: Longest time from one saving to the next, in s.
        watch: Knows of signals.
    """

    def __init__(self, path: Path | None, seconds: float, watch: SignalWatch) -> None:
        self.path, self._seconds, self._watch = path, seconds, watch
        self._last = time.monotonic()

    def attend(self, save: Callable[[Path], None], *, is_due: bool, progress: str) -> None:
        """Save if it is time; call this where the training can be gone on with.

        What cannot be written is warned of and tried again next time: the training loses nothing by
        a full disk.

        Args:
            save: Writes all that a killed training needs to go on.
            is_due: Whether it is time by a count.
            progress: How far the training is, for the message of one that is stopped.

        Raises:
            Stopped: If a signal asks for an end.
        """
        number = self._watch.number
        is_late = time.monotonic() - self._last >= self._seconds
        if self.path is None or not (is_due or is_late or number is not None):
            return
        kept = f"it is saved in {self.path}, from where the same command or call goes on"
        try:
            save(self.path)
        except OSError as error:
            kept = f"it could not be saved ({error})"
            if number is None:
                warnings.warn(
                    f"{self.path}: the checkpoint could not be written ({error}); the training "
                    "goes on, and writes it when it is due again",
                    stacklevel=2,
                )
        self._last = time.monotonic()
        if number is not None:
            stopped = Stopped(number)
            raise Stopped(number, f"training stopped by {stopped.name} {progress}; {kept}")


def check_seconds(seconds: object) -> float:
    """Check a time between two savings.

    Raises:
        ValueError: If it is no finite number > 0.
    """
    allowed = "a finite number > 0"
    return check_real("checkpoint_seconds", seconds, allowed, lambda value: value > 0)


@contextlib.contextmanager
def write_checkpoints(path: str | Path | None, seconds: float) -> Iterator[CheckpointWriter]:
    """What saves a training for as long as it lasts; meanwhile no other run writes to the file.

    Args:
        path: The file; None saves nothing, and leaves signals as they are.
        seconds: Longest time from one saving to the next, in s.

    Raises:
        OutputInUseError: If another run writes to the file.
        ValueError: If the time is not allowed.
    """
    seconds = check_seconds(seconds)
    if path is None:
        yield CheckpointWriter(None, seconds, SignalWatch())
        return
    path = Path(path)
    with lock_output(path, name="checkpoint"), watch_signals() as watch:
        yield CheckpointWriter(path, seconds, watch)
        if watch.number is not None:  # it came when there was nothing left to save
            raise Stopped(watch.number)
