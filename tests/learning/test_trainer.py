"""The training loop: kills and resumption, divergence, schedules, what a checkpoint is for."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import ARCHITECTURES, Poisoned, finite, make, quick, same, weights
from torch import nn

from isac_gym import RayleighChannel
from isac_gym.agents import NoDual, PrimalDual
from isac_gym.learning.callbacks import Evaluation, EvaluationCallback
from isac_gym.learning.checkpoint import CheckpointError
from isac_gym.learning.losses import LossValue
from isac_gym.learning.progress import TrainingProgress
from isac_gym.learning.trainer import TrainingError, TrainingSettings, train

TESTS = Path(__file__).resolve().parent.parent

PAPER_LIKE: dict[str, Any] = {"architecture": "direct"}
UNFOLDED: dict[str, Any] = {
    "architecture": "unfolded",
    "final_learning_rate": 1e-5,
    "warmup_iterations": 15,
    "gradient_clip": 1.0,
    "dual_rule": "pi",
    "dual_gain": 0.5,
    "final_dual_step_size": 0.02,
    "relative_constraints": True,
    "initial_multiplier": 2.0,
    "snr_range_db": (0.0, 10.0),
    "threshold_range": (0.15, 0.2),
}

# Killed processes

ITERATIONS = 60
EVERY = 10

CHILD = f"""
import sys, time, torch
torch.set_num_threads(1)
from small_agents import make, quick
from isac_gym.learning.callbacks import EvaluationCallback
settings, checkpoint, best, sabotage = eval(sys.argv[1])
exec(sabotage)
agent = quick(make(csi_error_variance=0.1), seed=3, **settings)
evaluate = EvaluationCallback(agent, 7, channels=32, best=best)
def slowly(progress):
    time.sleep(0.0 if sabotage else 0.02)
    if progress.iteration == {ITERATIONS} - 5:
        time.sleep(600.0)
    return evaluate(progress)
