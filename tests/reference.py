"""The formulas of the system model, evaluated directly in complex128.

Written from the model, term by term and without any reduction, so that the package's code can be
compared with it. Angles in degrees, powers in W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Form = Literal["grid_abs", "grid_sq", "target_sq"]
FORMS: tuple[Form, ...] = ("grid_abs", "grid_sq", "target_sq")
GRID: Real = np.linspace(-90.0, 90.0, 181)


def steering(angles_deg: Sequence[float] | Real, num_antennas: int, spacing: float) -> Complex:
    """a(θ) = M^{-1/2} [1, e^{j2π(d/λ) sin θ}, e^{2·j2π(d/λ) sin θ}, …], one row a direction."""
    rows = []
    for angle in angles_deg:
        turn = 2j * np.pi * spacing * np.sin(np.pi * angle / 180.0)
        rows.append([np.exp(turn * antenna) for antenna in range(num_antennas)])
    return np.array(rows) / np.sqrt(num_antennas)


def desired(angles_deg: Sequence[float] | Real, targets: Sequence[float], width: float) -> Real:
    """d(θ) = 1 within Δ/2 of a target, else 0."""
    inside = [any(abs(angle - t) <= width / 2 + 1e-9 for t in targets) for angle in angles_deg]
    return np.array(inside, dtype=np.float64)


def patterns(covariance: Complex, vectors: Complex) -> Complex:
    """a_lᴴ R a_m for all pairs of rows of ``vectors``."""
    return np.einsum("lp,...pq,mq->...lm", vectors.conj(), covariance, vectors, optimize=True)


def beampattern(covariance: Complex, angles: Sequence[float] | Real, spacing: float) -> Real:
    """P(θ) = a(θ)ᴴ R a(θ)."""
    vectors = steering(angles, covariance.shape[-1], spacing)
    return np.array([np.vdot(vector, covariance @ vector).real for vector in vectors])


def beampattern_error(pattern: Real, wanted: Real, scale: float | Literal["optimal"]) -> float:
    """L_r1 = mean of (α·d − P)²; the optimal α by least squares."""
    alpha = np.linalg.lstsq(wanted[:, None], pattern)[0][0] if scale == "optimal" else scale
    return float(np.mean((alpha * wanted - pattern) ** 2))


def _mean_over_pairs(values: Real) -> float:
    count = len(values)
    total = sum(values[row, row + 1 :].sum() for row in range(count))
    return float(2.0 / (count**2 - count) * total) if count > 1 else 0.0


def cross_correlation(
    covariance: Complex,
    angles: Sequence[float] | Real,
    targets: Sequence[float],
    spacing: float,
    form: Form,
) -> float:
    """L_r2 = 2/(L² − L)·Σ_{l<m} of abs or abs² of a_lᴴ R a_m, over the grid or the targets."""
    directions = targets if form == "target_sq" else angles
    magnitudes = np.abs(patterns(covariance, steering(directions, len(covariance), spacing)))
    return _mean_over_pairs(magnitudes if form == "grid_abs" else magnitudes**2)


def sensing_loss(
    covariance: Complex,
    spacing: float,
    targets: Sequence[float],
    *,
    width: float = 10.0,
    form: Form = "grid_abs",
    scale: float | Literal["optimal"] = 1.0,
    angles: Sequence[float] | Real = GRID,
) -> tuple[float, float]:
    """(L_r1, L_r2) of one covariance."""
    pattern = beampattern(covariance, angles, spacing)
    error = beampattern_error(pattern, desired(angles, targets, width), scale)
    return error, cross_correlation(covariance, angles, targets, spacing, form)


def sensing_gradient(
    streams: Complex,
    spacing: float,
    targets: Sequence[float],
    *,
    width: float = 10.0,
    form: Form = "grid_abs",
    angles: Sequence[float] | Real = GRID,
) -> Complex:
    """Gradient of L_r(VVᴴ) with α = 1: ∂/∂Re V + j·∂/∂Im V, by the chain rule.

    Each P_lm = a_lᴴ R a_m adds φ'(abs P_lm)·(P_lm/abs P_lm)·a_l a_mᴴ to the derivative by R.
    """
    covariance = streams @ streams.conj().T
    vectors = steering(angles, len(streams), spacing)
    error = beampattern(covariance, angles, spacing) - desired(angles, targets, width)
    by_error = 2.0 / len(vectors) * (vectors.T * error) @ vectors.conj()
    rows = steering(targets, len(streams), spacing) if form == "target_sq" else vectors
    pairs = np.triu(patterns(covariance, rows), 1)
    slopes = pairs / np.where(pairs == 0, 1.0, np.abs(pairs)) if form == "grid_abs" else 2 * pairs
    by_cross = 2.0 / (len(rows) ** 2 - len(rows)) * rows.T @ slopes @ rows.conj()
    return (2 * by_error + by_cross + by_cross.conj().T) @ streams


def sinr(channels: Complex, precoders: Complex, covariances: Complex, noise: float) -> Real:
    """γ of every user, (J, K), from H (J, J, K, M), F (J, M_C, K) and R (J, M_R, M_R).

    H[i, j, k] = [f, g] leads from station i to user k of cell j.
    """
    cells, users = channels.shape[1:3]
    num_radar = covariances.shape[-1]
    result = np.zeros((cells, users))
    for j in range(cells):
        for k in range(users):
            signal, interference = 0.0, 0.0
            for i in range(cells):
                f, g = channels[i, j, k, :num_radar], channels[i, j, k, num_radar:]
                interference += (f @ covariances[i] @ f.conj()).real
                for stream in range(users):
                    power = abs(g @ precoders[i][:, stream]) ** 2
                    if i == j and stream == k:
                        signal = power
                    else:
                        interference += power
            result[j, k] = signal / (interference + noise)
    return result


def spectral_efficiency(ratio: Real) -> Real:
    """log2(1 + γ), in bit/s/Hz."""
    return np.log2(1.0 + ratio)


def complex_normal(rng: np.random.Generator, *shape: int) -> Complex:
    """Entries CN(0, 1)."""
    return np.sqrt(0.5) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def feasible_streams(
    rng: np.random.Generator, num_antennas: int, power: float, streams: int | None = None
) -> Complex:
    """Random V with diag(VVᴴ) = P_R/M."""
    raw = complex_normal(rng, num_antennas, streams or num_antennas)
    return raw * np.sqrt(power / num_antennas) / np.linalg.norm(raw, axis=1, keepdims=True)


def random_covariance(rng: np.random.Generator, num_antennas: int, rank: int) -> Complex:
    """Random R ⪰ 0 of the given rank and of trace near 2.5, with an uneven diagonal."""
    factor = complex_normal(rng, num_antennas, rank) * np.sqrt(2.5 / (num_antennas * rank))
    return factor @ factor.conj().T


def uplink_rate(G: Complex, noise: Real, duals: Real) -> float:
    """log2 det(I + Σ_k λ_k/σ_k² g_k* g_kᵀ), in the M_C x M_C form."""
    total = np.eye(G.shape[1]) + np.einsum("k,kp,kq->pq", duals / noise, G.conj(), G)
    return float(np.linalg.slogdet(total)[1] / np.log(2.0))


def full_power(F: Complex, power: float) -> Complex:
    found: Complex = F * np.sqrt(power) / np.linalg.norm(F, axis=(-2, -1), keepdims=True)
    return found


def regularised(G: Complex, noise: Real, powers: Real) -> Complex:
    """Regularised zero forcing for users of different noise, columns of the given powers."""
    users = G.shape[-2]
    loading = np.eye(users) * (noise * users / powers.sum())[..., None, :]
    F = np.swapaxes(G.conj(), -1, -2) @ np.linalg.inv(G @ np.swapaxes(G.conj(), -1, -2) + loading)
    found: Complex = F * np.sqrt(powers) / np.linalg.norm(F, axis=-2, keepdims=True)
    return found
