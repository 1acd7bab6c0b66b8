"""Signals that end a process: work that can be gone on with is saved before it stops."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

__all__ = ["SignalWatch", "Stopped", "raise_on_signals", "state_what_is_kept", "watch_signals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal has ended the work; the message says what is kept.

    Args:
        number: The signal.
        message: What is kept, and how to go on.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def name(self) -> str:
        """Name of the signal, such as ``SIGTERM``."""
        return signal.Signals(self.number).name


class SignalWatch:
    """Whether a signal has come that should end the process.

    Attributes:
        number: The signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None


@contextlib.contextmanager
def watch_signals() -> Iterator[SignalWatch]:
    """Let SIGINT and SIGTERM be noted, for work that saves itself and then raises :class:`Stopped`.

    A second signal is not noted, but does what signals did before: whoever does not want to wait
    asks twice. Signals reach the main thread alone; in another nothing is noted.
    """
    watch = SignalWatch()

    def note(number: int, frame: FrameType | None) -> None:
        watch.number = number
        restore()

    with _handle_signals(note) as restore:
        yield watch


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Make of SIGINT and SIGTERM a :class:`Stopped`, so that what is open is closed and removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handle_signals(stop):
        yield


@contextlib.contextmanager
def state_what_is_kept(work: str, kept: str) -> Iterator[None]:
    """Let a :class:`Stopped` say what is kept of a piece of work that can be gone on with.

    Args:
        work: What was stopped, unless that is said already.
        kept: What is kept, and where.
    """
    try:
        yield
    except Stopped as stopped:
        message = f"{stopped}; {kept}"
        if not str(stopped):
            message = f"{work} stopped by {stopped.name}; {kept}: the same command or call goes on"
        raise Stopped(stopped.number, message) from stopped


@contextlib.contextmanager
def _handle_signals(handler: Any) -> Iterator[Any]:
    """Handle signals in this way; what is yielded puts back what was before."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    # Who has switched a signal off, as nohup and shells do for background work, wants none of it;
    # and a handler that Python did not install (None) could not be put back.
    handled = {
        number: held for number, held in before.items() if held not in (None, signal.SIG_IGN)
    }
    process = os.getpid()

    def restore() -> None:
        for number, held in handled.items():
            signal.signal(number, held)

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            handler(number, frame)
            return
        # A forked child inherits the handler, but not the work; it ends as children do.
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    for number in handled:
        signal.signal(number, handle)
    try:
        yield restore
    finally:
        restore()
