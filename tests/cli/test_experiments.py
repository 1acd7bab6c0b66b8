"""The commands ``tradeoff`` and ``labels``: files, interruptions, and clear errors."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from command_line import failed, run, succeeded

from isac_gym import Scenario
from isac_gym.agents import PrimalDual
from isac_gym.baselines import RZF
from isac_gym.experiments import run_experiment
from isac_gym.experiments.tradeoff import TradeOff
from isac_gym.learning.labels import generate_labels, load_labels

SMALL: dict[str, Any] = {
    "num_users": 2,
    "num_comm_antennas": 3,
    "num_radar_antennas": 2,
    "radar_power": 0.1,
    "sensing_threshold": 0.2,
    "target_angles_deg": [0.0],
}
AGENT = """\
from pathlib import Path

import numpy as np


class MyAgent:
    def __init__(self, env):
        self.size = env.action_space.shape[0]

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        with Path("calls").open("a") as file:
            file.write(f"{len(observation)} ")
        if Path("stop").exists() and len(Path("calls").read_text().split()) == 2:
            raise OSError("the disk is full")
        total = np.asarray(observation, np.float64).sum(-1, keepdims=True)
        return np.sin(total * np.arange(1, self.size + 1)).astype(np.float32), state
"""


def settings_of(**changes: Any) -> list[str]:
    given = {**SMALL, **changes}
    return [part for name, value in given.items() for part in ("-s", f"{name}={json.dumps(value)}")]


SET = settings_of()
TRADEOFF = ("tradeoff", "--channels", "2", "--bound-channels", "0")
LABELS = ("labels", "rzf", "--count", "5", "--shard-size", "2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


def contents(path: Path) -> dict[str, bytes]:
    return {held.name: held.read_bytes() for held in path.iterdir()}


@pytest.fixture
def my_agent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """``module:Class`` of an agent in the current folder."""
    (folder / "labelling_agent.py").write_text(AGENT)
    monkeypatch.delitem(sys.modules, "labelling_agent", raising=False)
    return "labelling_agent:MyAgent"


# Trade-off


def test_tradeoff_writes_table_settings_and_picture(folder: Path) -> None:
    floor = Scenario(**SMALL).sensing_floor()[0]
    limits = [1.05 * floor, 1.02 * floor]
    output = succeeded(
        run(
            *("tradeoff", "--channels", "2", "--bound-channels", "1", "--subdivisions", "1"),
            *("--threshold", repr(limits[0]), "--threshold", repr(limits[1])),
            *("--evaluation-seed", "9", "-o", "new/out", *SET),
        )
    )
    written = contents(folder / "new" / "out")
    assert sorted(written) == ["tradeoff.csv", "tradeoff.json", "tradeoff.png"]
    assert written["tradeoff.png"].startswith(b"\x89PNG\r\n\x1a\n")
    options: dict[str, Any] = {"bound_channels": 1, "subdivisions": 1, "evaluation_seed": 9}
    expected = run_experiment(
        TradeOff(scenario=Scenario(**SMALL), thresholds=limits, channels=2, **options)
    )
    rows = list(csv.DictReader(written["tradeoff.csv"].decode().splitlines()))
    assert len(rows) == len(expected.rows) == 2 * 4 + 3
    for row, point in zip(rows, expected.rows, strict=True):
        assert row["design"] == point["design"]
        assert row["threshold"] == ("" if point["threshold"] is None else str(point["threshold"]))
        assert float(row["spectral_efficiency"]) == point["spectral_efficiency"]
        assert f"{point['spectral_efficiency']:.3f}" in output
    content = json.loads(written["tradeoff.json"])
    assert content["settings"] == json.loads(json.dumps(expected.settings))
    assert expected.settings["evaluation_set"] in output
    for name in written:
        assert name in output


def test_tradeoff_has_a_default_folder_and_leaves_the_bound_out(folder: Path) -> None:
    floor = Scenario(**SMALL).sensing_floor()[0]
    output = succeeded(run(*TRADEOFF, "--threshold", repr(1.1 * floor), *SET))
    assert len(list((folder / "results" / "tradeoff").iterdir())) == 3
    assert "upper bound" not in output


def test_tradeoff_replaces_the_threshold_of_the_scenario(folder: Path) -> None:
    """The preset's 0.12 is below the floor here, and nobody asked for it."""
    given = {**SMALL, "target_angles_deg": [-50.0, 10.0], "radar_power": 0.8}
    del given["sensing_threshold"]
    floor = Scenario(**given).sensing_floor()[0]
    assert floor > 0.12
    settings = [p for name, value in given.items() for p in ("-s", f"{name}={json.dumps(value)}")]
    succeeded(run(*TRADEOFF, "--threshold", repr(1.1 * floor), *settings))


# Labels


