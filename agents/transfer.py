"""From power control to beamforming: solution 2 of the paper, equations (23)-(26)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym

from isac_gym.agents.primal_dual import PrimalDual
from isac_gym.agents.trainer import Callback
from isac_gym.validation import not_allowed

__all__ = ["TransferBeamforming"]


class TransferBeamforming(PrimalDual):
    """A beamformer that takes over a trained power-control agent and learns a new output layer.

    The output layer is replaced by a new linear one, of 2·M_C·K elements for the precoder; where
    the radar is learned, its outputs keep the weights that they had. That layer is trained by the
    same primal-dual loop, the others stay as they are unless ``unfreeze``. Of the unfolded policy
    the layers that set λ, p and the corrections are trained.

    Args:
        env: Environment with ``control="beamforming"``, single, batched or wrapped.
        preset: Name of a preset (see :data:`~isac_gym.agents.config.PRESETS`), of the same
            architecture as the source's; both trainings follow it.
        source: Trained power-control agent, its file, or None: it is trained by
            :meth:`learn` before the transfer.
        unfreeze: Whether all layers are trained.
        seed: Seed of the new layer's weights and of the training channels.
        device: Torch device, or ``"auto"`` for CUDA if present.
        **settings: Fields of :class:`~isac_gym.agents.config.AgentConfig` to change.

    Raises:
        ValueError: If the control is not ``"beamforming"``, the source is no power-control agent of
            the same dimensions and architecture, or a setting is not allowed.
    """

    kind: ClassVar[str] = "TransferBeamforming"

    def __init__(
        self,
        env: Any,
        preset: str = "tuned",
        *,
        source: PrimalDual | str | Path | None = None,
        unfreeze: bool = False,
        seed: int = 0,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(env, preset, seed=seed, device=device, **settings)
        if self.scenario.control != "beamforming":
            raise not_allowed("control", self.scenario.control, "'beamforming' for the transfer")
        if not isinstance(unfreeze, bool):
            raise not_allowed("unfreeze", unfreeze, "True or False")
        self.unfreeze = unfreeze
        self._preset, self._settings, self._device = preset, settings, device
        self._source_env = gym.make(
            "ISAC-MISO-v0",
            scenario=dataclasses.replace(self.scenario, control="power"),
            channel_model=self._model,
        )
        self.source: PrimalDual | None = None
        if source is not None:
            if not isinstance(source, PrimalDual):
                source = PrimalDual.load(source, self._source_env, device=device)
            self.take_over(source)

    def take_over(self, source: PrimalDual) -> None:
        """Replace the network by that of a trained agent, with a new output layer.

        Args:
            source: The power-control agent.

        Raises:
            ValueError: If it has another control mode, dimensions or architecture.
        """
        if source.scenario.control != "power":
            raise not_allowed("source", source.scenario.control, "an agent of control 'power'")
        new, given = self.network.state_dict(), source.network.state_dict()
        outputs = self._output_names()
        hidden = set(new) - outputs
        fits = set(given) == set(new) and all(given[n].shape == new[n].shape for n in hidden)
        if not fits or source.architecture != self.architecture:
            dimensions = ("num_users", "num_comm_antennas", "num_radar_antennas")
            raise ValueError(
                "source must be an agent of the same architecture and dimensions, got "
                f"{source.architecture!r} with "
                + ", ".join(f"{name}={getattr(source.scenario, name)}" for name in dimensions)
            )
        codec, cells = self.system.codec, self.scenario.num_cells
        kept = codec.radar_size + codec.access_size
        for name in hidden:
            new[name] = given[name].clone()
        if self.architecture == "direct" and kept:
            for name in outputs:
                # What follows the precoder in a station's part of an action means what it meant.
                theirs = given[name].unflatten(0, (cells, -1))
                new[name].unflatten(0, (cells, -1))[:, -kept:] = theirs[:, -kept:]
        self.network.load_state_dict(new)
        self.source = source
        self.duals.load_state_dict(source.duals.state_dict())
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self.unfreeze or name in outputs)

    def _output_names(self) -> set[str]:
        """Names of the parameters of the output layers."""
        own = {id(value) for layer in self.network.output_layers() for value in layer.parameters()}
        return {name for name, value in self.network.named_parameters() if id(value) in own}

    def learn(
        self,
        iterations: int | None = None,
        *,
        progress_bar: bool = False,
        callback: Callback | None = None,
        tensorboard_log: str | Path | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
    ) -> TransferBeamforming:
        """Train the source if there is none yet, take it over, then train the new layer.

        Arguments, result and errors are those of
        :meth:`~isac_gym.agents.learner.LearningAgent.learn`; the callback sees the transfer alone.
        The training of the source has its own checkpoint beside.
        """
        if self.source is None:
            agent = PrimalDual(
                self._source_env,
                self._preset,
                seed=self.seed,
                device=self._device,
                **self._settings,
            )
            beside = None
            if checkpoint is not None:
                beside = Path(checkpoint).with_suffix(".source.zip")
            agent.title = f"{self.title}: power control"
            agent.learn(
                progress_bar=progress_bar, checkpoint=beside, checkpoint_every=checkpoint_every
            )
            self.take_over(agent)
        super().learn(
            iterations,
            progress_bar=progress_bar,
            callback=callback,
            tensorboard_log=tensorboard_log,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
        )
        return self
