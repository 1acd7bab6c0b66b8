"""Comparing agents of any origin: percentages, files, and clear errors."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from direct_model import SMALL
from simple_agents import Constant, Hashing

import isac_gym
from isac_gym import RayleighChannel, Scenario
from isac_gym.agents import PrimalDual
from isac_gym.baselines import MRT, RZF, ZF, EqualPower, RandomPower
from isac_gym.evaluation import (
    Comparison,
    compare,
    evaluate,
    evaluation_set,
)
from isac_gym.registry import AGENTS, CHANNELS, make_agent
from isac_gym.system.constraints import Constraint


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


# The table


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    env = make()
    agents = {
        "mrt": MRT(env),
        "zf": ZF(env),
        "hashing": Hashing(env.action_space.shape[0]),
    }
    return compare(agents, env, channels=80, seed=11)


def test_percent_of_the_best_reference(comparison: Comparison) -> None:
    assert comparison.references == ("mrt", "zf")
    best = max(comparison[name].spectral_efficiency for name in ("mrt", "zf"))
    for result in comparison.results:
        expected = 100 * result.spectral_efficiency / best
        assert result.percent_of_reference == pytest.approx(expected)
    env = make()
    agents = {"mrt": MRT(env), "hashing": Hashing(env.action_space.shape[0])}
    other = compare(agents, env, channels=20, references=["hashing"])
    assert other.references == ("hashing",)
    assert other["hashing"].percent_of_reference == 100.0
    ratio = other["mrt"].spectral_efficiency / other["hashing"].spectral_efficiency
    assert other["mrt"].percent_of_reference == pytest.approx(100 * ratio)


def test_without_references_there_is_no_percentage() -> None:
    env = make()
    table = compare({"a": Hashing(env.action_space.shape[0])}, env, channels=5)
    assert table.references == ()
    assert math.isnan(table["a"].percent_of_reference)


def test_a_silent_reference_gives_no_percentage() -> None:
    env = make(control="power", radar="fixed")
    agents = {"silent": Constant(np.full(3, -1.0)), "loud": Constant(np.ones(3))}
    table = compare(agents, env, channels=5, references=["silent"])
    assert not math.isfinite(table["loud"].percent_of_reference)
    assert str(table)


def test_csv_holds_every_scalar(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "table.csv"
    comparison.to_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["mrt", "zf", "hashing"]
    for row, result in zip(rows, comparison.results, strict=True):
        assert row.keys() == result.row().keys()
        for name, value in result.row().items():
            assert row[name] == ("" if value is None else str(value)), name
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_several_stations_have_columns_of_their_own(comparison: Comparison) -> None:
    class Central(Constant):
        bits_per_link = None

    class Telling(Constant):
        bits_per_link = 24

    env = make(num_cells=2)
    silent = np.zeros(env.action_space.shape, np.float32)
    table = compare({"central": Central(silent), "telling": Telling(silent)}, env, channels=6)
    shown = str(table)
    assert "bits/link" in shown
    assert "L_r worst" in shown
    assert [row["bits_per_link"] for row in table.rows] == [None, 24]
    losses = table["telling"].constraints["sensing"]
    by_station = [losses.values[..., station].mean() for station in range(2)]
    assert losses.worst_mean == pytest.approx(max(by_station))
    assert losses.mean == pytest.approx(np.mean(by_station))
    assert "bits/link" not in str(comparison)


def test_json_holds_settings_and_is_strict(comparison: Comparison, tmp_path: Path) -> None:
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    path = tmp_path / "table.json"
    comparison.to_json(path)
    content = json.loads(path.read_text(), parse_constant=no_constants)
    settings = content["settings"]
    assert Scenario.from_dict(settings["scenario"]) == Scenario(**SMALL)
    assert (settings["channels"], settings["evaluation_seed"]) == (80, 11)
    assert settings["versions"]["isac-gym"] == isac_gym.__version__
    assert settings["versions"]["gymnasium"] == gym.__version__
    blocks = evaluation_set(Scenario(**SMALL), RayleighChannel(), 80, 11)
    assert settings["evaluation_set"] == blocks.digest
    assert settings["channel_model"] == CHANNELS.describe(RayleighChannel())
    by_name = {row["name"]: row for row in content["rows"]}
    assert [row["name"] for row in content["rows"] if row["is_reference"]] == ["mrt", "zf"]
    assert by_name["zf"]["spectral_efficiency"] == comparison["zf"].spectral_efficiency

    env = make()
    single = compare({"a": Hashing(env.action_space.shape[0])}, env, channels=1)
    single.to_json(path)
    row = json.loads(path.read_text(), parse_constant=no_constants)["rows"][0]
    assert row["percent_of_reference"] is None
    assert row["confidence_low"] is None


def test_the_table_reads_well(comparison: Comparison) -> None:
    text = str(comparison)
    assert comparison.settings["evaluation_set"] in text
    assert "80 channels, seed 11" in text
    lines = {
        name: line
        for line in text.splitlines()
        for name in ("mrt", "zf", "hashing")
        if f" {name} " in line
    }
    for name, line in lines.items():
        result = comparison[name]
        assert f"{result.spectral_efficiency:.3f}" in line
        assert f"{result.confidence_low:.3f}" in line
        assert f"{result.confidence_high:.3f}" in line
        assert f"{result.constraints['sensing'].mean:.4f}" in line
        assert ("*" in line) == (name in comparison.references)
    assert len(lines) == 3
    html = comparison._repr_html_()
    assert "hashing" in html
    assert html.lstrip().startswith("<pre")


class TotalPower(Constraint):
    """All that a station transmits, in milliwatts."""

    name, description, symbol, unit = "total", "all that a station transmits", "P_Σ", "mW"

    def limit(self, scenario: Scenario) -> float:
        return 1e3

    def quantity(self, outcome: Any, system: Any) -> Any:
        return 1e3 * (outcome.transmission.comm_power + system.scenario.radar_power)


def test_a_further_constraint_has_entries_and_columns(tmp_path: Path) -> None:
    env = make(constraints=(TotalPower(),))
    found = compare({"mrt": MRT(env)}, env, channels=6)
    total = found["mrt"].constraints["total"]
    assert total.mean == pytest.approx(1e3 * (1.0 + SMALL["radar_power"]), rel=1e-5)
    assert total.feasible_share == found["mrt"].feasible_share == 0.0
    assert found["mrt"].worst_mean_constraint == pytest.approx(SMALL["radar_power"], rel=1e-5)
    text = str(found)
    assert f"{total.mean:.4f}" in text
    assert all(heading in text for heading in ("P_Σ mean", "P_Σ p95", "L_r mean", "P_Σ ≤ 1000"))
    assert "P mean" not in text  # the budget cannot be exceeded here
    found.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["total_mean"], row["total_feasible"]) == (str(total.mean), "0.0")
    assert row["power_feasible"] == "1.0"
    names = [entry["name"] for entry in found.settings["constraints"]]
    assert names[:2] == ["power", "sensing"]
    assert names[2].endswith("TotalPower")


def test_the_budget_is_shown_where_it_can_be_exceeded() -> None:
    env = make(power_limit="cost")
    assert "P mean" in str(compare({"mrt": MRT(env)}, env, channels=3))


def test_an_unknown_result(comparison: Comparison) -> None:
    with pytest.raises(KeyError, match=r"'nosuch'.*mrt"):
        comparison["nosuch"]


def test_nothing_to_compare_and_unknown_references() -> None:
    env = make()
    with pytest.raises(ValueError, match="at least one agent"):
        compare({}, env)
    with pytest.raises(ValueError, match="nosuch"):
        compare({"mrt": MRT(env)}, env, references=["nosuch"])
    with pytest.raises(TypeError, match="ISAC-MISO"):
        compare({"mrt": MRT(env)}, gym.make("CartPole-v1"))


def test_the_callback_sees_every_result_as_it_comes() -> None:
    env = make()
    names: list[str] = []
    agents = {"zf": ZF(env), "mrt": MRT(env)}
    compare(agents, env, channels=5, callback=lambda result: names.append(result.name))
    assert names == ["zf", "mrt"]


# Agents of any origin


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (np.full(62, np.nan), ValueError),
        (np.full(62, np.inf), ValueError),
        (np.full(62, 1.01), ValueError),
        (np.zeros(61), ValueError),
        (np.zeros((1, 62)), ValueError),
        (np.zeros(62, complex), TypeError),
        (np.full(62, None), TypeError),
        (np.zeros(62, np.bool_), TypeError),
    ],
)
def test_an_invalid_action_names_the_agent(action: Any, error: type[Exception]) -> None:
    env = make()
    with pytest.raises(error, match="agent 'their agent': action must"):
        compare({"mrt": MRT(env), "their agent": Constant(action)}, env, channels=5)


def test_what_cannot_predict_is_named() -> None:
    env = make()
    with pytest.raises(TypeError, match=r"'mute' must have predict"):
        compare({"mute": object()}, env, channels=5)  # type: ignore[dict-item]


def test_recurrent_agents_get_their_state_and_the_starts_of_episodes() -> None:
    class Counting:
        """Transmits with power that depends on how many blocks of the episode it has seen."""

        def __init__(self) -> None:
            self.calls: list[tuple[bool, npt.NDArray[np.bool_], bool]] = []

        def predict(
            self,
            observation: Any,
            state: Any = None,
            episode_start: Any = None,
            deterministic: bool = False,
        ) -> tuple[Any, Any]:
            if np.ndim(observation) == 1:
                return np.zeros(3, np.float32), None
            self.calls.append((state is None, np.array(episode_start), deterministic))
            seen = np.zeros(len(observation)) if state is None else state
            seen = np.where(episode_start, 0, seen) + 1
            action = np.full((len(observation), 3), -1.0)
            action[:, 0] = -1.0 + 2.0 * seen / 4
            return action, seen

    env = make(control="power", radar="fixed", doppler=0.05, episode_length=4, power_limit="cost")
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, 1030 * 4, 0)
    agent = Counting()
    result = evaluate(agent, env, blocks, deterministic=False)
    # Two portions of episodes, each four blocks long.
    # What follows them are calls for the latency, which leave the results alone.
    calls = agent.calls[:8]
    assert [first for first, _, _ in calls] == [True, False, False, False] * 2
    for index, (_, starts, deterministic) in enumerate(calls):
        assert starts.shape == ((1024,) if index < 4 else (6,))
        assert starts.all() if index % 4 == 0 else not starts.any()
        assert not deterministic
    # The one user with power p hears noise and the fixed radar alone.
    f, g = blocks.channels[..., 0, 0, 0, :4], blocks.channels[..., 0, 0, 0, 4:]
    V = env.unwrapped.system.best_streams().numpy()[0]
    radar = np.sum(np.abs(f @ V) ** 2, -1)
    power = np.arange(1, 5) / 4
    ratio = power * np.sum(np.abs(g) ** 2, -1) / (radar + env.unwrapped.scenario.noise_power)
    np.testing.assert_allclose(result.sum_rates, np.log2(1 + ratio), rtol=1e-4)


def test_deterministic_is_passed_on() -> None:
    env = make()
    seen = []

    class Listening(Constant):
        def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            seen.append(kwargs["deterministic"])
            return super().predict(observation)

    for deterministic in (True, False):
        seen.clear()
        agents = {"a": Listening(np.zeros(62))}
        table = compare(agents, env, channels=3, deterministic=deterministic)
        assert set(seen) == {deterministic}
        assert table.settings["deterministic"] is deterministic


def test_an_agent_cannot_spoil_the_set_for_the_others() -> None:
    class Vandal(Constant):
        def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            result = super().predict(observation)
            observation[...] = 1e6
            return result

    env = make()
    alone = compare({"mrt": MRT(env)}, env, channels=10)
    after = compare({"vandal": Vandal(np.zeros(62)), "mrt": MRT(env)}, env, channels=10)
    assert after["mrt"].spectral_efficiency == alone["mrt"].spectral_efficiency
    assert after.settings["evaluation_set"] == alone.settings["evaluation_set"]


def test_a_stable_baselines3_model_plugs_in_unchanged() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = make(num_users=2)
    model = sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=8, seed=0, device="cpu")
    model.learn(32)
    table = compare({"ppo": model, "ppo policy": model.policy, "mrt": MRT(env)}, env, channels=30)
    assert table.references == ("mrt",)
    assert table["ppo"].spectral_efficiency == table["ppo policy"].spectral_efficiency
    blocks = evaluation_set(env.unwrapped.scenario, RayleighChannel(), 30, 7)
    rates = []
    for channels in blocks.channels[:, 0, 0, 0]:
        observation, _ = env.reset(options={"channels": channels})
        rates.append(env.step(model.predict(observation, deterministic=True)[0])[1])
    np.testing.assert_allclose(table["ppo"].sum_rates[:, 0], rates, rtol=1e-3)


@pytest.mark.parametrize("name", ["mrt", "rzf", "equal", "random", "primal-dual"])
def test_our_agents_go_into_stable_baselines3_evaluation(name: str) -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = make(episode_length=3)
    makers = {
        "mrt": MRT,
        "rzf": RZF,
        "equal": EqualPower,
        "random": lambda env: RandomPower(env, seed=1),
        "primal-dual": lambda env: PrimalDual(env, "paper", seed=0),
    }
    venv = DummyVecEnv([lambda: Monitor(make(episode_length=3))])
    venv.seed(5)
    returns, lengths = evaluate_policy(
        makers[name](env), venv, n_eval_episodes=3, return_episode_rewards=True
    )
    assert lengths == [3] * 3
    agent, expected = makers[name](env), []
    for episode in range(3):
        observation, _ = env.reset(seed=5 if episode == 0 else None)
        total = 0.0
        for _ in range(3):
            action, _ = agent.predict(observation, deterministic=True)
            observation, reward, *_ = env.step(action)
            total += reward
        expected.append(total)
    np.testing.assert_allclose(returns, expected, rtol=1e-4)


@pytest.mark.parametrize("name", AGENTS.names())
def test_every_registered_agent_goes_into_stable_baselines3_evaluation(name: str) -> None:
    """Its mean reward is that of its actions, taken by hand."""
    pytest.importorskip("sb3_contrib")
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecMonitor

    from isac_gym.envs.sb3 import make_sb3_env

    # Prices, or they are settled, which takes a minute; and thresholds that can be attained here.
    changes: dict[str, dict[str, Any]] = {
        "joint-expected": {"price": 1.0},
        "joint-network-expected": {"price": 1.0},
        "structured-expected": {"price": 1.0},
        "joint-leakage": {"leakage_price": 1.0, "interference": 0.1},
        "primal-dual-wide": {"threshold_range": (0.16, 0.2)},
    }
    options = changes.get(name, {})
    fields: dict[str, Any] = {**SMALL, "episode_length": 1}
    try:
        agent = make_agent(name, gym.make("ISAC-MISO-v0", **fields), **options)
    except ValueError as error:
        if "num_cells must be at least 2" not in str(error):
            raise
        fields["num_cells"] = 2
        agent = make_agent(name, gym.make("ISAC-MISO-v0", **fields), **options)
    envs, twins = (make_sb3_env(3, **fields) for _ in range(2))
    for each in (envs, twins):
        each.seed(2)
    mean, _ = evaluate_policy(agent, VecMonitor(envs), n_eval_episodes=3)
    again = make_agent(name, gym.make("ISAC-MISO-v0", **fields), **options)
    rewards = twins.step(again.predict(twins.reset(), deterministic=True)[0])[1]
    assert mean == pytest.approx(float(rewards.mean()), rel=1e-4)
