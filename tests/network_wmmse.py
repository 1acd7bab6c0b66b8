"""WMMSE of several stations, from its equations: what searches are held against without radar."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Complex = npt.NDArray[np.complex128]
Real = npt.NDArray[np.float64]

_HALVINGS = 50


def wmmse_of_network(comm: Complex, F: Complex, noise: float, budget: float, count: int) -> Complex:
    """Multi-cell WMMSE (Shi et al., 2011), one power budget a station, its price by bisection.

    Args:
        comm: Channels (n, J, J, K, M); [b, i, j, k] leads from station i to user k of cell j.
        F: Precoders to begin with, (n, J, M, K).
        noise: N0.
        budget: Power of a station.
        count: Iterations.

    Returns:
        The precoders, (n, J, M, K).
    """
    for _ in range(count):
        received = np.einsum("bijkm,bimq->bijkq", comm, F, optimize=True)
        total = noise + np.sum(np.abs(received) ** 2, axis=(1, 4))
        own = np.einsum("bjjkk->bjk", received)
        receivers = own / total
        weights = 1 / (1 - np.abs(own) ** 2 / total)
        loud = weights * np.abs(receivers) ** 2
        system = np.einsum("bijkm,bjk,bijkn->bimn", comm.conj(), loud, comm, optimize=True)
        direct = np.einsum("bjjkm->bjkm", comm)
        wanted = np.einsum("bjkm,bjk->bjmk", direct.conj(), weights * receivers)
        values, basis = np.linalg.eigh(system)
        values = np.maximum(values, 0.0)
        turned = basis.conj().swapaxes(-1, -2) @ wanted
        price = _find_price(values, np.sum(np.abs(turned) ** 2, axis=-1), budget)
        F = basis @ (turned / (values + price[..., None])[..., None])
    return F


def _find_price(values: Real, squares: Real, budget: float) -> Real:
    """The least μ >= 0 with Σ_m squares_m/(values_m + μ)² <= budget, (n, J)."""

    def power(price: Real) -> Real:
        used: Real = np.sum(squares / (values + price[..., None]) ** 2, axis=-1)
        return used

    low = np.full(values.shape[:-1], 1e-12)
    high = np.sqrt(squares.sum(-1) / budget) + 1e-12
    high = np.where(power(low) <= budget, low, high)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        over = power(middle) > budget
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    return high
