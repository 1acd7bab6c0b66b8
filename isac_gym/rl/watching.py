"""What a training of Stable-Baselines3 reaches, told after each rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

__all__ = ["DeviationSchedule", "RolloutWatcher"]


class RolloutWatcher(BaseCallback):
    """Takes the means of rate and constraints over some rollouts at a time, once learned from.

    That is about a hundredth of the training, or a tenth of what has been seen if that is less.

    Args:
        show: Called with the blocks seen, the mean rate in bit/s/Hz, the means of the signed
            constraints by name, and the loss; returning False ends the training.
        constraints: Entries of ``info``, such as ``constraint_sensing``.
    """

    def __init__(
        self,
        show: Callable[[int, float, Mapping[str, float], float], bool],
        constraints: Sequence[str],
    ) -> None:
        super().__init__()
        self._show, self._names = show, ("sum_rate", *constraints)
        self._sums = np.zeros(len(self._names))
        self._blocks = 0
        self._goes_on = True

    def _on_step(self) -> bool:
        info = self.training_env.unwrapped.step_info  # type: ignore[attr-defined]
        self._sums += [
            float(np.mean(info[name])) * self.training_env.num_envs for name in self._names
        ]
        self._blocks += self.training_env.num_envs
        return self._goes_on

    def _on_rollout_start(self) -> None:
        # Only now has the rollout before been learned from.
        due = min(self.model._total_timesteps / 100, self.num_timesteps / 10)
        if self._blocks and self._blocks >= due:
            self._tell()

    def _on_training_end(self) -> None:
        if self._blocks:
            self._tell()

    def _tell(self) -> None:
        means = self._sums / self._blocks
        held: Mapping[str, Any] = self.logger.name_to_value
        loss = float(held.get("train/loss", held.get("train/actor_loss", 0.0)))
        by_name = {
            name.removeprefix("constraint_"): float(mean)
            for name, mean in zip(self._names[1:], means[1:], strict=True)
        }
        self._goes_on = self._show(self.num_timesteps, float(means[0]), by_name, loss)
        self._sums[:] = 0.0
        self._blocks = 0


class DeviationSchedule(BaseCallback):
    """Sets the deviation of a Gaussian policy, which is not learned, by the share of the training.

    Args:
        first: Deviation to begin with.
        last: Deviation at the end.
    """

    def __init__(self, first: float, last: float) -> None:
        super().__init__()
        self._first, self._last = math.log(first), math.log(last)

    def _on_training_start(self) -> None:
        self._deviation.requires_grad_(False)

    def _on_rollout_start(self) -> None:
        done = min(1.0, self.num_timesteps / self.model._total_timesteps)
        self._deviation.data.fill_(self._first + (self._last - self._first) * done)

    def _on_step(self) -> bool:
        return True

    @property
    def _deviation(self) -> nn.Parameter:
        held: nn.Parameter = self.model.policy.log_std  # type: ignore[assignment]
        return held
