"""Constraints: what the package's bound, and one of one's own through all that uses them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from direct_model import SMALL
from torch import Tensor

from isac_gym import Scenario
from isac_gym.agents import NoDual, PrimalDual
from isac_gym.envs.wrappers import (
    EpisodeCostStatistics,
    PenalisedReward,
    SafetyGymnasium,
    VectorReward,
)
from isac_gym.learning.callbacks import EvaluationCallback
from isac_gym.learning.checkpoint import CheckpointError
from isac_gym.learning.progress import TrainingProgress
from isac_gym.registry import CONSTRAINTS, register_constraint
from isac_gym.system.constraints import (
    Constraint,
    PowerConstraint,
    SchedulingConstraint,
    SensingConstraint,
    find_priced,
    resolve_constraints,
)
from isac_gym.system.downlink import ISACSystem, Outcome
from isac_gym.system.simulation import Simulation

TARGETS = (-50.0, 10.0)
STAGES = ((6.0, 2), (6.0, 1))


class PeakSidelobe(Constraint):
    """The largest beampattern outside the desired beams, and a guard around them."""

    name = "peak-sidelobe"
    description = "largest beampattern outside the desired beams"
    symbol = "P_s"
    unit = "W"

    def __init__(self, level: float = 0.3, guard_deg: float = 10.0) -> None:
        self.level, self.guard_deg = level, guard_deg

    def limit(self, scenario: Scenario) -> float:
        return self.level

    def quantity(self, outcome: Outcome, system: ISACSystem) -> Tensor:
        scenario = system.scenario
        inside = torch.stack(
            [
                (system.sensing.grid_deg[:, None] - torch.tensor(targets)).abs().amin(-1)
                <= scenario.beam_width_deg / 2 + self.guard_deg
                for targets in scenario.targets_by_cell
            ]
        )
        return outcome.sensing.beampattern.masked_fill(inside, -torch.inf).amax(-1)


class Nameless(PeakSidelobe):
    """One that is registered nowhere."""

    name = "nameless"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """``peak-sidelobe`` is a registered name within the test."""
    monkeypatch.setattr(CONSTRAINTS, "_imported", dict(CONSTRAINTS._imported))
    register_constraint(PeakSidelobe.name, PeakSidelobe.description)(PeakSidelobe)


def make(*constraints: Constraint | str, **changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes}, constraints=constraints)


def peak(
    covariance: reference.Complex, targets: tuple[float, ...] = TARGETS, guard: float = 10.0
) -> float:
    """max a(θ)ᴴRa(θ) over θ more than Δ/2 and the guard from all targets, by the formula."""
    found = []
    for angle in range(-90, 91):
        if min(abs(angle - target) for target in targets) > 5.0 + guard:
            vector = reference.steering([angle], len(covariance), 0.5)[0]
            found.append(float(np.vdot(vector, covariance @ vector).real))
    return max(found)


# The package's


def test_those_of_every_system() -> None:
    assert list(ISACSystem(Scenario()).constraints) == ["power", "sensing"]
    contention = ISACSystem(Scenario(scheduling="contention", num_cells=2))
    assert list(contention.constraints) == ["power", "sensing", "scheduling"]
    kinds = [PowerConstraint, SensingConstraint, SchedulingConstraint]
    assert [type(each) for each in contention.constraints.values()] == kinds
    assert contention.chosen_constraints == []
    assert contention.limits == {"power": 1.0, "sensing": 0.12, "scheduling": 1.0}


def test_limits_floors_and_what_can_be_exceeded() -> None:
    scenario = Scenario(**{**SMALL, "comm_power": 2.5, "num_cells": 2})
    power, sensing, scheduling = PowerConstraint(), SensingConstraint(), SchedulingConstraint()
    assert power.limit(scenario) == 2.5
    assert sensing.limit(scenario) == 0.2
    assert scheduling.limit(scenario) == 1.0
    assert power.floor(scenario) == scheduling.floor(scenario) == 0.0
    assert sensing.floor(scenario) == max(scenario.sensing_floor()) > 0.05
    assert not power.can_be_exceeded(scenario)
    assert power.can_be_exceeded(scenario.replace(power_limit="cost"))
    assert sensing.can_be_exceeded(scenario)
    assert not scheduling.applies(scenario)
    assert scheduling.applies(scenario.replace(scheduling="contention"))
    assert [c.is_priced for c in (power, sensing, scheduling)] == [False, True, False]


def test_the_value_is_the_quantity_over_its_limit_less_one() -> None:
    scenario = Scenario(
        **SMALL, num_cells=2, power_limit="cost", scheduling="contention", comm_power=0.7
    )
    simulation = Simulation(ISACSystem(scenario, [PeakSidelobe(0.2)]), _rayleigh(), 5)
    simulation.start(np.random.default_rng(0))
    size = simulation.system.codec.action_size
    _, outcome = simulation.apply_checked(np.random.default_rng(1).uniform(-1, 1, (5, size)))
    assert list(outcome.constraints) == ["power", "sensing", "scheduling", "peak-sidelobe"]
    for name, value in outcome.constraints.items():
        constraint = simulation.system.constraints[name]
        expected = constraint.quantity(outcome, simulation.system).double().numpy()
        expected = expected / constraint.limit(scenario) - 1.0
        assert value.shape == (5, 2)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    for name, cost in outcome.costs.items():
        positive = np.maximum(outcome.constraints[name].numpy(), 0.0).sum(-1)
        np.testing.assert_allclose(cost, positive, rtol=1e-6)
    assert float(outcome.costs["peak-sidelobe"].max()) > 0.0


def _rayleigh() -> Any:
    return make().unwrapped.channel_model  # type: ignore[attr-defined]


# Choosing


@pytest.mark.usefixtures("registered")
def test_by_object_name_and_class() -> None:
    scenario = Scenario(**SMALL)
    for given in (PeakSidelobe(), "peak-sidelobe", f"{__name__}:PeakSidelobe"):
        always, added = resolve_constraints(scenario, [given])
        assert [each.name for each in always] == ["power", "sensing"]
        assert [type(each) for each in added] == [PeakSidelobe]
        assert added[0].limit(scenario) == 0.3


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("peak-sidelobe", TypeError, "constraints must be a sequence"),
        (PeakSidelobe(), TypeError, "constraints must be a sequence"),
        (None, TypeError, "constraints must be a sequence"),
        ([5], TypeError, "constraints must hold Constraint objects or names, got 5"),
        ([PeakSidelobe], TypeError, "constraints must hold Constraint objects or names"),
        (["isac_gym.scenario:Scenario"], TypeError, "must hold Constraint objects or names"),
        (["nosuch"], ValueError, "constraint must be one of power, sensing, .*got 'nosuch'"),
        ([PeakSidelobe(), PeakSidelobe(0.3)], ValueError, "'peak-sidelobe' twice"),
        ([SensingConstraint()], ValueError, "'sensing' twice"),
        (["scheduling"], ValueError, "must apply to the scenario, got 'scheduling'"),
        ([PeakSidelobe(0.0)], ValueError, "limit of constraint 'peak-sidelobe'.*got 0.0"),
        ([PeakSidelobe(-1.0)], ValueError, "limit of constraint 'peak-sidelobe'"),
        ([PeakSidelobe(float("nan"))], ValueError, "limit of constraint 'peak-sidelobe'"),
        ([PeakSidelobe(float("inf"))], ValueError, "limit of constraint 'peak-sidelobe'"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),
)
@pytest.mark.parametrize("vector", [False, True])
def test_bad_choices(given: Any, error: type[Exception], message: str, vector: bool) -> None:
    build = gym.make_vec if vector else gym.make
    with pytest.raises(error, match=message):
        build("ISAC-MISO-v0", **SMALL, constraints=given)


def test_a_constraint_without_a_limit() -> None:
    class Unlimited(PeakSidelobe):
        limit = Constraint.limit

    with pytest.raises(NotImplementedError, match="Unlimited must have limit_field or limit"):
        make(Unlimited())


def test_which_one_has_the_price() -> None:
    system = ISACSystem(Scenario(**SMALL), [PeakSidelobe()])
    assert find_priced(system.constraints, None) is system.constraints["sensing"]
    assert find_priced(system.constraints, "peak-sidelobe") is system.constraints["peak-sidelobe"]
    assert find_priced({"power": PowerConstraint()}, None) is None
    with pytest.raises(ValueError, match=r"priced_constraint must be one of \['power'.*'magic'"):
        find_priced(system.constraints, "magic")


# In environments


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("radar", ["learned", "fixed"])
def test_entries_of_info(cells: int, radar: str) -> None:
    groups = (TARGETS, (-20.0, 60.0))[:cells]
    env = make(
        PeakSidelobe(0.15), num_cells=cells, radar=radar, power_limit="cost",
        target_angles_deg=groups, sensing_threshold=0.3,
    )  # fmt: skip
    env.reset(seed=0)
    env.action_space.seed(0)
    paid = []
    for _ in range(4):
        action = env.action_space.sample()
        R = env.unwrapped.decode_action(action)[1].reshape(cells, 4, 4)
        info = env.step(action)[4]
        expected = [peak(R[cell], groups[cell]) / 0.15 - 1.0 for cell in range(cells)]
        np.testing.assert_allclose(
            np.atleast_1d(info["constraint_peak-sidelobe"]), expected, rtol=1e-4, atol=1e-5
        )
        cost = sum(max(value, 0.0) for value in expected)
        assert info["cost_peak-sidelobe"] == pytest.approx(cost, rel=1e-4, abs=1e-5)
        costs = [info[f"cost_{name}"] for name in ("power", "sensing", "peak-sidelobe")]
        assert info["cost"] == pytest.approx(sum(costs), rel=1e-6)
        paid.append(info["cost_peak-sidelobe"])
    assert max(paid) > 0.0


def test_others_stay_as_they_are() -> None:
    plain, more = make(power_limit="cost"), make(PeakSidelobe(), power_limit="cost")
    plain.action_space.seed(0)
    np.testing.assert_array_equal(plain.reset(seed=1)[0], more.reset(seed=1)[0])
    for _ in range(3):
        action = plain.action_space.sample()
        left, right = plain.step(action), more.step(action)
        assert left[:4][1:] == right[:4][1:]
        new = {"cost_peak-sidelobe", "constraint_peak-sidelobe"}
        assert set(right[4]) - set(left[4]) == new
        for key in set(left[4]) - {"cost"}:
            np.testing.assert_array_equal(left[4][key], right[4][key])
        total = left[4]["cost"] + right[4]["cost_peak-sidelobe"]
        assert right[4]["cost"] == pytest.approx(total, rel=1e-6)


def test_a_batched_environment() -> None:
    env = gym.make_vec("ISAC-MISO-v0", num_envs=5, **SMALL, constraints=[PeakSidelobe(0.15)])
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, env.action_space.shape).astype(np.float32)
    info = env.step(actions)[4]
    scenario = env.unwrapped.scenario
    channels = np.ones((1, 1, 3, 9), complex)
    for n, action in enumerate(actions):
        _, R, _ = direct_model.decode(scenario, action, channels)
        assert R is not None
        expected = peak(R[0]) / 0.15 - 1.0
        assert info["constraint_peak-sidelobe"][n] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert info["cost_peak-sidelobe"][n] == pytest.approx(max(expected, 0.0), rel=1e-4)
        costs = [info[f"cost_{name}"][n] for name in ("power", "sensing", "peak-sidelobe")]
        assert info["cost"][n] == pytest.approx(sum(costs), rel=1e-6)
    assert info["_cost_peak-sidelobe"].all()


def test_wrappers() -> None:
    bare = make(PeakSidelobe(0.05), episode_length=2)
    vector = VectorReward(make(PeakSidelobe(0.05), episode_length=2))
    assert vector.reward_names == ("sum_rate", "cost_power", "cost_sensing", "cost_peak-sidelobe")
    assert vector.reward_space.shape == (4,)
    penalised = PenalisedReward(
        make(PeakSidelobe(0.05), episode_length=2), {"cost_peak-sidelobe": 3.0}
    )
    safety = SafetyGymnasium(make(PeakSidelobe(0.05), episode_length=2))
    statistics = EpisodeCostStatistics(make(PeakSidelobe(0.05), episode_length=2))
    for env in (bare, vector, penalised, safety, statistics):
        env.reset(seed=4)
    bare.action_space.seed(0)
    total = 0.0
    for _ in range(2):
        action = bare.action_space.sample()
        _, rate, _, _, info = bare.step(action)
        paid = info["cost_peak-sidelobe"]
        assert paid > 0.0
        total += paid
        assert vector.step(action)[1][3] == pytest.approx(-paid, rel=1e-6)
        assert penalised.step(action)[1] == pytest.approx(rate - 3.0 * paid, rel=1e-6)
        assert safety.step(action)[2] == pytest.approx(info["cost"], rel=1e-6)
        last = statistics.step(action)[4]
    assert last["episode_cost"]["cost_peak-sidelobe"] == pytest.approx(total, rel=1e-6)
    with pytest.raises(ValueError, match=r"cost_power.*cost_sensing"):
        PenalisedReward(make(), {"cost_peak-sidelobe": 1.0})


def test_the_quantity_has_a_gradient() -> None:
    env = make(PeakSidelobe())
    system: ISACSystem = env.unwrapped.system  # type: ignore[attr-defined]
    exact = ISACSystem(system.scenario, system.chosen_constraints, dtype=torch.float64)
    rng = np.random.default_rng(0)
    channels = torch.from_numpy(reference.complex_normal(rng, 1, *exact.codec.deployment.shape))
    start = rng.uniform(-1, 1, (1, exact.codec.action_size))

    def value(action: npt.NDArray[np.float64] | Tensor) -> Tensor:
        return exact.transmit(channels, torch.as_tensor(action)).constraints["peak-sidelobe"].sum()

    action = torch.tensor(start, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(action), action)
    direction, step = rng.normal(size=start.shape), 1e-6
    high, low = (float(value(start + sign * step * direction)) for sign in (1, -1))
    slope = float((gradient.numpy() * direction).sum())
    assert slope == pytest.approx((high - low) / (2 * step), rel=1e-5)
    assert abs(slope) > 1e-3


# In agents


def mean_peak(agent: PrimalDual, count: int, entropy: Any) -> tuple[float, float]:
    """Mean of the peak and of the sensing loss under a policy, by the formulas."""
    simulation = Simulation(agent.system, agent.channel_model, count)
    simulation.start(np.random.default_rng(entropy))
    actions = agent.predict(simulation.observe())[0]
    peaks, losses = [], []
    for action, H in zip(actions, simulation.channels, strict=True):
        _, R, _ = direct_model.decode(agent.scenario, action, H)
        assert R is not None
        peaks.append(peak(R[0]))
        losses.append(sum(reference.sensing_loss(R[0], 0.5, TARGETS)))
    return float(np.mean(peaks)), float(np.mean(losses))


def test_it_has_a_multiplier() -> None:
    env = make(PeakSidelobe(0.05))
    seen: list[TrainingProgress] = []
    agent = PrimalDual(env, "paper", hidden_sizes=(8,), batch_size=8, dual_step_size=0.5)
    assert list(agent.multipliers.values) == ["power", "sensing", "peak-sidelobe"]
    evaluate = EvaluationCallback(agent, 2, channels=16)

    def note(progress: TrainingProgress) -> None:
        evaluate(progress)
        seen.append(progress)

    agent.learn(2, callback=note)
    assert agent.multipliers.values["peak-sidelobe"].item() > 0.0
    assert seen[0].multipliers["peak-sidelobe"] == pytest.approx(
        # The preset's multipliers weigh plain excess.
        0.5 * seen[0].constraints["peak-sidelobe"] * 0.05, rel=1e-4
    )  # fmt: skip
    assert set(evaluate.history[0].constraints) == {"power", "sensing", "peak-sidelobe"}
    free = NoDual(env, "paper", hidden_sizes=(8,), batch_size=8).learn(2)
    assert free.multipliers.values["peak-sidelobe"].item() == 0.0


def test_training_against_it_lowers_it() -> None:
    settings: dict[str, Any] = {
        "architecture": "model_based",
        "hidden_sizes": (16,),
        "batch_size": 16,
        "learning_rate": 1e-2,
        "dual_step_size": 1.0,
        "relative_constraints": True,
        "initial_multiplier": 0.0,
    }
    free = PrimalDual(make(sensing_threshold=0.6), "paper", **settings).learn(150)
    bound_env = make(PeakSidelobe(0.3), sensing_threshold=0.6)
    bound = PrimalDual(bound_env, "paper", **settings).learn(150)
    assert mean_peak(bound, 200, 9)[0] < 0.8 * mean_peak(free, 200, 9)[0]
    assert bound.multipliers.values["peak-sidelobe"].item() > 0.0


def priced_agent(env: gym.Env[Any, Any], **settings: Any) -> PrimalDual:
    chosen = {"width": 8, "stages": STAGES, "priced_constraint": "peak-sidelobe", **settings}
    return PrimalDual(env, "tuned", **chosen)


@pytest.mark.parametrize("level", [0.3, 0.4])
def test_it_can_be_the_one_with_the_price(level: float) -> None:
    agent = priced_agent(make(PeakSidelobe(level), sensing_threshold=0.5), initial_multiplier=7.0)
    assert agent.priced is agent.system.constraints["peak-sidelobe"]
    assert agent.has_price
    assert agent.multipliers.values["peak-sidelobe"].item() == 7.0
    assert agent.multipliers.values["sensing"].item() == 0.0
    assert agent.multiplier.item() == 7.0
    (multiplier,) = agent.calibrate(256, seed=3)
    assert agent.multiplier.item() == pytest.approx(multiplier)
    assert multiplier > 0.0
    found, _ = mean_peak(agent, 256, (0xCA11B, 3))
    assert found == pytest.approx(level * (1 - 1e-3), rel=2e-3)


def test_a_lower_limit_has_a_higher_price_and_a_loose_one_none() -> None:
    prices = []
    for level in (0.3, 0.4, 2.0):
        agent = priced_agent(make(PeakSidelobe(level), sensing_threshold=0.5))
        prices.append(agent.calibrate(64)[0] / level)
    assert prices[0] > 1.1 * prices[1] > 0.0
    assert prices[2] == 0.0


def test_no_price_keeps_a_limit_below_the_least() -> None:
    agent = priced_agent(make(PeakSidelobe(0.1), sensing_threshold=0.5))
    with pytest.raises(ValueError, match=r"limit of peak-sidelobe must be kept.*0\.1"):
        agent.calibrate(16)


def test_training_with_the_price_on_it_meets_the_limit() -> None:
    env = make(PeakSidelobe(0.35), sensing_threshold=0.5)
    agent = priced_agent(env, batch_size=16, calibration_channels=256).learn(3)
    assert agent.calibrated is not None
    found, loss = mean_peak(agent, 256, (0xCA11B, 0))
    assert found == pytest.approx(0.35 * (1 - 1e-3), rel=2e-3)
    assert abs(loss / 0.5 - 1.0) > 0.05, "it is not the sensing loss that was settled"


def test_a_range_of_snr_with_the_price_on_it() -> None:
    settings = {"snr_range_db": (0.0, 10.0), "threshold_range": (0.3, 0.5)}
    env = make(PeakSidelobe(0.35), sensing_threshold=0.5)
    agent = priced_agent(env, batch_size=8, calibration_channels=0, **settings)
    assert agent.grid is not None
    points = agent.grid.size
    assert agent.multipliers.values["peak-sidelobe"].shape == (points, 1)
    assert agent.grid.covers(env.unwrapped.scenario)  # type: ignore[attr-defined]
    before = agent.multiplier.item()
    agent.learn(2)
    assert agent.multiplier.item() != before


# In files


@pytest.mark.usefixtures("registered")
def test_it_is_saved_and_restored(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    agent = priced_agent(make(PeakSidelobe(0.35), sensing_threshold=0.5))
    agent.calibrate(64)
    agent.save(path)
    with zipfile.ZipFile(path) as archive:
        meta = json.loads(archive.read("agent.json"))
    assert meta["constraints"] == [
        {"name": "power", "arguments": {}},
        {"name": "sensing", "arguments": {}},
        {"name": "peak-sidelobe", "arguments": {"level": 0.35, "guard_deg": 10.0}},
    ]
    loaded = PrimalDual.load(path)
    assert loaded.priced is loaded.system.constraints["peak-sidelobe"]
    assert loaded.system.limits["peak-sidelobe"] == 0.35
    assert [type(each) for each in loaded.system.chosen_constraints] == [PeakSidelobe]
    assert torch.equal(loaded.multiplier, agent.multiplier)
    observation = make().reset(seed=0)[0]
    np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])
    # At another level the price is settled anew.
    other = PrimalDual.load(path, make(PeakSidelobe(0.4), sensing_threshold=0.5))
    assert other.multiplier.item() != agent.multiplier.item()
    assert mean_peak(other, 512, 1)[0] == pytest.approx(0.4, rel=0.02)
    with pytest.raises(ValueError, match=r"agent\.zip: priced_constraint must be one of"):
        PrimalDual.load(path, make(sensing_threshold=0.5))


def test_one_that_is_not_registered_needs_an_environment(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    env = make(Nameless(0.35), sensing_threshold=0.5)
    agent = priced_agent(env, priced_constraint="nameless")
    agent.calibrate(64)
    agent.save(path)
    with pytest.raises(ValueError, match=r"agent\.zip: constraint must be one of .*register it"):
        PrimalDual.load(path)
    loaded = PrimalDual.load(path, env)
    assert torch.equal(loaded.multiplier, agent.multiplier)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("architecture", ["unfolded", "direct"])
@pytest.mark.parametrize(("saved", "met"), [([PeakSidelobe()], []), ([], [PeakSidelobe()])])
def test_an_agent_meets_other_constraints(
    tmp_path: Path, saved: list[Constraint], met: list[Constraint], architecture: str
) -> None:
    """The weights serve; multipliers that mean nothing there are left."""
    path = tmp_path / "agent.zip"
    settings: dict[str, Any] = {"width": 8, "stages": STAGES, "hidden_sizes": (8,)}
    agent = PrimalDual(make(*saved), "tuned", architecture=architecture, **settings)
    agent.save(path)
    loaded = PrimalDual.load(path, make(*met))
    assert list(loaded.system.constraints) == list(ISACSystem(agent.scenario, met).constraints)
    for name, value in agent.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)


def test_checkpoints_of_other_constraints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.zip"
    settings: dict[str, Any] = {"hidden_sizes": (8,), "batch_size": 4, "iterations": 5}

    def interrupt(progress: TrainingProgress) -> None:
        if progress.iteration == 3:
            raise KeyboardInterrupt

    agent = PrimalDual(make(PeakSidelobe(0.1)), "paper", **settings)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(checkpoint=path, checkpoint_every=1, callback=interrupt)
    for other in (make(), make(PeakSidelobe(0.2)), make(PeakSidelobe(0.1, 5.0))):
        with pytest.raises(CheckpointError, match="got one with another constraints"):
            PrimalDual(other, "paper", **settings).learn(checkpoint=path)
    seen: list[int] = []
    PrimalDual(make(PeakSidelobe(0.1)), "paper", **settings).learn(
        checkpoint=path, callback=lambda progress: seen.append(progress.iteration)
    )
    assert seen[0] > 1


@pytest.mark.parametrize("name", ["", "a.b", "a[0]", "a:b", 3, None])
def test_names_that_entries_cannot_have(name: Any) -> None:
    constraint = PeakSidelobe(0.5)
    constraint.name = name  # type: ignore[misc]
    with pytest.raises((TypeError, ValueError), match="name"):
        make(constraint)


def test_a_quantity_of_another_shape_is_named() -> None:
    class Total(PeakSidelobe):
        def quantity(self, outcome: Any, system: Any) -> Any:
            return super().quantity(outcome, system).sum(-1)

    env = make(Total(0.5))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"quantity of constraint 'peak-sidelobe'.*\(1, 1\)"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("name", ["power", "sensing", "scheduling"])
def test_every_constraint_can_be_the_priced_one(name: str) -> None:
    settings = {"scheduling": "contention"} if name == "scheduling" else {}
    env = make(power_limit="cost", **settings)
    agent = PrimalDual(
        env, "tuned", priced_constraint=name, iterations=2, batch_size=4, calibration_channels=32
    )
    agent.learn()
    assert agent.priced is not None
    assert agent.priced.name == name
    assert bool(torch.isfinite(agent.multiplier).all())


def test_a_price_that_cannot_be_settled_does_not_lose_the_training() -> None:
    env = make(PeakSidelobe(1e-3))
    agent = PrimalDual(
        env, priced_constraint="peak-sidelobe", iterations=2, batch_size=4, calibration_channels=16
    )
    before = {name: value.clone() for name, value in agent.network.state_dict().items()}
    with pytest.warns(UserWarning, match="the multiplier of the training is kept"):
        agent.learn()
    assert any((before[k] != v).any() for k, v in agent.network.state_dict().items())
    assert agent.calibrated is None


def test_a_constraint_of_every_environment_leaves_old_files_readable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    PrimalDual(make(), "paper").save(tmp_path / "old.zip")
    monkeypatch.setattr(CONSTRAINTS, "_imported", dict(CONSTRAINTS._imported))

    class Always(PeakSidelobe):
        def __init__(self) -> None:
            super().__init__(0.9)

    register_constraint("always", "part of every environment", is_default=True)(Always)
    loaded = PrimalDual.load(tmp_path / "old.zip")
    assert list(loaded.multipliers.values) == ["power", "sensing", "always"]
    loaded.save(tmp_path / "new.zip")
    assert "always" in PrimalDual.load(tmp_path / "new.zip").system.constraints
