"""isac-gym: integrated sensing and communication as a Gymnasium environment.

Importing the package registers the environment ids with Gymnasium and nothing else: torch is
loaded when an environment is made, Stable-Baselines3 only by what needs it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import gymnasium as _gymnasium

if TYPE_CHECKING:
    from isac_gym.channels.base import ChannelModel
    from isac_gym.channels.gauss_markov import GaussMarkovChannel
    from isac_gym.channels.rayleigh import RayleighChannel
    from isac_gym.channels.recorded import FileChannels
    from isac_gym.channels.rician import RicianChannel
    from isac_gym.envs.batched import ISACVectorEnv
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


def __dir__() -> list[str]:
    return sorted(__all__)


_gymnasium.register(
    id="ISAC-MISO-v0",
    entry_point="isac_gym.envs.single:ISACEnv",
    vector_entry_point="isac_gym.envs.batched:ISACVectorEnv",
)
