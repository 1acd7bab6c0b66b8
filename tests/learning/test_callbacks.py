"""Callbacks: evaluation on fixed channels, the best agent, snapshots, stopping, their states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import direct_model
import numpy as np
import pytest
import torch
from small_agents import ARCHITECTURES, make, quick, same, weights

from isac_gym import RayleighChannel
from isac_gym.agents import PrimalDual
from isac_gym.channels.base import Complex
from isac_gym.channels.process import ChannelProcess
from isac_gym.learning.callbacks import (
    CallbackList,
    CheckpointCallback,
    Evaluation,
    EvaluationCallback,
    StopOnConvergence,
)
from isac_gym.learning.progress import StatefulCallback, TrainingProgress
from isac_gym.system.downlink import find_system


def progress(iteration: int, iterations: int = 1000) -> TrainingProgress:
    return TrainingProgress(iteration, iterations, 0.0, 0.0, {}, {}, 1e-3)


def evaluation_channels(env: Any, count: int, seed: int) -> tuple[Complex, Complex]:
    unwrapped = env.unwrapped
    process = ChannelProcess(unwrapped.channel_model, unwrapped.scenario, count)
    process.start(np.random.default_rng((0xE7A1, seed)))
    return process.channels.copy(), process.estimates.copy()


# Evaluation


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scenario", [{"control": "power"}, {"scheduling": "contention"}], ids=str)
def test_evaluation_is_that_of_the_system(architecture: str, scenario: dict[str, Any]) -> None:
    """Actions by ``predict``, their effect by ``system.transmit``, on channels drawn here."""
    env = make(csi_error_variance=0.1, **scenario)
    agent = quick(env, architecture=architecture)
    evaluate = EvaluationCallback(agent, 5, channels=20, seed=3)
    agent.learn(5, callback=evaluate)
    (entry,) = evaluate.history
    channels, estimates = evaluation_channels(env, 20, 3)
    rates, excess = [], []
    for true, seen in zip(channels, estimates, strict=True):
        flat = seen.ravel()
        action, _ = agent.predict(np.concatenate([flat.real, flat.imag]))
        outcome = find_system(env).transmit(
            torch.from_numpy(true), torch.from_numpy(action), torch.from_numpy(seen)
        )
        rates.append(outcome.sum_rate.item())
        excess.append({name: value.item() for name, value in outcome.constraints.items()})
    assert entry.iteration == 5
    assert entry.sum_rate == pytest.approx(np.mean(rates), rel=1e-4)
    assert set(entry.constraints) == set(excess[0])
    for name, value in entry.constraints.items():
        assert value == pytest.approx(np.mean([e[name] for e in excess]), rel=1e-3, abs=1e-5)
    assert entry.violation == max(entry.constraints.values())


def test_evaluation_is_that_of_the_model_by_hand_at_the_worst_station() -> None:
    env = make(num_cells=2)
    scenario = env.unwrapped.scenario
    agent = quick(env)
    evaluate = EvaluationCallback(agent, channels=12)
    evaluate(progress(100))
    paid = []
    for H, seen in zip(*evaluation_channels(env, 12, 0), strict=True):
        action, _ = agent.predict(np.concatenate([seen.real.ravel(), seen.imag.ravel()]))
        F, R, access = direct_model.decode(scenario, action, seen)
        assert R is not None
        paid.append(direct_model.earned(scenario, H.astype(np.complex128), F, R, access))
    (entry,) = evaluate.history
    assert entry.sum_rate == pytest.approx(np.mean([p["sum_rate"] for p in paid]), rel=1e-4)
    by_station = np.mean([p["constraint_sensing"] for p in paid], axis=0)
    assert abs(by_station[0] - by_station[1]) > 1e-3
    assert entry.constraints["sensing"] == pytest.approx(by_station.max(), rel=1e-3)


def test_evaluation_channels_are_not_those_of_the_training() -> None:
    env, agent = make(), quick(make())
    mine = evaluation_channels(env, 8, 0)[0]
    process = ChannelProcess(RayleighChannel(), agent.scenario, 8)
    process.start(np.random.default_rng(0))
    assert not np.isin(mine, process.channels).any()
    assert not np.array_equal(mine, evaluation_channels(env, 8, 1)[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_evaluation_does_not_change_the_training(tmp_path: Path, architecture: str) -> None:
    settings: dict[str, Any] = {"architecture": architecture}
    plain = quick(make(csi_error_variance=0.1), **settings).learn(12)
    watched = quick(make(csi_error_variance=0.1), **settings)
    evaluate = EvaluationCallback(watched, 2, channels=8, best=tmp_path / "best.zip")
    snapshots = CheckpointCallback(watched, tmp_path, 3)
    watched.learn(12, callback=CallbackList([evaluate, snapshots]))
    assert len(evaluate.history) == 6
    assert same(plain, watched)
    assert all(p.requires_grad for p in watched.network.parameters())


def test_evaluations_come_every_so_often_and_after_the_last_iteration() -> None:
    agent = quick(make())
    evaluate = EvaluationCallback(agent, 4, channels=4)
    agent.learn(10, callback=evaluate)
    assert [entry.iteration for entry in evaluate.history] == [4, 8, 10]
    assert len({entry.sum_rate for entry in evaluate.history}) == 3


def test_the_same_channels_every_time() -> None:
    agent = quick(make())
    evaluate = EvaluationCallback(agent, 1, channels=4)
    for iteration in (1, 2):
        evaluate(progress(iteration))
    first, second = evaluate.history
    assert (first.sum_rate, first.constraints) == (second.sum_rate, second.constraints)
    other = EvaluationCallback(agent, 1, channels=4, seed=1)
    other(progress(1))
    assert other.history[0].sum_rate != first.sum_rate


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"every": 0}, "every"),
        ({"channels": 0}, "channels"),
        ({"seed": -1}, "seed"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        EvaluationCallback(quick(make()), **options)


# The best agent


class Told(EvaluationCallback):
    """Is told rates and constraints instead of measuring them."""

    def __init__(self, agent: Any, told: list[tuple[float, dict[str, float]]], **options: Any):
        super().__init__(agent, 1, channels=1, **options)
        self.told = told
        self._real_system = agent.system

    def __call__(self, progress: TrainingProgress) -> bool | None:
        rate, constraints = self.told[progress.iteration - 1]

        class Outcome:
            sum_rate = torch.tensor([rate], dtype=torch.float64)

        outcome: Any = Outcome()
        outcome.constraints = {
            name: torch.tensor([[value]], dtype=torch.float64)
            for name, value in constraints.items()
        }
        system: Any = self._agent.system
        system.transmit = lambda *arguments: outcome
        try:
            return super().__call__(progress)
        finally:
            del system.transmit


def bests(told: list[tuple[float, dict[str, float]]], **options: Any) -> list[bool]:
    evaluate = Told(quick(make()), told, **options)
    for iteration in range(1, len(told) + 1):
        evaluate(progress(iteration))
    rates = [entry.sum_rate for entry in evaluate.history]
    np.testing.assert_array_equal(rates, [rate for rate, _ in told])
    return [entry.is_best for entry in evaluate.history]


def test_the_best_has_the_highest_rate_among_the_feasible() -> None:
    assert bests(
        [
            (9.0, {"sensing": 0.50}),  # the least violation so far
            (1.0, {"sensing": 0.30}),
            (9.5, {"sensing": 0.40}),
            (0.5, {"sensing": -0.1}),  # feasible, whatever the rate
            (9.9, {"sensing": 0.01}),  # never again infeasible
            (0.4, {"sensing": -0.5}),
            (0.6, {"sensing": 0.0}),
            (0.6, {"sensing": 0.0}),  # no better than the best
            (0.7, {"sensing": 0.004}),  # within the tolerance
            (0.8, {"sensing": 0.006}),
        ]
    ) == [True, True, False, True, False, False, True, False, True, False]


def test_the_largest_constraint_decides() -> None:
    assert bests(
        [
            (1.0, {"power": 0.3, "sensing": -0.9}),
            (1.0, {"power": 0.2, "sensing": 0.25}),
            (1.0, {"power": 0.0, "sensing": 0.26}),
            (1.0, {"power": 0.1, "sensing": 0.1}),
        ],
    ) == [True, True, False, True]


def test_the_tolerance_can_be_chosen() -> None:
    told = [(1.0, {"sensing": 0.04}), (2.0, {"sensing": 0.05}), (0.1, {"sensing": 0.0})]
    assert bests(told, tolerance=0.05) == [True, True, False]
    assert bests(told, tolerance=0.0) == [True, False, True]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_best_file_acts_as_the_agent_did_then(tmp_path: Path, architecture: str) -> None:
    """Violations that fall, then rise: the file stays at the third iteration."""
    env, path = make(), tmp_path / "best.zip"
    agent = quick(env, architecture=architecture, learning_rate=1e-2, initial_multiplier=1.0)
    told = [(1.0, {"sensing": value}) for value in (0.5, 0.4, 0.1, 0.3, 0.2, 0.6)]
    evaluate = Told(agent, told, best=path)
    observation = np.stack([env.reset(seed=s)[0] for s in range(5)])
    actions, kept = [], []

    def note(progress: TrainingProgress) -> None:
        evaluate(progress)
        actions.append(agent.predict(observation)[0])
        kept.append(weights(agent))

    agent.learn(6, callback=note)
    loaded = PrimalDual.load(path, env)
    found = loaded.predict(observation)[0]
    np.testing.assert_array_equal(found, actions[2])
    assert not np.array_equal(found, actions[1])
    assert not np.array_equal(found, actions[3])
    held = weights(loaded)
    assert all(np.array_equal(value, held[name]) for name, value in kept[2].items())


# Stopping


def entries(rates: list[float], violation: float = 0.0) -> list[Evaluation]:
    return [Evaluation(i + 1, rate, {"sensing": violation}, False) for i, rate in enumerate(rates)]


def test_patience() -> None:
    stop = StopOnConvergence(patience=2, min_improvement=0.1)
    # 1.05 and 1.1 improve by too little; 1.2 starts the wait anew.
    answers = [stop(entry) for entry in entries([1.0, 1.05, 1.2, 1.1, 1.3])]
    assert answers == [None, None, None, None, False]


def test_slow_progress_adds_up() -> None:
    """Against the best that counted, not against the evaluation before."""
    stop = StopOnConvergence(patience=3, min_improvement=0.1)
    answers = [stop(entry) for entry in entries([1.0, 1.06, 1.12, 1.18, 1.24])]
    assert answers == [None] * 5


def test_nothing_is_counted_until_constraints_hold() -> None:
    stop = StopOnConvergence(patience=1, tolerance=0.01)
    assert [stop(entry) for entry in entries([1.0] * 6, violation=0.02)] == [None] * 6
    assert [stop(entry) for entry in entries([1.0, 1.0], violation=0.01)] == [None, False]
    again = StopOnConvergence(patience=2, tolerance=0.01)
    mixed = [*entries([1.0]), *entries([5.0, 9.0], violation=0.5)]
    assert [again(entry) for entry in mixed] == [None, None, False]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"patience": 0}, "patience"),
        ({"min_improvement": -1.0}, "min_improvement"),
        ({"tolerance": float("inf")}, "tolerance"),
    ],
)
def test_bad_options_of_stopping_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        StopOnConvergence(**options)


def test_a_training_that_converged_ends() -> None:
    agent = quick(make())
    told = [(1.0, {"sensing": 0.0})] * 50
    agent.learn(50, callback=Told(agent, told, then=StopOnConvergence(patience=4)))
    assert same(agent, quick(make()).learn(5))


# Snapshots and lists


def test_snapshots(tmp_path: Path) -> None:
    agent = quick(make())
    kept = {}
    snapshots = CheckpointCallback(agent, tmp_path / "deep" / "folder", 4, name="mine")

    def note(progress: TrainingProgress) -> None:
        snapshots(progress)
        kept[progress.iteration] = weights(agent)

    agent.learn(10, callback=note)
    files = sorted((tmp_path / "deep" / "folder").iterdir())
    assert [file.name for file in files] == ["mine_000004.zip", "mine_000008.zip"]
    for file, iteration in zip(files, (4, 8), strict=True):
        loaded = weights(PrimalDual.load(file))
        assert all(np.array_equal(value, loaded[k]) for k, value in kept[iteration].items())
    with pytest.raises(ValueError, match="every"):
        CheckpointCallback(agent, tmp_path, 0)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([None, None], None),
        ([True, None], None),
        ([False, None], False),
        ([True, False], False),
        ([], None),
    ],
)
def test_a_list_calls_all_and_ends_if_any_does(
    answers: list[bool | None], expected: bool | None
) -> None:
    called: list[int] = []

    def callback(place: int) -> Any:
        def answer(progress: TrainingProgress) -> bool | None:
            called.append(place)
            return answers[place]

        return answer

    every = CallbackList([callback(place) for place in range(len(answers))])
    assert every(progress(1)) is expected
    assert called == list(range(len(answers)))


def test_a_list_keeps_the_states_of_those_that_have_one() -> None:
    agent = quick(make())
    told = [(1.0, {"sensing": 0.0})] * 5

    def fresh() -> tuple[Told, CallbackList]:
        evaluate = Told(agent, told, then=StopOnConvergence(patience=3))
        return evaluate, CallbackList([lambda progress: None, evaluate])

    first, listed = fresh()
    assert isinstance(listed, StatefulCallback)
    assert [listed(progress(i)) for i in (1, 2, 3)] == [None, None, None]
    state = listed.state_dict()
    assert list(state) == ["1"]
    second, resumed = fresh()
    resumed.load_state_dict(state)
    assert second.history == first.history
    assert resumed(progress(4)) is False, "three without improvement, two of them before"


def test_states_survive_a_checkpoint(tmp_path: Path) -> None:
    """A training that is interrupted stops where the uninterrupted one stops."""
    told = [(1.0 + 0.1 * min(i, 4), {"sensing": 0.0}) for i in range(40)]

    def fresh() -> tuple[PrimalDual, Told, CallbackList]:
        agent = quick(make())
        evaluate = Told(agent, told, then=StopOnConvergence(patience=6))
        return agent, evaluate, CallbackList([evaluate])

    whole, expected, listed = fresh()
    whole.learn(40, callback=listed)
    assert expected.history[-1].iteration == 11
    agent, _, listed = fresh()

    def interrupt(progress: TrainingProgress) -> bool | None:
        if progress.iteration == 9:
            raise KeyboardInterrupt
        return None

    checkpoint = tmp_path / "training.zip"
    with pytest.raises(KeyboardInterrupt):
        agent.learn(
            40,
            callback=CallbackList([*listed._callbacks, interrupt]),
            checkpoint=checkpoint,
            checkpoint_every=4,
        )
    resumed, found, listed = fresh()
    seen: list[int] = []

    def note(progress: TrainingProgress) -> None:
        seen.append(progress.iteration)

    resumed.learn(
        40,
        callback=CallbackList([*listed._callbacks, note]),
        checkpoint=checkpoint,
        checkpoint_every=4,
    )
    assert seen == [9, 10, 11]
    assert found.history == expected.history
    assert same(resumed, whole)


def test_what_is_not_a_number_is_never_better() -> None:
    nan = float("nan")
    good, bad = (1.0, {"power": 0.0, "sensing": 0.0}), (1.0, {"power": 0.0, "sensing": 0.2})
    for told in [(nan, {"power": 0.0, "sensing": 0.0}), (5.0, {"power": 0.0, "sensing": nan})]:
        assert bests([good, told]) == [True, False]
        assert bests([bad, told]) == [True, False]
        assert bests([told, good]) == [True, True]
        assert bests([told, bad]) == [True, True]
