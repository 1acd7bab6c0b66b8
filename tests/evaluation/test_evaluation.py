"""The comparison: a fixed set, honest intervals, and agents of any origin."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from direct_model import SMALL
from scipy import special, stats

import isac_gym
from isac_gym import GaussMarkovChannel, RayleighChannel, Scenario
from isac_gym.agents import PrimalDual
from isac_gym.baselines import MRT, RZF, ZF, EqualPower, RandomPower
from isac_gym.evaluation import (
    Column,
    Comparison,
    Table,
    compare,
    evaluate,
    evaluation_set,
    judging,
)
from isac_gym.evaluation.statistics import mean_interval
from isac_gym.registry import CHANNELS
from isac_gym.system.constraints import Constraint


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


class Constant:
    """The same action for every observation."""

    def __init__(self, action: npt.ArrayLike) -> None:
        self.action = np.asarray(action)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        lead = np.shape(observation)[:-1]
        return np.broadcast_to(self.action, (*lead, *self.action.shape)).copy(), state


class Hashing(Constant):
    """A different action for every observation, without a state."""

    def __init__(self, size: int) -> None:
        self.mix = np.random.default_rng(0).normal(size=size)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        total = np.asarray(observation).sum(-1, keepdims=True)
        return np.sin(total * self.mix * 5.0), None


# The evaluation set


def test_the_set_depends_on_its_arguments_alone() -> None:
    scenario = Scenario(**SMALL, csi_error_variance=0.1)
    first = evaluation_set(scenario, RayleighChannel(), 50, 7)
    np.random.seed(123)  # noqa: NPY002  (the global generator must not matter)
    env = make(csi_error_variance=0.1)
    env.reset(seed=99)
    env.step(env.action_space.sample())
    second = evaluation_set(scenario, RayleighChannel(), 50, 7)
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.channels, second.channels)
    np.testing.assert_array_equal(first.estimates, second.estimates)
    assert first.channels.shape == (50, 1, 1, 1, 3, 9)
    assert (first.count, first.seed) == (50, 7)


def test_the_hash_changes_with_every_argument() -> None:
    base = Scenario(**SMALL)
    arguments = {
        "base": (base, RayleighChannel(), 50, 7),
        "seed": (base, RayleighChannel(), 50, 8),
        "count": (base, RayleighChannel(), 51, 7),
        "dimensions": (base.replace(num_users=2), RayleighChannel(), 50, 7),
        "estimate": (base.replace(csi_error_variance=0.1), RayleighChannel(), 50, 7),
        "estimates": (base.replace(csi_error_variance=0.2), RayleighChannel(), 50, 7),
        "model": (base, GaussMarkovChannel(0.1), 50, 7),
        "cells": (base.replace(num_cells=2), RayleighChannel(), 50, 7),
        "gain": (base.replace(num_cells=2, intercell_gain=0.2), RayleighChannel(), 50, 7),
    }
    digests = {name: evaluation_set(*given).digest for name, given in arguments.items()}
    assert len(set(digests.values())) == len(digests)
    assert all(len(digest) >= 16 for digest in digests.values())
    # What the channels do not depend on does not make another set.
    assert (
        evaluation_set(base.replace(snr_db=3.0), RayleighChannel(), 50, 7).digest
        == (digests["base"])
    )


def test_correlated_channels_come_as_whole_episodes() -> None:
    scenario = Scenario(**SMALL, doppler=0.1, episode_length=4, csi_error_variance=0.05)
    blocks = evaluation_set(scenario, GaussMarkovChannel(0.1), 401, 7)
    assert blocks.channels.shape == (101, 4, 1, 1, 3, 9)
    assert blocks.count == 404
    rho = special.j0(2 * np.pi * 0.1)
    H = blocks.channels
    bound = 4 / np.sqrt(H[:, 0].size)
    for lag in (1, 2, 3):
        assert abs(np.mean(H[:, lag] * H[:, 0].conj()) - rho**lag) < bound
    assert abs(np.mean(H[1:, 0] * H[:-1, 3].conj())) < bound
    error = blocks.estimates - H
    assert np.mean(np.abs(error) ** 2) == pytest.approx(0.05, abs=4 * 0.05 / np.sqrt(error.size))


@pytest.mark.parametrize("count", [0, -3, 2.5, True, "9", None])
def test_bad_counts(count: Any) -> None:
    with pytest.raises(ValueError, match="channels must be an integer >= 1"):
        evaluation_set(Scenario(**SMALL), RayleighChannel(), count, 7)


def test_single_batched_and_wrapped_environments_give_the_same_set() -> None:
    single = make()
    wrapped = gym.wrappers.RecordEpisodeStatistics(make())
    batched = gym.make_vec("ISAC-MISO-v0", num_envs=3, **SMALL)
    found = [
        compare({"mrt": MRT(env)}, env, channels=20, seed=3) for env in (single, wrapped, batched)
    ]
    assert len({c.settings["evaluation_set"] for c in found}) == 1
    assert len({c["mrt"].spectral_efficiency for c in found}) == 1


# What is measured


def test_mean_rate_agrees_with_the_ergodic_capacity() -> None:
    """One user, MRT, next to no radar: E log2(1 + ρ‖g‖²) in exponential integrals."""
    antennas, snr = 4, 10.0
    env = make(num_users=1, num_comm_antennas=antennas, radar_power=1e-7, sensing_threshold=1.0)
    closed = math.exp(1 / snr) * sum(special.expn(k, 1 / snr) for k in range(1, antennas + 1))
    closed /= math.log(2)
    result = compare({"mrt": MRT(env)}, env, channels=4000, seed=1)["mrt"]
    error = result.sum_rates.std(ddof=1) / np.sqrt(4000)
    assert abs(result.spectral_efficiency - closed) < 4 * error
    assert error < 0.02

    covered = 0
    for seed in range(120):
        short = evaluate(
            MRT(env), env, evaluation_set(env.unwrapped.scenario, RayleighChannel(), 25, 100 + seed)
        )
        covered += short.confidence_low <= closed <= short.confidence_high
    # 120 draws of a binomial with 0.95, four standard deviations down; all 120 would be too wide.
    assert 104 <= covered < 120


@pytest.mark.parametrize(
    "changes",
    [
        {"power_limit": "cost", "control": "power"},
        {"scheduling": "contention", "csi_error_variance": 0.2},
        {"num_cells": 2, "power_limit": "cost", "control": "amplitude"},
        {"doppler": 0.1, "episode_length": 3, "sensing_threshold": 0.22},
    ],
    ids=["power", "contention", "cells", "doppler"],
)
def test_every_entry_agrees_with_the_formulas(changes: dict[str, Any]) -> None:
    env = make(**changes)
    scenario = env.unwrapped.scenario
    agent = Hashing(env.action_space.shape[0])
    blocks = evaluation_set(scenario, env.unwrapped.channel_model, 60, 5)
    result = evaluate(agent, env, blocks, name="hashing")

    rates, losses, costs, feasible, patterns = [], [], [], [], []
    powers, kept = [], []
    for episode, block in np.ndindex(*blocks.channels.shape[:2]):
        true, seen = (part[episode, block] for part in (blocks.channels, blocks.estimates))
        observation = np.concatenate([seen.real.ravel(), seen.imag.ravel()])
        action = agent.predict(observation)[0].astype(np.float32)
        precoders, covariances, access = direct_model.decode(scenario, action, seen)
        assert covariances is not None
        paid = direct_model.earned(
            scenario, true.astype(np.complex128), precoders, covariances, access
        )
        rates.append(paid["sum_rate"])
        losses.append(paid["beampattern_error"] + paid["cross_correlation"])
        costs.append(paid["cost"])
        worst = max(np.max(v) for name, v in paid.items() if name.startswith("constraint"))
        assert abs(worst - 1e-4) > 1e-5, "too close to the tolerance to tell"
        feasible.append(worst <= 1e-4)
        kept.append(np.max(paid["constraint_sensing"]) <= 1e-4)
        powers.append(paid["comm_power"])
        patterns.append(
            [
                direct_model.reference.beampattern(R, direct_model.reference.GRID, 0.5)
                for R in covariances
            ]
        )
    shape = blocks.channels.shape[:2]
    np.testing.assert_allclose(result.sum_rates, np.reshape(rates, shape), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        result.constraints["sensing"].values,
        np.reshape(losses, (*shape, scenario.num_cells)),
        rtol=1e-4,
    )
    assert result.name == "hashing"
    assert result.spectral_efficiency == pytest.approx(np.mean(rates), rel=1e-4)
    sensing = result.constraints["sensing"]
    assert sensing.mean == pytest.approx(np.mean(losses), rel=1e-4)
    assert sensing.p95 == pytest.approx(np.percentile(losses, 95), rel=1e-4)
    assert sensing.feasible_share == pytest.approx(np.mean(kept))
    assert result.constraints["power"].mean == pytest.approx(np.mean(powers), rel=1e-4)
    assert result.feasible_share == pytest.approx(np.mean(feasible))
    assert result.mean_cost == pytest.approx(np.mean(costs), rel=1e-4)
    np.testing.assert_allclose(result.beampattern, np.mean(patterns, 0), rtol=1e-3, atol=1e-5)
    assert math.isnan(result.percent_of_reference)
    assert 0 < result.seconds_single < 1
    assert 0 < result.seconds_batched < 1

    # Episodes, not blocks, are independent: the interval is that of the episodes' means.
    means = np.reshape(rates, shape).mean(1)
    half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    assert result.confidence_low == pytest.approx(means.mean() - half, rel=1e-3, abs=1e-4)
    assert result.confidence_high == pytest.approx(means.mean() + half, rel=1e-3, abs=1e-4)
    rng = np.random.default_rng(0)
    resampled = rng.choice(means, (4000, len(means))).mean(1)
    width = np.diff(np.quantile(resampled, [0.025, 0.975]))[0]
    assert result.confidence_high - result.confidence_low == pytest.approx(width, rel=0.2)


def test_feasible_share_is_neither_always_none_nor_all() -> None:
    env = make(sensing_threshold=0.22, doppler=0.1, episode_length=3)
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, 60, 5)
    share = evaluate(Hashing(env.action_space.shape[0]), env, blocks).feasible_share
    assert 0 < share < 1


def test_a_single_block_has_no_interval() -> None:
    env = make()
    result = compare({"mrt": MRT(env)}, env, channels=1, seed=0)["mrt"]
    assert (result.confidence_low, result.confidence_high) == (-math.inf, math.inf)


def test_equal_values_have_an_interval_of_no_width() -> None:
    env = make(control="power", radar="fixed")
    result = compare({"silent": Constant(np.full(3, -1.0))}, env, channels=9)["silent"]
    assert result.spectral_efficiency == result.confidence_low == result.confidence_high == 0.0


def test_more_blocks_than_one_chunk() -> None:
    env = make()
    blocks = evaluation_set(env.unwrapped.scenario, RayleighChannel(), 1100, 0)
    whole = evaluate(MRT(env), env, blocks)
    assert whole.sum_rates.shape == (1100, 1)
    tail = dataclasses.replace(
        blocks, channels=blocks.channels[1020:], estimates=blocks.estimates[1020:]
    )
    np.testing.assert_allclose(evaluate(MRT(env), env, tail).sum_rates, whole.sum_rates[1020:])
    agent = Hashing(env.action_space.shape[0])
    result = evaluate(agent, env, blocks)
    assert result.beampattern.mean() == pytest.approx(SMALL["radar_power"] / 4, rel=0.2)


@pytest.mark.parametrize("count", [2, 3, 10, 400])
def test_the_interval_is_that_of_the_t_test(count: int) -> None:
    values = np.random.default_rng(count).exponential(3.0, count)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_the_interval_of_equal_values_and_of_a_single_one() -> None:
    assert mean_interval(np.array([3.0])) == (-math.inf, math.inf)
    assert mean_interval(np.full(7, 2.5)) == (2.5, 2.5)
    assert mean_interval(np.full(7, 0.1)) == pytest.approx((0.1, 0.1), abs=1e-12)


# How long an agent takes


class Clock:
    """A clock that only agents move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed:
    """Takes the seconds that ``duration`` names for a call, given its number and its batch."""

    def __init__(self, clock: Clock, duration: Callable[[int, int], float]) -> None:
        self.clock, self.duration = clock, duration
        self.batches: list[int] = []
        self.singles = 0

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if np.ndim(observation) == 1:
            self.singles += 1
            self.clock.now += self.duration(-1, 1)
            return np.zeros(3, np.float32), None
        self.clock.now += self.duration(len(self.batches), len(observation))
        self.batches.append(len(observation))
        return np.zeros((len(observation), 3), np.float32), None


