"""What a stranger adds in one file: the examples of docs/architecture.md, run as they stand there.

Each runs in a process of its own, because what a decorator has registered stays registered.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
HEAD = """\
import csv, json
from typer.testing import CliRunner
from isac_gym.cli import app

SMALL = dict(num_users=2, num_comm_antennas=3, num_radar_antennas=4, radar_power=0.8,
             sensing_threshold=0.2, target_angles_deg=[-50.0, 10.0])
SET = [part for name, value in SMALL.items() for part in ("-s", f"{name}={json.dumps(value)}")]

def run(*arguments):
    result = CliRunner().invoke(app, ["--import", MODULE, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output

def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
"""


def examples() -> dict[str, str]:
    if not PAGE.is_file():
        return {}
    found = re.findall(r"```python file=(\w+)\.py\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    return dict(found)


EXAMPLES = examples()

pytestmark = pytest.mark.skipif(not EXAMPLES, reason="runs in the source tree only")

CHECKS = {
    "sight": """
assert "one-sight" in run("channels")
import gymnasium as gym
import numpy as np
from isac_gym.agents import PrimalDual

env = gym.make("ISAC-MISO-v0", channel_model="one-sight", **SMALL)
powers = [np.abs(env.reset(seed=seed) and env.unwrapped.channels) ** 2 for seed in range(400)]
spread = np.std(powers, axis=0).mean(-1)
assert spread[0] < 0.8 * spread[1]  # a line of sight does not fade
batch = gym.make_vec("ISAC-MISO-v0", num_envs=3, channel_model="one-sight", **SMALL)
assert batch.reset(seed=0)[0].shape == (3, 2 * 2 * 7)

chosen = ("--channel", "one-sight", "-c", "k_factor=7", *SET)
run("train", "primal-dual-paper", "--iterations", "2", "-o", "agent.zip", *chosen)
assert PrimalDual.load("agent.zip").channel_model.k_factor == 7
run("compare", "--only", "--agent", "mrt", "--channels", "5", "-o", "out", *chosen)
stated = json.load(open("out/compare.json"))["settings"]["channel_model"]
assert stated == {"name": "one-sight", "arguments": {"k_factor": 7}}, stated
run("evaluate", "agent.zip", "mrt", "--channels", "5", *chosen)
run("labels", "mrt", "--count", "3", "-o", "labels", *chosen)
""",
    "sidelobe": """
assert "sidelobe" in run("constraints")
import gymnasium as gym
import numpy as np
from isac_gym.agents import PrimalDual
from sidelobe import PeakSidelobe

env = gym.make("ISAC-MISO-v0", constraints=["sidelobe"], **SMALL)
env.reset(seed=0)
action = env.action_space.sample()
R = env.unwrapped.decode_action(action)[1]
info = env.step(action)[4]
grid = np.arange(-90, 91)
a = np.exp(1j * np.pi * np.outer(np.sin(np.deg2rad(grid)), np.arange(4))) / 2
pattern = np.einsum("la,ab,lb->l", a.conj(), R, a).real
inside = np.any(np.abs(grid[:, None] - np.array([-50, 10])) <= 5, axis=1)
assert np.isclose(info["constraint_sidelobe"], pattern[~inside].max() / 0.4 - 1, atol=1e-5)
assert info["cost_sidelobe"] == max(info["constraint_sidelobe"], 0.0)
assert np.isclose(info["cost"], sum(v for k, v in info.items() if k.startswith("cost_")))

batch = gym.make_vec("ISAC-MISO-v0", num_envs=2, constraints=[PeakSidelobe(0.3)], **SMALL)
batch.reset(seed=0)
assert batch.step(batch.action_space.sample())[4]["cost_sidelobe"].shape == (2,)

chosen = ("--constraint", "sidelobe", *SET)
run("train", "primal-dual-paper", "--iterations", "2", "-o", "agent.zip", *chosen)
loaded = PrimalDual.load("agent.zip")
assert loaded.system.constraints["sidelobe"].highest == 0.4
assert "sidelobe" in loaded.multipliers.values
priced = ("-a", "priced_constraint=sidelobe", "-a", "calibration_channels=64")
priced += ("-a", "hidden_sizes=[16]", "-a", "stages=[[6.0, 2]]", "-a", "batch_size=16")
loose = ("--constraint", "sidelobe:1.5", *SET)
run("train", "primal-dual", "--iterations", "2", *priced, "-o", "priced.zip", *loose)
loaded = PrimalDual.load("priced.zip")
assert (loaded.priced.name, loaded.priced.highest) == ("sidelobe", 1.5)
output = run("compare", "--only", "--agent", "mrt", "--channels", "5", "-o", "out", *chosen)
assert "P_side mean" in output, output
assert float(rows("out/compare.csv")[0]["sidelobe_mean"]) > 0
""",
    "gated": """
assert "gated" in run("networks")
from isac_gym.agents import PrimalDual

chosen = ("-a", "architecture=gated", "-a", "depth=3", *SET)
run("train", "primal-dual-paper", "--iterations", "2", "-o", "agent.zip", *chosen)
loaded = PrimalDual.load("agent.zip")
assert type(loaded.network).__name__ == "Gated"
assert len(loaded.network.body.layers) == 4
run("compare", "--only", "--agent", "agent.zip", "--channels", "5", "-o", "out", *SET)
assert rows("out/compare.csv")[0]["name"] == "agent.zip"
""",
    "fair": """
assert "fair" in run("agents")
import gymnasium as gym
import numpy as np
from isac_gym.agents import load_agent
from isac_gym.registry import make_agent

run("train", "fair", "--iterations", "3", "-o", "agent.zip", *SET)
env = gym.make("ISAC-MISO-v0", **SMALL)
trained = make_agent("fair", env, seed=0, iterations=3).learn()
observation = env.reset(seed=0)[0]
np.testing.assert_array_equal(
    load_agent("agent.zip", env).predict(observation)[0], trained.predict(observation)[0]
)
run("evaluate", "agent.zip", "--channels", "5", *SET)
short = ("--channels", "5", "-o", "out", *SET)
import dataclasses
from isac_gym.agents import PRESETS
PRESETS["paper"] = dataclasses.replace(PRESETS["paper"], iterations=2)
run("compare", "--only", "--agent", "fair", "--agent", "mrt", *short)
assert [row["name"] for row in rows("out/compare.csv")] == ["fair", "mrt"]
""",
    "strongest": """
assert "strongest" in run("agents")
import gymnasium as gym
from isac_gym.registry import make_agent

env = gym.make("ISAC-MISO-v0", **SMALL)
agent = make_agent("strongest", env)
info = env.step(agent.predict(env.reset(seed=0)[0])[0])[4] if env.reset(seed=0) else None
assert sorted(info["rates"] > 1e-6) == [False, True]
output = run("compare", "--only", "--agent", "strongest", "--channels", "5", "-o", "out", *SET)
assert "strongest *" in output, output
assert rows("out/compare.csv")[0]["is_reference"] == "True"
""",
    "users": """
assert "users" in run("studies")
output = run("study", "users", "--users", "2", "--users", "3", "--channels", "4", *SET)
assert [row["K"] for row in rows("results/users/users.csv")] == ["2", "3"]
assert open("results/users/users.png", "rb").read(4) == b"\\x89PNG"
""",
}


def test_every_example_is_checked() -> None:
    assert set(EXAMPLES) == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_one_file_is_enough(name: str, tmp_path: Path) -> None:
    code = EXAMPLES[name]
    assert len(code.strip().splitlines()) <= 40
    (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "check.py").write_text(f"MODULE = {name!r}\n{HEAD}{CHECKS[name]}")
    done = subprocess.run(
        [sys.executable, "check.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
