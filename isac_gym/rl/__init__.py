"""Constrained reinforcement learning: Lagrangian forms of the algorithms of Stable-Baselines3."""

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise ImportError(
        "constrained reinforcement learning needs Stable-Baselines3: pip install 'isac-gym[rl]'"
    ) from error

from typing import Any

from isac_gym.rl.entries import read_entries
from isac_gym.rl.multipliers import PIDMultiplier, PlainMultiplier
from isac_gym.rl.ppo import PPOLagrangian
from isac_gym.rl.sac import OffPolicyLagrangian, SACLagrangian

__all__ = [
    "OffPolicyLagrangian",
    "PIDMultiplier",
    "PPOLagrangian",
    "PlainMultiplier",
    "SACLagrangian",
    "TQCLagrangian",
    "read_entries",
]


def __getattr__(name: str) -> Any:
    """``TQCLagrangian``, imported only where it is asked for, because it needs sb3-contrib."""
    if name == "TQCLagrangian":
        from isac_gym.rl.tqc import TQCLagrangian

        return TQCLagrangian
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
