"""Learning agents."""

from isac_gym.agents.primal_dual import PrimalDual, PrimalDualConfig

__all__ = ["PrimalDual", "PrimalDualConfig"]
