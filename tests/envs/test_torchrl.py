"""Many environments of several stations as one of TorchRL's, beside the ParallelEnv."""

from __future__ import annotations

from typing import Any

import pytest
import torch

torchrl_envs = pytest.importorskip("torchrl.envs")
pytest.importorskip("pettingzoo")

from isac_gym import parallel_env  # noqa: E402
from isac_gym.envs.torchrl import BatchedStations, InfoFromTheStart  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH = 3
SETTINGS: dict[str, Any] = {"control": "structured", "episode_length": LENGTH, "num_users": 2}
CASES: list[dict[str, Any]] = [
    {"observation": "features"},
    {"observation": "channels"},
    {"observation": "features", "message_bits": 2, "reward": "network", "doppler": 0.05},
]


def wrap(**settings: Any) -> Any:
    return torchrl_envs.PettingZooWrapper(InfoFromTheStart(parallel_env(**SETTINGS, **settings)))


@pytest.mark.parametrize("case", CASES)
def test_specs(case: dict[str, Any]) -> None:
    torchrl_envs.check_env_specs(wrap(**case))
    torchrl_envs.check_env_specs(BatchedStations(4, **SETTINGS, **case))


@pytest.mark.parametrize("case", CASES)
def test_one_is_the_parallel_env(case: dict[str, Any]) -> None:
    """Keys and numbers over more than one episode are those of TorchRL's wrapper."""
    single, batched = wrap(**case), BatchedStations(1, **SETTINGS, **case)
    shape = single.action_spec["station", "action"].shape
    actions = torch.rand(2 * LENGTH, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = []
    for env in (single, batched):
        env.set_seed(5)
        state, steps = (env.reset(seed=5) if env is single else env.reset()), []
        for action in actions:
            state["station", "action"] = action.view(env.action_spec["station", "action"].shape)
            done, state = env.step_and_maybe_reset(state)
            steps.append(done.select(("station", "observation"), "next").squeeze())
        found.append(torch.stack(steps))
    first, second = found
    assert set(first.keys(True, True)) == set(second.keys(True, True))
    for key in first.keys(True, True):
        torch.testing.assert_close(
            first[key].squeeze().float(), second[key].squeeze().float(), rtol=1e-5, atol=1e-5
        )
    assert first["next", "done"].flatten().nonzero().flatten().tolist() == [LENGTH - 1, 5]


def test_episodes_of_a_mask_restart() -> None:
    env = BatchedStations(3, message_bits=1, **SETTINGS, observation="features")
    first = env.rollout(1)["next"][:, 0].exclude(("station", "reward"))
    mask = torch.tensor([[True], [False], [False]])
    first["_reset"], first["station", "_reset"] = mask, mask.unsqueeze(1).repeat(1, 3, 1)
    again = env.reset(first.clone())
    same = (again["station", "observation"] == first["station", "observation"]).flatten(1).all(1)
    assert same.tolist() == [False, True, True]
    assert (again["station", "observation"][0, :, -2:] == 0).all()


def test_counts_bits() -> None:
    env = BatchedStations(3, message_bits=2, **SETTINGS)
    env.rollout(LENGTH)
    assert env.exchange.counts.sum() == 3 * LENGTH * 2 * 6


def test_a_single_station() -> None:
    env = BatchedStations(2, **SETTINGS, num_cells=1, target_angles_deg=(0.0,))
    torchrl_envs.check_env_specs(env)
    data = env.rollout(2)["next", "station"]
    rates = data["info", "sum_rate"].clone()
    assert torch.equal(data["reward"].squeeze(-1), rates)
    # A learner may change its rewards without changing what is said of the rates.
    data["reward"] -= 1.0
    assert torch.equal(data["info", "sum_rate"], rates)
    assert float(rates.min()) > 0.0


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="reward"):
        BatchedStations(2, reward="mine", **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_envs"):
        BatchedStations(0, **SETTINGS)
    with pytest.raises(TypeError, match="no_field"):
        BatchedStations(2, no_field=1)
