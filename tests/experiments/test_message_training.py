"""Kinds of messages side by side: each row is an agent that was trained by hand, and judged so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from small_stations import QUICK, SCENARIO, is_drawn, judged_by_hand, run_twice

from isac_gym.agents import PrimalDual
from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.evaluation import evaluation_set
from isac_gym.experiments.message_training import MessageTraining

SETTINGS: dict[str, Any] = {**QUICK, "calibration_channels": 16}


def make_training(**changes: Any) -> MessageTraining:
    settings: dict[str, Any] = {
        "quantisers": ("stochastic", "annealed"),
        "message_bits": 3,
        "iterations": 2,
        "seeds": 2,
        "channels": 6,
        "agent_settings": SETTINGS,
        **changes,
    }
    return MessageTraining(scenario=SCENARIO, **settings)


def trained(message: str, seed: int) -> Any:
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    options = {**SETTINGS, "iterations": 2, "seed": seed}
    if message == "full CSI":
        # Of preset "tuned" of the stations, what differs from that of a central agent.
        common = {"batch_size": 8, "learning_rate": 1.5e-3, "final_learning_rate": 2e-5}
        dual = {"dual_step_size": 5.0, "final_dual_step_size": 1.0, "initial_multiplier": 10.0}
        clipped = {"gradient_clip": 1.0, "architecture": "cooperative", "full_csi": True}
        return PrimalDual(env, "tuned", **{**common, **dual, **clipped, **options}).learn()
    kinds: dict[str, Any] = {
        "no message": {"message_bits": 0},
        "real numbers": {"message_bits": None},
        "stochastic": {"message_bits": 3, "quantiser": "stochastic"},
        "annealed": {"message_bits": 3, "quantiser": "annealed"},
    }
    return DistributedPrimalDual(env, "tuned", **{**options, **kinds[message]}).learn()


def test_rows_are_those_of_agents_trained_by_hand(tmp_path: Path) -> None:
    experiment = make_training()
    table, lines = run_twice(experiment, tmp_path, after=2)
    assert lines[0].startswith("message stochastic, seed 0 (3 of 10)")
    messages = ["no message", "stochastic", "annealed", "real numbers", "full CSI"]
    assert [row["message"] for row in table.rows] == messages
    rates: dict[str, Any] = {}
    for row in table.rows:
        agents = [trained(row["message"], seed) for seed in (0, 1)]
        blocks = evaluation_set(SCENARIO, agents[0].channel_model, 6, 7)
        found = [judged_by_hand(agent, SCENARIO, blocks) for agent in agents]
        rates[row["message"]] = np.array(
            [np.mean([each["rates"].sum() / 3 for each in of_seed]) for of_seed in found]
        )
        assert row["bit/s/Hz a station"] == pytest.approx(rates[row["message"]].mean(), rel=1e-4)
        excess = np.array([[each["constraint_sensing"] for each in seed] for seed in found])
        assert row["mean L_r"] == pytest.approx(0.2 * (1 + excess.mean()), rel=1e-4)
        assert row["worst"] == pytest.approx(excess.mean(1).max(), abs=1e-4)
    most = rates["real numbers"] - rates["no message"]
    for row in table.rows:
        expected = np.mean((rates[row["message"]] - rates["no message"]) / most)
        assert row["η"] == pytest.approx(expected, rel=0.05, abs=0.05)
    assert is_drawn(tmp_path, "message-training")
    kept = json.loads((tmp_path / "message-training.json").read_text())
    assert kept["settings"]["message_bits"] == 3
    assert "real numbers" in str(table)


def test_a_single_seed_has_no_interval() -> None:
    experiment = make_training(seeds=1, quantisers=())
    rows = [
        {
            "message": message,
            "seed": 0,
            "rate": rate,
            "sensing_mean": 0.2,
            "worst_mean_constraint": 0.0,
        }
        for message, rate in (("no message", 5.0), ("real numbers", 7.0), ("full CSI", 7.5))
    ]
    table = experiment.tabulate(rows)
    assert [row["η"] for row in table.rows] == [0.0, 1.0, 1.25]
    assert all(math.isinf(row["± η"]) for row in table.rows)
    assert "±" not in str(table).split("\n", 3)[-1]
    equal = [{**row, "rate": 5.0} for row in rows]
    assert all(math.isnan(row["η"]) for row in experiment.tabulate(equal).rows)


def test_settings_that_are_not_allowed_are_named() -> None:
    with pytest.raises(ValueError, match=r"quantisers must be names among .*'gumbel', got 'loud'"):
        make_training(quantisers=("loud",)).points()
    with pytest.raises(ValueError, match=r"message_bits must be an integer >= 1, got 0"):
        make_training(message_bits=0)
    with pytest.raises(ValueError, match=r"evaluation_seed must be none of the seeds"):
        make_training(evaluation_seed=1).points()
    with pytest.raises(ValueError, match=r"control must be 'beamforming', got 'power'"):
        MessageTraining(scenario=SCENARIO.replace(control="power")).points()
