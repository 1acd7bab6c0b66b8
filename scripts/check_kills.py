"""Kill commands at random moments, let them go on, and compare with runs that nobody disturbed.

    python scripts/check_kills.py --kills 50            # the commands as they are by default
    python scripts/check_kills.py --kills 8 --small     # the same in a few minutes

A command is run once to its end. Then it is started again and again in another folder and killed
(SIGKILL) after a random time, until one start ends by itself. What it has written must be the same,
but for times (pictures and CSV hold what the JSON files do, and are not compared); no kill may come
later than ``--lost`` seconds after the last file was written or the work began; and nothing may be
left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load as read_tensors

_SMALL: Final = [
    *("-s", "num_users=2", "-s", "num_comm_antennas=3", "-s", "num_radar_antennas=4"),
    *("-s", "radar_power=0.8", "-s", "sensing_threshold=0.2", "-s", "target_angles_deg=[-50,10]"),
]
COMMANDS: Final = {
    "train": ["train", "primal-dual", "-o", "out/agent.zip"],
    "compare": ["compare", "-o", "out"],
    "labels": ["labels", "-o", "out"],
    "study": ["study", "transfer", "-o", "out", "--seeds", "1"],
}
SMALL_COMMANDS: Final = {
    "train": [*COMMANDS["train"], "--checkpoint-seconds", "0.5", "--iterations", "60"],
    "compare": [
        *(*COMMANDS["compare"], "--only", "--agent", "primal-dual-paper", "--agent", "rzf"),
        *("--channels", "200", "--checkpoint-seconds", "0.5"),
    ],
    "labels": [*COMMANDS["labels"], "--count", "400", "--shard-size", "40"],
    "study": [
        *(*COMMANDS["study"], "--iterations", "40", "--channels", "20"),
        *("-a", "batch_size=8", "--checkpoint-seconds", "0.5"),
    ],
}
_TIMES: Final = ("seconds", "s to", "s before", "created", "command")
"""Parts of names of what differs from run to run."""


def main() -> int:
    """Check all commands; the exit status says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kills of all commands together")
    parser.add_argument("--lost", type=float, default=20.0, help="seconds that a kill may cost")
    parser.add_argument("--small", action="store_true", help="small trainings and data sets")
    parser.add_argument("--command", choices=COMMANDS, action="append", help="only this one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    names = given.command or list(COMMANDS)
    commands = SMALL_COMMANDS if given.small else COMMANDS
    table = Table("command", "kills", "longest loss (s)", "undisturbed (s)", "held")
    held = True
    for name in names:
        command = [*commands[name], *(_SMALL if given.small else [])]
        with tempfile.TemporaryDirectory() as folder:
            found = _check(command, Path(folder), -(-given.kills // len(names)), rng)
        found["held"] = found.pop("differences") == [] and found["lost"] <= given.lost
        held = held and found["held"]
        table.add_row(
            *(name, str(found["kills"]), f"{found['lost']:.1f}", f"{found['whole']:.0f}"),
            "yes" if found["held"] else "no",
        )
    Console().print(table)
    return 0 if held else 1


def _check(command: list[str], folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Run a command undisturbed and with kills, and compare."""
    whole, killed = folder / "whole", folder / "killed"
    begin = time.monotonic()
    if _start(command, whole).wait():
        raise SystemExit(f"{' '.join(command)} fails: {(whole / 'log').read_text()[-2000:]}")
    seconds = time.monotonic() - begin
    expected = _read_folder(whole / "out")
    done, longest, differences = 0, 0.0, []
    while done < kills:
        shutil.rmtree(killed, ignore_errors=True)
        while True:
            process = _start(command, killed)
            begun = time.time()
            # The first seconds of a start are imports, in which there is nothing to lose.
            moment = rng.uniform(0.0, 0.6 * seconds) if done < kills else None
            try:
                code = process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
                longest = max(longest, time.time() - max(begun, _find_newest(killed / "out")))
                continue
            if code:
                raise SystemExit(f"{' '.join(command)} failed after a kill; see {killed / 'log'}")
            break
        differences += _compare(expected, _read_folder(killed / "out"))
    for difference in differences:
        print(f"{' '.join(command)}: {difference}", file=sys.stderr)
    return {"kills": done, "lost": longest, "whole": seconds, "differences": differences}


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(sys.executable).parent / "isac-gym"
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([script, *command], cwd=folder, stdout=log, stderr=log)


def _find_newest(folder: Path) -> float:
    """When something was last written there; 0 if never."""
    times = [0.0]
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if ".isac-gym." not in path.name:
                times.append(path.stat().st_mtime)
    return max(times)


def _read_folder(folder: Path) -> dict[str, Any]:
    """The files of a folder by name, hidden ones among them, with their content."""
    return {
        str(path.relative_to(folder)): _read_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _read_file(path: Path) -> Any:
    """Content that can be compared: without times, and nothing of pictures, which show them."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            meta = _drop_times(json.loads(archive.read("agent.json")))
            return meta, read_tensors(archive.read("tensors.safetensors"))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    if path.suffix == ".json":
        return _drop_times(json.loads(path.read_text(encoding="utf-8")))
    return None


def _drop_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _drop_times(held)
            for key, held in value.items()
            if not any(part in key for part in _TIMES)
        }
    return [_drop_times(each) for each in value] if isinstance(value, list) else value


def _compare(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two folders."""
    lost = [f"{name} is missing" for name in expected if name not in found]
    left = [f"{name} is left behind" for name in found if name not in expected]
    both = [name for name in expected if name in found]
    return (
        lost + left + [f"{name} differs" for name in both if not _same(expected[name], found[name])]
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(np.array_equal(one, other, equal_nan=isinstance(one, float)))


if __name__ == "__main__":
    sys.exit(main())
