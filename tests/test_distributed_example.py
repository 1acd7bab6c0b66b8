"""Stations as processes that talk over sockets: the program of docs/distributed.md, as it stands.

It trains, saves every station, runs each in a process of its own and compares; here the comparison
is made once more from the files that it leaves.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isac_gym.agents import load_agent

PAGE = Path(__file__).resolve().parent.parent / "docs" / "distributed.md"
SMALL = "num_users=2, num_comm_antennas=3, num_radar_antennas=4, radar_power=0.8"
EXTRA = "sensing_threshold=0.2, target_angles_deg=((-50.0, 10.0),) * 2 + ((-10.0, 50.0),)"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="runs in the source tree only")


def read_examples() -> dict[str, str]:
    found = re.findall(r"```python file=(\w+)\.py\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    return dict(found)


def run(folder: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


TRAINED = '"paper", iterations=20'
TALKING = "iterations=2, width=8, stages=((6.0, 2),), batch_size=4, calibration_channels=0"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [TRAINED, TALKING], ids=["paper", "tuned"])
def test_stations_in_processes_of_their_own_act_as_one_process_does(
    tmp_path: Path, settings: str
) -> None:
    examples = read_examples()
    assert set(examples) == {"station", "network"}
    lines = [line for code in examples.values() for line in code.splitlines() if line.strip()]
    assert len(lines) < 90
    assert examples["network"].count("num_cells=3)") == 1
    small = examples["network"].replace("num_cells=3)", f"num_cells=3, {SMALL}, {EXTRA})")
    assert small.count(TRAINED) == 1
    small = small.replace(TRAINED, settings)
    ending = 'agent.save("agent.zip"); np.save("observations.npy", observations)\n'
    (tmp_path / "network.py").write_text(small + ending)
    (tmp_path / "station.py").write_text(examples["station"])
    assert run(tmp_path, "network.py") == "5 blocks alike, 8 bits a block on each link\n"
    parts = [np.load(tmp_path / f"actions{j}.npy") for j in range(3)]
    agent = load_agent(tmp_path / "agent.zip")
    expected, _ = agent.predict(np.load(tmp_path / "observations.npy"))
    np.testing.assert_array_equal(np.concatenate(parts, -1), expected)
    if settings != TRAINED:  # all stations have the same weights
        return
    # A station's file has no room for the weights of two.
    sizes = [(tmp_path / f"station{j}.zip").stat().st_size for j in range(3)]
    assert max(sizes) < 0.6 * (tmp_path / "agent.zip").stat().st_size
