"""What bits between stations are worth, and what errors do to them, by the direct model."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_stations import SCENARIO, is_drawn, judged_by_hand, loaded, run_twice, save_agent

from isac_gym.agents import PrimalDual
from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.agents.networks.cooperative.planes import count_bits
from isac_gym.baselines import RZF
from isac_gym.evaluation import Table, evaluation_set
from isac_gym.experiments import message_value, run_experiment
from isac_gym.experiments.message_noise import MessageNoise
from isac_gym.experiments.message_value import MessageValue, bootstrap_efficiency
from isac_gym.system.simulation import Simulation


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_agent(tmp_path_factory.mktemp("agents") / "agent.zip")


# What a bit is worth


def make_value(path: str, **changes: Any) -> MessageValue:
    settings: dict[str, Any] = {
        "gains": (0.05, 0.5),
        "message_bits": (3,),
        "channels": 12,
        "calibration_channels": 24,
        "references": ("rzf",),
        "reference_channels": 5,
        **changes,
    }
    return MessageValue(scenario=SCENARIO, agent=path, **settings)


@functools.cache
def value_of(path: str) -> Table:
    return run_experiment(make_value(path))


def test_the_rows_of_what_a_bit_is_worth(saved: str) -> None:
    table = value_of(saved)
    shown = [(row["β"], row["agent"], row["L"], row["channels"]) for row in table.rows]
    assert shown == [
        (gain, *rest)
        for gain in (0.05, 0.5)
        for rest in (("agent", 0, 12), ("agent", 3, 12), ("agent", "real", 12), ("rzf", None, 5))
    ]
    for row in table.rows:
        assert row["confidence_low"] < row["rate"] < row["confidence_high"]
        assert "rates" not in row
    for row in (row for row in table.rows if row["agent"] == "agent"):
        values = (row["efficiency"], row["efficiency_low"], row["efficiency_high"])
        real = next(r for r in table.rows if (r["β"], r["L"]) == (row["β"], "real"))
        if row["L"] == 0:
            assert row["gained"] == 0.0
        if real["gained_low"] <= 0.0:  # it is not certain that there is anything to gain
            assert all(map(math.isnan, values))
        elif row["L"] in (0, "real"):
            assert values == ((1.0 if row["L"] == "real" else 0.0),) * 3
        assert row["bits_per_link"] == (32 * 8 * 6 if row["L"] == "real" else row["L"])
    assert len(table.settings["file_digest"]) == 16
    assert "β" in str(table)


@pytest.mark.parametrize("gain", [0.05, 0.5])
@pytest.mark.parametrize("bits", [0, 3, None])
def test_a_row_is_what_the_direct_model_says(saved: str, gain: float, bits: int | None) -> None:
    rows = [row for row in value_of(saved).rows if row["β"] == gain]
    length = "real" if bits is None else bits
    row = next(row for row in rows if (row["agent"], row["L"]) == ("agent", length))
    scenario = SCENARIO.replace(intercell_gain=gain)
    agent = loaded(saved, scenario, bits, 24)
    blocks = evaluation_set(scenario, agent.channel_model, 12, 7)
    found = judged_by_hand(agent, scenario, blocks)
    rates = np.array([each["rates"].sum() / 3 for each in found])
    excess = np.array([each["constraint_sensing"] for each in found])
    assert row["rate"] == pytest.approx(rates.mean(), rel=1e-4)
    assert row["sensing_mean"] == pytest.approx(0.2 * (excess + 1).mean(), rel=1e-4)
    worst = max(excess.mean(0).max(), *(each["constraint_power"].max() for each in found))
    assert row["worst_mean_constraint"] == pytest.approx(worst, abs=1e-4)
    reference_row = next(row for row in rows if row["agent"] == "rzf")
    other = judged_by_hand(RZF(gym.make("ISAC-MISO-v0", scenario=scenario)), scenario, blocks)
    first = np.array([each["rates"].sum() / 3 for each in other])[:5]
    assert reference_row["rate"] == pytest.approx(first.mean(), rel=1e-4)
    expected = 100 * rates[:5].mean() / first.mean()
    assert row["percent_of_rzf"] == pytest.approx(expected, rel=1e-4)


def test_a_rate_is_that_of_a_simulation(saved: str) -> None:
    row = next(row for row in value_of(saved).rows if (row["β"], row["L"]) == (0.5, 3))
    scenario = SCENARIO.replace(intercell_gain=0.5)
    agent = loaded(saved, scenario, 3, 24)
    blocks = evaluation_set(scenario, agent.channel_model, 12, 7)
    simulation = Simulation(agent.system, agent.channel_model, 12)
    simulation.hold(blocks.channels[:, 0], blocks.estimates[:, 0])
    action, _ = agent.predict(simulation.observe())
    outcome = simulation.apply_checked(action)[1]
    assert row["rate"] == pytest.approx(float(outcome.sum_rate.mean()) / 3, rel=1e-5)
    assert row["bits_per_link"] == agent.bits_per_link == 3


def test_the_price_is_settled_for_every_length_and_gain(saved: str) -> None:
    """On the channels of the calibration the mean loss is ε at every station, or below."""
    experiment = make_value(saved)
    for gain, bits in ((0.05, 0), (0.5, None)):
        scenario = SCENARIO.replace(intercell_gain=gain)
        agent = loaded(saved, scenario, bits, 24)
        before = agent.calibrated.clone()
        experiment.ask_for(agent, bits)
        assert torch.equal(agent.calibrated, before), "the same as by hand"
        simulation = Simulation(agent.system, agent.channel_model, 24)
        simulation.start(np.random.default_rng((0xCA11B, 0)))
        action, _ = agent.predict(simulation.observe())
        excess = simulation.apply_checked(action)[1].constraints["sensing"].mean(0)
        assert bool((excess < 1e-3).all())
        assert bool(((excess > -5e-3) | (agent.calibrated == 0)).all())


def test_a_killed_run_goes_on(saved: str, tmp_path: Path) -> None:
    table, lines = run_twice(make_value(saved), tmp_path, after=5)
    assert [line.rpartition(" (")[2] for line in lines] == ["6 of 8)", "7 of 8)", "8 of 8)", ""]
    assert len(table.rows) == len(value_of(saved).rows)
    for row, expected in zip(table.rows, value_of(saved).rows, strict=True):
        assert row == pytest.approx(expected, nan_ok=True)
    assert is_drawn(tmp_path, "message-value")
    assert not (tmp_path / "message-value.unfinished").exists()
    assert json.loads((tmp_path / "message-value.json").read_text())["rows"][0]["L"] == 0


def test_more_lengths_keep_the_rows_that_are_there(saved: str, tmp_path: Path) -> None:
    experiment = make_value(saved, gains=(0.05,), references=())
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path, _interrupt_at("3 of 3"))
    lines: list[str] = []
    wider = make_value(saved, gains=(0.05,), references=(), message_bits=(1, 3))
    table = run_experiment(wider, tmp_path, lines.append)
    assert [row["L"] for row in table.rows] == [0, 1, 3, "real"]
    assert [line.partition(" (")[0].rpartition(" ")[2] for line in lines] == ["1", "real", ""]


def _interrupt_at(part: str) -> Any:
    def report(line: str) -> None:
        if part in line:
            raise KeyboardInterrupt

    return report


def test_curves_and_levels_of_the_picture(saved: str) -> None:
    experiment = make_value(saved)
    table = value_of(saved)
    rate_axes, share_axes = experiment.draw(table).axes
    assert len(rate_axes.containers) == 2
    certain = [row["gained_low"] > 0 for row in table.rows if row["L"] == "real"]
    assert len(share_axes.containers) == sum(certain)
    labels = [text.get_text() for text in rate_axes.get_xticklabels()]
    assert labels == ["0", "3", "real\nnumbers"]
    levels = [line.get_ydata()[0] for line in rate_axes.lines if len(line.get_ydata()) == 2]
    for gain, level in zip((0.05, 0.5), levels, strict=True):
        row = next(row for row in table.rows if (row["β"], row["L"]) == (gain, "real"))
        assert level == pytest.approx(100 * row["rate"] / row["percent_of_rzf"])
    alone = make_value(saved, references=(), gains=(0.05,))
    assert alone.draw(run_experiment(alone)).axes[0].lines


def test_references_are_left_out_without_channels_for_them(saved: str) -> None:
    points = make_value(saved, reference_channels=0).points()
    assert {point["agent"] for point in points} == {"agent"}
    with_file = make_value(saved, references=(saved,)).points()
    assert with_file[3]["agent"] == saved
    assert len(with_file[3]["reference_digest"]) == 16


def draw_rates(gain: float, count: int = 60) -> tuple[npt.NDArray[np.float64], ...]:
    rng = np.random.default_rng(4)
    without = rng.normal(5.0, 1.0, count)
    more = rng.normal(gain, 0.3, count)
    return without + 0.4 * more + rng.normal(0.0, 0.1, count), without, without + more


def test_the_interval_of_the_efficiency_is_that_of_scipy() -> None:
    from scipy import stats

    rates = draw_rates(1.0)
    found = bootstrap_efficiency(*rates)
    expected = stats.bootstrap(
        rates,
        lambda x, low, high, axis: (
            (x.mean(axis) - low.mean(axis)) / (high.mean(axis) - low.mean(axis))
        ),
        paired=True,
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(5),
    ).confidence_interval
    own, without, unlimited = (each.mean() for each in rates)
    assert found[0] == pytest.approx((own - without) / (unlimited - without))
    assert found[1:] == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found == bootstrap_efficiency(*rates)


def test_there_is_no_efficiency_where_nothing_is_gained() -> None:
    rates = np.ones(4)
    assert all(map(math.isnan, bootstrap_efficiency(rates, rates, rates)))
    # A gain of 0.1 at an error of 1/√200, and of -1.
    noise = np.random.default_rng(0).normal(size=200)
    assert all(map(math.isnan, bootstrap_efficiency(noise, 0 * noise, 0.1 + noise - noise.mean())))
    assert all(map(math.isnan, bootstrap_efficiency(rates, rates, rates - 1.0)))
    row = {"efficiency": math.nan, "efficiency_low": math.nan, "efficiency_high": math.nan}
    assert message_value._show_efficiency(row) == ""


# Errors


def test_errors(saved: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "message_bits": (0, 3),
        "flip_probabilities": (0.0, 0.5),
        "csi_error_variances": (0.0, 0.2),
        "channels": 10,
        "calibration_channels": 16,
    }
    scenario = SCENARIO.replace(csi_error_variance=0.7)  # replaced by those of the points
    experiment = MessageNoise(scenario=scenario, agent=saved, **settings)
    table, lines = run_twice(experiment, tmp_path, after=4)
    assert len(lines) == 3, "two points and the end"
    keys = ("L", "bits inverted", "CSI error variance")
    points = [tuple(row[key] for key in keys) for row in table.rows]
    errors = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.2))
    assert points == [(bits, *error) for bits in (0, 3) for error in errors]
    silent, still_silent, _, exact, inverted, unknown = table.rows
    names = ("rate", "sensing_mean", "worst_mean_constraint")
    assert all(silent[name] == still_silent[name] for name in names)
    assert exact["rate"] != inverted["rate"]
    # By hand: one price for all, settled without errors.
    agent = loaded(saved, SCENARIO, 3, 16)
    for row, flipped, variance in ((exact, 0.0, 0.0), (inverted, 0.5, 0.0), (unknown, 0.0, 0.2)):
        noisy = SCENARIO.replace(csi_error_variance=variance)
        blocks = evaluation_set(noisy, agent.channel_model, 10, 7)
        agent.flip_probability = flipped
        found = judged_by_hand(agent, noisy, blocks)
        rate = np.mean([each["rates"].sum() / 3 for each in found])
        excess = np.mean([each["constraint_sensing"] for each in found])
        assert row["rate"] == pytest.approx(rate, rel=1e-4)
        assert row["sensing_mean"] == pytest.approx(0.2 * (excess + 1), rel=1e-4)
    assert is_drawn(tmp_path, "message-noise")
    lines_drawn = [len(axes.lines) for axes in experiment.draw(table).axes]
    assert lines_drawn == [2, 3, 2, 3], "of losses also the threshold"


# Settings that are not allowed


@pytest.fixture
def central(tmp_path: Path) -> str:
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    agent = PrimalDual(env, "paper", hidden_sizes=(4,))
    agent.save(tmp_path / "central.zip")
    return str(tmp_path / "central.zip")


@pytest.fixture
def direct(tmp_path: Path) -> str:
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    agent = DistributedPrimalDual(env, "paper", message_bits=3)
    agent.save(tmp_path / "direct.zip")
    return str(tmp_path / "direct.zip")


@pytest.mark.parametrize("kind", [MessageValue, MessageNoise])
def test_agents_that_do_not_fit_are_named(kind: Any, central: str, direct: str) -> None:
    with pytest.raises(ValueError, match=r"agent must be a saved agent of DistributedPrimalDual"):
        kind(scenario=SCENARIO, agent=central).points()
    with pytest.raises(ValueError, match=r"message_bits must be 3, which is what the weights"):
        kind(scenario=SCENARIO, agent=direct, message_bits=(0, 4)).points()
    with pytest.raises(FileNotFoundError, match=r"none\.zip"):
        kind(scenario=SCENARIO, agent="none.zip").points()
    with pytest.raises(ValueError, match=r"path must name one of .*'pretrained:none'"):
        run_experiment(kind(scenario=SCENARIO, agent="pretrained:none"))


def test_a_length_beyond_the_agents_is_named(saved: str) -> None:
    with pytest.raises(ValueError, match=r"message_bits must be at most .*got 1000"):
        make_value(saved, message_bits=(1000,)).points()
    # What counts is how many users the study has, not the agent's own scenario.
    most = count_bits(2, 4)
    make_value(saved, message_bits=(most,)).points()
    fewer = SCENARIO.replace(num_users=1)
    with pytest.raises(ValueError, match=f"message_bits must be at most {count_bits(1, 2)} bits"):
        MessageValue(scenario=fewer, agent=saved, message_bits=(most,)).points()


def test_settings_that_are_not_allowed_are_named(saved: str) -> None:
    with pytest.raises(ValueError, match=r"gains must be a number >= 0, got -0.1"):
        make_value(saved, gains=(-0.1,))
    with pytest.raises(ValueError, match=r"message_bits must be an integer >= 0, got -1"):
        make_value(saved, message_bits=(-1,))
    with pytest.raises(ValueError, match=r"points must all be different, got β 0.1"):
        run_experiment(make_value(saved, gains=(0.1, 0.1)))
    with pytest.raises(ValueError, match=r"agent must be one of .*'no-such'"):
        make_value(saved, references=("no-such",)).points()
    with pytest.raises(ValueError, match=r"agent 'primal-dual-paper' is not trained"):
        make_value(saved, references=("primal-dual-paper",)).points()
    apart = SCENARIO.replace(layout="line")
    with pytest.raises(ValueError, match=r"layout must be 'uniform'.* got 'line'"):
        MessageValue(scenario=apart, agent=saved).points()
    with pytest.raises(ValueError, match=r"flip_probabilities must be numbers in \[0, 1\], got 2"):
        MessageNoise(scenario=SCENARIO, agent=saved, flip_probabilities=(2.0,)).points()
