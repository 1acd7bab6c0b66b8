"""The one door of files: whatever is in them, they load as what they are or are refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fuzz import hostile_files
from fuzz.hostile_files import ANY_FILE
from small_agents import make, quick, weights

from isac_gym import FileChannels
from isac_gym.agents import (
    DistributedPrimalDual,
    PrimalDual,
    Supervised,
    TransferBeamforming,
    load_agent,
)
from isac_gym.baselines import EqualPower
from isac_gym.experiments import Experiment, run_experiment
from isac_gym.learning.checkpoint import CheckpointError
from isac_gym.learning.labels import generate_labels, load_labels
from isac_gym.learning.stations import load_station
from isac_gym.reading import FileError, blame_file, make_file_error, open_file

Arrays = dict[str, npt.NDArray[Any]]
TIME_LIMIT = 20


@dataclasses.dataclass(frozen=True)
class Door:
    """A kind of file.

    Attributes:
        write: Writes one into a folder and returns its path.
        load: Loads it, and returns what it held.
        error: Class of the errors.
        is_whole: Whether every damage that is not refused leaves what the file holds unchanged. In
            plain JSON another digit is another number.
    """

    write: Callable[[Path], Path]
    load: Callable[[Path], Arrays]
    error: type[ValueError] = FileError
    is_whole: bool = True


def saving(kind: Any, num_cells: int = 1, **settings: Any) -> Door:
    """The door of a learning agent."""

    def write(folder: Path) -> Path:
        quick(make(num_cells=num_cells), kind, **settings).save(folder / "agent.zip")
        return folder / "agent.zip"

    def load(path: Path) -> Arrays:
        found = weights(load_agent(path))
        return {name: value for name, value in found.items() if not name.startswith("dual")}

    return Door(write, load)


def write_station(folder: Path) -> Path:
    agent = quick(make(num_cells=2), DistributedPrimalDual, message_bits=2)
    agent.save_station(0, folder / "station.zip")
    return folder / "station.zip"


def load_layers(path: Path) -> Arrays:
    return {k: v.numpy() for k, v in load_station(path).layers.state_dict().items()}


def train(path: Path) -> Arrays:
    return weights(quick(make()).learn(3, checkpoint=path, checkpoint_every=3))


def write_checkpoint(folder: Path) -> Path:
    train(folder / "training.zip")
    return folder / "training.zip"


def make_samples() -> npt.NDArray[Any]:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(20, 2, 8)) + 1j * rng.normal(size=(20, 2, 8))).astype(np.complex64)


def write_array(folder: Path) -> Path:
    np.save(folder / "channels.npy", make_samples())
    return folder / "channels.npy"


def write_arrays(folder: Path) -> Path:
    np.savez_compressed(folder / "channels.npz", channels=make_samples())
    return folder / "channels.npz"


def load_samples(path: Path) -> Arrays:
    return {"samples": FileChannels(path).samples}


def write_labels(folder: Path, name: str) -> Path:
    env = make()
    generate_labels(EqualPower(env), env, folder, 6, name="equal-power", shard_size=4)
    return folder / name


def read_labels(path: Path) -> Arrays:
    held = load_labels(path.parent)
    return {f.name: getattr(held, f.name) for f in dataclasses.fields(held) if f.name != "manifest"}


class Squares(Experiment):
    """Points that are squared, of which the last is never reached."""

    name = "squares"

    def points(self) -> Any:
        return [{"number": number} for number in range(4)]

    def run(self, point: Any, workspace: Any) -> Any:
        if point["number"] == 3:
            raise KeyboardInterrupt
        return {"square": float(point["number"] ** 2)}

    def tabulate(self, rows: Any) -> Any:
        raise NotImplementedError


def write_rows(folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Squares(), folder)
    return folder / "squares.unfinished" / "rows.json"


def go_on(path: Path) -> Arrays:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Squares(), path.parent.parent)
    return {}


def find_reference(folder: Path) -> Arrays:
    from isac_gym.experiments.base import Workspace
    from isac_gym.experiments.reinforcement_curves import ReinforcementCurves

    scenario = make(control="power", radar="fixed").unwrapped.scenario
    experiment = ReinforcementCurves(scenario=scenario, channels=4)
    blocks = experiment.draw_channels(experiment.env, 4, 7)
    return {"rates": experiment.find_reference(experiment.env, blocks, Workspace(folder)).rates}


def write_reference(folder: Path) -> Path:
    find_reference(folder)
    (path,) = folder.glob("*.json")
    return path


REINFORCED: dict[str, Any] = {
    "timesteps": 32,
    "num_envs": 8,
    "rollout_length": 2,
    "repeats": 2,
    "batch_size": 16,
    "epochs": 1,
    "width": 8,
    "penalty": 5.0,
}


def reinforce(name: str) -> Any:
    from isac_gym.registry import make_agent

    return make_agent(name, make(), **REINFORCED)


def write_reinforced(folder: Path) -> Path:
    pytest.importorskip("stable_baselines3")
    reinforce("ppo-lagrangian").save(folder / "agent.zip")
    return folder / "agent.zip"


def load_reinforced(path: Path) -> Arrays:
    return {k: v.numpy() for k, v in load_agent(path).model.policy.state_dict().items()}


def resume(name: str) -> Door:
    """The door of a checkpoint of reinforcement learning."""

    def load(path: Path) -> Arrays:
        agent = reinforce(name).learn(checkpoint=path)
        return {k: v.numpy() for k, v in agent.model.policy.state_dict().items()}

    def write(folder: Path) -> Path:
        pytest.importorskip("stable_baselines3")
        load(folder / "training.zip")
        return folder / "training.zip"

    return Door(write, load, CheckpointError)


DOORS = {
    "PrimalDual": saving(PrimalDual),
    "unfolded": saving(PrimalDual, architecture="unfolded"),
    "Supervised": saving(Supervised),
    "TransferBeamforming": saving(TransferBeamforming),
    "DistributedPrimalDual": saving(DistributedPrimalDual, num_cells=2, message_bits=2),
    "station": Door(write_station, load_layers),
    "checkpoint": Door(write_checkpoint, train, CheckpointError),
    "npy": Door(write_array, load_samples, is_whole=False),
    "npz": Door(write_arrays, load_samples),
    "shard": Door(lambda folder: write_labels(folder, "labels-00001.npz"), read_labels),
    "manifest": Door(lambda folder: write_labels(folder, "manifest.json"), read_labels),
    "rows": Door(write_rows, go_on, is_whole=False),
    "reference": Door(write_reference, lambda path: find_reference(path.parent), is_whole=False),
    "Reinforcement": Door(write_reinforced, load_reinforced),
    "Lagrangian checkpoint": resume("ppo-lagrangian"),
    "PPO checkpoint": resume("ppo"),
}
ZIPS = [name for name in DOORS if name not in ("npy", "manifest", "rows", "reference")]
ARCHIVES = [name for name in ZIPS if name not in ("npz", "shard")]
TEXTS = ["manifest", "rows", "reference"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, bytes, Arrays]]:
    """A good file of each kind, its content, and what it holds."""
    made: dict[str, tuple[Path, bytes, Arrays]] = {}

    def get(name: str) -> tuple[Path, bytes, Arrays]:
        if name not in made:
            path = DOORS[name].write(tmp_path_factory.mktemp("files"))
            made[name] = path, path.read_bytes(), DOORS[name].load(path)
        return made[name]

    return get


@contextmanager
def limit_time() -> Iterator[None]:
    """An error instead of a reading that never ends."""

    def stop(*_: Any) -> None:
        pytest.fail(f"not done after {TIME_LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_refused(door: Door, path: Path, expected: Arrays, damage: str) -> bool:
    """Whether a file is refused, by name; if it is not, it must be what it was."""
    message = ""
    with limit_time():
        try:
            found = door.load(path)
        except door.error as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{damage}: {error!r}") from error
    if message:
        # With another scenario in the manifest, it is the shards that do not fit.
        named = str(path.parent) if path.name == "manifest.json" else path.name
        assert named in message, damage
        assert message.count(str(path)) < 2 or "rows" in message, f"{damage}: {message}"
        return True
    assert set(found) == set(expected), damage
    for name, value in expected.items() if door.is_whole else ():
        np.testing.assert_array_equal(found[name], value, err_msg=damage)
    for value in found.values():
        assert np.isfinite(value).all(), damage
    return False


@pytest.mark.parametrize("name", DOORS)
def test_a_damaged_file_is_refused_by_name_or_loads_as_it_was(name: str, good: Any) -> None:
    path, content, expected = good(name)
    refused = []
    for label, damage in ANY_FILE.items():
        path.write_bytes(damage(content))
        if is_refused(DOORS[name], path, expected, label):
            refused.append(label)
    path.write_bytes(content)
    may_pass = {label for label in ANY_FILE if label.startswith(("flipped", "overwritten"))}
    if content.endswith(b"}\n"):
        may_pass.add("end missing")
    assert set(refused) >= set(ANY_FILE) - may_pass


@pytest.mark.parametrize("name", ZIPS)
def test_a_hostile_zip_file_is_refused_by_name(name: str, good: Any) -> None:
    path, content, expected = good(name)
    for label, damaged in hostile_files.list_zip_damages(content):
        path.write_bytes(damaged)
        is_longer = label.endswith("json longer")  # zeros after the JSON
        assert is_refused(DOORS[name], path, expected, label) or is_longer, label
    path.write_bytes(content)


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_values_in_a_description_are_refused_or_change_nothing(
    name: str, good: Any
) -> None:
    path, content, expected = good(name)
    entries = hostile_files.unpack(content)
    # A checkpoint that counts less goes on for longer.
    door = dataclasses.replace(DOORS[name], is_whole="checkpoint" not in name)
    refused = 0
    for label, text in hostile_files.list_json_damages(entries["agent.json"], 24, seed=1):
        path.write_bytes(hostile_files.pack({**entries, "agent.json": text}))
        refused += is_refused(door, path, expected, label)
    path.write_bytes(content)
    assert refused > 8


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_tensors_are_refused_by_name(name: str, good: Any) -> None:
    path, content, expected = good(name)
    entries = hostile_files.unpack(content)
    held = json.loads(entries["agent.json"])
    del held["tensors"]  # as files have it that were written before there were names
    for label, damaged in hostile_files.list_tensor_damages(entries["tensors.safetensors"]):
        changed = {"agent.json": json.dumps(held).encode(), "tensors.safetensors": damaged}
        path.write_bytes(hostile_files.pack(changed))
        # What nothing needs may be missing or more, and squares of gradients may overflow.
        may_pass = label == "more" or "last/" in label or label.endswith("exp_avg_sq infinite")
        assert is_refused(DOORS[name], path, expected, label) or may_pass, label
    path.write_bytes(content)


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_values_in_plain_json_are_refused_by_name(name: str, good: Any) -> None:
    path, content, expected = good(name)
    refused = 0
    for label, text in hostile_files.list_json_damages(content, 40, seed=2):
        path.write_bytes(text)
        refused += is_refused(DOORS[name], path, expected, label)
    path.write_bytes(content)
    assert refused > 10


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("what", ["folder", "pipe", "socket"])
def test_what_is_no_regular_file_is_refused_unopened(name: str, what: str, good: Any) -> None:
    path, content, expected = good(name)
    path.unlink()
    held = None
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        held = socket.socket(socket.AF_UNIX)
        before = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        held.bind(path.name)
        os.chdir(before)
    try:
        assert is_refused(DOORS[name], path, expected, what)
    finally:
        if held is not None:
            held.close()
        path.rmdir() if what == "folder" else path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["PrimalDual", "station", "npy", "npz", "manifest"])
def test_a_missing_file_stays_a_missing_file(name: str, good: Any) -> None:
    path, content, _ = good(name)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        DOORS[name].load(path)
    path.write_bytes(content)


@pytest.mark.parametrize("array", ["channels", "actions", "sum_rates"])
def test_labels_that_are_not_finite_are_refused(array: str, good: Any) -> None:
    path, content, _ = good("shard")
    with np.load(path) as held:
        arrays = dict(held)
    arrays[array].flat[-1] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(FileError, match=rf"{path.name}: damaged \({array} must be finite\)"):
        load_labels(path.parent)
    path.write_bytes(content)


# Checkpoints


def tamper(content: bytes, damage: Callable[[dict[str, Any], dict[str, Any]], Any]) -> bytes:
    from safetensors.torch import load, save

    entries = hostile_files.unpack(content)
    meta, tensors = json.loads(entries["agent.json"]), load(entries["tensors.safetensors"])
    damage(meta, tensors)
    meta.pop("tensors", None)
    changed = {"agent.json": json.dumps(meta).encode(), "tensors.safetensors": save(tensors)}
    return hostile_files.pack(changed)


def lose_optimiser(meta: dict[str, Any], tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("optimiser.")]:
        del tensors[name]


def lose_moment(meta: dict[str, Any], tensors: dict[str, Any]) -> None:
    del tensors[next(name for name in tensors if name.endswith("exp_avg"))]


def spoil_weights(meta: dict[str, Any], tensors: dict[str, Any]) -> None:
    assert meta["ended"] is True
    next(v for k, v in tensors.items() if k.startswith("network.")).fill_(float("nan"))


CHECKPOINT_DAMAGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "no optimiser": lose_optimiser,
    "half an optimiser": lose_moment,
    "NaN, and said to have ended": spoil_weights,
    "beyond the end": lambda meta, tensors: meta.update(iterations_done=4, ended=False),
    "negative": lambda meta, tensors: meta.update(iterations_done=-1, ended=False),
    "huge": lambda meta, tensors: meta.update(iterations_done=10**400),
    "no count": lambda meta, tensors: meta.update(iterations_done=2.5),
    "ended maybe": lambda meta, tensors: meta.update(ended="no"),
    "no random numbers": lambda meta, tensors: meta.update(rng={}),
    "other random numbers": lambda meta, tensors: meta.update(rng={"bit_generator": "MT19937"}),
    "no identity": lambda meta, tensors: meta.update(identity=[]),
}


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGES)
def test_a_tampered_checkpoint_is_refused_with_what_to_do(damage: str, good: Any) -> None:
    path, content, _ = good("checkpoint")
    path.write_bytes(tamper(content, CHECKPOINT_DAMAGES[damage]))
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*; delete it to start anew"):
        train(path)
    path.write_bytes(content)


def test_a_checkpoint_knows_the_names_of_its_tensors(good: Any) -> None:
    """Some of an optimiser's state may be missing, where parameters never had a gradient."""
    path, content, _ = good("checkpoint")
    entries = hostile_files.unpack(content)
    other = hostile_files.unpack(
        tamper(content, lambda _, t: [t.pop(n) for n in list(t) if n.startswith("optimiser.0.")])
    )
    tensors = other["tensors.safetensors"]
    path.write_bytes(hostile_files.pack({**entries, "tensors.safetensors": tensors}))
    with pytest.raises(CheckpointError, match=r"tensors are missing.*optimiser\.0"):
        train(path)
    path.write_bytes(content)


