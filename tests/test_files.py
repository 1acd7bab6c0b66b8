"""Where results go: what is refused before the work begins, and what a crash cannot harm."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isac_gym.files import (
    OutputInUseError,
    check_output_file,
    check_output_folder,
    lock_output,
    write_atomically,
)

as_user = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="nothing is read-only for root"
)


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/null")


SPECIAL = [make_pipe, make_socket, make_link_to_device]


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("write", [check_output_file, lambda path: write_atomically(path, b"x")])
def test_what_is_no_regular_file_is_refused_and_stays(
    tmp_path: Path, make: Any, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    path = Path("agent.zip")
    make(path)
    before = path.lstat()
    with pytest.raises(ValueError, match=r"must be a regular file, got 'agent.zip'"):
        write(path)
    assert path.lstat() == before
    assert list_names(tmp_path) == ["agent.zip"]


@pytest.mark.parametrize("place", ["", ".", "..", "/", "folder", "folder/"])
def test_a_folder_is_no_file(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for write in (check_output_file, lambda path: write_atomically(path, b"x")):
        with pytest.raises(ValueError, match="must be a file, got"):
            write(place)
    assert list_names(tmp_path) == ["folder"]


@pytest.mark.parametrize("place", ["", "/", "file"])
def test_what_is_no_folder_for_results(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=f"output must be a folder.*, got '{place}'"):
        check_output_folder(place)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_below_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for check in (check_output_file, check_output_folder):
        with pytest.raises(OSError, match="file"):
            check(tmp_path / "file" / "below" / "it")


@as_user
def test_a_read_only_file_and_a_read_only_folder(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    path.touch(0o444)
    with pytest.raises(PermissionError, match=r"agent\.zip.*read-only"):
        check_output_file(path)
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match=tmp_path.name):
        check_output_file(tmp_path / "other.zip")


def test_what_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "agent.zip"
    check_output_file(path)
    check_output_folder(path.parent)
    assert list_names(tmp_path) == []
    path.parent.mkdir()
    path.write_bytes(b"kept")
    check_output_file(path)
    check_output_folder(path.parent)
    assert list_names(path.parent) == ["agent.zip"]
    assert path.read_bytes() == b"kept"


def test_a_link_is_followed(tmp_path: Path) -> None:
    held = tmp_path / "elsewhere" / "agent.zip"
    link = tmp_path / "link.zip"
    held.parent.mkdir()
    link.symlink_to(held)
    check_output_file(link)
    for content in (b"first", b"second"):  # first where the link points to nothing
        write_atomically(link, content)
        assert link.is_symlink()
        assert held.read_bytes() == content
    assert list_names(held.parent) == ["agent.zip"]


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.symlink_to(other)
    other.symlink_to(one)
    with pytest.raises((ValueError, OSError), match="one"):
        check_output_file(one)


def test_permissions_of_a_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    path.touch()
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_longest_name_that_a_file_can_have(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".zip")
    check_output_file(path)
    with lock_output(path):
        write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


def test_a_full_disk_leaves_what_was_there_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.zip"
    path.write_bytes(b"before")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*agent\.zip") as caught:
        write_atomically(path, b"after")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"before"
    assert list_names(tmp_path) == ["agent.zip"]


HOLDER = """
import sys, time
from isac_gym.files import lock_output
with lock_output(sys.argv[1], is_folder=eval(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("is_folder", [False, True])
def test_two_runs_do_not_write_to_one_place(tmp_path: Path, is_folder: bool) -> None:
    path = tmp_path / "results"
    command = [sys.executable, "-c", HOLDER, str(path), str(is_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            named = pytest.raises(OutputInUseError, match="results: another run writes there")
            with named, lock_output(path, is_folder=is_folder):
                pass
            with lock_output(tmp_path / "other results", is_folder=is_folder):
                pass
        finally:
            holder.kill()
    # A process that was killed holds nothing, and what it left is gone in the end.
    first, second = (lock_output(path, is_folder=is_folder) for _ in range(2))
    with first, pytest.raises(OutputInUseError), second:
        pass
    assert list_names(tmp_path) == (["other results", "results"] if is_folder else [])
    assert not is_folder or list_names(path) == []


HALF = """
import os, sys
from isac_gym import files
os.fsync = lambda _: os._exit(9)  # the process is killed when the content is there, but not yet
files.write_atomically(sys.argv[1], b"half")
"""


def test_halves_that_a_killed_run_left_are_removed_by_the_next(tmp_path: Path) -> None:
    path, other = tmp_path / "agent.zip", tmp_path / "other.zip"
    for each in (path, other):
        assert subprocess.run([sys.executable, "-c", HALF, str(each)], check=False).returncode == 9
    assert len(list_names(tmp_path)) == 2
    with lock_output(path):
        assert len([name for name in list_names(tmp_path) if name.endswith(".tmp")]) == 1
    with lock_output(path, other):
        pass
    assert list_names(tmp_path) == []


def test_halves_in_a_folder_are_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "labels" / "shard.npz"
    subprocess.run([sys.executable, "-c", HALF, str(path)], check=False)
    assert len(list_names(path.parent)) == 1
    with lock_output(path.parent):
        pass
    assert list_names(path.parent) == []
