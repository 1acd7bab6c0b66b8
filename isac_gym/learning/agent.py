"""What all learning agents share: a network, its multipliers, and what trains them."""

from __future__ import annotations

import dataclasses
import shutil
import time
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from isac_gym.channels import ChannelModel
from isac_gym.learning.calibration import calibrate_price
from isac_gym.learning.checkpoint import check_checkpoint
from isac_gym.learning.checkpoint_writer import DEFAULT_SECONDS, check_seconds
from isac_gym.learning.conditions import ConditionGrid, Conditions
from isac_gym.learning.config import PRESETS, AgentConfig
from isac_gym.learning.losses import TrainingLoss
from isac_gym.learning.multipliers import Multipliers, make_multipliers
from isac_gym.learning.network import list_network_options, make_network, name_architecture
from isac_gym.learning.progress import Callback, report_progress
from isac_gym.learning.saving import load_agent_of, save_agent
from isac_gym.learning.trainer import TrainingSettings, train
from isac_gym.policy import SystemPolicy
from isac_gym.registry import CHANNELS, CONSTRAINTS
from isac_gym.system.constraints import find_priced
from isac_gym.system.downlink import choose_device
from isac_gym.threads import run_in_threads
from isac_gym.validation import check_integer, check_real, not_allowed

__all__ = ["LearningAgent"]

_Self = TypeVar("_Self", bound="LearningAgent")

_LEAST_SHARE: Final = 64
"""Observations a thread below which a batch is not shared out."""


