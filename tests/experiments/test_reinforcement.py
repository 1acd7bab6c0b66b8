"""Searching settings of reinforcement learning, and its learning curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL
from small_stations import is_drawn, run_twice

pytest.importorskip("stable_baselines3")
pytest.importorskip("optuna")

import optuna

from isac_gym.agents.reinforcement import Reinforcement
from isac_gym.baselines import WMMSE, JointOracle, StructuredSearch
from isac_gym.channels import RayleighChannel, RicianChannel
from isac_gym.envs.wrappers.penalty import find_penalty_weight
from isac_gym.evaluation import compare, evaluation_set
from isac_gym.experiments import Workspace, reinforcement_references, run_experiment
from isac_gym.experiments.reinforcement_curves import (
    ReinforcementCurves,
    _Curve,
    _find_cost,
    _show_cost,
)
from isac_gym.experiments.reinforcement_references import Reference
from isac_gym.experiments.reinforcement_tuning import ReinforcementTuning
from isac_gym.learning.progress import TrainingProgress
from isac_gym.rl import settings
from isac_gym.scenario import Scenario

SCENARIO = Scenario(**SMALL)
QUICK: dict[str, Any] = {
    "num_envs": 32,
    "rollout_length": 4,
    "repeats": 2,
    "batch_size": 64,
    "epochs": 1,
    "gradient_steps": 1,
    "width": 8,
    "penalty": 5.0,
}
TRAINING = {**QUICK, "timesteps": 4096}
CURVES: dict[str, Any] = {"seeds": 2, "channels": 8}


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the work that is kept for a block, a short trial would end before it learns."""
    kept = {"num_envs": 256, "batch_size": 256, "gradient_steps": 1, "width": 16, "rounds": 1}
    monkeypatch.setattr(settings, "KEPT", {**settings.KEPT, ("td3", "structured"): kept})


def make_tuning(**changes: Any) -> ReinforcementTuning:
    settings: dict[str, Any] = {
        "work": 0.3,
        "trials": 3,
        "channels": 32,
        "algorithm": "td3",
        **changes,
    }
    return ReinforcementTuning(scenario=SCENARIO, **settings)


def make_curves(**changes: Any) -> ReinforcementCurves:
    settings = {"agents": ("ppo-lagrangian",), "agent_settings": TRAINING, **CURVES, **changes}
    return ReinforcementCurves(scenario=SCENARIO, **settings)


@pytest.mark.parametrize("algorithm", ["ppo-lagrangian", "td3"])
def test_a_trial_is_an_agent_trained_with_its_settings(algorithm: str) -> None:
    experiment = make_tuning(algorithm=algorithm, trials=1)
    (row,) = run_experiment(experiment).rows
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    kept = Reinforcement(env, algorithm).settings
    names = [name for name in row if hasattr(kept, name) and name != "timesteps"]
    assert {"learning_rate", "batch_size", "width"} <= set(names)
    chosen = {name: row[name] for name in names}
    # The first trial has the settings that are kept.
    assert chosen == pytest.approx({name: getattr(kept, name) for name in names})
    if algorithm == "ppo-lagrangian":
        passes = kept.epochs / kept.repeats
    else:
        passes = kept.gradient_steps * kept.batch_size / kept.num_envs
    weights = Reinforcement(env, algorithm).weights
    agent = Reinforcement(
        env,
        algorithm,
        **chosen,
        final_learning_rate=row["learning_rate"] / 100,
        timesteps=round(0.3e9 / (passes * weights + 30_000)),
    ).learn()
    assert row["timesteps"] == agent.settings.timesteps
    assert agent.model._n_updates > 0
    result = compare({"it": agent}, env, channels=32, seed=11)["it"]
    assert row["spectral_efficiency"] == pytest.approx(result.spectral_efficiency, rel=1e-5)
    excess = result.constraints["sensing"].mean / SCENARIO.sensing_threshold - 1.0
    expected = result.spectral_efficiency - find_penalty_weight(env) * excess
    assert row["score"] == pytest.approx(expected, rel=1e-4)


def test_a_search_that_was_killed_goes_on_as_it_would_have(tmp_path: Path) -> None:
    table, lines = run_twice(make_tuning(), tmp_path, after=1)
    assert lines[0].startswith("trial 1 (2 of 3)")
    whole = run_experiment(make_tuning())
    for row, expected in zip(table.rows, whole.rows, strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}
    scores = [row["score"] for row in table.rows]
    assert scores == sorted(scores, reverse=True)
    assert len({row["learning_rate"] for row in table.rows}) == 3
    assert is_drawn(tmp_path, "rl-tuning")


