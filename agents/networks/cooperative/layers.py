"""Layers over the users: as one station sees them, and as all stations talk of them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["EDGE_WIDTH", "TalkLayer", "TradeLayer", "UserLayer", "apply_layer"]

EDGE_WIDTH: Final = 16
_USUAL_SUM = 5.0
"""What sums over users are divided by, so that inputs are of order 1."""


def apply_layer(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The linear layer without a module's hooks, which take long for one observation."""
    assert isinstance(layer, nn.Linear)
    return nn.functional.linear(inputs, layer.weight, layer.bias)


def _pool(values: Tensor, dim: int) -> Tensor:
    """Half of the entries summed, as interference adds up, the others compared."""
    summed, compared = values.tensor_split(2, dim=-1)
    return torch.cat([summed.sum(dim) / _USUAL_SUM, compared.amax(dim)], -1)


class UserLayer(nn.Module):
    """A round of messages between users, own and other, within what one station knows.

    Args:
        width: Length w of a user's state.
        own_features: Features of an own user.
        other_features: Features of another cell's user.
    """

    def __init__(self, width: int, own_features: int, other_features: int) -> None:
        super().__init__()
        self.gates = nn.Linear(EDGE_WIDTH, 3 * width)
        self.tell_own = nn.Linear(width, 2 * width, bias=False)
        self.tell_other = nn.Linear(width, width, bias=False)
        self.own_inner = nn.Linear(3 * width + own_features, 2 * width)
        self.own_outer = nn.Linear(2 * width, width)
        self.other_inner = nn.Linear(2 * width + other_features, 2 * width)
        self.other_outer = nn.Linear(2 * width, width)

    def forward(
        self, own: Tensor, other: Tensor, edges: Tensor, features: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """New states.

        Args:
            own: States of own users, (n, S, K, w).
            other: States of other users, (n, S, V, w).
            edges: Of own users with all, (n, S, K, K + V, e).
            features: Of own and of other users, (n, S, K, ·) and (n, S, V, ·).
        """
        users = own.shape[-2]
        within, across, back = apply_layer(self.gates, edges).chunk(3, -1)
        told, told_back = apply_layer(self.tell_own, own).chunk(2, -1)
        heard = [_pool(within[..., :users, :] * told.unsqueeze(-3), -2)]
        new_other = other
        if other.shape[-2]:
            sent = across[..., users:, :] * apply_layer(self.tell_other, other).unsqueeze(-3)
            heard.append(_pool(sent, -2))
            arrived = _pool(back[..., users:, :] * told_back.unsqueeze(-2), -3)
            inner = apply_layer(self.other_inner, torch.cat([other, arrived, features[1]], -1))
            new_other = other + apply_layer(self.other_outer, nn.functional.silu(inner))
        else:
            heard.append(torch.zeros_like(heard[0]))
        inner = apply_layer(self.own_inner, torch.cat([own, *heard, features[0]], -1))
        return own + apply_layer(self.own_outer, nn.functional.silu(inner)), new_other


class TradeLayer(nn.Module):
    """What the states of a user at all stations tell the others, where all channels are known.

    Args:
        width: Length w of a pair's state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_other = nn.Linear(width, width, bias=False)
        self.to_own = nn.Linear(width, width, bias=False)

    def forward(self, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """What is heard of each pair, of the shapes of the states; see :class:`TalkLayer`.

        Args:
            own: Of the stations with their own users, (n, J, K, w).
            other: Of the stations with the users of others, (n, J, (J-1)·K, w).
        """
        cells, users = own.shape[1], own.shape[2]
        told = apply_layer(self.to_other, own)
        heard_other = torch.stack([told.roll(-p, 1) for p in range(1, cells)], 2).flatten(2, 3)
        back = apply_layer(self.to_own, other).unflatten(-2, (cells - 1, users))
        # The station p further on counts this one's users at place J - p.
        returned = [back[:, :, cells - p - 1].roll(-p, 1) for p in range(1, cells)]
        return torch.stack(returned).sum(0), heard_other


class TalkLayer(nn.Module):
    """A round of a conversation that every station goes through in the same way by itself.

    Its subjects are the pairs of a station and a user, each with what all stations know of it.

    Args:
        width: Length w of a pair's state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trade = TradeLayer(width)
        self.pool_own = nn.Linear(width, width, bias=False)
        self.pool_other = nn.Linear(width, width, bias=False)
        self.own_inner = nn.Linear(4 * width, 2 * width)
        self.own_outer = nn.Linear(2 * width, width)
        self.other_inner = nn.Linear(4 * width, 2 * width)
        self.other_outer = nn.Linear(2 * width, width)

    def forward(self, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """New states.

        Args:
            own: Of the stations with their own users, (n, J, K, w).
            other: Of the stations with the users of others in the order in which the station counts
                them, (n, J, (J-1)·K, w).
        """
        heard_own, heard_other = self.trade(own, other)
        pools = [
            _pool(apply_layer(self.pool_own, own), -2).unsqueeze(-2),
            _pool(apply_layer(self.pool_other, other), -2).unsqueeze(-2),
        ]
        told_own = torch.cat([own, heard_own, *(pool.expand_as(own) for pool in pools)], -1)
        told_other = torch.cat([other, heard_other, *(pool.expand_as(other) for pool in pools)], -1)
        inner = nn.functional.silu(apply_layer(self.own_inner, told_own))
        new_own = own + apply_layer(self.own_outer, inner)
        inner = nn.functional.silu(apply_layer(self.other_inner, told_other))
        return new_own, other + apply_layer(self.other_outer, inner)