def test_labels_writes_a_data_set(folder: Path) -> None:
    output = succeeded(run(*LABELS, "--seed", "3", "-o", "new/out", *SET))
    assert "new/out" in output
    env = make()
    generate_labels(RZF(env), env, folder / "direct", 5, name="rzf", seed=3, shard_size=2)
    assert contents(folder / "new" / "out") == contents(folder / "direct")
    found = load_labels(folder / "new" / "out")
    assert len(found) == 5
    assert Scenario.from_dict(found.manifest["scenario"]) == Scenario(**SMALL)
    assert (found.manifest["agent"], found.manifest["seed"]) == ("rzf", 3)


def test_labels_has_a_default_agent_and_folder(folder: Path) -> None:
    succeeded(run("labels", "--count", "2", *SET))
    found = load_labels(folder / "results" / "labels")
    assert found.manifest["agent"] == "joint"
    assert (len(found), found.manifest["seed"], found.manifest["shard_size"]) == (2, 0, 1024)
    assert (found.sensing_losses <= 0.2 * (1 + 1e-4)).all()


def test_labels_of_a_strangers_agent(folder: Path) -> None:
    script = shutil.which("isac-gym", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the console script is not installed")
    (folder / "labelling_agent.py").write_text(AGENT)
    done = subprocess.run(
        [script, "labels", "labelling_agent:MyAgent", "--count", "3", *SET],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = load_labels(folder / "results" / "labels")
    assert found.manifest["agent"] == "labelling_agent:MyAgent"
    seen = found.estimates.reshape(3, -1)
    total = np.concatenate([seen.real, seen.imag], 1).astype(np.float64).sum(-1, keepdims=True)
    expected = np.sin(total * np.arange(1, found.actions.shape[1] + 1))
    np.testing.assert_allclose(found.actions, expected, atol=1e-5)


def test_labels_of_a_trained_agent(folder: Path) -> None:
    env = make()
    agent = PrimalDual(env, "paper", seed=4)
    agent.save("mine.zip")
    succeeded(run("labels", "mine.zip", "--count", "4", "-o", "out", *SET))
    found = load_labels("out")
    observed = env.unwrapped.system.codec.observation(found.estimates)
    np.testing.assert_allclose(
        found.actions, agent.predict(observed, deterministic=True)[0], atol=1e-6
    )


def test_an_interrupted_generation_goes_on(folder: Path, my_agent: str) -> None:
    command = ("labels", my_agent, "--count", "5", "--shard-size", "2", *SET)
    succeeded(run(*command, "-o", "whole"))
    assert (folder / "calls").read_text() == "2 2 1 "
    (folder / "calls").unlink()
    (folder / "stop").touch()
    failed(run(*command, "-o", "out"), "the disk is full")
    assert sorted(contents(folder / "out")) == ["labels-00000.npz", "manifest.json"]
    (folder / "stop").unlink()
    succeeded(run(*command, "-o", "out"))
    assert (folder / "calls").read_text() == "2 2 2 1 "
    assert contents(folder / "out") == contents(folder / "whole")


def test_a_larger_count_extends_a_data_set(folder: Path) -> None:
    succeeded(run(*LABELS, *SET, "-o", "out"))
    begin = load_labels("out")
    succeeded(run(*LABELS, *SET, "--count", "8", "-o", "out"))
    succeeded(run(*LABELS, *SET, "--count", "8", "-o", "at once"))
    assert len(load_labels("out")) == 8
    np.testing.assert_array_equal(load_labels("out").channels[:5], begin.channels)
    assert contents(folder / "out") == contents(folder / "at once")
    failed(run(*LABELS, *SET, "-o", "out"), "count must be at least 8")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["--seed", "1"], "seed=0, got 1"),
        (["--shard-size", "3"], "shard_size=2, got 3"),
        (["-s", "snr_db=3"], "holds labels with scenario="),
    ],
)
def test_a_folder_that_holds_other_labels(folder: Path, changed: list[str], expected: str) -> None:
    succeeded(run(*LABELS, *SET, "-o", "out"))
    before = contents(folder / "out")
    failed(run(*LABELS, *SET, *changed, "-o", "out"), "out holds labels", expected)
    failed(run("labels", "mrt", *LABELS[2:], *SET, "-o", "out"), "agent='rzf', got 'mrt'")
    assert contents(folder / "out") == before


