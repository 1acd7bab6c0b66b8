r"""Upper bounds that no design exceeds: the sum capacity, without and with the radar.

The sum capacity of the downlink with noise σ_k² is that of its dual uplink,

    C(σ²) = max log det(I + Σ_k s_k g_k* g_kᵀ)  over s >= 0 with Σ_k s_k σ_k² <= P,

reached by dirty-paper coding and so not exceeded by any precoder. With the radar σ_k² is
N0 + q_k(R), and the waveform may be chosen along with s. Let h(s) = min_R Σ_k s_k (N0 + q_k(R))
over the feasible covariances. Whatever precoder and waveform do, s of their dual uplink has
h(s) <= P. Now h is concave, so on the cone of vectors v_i it is at least the interpolation
Σ t_i h(v_i), and

    max log det(I + Σ_k s_k g_k* g_kᵀ)  over s = Σ_i t_i v_i, t >= 0, Σ_i t_i h(v_i) <= P

is a concave problem that bounds the rate on that cone. With the unit vectors for v_i it grants each
user the radar that suits it best. Splitting the cone at the maximiser of the worst part, again and
again, closes the gap to the best dirty-paper coding with one common waveform.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from isac_gym.physics.links import radar_interference
from isac_gym.physics.sensing.coarse import ExactSensing
from isac_gym.physics.waveform import normalise_rows
from isac_gym.solvers.beampattern import best_beampattern
from isac_gym.solvers.capacity import (
    BITS_PER_NAT,
    bound_by_tangent,
    compute_uplink_rate,
    dpc_capacity,
    reduce_channels,
)
from isac_gym.solvers.objectives import LeakageObjective
from isac_gym.solvers.waveform import WaveformSearch
from isac_gym.system.downlink import ISACSystem, find_system, make_sensing_model
from isac_gym.validation import check_integer

__all__ = ["JointBound", "joint_upper_bound"]

_MULTIPLIER = 20.0
_SEARCH_ITERATIONS = 150
_PENALTY = 2000.0
_CONE_ITERATIONS = 300
_PROBLEMS = 2048
_ATTAINED_EXCESS = 1e-4
_THIN = 1e-6
_MISSED = 1e30


@dataclasses.dataclass(frozen=True)
class JointBound:
    """Bounds for a batch of n channels, each (n, J), in bit/s/Hz.

    Attributes:
        upper_bound: No precoder and waveform with L_r <= ε exceed this sum rate.
        apart: The looser bound that grants each user the radar that suits it best.
        attained: A rate that dirty-paper coding attains with one of the waveforms that the search
            met (whose L_r may exceed ε by a relative 1e-4): a lower bound on what ``upper_bound``
            bounds; 0 if none of them met ε.
    """

    upper_bound: Tensor
    apart: Tensor
    attained: Tensor


def joint_upper_bound(
    env: Any,
    channels: Tensor,
    *,
    sensing_threshold: Tensor | float | None = None,
    subdivisions: int = 20,
) -> JointBound:
    """Certified upper bound on the sum rate of each station under L_r <= ε, without other cells.

    A waveform that exceeds ε by a relative x may exceed the bound by as much as x times what ε is
    worth.

    The bound holds for any number of streams. It is computed in double precision; only the search
    for the waveforms at which the certificates are taken is in single precision.

    Args:
        env: Environment whose scenario the bound is for.
        channels: H, complex (n, J, J, K, M).
        sensing_threshold: ε, a number or a tensor that broadcasts to (n, J); None means the
            scenario's.
        subdivisions: Times that a channel's worst cone is split; 0 gives ``apart``.

    Returns:
        The bounds.

    Raises:
        ValueError: If an argument is not allowed.
    """
    system = find_system(env)
    subdivisions = check_integer("subdivisions", subdivisions, 0)
    scenario = system.scenario
    threshold = scenario.sensing_threshold if sensing_threshold is None else sensing_threshold
    system.codec.check_channels(channels)
    limits = torch.as_tensor(threshold, dtype=torch.float64, device=system.device)
    if not bool((torch.isfinite(limits) & (limits > 0)).all()):
        raise ValueError(f"sensing_threshold must be finite and > 0, got {sensing_threshold!r}")
    limits = limits.expand(len(channels), scenario.num_cells)
    size = max(1, _PROBLEMS // scenario.num_cells)
    with torch.inference_mode(False), torch.no_grad():
        parts = [
            _ConeSearch(system, part.to(system.device), limit.contiguous()).run(subdivisions)
            for part, limit in zip(channels.split(size), limits.split(size), strict=True)
        ]
    return JointBound(
        *(
            torch.cat([getattr(part, field.name) for part in parts]).view(-1, scenario.num_cells)
            for field in dataclasses.fields(JointBound)
        )
    )


class _ConeSearch:
    """Bounds for b channels of J stations: n = b·J problems, in that order."""

    def __init__(self, system: ISACSystem, channels: Tensor, limits: Tensor) -> None:
        scenario = system.scenario
        channels = channels.to(torch.complex128)
        self._system, self._limits = system, limits.double()
        self._cells, self._budget = scenario.num_cells, scenario.comm_power
        self._noise = scenario.noise_power
        radar, comm = system.codec.split_own_channels(channels)
        self._radar = radar
        self._reduced = reduce_channels(comm.flatten(0, 1))
        self._exact = make_sensing_model(scenario, dtype=torch.float64, device=system.device)

    def run(self, subdivisions: int) -> JointBound:
        """Split the worst cone of every problem again and again."""
        count, users = self._reduced.shape[:2]
        device = self._reduced.device
        leaves = 1 + subdivisions * (users - 1)
        unit = torch.eye(users, dtype=torch.float64, device=device)
        vertices = unit.expand(count, leaves, users, users).clone()
        floor, received = self._bound_floors(unit.expand(count, users, users))
        heights = (self._noise + floor)[:, None].expand(-1, leaves, -1).clone()
        upper = torch.full_like(heights[..., 0], -math.inf)
        shares, weights = torch.zeros_like(heights), torch.zeros_like(heights)
        upper[:, 0], shares[:, 0], weights[:, 0] = self._relax(vertices[:, 0], heights[:, 0])
        apart = upper[:, 0].clone()
        attained = self._compute_attained(received).amax(-1)
        rows = torch.arange(count, device=device)
        for split in range(subdivisions):
            worst = upper.argmax(-1)
            outer, parent = upper[rows, worst], vertices[rows, worst]
            parent_heights, share = heights[rows, worst], shares[rows, worst]
            point = weights[rows, worst]
            total = point.sum(-1, keepdim=True).clamp_min(1e-300)
            point = point / total
            floor, received = self._bound_floors(point[:, None])
            attained = torch.maximum(attained, self._compute_attained(received).squeeze(-1))
            # At the maximiser the interpolation equals the budget, and h is not below it.
            height = torch.maximum(self._noise + floor, self._budget / total).squeeze(-1)
            for user in range(users):
                slot = worst if user == 0 else torch.full_like(worst, split * (users - 1) + user)
                child, child_heights = parent.clone(), parent_heights.clone()
                child[:, user], child_heights[:, user] = point, height
                bound, child_share, child_weights = self._relax(child, child_heights)
                # A part whose vertex has no share in the point has no inside.
                bound = torch.where(share[:, user] > 0.0, bound, -math.inf)
                vertices[rows, slot], heights[rows, slot] = child, child_heights
                upper[rows, slot] = torch.minimum(bound, outer)
                shares[rows, slot], weights[rows, slot] = child_share, child_weights
        return JointBound(
            upper.amax(-1) * BITS_PER_NAT, apart * BITS_PER_NAT, attained * BITS_PER_NAT
        )

    def _compute_attained(self, received: Tensor) -> Tensor:
        """Capacity in nats at q (n, m, K), (n, m); 0 where the waveform missed ε."""
        channels = self._reduced[:, None].expand(-1, received.shape[1], -1, -1)
        missed = (received >= _MISSED).any(-1)
        noise = self._noise + torch.where(missed.unsqueeze(-1), 0.0, received)
        capacity = dpc_capacity(channels, noise, self._budget, tolerance=1e-3, max_iterations=30)
        return torch.where(missed, 0.0, capacity.rate / BITS_PER_NAT)

    def _relax(self, vertices: Tensor, heights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bound on a cone, its shares τ_i = t_i h_i and its maximiser s, each (n, K).

        The multiplicative update raises the rate at every step; the tangent plane at its end makes
        the bound valid however far it got.
        """
        scaled = vertices / heights.unsqueeze(-1)

        def evaluate(shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            weights = (shares.unsqueeze(-2) @ scaled).squeeze(-2)
            rate, slope = compute_uplink_rate(self._reduced, weights)
            return rate, (scaled @ slope.unsqueeze(-1)).squeeze(-1), weights

        def normalised(shares: Tensor) -> Tensor:
            total = shares.sum(-1, keepdim=True)
            return self._budget * shares / torch.where(total > 0, total, 1.0)

        shares = torch.full_like(heights, self._budget / heights.shape[-1])
        for _ in range(_CONE_ITERATIONS):
            _, slope, _ = evaluate(shares)
            pull = normalised(shares * slope)
            shares = torch.where(pull.sum(-1, keepdim=True) > 0, pull, shares)
        # Thin parts are not worth a cone of their own.
        shares = normalised(torch.where(shares > _THIN * self._budget, shares, 0.0))
        rate, slope, weights = evaluate(shares)
        return bound_by_tangent(rate, slope, shares, self._budget), shares, weights

    def _bound_floors(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Certified lower bounds on min_R Σ_k v_k q_k(R), and the q that the search found.

        Where the search has not met the threshold, q is beyond any use.

        By convexity L_r(R') >= L_r(R) + <G, R' - R>, so that for any μ >= 0 every feasible R' has
        Σ v_k q_k(R') >= Σ v_k q_k(R) + μ (L_r(R) - ε) + <Z, R' - R> with Z = C + μ G, where
        Σ v_k q_k(R) = <C, R>; and <Z, R'> >= (P_R/M) Σ y + P_R λ_min(Z - Diag y) for any real y.

        Args:
            weights: v >= 0 with Σ v = 1, (n, m, K).

        Returns:
            Bounds (n, m), in W, and q (n, m, K), in W.
        """
        scenario, cells = self._system.scenario, self._cells
        count, many, users = weights.shape
        ordered = weights.unflatten(0, (-1, cells)).transpose(1, 2)
        flat = ordered.flatten(0, 2)
        radar = self._radar[:, None].expand(-1, many, -1, -1, -1).flatten(0, 2)
        limits = self._limits[:, None].expand(-1, many, -1).flatten()
        single = flat.float()
        narrow = radar.to(torch.complex64)
        strength = narrow.abs().square().mean((-2, -1)).clamp_min(1e-30)[:, None]
        start = narrow.mH @ ((3.0 * single / strength).unsqueeze(-1) * narrow)
        start.diagonal(dim1=-2, dim2=-1).add_(1.0)
        best = self._fill_streams().to(start.dtype).expand(len(flat) // cells, -1, -1, -1)
        streams, _ = torch.linalg.solve_ex(start, best.flatten(0, 1))
        streams = normalise_rows(streams, scenario.radar_power)
        offset = torch.full_like(single[:, 0], self._noise)
        objective = LeakageObjective(single, offset, radar_interference(narrow, streams))
        search = WaveformSearch(
            ExactSensing(self._system.sensing),
            limits.float(),
            narrow,
            scenario.radar_power,
            objective,
            streams,
            torch.full_like(offset, _MULTIPLIER),
            stations=cells,
            penalty=_PENALTY,
            memory=12,
        )
        search.run(_SEARCH_ITERATIONS, update_every=25)
        found = normalise_rows(search.streams.to(torch.complex128), scenario.radar_power)
        received = (radar @ found).abs().square().sum(-1)
        covariance = found @ found.mH
        with torch.enable_grad():
            leaf = covariance.unflatten(0, (-1, cells)).requires_grad_(True)
            loss = self._exact(leaf).total
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        gradient = gradient.flatten(0, 1)
        gradient = 0.5 * (gradient + gradient.mH)
        target = (flat * received).sum(-1)
        # From multipliers in bits and of L_r/ε - 1 to those in W and of L_r.
        price = search.multiplier.double() / (objective.scale.double() * limits)
        slope = radar.mH @ (flat.unsqueeze(-1) * radar) + price[:, None, None] * gradient
        share = scenario.radar_power / scenario.num_radar_antennas
        levels = (slope @ covariance).diagonal(dim1=-2, dim2=-1).real / share
        lowest = torch.linalg.eigvalsh(slope - torch.diag_embed(levels).to(slope.dtype))[:, 0]
        least = share * levels.sum(-1) + scenario.radar_power * lowest
        here = (slope.conj() * covariance).real.sum((-2, -1))
        bound = target + price * (loss.detach().flatten() - limits) + least - here
        outside = search.excess > _ATTAINED_EXCESS
        received = torch.where(outside[:, None], _MISSED, received)
        shape = ordered.shape[:3]
        bound = bound.clamp_min(0.0).view(shape).transpose(1, 2).reshape(count, many)
        return bound, received.view(*shape, users).transpose(1, 2).reshape(count, many, users)

    def _fill_streams(self) -> Tensor:
        """The best beampattern with as many streams as antennas, (J, M, M)."""
        designs = [
            best_beampattern(**{**design, "streams": None})
            for design in self._system.scenario.list_beampattern_arguments()
        ]
        return torch.stack([design.streams for design in designs]).to(self._system.device)
