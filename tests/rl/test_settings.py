"""Settings of reinforcement learning, and which are kept for which algorithm."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from direct_model import SMALL

pytest.importorskip("stable_baselines3")

from isac_gym.envs.sb3 import make_sb3_env
from isac_gym.rl import settings
from isac_gym.rl.making import make_model
from isac_gym.rl.settings import (
    ALGORITHMS,
    ReinforcementSettings,
    count_passes,
    find_settings,
    is_on_policy,
)


def test_what_is_kept_is_allowed_and_for_algorithms_and_controls_that_there_are() -> None:
    for algorithm, control in settings.KEPT:
        assert algorithm in ALGORITHMS
        assert control in ("power", "amplitude", "beamforming", "structured")
        assert isinstance(find_settings(algorithm, control), ReinforcementSettings)


def test_a_lagrangian_and_its_plain_algorithm_share_what_is_kept_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: Any = {
        ("ppo-lagrangian", "power"): {"width": 7},
        ("sac", "power"): {"width": 9},
        ("sac-lagrangian", "structured"): {"width": 3},
        ("sac", "structured"): {"width": 5},
    }
    monkeypatch.setattr(settings, "KEPT", given)
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
    assert count_passes("ppo-lagrangian", ReinforcementSettings(epochs=3, repeats=4)) == 0.75
    others = ReinforcementSettings(gradient_steps=4, batch_size=512, num_envs=1024)
    assert count_passes("td3", others) == 2.0
    assert [name for name in ALGORITHMS if is_on_policy(name)] == ["ppo", "ppo-lagrangian"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rounds", 0, "rounds must be an integer >= 1, got 0"),
        ("value_weight", 0.0, "value_weight must be a finite number > 0, got 0"),
        ("shares_extractor", 1, "shares_extractor must be True or False, got 1"),
        ("repeats", 0, "repeats must be an integer >= 1, got 0"),
        ("largest_divergence", 0.0, "largest_divergence must be a finite number > 0, got 0"),
        ("batch_size", 3, "batch_size must be a divisor of"),
        ("policy", "gnn", "policy must be 'users' or 'mlp', got 'gnn'"),
    ],
)
def test_what_is_not_allowed_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReinforcementSettings(**{name: value})


def test_repeats_divide_a_rollout_where_channels_are_held() -> None:
    with pytest.raises(ValueError, match="repeats must be a divisor of rollout_length = 4, got 8"):
        find_settings("ppo-lagrangian", "power", rollout_length=4)
    for algorithm in ("ppo", "sac"):
        assert find_settings(algorithm, "power", rollout_length=4).repeats == 8


def test_settings_reach_the_model() -> None:
    envs = make_sb3_env(4, **SMALL, control="structured", observation="features")
    chosen = ReinforcementSettings(
        num_envs=4,
        rollout_length=8,
        batch_size=16,
        epochs=3,
        clip_range=0.25,
        largest_divergence=0.7,
        value_weight=0.3,
        width=6,
        rounds=1,
        shares_extractor=False,
        deviation=0.11,
        learning_rate=1e-2,
        final_learning_rate=1e-3,
    )
    model = make_model("ppo", envs, chosen, seed=0, device="cpu", constraints=())
    assert (model.gamma, model.gae_lambda) == (0.0, 0.0)
    assert (model.n_steps, model.batch_size, model.n_epochs) == (8, 16, 3)
    assert (model.clip_range(1.0), model.target_kl, model.vf_coef) == (0.25, 0.7, 0.3)
    assert [model.lr_schedule(x) for x in (1.0, 0.5, -0.1)] == pytest.approx([1e-2, 5.5e-3, 1e-3])
    assert model.policy.log_std.exp().tolist() == pytest.approx([0.11] * 3)
    assert not model.policy.share_features_extractor
    assert len(model.policy.features_extractor.think) == 1
    assert model.policy.features_extractor.width == 6
    held = make_model("ppo-lagrangian", envs, chosen, seed=0, device="cpu", constraints=["cost"])
    assert (held.baseline, held.vf_coef) == ("episode", 0.0)


def test_scalars_of_numpy_become_those_of_python() -> None:
    plain = ReinforcementSettings()
    kinds = {int: np.int64, float: np.float32, bool: np.bool_, str: np.str_}
    given = {"penalty": np.float64(3.0)}
    for field in dataclasses.fields(plain):
        value = getattr(plain, field.name)
        if value is not None:
            given[field.name] = kinds[type(value)](value)
    found = ReinforcementSettings(**given)
    for name, value in dataclasses.asdict(found).items():
        assert type(value) is type(given[name].item()), name
        assert value == given[name].item()
    json.dumps(dataclasses.asdict(found))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("timesteps", 2**63, r"timesteps must be an integer >= 1 and <= 2\^63 - 1"),
        ("num_envs", 2**30, "num_envs must be an integer >= 1 and <= 16777216"),
        ("learning_rate", 10**400, "learning_rate must be a finite number > 0, got"),
        ("multiplier_gain", 1e39, r"multiplier_gain must be a finite number >= 0 and <= 1e\+12"),
        ("policy", ["users"], "policy must be 'users' or 'mlp'"),
    ],
)
def test_values_beyond_the_ranges_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReinforcementSettings(**{name: value})
