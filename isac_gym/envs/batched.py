"""The batched twin of ``ISAC-MISO-v0``: many environments, one tensor computation a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from isac_gym.channels import ChannelModel, Complex
from isac_gym.channels.base import convert_to_array
from isac_gym.channels.placement import check_user_positions
from isac_gym.channels.process import Randomness
from isac_gym.channels.selection import resolve_channel_model
from isac_gym.envs.members import MEMBER_NAMES, Member
from isac_gym.envs.options import (
    check_channels,
    check_channels_alone,
    check_options,
    check_seeds,
)
from isac_gym.envs.rendering import Renderer
from isac_gym.envs.single import collect_info, make_spaces
from isac_gym.scenario import ScenarioLike, resolve_scenario
from isac_gym.system.constraints import Constraint
from isac_gym.system.downlink import ISACSystem, Outcome, choose_device
from isac_gym.system.simulation import Simulation
from isac_gym.validation import check_integer, not_allowed

__all__ = ["ISACVectorEnv", "make_vector_env"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class ISACVectorEnv(VectorEnv[Array, Array, Array]):
    """A batch of :class:`~isac_gym.envs.single.ISACEnv`, over the same physics.

    One generator serves the whole batch: with ``num_envs=1`` a seed gives the channels of the
    single environment. With a list of seeds every environment has a generator of its own, and the
    channels of a single environment with that seed.

    What happens when an episode ends is Gymnasium's ``AutoresetMode``:

    - SAME_STEP, the default: the environment is restarted in the same step. The returned
      observation is the first of the new episode, ``info["final_obs"]`` the last of the old one.
    - NEXT_STEP: the next step restarts it, whatever its action; this step has the reward 0.
    - DISABLED: it is restarted by ``reset(options={"reset_mask": mask})``.

    The entries of ``info`` are arrays with leading dimension ``num_envs``, each with a mask
    ``_name`` as Gymnasium prescribes. **They are those of the block that was transmitted in this
    step, in every environment, also where an episode has ended**: ``reward - w*info["cost"]`` is
    right in every mode. (Gymnasium's own vector environments with SAME_STEP have the entries of an
    episode's last step in ``final_info`` alone, and zeros here.) ``info["final_info"]``, with
    SAME_STEP, repeats them for the environments whose episode has ended. With NEXT_STEP the entries
    of environments that were restarted are zero and masked out; if all were, there are none.

    Args:
        num_envs: Number of environments.
        scenario: A :class:`~isac_gym.scenario.Scenario`, the name of a preset, a mapping of fields
            that differ from the default, or None for the default.
        channel_model: How channels are drawn: a model, its name, or None for the scenario's.
        constraints: Constraints beside those of every system: objects or registered names.
        autoreset_mode: What happens when an episode ends: Gymnasium's ``AutoresetMode`` or its
            value, ``"SameStep"``, ``"NextStep"`` or ``"Disabled"``.
        render_mode: ``"rgb_array"`` or None.
        device: Where the physics is computed: a torch device, or ``"auto"`` for CUDA if present.
            Observations and rewards are NumPy arrays in any case.
        **parameters: Fields of the scenario to change.

    Raises:
        TypeError: If a keyword is not a field of the scenario.
        ValueError: If a value is not allowed.

    Attributes:
        autoreset_mode: The ``AutoresetMode``; also in ``metadata``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - as Gymnasium declares it
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        scenario: ScenarioLike = None,
        *,
        channel_model: ChannelModel | str | None = None,
        constraints: Sequence[Constraint | str] = (),
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        device: str = "cpu",
        **parameters: Any,
    ) -> None:
        num_envs = check_integer("num_envs", num_envs, 1)
        self.num_envs = num_envs
        self.autoreset_mode = _check_autoreset_mode(autoreset_mode)
        self.metadata = {
            **type(self).metadata,
            "render_modes": list(type(self).metadata["render_modes"]),
            "autoreset_mode": self.autoreset_mode,
        }
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
        self._ended = np.zeros(num_envs, np.bool_)
        self._started = False
        self._generators: list[np.random.Generator] | None = None
        self._seeds: list[int] = []
        self._attributes: dict[str, tuple[Any, ...]] = {}
        self._outcome: Outcome | None = None
        self._has_sent = np.zeros(num_envs, np.bool_)

    @property
    def np_random(self) -> Any:
        """The common generator; with a list of seeds, a tuple of those of the environments."""
        return super().np_random if self._generators is None else tuple(self._generators)

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._generators, self._np_random, self._np_random_seed = None, value, -1

    @property
    def np_random_seed(self) -> Any:
        """The seed, -1 if it is unknown; with a list of seeds, a tuple of them."""
        return super().np_random_seed if self._generators is None else tuple(self._seeds)

    @property
    def _rng(self) -> Randomness:
        """What the simulation draws from."""
        common: np.random.Generator = self.np_random
        return common if self._generators is None else self._generators

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: Seed of all randomness, or None to go on with the current generator. A list of
                ``num_envs`` seeds gives each environment that is restarted a generator of its own,
                until a seed for all is given: it then sees what a single environment with this seed
                sees. None in the list lets an environment go on with its own generator, or one that
                is derived from the common one.
            options: ``{"reset_mask": mask}`` restarts only the environments where the boolean
                mask (num_envs,) is true. ``{"channels": H}`` starts from the given channels,
                complex (K, M) or, with several cells, (J, J, K, M), for all environments alike, or
                (num_envs, K, M) and (num_envs, J, J, K, M), of which the mask selects.
                ``{"user_positions": P}``, with a layout other than ``"uniform"``, lets the users of
                the environments that are restarted stand at the given points until the end of their
                episode, in m: (J, K, 2) for all environments alike, or (num_envs, J, K, 2), of
                which the mask selects. Shadowing is drawn. Channels need positions beside them
                where the single environment's do.

        Returns:
            Observations (num_envs, ·) and an empty dictionary.

        Raises:
            TypeError: If the options are no dictionary, the channels no numbers, or the positions
                no real ones.
            ValueError: If the mask has another shape or type, some environments were never started,
                there are not ``num_envs`` seeds, channels or positions have another shape or are
                not finite, a user stands closer to a station than ``least_distance``, the layout
                has no positions, positions are missing, or there is another option.
        """
        given = check_options(options, "reset_mask", "channels", "user_positions")
        mask = self._check_mask(given.get("reset_mask"))
        channels, positions = given.get("channels"), given.get("user_positions")
        positions = self._check_positions(positions)
        if channels is not None:
            channels = check_channels(channels, self.simulation.deployment, self.num_envs)
            if positions is None:
                check_channels_alone(self.scenario, self.channel_model)
        seeds = check_seeds(seed, self.num_envs)
        if seeds is not None:
            self._seed_each(seeds, mask)
        elif seed is not None:
            super().reset(seed=seed)  # type: ignore[arg-type]
            self._generators = None
        self._start(mask, channels, positions)
        self._started = True
        return self.simulation.observe(), {}

    def _start(
        self, mask: Mask, channels: Complex | None = None, positions: Array | None = None
    ) -> None:
        """Begin the episodes of a mask."""
        where = None if mask.all() else mask
        stand = None if positions is None else positions[mask]
        if channels is None:
            self.simulation.start(self._rng, where, stand)
        else:
            self.simulation.place(self._rng, channels[mask], stand, where)
        self._elapsed[mask] = 0
        self._ended[mask] = False
        self._has_sent[mask] = False

    def _seed_each(self, seeds: Sequence[int | None], mask: Mask) -> None:
        """Give the environments of a mask generators of their own, those with a seed new ones."""
        if self._generators is None:
            common: np.random.Generator = self.np_random
            self._generators, self._seeds = common.spawn(self.num_envs), [-1] * self.num_envs
        for index in np.flatnonzero(mask).tolist():
            seed = seeds[index]
            if seed is not None:
                self._generators[index], self._seeds[index] = seeding.np_random(seed)

    def _check_mask(self, given: npt.ArrayLike | None) -> Mask:
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
            actions: Array (num_envs, A) of real numbers within [-1, 1]. With NEXT_STEP, the rows of
                environments that this step restarts may hold anything.

        Returns:
            Observations (num_envs, ·), rewards (num_envs,) float64, terminations (all False),
            truncations, and info.

        Raises:
            TypeError: If the actions do not hold real numbers.
            ValueError: If the shape differs, or an entry is NaN, infinite or outside [-1, 1].
            gymnasium.error.ResetNeeded: Before the first reset, and with DISABLED if an episode
                that has ended was not restarted.
        """
        if not self._started:
            raise gym.error.ResetNeeded("Cannot call env.step() before calling env.reset()")
        if self._ended.any():
            return self._step_others(actions)
        entries = self._transmit(actions)
        self.simulation.advance(self._rng)
        self._elapsed += 1
        self._has_sent[:] = True
        rewards = entries["sum_rate"].astype(np.float64)
        truncated = self._elapsed >= self.scenario.episode_length
        info: dict[str, Any] = {}
        for name, value in entries.items():
            info[name] = value.copy()
            info[f"_{name}"] = np.ones(self.num_envs, np.bool_)
        if truncated.any():
            self._end(truncated, entries, info)
        return self.simulation.observe(), rewards, np.zeros_like(truncated), truncated, info

    def _transmit(self, actions: npt.ArrayLike) -> dict[str, Array]:
        """The entries of ``info`` for the current blocks."""
        _, self._outcome = self.simulation.apply_checked(actions)
        return collect_info(self._outcome)

    def _end(self, truncated: Mask, entries: dict[str, Array], info: dict[str, Any]) -> None:
        """Deal with environments whose episode has ended; in SAME_STEP, begin the next."""
        self._ended |= truncated
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            return
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
        self._start(truncated)
        # What was transmitted last is drawn until the new episode has transmitted something.
        self._has_sent |= truncated

    def _step_others(
        self, actions: npt.ArrayLike
    ) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """A step in which environments whose episode has ended transmit nothing."""
        ended = self._ended.copy()
        if self.autoreset_mode is AutoresetMode.DISABLED:
            raise gym.error.ResetNeeded(
                "Cannot call env.step() with autoreset_mode 'Disabled' before the environments "
                f"{np.flatnonzero(ended).tolist()}, whose episodes have ended, are restarted by "
                "env.reset(options={'reset_mask': ...})"
            )
        acting = ~ended
        rewards = np.zeros(self.num_envs)
        truncated = np.zeros(self.num_envs, np.bool_)
        info: dict[str, Any] = {}
        if acting.any():
            actions = convert_to_array("action", actions)
            if actions.shape == self.action_space.shape and actions.dtype.kind in "fiu":
                actions = np.where(acting[:, None], actions, np.zeros_like(actions))
            entries = self._transmit(actions)
            self.simulation.advance(self._rng, acting)
            self._elapsed[acting] += 1
            self._has_sent |= acting
            rewards[acting] = entries["sum_rate"][acting]
            truncated = acting & (self._elapsed >= self.scenario.episode_length)
            info = _mask_entries(entries, acting)
            self._ended |= truncated
        self._start(ended)
        return self.simulation.observe(), rewards, np.zeros_like(truncated), truncated, info

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or get an attribute of every environment.

        Args:
            name: A name of :class:`~isac_gym.envs.members.Member`, such as ``"decode_action"`` or
                ``"channels"``, or one that was given to :meth:`set_attr`.
            *args: Arguments of the method.
            **kwargs: The same.

        Returns:
            One result an environment.

        Raises:
            AttributeError: If there is no such name.
        """
        if name in self._attributes:
            found = self._attributes[name]
        elif name in MEMBER_NAMES:
            found = tuple(getattr(Member(self, index), name) for index in range(self.num_envs))
        else:
            known = ", ".join((*MEMBER_NAMES, *self._attributes))
            raise AttributeError(
                f"name must be one of {known}, which environments of a batch have, got {name!r}"
            )
        return tuple(value(*args, **kwargs) if callable(value) else value for value in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Get an attribute of every environment.

        Args:
            name: As for :meth:`call`.

        Returns:
            One value an environment.

        Raises:
            AttributeError: If there is no such name.
        """
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment.

        Args:
            name: ``"np_random"`` gives the environments generators of their own. Any other name
                is the caller's: it is kept for :meth:`get_attr`, and the environment does nothing
                with it.
            values: A list or tuple of ``num_envs`` values, or one value for all.

        Raises:
            AttributeError: If the environment itself decides what has this name.
            TypeError: If a generator is none.
            ValueError: If there are not ``num_envs`` values.
        """
        each = tuple(values) if isinstance(values, (list, tuple)) else (values,) * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(
                f"values must be one value or a list or tuple of {self.num_envs}, one for each "
                f"environment, got {len(each)}"
            )
        if name == "np_random":
            if not all(isinstance(value, np.random.Generator) for value in each):
                raise TypeError(f"values must be generators of NumPy, got {values!r}")
            self._generators, self._seeds = list(each), [-1] * self.num_envs
            return
        if name in MEMBER_NAMES or (name not in self._attributes and hasattr(self, name)):
            raise AttributeError(
                f"name must not be {name!r}, which is settled when a batch is made, for all of its "
                "environments"
            )
        self._attributes[name] = each

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Draw the last block of every environment.

        An environment that was restarted and has not transmitted yet is drawn without one, except
        after a restart in the same step: what its last step transmitted is drawn.

        Returns:
            A tuple of ``num_envs`` uint8 images (height, width, 3), or None without a render mode.
        """
        drawn = [self.draw_environment(0)]
        if drawn[0] is None:
            return None
        drawn += [self.draw_environment(index) for index in range(1, self.num_envs)]
        return tuple(image for image in drawn if image is not None)

    def draw_environment(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Draw the last block of one environment.

        Args:
            index: Which environment.

        Returns:
            uint8 image (height, width, 3), or None without a render mode.
        """
        outcome = self._outcome if self._has_sent[index] else None
        return self._renderer.draw(outcome, index)

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer."""
        # Before Gymnasium 1.4 this is also called for a batch whose arguments were refused.
        if hasattr(self, "_renderer"):
            self._renderer.close()


def make_vector_env(
    num_envs: int = 1,
    *,
    vector_wrappers: Sequence[Callable[[VectorEnv[Any, Any, Any]], VectorEnv[Any, Any, Any]]] = (),
    **settings: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make a batch and wrap it: what ``gymnasium.make_vec`` calls.

    ``make_vec``'s own ``wrappers`` are for single environments, and Gymnasium refuses them for
    environments that come as a batch.

    Args:
        num_envs: Number of environments.
        vector_wrappers: Functions or classes that take a vector environment and return one, the
            first of them innermost.
        **settings: Arguments of :class:`ISACVectorEnv`.

    Returns:
        The batch, in its wrappers.

    Raises:
        TypeError: If a wrapper cannot be called.
    """
    envs: VectorEnv[Any, Any, Any] = ISACVectorEnv(num_envs, **settings)
    for wrapper in vector_wrappers:
        if not callable(wrapper):
            raise TypeError(f"vector_wrappers must hold functions or classes, got {wrapper!r}")
        envs = wrapper(envs)
    return envs


def _check_autoreset_mode(value: object) -> AutoresetMode:
    try:
        return AutoresetMode(value)
    except ValueError:
        allowed = ", ".join(repr(mode.value) for mode in AutoresetMode)
        allowed = f"an AutoresetMode or one of {allowed}"
        raise not_allowed("autoreset_mode", value, allowed) from None


def _mask_entries(entries: dict[str, Array], mask: Mask) -> dict[str, Any]:
    """Entries with their masks; where the mask is false the values are zeroed."""
    result: dict[str, Any] = {}
    for key, value in entries.items():
        shown = mask.reshape(-1, *(1,) * (value.ndim - 1))
        result[key] = np.where(shown, value, 0.0).astype(value.dtype)
        result[f"_{key}"] = mask.copy()
    return result
