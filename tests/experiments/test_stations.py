"""Stations one by one: how they are judged, how they converge, what they send, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import reference
from command_line import failed, run, succeeded
from small_agents import TOY
from small_stations import (
    QUICK,
    SCENARIO,
    TARGETS,
    is_drawn,
    judged_by_hand,
    run_twice,
    save_agent,
)

from isac_gym import Scenario
from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.baselines import RZF, ZF
from isac_gym.evaluation import evaluate, evaluation_set, judging
from isac_gym.experiments import by_station, run_experiment
from isac_gym.experiments.by_station import judge_stations
from isac_gym.experiments.message_noise import MessageNoise
from isac_gym.experiments.message_training import MessageTraining
from isac_gym.experiments.message_value import MessageValue
from isac_gym.experiments.stations_convergence import StationsConvergence
from isac_gym.experiments.stations_patterns import StationsPatterns


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_agent(tmp_path_factory.mktemp("agents") / "agent.zip")


# What stations achieve


def test_stations_are_judged_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_station, "_CHUNK", 2)
    scenario = SCENARIO.replace(doppler=0.05, csi_error_variance=0.1, episode_length=4)
    env = gym.make("ISAC-MISO-v0", scenario=scenario)
    blocks = evaluation_set(scenario, env.unwrapped.channel_model, 20, 3)  # type: ignore[attr-defined]
    found, whole = judge_stations(ZF(env), env, blocks), evaluate(ZF(env), env, blocks)
    assert found.rates.shape == (5, 4, 3)
    np.testing.assert_allclose(found.rates.sum(-1), whole.sum_rates, rtol=1e-5)
    np.testing.assert_allclose(found.losses, whole.constraints["sensing"].values, rtol=1e-5)
    np.testing.assert_allclose(found.beampattern, whole.beampattern, rtol=1e-5)
    assert found.worst_mean_constraint == pytest.approx(whole.worst_mean_constraint, abs=1e-6)
    row = found.row()
    assert row["rate"] == pytest.approx(whole.spectral_efficiency / 3)
    assert row["confidence_low"] == pytest.approx(whole.confidence_low / 3)
    assert row["confidence_high"] == pytest.approx(whole.confidence_high / 3)


def test_a_failing_agent_is_named() -> None:
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    blocks = evaluation_set(SCENARIO, env.unwrapped.channel_model, 2, 3)  # type: ignore[attr-defined]
    agent = RZF(gym.make("ISAC-MISO-v0", scenario=SCENARIO.replace(num_users=3)))
    with pytest.raises(judging.AgentError, match="agent 'other' failed in predict"):
        judge_stations(agent, env, blocks, name="other")


# Convergence


def make_convergence(**changes: Any) -> StationsConvergence:
    settings: dict[str, Any] = {
        "iterations": 4,
        "seeds": 2,
        "evaluate_every": 3,
        "channels": 6,
        "agent_settings": {**QUICK, "calibration_channels": 16},
        **changes,
    }
    return StationsConvergence(scenario=SCENARIO, **settings)


def test_convergence(tmp_path: Path) -> None:
    experiment = make_convergence()
    table, lines = run_twice(experiment, tmp_path, after=5)  # in the second phase of the second
    assert lines[0].startswith("preset paper, seed 1 (2 of 4)")
    assert [(row["preset"], row["station"]) for row in table.rows] == [
        (preset, station) for preset in ("paper", "tuned") for station in (0, 1, 2)
    ]
    whole = run_experiment(experiment)
    for row, expected in zip(table.rows, whole.rows, strict=True):
        assert row["rates"] == expected["rates"]
        assert row["bit/s/Hz"] == expected["bit/s/Hz"]
        two = [0, 3, 4, 4, 7, 8] if row["preset"] == "paper" else [0, 3, 4]
        assert row["iterations"] == two
        assert np.shape(row["rates"]) == (2, len(two))
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    for preset in ("paper", "tuned"):
        settings: dict[str, Any] = {**QUICK, "calibration_channels": 16, "iterations": 4}
        agents = [DistributedPrimalDual(env, preset, seed=s, **settings).learn() for s in (0, 1)]
        blocks = evaluation_set(SCENARIO, agents[0].channel_model, 6, 7)
        found = [judged_by_hand(agent, SCENARIO, blocks) for agent in agents]
        for station in range(3):
            row = next(r for r in table.rows if (r["preset"], r["station"]) == (preset, station))
            rates = [np.mean([e["rates"][station].sum() for e in each]) for each in found]
            excess = [np.mean([e["constraint_sensing"][station] for e in each]) for each in found]
            assert row["bit/s/Hz"] == pytest.approx(np.mean(rates), rel=1e-4)
            assert row["L_r/ε - 1"] == pytest.approx(np.mean(excess), abs=1e-4)
            if preset == "paper":  # no price that is settled afterwards
                last = [of_seed[-1] for of_seed in row["rates"]]
                assert last == pytest.approx(rates, rel=1e-4)
    power = gym.make("ISAC-MISO-v0", scenario=SCENARIO.replace(control="power"))
    fresh = DistributedPrimalDual(power, "paper", seed=1, **QUICK)
    blocks = evaluation_set(SCENARIO, fresh.channel_model, 6, 7)
    expected = judged_by_hand(fresh, fresh.scenario, blocks)
    first = np.mean([each["rates"][0].sum() for each in expected])
    assert table.rows[0]["rates"][1][0] == pytest.approx(first, rel=1e-4)
    assert is_drawn(tmp_path, "stations-convergence")


def test_a_killed_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make_convergence(presets=("tuned",), seeds=1, iterations=7)
    learn = DistributedPrimalDual.learn

    def learn_often(self: Any, *given: Any, **options: Any) -> Any:
        return learn(self, *given, **options, checkpoint_every=2)

    monkeypatch.setattr(DistributedPrimalDual, "learn", learn_often)
    count = 0
    judge = by_station.judge_stations

    def kill(*given: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return judge(*given, **options)

    target = "isac_gym.experiments.stations_convergence.judge_stations"
    with monkeypatch.context() as patch:
        patch.setattr(target, kill)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment, tmp_path)
    assert (
        tmp_path / "stations-convergence.unfinished" / "tuned-0-beamforming.checkpoint.zip"
    ).exists()
    table = run_experiment(experiment, tmp_path)
    assert table.rows[0]["iterations"] == [0, 3, 6, 7]
    assert [row["rates"] for row in table.rows] == [
        row["rates"] for row in run_experiment(experiment).rows
    ]
    assert len(experiment.draw(table).axes) == 1


# Patterns


def test_patterns(saved: str, tmp_path: Path) -> None:
    experiment = StationsPatterns(scenario=SCENARIO, agents=(saved, "rzf"), channels=8)
    table, lines = run_twice(experiment, tmp_path, after=1)
    assert len(lines) == 2
    assert [(row["agent"], row["station"]) for row in table.rows] == [
        (agent, station) for agent in (saved, "rzf") for station in (0, 1, 2)
    ]
    agent = DistributedPrimalDual.load(saved, experiment.env)
    blocks = evaluation_set(SCENARIO, agent.channel_model, 8, 7)
    found = judged_by_hand(agent, SCENARIO, blocks)
    for station, row in enumerate(table.rows[:3]):
        errors = [each["beampattern_error"][station] for each in found]
        assert row["error_mean"] == pytest.approx(np.mean(errors), rel=1e-4)
        assert row["error_p95"] == pytest.approx(np.quantile(errors, 0.95), rel=1e-4)
        patterns = [
            reference.beampattern(each["covariances"][station], reference.GRID, 0.5)
            for each in found
        ]
        np.testing.assert_allclose(row["beampattern"], np.mean(patterns, 0), atol=1e-4)
        rates = [each["rates"][station].sum() for each in found]
        assert row["rate"] == pytest.approx(np.mean(rates), rel=1e-4)
    assert is_drawn(tmp_path, "stations-patterns")
    for axes, targets in zip(experiment.draw(table).axes, TARGETS, strict=True):
        assert all(f"{angle:g}°" in axes.get_title() for angle in targets)
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), reference.GRID)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels[0] == "desired"
        assert labels[1].startswith("agent.zip: MSE ")


# Settings that are not allowed


@pytest.mark.parametrize(
    "kind",
    [MessageValue, MessageNoise, MessageTraining, StationsConvergence, StationsPatterns],
)
def test_one_station_is_refused(kind: Any) -> None:
    single = Scenario(**TOY)
    with pytest.raises(ValueError, match=r"num_cells must be at least 2 .*three-cells.* got 1"):
        kind(scenario=single).points()
    assert kind().scenario == Scenario.preset("three-cells")


def test_settings_that_are_not_allowed_are_named() -> None:
    with pytest.raises(ValueError, match=r"presets must be names among 'paper', .* got 'other'"):
        make_convergence(presets=("other",)).points()
    with pytest.raises(ValueError, match=r"evaluation_seed must be none of the seeds.* got 1"):
        make_convergence(evaluation_seed=1).points()
    power = SCENARIO.replace(control="power")
    with pytest.raises(ValueError, match=r"control must be 'beamforming', got 'power'"):
        StationsConvergence(scenario=power).points()
    with pytest.raises(ValueError, match=r"agent 'primal-dual-paper' is not trained"):
        StationsPatterns(scenario=SCENARIO, agents=("primal-dual-paper",)).points()


# Commands


def test_commands(saved: str, tmp_path: Path) -> None:
    scenario = ["--scenario", "three-cells", "-s", "intercell_gain=0.2"]
    scenario += [f"-s{name}={json.dumps(value)}" for name, value in TOY.items()]
    options = ["--bits", "2", "--channels", "4", "--calibration-channels", "8"]
    value = ["--gain", "0.3", "--reference-channels", "0", "-o", str(tmp_path)]
    result = run("study", "message-value", "--agent", saved, *options, *scenario, *value)
    text = succeeded(result)
    assert "message-value.png" in text
    assert [row["L"] for row in _read_rows(tmp_path / "message-value.json")] == [0, 2, "real"]
    noise = ["--flip", "0", "--flip", "0.1", "--csi-error", "0", "-o", str(tmp_path)]
    succeeded(run("study", "message-noise", "--agent", saved, *options, *scenario, *noise))
    assert len(_read_rows(tmp_path / "message-noise.json")) == 2
    train = ["--preset", "tuned", "--seeds", "1", "--iterations", "1", "-a", "batch_size=2"]
    train += ["-a", "width=4", "-a", "stages=[[6.0, 1]]", "-a", "calibration_channels=0"]
    train += ["--channels", "2", "-o", str(tmp_path)]
    succeeded(run("study", "stations-convergence", *scenario, *train))
    assert len(_read_rows(tmp_path / "stations-convergence.json")) == 3
    ways = ["--quantiser", "gumbel", "--bits", "2"]
    succeeded(run("study", "message-training", *scenario, *ways, *train[2:]))
    assert len(_read_rows(tmp_path / "message-training.json")) == 4
    shown = ["--agent", "rzf", "--channels", "2", "-o", str(tmp_path)]
    succeeded(run("study", "stations-patterns", *scenario, *shown))
    assert len(_read_rows(tmp_path / "stations-patterns.json")) == 3
    alone = run("study", "message-value", "--agent", saved, "--scenario", "paper")
    failed(alone, "num_cells must be at least 2")


def _read_rows(path: Path) -> list[Any]:
    rows: list[Any] = json.loads(path.read_text())["rows"]
    return rows


def test_commands_of_stations_are_for_three_cells_unless_told_otherwise() -> None:
    shown = run("study", "stations-patterns", "--help")
    assert "three-cells" in shown.output
