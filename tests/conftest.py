from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# `import reference` must find tests/reference.py from every folder below tests/.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# Each size of array takes ten seconds to compile. The tests of what is compiled ask for it, and
# establish that it computes what tensors do.
os.environ.setdefault("ISAC_GYM_COMPILED", "pairs")

# Shells switch it off for what they run in the background; children inherit that, and the package
# leaves a signal alone that is switched off.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Test workers whose torch threads compete for the cores are many times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command adds to the import path is forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True, scope="module")
def quick_latency(request: pytest.FixtureRequest) -> Iterator[None]:
    """Evaluations without the repeated calls that only measure time, up to two seconds each.

    The tests of evaluations keep them.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "evaluation":
            patch.setattr("isac_gym.evaluation.judging._measure_latency", lambda *_: 1e-3)
        yield
