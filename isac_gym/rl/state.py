"""States of modules, optimisers and random numbers as tensors and plain JSON."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from gymnasium import Space
from torch import Tensor, nn

from isac_gym.learning.archive import check_finite, check_shapes, select_prefix

__all__ = [
    "RandomState",
    "check_random_state",
    "check_state",
    "copy_tensor",
    "flatten_state",
    "follow_name",
    "get_random_state",
    "restore_state",
    "set_random_state",
]


class _NumPyKey(msgspec.Struct):
    key: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]
    pos: Annotated[int, msgspec.Meta(ge=0, le=624)]


class _NumPyState(msgspec.Struct):
    bit_generator: str
    state: _NumPyKey
    has_gauss: int
    gauss: float


class RandomState(msgspec.Struct):
    """What :func:`get_random_state` finds, as a file holds it."""

    python: tuple[int, list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]], float | None]
    numpy: _NumPyState
    actions: dict[str, Any]


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


def check_state(
    parts: Mapping[str, nn.Module | torch.optim.Optimizer],
    variables: Mapping[str, Tensor],
    groups: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Check what a file holds for :func:`restore_state`, before anything is changed.

    Args:
        parts: Modules and optimisers by name.
        variables: Tensors of their own by name.
        groups: What the file holds as the groups of optimisers.
        tensors: Its tensors, whose content need not be read yet.

    Raises:
        KeyError: If something is missing.
        ValueError: If something differs in shape or type, or is not finite.
    """
    wanted = dict(variables)
    for name, held in parts.items():
        if isinstance(held, nn.Module):
            wanted |= {f"{name}/{key}": value for key, value in held.state_dict().items()}
        else:
            wanted |= _expect_state(name, held, groups[name], tensors)
    begins = (*(f"{name}/" for name in parts), *variables)
    check_shapes({n: v for n, v in tensors.items() if n.startswith(begins)}, wanted)


def _expect_state(
    name: str, held: torch.optim.Optimizer, groups: Any, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Check the groups of an optimiser, and list its tensors: the same ones of each parameter."""
    own = held.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own):
        raise ValueError(f"groups of {name} must be {len(own)} mappings")
    for group, given in zip(own, groups, strict=True):
        if not isinstance(given, dict) or set(given) != set(group):
            raise ValueError(f"groups of {name} must have the entries {sorted(group)}")
        for key, value in group.items():
            _check_alike(f"{key} of {name}", given[key], value)
        if given["params"] != group["params"]:
            raise ValueError(f"groups of {name} must be of the parameters {group['params']}")
    found = [key.partition("/") for key in select_prefix(tensors, f"{name}/")]
    entries = {entry for _, _, entry in found}
    parameters = [value for group in held.param_groups for value in group["params"]]
    wanted = {}
    for index in {index for index, _, _ in found}:
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"state of {name} must be of {len(parameters)} parameters")
        parameter = parameters[int(index)]
        for entry in entries:
            scalar = torch.empty((), device="meta")
            wanted[f"{name}/{index}/{entry}"] = scalar if entry == "step" else parameter
    return wanted


def _check_alike(name: str, value: Any, own: Any) -> None:
    """Check that a value from a file is of the kind of one's own; None may be a number."""
    if isinstance(own, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(own):
            raise ValueError(f"{name} must be {len(own)} values, got {value!r}")
        for held, mine in zip(value, own, strict=True):
            _check_alike(name, held, mine)
    elif isinstance(own, bool) or own is None or isinstance(own, str):
        if type(value) is not type(own):
            raise ValueError(f"{name} must be as {own!r}, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_random_state(
    space: Space[Any], meta: RandomState, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Check states of generators, by putting them into others.

    Args:
        space: The space of actions.
        meta: What a file holds.
        tensors: Its tensors.

    Returns:
        The states, for :func:`set_random_state`.

    Raises:
        KeyError: If one is missing.
        TypeError: If one is of another type.
        ValueError: If one is not allowed.
        RuntimeError: If that of torch is none.
    """
    found: dict[str, Any] = msgspec.to_builtins(meta)
    version, held, cached = found["python"]
    random.Random().setstate((version, tuple(held), cached))
    state = {**found["numpy"]["state"], "key": np.asarray(meta.numpy.state.key, np.uint32)}
    np.random.RandomState().set_state({**found["numpy"], "state": state})
    copy.deepcopy(space.np_random.bit_generator).state = meta.actions
    torch.Generator().set_state(tensors["random/torch"].cpu())
    check_finite({n: v for n, v in tensors.items() if v.is_floating_point()}, largest="avg_sq")
    return found


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
