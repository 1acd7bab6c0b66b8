"""The batched twin of ``ISAC-MISO-v0``: many environments, one tensor computation a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from isac_gym.channels import ChannelModel
from isac_gym.channels.base import convert_to_array
from isac_gym.channels.placement import check_user_positions
from isac_gym.channels.selection import resolve_channel_model
from isac_gym.envs.rendering import Renderer
from isac_gym.envs.single import check_options, collect_info, make_spaces
from isac_gym.scenario import Scenario, resolve_scenario
from isac_gym.system.constraints import Constraint
from isac_gym.system.downlink import ISACSystem, Outcome, choose_device
from isac_gym.system.simulation import Simulation
from isac_gym.validation import check_integer

__all__ = ["ISACVectorEnv"]

Array = npt.NDArray[Any]


class ISACVectorEnv(gym.vector.VectorEnv[Array, Array, Array]):
    """A batch of :class:`~isac_gym.envs.single.ISACEnv`, over the same physics.

    One generator serves the whole batch: with ``num_envs=1`` a seed gives the channels of the
    single environment. Episodes that end are restarted in the same step (SAME_STEP): the returned
    observation is the first of the new episode, ``info["final_obs"]`` the last of the old one and
    ``info["final_info"]`` its ``info``. The entries of ``info`` are arrays with leading dimension
    ``num_envs``, each with a mask ``_name`` as Gymnasium prescribes; after an autoreset they are
    found in ``final_info`` alone, and the entries at the top level are masked out.

    Args:
        num_envs: Number of environments.
        scenario: A :class:`~isac_gym.scenario.Scenario`, the name of a preset, or None for the
            default.
        channel_model: How channels are drawn: a model, its name, or None for the scenario's.
        constraints: Constraints beside those of every system: objects or registered names.
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
        channel_model: ChannelModel | str | None = None,
        constraints: Sequence[Constraint | str] = (),
        render_mode: str | None = None,
        device: str = "cpu",
        **parameters: Any,
    ) -> None:
        num_envs = check_integer("num_envs", num_envs, 1)
        self.num_envs = num_envs
        self.scenario = resolve_scenario(scenario, parameters)
        self.system = ISACSystem(self.scenario, constraints, device=choose_device(device))
        self.channel_model = resolve_channel_model(channel_model, self.scenario)
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = make_spaces(self.system)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.simulation = Simulation(self.system, self.channel_model, num_envs)
        self._renderer = Renderer(self.system, render_mode, self.metadata)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._started = False
        self._outcome: Outcome | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: Seed of all randomness, or None to go on with the current generator.
            options: ``{"reset_mask": mask}`` restarts only the environments where the boolean
                mask (num_envs,) is true. ``{"user_positions": P}``, with a layout other than
                ``"uniform"``, lets the users of the environments that are restarted stand at the
                given points until the end of their episode, in m: (J, K, 2) for all environments
                alike, or (num_envs, J, K, 2), of which the mask selects. Shadowing is drawn.

        Returns:
            Observations (num_envs, ·) and an empty dictionary.

        Raises:
            TypeError: If the options are no dictionary, or the positions no real numbers.
            ValueError: If the mask has another shape or type, some environments were never started,
                the positions have another shape or are not finite, a user stands closer to a
                station than ``least_distance``, the layout has no positions, or there is another
                option.
        """
        given = check_options(options, "reset_mask", "user_positions")
        mask = self._check_mask(given.get("reset_mask"))
        positions = self._check_positions(given.get("user_positions"))
        if seed is not None:
            super().reset(seed=seed)
        self.simulation.start(
            self.np_random,
            None if mask.all() else mask,
            None if positions is None else positions[mask],
        )
        self._elapsed[mask] = 0
        self._started = True
        self._outcome = None
        return self.simulation.observe(), {}

    def _check_mask(self, given: npt.ArrayLike | None) -> npt.NDArray[np.bool_]:
        """Which environments a reset restarts, (num_envs,)."""
        if given is None:
            return np.ones(self.num_envs, np.bool_)
        mask = convert_to_array("options['reset_mask']", given)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(
                f"options['reset_mask'] must be a boolean array of shape ({self.num_envs},), got "
                f"shape {mask.shape} and dtype {mask.dtype}"
            )
        if not self._started and not mask.all():
            raise ValueError("options['reset_mask'] must be all true at the first reset")
        return mask

    def _check_positions(self, given: npt.ArrayLike | None) -> npt.NDArray[np.float64] | None:
        """Where a reset puts the users of each environment, (num_envs, J, K, 2)."""
        if given is None:
            return None
        name = "options['user_positions']"
        array = convert_to_array(name, given)
        lead = () if array.ndim == 3 else (self.num_envs,)
        positions = check_user_positions(array, self.scenario, lead, name=name)
        return np.broadcast_to(positions, (self.num_envs, *positions.shape[-3:]))

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
        _, outcome = self.simulation.apply_checked(actions)
        entries = collect_info(outcome)
        self._outcome = outcome
        self.simulation.advance(self.np_random)
        self._elapsed += 1
        rewards = entries["sum_rate"].astype(np.float64)
        truncated = self._elapsed >= self.scenario.episode_length
        info: dict[str, Any] = _mask_entries(entries, ~truncated)
        if truncated.any():
            final = np.full(self.num_envs, None, dtype=object)
            last = self.simulation.observe()
            for index in np.flatnonzero(truncated):
                final[index] = last[index]
            info.update(
                final_obs=final,
                _final_obs=truncated.copy(),
                final_info=_mask_entries(entries, truncated),
                _final_info=truncated.copy(),
            )
            self.simulation.start(self.np_random, None if truncated.all() else truncated)
            self._elapsed[truncated] = 0
        return self.simulation.observe(), rewards, np.zeros_like(truncated), truncated, info

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Draw the last block of the first environment.

        Returns:
            A tuple of one uint8 image (height, width, 3), or None without a render mode.
        """
        drawn = self._renderer.draw(self._outcome)
        return None if drawn is None else (drawn,)

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer."""
        self._renderer.close()


def _mask_entries(entries: dict[str, Array], mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Entries with their masks; where the mask is false the values are zeroed."""
    result: dict[str, Any] = {}
    for key, value in entries.items():
        shown = mask.reshape(-1, *(1,) * (value.ndim - 1))
        result[key] = np.where(shown, value, 0.0).astype(value.dtype)
        result[f"_{key}"] = mask.copy()
    return result
