from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# `import reference` must find tests/reference.py from every folder below tests/.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# Test workers whose torch threads compete for the cores are many times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command adds to the import path is forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
