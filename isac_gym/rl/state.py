"""States of modules, optimisers and random numbers as tensors and plain JSON."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor, nn

from isac_gym.learning.archive import select_prefix

__all__ = [
    "copy_tensor",
    "flatten_state",
    "follow_name",
    "get_random_state",
    "restore_state",
    "set_random_state",
]


def flatten_state(
    name: str, held: nn.Module | torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state of a module or of an optimiser.

    Args:
        name: Its name, which begins the names of its tensors.
        held: The module or the optimiser.

    Returns:
        The groups of an optimiser by its name, which JSON can hold; and copies of the tensors.
    """
    if isinstance(held, nn.Module):
        state = held.state_dict()
        return {}, {f"{name}/{key}": copy_tensor(value) for key, value in state.items()}
    state = held.state_dict()
    tensors = {
        f"{name}/{index}/{key}": copy_tensor(torch.as_tensor(value))
        for index, entries in state["state"].items()
        for key, value in entries.items()
    }
    return {name: state["param_groups"]}, tensors


def restore_state(
    name: str,
    held: nn.Module | torch.optim.Optimizer,
    groups: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what :func:`flatten_state` has found.

    Args:
        name: The name.
        held: The module or the optimiser.
        groups: The groups of optimisers by their names.
        tensors: All tensors.

    Raises:
        KeyError: If something is missing.
        RuntimeError: If a shape differs.
        ValueError: If the optimiser is of other parameters.
    """
    own = select_prefix(tensors, f"{name}/")
    if isinstance(held, nn.Module):
        held.load_state_dict(own)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in own.items():
        index, _, entry = key.partition("/")
        state.setdefault(int(index), {})[entry] = value.clone()
    restored = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in groups[name]
    ]
    held.load_state_dict({"state": state, "param_groups": restored})


def get_random_state(
    space: Space[Any], device: torch.device
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """States of the generators of Python, numpy, torch, and of a space of actions."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (that of the library)
    state = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}
    meta = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": state},
        "actions": space.np_random.bit_generator.state,
    }
    tensors = {"random/torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    return meta, tensors


def set_random_state(
    space: Space[Any],
    device: torch.device,
    meta: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what :func:`get_random_state` has found."""
    version, held, cached = meta["python"]
    random.setstate((version, tuple(held), cached))
    held_state = meta["numpy"]["state"]
    state = {**held_state, "key": np.asarray(held_state["key"], np.uint32)}
    np.random.set_state({**meta["numpy"], "state": state})  # noqa: NPY002
    space.np_random.bit_generator.state = meta["actions"]
    torch.set_rng_state(tensors["random/torch"].cpu())
    if device.type == "cuda" and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"].cpu(), device)


def follow_name(held: Any, name: str) -> Any:
    """An attribute by a name with dots, such as ``policy.optimizer``."""
    for part in name.split("."):
        held = getattr(held, part)
    return held


def copy_tensor(value: Tensor) -> Tensor:
    """A copy on the CPU that later training does not change."""
    return value.detach().to("cpu", copy=True).contiguous()
