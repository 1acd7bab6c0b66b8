"""The users' downlinks, and what a stage of the unfolded design is told."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isac_gym.compilation import to_matrices
from isac_gym.physics.precoding import find_least_loading

__all__ = ["Downlink", "StageControls", "find_structured_gains"]

_LEAST_SHARE = 1e-6


_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Downlink:
    """The users' downlinks, for n blocks and J stations.

    Attributes:
        radar: f, complex (n, J, K, M_R).
        gram: g_kᵀ g_l*, complex (n, J, K, K).
        gains: abs(g_kᵀ d_l)² for fixed directions d_l, (n, J, K, K); None where the precoder has
            the structure (I + Σ_l λ_l/σ_l² g_l* g_lᵀ)⁻¹ g_k*.
        noise_power: N0, (n, J), in W.
        budget: P_C, in W.
    """

    radar: Tensor
    gram: Tensor
    gains: Tensor | None
    noise_power: Tensor
    budget: float

    @cached_property
    def arrays(self) -> tuple[Any, ...]:
        """The attributes for a compiled loop, with blocks and stations as one axis."""
        users = self.gram.shape[-1]
        gains = self.noise_power.new_empty(0, users, users) if self.gains is None else self.gains
        return (
            to_matrices(self.radar),
            to_matrices(self.gram),
            gains.reshape(-1, users, users).contiguous().numpy(),
            self.noise_power.reshape(-1).contiguous().numpy(),
            np.float32(self.budget),
        )

    def loading(self, dual: Tensor, received: Tensor) -> Tensor:
        """σ_k²/λ_k, (n, J, K), with Σ λ_k = P_C.

        Args:
            dual: Logits of λ, (n, J, K).
            received: Radar power at each user, (n, J, K), in W.
        """
        shares = torch.softmax(dual, -1).clamp_min(_LEAST_SHARE)
        return (self.noise_power.unsqueeze(-1) + received) / (self.budget * shares)

    def slopes(self, power: Tensor, dual: Tensor, received: Tensor) -> Tensor:
        """What a watt of radar power at each user costs in rate, (n, J, K), in bit/s/Hz/W.

        Args:
            power: Logits of the powers, (n, J, K).
            dual: Logits of the dual powers, (n, J, K).
            received: Radar power at each user, (n, J, K), in W.
        """
        gains = self.gains
        if gains is None:
            gains = find_structured_gains(self.gram, self.loading(dual, received))
        powers = gains * (self.budget * torch.softmax(power, -1)).unsqueeze(-2)
        signal = powers.diagonal(dim1=-2, dim2=-1)
        noise = received + self.noise_power.unsqueeze(-1)
        disturbance = (powers.sum(-1) - signal).clamp_min(0.0) + noise
        slopes: Tensor = signal / (disturbance * (disturbance + signal)) / math.log(2.0)
        return slopes


def find_structured_gains(gram: Tensor, loading: Tensor) -> Tensor:
    """abs(g_kᵀ d_l)² for the directions d_l ∝ Gᴴ(GGᴴ + diag(σ²/λ))⁻¹e_l of norm 1.

    Args:
        gram: GGᴴ, complex (..., K, K).
        loading: σ_k²/λ_k, (..., K).

    Returns:
        Real tensor (..., K, K).
    """
    strength = gram.diagonal(dim1=-2, dim2=-1).real
    # Beside less, single precision loses what makes the system regular where users are alike.
    loading = torch.maximum(loading, strength * find_least_loading(gram.shape[-1], loading.dtype))
    inverse, _ = torch.linalg.inv_ex(gram + torch.diag_embed(loading))
    columns = gram @ inverse
    norm = (inverse.mT * columns).sum(-2, keepdim=True).real.clamp_min(_TINY)
    gains: Tensor = torch.view_as_real(columns).square().sum(-1) / norm
    return gains


@dataclasses.dataclass(frozen=True)
class StageControls:
    """What is set from outside in a stage of S steps.

    Attributes:
        outputs: Logits of the powers, logits of the dual powers, and logarithmic corrections of the
            slopes, (n, J, K, 3).
        tempo: Logarithms of the steps' lengths over ``length``, then their momenta, (n, J, 2·S).
        price: π > 0, (n, J), in bit/s/Hz a unit of L_r.
        length: Length of a step with a tempo of 0.
        largest_correction: Bound on the magnitude of corrections and of logarithms of lengths.
        smoothing: δ² of the cross-correlation, a scalar tensor, in W².
    """

    outputs: Tensor
    tempo: Tensor
    price: Tensor
    length: float
    largest_correction: float
    smoothing: Tensor

    @property
    def factors(self) -> Tensor:
        """What each user's slope is multiplied by, (n, J, K)."""
        largest = self.largest_correction
        corrections = torch.exp(self.outputs[..., 2].clamp(-largest, largest))
        return corrections * (self.length / self.price.unsqueeze(-1))

    @property
    def paces(self) -> list[tuple[Tensor, Tensor]]:
        """η and β of every step, each (n, J)."""
        logarithms, inertia = self.tempo.chunk(2, dim=-1)
        largest = self.largest_correction
        lengths = self.length * torch.exp(logarithms.clamp(-largest, largest))
        return list(zip(lengths.unbind(-1), inertia.unbind(-1), strict=True))
