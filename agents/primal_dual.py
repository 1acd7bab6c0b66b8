"""Primal-dual learning without labels: Algorithm 1 of the paper, and the same without the dual."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

from isac_gym.learning.agent import LearningAgent
from isac_gym.learning.config import AgentConfig
from isac_gym.learning.losses import Lagrangian, Mixture, TrainingLoss
from isac_gym.learning.multipliers import Multipliers
from isac_gym.registry import register_agent
from isac_gym.system.downlink import ISACSystem

__all__ = ["NoDual", "PrimalDual"]


@register_agent(
    "primal-dual-paper",
    "primal-dual learning to the letter of the paper",
    options={"preset": "paper"},
    observations=("channels", "features"),
    learns=True,
    rank=60,
)
@register_agent(
    "primal-dual",
    "primal-dual learning, unfolded policy",
    options={"preset": "tuned"},
    observations=("channels", "features"),
    learns=True,
    most_cells=1,
    rank=61,
)
@register_agent(
    "primal-dual-wide",
    "the same for a range of SNR and thresholds",
    options={"preset": "wide"},
    controls=("power", "beamforming"),
    radars=("learned",),
    learns=True,
    is_default=False,
    rank=62,
)
@register_agent(
    "primal-dual-model-based",
    "primal-dual learning, fully connected network with model-based outputs",
    options={"preset": "model-based"},
    controls=("power", "beamforming"),
    learns=True,
    is_default=False,
    rank=63,
)
class PrimalDual(LearningAgent):
    """A network trained without labels to maximise the rate under expected constraints.

    Minimises -E[spectral efficiency] + Σ λ·E[constraint] over the network's weights by Adam and
    raises the multipliers λ by projected ascent, equations (17)-(22) with the signs made
    consistent. Power enters through its multiplier with ``power_limit="cost"``; with
    ``"project"`` it cannot be exceeded and its multiplier stays zero.

    It is made like every :class:`~isac_gym.learning.agent.LearningAgent`.
    """

    kind: ClassVar[str] = "PrimalDual"

    def _make_loss(self) -> TrainingLoss:
        own = self._make_lagrangian(self.system, self.multipliers, self.config.batch_size)
        if not self.config.more_cells:
            return own
        parts: list[tuple[Lagrangian, ISACSystem | None]] = [(own, None)]
        for cells in self.config.more_cells:
            targets = itertools.islice(itertools.cycle(self.scenario.targets_by_cell), cells)
            scenario = self.scenario.replace(num_cells=cells, target_angles_deg=tuple(targets))
            system = ISACSystem(
                scenario,
                self.system.chosen_constraints,
                dtype=self.system.dtype,
                device=self.system.device,
            )
            # The same number of stations a batch.
            batch_size = max(1, self.config.batch_size * self.scenario.num_cells // cells)
            multipliers = self.make_multipliers(cells)
            parts.append((self._make_lagrangian(system, multipliers, batch_size), system))
        return Mixture(parts)

    def _make_lagrangian(
        self, system: ISACSystem, multipliers: Multipliers, batch_size: int
    ) -> Lagrangian:
        config = self.config
        return Lagrangian(
            system,
            self.channel_model,
            batch_size,
            multipliers,
            self.priced,
            relative=config.relative_constraints,
            step_size=config.dual_step_size,
            final_step_size=config.final_dual_step_size,
            grid=self.grid,
            gain_range=config.gain_range,
            price_spread=config.price_spread,
        )


@register_agent(
    "no-dual",
    "unfolded policy trained for the rate alone",
    options={"preset": "tuned"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=64,
)
@register_agent(
    "no-dual-paper",
    "the paper's network trained for the rate alone",
    options={"preset": "paper"},
    observations=("channels", "features"),
    learns=True,
    is_default=False,
    rank=65,
)
class NoDual(PrimalDual):
    """The same learning with all multipliers held at zero: the highest rate, constraints ignored.

    The paper's “unsupervised learning (no dual)”. It is made like every
    :class:`~isac_gym.learning.agent.LearningAgent`.
    """

    kind: ClassVar[str] = "NoDual"

    def _adapt(self, config: AgentConfig) -> AgentConfig:
        return dataclasses.replace(config, dual_rule="none")
