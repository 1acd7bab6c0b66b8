"""Labels: right by the formulas, the same after every interruption, and safe to load."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import pytest
import reference
from direct_model import SMALL

import isac_gym
from isac_gym import RayleighChannel, RicianChannel, Scenario
from isac_gym.baselines import RZF, EqualPower
from isac_gym.channels.base import ChannelModel, Complex, Deployment
from isac_gym.learning import labels as module
from isac_gym.learning.labels import Labels, generate_labels, load_labels

ARRAYS = (
    *("channels", "estimates", "actions", "precoders", "streams"),
    *("sum_rates", "sensing_losses"),
)


def make(channel_model: ChannelModel | None = None, **changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", channel_model=channel_model, **{**SMALL, **changes})


class Hashing:
    """A different action for every observation; may fail at a call."""

    def __init__(self, env: Any, fails_at: int | None = None) -> None:
        self.mix = np.random.default_rng(0).normal(size=env.action_space.shape[0])
        self.calls: list[int] = []
        self.fails_at = fails_at

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        assert kwargs["deterministic"] is True
        assert np.array_equal(kwargs["episode_start"], np.ones(len(observation), np.bool_))
        if len(self.calls) == self.fails_at:
            raise RuntimeError("killed")
        self.calls.append(len(observation))
        total = np.asarray(observation, np.float64).sum(-1, keepdims=True)
        return np.sin(total * self.mix * 5.0).astype(np.float32), None


class Fixed:
    """The same actions whatever is observed."""

    def __init__(self, actions: Any) -> None:
        self.actions = actions

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self.actions, None


def generate(folder: Path, count: int, env: Any = None, **options: Any) -> None:
    env = make() if env is None else env
    agent = options.pop("agent", None) or Hashing(env)
    generate_labels(agent, env, folder, count, **{"name": "test", "shard_size": 4, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of ten labels that were generated without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    generate(folder, 10)
    return contents(folder)


def shard(index: int) -> str:
    return f"labels-{index:05d}.npz"


# What the labels hold


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"control": "power", "csi_error_variance": 0.3, "precoder_directions": "zf"},
        {"control": "amplitude", "power_limit": "cost"},
        {"num_cells": 2, "intercell_gain": 0.4, "csi_error_variance": 0.1, "radar_streams": 2},
        {"scheduling": "contention"},
    ],
    ids=["beamforming", "power", "amplitude", "cells", "contention"],
)
def test_every_array_agrees_with_the_formulas(tmp_path: Path, changes: dict[str, Any]) -> None:
    env = make(**changes)
    scenario = env.unwrapped.scenario
    agent = Hashing(env)
    generate(tmp_path, 10, env, agent=agent)
    found = load_labels(tmp_path)
    assert len(found) == 10
    cells, radar, comm = scenario.num_cells, 4, 5
    shape = (10, cells, cells, 3, radar + comm)
    assert found.channels.shape == found.estimates.shape == shape
    assert found.precoders.shape == (10, cells, comm, 3)
    assert found.streams.shape == (10, cells, radar, scenario.num_radar_streams)
    assert found.sum_rates.shape == (10,)
    assert found.sensing_losses.shape == (10, cells)
    for name in ("channels", "estimates", "precoders", "streams"):
        assert getattr(found, name).dtype == np.complex64
    for name in ("actions", "sum_rates", "sensing_losses"):
        assert getattr(found, name).dtype == np.float32

    for index in range(10):
        true, seen = (
            part[index].astype(np.complex128) for part in (found.channels, found.estimates)
        )
        observation = np.concatenate([seen.real.ravel(), seen.imag.ravel()]).astype(np.float32)
        action = Hashing(env).predict(
            observation[None], episode_start=np.ones(1, np.bool_), deterministic=True
        )[0][0]
        np.testing.assert_allclose(found.actions[index], action, atol=2e-4)
        precoders, covariances, access = direct_model.decode(scenario, found.actions[index], seen)
        assert covariances is not None
        np.testing.assert_allclose(found.precoders[index], precoders, atol=2e-6)
        streams = found.streams[index].astype(np.complex128)
        np.testing.assert_allclose(
            streams @ streams.conj().swapaxes(-1, -2), covariances, atol=1e-6
        )
        np.testing.assert_allclose(streams, waveforms(scenario, found.actions[index]), atol=1e-6)
        paid = direct_model.earned(scenario, true, precoders, covariances, access)
        np.testing.assert_allclose(found.sum_rates[index], paid["sum_rate"], rtol=2e-5, atol=1e-6)
        loss = paid["beampattern_error"] + paid["cross_correlation"]
        np.testing.assert_allclose(found.sensing_losses[index], loss, rtol=2e-5)
    assert len(np.unique(found.sum_rates.round(5))) > 1


def waveforms(scenario: Scenario, action: Any) -> Any:
    """V of the action: rows along its numbers, each with P_R/M_R."""
    antennas, streams = scenario.num_radar_antennas, scenario.num_radar_streams
    last = scenario.num_users if scenario.scheduling == "contention" else 0
    rows = np.asarray(action, np.float64).reshape(scenario.num_cells, -1)
    rows = rows[:, rows.shape[1] - last - 2 * antennas * streams : rows.shape[1] - last]
    parts = rows.reshape(scenario.num_cells, 2, antennas, streams)
    matrix = parts[:, 0] + 1j * parts[:, 1]
    share = np.sqrt(scenario.radar_power / antennas)
    return share * matrix / np.linalg.norm(matrix, axis=-1, keepdims=True)


def test_a_fixed_radar_has_the_floor_as_its_sensing_loss(tmp_path: Path) -> None:
    env = make(radar="fixed", control="power")
    generate(tmp_path, 5, env, agent=EqualPower(env))
    found = load_labels(tmp_path)
    floor = env.unwrapped.scenario.sensing_floor()
    for index in range(5):
        streams = found.streams[index, 0].astype(np.complex128)
        R = streams @ streams.conj().T
        np.testing.assert_allclose(np.diag(R), 0.2, rtol=1e-5)
        assert sum(reference.sensing_loss(R, 0.5, SMALL["target_angles_deg"])) == pytest.approx(
            floor[0], rel=1e-5
        )
    np.testing.assert_allclose(found.sensing_losses, floor[0], rtol=1e-5)
    G = found.channels[:, 0, 0, :, 4:]
    matched = G.conj().swapaxes(-1, -2) / np.linalg.norm(G, axis=-1)[:, None]
    np.testing.assert_allclose(found.precoders[:, 0], matched * np.sqrt(1 / 3), atol=1e-6)


def test_labels_of_a_baseline(tmp_path: Path) -> None:
    """RZF with equal powers: Gᴴ(GGᴴ + K/P·diag σ²)⁻¹, σ² with the radar's power."""
    env = make()
    generate(tmp_path, 6, env, agent=RZF(env), name="rzf")
    found = load_labels(tmp_path)
    for index in range(6):
        H, V = found.channels[index, 0, 0].astype(np.complex128), found.streams[index, 0]
        noise = 0.1 + np.sum(np.abs(H[:, :4] @ V) ** 2, -1)
        G = H[:, 4:]
        columns = G.conj().T @ np.linalg.inv(G @ G.conj().T + 3 * np.diag(noise))
        expected = columns / np.linalg.norm(columns, axis=0) * np.sqrt(1 / 3)
        np.testing.assert_allclose(found.precoders[index, 0], expected, atol=1e-5)
    assert found.manifest["agent"] == "rzf"


