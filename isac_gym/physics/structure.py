r"""Designs of a structure that needs three numbers a user.

For one cell, and a waveform that is given, every Pareto-optimal precoder has the directions
F_k ∝ (I + Σ_l λ_l/σ_l² g_l* g_lᵀ)⁻¹ g_k* for dual powers λ >= 0 with Σ λ_l = P_C, where σ_l² is the
noise and radar power at user l (Björnson, Bengtsson and Ottersten, 2014). The waveform is the best
beampattern's, turned away from users by weights w >= 0: V ∝ (I + Σ_l w_l f_l* f_lᵀ)⁻¹ V_best. So
the 2·(K·M_C + r·M_R) numbers of a station become 3·K, none of which depends on the phases of
channels. With several cells a station's precoder takes no heed of the users of others.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from isac_gym.physics.precoding import rzf_directions
from isac_gym.physics.waveform import turn_from_users

__all__ = ["WEIGHT_DECADES", "find_duals", "find_structured_directions", "find_structured_streams"]

WEIGHT_DECADES: Final = (-3.0, 1.0)
"""Decades of w_k‖f_k‖²/M_R that numbers from -1 to 1 set, evenly."""
_LEAST_SHARE = 1e-6


def find_duals(numbers: Tensor, power: float) -> Tensor:
    """Dual powers λ_k in the ratio of (a_k + 1)/2, with Σ λ_k = P_C.

    Args:
        numbers: a within [-1, 1], shape (..., K).
        power: P_C, in W.

    Returns:
        Tensor (..., K), in W, positive: equal where all numbers are -1.
    """
    shares = (0.5 * (numbers + 1.0)).clamp_min(_LEAST_SHARE)
    return power * shares / shares.sum(-1, keepdim=True)


def find_structured_directions(comm: Tensor, duals: Tensor, noise_power: Tensor) -> Tensor:
    """Unit-norm directions of precoders.

    Args:
        comm: g, complex, shape (..., K, M_C).
        duals: λ > 0, shape (..., K), in W.
        noise_power: σ², noise and radar power at each user, shape (..., K), in W.

    Returns:
        Complex tensor (..., M_C, K).
    """
    users = comm.shape[-2]
    return rzf_directions(comm, noise_power / duals, float(users))


def find_structured_streams(best: Tensor, radar: Tensor, numbers: Tensor, power: float) -> Tensor:
    """The best beampattern's V, turned away from users.

    Args:
        best: V_best, complex, shape (..., M_R, r), in √W.
        radar: f, complex, shape (..., K, M_R).
        numbers: a within [-1, 1], shape (..., K): w_k‖f_k‖²/M_R is 10 to the power of -1 + 2·a_k.
        power: P_R, in W.

    Returns:
        V, complex tensor (..., M_R, r), in √W.
    """
    low, high = WEIGHT_DECADES
    exponents = 0.5 * (low + high) + 0.5 * (high - low) * numbers
    strength = torch.view_as_real(radar.resolve_conj()).square().mean((-2, -1)) * 2.0
    # A user without a channel needs no turning; any finite weight will do.
    # A power would be rounded otherwise at some places of a batch than at others.
    scale = torch.exp(math.log(10.0) * exponents)
    weights = scale / strength.clamp_min(torch.finfo(strength.dtype).tiny ** 0.5)
    return turn_from_users(best, radar, weights, power)
