"""Primal-dual learning without labels: Algorithm 1 of the paper, and the same without the dual."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from isac_gym.agents.config import AgentConfig
from isac_gym.agents.learner import LearningAgent
from isac_gym.agents.losses import Lagrangian, TrainingLoss

__all__ = ["NoDual", "PrimalDual"]


class PrimalDual(LearningAgent):
    """A network trained without labels to maximise the rate under expected constraints.

    Minimises -E[spectral efficiency] + Σ λ·E[constraint] over the network's weights by Adam and
    raises the multipliers λ by projected ascent, equations (17)-(22) with the signs made
    consistent. Power enters through its multiplier with ``power_limit="cost"``; with
    ``"project"`` it cannot be exceeded and its multiplier stays zero.

    Arguments, errors and attributes are those of
    :class:`~isac_gym.agents.learner.LearningAgent`.
    """

    kind: ClassVar[str] = "PrimalDual"

    def _loss(self) -> TrainingLoss:
        config = self.config
        return Lagrangian(
            self.system,
            self._model,
            config.batch_size,
            self.duals,
            relative=config.relative_constraints,
            step_size=config.dual_step_size,
            final_step_size=config.final_dual_step_size,
            grid=self.grid,
        )


class NoDual(PrimalDual):
    """The same learning with all multipliers held at zero: the highest rate, constraints ignored.

    The paper's “unsupervised learning (no dual)”. Arguments, errors and attributes are those of
    :class:`~isac_gym.agents.learner.LearningAgent`.
    """

    kind: ClassVar[str] = "NoDual"

    def _adapted(self, config: AgentConfig) -> AgentConfig:
        return dataclasses.replace(config, dual_rule="none")