def test_the_manifest_says_what_the_labels_are(tmp_path: Path) -> None:
    env = make(RicianChannel(3.0))
    generate(tmp_path / "new" / "folder", 3, env, name="my agent", seed=5)
    found = load_labels(str(tmp_path / "new" / "folder")).manifest
    assert Scenario.from_dict(found["scenario"]) == Scenario(**SMALL)
    assert found["channel_model"] == {
        "name": "rician",
        "arguments": {"k_factor_db": 3.0, "angle_range_deg": [-60.0, 60.0]},
    }
    assert (found["agent"], found["seed"], found["count"]) == ("my agent", 5, 3)
    assert (found["shard_size"], found["version"]) == (4, isac_gym.__version__)


def test_channels_have_the_distribution_of_the_model_and_no_repetitions(tmp_path: Path) -> None:
    env = make(num_cells=2, intercell_gain=0.25)
    drawn = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        generate(folder, 300, env, agent=EqualPower(env), seed=seed, shard_size=128)
        drawn.append(load_labels(folder).channels)
    H = np.concatenate(drawn)
    for i, j in np.ndindex(2, 2):
        power = np.abs(H[:, i, j]) ** 2 / (1.0 if i == j else 0.25)
        # abs² of CN(0, 1) has mean 1 and variance 1.
        assert power.mean() == pytest.approx(1.0, abs=4 / np.sqrt(power.size))
        assert power.var() == pytest.approx(1.0, abs=4 * np.sqrt(8 / power.size))
        assert abs(H[:, i, j].mean()) * (1.0 if i == j else 2.0) < 4 / np.sqrt(power.size)
    assert len(np.unique(H)) == H.size


