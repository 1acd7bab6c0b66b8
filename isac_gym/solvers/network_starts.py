"""Where searches for precoders and waveforms of several stations start: subsets of the users."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from isac_gym.physics.links import BITS_PER_NAT
from isac_gym.physics.waveform import normalise_rows
from isac_gym.solvers.network_problems import NetworkProblem, radar_received

__all__ = ["choose_subsets", "start_search"]

_AVOIDANCE = 2.0
_OFF_SHARE = 0.1
"""Power of a user outside a start's subset, relative to that of a user within: from none at all
there is no way to some."""
_USED_SHARE = 0.95
"""Of the power budget: from all of it there is no way to less."""
_TINY = 1e-30


def choose_subsets(cells: int, users: int, count: int, seed: int) -> Tensor:
    """Users that each start is for: all of them in the first, random subsets in the others.

    Args:
        cells: Stations J.
        users: Users K of each.
        count: Starts c.
        seed: Seed of the subsets, which hold from K // 2 (1 at least) to K users of each station.

    Returns:
        1 for users of the subset, float32 (c, J, K).
    """
    rng = np.random.default_rng((0x57A27, seed))
    served = np.ones((count, cells, users), np.float32)
    for subset in served[1:].reshape(-1, users):
        size = int(rng.integers(max(1, users // 2), users, endpoint=True))
        subset[rng.permutation(users)[size:]] = 0.0
    return torch.from_numpy(served)


def start_search(problem: NetworkProblem, served: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Points of a search, which need not keep the sensing loss.

    The waveforms are V = (I + c Σ_u h_u f_u* f_uᵀ)⁻¹ V_best, normalised, and the precoders
    regularised zero forcing towards the same users; h_u is 1 for users of the subset, and what they
    cost for users that are not served but priced.

    Args:
        problem: n problems.
        served: Subset of each problem, (n, S, K).
        best: V to begin with, complex (n, S, M_R, r), in √W.

    Returns:
        F, complex (n, S, M_C, K), with a little less power than the budget, and V, complex
        (n, S, M_R, r), in √W.
    """
    cost = problem.price[:, served[0].numel() :] * problem.noise[:, :1] / BITS_PER_NAT
    heed = torch.cat([served.flatten(1), cost.clamp(max=1.0)], 1)
    streams = _avoid_users(problem, served, heed, best)
    return _direct_precoders(problem, served, heed, streams), streams


def _select_own(channels: Tensor, stations: int, users: int) -> Tensor:
    """Channels (n, S, U, M) from every station to the users that it serves, (n, S, K, M)."""
    parts = channels[:, :, : stations * users].unflatten(2, (stations, users))
    own: Tensor = parts.diagonal(dim1=1, dim2=2).movedim(-1, 1)
    return own


def _avoid_users(problem: NetworkProblem, served: Tensor, heed: Tensor, best: Tensor) -> Tensor:
    radar = problem.radar
    strength = _select_own(radar, *served.shape[1:]).abs().square().mean((-2, -1))
    weights = (_AVOIDANCE / strength.clamp_min(_TINY)).unsqueeze(-1) * heed[:, None]
    gram = radar.mH @ (weights.unsqueeze(-1) * radar)
    gram.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return normalise_rows(torch.linalg.solve_ex(gram, best)[0], problem.radar_power)


def _direct_precoders(
    problem: NetworkProblem, served: Tensor, heed: Tensor, streams: Tensor
) -> Tensor:
    comm, power = problem.comm, problem.comm_power
    level = (problem.noise + radar_received(problem.radar @ streams)).mean(-1)
    gram = comm.mH @ (heed[:, None, :, None] * comm)
    gram.diagonal(dim1=-2, dim2=-1).add_((served.shape[2] / power * level)[:, None, None])
    columns, _ = torch.linalg.solve_ex(gram, _select_own(comm, *served.shape[1:]).mH)
    norm = torch.linalg.vector_norm(columns, dim=-2, keepdim=True).clamp_min(_TINY)
    shares = served.clamp_min(_OFF_SHARE)
    powers = _USED_SHARE * power * shares / shares.sum(-1, keepdim=True)
    scaled: Tensor = columns / norm * powers.sqrt().unsqueeze(-2)
    return scaled
