"""Settings of reinforcement learning, and which are kept for which algorithm."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from isac_gym.rl import settings as kept
from isac_gym.rl.settings import (
    ALGORITHMS,
    ReinforcementSettings,
    count_passes,
    find_settings,
    is_on_policy,
)


def test_what_is_kept_is_allowed_and_for_algorithms_and_controls_that_there_are() -> None:
    for algorithm, control in kept.TUNED:
        assert algorithm in ALGORITHMS
        assert control in ("power", "amplitude", "beamforming", "structured")
        assert isinstance(find_settings(algorithm, control), ReinforcementSettings)


def test_a_lagrangian_and_its_plain_algorithm_share_what_was_tuned_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned: Any = {
        ("ppo-lagrangian", "power"): {"width": 7},
        ("sac", "power"): {"width": 9},
        ("sac-lagrangian", "structured"): {"width": 3},
        ("sac", "structured"): {"width": 5},
    }
    monkeypatch.setattr(kept, "TUNED", tuned)
    assert find_settings("ppo", "power").width == 7
    assert find_settings("sac-lagrangian", "power").width == 9
    assert find_settings("sac-lagrangian", "structured").width == 3
    assert find_settings("sac", "structured").width == 5
    assert find_settings("td3", "power") == ReinforcementSettings()
    assert find_settings("ppo", "power", width=2, epochs=3).width == 2
    with pytest.raises(TypeError, match=r"unknown setting\(s\) \['depth'\]; allowed are"):
        find_settings("ppo", "power", depth=2)


def test_passes_are_counted() -> None:
    assert count_passes("ppo", ReinforcementSettings(epochs=3)) == 3.0
    others = ReinforcementSettings(gradient_steps=4, batch_size=512, num_envs=1024)
    assert count_passes("td3", others) == 2.0
    assert [name for name in ALGORITHMS if is_on_policy(name)] == ["ppo", "ppo-lagrangian"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rounds", 0, "rounds must be an integer >= 1, got 0"),
        ("value_weight", 0.0, "value_weight must be a finite number > 0, got 0"),
        ("shares_extractor", 1, "shares_extractor must be True or False, got 1"),
        ("batch_size", 3, "batch_size must be a divisor of"),
        ("policy", "gnn", "policy must be 'users' or 'mlp', got 'gnn'"),
    ],
)
def test_what_is_not_allowed_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReinforcementSettings(**{name: value})