def test_estimates_err_and_rates_are_judged_on_the_true_channels(tmp_path: Path) -> None:
    env = make(csi_error_variance=0.2)
    generate(tmp_path, 200, env, agent=EqualPower(env), shard_size=64)
    found = load_labels(tmp_path)
    error = found.estimates - found.channels
    bound = 4 * 0.2 / np.sqrt(error.size)
    assert np.mean(np.abs(error) ** 2) == pytest.approx(0.2, abs=bound)
    # Independent of the channel: a least-squares estimate.
    assert abs(np.mean(error * found.channels.conj())) < 4 * np.sqrt(0.2 / error.size)
    for index in range(5):
        streams = found.streams[index].astype(np.complex128)
        covariances = streams @ streams.conj().swapaxes(-1, -2)
        by_channels, by_estimates = (
            reference.spectral_efficiency(
                reference.sinr(
                    seen[index].astype(np.complex128), found.precoders[index], covariances, 0.1
                )
            ).sum()
            for seen in (found.channels, found.estimates)
        )
        assert found.sum_rates[index] == pytest.approx(by_channels, rel=1e-4)
        assert abs(by_channels - by_estimates) > 1e-2


def test_without_an_error_the_estimates_are_the_channels(tmp_path: Path) -> None:
    generate(tmp_path, 5)
    found = load_labels(tmp_path)
    np.testing.assert_array_equal(found.estimates, found.channels)


def test_a_correlated_model_gives_independent_blocks(tmp_path: Path) -> None:
    env = make(doppler=0.01, episode_length=5)
    generate(tmp_path, 200, env, agent=EqualPower(env), shard_size=64)
    H = load_labels(tmp_path).channels
    assert abs(np.mean(H[1:] * H[:-1].conj())) < 4 / np.sqrt(H[1:].size)


# The same data every time


def test_the_same_seed_gives_the_same_files(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 400 * 86400.0)
    np.random.seed(123)  # noqa: NPY002  (the global generator must not matter)
    env = make()
    env.reset(seed=99)
    generate(tmp_path, 10, env)
    assert contents(tmp_path) == whole
    assert sorted(whole) == [*(shard(index) for index in range(3)), "manifest.json"]


def test_the_seed_changes_every_block(tmp_path: Path) -> None:
    for seed in (0, 1):
        generate(tmp_path / str(seed), 10, seed=seed)
    first, second = (load_labels(tmp_path / str(seed)).channels for seed in (0, 1))
    assert not np.isin(first, second).any()


