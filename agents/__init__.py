"""Learning agents: who acts after a training.

They import from :mod:`isac_gym.learning` and what lies below it; never from the baselines, which
they find by name, nor from what judges or runs them.
"""

from isac_gym.agents.distributed import DistributedPrimalDual, load_station
from isac_gym.agents.loading import load_agent
from isac_gym.agents.primal_dual import NoDual, PrimalDual
from isac_gym.agents.supervised import Supervised
from isac_gym.agents.transfer import TransferBeamforming
from isac_gym.learning.config import PRESETS, AgentConfig

__all__ = [
    "PRESETS",
    "AgentConfig",
    "DistributedPrimalDual",
    "NoDual",
    "PrimalDual",
    "Supervised",
    "TransferBeamforming",
    "load_agent",
    "load_station",
]