slowly.state_dict, slowly.load_state_dict = evaluate.state_dict, evaluate.load_state_dict
agent.learn(
    {ITERATIONS}, callback=slowly, checkpoint=checkpoint,
    checkpoint_every={EVERY}, checkpoint_seconds=1e9,
)
"""


def child(settings: dict[str, Any], folder: Path, sabotage: str = "") -> subprocess.Popen[bytes]:
    argument = repr((settings, str(folder / "training.zip"), str(folder / "best.zip"), sabotage))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, argument],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
    )


def run(
    settings: dict[str, Any], folder: Path, checkpoint: bool
) -> tuple[PrimalDual, list[Evaluation], list[int]]:
    """In this process, from the checkpoint or from the start; also the iterations done here."""
    agent = quick(make(csi_error_variance=0.1), seed=3, **settings)
    evaluate = EvaluationCallback(agent, 7, channels=32, best=folder / "best.zip")
    seen: list[int] = []

    class Both:
        def __call__(self, progress: TrainingProgress) -> bool | None:
            seen.append(progress.iteration)
            return evaluate(progress)

        def state_dict(self) -> dict[str, Any]:
            return evaluate.state_dict()

        def load_state_dict(self, state: Any) -> None:
            evaluate.load_state_dict(state)

    kept = folder / "training.zip" if checkpoint else None
    agent.learn(ITERATIONS, callback=Both(), checkpoint=kept, checkpoint_every=EVERY)
    return agent, evaluate.history, seen


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PAPER_LIKE, UNFOLDED], ids=["paper", "unfolded"])
def test_a_killed_training_ends_like_an_uninterrupted_one(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole, history, _ = run(settings, tmp_path / "whole", checkpoint=False)
    folder = tmp_path / "killed"
    process = child(settings, folder)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "training.zip").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.6))
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    resumed, continued, seen = run(settings, folder, checkpoint=True)
    assert 1 < seen[0] < ITERATIONS
    assert seen[0] % EVERY == 1
    assert seen == list(range(seen[0], ITERATIONS + 1))
    assert same(resumed, whole)
    assert continued == history
    assert [entry.iteration for entry in history] == [*range(7, ITERATIONS, 7), ITERATIONS]
    # The best file is the same as well: where the kill fell between it and the checkpoint, the
    # evaluation is repeated.
    assert same(*(PrimalDual.load(f / "best.zip") for f in (folder, tmp_path / "whole")))


HALF_WRITTEN = """
import os, signal, isac_gym.files as files
saved = 0
def die(number):
    global saved
    saved += "training" in os.readlink(f"/proc/self/fd/{number}")
    if saved == 3:
        os.ftruncate(number, os.fstat(number).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = die
"""
BEFORE_RENAME = """
import os, pathlib, signal
renamed, saved = pathlib.Path.replace, 0
def die(self, target):
    global saved
    saved += "training" in str(target)
    if saved == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return renamed(self, target)
pathlib.Path.replace = die
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
@pytest.mark.parametrize("sabotage", [HALF_WRITTEN, BEFORE_RENAME], ids=["half", "whole"])
def test_a_kill_during_writing_leaves_the_checkpoint_before(tmp_path: Path, sabotage: str) -> None:
    assert child(PAPER_LIKE, tmp_path, sabotage).wait(60) == -signal.SIGKILL
    partial = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert len(partial) == 1, "it was killed in the midst"
    resumed, history, seen = run(PAPER_LIKE, tmp_path, checkpoint=True)
    assert seen[0] == 2 * EVERY + 1
    whole, expected, _ = run(PAPER_LIKE, tmp_path / "whole", checkpoint=False)
    assert same(resumed, whole)
    assert history == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "model_based", "dual_rule": "augmented"},
        {"architecture": "direct", "dual_rule": "pi", "final_dual_step_size": 0.01},
        UNFOLDED,
    ],
    ids=["augmented", "pi", "unfolded"],
)
@pytest.mark.parametrize("stop_at", [9, 10, 14])
def test_an_interrupted_training_goes_on(
    tmp_path: Path, settings: dict[str, Any], stop_at: int
) -> None:
    env = make(num_cells=2, csi_error_variance=0.1)
    whole = quick(env, **settings).learn(16)

    def interrupt(progress: TrainingProgress) -> None:
        if progress.iteration == stop_at:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "training.zip"
    with pytest.raises(KeyboardInterrupt):
        quick(env, **settings).learn(
            16, callback=interrupt, checkpoint=checkpoint, checkpoint_every=5
        )
    seen: list[int] = []
    resumed = quick(env, **settings).learn(
        16,
        checkpoint=checkpoint,
        checkpoint_every=5,
        callback=lambda progress: seen.append(progress.iteration),
    )
    # A checkpoint is written after the callback.
    assert seen == list(range((stop_at - 1) // 5 * 5 + 1, 17))
    assert same(resumed, whole)
    assert same(resumed.learn(3), whole.learn(3)), "what comes after goes on alike"


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    env, checkpoint = make(), tmp_path / "training.zip"
    whole = quick(env).learn(12, checkpoint=checkpoint)
    content = checkpoint.read_bytes()
    seen: list[TrainingProgress] = []

    def note(progress: TrainingProgress) -> None:
        seen.append(progress)

    again = quick(env).learn(12, checkpoint=checkpoint, callback=note)
    assert seen == []
    assert same(again, whole)
    assert checkpoint.read_bytes() == content


# What a checkpoint is for


@pytest.mark.parametrize(
    ("settings", "scenario", "name"),
    [
        ({"learning_rate": 2e-3}, {}, "config"),
        ({"dual_rule": "pi"}, {}, "config"),
        ({"architecture": "model_based"}, {}, "config"),
        ({"hidden_sizes": (17,)}, {}, "config"),
        ({"warmup_iterations": 2}, {}, "config"),
        ({"seed": 1}, {}, "seed"),
        ({"kind": NoDual}, {}, "agent"),
        ({}, {"snr_db": 3.0}, "scenario"),
        ({}, {"num_users": 3}, "scenario"),
        ({}, {"channel_model": Poisoned(-1)}, "channel_model"),
        ({"iterations": 6}, {}, "settings"),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, dict) else value,
)
def test_a_checkpoint_of_another_training_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], scenario: dict[str, Any], name: str
) -> None:
    checkpoint = tmp_path / "training.zip"
    quick(make()).learn(5, checkpoint=checkpoint)
    content = checkpoint.read_bytes()
    settings = dict(settings)
    iterations = settings.pop("iterations", 5)
    other = quick(make(**scenario), settings.pop("kind", PrimalDual), **settings)
    before = weights(other)
    with pytest.raises(CheckpointError, match=rf"training\.zip.*another .*\b{name}\b"):
        other.learn(iterations, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == content
    assert all(np.array_equal(before[key], value) for key, value in weights(other).items())


def test_a_model_without_a_repr_of_its_own_is_known_again(tmp_path: Path) -> None:
    class Plain(RayleighChannel):
        __repr__ = object.__repr__

    checkpoint = tmp_path / "training.zip"
    first = quick(make(channel_model=Plain())).learn(5, checkpoint=checkpoint)
    assert same(quick(make(channel_model=Plain())).learn(5, checkpoint=checkpoint), first)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    checkpoint = tmp_path / "training.zip"
    quick(make()).learn(3, checkpoint=checkpoint)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"training\.zip"):
        quick(make()).learn(3, checkpoint=checkpoint)


