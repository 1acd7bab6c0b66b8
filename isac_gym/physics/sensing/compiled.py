"""The sum over pairs of directions as a compiled loop: several times faster than tensor operations.

Used on the CPU in single precision when Numba is installed (extra ``fast``), on grids that are
symmetric about 0. The environment variable ``ISAC_GYM_COMPILED=0`` turns it off, and with it all
other compiled loops; ``ISAC_GYM_COMPILED=pairs`` leaves it alone and turns off the others. Besides
the reduction to real numbers it folds the grid by parity: ã(-θ) differs from ã(θ) by the sign of
its sine parts, so four pairs of directions share their products.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from isac_gym.compilation import Floats, compile_loop, name_loop, pad_to_vectors, share_out
from isac_gym.physics.array import centred_real_steering

__all__ = ["CompiledPairs", "make_pair_loop"]

_LANES = 16
_ROWS = 8
"""Directions whose weights are folded into the gradient at once; a divisor of the lanes."""


_MOST_HELD = 32


class _Scratch(threading.local):
    """What loops work on, by size: a thread's own."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int, bool], tuple[Floats, Floats]] = {}


_SCRATCH = _Scratch()


class CompiledPairs:
    """Σ over unordered pairs of grid directions of abs(a_lᴴ R a_m), for Hermitian R.

    Args:
        grid_deg: Directions in degrees, strictly increasing and symmetric about 0.
        num_antennas: M.
        spacing: Element spacing in wavelengths.
    """

    def __init__(self, grid_deg: Tensor, num_antennas: int, spacing: float) -> None:
        half = grid_deg[grid_deg >= 0]
        cosines = num_antennas - num_antennas // 2
        self.key = (num_antennas, cosines, len(half))
        width, padded = _pad_widths(num_antennas, len(half))
        rows = np.zeros((width, num_antennas), np.float32)
        rows[: len(half)] = centred_real_steering(half, num_antennas, spacing).numpy()
        # By even and odd parts; flat, since the loop has to know the distances.
        halves = _allocate_aligned(2 * width * padded).reshape(2, width, padded)
        halves[0, :, :cosines] = rows[:, :cosines]
        halves[1, :, cosines:num_antennas] = rows[:, cosines:]
        self._tables = (rows, np.ascontiguousarray(rows.T), halves.ravel(), bool(half[0] == 0))

    @staticmethod
    def supports(grid_deg: Tensor) -> bool:
        """Whether Numba is installed, not turned off, and the grid is symmetric."""
        return (
            os.environ.get("ISAC_GYM_COMPILED", "1") != "0"
            and importlib.util.find_spec("numba") is not None
            and bool((grid_deg.diff() > 0).all())
            and bool((grid_deg == -grid_deg.flip(0)).all())
        )

    @property
    def tables(self) -> tuple[Floats, Floats, Floats, bool]:
        """Steering by rows, by columns, and by even and odd parts; whether the grid holds 0."""
        return self._tables

    def scratch(self, want_gradient: bool = True) -> tuple[Floats, Floats]:
        """What a call of the loop works on: for this thread, until it asks again."""
        size, _, half = self.key
        found = _SCRATCH.held.get((size, half, want_gradient))
        if found is None:
            _, padded = _pad_widths(size, half)
            *_, weights, _, end = _lay_out(size, half)
            work = _allocate_aligned(end if want_gradient else weights)
            found = work, _allocate_aligned(4 * padded + 2 * size * (padded + size))
            if len(_SCRATCH.held) == _MOST_HELD:
                _SCRATCH.held.clear()
            _SCRATCH.held[size, half, want_gradient] = found
        columns = self._tables[1]
        found[0][: columns.size] = columns.ravel()
        return found

    def kernel(self, want_gradient: bool) -> Callable[..., None]:
        """The compiled loop."""
        return _compile_kernel(*self.key, want_gradient)

    def __call__(
        self, matrices: Tensor, want_gradient: bool, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        """Sum and, if wanted, its gradient.

        Args:
            matrices: R, Hermitian, complex64 on the CPU, shape (..., M, M).
            want_gradient: Whether the gradient is wanted.
            smoothing: δ² in √(abs(·)² + δ²), which stands for the magnitude, in W².

        Returns:
            Sum (...) and gradient (..., M, M) or None.
        """
        kernel = self.kernel(want_gradient)
        size = self.key[0]
        held = matrices.resolve_conj().contiguous()
        parts = torch.view_as_real(held).view(-1, size, size, 2).numpy()
        value = np.empty(len(parts), np.float32)
        gradient = (
            np.empty_like(parts) if want_gradient else np.empty((0, size, size, 2), np.float32)
        )

        def run(first: int, last: int) -> None:
            kernel(
                parts[first:last],
                *self._tables,
                *self.scratch(want_gradient),
                np.float32(smoothing),
                value[first:last],
                gradient[first:last],
            )

        share_out(run, len(parts))
        total = torch.from_numpy(value).view(matrices.shape[:-2])
        if not want_gradient:
            return total, None
        merged = gradient.view(np.complex64)[..., 0]
        return total, torch.from_numpy(merged).view(matrices.shape)


@lru_cache(maxsize=16)
def _compile_kernel(size: int, cosines: int, half: int, want_gradient: bool) -> Callable[..., None]:
    """The compiled :func:`make_pair_loop`."""
    return compile_loop(make_pair_loop(size, cosines, half, want_gradient))


def _pad_widths(size: int, half: int) -> tuple[int, int]:
    """Angles and antennas, padded to whole vectors."""
    return pad_to_vectors(half, _LANES), pad_to_vectors(size)


def _allocate_aligned(length: int) -> Floats:
    """Zeros that begin where a cache line does: vectors that straddle two take twice as long."""
    room = np.zeros(length + _LANES, np.float32)
    skipped = -room.ctypes.data % 64 // 4
    return room[skipped : skipped + length]


def _lay_out(size: int, half: int) -> tuple[int, ...]:
    """Where the parts of the loop's array begin, and where the last one ends.

    After the columns of the grid: QᴴRQ (real, imaginary), sums of magnitudes, eight kinds of
    weights for a few directions, and what these are folded into. They are in one array because the
    compiler gives up where it would have to check too many pairs of arrays for overlap.
    """
    width, padded = _pad_widths(size, half)
    lengths = (size * width, size * padded, size * padded, width, 8 * _ROWS * width)
    return (*itertools.accumulate(lengths), sum(lengths) + 4 * size * width)


def make_pair_loop(size: int, cosines: int, half: int, want_gradient: bool) -> Callable[..., None]:
    """The loop for M = size, of which the first ``cosines`` parts are even, and ``half`` angles.

    The arguments are constants of the compiled code, so that its inner loops unroll.
    """
    width, padded = _pad_widths(size, half)
    pairs = size // 2
    root = np.float32(0.5**0.5)
    real, imaginary, sums, weights, folded, _ = _lay_out(size, half)
    kind = _ROWS * width

    def kernel(
        matrices: Floats,
        rows: Floats,
        columns: Floats,
        halves: Floats,
        has_zero: bool,
        work: Floats,
        spare: Floats,
        smoothing: float,
        value: Floats,
        gradient: Floats,
    ) -> None:
        zero = np.float32(0.0)
        one = np.float32(1.0)
        # Keeps the weight of a vanishing magnitude finite. Above the smallest normal number, so
        # that a magnitude whose square underflows has a weight of at most 1. Magnitudes below
        # about 1e-18 W come out too small.
        tiny = np.float32(4e-38)
        # Row vectors ãᵀQᴴRQ for +θ (real, imaginary) and -θ.
        p = spare[: 4 * padded]
        planes = spare[4 * padded : (4 + 2 * size) * padded].reshape(2, size, padded)
        half_turned = spare[(4 + 2 * size) * padded :].reshape(2, size, size)
        for b in range(matrices.shape[0]):
            # QᴴRQ by the butterflies that Q consists of: columns, then rows.
            for m in range(size):
                for k in range(pairs):
                    low, high, sine = pairs - 1 - k, size - pairs + k, size - pairs + k
                    a, c = matrices[b, m, low, 0], matrices[b, m, low, 1]
                    d, f = matrices[b, m, high, 0], matrices[b, m, high, 1]
                    half_turned[0, m, k] = root * (a + d)
                    half_turned[1, m, k] = root * (c + f)
                    half_turned[0, m, sine] = root * (c - f)
                    half_turned[1, m, sine] = root * (d - a)
                if size % 2:
                    half_turned[0, m, pairs] = matrices[b, m, pairs, 0]
                    half_turned[1, m, pairs] = matrices[b, m, pairs, 1]
            for k in range(pairs):
                low, high, sine = pairs - 1 - k, size - pairs + k, size - pairs + k
                for n in range(size):
                    a, c = half_turned[0, low, n], half_turned[1, low, n]
                    d, f = half_turned[0, high, n], half_turned[1, high, n]
                    work[real + k * padded + n] = root * (a + d)
                    work[imaginary + k * padded + n] = root * (c + f)
                    work[real + sine * padded + n] = root * (f - c)
                    work[imaginary + sine * padded + n] = root * (a - d)
            if size % 2:
                for n in range(size):
                    work[real + pairs * padded + n] = half_turned[0, pairs, n]
                    work[imaginary + pairs * padded + n] = half_turned[1, pairs, n]
            work[sums:] = zero
            for i in range(half):
                place = weights + i % _ROWS * width
                both = i > 0 or not has_zero
                # θ and -θ are a pair, unless they are the same.
                mirrored = i if both else i + 1
                opposite = one if both else zero
                lift = smoothing if both else zero
                for n in range(padded):
                    x = y = z = t = zero
                    for m in range(cosines):
                        a = rows[i, m]
                        x += a * work[real + m * padded + n]
                        y += a * work[imaginary + m * padded + n]
                    for m in range(cosines, size):
                        a = rows[i, m]
                        z += a * work[real + m * padded + n]
                        t += a * work[imaginary + m * padded + n]
                    p[n] = x + z
                    p[padded + n] = y + t
                    p[2 * padded + n] = opposite * (x - z)
                    p[3 * padded + n] = opposite * (y - t)
                # Whole vectors from the one that holds i on: no remainder loop.
                start = i // _LANES * _LANES
                # With three antennas or less only columns of their own let it be vectorised.
                for step in range(width - start):
                    m = start + step
                    e0 = e1 = e2 = e3 = o0 = o1 = o2 = o3 = zero
                    for n in range(cosines):
                        a = work[n * width + m] if size > 3 else columns[n, m]
                        e0 += p[n] * a
                        e1 += p[padded + n] * a
                        e2 += p[2 * padded + n] * a
                        e3 += p[3 * padded + n] * a
                    for n in range(cosines, size):
                        a = work[n * width + m] if size > 3 else columns[n, m]
                        o0 += p[n] * a
                        o1 += p[padded + n] * a
                        o2 += p[2 * padded + n] * a
                        o3 += p[3 * padded + n] * a
                    # One root of a reciprocal each, which processors estimate in a few cycles.
                    q0 = (e0 + o0) ** 2 + (e1 + o1) ** 2 + smoothing
                    q1 = (e0 - o0) ** 2 + (e1 - o1) ** 2 + smoothing
                    q2 = (e2 + o2) ** 2 + (e3 + o3) ** 2 + lift
                    q3 = (e2 - o2) ** 2 + (e3 - o3) ** 2 + lift
                    counted = np.float32((m > i) & (m < half))
                    r0 = counted / np.sqrt(q0 + tiny)
                    r1 = np.float32((m >= mirrored) & (m < half)) / np.sqrt(q1 + tiny)
                    r2 = counted / np.sqrt(q2 + tiny)
                    r3 = counted / np.sqrt(q3 + tiny)
                    work[sums + m] += q0 * r0 + q1 * r1 + q2 * r2 + q3 * r3
                    if want_gradient:
                        x0, x1 = (e0 + o0) * r0, (e0 - o0) * r1
                        y0, y1 = (e1 + o1) * r0, (e1 - o1) * r1
                        x2, x3 = (e2 + o2) * r2, (e2 - o2) * r3
                        y2, y3 = (e3 + o3) * r2, (e3 - o3) * r3
                        work[place + m] = x0 + x1 + x2 + x3
                        work[place + kind + m] = x0 + x1 - x2 - x3
                        work[place + 2 * kind + m] = x0 - x1 + x2 - x3
                        work[place + 3 * kind + m] = x0 - x1 - x2 + x3
                        work[place + 4 * kind + m] = y0 + y1 + y2 + y3
                        work[place + 5 * kind + m] = y0 + y1 - y2 - y3
                        work[place + 6 * kind + m] = y0 - y1 + y2 - y3
                        work[place + 7 * kind + m] = y0 - y1 - y2 + y3
                if want_gradient and (i % _ROWS == _ROWS - 1 or i == half - 1):
                    block = i // _ROWS * _ROWS
                    for k in range(4):
                        for n in range(size):
                            source = weights + (2 * k + (n >= cosines)) * kind
                            target = folded + (k * size + n) * width
                            a, c = rows[block, n], rows[block + 1, n]
                            d, f = rows[block + 2, n], rows[block + 3, n]
                            x, y = rows[block + 4, n], rows[block + 5, n]
                            z, t = rows[block + 6, n], rows[block + 7, n]
                            for m in range(start, width):
                                work[target + m] += (
                                    a * work[source + m]
                                    + c * work[source + width + m]
                                    + d * work[source + 2 * width + m]
                                    + f * work[source + 3 * width + m]
                                    + x * work[source + 4 * width + m]
                                    + y * work[source + 5 * width + m]
                                    + z * work[source + 6 * width + m]
                                    + t * work[source + 7 * width + m]
                                )
            total = 0.0
            for m in range(width):
                total += work[sums + m]
            value[b] = total
            if want_gradient:
                planes[:] = zero
                for k in range(2):
                    for m in range(size):
                        even = folded + (2 * k * size + m) * width
                        odd = even + size * width
                        for first in range(0, width, _LANES):
                            for n in range(padded):
                                x = y = zero
                                for j in range(_LANES):
                                    at = (first + j) * padded + n
                                    x += work[even + first + j] * halves[at]
                                    y += work[odd + first + j] * halves[width * padded + at]
                                planes[k, m, n] += x + y
                for m in range(size):
                    for k in range(pairs):
                        low, high, sine = pairs - 1 - k, size - pairs + k, size - pairs + k
                        a, c = planes[0, m, k], planes[1, m, k]
                        d, f = planes[0, m, sine], planes[1, m, sine]
                        half_turned[0, m, low] = root * (a - f)
                        half_turned[1, m, low] = root * (c + d)
                        half_turned[0, m, high] = root * (a + f)
                        half_turned[1, m, high] = root * (c - d)
                    if size % 2:
                        half_turned[0, m, pairs] = planes[0, m, pairs]
                        half_turned[1, m, pairs] = planes[1, m, pairs]
                for k in range(pairs):
                    low, high, sine = pairs - 1 - k, size - pairs + k, size - pairs + k
                    for n in range(size):
                        a, c = half_turned[0, k, n], half_turned[1, k, n]
                        d, f = half_turned[0, sine, n], half_turned[1, sine, n]
                        gradient[b, low, n, 0] = root * (a + f)
                        gradient[b, low, n, 1] = root * (c - d)
                        gradient[b, high, n, 0] = root * (a - f)
                        gradient[b, high, n, 1] = root * (c + d)
                if size % 2:
                    for n in range(size):
                        gradient[b, pairs, n, 0] = half_turned[0, pairs, n]
                        gradient[b, pairs, n, 1] = half_turned[1, pairs, n]

    return name_loop(kernel, "pairs", size, cosines, half, int(want_gradient))
