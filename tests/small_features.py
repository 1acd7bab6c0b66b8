"""Features of a few users, in one order or another."""

from __future__ import annotations

from typing import Any, Final

import torch
from direct_model import SMALL
from torch import Tensor

from isac_gym.system.features import FeatureLayout

FEATURES: Final[dict[str, Any]] = {
    **SMALL,
    "control": "structured",
    "observation": "features",
}
ORDER: Final = [2, 0, 1]
"""Another order of the users of that scenario."""


def draw_features(layout: FeatureLayout, batch: int, order: list[int] | None = None) -> Tensor:
    """Features (batch, N) of one station, always the same, of users in an order."""
    generator = torch.Generator().manual_seed(1)
    of_user, of_pair = len(layout.user_names), len(layout.pair_names)
    users = torch.rand(batch, layout.all_users, of_user, generator=generator)
    pairs = torch.rand(batch, layout.own_users, layout.all_users, of_pair, generator=generator)
    if order is not None:
        users, pairs = users[:, order], pairs[:, order][:, :, order]
    return torch.cat([users.flatten(1), pairs.flatten(1)], -1)


def turn_actions(actions: Tensor, order: list[int]) -> Tensor:
    """Actions (n, A) of one station with the users in another order."""
    return actions.unflatten(1, (-1, len(order)))[..., order].flatten(1)
