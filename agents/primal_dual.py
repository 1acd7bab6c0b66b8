"""Primal-dual learning with a fully connected network: Algorithm 1 of the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
from isac_gym.system import ISACSystem

__all__ = ["PRESETS", "PrimalDual", "PrimalDualConfig"]

_KIND = "PrimalDual"


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
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        for name in ("learning_rate", "dual_step_size"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a finite number > 0, got {getattr(self, name)!r}")
        for name in ("final_learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be None or a finite number >= 0, got {value!r}")
        if self.output not in ("direct", "model_based"):
            raise ValueError(f"output must be 'direct' or 'model_based', got {self.output!r}")
        if self.hidden_sizes is not None:
            sizes = tuple(self.hidden_sizes)
            if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
                raise ValueError(
                    f"hidden_sizes must be None or integers >= 1, got {self.hidden_sizes!r}"
                )
            object.__setattr__(self, "hidden_sizes", sizes)


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
        self.seed = seed
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.device(device) != self.system.device:
            self.system = ISACSystem(self.scenario, device=device)
        self._model = env.unwrapped.channel_model
        self._rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        users = self.scenario.num_users
        model_based = self.config.output == "model_based" and self.scenario.control != "amplitude"
        architecture = ModelBasedPolicy if model_based else DirectPolicy
        sizes = self.config.hidden_sizes or (2 * users, 3 * users, 2 * users)
        self.network: DirectPolicy | ModelBasedPolicy = architecture(self.system, sizes, generator)
        self.network.to(self.system.device)
        constraints = ["power", "sensing"]
        if self.scenario.scheduling == "contention":
            constraints.append("scheduling")
        self.duals = DualVariables(
            constraints,
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
        settings = TrainingSettings(
            iterations=config.iterations if iterations is None else iterations,
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
                callback=report,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
            )
        return self

    def act(self, channels: Tensor, deterministic: bool) -> Tensor:
        """See :meth:`SystemPolicy.act`."""
        flat = channels.flatten(1)
        output: Tensor = self.network(torch.cat([flat.real, flat.imag], dim=1))
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
            "config": dataclasses.asdict(self.config),
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
        config = {**meta["config"]}
        if config["hidden_sizes"] is not None:
            config["hidden_sizes"] = tuple(config["hidden_sizes"])
        agent = cls(env, "paper", seed=meta["seed"], device=device, **config)
        weights = {
            name.removeprefix("network."): value
            for name, value in tensors.items()
            if name.startswith("network.")
        }
        try:
            agent.network.load_state_dict(weights)
            for name, value in agent.duals.values.items():
                value.copy_(tensors[f"duals.{name}"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{path}: saved for another scenario ({meta['scenario']}); {error}"
            ) from error
        return agent
