"""Networks: the paper's initialisation, and formulas that the model-based policy must keep."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import reference
import torch
from direct_model import SMALL
from scipy import stats

from isac_gym.agents.networks.direct import DirectNetwork, FullyConnected
from isac_gym.agents.networks.model_based import ModelBasedNetwork
from isac_gym.policy import find_system


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_initial_weights_are_a_truncated_normal() -> None:
    network = FullyConnected(400, [300], 200, generator())
    for layer, inputs in zip(network.layers, (400, 300), strict=True):
        scaled = layer.weight.detach().numpy().ravel() * np.sqrt(inputs)
        assert np.abs(scaled).max() <= 2.0 + 1e-5
        # Uncut tails would reach beyond ±2 in 4.6 % of the cases; cut ones come close to it.
        assert np.abs(scaled).max() > 1.98
        assert stats.kstest(scaled, stats.truncnorm(-2, 2).cdf).pvalue > 0.01
        np.testing.assert_array_equal(layer.bias.detach(), np.full(len(layer.bias), 0.01, "f4"))


def test_fully_connected_is_relu_between_affine_maps() -> None:
    network = FullyConnected(5, [7, 6], 3, generator(1))
    inputs = np.random.default_rng(0).normal(size=(4, 5))
    weights = [layer.weight.detach().double().numpy() for layer in network.layers]
    hidden = np.maximum(inputs @ weights[0].T + 0.01, 0)
    hidden = np.maximum(hidden @ weights[1].T + 0.01, 0)
    expected = hidden @ weights[2].T + 0.01
    found = network(torch.tensor(inputs, dtype=torch.float32)).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (expected < 0).any()


def test_initial_weights_come_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    first = FullyConnected(5, [7], 3, generator(1))
    torch.manual_seed(1)
    second = FullyConnected(5, [7], 3, generator(1))
    other = FullyConnected(5, [7], 3, generator(2))
    assert torch.equal(first.layers[0].weight, second.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_direct_policy_passes_the_outputs_through_tanh() -> None:
    system = find_system(make())
    policy = DirectNetwork(system, generator(), (6, 9, 6))
    observation = torch.randn(3, system.codec.observation_size, generator=generator(5))
    np.testing.assert_allclose(
        policy(observation).detach(), np.tanh(policy.body(observation).detach().numpy()), rtol=1e-5
    )


@pytest.mark.parametrize("control", ["power", "beamforming"])
@pytest.mark.parametrize("radar", ["learned", "fixed"])
@pytest.mark.parametrize("scheduling", ["all", "contention"])
@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_model_based_policy_is_valid_whatever_its_weights(
    control: str, radar: str, scheduling: str, cells: int, scale: float
) -> None:
    env = make(
        control=control, radar=radar, scheduling=scheduling, num_cells=cells, power_limit="cost"
    )
    system = find_system(env)
    policy = ModelBasedNetwork(system, generator(), (8,))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(scale)
    observations = np.stack([env.reset(seed=seed)[0] for seed in range(8)])
    actions = policy(torch.from_numpy(observations))
    assert actions.abs().max() <= 1.0
    actions.sum().backward()
    gradients = [parameter.grad for parameter in policy.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    for seed, action in enumerate(actions.detach().numpy()):
        env.reset(seed=seed)
        info = env.step(action)[4]
        power = np.atleast_1d(info["comm_power"])
        assert (power <= 1.0 + 1e-5).all()
        if scheduling == "all":
            np.testing.assert_allclose(power, 1.0, rtol=1e-4)


def test_model_based_beams_have_the_structure_of_the_optimum() -> None:
    """F_k is a combination of the users' conjugate channels: no power is sent beside them."""
    env = make(num_users=2)
    system = find_system(env)
    policy = ModelBasedNetwork(system, generator(), (8,))
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        action = policy(torch.from_numpy(observation)[None])[0].detach().numpy()
        F, _ = env.unwrapped.decode_action(action)
        g = env.unwrapped.channels[:, 4:].astype(np.complex128)
        beside = (np.eye(5) - np.linalg.pinv(g) @ g) @ F
        assert np.abs(beside).max() < 1e-4 * np.abs(F).max()


def test_model_based_policy_of_one_user_is_maximum_ratio() -> None:
    env = make(num_users=1)
    policy = ModelBasedNetwork(find_system(env), generator(), (8,))
    observation, _ = env.reset(seed=0)
    action = policy(torch.from_numpy(observation)[None])[0].detach().numpy()
    F, _ = env.unwrapped.decode_action(action)
    g = env.unwrapped.channels[0, 4:]
    assert abs(g @ F[:, 0]) == pytest.approx(np.linalg.norm(g), rel=1e-4)


def test_avoiding_users_trades_sensing_for_less_radar_interference() -> None:
    env = make()
    system = find_system(env)
    policy = ModelBasedNetwork(system, generator(), (8,))
    last = policy.body.layers[-1]
    row = policy.names.index("avoidance") * 3
    losses, received = [], []
    for shift in (-8.0, 0.0, 8.0):
        with torch.no_grad():
            last.bias[row : row + 3] = shift
        loss, power = [], []
        for seed in range(6):
            observation, _ = env.reset(seed=seed)
            action = policy(torch.from_numpy(observation)[None])[0].detach().numpy()
            _, R = env.unwrapped.decode_action(action)
            f = env.unwrapped.channels[:, :4]
            power.append(np.einsum("km,mn,kn->", f, R, f.conj()).real)
            info = env.step(action)[4]
            loss.append(info["beampattern_error"] + info["cross_correlation"])
        losses.append(np.mean(loss))
        received.append(np.mean(power))
    assert losses[0] < losses[1] < losses[2]
    assert received[0] > received[1] > received[2]
    V = system.best_streams()[0].numpy()
    floor = sum(reference.sensing_loss(V @ V.conj().T, 0.5, (-50.0, 10.0)))
    assert losses[0] == pytest.approx(floor, rel=1e-2)


@pytest.mark.parametrize("scale", [-100.0, 1.0, 100.0])
def test_exactly_one_user_of_a_cell_is_active_under_contention(scale: float) -> None:
    env = make(control="power", radar="fixed", scheduling="contention", num_cells=2)
    policy = ModelBasedNetwork(find_system(env), generator(), (8,))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(scale)
    observation = torch.from_numpy(env.reset(seed=0)[0])[None]
    users = env.unwrapped.scenario.num_users
    access = policy(observation).view(1, 2, 2, users)[:, :, 1]
    np.testing.assert_array_equal((access > 0).sum(-1), [[1, 1]])
