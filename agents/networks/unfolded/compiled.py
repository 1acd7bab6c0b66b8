"""A stage of an unfolded joint design as a compiled loop.

It contains the loop over pairs of directions, so the matrices of a block never leave the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isac_gym.agents.networks.unfolded.downlink import Downlink, StageControls
from isac_gym.agents.networks.unfolded.kernel import make_descent_kernel, make_stage_kernel
from isac_gym.compilation import (
    Floats,
    share_out,
    to_array,
    to_matrices,
)
from isac_gym.physics.sensing.coarse import CoarseSensing
from isac_gym.physics.sensing.compiled import CompiledPairs

__all__ = ["CompiledStage", "compile_stage"]


class CompiledStage:
    """A stage of :mod:`~isac_gym.agents.networks.unfolded.stage`, a block at a time in the cache.

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
            to_array(diagonals),
            ((2.0 / length) * pattern @ pattern.mT).float().numpy(),
            ((2.0 / length) * wanted).float().numpy(),
            (wanted / desired.double().sum(-1, keepdim=True)).float().numpy(),
            np.float32(-1.0 if pattern_scale is None else pattern_scale),
        )

    def __call__(
        self,
        downlink: Downlink,
        controls: StageControls,
        streams: Tensor,
        before: Tensor,
        received: Tensor,
        power: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One stage.

        Args:
            downlink: The users.
            controls: What the stage is told.
            streams: V, complex64 (n, J, M_R, r), in √W.
            before: V of the step before, same shape.
            received: Radar power at each user under V, (n, J, K), in W.
            power: P_R, in W.

        Returns:
            The new V, the V before it, and the radar power at each user under the new V.
        """
        shape, users = streams.shape, received.shape[-1]
        # The loop overwrites these three.
        now, then = (to_matrices(value).copy() for value in (streams, before))
        heard = _to_rows(received).copy()
        inputs = (
            now,
            then,
            heard,
            *downlink.arrays,
            controls.outputs.reshape(-1, users, 3).contiguous().numpy(),
            _to_rows(controls.tempo),
            np.ascontiguousarray(controls.price.reshape(-1).numpy()),
            *self._list_constants(controls, shape, power),
        )
        kernel = make_stage_kernel(shape[-2], shape[-1], self._pairs.key)
        self._run(kernel, inputs, len(now))
        return *_to_streams(shape, now, then), torch.from_numpy(heard).view(received.shape)

    def descend(
        self,
        streams: Tensor,
        before: Tensor,
        resolvent: Tensor,
        controls: StageControls,
        power: float,
    ) -> tuple[Tensor, Tensor]:
        """The steps on V of a stage; see :func:`~isac_gym.agents.networks.unfolded.stage.descend`.

        Args:
            streams: V, complex64 (n, J, M_R, r), in √W.
            before: V of the step before, same shape.
            resolvent: A, complex64 (n, J, M_R, M_R).
            controls: What the stage is told.
            power: P_R, in W.

        Returns:
            The new V, and the V before it.
        """
        shape = streams.shape
        now, then = (to_matrices(value).copy() for value in (streams, before))
        inputs = (
            now,
            then,
            to_matrices(resolvent),
            _to_rows(controls.tempo),
            *self._list_constants(controls, shape, power),
        )
        kernel = make_descent_kernel(shape[-2], shape[-1], self._pairs.key)
        self._run(kernel, inputs, len(now))
        return _to_streams(shape, now, then)

    def _list_constants(
        self, controls: StageControls, shape: torch.Size, power: float
    ) -> tuple[Any, ...]:
        return (
            np.float32(controls.length),
            np.float32(controls.largest_correction),
            np.float32(controls.smoothing),
            np.float32((power / shape[-2]) ** 0.5),
            *self._inputs,
        )

    def _run(self, kernel: Callable[..., None], inputs: tuple[Any, ...], count: int) -> None:
        def run(first: int, last: int) -> None:
            kernel(first, last, *inputs, *self._pairs.scratch())

        share_out(run, count)


def _to_rows(value: Tensor) -> Floats:
    found: Floats = value.reshape(-1, value.shape[-1]).contiguous().numpy()
    return found


def _to_streams(shape: torch.Size, now: Floats, then: Floats) -> tuple[Tensor, Tensor]:
    new, old = (
        torch.from_numpy(value.view(np.complex64)[..., 0]).view(shape) for value in (now, then)
    )
    return new, old


def compile_stage(sensing: CoarseSensing) -> CompiledStage | None:
    """The compiled loop for a sensing loss, or None where there is none; it is made once.

    With ``ISAC_GYM_COMPILED=pairs`` in the environment there is none: for a size of array that was
    not met before it takes ten seconds to compile, which few evaluations are not worth.
    """
    if os.environ.get("ISAC_GYM_COMPILED") == "pairs":
        return None
    return _make_stage(sensing)


@lru_cache(maxsize=64)
def _make_stage(sensing: CoarseSensing) -> CompiledStage | None:
    pairs, model = sensing.coarse.compiled, sensing.model
    if pairs is None or sensing.coarse.cross_correlation_form != "grid_abs":
        return None
    scale = model.pattern_scale
    return CompiledStage(
        pairs,
        sensing.scale * sensing.coarse.pair_weight,
        sensing.diagonals.reshape(-1, model.num_antennas, model.num_antennas)[0],
        model.lag_pattern,
        model.desired.reshape(-1, model.desired.shape[-1]),
        None if scale == "optimal" else float(scale),
    )
