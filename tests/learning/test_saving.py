"""Saved agents: exact, portable, and never executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from isac_gym import GaussMarkovChannel, RayleighChannel, RicianChannel
from isac_gym.agents import PrimalDual, load_agent
from isac_gym.files import write_atomically
from isac_gym.learning.archive import read_archive, write_archive


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agents") / "agent.zip"
    PrimalDual(make(), "paper", seed=3).learn(3).save(path)
    return path


def parts_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("preset", ["paper", "tuned", "model-based"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"control": "power", "radar": "fixed"}, {"num_cells": 2, "scheduling": "contention"}],
    ids=["beamforming", "power", "cells"],
)
def test_a_loaded_agent_acts_bit_for_bit_alike(
    tmp_path: Path, preset: str, changes: dict[str, Any]
) -> None:
    env = make(**changes)
    agent = PrimalDual(
        env,
        preset,
        seed=5,
        hidden_sizes=(12, 6),
        batch_size=4,
        dual_step_size=0.5,
        calibration_channels=64,
    ).learn(4)
    path = tmp_path / "deep" / "er" / "agent.zip"
    agent.save(path)
    assert os.listdir(path.parent) == ["agent.zip"]
    again = PrimalDual.load(path, make(**changes))
    batch = np.stack([env.reset(seed=seed)[0] for seed in range(20)])
    np.testing.assert_array_equal(again.predict(batch)[0], agent.predict(batch)[0])
    np.testing.assert_array_equal(again.predict(batch[0])[0], agent.predict(batch[0])[0])
    fresh = PrimalDual(env, preset, seed=5, hidden_sizes=(12, 6))
    assert not np.array_equal(fresh.predict(batch)[0], agent.predict(batch)[0])
    assert again.config == agent.config
    assert again.seed == agent.seed
    for name, value in agent.multipliers.values.items():
        np.testing.assert_array_equal(again.multipliers.values[name], value)
    np.testing.assert_array_equal(again.multiplier, agent.multiplier)


def test_names_as_strings(saved: Path) -> None:
    assert PrimalDual.load(str(saved), make()).seed == 3


def test_a_file_holds_json_and_safetensors_only(saved: Path) -> None:
    parts = parts_of(saved)
    assert len(parts) == 2
    meta = json.loads(parts["agent.json"])
    assert meta["scenario"]["num_users"] == 3
    tensors = load_tensors(parts["tensors.safetensors"])
    assert sum(t.numel() for t in tensors.values()) > 100


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nosuch"):
        PrimalDual.load(tmp_path / "nosuch.zip", make())


def test_a_truncated_file(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    env = make()
    path = tmp_path / "cut.zip"
    for length in [0, 1, 4, *range(30, len(content), len(content) // 40), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.zip"):
            PrimalDual.load(path, env)


def test_a_file_with_a_flipped_bit(saved: Path, tmp_path: Path) -> None:
    """Every byte matters: an agent is read as it was written, or refused."""
    content = saved.read_bytes()
    env = make()
    observation, _ = env.reset(seed=0)
    expected = PrimalDual.load(saved, env).predict(observation)[0]
    path = tmp_path / "flipped.zip"
    refused = 0
    for position in range(0, len(content), max(len(content) // 150, 1)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(bytes(damaged))
        try:
            agent = PrimalDual.load(path, env)
        except ValueError:
            refused += 1
        else:
            np.testing.assert_array_equal(agent.predict(observation)[0], expected)
    assert refused > 100


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def foreign_files(bomb: Bomb) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3), "bomb": bomb}, buffer)
    numpy = io.BytesIO()
    np.savez(numpy, channels=np.zeros(3))
    return {
        "pickle": pickle.dumps(bomb),
        "torch": buffer.getvalue(),
        "numpy": numpy.getvalue(),
        "text": b"not an agent",
        "json": b"{}",
    }


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy", "text", "json"])
def test_foreign_files_are_refused_and_not_executed(tmp_path: Path, kind: str) -> None:
    trace = tmp_path / "executed"
    path = tmp_path / "foreign.zip"
    path.write_bytes(foreign_files(Bomb(trace))[kind])
    with pytest.raises(ValueError, match=r"foreign\.zip"):
        PrimalDual.load(path, make())
    assert not trace.exists()


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("where", ["agent.json", "tensors.safetensors", "data.pkl"])
def test_a_pickle_inside_is_never_executed(saved: Path, tmp_path: Path, where: str) -> None:
    trace = tmp_path / "executed"
    parts = parts_of(saved)
    replaces = where in parts
    path = pack(tmp_path / "bomb.zip", {**parts, where: pickle.dumps(Bomb(trace))})
    if replaces:
        with pytest.raises(ValueError, match=r"bomb\.zip"):
            PrimalDual.load(path, make())
    else:
        PrimalDual.load(path, make())
    assert not trace.exists()


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (RicianChannel(2.0, (-30.0, 40.0)), {}),
        (GaussMarkovChannel(0.2), {"doppler": 0.2}),
        (GaussMarkovChannel(0.2), {}),
        (RayleighChannel(), {}),
    ],
    ids=["rician", "doppler", "gauss-markov", "rayleigh"],
)
def test_without_an_environment_it_is_for_the_channels_that_it_was_saved_for(
    tmp_path: Path, model: Any, changes: dict[str, Any]
) -> None:
    path = tmp_path / "agent.zip"
    env = make(channel_model=model, **changes)
    agent = PrimalDual(env, "tuned", **UNFOLDED)
    agent.calibrate(32)
    agent.save(path)
    for loaded in (PrimalDual.load(path), load_agent(path)):
        assert type(loaded.channel_model) is type(model)
        assert loaded.channel_model == model or isinstance(model, RayleighChannel)
        assert torch.equal(loaded.multiplier, agent.multiplier), "it was not settled anew"
    # In an environment with other channels, it is.
    other = PrimalDual.load(path, make(channel_model=RicianChannel(30.0)))
    assert other.multiplier.item() != agent.multiplier.item()


@pytest.mark.parametrize("part", ["architecture", "channel_model", "constraints", "class"])
def test_a_module_that_a_file_names_is_not_imported(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """It might do anything; only those that are imported already can be meant."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "named_by_a_file", raising=False)
    (tmp_path / "named_by_a_file.py").write_text("class Anything:\n    pass\n")
    name, parts = "named_by_a_file:Anything", parts_of(saved)
    meta = json.loads(parts["agent.json"])
    if part == "architecture":
        meta["config"]["architecture"] = name
    elif part == "class":
        meta["class"] = name
    else:
        described = {"name": name, "arguments": {}}
        meta[part] = [described] if part == "constraints" else described
    parts["agent.json"] = json.dumps(meta).encode()
    path = pack(tmp_path / "naming.zip", parts)
    for load in (PrimalDual.load, load_agent):
        if part == "class":
            load(path)  # for people
        else:
            with pytest.raises(ValueError, match=r"naming\.zip"):
                load(path)
        assert "named_by_a_file" not in sys.modules


