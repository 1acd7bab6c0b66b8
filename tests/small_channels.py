"""Small deployments, and the moments that their channels should have."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference

from isac_gym.channels.base import (
    Deployment,
    draw_complex_normal,
)

SIGMAS = 5.0


SEEDS = [0, 1, 2]


ONE_CELL = Deployment(1, 2, 2, 3, 0.5, 0.1)


THREE_CELLS = Deployment(3, 2, 2, 1, 0.5, 0.25)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gains(deployment: Deployment) -> reference.Real:
    """Mean power of every entry of a realisation, flattened."""
    gain = np.full(deployment.shape, deployment.intercell_gain)
    for cell in range(deployment.num_cells):
        gain[cell, cell] = 1.0
    return gain.ravel()


def correlation(left: Any, right: Any) -> reference.Complex:
    """Matrix of sample means of left_i·conj(right_j), over the first axis."""
    a, b = (np.asarray(x, np.complex128).reshape(len(x), -1) for x in (left, right))
    return a.T @ b.conj() / len(a)


def samples(*shape: int) -> Any:
    return draw_complex_normal(rng(4), shape)
