"""What a result was computed with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import torch

from isac_gym.registry import CHANNELS, CONSTRAINTS
from isac_gym.system.downlink import find_system

__all__ = ["provenance"]

_PACKAGES: Final = ("isac-gym", "torch", "numpy", "gymnasium")


def provenance(env: Any) -> dict[str, Any]:
    """Scenario, channel model, constraints, versions, threads and device, as plain JSON types.

    Args:
        env: Environment, single, batched or wrapped, that the result is for.

    Raises:
        TypeError: If ``env`` is no ISAC environment.
    """
    system = find_system(env)
    return {
        "scenario": system.scenario.to_dict(),
        "channel_model": CHANNELS.describe(env.unwrapped.channel_model),
        "constraints": [CONSTRAINTS.describe(each) for each in system.constraints.values()],
        "versions": {package: _find_version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "device": str(system.device),
    }


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