# What a file may cost

MEASURE = """
import resource, sys, time
from isac_gym import FileChannels
from isac_gym.agents import PrimalDual, load_agent
from isac_gym.learning.labels import load_labels

doors = {"agent": load_agent, "channels": FileChannels, "labels": load_labels}
for pair in sys.argv[1:]:
    kind, _, path = pair.partition("=")
    peak, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        doors[kind](path)
        found = "loaded"
    except Exception as error:
        found = type(error).__name__
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    print(found, round(grown), round(time.process_time() - begin, 1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is in other units")
def test_no_small_file_fills_the_memory(tmp_path: Path, good: Any) -> None:
    """Peak memory at most 200 MB for files of at most 2 MB; honest channels at most three times."""
    files: dict[str, tuple[str, bytes]] = {}
    header = hostile_files.make_array_header("<c16", (512 * 2**20 // 256, 2, 8))
    bomb = hostile_files.make_bomb({}, "channels.npy", header, 512)
    files["channels.npz"] = "channels", bomb
    header = hostile_files.make_array_header("|i1", (60 * 2**20 // 16, 2, 8))
    files["bytes.npz"] = "channels", hostile_files.make_bomb({}, "channels.npy", header, 60)
    entries = hostile_files.unpack(good("PrimalDual")[1])
    meta = json.loads(entries["agent.json"])
    tensors = dump({"network.a": {"dtype": "F32", "shape": [2**27], "data_offsets": [0, 2**29]}})
    start = len(tensors).to_bytes(8, "little") + tensors
    others = {"agent.json": entries["agent.json"]}
    files["agent.zip"] = (
        "agent",
        hostile_files.make_bomb(others, "tensors.safetensors", start, 512),
    )
    wide = {**meta, "config": {**meta["config"], "options": {"hidden_sizes": [20_000, 20_000]}}}
    files["wide.zip"] = "agent", hostile_files.pack({**entries, "agent.json": dump(wide)})
    for name, architecture in (("large.zip", "PrimalDual"), ("unfolded.zip", "unfolded")):
        entries = hostile_files.unpack(good(architecture)[1])
        meta = json.loads(entries["agent.json"])
        meta["scenario"] |= {"num_radar_antennas": 512, "num_comm_antennas": 512}
        meta["scenario"]["sensing_threshold"] = 5.0
        files[name] = "agent", hostile_files.pack({**entries, "agent.json": dump(meta)})
    shards = tmp_path / "labels"
    path = write_labels(shards, "labels-00001.npz")
    entries = hostile_files.unpack(path.read_bytes())
    blocks = 2**29 // 8 // 16
    header = hostile_files.make_array_header("<c8", (blocks, 1, 1, 2, 8))
    del entries["channels.npy"]
    path.write_bytes(hostile_files.make_bomb(entries, "channels.npy", header, 512))
    pairs = [f"labels={shards}"]
    for name, (kind, content) in files.items():
        (tmp_path / name).write_bytes(content)
        assert len(content) < 2**21
        pairs.append(f"{kind}={tmp_path / name}")
    honest = np.random.default_rng(0).normal(size=(200_000, 2, 8, 2)).view(np.complex128)[..., 0]
    np.save(tmp_path / "honest.npy", honest)
    pairs.append(f"channels={tmp_path / 'honest.npy'}")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *pairs], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert [kind for kind, _, _ in found] == ["FileError"] * (len(pairs) - 1) + ["loaded"]
    for pair, (_, grown, seconds) in zip(pairs, found, strict=True):
        assert int(grown) < 200, pair
        assert float(seconds) < 5, pair


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


# The door itself


@pytest.mark.parametrize(
    "raised",
    [MemoryError(), RecursionError("deep"), ZeroDivisionError("x"), KeyError("a"), OSError("b")],
)
def test_whatever_is_raised_becomes_one_error_that_names_the_file(raised: Exception) -> None:
    expected = r"^some/file: damaged \(.+\); delete it$"
    blamed = blame_file("some/file", "damaged", advice="delete it")
    with pytest.raises(FileError, match=expected) as caught, blamed:
        raise raised
    assert type(raised).__name__ in str(caught.value) or str(raised) in str(caught.value)
    assert caught.value.path == "some/file"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.path) == (str(caught.value), caught.value.path)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, FileNotFoundError])
def test_what_says_nothing_of_the_file_passes(raised: type[BaseException]) -> None:
    with pytest.raises(raised), blame_file("file", "damaged"):
        raise raised


def test_an_error_is_wrapped_once_and_becomes_of_the_class_that_is_wanted() -> None:
    outer = blame_file("file", "outer", advice="delete it", kind=CheckpointError)
    with pytest.raises(CheckpointError) as caught, outer, blame_file("file", "inner"):
        raise ValueError("reason")
    assert str(caught.value) == "file: inner (reason); delete it"
    with pytest.raises(FileError) as other, blame_file("file", "outer"):
        raise make_file_error(CheckpointError, "another", "reason")
    assert str(other.value) == "file: outer (another: reason)"


def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "secret").touch(mode=0)
    opened = open_file(tmp_path / "secret", "damaged")
    with pytest.raises(FileError, match=r"secret: damaged \(.*Permission"), opened:
        pass


def test_a_list_of_entries_is_measured_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    path.write_bytes(hostile_files.pack({f"{'x' * 200}{number}": b"" for number in range(5000)}))
    with pytest.raises(FileError, match=r"many\.npz: .*the list of entries must have at most"):
        FileChannels(path)