def timed(
    monkeypatch: pytest.MonkeyPatch,
    duration: Callable[[int, int], float],
    channels: int,
    **changes: Any,
) -> tuple[Timed, Any]:
    clock = Clock()
    monkeypatch.setattr(judging, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    env = make(control="power", radar="fixed", **changes)
    agent = Timed(clock, duration)
    scenario, model = env.unwrapped.scenario, env.unwrapped.channel_model
    return agent, evaluate(agent, env, evaluation_set(scenario, model, channels, 0))


EPISODES: dict[str, Any] = {"doppler": 0.05, "episode_length": 4}


def test_a_slow_agent_is_not_called_again_to_measure_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [50.0, 3.0, 5.0, 4.0]
    agent, result = timed(
        monkeypatch, lambda call, size: 2.0 if call < 0 else seconds[call], 40, **EPISODES
    )
    assert agent.batches == [10] * 4
    assert agent.singles == 1  # one call is more than a second
    # The first call, which also pays for what is set up at first use, is left out.
    assert result.seconds_batched == pytest.approx(4.0 / 10)
    assert result.seconds_single == pytest.approx(2.0)


def test_a_quick_agent_is_called_for_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, result = timed(monkeypatch, lambda call, size: 0.26, 40, **EPISODES)
    assert agent.batches == [10] * (4 + 4)
    assert agent.singles == 4
    assert result.seconds_batched == pytest.approx(0.026)
    assert result.seconds_single == pytest.approx(0.26)


def test_a_very_quick_agent_is_called_thirty_times(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, result = timed(monkeypatch, lambda call, size: 1e-4 * size, 40, **EPISODES)
    assert len(agent.batches) == 4 + 30
    assert agent.singles == 30
    assert result.seconds_batched == pytest.approx(1e-4)


def test_one_slow_call_among_quick_ones_does_not_make_an_agent_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, result = timed(monkeypatch, lambda call, size: 9.0 if call == 2 else 0.3, 40, **EPISODES)
    assert len(agent.batches) > 4
    assert result.seconds_batched == pytest.approx(0.03)


def test_a_slow_agent_with_more_blocks_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, result = timed(monkeypatch, lambda call, size: 0.01 * size, 2000)
    assert agent.batches == [1024, 976]
    assert result.seconds_batched == pytest.approx(0.01)


def test_a_small_last_chunk_does_not_make_a_quick_agent_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call takes as long for 6 observations as for 1024: it is the batch of 1024 that counts."""
    _, result = timed(monkeypatch, lambda call, size: 0.02, 1030)
    assert result.seconds_batched == pytest.approx(0.02 / 1024)


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
            assert row[name] == str(value), name
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


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


# Tables


TABLE = Table(
    "Rates",
    (
        {"agent": "mrt", "rate": 3.25, "± rate": 0.5, "loss": math.nan, "curve": [1.0, math.inf]},
        {"agent": "zf", "rate": 0.5, "± rate": math.inf, "loss": None, "curve": [2.0]},
    ),
    {"seed": 3},
)


def test_csv_leaves_out_lists_and_what_is_no_number(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "new" / "table.csv")
    text = (tmp_path / "new" / "table.csv").read_text()
    assert text == "agent,rate,± rate,loss\nmrt,3.25,0.5,\nzf,0.5,,\n"


def test_json_holds_lists_and_null_for_what_is_no_number(tmp_path: Path) -> None:
    TABLE.to_json(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text())
    assert (content["title"], content["settings"]) == ("Rates", {"seed": 3})
    assert content["rows"][0]["curve"] == [1.0, None]
    assert content["rows"][0]["loss"] is None
    assert content["rows"][1]["± rate"] is None


def test_a_table_shows_numbers_with_their_spread_and_no_lists() -> None:
    lines = str(TABLE).splitlines()
    assert [cell.strip() for cell in lines[2].split("┃")[1:-1]] == ["agent", "rate", "loss"]
    assert [cell.strip() for cell in lines[4].split("│")[1:-1]] == ["mrt", "3.25 ± 0.50", ""]
    assert [cell.strip() for cell in lines[5].split("│")[1:-1]] == ["zf", "0.5000", ""]
    assert "3.25 ± 0.50" in TABLE._repr_html_()


def test_columns_say_what_is_shown() -> None:
    columns = [
        Column("who", lambda row: row["agent"].upper(), "left"),
        Column("both", "{rate:.1f}/{loss:.1f}"),
    ]
    text = str(dataclasses.replace(TABLE, columns=columns, caption="a caption"))
    assert "MRT" in text
    assert "3.2/ " in text
    assert "a caption" in text


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
