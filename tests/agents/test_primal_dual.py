"""Primal-dual learning: the paper's settings, convergence, seeds, checkpoints, failures."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL
from small_agents import TOY, Poisoned, make, quick, same

from isac_gym import RayleighChannel
from isac_gym.agents import PRESETS, AgentConfig, NoDual, PrimalDual
from isac_gym.baselines import MRT, EqualPower
from isac_gym.channels.base import Complex
from isac_gym.channels.process import ChannelProcess
from isac_gym.evaluation.comparison import compare
from isac_gym.learning.progress import TrainingProgress

# The paper's settings


def test_preset_paper_is_the_papers() -> None:
    paper = PRESETS["paper"]
    assert paper.iterations == 2000
    assert paper.batch_size == 32
    assert paper.learning_rate == 1e-4
    assert paper.dual_step_size == 1e-4
    assert paper.final_learning_rate is None
    assert paper.gradient_clip is None
    assert not paper.relative_constraints
    assert paper.architecture == "direct"
    assert paper.options == {}, "hidden layers of 2K, 3K, 2K"
    assert paper.priced_constraint is None
    assert paper.dual_rule == "ascent"
    assert paper.initial_multiplier == 0.0
    assert paper.final_dual_step_size is None
    assert paper.warmup_iterations == 0
    assert paper.snr_range_db is None
    assert paper.threshold_range is None


@pytest.mark.parametrize("users", [2, 5])
def test_preset_paper_has_layers_of_2k_3k_2k(users: int) -> None:
    env = make(num_users=users)
    agent = PrimalDual(env, "paper")
    shapes = [tuple(p.shape) for p in agent.network.parameters() if p.ndim == 2]
    inputs, outputs = env.observation_space.shape[0], env.action_space.shape[0]
    sizes = [inputs, 2 * users, 3 * users, 2 * users, outputs]
    assert shapes == [(after, before) for before, after in itertools.pairwise(sizes)]
    for name, parameter in agent.network.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 0.01).all(), name
        else:
            assert parameter.abs().max() <= 2 * parameter.shape[1] ** -0.5 * (1 + 1e-6)


def test_one_iteration_by_hand() -> None:
    """Batch, multiplier and first Adam step, from the seed alone and in double precision."""
    env = make()
    scenario = env.unwrapped.scenario
    agent = quick(env, seed=4, batch_size=6, dual_step_size=0.25)
    before = {name: p.detach().clone() for name, p in agent.network.named_parameters()}
    process = ChannelProcess(RayleighChannel(), scenario, 6)
    process.start(np.random.default_rng(4))
    rates, excess = [], []
    for H in process.channels:
        observation = np.concatenate([H.real.ravel(), H.imag.ravel()])
        action, _ = agent.predict(observation)
        F, R, access = direct_model.decode(scenario, action, H)
        assert R is not None
        paid = direct_model.earned(scenario, H.astype(np.complex128), F, R, access)
        rates.append(paid["sum_rate"])
        excess.append(paid["constraint_sensing"][0] * scenario.sensing_threshold)
    seen: list[TrainingProgress] = []
    agent.learn(1, callback=seen.append)  # type: ignore[arg-type]
    (progress,) = seen
    assert (progress.iteration, progress.iterations) == (1, 1)
    assert progress.sum_rate == pytest.approx(np.mean(rates), rel=1e-4)
    assert progress.constraints["sensing"] == pytest.approx(np.mean(excess) / 0.16, rel=1e-4)
    # The preset's multipliers weigh the plain excess L_r - ε.
    assert np.mean(excess) > 0
    assert agent.multipliers.values["sensing"].item() == pytest.approx(
        0.25 * np.mean(excess), rel=1e-4
    )
    assert agent.multipliers.values["power"].item() == 0.0
    # Adam's first step has the length of the learning rate in every weight with a gradient.
    for name, parameter in agent.network.named_parameters():
        moved = (parameter.detach() - before[name]).abs()
        assert moved.max() <= 1e-3 * 1.001
        assert moved.median() == pytest.approx(1e-3, rel=1e-2) or (moved == 0).float().mean() > 0.2
    assert any((p.detach() != before[n]).any() for n, p in agent.network.named_parameters())


def test_relative_constraints_weigh_excess_over_limit() -> None:
    env = make()
    plain, relative = (quick(env, relative_constraints=flag).learn(1) for flag in (False, True))
    ratio = relative.multipliers.values["sensing"] / plain.multipliers.values["sensing"]
    assert ratio.item() == pytest.approx(1 / 0.16, rel=1e-5)


def test_the_step_size_falls_by_a_cosine() -> None:
    """The first steps are alike, so the second ones differ by the ratio of the step sizes alone."""
    env = make()
    moves = []
    for final in (None, 2e-4):
        agent = quick(env, learning_rate=1e-3, final_learning_rate=final)
        path = [[p.detach().double().clone() for p in agent.network.parameters()]]

        def note(progress: TrainingProgress, agent: Any = agent, path: Any = path) -> None:
            path.append([p.detach().double().clone() for p in agent.network.parameters()])

        agent.learn(4, callback=note)
        moves.append(
            [
                torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)])
                for before, after in itertools.pairwise(path)
            ]
        )
    constant, falling = moves
    np.testing.assert_array_equal(falling[0], constant[0])
    expected = (2e-4 + 8e-4 * (1 + np.cos(np.pi / 4)) / 2) / 1e-3
    ratio = torch.linalg.norm(falling[1]) / torch.linalg.norm(constant[1])
    assert ratio.item() == pytest.approx(expected, rel=1e-3)


# Convergence


def test_learning_meets_the_constraint_and_beats_the_uncoordinated_precoder() -> None:
    env = make()
    settings = {
        "hidden_sizes": (64, 64),
        "batch_size": 64,
        "learning_rate": 3e-3,
        "dual_step_size": 0.3,
        "relative_constraints": True,
    }
    first = quick(env, **settings)
    trained = quick(env, **settings).learn(600)
    table = compare({"first": first, "trained": trained, "mrt": MRT(env)}, env, channels=500)
    assert table["first"].constraints["sensing"].mean > 1.2 * 0.16
    assert table["trained"].constraints["sensing"].mean < 1.02 * 0.16
    assert table["trained"].mean_cost < 0.1 * table["first"].mean_cost
    assert table["trained"].confidence_low > 2 * table["first"].confidence_high
    assert table["trained"].spectral_efficiency > table["mrt"].spectral_efficiency
    # No precoder earns more than every user alone, without any interference.
    bound = np.mean(
        [
            sum(np.log2(1 + 10.0 * np.sum(np.abs(g) ** 2)) for g in H[:, 4:])
            for H in sample(env, 500)
        ]
    )
    assert table["trained"].spectral_efficiency < bound


def sample(env: gym.Env[Any, Any], count: int) -> Complex:
    process = ChannelProcess(env.unwrapped.channel_model, env.unwrapped.scenario, count)
    process.start(np.random.default_rng(7))
    return process.channels[:, 0, 0]


def test_the_power_multiplier_brings_the_power_to_the_budget() -> None:
    env = make(power_limit="cost", radar="fixed", sensing_threshold=0.3)
    step = 0.05
    settings = {
        "hidden_sizes": (64,),
        "batch_size": 64,
        "learning_rate": 3e-3,
        "dual_step_size": step,
        "relative_constraints": True,
    }
    excess: list[float] = []
    agent = quick(env, **settings)
    agent.learn(600, callback=lambda progress: excess.append(progress.constraints["power"]))
    multiplier = agent.multipliers.values["power"].item()
    assert max(excess) > 0.5
    assert abs(np.mean(excess[-100:])) < 0.05
    # Rate grows with power, so the budget binds and has a price.
    assert multiplier > 0.5
    # Projected ascent from zero bounds the summed excess by λ/η.
    assert sum(excess) <= multiplier / step + 1e-3


def test_power_control_comes_close_to_the_best_powers_found_by_search() -> None:
    env = make(control="power", radar="fixed", sensing_threshold=0.3)
    settings = {"hidden_sizes": (64, 64), "batch_size": 64, "architecture": "model_based"}
    agent = quick(env, learning_rate=1e-2, final_learning_rate=1e-4, **settings).learn(300)
    table = compare({"learned": agent, "equal": EqualPower(env)}, env, channels=400)
    scenario = env.unwrapped.scenario
    V = env.unwrapped.system.best_streams()[0].numpy().astype(np.complex128)
    grid = np.linspace(0, 1, 41)
    p, q = (part.ravel() for part in np.meshgrid(grid, grid))
    p, q = p[p + q <= 1 + 1e-9], q[p + q <= 1 + 1e-9]
    best = []
    for H in sample(env, 400).astype(np.complex128):
        f, g = H[:, :4], H[:, 4:]
        noise = scenario.noise_power + np.sum(np.abs(f @ V) ** 2, -1)
        gains = np.abs(g @ direct_model.directions(scenario, g)) ** 2
        first = p * gains[0, 0] / (q * gains[0, 1] + noise[0])
        second = q * gains[1, 1] / (p * gains[1, 0] + noise[1])
        best.append(np.max(np.log2(1 + first) + np.log2(1 + second)))
    optimum = np.mean(best)
    equal, learned = (table[name].spectral_efficiency for name in ("equal", "learned"))
    assert equal < 0.95 * optimum
    assert 0.96 * optimum < learned < 1.002 * optimum


# Settings


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"iterations": 0}, "iterations"),
        ({"iterations": 2.5}, "iterations"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": np.nan}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"learning_rate": None}, "learning_rate"),
        ({"dual_step_size": np.inf}, "dual_step_size"),
        ({"dual_step_size": -0.1}, "dual_step_size"),
        ({"final_learning_rate": -1e-3}, "final_learning_rate"),
        ({"gradient_clip": np.nan}, "gradient_clip"),
        ({"gradient_clip": -1.0}, "gradient_clip"),
        ({"architecture": "magic"}, "architecture"),
        *(
            ({"architecture": architecture, "hidden_sizes": sizes}, "hidden_sizes")
            for architecture in ("direct", "model_based")
            for sizes in ((), (8, 0), (8.5,), (True,), 8, "8")
        ),
        ({"options": 8}, "options"),
        ({"options": {"width": 0}}, "width"),
        ({"architecture": 5}, "architecture"),
        ({"architecture": "small_agents:TOY"}, "architecture"),
        ({"priced_constraint": "magic"}, "priced_constraint"),
        ({"priced_constraint": 5}, "priced_constraint"),
        ({"width": 0}, "width"),
        ({"width": 8.0}, "width"),
        ({"stages": ()}, "stages"),
        ({"stages": ((7.0, 2),)}, "stages"),
        ({"stages": ((6.0, 0),)}, "stages"),
        ({"stages": ((6.0, True),)}, "stages"),
        ({"stages": ((-6.0, 1),)}, "stages"),
        ({"stages": (6.0, 2)}, "stages"),
        ({"stages": 6}, "stages"),
        ({"dual_rule": "magic"}, "dual_rule"),
        ({"dual_gain": -1.0}, "dual_gain"),
        ({"initial_multiplier": np.nan}, "initial_multiplier"),
        ({"final_dual_step_size": np.inf}, "final_dual_step_size"),
        ({"warmup_iterations": -1}, "warmup_iterations"),
        ({"calibration_channels": 1.5}, "calibration_channels"),
        ({"relative_constraints": 1}, "relative_constraints"),
        ({"snr_range_db": (5.0, 1.0)}, "snr_range_db"),
        ({"snr_range_db": 5.0}, "snr_range_db"),
        ({"snr_range_db": (0.0, np.inf)}, "snr_range_db"),
        ({"threshold_range": (0.11, 0.12, 0.13)}, "threshold_range"),
        ({"snr_range_db": (0.0, 5.0), "architecture": "direct"}, "snr_range_db"),
        ({"threshold_range": (0.2, 0.3), "architecture": "model_based"}, "threshold_range"),
        ({"preset": "magic"}, "preset"),
        ({"hidden": (8,)}, "hidden"),
    ],
    ids=lambda value: str(value),
)
def test_bad_settings_are_named(settings: dict[str, Any], name: str) -> None:
    env = make()
    with pytest.raises((TypeError, ValueError), match=name):
        PrimalDual(env, **settings)


@pytest.mark.parametrize("iterations", [0, -1, 2.5, True])
def test_bad_numbers_of_iterations_are_named(iterations: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="iterations"):
        quick(make()).learn(iterations)


def test_settings_are_immutable_and_sequences_become_tuples() -> None:
    config = AgentConfig(
        architecture="unfolded",
        options={"hidden_sizes": [4, 5], "stages": [[6, 2]]},
        snr_range_db=[0, 10],  # type: ignore[arg-type]
        relative_constraints=True,
    )
    assert config.options == {"hidden_sizes": (4, 5), "stages": ((6, 2),)}
    assert config.snr_range_db == (0.0, 10.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.iterations = 3  # type: ignore[misc]


@pytest.mark.parametrize("settings", [{"hidden_sizes": ()}, {"hidden_sizes": 8}])
def test_options_are_checked_by_the_network_that_uses_them(settings: dict[str, Any]) -> None:
    """The unfolded network has no hidden sizes, and the direct one no stages."""
    PrimalDual(make(), "tuned", stages=((15.0, 1),), **settings)
    PrimalDual(make(), "paper", stages=(), width=0)


def test_options_stand_beside_the_settings() -> None:
    """As keyword arguments they are added to the preset's, as a mapping they replace them."""
    added = PrimalDual(make(), "tuned", width=8, batch_size=3).config
    assert added.options == {**PRESETS["tuned"].options, "width": 8}
    assert added.batch_size == 3
    replaced = PrimalDual(make(), "tuned", options={"width": 8}).config
    assert replaced.options == {"width": 8}
    both = PrimalDual(make(), "tuned", options={"width": 8}, stages=((15.0, 1),)).config
    assert both.options == {"width": 8, "stages": ((15.0, 1),)}
    assert PRESETS["tuned"].options == {"hidden_sizes": (256, 256)}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_settings_survive_json(preset: str) -> None:
    config = PRESETS[preset]
    assert AgentConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_only_isac_environments() -> None:
    with pytest.raises(TypeError, match="ISAC-MISO"):
        PrimalDual(gym.make("CartPole-v1"))


