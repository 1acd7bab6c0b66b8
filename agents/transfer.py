"""From power control to beamforming: solution 2 of the paper, equations (23)-(26)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import gymnasium as gym

from isac_gym.agents.primal_dual import PrimalDual
from isac_gym.learning.checkpoint import hash_tensors
from isac_gym.learning.saving import load_agent_of
from isac_gym.registry import register_agent
from isac_gym.validation import not_allowed

__all__ = ["TransferAgent", "TransferBeamforming"]

_Self = TypeVar("_Self", bound="TransferAgent")

# What inputs, outputs and multipliers mean: the same for both agents.
_SCENARIO: Final = (
    "radar",
    "scheduling",
    "num_users",
    "num_comm_antennas",
    "num_radar_antennas",
    "num_radar_streams",
    "num_cells",
)
_MULTIPLIERS: Final = ("dual_rule", "relative_constraints", "snr_range_db", "threshold_range")


class TransferAgent(PrimalDual):
    """Base of agents whose beamformer takes over a trained power-control agent.

    A subclass says in its constructor, by :meth:`_plan_transfer`, that it does.

    Attributes:
        source: The power-control agent that was taken over; None if there is none yet.
        unfreeze: Whether all layers are trained, not the output layers alone.
    """

    source: PrimalDual | None = None
    unfreeze: bool = False
    _source_env: Any = None
    _is_loaded = False

    def _plan_transfer(
        self,
        source: PrimalDual | str | Path | None,
        preset: str,
        settings: dict[str, Any],
        device: str,
    ) -> None:
        """Train by transfer, from a given source or one that :meth:`learn` trains before.

        Args:
            source: Trained power-control agent, its file, or None.
            preset: Name of the preset of both trainings.
            settings: Settings changed in both.
            device: Torch device of the source.

        Raises:
            ValueError: If the source is no power-control agent of the same dimensions and
                architecture.
        """
        self._preset, self._settings, self._device = preset, settings, device
        self._source_env = gym.make(
            "ISAC-MISO-v0",
            scenario=dataclasses.replace(self.scenario, control="power"),
            channel_model=self.channel_model,
            constraints=self.system.chosen_constraints,
        )
        if source is not None:
            if not isinstance(source, PrimalDual):
                source = self._source_kind().load(source, self._source_env, device=device)
            self.take_over(source)

    @classmethod
    def _source_kind(cls) -> type[PrimalDual]:
        """Class of the power-control agent."""
        return PrimalDual

    def take_over(self, source: PrimalDual) -> None:
        """Replace the network by that of a trained agent, with a new output layer.

        Args:
            source: The power-control agent.

        Raises:
            ValueError: If it has another control mode, dimensions or architecture.
        """
        if source.scenario.control != "power":
            raise not_allowed("source", source.scenario.control, "an agent of control 'power'")
        for name in _SCENARIO:
            theirs, own = getattr(source.scenario, name), getattr(self.scenario, name)
            if theirs != own:
                raise ValueError(f"source must be an agent for {name}={own!r}, got {theirs!r}")
        if source.architecture != self.architecture:
            raise ValueError(
                f"source must be an agent of architecture {self.architecture!r}, got "
                f"{source.architecture!r}"
            )
        priced = "none" not in (source.config.dual_rule, self.config.dual_rule)
        for name in _MULTIPLIERS if priced else ():
            theirs, own = getattr(source.config, name), getattr(self.config, name)
            if theirs != own:
                raise ValueError(f"source must be an agent with {name}={own!r}, got {theirs!r}")
        new, given = self.network.state_dict(), source.network.state_dict()
        outputs = self._list_outputs()
        hidden = set(new) - outputs
        if set(given) != set(new) or any(given[n].shape != new[n].shape for n in hidden):
            raise ValueError(
                "source must be an agent with layers of the same sizes, got "
                f"options={source.config.options!r}"
            )
        codec = self.system.codec
        kept = codec.radar_size + codec.access_size
        for name in hidden:
            new[name] = given[name].clone()
        if self.network.outputs_are_actions and kept:
            for name in outputs:
                # What follows the precoder in a station's part of an action means what it meant.
                part = given[name].unflatten(0, (-1, source.system.codec.station_size))
                new[name].unflatten(0, (-1, codec.station_size))[:, -kept:] = part[:, -kept:]
        self.network.load_state_dict(new)
        self.source = source
        if priced:
            self.multipliers.load_state_dict(source.multipliers.state_dict())
        self._freeze()

    def _freeze(self) -> None:
        """Let only those parameters require a gradient that are trained."""
        outputs = self._list_outputs()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self.unfreeze or name in outputs)

    @classmethod
    def load(cls: type[_Self], path: str | Path, env: Any = None, *, device: str = "auto") -> _Self:
        """See :meth:`LearningAgent.load`; a further training goes on from the saved weights."""
        agent = load_agent_of(cls, path, env, device)
        agent._is_loaded = True
        return agent

    def _identify(self) -> dict[str, Any]:
        source = hash_tensors({} if self.source is None else self.source.network.state_dict())
        return {**super()._identify(), "unfreeze": self.unfreeze, "source": source}

    def _list_outputs(self) -> set[str]:
        """Names of the parameters of the output layers."""
        own = {id(value) for layer in self.network.output_layers() for value in layer.parameters()}
        return {name for name, value in self.network.named_parameters() if id(value) in own}

    def _prepare(
        self, progress_bar: bool, checkpoint: Path | None, intervals: Mapping[str, Any]
    ) -> None:
        """Train the source if there is none yet, and take it over."""
        if self._source_env is None:
            return
        if self.source is None and not self._is_loaded:
            agent = self._source_kind()(
                self._source_env,
                self._preset,
                seed=self.seed,
                device=self._device,
                **self._settings,
            )
            agent.title = f"{self.title}: power control"
            own = None
            if checkpoint is not None:
                own = checkpoint.with_suffix(".source.zip")
                self._companions.add(own)
            agent.learn(progress_bar=progress_bar, checkpoint=own, **intervals)
            self.take_over(agent)
        self._freeze()


@register_agent(
    "transfer-beamforming",
    "unfolded policy, from power control to beamforming",
    options={"preset": "tuned"},
    controls=("beamforming",),
    learns=True,
    is_default=False,
    rank=68,
)
@register_agent(
    "transfer-beamforming-paper",
    "the paper's network, from power control to beamforming",
    options={"preset": "paper"},
    controls=("beamforming",),
    learns=True,
    is_default=False,
    rank=69,
)
class TransferBeamforming(TransferAgent):
    """A beamformer that takes over a trained power-control agent and learns a new output layer.

    The output layer is replaced by a new linear one, of 2·M_C·K elements for the precoder; where
    the radar is learned, its outputs keep the weights that they had. That layer is trained by the
    same primal-dual loop, the others stay as they are unless ``unfreeze``. Of the unfolded policy
    the layers that set λ, p and the corrections are trained.

    Args:
        env: Environment with ``control="beamforming"``, single, batched or wrapped.
        preset: Name of a preset (see :data:`~isac_gym.learning.config.PRESETS`), of the same
            architecture as the source's; both trainings follow it.
        source: Trained power-control agent, its file, or None: it is trained by
            :meth:`learn` before the transfer, with a checkpoint of its own beside that of the
            transfer. Callbacks see the transfer alone.
        unfreeze: Whether all layers are trained.
        seed: Seed of the new layer's weights and of the training channels.
        device: Torch device, or ``"auto"`` for CUDA if present.
        **settings: Fields of :class:`~isac_gym.learning.config.AgentConfig` to change.

    Raises:
        ValueError: If the control is not ``"beamforming"``, the source is no power-control agent of
            the same dimensions and architecture, or a setting is not allowed.
    """

    kind: ClassVar[str] = "TransferBeamforming"
    saved_options: ClassVar[tuple[str, ...]] = ("unfreeze",)

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
        self._plan_transfer(source, preset, settings, device)
