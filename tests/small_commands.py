"""Commands on a small scenario, and an agent of ten lines."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym

SMALL: dict[str, Any] = {
    "num_users": 2,
    "num_comm_antennas": 3,
    "num_radar_antennas": 4,
    "radar_power": 0.8,
    "sensing_threshold": 0.2,
    "target_angles_deg": [-50.0, 10.0],
}
TEN_LINES = """\
import numpy as np


class MyAgent:
    def __init__(self, env):
        self.size = env.action_space.shape[0]

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        action = np.full((*np.shape(observation)[:-1], self.size), 0.1, np.float32)
        return action, state
"""


def settings_of(**changes: Any) -> list[str]:
    given = {**SMALL, **changes}
    return [part for name, value in given.items() for part in ("-s", f"{name}={json.dumps(value)}")]


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


LABELS = ("labels", "rzf", "--count", "3", "-o", "labels")
BASE = ("compare", "--only", "--channels", "3")
MRT_ONLY = (*BASE, "--agent", "mrt")
SET = settings_of()
