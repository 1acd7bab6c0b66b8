"""The training loop of all learning agents: gradient steps on a loss and updates of its state.

In primal-dual learning the loss is a Lagrangian and its state the multipliers: channels are drawn
from the environment's own model, and the gradient flows from rates and constraints through the
physics into the network.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from isac_gym.learning.checkpoint import (
    CHECKPOINT_KIND,
    TrainingState,
    hash_tensors,
    restore_checkpoint,
    save_checkpoint,
)
from isac_gym.learning.checkpoint_writer import (
    DEFAULT_SECONDS,
    CheckpointWriter,
    write_checkpoints,
)
from isac_gym.learning.losses import LossValue, TrainingLoss
from isac_gym.learning.network import Network
from isac_gym.learning.progress import Callback, StatefulCallback, TrainingProgress
from isac_gym.validation import check_integer

__all__ = ["TrainingError", "TrainingSettings", "find_infinite", "train"]

_STUCK: Final = 20
"""Iterations without any gradient after which a training counts as failed: nothing could move."""


class TrainingError(RuntimeError):
    """Training had to stop."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        iterations: Gradient steps.
        learning_rate: Step size of Adam.
        final_learning_rate: Step size at the end, reached by a cosine; None keeps it constant.
        warmup_iterations: Iterations in which the step size rises to its full value.
        gradient_clip: Largest norm of a gradient; None does not clip.
    """

    iterations: int
    learning_rate: float
    final_learning_rate: float | None = None
    warmup_iterations: int = 0
    gradient_clip: float | None = None

    def learning_rate_at(self, iteration: int) -> float:
        """Step size of an iteration, counted from 0."""
        rate = self.learning_rate
        if self.final_learning_rate is not None:
            fall = 0.5 * (1.0 + math.cos(math.pi * iteration / self.iterations))
            rate = self.final_learning_rate + (rate - self.final_learning_rate) * fall
        if iteration < self.warmup_iterations:
            rate *= (iteration + 1) / self.warmup_iterations
        return rate


def train(
    network: nn.Module,
    loss: TrainingLoss,
    settings: TrainingSettings,
    *,
    rng: np.random.Generator,
    identity: Mapping[str, Any],
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    checkpoint_seconds: float = DEFAULT_SECONDS,
) -> int:
    """Train a network in place; parameters that require no gradient stay as they are.

    The network is in training mode while a batch is evaluated, and in evaluation mode for the
    callback and afterwards.

    With a checkpoint file a training that was killed goes on where it was last saved and ends
    with the result of an uninterrupted one.

    Args:
        network: Maps observations (n, N) to actions (n, A) within [-1, 1].
        loss: What is minimised; its state changes as training goes.
        settings: How to train.
        rng: The only source of randomness; its state is saved with the checkpoint.
        identity: What tells this training from others, as plain JSON types; a checkpoint of
            another one is refused.
        callback: Called after every iteration; returning False ends the training. The state of a
            :class:`StatefulCallback` is saved with the checkpoint.
        checkpoint: File to go on from and to save to.
        checkpoint_every: Iterations between two savings, at most.
        checkpoint_seconds: Time between two savings, at most, in s.

    Returns:
        Iterations done, in this call and before it.

    Raises:
        TrainingError: If the loss, a gradient, a weight or the loss's state is not finite, or the
            gradient vanishes for many iterations; the message names the iteration and the last good
            checkpoint.
        ValueError: If ``checkpoint_every`` is no integer >= 1, or ``checkpoint_seconds`` no
            positive number.
        CheckpointError: If the checkpoint is damaged, or of another training.
        OutputInUseError: If another training writes to the checkpoint.
        Stopped: If SIGINT or SIGTERM came while there is a checkpoint, which is then written.
    """
    check_integer("checkpoint_every", checkpoint_every, 1)
    with write_checkpoints(checkpoint, checkpoint_seconds) as writer:
        return _train(network, loss, settings, rng, identity, callback, writer, checkpoint_every)


def _train(
    network: nn.Module,
    loss: TrainingLoss,
    settings: TrainingSettings,
    rng: np.random.Generator,
    identity: Mapping[str, Any],
    callback: Callback | None,
    writer: CheckpointWriter,
    every: int,
) -> int:
    """Do the iterations; arguments as of :func:`train`."""
    checkpoint = writer.path
    parameters = [value for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    described = {
        "kind": CHECKPOINT_KIND,
        "identity": {
            **identity,
            "settings": dataclasses.asdict(settings),
            "start": hash_tensors({**network.state_dict(), **loss.state_dict()}),
        },
    }
    state = callback if isinstance(callback, StatefulCallback) else None
    training = TrainingState(network, loss, optimiser, rng, state)
    done = 0
    if checkpoint is not None and checkpoint.exists():
        done, ended = restore_checkpoint(checkpoint, described, training)
        if ended:
            return done
    limit = math.inf if settings.gradient_clip is None else settings.gradient_clip
    stuck = 0
    for iteration in range(done, settings.iterations):
        rate = settings.learning_rate_at(iteration)
        for group in optimiser.param_groups:
            group["lr"] = rate
        value = _evaluate(network, loss, rng, iteration / settings.iterations)
        optimiser.zero_grad(set_to_none=True)
        value.loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        stuck = stuck + 1 if bool(norm == 0) else 0
        finite = bool(torch.isfinite(value.loss.detach()) & torch.isfinite(norm))
        if not finite or stuck == _STUCK:
            what = "diverged" if not finite else f"has had no gradient for {_STUCK} iterations"
            raise TrainingError(
                f"training {what} at iteration {iteration + 1}: loss {value.loss.item()}, "
                f"gradient norm {norm.item()}; {_name_last_good(checkpoint)}"
            )
        optimiser.step()
        loss.update(value, iteration / settings.iterations)
        done = iteration + 1
        if done == settings.iterations:  # before, the next loss shows it
            _require_finite(network, loss, done, checkpoint)
        go_on = True
        if callback is not None:
            progress = _make_progress(done, settings.iterations, value, loss, rate)
            go_on = callback(progress) is not False
        last = done == settings.iterations or not go_on
        if stuck == 0:
            save = functools.partial(
                _save_finite, described=described, training=training, done=done, ended=last
            )
            writer.attend(
                save,
                is_due=last or done % every == 0,
                progress=f"at iteration {done} of {settings.iterations}",
            )
        if not go_on:
            _require_finite(network, loss, done, checkpoint)
            break
    return done


def _save_finite(
    path: Path, described: dict[str, Any], training: TrainingState, done: int, ended: bool
) -> None:
    """Write a checkpoint that a training can go on from; arguments as of its saving."""
    _require_finite(training.network, training.loss, done, path)
    save_checkpoint(path, described, training, done, ended)


def _require_finite(
    network: nn.Module, loss: TrainingLoss, done: int, checkpoint: Path | None
) -> None:
    """Check what the last step has made of weights and of the loss's state.

    Raises:
        TrainingError: If something is NaN or infinite.
    """
    broken = find_infinite({**dict(network.named_parameters()), **loss.state_dict()})
    if broken is not None:
        raise TrainingError(
            f"training diverged at iteration {done}: {broken!r} is not finite after its step; "
            f"{_name_last_good(checkpoint)}"
        )


def find_infinite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with an entry that is NaN or infinite; None if there is none."""
    for name, value in tensors.items():
        if not bool(torch.isfinite(value.detach()).all()):
            return name
    return None


def _name_last_good(checkpoint: Path | None) -> str:
    if checkpoint is not None and checkpoint.exists():
        return f"the last good checkpoint is {checkpoint}"
    return "none was saved"


def _evaluate(
    network: nn.Module, loss: TrainingLoss, rng: np.random.Generator, progress: float
) -> LossValue:
    """The loss on the next batch, with the network in training mode."""
    if isinstance(network, Network):
        network.prepare_batch(rng, progress)
    network.train()
    try:
        return loss.evaluate(network, rng)
    finally:
        network.eval()


def _make_progress(
    done: int, iterations: int, value: LossValue, loss: TrainingLoss, rate: float
) -> TrainingProgress:
    return TrainingProgress(
        iteration=done,
        iterations=iterations,
        loss=float(value.loss.detach()),
        sum_rate=float(value.sum_rate.detach().mean()),
        constraints={
            name: float(constraint.detach().mean())
            for name, constraint in value.constraints.items()
        },
        multipliers=loss.multipliers(),
        learning_rate=rate,
    )
