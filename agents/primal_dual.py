"""Primal-dual learning with a fully connected network: Algorithm 1 of the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from isac_gym.agents.duals import DualVariables
from isac_gym.agents.networks import DirectPolicy, ModelBasedPolicy
from isac_gym.agents.serialization import read_archive, write_archive
from isac_gym.agents.trainer import Callback, TrainingSettings, reporting, train
from isac_gym.policy import SystemPolicy
from isac_gym.scenario import Scenario
from isac_gym.system import ISACSystem, torch_device
from isac_gym.validation import choice, integer, not_allowed, real

__all__ = ["PRESETS", "PrimalDual", "PrimalDualConfig"]

_KIND = "PrimalDual"

# What the numbers of observations and actions mean; an agent can meet another SNR or threshold.
_MEANING = (
    "num_users",
    "num_comm_antennas",
    "num_radar_antennas",
    "num_cells",
    "control",
    "precoder_directions",
    "radar",
    "num_radar_streams",
    "scheduling",
)


@dataclasses.dataclass(frozen=True)
class PrimalDualConfig:
    """Settings of :class:`PrimalDual`.

    Attributes:
        hidden_sizes: Widths of the hidden layers; None means the paper's 2K, 3K, 2K.
        iterations: Gradient steps.
        batch_size: Channels a step.
        learning_rate: Initial step size of Adam.
        final_learning_rate: Step size at the end, reached by a cosine; None keeps it constant.
        dual_step_size: Step size η of the multipliers.
        gradient_clip: Largest norm of a gradient; None does not clip.
        relative_constraints: Whether the multipliers weigh excess/limit; otherwise plain excess.
        output: ``"direct"``: the network's outputs are the action. ``"model_based"``: they set a
            few numbers a user in formulas of known structure
            (:class:`~isac_gym.agents.networks.ModelBasedPolicy`); with ``control="amplitude"``,
            for which there is no such formula, they are the action all the same.

    Raises:
        ValueError: If a value is not allowed.
    """

    hidden_sizes: tuple[int, ...] | None = None
    iterations: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-4
    final_learning_rate: float | None = None
    dual_step_size: float = 1e-4
    gradient_clip: float | None = None
    relative_constraints: bool = False
    output: Literal["direct", "model_based"] = "direct"

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size"):
            integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "dual_step_size"):
            real(name, getattr(self, name), "a finite number > 0", lambda value: value > 0)
        for name in ("final_learning_rate", "gradient_clip"):
            if getattr(self, name) is not None:
                allowed = "None or a finite number >= 0"
                real(name, getattr(self, name), allowed, lambda value: value >= 0)
        choice("output", self.output, Literal["direct", "model_based"])
        if not isinstance(self.relative_constraints, bool):
            raise not_allowed("relative_constraints", self.relative_constraints, "True or False")
        if self.hidden_sizes is not None:
            allowed = "None or a non-empty sequence of integers >= 1"
            if not isinstance(self.hidden_sizes, Sequence) or not self.hidden_sizes:
                raise not_allowed("hidden_sizes", self.hidden_sizes, allowed)
            sizes = tuple(integer("hidden_sizes", size, 1) for size in self.hidden_sizes)
            object.__setattr__(self, "hidden_sizes", sizes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; they are keyword arguments of the class."""
        sizes = None if self.hidden_sizes is None else list(self.hidden_sizes)
        return {**dataclasses.asdict(self), "hidden_sizes": sizes}


PRESETS: Final[Mapping[str, PrimalDualConfig]] = {
    "paper": PrimalDualConfig(),
    "tuned": PrimalDualConfig(
        hidden_sizes=(256, 256),
        iterations=2000,
        batch_size=128,
        learning_rate=5e-3,
        final_learning_rate=1e-4,
        dual_step_size=0.2,
        gradient_clip=5.0,
        relative_constraints=True,
        output="model_based",
    ),
}
"""``paper``: the settings of Section V to the letter. ``tuned``: what works."""


