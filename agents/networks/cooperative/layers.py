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
    return _map_rows(inputs, layer.weight, layer.bias)


def _map_rows(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` as one product of matrices, whatever the strides.

    Otherwise torch rounds differently where the weights are to be learned and where they are not,
    and a station that was loaded would not transmit bit for bit what it did before.
    """
    rows = inputs.flatten(0, -2)
    mapped: Tensor = nn.functional.linear(rows, weight, bias).unflatten(0, inputs.shape[:-1])
    return mapped


def _pool(values: Tensor, dim: int) -> Tensor:
    """Half of the entries summed, as interference adds up, the others compared."""
    summed, compared = values.tensor_split(2, dim=-1)
    return torch.cat([summed.sum(dim) / _USUAL_SUM, _find_largest(compared, dim)], -1)


def _find_largest(values: Tensor, dim: int) -> Tensor:
    """``amax`` by halves, which is several times as fast where the last axis is short."""
    size = values.shape[dim]
    while size > 1:
        half = (size + 1) // 2  # with an odd size both hold the one in the middle
        values = torch.maximum(values.narrow(dim, 0, half), values.narrow(dim, size - half, half))
        size = half
    return values.squeeze(dim)


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
        self,
        own: Tensor,
        other: Tensor,
        edges: tuple[Tensor, Tensor],
        features: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """New states.

        Args:
            own: States of own users, (n, S, K, w).
            other: States of other users, (n, S, V, w).
            edges: Of own users with own ones, (n, S, K, K, e), and with others, (n, S, K, V, e).
            features: Of own and of other users, (n, S, K, ·) and (n, S, V, ·).
        """
        width = own.shape[-1]
        weight, bias = self.gates.weight.split([width, 2 * width]), self.gates.bias
        within = _map_rows(edges[0], weight[0], bias[:width])
        told, told_back = apply_layer(self.tell_own, own).chunk(2, -1)
        heard = [_pool(within * told.unsqueeze(-3), -2)]
        new_other = other
        if other.shape[-2]:
            across, back = _map_rows(edges[1], weight[1], bias[width:]).chunk(2, -1)
            heard.append(_pool(across * apply_layer(self.tell_other, other).unsqueeze(-3), -2))
            arrived = _pool(back * told_back.unsqueeze(-2), -3)
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

    def forward(self, own: Tensor, other: Tensor, stations: int) -> tuple[Tensor, Tensor]:
        """New states.

        Args:
            own: Of the stations with their own users, (n, J, K, w).
            other: Of the stations with the users of others in the order in which the station counts
                them, (n, J, (J-1)·K, w).
            stations: Whose new states are wanted: those of the first so many.
        """
        heard_own, heard_other = self.trade(own, other)
        own, other = own[:, :stations], other[:, :stations]
        pools = [
            _pool(apply_layer(self.pool_own, own), -2),
            _pool(apply_layer(self.pool_other, other), -2),
        ]
        pooled = torch.cat(pools, -1).unsqueeze(-2)
        states = []
        for state, heard, inner, outer in (
            (own, heard_own, self.own_inner, self.own_outer),
            (other, heard_other, self.other_inner, self.other_outer),
        ):
            told = torch.cat([state, heard[:, :stations]], -1)
            # The pools are the same for all users of a station: one product for all of them.
            for_each, for_all = inner.weight.tensor_split(2, -1)
            common = _map_rows(pooled, for_all, inner.bias)
            hidden = nn.functional.silu(_map_rows(told, for_each) + common)
            states.append(state + apply_layer(outer, hidden))
        return states[0], states[1]
