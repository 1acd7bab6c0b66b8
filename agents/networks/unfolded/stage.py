r"""One stage of an unfolded joint design: prices of the users' interference, then waveform steps.

At a stationary point of rate - π·L_r with a price π on the sensing loss, the waveform minimises
Σ_k s_k f_kᵀRf_k* + π L_r(R), a convex function of R, where s_k is what a watt of radar power at
user k costs in rate. A stage computes these slopes for given powers and dual powers, multiplies
them by given factors, and takes forward-backward steps on V. On the CPU in single precision, where
no gradient is wanted, it runs as a compiled loop
(:class:`~isac_gym.agents.networks.unfolded.compiled.CompiledStage`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from isac_gym.agents.networks.unfolded.compiled import compile_stage
from isac_gym.agents.networks.unfolded.downlink import Downlink, StageControls
from isac_gym.physics.links import radar_interference
from isac_gym.physics.sensing.coarse import CoarseSensing, Sensing
from isac_gym.physics.waveform import make_avoidance_system, normalise_rows

__all__ = ["advance", "descend", "interference_resolvent"]


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
    if isinstance(sensing, CoarseSensing) and _can_run_compiled(*tensors):
        loop = compile_stage(sensing)
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
    useless.

    Args:
        sensing: The sensing loss.
        streams: V, complex (n, J, M_R, r), in √W.
        before: V of the step before, same shape.
        resolvent: A, complex (n, J, M_R, M_R).
        controls: What the stage is told; of it the paces and the smoothing.
        power: P_R, in W.

    Returns:
        The new V, and the V before it.
    """
    tensors = (streams, resolvent, controls.tempo, controls.smoothing)
    if isinstance(sensing, CoarseSensing) and _can_run_compiled(*tensors):
        loop = compile_stage(sensing)
        if loop is not None:
            return loop.descend(streams, before, resolvent, controls, power)
    for eta, beta in controls.paces:
        gradient = sensing.gradient(streams @ streams.mH, controls.smoothing)
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
    unit, system = make_avoidance_system(radar, weights)
    inner, _ = torch.linalg.solve_ex(system, unit)
    identity = torch.eye(radar.shape[-1], dtype=radar.dtype, device=radar.device)
    resolvent: Tensor = identity - unit.mH @ inner
    return resolvent


def _can_run_compiled(*tensors: Tensor) -> bool:
    """Whether no gradient is wanted, and all is in single precision on the CPU."""
    if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
        return False
    return all(
        value.device.type == "cpu" and value.dtype in (torch.complex64, torch.float32)
        for value in tensors
    )
