"""Checkpoints of trainings by algorithms of Stable-Baselines3 that have none of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from stable_baselines3.common.callbacks import BaseCallback

from isac_gym.learning.archive import check_finite, write_archive
from isac_gym.learning.checkpoint import open_checkpoint
from isac_gym.learning.checkpoint_writer import CheckpointWriter
from isac_gym.reading import Count, Seconds
from isac_gym.rl.state import check_state, copy_tensor, flatten_state, follow_name, restore_state

__all__ = ["CHECKPOINT_KIND", "learn_with_checkpoint"]

CHECKPOINT_KIND: Final = "reinforcement learning checkpoint"


class SavedModel(msgspec.Struct):
    """The description of such a checkpoint."""

    num_timesteps: Count
    num_updates: Count
    optimisers: dict[str, Any]
    seconds: Seconds = 0.0


def learn_with_checkpoint(
    model: Any,
    total_timesteps: int,
    callbacks: Sequence[BaseCallback],
    writer: CheckpointWriter,
    interval: int,
    identity: Mapping[str, Any],
) -> float:
    """Train a model, with a file from which a training that was killed goes on.

    The file holds policy, optimisers, steps and time; random numbers and a replay buffer begin
    anew.

    Args:
        model: A model of Stable-Baselines3.
        total_timesteps: Transitions, with those done before.
        callbacks: Callbacks of the training.
        writer: Says where the file is, and when it is time.
        interval: Transitions from one writing to the next, at most, about.
        identity: What tells this training from others, as plain JSON types.

    Returns:
        The time that the training took before it was resumed, in s; 0 if it was not.

    Raises:
        CheckpointError: If the file is damaged, or of another training.
        Stopped: If a signal asks for an end; the file is then written.
    """
    if writer.path is None:
        model.learn(total_timesteps, callback=list(callbacks))
        return 0.0
    path, own = writer.path, json.loads(json.dumps(dict(identity)))
    before = _restore(model, path, own) if path.exists() else 0.0
    left = total_timesteps - model.num_timesteps
    if left > 0:
        keeper = _Keeper(writer, interval, own, before)
        model.learn(left, callback=[*callbacks, keeper], reset_num_timesteps=False)
        keeper.attend(is_due=True)
    return before


class _Keeper(BaseCallback):
    def __init__(
        self, writer: CheckpointWriter, interval: int, identity: Mapping[str, Any], before: float
    ) -> None:
        super().__init__()
        self._begin = time.perf_counter() - before
        self._writer, self._interval, self._identity = writer, interval, identity
        self._written: int | None = None

    def _on_rollout_start(self) -> None:
        done = self.num_timesteps // self._interval
        if self._written is not None:
            self.attend(is_due=done > self._written)
        self._written = done

    def attend(self, is_due: bool) -> None:
        """Write the file if it is time."""
        progress = f"after {self.num_timesteps} transitions"
        self._writer.attend(self._write, is_due=is_due, progress=progress)

    def _on_step(self) -> bool:
        return True

    def _write(self, path: Path) -> None:
        """Write the file; it appears whole or not at all."""
        tensors: dict[str, torch.Tensor] = {}
        groups: dict[str, Any] = {}
        modules, variables = self.model._get_torch_save_params()
        for name in modules:
            held, found = flatten_state(name, follow_name(self.model, name))
            groups |= held
            tensors |= found
        tensors |= {name: copy_tensor(follow_name(self.model, name)) for name in variables}
        meta = {
            "kind": CHECKPOINT_KIND,
            "identity": self._identity,
            "num_timesteps": self.model.num_timesteps,
            "num_updates": self.model._n_updates,
            "seconds": time.perf_counter() - self._begin,
            "optimisers": groups,
        }
        write_archive(path, meta, tensors)


def _restore(model: Any, path: Path, identity: Mapping[str, Any]) -> float:
    """Put back what a file holds, and return the time that it took, in s."""
    with open_checkpoint(path, CHECKPOINT_KIND, identity, SavedModel) as archive:
        held = archive.held
        names, variable_names = model._get_torch_save_params()
        parts = {name: follow_name(model, name) for name in names}
        variables = {name: follow_name(model, name) for name in variable_names}
        check_state(parts, variables, held.optimisers, archive.shapes)
        tensors = archive.read_tensors()
        check_finite(tensors, largest="avg_sq")
        for name, part in parts.items():
            restore_state(name, part, held.optimisers, tensors)
        with torch.no_grad():
            for name, variable in variables.items():
                variable.copy_(tensors[name])
        model.num_timesteps, model._n_updates = held.num_timesteps, held.num_updates
        return held.seconds
