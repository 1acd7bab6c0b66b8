"""What an agent is: a policy, any object with Stable-Baselines3's ``predict``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.channels.base import check_magnitude, convert_to_array
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import ISACSystem, find_system
from isac_gym.validation import not_allowed

__all__ = ["Policy", "SystemPolicy", "Translation", "find_system"]


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
            TypeError: If the observation does not hold real numbers.
            ValueError: If the observation has another length than the scenario's, is not finite or
                too large (:data:`~isac_gym.channels.base.LARGEST_MAGNITUDE`), or the policy answers
                anything but finite numbers.
        """
        given = convert_to_array("observation", observation)
        if given.dtype.kind not in "fiu":
            raise TypeError(f"observation must hold real numbers, got dtype {given.dtype}")
        array = given
        if given.dtype != np.float32:
            with np.errstate(over="ignore"):  # what overflows is found below
                array = given.astype(np.float32)
        size = self.system.codec.observation_size
        if array.ndim not in (1, 2) or array.shape[-1] != size:
            raise ValueError(
                f"observation must have shape ({size},) or (n, {size}), got {array.shape}"
            )
        check_magnitude("observation", array)
        if not array.size:
            return np.empty((0, self.system.codec.action_size), np.float32), state
        with torch.inference_mode():
            batch = torch.from_numpy(np.atleast_2d(array)).to(self.system.device)
            actions = self.act(batch, deterministic).cpu().numpy()
        flat = actions.reshape(-1)
        if not math.isfinite(flat.dot(flat)):
            self._check_finite(actions)
        return (actions[0] if array.ndim == 1 else actions), state

    def _check_finite(self, actions: npt.NDArray[np.float32]) -> None:
        bad = np.flatnonzero(~np.isfinite(actions).all(-1))
        if len(bad):
            raise ValueError(
                f"{type(self).__name__} must answer finite actions, got NaN or infinity for "
                f"observation {int(bad[0])}: its weights or prices are so large that single "
                "precision overflows"
            )


class Translation:
    """Between the observations and actions of an environment, and others of the same physics.

    So a policy that was made for a few numbers a user acts, and is compared, where actions are
    precoders.

    Args:
        outer: The system of the environment.
        inner: The system of the policy, on the same device.

    Raises:
        ValueError: If the environment's observations or actions cannot be translated.
    """

    def __init__(self, outer: ISACSystem, inner: ISACSystem) -> None:
        met, own = outer.scenario, inner.scenario
        # What a scenario says of its spaces alone.
        spaces = {name: getattr(met, name) for name in ("control", "observation")}
        if own.replace(**spaces) != met:
            raise ValueError(
                "scenario must be the policy's but for control and observation, got another: "
                f"{_name_differences(own.replace(**spaces), met)}"
            )
        if own.observation != met.observation and met.observation != "channels":
            raise not_allowed(
                "observation", met.observation, f"'channels' or {own.observation!r} for this policy"
            )
        if own.control != met.control and met.control != "beamforming":
            raise not_allowed(
                "control", met.control, f"'beamforming' or {own.control!r} for this policy"
            )
        self._outer, self._inner = outer.codec, inner.codec

    def act(self, policy: Policy, observation: Tensor, deterministic: bool) -> Tensor:
        """Actions (n, A) of the environment that transmit what a policy's mean.

        Args:
            policy: The policy, which sees and acts in the inner spaces.
            observation: Observations (n, N) of the environment.
            deterministic: Passed on to the policy.
        """
        action, _ = policy.predict(self._observe(observation), deterministic=deterministic)
        numbers = torch.from_numpy(np.asarray(action, np.float32)).to(self._outer.device)
        return self.express(numbers, observation)

    def _observe(self, observation: Tensor) -> npt.NDArray[np.float32]:
        """What the policy sees of observations (n, N) of the environment."""
        if self._outer.scenario.observation == self._inner.scenario.observation:
            return observation.cpu().numpy()
        return self._inner.observation(self._outer.channels(observation).cpu().numpy())

    def express(self, action: Tensor, observation: Tensor) -> Tensor:
        """The actions of the environment that transmit what the policy's mean; differentiable.

        Args:
            action: Actions (n, ·) of the policy.
            observation: Observations (n, N) of the environment.

        Returns:
            Actions (n, A).
        """
        if self._outer.scenario.control == self._inner.scenario.control:
            return action
        sent = self._inner.decode(action, self._outer.channels(observation))
        return self._outer.encode(
            precoders=sent.precoders, streams=sent.streams, access=sent.access, check=False
        )


def _name_differences(one: Scenario, other: Scenario) -> str:
    return ", ".join(
        f"{name}={getattr(other, name)!r} in place of {getattr(one, name)!r}"
        for name in Scenario.field_names()
        if getattr(one, name) != getattr(other, name)
    )