class PrimalDual(SystemPolicy):
    """A network trained without labels to maximise the rate under expected constraints.

    Minimises -E[spectral efficiency] + Σ λ·E[constraint] over the network's weights by Adam and
    raises the multipliers λ by projected ascent, equations (17)-(22) with the signs made
    consistent. Power enters through its multiplier with ``power_limit="cost"``; with
    ``"project"`` it cannot be exceeded and its multiplier stays zero.

    Args:
        env: Environment, single, batched or wrapped, whose scenario and channel model are used.
        preset: Name of a preset (see :data:`PRESETS`).
        seed: Seed of the initial weights and of the training channels.
        device: Torch device, or ``"auto"`` for CUDA if present.
        **settings: Fields of :class:`PrimalDualConfig` to change.

    Raises:
        ValueError: If there is no such preset, or a setting is not allowed.
        TypeError: If a setting is not a field.

    Attributes:
        config: The settings.
        network: The network.
        duals: The multipliers.
    """

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
        known = {field.name for field in dataclasses.fields(PrimalDualConfig)}
        if not set(settings) <= known:
            raise TypeError(
                f"unknown setting(s) {sorted(set(settings) - known)}; allowed are {sorted(known)}"
            )
        self.config = dataclasses.replace(PRESETS[preset], **settings)
        self.title = f"primal-dual, {preset}"
        self.seed = integer("seed", seed, 0)
        chosen = torch_device(device)
        if chosen != self.system.device:
            self.system = ISACSystem(self.scenario, device=chosen)
        self._model = env.unwrapped.channel_model
        self._rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        users = self.scenario.num_users
        model_based = self.config.output == "model_based" and self.scenario.control != "amplitude"
        architecture = ModelBasedPolicy if model_based else DirectPolicy
        sizes = self.config.hidden_sizes or (2 * users, 3 * users, 2 * users)
        self.network: DirectPolicy | ModelBasedPolicy = architecture(self.system, sizes, generator)
        self.network.to(self.system.device)
        self.duals = DualVariables(
            list(self.system.limits),
            self.scenario.num_cells,
            self.config.dual_step_size,
            device=self.system.device,
        )

    def learn(
        self,
        iterations: int | None = None,
        *,
        progress_bar: bool = False,
        callback: Callback | None = None,
        tensorboard_log: str | Path | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
    ) -> PrimalDual:
        """Train.

        Args:
            iterations: Gradient steps; None means those of the settings.
            progress_bar: Whether to show a bar with rate, constraints and multipliers.
            callback: Called with a :class:`~isac_gym.agents.trainer.TrainingProgress` after every
                iteration; returning False ends the training.
            tensorboard_log: Folder for TensorBoard, or None.
            checkpoint: File to save to as training goes, and to go on from if it exists.
            checkpoint_every: Iterations between two savings.

        Returns:
            The agent itself.

        Raises:
            TrainingError: If the loss or a gradient is not finite.
            ImportError: If TensorBoard is asked for and not installed.
        """
        config = self.config
        if iterations is not None:
            config = dataclasses.replace(config, iterations=iterations)
        settings = TrainingSettings(
            iterations=config.iterations,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            final_learning_rate=config.final_learning_rate,
            gradient_clip=config.gradient_clip,
            relative_constraints=config.relative_constraints,
        )
        with reporting(progress_bar, tensorboard_log, callback, self.title) as report:
            train(
                self.network,
                self.system,
                self._model,
                self.duals,
                settings,
                rng=self._rng,
                identity={"config": config.to_dict(), "seed": self.seed},
                callback=report,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
            )
        return self

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """See :meth:`SystemPolicy.act`."""
        output: Tensor = self.network(observation)
        return output

    def save(self, path: str | Path) -> None:
        """Save settings, weights and multipliers; the file appears whole or not at all.

        Args:
            path: File, by custom with the ending ``.zip``.
        """
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"duals.{name}": value for name, value in self.duals.values.items()}
        meta = {
            "kind": _KIND,
            "config": self.config.to_dict(),
            "seed": self.seed,
            "scenario": self.scenario.to_dict(),
        }
        write_archive(path, meta, tensors)

    @classmethod
    def load(cls, path: str | Path, env: Any, *, device: str = "auto") -> PrimalDual:
        """Load a saved agent; executes nothing from the file.

        Args:
            path: File written by :meth:`save`.
            env: Environment to act in; observations and actions must mean what they meant.
            device: Torch device, or ``"auto"`` for CUDA if present.

        Returns:
            The agent.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or foreign, or of a scenario with other dimensions.
        """
        meta, tensors = read_archive(path, _KIND)
        weights = _part(tensors, "network.")
        try:
            config = PrimalDualConfig(**meta["config"]).to_dict()
            if set(meta["config"]) != set(config):
                raise ValueError(f"config must have the fields {sorted(config)}")
            for layer, size in enumerate(config["hidden_sizes"] or ()):
                # Before a network of that size is made: the file's own tensors bound it.
                if len(weights[f"body.layers.{layer}.weight"]) != size:
                    raise ValueError(f"hidden_sizes {config['hidden_sizes']} are not the file's")
            seed = integer("seed", meta["seed"], 0)
            scenario = Scenario.from_dict(meta["scenario"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a saved PrimalDual, or damaged ({error!r})") from error
        agent = cls(env, "paper", seed=seed, device=device, **config)
        for name in _MEANING:
            saved, own = getattr(scenario, name), getattr(agent.scenario, name)
            if saved != own:
                raise ValueError(
                    f"{path}: saved for another scenario, with {name}={saved!r}; the environment "
                    f"has {own!r}"
                )
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise ValueError(f"{path}: damaged, holds weights that are not finite")
        try:
            agent.network.load_state_dict(weights)
            agent.duals.load(_part(tensors, "duals."))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: damaged ({error})") from error
        return agent


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
