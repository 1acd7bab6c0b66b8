"""The single environment as its tests make it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from isac_gym import ISACEnv


def make(**settings: Any) -> ISACEnv:
    env = gym.make("ISAC-MISO-v0", **settings).unwrapped
    assert isinstance(env, ISACEnv)
    return env
