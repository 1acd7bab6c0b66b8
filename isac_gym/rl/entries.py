"""Entries of the info of a step as one array, for constraints and their means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from isac_gym.validation import not_allowed

__all__ = ["read_entries"]


def read_entries(
    vec_env: VecEnv, infos: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Entries of the info of the last step.

    They are taken from ``step_info``, a mapping from names to arrays (n_envs,), if the innermost
    environment has it, and otherwise from the list.

    Args:
        vec_env: The environment, which may be wrapped.
        infos: What its last step has returned, one mapping an environment.
        names: Names of m entries, each a number; ``name[j]`` is part j of an entry of several, such
            as the constraint of station j.

    Returns:
        The entries, (n_envs, m).

    Raises:
        ValueError: If an entry is missing, is no number, or is not finite.
    """
    innermost = vec_env
    while isinstance(innermost, VecEnvWrapper):
        innermost = innermost.venv
    held = getattr(innermost, "step_info", None)
    columns = []
    for name in names:
        entry, part = _split_name(name)
        column = _read_list(infos, entry) if held is None else _read_mapping(held, entry)
        if part is not None and column.ndim == 2 and part < column.shape[1]:
            column = column[:, part]
        columns.append(column)
    found = np.empty((len(infos), len(names)), np.float32)
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        if column.shape != (len(infos),):
            allowed = f"numbers, one for each of {len(infos)} environments (or name[j], part j)"
            raise ValueError(f"entry {name!r} must be {allowed}, got the shape {column.shape}")
        found[:, index] = column
    if not np.isfinite(found).all():
        name = names[int(np.flatnonzero(~np.isfinite(found).all(0))[0])]
        raise ValueError(f"entry {name!r} must be finite, got {found[:, names.index(name)]}")
    return found


def _split_name(name: str) -> tuple[str, int | None]:
    """Name of an entry and number of a part: ``name[2]`` is part 2."""
    found = re.fullmatch(r"(.+)\[(\d+)\]", name)
    return (name, None) if found is None else (found[1], int(found[2]))


def _read_mapping(held: Mapping[str, Any], name: str) -> npt.NDArray[Any]:
    if name not in held:
        raise _report_missing(name, held)
    return np.asarray(held[name])


def _read_list(infos: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray([info[name] for info in infos])
    except KeyError as error:
        lacking = next(info for info in infos if name not in info)
        raise _report_missing(name, lacking) from error


def _report_missing(name: str, held: Mapping[str, Any]) -> ValueError:
    there = ", ".join(map(repr, sorted(held))) or "nothing"
    return not_allowed("constraints", name, f"names of entries of the info, which has {there}")
