"""The command line: results in files, strangers' agents, interruptions, and clear errors."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import console_script, failed, run, succeeded
from fuzz.hostile_files import ANY_FILE
from small_commands import BASE, MRT_ONLY, SET, SMALL, TEN_LINES, make, settings_of

from isac_gym.agents import PRESETS as AGENT_PRESETS
from isac_gym.agents import PrimalDual, TransferBeamforming
from isac_gym.baselines import MRT, JointOracle
from isac_gym.evaluation import compare
from isac_gym.learning.agent import LearningAgent
from isac_gym.registry import AGENTS, CHANNELS, CONSTRAINTS, EXPERIMENTS, NETWORKS
from isac_gym.scenario import PRESETS, Scenario


@pytest.fixture
def quick_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that train for two steps, and prices that are found on few channels."""
    small: dict[str, Any] = {"iterations": 2, "batch_size": 4}
    for name, preset in AGENT_PRESETS.items():
        calibrated = 16 if preset.calibration_channels else 0
        short = dataclasses.replace(preset, calibration_channels=calibrated, **small)
        monkeypatch.setitem(AGENT_PRESETS, name, short)  # type: ignore[arg-type]
    monkeypatch.setitem(JointOracle.__init__.__kwdefaults__, "calibration_channels", 16)


def test_compare_writes_table_settings_and_picture(folder: Path) -> None:
    output = succeeded(
        run(
            *("compare", "--only", "--agent", "mrt", "--agent", "zf", "--channels", "30"),
            *("--evaluation-seed", "9", "-o", "out", *settings_of()),
        )
    )
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "compare.csv",
        "compare.json",
        "compare.png",
    ]
    env = make()
    expected = compare({"mrt": MRT(env)}, env, channels=30, seed=9)["mrt"]
    with (folder / "out" / "compare.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["mrt", "zf"]
    assert float(rows["mrt"]["spectral_efficiency"]) == expected.spectral_efficiency
    content = json.loads((folder / "out" / "compare.json").read_text())
    assert Scenario.from_dict(content["settings"]["scenario"]) == Scenario(**SMALL)
    assert content["settings"]["evaluation_seed"] == 9
    assert content["settings"]["seed"] == 0
    assert np.shape(content["rows"][0]["beampattern"]) == (1, 181)
    assert (folder / "out" / "compare.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"{expected.spectral_efficiency:.3f}" in output
    assert content["settings"]["evaluation_set"] in output
    for name in ("csv", "json", "png"):
        assert f"compare.{name}" in output


def test_compare_is_repeatable(folder: Path) -> None:
    for name in ("first", "second"):
        succeeded(
            run(
                *("compare", "--only", "--agent", "rzf", "--agent", "random-power"),
                *("--channels", "20", "-o", name, *settings_of()),
            )
        )
    first, second = (
        json.loads((folder / name / "compare.json").read_text()) for name in ("first", "second")
    )
    assert first["settings"]["evaluation_set"] == second["settings"]["evaluation_set"]
    for left, right in zip(first["rows"], second["rows"], strict=True):
        for key, value in left.items():
            assert key.startswith("seconds") or right[key] == value


def test_a_strangers_agent_appears_in_the_table(folder: Path) -> None:
    (folder / "my_module.py").write_text(TEN_LINES)
    assert len(TEN_LINES.strip().splitlines()) == 10
    done = subprocess.run(
        [
            *(console_script(), "compare", "--only", "--agent", "my_module:MyAgent"),
            *("--agent", "mrt", "--channels", "25", *settings_of()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "my_module:MyAgent" in done.stdout
    assert "Traceback" not in done.stderr
    with (folder / "results" / "compare" / "compare.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    # All weights 0.1·(1 + j) and a uniform waveform; the environment itself is the judge.
    env = make()
    rates = []
    rng = np.random.default_rng(7)
    for _ in range(25):
        parts = rng.standard_normal((2, 7, 2), dtype=np.float32) * np.float32(0.5**0.5)
        env.reset(options={"channels": parts[..., 0] + 1j * parts[..., 1]})
        rates.append(env.step(np.full(env.action_space.shape, 0.1, np.float32))[1])
    found = float(rows["my_module:MyAgent"]["spectral_efficiency"])
    assert found == pytest.approx(np.mean(rates), rel=1e-4)


def test_by_default_all_agents_of_the_control_mode_compete(
    folder: Path, quick_agents: None
) -> None:
    cheap = settings_of(control="power", num_users=1)
    cheap += ["-s", "sensing_threshold=1.0"]
    output = succeeded(run("compare", "--channels", "5", *cheap))
    expected = [
        name
        for name, entry in AGENTS.entries().items()
        if entry.is_default and "power" in entry.controls
    ]
    assert {"primal-dual", "primal-dual-paper", "joint-expected"} < set(expected)
    with (folder / "results" / "compare" / "compare.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == expected
    assert all(name in output for name in expected)
    left = {p.name for p in (folder / "results" / "compare").iterdir()}
    assert left == {"compare.csv", "compare.json", "compare.png"}


def test_agents_that_can_learn_are_trained(folder: Path) -> None:
    (folder / "learners.py").write_text(
        TEN_LINES + "from pathlib import Path\n"
        "class Plain(MyAgent):\n"
        "    def learn(self):\n"
        "        Path('plain').touch()\n"
        "class Rich(MyAgent):\n"
        "    def learn(self, steps=3, progress_bar=False, checkpoint=None):\n"
        "        Path('rich').write_text(f'{steps} {progress_bar} {checkpoint.name}')\n"
        "class Needy(MyAgent):\n"
        "    def learn(self, total_timesteps):\n"
        "        Path('needy').touch()\n"
    )
    base = ("compare", "--only", "--channels", "3", *settings_of())
    succeeded(run(*base, "--agent", "learners:Plain", "--agent", "learners:Rich"))
    assert (folder / "plain").exists()
    assert (folder / "rich").read_text().startswith("3 True ")
    failed(run(*base, "--agent", "learners:Needy"), "learners:Needy", "total_timesteps")
    assert not (folder / "needy").exists()


def test_train_and_evaluate_round_trip(folder: Path) -> None:
    succeeded(
        run(
            *("train", "primal-dual-paper", "--iterations", "7", "--seed", "3"),
            *("-o", "agents/mine.zip", *settings_of()),
        )
    )
    assert [p.name for p in (folder / "agents").iterdir()] == ["mine.zip"]
    env = make()
    trained = PrimalDual(env, "paper", seed=3).learn(7)
    loaded = PrimalDual.load("agents/mine.zip", env)
    observations = np.stack([env.reset(seed=seed)[0] for seed in range(5)])
    np.testing.assert_array_equal(loaded.predict(observations)[0], trained.predict(observations)[0])
    expected = compare({"mine": trained}, env, channels=20)["mine"]
    for command in (
        ("evaluate", "agents/mine.zip", "mrt"),
        ("compare", "--only", "--agent", "agents/mine.zip", "--agent", "mrt"),
    ):
        output = succeeded(run(*command, "--channels", "20", *settings_of()))
        assert f"{expected.spectral_efficiency:.3f}" in output
        assert "mine.zip" in output


def test_iterations_are_those_of_every_training_and_saved(folder: Path) -> None:
    succeeded(run("train", "transfer-beamforming-paper", "--iterations", "3", "-o", "a.zip", *SET))
    succeeded(run("train", "transfer-beamforming-paper", "-a", "iterations=3", "-o", "b.zip", *SET))
    first, second = (TransferBeamforming.load(name) for name in ("a.zip", "b.zip"))
    assert first.config.iterations == 3
    for name, value in first.network.state_dict().items():
        np.testing.assert_array_equal(second.network.state_dict()[name], value, err_msg=name)


def test_generated_labels_go_with_the_checkpoint(folder: Path) -> None:
    arguments = ("--iterations", "2", "-a", "reference=mrt", "-a", "label_count=5", *SET)
    succeeded(run("train", "supervised-paper", "-o", "a.zip", *arguments))
    assert [path.name for path in folder.iterdir()] == ["a.zip"]


def test_evaluate_refuses_what_is_not_trained(folder: Path) -> None:
    failed(run("evaluate", "primal-dual-paper", *SET), "not trained", "primal-dual-paper")
    assert list(folder.iterdir()) == []


def test_a_killed_training_goes_on_where_it_was(folder: Path) -> None:
    arguments = [
        *("train", "primal-dual-paper", "--iterations", "1000", "-o", "killed.zip"),
        *settings_of(control="power", radar="fixed"),
    ]
    checkpoint, result = folder / "killed.checkpoint.zip", folder / "killed.zip"
    process = subprocess.Popen(
        [console_script(), *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        limit = time.monotonic() + 100
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert checkpoint.exists()
    assert not result.exists()

    succeeded(run(*arguments))
    assert result.exists()
    assert not checkpoint.exists()
    env = make(control="power", radar="fixed")
    resumed, whole = PrimalDual.load(result, env), PrimalDual(env, "paper", seed=0).learn(1000)
    for name, value in whole.network.state_dict().items():
        np.testing.assert_array_equal(resumed.network.state_dict()[name], value, err_msg=name)
    for name, value in whole.multipliers.values.items():
        np.testing.assert_array_equal(resumed.multipliers.values[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*BASE, *SET), ["at least one agent"]),
        ((*BASE, "--agent", "nosuch", *SET), ["nosuch", "primal-dual", "module:Class"]),
        ((*BASE, "--agent", "nosuch_module:Agent", *SET), ["nosuch_module:Agent"]),
        ((*BASE, "--agent", "json:Nothing", *SET), ["json:Nothing"]),
        ((*BASE, "--agent", "math:pi", *SET), ["math:pi", "predict"]),
        ((*BASE, "--agent", "missing.zip", *SET), ["missing.zip"]),
        ((*BASE, "--agent", "mrt", *settings_of(control="power")), ["mrt", "beamforming"]),
        ((*BASE, "--agent", "zf", *settings_of(num_users=4)), ["num_users", "4 > 3"]),
        ((*MRT_ONLY, "--scenario", "nosuch"), ["nosuch", "multicell"]),
        ((*MRT_ONLY, "-s", "nosuch=1"), ["nosuch", "num_users"]),
        ((*MRT_ONLY, "-s", "snr_db=abc"), ["snr_db", "abc"]),
        ((*MRT_ONLY, "-s", "snr_db"), ["NAME=VALUE", "snr_db"]),
        ((*MRT_ONLY, "-s", "=3"), ["num_users"]),
        ((*MRT_ONLY, "-s", "num_users=0"), ["num_users", ">= 1", "0"]),
        ((*MRT_ONLY, "-s", "num_users=2.5"), ["num_users", "2.5"]),
        ((*MRT_ONLY, "-s", "target_angles_deg=[100]"), ["target_angles_deg", "100"]),
        ((*MRT_ONLY, "-s", "sensing_threshold=0.001"), ["sensing_threshold", "0.001"]),
        ((*MRT_ONLY, "-s", "channel_model=5"), ["channel_model"]),
        ((*MRT_ONLY, "-s", "scenario=dense"), ["scenario"]),
        ((*MRT_ONLY, "--evaluation-seed", "-1", *SET), ["seed"]),
        ((*BASE, "--agent", "primal-dual-paper", "--seed", "-1", *SET), ["seed"]),
        (("compare", "--channels", "0"), ["--channels"]),
        (("compare", "--channels", "many"), ["--channels"]),
        (("train", "nosuch", *SET), ["nosuch", "primal-dual"]),
        (("train", "mrt", *SET), ["mrt", "primal-dual"]),
        (("train", "primal-dual", "--iterations", "0", *SET), ["--iterations"]),
        (("train", "primal-dual", "--scenario", "nosuch"), ["nosuch"]),
        (
            ("train", "primal-dual", "--iterations", "2", "-a", "iterations=5", *SET),
            ["--iterations", "-a iterations="],
        ),
        (("train", "primal-dual-paper", "--seed", "-1", *SET), ["seed"]),
        (("evaluate", "nosuch", *SET), ["nosuch"]),
        (("evaluate", "missing.zip", *SET), ["missing.zip"]),
        (("evaluate",), ["Missing argument"]),
        (("nosuch",), ["nosuch"]),
        (("compare", "--nosuch"), ["--nosuch"]),
    ],
    ids=lambda value: " ".join(value[:6]) if isinstance(value, tuple) else "",
)
def test_bad_input_ends_with_code_2_and_a_message(
    folder: Path, arguments: tuple[str, ...], expected: list[str]
) -> None:
    failed(run(*arguments), *expected)
    assert list(folder.iterdir()) == []


def test_a_foreign_file_is_no_agent(folder: Path) -> None:
    (folder / "foreign.zip").write_bytes(b"PK\x03\x04 nothing")
    failed(run("evaluate", "foreign.zip", *settings_of()), "foreign.zip", "not a saved")


def test_an_agent_of_another_scenario(folder: Path) -> None:
    PrimalDual(make(num_users=3), "paper").save("other.zip")
    failed(run("evaluate", "other.zip", *settings_of()), "other.zip", "another scenario")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "    def predict(self, observation, **kwargs): return observation * np.nan, None",
            "action",
        ),
        (
            "    def predict(self, observation, **kwargs): return observation[..., :3], None",
            "shape",
        ),
        ("    def predict(self, observation, **kwargs): return observation * 1j, None", "real"),
        ("    pass", "predict"),
    ],
)
def test_an_invalid_agent_is_named(folder: Path, body: str, expected: str) -> None:
    (folder / f"invalid_{expected}.py").write_text(f"import numpy as np\nclass Agent:\n{body}\n")
    name = f"invalid_{expected}:Agent"
    failed(run(*BASE, "--agent", name, *SET), name, expected)


def test_a_diverging_training_is_an_error_not_a_traceback(folder: Path) -> None:
    (folder / "diverging.py").write_text(
        TEN_LINES + "    def learn(self):\n"
        "        from isac_gym.learning.trainer import TrainingError\n"
        "        raise TrainingError('training diverged at iteration 14')\n"
    )
    failed(run(*BASE, "--agent", "diverging:MyAgent", *SET), "diverged at iteration 14")


def test_an_output_that_cannot_be_written_is_an_error_not_a_traceback(folder: Path) -> None:
    (folder / "taken").write_text("a file, not a folder")
    failed(run(*MRT_ONLY, "-o", "taken", *SET), "taken")
    failed(
        run("train", "primal-dual-paper", "--iterations", "1", "-o", "taken/agent.zip", *SET),
        "taken",
    )


def test_agents_lists_the_registry() -> None:
    output = succeeded(run("agents"))
    cells = {cell.strip() for line in output.splitlines() for cell in line.split("│")}
    assert set(AGENTS.names()) <= cells


@pytest.mark.parametrize(
    ("command", "registry"),
    [
        ("networks", NETWORKS),
        ("channels", CHANNELS),
        ("constraints", CONSTRAINTS),
        ("studies", EXPERIMENTS),
    ],
)
def test_lists(command: str, registry: Any) -> None:
    output = succeeded(run(command))
    assert registry.names()
    assert all(f" {name} " in output for name in registry.names())


def test_lists_and_help_do_not_import_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from isac_gym.cli import app\n"
        "for line in sys.argv[1:]:\n"
        "    assert CliRunner().invoke(app, line.split()).exit_code == 0, line\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    lines = ["--help", "study --help", "train --help", "agents", "channels", "studies"]
    subprocess.run([sys.executable, "-c", code, *lines, "constraints", "scenarios"], check=True)


def test_scenarios_lists_presets_and_parameters() -> None:
    output = succeeded(run("scenarios"))
    assert all(name in output for name in (*PRESETS, *Scenario.field_names()))


def test_help() -> None:
    output = succeeded(run("--help"))
    assert all(name in output for name in ("compare", "train", "evaluate", "agents", "scenarios"))
    for command in ("compare", "train", "evaluate", "agents", "scenarios"):
        assert "Usage" in succeeded(run(command, "--help"))


def test_the_console_script_reports_errors_without_traceback(folder: Path) -> None:
    done = subprocess.run(
        [console_script(), "compare", "-s", "num_users=0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 2
    assert "num_users" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_bench_measures_both_environments() -> None:
    output = succeeded(run("bench", "--num-envs", "4", "--seconds", "0.1", *settings_of()))
    assert "single" in output
    assert "batch of 4" in output


def test_a_bug_in_a_strangers_agent_shows_where_it_is(folder: Path) -> None:
    (folder / "buggy.py").write_text(
        "class Agent:\n    def predict(self, observation, **_):\n        return {}['my mistake']\n"
    )
    result = run(*BASE, "--agent", "buggy:Agent", *SET)
    assert result.exit_code == 2
    text = " ".join(result.output.split())
    assert "buggy.py" in text
    assert "my mistake" in text
    assert "'buggy:Agent' failed in predict" in text


def test_baselines_that_do_not_suit_the_scenario_are_left_out(
    folder: Path, quick_agents: None
) -> None:
    output = succeeded(run("compare", "--channels", "5", *settings_of(num_users=4)))
    assert "left out: zf" in output
    assert "rzf" in output


def test_what_was_trained_survives_until_the_results_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(AGENT_PRESETS["paper"], iterations=5)
    monkeypatch.setitem(AGENT_PRESETS, "paper", short)  # type: ignore[arg-type]
    learner = [*BASE, "--agent", "primal-dual-paper", "-o", "out", *SET]
    (folder / "late.py").write_text(
        "class Agent:\n    def predict(self, *_, **__): raise OSError\n"
    )
    assert run(*learner, "--agent", "late:Agent").exit_code == 2
    kept = folder / "out" / "compare.unfinished"
    assert {p.name for p in kept.iterdir()} == {"primal-dual-paper.checkpoint.zip", "rows.json"}
    with monkeypatch.context() as patch:
        patch.delattr(LearningAgent, "learn")  # it is not trained again
        succeeded(run(*learner))
    assert not kept.exists()
    with (folder / "out" / "compare.csv").open(newline="") as file:
        resumed = next(csv.DictReader(file))["spectral_efficiency"]
    succeeded(run(*BASE, "--agent", "primal-dual-paper", "-o", "anew", *SET))
    with (folder / "anew" / "compare.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["spectral_efficiency"] == resumed


@pytest.mark.parametrize("damage", ["nested JSON", "a pipe"])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("evaluate", "bad.zip", *SET), "bad.zip"),
        (("compare", "--only", "--agent", "bad.zip", "--channels", "4", *SET), "bad.zip"),
        ((*MRT_ONLY, "--channel", "file:bad.npz", *SET), "bad.npz"),
        (("train", "primal-dual-paper", "-o", "bad.zip", *SET), "bad.checkpoint.zip"),
    ],
    ids=["evaluate", "compare", "channels", "train"],
)
def test_a_damaged_file_ends_in_an_error_that_names_it(
    folder: Path, command: tuple[str, ...], name: str, damage: str
) -> None:
    path = folder / name
    if damage == "a pipe":
        os.mkfifo(path)
    else:
        PrimalDual(make(), "paper").save(path)
        path.write_bytes(ANY_FILE[damage](path.read_bytes()))
    failed(run(*command), "error:", name)
