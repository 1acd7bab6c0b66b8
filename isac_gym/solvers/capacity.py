"""The sum capacity of a downlink, which no precoder exceeds, by way of its dual uplink."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from isac_gym.physics.links import BITS_PER_NAT
from isac_gym.validation import check_integer, check_real

__all__ = [
    "BITS_PER_NAT",
    "Capacity",
    "bound_by_tangent",
    "compute_uplink_rate",
    "dpc_capacity",
    "reduce_channels",
]


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Sum capacity of a batch of downlinks with leading dimensions (...).

    Attributes:
        rate: Rate of the dual uplink at ``duals``, (...), in bit/s/Hz: attained.
        upper_bound: Certified upper bound on the capacity, (...), in bit/s/Hz.
        duals: Powers of the dual uplink with unit noise, λ_k >= 0 with Σ λ_k = P, (..., K), in W.
        iterations: Iterations made.
    """

    rate: Tensor
    upper_bound: Tensor
    duals: Tensor
    iterations: int


def dpc_capacity(
    channels: Tensor,
    noise_power: Tensor | float,
    power: float,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Capacity:
    """Sum capacity of the downlink, by iterative water-filling in the dual uplink.

    Jindal, Rhee, Vishwanath, Jafar and Goldsmith, 2005: all users fill water at once, under one
    common level, against the interference of the last iterate. The better of the plain step and its
    average with the iterate, which cannot lower the rate, is taken. Since the problem is concave,
    the gradient at the iterate gives an upper bound.

    Args:
        channels: G with row k = g_kᵀ, complex (..., K, M_C).
        noise_power: σ² > 0 in W, a number or a tensor that broadcasts to (..., K).
        power: Budget P, in W.
        tolerance: Relative gap between rate and upper bound at which it ends.
        max_iterations: Iterations after which it ends in any case.

    Returns:
        The capacity, in double precision.

    Raises:
        ValueError: If an argument is not allowed or not finite.
    """
    power = check_real("power", power, "a finite number > 0", lambda value: value > 0)
    allowed = "a finite number >= 0"
    tolerance = check_real("tolerance", tolerance, allowed, lambda value: value >= 0)
    max_iterations = check_integer("max_iterations", max_iterations, 1)
    if channels.ndim < 2 or not bool(torch.isfinite(channels).all()):
        raise ValueError(
            f"channels must be finite and of shape (..., K, M_C), got {tuple(channels.shape)}"
        )
    noise = torch.as_tensor(noise_power, dtype=torch.float64, device=channels.device)
    if not bool((torch.isfinite(noise) & (noise > 0)).all()):
        raise ValueError(f"noise_power must be finite and > 0, got {noise_power!r}")
    wide = channels.to(torch.complex128)
    try:
        noise = noise.expand(wide.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"noise_power must broadcast to {tuple(wide.shape[:-1])}, got shape "
            f"{tuple(noise.shape)}"
        ) from error
    scaled = reduce_channels(wide / noise.sqrt().unsqueeze(-1))
    users = scaled.shape[-2]
    # In units of the noise the dual powers are s_k·σ_k²: they add up to the budget as they are.
    duals = torch.full(noise.shape, power / users, dtype=torch.float64, device=noise.device)
    rate, slope = compute_uplink_rate(scaled, duals)
    for iteration in range(1, max_iterations + 1):
        upper = bound_by_tangent(rate, slope, duals, power)
        if bool((upper - rate <= tolerance * rate).all()) or iteration == max_iterations:
            break
        # g_kᴴ(I + Σ_{l≠k} …)⁻¹g_k, from the same with user k included.
        gain = slope / (1.0 - duals * slope).clamp_min(1e-12)
        filled = _fill_water(gain, power)
        plain_rate, plain_slope = compute_uplink_rate(scaled, filled)
        averaged = filled / users + duals * (1.0 - 1.0 / users)
        mean_rate, mean_slope = compute_uplink_rate(scaled, averaged)
        better = plain_rate >= mean_rate
        duals = torch.where(better.unsqueeze(-1), filled, averaged)
        rate = torch.where(better, plain_rate, mean_rate)
        slope = torch.where(better.unsqueeze(-1), plain_slope, mean_slope)
    return Capacity(rate * BITS_PER_NAT, upper * BITS_PER_NAT, duals, iteration)


def reduce_channels(channels: Tensor) -> Tensor:
    """The channels (..., K, M) in a basis of the space that they span, (..., K, min(K, M))."""
    reduced: Tensor = channels @ torch.linalg.qr(channels.mH)[0]
    return reduced


def compute_uplink_rate(channels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Rate log det(I + Σ_k s_k g_k* g_kᵀ) in nats, (...), and its gradient by s, (..., K)."""
    system = channels.mH @ (weights.unsqueeze(-1) * channels)
    system.diagonal(dim1=-2, dim2=-1).add_(1.0)
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool((failed > 0).any()):
        raise ValueError(
            "noise_power must be at least about 1e-14 of the received power for double precision, "
            "got less"
        )
    rate = 2.0 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
    whitened = torch.linalg.solve_triangular(factor, channels.mH, upper=False)
    return rate, torch.view_as_real(whitened).square().sum((-3, -1))


def bound_by_tangent(rate: Tensor, slope: Tensor, weights: Tensor, budget: float) -> Tensor:
    """Largest value of the tangent plane over weights >= 0 that add up to the budget."""
    return rate + budget * slope.amax(-1) - (slope * weights).sum(-1)


def _fill_water(gains: Tensor, power: float) -> Tensor:
    """λ_k = max(0, μ - 1/gain_k) with Σ λ_k = P, (..., K)."""
    gains = torch.where((gains > 0).any(-1, keepdim=True), gains, 1.0).clamp_min(1e-300)
    floors, _ = (1.0 / gains).sort(-1)
    count = torch.arange(1, gains.shape[-1] + 1, dtype=gains.dtype, device=gains.device)
    levels = (power + floors.cumsum(-1)) / count
    # The most users whose floors all lie below the common level.
    active = (levels > floors).sum(-1, keepdim=True).clamp_min(1)
    level = levels.gather(-1, active - 1)
    filled = (level - 1.0 / gains).clamp_min(0.0)
    return filled * (power / filled.sum(-1, keepdim=True))
