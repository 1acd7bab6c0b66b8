"""Steering vectors of a uniform linear array, the angular grid and the desired beampattern."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "angular_grid",
    "centred_real_steering",
    "desired_pattern",
    "realifying_unitary",
    "steering_vectors",
]


def angular_grid(step_deg: float = 1.0) -> Tensor:
    """Directions -90 ... 90 degrees.

    Args:
        step_deg: Spacing in degrees; must divide 90.

    Returns:
        float64 tensor (L,), in degrees, exactly symmetric about 0.

    Raises:
        ValueError: If the step does not divide 90 degrees.
    """
    half = round(90.0 / step_deg) if step_deg > 0 else 0
    if half < 1 or abs(half * step_deg - 90.0) > 1e-9:
        raise ValueError(f"step_deg must be a positive divisor of 90, got {step_deg!r}")
    return torch.arange(-half, half + 1, dtype=torch.float64) * (90.0 / half)


def steering_vectors(
    angles_deg: Tensor | Sequence[float], num_antennas: int, spacing: float
) -> Tensor:
    r"""Steering vectors a(θ) = M^{-1/2} [1, e^{j2π(d/λ) sin θ}, …]ᵀ, of norm 1.

    Args:
        angles_deg: Directions (L,), in degrees.
        num_antennas: Antennas M.
        spacing: Element spacing d/λ in wavelengths.

    Returns:
        complex128 tensor (L, M).
    """
    angles = torch.as_tensor(angles_deg, dtype=torch.float64)
    phase = _compute_phase(angles, spacing) * torch.arange(num_antennas, dtype=torch.float64)
    return torch.polar(torch.full_like(phase, num_antennas**-0.5), phase)


def _compute_phase(angles_deg: Tensor, spacing: float) -> Tensor:
    return 2.0 * math.pi * spacing * torch.sin(torch.deg2rad(angles_deg))[:, None]


def desired_pattern(
    grid_deg: Tensor, targets_deg: Sequence[float], beam_width_deg: float
) -> Tensor:
    """Desired beampattern d(θ), equation (8): 1 within Δ/2 of a target, else 0.

    Args:
        grid_deg: Directions (L,), in degrees.
        targets_deg: Target directions in degrees.
        beam_width_deg: Beam width Δ in degrees; the edges belong to the beam.

    Returns:
        float64 tensor (L,) of zeros and ones.
    """
    targets = torch.as_tensor(targets_deg, dtype=torch.float64)
    distance = (grid_deg.to(torch.float64)[:, None] - targets).abs()
    return (distance <= beam_width_deg / 2 + 1e-9).any(-1).to(torch.float64)


def realifying_unitary(num_antennas: int) -> Tensor:
    r"""The unitary Q whose Qᴴ makes every centred steering vector real.

    With the phase reference at the centre of the array a steering vector is conjugate symmetric,
    a_{M-1-m} = a_m*; Qᴴ maps each such pair to √2·(Re a_m, Im a_m) and leaves the middle element
    of an odd array as it is.

    Returns:
        complex128 tensor (M, M) with QᴴQ = I.
    """
    half = num_antennas // 2
    unitary = torch.zeros(num_antennas, num_antennas, dtype=torch.complex128)
    scale = math.sqrt(0.5)
    for pair in range(half):
        low, high = half - 1 - pair, num_antennas - half + pair
        unitary.real[[low, high], pair] = scale
        unitary.imag[low, num_antennas - half + pair] = -scale
        unitary.imag[high, num_antennas - half + pair] = scale
    if num_antennas % 2:
        unitary[half, half] = 1.0
    return unitary


def centred_real_steering(
    angles_deg: Tensor | Sequence[float], num_antennas: int, spacing: float
) -> Tensor:
    """Real steering vectors ã(θ) = Qᴴ a_c(θ), with a_c the steering vector about the array centre.

    For any R and any pair of directions abs(aᴴ(θ) R a(φ)) = abs(ãᵀ(θ) (QᴴRQ) ã(φ)), because
    moving the phase reference multiplies each steering vector by a phase.

    Args:
        angles_deg: Directions (L,), in degrees.
        num_antennas: Antennas M.
        spacing: Element spacing d/λ in wavelengths.

    Returns:
        float64 tensor (L, M), rows of norm 1: the cosine parts of the pairs first, then the
        constant of an odd array, then the sine parts. ã(-θ) differs by the sign of the latter.
    """
    angles = torch.as_tensor(angles_deg, dtype=torch.float64)
    half = num_antennas // 2
    offset = torch.arange(half, dtype=torch.float64) + (0.5 if num_antennas % 2 == 0 else 1.0)
    phase = _compute_phase(angles, spacing) * offset
    columns = [math.sqrt(2.0) * torch.cos(phase), math.sqrt(2.0) * torch.sin(phase)]
    if num_antennas % 2:
        columns.insert(1, torch.ones(len(angles), 1, dtype=torch.float64))
    return torch.cat(columns, dim=1) / math.sqrt(num_antennas)