def test_a_trial_whose_row_was_not_written_is_not_repeated(tmp_path: Path) -> None:
    experiment, workspace = make_tuning(), Workspace(tmp_path)
    first = experiment.run({"trial": 0}, workspace)
    assert experiment.run({"trial": 0}, workspace) == first
    assert experiment.run({"trial": 1}, workspace) != first


def test_curves_end_with_what_the_trained_agents_reach(tmp_path: Path) -> None:
    # Where the radar is fixed the reference is WMMSE, which takes no time.
    scenario = SCENARIO.replace(control="power", radar="fixed", sensing_threshold=0.2)
    agents = ("ppo-lagrangian", "td3:power")
    experiment = ReinforcementCurves(
        scenario=scenario, agents=agents, thresholds=(0.25,), agent_settings=TRAINING, **CURVES
    )
    table, _ = run_twice(experiment, tmp_path, after=2)
    assert is_drawn(tmp_path, "rl")
    trained = {(r["agent"], r["ε"]): r for r in table.rows if r["condition"] == "as trained"}
    own = SCENARIO.sensing_threshold
    assert list(trained) == [(name, limit) for limit in (own, 0.25) for name in agents]
    for (name, limit), row in trained.items():
        algorithm, _, control = name.partition(":")
        env = gym.make("ISAC-MISO-v0", scenario=scenario.replace(sensing_threshold=limit))
        options = {**TRAINING, **({"control": control} if control else {})}
        seeds = (0, 1) if limit == own else (0,)
        learned = [Reinforcement(env, algorithm, seed=seed, **options).learn() for seed in seeds]
        found = [compare({"it": each}, env, channels=8, seed=7)["it"] for each in learned]
        rates = [result.spectral_efficiency for result in found]
        assert row["bit/s/Hz"] == pytest.approx(np.mean(rates), rel=1e-5)
        for curve, rate in zip(row["curves"], rates, strict=True):
            assert curve["rates"][-1] == pytest.approx(rate, rel=1e-5)
            assert curve["channels"] == sorted(set(curve["channels"]))
            assert 1000 <= curve["channels"][0] < 1500
            assert len(curve["channels"]) >= 3


def test_a_training_that_was_killed_has_the_curve_of_one_that_was_not(tmp_path: Path) -> None:
    """Nothing is drawn twice, and no time is lost but that since the last checkpoint."""
    scenario = SCENARIO.replace(control="power", radar="fixed", sensing_threshold=0.2)
    settings = {**TRAINING, "timesteps": 16384, "blocks_per_checkpoint": 1024}
    experiment = ReinforcementCurves(
        scenario=scenario,
        agents=("ppo-lagrangian",),
        agent_settings=settings,
        seeds=1,
        channels=8,
    )
    (whole,) = run_experiment(experiment).rows[:1]
    seen: list[int] = []

    def kill(self: Any, progress: Any) -> None:
        seen.append(progress.iteration)
        if progress.iteration > 8000:
            raise KeyboardInterrupt
        call(self, progress)

    call = _Curve.__call__
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_Curve, "__call__", kill)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment, tmp_path)
    killed_at = max(seen)
    assert killed_at < 16384
    (row,) = run_experiment(experiment, tmp_path).rows[:1]
    (found,), (expected,) = row["curves"], whole["curves"]
    assert found["rates"] == expected["rates"]
    assert found["channels"] == expected["channels"]
    assert found["seconds"] == sorted(found["seconds"])
    assert row["blocks"] == 2 * row["channels"] == 16384


def test_agents_are_carried_unchanged_to_other_conditions() -> None:
    scenario = SCENARIO.replace(control="power", radar="fixed", sensing_threshold=0.2)
    experiment = ReinforcementCurves(
        scenario=scenario,
        agents=("ppo-lagrangian",),
        agent_settings=TRAINING,
        seeds=1,
        channels=8,
    )
    rows = {row["condition"]: row for row in run_experiment(experiment).rows}
    assert len(rows) == 5
    env = gym.make("ISAC-MISO-v0", scenario=scenario)
    agent = Reinforcement(env, "ppo-lagrangian", **TRAINING).learn()
    shifted = {
        "Rician, 5 dB": gym.make(
            "ISAC-MISO-v0", scenario=scenario, channel_model=RicianChannel(k_factor_db=5.0)
        ),
        "CSI error 0.1": gym.make(
            "ISAC-MISO-v0", scenario=scenario.replace(csi_error_variance=0.1)
        ),
    }
    for name, other in shifted.items():
        agents = {"it": agent, "wmmse": WMMSE(other)}
        found = compare(agents, other, channels=8, seed=7)
        rate, best = (found[each].spectral_efficiency for each in agents)
        assert rows[name]["bit/s/Hz"] == pytest.approx(rate, rel=1e-5)
        assert rows[name]["difference"] == pytest.approx(rate - best, abs=1e-5)
        assert rows[name]["% of optimum"] == pytest.approx(100 * rate / best, rel=1e-5)


