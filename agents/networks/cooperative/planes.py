"""How the bits of a message are dealt to users: plane after plane, a bit a user.

A message is the same for all neighbours. Its bits are about the sender's own users, and about those
of other cells as the sender sees them, in the order of :data:`PLANES`; any number of bits is a
prefix of all.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["OTHER_PLANES", "OWN_PLANES", "count_bits", "deal_bits", "gather_bits", "mask_planes"]

PLANES: Final = "ootototot"
"""``o`` is a plane about own users, ``t`` one about theirs."""
OWN_PLANES: Final = PLANES.count("o")
OTHER_PLANES: Final = PLANES.count("t")


def count_bits(users: int, others: int) -> int:
    """The most bits that a message can have, for K own users and V others."""
    return OWN_PLANES * users + OTHER_PLANES * others


def gather_bits(own: Tensor, other: Tensor, bits: int) -> Tensor:
    """The first bits of all planes as a message.

    Args:
        own: Of own users, (..., K, planes).
        other: Of other users, (..., V, planes).
        bits: L.

    Returns:
        Tensor (..., L).
    """
    queues = {"o": iter(own.unbind(-1)), "t": iter(other.unbind(-1))}
    return torch.cat([next(queues[kind]) for kind in PLANES], -1)[..., :bits]


def deal_bits(message: Tensor, users: int, others: int) -> tuple[Tensor, Tensor]:
    """The planes of a message, with zeros where no bit was sent; the inverse of gathering.

    Args:
        message: Tensor (..., L).
        users: K.
        others: V.

    Returns:
        Of own users, (..., K, planes), and of others, (..., V, planes).
    """
    missing = count_bits(users, others) - message.shape[-1]
    whole = torch.nn.functional.pad(message, (0, missing))
    sizes = [users if kind == "o" else others for kind in PLANES]
    parts = list(zip(PLANES, whole.split(sizes, -1), strict=True))
    own = [part for kind, part in parts if kind == "o"]
    return torch.stack(own, -1), torch.stack([part for kind, part in parts if kind == "t"], -1)


def mask_planes(bits: Tensor, users: int, others: int) -> tuple[Tensor, Tensor]:
    """1 where a message of L bits has a bit, for L of each block, (n,), of any integer type.

    Returns:
        Of own users, (n, K, planes), and of others, (n, V, planes).
    """
    position = torch.arange(count_bits(users, others), device=bits.device)
    return deal_bits((position < bits[:, None]).float(), users, others)
