"""Labelled data: channels with what an agent does on them, for supervised learning.

A data set is a folder of shards, each written whole or not at all, and a manifest that says what
they are. Each shard follows from the seed and its own number, so that a generation that was killed
goes on where it was and ends with the same data.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from isac_gym import __version__
from isac_gym.channels.base import Complex
from isac_gym.files import check_output_folder, lock_output, write_atomically
from isac_gym.policy import Policy
from isac_gym.reading import (
    FileError,
    ZipEntries,
    blame_file,
    convert_json,
    make_file_error,
    open_file,
    read_array_header,
    read_json,
)
from isac_gym.registry import CHANNELS
from isac_gym.scenario import Scenario
from isac_gym.stopping import state_what_is_kept
from isac_gym.system.codec import Codec
from isac_gym.system.downlink import find_system
from isac_gym.system.simulation import Simulation
from isac_gym.validation import check_integer

__all__ = ["MANIFEST_NAME", "Labels", "generate_labels", "load_labels"]

MANIFEST_NAME = "manifest.json"
_FORMAT = 2
_NO_MANIFEST: Final = "no manifest of labels, or damaged"


class _Manifest(msgspec.Struct):
    """What a manifest must hold; what else it holds is compared."""

    format: Literal[2]
    count: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    shard_size: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    scenario: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Labels:
    """Channels and an agent's solutions for them, n blocks.

    Attributes:
        channels: True channels H, complex64 (n, J, J, K, M).
        estimates: Channels as observed, same shape.
        actions: Actions for the estimates, float32 (n, A).
        precoders: F as transmitted, complex64 (n, J, M_C, K), in √W.
        streams: V, complex64 (n, J, M_R, r), in √W.
        sum_rates: Spectral efficiency, float32 (n,), in bit/s/Hz.
        sensing_losses: L_r, float32 (n, J).
        manifest: Scenario, channel model, agent, seed and version.
    """

    channels: Complex
    estimates: Complex
    actions: npt.NDArray[np.float32]
    precoders: Complex
    streams: Complex
    sum_rates: npt.NDArray[np.float32]
    sensing_losses: npt.NDArray[np.float32]
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.channels)


def generate_labels(
    agent: Policy,
    env: Any,
    folder: str | Path,
    count: int,
    *,
    name: str,
    seed: int = 0,
    shard_size: int = 1024,
    extend: bool = True,
    callback: Callable[[int], None] | None = None,
) -> None:
    """Generate a data set, or what is missing of it.

    Args:
        agent: Whose solutions are the labels; they should depend on nothing but the observation.
        env: Environment whose scenario and channel model are used.
        folder: Where to.
        count: Blocks n; a data set can be made larger later.
        name: Name of the agent, for the manifest.
        seed: Seed of the channels.
        shard_size: Blocks a file.
        extend: Whether a smaller data set may be made larger; otherwise one of another count is
            refused.
        callback: Called with the number of blocks that there are, after each shard.

    Raises:
        TypeError: If the agent has no ``predict``, or its actions hold no real numbers.
        ValueError: If an option is not allowed, the folder holds another data set or a damaged
            file or is none, or the agent returns invalid actions.
        OutputInUseError: If another run writes there.
        OSError: If the folder cannot be written to.
    """
    if not isinstance(agent, Policy):
        raise TypeError(f"agent {name!r} must have predict(observation, …), got {agent!r}")
    count = check_integer("count", count, 1)
    seed = check_integer("seed", seed, 0)
    shard_size = check_integer("shard_size", shard_size, 1)
    system = find_system(env)
    model = env.unwrapped.channel_model
    folder = Path(folder)
    check_output_folder(folder)
    manifest = {
        "format": _FORMAT,
        "scenario": system.scenario.to_dict(),
        "channel_model": CHANNELS.describe(model),
        "agent": name,
        "seed": seed,
        "shard_size": shard_size,
        "version": __version__,
    }
    told = state_what_is_kept("labels", f"finished files are kept in {folder}")
    with lock_output(folder, is_folder=True), told:
        _check_held(folder, manifest, count, extend)
        write_atomically(folder / MANIFEST_NAME, _as_json({**manifest, "count": count}))
        for index in range(math.ceil(count / shard_size)):
            size = min(shard_size, count - index * shard_size)
            shard = folder / _name_shard(index)
            if not (shard.exists() and _count_blocks(_read_shard(shard, system.codec)) == size):
                # Always a whole shard, so that its beginning does not depend on the count.
                simulation = Simulation(system, model, shard_size)
                simulation.start(np.random.default_rng((seed, index)))
                simulation.hold(simulation.channels[:size], simulation.estimates[:size])
                arrays = _solve(agent, name, simulation)
                buffer = io.BytesIO()
                np.savez(buffer, **arrays)
                write_atomically(shard, buffer.getvalue())
            if callback is not None:
                callback(index * shard_size + size)


def _check_held(folder: Path, manifest: dict[str, Any], count: int, extend: bool) -> None:
    """Refuse a folder that holds other labels; a manifest without any is of a run that failed."""
    path = folder / MANIFEST_NAME
    if not any(folder.glob(_name_shard("*"))):
        return
    if path.exists():
        held = _read_manifest(path)
        for key, value in manifest.items():
            if held.get(key) != value:
                raise ValueError(
                    f"{folder} holds labels with {key}={held.get(key)!r}, got {value!r}; choose "
                    "another folder"
                )
        if held["count"] > count or (held["count"] < count and not extend):
            allowed = f"{'at least ' if extend else ''}{held['count']}"
            raise ValueError(f"count must be {allowed}, the labels that {folder} holds")
    else:
        raise ValueError(f"{folder} holds labels without a {MANIFEST_NAME}; choose another folder")


def _solve(agent: Policy, name: str, simulation: Simulation) -> dict[str, Any]:
    action, _ = agent.predict(
        simulation.observe(),
        episode_start=np.ones(len(simulation.channels), np.bool_),
        deterministic=True,
    )
    try:
        actions, outcome = simulation.apply_checked(action)
    except (TypeError, ValueError) as error:
        raise type(error)(f"agent {name!r}: {error}") from error
    sent = outcome.transmission
    found = {
        "precoders": sent.precoders,
        "streams": sent.streams,
        "sum_rates": outcome.sum_rate,
        "sensing_losses": outcome.sensing.total,
    }
    return {
        "channels": simulation.channels,
        "estimates": simulation.estimates,
        "actions": actions,
        **{key: value.cpu().numpy() for key, value in found.items()},
    }


def load_labels(folder: str | Path) -> Labels:
    """Load a data set; executes nothing from its files.

    Args:
        folder: Folder that :func:`generate_labels` has completed.

    Returns:
        The labels.

    Raises:
        FileNotFoundError: If there is no data set.
        ValueError: If it is incomplete or damaged; the message names the file.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder / MANIFEST_NAME)
    count, size = manifest["count"], manifest["shard_size"]
    with blame_file(folder / MANIFEST_NAME, _NO_MANIFEST):
        scenario = Scenario.from_dict(manifest["scenario"])
        codec = Codec(scenario)
    parts = []
    for index in range(math.ceil(count / size)):
        shard = folder / _name_shard(index)
        if not shard.exists():
            raise ValueError(f"{folder}: incomplete, {shard.name} is missing; generate it again")
        part = _read_shard(shard, codec)
        if _count_blocks(part) != min(size, count - index * size):
            raise make_file_error(FileError, shard, "incomplete; generate the labels again")
        parts.append(part)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Labels(**joined, manifest=manifest)


