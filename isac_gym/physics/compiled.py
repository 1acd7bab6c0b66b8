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
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.physics.steering import centred_real_steering

__all__ = ["CompiledPairs", "CompiledStage", "matrices_of"]

_LANES = 16
_MATRICES_A_TASK = 16
_Float = npt.NDArray[np.float32]


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
    def tables(self) -> tuple[_Float, _Float, bool]:
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

        _shared_out(run, len(parts))
        total = torch.from_numpy(value).view(matrices.shape[:-2])
        if not want_gradient:
            return total, None
        merged = gradient.view(np.complex64)[..., 0]
        return total, torch.from_numpy(merged).view(matrices.shape)


def _shared_out(run: Callable[[int, int], None], count: int) -> None:
    """Run a loop over ``count`` matrices in as many threads as torch has."""
    workers = min(torch.get_num_threads(), -(-count // _MATRICES_A_TASK))
    if workers <= 1:
        run(0, count)
        return
    edges = np.linspace(0, count, workers + 1).astype(int).tolist()
    list(_pool(workers, os.getpid()).map(run, edges[:-1], edges[1:]))


class CompiledStage:
    """A stage of :mod:`isac_gym.physics.unfolding`, each block in one go while it is in the cache.

    The beampattern error enters by the lag sums ρ of R alone: its gradient by them is
    (2/L)(BBᵀρ - α B d), with P(θ) = Bᵀρ.

    Args:
        pairs: The sum over pairs of a coarse grid.
        correlation_scale: Factor of that sum in L_r2.
        diagonals: Constant part of the gradient of L_r2, Hermitian and Toeplitz (M, M).
        lag_pattern: B, (2M - 1, L).
        desired: d(θ) of every station, (J, L).
        pattern_scale: α, or None for the one that fits best.
    """

    def __init__(
        self,
        pairs: CompiledPairs,
        correlation_scale: float,
        diagonals: Tensor,
        lag_pattern: Tensor,
        desired: Tensor,
        pattern_scale: float | None,
    ) -> None:
        self._pairs = pairs
        pattern = lag_pattern.double()
        length = pattern.shape[-1]
        wanted = desired.double() @ pattern.mT
        self._inputs = (
            *pairs.tables,
            np.float32(correlation_scale),
            _real(diagonals),
            ((2.0 / length) * pattern @ pattern.mT).float().numpy(),
            ((2.0 / length) * wanted).float().numpy(),
            (wanted / desired.double().sum(-1, keepdim=True)).float().numpy(),
            np.float32(-1.0 if pattern_scale is None else pattern_scale),
        )

    def __call__(
        self,
        downlink: Any,
        controls: Any,
        streams: Tensor,
        before: Tensor,
        received: Tensor,
        power: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :func:`isac_gym.physics.unfolding.advance`."""
        shape, users = streams.shape, received.shape[-1]

        def flat(value: Tensor) -> _Float:
            found: _Float = value.reshape(-1, value.shape[-1]).contiguous().numpy()
            return found

        # The loop overwrites these three.
        now, then = (matrices_of(value).copy() for value in (streams, before))
        heard = flat(received).copy()
        inputs = (
            now,
            then,
            heard,
            *downlink.arrays,
            controls.outputs.reshape(-1, users, 3).contiguous().numpy(),
            flat(controls.tempo),
            np.ascontiguousarray(controls.price.reshape(-1).numpy()),
            np.float32(controls.length),
            np.float32(controls.largest_correction),
            np.float32(controls.smoothing),
            np.float32((power / shape[-2]) ** 0.5),
            *self._inputs,
        )
        kernel = _stage_kernel(shape[-2], shape[-1], self._pairs.key)

        def run(first: int, last: int) -> None:
            kernel(first, last, *inputs)

        _shared_out(run, len(now))
        new, old = (
            torch.from_numpy(value.view(np.complex64)[..., 0]).view(shape) for value in (now, then)
        )
        return new, old, torch.from_numpy(heard).view(received.shape)


def matrices_of(value: Tensor) -> _Float:
    """Complex64 (..., M, N) as contiguous float32 (n, M, N, 2)."""
    return _real(value).reshape(-1, *value.shape[-2:], 2)


def _real(value: Tensor) -> _Float:
    """A complex64 tensor as a contiguous float32 array with one axis more."""
    found: _Float = torch.view_as_real(value.resolve_conj()).contiguous().numpy()
    return found


@lru_cache(maxsize=4)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child asks with its own number and gets its own."""
    return ThreadPoolExecutor(workers, thread_name_prefix=f"isac-gym-{process}")


@lru_cache(maxsize=16)
def _kernel(size: int, cosines: int, half: int, want_gradient: bool) -> Callable[..., None]:
    """The compiled :func:`_pair_loop`."""
    return _compiled(_pair_loop(size, cosines, half, want_gradient))


def _options() -> dict[str, Any]:
    # No flag that assumes finite numbers: a diverging training must be seen as such.
    relaxed: Any = {"reassoc", "contract", "arcp", "nsz"}
    return {"fastmath": relaxed, "error_model": "numpy", "nogil": True}


def _named(loop: Callable[..., None], *parts: str | int) -> Callable[..., None]:
    """Give a loop a name of its own for its constants.

    Machine code that is kept on the disk is linked by name: two loops of one name, compiled in
    different processes, would be taken for each other in a third.
    """
    loop.__name__ = loop.__qualname__ = "_".join(map(str, parts))
    return loop


def _compiled(loop: Callable[..., None]) -> Callable[..., None]:
    import numba

    try:
        found: Callable[..., None] = numba.njit(**_options(), cache=True)(loop)
    except RuntimeError:  # no folder to keep the machine code in
        found = numba.njit(**_options())(loop)
    return found


def _pair_loop(size: int, cosines: int, half: int, want_gradient: bool) -> Callable[..., None]:
    """The loop for M = size, of which the first ``cosines`` parts are even, and ``half`` angles.

    The arguments are constants of the compiled code, so that its inner loops unroll.
    """
    width = half + -half % _LANES
    pairs = size // 2
    root = np.float32(0.5**0.5)

    def kernel(
        matrices: _Float,
        rows: _Float,
        columns: _Float,
        has_zero: bool,
        smoothing: float,
        value: _Float,
        gradient: _Float,
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

    return _named(kernel, "pairs", size, cosines, half, int(want_gradient))


def _softmax(logits: _Float, shares: Any) -> None:
    largest = logits.max()
    total = 0.0
    for k in range(len(shares)):
        shares[k] = np.exp(logits[k] - largest)
        total += shares[k]
    for k in range(len(shares)):
        shares[k] /= total


def _invert(system: Any, inverse: Any) -> None:
    """Gauss and Jordan without pivoting: the matrices are Hermitian and positive definite."""
    size = len(system)
    inverse[:] = 0.0
    for k in range(size):
        inverse[k, k] = 1.0
    for k in range(size):
        pivot = 1.0 / system[k, k]
        for n in range(size):
            system[k, n] *= pivot
            inverse[k, n] *= pivot
        for i in range(size):
            if i != k:
                share = system[i, k]
                for n in range(size):
                    system[i, n] -= share * system[k, n]
                    inverse[i, n] -= share * inverse[k, n]


@lru_cache(maxsize=16)
def _stage_kernel(size: int, columns: int, key: tuple[int, int, int]) -> Callable[..., None]:
    """The stage for V with ``size`` rows and ``columns`` columns, on the grid of ``key``."""
    from numba.extending import register_jitable

    # Not compiled by themselves, so that what is made of them can be kept on the disk.
    pairs = register_jitable(**_options())(_pair_loop(*key, True))
    softmax = register_jitable(error_model="numpy")(_softmax)
    invert = register_jitable(error_model="numpy")(_invert)
    log2 = float(np.log(2.0))

    def kernel(
        first: int,
        last: int,
        streams: _Float,
        before: _Float,
        received: _Float,
        radar: _Float,
        gram: _Float,
        gains: _Float,
        noise: _Float,
        budget: float,
        outputs: _Float,
        tempo: _Float,
        price: _Float,
        length: float,
        largest_correction: float,
        smoothing: float,
        row_norm: float,
        rows: _Float,
        padded: _Float,
        has_zero: bool,
        correlation_scale: float,
        diagonals: _Float,
        quadratic: _Float,
        linear: _Float,
        fitting: _Float,
        pattern_scale: float,
    ) -> None:
        zero = np.float32(0.0)
        half = np.float32(0.5)
        one = np.float32(1.0)
        tiny = np.float32(1e-12)
        now = np.empty((2, size, columns), np.float32)
        then = np.empty((2, size, columns), np.float32)
        moved = np.empty((2, size, columns), np.float32)
        matrix = np.empty((1, size, size, 2), np.float32)
        slope = np.empty((1, size, size, 2), np.float32)
        value = np.empty(1, np.float32)
        lags = np.empty(2 * size - 1, np.float32)
        pull = np.empty(2 * size - 1, np.float32)
        gradient = np.empty((2, size, size), np.float32)
        users = gram.shape[1]
        resolvent = np.empty((2, size, size), np.float32)
        scaled = np.empty((2, users, size), np.float32)
        solved = np.empty((2, size), np.float32)
        steps = tempo.shape[1] // 2
        powers = np.empty(users, np.float64)
        duals = np.empty(users, np.float64)
        weights = np.empty(users, np.float64)
        gain = np.empty((users, users), np.float64)
        system = np.empty((users, users), np.complex128)
        inverse = np.empty((users, users), np.complex128)
        stations = linear.shape[0]
        for b in range(first, last):
            station = b % stations
            softmax(outputs[b, :, 0], powers)
            if gains.shape[0]:
                gain[:] = gains[b]
            else:
                softmax(outputs[b, :, 1], duals)
                for k in range(users):
                    for i in range(users):
                        system[k, i] = complex(gram[b, k, i, 0], gram[b, k, i, 1])
                    load = budget * max(duals[k], 1e-6)
                    system[k, k] += (noise[b] + received[b, k]) / load
                invert(system, inverse)
                for i in range(users):
                    norm = 0.0
                    for k in range(users):
                        column = 0j
                        for n in range(users):
                            column += complex(gram[b, k, n, 0], gram[b, k, n, 1]) * inverse[n, i]
                        norm += (inverse[i, k] * column).real
                        gain[k, i] = column.real * column.real + column.imag * column.imag
                    norm = max(norm, 1e-12)
                    for k in range(users):
                        gain[k, i] /= norm
            for k in range(users):
                signal = budget * powers[k] * gain[k, k]
                disturbed = received[b, k] + noise[b]
                for i in range(users):
                    if i != k:
                        disturbed += budget * powers[i] * gain[k, i]
                slope_of_user = signal / (disturbed * (disturbed + signal)) / log2
                correction = min(max(outputs[b, k, 2], -largest_correction), largest_correction)
                factor = length * np.exp(correction) / price[b]
                weights[k] = np.sqrt(factor * slope_of_user)
            # I - Sᴴ(I + SSᴴ)⁻¹S with S the rows √w_k f_kᵀ.
            for k in range(users):
                root_weight = np.float32(weights[k])
                for m in range(size):
                    scaled[0, k, m] = root_weight * radar[b, k, m, 0]
                    scaled[1, k, m] = root_weight * radar[b, k, m, 1]
            for k in range(users):
                for i in range(k + 1):
                    x = y = zero
                    for m in range(size):
                        x += scaled[0, k, m] * scaled[0, i, m] + scaled[1, k, m] * scaled[1, i, m]
                        y += scaled[1, k, m] * scaled[0, i, m] - scaled[0, k, m] * scaled[1, i, m]
                    system[k, i] = complex(x, y)
                    system[i, k] = complex(x, -y)
                system[k, k] += 1.0
            invert(system, inverse)
            resolvent[:] = zero
            for m in range(size):
                resolvent[0, m, m] = one
            for k in range(users):
                solved[:] = zero
                for i in range(users):
                    x = np.float32(inverse[k, i].real)
                    y = np.float32(inverse[k, i].imag)
                    for n in range(size):
                        solved[0, n] += x * scaled[0, i, n] - y * scaled[1, i, n]
                        solved[1, n] += x * scaled[1, i, n] + y * scaled[0, i, n]
                for m in range(size):
                    x = scaled[0, k, m]
                    y = -scaled[1, k, m]
                    for n in range(size):
                        resolvent[0, m, n] -= x * solved[0, n] - y * solved[1, n]
                        resolvent[1, m, n] -= x * solved[1, n] + y * solved[0, n]
            for m in range(size):
                for c in range(columns):
                    now[0, m, c] = streams[b, m, c, 0]
                    now[1, m, c] = streams[b, m, c, 1]
                    then[0, m, c] = before[b, m, c, 0]
                    then[1, m, c] = before[b, m, c, 1]
            for step in range(steps):
                for m in range(size):
                    for n in range(m + 1):
                        x = y = zero
                        for c in range(columns):
                            x += now[0, m, c] * now[0, n, c] + now[1, m, c] * now[1, n, c]
                            y += now[1, m, c] * now[0, n, c] - now[0, m, c] * now[1, n, c]
                        matrix[0, m, n, 0] = x
                        matrix[0, m, n, 1] = y
                        matrix[0, n, m, 0] = x
                        matrix[0, n, m, 1] = -y
                pairs(matrix, rows, padded, has_zero, smoothing, value, slope)
                lags[:] = zero
                for m in range(size):
                    lags[0] += matrix[0, m, m, 0]
                    for n in range(m + 1, size):
                        lags[2 * (n - m) - 1] += matrix[0, m, n, 0]
                        lags[2 * (n - m)] += matrix[0, m, n, 1]
                scale: Any = pattern_scale
                if scale < zero:
                    scale = zero
                    for k in range(2 * size - 1):
                        scale += fitting[station, k] * lags[k]
                    scale = max(scale, zero)
                for k in range(2 * size - 1):
                    x = -scale * linear[station, k]
                    for n in range(2 * size - 1):
                        x += quadratic[k, n] * lags[n]
                    pull[k] = x
                for m in range(size):
                    for n in range(size):
                        x = slope[0, m, n, 0] + slope[0, n, m, 0]
                        y = slope[0, m, n, 1] - slope[0, n, m, 1]
                        x = half * correlation_scale * x + diagonals[m, n, 0]
                        y = half * correlation_scale * y + diagonals[m, n, 1]
                        if m == n:
                            x += pull[0]
                        elif n > m:
                            x += half * pull[2 * (n - m) - 1]
                            y += half * pull[2 * (n - m)]
                        else:
                            x += half * pull[2 * (m - n) - 1]
                            y -= half * pull[2 * (m - n)]
                        gradient[0, m, n] = x
                        gradient[1, m, n] = y
                logarithm = min(max(tempo[b, step], -largest_correction), largest_correction)
                eta = length * np.exp(logarithm)
                beta = tempo[b, steps + step]
                for m in range(size):
                    for c in range(columns):
                        moved[0, m, c] = (one + beta) * now[0, m, c] - beta * then[0, m, c]
                        moved[1, m, c] = (one + beta) * now[1, m, c] - beta * then[1, m, c]
                    for n in range(size):
                        x = eta * gradient[0, m, n]
                        y = eta * gradient[1, m, n]
                        for c in range(columns):
                            moved[0, m, c] -= x * now[0, n, c] - y * now[1, n, c]
                            moved[1, m, c] -= x * now[1, n, c] + y * now[0, n, c]
                then[:] = now
                for m in range(size):
                    now[:, m] = zero
                    for n in range(size):
                        x = resolvent[0, m, n]
                        y = resolvent[1, m, n]
                        for c in range(columns):
                            now[0, m, c] += x * moved[0, n, c] - y * moved[1, n, c]
                            now[1, m, c] += x * moved[1, n, c] + y * moved[0, n, c]
                    row: Any = zero
                    for c in range(columns):
                        row += now[0, m, c] * now[0, m, c] + now[1, m, c] * now[1, m, c]
                    row = np.sqrt(row)
                    if row < tiny:
                        now[0, m] = row_norm / np.sqrt(np.float32(columns))
                        now[1, m] = zero
                    else:
                        row = row_norm / row
                        for c in range(columns):
                            now[0, m, c] *= row
                            now[1, m, c] *= row
            for k in range(users):
                total_power: Any = zero
                for c in range(columns):
                    x = y = zero
                    for m in range(size):
                        p = radar[b, k, m, 0]
                        q = radar[b, k, m, 1]
                        x += p * now[0, m, c] - q * now[1, m, c]
                        y += p * now[1, m, c] + q * now[0, m, c]
                    total_power += x * x + y * y
                received[b, k] = total_power
            for m in range(size):
                for c in range(columns):
                    streams[b, m, c, 0] = now[0, m, c]
                    streams[b, m, c, 1] = now[1, m, c]
                    before[b, m, c, 0] = then[0, m, c]
                    before[b, m, c, 1] = then[1, m, c]

    return _compiled(_named(kernel, "stage", size, columns, *key))
