"""When trainings are saved: by count, by time, before a signal ends them, and on a full disk."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from small_agents import make, quick, same

from isac_gym.agents import PrimalDual
from isac_gym.files import OutputInUseError, lock_output
from isac_gym.learning import archive
from isac_gym.learning.checkpoint_writer import write_checkpoints
from isac_gym.learning.progress import TrainingProgress
from isac_gym.registry import make_agent
from isac_gym.stopping import Stopped

REINFORCEMENT: dict[str, Any] = {
    "num_envs": 8,
    "rollout_length": 4,
    "batch_size": 32,
    "timesteps": 320,
    "repeats": 2,
    "blocks_per_checkpoint": 10_000,
}


def train_with(kind: str, path: Path, callback: Any = None, **options: Any) -> Any:
    """Train an agent of a kind anew, or from its checkpoint."""
    if kind == "primal-dual":
        return quick(make(), seed=3).learn(
            20, callback=callback, checkpoint=path, checkpoint_every=10_000, **options
        )
    pytest.importorskip("stable_baselines3")
    settings = dict(REINFORCEMENT)
    if not kind.endswith("lagrangian"):
        del settings["repeats"]
        settings["penalty"] = 1.0  # one that need not be searched for
    agent = make_agent(kind, make(), seed=3, **settings)
    return agent.learn(callback=callback, checkpoint=path, **options)


KINDS = pytest.mark.parametrize("kind", ["primal-dual", "ppo-lagrangian", "ppo"])


@KINDS
def test_time_makes_a_checkpoint_due(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_saved(seconds: float) -> int:
        path = tmp_path / f"{seconds}.zip"
        with monkeypatch.context() as patched:
            saved: list[Path] = []
            patched.setattr(archive, "write_atomically", lambda path, _: saved.append(path))
            train_with(kind, path, checkpoint_seconds=seconds)
        return len(saved)

    assert count_saved(1e9) == 1, "the last is always saved"
    assert count_saved(1e-9) > 5


@KINDS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_where_and_loses_nothing(
    tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    path = tmp_path / "run.zip"
    seen: list[int] = []

    def interrupt(progress: TrainingProgress) -> None:
        seen.append(progress.iteration)
        if len(seen) == 7:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=f"stopped by {number.name} .*saved in .*run.zip"):
        train_with(kind, path, interrupt, checkpoint_seconds=1e9)
    again: list[int] = []
    assert len(seen) == 7

    def note(progress: TrainingProgress) -> None:
        again.append(progress.iteration)

    resumed = train_with(kind, path, note)
    assert again[0] > seen[-1]
    if kind != "ppo":  # whose random numbers begin anew
        assert same_actions(resumed, train_with(kind, tmp_path / "whole.zip"))


def same_actions(one: Any, other: Any) -> bool:
    if isinstance(one, PrimalDual):
        return same(one, other)
    observation = make().reset(seed=1)[0]
    first, second = (each.predict(observation, deterministic=True)[0] for each in (one, other))
    return bool((first == second).all())


@KINDS
def test_a_full_disk_is_a_warning_and_the_training_goes_on(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write_sometimes(path: Path, content: bytes) -> None:
        written.append(len(content))
        if len(written) % 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(archive, "write_atomically", write_sometimes)
    with pytest.warns(UserWarning, match=r"run\.zip: .*No space left.*goes on, and writes it when"):
        found = train_with(kind, tmp_path / "run.zip", checkpoint_seconds=1e-9)
    assert len(written) > 5
    monkeypatch.undo()
    assert same_actions(found, train_with(kind, tmp_path / "whole.zip"))


@KINDS
def test_two_trainings_do_not_share_a_checkpoint(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.zip"
    with lock_output(path), pytest.raises(OutputInUseError, match=r"run\.zip: another run"):
        train_with(kind, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), "20", None, True])
def test_times_that_are_not_allowed(tmp_path: Path, seconds: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint_seconds must be"):
        quick(make()).learn(2, checkpoint=tmp_path / "run.zip", checkpoint_seconds=seconds)


def test_without_a_file_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    with write_checkpoints(None, 20.0) as writer:
        assert signal.getsignal(signal.SIGINT) is before
        writer.attend(lambda path: pytest.fail("saved"), is_due=True, progress="")


def test_a_checkpoint_that_cannot_be_saved_before_the_end_is_said(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def stop() -> None:
        with write_checkpoints(tmp_path / "run.zip", 20.0) as writer:
            os.kill(os.getpid(), signal.SIGTERM)
            writer.attend(fail, is_due=False, progress="at iteration 1")

    with pytest.raises(Stopped, match=r"could not be saved .*No space left"):
        stop()


def test_a_signal_that_comes_when_all_is_saved_still_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "run.zip"
    train_with("primal-dual", path)

    def interrupt_the_rest() -> None:
        with write_checkpoints(path, 20.0):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        interrupt_the_rest()
