"""Learning agents."""

from isac_gym.agents.config import PRESETS, AgentConfig
from isac_gym.agents.loading import load_agent
from isac_gym.agents.primal_dual import NoDual, PrimalDual
from isac_gym.agents.supervised import Supervised
from isac_gym.agents.transfer import TransferBeamforming

__all__ = [
    "PRESETS",
    "AgentConfig",
    "NoDual",
    "PrimalDual",
    "Supervised",
    "TransferBeamforming",
    "load_agent",
]