def test_the_reference_of_a_learned_radar_is_the_joint_optimum_on_the_mean() -> None:
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    blocks = evaluation_set(SCENARIO, RayleighChannel(), 8, 7)
    found = make_curves().find_reference(env, blocks, Workspace())
    searching = JointOracle(env, constraint="expected")
    price = searching.find_price(torch.from_numpy(blocks.channels[:, 0]))
    oracle = JointOracle(env, constraint="expected", price=price)
    expected = compare({"it": oracle}, env, channels=8, seed=7)["it"]
    assert found.rate == pytest.approx(expected.spectral_efficiency, rel=1e-5)
    assert found.loss <= SCENARIO.sensing_threshold * 1.001


def test_references_are_kept_for_a_run_that_goes_on(tmp_path: Path) -> None:
    """One for every threshold, condition, number of channels and reference."""
    scenario = SCENARIO.replace(control="power", radar="fixed")

    def find(channels: int = 8, **changes: Any) -> list[Reference]:
        held = scenario.replace(**changes)
        experiment = ReinforcementCurves(scenario=held, channels=channels)
        env, workspace = experiment.env, Workspace(tmp_path)
        met = [(env, experiment.draw_channels(env, channels, 7))]
        met += [experiment.shift(condition) for condition in experiment.conditions]
        return [experiment.find_reference(*each, workspace) for each in met]

    found = find()
    assert len(found) == len(list(tmp_path.iterdir())) == 5
    find(sensing_threshold=0.25)
    find(16)
    assert len(list(tmp_path.iterdir())) == 15
    env = gym.make("ISAC-MISO-v0", scenario=scenario)
    expected = compare({"it": WMMSE(env)}, env, channels=8, seed=7)["it"]
    np.testing.assert_allclose(found[0].rates, expected.sum_rates, rtol=1e-6)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reinforcement_references, "evaluate", None)
        again = find()
    for each, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(other.rates, each.rates)
        assert other.loss == each.loss


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"rates": [[1.0]], "loss": 0.1}', '{"loss": 0.1}', '{"rates": 1, "loss": 1}'],
)
def test_a_damaged_reference_is_named(tmp_path: Path, content: str) -> None:
    experiment = ReinforcementCurves(
        scenario=SCENARIO.replace(control="power", radar="fixed"), channels=8
    )
    env = experiment.env
    blocks = experiment.draw_channels(env, 8, 7)
    experiment.find_reference(env, blocks, Workspace(tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    again = ReinforcementCurves(scenario=experiment.scenario, channels=8)
    with pytest.raises(ValueError, match=rf"{path.name}: damaged .*; delete it"):
        again.find_reference(env, blocks, Workspace(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"channels": [1]}',
        '{"channels": [8], "seconds": [1.0], "rates": [], "losses": [0.1], "clock": [[8, 1.0]]}',
        '{"channels": [8], "seconds": [1.0], "rates": [NaN], "losses": [0.1], "clock": []}',
    ],
)
def test_a_damaged_curve_of_a_killed_training_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ppo.curve.json"
    path.write_text(content)
    curve = _Curve(None, None, None, 1.0, path)  # type: ignore[arg-type]
    progress = TrainingProgress(16, 100, 0.0, 1.0, {}, {}, 1e-3)
    with pytest.raises(ValueError, match=r"ppo\.curve\.json: damaged .*; delete "):
        curve(progress)


def test_an_unknown_condition_is_named() -> None:
    with pytest.raises(ValueError, match="condition must be one of Rician, 5 dB, "):
        make_curves().shift("fog")


def test_structured_control_is_set_beside_what_its_numbers_allow(tmp_path: Path) -> None:
    # No other conditions where the model is given.
    model, settings = RayleighChannel(), {**TRAINING, "timesteps": 256}
    experiment = make_curves(seeds=1, agent_settings=settings, channel_model=model)
    (row,) = run_experiment(experiment, tmp_path).rows
    assert is_drawn(tmp_path, "rl")
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    blocks = evaluation_set(SCENARIO, RayleighChannel(), 8, 7)
    price = StructuredSearch(env).find_price(torch.from_numpy(blocks.channels[:, 0]))
    searched = StructuredSearch(env, price=price)
    expected = compare({"it": searched}, env, channels=8, seed=7)["it"]
    assert row["best structured"] == pytest.approx(expected.spectral_efficiency, rel=1e-5)
    assert row["best structured L_r"] == pytest.approx(expected.constraints["sensing"].mean)
    assert row["% of structured"] == pytest.approx(100 * row["bit/s/Hz"] / row["best structured"])
    assert row["best structured"] < row["reference"]


def test_users_that_contend_are_not_set_beside_users_that_are_all_served() -> None:
    scenario = SCENARIO.replace(scheduling="contention", radar="fixed")
    experiment = ReinforcementCurves(
        scenario=scenario,
        agents=("ppo-lagrangian",),
        agent_settings={**TRAINING, "timesteps": 256},
        channel_model=RayleighChannel(),
        seeds=1,
        channels=8,
    )
    (row,) = run_experiment(experiment).rows
    assert "% of structured" not in row


def test_recorded_channels_have_correlated_antennas() -> None:
    experiment = make_curves(channels=2000)
    drawn = experiment._record_channels()[:, 0, 0, 0]
    found = np.einsum("na,nb->ab", drawn, drawn.conj()) / len(drawn)
    distance = np.abs(np.subtract.outer(*[np.arange(drawn.shape[1])] * 2))
    np.testing.assert_allclose(found, 0.7**distance, atol=0.05)


def test_the_cost_of_a_share_needs_the_constraint_as_well() -> None:
    curve = {
        "channels": [1, 2, 3, 4],
        "seconds": [0.1, 0.2, 0.3, 0.4],
        "rates": [9, 9, 9, 8],
        "losses": [0.2, 0.13, 0.12, 0.12],
    }
    rows = [{"curve": curve}]
    assert _find_cost(rows, 8.5, 0.12, "channels") == 3
    assert _find_cost(rows, 8.5, 0.12, "seconds") == 0.3
    assert _find_cost(rows, 8.5, 0.13, "channels") == 2
    assert math.isinf(_find_cost(rows, 9.5, 0.12, "channels"))
    row = {"channels to 80 %": 1234.0, "seconds to 80 %": 2.6}
    assert _show_cost(row, 80) == "1,234 in 3 s"
    assert _show_cost({"channels to 80 %": math.inf, "seconds to 80 %": math.inf}, 80) == "–"
    assert _show_cost({}, 80) == ""


def test_a_scenario_with_a_channel_model_of_its_own_is_not_shifted() -> None:
    assert len(make_curves().conditions) == 4
    assert ReinforcementCurves(scenario=SCENARIO.replace(doppler=0.1)).conditions == []


def test_a_search_that_was_killed_anywhere_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory or in a folder, and whatever a killed run wrote last, the trials are alike."""

    def judge(self: Any, chosen: Any, number: int, workspace: Workspace) -> dict[str, Any]:
        return {**chosen, "score": -abs(np.log(chosen["learning_rate"] / 1e-3))}

    monkeypatch.setattr(ReinforcementTuning, "_judge", judge)
    experiment, held = make_tuning(), Workspace(tmp_path)
    expected = [experiment.run({"trial": number}, Workspace()) for number in range(12)]
    study = optuna.study.Study

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for number in range(12):
        for owner, method in ((study, "ask"), (ReinforcementTuning, "_judge"), (study, "tell")):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(owner, method, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    make_tuning().run({"trial": number}, held)
        assert make_tuning().run({"trial": number}, held) == expected[number]


def test_what_is_not_allowed_is_named() -> None:
    with pytest.raises(ValueError, match="sensing_threshold must be at least"):
        make_curves(thresholds=(0.01,)).points()
    with pytest.raises(ValueError, match="algorithm must be one of ppo, sac"):
        make_tuning(algorithm="dqn").points()
    with pytest.raises(ValueError, match="evaluation_seed must be another than seed"):
        make_tuning(seed=11).points()
    with pytest.raises(ValueError, match="num_cells must be 1 for this experiment, got 2"):
        ReinforcementCurves(scenario=SCENARIO.replace(num_cells=2)).points()
    with pytest.raises(ValueError, match="algorithm must be one of ppo, sac"):
        make_curves(agents=("dqn",)).points()


def test_files_state_the_settings(tmp_path: Path) -> None:
    run_experiment(make_tuning(trials=1), tmp_path)
    kept = json.loads((tmp_path / "rl-tuning.json").read_text())
    assert kept["settings"]["work"] == 0.3
    assert kept["settings"]["price"] > 0
