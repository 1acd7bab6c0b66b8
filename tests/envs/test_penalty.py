"""The default weight of a penalised reward: the price of the scenario."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL

from isac_gym.baselines import JointOracle
from isac_gym.envs.wrappers import PenalisedReward, find_penalty_weight, vector


@pytest.fixture(scope="module")
def weight() -> float:
    return find_penalty_weight(gym.make("ISAC-MISO-v0"))


def test_weight_at_the_default_scenario(weight: float) -> None:
    """About 31 bit/s/Hz a relative unit, found once for all environments of the scenario."""
    assert weight == pytest.approx(31.0, rel=0.15)
    assert PenalisedReward(gym.make("ISAC-MISO-v0", episode_length=3)).weights == {"cost": weight}
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=2, vector_wrappers=[vector.PenalisedReward])
    assert isinstance(envs, vector.PenalisedReward)
    assert envs.weights == {"cost": weight}
    assert find_penalty_weight(gym.make("ISAC-MISO-v0", control="amplitude")) == weight


def test_a_reward_penalised_so_is_largest_where_the_threshold_is_kept(weight: float) -> None:
    """Joint optima for other thresholds: which one earns most at the default threshold?"""
    num, threshold = 48, 0.12
    aims = [0.108, 0.114, 0.12, 0.126, 0.132, 0.14, 0.15]
    envs = vector.PenalisedReward(gym.make_vec("ISAC-MISO-v0", num_envs=num))
    mild = vector.PenalisedReward(gym.make_vec("ISAC-MISO-v0", num_envs=num), 10.0)
    earned, with_ten, losses = [], [], []
    for aim in aims:
        oracle = JointOracle(gym.make("ISAC-MISO-v0", sensing_threshold=aim), num_starts=4)
        observations, _ = envs.reset(seed=5)
        mild.reset(seed=5)
        actions, _ = oracle.predict(observations)
        _, rewards, _, _, info = envs.step(actions)
        earned.append(rewards.mean())
        with_ten.append(mild.step(actions)[1].mean())
        losses.append((1 + info["constraint_sensing"]).mean() * threshold)
    np.testing.assert_allclose(losses, aims, rtol=0.03)
    best = aims[int(np.argmax(earned))]
    assert abs(best - threshold) <= 0.006
    assert earned[0] < max(earned) - 1.0
    assert earned[-1] < max(earned) - 1.0
    # A weight of 10 buys rate for sensing loss far beyond the threshold.
    assert aims[int(np.argmax(with_ten))] >= 0.14


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        # Nothing binds: one user, whose channel the radar can avoid, or a fixed radar.
        ({**SMALL, "num_users": 1, "sensing_threshold": 0.9}, 0.0, 0.0),
        ({**SMALL, "radar": "fixed"}, 0.0, 0.0),
        # Power that can be exceeded is worth K/ln 2 at most.
        ({**SMALL, "radar": "fixed", "power_limit": "cost"}, 3 / math.log(2), 3 / math.log(2)),
        ({"snr_db": 20.0, "sensing_threshold": 0.105}, 60.0, 110.0),
    ],
    ids=["idle", "fixed", "power", "tight"],
)
def test_weights_of_other_scenarios(changes: dict[str, Any], least: float, most: float) -> None:
    found = find_penalty_weight(gym.make("ISAC-MISO-v0", **changes))
    assert least - 1e-9 <= found <= most + 1e-9


def test_no_station_gains_more_by_power_than_it_pays() -> None:
    """With the radar fixed and a precoder of growing power, the penalised reward falls."""
    settings = {**SMALL, "radar": "fixed", "power_limit": "cost", "control": "power"}
    envs = vector.PenalisedReward(gym.make_vec("ISAC-MISO-v0", num_envs=32, **settings))
    size = envs.single_action_space.shape[0]  # type: ignore[index]
    earned = []
    for power in (1.0, 1.05, 1.2, 1.5):
        envs.reset(seed=1)
        actions = np.full((32, size), 2.0 * power / size - 1.0, np.float32)
        earned.append(envs.step(actions)[1])
    assert (np.diff(earned, axis=0) < 0).all()


def test_cells_have_the_largest_price_of_a_station() -> None:
    """Cells that do not interfere; the tighter one has the higher price."""
    settings: dict[str, Any] = {
        "num_users": 2,
        "num_comm_antennas": 3,
        "num_radar_antennas": 4,
        "radar_power": 0.8,
        "cross_correlation": "target_sq",
        "intercell_gain": 0.0,
    }
    targets = ((-50.0, 10.0), (-20.0, 60.0))
    floors = gym.make(
        "ISAC-MISO-v0", **settings, num_cells=2, target_angles_deg=targets, sensing_threshold=9.0
    ).unwrapped.scenario.sensing_floor()  # type: ignore[attr-defined]
    settings["sensing_threshold"] = 1.05 * max(floors)
    alone = [
        find_penalty_weight(gym.make("ISAC-MISO-v0", **settings, target_angles_deg=each))
        for each in targets
    ]
    assert alone[1] > 1.3 * alone[0]
    env = gym.make("ISAC-MISO-v0", **settings, num_cells=2, target_angles_deg=targets)
    assert find_penalty_weight(env) == pytest.approx(max(alone), rel=0.15)
