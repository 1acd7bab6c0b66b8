"""The studies of learning agents, on small scenarios."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from isac_gym.agents import PrimalDual
from isac_gym.agents.callbacks import EvaluationCallback
from isac_gym.cli import app
from isac_gym.experiments.conditions import conditions_figure, run_conditions, run_sizes
from isac_gym.experiments.paper_network import run_paper_network
from isac_gym.experiments.study import Study, over_seeds
from isac_gym.experiments.transfer import _Curve, run_transfer, transfer_figure
from isac_gym.scenario import Scenario

SMALL = Scenario(
    num_users=2,
    num_comm_antennas=4,
    num_radar_antennas=4,
    radar_power=0.8,
    target_angles_deg=(-50.0, 10.0),
    sensing_threshold=0.16,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    env = gym.make("ISAC-MISO-v0", scenario=SMALL)
    path = tmp_path_factory.mktemp("agents") / "agent.zip"
    agent = PrimalDual(env, iterations=10, stages=((6.0, 2),), calibration_channels=128)
    agent.learn().save(path)
    return path


def checked(study: Study) -> None:
    """The table and both files say the same."""
    rows = list(csv.DictReader(io.StringIO(study.to_csv())))
    assert len(rows) == len(study.rows)
    content = json.loads(study.to_json())
    assert content["settings"]["scenario"]["num_users"] == 2
    for row, line, entry in zip(study.rows, rows, content["rows"], strict=True):
        assert list(row) == list(line) == list(entry)
        for key, value in row.items():
            if isinstance(value, float):
                assert float(line[key]) == value
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(study)
    text = " ".join(console.export_text().split())
    assert all(word in text for word in study.title.split())


def test_over_seeds_is_the_student_interval() -> None:
    from scipy import stats

    values = [1.0, 2.0, 4.0, 4.5]
    found = over_seeds("x", values)
    assert found["x"] == pytest.approx(np.mean(values))
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2.0
    assert found["± x"] == pytest.approx(half)


def test_conditions(saved: Path) -> None:
    study = run_conditions(saved, SMALL, snr_db=(0.0, 10.0), thresholds=(0.16, 0.2), channels=24)
    checked(study)
    assert [(row["SNR, dB"], row["ε"]) for row in study.rows] == [
        (0.0, 0.16),
        (0.0, 0.2),
        (10.0, 0.16),
        (10.0, 0.2),
    ]
    for row in study.rows:
        assert row["% of optimum"] == pytest.approx(100 * row["bit/s/Hz"] / row["optimum"])
        assert row["optimum's L_r"] <= row["ε"] * (1 + 1e-4)
    assert len(conditions_figure(study).axes[0].lines) == 4


def test_sizes_keep_the_ratio_of_the_threshold_to_its_floor(saved: Path) -> None:
    study = run_sizes(saved, SMALL, users=(2, 3), antennas=(4, 5), channels=16)
    checked(study)
    assert [(row["K"], row["M"]) for row in study.rows] == [(2, 4), (3, 4), (2, 5)]
    larger = SMALL.replace(num_comm_antennas=5, num_radar_antennas=5, sensing_threshold=9.0)
    ratio = SMALL.sensing_threshold / SMALL.sensing_floor()[0]
    assert study.rows[2]["ε"] == pytest.approx(ratio * larger.sensing_floor()[0])


def test_paper_network() -> None:
    lines: list[str] = []
    study = run_paper_network(SMALL, seeds=(0, 1), channels=16, iterations=3, report=lines.append)
    checked(study)
    assert [row["agent"].split(", ")[1] for row in study.rows] == [
        "power",
        "power",
        "amplitude",
        "amplitude",
        "beamforming",
        "beamforming",
    ]
    assert any("seed 1" in line for line in lines)
    for row in study.rows:
        # No precoder is better than the converged one for the same waveform by much.
        assert 0.0 < row["% of WMMSE, same R"] < 101.0


def test_transfer_counts_to_the_last_time_the_rate_is_below() -> None:
    curve = _Curve([10, 20, 30, 40, 50], [1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 9.8, 9.0, 9.9, 10.1], 0.0)
    final, iterations, seconds = curve.reached()
    assert final == pytest.approx(np.mean([9.0, 9.9, 10.1]))
    assert (iterations, seconds) == (40.0, 4.0)


def test_transfer() -> None:
    study = run_transfer(
        SMALL, settings={"iterations": 6}, seeds=(0, 1), evaluate_every=2, channels=16
    )
    checked(study)
    assert [row["agent"] for row in study.rows] == [
        "direct",
        "transfer, output layer",
        "transfer, all layers",
    ]
    curves = study.settings["curves"]
    assert all(curve["iterations"] == [0, 2, 4, 6] for curve in curves.values())
    assert study.rows[0]["s before"] == 0.0 < study.rows[1]["s before"]
    assert len(transfer_figure(study).axes[0].lines) == 3
    # Before the training: what a fresh agent does.
    rates = [row[0] for row in curves["direct"]["rates"]]
    env = gym.make("ISAC-MISO-v0", scenario=SMALL)
    fresh = [EvaluationCallback(PrimalDual(env, "paper", seed=s), channels=16) for s in (0, 1)]
    assert rates == [evaluation.evaluate(0).sum_rate for evaluation in fresh]


def test_the_untrained_agent_is_no_part_of_the_final_rate() -> None:
    assert _Curve([0, 20], [0.0, 1.0], [1.0, 4.0], 0.0).reached() == (4.0, 20.0, 1.0)


def test_a_single_seed_shows_no_spread() -> None:
    study = Study("one", ({"agent": "mrt", **over_seeds("bit/s/Hz", [3.25])},), {})
    assert study.to_csv() == "agent,bit/s/Hz,± bit/s/Hz\nmrt,3.25,\n"
    assert json.loads(study.to_json())["rows"][0]["± bit/s/Hz"] is None
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(study)
    assert "3.25" in console.export_text(clear=False)
    assert "±" not in console.export_text()


def test_transfer_names_a_wrong_control_before_any_training() -> None:
    lines: list[str] = []
    with pytest.raises(ValueError, match=r"control must be 'beamforming'.*'power'"):
        run_transfer(SMALL.replace(control="power"), report=lines.append)
    assert lines == []


def small_settings() -> list[str]:
    chosen: dict[str, Any] = {
        key: value
        for key, value in SMALL.to_dict().items()
        if value != Scenario.preset("paper").to_dict()[key]
    }
    return [part for key, value in chosen.items() for part in ("-s", f"{key}={json.dumps(value)}")]


def test_command_line(saved: Path, tmp_path: Path) -> None:
    arguments = ["study", "transfer", *small_settings(), "-a", "batch_size=4", "--seeds", "1"]
    arguments += ["--iterations", "4", "--channels", "8", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for ending in ("csv", "json", "png"):
        assert (tmp_path / f"transfer.{ending}").stat().st_size > 0
    settings = json.loads((tmp_path / "transfer.json").read_text())["settings"]
    assert settings["agent_settings"] == {"batch_size": 4, "iterations": 4}


def test_command_line_names_what_is_wrong(tmp_path: Path) -> None:
    bad = ["study", "conditions", "--agent", "pretrained:best", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, bad)
    assert result.exit_code == 2
    assert "pretrained:best" in result.output
