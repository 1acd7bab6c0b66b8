"""Checkpoints: all that a killed training needs to go on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from isac_gym.learning.archive import (
    Archive,
    check_finite,
    check_shapes,
    open_archive,
    select_prefix,
    write_archive,
)
from isac_gym.learning.losses import TrainingLoss
from isac_gym.learning.progress import StatefulCallback
from isac_gym.reading import Count, FileError, make_file_error

__all__ = [
    "CHECKPOINT_KIND",
    "CheckpointError",
    "TrainingState",
    "check_checkpoint",
    "hash_tensors",
    "open_checkpoint",
    "restore_checkpoint",
    "save_checkpoint",
]

CHECKPOINT_KIND: Final = "training checkpoint"


_Schema = TypeVar("_Schema")

_ADVICE: Final = "delete it to start anew, or choose another place"
_SQUARES: Final = ".exp_avg_sq"
"""Means of squared gradients, of which a finite gradient can make infinity: a step of zero."""


class CheckpointError(FileError):
    """A checkpoint is damaged, or of another training."""


class SavedState(msgspec.Struct):
    """The description of a checkpoint."""

    identity: dict[str, Any]
    iterations_done: Count
    ended: bool
    rng: dict[str, Any]
    callback: dict[str, Any] = {}


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
        with open_checkpoint(path, CHECKPOINT_KIND, identity, SavedState):
            pass


@contextmanager
def open_checkpoint(
    path: str | Path, kind: str, identity: Mapping[str, Any], schema: type[_Schema]
) -> Iterator[Archive[_Schema]]:
    """Open a checkpoint, if it is of this training.

    What is raised while it is open becomes an error that names it.

    Args:
        path: The file.
        kind: Its kind.
        identity: What tells this training from others, or some of it.
        schema: What its description must hold.

    Raises:
        CheckpointError: If it is damaged, or of another training.
    """
    with open_archive(
        path, kind, schema, problem="damaged checkpoint", advice=_ADVICE, error=CheckpointError
    ) as archive:
        saved = archive.meta.get("identity")
        if not isinstance(saved, dict):
            raise ValueError("identity is missing")
        differing = [key for key in identity if saved.get(key) != identity[key]]
        if differing:
            raise make_file_error(
                CheckpointError,
                path,
                "checkpoint must be of this training, got one with another "
                f"{', '.join(differing)}; {_ADVICE}",
            )
        yield archive


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
    identity = described["identity"]
    with open_checkpoint(path, CHECKPOINT_KIND, identity, SavedState) as archive:
        held = archive.held
        if training.callback is not None:
            try:
                training.callback.load_state_dict(held.callback)
            except Exception as error:
                raise make_file_error(
                    CheckpointError,
                    path,
                    "checkpoint must be of a training with the same callbacks, got a state that "
                    f"does not fit them ({error!r})",
                ) from error
        iterations = identity["settings"]["iterations"]
        if held.iterations_done > iterations:
            raise ValueError(
                f"iterations_done must be at most {iterations}, got {held.iterations_done}"
            )
        parameters = training.optimiser.param_groups[0]["params"]
        check_shapes(
            archive.shapes,
            {
                **{f"network.{name}": v for name, v in training.network.state_dict().items()},
                **{f"loss.{name}": v for name, v in training.loss.state_dict().items()},
                **_expect_optimiser(archive.shapes, parameters, held.iterations_done),
            },
        )
        tensors = archive.read_tensors()
        check_finite(tensors, largest=_SQUARES)
        training.network.load_state_dict(select_prefix(tensors, "network."))
        training.loss.load_state_dict(select_prefix(tensors, "loss."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in select_prefix(tensors, "optimiser.").items():
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = value
        groups = training.optimiser.state_dict()["param_groups"]
        training.optimiser.load_state_dict({"state": state, "param_groups": groups})
        training.rng.bit_generator.state = held.rng
        return held.iterations_done, held.ended


def _expect_optimiser(
    found: Mapping[str, Tensor], parameters: list[nn.Parameter], done: int
) -> dict[str, Tensor]:
    """What there must be of Adam's state: nothing, or all, of each parameter.

    A parameter that has never had a gradient has no state, but all cannot be without one.
    """
    expected: dict[str, Tensor] = {}
    for index, parameter in enumerate(parameters):
        begin = f"optimiser.{index}."
        if any(name.startswith(begin) for name in found):
            expected |= {
                f"{begin}step": torch.empty((), device="meta"),
                f"{begin}exp_avg": parameter,
                f"{begin}exp_avg_sq": parameter,
            }
    if done and parameters and not expected:
        raise ValueError("the state of the optimiser is missing")
    return expected
