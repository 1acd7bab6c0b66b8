"""Agents of reinforcement learning: algorithms of Stable-Baselines3, and their Lagrangians."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from isac_gym.channels import ChannelModel, HeldChannels
from isac_gym.envs.sb3 import make_sb3_env
from isac_gym.envs.wrappers.vector import PenalisedReward
from isac_gym.learning.archive import (
    check_finite,
    check_shapes,
    open_archive,
    select_prefix,
    write_archive,
)
from isac_gym.learning.checkpoint_writer import DEFAULT_SECONDS, write_checkpoints
from isac_gym.learning.progress import Callback, TrainingProgress, report_progress
from isac_gym.learning.trainer import TrainingError, find_infinite
from isac_gym.policy import SystemPolicy, Translation
from isac_gym.registry import CHANNELS, CONSTRAINTS, register_agent
from isac_gym.rl.keeping import learn_with_checkpoint
from isac_gym.rl.making import make_model
from isac_gym.rl.saving import SavedReinforcement, check_sizes, make_saved_env
from isac_gym.rl.settings import ALGORITHMS, find_settings, holds_channels, is_on_policy
from isac_gym.rl.state import copy_tensor
from isac_gym.rl.watching import DeviationSchedule, RolloutWatcher
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import ISACSystem, choose_device
from isac_gym.validation import check_integer, not_allowed

__all__ = ["Reinforcement"]

_Self = TypeVar("_Self", bound="Reinforcement")


@register_agent(
    "ppo",
    "proximal policy optimisation of a penalised reward",
    options={"algorithm": "ppo"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=80,
)
@register_agent(
    "sac",
    "soft actor-critic on a penalised reward",
    options={"algorithm": "sac"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=81,
)
@register_agent(
    "td3",
    "twin delayed deterministic policy gradient on a penalised reward",
    options={"algorithm": "td3"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=82,
)
@register_agent(
    "tqc",
    "truncated quantile critics on a penalised reward",
    options={"algorithm": "tqc"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=83,
)
@register_agent(
    "ppo-lagrangian",
    "PPO with a multiplier for each constraint, actions compared on their channels",
    options={"algorithm": "ppo-lagrangian"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=84,
)
@register_agent(
    "sac-lagrangian",
    "SAC with a critic and a multiplier for each constraint",
    options={"algorithm": "sac-lagrangian"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=85,
)
@register_agent(
    "tqc-lagrangian",
    "TQC with a critic and a multiplier for each constraint",
    options={"algorithm": "tqc-lagrangian"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=86,
)
class Reinforcement(SystemPolicy):
    """An algorithm of reinforcement learning as an agent.

    It learns in observations and actions of its own, by default features and a few numbers a user
    (``observation="features"``, ``control="structured"``, or ``control="power"`` where the radar is
    fixed and the environment's control is that), and acts in the environment's: so it is compared
    with agents that see channels and set precoders.

    Needs Stable-Baselines3 (extra ``rl``), and sb3-contrib for TQC.

    Args:
        env: Environment, single, batched or wrapped, whose scenario, constraints and channel model
            are used.
        algorithm: One of :data:`~isac_gym.rl.settings.ALGORITHMS`. Those that end in
            ``"-lagrangian"`` keep the constraints' means; the others learn from the reward less
            weighted costs.
        control: Control mode of its actions; None chooses.
        observation: Kind of its observations; None chooses.
        seed: Seed of the initial weights, the exploration and the training channels.
        device: Torch device, or ``"auto"`` for CUDA if present.
        **settings: Fields of :class:`~isac_gym.rl.settings.ReinforcementSettings` to change.

    Raises:
        ImportError: If Stable-Baselines3 or sb3-contrib is needed and not installed.
        TypeError: If a setting is none.
        ValueError: If there is no such algorithm, a value is not allowed, or its spaces cannot be
            translated into the environment's.

    Attributes:
        model: The model of Stable-Baselines3.
        inner: The system in whose observations and actions it learns.
        channels_seen: Channels that it has learned from; None before a training. On each it may
            have transmitted several blocks.
        training_seconds: Time that this took, in s.
    """

    kind: ClassVar[str] = "Reinforcement"

    def __init__(
        self,
        env: Any,
        algorithm: str = "ppo-lagrangian",
        *,
        control: str | None = None,
        observation: str | None = None,
        seed: int = 0,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(env)
        if algorithm not in ALGORITHMS:
            raise not_allowed("algorithm", algorithm, f"one of {', '.join(ALGORITHMS)}")
        self.algorithm = algorithm
        self.seed = check_integer("seed", seed, 0, 2**32 - 1)  # as Stable-Baselines3
        self.system = self.system.on(choose_device(device))
        self.channel_model: ChannelModel = env.unwrapped.channel_model
        scenario = _choose_spaces(self.scenario, control, observation)
        self.settings = find_settings(algorithm, scenario.control, **settings)
        self.inner = ISACSystem(scenario, self.system.chosen_constraints, device=self.system.device)
        self.translation = Translation(self.system, self.inner)
        self.constraints = tuple(
            entry
            for name, each in self.inner.constraints.items()
            if each.can_be_exceeded(scenario)
            for entry in _list_entries(name, scenario.num_cells)
        )
        self.channels_seen: int | None = None
        self.training_seconds: float | None = None
        self.model = self._make_model(self._make_env(1))  # for its policy

    @property
    def is_lagrangian(self) -> bool:
        """Whether the algorithm keeps constraints by multipliers."""
        return self.algorithm.endswith("-lagrangian")

    @property
    def blocks_per_channel(self) -> int:
        """Blocks that it transmits on a channel while it learns."""
        return self.settings.repeats if holds_channels(self.algorithm, self.settings) else 1

    @property
    def _blocks_per_rollout(self) -> int:
        length = self.settings.rollout_length if is_on_policy(self.algorithm) else 1
        return self.settings.num_envs * length

    @property
    def weights(self) -> int:
        """Number of weights of its networks, critics and targets among them."""
        found = self.model.policy.parameters()
        critics = getattr(self.model, "cost_critics", None)
        others = [] if critics is None else critics.parameters()
        return sum(weight.numel() for weight in (*found, *others))

    @property
    def multipliers(self) -> dict[str, float]:
        """Multipliers by the name of the constraint, in bit/s/Hz for a relative unit of excess.

        With several cells there is one a station, of which ``[j]`` says the number.
        """
        if not self.is_lagrangian:
            return {}
        held = self.model.multipliers
        return {name.removeprefix("constraint_"): float(held[name].value) for name in held}

    def learn(
        self: _Self,
        timesteps: int | None = None,
        *,
        progress_bar: bool = False,
        callback: Callback | None = None,
        tensorboard_log: str | Path | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = DEFAULT_SECONDS,
    ) -> _Self:
        """Train; an agent that has learned before, or was loaded, goes on from its weights.

        Args:
            timesteps: Blocks to learn from; None means those of the settings.
            progress_bar: Whether to show a bar with rate, constraints and multipliers.
            callback: Called with a :class:`~isac_gym.learning.progress.TrainingProgress` after
                every rollout, whose iterations are blocks; returning False ends the training.
            tensorboard_log: Folder for TensorBoard, or None.
            checkpoint: File to save to as training goes, and to go on from if it exists. Lagrangian
                algorithms end bit for bit where an uninterrupted training does; others go on with
                other random numbers, and with an empty replay buffer if they have one.
            checkpoint_seconds: Time between two savings, at most, in s.

        Returns:
            The agent itself.

        Raises:
            TrainingError: If weights or multipliers become NaN or infinite.
            CheckpointError: If the checkpoint is damaged, or of another training.
            OutputInUseError: If another training writes to the checkpoint.
            Stopped: If SIGINT or SIGTERM came while there is a checkpoint, which is then written.
            ImportError: If TensorBoard is asked for and not installed.
        """
        total = self.settings.timesteps if timesteps is None else timesteps
        total = check_integer("timesteps", total, 1)
        title = f"{self.algorithm}, {self.inner.scenario.control} control"
        envs = self._make_env(self.settings.num_envs, is_training=True)
        before, self.model = self.model, self._make_model(envs)
        self.model.policy.load_state_dict(before.policy.state_dict())
        if self.is_lagrangian:
            for name, held in before.multipliers.items():
                self.model.multipliers[name].load_state_dict(held.state_dict())
        with report_progress(progress_bar, tensorboard_log, callback, title) as report:
            report.begin()

            def show(done: int, rate: float, means: Mapping[str, float], loss: float) -> bool:
                progress = TrainingProgress(
                    iteration=min(done, total),
                    iterations=total,
                    loss=loss,
                    sum_rate=rate,
                    constraints=dict(means),
                    multipliers=self.multipliers,
                    learning_rate=float(self.model.lr_schedule(1.0 - min(done / total, 1.0))),
                )
                return report(progress) is not False

            names = [f"constraint_{name}" for name in self.inner.constraints]
            callbacks: list[Any] = [RolloutWatcher(show, names)]
            if is_on_policy(self.algorithm):
                held = self.settings
                callbacks.append(DeviationSchedule(held.deviation, held.final_deviation))
            identity = {**self._identify(), "timesteps": total}
            # What is learned does not depend on it.
            del identity["settings"]["blocks_per_checkpoint"]
            interval = self.settings.blocks_per_checkpoint
            with self._blame_divergence():
                if self.is_lagrangian:
                    self.model.learn(
                        total,
                        callback=callbacks,
                        checkpoint=checkpoint,
                        checkpoint_interval=max(1, round(interval / self._blocks_per_rollout)),
                        identity=identity,
                        checkpoint_seconds=checkpoint_seconds,
                    )
                    seconds = self.model.seconds
                else:
                    begin = time.perf_counter()
                    with write_checkpoints(checkpoint, checkpoint_seconds) as writer:
                        earlier = learn_with_checkpoint(
                            self.model, total, callbacks, writer, interval, identity
                        )
                    seconds = earlier + time.perf_counter() - begin
        seen = int(self.model.num_timesteps) // self.blocks_per_channel
        self.channels_seen = (self.channels_seen or 0) + seen
        self.training_seconds = (self.training_seconds or 0.0) + seconds
        return self

    @contextmanager
    def _blame_divergence(self) -> Iterator[None]:
        """Raise TrainingError where weights or multipliers are not finite, whatever came of it."""
        try:
            yield
        except ValueError as error:
            # What finds a policy that answers NaN does not know why it does.
            if self._find_infinite() is None:
                raise
            cause: ValueError | None = error
        else:
            cause = None
        broken = self._find_infinite()
        if broken is not None:
            raise TrainingError(
                f"training of {self.algorithm!r} diverged: {broken!r} is not finite after "
                f"{int(self.model.num_timesteps)} blocks"
            ) from cause

    def _find_infinite(self) -> str | None:
        held = {f"multiplier {k}": torch.tensor(v) for k, v in self.multipliers.items()}
        return find_infinite({**self.model.policy.state_dict(), **held})

    def _identify(self) -> dict[str, Any]:
        """What tells this agent from others, as plain JSON types."""
        return {
            "algorithm": self.algorithm,
            "settings": dataclasses.asdict(self.settings),
            "agent_seed": self.seed,
            "scenario": self.scenario.to_dict(),
            "control": self.inner.scenario.control,
            "observation": self.inner.scenario.observation,
            "channel_model": CHANNELS.describe(self.channel_model),
            "chosen_constraints": [
                CONSTRAINTS.describe(each) for each in self.system.chosen_constraints
            ],
        }

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Actions (n, A) for observations (n, N)."""
        return self.translation.act(self.model, observation, deterministic)

    def save(self, path: str | Path, **notes: str) -> None:
        """Save settings, weights and multipliers, without pickles; whole or not at all.

        Args:
            path: File, by custom with the ending ``.zip``.
            **notes: What else to write into it, for people.
        """
        # Copies, because actor and critic share what extracts features.
        state = {name: copy_tensor(v) for name, v in self.model.policy.state_dict().items()}
        meta = {
            "kind": self.kind,
            **self._identify(),
            "multipliers": {
                name: held.state_dict()
                for name, held in (self.model.multipliers if self.is_lagrangian else {}).items()
            },
            "channels_seen": self.channels_seen,
            "training_seconds": self.training_seconds,
            "notes": notes,
        }
        write_archive(path, meta, {f"policy.{name}": value for name, value in state.items()})

    @classmethod
    def load(cls: type[_Self], path: str | Path, env: Any = None, *, device: str = "auto") -> _Self:
        """Load a saved agent; executes nothing from the file.

        Args:
            path: File written by :meth:`save`.
            env: Environment to act in; None means one like that which it was saved for. With the
                policy ``"users"`` it may have another number of users.
            device: Torch device, or ``"auto"`` for CUDA if present.

        Returns:
            The agent.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or foreign, or of a scenario with other dimensions.
        """
        choose_device(device)  # a device that does not exist is no fault of the file
        problem = "saved for another scenario, or damaged"
        with open_archive(path, cls.kind, SavedReinforcement, problem=problem) as archive:
            held = archive.held
            check_sizes(held, archive.shapes)
            if env is None:
                env = make_saved_env(held)
            agent = cls(
                env,
                held.algorithm,
                control=held.control,
                observation=held.observation,
                seed=held.agent_seed,
                device=device,
                **held.settings,
            )
            policy = agent.model.policy
            check_shapes(select_prefix(archive.shapes, "policy."), policy.state_dict())
            tensors = archive.read_tensors()
            check_finite(tensors)
            policy.load_state_dict(select_prefix(tensors, "policy."))
            for name, state in held.multipliers.items():
                # Acting does not need them; another environment may have other constraints.
                if name in agent.constraints:
                    agent.model.multipliers[name].load_state_dict(state)
            agent.channels_seen = held.channels_seen
            agent.training_seconds = held.training_seconds
        return agent

    def _make_env(self, count: int, is_training: bool = False) -> Any:
        """The environment in its own spaces, for a training with the reward that it learns from."""
        wrappers: list[Any] = []
        if is_training and not self.is_lagrangian and self.constraints:
            wrappers.append(lambda envs: PenalisedReward(envs, self.settings.penalty))
        scenario, model = self.inner.scenario, self.channel_model
        if is_training and self.blocks_per_channel > 1:
            scenario = scenario.replace(episode_length=self.blocks_per_channel)
            model = HeldChannels(model)
        return make_sb3_env(
            count,
            scenario,
            channel_model=model,
            constraints=self.system.chosen_constraints,
            vector_wrappers=wrappers,
            bootstraps=False,  # γ = 0
            device=str(self.system.device),
        )

    def _make_model(self, envs: Any) -> Any:
        return make_model(
            self.algorithm,
            envs,
            self.settings,
            seed=self.seed,
            device=str(self.system.device),
            constraints=self.constraints,
        )


def _list_entries(name: str, cells: int) -> list[str]:
    """Entries of ``info`` that hold a constraint, one a station."""
    entry = f"constraint_{name}"
    return [entry] if cells == 1 else [f"{entry}[{station}]" for station in range(cells)]


def _choose_spaces(scenario: Scenario, control: str | None, observation: str | None) -> Scenario:
    """The scenario with the observations and actions to learn in."""
    if control is None:
        is_rich = scenario.control == "beamforming"
        control = "structured" if is_rich else scenario.control
    chosen = scenario.replace(control=control, observation="channels")
    if observation is None:
        observation = "features" if chosen.needs_no_phases else "channels"
    return chosen.replace(observation=observation)
