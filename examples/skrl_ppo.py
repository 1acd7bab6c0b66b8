"""PPO of skrl on the batched environment, with a penalised reward, then its evaluation.

pip install 'isac-gym[skrl]'
python examples/skrl_ppo.py --blocks 300000
"""

from __future__ import annotations

from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import typer
from skrl.agents.torch.ppo import PPO
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn

import isac_gym  # noqa: F401  (registers the environment)
from isac_gym.envs.wrappers.vector import PenalisedReward
from isac_gym.evaluation import compare

SPACES = {"control": "structured", "observation": "features"}


def make_network(inputs: int, outputs: int) -> nn.Sequential:
    """A fully connected network."""
    return nn.Sequential(
        nn.Linear(inputs, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, outputs)
    )


class Actor(GaussianMixin, Model):
    """A Gaussian policy whose deviation is learned, the same for all observations."""

    def __init__(self, env: Any) -> None:
        Model.__init__(
            self,
            observation_space=env.observation_space,
            action_space=env.action_space,
            device=env.device,
        )
        GaussianMixin.__init__(self, clip_actions=True)
        self.network = make_network(self.num_observations, self.num_actions)
        # Small, because numbers that are far from the mean say little of it.
        self.log_std = nn.Parameter(torch.full((self.num_actions,), -1.5))

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """The mean action and the logarithm of the deviation."""
        return self.network(inputs["observations"]), {"log_std": self.log_std}


class Critic(DeterministicMixin, Model):
    """The expected reward of an observation."""

    def __init__(self, env: Any) -> None:
        Model.__init__(
            self,
            observation_space=env.observation_space,
            action_space=env.action_space,
            device=env.device,
        )
        DeterministicMixin.__init__(self)
        self.network = make_network(self.num_observations, 1)

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """The value."""
        return self.network(inputs["observations"]), {}


class Trained:
    """The actor's mean as a policy that isac-gym evaluates."""

    def __init__(self, actor: Actor, channels_seen: int) -> None:
        self.actor, self.channels_seen = actor, channels_seen

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Actions for observations (N,) or (n, N)."""
        given = torch.as_tensor(np.asarray(observation), device=self.actor.device)
        with torch.no_grad():
            mean, _ = self.actor.compute({"observations": given}, "policy")
        return mean.clamp(-1.0, 1.0).cpu().numpy(), state


def main(
    blocks: Annotated[int, typer.Option(help="Blocks to learn from.")] = 300_000,
    num_envs: Annotated[int, typer.Option(help="Environments side by side.")] = 1024,
    steps: Annotated[int, typer.Option(help="Blocks of each between two updates.")] = 8,
    epochs: Annotated[int, typer.Option(help="Passes over a rollout.")] = 8,
    penalty: Annotated[float, typer.Option(help="Weight of the costs in the reward.")] = 30.0,
    channels: Annotated[int, typer.Option(help="Channels of the evaluation.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of weights, exploration and channels.")] = 0,
) -> None:
    """Train, and evaluate on channels that the training has not seen."""
    set_seed(seed)

    def penalise(envs: Any) -> Any:
        return PenalisedReward(envs, penalty)

    envs = gym.make_vec("ISAC-MISO-v0", num_envs=num_envs, vector_wrappers=[penalise], **SPACES)
    env = wrap_env(envs, wrapper="gymnasium")
    memory = RandomMemory(memory_size=steps, num_envs=num_envs, device=env.device)
    actor = Actor(env)
    agent = PPO(
        models={"policy": actor, "value": Critic(env)},
        memory=memory,
        observation_space=env.observation_space,
        action_space=env.action_space,
        device=env.device,
        cfg={
            "rollouts": steps,
            "learning_epochs": epochs,
            "mini_batches": steps,
            # A bandit: what a block earns is its return, and nothing comes after.
            "discount_factor": 0.0,
            "gae_lambda": 0.0,
            "learning_rate": 1e-3,
            "value_loss_scale": 0.5,
            "value_clip": 0.0,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        },
    )
    rounds = max(1, blocks // (num_envs * steps)) * steps
    settings = {"timesteps": rounds, "headless": True, "disable_progressbar": None}
    SequentialTrainer(cfg=settings, env=env, agents=agent).train()

    table = compare(
        {"ppo of skrl": Trained(actor, rounds * num_envs)},
        gym.make("ISAC-MISO-v0", **SPACES),
        channels=channels,
    )
    print(table)


if __name__ == "__main__":
    typer.run(main)