def changed_meta(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        meta = json.loads(parts["agent.json"])
        replaced = change(meta)
        parts["agent.json"] = json.dumps(meta if replaced is None else replaced).encode()

    return apply


def changed_tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        tensors = load_tensors(parts["tensors.safetensors"])
        change(tensors)
        parts["tensors.safetensors"] = save_tensors(tensors)

    return apply


def first_weight(tensors: dict[str, Any]) -> str:
    return next(name for name in sorted(tensors) if name.startswith("network."))


TAMPERINGS: dict[str, Callable[[dict[str, bytes]], Any]] = {
    "no meta": lambda parts: parts.pop("agent.json"),
    "no tensors": lambda parts: parts.pop("tensors.safetensors"),
    "meta is a list": changed_meta(lambda meta: [1, 2]),
    "format": changed_meta(lambda meta: meta.update(format="other")),
    "format version": changed_meta(lambda meta: meta.update(format_version=99)),
    "kind": changed_meta(lambda meta: meta.update(kind="training checkpoint")),
    "config missing": changed_meta(lambda meta: meta.pop("config") and None),
    "config is null": changed_meta(lambda meta: meta.update(config=None)),
    "config is a list": changed_meta(lambda meta: meta.update(config=[])),
    "config is empty": changed_meta(lambda meta: meta.update(config={})),
    "config has more": changed_meta(lambda meta: meta["config"].update(surprise=1)),
    "config has less": changed_meta(lambda meta: meta["config"].pop("options") and None),
    "config value": changed_meta(lambda meta: meta["config"].update(batch_size=-3)),
    "config type": changed_meta(lambda meta: meta["config"].update(learning_rate="fast")),
    "hidden sizes": changed_meta(lambda meta: meta["config"]["options"].update(hidden_sizes=[7])),
    "hidden type": changed_meta(lambda meta: meta["config"]["options"].update(hidden_sizes=7)),
    "options of another kind": changed_meta(lambda meta: meta.update(options={"unfreeze": True})),
    "options missing": changed_meta(lambda meta: meta.pop("options") and None),
    "options are a list": changed_meta(lambda meta: meta.update(options=["seed"])),
    "seed missing": changed_meta(lambda meta: [meta.pop("seed"), None][1]),
    "seed": changed_meta(lambda meta: meta.update(seed="three")),
    "negative seed": changed_meta(lambda meta: meta.update(seed=-3)),
    "scenario missing": changed_meta(
        lambda meta: [
            meta.pop("scenario"),
            meta["config"]["options"].update(hidden_sizes=[7]),
            None,
        ][2]
    ),
    "a weight missing": changed_tensors(lambda t: t.pop(first_weight(t))),
    "a weight more": changed_tensors(lambda t: t.update({"network.more": torch.zeros(2)})),
    "a weight's shape": changed_tensors(lambda t: t.update({first_weight(t): torch.zeros(2, 2)})),
    "a multiplier missing": changed_tensors(lambda t: t.pop("multipliers.sensing")),
    "a multiplier's shape": changed_tensors(
        lambda t: t.update({"multipliers.sensing": torch.zeros(4)})
    ),
    "tensors are text": lambda parts: parts.update({"tensors.safetensors": b"abc"}),
    "meta is no text": lambda parts: parts.update({"agent.json": b"\xff\xfe\x00"}),
}


@pytest.mark.parametrize("name", list(TAMPERINGS))
def test_a_tampered_file_is_refused_by_name(saved: Path, tmp_path: Path, name: str) -> None:
    parts = parts_of(saved)
    TAMPERINGS[name](parts)
    path = pack(tmp_path / "tampered.zip", parts)
    with pytest.raises(ValueError, match=r"tampered\.zip"):
        PrimalDual.load(path, make())


@pytest.mark.parametrize(
    "changes", [{"num_users": 2}, {"num_comm_antennas": 6}, {"radar": "fixed"}, {"num_cells": 2}]
)
def test_an_agent_of_other_dimensions_is_refused(saved: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"agent\.zip.*another scenario"):
        PrimalDual.load(saved, make(**changes))


def test_an_agent_can_be_used_under_other_conditions(saved: Path) -> None:
    env = make(snr_db=3.0)
    assert PrimalDual.load(saved, env).scenario.snr_db == 3.0


def test_archives_keep_meta_and_tensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "b": torch.arange(6).view(2, 3).t(),
        "c": torch.tensor(2.5, dtype=torch.float64),
    }
    path = tmp_path / "archive.zip"
    write_archive(path, {"kind": "thing", "list": [1, "zwei"], "none": None}, tensors)
    meta, found = read_archive(path, "thing")
    assert (meta["list"], meta["none"]) == ([1, "zwei"], None)
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    with pytest.raises(ValueError, match="kind must be 'other', got 'thing'"):
        read_archive(path, "other")
    with pytest.raises(ValueError, match="not a saved"):
        read_archive(tmp_path, "thing")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("saved_in", "changes"),
    [
        # Observations and actions keep their lengths here; what their numbers mean differs.
        ({}, {"num_radar_antennas": 5, "num_comm_antennas": 4}),
        ({"control": "power"}, {"control": "power", "precoder_directions": "zf"}),
    ],
    ids=["antennas", "directions"],
)
def test_an_agent_whose_numbers_mean_something_else_is_refused(
    tmp_path: Path, saved_in: dict[str, Any], changes: dict[str, Any]
) -> None:
    path = tmp_path / "agent.zip"
    settings = {"radar": "fixed", "sensing_threshold": 1.0}
    PrimalDual(make(**settings, **saved_in), "model-based").save(path)
    named = "num_comm_antennas|precoder_directions"
    with pytest.raises(
        ValueError, match=rf"agent\.zip: saved for another scenario, with ({named})"
    ):
        PrimalDual.load(path, make(**settings, **changes))


