"""Linear precoder directions (unit-norm columns) from the communication channels."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

_MOST_LOADING: Final = 1e12
"""Relative to the channel; beyond it directions are those of maximum-ratio transmission."""

__all__ = [
    "find_least_loading",
    "mrt_directions",
    "precoder_directions",
    "rzf_directions",
    "zf_directions",
]


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
    # Users of very different strength would count as dependent.
    return _normalise_columns(torch.linalg.pinv(_separate_strength(channels)[0]))


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
    # Of unit vectors, so that the system is well-conditioned however strong users are. The columns
    # are the same but for their norms.
    unit, strength = _separate_strength(channels)
    relative = (loading / strength.square()).clamp(find_least_loading(users, real), _MOST_LOADING)
    gram = unit @ unit.mH + torch.diag_embed(relative).to(channels.dtype)
    return _normalise_columns(torch.linalg.solve(gram, unit).mH)


def find_least_loading(users: int, dtype: torch.dtype) -> float:
    """What is to be added to the diagonal of a Gram matrix of unit vectors to invert it at all.

    Rounding perturbs its eigenvalues by less. It is the loading at an SNR of about 60 dB.
    """
    return 2.0 * users * torch.finfo(dtype).eps


def _separate_strength(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of norm 1, and their norms (..., K).

    A row so small that it cannot be divided by its norm becomes zeros, with the norm 1.
    """
    norm = torch.linalg.vector_norm(channels, dim=-1)
    silent = norm < torch.finfo(norm.dtype).tiny
    norm = torch.where(silent, torch.ones_like(norm), norm)
    return (channels / norm.unsqueeze(-1)).masked_fill(silent.unsqueeze(-1), 0.0), norm


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
    silent = norm < torch.finfo(norm.dtype).tiny
    unit = columns / torch.where(silent, torch.ones_like(norm), norm)
    return torch.where(silent, torch.full_like(unit, columns.shape[-2] ** -0.5), unit)
