"""Commands on bad days: places that cannot hold results, signals, and two runs at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import console_script, failed, run, succeeded
from small_commands import LABELS, MRT_ONLY, SET, TEN_LINES, settings_of

from isac_gym.files import lock_output

TRAIN = ("train", "primal-dual-paper", "--iterations", "2", *SET)
TO_FOLDERS = {
    "compare": (*MRT_ONLY, *SET),
    "labels": ("labels", "rzf", "--count", "3", *SET),
    "study": ("study", "tradeoff", "--channels", "2", "--threshold", "0.3", "--no-bound", *SET),
}


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.symlink_to("/dev/null")


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", ["agent.zip", "agent.checkpoint.zip", "agent.best.zip"])
@pytest.mark.parametrize("make", [make_pipe, make_link, make_folder])
def test_a_training_does_not_begin_where_it_cannot_be_saved(
    folder: Path, name: str, make: object
) -> None:
    assert callable(make)
    make(folder / name)
    failed(run(*TRAIN, "-o", "agent.zip"), name)
    assert [path.name for path in folder.iterdir()] == [name], "nothing was done"


@pytest.mark.parametrize("place", ["", ".", "/", "/dev/null"])
def test_an_agent_needs_a_file(folder: Path, place: str) -> None:
    failed(run(*TRAIN, "-o", place))
    assert list(folder.iterdir()) == []
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("place", ["", "/"])
@pytest.mark.parametrize("command", TO_FOLDERS)
def test_results_need_a_folder(folder: Path, command: str, place: str) -> None:
    failed(run(*TO_FOLDERS[command], "-o", place))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["compare.png", "compare.json", "compare.unfinished"])
def test_a_comparison_does_not_begin_where_it_cannot_be_written(folder: Path, name: str) -> None:
    made = folder / "out" / name
    made.parent.mkdir()
    os.mkfifo(made)
    failed(run(*MRT_ONLY, *SET, "-o", "out"), name)
    assert [path.name for path in made.parent.iterdir()] == [name], "nothing was done"


def test_a_folder_for_tensorboard_is_checked_too(folder: Path) -> None:
    (folder / "taken").touch()
    failed(run(*TRAIN, "-o", "agent.zip", "--tensorboard", "taken"), "tensorboard", "taken")


def test_labels_that_failed_do_not_block_their_folder(folder: Path) -> None:
    (folder / "failing.py").write_text(
        TEN_LINES.replace("        action =", "        raise ValueError('none')\n        action =")
    )
    result = run("labels", "failing:MyAgent", "--count", "3", "-o", "labels", *SET)
    assert result.exit_code != 0
    succeeded(run(*LABELS, *SET))


def test_a_second_run_of_one_output_says_so(folder: Path) -> None:
    labels = lock_output("labels", is_folder=True)
    with lock_output("agent.zip"), lock_output("out/compare.json"), labels:
        failed(run(*TRAIN, "-o", "agent.zip"), "agent.zip: another run writes there")
        failed(run(*MRT_ONLY, *SET, "-o", "out"), "compare.json: another run writes there")
        failed(run(*LABELS, *SET), "labels: another run writes there")
    for command in (MRT_ONLY, LABELS):
        succeeded(run(*command, *SET))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_with_its_checkpoint_and_a_word(
    folder: Path, number: signal.Signals
) -> None:
    settings = settings_of(control="power", radar="fixed")
    command = [console_script(), "train", "primal-dual-paper", "--iterations", "100000", *settings]
    process = subprocess.Popen(
        [*command, "-o", "out/agent.zip", "--checkpoint-seconds", "0.01"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint = folder / "out" / "agent.checkpoint.zip"
    try:
        limit = time.monotonic() + 100
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    said = " ".join(said.split())
    assert f"training stopped by {number.name} at iteration" in said
    assert "saved in out/agent.checkpoint.zip, from where the same command" in said
    assert "Traceback" not in said
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


STOPPED = """\
import os, signal
from small_agents_of_tests import MyAgent as Base
class MyAgent(Base):
    def predict(self, *given, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().predict(*given, **options)
"""


def test_a_signal_ends_a_comparison_with_its_finished_rows(folder: Path) -> None:
    (folder / "small_agents_of_tests.py").write_text(TEN_LINES)
    (folder / "stopped.py").write_text(STOPPED)
    names = ["--agent", "mrt", "--agent", "stopped:MyAgent"]
    result = run("compare", "--only", "--channels", "3", *names, "-o", "out", *SET)
    assert result.exit_code == 128 + signal.SIGTERM, result.output
    text = " ".join(result.output.split())
    assert "compare stopped by SIGTERM; finished points are kept in out/compare.unfinished" in text
    kept = json.loads((folder / "out" / "compare.unfinished" / "rows.json").read_text())
    assert [row["name"] for _, row in kept["rows"]] == ["mrt"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["compare.unfinished"]