def stopped_by_the_callback(folder: Path) -> None:
    def stop(done: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(folder, 10, callback=stop)
    assert not (folder / shard(2)).exists()


def stopped_by_the_agent(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        generate(folder, 10, agent=Hashing(make(), fails_at=1))
    assert sorted(contents(folder)) == [shard(0), "manifest.json"]


def stopped_before_the_first_shard(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        generate(folder, 10, agent=Hashing(make(), fails_at=0))


def lost_the_last_shard(folder: Path) -> None:
    generate(folder, 10)
    (folder / shard(2)).unlink()


def lost_a_shard_in_the_middle(folder: Path) -> None:
    generate(folder, 10)
    (folder / shard(1)).unlink()


def stopped_while_writing(folder: Path) -> None:
    generate(folder, 10)
    half = (folder / shard(1)).read_bytes()[:500]
    (folder / shard(1)).unlink()
    (folder / f".{shard(1)}.12345.tmp").write_bytes(half)
    (folder / ".manifest.json.12345.tmp").write_bytes(b"{")


INTERRUPTIONS: list[Callable[[Path], None]] = [
    stopped_by_the_callback,
    stopped_by_the_agent,
    stopped_before_the_first_shard,
    lost_the_last_shard,
    lost_a_shard_in_the_middle,
    stopped_while_writing,
]


@pytest.mark.parametrize("interrupted", INTERRUPTIONS, ids=lambda function: function.__name__)
def test_an_interrupted_generation_ends_with_the_same_files(
    tmp_path: Path, whole: dict[str, bytes], interrupted: Callable[[Path], None]
) -> None:
    interrupted(tmp_path)
    with pytest.raises(ValueError, match=r"incomplete, labels-0000\d\.npz is missing"):
        load_labels(tmp_path)
    generate(tmp_path, 10)
    found = contents(tmp_path)
    assert {name: held for name, held in found.items() if not name.endswith(".tmp")} == whole
    assert len(load_labels(tmp_path)) == 10


def test_a_failing_disk_leaves_no_half_of_a_shard(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # the manifest, a shard, and now the next
            raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            generate(tmp_path, 10)
    assert sorted(contents(tmp_path)) == [shard(0), "manifest.json"]
    generate(tmp_path, 10)
    assert contents(tmp_path) == whole


def test_what_is_there_is_not_solved_again(tmp_path: Path) -> None:
    env = make()
    first, second = Hashing(env), Hashing(env)
    generate(tmp_path, 10, env, agent=first)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    seen: list[int] = []
    generate(tmp_path, 10, env, agent=second, callback=seen.append)
    assert first.calls == [4, 4, 2]
    assert second.calls == []
    assert seen == [4, 8, 10]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")} == before


@pytest.mark.parametrize("count", [11, 12, 13, 21])
def test_a_larger_count_extends_the_set_and_keeps_the_beginning(
    tmp_path: Path, whole: dict[str, bytes], count: int
) -> None:
    env = make()
    generate(tmp_path / "extended", 10, env)
    begin = load_labels(tmp_path / "extended")
    agent = Hashing(env)
    generate(tmp_path / "extended", count, env, agent=agent)
    extended = contents(tmp_path / "extended")
    assert sum(agent.calls) == count - 8
    generate(tmp_path / "at once", count, env)
    assert extended == contents(tmp_path / "at once")
    for name in (shard(0), shard(1)):
        assert extended[name] == whole[name]
    found = load_labels(tmp_path / "extended")
    assert len(found) == found.manifest["count"] == count
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name)[:10], getattr(begin, name))


def test_an_interrupted_extension_goes_on(tmp_path: Path) -> None:
    env = make()
    generate(tmp_path / "extended", 5, env)
    with pytest.raises(RuntimeError, match="killed"):
        generate(tmp_path / "extended", 19, env, agent=Hashing(env, fails_at=2))
    generate(tmp_path / "extended", 19, env)
    generate(tmp_path / "at once", 19, env)
    assert contents(tmp_path / "extended") == contents(tmp_path / "at once")


def test_fewer_labels_than_a_shard_and_shards_of_one(tmp_path: Path) -> None:
    generate(tmp_path / "few", 3, shard_size=100)
    assert len(load_labels(tmp_path / "few")) == 3
    generate(tmp_path / "ones", 3, shard_size=1)
    found = load_labels(tmp_path / "ones")
    assert len(found) == 3
    assert sorted(contents(tmp_path / "ones"))[:3] == [shard(index) for index in range(3)]
    assert len(np.unique(found.channels)) == found.channels.size


class Halved(ChannelModel):
    """A model of one's own, without a ``repr``."""

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        """Rayleigh fading of half the amplitude."""
        drawn: Complex = (0.5 * RayleighChannel().draw(rng, num, deployment)).astype(np.complex64)
        return drawn


def test_a_channel_model_of_ones_own_can_be_resumed(tmp_path: Path) -> None:
    first, second = make(Halved()), make(Halved())
    generate(tmp_path, 10, first)
    (tmp_path / shard(2)).unlink()
    generate(tmp_path, 10, second)
    H = load_labels(tmp_path).channels
    assert np.mean(np.abs(H) ** 2) == pytest.approx(0.25, rel=0.3)


def test_integers_of_numpy_are_integers(tmp_path: Path) -> None:
    env = make()
    generate(tmp_path / "numpy", np.int64(5), env, seed=np.int32(3), shard_size=np.int64(4))
    generate(tmp_path / "plain", 5, env, seed=3)
    assert contents(tmp_path / "numpy") == contents(tmp_path / "plain")


# What does not fit together


MISMATCHES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("scenario", {"snr_db": 3.0}, {}),
    ("scenario", {"num_users": 2}, {}),
    ("channel_model", {"channel_model": RicianChannel()}, {}),
    ("agent", {}, {"name": "another"}),
    ("seed", {}, {"seed": 1}),
    ("shard_size", {}, {"shard_size": 5}),
]


@pytest.mark.parametrize(("key", "changes", "options"), MISMATCHES)
def test_a_folder_with_other_labels_is_refused(
    tmp_path: Path, key: str, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    generate(tmp_path, 6)
    before = contents(tmp_path)
    env = make(**changes)
    with pytest.raises(ValueError, match=f"holds labels with {key}=.* choose another") as error:
        generate(tmp_path, 6, env, **options)
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == before


def test_labels_of_another_version_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path, 2)
    monkeypatch.setattr(module, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"version='.*', got '99\.0'"):
        generate(tmp_path, 2)


def test_a_smaller_count_is_refused(tmp_path: Path) -> None:
    generate(tmp_path, 10)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="count must be at least 10"):
        generate(tmp_path, 9)
    assert contents(tmp_path) == before


