"""Experiments: the studies of learning agents on small scenarios, the runner, one's own."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from isac_gym import RicianChannel, Scenario
from isac_gym.agents import PrimalDual
from isac_gym.baselines import JointOracle
from isac_gym.cli import app
from isac_gym.evaluation import Table, judging
from isac_gym.evaluation.statistics import over_seeds
from isac_gym.experiments import Experiment, Point, Workspace, run_experiment, setting
from isac_gym.experiments.compare import Compare
from isac_gym.experiments.operating_points import OverConditions, OverSizes
from isac_gym.experiments.paper_network import PaperNetwork
from isac_gym.experiments.transfer_gain import TransferGain, _find_reached
from isac_gym.learning.callbacks import EvaluationCallback
from isac_gym.registry import EXPERIMENTS
from isac_gym.system.constraints import Constraint

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


def checked(experiment: Experiment, folder: Path) -> Table:
    """The table of an experiment; the printed one and both files say the same."""
    table = run_experiment(experiment, folder)
    name = experiment.name
    expected = {f"{name}.csv", f"{name}.json", f"{name}.png"}
    assert {path.name for path in folder.iterdir()} | {f"{name}.png"} == expected
    with (folder / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((folder / f"{name}.json").read_text())
    assert content["settings"] == json.loads(json.dumps(table.settings))
    assert content["settings"]["scenario"]["num_users"] == 2
    for row, line, entry in zip(table.rows, rows, content["rows"], strict=True):
        assert list(row) == list(entry)
        for key, value in row.items():
            assert isinstance(value, list) or line[key] == str(value)
    text = " ".join(str(table).split())
    assert all(word in text for word in table.title.split())
    return table


def test_over_seeds_is_the_student_interval() -> None:
    from scipy import stats

    values = [1.0, 2.0, 4.0, 4.5]
    found = over_seeds("x", values)
    assert found["x"] == pytest.approx(np.mean(values))
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2.0
    assert found["± x"] == pytest.approx(half)


def test_conditions(saved: Path, tmp_path: Path) -> None:
    points: dict[str, Any] = {"snr_db": (0.0, 10.0), "thresholds": (0.16, 0.2)}
    experiment = OverConditions(scenario=SMALL, agent=str(saved), channels=24, **points)
    study = checked(experiment, tmp_path)
    assert [(row["SNR, dB"], row["ε"]) for row in study.rows] == [
        (0.0, 0.16),
        (0.0, 0.2),
        (10.0, 0.16),
        (10.0, 0.2),
    ]
    for row in study.rows:
        assert row["% of optimum"] == pytest.approx(100 * row["bit/s/Hz"] / row["optimum"])
        assert row["optimum's L_r"] <= row["ε"] * (1 + 1e-4)
    assert len(experiment.draw(study).axes[0].lines) == 4
    assert (tmp_path / "conditions.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_keep_the_ratio_of_the_threshold_to_its_floor(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing here depends on how well the price of the optimum is settled.
    monkeypatch.setitem(JointOracle.__init__.__kwdefaults__, "calibration_channels", 32)
    sizes: dict[str, Any] = {"users": (2, 3), "antennas": (4, 5)}
    study = checked(OverSizes(scenario=SMALL, agent=str(saved), channels=16, **sizes), tmp_path)
    assert [(row["K"], row["M"]) for row in study.rows] == [(2, 4), (3, 4), (2, 5)]
    larger = SMALL.replace(num_comm_antennas=5, num_radar_antennas=5, sensing_threshold=9.0)
    ratio = SMALL.sensing_threshold / SMALL.sensing_floor()[0]
    assert study.rows[2]["ε"] == pytest.approx(ratio * larger.sensing_floor()[0])


def test_paper_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing here depends on how well the price of the optimum is settled.
    monkeypatch.setitem(JointOracle.__init__.__kwdefaults__, "calibration_channels", 32)
    experiment = PaperNetwork(scenario=SMALL, seeds=2, channels=16, iterations=3)
    study = checked(experiment, tmp_path)
    assert [row["agent"].split(", ")[1] for row in study.rows] == [
        "power",
        "power",
        "amplitude",
        "amplitude",
        "beamforming",
        "beamforming",
    ]
    for row in study.rows:
        # No precoder is better than the converged one for the same waveform by much.
        assert 0.0 < row["% of WMMSE, same R"] < 101.0


def test_paper_network_names_a_seed_that_sees_the_evaluation() -> None:
    with pytest.raises(ValueError, match="evaluation_seed must be none of the seeds"):
        PaperNetwork(scenario=SMALL, seeds=2, evaluation_seed=1).points()


def curve_of(iterations: list[int], seconds: list[float], rates: list[float]) -> Mapping[str, Any]:
    return {"iterations": iterations, "seconds": seconds, "rates": rates, "violation": 0.0}


def test_transfer_counts_to_the_last_time_the_rate_is_below() -> None:
    curve = curve_of([10, 20, 30, 40, 50], [1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 9.8, 9.0, 9.9, 10.1])
    final, iterations, seconds = _find_reached(curve)
    assert final == pytest.approx(np.mean([9.0, 9.9, 10.1]))
    assert (iterations, seconds) == (40.0, 4.0)


def test_the_untrained_agent_is_no_part_of_the_final_rate() -> None:
    assert _find_reached(curve_of([0, 20], [0.0, 1.0], [1.0, 4.0])) == (4.0, 20.0, 1.0)


def test_transfer(tmp_path: Path) -> None:
    experiment = TransferGain(scenario=SMALL, iterations=6, seeds=2, evaluate_every=2, channels=16)
    study = checked(experiment, tmp_path)
    assert [row["agent"] for row in study.rows] == [
        "direct",
        "transfer, output layer",
        "transfer, all layers",
    ]
    assert all(row["iterations"] == [0, 2, 4, 6] for row in study.rows)
    assert study.rows[0]["s before"] == 0.0 < study.rows[1]["s before"]
    assert len(experiment.draw(study).axes[0].lines) == 3
    # Before the training: what a fresh agent does.
    rates = [of_seed[0] for of_seed in study.rows[0]["rates"]]
    env = gym.make("ISAC-MISO-v0", scenario=SMALL)
    fresh = [EvaluationCallback(PrimalDual(env, "paper", seed=s), channels=16) for s in (0, 1)]
    assert rates == [evaluation.evaluate(0).sum_rate for evaluation in fresh]


def test_transfer_names_a_wrong_control_before_any_training() -> None:
    with pytest.raises(ValueError, match=r"control must be 'beamforming'.*'power'"):
        TransferGain(scenario=SMALL.replace(control="power")).points()


def test_a_single_seed_shows_no_spread() -> None:
    text = str(Table("one", ({"agent": "mrt", **over_seeds("bit/s/Hz", [3.25])},)))
    assert "3.25" in text
    assert "±" not in text


class Silence(Constraint):
    """Next to no power."""

    name, description, symbol, unit = "silence", "next to no power", "P", "W"

    def limit(self, scenario: Scenario) -> float:
        return 1e-3

    def quantity(self, outcome: Any, system: Any) -> Any:
        return outcome.transmission.comm_power


def test_channel_model_and_constraints_reach_every_experiment() -> None:
    for name in EXPERIMENTS.names():
        kind = EXPERIMENTS.load(name)
        experiment = kind(scenario=SMALL, channel_model="rician", constraints=(Silence(),))
        for env in (experiment.env, experiment.make_env(snr_db=3.0)):
            assert env.unwrapped.channel_model == RicianChannel()
            assert "silence" in env.unwrapped.system.constraints


# The runner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squares(Experiment):
    """Squares of numbers; some cannot be computed for now."""

    first: int = setting(1, "The first number.", minimum=0)
    count: int = setting(4, "How many.", minimum=1, only_selects=True)
    done: list[int] = dataclasses.field(default_factory=list)
    missing: list[int] = dataclasses.field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {"first": self.first, "count": self.count, "scenario": self.scenario.to_dict()}

    def points(self) -> list[Point]:
        return [{"number": self.first + index} for index in range(self.count)]

    def run(self, point: Point, workspace: Workspace) -> Mapping[str, Any]:
        number = point["number"]
        if number in self.missing:
            raise KeyboardInterrupt
        self.done.append(number)
        return {"square": number**2, "third": number / 3, "none": math.nan, "list": (1, number)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_goes_on_and_ends_with_the_same_files(tmp_path: Path) -> None:
    whole = run_experiment(Squares(), tmp_path / "whole")
    assert str(whole) == str(run_experiment(Squares()))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Squares(missing=[3]), tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["Squares.unfinished"]
    again = Squares()
    lines: list[str] = []
    run_experiment(again, tmp_path / "killed", lines.append)
    assert again.done == [3, 4]
    assert lines == ["number 3 (3 of 4)", "number 4 (4 of 4)", ""]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert list(contents(tmp_path / "whole")) == ["Squares.csv", "Squares.json"]


def test_what_only_selects_points_may_change(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Squares(missing=[3]), tmp_path)
    fewer = Squares(count=2)
    assert [row["square"] for row in run_experiment(fewer, tmp_path).rows] == [1, 4]
    assert fewer.done == []


def test_rows_of_other_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Squares(missing=[2]), tmp_path)
    before = contents(tmp_path / "Squares.unfinished")
    with pytest.raises(ValueError, match=r"rows must be for first=0, got 1; delete "):
        run_experiment(Squares(first=0), tmp_path)
    assert contents(tmp_path / "Squares.unfinished") == before


def test_a_run_without_rows_does_not_stand_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Squares(missing=[1]), tmp_path)
    assert len(run_experiment(Squares(first=5), tmp_path).rows) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}, "rows": [1]}'])
def test_a_damaged_file_of_rows_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "Squares.unfinished").mkdir()
    (tmp_path / "Squares.unfinished" / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=r"rows.json: damaged"):
        run_experiment(Squares(), tmp_path)


def test_versions_and_scenario_are_among_what_rows_are_kept_for(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"only": True, "agents": ("mrt", "zf"), "channels": 3}
    experiment = Compare(scenario=SMALL, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isac_gym.experiments.compare.evaluate", fail_after(1))
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment, tmp_path)
    for changes in ({"scenario": SMALL.replace(snr_db=3.0)}, {"channel_model": "rician"}):
        other = Compare(**{**settings, "scenario": SMALL, **changes})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"rows must be for {next(iter(changes))}="):
            run_experiment(other, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isac_gym.evaluation.provenance.version", lambda package: "0")
        with pytest.raises(ValueError, match="rows must be for versions="):
            run_experiment(Compare(scenario=SMALL, **settings), tmp_path)
    more = Compare(scenario=SMALL, **{**settings, "agents": ("mrt", "zf", "rzf")})
    table = run_experiment(more, tmp_path)
    assert table.rows == run_experiment(more).rows
    assert [row["name"] for row in table.rows] == ["mrt", "zf", "rzf"]


def test_a_file_that_changes_is_judged_anew(tmp_path: Path) -> None:
    env = gym.make("ISAC-MISO-v0", scenario=SMALL)
    path = tmp_path / "agent.zip"
    settings: dict[str, Any] = {"scenario": SMALL, "only": True, "channels": 3}
    digests, rates = [], []
    for seed in (0, 1):
        PrimalDual(env, "paper", seed=seed).save(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("isac_gym.experiments.compare.evaluate", fail_after(1))
            with pytest.raises(KeyboardInterrupt):
                run_experiment(Compare(agents=(str(path), "mrt", "zf"), **settings), tmp_path)
        rows = json.loads((tmp_path / "compare.unfinished" / "rows.json").read_text())["rows"]
        digests.append(rows[-1][0]["file_digest"])
        rates.append(rows[-1][1]["spectral_efficiency"])
    assert digests[0] != digests[1]
    assert rates[0] != rates[1]


def fail_after(count: int) -> Any:
    calls = []

    def evaluate(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) > count:
            raise KeyboardInterrupt
        return judging.evaluate(*arguments, **options)

    return evaluate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first": -1}, "first must be an integer >= 0, got -1"),
        ({"count": 1.5}, "count must be an integer >= 1, got 1.5"),
    ],
)
def test_settings_have_a_minimum(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Squares(**settings)


# The command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def small_settings() -> list[str]:
    chosen: dict[str, Any] = {
        key: value
        for key, value in SMALL.to_dict().items()
        if value != Scenario.preset("paper").to_dict()[key]
    }
    return [part for key, value in chosen.items() for part in ("-s", f"{key}={json.dumps(value)}")]


def test_command_line(tmp_path: Path) -> None:
    result = run(
        *("study", "transfer", *small_settings(), "-a", "batch_size=4", "--seeds", "1"),
        *("--iterations", "4", "--channels", "8", "-o", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    for ending in ("csv", "json", "png"):
        assert (tmp_path / f"transfer.{ending}").stat().st_size > 0
        assert f"transfer.{ending}" in result.output
    settings = json.loads((tmp_path / "transfer.json").read_text())["settings"]
    assert settings["agent_settings"] == {"batch_size": 4}
    assert settings["iterations"] == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("conditions", "--agent", "pretrained:best"), "pretrained:best"),
        (("nosuch",), "nosuch"),
        (("json:JSONDecoder",), "must be a subclass of Experiment"),
        (("nosuch_module:Experiment",), "nosuch_module"),
        (("transfer", "--seeds", "0"), "--seeds"),
        (("transfer", "-a", "batch_size"), "NAME=VALUE"),
    ],
)
def test_command_line_names_what_is_wrong(
    folder: Path, arguments: tuple[str, ...], expected: str
) -> None:
    result = run("study", *arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert expected in result.output


OWN = '''\
"""Rate of an agent against the number of users."""

from __future__ import annotations

import dataclasses

from isac_gym.baselines import MRT
from isac_gym.evaluation import evaluate
from isac_gym.experiments import Experiment, Point, Workspace, setting
from isac_gym.registry import register_experiment


@register_experiment("rate-by-users", "rate of MRT against the number of users")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RateByUsers(Experiment):
    """One row for each number of users."""

    channels: int = setting(50, "Channels at every point.", minimum=1)
    users: tuple[int, ...] = setting((1, 2), "Number of users.", minimum=1, option="--users -k")
    is_quiet: bool = False

    def points(self) -> list[Point]:
        return [{"K": count} for count in self.users]

    def run(self, point: Point, workspace: Workspace) -> dict[str, float]:
        env = self.make_env(num_users=point["K"])
        result = evaluate(MRT(env), env, self.draw_channels(env, self.channels, 7))
        return {"bit/s/Hz": result.spectral_efficiency}
'''


def test_an_experiment_of_ones_own_is_one_file(folder: Path) -> None:
    assert len(OWN.splitlines()) <= 40
    (folder / "own_experiment.py").write_text(OWN)
    chosen = ("--channel", "rician", "-c", "k_factor_db=3", *small_settings())
    for start in (
        ("--import", "own_experiment", "rate-by-users"),
        ("--import", "own_experiment", "study", "rate-by-users"),
        ("study", "own_experiment:RateByUsers"),
    ):
        result = run(*start, "-k", "1", "-k", "3", "--channels", "9", "-o", "out", *chosen)
        assert result.exit_code == 0, result.output
        assert set(contents(folder / "out")) == {"rate-by-users.csv", "rate-by-users.json"}
        settings = json.loads((folder / "out" / "rate-by-users.json").read_text())["settings"]
        assert (settings["channels"], settings["users"]) == (9, [1, 3])
        assert settings["channel_model"]["arguments"]["k_factor_db"] == 3
    text = run("--import", "own_experiment", "rate-by-users", "--help").output
    assert all(word in text for word in ("--users", "-k", "--no-is-quiet", "Channels"))
    assert "rate-by-users" in run("--import", "own_experiment", "studies").output
    failing = run("--import", "own_experiment", "rate-by-users", "--channels", "0")
    assert failing.exit_code == 2
    assert "--channels" in failing.output


def test_a_default_scenario_that_a_command_cannot_name_is_an_error(folder: Path) -> None:
    field = "dataclasses.field(default_factory=lambda: Scenario(num_users=3))"
    own = OWN.replace("is_quiet: bool = False", f"scenario: Scenario = {field}")
    own = own.replace("from isac_gym.b", "from isac_gym import Scenario\nfrom isac_gym.b", 1)
    own = own.replace('"rate-by-users"', '"rate-of-three"')
    (folder / "unnamed_scenario.py").write_text(own)
    result = run("study", "unnamed_scenario:RateByUsers")
    assert result.exit_code == 2
    assert "default scenario of RateByUsers must be a preset" in " ".join(result.output.split())
