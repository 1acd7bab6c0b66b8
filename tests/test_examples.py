"""The examples run, with a few blocks to learn from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = {
    "single_file_ppo.py": (
        "tensorboard",
        ["--num-envs", "64", "--batch-size", "64"],
        r"s:\s+(\S+) bit/s/Hz",
    ),
    "skrl_ppo.py": (
        "skrl",
        ["--num-envs", "64", "--channels", "16"],
        r"ppo of skrl\s+│\s+(\S+) │",
    ),
    "stable_baselines3_ppo.py": (
        "stable_baselines3",
        ["--num-envs", "64", "--channels", "16"],
        r"ppo-lagrangian\s+│\s+(\S+) │",
    ),
    "torchrl_mappo.py": (
        "torchrl",
        ["--rollout", "320", "--channels", "20", "--critic", "own", "--no-baselines"],
        r"stations: (\S+) bit/s/Hz",
    ),
    "torchrl_ppo.py": (
        "torchrl",
        ["--num-envs", "64"],
        r"blocks: penalised reward (\S+) bit/s/Hz",
    ),
}
"""For each example: what it needs, its arguments, and how it states its rates."""


def run(name: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
    finished = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(name: str) -> None:
    needed, arguments, pattern = EXAMPLES[name]
    pytest.importorskip(needed)
    rates = re.findall(pattern, run(name, "--blocks", "1024", *arguments))
    assert rates
    # What the middle of the box is worth, where policies begin: 8, or 5.4 a station of three.
    assert all(3.0 < float(rate) < 10.0 for rate in rates), rates


def test_the_single_file_learns_and_logs(tmp_path: Path) -> None:
    """Its last rate is above its first, at a violation that is small; its log holds both."""
    pytest.importorskip("tensorboard")
    said = run(
        "single_file_ppo.py",
        *("--blocks", "40000", "--num-envs", "256", "--batch-size", "256"),
        *("--logs", str(tmp_path / "logs")),
    )
    lines = re.findall(r"s:\s+(\S+) bit/s/Hz, L_r/ε - 1 = (\S+),", said)
    (first, _), (last, violation) = lines[0], lines[-1]
    assert float(last) > float(first) + 0.3
    assert float(violation) < 0.05
    assert list((tmp_path / "logs").glob("events.*"))
    assert len((FOLDER / "single_file_ppo.py").read_text().splitlines()) <= 250


@pytest.mark.parametrize(
    "arguments",
    [
        ["--simulator", "parallel"],
        ["--message-bits", "2", "--doppler", "0.02", "--gamma", "0.5", "--reward", "network"],
    ],
)
def test_stations_learn_in_other_ways(arguments: list[str]) -> None:
    """On the ParallelEnv itself, and with messages; each station keeps its own figures."""
    pytest.importorskip("torchrl")
    pytest.importorskip("pettingzoo")
    sizes = ["--blocks", "160", "--rollout", "80", "--channels", "10", "--no-baselines"]
    said = run("torchrl_mappo.py", *sizes, *arguments)
    found = re.findall(r"stations: (\S+) bit/s/Hz a station, L_r/ε = (\S+) (\S+) (\S+)", said)
    assert len(found) == 1
    assert all(float(number) > 0.0 for number in found[0])


@pytest.mark.slow
def test_stations_learn() -> None:
    """Rates rise well above those of equal power, and L_r falls towards ε."""
    pytest.importorskip("torchrl")
    pytest.importorskip("pettingzoo")
    said = run("torchrl_mappo.py", "--blocks", "25600", "--channels", "200", "--no-baselines")
    rate, *ratios = map(float, re.findall(r"\d+\.\d+", said.splitlines()[-2]))
    assert rate > 5.9  # 3.5 by equal power, 7.2 by joint
    assert max(ratios) < 1.04
    assert len((FOLDER / "torchrl_mappo.py").read_text().splitlines()) <= 250
