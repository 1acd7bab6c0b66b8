"""From names and files to agents: what a file is, is told by its content."""

from __future__ import annotations

import builtins
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from isac_gym.agents import NoDual, PrimalDual, load_agent
from isac_gym.agents.loading import prepare_agent
from isac_gym.baselines import RZF, RandomPower
from isac_gym.evaluation import compare
from isac_gym.learning.labels import generate_labels
from isac_gym.registry import AGENTS, register_agent

SMALL: dict[str, Any] = {
    "num_users": 2,
    "num_comm_antennas": 3,
    "num_radar_antennas": 2,
    "radar_power": 0.1,
    "sensing_threshold": 0.2,
    "target_angles_deg": (0.0,),
}


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


def observations(env: Any) -> Any:
    return np.stack([env.reset(seed=seed)[0] for seed in range(4)])


# Files of the package


@pytest.mark.parametrize("name", ["agent.zip", "agent", "agent.mine", "a folder/my@agent"])
def test_a_saved_agent_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    env = make()
    saved = NoDual(env, "paper", seed=3)
    saved.save(name)
    loaded = load_agent(name, env)
    assert type(loaded) is NoDual
    prepared = prepare_agent(name, env)
    assert not prepared.needs_training
    for agent in (loaded, prepared.agent, load_agent(tmp_path / name)):
        action, _ = agent.predict(observations(env))
        np.testing.assert_array_equal(action, saved.predict(observations(env))[0])


def test_a_class_of_ones_own_is_found_by_its_kind(tmp_path: Path) -> None:
    class Loud(PrimalDual):
        kind = "Loud"

    env = make()
    Loud(env, "paper").save(tmp_path / "loud.zip")
    with pytest.raises(ValueError, match=r"kind must be one of .*PrimalDual.*'Loud'.*--import"):
        load_agent(tmp_path / "loud.zip", env)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(AGENTS, "_imported", dict(AGENTS._imported))
    monkeypatch.setattr(sys.modules[__name__], "Loud", Loud, raising=False)
    Loud.__qualname__ = "Loud"
    register_agent("loud", "a class of one's own", learns=True)(Loud)
    assert type(load_agent(tmp_path / "loud.zip", env)) is Loud
    monkeypatch.undo()


def test_a_training_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint = tmp_path / "agent.checkpoint.zip"
    PrimalDual(make(), "paper").learn(2, checkpoint=checkpoint, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"agent.checkpoint.zip: .* checkpoint of a training"):
        load_agent(checkpoint)


# Foreign files


def write_foreign(kind: str, path: Path) -> Path:
    env = make()
    if kind == "labels":
        generate_labels(RZF(env), env, path, 2, name="rzf")
    elif kind == "folder":
        path.mkdir()
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, a=np.ones(3))
    elif kind == "torch":
        torch.save({"weight": torch.ones(2)}, path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "damaged":
        path.write_bytes(b"PK\x03\x04 nothing")
    else:
        path.write_text("hello")
    return path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("labels", "a folder of labels"),
        ("folder", "a folder"),
        ("npy", "a NumPy file; channels are given as --channel file:PATH"),
        ("npz", "a NumPy file"),
        ("torch", "weights of PyTorch"),
        ("zip", "a zip file that holds readme.txt"),
        ("damaged", "a damaged zip file"),
        ("text", "a file of another format"),
    ],
)
def test_another_file_is_refused_by_what_it_is(tmp_path: Path, kind: str, expected: str) -> None:
    path = write_foreign(kind, tmp_path / "mine.zip")
    with pytest.raises(ValueError, match=rf"mine\.zip: not a saved agent, but {expected}"):
        load_agent(path)


