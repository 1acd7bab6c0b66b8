"""Cost dialects: the same environment for libraries that expect constraints in another form.

Those of this module wrap a single environment, those of the same names in
:mod:`isac_gym.envs.wrappers.vector` a vector environment, as in Gymnasium.
"""

from __future__ import annotations

from isac_gym.envs.wrappers.penalty import find_penalty_weight
from isac_gym.envs.wrappers.single import (
    EpisodeCostStatistics,
    PenalisedReward,
    SafetyGymnasium,
    VectorReward,
)

__all__ = [
    "EpisodeCostStatistics",
    "PenalisedReward",
    "SafetyGymnasium",
    "VectorReward",
    "find_penalty_weight",
]
