"""What an agent is: a policy, any object with Stable-Baselines3's ``predict``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.scenario import Scenario
from isac_gym.system.downlink import find_system

__all__ = ["Policy", "SystemPolicy", "find_system"]


@runtime_checkable
class Policy(Protocol):
    """The one method that makes an object an agent."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Choose an action.

        Args:
            observation: One observation (N,) or a batch (n, N), float32.
            state: State of a recurrent policy, or None.
            episode_start: Whether each observation is the first of an episode, shape (n,).
            deterministic: Whether to choose without sampling.

        Returns:
            Action (A,) or actions (n, A) within [-1, 1], and the next state.
        """


class SystemPolicy(ABC):
    """Base of the package's agents and baselines: from observations to actions, in batches.

    Args:
        env: Environment, single, batched or wrapped, whose scenario the policy is for.

    Attributes:
        system: The system of that environment.
        is_reference: Whether others are stated in percent of it; a baseline is one.
    """

    is_reference: ClassVar[bool] = False

    def __init__(self, env: Any) -> None:
        self.system = find_system(env)

    @property
    def scenario(self) -> Scenario:
        """The scenario that the policy is for."""
        return self.system.scenario

    @abstractmethod
    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Actions for a batch of observations.

        Args:
            observation: float32 (n, N); ``self.system.codec.channels`` makes H of it.
            deterministic: Whether to choose without sampling.

        Returns:
            Real tensor (n, A) within [-1, 1].
        """

    def predict(
        self,
        observation: npt.ArrayLike,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.float32], Any]:
        """Choose actions; see :meth:`Policy.predict`.

        Raises:
            ValueError: If the observation has another length than the scenario's, or is not
                finite.
        """
        array = np.asarray(observation, np.float32)
        size = self.system.codec.observation_size
        if array.ndim not in (1, 2) or array.shape[-1] != size:
            raise ValueError(
                f"observation must have shape ({size},) or (n, {size}), got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError("observation must be finite, got NaN or infinite entries")
        with torch.inference_mode():
            batch = torch.from_numpy(np.atleast_2d(array)).to(self.system.device)
            actions = self.act(batch, deterministic).cpu().numpy()
        return (actions[0] if array.ndim == 1 else actions), state
