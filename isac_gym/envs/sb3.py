"""Any vector environment of Gymnasium's as one of Stable-Baselines3's.

Needs Stable-Baselines3 (extra ``rl``). The batched environment learns with it at its own speed:
what Stable-Baselines3 brings along steps single environments one after the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from isac_gym.envs.batched import ISACVectorEnv
from isac_gym.envs.members import Member
from isac_gym.scenario import ScenarioLike
from isac_gym.validation import check_flag, check_integer, not_allowed

try:
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import (
        VecEnvIndices,
        VecEnvObs,
        VecEnvStepReturn,
    )
except ImportError as error:
    raise ImportError(
        "isac_gym.envs.sb3 needs Stable-Baselines3: pip install 'isac-gym[rl]'"
    ) from error

__all__ = ["SB3VecEnv", "make_sb3_env"]

_AnyVectorEnv: TypeAlias = VectorEnv[Any, Any, Any]
_Mask: TypeAlias = npt.NDArray[np.bool_]
_Entries: TypeAlias = dict[str, tuple[Any, _Mask]]
"""Entries of ``info`` by name: the values (n, …), or further entries, and who has one (n,)."""


class SB3VecEnv(VecEnv):
    """A vector environment of Gymnasium's under the interface of Stable-Baselines3's ``VecEnv``.

    An environment whose episode has ended is restarted in the same step, as algorithms of
    Stable-Baselines3 expect, whatever the vector environment's autoreset mode: with SAME_STEP it
    does so itself, with DISABLED and NEXT_STEP it is restarted by
    ``reset(options={"reset_mask": mask})`` before the step is handed back, so that no step of
    NEXT_STEP is spent on restarting.

    The list ``infos`` of a step holds an empty dictionary for each environment, except where an
    episode has ended. There it holds all entries of the episode's last step,
    ``terminal_observation`` and, with ``bootstraps``, ``TimeLimit.truncated``: whether the episode
    was truncated and not terminated. Entries are NumPy scalars and arrays. What is needed of every
    environment in every step is in :attr:`step_info`, as arrays.

    Args:
        envs: The vector environment, such as ``gymnasium.make_vec("ISAC-MISO-v0", num_envs=1024)``
            or a ``SyncVectorEnv``. Its ``metadata`` must state the ``autoreset_mode``.
        bootstraps: Whether algorithms learn that an episode was truncated, so that they add the
            value of the observation that would have followed. On-policy algorithms then call the
            critic once for each environment that was truncated. Where the discount is 0, as for a
            contextual bandit, that value is multiplied by 0: False reports the end of an episode as
            a termination, which saves the calls and changes nothing else.
        info_names: Entries that are copied into the dictionary of every environment in every step,
            where the step has them; None means all, as ``DummyVecEnv`` has them.
        seed_each: What :meth:`seed` gives the vector environment at the next reset: its seed, or
            with True a list of ``seed + i``. Vector environments of single ones give environment i
            the seed ``seed + i`` in both cases. ``ISACVectorEnv`` draws from one generator in the
            first case; in the second each environment sees what a single one with its seed sees,
            at about two thirds of the speed with 1024 environments.

    Raises:
        ValueError: If an argument is not allowed.

    Attributes:
        envs: The vector environment.
        step_info: Entries of the step that was last taken by name, arrays (n, …), also where it has
            ended an episode; dictionaries of these where ``info`` has dictionaries. Where not all
            environments have an entry, a mask ``_name`` (n,) says which, and values of the others
            mean nothing. Empty after a reset.
    """

    def __init__(
        self,
        envs: _AnyVectorEnv,
        *,
        bootstraps: bool = True,
        info_names: Sequence[str] | None = (),
        seed_each: bool = False,
    ) -> None:
        if not isinstance(envs, VectorEnv):
            raise not_allowed("envs", envs, "a gymnasium.vector.VectorEnv")
        self.envs = envs
        self.step_info: Mapping[str, Any] = {}
        self._mode = _check_mode(envs.metadata.get("autoreset_mode"))
        self._bootstraps = check_flag("bootstraps", bootstraps)
        self._seed_each = check_flag("seed_each", seed_each)
        self._info_names = _check_names(info_names)
        self._reset_names: frozenset[str] = frozenset()
        self._actions: Any = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = dict(envs.metadata)

    @property
    def spec(self) -> Any:
        """The specification that the vector environment was made from, or None."""
        return self.envs.spec

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Choose the seed of the next reset.

        Args:
            seed: An integer >= 0; None draws one from NumPy's global generator.

        Returns:
            Seeds of the environments, ``seed + i``; see ``seed_each`` for who makes use of them.

        Raises:
            ValueError: If the seed is no such integer.
        """
        return super().seed(None if seed is None else check_integer("seed", seed, 0))

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Choose the options of the next reset.

        Args:
            options: What the vector environment's ``reset`` takes as options, or a list of equal
                ones, one for each environment; None means none.

        Raises:
            ValueError: If it is neither a dictionary, nor a list of equal ones.
        """
        given: Any = {} if options is None else options
        each: list[Any] = given if isinstance(given, list) else [given] * self.num_envs
        if (
            len(each) != self.num_envs
            or not all(isinstance(one, dict) for one in each)
            or not all(one is each[0] or data_equivalence(one, each[0]) for one in each)
        ):
            allowed = f"None, a dictionary, or a list of {self.num_envs} equal dictionaries"
            raise not_allowed("options", options, allowed)
        super().set_options(each[0])

    def reset(self) -> VecEnvObs:
        """Start new episodes everywhere, with the seed and options that were chosen for this reset.

        Returns:
            Observations (n, …).
        """
        seeds: Any = self._seeds if self._seed_each else self._seeds[0]
        if self._seeds[0] is None:
            seeds = None
        observations, info = self.envs.reset(seed=seeds, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        entries = _read_entries(info, np.ones(self.num_envs, np.bool_))
        self._reset_names = frozenset(entries)
        self.reset_infos = _list_rows(entries, np.arange(self.num_envs))
        self.step_info = {}
        first: VecEnvObs = _copy_observations(self.observation_space, observations)
        return first

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Take note of the actions (n, …), for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step the environments, and restart those whose episode has ended.

        Returns:
            Observations (n, …), the first of the new episode where one has ended; rewards (n,)
            float32; where an episode has ended (n,) bool; and one info an environment.

        Raises:
            ValueError: If restarting some environments by a mask has changed others.
        """
        observations, rewards, terminations, truncations, info = self.envs.step(self._actions)
        observations = _copy_observations(self.observation_space, observations)
        terminated = np.asarray(terminations, np.bool_)
        ended = terminated | np.asarray(truncations, np.bool_)
        entries = _read_entries(info, np.ones(self.num_envs, np.bool_))
        indices = np.flatnonzero(ended)
        lasts: list[Any] = []
        if len(indices) and self._mode is AutoresetMode.SAME_STEP:
            lasts = [_take(info["final_obs"], index) for index in indices]
            entries = self._split_off_resets(entries, info.get("final_info", {}), ended)
        elif len(indices):
            lasts = [_take(observations, index) for index in indices]
            observations = self._restart(observations, ended)
        self.step_info = _show_entries(entries)
        infos = self._list_infos(entries)
        if self._info_names is not None:
            for index, row in zip(indices, _list_rows(entries, indices), strict=True):
                infos[index] = row
        for index, last in zip(indices, lasts, strict=True):
            last = _copy_observations(self.observation_space, last)
            infos[index]["terminal_observation"] = last
            if self._bootstraps:
                infos[index]["TimeLimit.truncated"] = bool(not terminated[index])
        return observations, np.array(rewards, np.float32), ended, infos

    def _list_infos(self, entries: _Entries) -> list[dict[str, Any]]:
        """What every environment is told in every step."""
        names = entries if self._info_names is None else self._info_names
        chosen = {name: entries[name] for name in names if name in entries}
        if not chosen:
            return [{} for _ in range(self.num_envs)]
        return _list_rows(chosen, np.arange(self.num_envs))

    def _split_off_resets(
        self, entries: _Entries, final_info: Mapping[str, Any], ended: _Mask
    ) -> _Entries:
        """Keep what a restart in the same step reports; the entries of the step alone are left.

        Where an episode has ended, the entries at the top are the restart's in Gymnasium's own
        vector environments, but the step's in ``ISACVectorEnv`` and in wrappers that add to them.
        They are the restart's if a reset reports entries of that name.
        """
        restarted = {
            name: (value, has & ended)
            for name, (value, has) in entries.items()
            if name in self._reset_names
        }
        self._keep_reset_infos(restarted, np.flatnonzero(ended))
        stepped = {
            name: (value, has & ~ended if name in restarted else has)
            for name, (value, has) in entries.items()
        }
        return _overlay(stepped, _read_entries(final_info, ended))

    def _restart(self, observations: Any, ended: _Mask) -> Any:
        """Restart environments by a mask; observations with the first ones of new episodes."""
        first, info = self.envs.reset(options={"reset_mask": ended.copy()})
        first = _copy_observations(self.observation_space, first)
        others = np.flatnonzero(~ended)
        if len(others) and not _are_equal(_take(observations, others), _take(first, others)):
            raise not_allowed(
                "envs",
                self.envs,
                "a vector environment with AutoresetMode.SAME_STEP, or one whose reset by "
                "options={'reset_mask': mask} changes nothing where the mask is false",
            )
        self._keep_reset_infos(_read_entries(info, ended), np.flatnonzero(ended))
        return first

    def _keep_reset_infos(self, entries: _Entries, indices: npt.NDArray[np.intp]) -> None:
        for index, row in zip(indices, _list_rows(entries, indices), strict=True):
            self.reset_infos[index] = row

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        """Draw every environment.

        Returns:
            One image (height, width, 3) an environment; None each, and a warning, unless the render
            mode is ``"rgb_array"``.
        """
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"render_mode must be 'rgb_array' for images, got {self.render_mode!r}",
                stacklevel=2,
            )
            return [None] * self.num_envs
        images: Any = self.envs.render()
        return list(images)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Get an attribute of environments.

        Args:
            attr_name: An attribute of a wrapper of the vector environment or, by its ``get_attr``,
                of the environments. A vector environment without that answers for all of them.
            indices: Which environments; None means all.

        Returns:
            One value an environment.

        Raises:
            AttributeError: If there is no such attribute.
            ValueError: If there is no environment of an index.
        """
        chosen = self._check_indices(indices)
        for layer in self._walk():
            own = hasattr(layer, attr_name) and not hasattr(VectorWrapper, attr_name)
            if isinstance(layer, VectorWrapper) and own:
                return [getattr(layer, attr_name)] * len(chosen)
        base: Any = self.envs.unwrapped
        if hasattr(base, "get_attr"):
            found = base.get_attr(attr_name)
            return [found[index] for index in chosen]
        if attr_name in ("observation_space", "action_space"):
            attr_name = f"single_{attr_name}"
        return [getattr(base, attr_name)] * len(chosen)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of environments, by the vector environment's ``set_attr``.

        Args:
            attr_name: Name of the attribute.
            value: Its value, the same for all of these environments.
            indices: Which environments; None means all.

        Raises:
            AttributeError: If the vector environment does not allow it, or some environments are to
                get an attribute that the others do not have.
            ValueError: If there is no environment of an index, or the vector environment can only
                set an attribute of all.
        """
        chosen = self._check_indices(indices)
        base: Any = self.envs.unwrapped
        members = getattr(base, "envs", None)
        if members is not None:
            for index in chosen:
                members[index].set_wrapper_attr(attr_name, value)
        elif hasattr(base, "set_attr"):
            partly = len(set(chosen)) < self.num_envs
            values = list(base.get_attr(attr_name)) if partly else [value] * self.num_envs
            for index in chosen:
                values[index] = value
            base.set_attr(attr_name, values)
        else:
            self._check_all(chosen)
            setattr(base, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of environments.

        Args:
            method_name: Name of the method.
            *method_args: Its arguments.
            indices: Which environments; None means all.
            **method_kwargs: More arguments.

        Returns:
            One result an environment.

        Raises:
            AttributeError: If there is no such method.
            ValueError: If there is no environment of an index, or the vector environment can only
                call all.
        """
        chosen = self._check_indices(indices)
        base: Any = self.envs.unwrapped
        if isinstance(base, ISACVectorEnv):
            found = [getattr(Member(base, index), method_name) for index in chosen]
        elif hasattr(base, "envs"):
            found = [base.envs[index].get_wrapper_attr(method_name) for index in chosen]
        else:
            self._check_all(chosen)
            results: Iterable[Any] = base.call(method_name, *method_args, **method_kwargs)
            return list(results)
        return [method(*method_args, **method_kwargs) for method in found]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Find out whether environments are in a wrapper.

        Args:
            wrapper_class: A wrapper of vector environments, or of single ones, which are found
                where the vector environment holds single ones in this process.
            indices: Which environments; None means all.

        Returns:
            One answer an environment.

        Raises:
            ValueError: If there is no environment of an index.
        """
        chosen = self._check_indices(indices)
        if any(isinstance(layer, wrapper_class) for layer in self._walk()):
            return [True] * len(chosen)
        members = getattr(self.envs.unwrapped, "envs", None)
        if members is None:
            return [False] * len(chosen)
        return [is_wrapped(members[index], wrapper_class) for index in chosen]

    def _walk(self) -> Iterator[_AnyVectorEnv]:
        """The vector environment and those that it wraps, the outermost first."""
        layer = self.envs
        while isinstance(layer, VectorWrapper):
            yield layer
            layer = layer.env
        yield layer

    def _check_indices(self, indices: VecEnvIndices) -> list[int]:
        """The environments that are meant, each in [0, n)."""
        if indices is None:
            return list(range(self.num_envs))
        each = indices if isinstance(indices, Iterable) else [indices]
        try:
            return [range(self.num_envs)[index] for index in each]
        except (IndexError, TypeError):
            bounds = f"[{-self.num_envs}, {self.num_envs})"
            allowed = f"None, an integer in {bounds}, or several of them"
            raise not_allowed("indices", indices, allowed) from None

    def _check_all(self, chosen: Sequence[int]) -> None:
        """Check that all environments are meant, each once and in order."""
        if list(chosen) != list(range(self.num_envs)):
            kind = type(self.envs.unwrapped).__name__
            allowed = f"None with {kind}, which does it for all environments alone"
            raise not_allowed("indices", chosen, allowed)


def make_sb3_env(
    num_envs: int = 64,
    scenario: ScenarioLike = None,
    *,
    seed: int | None = None,
    bootstraps: bool = True,
    info_names: Sequence[str] | None = (),
    seed_each: bool = False,
    vector_wrappers: Sequence[Callable[[_AnyVectorEnv], _AnyVectorEnv]] = (),
    **parameters: Any,
) -> SB3VecEnv:
    """Make a batch of ``ISAC-MISO-v0`` for Stable-Baselines3.

    Args:
        num_envs: Number of environments.
        scenario: A :class:`~isac_gym.scenario.Scenario`, the name of a preset, a mapping of fields
            that differ from the default, or None for the default.
        seed: Seed of the next reset, or None.
        bootstraps: As of :class:`SB3VecEnv`.
        info_names: The same.
        seed_each: The same.
        vector_wrappers: Functions or classes that take a vector environment and return one, the
            first of them innermost, such as
            :class:`isac_gym.envs.wrappers.vector.PenalisedReward`.
        **parameters: Other arguments of :class:`~isac_gym.envs.batched.ISACVectorEnv`, and fields
            of the scenario to change.

    Returns:
        The batch.

    Raises:
        TypeError: If a keyword is not a field of the scenario, or a wrapper cannot be called.
        ValueError: If a value is not allowed.
    """
    envs = gym.make_vec(
        "ISAC-MISO-v0",
        num_envs=check_integer("num_envs", num_envs, 1),
        scenario=scenario,
        vector_wrappers=vector_wrappers,
        **parameters,
    )
    found = SB3VecEnv(envs, bootstraps=bootstraps, info_names=info_names, seed_each=seed_each)
    if seed is not None:
        found.seed(seed)
    return found


def _check_mode(value: object) -> AutoresetMode:
    try:
        return AutoresetMode(value)
    except ValueError:
        allowed = "an AutoresetMode or its value"
        raise not_allowed("envs.metadata['autoreset_mode']", value, allowed) from None


def _check_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise not_allowed("info_names", names, "None or a sequence of names")
    if not all(isinstance(name, str) for name in names):
        raise not_allowed("info_names", names, "None or a sequence of names")
    return tuple(names)


def _copy_observations(space: gym.Space[Any], observations: Any) -> Any:
    """Copy observations, of one environment or of many, in the type of their space."""
    if isinstance(space, gym.spaces.Dict):
        return {
            name: _copy_observations(part, observations[name])
            for name, part in space.spaces.items()
        }
    if isinstance(space, gym.spaces.Tuple):
        pairs = zip(space.spaces, observations, strict=True)
        return tuple(_copy_observations(part, values) for part, values in pairs)
    return np.array(observations, dtype=space.dtype)


def _take(observations: Any, indices: Any) -> Any:
    """The observations of one environment, or of several."""
    if isinstance(observations, dict):
        return {name: part[indices] for name, part in observations.items()}
    if isinstance(observations, tuple):
        return tuple(part[indices] for part in observations)
    return observations[indices]


def _are_equal(left: Any, right: Any) -> bool:
    """Whether observations are the same; NaN is the same as NaN."""
    if isinstance(left, dict):
        return all(_are_equal(left[name], right[name]) for name in left)
    if isinstance(left, tuple):
        return all(_are_equal(*pair) for pair in zip(left, right, strict=True))
    return bool(((left == right) | ((left != left) & (right != right))).all())


def _read_entries(info: Mapping[str, Any], present: _Mask) -> _Entries:
    """The entries of what a vector environment returned as info.

    Args:
        info: The info. What does not have a row for each environment is left out.
        present: Which environments have the entries that come without a mask, (n,).
    """
    entries: _Entries = {}
    for name, value in info.items():
        if name in ("final_obs", "final_info") or (name[:1] == "_" and name[1:] in info):
            continue
        has = np.asarray(info.get(f"_{name}", present), np.bool_)
        if isinstance(value, Mapping):
            entries[name] = _read_entries(value, has), has
        elif isinstance(value, np.ndarray) and value.shape[:1] == present.shape:
            entries[name] = value, has
    return entries


def _overlay(entries: _Entries, others: _Entries) -> _Entries:
    """Entries, with those of others in their place where there are some."""
    result = dict(entries)
    for name, (value, has) in others.items():
        if name not in entries or has.all():
            result[name] = value, has
            continue
        below, there = entries[name]
        if isinstance(value, dict):
            result[name] = _overlay(below, value), there | has
        else:
            shown = has.reshape(-1, *(1,) * (value.ndim - 1))
            result[name] = np.where(shown, value, below), there | has
    return result


def _show_entries(entries: _Entries) -> dict[str, Any]:
    """Entries as copies, with masks of those that not all environments have."""
    shown: dict[str, Any] = {}
    for name, (value, has) in entries.items():
        shown[name] = _show_entries(value) if isinstance(value, dict) else value.copy()
        if not has.all():
            shown[f"_{name}"] = has.copy()
    return shown


def _list_rows(entries: _Entries, indices: npt.NDArray[np.intp]) -> list[dict[str, Any]]:
    """The entries that each of some environments has, in one dictionary each."""
    whole: dict[str, list[Any]] = {}
    partial: dict[str, tuple[list[Any], _Mask]] = {}
    for name, (value, has) in entries.items():
        column = _list_rows(value, indices) if isinstance(value, dict) else list(value[indices])
        if has[indices].all():
            whole[name] = column
        else:
            partial[name] = column, has[indices]
    if whole:
        rows = [dict(zip(whole, row, strict=True)) for row in zip(*whole.values(), strict=True)]
    else:
        rows = [{} for _ in indices]
    for name, (column, has) in partial.items():
        for position in np.flatnonzero(has):
            rows[position][name] = column[position]
    return rows
