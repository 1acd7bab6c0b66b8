"""Agents without any sense: what is judged is the judging."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Constant:
    """The same action for every observation."""

    def __init__(self, action: npt.ArrayLike) -> None:
        self.action = np.asarray(action)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        lead = np.shape(observation)[:-1]
        return np.broadcast_to(self.action, (*lead, *self.action.shape)).copy(), state


class Hashing(Constant):
    """A different action for every observation, without a state."""

    def __init__(self, size: int) -> None:
        self.mix = np.random.default_rng(0).normal(size=size)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        total = np.asarray(observation).sum(-1, keepdims=True)
        return np.sin(total * self.mix * 5.0), None
