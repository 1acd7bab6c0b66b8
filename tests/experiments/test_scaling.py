"""Growth with the number of stations: the count of weights, and what is fitted to it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from isac_gym import Scenario
from isac_gym.experiments import run_experiment
from isac_gym.experiments.scaling import Scaling, count_kept_bytes, fit_exponent

SMALL = Scenario(
    num_users=2,
    num_comm_antennas=4,
    num_radar_antennas=4,
    radar_power=0.8,
    target_angles_deg=(-50.0, 10.0),
    sensing_threshold=0.16,
)


def count_weights(stations: int, bits: int) -> int:
    """Of layers 2K, 3K, 2K with K = 2 users and M = 8 antennas, written out."""

    def dense(*sizes: int) -> int:
        return sum((before + 1) * after for before, after in itertools.pairwise(sizes))

    own, action = 2 * 2 * 8, 2 * 4 * 2 + 2 * 4 * 4
    quantiser = dense(own, 4, 6, 4, bits) if stations > 1 else 0
    return stations * (quantiser + dense(own + (stations - 1) * bits, 4, 6, 4, action))


def test_scaling(tmp_path: Path) -> None:
    study = run_experiment(
        Scaling(scenario=SMALL, stations=(1, 2, 3), message_bits=5, iterations=3), tmp_path
    )
    assert [row["J"] for row in study.rows] == [1, 2, 3]
    for row in study.rows:
        assert row["parameters"] == count_weights(row["J"], 5)
        assert row["bits a block"] == 5 * row["J"] * (row["J"] - 1)
        assert 0 < row["s an iteration"] < 10
        assert row["bytes of a training"] > 16 * row["parameters"], "float32, and four of each"
    exponent = fit_exponent([1, 2, 3], [row["parameters"] for row in study.rows])
    assert f"parameters ~ J^{exponent:.2f}" in study.title
    assert json.loads((tmp_path / "scaling.json").read_text())["settings"]["message_bits"] == 5
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_targets_of_several_stations_are_those_of_the_first() -> None:
    both = SMALL.replace(num_cells=2, target_angles_deg=((-50.0, 10.0), (-10.0, 50.0)))
    found = Scaling(scenario=both, stations=(3,), iterations=1)
    table = run_experiment(found)
    assert [row["J"] for row in table.rows] == [3]
    assert "J^nan" in table.title, "one point has no slope"


@pytest.mark.parametrize("exponent", [-0.5, 1.0, 1.7])
def test_the_exponent_of_a_power_law(exponent: float) -> None:
    x = np.array([1.0, 2.0, 5.0, 16.0])
    assert fit_exponent(x, 3.0 * x**exponent) == pytest.approx(exponent, abs=1e-12)
    assert math.isnan(fit_exponent([2.0], [3.0]))


def test_kept_bytes_are_those_of_the_tensors_that_a_gradient_needs() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 5))
    x = torch.ones(7, 5)

    def compute(times: int) -> None:
        y = x
        for _ in range(times):
            y = torch.tanh(y @ weight.T) @ weight
        y.sum().backward()

    assert count_kept_bytes(lambda: None, [weight]) == 0
    # Of a round: what enters it (7, 5), and what tanh returns (7, 3), which is kept but once.
    once = 4 * (7 * 5 + 7 * 3)
    assert count_kept_bytes(lambda: compute(1), [weight]) == once
    assert count_kept_bytes(lambda: compute(4), [weight]) == 4 * once