@pytest.mark.parametrize("name", ["missing.zip", "folder.d/missing.zip", "json:JSONDecoder@no.zip"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name.rpartition("@")[2]):
        prepare_agent(name, make())


def test_a_class_that_loads_no_agent(tmp_path: Path) -> None:
    path = write_foreign("text", tmp_path / "mine.txt")
    with pytest.raises(ValueError, match=r"mine\.txt must have load"):
        load_agent(f"json:JSONDecoder@{path}")
    with pytest.raises(ValueError, match="nosuch_module"):
        load_agent(f"nosuch_module:Agent@{path}")


# Stable-Baselines3


@pytest.mark.parametrize("name", ["PPO", "A2C", "SAC", "TD3", "DDPG", "TQC"])
def test_a_stable_baselines3_model_is_loaded_as_what_it_is(tmp_path: Path, name: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = make()
    options: dict[str, Any] = {"PPO": {"n_steps": 8, "batch_size": 8}, "A2C": {}}.get(
        name, {"buffer_size": 16, "learning_starts": 4}
    )
    home = pytest.importorskip("sb3_contrib") if name == "TQC" else sb3
    model = getattr(home, name)("MlpPolicy", env, seed=0, device="cpu", **options)
    model.learn(8)
    path = tmp_path / "model.zip"
    model.save(path)
    shutil.copy(path, tmp_path / "model")
    expected, _ = model.predict(observations(env), deterministic=True)
    for given in (path, tmp_path / "model", f"{home.__name__}:{name}@{path}"):
        with pytest.raises(ValueError, match=r"allow_pickle must be True .*got False"):
            load_agent(given, env)
        loaded = load_agent(given, env, allow_pickle=True)
        assert type(loaded) is type(model)
        found, _ = loaded.predict(observations(env), deterministic=True)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    prepared = prepare_agent(str(path), env, allow_pickle=True)
    assert not prepared.needs_training
    table = compare({"model": prepared.agent, "rzf": RZF(env)}, env, channels=5)
    assert table.references == ("rzf",)


def test_a_stable_baselines3_model_of_another_scenario(tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    sb3.PPO("MlpPolicy", make(), device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"spaces of the model must be .*, got .observations of"):
        load_agent(tmp_path / "model.zip", make(num_users=1), allow_pickle=True)


def train_in_features(env: Any) -> Any:
    """A factory as a user hands it in: what it returns was trained in other spaces."""
    sb3 = pytest.importorskip("stable_baselines3")
    spaces = {"control": "structured", "observation": "features"}
    own = gym.make("ISAC-MISO-v0", scenario=env.unwrapped.scenario, **spaces)
    return sb3.PPO("MlpPolicy", own, n_steps=8, batch_size=8, seed=0, device="cpu").learn(8)


def test_a_trained_model_is_used_as_it_is_whatever_its_spaces(tmp_path: Path) -> None:
    env = make()
    prepared = prepare_agent(f"{__name__}:train_in_features", env)
    assert not prepared.needs_training
    action, _ = prepared.agent.predict(observations(env), deterministic=True)
    assert action.shape == (len(observations(env)), *env.action_space.shape)
    model = prepared.agent.model
    model.save(tmp_path / "model.zip")
    loaded = load_agent(tmp_path / "model.zip", env, allow_pickle=True)
    np.testing.assert_allclose(loaded.predict(observations(env), deterministic=True)[0], action)
    # Transmitted is what the model means where it was trained.
    own = gym.make(
        "ISAC-MISO-v0",
        scenario=env.unwrapped.scenario,
        control="structured",
        observation="features",
    )
    results = [
        compare({"it": agent}, each, channels=20)["it"]
        for agent, each in ((prepared.agent, env), (model, own))
    ]
    np.testing.assert_allclose(results[0].sum_rates, results[1].sum_rates, rtol=1e-4)


def rewrite(path: Path, changes: dict[str, Any]) -> None:
    import json

    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(held["data"]) | changes
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**held, "data": json.dumps(data)}.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"policy_class": {"__module__": "another.policies"}}, "class .* must be given"),
        ({"policy_class": 3}, "damaged Stable-Baselines3 model"),
    ],
)
def test_a_stable_baselines3_model_of_a_class_that_is_not_known(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    sb3.PPO("MlpPolicy", make(), device="cpu").save(tmp_path / "model.zip")
    rewrite(tmp_path / "model.zip", changes)
    with pytest.raises(ValueError, match=expected):
        load_agent(tmp_path / "model.zip", allow_pickle=True)


def test_without_stable_baselines3_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    sb3.PPO("MlpPolicy", make(), device="cpu").save(tmp_path / "model.zip")
    importing = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "stable_baselines3":
            raise ImportError(name)
        return importing(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"model\.zip .* pip install 'isac-gym\[rl\]'"):
        load_agent(tmp_path / "model.zip", allow_pickle=True)


# Which agents are trained


def test_what_is_made_and_can_learn_needs_training() -> None:
    env = make()
    prepared = prepare_agent("primal-dual-paper", env, seed=4, device="cpu", iterations=3)
    assert prepared.needs_training
    assert (prepared.agent.seed, prepared.agent.config.iterations) == (4, 3)
    with pytest.raises(ValueError, match="'primal-dual-paper' is not trained"):
        prepared.require_trained()
    baseline = prepare_agent("random-power", env, seed=4)
    assert not baseline.needs_training
    baseline.require_trained()
    plain = RandomPower(env).predict(observations(env))[0]
    np.testing.assert_array_equal(baseline.agent.predict(observations(env))[0], plain)
    assert not prepare_agent("pretrained:paper", gym.make("ISAC-MISO-v0")).needs_training


def test_training_takes_the_options_that_it_knows() -> None:
    calls: list[dict[str, Any]] = []

    class Learner:
        def predict(self, observation: Any, **_: Any) -> Any:
            return observation, None

        def learn(self, steps: int = 2, progress_bar: bool = False) -> None:
            calls.append({"steps": steps, "progress_bar": progress_bar})

    sys.modules[__name__].Learner = Learner  # type: ignore[attr-defined]
    prepared = prepare_agent(f"{__name__}:Learner", make())
    assert prepared.needs_training
    prepared.train(progress_bar=True, checkpoint="file", callback=None, tensorboard_log=None)
    assert calls == [{"steps": 2, "progress_bar": True}]
    with pytest.raises(ValueError, match=r"learn\(\) of agent '.*Learner' must take callback"):
        prepared.train(callback=print)


def test_a_damaged_stable_baselines3_model_is_named(tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    path = tmp_path / "model.zip"
    sb3.PPO("MlpPolicy", make(), device="cpu").save(path)
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**held, "policy.pth": b"damaged"}.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"model\.zip: .*PPO.* cannot load it"):
        load_agent(path, make(), allow_pickle=True)
