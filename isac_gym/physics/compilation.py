"""What the compiled loops share: how they are compiled, kept, and shared out to threads."""

from __future__ import annotations

import inspect
import os
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "Floats",
    "array_of",
    "compile_loop",
    "compiler_options",
    "edition",
    "matrices_of",
    "named",
    "share_out",
    "whole_vectors",
]

Floats: TypeAlias = npt.NDArray[np.float32]

_MATRICES_A_TASK = 16


def compiler_options() -> dict[str, Any]:
    """Numba's options for a loop."""
    # No flag that assumes finite numbers: a diverging training must be seen as such.
    relaxed: Any = {"reassoc", "contract", "arcp", "nsz"}
    return {"fastmath": relaxed, "error_model": "numpy", "nogil": True}


def named(loop: Callable[..., None], *parts: str | int) -> Callable[..., None]:
    """Give a loop a name of its own for its constants.

    Machine code that is kept on the disk is linked by name: two loops of one name, compiled in
    different processes, would be taken for each other in a third. Other options make another name.
    """
    options = {
        name: str(sorted(value)) if isinstance(value, set) else value
        for name, value in compiler_options().items()
    }
    loop.__name__ = loop.__qualname__ = "_".join(map(str, (*parts, _digest(repr(options)))))
    return loop


def compile_loop(loop: Callable[..., None]) -> Callable[..., None]:
    """The loop as machine code, kept on the disk where there is a folder for it."""
    import numba

    try:
        found: Callable[..., None] = numba.njit(**compiler_options(), cache=True)(loop)
    except RuntimeError:  # no folder to keep the machine code in
        found = numba.njit(**compiler_options())(loop)
    return found


def edition(maker: Callable[..., Callable[..., None]]) -> str:
    """A digest of the file that a loop is in, for names of loops in other files that contain it.

    Machine code that is kept on the disk is renewed when the file of its own loop changes, not when
    another does.
    """
    try:
        source = inspect.getsource(sys.modules[maker.__module__])
    except OSError:  # a frozen application, without sources
        return "unknown"
    return _digest(source)


def whole_vectors(length: int, lanes: int = 8) -> int:
    """The length, padded to a multiple of the lanes."""
    return length + -length % lanes


def _digest(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def share_out(run: Callable[[int, int], None], count: int) -> None:
    """Run a loop over ``count`` matrices in as many threads as torch has."""
    workers = min(torch.get_num_threads(), -(-count // _MATRICES_A_TASK))
    if workers <= 1:
        run(0, count)
        return
    edges = np.linspace(0, count, workers + 1).astype(int).tolist()
    list(_pool(workers, os.getpid()).map(run, edges[:-1], edges[1:]))


@lru_cache(maxsize=4)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child asks with its own number and gets its own."""
    return ThreadPoolExecutor(workers, thread_name_prefix=f"isac-gym-{process}")


def matrices_of(value: Tensor) -> Floats:
    """Complex64 (..., M, N) as contiguous float32 (n, M, N, 2)."""
    return array_of(value).reshape(-1, *value.shape[-2:], 2)


def array_of(value: Tensor) -> Floats:
    """A complex64 tensor as a contiguous float32 array with one axis more."""
    found: Floats = torch.view_as_real(value.resolve_conj()).contiguous().numpy()
    return found
