"""Settings of learning agents: plain values of Python, whatever passes the door."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_agents import QUICK, make

from isac_gym.agents import PrimalDual
from isac_gym.learning.config import AgentConfig

NUMPY: dict[str, Any] = {
    "architecture": np.str_("unfolded"),
    "iterations": np.int64(1),
    "batch_size": np.int32(8),
    "learning_rate": np.float32(1e-3),
    "final_learning_rate": np.float64(1e-4),
    "warmup_iterations": np.uint8(1),
    "gradient_clip": np.float16(2.0),
    "dual_rule": np.str_("pi"),
    "dual_step_size": np.float64(0.1),
    "final_dual_step_size": np.float32(0.05),
    "dual_gain": np.int64(2),
    "priced_constraint": np.str_("sensing"),
    "initial_multiplier": np.float32(1.5),
    "relative_constraints": np.True_,
    "snr_range_db": [np.float32(5.0), np.int64(15)],
    "threshold_range": (np.float64(0.5), np.float32(0.75)),
    "calibration_channels": np.int16(16),
    "gain_range": (np.float32(0.125), np.int8(1)),
    "price_spread": np.float64(2.0),
    "more_cells": [np.int64(2)],
    "options": {
        "width": np.int64(8),
        "stages": [[np.float64(6.0), np.int64(2)]],
        "hidden_sizes": (np.int32(16),),
    },
}


def list_leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in list_leaves(entry)]
    if isinstance(value, (list, tuple)):
        return [leaf for entry in value for leaf in list_leaves(entry)]
    return [value]


def test_every_field_is_tried() -> None:
    assert set(NUMPY) == {field.name for field in dataclasses.fields(AgentConfig)}


def test_scalars_of_numpy_become_those_of_python() -> None:
    config = AgentConfig(**NUMPY)
    for leaf in list_leaves(dataclasses.asdict(config)):
        assert type(leaf) in (int, float, bool, str), leaf
    assert AgentConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_an_agent_with_settings_of_numpy_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    chosen = {
        name: value for name, value in NUMPY.items() if name not in ("gain_range", "more_cells")
    }
    env = make(snr_db=np.float32(10.0), sensing_threshold=np.float64(0.6))
    agent = PrimalDual(env, "paper", seed=np.uint64(2**63 - 1), **chosen).learn(np.int64(1))  # type: ignore[arg-type]
    path = tmp_path / "agent.zip"
    agent.save(path)
    again = PrimalDual.load(path, make(snr_db=10.0, sensing_threshold=0.6))
    assert again.config == agent.config
    assert (again.seed, type(agent.seed)) == (2**63 - 1, int)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(again.predict(observation)[0], agent.predict(observation)[0])


@pytest.mark.parametrize("seed", [2**64, -1, 1.0, np.float64(1), True, 10**400])
def test_seeds_that_generators_do_not_take(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^seed must be an integer >= 0"):
        PrimalDual(make(), "paper", seed=seed, **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 10**400}, "learning_rate must be a finite number > 0, got"),
        ({"dual_step_size": 1e39}, r"dual_step_size must be a finite number > 0 and <= 1e\+12"),
        ({"initial_multiplier": 1e39}, "initial_multiplier must be a finite number >= 0 and <="),
        ({"batch_size": 2**40}, "batch_size must be an integer >= 1 and <= 16777216"),
        ({"iterations": 10**400}, r"iterations must be an integer >= 1 and <= 2\^63 - 1"),
        ({"more_cells": (10**6,)}, "more_cells must be an integer >= 1 and <= 1024"),
        ({"snr_range_db": (-150.0, 0.0)}, "snr_range_db must be None or .*magnitude 100 or less"),
        ({"gain_range": (1e-40, 1.0)}, "gain_range must be None or"),
        ({"options": {"width": float("nan")}}, "width must be finite, got nan"),
        ({"options": {"width": 10**30}}, r"width must be of magnitude 2\^63 - 1 or less"),
        ({"options": {"hidden_sizes": np.ones(2)}}, "hidden_sizes must be a number, a text, None"),
        ({"options": {"width": 1j}}, "width must be a number, a text, None"),
    ],
)
def test_what_is_not_allowed_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        AgentConfig(**{"relative_constraints": True, **changes})
