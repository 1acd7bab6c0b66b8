"""A reference decides for a channel alike by itself and in any batch, to the last digits."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL
from small_network import NETWORK

from isac_gym.evaluation import evaluation_set
from isac_gym.physics.sensing.compiled import CompiledPairs
from isac_gym.registry import AGENTS, make_agent

REFERENCES = [name for name, entry in AGENTS.entries().items() if entry.is_reference]
STEEP = {"snr_db": 30.0, "sensing_threshold": 0.16}
"""Little noise, and a threshold that binds: searches make most of how products are rounded."""
QUICK: dict[str, dict[str, Any]] = {
    "distributed-wmmse": {"rounds": 1},
    "interference-pricing": {"rounds": 1},
    "joint": {"num_starts": 3, "max_iterations": 120},
    "joint-expected": {"num_starts": 3, "price": 2.0},
    "joint-leakage": {"num_starts": 2, "leakage_price": 1.0, "interference": 0.1},
    "joint-network": {"num_starts": 3, "refined": 2, "max_iterations": 60},
    "joint-network-expected": {"num_starts": 3, "refined": 2, "price": 2.0, "max_iterations": 60},
    "structured-expected": {"num_starts": 3, "price": 2.0},
}
"""Options that make references quicker, and spare them the search for a price."""


@pytest.mark.parametrize("name", REFERENCES)
def test_single_observations_and_batches_agree(name: str) -> None:
    one_cell = gym.make("ISAC-MISO-v0", **{**SMALL, **STEEP})
    fits = AGENTS.find(name).suits(one_cell.unwrapped.scenario)
    env = one_cell if fits else gym.make("ISAC-MISO-v0", **{**NETWORK, **STEEP})
    system, model = env.unwrapped.system, env.unwrapped.channel_model
    if not CompiledPairs.supports(system.sensing.grid_deg):
        pytest.skip("without Numba the magnitudes of pairs are rounded by batch")
    channels = evaluation_set(system.scenario, model, 5, 7).channels[:, 0]
    observations = system.codec.observation(channels)

    def judge(actions: Any, chosen: Any) -> Any:
        held = torch.from_numpy(channels[chosen])
        outcome = system.transmit(held, torch.from_numpy(actions), held)
        losses = outcome.sensing.total.reshape(len(held), -1)
        return np.column_stack([outcome.sum_rate.cpu(), losses.cpu()])

    def make() -> Any:
        return make_agent(name, env, **QUICK.get(name, {}))

    batch = make().predict(observations, deterministic=True)[0]
    if name.startswith("random"):  # its draws go on from call to call
        chosen, agent = [0], make()
    else:
        chosen, agent = [3, 4], make()
    single = np.stack([agent.predict(observations[i], deterministic=True)[0] for i in chosen])
    np.testing.assert_allclose(judge(single, chosen), judge(batch[chosen], chosen), rtol=1e-4)
