"""The loops of a stage and of its steps, for Numba, around the loop over pairs of directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from isac_gym.compilation import (
    Floats,
    compile_loop,
    digest_source,
    list_compiler_options,
    name_loop,
    pad_to_vectors,
)
from isac_gym.physics.sensing.compiled import make_pair_loop

__all__ = ["make_descent_kernel", "make_stage_kernel"]


def _softmax(logits: Floats, shares: Any) -> None:
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
    for k in range(size):
        for n in range(size):
            inverse[k, n] = 0.0
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


def _make_descent(size: int, columns: int, key: tuple[int, int, int]) -> Callable[..., None]:
    """The steps on one V with ``size`` rows and ``columns`` columns, to be inlined in a loop.

    Arrays are assigned entry by entry here and in the loops around: for an assignment of whole
    arrays Numba compiles what it would say if their shapes differed, which took most of the time.
    """
    pairs = _inline(make_pair_loop(*key, True))
    lanes, rows_padded = pad_to_vectors(columns), pad_to_vectors(size)

    def descend(
        now: Floats,
        then: Floats,
        resolvent: Floats,
        tempo: Floats,
        length: float,
        largest_correction: float,
        smoothing: float,
        row_norm: float,
        rows: Floats,
        columns_of_grid: Floats,
        halves: Floats,
        has_zero: bool,
        correlation_scale: float,
        diagonals: Floats,
        quadratic: Floats,
        linear: Floats,
        fitting: Floats,
        pattern_scale: float,
        work: Floats,
        spare: Floats,
        moved: Floats,
        turned: Floats,
        matrix: Floats,
        product: Floats,
        slope: Floats,
        value: Floats,
        lags: Floats,
        pull: Floats,
        gradient: Floats,
    ) -> None:
        zero = np.float32(0.0)
        half = np.float32(0.5)
        one = np.float32(1.0)
        tiny = np.float32(1e-12)
        steps = tempo.shape[0] // 2
        antennas, lag_count = resolvent.shape[1], lags.shape[0]
        for step in range(steps):
            # R = VVᴴ.
            for m in range(antennas):
                for c in range(columns):
                    turned[0, c, m] = now[0, m, c]
                    turned[1, c, m] = now[1, m, c]
            for m in range(antennas):
                for n in range(rows_padded):
                    x = y = zero
                    for c in range(columns):
                        x += now[0, m, c] * turned[0, c, n] + now[1, m, c] * turned[1, c, n]
                        y += now[1, m, c] * turned[0, c, n] - now[0, m, c] * turned[1, c, n]
                    product[m, n, 0] = x
                    product[m, n, 1] = y
                for n in range(size):
                    matrix[0, m, n, 0] = product[m, n, 0]
                    matrix[0, m, n, 1] = product[m, n, 1]
            pairs(
                matrix,
                rows,
                columns_of_grid,
                halves,
                has_zero,
                work,
                spare,
                smoothing,
                value,
                slope,
            )
            for k in range(lag_count):
                lags[k] = zero
            for m in range(antennas):
                lags[0] += matrix[0, m, m, 0]
                for n in range(m + 1, antennas):
                    lags[2 * (n - m) - 1] += matrix[0, m, n, 0]
                    lags[2 * (n - m)] += matrix[0, m, n, 1]
            scale: Any = pattern_scale
            if scale < zero:
                scale = zero
                for k in range(lag_count):
                    scale += fitting[k] * lags[k]
                scale = max(scale, zero)
            for k in range(lag_count):
                x = -scale * linear[k]
                for n in range(lag_count):
                    x += quadratic[k, n] * lags[n]
                pull[k] = x
            for m in range(antennas):
                for n in range(antennas):
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
            logarithm = min(max(tempo[step], -largest_correction), largest_correction)
            eta = length * np.exp(logarithm)
            beta = tempo[steps + step]
            # Columns as the inner loop and whole vectors of them, so that it is vectorised.
            for m in range(antennas):
                for c in range(lanes):
                    x = y = zero
                    for n in range(size):
                        x += gradient[0, m, n] * now[0, n, c] - gradient[1, m, n] * now[1, n, c]
                        y += gradient[0, m, n] * now[1, n, c] + gradient[1, m, n] * now[0, n, c]
                    moved[0, m, c] = (one + beta) * now[0, m, c] - beta * then[0, m, c] - eta * x
                    moved[1, m, c] = (one + beta) * now[1, m, c] - beta * then[1, m, c] - eta * y
            for m in range(antennas):
                for c in range(lanes):
                    then[0, m, c] = now[0, m, c]
                    then[1, m, c] = now[1, m, c]
            for m in range(antennas):
                for c in range(lanes):
                    x = y = zero
                    for n in range(size):
                        x += resolvent[0, m, n] * moved[0, n, c]
                        x -= resolvent[1, m, n] * moved[1, n, c]
                        y += resolvent[0, m, n] * moved[1, n, c]
                        y += resolvent[1, m, n] * moved[0, n, c]
                    now[0, m, c] = x
                    now[1, m, c] = y
                row: Any = zero
                for c in range(columns):
                    row += now[0, m, c] * now[0, m, c] + now[1, m, c] * now[1, m, c]
                row = np.sqrt(row)
                if row < tiny:
                    for c in range(columns):
                        now[0, m, c] = row_norm / np.sqrt(np.float32(columns))
                        now[1, m, c] = zero
                else:
                    row = row_norm / row
                    for c in range(columns):
                        now[0, m, c] *= row
                        now[1, m, c] *= row

    return descend


def _make_holder(size: int, columns: int) -> Callable[[], tuple[Floats, ...]]:
    """What makes the arrays that the descent works on."""
    lanes, rows_padded = pad_to_vectors(columns), pad_to_vectors(size)

    def hold() -> tuple[Floats, ...]:
        return (
            np.zeros((2, size, lanes), np.float32),
            np.zeros((2, columns, rows_padded), np.float32),
            np.empty((1, size, size, 2), np.float32),
            np.empty((size, rows_padded, 2), np.float32),
            np.empty((1, size, size, 2), np.float32),
            np.empty(1, np.float32),
            np.empty(2 * size - 1, np.float32),
            np.empty(2 * size - 1, np.float32),
            np.empty((2, size, size), np.float32),
        )

    return hold


def _inline(function: Callable[..., Any], fast: bool = True) -> Callable[..., Any]:
    """A function for use in compiled loops.

    It is not compiled by itself, so that what is made of it can be kept on the disk; and inlined: a
    process that compiles would call copies that round differently from those that are kept.
    """
    from numba.extending import register_jitable

    options = list_compiler_options() if fast else {"error_model": "numpy"}
    found: Callable[..., Any] = register_jitable(**options, forceinline=True)(function)
    return found


@lru_cache(maxsize=16)
def make_descent_kernel(size: int, columns: int, key: tuple[int, int, int]) -> Callable[..., None]:
    """The steps for many V with ``size`` rows and ``columns`` columns, on the grid of ``key``."""
    descend = _inline(_make_descent(size, columns, key))
    hold = _inline(_make_holder(size, columns))
    lanes = pad_to_vectors(columns)

    def kernel(
        first: int,
        last: int,
        streams: Floats,
        before: Floats,
        resolvents: Floats,
        tempo: Floats,
        length: float,
        largest_correction: float,
        smoothing: float,
        row_norm: float,
        rows: Floats,
        columns_of_grid: Floats,
        halves: Floats,
        has_zero: bool,
        correlation_scale: float,
        diagonals: Floats,
        quadratic: Floats,
        linear: Floats,
        fitting: Floats,
        pattern_scale: float,
        work: Floats,
        spare: Floats,
    ) -> None:
        now = np.zeros((2, size, lanes), np.float32)
        then = np.zeros((2, size, lanes), np.float32)
        resolvent = np.empty((2, size, size), np.float32)
        held = hold()
        stations = linear.shape[0]
        for b in range(first, last):
            station = b % stations
            for m in range(size):
                for n in range(size):
                    resolvent[0, m, n] = resolvents[b, m, n, 0]
                    resolvent[1, m, n] = resolvents[b, m, n, 1]
                for c in range(columns):
                    now[0, m, c] = streams[b, m, c, 0]
                    now[1, m, c] = streams[b, m, c, 1]
                    then[0, m, c] = before[b, m, c, 0]
                    then[1, m, c] = before[b, m, c, 1]
            descend(
                now,
                then,
                resolvent,
                tempo[b],
                length,
                largest_correction,
                smoothing,
                row_norm,
                rows,
                columns_of_grid,
                halves,
                has_zero,
                correlation_scale,
                diagonals,
                quadratic,
                linear[station],
                fitting[station],
                pattern_scale,
                work,
                spare,
                *held,
            )
            for m in range(size):
                for c in range(columns):
                    streams[b, m, c, 0] = now[0, m, c]
                    streams[b, m, c, 1] = now[1, m, c]
                    before[b, m, c, 0] = then[0, m, c]
                    before[b, m, c, 1] = then[1, m, c]

    return compile_loop(
        name_loop(kernel, "descent", digest_source(make_pair_loop), size, columns, *key)
    )


@lru_cache(maxsize=16)
def make_stage_kernel(size: int, columns: int, key: tuple[int, int, int]) -> Callable[..., None]:
    """The stage for V with ``size`` rows and ``columns`` columns, on the grid of ``key``."""
    descend = _inline(_make_descent(size, columns, key))
    hold = _inline(_make_holder(size, columns))
    softmax, invert = _inline(_softmax, fast=False), _inline(_invert, fast=False)
    log2 = float(np.log(2.0))
    lanes = pad_to_vectors(columns)

    def kernel(
        first: int,
        last: int,
        streams: Floats,
        before: Floats,
        received: Floats,
        radar: Floats,
        gram: Floats,
        gains: Floats,
        noise: Floats,
        budget: float,
        outputs: Floats,
        tempo: Floats,
        price: Floats,
        length: float,
        largest_correction: float,
        smoothing: float,
        row_norm: float,
        rows: Floats,
        columns_of_grid: Floats,
        halves: Floats,
        has_zero: bool,
        correlation_scale: float,
        diagonals: Floats,
        quadratic: Floats,
        linear: Floats,
        fitting: Floats,
        pattern_scale: float,
        work: Floats,
        spare: Floats,
    ) -> None:
        zero = np.float32(0.0)
        one = np.float32(1.0)
        now = np.zeros((2, size, lanes), np.float32)
        then = np.zeros((2, size, lanes), np.float32)
        held = hold()
        users = gram.shape[1]
        resolvent = np.empty((2, size, size), np.float32)
        scaled = np.empty((2, users, size), np.float32)
        solved = np.empty((2, size), np.float32)
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
                for k in range(users):
                    for i in range(users):
                        gain[k, i] = gains[b, k, i]
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
            for m in range(size):
                for n in range(size):
                    resolvent[0, m, n] = resolvent[1, m, n] = zero
                resolvent[0, m, m] = one
            for k in range(users):
                for n in range(size):
                    solved[0, n] = solved[1, n] = zero
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
            descend(
                now,
                then,
                resolvent,
                tempo[b],
                length,
                largest_correction,
                smoothing,
                row_norm,
                rows,
                columns_of_grid,
                halves,
                has_zero,
                correlation_scale,
                diagonals,
                quadratic,
                linear[station],
                fitting[station],
                pattern_scale,
                work,
                spare,
                *held,
            )
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

    return compile_loop(
        name_loop(kernel, "stage", digest_source(make_pair_loop), size, columns, *key)
    )