class LearningAgent(SystemPolicy):
    """Base of agents that are trained.

    A subclass returns from ``_make_loss`` what its training minimises; training, acting, saving and
    loading come with it.

    Args:
        env: Environment, single, batched or wrapped, whose scenario, constraints and channel model
            are used.
        preset: Name of a preset of the class (see :data:`~isac_gym.learning.config.PRESETS`).
        seed: Seed of the initial weights and of the training channels.
        device: Torch device, or ``"auto"`` for CUDA if present.
        **settings: Fields of :class:`~isac_gym.learning.config.AgentConfig` to change, and options
            of networks.

    Raises:
        ValueError: If there is no such preset, or a setting is not allowed.
        TypeError: If a setting is neither a field nor an option of a network.

    Attributes:
        config: The settings.
        network: The network.
        multipliers: The multipliers of the constraints.
        priced: The constraint whose price the network is told; None if there is none.
        channels_seen: Blocks that it was trained on; None before.
        training_seconds: Time of the training, without that before a resumption; None before.
    """

    kind: ClassVar[str]
    """Name of the class in files."""
    saved_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of the class beyond the settings that are saved, attributes by the same name."""
    presets: ClassVar[Mapping[str, AgentConfig]] = PRESETS
    """Settings by the name of a preset."""

    def __init__(
        self,
        env: Any,
        preset: str = "tuned",
        *,
        seed: int = 0,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(env)
        if preset not in self.presets:
            raise ValueError(f"preset must be one of {sorted(self.presets)}, got {preset!r}")
        self.config = config = self._adapt(_override(self.presets[preset], settings))
        self.title = f"{self.kind}, {preset}"
        self.seed = check_integer("seed", seed, 0)
        self.system = self.system.on(choose_device(device))
        self.channel_model: ChannelModel = env.unwrapped.channel_model
        self.priced = find_priced(self.system.constraints, config.priced_constraint)
        self.architecture = name_architecture(config.architecture, self.scenario)
        self._rng = np.random.default_rng(self.seed)
        self._generator = torch.Generator().manual_seed(self.seed)
        self.network = make_network(self.architecture, self.system, self._generator, config.options)
        self.grid: ConditionGrid | None = None
        if config.snr_range_db is not None or config.threshold_range is not None:
            if self.priced is None or not self.network.answers_to_price:
                raise ValueError(
                    "snr_range_db and threshold_range must be None unless the network is told a "
                    f"price, got {config.snr_range_db!r} and {config.threshold_range!r} with "
                    f"architecture {self.architecture!r}"
                )
            self.grid = ConditionGrid(
                self.scenario, self.priced, config.snr_range_db, config.threshold_range
            )
        self.multipliers = self.make_multipliers(self.scenario.num_cells)
        self.calibrated: Tensor | None = None
        self.channels_seen: int | None = None
        self.training_seconds: float | None = None
        self._companions: set[Path] = set()

    def make_multipliers(self, num_cells: int) -> Multipliers:
        """Multipliers as the settings say, for a number of stations."""
        config = self.config
        initial = {} if self.priced is None else {self.priced.name: config.initial_multiplier}
        return make_multipliers(
            config.dual_rule,
            list(self.system.limits),
            num_cells,
            config.dual_step_size,
            gain=config.dual_gain,
            initial=initial,
            points=None if self.grid is None else self.grid.size,
            device=self.system.device,
        )

    def _check_ranges(self) -> None:
        """Check that scenario and network allow what the training is to range over."""
        config, scenario = self.config, self.scenario
        if config.gain_range is not None and (
            scenario.is_geometric or scenario.intercell_gain == 0.0
        ):
            raise not_allowed(
                "gain_range",
                config.gain_range,
                "None unless layout is 'uniform' and intercell_gain > 0, as here with layout "
                f"{scenario.layout!r} and intercell_gain {scenario.intercell_gain:g}",
            )
        if config.more_cells and not self.network.fits_other_sizes:
            raise not_allowed(
                "more_cells",
                config.more_cells,
                f"() for a network whose weights fit one size, as {self.architecture!r}",
            )

    def _adapt(self, config: AgentConfig) -> AgentConfig:
        """The settings as this agent uses them."""
        return config

    def _prepare(
        self, progress_bar: bool, checkpoint: Path | None, intervals: Mapping[str, Any]
    ) -> None:
        """Whatever has to be there before the training.

        The intervals of savings are those arguments of :meth:`learn` that say them.

        Files that it keeps beside the checkpoint are added to ``_companions``.
        """

    @abstractmethod
    def _make_loss(self) -> TrainingLoss:
        """What the training minimises."""

    def _identify(self) -> dict[str, Any]:
        """What tells this training from others, as plain JSON types."""
        return {
            "agent": self.kind,
            "config": self.config.to_dict(),
            "seed": self.seed,
            **self.describe_environment(),
        }

    def describe_environment(self) -> dict[str, Any]:
        """What the agent is for, as plain JSON types: scenario, channel model, constraints."""
        return {
            "scenario": self.scenario.to_dict(),
            "channel_model": CHANNELS.describe(self.channel_model),
            "constraints": [
                CONSTRAINTS.describe(each) for each in self.system.constraints.values()
            ],
        }

    def forget_checkpoint(self, checkpoint: Path) -> None:
        """Remove the checkpoint of a training that :meth:`learn` has ended.

        Args:
            checkpoint: The file; what this agent's training kept beside it goes as well, and
                nothing else.
        """
        checkpoint.unlink(missing_ok=True)
        for path in self._companions:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._companions.clear()

    def learn(
        self: _Self,
        iterations: int | None = None,
        *,
        progress_bar: bool = False,
        callback: Callback | None = None,
        tensorboard_log: str | Path | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
        checkpoint_seconds: float = DEFAULT_SECONDS,
    ) -> _Self:
        """Train.

        Args:
            iterations: Gradient steps; None means those of the settings.
            progress_bar: Whether to show a bar with rate, constraints and multipliers.
            callback: Called with a :class:`~isac_gym.learning.progress.TrainingProgress` after
                every iteration; returning False ends the training.
                :mod:`isac_gym.learning.callbacks` has some, for evaluation, snapshots and stopping
                on convergence.
            tensorboard_log: Folder for TensorBoard, or None.
            checkpoint: File to save to as training goes, and to go on from if it exists.
            checkpoint_every: Iterations between two savings, at most.
            checkpoint_seconds: Time between two savings, at most, in s.

        Returns:
            The agent itself.

        Raises:
            TrainingError: If the loss, a gradient, a weight or a multiplier is not finite, or the
                gradient vanishes.
            CheckpointError: If the checkpoint is damaged, or of another training.
            OutputInUseError: If another training writes to the checkpoint.
            Stopped: If SIGINT or SIGTERM came while there is a checkpoint, which is then written.
            ImportError: If TensorBoard is asked for and not installed.
            ValueError: If the settings ask for a range that scenario or network do not allow.
        """
        check_seconds(checkpoint_seconds)
        self._check_ranges()
        begin = time.perf_counter()
        config = self.config
        if iterations is not None:
            config = dataclasses.replace(config, iterations=iterations)
        settings = TrainingSettings(
            iterations=config.iterations,
            learning_rate=config.learning_rate,
            final_learning_rate=config.final_learning_rate,
            warmup_iterations=config.warmup_iterations,
            gradient_clip=config.gradient_clip,
        )
        with report_progress(progress_bar, tensorboard_log, callback, self.title) as report:
            path = None if checkpoint is None else Path(checkpoint)
            if path is not None:
                check_checkpoint(path, LearningAgent._identify(self))
            intervals: dict[str, Any] = {
                "checkpoint_every": checkpoint_every,
                "checkpoint_seconds": checkpoint_seconds,
            }
            self._prepare(progress_bar, path, intervals)
            loss = self._make_loss()
            report.begin()
            self.calibrated = None  # the policy meets the multipliers of the training
            done = train(
                self.network,
                loss,
                settings,
                rng=self._rng,
                identity=self._identify(),
                callback=report,
                checkpoint=checkpoint,
                **intervals,
            )
        self.channels_seen = self._count_channels(done)
        self.training_seconds = time.perf_counter() - begin
        if config.calibration_channels and self.has_price:
            try:
                self.calibrate(config.calibration_channels)
            except ValueError as error:  # what was learned must not be lost
                warnings.warn(f"{error}; the multiplier of the training is kept", stacklevel=2)
        return self

    def _count_channels(self, iterations: int) -> int:
        """Different blocks that a training sees."""
        return iterations * self.config.batch_size

    @property
    def has_price(self) -> bool:
        """Whether there is a price that the network answers to, and that can be settled."""
        return (
            self.network.answers_to_price
            and self.priced is not None
            and self.scenario.radar == "learned"
            and self.config.dual_rule != "none"
        )

    @property
    def multiplier(self) -> Tensor:
        """Multiplier of the priced constraint that the network is told, (J,), in bit/s/Hz.

        It weighs quantity/limit - 1: the one that :meth:`calibrate` settled, else that of the
        training. Without a priced constraint it is 0.
        """
        if self.calibrated is not None:
            return self.calibrated
        if self.priced is None:
            return torch.zeros(self.scenario.num_cells, device=self.system.device)
        limit = self.priced.limit(self.scenario)
        if self.grid is None:
            value = self.multipliers.values[self.priced.name]
            return value if self.config.relative_constraints else value * limit
        point = self.grid.weights([self.scenario.snr_db], [limit])
        return self.multipliers.at(self.priced.name, point.to(self.system.device))[0]

    def calibrate(
        self, channels: int = 2048, *, seed: int = 0, margin: float = 1e-3
    ) -> tuple[float, ...]:
        """Settle the price: the one at which the mean of the priced quantity is its limit.

        The weights stay as they are. It adapts an agent to another SNR, limit, or number of users
        or antennas than it was trained for, and takes seconds.

        Args:
            channels: How many channels of the environment's model to take the mean over.
            seed: Their seed.
            margin: Relative distance below the limit to aim at.

        Returns:
            The multipliers of the priced constraint, one a station, in bit/s/Hz; 0 where its limit
            does not bind.

        Raises:
            ValueError: If the policy has no price, or none keeps the limit.
        """
        if not self.has_price or self.priced is None:
            raise ValueError(
                "calibrate needs a network that answers to a price, a learned radar and "
                f"multipliers, got architecture {self.architecture!r}, {self.scenario.radar!r} and "
                f"{self.config.dual_rule!r}"
            )
        self.calibrated = calibrate_price(
            self.network,
            self.system,
            self.channel_model,
            self.priced,
            self.multiplier,
            channels=check_integer("channels", channels, 1),
            seed=check_integer("seed", seed, 0),
            margin=check_real("margin", margin, "a number in [0, 1)", lambda x: 0 <= x < 1),
        )
        return tuple(self.calibrated.tolist())

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Actions (n, A) for observations (n, N); ``deterministic`` makes no difference."""
        workers = torch.get_num_threads()
        if self.system.device.type != "cpu" or len(observation) < workers * _LEAST_SHARE:
            return self._answer(observation)
        return torch.cat(run_in_threads(self._answer, workers, observation.chunk(workers)))

    @torch.inference_mode()
    def _answer(self, observation: Tensor) -> Tensor:
        conditions = Conditions.of(self.system, len(observation), self.multiplier, self.priced)
        output: Tensor = self.network(observation, conditions)
        return output

    def save(self, path: str | Path, **notes: str) -> None:
        """Save settings, weights and multipliers; the file appears whole or not at all.

        Args:
            path: File, by custom with the ending ``.zip``.
            **notes: What else to write into it, for people.
        """
        save_agent(self, path, notes)

    @classmethod
    def load(cls: type[_Self], path: str | Path, env: Any = None, *, device: str = "auto") -> _Self:
        """Load a saved agent; executes nothing from the file.

        A network that fits other sizes also serves other numbers of users and antennas. Where the
        scenario, the constraints or the channel model are not those that it was saved for, its
        price is settled anew (:meth:`calibrate`), which takes seconds.

        Args:
            path: File written by :meth:`save`, or ``"pretrained:NAME"`` for an agent that comes
                with the package.
            env: Environment to act in; observations and actions must mean what they meant. None
                means one like that which the agent was saved for.
            device: Torch device, or ``"auto"`` for CUDA if present.

        Returns:
            The agent.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or foreign, or of a scenario with other dimensions.
        """
        return load_agent_of(cls, path, env, device)


def _override(preset: AgentConfig, settings: dict[str, Any]) -> AgentConfig:
    """A preset with fields changed, and options of networks under their own names."""
    fields = {field.name for field in dataclasses.fields(AgentConfig)}
    options = {name: value for name, value in settings.items() if name not in fields}
    changed = {name: value for name, value in settings.items() if name in fields}
    if options:
        wanted = changed.get("architecture", preset.architecture)
        known = {**list_network_options(), **list_network_options(wanted)}
        unknown = sorted(set(options) - set(known))
        if unknown:
            allowed = sorted(fields | set(known))
            raise TypeError(f"unknown setting(s) {unknown}; allowed are {allowed}")
        changed["options"] = {**changed.get("options", preset.options), **options}
    return dataclasses.replace(preset, **changed)
