"""Radar waveforms that keep the per-antenna power constraint (5)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normalise_rows", "turn_from_users"]

_ZERO_NORM = 1e-12
_LEAST_WEIGHT = 1e-30


def normalise_rows(streams: Tensor, power: float) -> Tensor:
    """Scale each row to norm √(P_R/M), which makes diag(VVᴴ) = P_R/M exact.

    Args:
        streams: Complex, shape (..., M, r), entries of order 1. A zero row (norm below 1e-12)
            becomes a uniform one.
        power: P_R, in W.

    Returns:
        Complex tensor of the same shape, in √W.
    """
    antennas, columns = streams.shape[-2:]
    wanted = (power / antennas) ** 0.5
    parts = torch.view_as_real(streams.resolve_conj())
    # The norm of the real parts: that of a complex tensor is not vectorised.
    norm = torch.linalg.vector_norm(parts.flatten(-2), dim=-1)[..., None, None]
    scaled = torch.view_as_complex(parts * (wanted / norm.clamp_min(_ZERO_NORM)))
    return torch.where((norm < _ZERO_NORM).squeeze(-1), wanted * columns**-0.5, scaled)


def turn_from_users(streams: Tensor, radar: Tensor, weights: Tensor, power: float) -> Tensor:
    """V turned away from users: rows normalised of (I + Σ_k w_k f_k* f_kᵀ)⁻¹ V.

    It minimises ‖X - V‖² + Σ_k w_k ‖f_kᵀX‖² over X: the radar's power at the users that count.

    Args:
        streams: V, complex, shape (..., M, r), in √W.
        radar: f, complex, shape (..., K, M).
        weights: w >= 0, shape (..., K).
        power: P_R, in W.

    Returns:
        Complex tensor (..., M, r), in √W, with diag(VVᴴ) = P_R/M.
    """
    # Users are fewer than antennas, so theirs is the smaller system. A root has no gradient at 0.
    scaled = weights.clamp_min(_LEAST_WEIGHT).sqrt().unsqueeze(-1) * radar
    users = radar.shape[-2]
    system = scaled @ scaled.mH + torch.eye(users, dtype=radar.dtype, device=radar.device)
    return normalise_rows(streams - scaled.mH @ torch.linalg.solve(system, scaled @ streams), power)
