"""The batched twin of ``ISAC-MISO-v0``: many environments, one tensor computation a step."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from isac_gym.channels import ChannelModel, ChannelProcess, resolve_channel_model
from isac_gym.codec import checked_action
from isac_gym.env import checked_options, outcome_info, spaces_of
from isac_gym.scenario import Scenario, resolve_scenario
from isac_gym.system import ISACSystem, Outcome, torch_device
from isac_gym.validation import integer

__all__ = ["ISACVectorEnv"]

Array = npt.NDArray[Any]


class ISACVectorEnv(gym.vector.VectorEnv[Array, Array, Array]):
    """A batch of :class:`~isac_gym.env.ISACEnv`, over the same physics.

    One generator serves the whole batch: with ``num_envs=1`` a seed gives the channels of the
    single environment. Episodes that end are restarted in the same step (SAME_STEP): the returned
    observation is the first of the new episode, ``info["final_obs"]`` the last of the old one and
    ``info["final_info"]`` its ``info``. The entries of ``info`` are arrays with leading dimension
    ``num_envs``, each with a mask ``_name`` as Gymnasium prescribes; after an autoreset they are
    found in ``final_info`` alone, and the entries at the top level are masked out.

    Args:
        num_envs: Number of environments.
        scenario: As for the single environment.
        channel_model: As for the single environment.
        render_mode: ``"rgb_array"`` or None.
        device: Where the physics is computed: a torch device, or ``"auto"`` for CUDA if present.
            Observations and rewards are NumPy arrays in any case.
        **parameters: Fields of the scenario to change.

    Raises:
        TypeError: If a keyword is not a field of the scenario.
        ValueError: If a value is not allowed.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str | None = None,
        *,
        channel_model: ChannelModel | None = None,
        render_mode: str | None = None,
        device: str = "cpu",
        **parameters: Any,
    ) -> None:
        num_envs = integer("num_envs", num_envs, 1)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode must be None or one of {self.metadata['render_modes']}, "
                f"got {render_mode!r}"
            )
        self.num_envs = num_envs
        self.scenario = resolve_scenario(scenario, parameters)
        self.system = ISACSystem(self.scenario, device=torch_device(device))
        self.channel_model = resolve_channel_model(channel_model, self.scenario)
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = spaces_of(self.system)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._process = ChannelProcess(self.channel_model, self.scenario, num_envs)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._started = False
        self._outcome: Outcome | None = None
        self._renderer: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: Seed of all randomness, or None to go on with the current generator.
            options: ``{"reset_mask": mask}`` restarts only the environments where the boolean
                mask (num_envs,) is true.

        Returns:
            Observations (num_envs, ·) and an empty dictionary.

        Raises:
            ValueError: If the mask has another shape or type, some environments were never
                started, or there is another option.
        """
        if seed is not None:
            super().reset(seed=seed)
        mask = checked_options(options, "reset_mask")
        if mask is None:
            mask = np.ones(self.num_envs, np.bool_)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(
                f"options['reset_mask'] must be a boolean array of shape ({self.num_envs},), got "
                f"shape {mask.shape} and dtype {mask.dtype}"
            )
        if not self._started and not mask.all():
            raise ValueError("options['reset_mask'] must be all true at the first reset")
        self._process.start(self.np_random, None if mask.all() else mask)
        self._elapsed[mask] = 0
        self._started = True
        self._outcome = None
        return self._observations(), {}

    def step(self, actions: npt.ArrayLike) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Transmit for one block in every environment.

        Args:
            actions: Array (num_envs, A) of real numbers within [-1, 1].

        Returns:
            Observations (num_envs, ·), rewards (num_envs,) float64, terminations (all False),
            truncations, and info.

        Raises:
            TypeError: If the actions do not hold real numbers.
            ValueError: If the shape differs, or an entry is NaN, infinite or outside [-1, 1].
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        if not self._started:
            raise gym.error.ResetNeeded("Cannot call env.step() before calling env.reset()")
        checked = checked_action(actions, (self.num_envs, self.system.codec.action_size))
        device = self.system.device
        with torch.inference_mode():
            outcome = self.system.step(
                torch.from_numpy(self._process.channels).to(device),
                torch.from_numpy(checked).to(device),
                torch.from_numpy(self._process.estimates).to(device),
            )
            entries = outcome_info(outcome)
        self._outcome = outcome
        self._process.advance(self.np_random)
        self._elapsed += 1
        rewards = entries["sum_rate"].astype(np.float64)
        truncated = self._elapsed >= self.scenario.episode_length
        info: dict[str, Any] = _masked(entries, ~truncated)
        if truncated.any():
            final = np.full(self.num_envs, None, dtype=object)
            last = self._observations()
            for index in np.flatnonzero(truncated):
                final[index] = last[index]
            info.update(
                final_obs=final,
                _final_obs=truncated.copy(),
                final_info=_masked(entries, truncated),
                _final_info=truncated.copy(),
            )
            self._process.start(self.np_random, None if truncated.all() else truncated)
            self._elapsed[truncated] = 0
        return self._observations(), rewards, np.zeros_like(truncated), truncated, info

    def _observations(self) -> Array:
        return self.system.codec.observation(self._process.estimates)

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Draw the last block of the first environment.

        Returns:
            A tuple of one uint8 image (height, width, 3), or None without a render mode.
        """
        if self.render_mode is None:
            gym.logger.warn(
                "render() needs a render_mode: gym.make_vec(..., render_mode='rgb_array')"
            )
            return None
        if self._renderer is None:
            from isac_gym.rendering import Renderer

            self._renderer = Renderer(self.system, self.render_mode, self.metadata["render_fps"])
        return (self._renderer.draw(self._outcome),)

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _masked(entries: dict[str, Array], mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Entries with their masks; where the mask is false the values are zeroed."""
    result: dict[str, Any] = {}
    for key, value in entries.items():
        shown = mask.reshape(-1, *(1,) * (value.ndim - 1))
        result[key] = np.where(shown, value, 0.0).astype(value.dtype)
        result[f"_{key}"] = mask.copy()
    return result
