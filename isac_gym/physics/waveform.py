"""Radar waveforms that keep the per-antenna power constraint (5)."""

from __future__ import annotations

import torch
from torch import Tensor

from isac_gym.physics.precoding import find_least_loading

__all__ = ["make_avoidance_system", "normalise_rows", "turn_from_users"]

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
    # Users are fewer than antennas, so theirs is the smaller system.
    unit, system = make_avoidance_system(radar, weights)
    return normalise_rows(streams - unit.mH @ torch.linalg.solve(system, unit @ streams), power)


def make_avoidance_system(radar: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """U and A with (I + Σ_k w_k f_k* f_kᵀ)⁻¹ = I - UᴴA⁻¹U.

    The rows of U are √w_k f_kᵀ, divided by √(1 + w_k‖f_k‖²), so that the diagonal of A is 1 and A
    can be inverted however large the weights are.

    Args:
        radar: f, complex, shape (..., K, M).
        weights: w >= 0, shape (..., K).

    Returns:
        U (..., K, M) and A (..., K, K).
    """
    # A root has no gradient at 0.
    scaled = weights.clamp_min(_LEAST_WEIGHT).sqrt().unsqueeze(-1) * radar
    rest = 1.0 / (1.0 + torch.view_as_real(scaled.resolve_conj()).square().sum((-2, -1)))
    unit = rest.sqrt().unsqueeze(-1) * scaled
    least = find_least_loading(radar.shape[-2], rest.dtype)
    return unit, unit @ unit.mH + torch.diag_embed(rest.clamp_min(least)).to(radar.dtype)