def test_a_saved_agent_is_no_checkpoint(tmp_path: Path) -> None:
    quick(make()).save(tmp_path / "agent.zip")
    with pytest.raises(CheckpointError, match=r"agent\.zip.*PrimalDual"):
        quick(make()).learn(3, checkpoint=tmp_path / "agent.zip")


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_bad_numbers_of_iterations_between_savings_are_named(every: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="checkpoint_every"):
        quick(make()).learn(3, checkpoint_every=every)


# Failures


@pytest.mark.parametrize("preset_like", [{}, {"relative_constraints": True, "gradient_clip": 5.0}])
@pytest.mark.parametrize("scheduling", ["all", "contention"])
@pytest.mark.parametrize("control", ["power", "amplitude", "beamforming"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_absurd_learning_rate_ends_in_an_error(
    tmp_path: Path,
    architecture: str,
    control: str,
    scheduling: str,
    preset_like: dict[str, Any],
) -> None:
    env = make(control=control, scheduling=scheduling)
    agent = quick(env, architecture=architecture, learning_rate=1e3, **preset_like)
    checkpoint = tmp_path / "training.zip"
    seen: list[int] = []

    def note(progress: TrainingProgress) -> None:
        seen.append(progress.iteration)

    with pytest.raises(TrainingError) as caught:
        agent.learn(300, callback=note, checkpoint=checkpoint, checkpoint_every=1)
    message = str(caught.value)
    assert f"at iteration {seen[-1] + 1}:" in message
    assert f"the last good checkpoint is {checkpoint}" in message
    assert finite(agent)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_poisoned_training_keeps_its_checkpoint(
    tmp_path: Path, architecture: str, value: float
) -> None:
    checkpoint = tmp_path / "training.zip"
    settings: dict[str, Any] = {"architecture": architecture}
    env = make(channel_model=Poisoned(14, value))
    agent = quick(env, **settings)
    saved: list[bytes] = []

    def note(progress: TrainingProgress) -> None:
        if progress.iteration >= 11:
            saved.append(checkpoint.read_bytes())

    with pytest.raises(ValueError, match=r"channels drawn by <.*Poisoned.*must be finite, got"):
        agent.learn(30, callback=note, checkpoint=checkpoint, checkpoint_every=5)
    assert len(saved) == 3
    assert {*saved, checkpoint.read_bytes()} == {saved[0]}
    # The weights are those of the last good iteration.
    healthy = make(channel_model=Poisoned(-1))
    assert same(agent, quick(healthy, **settings).learn(30, callback=lambda p: p.iteration < 13))
    # The checkpoint still leads to the end of a training on good channels.
    whole = quick(healthy, **settings).learn(30)
    seen: list[int] = []
    resumed = quick(healthy, **settings).learn(
        30, checkpoint=checkpoint, callback=lambda p: seen.append(p.iteration)
    )
    assert seen[0] == 11
    assert same(resumed, whole)


def test_divergence_without_a_checkpoint() -> None:
    agent = quick(make(), learning_rate=1e12, hidden_sizes=(16, 16, 16, 16))
    with pytest.raises(TrainingError, match=r"diverged at iteration \d+\b.*none was saved"):
        agent.learn(5)


@pytest.mark.parametrize("what", ["weight", "multiplier"])
def test_what_the_last_step_made_infinite_is_no_result(what: str) -> None:
    """The loss was computed before, and no other follows."""
    network = nn.Linear(1, 1, bias=False)

    @dataclasses.dataclass
    class Steep(Constant):
        value: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1))

        def evaluate(self, network: nn.Module, rng: np.random.Generator) -> LossValue:
            (weight,) = network.parameters()
            return LossValue(weight.sum(), torch.zeros(1), {})

        def update(self, value: LossValue, progress: float) -> None:
            if what == "multiplier":
                self.value = self.value + torch.inf

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"multiplier": self.value}

    # At the end of what single precision holds, and one of Adam's steps beyond it.
    nn.init.constant_(network.weight, -3.4e38)
    rate = 1e37 if what == "weight" else 0.1
    with pytest.raises(TrainingError, match=f"diverged at iteration 1: '{what}' is not finite"):
        run_train(network, Steep(), TrainingSettings(1, rate))


