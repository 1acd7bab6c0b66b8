"""Signals: noted while work can be saved, and raised elsewhere."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

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

    with pytest.raises(Stopped, match=r"^labels stopped by SIGTERM; files are in x: the same"):
        stop(Stopped(signal.SIGTERM))
    with pytest.raises(Stopped, match=r"^training stopped; files are in x$"):
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
@pytest.mark.parametrize("handle", [watch_signals, raise_on_signals])
def test_a_forked_child_ends_by_the_signal(handle: Callable[[], Any]) -> None:
    ready, tell = os.pipe()
    with handle():
        child = os.fork()
        if child == 0:
            os.write(tell, b"!")
            time.sleep(60)
            os._exit(0)
        assert os.read(ready, 1) == b"!"
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    for end in (ready, tell):
        os.close(end)
    assert os.WTERMSIG(status) == signal.SIGTERM
