r"""One stage of an unfolded joint design: prices of the users' interference, then waveform steps.

At a stationary point of rate - π·L_r with a price π on the sensing loss, the waveform minimises
Σ_k s_k f_kᵀRf_k* + π L_r(R), a convex function of R, where s_k is what a watt of radar power at
user k costs in rate. A stage computes these slopes for given powers and dual powers, multiplies
them by given factors, and takes forward-backward steps on V. On the CPU in single precision, where
no gradient is wanted, it runs as a compiled loop
(:class:`~isac_gym.physics.compiled_stage.CompiledStage`).
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isac_gym.physics.compilation import matrices_of
from isac_gym.physics.links import radar_interference
from isac_gym.physics.waveform import CoarseSensing, Sensing, normalise_rows

__all__ = ["Downlink", "StageControls", "advance", "descend", "interference_resolvent"]

_LEAST_SHARE = 1e-6
_LEAST_WEIGHT = 1e-30
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
            matrices_of(self.radar),
            matrices_of(self.gram),
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
            loaded = self.gram + torch.diag_embed(self.loading(dual, received))
            inverse, _ = torch.linalg.inv_ex(loaded)
            columns = self.gram @ inverse
            norm = (inverse.mT * columns).sum(-2, keepdim=True).real.clamp_min(_TINY)
            gains = torch.view_as_real(columns).square().sum(-1) / norm
        powers = gains * (self.budget * torch.softmax(power, -1)).unsqueeze(-2)
        signal = powers.diagonal(dim1=-2, dim2=-1)
        noise = received + self.noise_power.unsqueeze(-1)
        disturbance = (powers.sum(-1) - signal).clamp_min(0.0) + noise
        slopes: Tensor = signal / (disturbance * (disturbance + signal)) / math.log(2.0)
        return slopes


@dataclasses.dataclass(frozen=True)
class StageControls:
    """What is set from outside in a stage of S steps.

    Attributes:
        outputs: Logits of the powers, logits of the dual powers, and logarithmic corrections of the
            slopes, (n, J, K, 3).
        tempo: Logarithms of the steps' lengths over ``length``, then their momenta, (n, J, 2·S).
        price: π > 0, (n, J), in bit/s/Hz.
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


def advance(
    sensing: Sensing,
    downlink: Downlink,
    controls: StageControls,
    streams: Tensor,
    before: Tensor,
    received: Tensor,
    power: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One stage.

    Args:
        sensing: The sensing loss.
        downlink: The users.
        controls: What the stage is told.
        streams: V, complex (n, J, M_R, r), in √W.
        before: V of the step before, same shape.
        received: Radar power at each user under V, (n, J, K), in W.
        power: P_R, in W.

    Returns:
        The new V, the V before it, and the radar power at each user under the new V.
    """
    tensors = (streams, downlink.gram, controls.outputs, controls.tempo, controls.smoothing)
    if isinstance(sensing, CoarseSensing) and _is_plain(*tensors):
        loop = sensing.compiled_stage()
        if loop is not None:
            return loop(downlink, controls, streams, before, received, power)
    logits = controls.outputs
    weights = controls.factors * downlink.slopes(logits[..., 0], logits[..., 1], received)
    resolvent = interference_resolvent(downlink.radar, weights)
    streams, before = descend(sensing, streams, before, resolvent, controls, power)
    return streams, before, radar_interference(downlink.radar, streams)


def descend(
    sensing: Sensing,
    streams: Tensor,
    before: Tensor,
    resolvent: Tensor,
    controls: StageControls,
    power: float,
) -> tuple[Tensor, Tensor]:
    """Steps on V, explicit in the sensing loss and implicit in the interference.

    Each step is V ← rows normalised of A[V - η (∂L_r/∂R)V + β(V - V_before)]; √(abs(·)² + δ²)
    stands for the magnitudes of the cross-correlation, whose kinks otherwise make long steps
    useless. Arguments as in :func:`advance`, with A, complex (n, J, M_R, M_R), as ``resolvent``.

    Returns:
        The new V, and the V before it.
    """
    for eta, beta in controls.paces:
        _, gradient = sensing.with_gradient(streams @ streams.mH, controls.smoothing)
        moved = streams - eta[..., None, None] * (gradient @ streams)
        moved = moved + beta[..., None, None] * (streams - before)
        before, streams = streams, normalise_rows(resolvent @ moved, power)
    return streams, before


def interference_resolvent(radar: Tensor, weights: Tensor) -> Tensor:
    """(I + Σ_k w_k f_k* f_kᵀ)⁻¹, complex (n, J, M_R, M_R), by a K x K system.

    Args:
        radar: f, complex (n, J, K, M_R).
        weights: w >= 0, (n, J, K), in 1/W.
    """
    # The root has no gradient at 0, where the weight of a user without power is.
    scaled = weights.clamp_min(_LEAST_WEIGHT).sqrt().unsqueeze(-1) * radar
    users, antennas = radar.shape[-2:]
    small = scaled @ scaled.mH + torch.eye(users, dtype=radar.dtype, device=radar.device)
    inner, _ = torch.linalg.solve_ex(small, scaled)
    identity = torch.eye(antennas, dtype=radar.dtype, device=radar.device)
    resolvent: Tensor = identity - scaled.mH @ inner
    return resolvent


def _is_plain(*tensors: Tensor) -> bool:
    """Whether no gradient is wanted, and all is in single precision on the CPU."""
    if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
        return False
    return all(
        value.device.type == "cpu" and value.dtype in (torch.complex64, torch.float32)
        for value in tensors
    )