def test_a_gradient_that_is_not_finite_is_found_beneath_a_finite_loss() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)

    @dataclasses.dataclass
    class Cusp(Constant):
        def evaluate(self, network: nn.Module, rng: np.random.Generator) -> LossValue:
            (weight,) = network.parameters()
            loss = (weight - 1.0).abs().sqrt().sum()
            return LossValue(loss, torch.zeros(1), {})

    with pytest.raises(TrainingError, match=r"iteration 1: loss 0\.0, gradient norm (nan|inf)"):
        run_train(network, Cusp(), TrainingSettings(5, 0.1))
    assert network.weight.item() == 1.0


# The loop alone, on a loss whose gradient is known


@dataclasses.dataclass
class Constant:
    """The sum of the weights, times a slope that may vanish: Adam's steps have full length."""

    slopes: list[float] = dataclasses.field(default_factory=lambda: [1.0] * 1000)
    calls: int = 0
    shares: list[float] = dataclasses.field(default_factory=list)

    def evaluate(self, network: nn.Module, rng: np.random.Generator) -> LossValue:
        slope = self.slopes[self.calls]
        self.calls += 1
        loss = slope * torch.stack([value.sum() for value in network.parameters()]).sum()
        return LossValue(loss, torch.zeros(1), {"none": torch.zeros(1, 1)})

    def update(self, value: LossValue, progress: float) -> None:
        self.shares.append(progress)

    def multipliers(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        assert not state


def run_train(network: nn.Module, loss: Any, settings: TrainingSettings, **options: Any) -> int:
    rng = np.random.default_rng(0)
    return train(network, loss, settings, rng=rng, identity={}, **options)


def single() -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network


def test_warm_up_and_cosine() -> None:
    settings = TrainingSettings(100, 0.5, final_learning_rate=0.1, warmup_iterations=10)
    rates = np.array([settings.learning_rate_at(i) for i in range(100)])
    i = np.arange(100)
    cosine = 0.1 + 0.4 * (1 + np.cos(np.pi * i / 100)) / 2
    np.testing.assert_allclose(rates, cosine * np.minimum((i + 1) / 10, 1))
    assert rates[9] == pytest.approx(cosine[9])
    assert rates[50] == pytest.approx(0.3)
    constant = TrainingSettings(100, 0.5)
    assert {constant.learning_rate_at(i) for i in range(100)} == {0.5}


def test_the_steps_have_the_scheduled_length() -> None:
    """Adam under a constant gradient moves by the learning rate itself."""
    settings = TrainingSettings(20, 0.5, final_learning_rate=0.1, warmup_iterations=4)
    network, path, told = single(), [0.0], []

    def note(progress: TrainingProgress) -> None:
        path.append(network.weight.item())
        told.append(progress.learning_rate)

    assert run_train(network, Constant(), settings, callback=note) == 20
    expected = [settings.learning_rate_at(i) for i in range(20)]
    np.testing.assert_allclose(-np.diff(path), expected, rtol=1e-4)
    assert told == expected


def test_the_loss_is_told_the_share_that_is_done() -> None:
    loss = Constant()
    run_train(single(), loss, TrainingSettings(4, 0.1))
    assert loss.shares == [0.0, 0.25, 0.5, 0.75]


def test_the_gradient_is_clipped() -> None:
    """Adam forgets the scale of a constant gradient, but not that of one that changes."""

    def path(slopes: list[float], clip: float | None) -> list[float]:
        network, found = single(), []

        def note(progress: TrainingProgress) -> None:
            found.append(network.weight.item())

        run_train(
            network, Constant(slopes), TrainingSettings(4, 0.1, gradient_clip=clip), callback=note
        )
        return found

    clipped = path([1.0, 100.0, 1.0, 1.0], 1.0)
    np.testing.assert_allclose(clipped, path([1.0] * 4, None), rtol=1e-4)
    assert not np.allclose(clipped, path([1.0, 100.0, 1.0, 1.0], None), rtol=1e-2)


def test_twenty_iterations_without_a_gradient_are_a_failure() -> None:
    with pytest.raises(TrainingError, match=r"no gradient for 20 iterations at iteration 23\b"):
        run_train(single(), Constant([1.0, 1.0, 1.0] + [0.0] * 50), TrainingSettings(50, 0.1))
    slopes = ([0.0] * 19 + [1.0]) * 3
    assert run_train(single(), Constant(slopes), TrainingSettings(60, 0.1)) == 60


def test_no_checkpoint_is_written_while_nothing_moves(tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.zip"
    with pytest.raises(TrainingError, match=r"last good checkpoint is .*training\.zip"):
        run_train(
            single(),
            Constant([1.0] * 4 + [0.0] * 50),
            TrainingSettings(50, 0.1),
            checkpoint=checkpoint,
            checkpoint_every=2,
        )
    seen: list[int] = []
    run_train(
        single(),
        Constant(),
        TrainingSettings(50, 0.1),
        checkpoint=checkpoint,
        callback=lambda progress: seen.append(progress.iteration),
    )
    assert seen[0] == 5


def test_a_callback_ends_the_training(tmp_path: Path) -> None:
    env, seen = make(), []

    def stop(progress: TrainingProgress) -> bool:
        seen.append(progress.iteration)
        return progress.iteration < 7

    stopped = quick(env).learn(50, callback=stop, checkpoint=tmp_path / "training.zip")
    assert same(stopped, quick(env).learn(7))
    assert seen == list(range(1, 8))
    assert (tmp_path / "training.zip").exists()


# Agents


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_weights(architecture: str) -> None:
    env = make()
    first, second, other = (
        quick(env, architecture=architecture, seed=seed).learn(12) for seed in (1, 1, 2)
    )
    assert same(first, second)
    assert not same(first, other)
    assert not same(first, quick(env, architecture=architecture, seed=1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_initial_weights_depend_on_the_seed(architecture: str) -> None:
    agents = [quick(make(), architecture=architecture, seed=seed) for seed in (1, 1, 2)]
    assert same(agents[0], agents[1])
    assert not same(agents[0], agents[2])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_but_the_seed_matters(architecture: str) -> None:
    fresh, used = make(), make()
    used.reset(seed=3)
    used.step(used.action_space.sample())
    first = quick(fresh, architecture=architecture).learn(6)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    second = quick(used, architecture=architecture)
    second.learn(6, callback=lambda progress: torch.rand(1).item() < 2)
    assert same(first, second)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_parameters_stay(architecture: str) -> None:
    agent = quick(make(), architecture=architecture, learning_rate=1e-2)
    frozen = [name for index, (name, _) in enumerate(agent.network.named_parameters()) if index % 2]
    for name, parameter in agent.network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    before = weights(agent)
    agent.learn(8)
    after = weights(agent)
    assert all(np.array_equal(before[name], after[name]) for name in frozen)
    assert any(
        not np.array_equal(before[name], after[name])
        for name, _ in agent.network.named_parameters()
        if name not in frozen
    )


@pytest.mark.parametrize("relative", [True, False])
def test_the_step_size_of_the_multipliers_decays_by_a_cosine(relative: bool) -> None:
    """From the growth of the multiplier and the mean excess that the callback is told."""
    agent = quick(
        make(),
        dual_step_size=0.4,
        final_dual_step_size=0.1,
        initial_multiplier=50.0,
        relative_constraints=relative,
    )
    multipliers, excess = [50.0], []

    def note(progress: TrainingProgress) -> None:
        multipliers.append(progress.multipliers["sensing"])
        excess.append(progress.constraints["sensing"] * (1.0 if relative else 0.16))

    agent.learn(12, callback=note)
    found = np.diff(multipliers) / excess
    i = np.arange(12)
    expected = 0.1 + 0.3 * (1 + np.cos(np.pi * i / 12)) / 2
    np.testing.assert_allclose(found, expected, rtol=5e-3 if relative else 5e-2)


# Company


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told: dict[int, TrainingProgress] = {}

    def note(progress: TrainingProgress) -> None:
        told[progress.iteration] = progress

    agent = quick(make()).learn(25, tensorboard_log=tmp_path / "logs", callback=note)
    log = EventAccumulator(str(tmp_path / "logs"))
    log.Reload()
    expected = {
        "loss": lambda p: p.loss,
        "sum_rate": lambda p: p.sum_rate,
        "learning_rate": lambda p: p.learning_rate,
        "constraint_power": lambda p: p.constraints["power"],
        "constraint_sensing": lambda p: p.constraints["sensing"],
        "multiplier_power": lambda p: p.multipliers["power"],
        "multiplier_sensing": lambda p: p.multipliers["sensing"],
    }
    assert set(log.Tags()["scalars"]) == {f"train/{name}" for name in expected}
    for name, value in expected.items():
        events = log.Scalars(f"train/{name}")
        assert [event.step for event in events] == [10, 20, 25]
        for event in events:
            assert event.value == pytest.approx(value(told[event.step]), rel=1e-5)
    assert same(agent, quick(make()).learn(25))


@pytest.mark.parametrize("scenario", [{}, {"scheduling": "contention", "power_limit": "cost"}])
@pytest.mark.parametrize("iterations", [1, 25])
def test_progress_bar(
    capsys: pytest.CaptureFixture[str], iterations: int, scenario: dict[str, Any]
) -> None:
    env = make(**scenario)
    agent = quick(env).learn(iterations, progress_bar=True)
    assert f"{iterations}/{iterations}" in capsys.readouterr().out
    assert same(agent, quick(env).learn(iterations))


def test_the_progress_bar_stops_with_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="channels drawn by"):
        quick(make(channel_model=Poisoned(4))).learn(9, progress_bar=True)
    quick(make()).learn(9, progress_bar=True, callback=lambda progress: False)
    quick(make()).learn(3, progress_bar=True)
    assert "3/3" in capsys.readouterr().out


def test_progress_is_that_of_the_batch() -> None:
    """The loss is the penalty at the multipliers before the step, less the rate."""
    agent = quick(make(), initial_multiplier=2.0, relative_constraints=True)
    told: list[TrainingProgress] = []

    def note(progress: TrainingProgress) -> None:
        told.append(progress)

    agent.learn(6, callback=note)
    assert [p.iteration for p in told] == list(range(1, 7))
    assert {p.iterations for p in told} == {6}
    before = itertools.chain([2.0], (p.multipliers["sensing"] for p in told))
    for p, multiplier in zip(told, before, strict=False):
        assert p.loss == pytest.approx(multiplier * p.constraints["sensing"] - p.sum_rate, rel=1e-4)