def test_shards_without_a_manifest_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    generate(tmp_path / "mine", 10, seed=1)
    right = load_labels(tmp_path / "mine").channels
    generate(tmp_path / "left", 10, seed=0)
    (tmp_path / "left" / "manifest.json").unlink()
    with contextlib.suppress(ValueError):
        generate(tmp_path / "left", 10, seed=1)
        np.testing.assert_array_equal(load_labels(tmp_path / "left").channels, right)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("count", "shard_size") for value in (0, -1, 2.0, True, "3")),
        *(("seed", value) for value in (-1, 0.5, None, True)),
    ],
)
def test_invalid_options(tmp_path: Path, name: str, value: Any) -> None:
    env = make()
    options = {"count": 3, "seed": 0, "shard_size": 4, name: value}
    with pytest.raises(ValueError, match=f"^{name} must be an integer >= "):
        generate_labels(Hashing(env), env, tmp_path / "new", name="test", **options)
    assert not (tmp_path / "new").exists()


def test_what_is_no_environment(tmp_path: Path) -> None:
    env = make()
    with pytest.raises(TypeError, match="ISAC-MISO"):
        generate_labels(Hashing(env), gym.make("CartPole-v1"), tmp_path / "new", 3, name="test")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (np.full((4, 62), np.nan), ValueError, "finite"),
        (np.full((4, 62), -np.inf), ValueError, "finite"),
        (np.full((4, 62), 1.01), ValueError, r"within \[-1, 1\]"),
        (np.zeros((4, 61)), ValueError, r"shape \(4, 62\), got \(4, 61\)"),
        (np.zeros((3, 62)), ValueError, r"shape \(4, 62\), got \(3, 62\)"),
        (np.zeros(62), ValueError, r"shape \(4, 62\)"),
        (np.zeros((4, 62), np.complex64), TypeError, "real numbers"),
    ],
)
def test_invalid_actions_are_refused(
    tmp_path: Path, actions: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"action must .*{message}"):
        generate(tmp_path, 10, agent=Fixed(actions))
    assert not list(tmp_path.glob("*.npz"))
    # Once the agent is right the same folder does.
    generate(tmp_path, 10)
    assert len(load_labels(tmp_path)) == 10