# Company


def test_learning_from_a_batched_environment_is_the_same() -> None:
    batched = gym.make_vec("ISAC-MISO-v0", num_envs=3, **TOY)
    assert same(quick(batched).learn(5), quick(make()).learn(5))


def test_custom_channels_are_learned_from() -> None:
    model = Poisoned(at=-1, value=0)
    quick(make(channel_model=model)).learn(5)
    assert model.draws == 5


@pytest.mark.parametrize("control", ["power", "amplitude", "beamforming"])
@pytest.mark.parametrize("scheduling", ["all", "contention"])
@pytest.mark.parametrize("preset", ["paper", "tuned", "model-based"])
def test_every_mode_can_be_learned(control: str, scheduling: str, preset: str) -> None:
    env = gym.make("ISAC-MISO-v0", **SMALL, control=control, scheduling=scheduling, num_cells=2)
    settings: dict[str, Any] = {
        "batch_size": 4,
        "hidden_sizes": (8,),
        "stages": ((6.0, 1),),
        "warmup_iterations": 0,
        "calibration_channels": 0,
    }
    agent = PrimalDual(env, preset, **settings).learn(3)
    expected = {"paper": "direct", "tuned": "unfolded", "model-based": "model_based"}[preset]
    assert agent.architecture == ("direct" if control == "amplitude" else expected)
    assert ("scheduling" in agent.multipliers.values) == (scheduling == "contention")
    assert all(value.shape == (2,) for value in agent.multipliers.values.values())
    observation, _ = env.reset(seed=0)
    assert agent.predict(observation)[0] in env.action_space
    assert not same(agent, PrimalDual(env, preset, **settings))


def test_without_multipliers_the_constraint_has_no_price() -> None:
    env = make()
    agent = NoDual(env, "paper", hidden_sizes=(16,), batch_size=8, dual_step_size=5.0).learn(5)
    assert agent.config.dual_rule == "none"
    assert all(float(value.abs().max()) == 0.0 for value in agent.multipliers.values.values())
    # The same batches, of which the priced one charges the excess from the second step on.
    losses: list[list[float]] = []
    for kind in (NoDual, PrimalDual):
        seen: list[TrainingProgress] = []
        other = kind(env, "paper", hidden_sizes=(16,), batch_size=8, dual_step_size=5.0)
        other.learn(2, callback=seen.append)  # type: ignore[arg-type]
        losses.append([progress.loss for progress in seen])
        if kind is NoDual:
            assert [p.loss for p in seen] == pytest.approx([-p.sum_rate for p in seen], rel=1e-6)
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] < losses[1][1]
