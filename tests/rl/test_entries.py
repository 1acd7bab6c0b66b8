from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from simple_bandits import Bandit
from stable_baselines3.common.vec_env import VecMonitor

from isac_gym.rl import read_entries

NAMES = ("constraint_1", "constraint_0")


@pytest.mark.parametrize("arrays", [False, True])
def test_entries_come_in_the_order_of_their_names(arrays: bool) -> None:
    env = VecMonitor(Bandit(3, [0.5, 1.0], arrays=arrays))
    env.reset()
    actions = np.arange(6.0).reshape(3, 2)
    infos = env.step(actions)[3]
    found = read_entries(env, infos, NAMES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (actions - [0.5, 1.0])[:, ::-1])


@pytest.mark.parametrize("arrays", [False, True])
def test_a_missing_entry_is_named_with_those_there(arrays: bool) -> None:
    env = Bandit(2, [0.5], arrays=arrays)
    env.reset()
    infos = env.step(np.zeros((2, 1)))[3]
    with pytest.raises(
        ValueError, match=r"constraints must be .* has 'constraint_0', 'cost_0', got 'cost_sensing'"
    ):
        read_entries(env, infos, ["constraint_0", "cost_sensing"])


def test_an_entry_must_be_finite_numbers_one_an_environment() -> None:
    env = Bandit(2, [0.5])
    with pytest.raises(ValueError, match=r"entry 'a' must be finite, got \[ ?nan  ?0"):
        read_entries(env, [{"a": np.nan}, {"a": 0.0}], ["a"])
    with pytest.raises(ValueError, match=r"entry 'a' must be numbers, .* got the shape \(2, 3\)"):
        read_entries(env, [{"a": np.zeros(3)}] * 2, ["a"])


def test_without_stable_baselines3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "isac_gym.rl")
    with pytest.raises(ImportError, match=r"pip install 'isac-gym\[rl\]'"):
        importlib.import_module("isac_gym.rl")
