"""A training that was killed goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from simple_bandits import Bandit
from stable_baselines3.common.callbacks import BaseCallback

from isac_gym.agents.loading import load_agent
from isac_gym.learning.checkpoint import CheckpointError
from isac_gym.rl import PIDMultiplier, PPOLagrangian, SACLagrangian

TOTAL = 8 * 64


class KillAt(BaseCallback):
    """Kills the process in the middle of a rollout."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.timesteps:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


class StopAt(KillAt):
    def _on_step(self) -> bool:
        return self.num_timesteps < self.timesteps


def make(kind: str, **settings: Any) -> Any:
    env = Bandit(16, [-0.5, 0.55], arrays=True, contexts=[-1.0, 1.0], truncated=True)
    given: dict[str, Any] = {"multiplier": PIDMultiplier(0.2, initial=0.1), "seed": 3}
    given |= {"reseed_rollouts": True, "device": "cpu", "gamma": 0.5}
    given["learning_rate"] = halve
    given |= {"policy_kwargs": {"net_arch": [8]}}
    if kind == "ppo":
        given |= {"n_steps": 4, "batch_size": 32, "n_epochs": 2}
    else:
        given |= {"train_freq": 4, "gradient_steps": 3, "learning_starts": 100}
        given |= {"buffer_size": 200, "batch_size": 16, "multiplier_interval": 100}
    names = ["constraint_0", "constraint_1"]
    return {"ppo": PPOLagrangian, "sac": SACLagrangian}[kind](
        "MlpPolicy", env, names, **{**given, **settings}
    )


def halve(remaining: float) -> float:
    return 0.01 * (1.0 + remaining)


def compare(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch; torch.set_num_threads(1)
from test_lagrangian import TOTAL, KillAt, make
make(sys.argv[4]).learn(TOTAL, KillAt(5 * 64 + 40), log_interval=None, checkpoint=sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "training.zip"
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(here.parent), str(here), str(path), kind],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [each.name for each in tmp_path.glob("[!.]*")] == [path.name]

    np.random.seed(1234)  # noqa: NPY002
    torch.manual_seed(1234)
    resumed = make(kind)
    started: list[int] = []

    def note(held: dict[str, Any], _: Any) -> bool:
        started.append(held["self"].num_timesteps)
        return True

    resumed.learn(TOTAL, note, log_interval=10**9, checkpoint=path)
    assert started[0] == 5 * 64 + 16
    straight = make(kind)
    straight.learn(TOTAL, log_interval=10**9)
    assert straight.num_timesteps == resumed.num_timesteps == TOTAL
    compare(resumed.get_state(), straight.get_state())
    assert straight.multipliers["constraint_0"].value > 0.0
    before = make(kind).get_state()[1]
    assert any(not torch.equal(before[n], resumed.get_state()[1][n]) for n in before)

    # A training that has ended is not done again.
    again = make(kind)
    again.learn(TOTAL, StopAt(0), log_interval=10**9, checkpoint=path)
    assert again.num_timesteps == TOTAL


@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_a_state_is_plain_and_without_ties(kind: str) -> None:
    agent = make(kind)
    agent.learn(4 * 64, log_interval=10**9)
    meta, tensors = agent.get_state()
    meta = json.loads(json.dumps(meta))
    copies = {name: value.clone() for name, value in tensors.items()}
    agent.learn(4 * 64, reset_num_timesteps=False, log_interval=10**9)
    assert all(torch.equal(tensors[name], value) for name, value in copies.items())
    expected = agent.get_state()

    other = make(kind)
    other.set_state(meta, tensors)
    other.learn(4 * 64, reset_num_timesteps=False, log_interval=10**9)
    compare(other.get_state(), expected)


def test_rollouts_are_drawn_from_the_seed_and_their_number() -> None:
    rollouts = []
    for seed in (3, 3, 4):
        agent = make("ppo", seed=seed, learning_rate=1e-9)
        seeds: list[int] = []
        agent.env.seed = seeds.append
        agent.learn(4 * 64, log_interval=None)
        rollouts.append(seeds)
    assert rollouts[0] == rollouts[1]
    assert len({*rollouts[0], *rollouts[2]}) == 8


def test_a_stop_in_a_rollout_keeps_the_checkpoint_before_it(tmp_path: Path) -> None:
    path = tmp_path / "training.zip"
    agent = make("ppo")
    agent.learn(TOTAL, StopAt(2 * 64 + 20), log_interval=None, checkpoint=path)
    agent = make("ppo")
    agent.learn(TOTAL, log_interval=None, checkpoint=path)
    straight = make("ppo")
    straight.learn(TOTAL, log_interval=None)
    compare(agent.get_state(), straight.get_state())


def test_a_checkpoint_serves_environments_that_go_on_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "training.zip"
    make("sac", reseed_rollouts=False).learn(256, log_interval=10**9, checkpoint=path)
    agent = make("sac", reseed_rollouts=False)
    agent.learn(512, log_interval=10**9, checkpoint=path)
    assert (agent.num_timesteps, agent._num_rollouts) == (512, 8)


def test_checkpoints_are_as_far_apart_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make("ppo")
    written: list[int] = []
    monkeypatch.setattr(agent, "_write_checkpoint", lambda _: written.append(agent.num_timesteps))
    agent.learn(
        8 * 64, log_interval=None, checkpoint=tmp_path / "training.zip", checkpoint_interval=3
    )
    assert written == [3 * 64, 6 * 64, 8 * 64]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.zip"
    make("ppo").learn(64, log_interval=None, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"training\.zip: .*another seed, gamma; delete it"):
        make("ppo", seed=4, gamma=0.0).learn(128, checkpoint=path)
    with pytest.raises(CheckpointError, match="got one with another multipliers;"):
        make("ppo", multiplier=PIDMultiplier(0.3, initial=0.1)).learn(128, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"policy_net\.0\.weight must be .* of shape"):
        make("ppo", policy_kwargs={"net_arch": [4]}).learn(128, checkpoint=path)
    with pytest.raises(ValueError, match="not a saved agent, but the checkpoint of a training"):
        load_agent(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a saved isac-gym agent, or damaged"):
        make("ppo").learn(128, checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint_interval must be an integer >= 1, got 0"):
        make("ppo").learn(128, checkpoint_interval=0)
