"""isac-gym: integrated sensing and communication as a Gymnasium environment.

Importing the package registers the environment ids with Gymnasium and PettingZoo and nothing else:
torch is loaded when an environment is made, Stable-Baselines3 and PettingZoo only by what needs
them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import gymnasium as _gymnasium

from isac_gym.envs.registration import register_with_pettingzoo as _register_with_pettingzoo

if TYPE_CHECKING:
    from isac_gym.channels.base import ChannelModel
    from isac_gym.channels.gauss_markov import GaussMarkovChannel
    from isac_gym.channels.rayleigh import RayleighChannel
    from isac_gym.channels.recorded import FileChannels
    from isac_gym.channels.rician import RicianChannel
    from isac_gym.envs.batched import ISACVectorEnv
    from isac_gym.envs.parallel import ISACParallelEnv
    from isac_gym.envs.single import ISACEnv
    from isac_gym.scenario import Scenario

__all__ = [
    "ChannelModel",
    "FileChannels",
    "GaussMarkovChannel",
    "ISACEnv",
    "ISACVectorEnv",
    "RayleighChannel",
    "RicianChannel",
    "Scenario",
    "__version__",
    "parallel_env",
]

try:
    __version__ = version("isac-gym")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_LAZY = {
    "ChannelModel": "isac_gym.channels",
    "FileChannels": "isac_gym.channels",
    "GaussMarkovChannel": "isac_gym.channels",
    "ISACEnv": "isac_gym.envs.single",
    "ISACVectorEnv": "isac_gym.envs.batched",
    "RayleighChannel": "isac_gym.channels",
    "RicianChannel": "isac_gym.channels",
    "Scenario": "isac_gym.scenario",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def parallel_env(**settings: Any) -> ISACParallelEnv:
    """Make ``ISAC-MultiCell-v0``, PettingZoo's parallel environment with one agent a station.

    Args:
        **settings: Arguments of :class:`~isac_gym.envs.parallel.ISACParallelEnv`.

    Returns:
        The environment.

    Raises:
        ImportError: If PettingZoo is not installed (extra ``marl``).
    """
    from isac_gym.envs.parallel import ISACParallelEnv

    return ISACParallelEnv(**settings)


def __dir__() -> list[str]:
    return sorted(__all__)


_gymnasium.register(
    id="ISAC-MISO-v0",
    entry_point="isac_gym.envs.single:ISACEnv",
    vector_entry_point="isac_gym.envs.batched:make_vector_env",
)
_register_with_pettingzoo()
