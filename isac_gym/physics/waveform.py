"""Radar waveforms that keep the per-antenna power constraint (5)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normalise_rows"]

_ZERO_NORM = 1e-12


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