# Files that are not what they should be


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def saved(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def held(path: Path) -> dict[str, Any]:
    with np.load(path) as content:
        return {name: content[name] for name in content.files}


def changed(path: Path, **arrays: Any) -> bytes:
    return saved(**{**held(path), **arrays})


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    return bytes(content)


def deflated(path: Path) -> bytes:
    """A shard whose compressed data are garbage."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **held(path))
    content = bytearray(buffer.getvalue())
    content[60:90] = b"\xff" * 30
    return bytes(content)


def with_flags(path: Path, offset: int, value: int) -> bytes:
    """The first entry of the zip's directory with another byte."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = value
    return bytes(content)


def plain_array(path: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, held(path)["channels"])
    return buffer.getvalue()


def without_actions(path: Path) -> bytes:
    arrays = held(path)
    del arrays["actions"]
    return saved(**arrays)


def other_zip(path: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "nothing")
    return buffer.getvalue()


def trapped_array(path: Path) -> bytes:
    trap = np.empty(4, object)
    trap[:] = [Trap(path.parent / "trace")] * 4
    return changed(path, channels=trap)


DAMAGES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "one byte": lambda path: path.read_bytes()[:1],
    "half": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "end missing": lambda path: path.read_bytes()[:-1],
    "garbage": lambda path: bytes(range(256)) * 4,
    "flipped bit": flipped,
    "garbage that is compressed": deflated,
    "encrypted": lambda path: with_flags(path, 8, 1),
    "of a later zip": lambda path: with_flags(path, 6, 99),
    "unknown compression": lambda path: with_flags(path, 10, 77),
    "another zip": other_zip,
    "plain array": plain_array,
    "array missing": without_actions,
    "arrays of different lengths": lambda path: changed(path, sum_rates=np.zeros(3, np.float32)),
    "array without a length": lambda path: changed(path, sum_rates=np.float32(1.0)),
    "arrays of another shape": lambda path: changed(path, actions=np.zeros((4, 61), np.float32)),
    "arrays of another type": lambda path: changed(path, sum_rates=np.array(["a"] * 4)),
    "pickled": lambda path: pickle.dumps(Trap(path.parent / "trace")),
    "pickled in an array": trapped_array,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_executes_nothing(tmp_path: Path, damage: str) -> None:
    generate(tmp_path, 10)
    path = tmp_path / shard(1)
    path.write_bytes(DAMAGES[damage](path))
    with pytest.raises(ValueError, match=r"labels-00001\.npz"):
        load_labels(tmp_path)
    assert not (tmp_path / "trace").exists()
    with pytest.raises(ValueError, match=r"labels-00001\.npz.*damaged"):
        generate(tmp_path, 10)
    assert not (tmp_path / "trace").exists()
    path.unlink()
    generate(tmp_path, 10)
    assert len(load_labels(tmp_path)) == 10


def test_the_traps_would_work(tmp_path: Path) -> None:
    generate(tmp_path, 4)
    content = DAMAGES["pickled in an array"](tmp_path / shard(0))
    with np.load(io.BytesIO(content), allow_pickle=True) as file:
        file["channels"]
    assert (tmp_path / "trace").is_dir()


def test_a_shard_of_another_scenario_is_named(tmp_path: Path) -> None:
    generate(tmp_path / "mine", 4)
    generate(tmp_path / "other", 4, make(num_users=2))
    shutil.copy(tmp_path / "other" / shard(0), tmp_path / "mine" / shard(0))
    with pytest.raises(ValueError, match=r"labels-00000\.npz"):
        load_labels(tmp_path / "mine")


def test_a_folder_in_the_place_of_a_shard(tmp_path: Path) -> None:
    generate(tmp_path, 10)
    (tmp_path / shard(1)).unlink()
    (tmp_path / shard(1)).mkdir()
    with pytest.raises(ValueError, match=r"labels-00001\.npz"):
        load_labels(tmp_path)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    generate(tmp_path, 2)
    path = tmp_path / shard(0)
    whole, content = load_labels(tmp_path), path.read_bytes()
    rng = np.random.default_rng(0)
    directory = content.index(b"PK\x01\x02")
    places = [*rng.integers(len(content), size=150), *rng.integers(directory, len(content), 150)]
    messages = []
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            found = load_labels(tmp_path)
        except ValueError as error:
            messages.append(str(error))
        else:  # in a field of the zip that nobody reads, such as a date
            for name in ARRAYS:
                np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert all(path.name in message for message in messages)
    assert len(messages) > 150


def test_a_shard_that_is_too_short_for_the_count(tmp_path: Path) -> None:
    generate(tmp_path, 6)
    generate(tmp_path / "longer", 8)
    shutil.copy(tmp_path / shard(1), tmp_path / "longer" / shard(1))
    with pytest.raises(ValueError, match=r"labels-00001\.npz: incomplete"):
        load_labels(tmp_path / "longer")
    generate(tmp_path / "longer", 8)
    assert len(load_labels(tmp_path / "longer")) == 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"format"',
        b"\xff\xfe",
        b"{}",
        b'{"format": 1, "count": 10, "shard_size": 4}',
        b'{"format": 2, "shard_size": 4}',
        b'{"format": 2, "count": 10}',
        b'{"format": 2, "count": 0, "shard_size": 4}',
        b'{"format": 2, "count": 10, "shard_size": 0}',
        b'{"format": 2, "count": "10", "shard_size": 4}',
        b'{"format": 2, "count": 10, "shard_size": 4.5}',
        b'{"format": 2, "count": NaN, "shard_size": 4}',
        pickle.dumps({"format": 2, "count": 10, "shard_size": 4}),
    ],
    ids=lambda content: repr(content)[:60],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    generate(tmp_path, 10)
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json: .*damaged"):
        load_labels(tmp_path)
    with pytest.raises(ValueError, match=r"manifest\.json: .*damaged"):
        generate(tmp_path, 10)
    assert path.read_bytes() == content


def test_a_manifest_that_lacks_entries_is_not_ones_own(tmp_path: Path) -> None:
    generate(tmp_path, 10)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    for key in ("scenario", "channel_model", "agent", "seed", "version"):
        path.write_text(json.dumps({name: content[name] for name in content if name != key}))
        with pytest.raises(ValueError, match=f"holds labels with {key}=None"):
            generate(tmp_path, 10)


def test_no_labels_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError):
            load_labels(folder)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ValueError, match=r"manifest\.json"):
        load_labels(tmp_path)


def test_labels_have_a_length(tmp_path: Path) -> None:
    generate(tmp_path, 7)
    found = load_labels(tmp_path)
    assert isinstance(found, Labels)
    assert len(found) == len(found.actions) == 7
