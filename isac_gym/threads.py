"""Work shared out to threads, none of which computes in threads of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["run_in_threads"]

_T = TypeVar("_T")


def run_in_threads(task: Callable[..., _T], workers: int, *arguments: Iterable[Any]) -> list[_T]:
    """Call a function for every set of arguments, several at a time.

    Small operations gain nothing from threads of their own, which would spin against the others';
    so torch computes each call in one thread. The numbers of threads that the process and its other
    threads use, those made later among them, stay as they are.

    Args:
        task: The function; it must release the interpreter's lock to gain from threads.
        workers: Threads.
        *arguments: Its arguments, as for ``map``.

    Returns:
        What it returned, in order.
    """
    return list(_make_pool(workers, os.getpid()).map(task, *arguments))


@lru_cache(maxsize=4)
def _make_pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child asks with its own number and gets its own."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=f"isac-gym-{process}")
    meeting = threading.Barrier(workers)

    def compute_alone() -> None:
        meeting.wait()  # so that each thread takes one
        torch.get_num_threads()  # torch sets the thread up at its first question, and not again
        # Of OpenMP's, each thread has a number of its own; torch's own setting is the process's.
        threadpool_limits(limits=1, user_api="openmp")

    for started in [pool.submit(compute_alone) for _ in range(workers)]:
        started.result()
    return pool


def _compute_alone_in_child() -> None:
    """A forked child has none of its parent's threads, and would wait for them for ever."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone_in_child)