def test_weights_that_are_not_finite_are_refused(saved: Path, tmp_path: Path) -> None:
    parts = parts_of(saved)
    changed_tensors(lambda tensors: tensors[first_weight(tensors)].fill_(float("nan")))(parts)
    with pytest.raises(ValueError, match=r"nan\.zip: damaged \(holds weights that are not finite"):
        PrimalDual.load(pack(tmp_path / "nan.zip", parts), make())


UNFOLDED: dict[str, Any] = {"width": 8, "stages": ((6.0, 1), (6.0, 2))}


@pytest.mark.parametrize(
    "changes",
    [{"control": "power"}, {"radar": "fixed"}, {"scheduling": "contention"}],
    ids=["control", "radar", "scheduling"],
)
def test_an_unfolded_agent_of_another_kind_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "agent.zip"
    PrimalDual(make(), "tuned", **UNFOLDED).save(path)
    with pytest.raises(ValueError, match=rf"agent\.zip: saved for another.*{next(iter(changes))}"):
        PrimalDual.load(path, make(**changes))


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta["config"]["options"].update(width=9),
        lambda meta: meta["config"]["options"].update(stages=[[6.0, 1]]),
        lambda meta: meta["config"]["options"].update(stages=[[6.0, 1], [6.0, 3]]),
        lambda meta: meta["config"]["options"].update(width=10**9),
        lambda meta: meta["config"].update(snr_range_db=[0.0, 10.0]),
    ],
    ids=["width", "a stage less", "a step more", "too wide", "multipliers of a grid"],
)
def test_settings_that_do_not_fit_an_unfolded_agent_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = tmp_path / "agent.zip"
    PrimalDual(make(), "tuned", **UNFOLDED).save(path)
    parts = parts_of(path)
    changed_meta(lambda meta: [change(meta), None][1])(parts)
    with pytest.raises(ValueError, match=r"changed\.zip"):
        PrimalDual.load(pack(tmp_path / "changed.zip", parts), make())


def test_a_price_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    agent = PrimalDual(make(), "tuned", **UNFOLDED)
    agent.calibrate(32)
    agent.save(path)
    parts = parts_of(path)
    changed_tensors(lambda t: t.update({"calibrated": torch.ones(2)}))(parts)
    with pytest.raises(ValueError, match=r"changed\.zip: damaged"):
        PrimalDual.load(pack(tmp_path / "changed.zip", parts), make())


def test_a_device_that_does_not_exist_is_no_fault_of_the_file(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"^device must be"):
        PrimalDual.load(saved, device="nonsense")
