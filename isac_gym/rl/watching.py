"""What a training of Stable-Baselines3 reaches, told after each rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

__all__ = ["RolloutWatcher"]

_LEAST_BLOCKS = 8192


class RolloutWatcher(BaseCallback):
    """Takes the means of rate and constraints over whole rollouts of some thousand blocks.

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

    def _on_rollout_end(self) -> None:
        if self._blocks < _LEAST_BLOCKS:
            return
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