def _name_shard(index: int | str) -> str:
    return f"labels-{index:0>5}.npz" if isinstance(index, int) else f"labels-{index}.npz"


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _count_blocks(arrays: dict[str, npt.NDArray[Any]]) -> int:
    return len(arrays["channels"])


def _read_manifest(path: Path) -> dict[str, Any]:
    with open_file(path, _NO_MANIFEST) as file:
        content = read_json(file, dict[str, Any])
        convert_json(content, _Manifest)
        return content


def _read_shard(path: Path, codec: Codec) -> dict[str, npt.NDArray[Any]]:
    scenario = codec.scenario
    cells, deployment = scenario.num_cells, codec.deployment.shape
    expected: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "channels": (deployment, np.complex64),
        "estimates": (deployment, np.complex64),
        "actions": ((codec.action_size,), np.float32),
        "precoders": ((cells, scenario.num_comm_antennas, scenario.num_users), np.complex64),
        "streams": (
            (cells, scenario.num_radar_antennas, scenario.num_radar_streams),
            np.complex64,
        ),
        "sum_rates": ((), np.float32),
        "sensing_losses": ((cells,), np.float32),
    }
    with open_file(path, "damaged", advice="remove it and generate it again") as file:
        entries = ZipEntries(file)
        arrays: dict[str, npt.NDArray[Any]] = {}
        count: int | None = None
        for name, (shape, kind) in expected.items():
            size = entries.measure(f"{name}.npy")
            with entries.open(f"{name}.npy") as entry:
                array = read_array_header(entry)
                if count is None:
                    count = array.shape[0] if array.shape else 0
                if array.shape != (count, *shape) or array.dtype != kind:
                    raise ValueError(
                        f"{name} must be {kind.__name__} of shape {(count, *shape)}, got "
                        f"{array.dtype} {array.shape}"
                    )
                if array.offset + array.size != size:
                    raise ValueError(f"{name} has {size} bytes, and states {array.size}")
                arrays[name] = array.read(entry)
                if not np.isfinite(arrays[name]).all():
                    raise ValueError(f"{name} must be finite")
    return arrays
