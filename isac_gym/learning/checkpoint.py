"""Checkpoints: all that a killed training needs to go on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from isac_gym.learning.archive import read_archive, select_prefix, write_archive
from isac_gym.learning.losses import TrainingLoss
from isac_gym.learning.progress import StatefulCallback

__all__ = [
    "CHECKPOINT_KIND",
    "CheckpointError",
    "TrainingState",
    "check_checkpoint",
    "hash_tensors",
    "restore_checkpoint",
    "save_checkpoint",
]

CHECKPOINT_KIND: Final = "training checkpoint"


class CheckpointError(ValueError):
    """A checkpoint is damaged, or of another training."""


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """All that a checkpoint holds."""

    network: nn.Module
    loss: TrainingLoss
    optimiser: torch.optim.Adam
    rng: np.random.Generator
    callback: StatefulCallback | None


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """What tells weights from others: a loaded agent from a fresh one, a source from another."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def save_checkpoint(
    path: str | Path, described: dict[str, Any], training: TrainingState, done: int, ended: bool
) -> None:
    """Write a checkpoint; the file appears whole or not at all.

    Args:
        path: The file.
        described: What tells this training from others.
        training: Its state.
        done: Iterations done.
        ended: Whether the training has ended.
    """
    network, loss = training.network.state_dict(), training.loss.state_dict()
    tensors = {f"network.{name}": value for name, value in network.items()}
    tensors |= {f"loss.{name}": value for name, value in loss.items()}
    for index, state in training.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    meta = {
        **described,
        "iterations_done": done,
        "ended": ended,
        "rng": training.rng.bit_generator.state,
    }
    if training.callback is not None:
        meta["callback"] = training.callback.state_dict()
    write_archive(path, meta, tensors)


def check_checkpoint(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another training before anything is done for this one.

    Args:
        path: The checkpoint; it need not exist.
        identity: Some of what tells this training from others.

    Raises:
        CheckpointError: If it is damaged, or of another training.
    """
    if path.exists():
        read_checkpoint(path, identity)


def read_checkpoint(
    path: str | Path, identity: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a checkpoint, if it is of this training."""
    try:
        meta, tensors = read_archive(path, CHECKPOINT_KIND)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    saved = meta.get("identity", {})
    differing = [key for key in identity if saved.get(key) != identity[key]]
    if differing:
        raise CheckpointError(
            f"{path}: checkpoint must be of this training, got one with another "
            f"{', '.join(differing)}; delete it to start anew, or choose another place"
        )
    return meta, tensors


def restore_checkpoint(
    path: str | Path, described: dict[str, Any], training: TrainingState
) -> tuple[int, bool]:
    """Take over the state of a checkpoint.

    Args:
        path: The file.
        described: What tells this training from others.
        training: The state to change.

    Returns:
        Iterations done, and whether the training has ended.

    Raises:
        CheckpointError: If it is damaged, or of another training.
    """
    meta, tensors = read_checkpoint(path, described["identity"])
    if training.callback is not None:
        try:
            training.callback.load_state_dict(meta.get("callback", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: checkpoint must be of a training with the same callbacks, got a state "
                f"that does not fit them ({error!r})"
            ) from error

    try:
        training.network.load_state_dict(select_prefix(tensors, "network."))
        training.loss.load_state_dict(select_prefix(tensors, "loss."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in select_prefix(tensors, "optimiser.").items():
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = value
        groups = training.optimiser.state_dict()["param_groups"]
        training.optimiser.load_state_dict({"state": state, "param_groups": groups})
        training.rng.bit_generator.state = meta["rng"]
        return int(meta["iterations_done"]), bool(meta["ended"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error})") from error
