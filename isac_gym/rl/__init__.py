"""Constrained reinforcement learning: Lagrangian forms of the algorithms of Stable-Baselines3."""

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise ImportError(
        "constrained reinforcement learning needs Stable-Baselines3: pip install 'isac-gym[rl]'"
    ) from error

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
    "read_entries",
]
