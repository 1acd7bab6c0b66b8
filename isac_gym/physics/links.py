r"""Link powers, SINR and spectral efficiency of one or several cells.

Index convention: i transmitting station, j cell of the receiving user, k user, l stream. Channels
``H`` have shape (..., J, J, K, M) for [i, j, k, antenna], each row being [f, g]: the M_R radar
antennas first, then the M_C communication antennas. One cell is J = 1.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "BITS_PER_NAT",
    "LinkPowers",
    "link_powers",
    "radar_interference",
    "sinr",
    "spectral_efficiency",
]

BITS_PER_NAT = 1.0 / math.log(2.0)


@dataclasses.dataclass(frozen=True)
class LinkPowers:
    """Received powers of every user, all of shape (..., J, K), in W.

    Attributes:
        signal: abs(g_kᵀF_k)², from the user's own station.
        multiuser: Σ_{l≠k} abs(g_kᵀF_l)², from the own station.
        radar: f_kᵀ R f_k*, from the own station.
        intercell: The streams and the radar of all other stations; None with one cell.
    """

    signal: Tensor
    multiuser: Tensor
    radar: Tensor
    intercell: Tensor | None

    @property
    def interference(self) -> Tensor:
        """Sum of all interference, shape (..., J, K), in W."""
        own = self.multiuser + self.radar
        return own if self.intercell is None else own + self.intercell


def radar_interference(radar_channels: Tensor, streams: Tensor) -> Tensor:
    """Radar power that users receive, f_kᵀ R f_k* = ‖f_kᵀV‖² with R = VVᴴ.

    Args:
        radar_channels: f, complex, shape (..., K, M_R).
        streams: V, complex, shape (..., M_R, r), in √W.

    Returns:
        Real tensor (..., K), in W, never negative.
    """
    received = torch.view_as_real(radar_channels @ streams)
    return received.square().sum((-2, -1))


def link_powers(channels: Tensor, precoders: Tensor, streams: Tensor) -> LinkPowers:
    """Received powers at every user from every station.

    Args:
        channels: H, complex, shape (..., J, J, K, M_R + M_C).
        precoders: F, complex, shape (..., J, M_C, K), in √W.
        streams: V, complex, shape (..., J, M_R, r), in √W.

    Returns:
        The powers, each of shape (..., J, K).

    Raises:
        ValueError: If the shapes do not fit together; the message names them.
    """
    num_radar, num_comm = streams.shape[-2], precoders.shape[-2]
    cells, users = channels.shape[-3], channels.shape[-2]
    if (
        channels.shape[-4] != cells
        or channels.shape[-1] != num_radar + num_comm
        or precoders.shape[-3] != cells
        or streams.shape[-3] != cells
        or precoders.shape[-1] != users
    ):
        raise ValueError(
            "channels, precoders and streams must have shapes (..., J, J, K, M_R + M_C), "
            "(..., J, M_C, K) and (..., J, M_R, r), got "
            f"{tuple(channels.shape)}, {tuple(precoders.shape)} and {tuple(streams.shape)}"
        )
    radar_part, comm_part = channels.split([num_radar, num_comm], dim=-1)
    received = (comm_part @ precoders.unsqueeze(-3)).abs().square()
    radar = radar_interference(radar_part, streams.unsqueeze(-3))
    if cells == 1:
        own, own_radar, intercell = received.squeeze(-4), radar.squeeze(-3), None
    else:
        own = received.diagonal(dim1=-4, dim2=-3).movedim(-1, -3)
        own_radar = radar.diagonal(dim1=-3, dim2=-2).mT
        others = _make_off_diagonal(cells, radar.dtype, radar.device)
        intercell = ((received.sum(-1) + radar) * others[..., None]).sum(-3)
    signal = own.diagonal(dim1=-2, dim2=-1)
    # Summed without the signal, not subtracted from the total: no cancellation at high SINR.
    multiuser = (own * _make_off_diagonal(users, own.dtype, own.device)).sum(-1)
    return LinkPowers(signal=signal, multiuser=multiuser, radar=own_radar, intercell=intercell)


@lru_cache(maxsize=32)
def _make_off_diagonal(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on the diagonal, ones elsewhere."""
    # Not an inference tensor even if first asked for in inference mode: training uses it too.
    with torch.inference_mode(False):
        return 1.0 - torch.eye(size, dtype=dtype, device=device)


def sinr(powers: LinkPowers, noise_power: float | Tensor) -> Tensor:
    """SINR γ, equation (11), with inter-cell interference where there are several cells.

    Args:
        powers: Received powers, shape (..., J, K).
        noise_power: N0 > 0, in W, a number or a tensor that broadcasts.

    Returns:
        Real tensor (..., J, K).
    """
    return powers.signal / (powers.interference + noise_power)


def spectral_efficiency(sinr_values: Tensor) -> Tensor:
    """Spectral efficiency log2(1 + γ) of each user, in bit/s/Hz, same shape as the input."""
    return torch.log1p(sinr_values) * BITS_PER_NAT
