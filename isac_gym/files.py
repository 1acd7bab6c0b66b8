"""Where results go: places checked beforehand, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

__all__ = [
    "OutputInUseError",
    "check_output_file",
    "check_output_folder",
    "lock_output",
    "write_atomically",
]

_LOCK: Final = ".isac-gym.lock"
_HALF: Final = ".isac-gym.tmp"


class OutputInUseError(ValueError):
    """Another run writes where this one should."""


def check_output_file(path: str | Path, name: str = "output") -> None:
    """Check, before the work begins, that a file can be written; nothing is made.

    Args:
        path: The file; a symbolic link is followed.
        name: What the path is called in messages.

    Raises:
        ValueError: If there is something that is no regular file, such as a folder or a device.
        OSError: If it cannot be written; the message names it.
    """
    target = _follow_links(path, name)
    if not target.name or os.fspath(path) in ("", os.curdir):
        raise ValueError(f"{name} must be a file, got {os.fspath(path)!r}")
    _refuse_others(path, target, name)
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{path}: {name} must be writable, but the file is read-only")
    _check_folder(target.parent, name)


def check_output_folder(path: str | Path, name: str = "output") -> None:
    """Check, before the work begins, that files can be written into a folder; nothing is made.

    Args:
        path: The folder.
        name: What the path is called in messages.

    Raises:
        ValueError: If it is no folder, or that of the whole system.
        OSError: If nothing can be written there; the message names it.
    """
    target = _follow_links(path, name)
    if os.fspath(path) == "" or target == Path(target.anchor):
        raise ValueError(f"{name} must be a folder for results, got {os.fspath(path)!r}")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{name} must be a folder, got {os.fspath(path)!r}, which is none")
    _check_folder(target, name)


@contextlib.contextmanager
def lock_output(
    path: str | Path, *others: str | Path, is_folder: bool = False, name: str = "output"
) -> Iterator[None]:
    """Keep other runs from writing to a file, or into a folder, for as long as this one does.

    The lock is a file beside the output, or in the folder, and the operating system's, so that a
    run that was killed holds none unless a child of its is still alive. Halves of files that such a
    run left are removed.

    Args:
        path: File or folder.
        *others: Further files that the same run writes, or folders that it writes into.
        is_folder: Whether the path is a folder, which is made.
        name: What the path is called in messages.

    Raises:
        OutputInUseError: If another run holds it.
    """
    target = _follow_links(path, name)
    held = target / _LOCK if is_folder else _name_beside(target, _LOCK)
    held.parent.mkdir(parents=True, exist_ok=True)
    lock = _acquire_lock(held)
    if lock is None:
        raise OutputInUseError(
            f"{path}: another run writes there; wait until it has ended, or choose another {name}"
        )
    try:
        for written in (target, *others):
            _remove_halves(_follow_links(written, name))
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.name == "nt":  # where a file that is open cannot be removed
                lock.release()
            held.unlink(missing_ok=True)
        lock.release()


def _acquire_lock(path: Path) -> FileLock | None:
    """The lock of a file that may vanish at any moment; None if another process holds it.

    Who ends removes the file while it holds the lock. Who had opened it before then locks a file
    without a name, which would keep nobody out.
    """
    while True:
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        if path.exists():
            return lock
        lock.release()


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    Args:
        path: Where to; missing folders are made, and a symbolic link is followed.
        content: What to write.

    Raises:
        ValueError: If there is something that is no file.
        OSError: If it cannot be written; the message names it, and what was there stays.
    """
    target = _follow_links(path, "file")
    _refuse_others(path, target, "file")
    temporary = _name_beside(target, _name_half())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            with contextlib.suppress(OSError):  # some file systems have no permissions
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except OSError as error:
        # The message would name a file that nobody knows.
        reason = error.strerror or str(error)
        raise type(error)(error.errno or errno.EIO, reason, os.fspath(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _follow_links(path: str | Path, name: str) -> Path:
    """The absolute path without symbolic links."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, or a null character
        raise ValueError(f"{name} must be a path, got {os.fspath(path)!r} ({error})") from error


def _refuse_others(path: str | Path, target: Path, name: str) -> None:
    """Refuse what is there and no regular file: to replace it would harm it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = target.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{name} must be a file, got {os.fspath(path)!r}, which is a folder")
        if not stat.S_ISREG(mode):
            raise ValueError(
                f"{name} must be a regular file, got {os.fspath(path)!r}, which is a device, a "
                "pipe or a socket"
            )


def _check_folder(folder: Path, name: str) -> None:
    """Try whether a file can be made in a folder, or in the one that it would be made in."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    trial = folder / _name_half()
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise type(error)(
            error.errno, f"{name} cannot be written there ({error.strerror})", os.fspath(folder)
        ) from error


def _name_half() -> str:
    return f".{os.getpid()}-{threading.get_ident()}{_HALF}"


def _is_alive(process: int) -> bool:
    """Whether there is such a process on this machine; where asking would end it, there is."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _name_beside(target: Path, ending: str) -> Path:
    """A hidden file in the same folder, whose name is never too long and another's never equals."""
    encoded = os.fsencode(target.name)
    readable = encoded[:100].decode(errors="ignore")
    return target.with_name(f".{readable}.{zlib.crc32(encoded):08x}{ending}")


def _remove_halves(target: Path) -> None:
    """Remove what dead processes have not completely written of a file, or of those in a folder."""
    beside = glob.escape(_name_beside(target, "").name)
    folder, pattern = target.parent, f"{beside}.*{_HALF}"
    if target.is_dir():
        folder, pattern = target, f".*{_HALF}"
    for half in folder.glob(pattern):
        process = half.name.removesuffix(_HALF).rpartition(".")[2].partition("-")[0]
        if process.isdecimal() and not _is_alive(int(process)):
            half.unlink(missing_ok=True)
