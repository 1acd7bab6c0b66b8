"""What all learning agents share: networks, training, saving and loading."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from isac_gym.agents.conditions import ConditionGrid, Conditions
from isac_gym.agents.config import PRESETS, AgentConfig
from isac_gym.agents.duals import DualVariables, make_duals
from isac_gym.agents.losses import TrainingLoss
from isac_gym.agents.networks import DirectPolicy, ModelBasedPolicy
from isac_gym.agents.pretrained import pretrained_path
from isac_gym.agents.serialization import read_archive, write_archive
from isac_gym.agents.trainer import Callback, TrainingSettings, check_checkpoint, reporting, train
from isac_gym.agents.unfolded import UnfoldedPolicy
from isac_gym.channels import ChannelModel, ChannelProcess
from isac_gym.policy import SystemPolicy
from isac_gym.scenario import Scenario
from isac_gym.system import ISACSystem, system_of, torch_device
from isac_gym.validation import integer

__all__ = ["LearningAgent"]

_Self = TypeVar("_Self", bound="LearningAgent")

# What the numbers of observations and actions mean; an agent can meet another SNR or threshold.
_KINDS: Final = ("control", "radar", "scheduling")
_DIMENSIONS: Final = (
    "num_users",
    "num_comm_antennas",
    "num_radar_antennas",
    "num_cells",
    "precoder_directions",
    "num_radar_streams",
)
_CHUNK: Final = 1024
_LARGEST_SIZE: Final = 1024
"""Of a scenario in a file: what is made of it grows with the square and more."""
_LEAST_SHARE: Final = 64
"""Observations a thread below which a batch is not shared out."""
_LOG_MULTIPLIERS: Final = (-5.0, 9.0)


class LearningAgent(SystemPolicy):
    """Base of agents that are trained: a network, its multipliers, and what trains them.

    Args:
        env: Environment, single, batched or wrapped, whose scenario and channel model are used.
        preset: Name of a preset (see :data:`~isac_gym.agents.config.PRESETS`).
        seed: Seed of the initial weights and of the training channels.
        device: Torch device, or ``"auto"`` for CUDA if present.
        **settings: Fields of :class:`~isac_gym.agents.config.AgentConfig` to change.

    Raises:
        ValueError: If there is no such preset, or a setting is not allowed.
        TypeError: If a setting is not a field.

    Attributes:
        config: The settings.
        network: The network.
        duals: The multipliers.
    """

    kind: ClassVar[str]
    saved_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of the class beyond the settings that are saved, attributes by the same name."""
    network: DirectPolicy | ModelBasedPolicy | UnfoldedPolicy

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
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
        known = {field.name for field in dataclasses.fields(AgentConfig)}
        if not set(settings) <= known:
            raise TypeError(
                f"unknown setting(s) {sorted(set(settings) - known)}; allowed are {sorted(known)}"
            )
        self.config = self._adapted(dataclasses.replace(PRESETS[preset], **settings))
        self.title = f"{self.kind}, {preset}"
        self.seed = integer("seed", seed, 0)
        chosen = torch_device(device)
        if chosen != self.system.device:
            self.system = ISACSystem(self.scenario, device=chosen)
        self._model: ChannelModel = env.unwrapped.channel_model
        self._rng = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self.network = self._make_network()
        self.network.to(self.system.device)
        config = self.config
        self.grid: ConditionGrid | None = None
        if config.snr_range_db is not None or config.threshold_range is not None:
            self.grid = ConditionGrid(self.scenario, config.snr_range_db, config.threshold_range)
        self.duals: DualVariables = make_duals(
            config.dual_rule,
            list(self.system.limits),
            self.scenario.num_cells,
            config.dual_step_size,
            gain=config.dual_gain,
            initial={"sensing": config.initial_multiplier},
            points=None if self.grid is None else self.grid.size,
            device=self.system.device,
        )
        self._calibrated: Tensor | None = None
        self._beside: set[Path] = set()

    @property
    def channel_model(self) -> ChannelModel:
        """How the channels of the training are drawn."""
        return self._model

    def _adapted(self, config: AgentConfig) -> AgentConfig:
        """The settings as this agent uses them."""
        return config

    @property
    def architecture(self) -> str:
        """The architecture in use, which for ``control="amplitude"`` is always direct."""
        return "direct" if self.scenario.control == "amplitude" else self.config.architecture

    def _make_network(self) -> DirectPolicy | ModelBasedPolicy | UnfoldedPolicy:
        config, users = self.config, self.scenario.num_users
        if self.architecture == "unfolded":
            return UnfoldedPolicy(self.system, self._generator, config.width, config.stages)
        sizes = config.hidden_sizes or (2 * users, 3 * users, 2 * users)
        kind = ModelBasedPolicy if self.architecture == "model_based" else DirectPolicy
        return kind(self.system, sizes, self._generator)

    def _prepare(self, progress_bar: bool, checkpoint: Path | None, checkpoint_every: int) -> None:
        """Whatever has to be there before the training.

        What it keeps beside the checkpoint it adds to ``_beside``.
        """

    def forget_checkpoint(self, checkpoint: Path) -> None:
        """Remove the checkpoint of a training that :meth:`learn` has ended.

        Args:
            checkpoint: The file; what this agent's training kept beside it goes as well, and
                nothing else.
        """
        checkpoint.unlink(missing_ok=True)
        for path in self._beside:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._beside.clear()

    @abstractmethod
    def _loss(self) -> TrainingLoss:
        """What the training minimises."""

    def _identity(self) -> dict[str, Any]:
        """What tells this training from others, as plain JSON types."""
        return {
            "agent": self.kind,
            "config": self.config.to_dict(),
            "seed": self.seed,
            "scenario": self.scenario.to_dict(),
            "channel_model": _described(self._model),
        }

    def learn(
        self: _Self,
        iterations: int | None = None,
        *,
        progress_bar: bool = False,
        callback: Callback | None = None,
        tensorboard_log: str | Path | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
    ) -> _Self:
        """Train.

        Args:
            iterations: Gradient steps; None means those of the settings.
            progress_bar: Whether to show a bar with rate, constraints and multipliers.
            callback: Called with a :class:`~isac_gym.agents.trainer.TrainingProgress` after every
                iteration; returning False ends the training. :mod:`isac_gym.agents.callbacks` has
                some, for evaluation, snapshots and stopping on convergence.
            tensorboard_log: Folder for TensorBoard, or None.
            checkpoint: File to save to as training goes, and to go on from if it exists.
            checkpoint_every: Iterations between two savings.

        Returns:
            The agent itself.

        Raises:
            TrainingError: If the loss or a gradient is not finite, or the gradient vanishes.
            CheckpointError: If the checkpoint is damaged, or of another training.
            ImportError: If TensorBoard is asked for and not installed.
        """
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
        with reporting(progress_bar, tensorboard_log, callback, self.title) as report:
            path = None if checkpoint is None else Path(checkpoint)
            if path is not None:
                check_checkpoint(path, LearningAgent._identity(self))
            self._prepare(progress_bar, path, checkpoint_every)
            loss = self._loss()
            report.begin()
            self._calibrated = None  # the policy meets the multipliers of the training
            train(
                self.network,
                loss,
                settings,
                rng=self._rng,
                identity=self._identity(),
                callback=report,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
            )
        if config.calibration_channels and self.is_priced:
            self.calibrate(config.calibration_channels)
        return self

    @property
    def is_priced(self) -> bool:
        """Whether the policy answers to a price on the sensing loss, at its inputs."""
        return (
            isinstance(self.network, UnfoldedPolicy)
            and self.scenario.radar == "learned"
            and self.config.dual_rule != "none"
        )

    @property
    def multiplier(self) -> Tensor:
        """Multiplier of L_r/ε - 1 at each station, (J,), in bit/s/Hz: what the policy acts on."""
        if self._calibrated is not None:
            return self._calibrated
        if self.grid is None:
            value = self.duals.values["sensing"]
            relative = self.config.relative_constraints
            return value if relative else value * self.scenario.sensing_threshold
        point = self.grid.weights([self.scenario.snr_db], [self.scenario.sensing_threshold])
        return self.duals.at("sensing", point.to(self.system.device))[0]

    @torch.inference_mode()
    def calibrate(
        self, channels: int = 2048, *, seed: int = 0, margin: float = 1e-3
    ) -> tuple[float, ...]:
        """Settle the price of the sensing loss: the one at which its mean over channels is ε.

        The weights stay as they are. It adapts an agent to another SNR, threshold, or number of
        users or antennas than it was trained for, and takes seconds.

        Args:
            channels: How many channels of the environment's model to take the mean over.
            seed: Their seed.
            margin: Relative distance below ε to aim at.

        Returns:
            The multipliers of L_r/ε - 1, one a station, in bit/s/Hz; 0 where ε does not bind.

        Raises:
            ValueError: If the policy has no price, or none keeps ε.
        """
        if not self.is_priced:
            raise ValueError(
                "calibrate needs architecture 'unfolded' with a learned radar and multipliers, "
                f"got {self.architecture!r}, {self.scenario.radar!r} and {self.config.dual_rule!r}"
            )
        from scipy.optimize import brentq

        process = ChannelProcess(self._model, self.scenario, integer("channels", channels, 1))
        process.start(np.random.default_rng((0xCA11B, integer("seed", seed, 0))))
        parts = torch.from_numpy(self.system.codec.observation(process.estimates)).split(_CHUNK)
        cells = self.scenario.num_cells
        found = torch.zeros(cells, device=self.system.device)

        def excess(multiplier: float) -> Tensor:
            """Mean of L_r/ε - 1 at every station, each at the same multiplier."""
            given = torch.full((cells,), multiplier)
            losses = []
            for part in parts:
                moved = part.to(self.system.device)
                action = self.network(moved, Conditions.of(self.system, len(moved), given))
                streams = self.system.codec.decode(action, self.system.codec.channels(moved))
                losses.append(self.system.sensing(streams.streams @ streams.streams.mH).total)
            return torch.cat(losses).double().mean(0) / self.scenario.sensing_threshold - 1.0

        known: dict[float, Tensor] = {}
        for cell in range(cells):

            def of_cell(log_multiplier: float, cell: int = cell) -> float:
                if log_multiplier not in known:
                    known[log_multiplier] = excess(float(np.exp(log_multiplier)))
                return float(known[log_multiplier][cell]) + margin

            lowest, highest = _LOG_MULTIPLIERS
            guess = float(self.multiplier[cell].clamp_min(1e-3).log().clamp(lowest, highest))
            # Outwards from what the training found: the policy is at its best, and monotone, there.
            low = high = guess
            width = 0.1
            while of_cell(high) > 0.0 and high < highest:
                low, high = high, min(high + width, highest)
                width *= 2.0
            while of_cell(low) <= 0.0 and low > lowest:
                low, high = max(low - width, lowest), low
                width *= 2.0
            if of_cell(low) <= 0.0:
                continue
            if of_cell(high) > 0.0:
                raise ValueError(
                    f"sensing_threshold must be kept by the policy's mean at some price, got "
                    f"{self.scenario.sensing_threshold!r}, which no multiplier up to "
                    f"{np.exp(high):.0f} does"
                )
            found[cell] = float(np.exp(brentq(of_cell, low, high, xtol=2e-3)))
        self._calibrated = found.clone()
        return tuple(found.tolist())

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """See :meth:`SystemPolicy.act`."""
        workers = torch.get_num_threads()
        if self.system.device.type != "cpu" or len(observation) < workers * _LEAST_SHARE:
            return self._answers(observation)
        # Shares of the batch side by side, each in one thread: small operations gain nothing from
        # threads of their own, which would spin against the compiled loops'.
        return torch.cat(
            list(_pool(workers, os.getpid()).map(self._answers, observation.chunk(workers)))
        )

    @torch.inference_mode()
    def _answers(self, observation: Tensor) -> Tensor:
        conditions = Conditions.of(self.system, len(observation), self.multiplier)
        output: Tensor = self.network(observation, conditions)
        return output

    def save(self, path: str | Path, **notes: str) -> None:
        """Save settings, weights and multipliers; the file appears whole or not at all.

        Args:
            path: File, by custom with the ending ``.zip``.
            **notes: What else to write into it, for people.
        """
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"duals.{name}": value for name, value in self.duals.state_dict().items()}
        if self._calibrated is not None:
            tensors["calibrated"] = self._calibrated
        meta = {
            "kind": self.kind,
            "config": self.config.to_dict(),
            "options": {name: getattr(self, name) for name in self.saved_options},
            "seed": self.seed,
            "scenario": self.scenario.to_dict(),
            "channel_model": _described(self._model),
            "notes": notes,
        }
        write_archive(path, meta, tensors)

    @classmethod
    def load(cls: type[_Self], path: str | Path, env: Any = None, *, device: str = "auto") -> _Self:
        """Load a saved agent; executes nothing from the file.

        A policy over the graph of the users also serves other numbers of users and antennas. Where
        the scenario or the channel model is not the one it was saved for, its price is settled anew
        (:meth:`calibrate`), which takes seconds.

        Args:
            path: File written by :meth:`save`, or ``"pretrained:NAME"`` for an agent that comes
                with the package.
            env: Environment to act in; observations and actions must mean what they meant. None
                means one of the scenario that the agent was saved for.
            device: Torch device, or ``"auto"`` for CUDA if present.

        Returns:
            The agent.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or foreign, or of a scenario with other dimensions.
        """
        path = pretrained_path(path)
        meta, tensors = read_archive(path, cls.kind)
        weights = _part(tensors, "network.")
        try:
            config = AgentConfig(**meta["config"]).to_dict()
            if set(meta["config"]) != set(config):
                raise ValueError(f"config must have the fields {sorted(config)}")
            options = meta["options"]
            if not isinstance(options, dict) or set(options) != set(cls.saved_options):
                raise ValueError(f"options must be {sorted(cls.saved_options)}")
            seed = integer("seed", meta["seed"], 0)
            scenario = Scenario.from_dict(meta["scenario"])
            if not isinstance(meta["channel_model"], str):
                raise ValueError("channel_model must be a string")
            _check_sizes(config, scenario, weights)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a saved {cls.kind}, or damaged ({error!r})") from error
        if env is None:
            import gymnasium as gym

            env = gym.make("ISAC-MISO-v0", scenario=scenario)
        own = system_of(env).scenario
        model = _described(env.unwrapped.channel_model)
        same = own == scenario and model == meta["channel_model"]
        # The multipliers of a range of conditions mean nothing where more than these differs.
        kept = scenario == dataclasses.replace(
            own, snr_db=scenario.snr_db, sensing_threshold=scenario.sensing_threshold
        )
        if not kept:
            config |= {"snr_range_db": None, "threshold_range": None}
        try:
            agent = cls(env, "paper", seed=seed, device=device, **options, **config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        agent.title = f"{cls.kind}, loaded"
        flexible = isinstance(agent.network, UnfoldedPolicy)
        for name in _KINDS if flexible else (*_KINDS, *_DIMENSIONS):
            saved, met = getattr(scenario, name), getattr(own, name)
            if saved != met:
                raise ValueError(
                    f"{path}: saved for another scenario, with {name}={saved!r}; the environment "
                    f"has {met!r}"
                )
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise ValueError(f"{path}: damaged, holds weights that are not finite")
        try:
            agent.network.load_state_dict(weights)
            if kept or not flexible:
                agent.duals.load_state_dict(_part(tensors, "duals."))
            calibrated = tensors.get("calibrated")
            if same and calibrated is not None:
                if calibrated.shape != (scenario.num_cells,):
                    raise ValueError(f"calibrated has shape {tuple(calibrated.shape)}")
                agent._calibrated = calibrated.to(agent.system.device)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: damaged ({error})") from error
        if agent.grid is not None and not agent.grid.covers(own):
            warnings.warn(
                f"{path}: trained for snr_range_db={config['snr_range_db']} and threshold_range="
                f"{config['threshold_range']}, the environment has snr_db={own.snr_db:g} and "
                f"sensing_threshold={own.sensing_threshold:g}",
                stacklevel=2,
            )
        if agent.is_priced and not same:
            agent.calibrate()
        return agent


@lru_cache(maxsize=2)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process in which torch uses one thread each."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=f"isac-gym-agent-{process}")
    meeting = threading.Barrier(workers)

    def single_threaded() -> None:
        meeting.wait()  # so that each thread takes one
        torch.set_num_threads(1)

    for started in [pool.submit(single_threaded) for _ in range(workers)]:
        started.result()
    # One is now also what threads made later begin with. Setting it back would make a training
    # three times slower: its backward thread would have a team of its own, spinning beside.
    return pool


def _described(model: ChannelModel) -> str:
    """Its representation; of a class without one, which would state an address, the name."""
    kind = type(model)
    return kind.__qualname__ if kind.__repr__ is object.__repr__ else repr(model)


def _check_sizes(
    config: Mapping[str, Any], scenario: Scenario, weights: Mapping[str, Tensor]
) -> None:
    """That settings and scenario fit the tensors, before anything of their size is made.

    Raises:
        ValueError: If they do not.
        KeyError: If a tensor is missing.
    """
    largest = max(
        scenario.num_users,
        scenario.num_comm_antennas,
        scenario.num_radar_antennas,
        scenario.num_cells,
    )
    if largest > _LARGEST_SIZE:
        raise ValueError(f"no number of users, antennas or cells may exceed {_LARGEST_SIZE}")
    if config["architecture"] == "unfolded" and scenario.control != "amplitude":
        steps = [2 * count for _, count in config["stages"]]
        if len(weights["entry.weight"]) != config["width"]:
            raise ValueError(f"width {config['width']} is not the file's")
        if [len(weights[f"pace.{stage}.weight"]) for stage in range(len(steps))] != steps:
            raise ValueError(f"stages {config['stages']} are not the file's")
        return
    for layer, size in enumerate(config["hidden_sizes"] or ()):
        if len(weights[f"body.layers.{layer}.weight"]) != size:
            raise ValueError(f"hidden_sizes {config['hidden_sizes']} are not the file's")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    def items() -> Iterator[tuple[str, Tensor]]:
        for name, value in tensors.items():
            if name.startswith(prefix):
                yield name.removeprefix(prefix), value

    return dict(items())
