"""Loading a saved agent without knowing its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from isac_gym.agents.learner import LearningAgent
from isac_gym.agents.pretrained import pretrained_path
from isac_gym.agents.primal_dual import NoDual, PrimalDual
from isac_gym.agents.serialization import read_kind
from isac_gym.agents.supervised import Supervised
from isac_gym.agents.transfer import TransferBeamforming

__all__ = ["load_agent"]

_CLASSES: Final[dict[str, type[LearningAgent]]] = {
    kind.kind: kind for kind in (PrimalDual, NoDual, Supervised, TransferBeamforming)
}


def load_agent(path: str | Path, env: Any = None, *, device: str = "auto") -> LearningAgent:
    """Load a saved agent of any kind; arguments and errors as in :meth:`LearningAgent.load`."""
    source = pretrained_path(path)
    kind = read_kind(source)
    if kind not in _CLASSES:
        raise ValueError(f"{source}: kind must be one of {sorted(_CLASSES)}, got {kind!r}")
    return _CLASSES[kind].load(source, env, device=device)
