"""The best three numbers a user: against a global search, theory, the joint optimum and ε."""

from __future__ import annotations

from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import pytest
import reference
import scipy.optimize
import torch
from direct_model import SMALL

from isac_gym.baselines import WMMSE, JointOracle, StructuredSearch
from isac_gym.system.downlink import find_system

TINY: dict[str, Any] = {**SMALL, "num_users": 2}


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, "control": "structured", **changes})


def drawn(env: gym.Env[Any, Any], count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    shape = find_system(env).codec.deployment.shape
    return torch.from_numpy(reference.complex_normal(rng, count, *shape).astype(np.complex64))


def earned(env: gym.Env[Any, Any], action: Any, channels: Any) -> tuple[float, float]:
    """Spectral efficiency and L_r of one action, by the direct model in double precision."""
    scenario = env.unwrapped.scenario
    given = np.asarray(channels, np.complex128)
    F, R, access = direct_model.decode(scenario, action, given)
    if R is None:
        R = np.array([b @ b.conj().T for b in find_system(env).best_streams().numpy()])
    found = direct_model.earned(scenario, given, F, R, access)
    loss = found["beampattern_error"] + found["cross_correlation"]
    return float(found["sum_rate"]), float(loss.sum())


def acted(env: gym.Env[Any, Any], agent: Any, channels: torch.Tensor) -> Any:
    observation = find_system(env).codec.observation(channels.numpy())
    actions, _ = agent.predict(observation, deterministic=True)
    pairs = zip(actions, channels.numpy(), strict=True)
    return np.array([earned(env, action, each) for action, each in pairs])


@pytest.mark.parametrize("price", [0.0, 8.0])
def test_no_global_search_finds_better_numbers(price: float) -> None:
    env = make(**TINY)
    agent, channels = StructuredSearch(env, price=price), drawn(env, 3)
    limit = agent.scenario.sensing_threshold
    for each, (rate, loss) in zip(channels.numpy(), acted(env, agent, channels), strict=True):

        def evaluate(numbers: Any, H: Any = each) -> float:
            rate, loss = earned(env, numbers, H)
            return price * (loss / limit - 1.0) - rate

        found = scipy.optimize.differential_evolution(
            evaluate, [(-1.0, 1.0)] * 6, popsize=8, maxiter=60, polish=True, rng=0
        )
        assert rate - price * (loss / limit - 1.0) >= -found.fun - 2e-3


def test_with_a_fixed_radar_the_structure_holds_an_optimum_of_all_precoders() -> None:
    structured, free = make(radar="fixed"), make(radar="fixed", control="beamforming")
    channels = drawn(structured, 16)
    agent = StructuredSearch(structured)
    assert agent.price == (0.0,)
    rates = acted(structured, agent, channels)[:, 0]
    others = acted(free, WMMSE(free), channels)[:, 0]
    assert (rates >= others * (1.0 - 2e-3)).all()


def test_the_mean_of_the_sensing_loss_is_the_threshold() -> None:
    env = make(sensing_threshold=0.16)
    channels = drawn(env, 48)
    price = StructuredSearch(env, num_starts=4).find_price(channels)
    agent = StructuredSearch(env, num_starts=4, price=price)
    assert agent.price[0] > 0.0
    mean = acted(env, agent, channels)[:, 1].mean()
    # It jumps where a channel's best is another local optimum.
    assert 0.16 * (1.0 - 1e-2) <= mean <= 0.16 * (1.0 + 1e-4)


def test_the_joint_optimum_is_at_least_as_good_at_the_same_price() -> None:
    free = make(control="beamforming", sensing_threshold=0.16)
    channels, price = drawn(free, 16), 10.0
    values = []
    for kind, options in ((StructuredSearch, {}), (JointOracle, {"constraint": "expected"})):
        agent = kind(free, price=price, **options)
        rates, losses = acted(free, agent, channels).T
        values.append(rates - price * (losses / 0.16 - 1.0))
    assert values[0].mean() < values[1].mean()
    assert (values[0] <= values[1] + 0.05).all()


def test_more_starts_elsewhere_find_hardly_more() -> None:
    env = make()
    channels = drawn(env, 16)
    limit = SMALL["sensing_threshold"]
    values = []
    for options in ({}, {"num_starts": 16, "seed": 1}):
        agent = StructuredSearch(env, price=5.0, **options)
        rates, losses = acted(env, agent, channels).T
        values.append(rates - 5.0 * (losses / limit - 1.0))
    few, many = values
    assert few.mean() >= many.mean() - 0.02


def test_stations_decide_as_if_they_were_alone_at_prices_of_their_own() -> None:
    targets = ((-50.0, 10.0), (30.0,))
    env = make(num_cells=2, target_angles_deg=targets)
    channels, system = drawn(env, 3), find_system(env)
    found = StructuredSearch(env, num_starts=4).find_price(channels)
    agent = StructuredSearch(env, price=found)
    together, _ = agent.predict(system.codec.observation(channels.numpy()))
    parts = together.reshape(3, 2, -1)
    for station in range(2):
        alone = make(target_angles_deg=targets[station])
        own = channels[:, station, station, None, None]
        single = StructuredSearch(alone, num_starts=4)
        assert single.find_price(own) == (found[station],)
        numbers, _ = StructuredSearch(alone, price=found[station]).predict(
            find_system(alone).codec.observation(own.numpy())
        )
        np.testing.assert_array_equal(parts[:, station], numbers)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"control": "power"}, {}, "control"),
        ({"observation": "features"}, {}, "observation"),
        ({"control": "beamforming", "scheduling": "contention"}, {}, "scheduling"),
        ({}, {"price": -1.0}, "price"),
        ({}, {"price": (1.0, 1.0)}, "price"),
        ({}, {"num_starts": 0}, "num_starts"),
        ({}, {"iterations": 0}, "iterations"),
        ({}, {"calibration_channels": 0}, "calibration_channels"),
    ],
)
def test_what_it_is_not_for_is_refused(
    changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    env = make(**changes)
    with pytest.raises(ValueError, match=message):
        StructuredSearch(env, **options)


def test_a_price_for_each_station_is_asked_for() -> None:
    env = make(num_cells=2, target_angles_deg=((-50.0, 10.0), (30.0,)))
    with pytest.raises(ValueError, match=r"price must be .* 2 of them"):
        StructuredSearch(env).solve(drawn(env, 1), (1.0,))
