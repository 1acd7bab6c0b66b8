"""Signals: noted while work can be saved, raised elsewhere, and never lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from isac_gym.stopping import Stopped, raise_on_signals, state_what_is_kept, watch_signals

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever a test does, the handlers of the process are those from before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@BOTH
def test_a_signal_is_noted_and_the_work_goes_on(number: int) -> None:
    with watch_signals() as watch:
        assert watch.number is None
        with raise_on_signals():
            pass  # what ends within leaves the watch in force
        send(number)
        assert watch.number == number


@BOTH
def test_a_second_signal_does_not_wait(number: int) -> None:
    with raise_on_signals(), watch_signals() as watch:
        send(number)
        assert watch.number == number
        with pytest.raises(Stopped) as stopped:
            send(number)
    assert stopped.value.number == number


@BOTH
def test_a_signal_is_raised_with_its_name(number: int) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, raise_on_signals():
        send(number)
    assert isinstance(caught.value, Stopped)
    assert caught.value.number == number
    assert caught.value.name == signal.Signals(number).name


def test_it_says_what_was_stopped_and_what_is_kept() -> None:
    def stop(error: BaseException) -> None:
        with state_what_is_kept("labels", "files are in x"):
            raise error

    with pytest.raises(Stopped, match=r"^labels stopped by SIGTERM; files are in x, from where"):
        stop(Stopped(signal.SIGTERM))
    with pytest.raises(Stopped, match=r"^training stopped; files are in x, from where"):
        stop(Stopped(signal.SIGTERM, "training stopped"))
    with pytest.raises(KeyboardInterrupt) as caught:
        stop(KeyboardInterrupt())
    assert not isinstance(caught.value, Stopped)


def test_a_signal_that_is_switched_off_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watch_signals() as watch:
            send(signal.SIGINT)
            assert watch.number is None
        with raise_on_signals():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals_to_handle() -> None:
    noted = []

    def work() -> None:
        with watch_signals() as watch, raise_on_signals():
            noted.append(watch.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert noted == [None]