def test_a_damaged_shard_is_an_error_not_a_traceback(folder: Path) -> None:
    succeeded(run(*LABELS, *SET, "-o", "out"))
    (folder / "out" / "labels-00001.npz").write_bytes(b"damaged")
    failed(run(*LABELS, *SET, "-o", "out"), "labels-00001.npz", "damaged")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return np.full((len(observation), 20), 2.0), None", "within [-1, 1]"),
        ("return np.zeros((len(observation), 3)), None", "shape"),
        ("return np.zeros((len(observation), 20), complex), None", "real numbers"),
    ],
)
def test_an_agent_with_invalid_actions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, expected: str
) -> None:
    (folder / "invalid_labels.py").write_text(
        "import numpy as np\nclass Agent:\n"
        f"    def predict(self, observation, **kwargs):\n        {body}\n"
    )
    monkeypatch.delitem(sys.modules, "invalid_labels", raising=False)
    failed(run("labels", "invalid_labels:Agent", "--count", "2", *SET), "action must", expected)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*TRADEOFF, "-s", "nosuch=1"), ["nosuch", "num_users"]),
        ((*TRADEOFF, "-s", "snr_db"), ["NAME=VALUE", "snr_db"]),
        ((*TRADEOFF, "-s", "num_users=0"), ["num_users", ">= 1", "0"]),
        ((*TRADEOFF, "--scenario", "nosuch"), ["nosuch", "multicell"]),
        (("tradeoff", "--channels", "0"), ["--channels"]),
        (("tradeoff", "--bound-channels", "-1"), ["--bound-channels"]),
        (("tradeoff", "--subdivisions", "-1"), ["--subdivisions"]),
        (("tradeoff", "--threshold", "-0.1"), ["--threshold"]),
        (("tradeoff", "--threshold", "much"), ["--threshold"]),
        (("tradeoff", "--evaluation-seed", "-1"), ["--evaluation-seed"]),
        (("tradeoff", "--nosuch"), ["--nosuch"]),
        ((*LABELS, "-s", "nosuch=1"), ["nosuch", "num_users"]),
        ((*LABELS, "-s", "snr_db=abc"), ["snr_db", "abc"]),
        ((*LABELS, "-s", "sensing_threshold=0.001"), ["sensing_threshold", "at least", "0.001"]),
        ((*LABELS, "--scenario", "nosuch"), ["nosuch", "multicell"]),
        (("labels", "primal-dual", *SET), ["not trained", "primal-dual"]),
        (("labels", "primal-dual-paper", *SET), ["not trained", "primal-dual-paper"]),
        (("labels", "nosuch", *SET), ["nosuch", "primal-dual", "module:Class"]),
        (("labels", "nosuch_module:Agent", *SET), ["nosuch_module:Agent"]),
        (("labels", "math:pi", *SET), ["math:pi", "predict"]),
        (("labels", "missing.zip", *SET), ["missing.zip"]),
        (("labels", "joint", *settings_of(control="amplitude")), ["control", "amplitude"]),
        (("labels", "joint", *settings_of(radar="fixed")), ["radar", "fixed"]),
        (("labels", "rzf", "--count", "0"), ["--count"]),
        (("labels", "rzf", "--shard-size", "0"), ["--shard-size"]),
        (("labels", "rzf", "--seed", "-1"), ["--seed"]),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, tuple) else "",
)
def test_bad_input_ends_with_code_2_and_a_message(
    folder: Path, arguments: tuple[str, ...], expected: list[str]
) -> None:
    failed(run(*arguments), *expected)
    assert list(folder.iterdir()) == []


def test_a_threshold_below_the_floor(folder: Path) -> None:
    floor = Scenario(**SMALL).sensing_floor()[0]
    result = run(*TRADEOFF, "--threshold", repr(2 * floor), "--threshold", repr(0.9 * floor), *SET)
    failed(result, "sensing_threshold must be at least", repr(0.9 * floor))
    named = float(" ".join(result.output.split()).split("at least ")[1].split(",")[0])
    assert floor <= named <= floor * 1.002
    failed(run(*TRADEOFF, "--threshold", "0", *SET), "sensing_threshold must be", "> 0")
    assert not list(folder.rglob("*.csv"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"control": "amplitude"}, "control must be"), ({"radar": "fixed"}, "got 'fixed'")],
)
def test_a_tradeoff_that_does_not_exist_for_the_scenario(
    folder: Path, changes: dict[str, Any], expected: str
) -> None:
    failed(run(*TRADEOFF, "--threshold", "0.2", *settings_of(**changes)), expected)
    assert not list(folder.rglob("*.csv"))


def test_an_output_that_cannot_be_written_is_an_error_not_a_traceback(folder: Path) -> None:
    (folder / "taken").write_text("a file, not a folder")
    failed(run(*TRADEOFF, "-o", "taken", *SET), "taken")
    failed(run(*LABELS, "-o", "taken", *SET), "taken")
    failed(run(*LABELS, "-o", "taken/labels", *SET), "taken")


def test_help() -> None:
    output = succeeded(run("--help"))
    for command in ("tradeoff", "labels"):
        assert command in output
        assert "Usage" in succeeded(run(command, "--help"))
