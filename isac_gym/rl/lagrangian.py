"""What all Lagrangian algorithms share: constraints, multipliers, whole rollouts, and resuming."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from isac_gym.learning.archive import write_archive
from isac_gym.learning.checkpoint import open_checkpoint
from isac_gym.learning.checkpoint_writer import (
    DEFAULT_SECONDS,
    CheckpointWriter,
    write_checkpoints,
)
from isac_gym.reading import Count, Seconds, convert_json
from isac_gym.rl.entries import read_entries
from isac_gym.rl.multipliers import Multiplier, PlainMultiplier
from isac_gym.rl.state import (
    RandomState,
    check_random_state,
    check_state,
    copy_tensor,
    flatten_state,
    follow_name,
    get_random_state,
    restore_state,
    set_random_state,
)
from isac_gym.validation import check_choice, check_integer, not_allowed

__all__ = ["CHECKPOINT_KIND", "ConstraintForm", "Lagrangian"]

CHECKPOINT_KIND: Final = "constrained training checkpoint"

ConstraintForm: TypeAlias = Literal["mean", "hard"]
_SETTINGS: Final = (
    "constraint_form",
    "baseline",
    "reseed_rollouts",
    "seed",
    "n_envs",
    "gamma",
    "gae_lambda",
    "learning_rate",
    "learning_starts",
    "n_steps",
    "n_epochs",
    "batch_size",
    "buffer_size",
    "gradient_steps",
    "multiplier_interval",
    "ent_coef",
    "vf_coef",
    "target_kl",
    "max_grad_norm",
    "tau",
)
"""What tells trainings of a class apart, where the class has it."""

_Self = TypeVar("_Self", bound="Lagrangian")


class SavedRun(msgspec.Struct):
    """What :meth:`Lagrangian.get_state` finds beside tensors, as a file holds it."""

    num_timesteps: Count
    num_rollouts: Count
    num_updates: Count
    num_episodes: Count
    multipliers: dict[str, dict[str, float | None]]
    optimisers: dict[str, Any]
    random: RandomState
    seconds: Seconds = 0.0


class Lagrangian(BaseAlgorithm):
    """The part of a Lagrangian algorithm that does not depend on how its policy is improved.

    It stands before an algorithm of Stable-Baselines3 among the bases of a class. The algorithm
    calls :meth:`_begin_rollout` before each rollout and :meth:`_end_rollout` after it.

    Args:
        policy: As that of the algorithm.
        env: As that of the algorithm.
        constraints: Names of m entries of the info of a step, feasible where <= 0.
        multiplier: What each constraint gets a copy of, or one for each name.
        constraint_form: ``"mean"`` keeps the entries' means <= 0; ``"hard"`` the means of their
            positive parts, so that each transition is to be feasible. The positive part of an entry
            ``constraint_<name>`` is the entry ``cost_<name>``.
        reseed_rollouts: Whether the environment is reset at the beginning of rollout r with a seed
            that is derived from (``seed``, r). A training that is resumed then equals one that was
            never killed, bit for bit.
        settings: As those of the algorithm.

    Raises:
        ValueError: If one of these is not allowed.

    Attributes:
        multipliers: The multipliers by the names of the constraints.
        seconds: How long the last training took, with what it took before a resumption, in s.
    """

    seconds: float = 0.0

    def __init__(
        self,
        policy: Any,
        env: Any,
        constraints: Sequence[str],
        multiplier: Multiplier | Mapping[str, Multiplier] | None,
        constraint_form: ConstraintForm,
        reseed_rollouts: bool,
        settings: Mapping[str, Any],
    ) -> None:
        names = [constraints] if isinstance(constraints, str) else list(constraints)
        if len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
            raise not_allowed("constraints", constraints, "different names")
        self.constraints: Sequence[str] = tuple(names)
        self.constraint_form = check_choice("constraint_form", constraint_form, ConstraintForm)
        self.multipliers = _distribute(multiplier, self.constraints)
        if reseed_rollouts and settings.get("seed") is None:
            raise ValueError("seed must be an integer with reseed_rollouts=True, got None")
        self.reseed_rollouts = reseed_rollouts
        self._num_rollouts = 0
        self._rollout_is_whole = True
        self._pending_random: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        self._checkpoint: tuple[CheckpointWriter, int] | None = None
        self._told_identity: dict[str, Any] = {}
        super().__init__(policy, env, **settings)

    def learn(
        self: _Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_interval: int = 1,
        identity: Mapping[str, Any] | None = None,
        checkpoint_seconds: float = DEFAULT_SECONDS,
    ) -> _Self:
        """Train.

        Args:
            total_timesteps: Transitions, all environments together; with a checkpoint that exists,
                those done before are among them.
            callback: See Stable-Baselines3.
            log_interval: See Stable-Baselines3.
            tb_log_name: See Stable-Baselines3; the name of the class if None.
            reset_num_timesteps: See Stable-Baselines3; a checkpoint that exists comes first.
            progress_bar: See Stable-Baselines3.
            checkpoint: A file from which the training goes on if it exists, and that is written
                between rollouts and at the end, whole or not at all. It holds what
                :meth:`get_state` says.
            checkpoint_interval: Rollouts from one writing to the next, at most.
            identity: What tells this training from others beyond its own settings, as plain JSON
                types, such as the environment's and those of schedules; a checkpoint of another one
                is refused.
            checkpoint_seconds: Time from one writing to the next, at most, in s, rounded up to
                whole rollouts.

        Returns:
            The algorithm, whose ``seconds`` then say how long the training took, with what it took
            before a resumption.

        Raises:
            CheckpointError: If the checkpoint is damaged, or of another training.
            OutputInUseError: If another training writes to the checkpoint.
            Stopped: If SIGINT or SIGTERM came while there is a checkpoint, which is then written
                before the next rollout.
            ValueError: If an interval is not allowed.
        """
        interval = check_integer("checkpoint_interval", checkpoint_interval, 1)
        path = None if checkpoint is None else Path(checkpoint)
        self.seconds, self._begin = 0.0, time.perf_counter()
        self._told_identity = json.loads(json.dumps(dict(identity or {})))
        try:
            with write_checkpoints(path, checkpoint_seconds) as writer:
                if path is not None and path.exists():
                    self._resume(path)
                    total_timesteps = max(0, total_timesteps - self.num_timesteps)
                    reset_num_timesteps = False
                first = self._num_rollouts
                self._checkpoint = (writer, interval)
                super().learn(  # type: ignore[safe-super]
                    total_timesteps,
                    callback,
                    log_interval,
                    tb_log_name or type(self).__name__,
                    reset_num_timesteps,
                    progress_bar,
                )
                if self._rollout_is_whole and self._num_rollouts > first:
                    self._attend_checkpoint(is_due=True)
        finally:
            self._checkpoint = None
            self.seconds = time.perf_counter() - self._begin
        return self

    def get_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All between two rollouts that a training needs to go on.

        It holds the policy, the optimisers, the critics of the constraints, the multipliers, the
        random numbers of Python, numpy, torch and of the space of actions, the last observation,
        and the counts. The environment's own state, with the running statistics of a
        ``VecNormalize``, and the state of an action noise are not among them.

        Returns:
            What JSON can hold, and tensors by name, both without ties to the algorithm.
        """
        meta: dict[str, Any] = {
            "identity": self._identify(),
            "num_timesteps": self.num_timesteps,
            "num_rollouts": self._num_rollouts,
            "num_updates": self._n_updates,
            "num_episodes": self._episode_num,
            "multipliers": {name: each.state_dict() for name, each in self.multipliers.items()},
            "optimisers": {},
        }
        tensors: dict[str, Tensor] = {}
        for name, held in self._list_parts().items():
            groups, found = flatten_state(name, held)
            meta["optimisers"] |= copy.deepcopy(groups)
            tensors |= found
        tensors |= {name: copy_tensor(value) for name, value in self._list_variables().items()}
        meta["random"], found = get_random_state(self.action_space, self.device)
        tensors |= found
        if self._last_obs is not None:
            tensors |= _observation_to_tensors(self._last_obs)
            tensors["last/starts"] = torch.as_tensor(np.array(self._last_episode_starts))
        return meta, tensors

    def set_state(self, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`get_state` has found.

        The random numbers are put back when the next rollout begins, so that nothing before it
        uses them up.

        Raises:
            ValueError: If it is the state of another training.
        """
        own, given = self._identify(), meta.get("identity", {})
        differing = [name for name in own if given.get(name) != own[name]]
        if differing:
            raise ValueError(
                f"state must be of this training, got one with another {', '.join(differing)}"
            )
        try:
            # As from a file: tuples as lists.
            held = convert_json(msgspec.to_builtins(dict(meta)), SavedRun)
            parts, variables = self._list_parts(), self._list_variables()
            check_state(parts, variables, held.optimisers, tensors)
            states = check_random_state(self.action_space, held.random, tensors)
            for name, part in parts.items():
                restore_state(name, part, held.optimisers, tensors)
            with torch.no_grad():
                for name, variable in variables.items():
                    variable.copy_(tensors[name])
            for name, multiplier in self.multipliers.items():
                multiplier.load_state_dict(held.multipliers[name])
            self.num_timesteps = held.num_timesteps
            self._num_rollouts = held.num_rollouts
            self._n_updates = held.num_updates
            self._episode_num = held.num_episodes
            self._pending_random = (states, dict(tensors))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"state must be of this training, got one that differs ({error})"
            ) from (error)
        # A VecNormalize holds the observation that belongs to a normalised one.
        if "last/starts" in tensors and self._vec_normalize_env is None:
            self._last_obs = _tensors_to_observation(tensors)
            self._last_episode_starts = tensors["last/starts"].numpy().copy()

    def _list_parts(self) -> dict[str, Any]:
        """Modules and optimisers by name."""
        names, _ = self._get_torch_save_params()
        return {name: follow_name(self, name) for name in names}

    def _list_variables(self) -> dict[str, Tensor]:
        """Tensors of their own by name."""
        _, names = self._get_torch_save_params()
        return {name: follow_name(self, name) for name in names}

    def _identify(self) -> dict[str, Any]:
        """What tells this training from others."""
        settings = {name: getattr(self, name, None) for name in _SETTINGS}
        return {
            **self._told_identity,
            "class": type(self).__name__,
            "constraints": list(self.constraints),
            "multipliers": {name: each.describe() for name, each in self.multipliers.items()},
            # A schedule has no value that could be compared.
            **{n: v for n, v in settings.items() if isinstance(v, (int, float, str))},
        }

    def _begin_rollout(self, env: VecEnv) -> None:
        """Write a checkpoint if one is due, put back random numbers, and reseed."""
        if self._pending_random is not None:
            set_random_state(self.action_space, self.device, *self._pending_random)
            self._pending_random = None
        elif self._checkpoint is not None and self._num_rollouts and self._rollout_is_whole:
            self._attend_checkpoint(is_due=self._num_rollouts % self._checkpoint[1] == 0)
        self._rollout_is_whole = False
        if self.reseed_rollouts:
            assert self.seed is not None
            # The environments of a vector have this seed and those that follow it.
            words = np.random.SeedSequence([self.seed, self._num_rollouts]).generate_state(1)
            env.seed(int(words[0] >> 1))
            self._last_obs = env.reset()  # type: ignore[assignment]
            self._last_episode_starts = np.ones((env.num_envs,), dtype=bool)
            if self._vec_normalize_env is not None:
                self._last_original_obs = self._vec_normalize_env.get_original_obs()

    def _end_rollout(self) -> None:
        self._num_rollouts += 1
        self._rollout_is_whole = True

    def _read_constraints(self, infos: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
        """The constraints of the last step in their form, (n_envs, m)."""
        assert self.env is not None
        found = read_entries(self.env, infos, self.constraints)
        return np.maximum(found, 0.0) if self.constraint_form == "hard" else found

    def _ascend(self, means: npt.NDArray[np.floating[Any]]) -> None:
        """Raise the multipliers by the means of fresh transitions, (m,)."""
        for name, mean in zip(self.constraints, means, strict=True):
            self.multipliers[name].ascend(float(mean))

    def _get_multipliers(self) -> npt.NDArray[np.float32]:
        """The multipliers, (m,)."""
        return np.array([self.multipliers[name].value for name in self.constraints], np.float32)

    def _record(self, prefix: str, values: Sequence[float] | npt.NDArray[Any]) -> None:
        for name, value in zip(self.constraints, values, strict=True):
            self.logger.record(f"{prefix}{name}", float(value))

    def _attend_checkpoint(self, is_due: bool) -> None:
        assert self._checkpoint is not None
        progress = f"after {self.num_timesteps} transitions"
        self._checkpoint[0].attend(self._write_checkpoint, is_due=is_due, progress=progress)

    def _write_checkpoint(self, path: Path) -> None:
        meta, tensors = self.get_state()
        meta["seconds"] = time.perf_counter() - self._begin
        write_archive(path, {"kind": CHECKPOINT_KIND, **meta}, tensors)

    def _resume(self, path: Path) -> None:
        with open_checkpoint(path, CHECKPOINT_KIND, self._identify(), SavedRun) as archive:
            self.set_state(archive.meta, archive.read_tensors())
            self._begin -= archive.held.seconds
        # The environment of a new process has no state that the last observation belongs to.
        self._last_obs = None

    def _setup_model(self) -> None:
        # A file of Stable-Baselines3 holds them as a list.
        self.constraints = tuple(self.constraints)
        super()._setup_model()  # type: ignore[safe-super]

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_pending_random",
            "_checkpoint",
            "_told_identity",
            "_begin",
        ]


def _distribute(
    given: Multiplier | Mapping[str, Multiplier] | None, names: Sequence[str]
) -> dict[str, Multiplier]:
    """A multiplier of its own for each constraint."""
    if given is None:
        given = PlainMultiplier()
    if isinstance(given, Multiplier):
        return {name: copy.deepcopy(given) for name in names}
    if (
        not isinstance(given, Mapping)
        or set(given) != set(names)
        or not all(isinstance(each, Multiplier) for each in given.values())
    ):
        allowed = f"a Multiplier, or a mapping to one from each of {list(names)}"
        raise not_allowed("multiplier", given, allowed)
    return {name: copy.deepcopy(given[name]) for name in names}


def _observation_to_tensors(observation: Any) -> dict[str, Tensor]:
    if isinstance(observation, Mapping):
        return {f"last/entry/{k}": torch.as_tensor(v.copy()) for k, v in observation.items()}
    return {"last/observation": torch.as_tensor(observation.copy())}


def _tensors_to_observation(tensors: Mapping[str, Tensor]) -> Any:
    if "last/observation" in tensors:
        return tensors["last/observation"].numpy().copy()
    prefix = "last/entry/"
    return {
        name.removeprefix(prefix): value.numpy().copy()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
