"""How the single environment is made, copied and named, and which channel models it takes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL
from single_env import make

import isac_gym
from isac_gym import ISACEnv, RicianChannel, Scenario


def test_unknown_keyword_names_the_fields() -> None:
    with pytest.raises(TypeError) as caught:
        gym.make("ISAC-MISO-v0", num_user=3)
    message = str(caught.value)
    assert "num_user" in message
    for field in dataclasses.fields(Scenario):
        assert field.name in message


def test_unknown_render_mode() -> None:
    with pytest.raises(ValueError, match="ansi"):
        ISACEnv(render_mode="ansi")


def test_scenario_by_name_by_object_and_overridden() -> None:
    assert make().scenario == Scenario()
    assert make(scenario="dense").scenario == Scenario(num_users=12)
    given = Scenario(**SMALL)
    assert make(scenario=given).scenario == given
    assert make(scenario=given, snr_db=3.0).scenario == Scenario(**SMALL, snr_db=3.0)
    with pytest.raises(ValueError, match=r"scenario.*'nosuch'"):
        gym.make("ISAC-MISO-v0", scenario="nosuch")
    with pytest.raises(TypeError, match=r"scenario.*3"):
        gym.make("ISAC-MISO-v0", scenario=3)
    with pytest.raises(ValueError, match="sensing_threshold"):
        gym.make("ISAC-MISO-v0", sensing_threshold=0.01)


def trace_of(env: gym.Env[Any, Any]) -> list[Any]:
    trace: list[Any] = []
    for _ in range(3):
        action = np.full(env.action_space.shape, 0.25, np.float32)
        observation, reward, *_, info = env.step(action)
        trace += [observation.tobytes(), reward, str(info)]
    return trace


@pytest.mark.parametrize("mode", [None, "rgb_array"])
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_goes_on_like_the_original(how: str, mode: str | None) -> None:
    env = make(**SMALL, doppler=0.02, csi_error_variance=0.1, render_mode=mode)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    twin = pickle.loads(pickle.dumps(env)) if how == "pickle" else copy.deepcopy(env)
    assert trace_of(twin) == trace_of(env)


def test_a_wrapped_environment_can_be_pickled() -> None:
    env = gym.make("ISAC-MISO-v0", **SMALL)
    env.reset(seed=0)
    assert trace_of(pickle.loads(pickle.dumps(env))) == trace_of(env)


def test_spec_round_trip() -> None:
    env = gym.make("ISAC-MISO-v0", scenario="power", snr_db=3.0, target_angles_deg=(-20.0, 20.0))
    assert env.spec is not None
    same = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert same.unwrapped.scenario == env.unwrapped.scenario
    env.reset(seed=0)
    same.reset(seed=0)
    assert trace_of(same) == trace_of(env)


def test_public_names_are_importable() -> None:
    for name in isac_gym.__all__:
        assert getattr(isac_gym, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        isac_gym.nosuch  # noqa: B018


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("model", [RicianChannel, 5, "isac_gym.scenario:Scenario"])
def test_a_channel_model_must_be_one(model: Any, vector: bool) -> None:
    build = gym.make_vec if vector else gym.make
    with pytest.raises(TypeError, match=r"channel.model.*must be"):
        build("ISAC-MISO-v0", channel_model=model, **SMALL)


@pytest.mark.parametrize("vector", [False, True])
def test_an_unknown_name_of_a_channel_model(vector: bool) -> None:
    build = gym.make_vec if vector else gym.make
    known = r"rayleigh.*'module:Class'.*'ricean'"
    with pytest.raises(ValueError, match=f"channel model must be one of .*{known}"):
        build("ISAC-MISO-v0", channel_model="ricean", **SMALL)


def test_a_channel_model_by_name(tmp_path: Path) -> None:
    by_name, by_object = (make(**SMALL, channel_model=m) for m in ("rician", RicianChannel()))
    assert by_name.unwrapped.channel_model == RicianChannel()
    np.testing.assert_array_equal(by_name.reset(seed=3)[0], by_object.reset(seed=3)[0])
    batched = gym.make_vec("ISAC-MISO-v0", num_envs=1, channel_model="rician", **SMALL)
    np.testing.assert_array_equal(batched.reset(seed=3)[0][0], by_object.reset(seed=3)[0])
    assert not np.array_equal(make(**SMALL).reset(seed=3)[0], by_object.reset(seed=3)[0])
    path = tmp_path / "samples.npy"
    np.save(path, np.full((1, 3, 9), 2.0 - 1.0j))
    from_file = make(**SMALL, channel_model=f"file:{path}")
    from_file.reset(seed=0)
    np.testing.assert_array_equal(from_file.unwrapped.channels, np.full((3, 9), 2.0 - 1.0j))


def test_a_doppler_that_the_channel_model_does_not_follow_is_refused() -> None:
    with pytest.raises(ValueError, match="doppler must be None"):
        make(**SMALL, doppler=0.1, channel_model=RicianChannel())
    model = isac_gym.GaussMarkovChannel(0.1)
    assert make(**SMALL, doppler=0.1, channel_model=model).unwrapped.channel_model is model


def test_a_channel_model_that_draws_the_wrong_shape_is_named() -> None:
    class Flat(isac_gym.ChannelModel):
        def draw(self, rng: np.random.Generator, num: int, deployment: Any) -> Any:
            return np.zeros((num, 3), np.complex64)

    with pytest.raises(ValueError, match=r"Flat.*must draw channels of shape \(1, 1, 1, 3, 9\)"):
        make(**SMALL, channel_model=Flat()).reset(seed=0)
