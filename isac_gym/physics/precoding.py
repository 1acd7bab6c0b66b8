"""Linear precoder directions (unit-norm columns) from the communication channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["mrt_directions", "precoder_directions", "rzf_directions", "zf_directions"]


def mrt_directions(channels: Tensor) -> Tensor:
    """Maximum-ratio transmission: the column of user k is g_k*/‖g_k‖.

    Args:
        channels: G with row k = g_kᵀ, complex, shape (..., K, M_C).

    Returns:
        Complex tensor (..., M_C, K) with unit-norm columns; a zero channel gives the uniform
        vector.
    """
    return _normalise_columns(channels.mH)


def zf_directions(channels: Tensor) -> Tensor:
    """Zero forcing: normalised columns of the pseudo-inverse Gᴴ(GGᴴ)⁻¹, so g_lᵀF_k = 0, l ≠ k.

    Args:
        channels: G with row k = g_kᵀ, complex, shape (..., K, M_C), K <= M_C.

    Returns:
        Complex tensor (..., M_C, K) with unit-norm columns.

    Raises:
        ValueError: If K > M_C.
    """
    users, antennas = channels.shape[-2:]
    if users > antennas:
        raise ValueError(
            f"zero forcing needs num_users <= num_comm_antennas, got {users} > {antennas}"
        )
    return _normalise_columns(torch.linalg.pinv(channels))


def rzf_directions(channels: Tensor, noise_power: Tensor | float, power: Tensor | float) -> Tensor:
    """Regularised zero forcing: normalised columns of Gᴴ(GGᴴ + diag(σ²)·K/P)⁻¹.

    With equal σ² this is the usual form; with the noise-plus-radar power of each user it is the
    optimal structure (I + Σ_l (P/K)/σ_l² g_l* g_lᵀ)⁻¹ g_k* with equal dual powers.

    Args:
        channels: G with row k = g_kᵀ, complex, shape (..., K, M_C).
        noise_power: σ² in W, a number or a tensor that broadcasts to (..., K).
        power: Transmit power P in W, a number or a tensor that broadcasts to (...).

    Returns:
        Complex tensor (..., M_C, K) with unit-norm columns; a zero channel gives the uniform
        vector.
    """
    users = channels.shape[-2]
    real = channels.real.dtype
    noise = torch.as_tensor(noise_power, dtype=real, device=channels.device)
    budget = torch.as_tensor(power, dtype=real, device=channels.device)
    loading = (noise * users / budget[..., None]).expand(channels.shape[:-1])
    gram = channels @ channels.mH + torch.diag_embed(loading).to(channels.dtype)
    return _normalise_columns(torch.linalg.solve(gram, channels).mH)


def precoder_directions(
    kind: Literal["mrt", "zf", "rzf"], channels: Tensor, noise_power: float, power: float
) -> Tensor:
    """Directions by name; arguments and result as in the functions of this module.

    Raises:
        ValueError: If ``kind`` is unknown, or is ``"zf"`` with K > M_C.
    """
    if kind == "mrt":
        return mrt_directions(channels)
    if kind == "zf":
        return zf_directions(channels)
    if kind == "rzf":
        return rzf_directions(channels, noise_power, power)
    raise ValueError(f"kind must be one of 'mrt', 'zf', 'rzf', got {kind!r}")


def _normalise_columns(columns: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(columns, dim=-2, keepdim=True)
    silent = norm == 0
    unit = columns / torch.where(silent, torch.ones_like(norm), norm)
    return torch.where(silent, torch.full_like(unit, columns.shape[-2] ** -0.5), unit)
