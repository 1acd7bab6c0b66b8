"""The sum over pairs of directions as a compiled loop: several times faster than tensor operations.

Used on the CPU in single precision when Numba is installed (extra ``fast``), on grids that are
symmetric about 0. Setting the environment variable ``ISAC_GYM_COMPILED=0`` turns it off. Besides
the reduction to real numbers it folds the grid by parity: ã(-θ) differs from ã(θ) by the sign of
its sine parts, so four pairs of directions share their products.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from isac_gym.physics.compilation import Floats, compile_loop, named, share_out
from isac_gym.physics.steering import centred_real_steering

__all__ = ["CompiledPairs", "pair_loop"]

_LANES = 16


class CompiledPairs:
    """Σ over unordered pairs of grid directions of abs(a_lᴴ R a_m), for Hermitian R.

    Args:
        grid_deg: Directions in degrees, strictly increasing and symmetric about 0.
        num_antennas: M.
        spacing: Element spacing in wavelengths.
    """

    def __init__(self, grid_deg: Tensor, num_antennas: int, spacing: float) -> None:
        half = grid_deg[grid_deg >= 0]
        steering = centred_real_steering(half, num_antennas, spacing).numpy().astype(np.float32)
        padded = -len(half) % _LANES
        self._rows = np.ascontiguousarray(steering)
        self._columns = np.ascontiguousarray(np.pad(steering, ((0, padded), (0, 0))).T)
        self._has_zero = bool(half[0] == 0)
        self.key = (num_antennas, num_antennas - num_antennas // 2, len(half))

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
    def tables(self) -> tuple[Floats, Floats, bool]:
        """Steering by rows and by padded columns, and whether the grid holds 0."""
        return self._rows, self._columns, self._has_zero

    def kernel(self, want_gradient: bool) -> Callable[..., None]:
        """The compiled loop."""
        return _kernel(*self.key, want_gradient)

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
                self._rows,
                self._columns,
                self._has_zero,
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
def _kernel(size: int, cosines: int, half: int, want_gradient: bool) -> Callable[..., None]:
    """The compiled :func:`pair_loop`."""
    return compile_loop(pair_loop(size, cosines, half, want_gradient))


def pair_loop(size: int, cosines: int, half: int, want_gradient: bool) -> Callable[..., None]:
    """The loop for M = size, of which the first ``cosines`` parts are even, and ``half`` angles.

    The arguments are constants of the compiled code, so that its inner loops unroll.
    """
    width = half + -half % _LANES
    pairs = size // 2
    root = np.float32(0.5**0.5)

    def kernel(
        matrices: Floats,
        rows: Floats,
        columns: Floats,
        has_zero: bool,
        smoothing: float,
        value: Floats,
        gradient: Floats,
    ) -> None:
        zero = np.float32(0.0)
        one = np.float32(1.0)
        # Keeps the weight of a vanishing magnitude finite. Above the root of the smallest normal
        # number, so that a magnitude whose square underflows has a weight of at most 1.
        tiny = np.float32(2e-19)
        # Row vectors ãᵀZ for +θ (0 real, 1 imaginary) and -θ (2, 3), and their gradients.
        p = np.empty((4, size), np.float32)
        q = np.empty((4, size), np.float32)
        planes = np.empty((2, size, size), np.float32)
        turned = np.empty((2, size, size), np.float32)
        half_turned = np.empty((2, size, size), np.float32)
        # Magnitudes, then four rows of even and four of odd parts: one array with distances known
        # to the compiler, which otherwise could not rule out that the rows overlap.
        work = np.zeros(9 * width, np.float32)
        for b in range(matrices.shape[0]):
            total = 0.0
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
                    turned[0, k, n] = root * (a + d)
                    turned[1, k, n] = root * (c + f)
                    turned[0, sine, n] = root * (f - c)
                    turned[1, sine, n] = root * (a - d)
            if size % 2:
                turned[:, pairs] = half_turned[:, pairs]
            planes[:] = zero
            for i in range(half):
                both = i > 0 or not has_zero
                lift = smoothing if both else zero
                for n in range(size):
                    x = y = z = t = zero
                    for m in range(cosines):
                        x += rows[i, m] * turned[0, m, n]
                        y += rows[i, m] * turned[1, m, n]
                    for m in range(cosines, size):
                        z += rows[i, m] * turned[0, m, n]
                        t += rows[i, m] * turned[1, m, n]
                    p[0, n] = x + z
                    p[1, n] = y + t
                    p[2, n] = x - z if both else zero
                    p[3, n] = y - t if both else zero
                # Whole vectors from the one that holds i on: no remainder loop.
                start = i // _LANES * _LANES
                for step in range(width - start):
                    m = start + step
                    e0 = e1 = e2 = e3 = o0 = o1 = o2 = o3 = zero
                    for n in range(cosines):
                        a = columns[n, m]
                        e0 += p[0, n] * a
                        e1 += p[1, n] * a
                        e2 += p[2, n] * a
                        e3 += p[3, n] * a
                    for n in range(cosines, size):
                        a = columns[n, m]
                        o0 += p[0, n] * a
                        o1 += p[1, n] * a
                        o2 += p[2, n] * a
                        o3 += p[3, n] * a
                    s0 = np.sqrt((e0 + o0) ** 2 + (e1 + o1) ** 2 + smoothing)
                    s1 = np.sqrt((e0 - o0) ** 2 + (e1 - o1) ** 2 + smoothing)
                    s2 = np.sqrt((e2 + o2) ** 2 + (e3 + o3) ** 2 + lift)
                    s3 = np.sqrt((e2 - o2) ** 2 + (e3 - o3) ** 2 + lift)
                    work[m] = s0 + s1 + s2 + s3
                    if want_gradient:
                        r0 = one / (s0 + tiny)
                        r1 = one / (s1 + tiny)
                        r2 = one / (s2 + tiny)
                        r3 = one / (s3 + tiny)
                        work[width + m] = (e0 + o0) * r0 + (e0 - o0) * r1
                        work[2 * width + m] = (e1 + o1) * r0 + (e1 - o1) * r1
                        work[3 * width + m] = (e2 + o2) * r2 + (e2 - o2) * r3
                        work[4 * width + m] = (e3 + o3) * r2 + (e3 - o3) * r3
                        work[5 * width + m] = (e0 + o0) * r0 - (e0 - o0) * r1
                        work[6 * width + m] = (e1 + o1) * r0 - (e1 - o1) * r1
                        work[7 * width + m] = (e2 + o2) * r2 - (e2 - o2) * r3
                        work[8 * width + m] = (e3 + o3) * r2 - (e3 - o3) * r3
                partial = zero
                for m in range(i + 1, half):
                    partial += work[m]
                # On the diagonal only +θ with -θ is a pair.
                x = y = zero
                if both:
                    for n in range(cosines):
                        x += p[0, n] * rows[i, n]
                        y += p[1, n] * rows[i, n]
                    for n in range(cosines, size):
                        x -= p[0, n] * rows[i, n]
                        y -= p[1, n] * rows[i, n]
                s = np.sqrt(x * x + y * y + lift)
                total += partial + s
                if want_gradient:
                    r = one / (s + tiny)
                    for k in range(4):
                        for m in range(start, i + 1):
                            work[(1 + k) * width + m] = zero
                            work[(5 + k) * width + m] = zero
                    work[width + i] = x * r
                    work[2 * width + i] = y * r
                    work[5 * width + i] = -x * r
                    work[6 * width + i] = -y * r
                    for k in range(4):
                        for n in range(size):
                            x = zero
                            if n < cosines:
                                for m in range(start, width):
                                    x += work[(1 + k) * width + m] * columns[n, m]
                            else:
                                for m in range(start, width):
                                    x += work[(5 + k) * width + m] * columns[n, m]
                            q[k, n] = x
                    for m in range(size):
                        a = rows[i, m]
                        sign = one if m < cosines else -one
                        for n in range(size):
                            planes[0, m, n] += a * (q[0, n] + sign * q[2, n])
                            planes[1, m, n] += a * (q[1, n] + sign * q[3, n])
            value[b] = total
            if want_gradient:
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

    return named(kernel, "pairs", size, cosines, half, int(want_gradient))
