"""What the compiled loops share: how they are compiled, kept, and shared out to threads."""

from __future__ import annotations

import inspect
import sys
import zlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.threads import run_in_threads

__all__ = [
    "Floats",
    "compile_loop",
    "digest_source",
    "list_compiler_options",
    "name_loop",
    "pad_to_vectors",
    "share_out",
    "to_array",
    "to_matrices",
]

Floats: TypeAlias = npt.NDArray[np.float32]

_MATRICES_A_TASK = 16


def list_compiler_options() -> dict[str, Any]:
    """Numba's options for a loop."""
    # No flag that assumes finite numbers: a diverging training must be seen as such.
    relaxed: Any = {"reassoc", "contract", "arcp", "nsz"}
    return {"fastmath": relaxed, "error_model": "numpy", "nogil": True}


def name_loop(loop: Callable[..., None], *parts: str | int) -> Callable[..., None]:
    """Give a loop a name of its own for its constants.

    Machine code that is kept on the disk is linked by name: two loops of one name, compiled in
    different processes, would be taken for each other in a third. Other options make another name.
    """
    options = {
        name: str(sorted(value)) if isinstance(value, set) else value
        for name, value in list_compiler_options().items()
    }
    loop.__name__ = loop.__qualname__ = "_".join(map(str, (*parts, _hash_text(repr(options)))))
    return loop


def compile_loop(loop: Callable[..., None]) -> Callable[..., None]:
    """The loop as machine code, kept on the disk where there is a folder for it."""
    import numba

    try:
        found: Callable[..., None] = numba.njit(**list_compiler_options(), cache=True)(loop)
    except RuntimeError:  # no folder to keep the machine code in
        found = numba.njit(**list_compiler_options())(loop)
    return found


def digest_source(maker: Callable[..., Callable[..., None]]) -> str:
    """A digest of the file that a loop is in, for names of loops in other files that contain it.

    Machine code that is kept on the disk is renewed when the file of its own loop changes, not when
    another does.
    """
    try:
        source = inspect.getsource(sys.modules[maker.__module__])
    except OSError:  # a frozen application, without sources
        return "unknown"
    return _hash_text(source)


def pad_to_vectors(length: int, lanes: int = 8) -> int:
    """The length, padded to a multiple of the lanes."""
    return length + -length % lanes


def _hash_text(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def share_out(run: Callable[[int, int], None], count: int) -> None:
    """Run a loop over ``count`` matrices in as many threads as torch has."""
    workers = min(torch.get_num_threads(), -(-count // _MATRICES_A_TASK))
    if workers <= 1:
        run(0, count)
        return
    edges = np.linspace(0, count, workers + 1).astype(int).tolist()
    run_in_threads(run, workers, edges[:-1], edges[1:])


def to_matrices(value: Tensor) -> Floats:
    """Complex64 (..., M, N) as contiguous float32 (n, M, N, 2)."""
    return to_array(value).reshape(-1, *value.shape[-2:], 2)


def to_array(value: Tensor) -> Floats:
    """A complex64 tensor as a contiguous float32 array with one axis more."""
    found: Floats = torch.view_as_real(value.resolve_conj()).contiguous().numpy()
    return found
