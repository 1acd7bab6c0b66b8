"""Machine code that is kept on the disk, of loops for different sizes, in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

SCRIPT = """
import sys
import gymnasium as gym
import torch
import isac_gym
import isac_gym.physics.unfolding as unfolding
from isac_gym.agents import PrimalDual
from isac_gym.agents.conditions import Conditions

worst = 0.0
for antennas in map(int, sys.argv[1:]):
    env = gym.make(
        "ISAC-MISO-v0", num_radar_antennas=antennas, num_comm_antennas=antennas, num_users=2,
        sensing_threshold=2.0,
    )
    agent = PrimalDual(env, stages=((6.0, 1), (3.0, 1)))
    observation = torch.randn(4, env.observation_space.shape[0])
    conditions = Conditions.of(agent.system, 4, torch.tensor([20.0]))
    with torch.no_grad():
        compiled = agent.network(observation, conditions)
    tensors = agent.network(observation, conditions).detach()
    worst = max(worst, float((compiled - tensors).abs().max()))
print(worst)
"""


@pytest.mark.slow
def test_loops_compiled_in_different_processes_do_not_meet(tmp_path: Path) -> None:
    def worst(*antennas: str) -> float:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, *antennas],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        return float(done.stdout)

    # Large enough that the inner loop is not inlined.
    assert worst("8") < 1e-5
    assert worst("12") < 1e-5
    assert list(tmp_path.rglob("*.nbc")), "nothing was kept: the test would show nothing"
    assert worst("8", "12") < 1e-5
