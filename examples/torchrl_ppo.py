"""PPO of TorchRL on the batched environment, with a penalised reward.

pip install 'isac-gym[torchrl]'
python examples/torchrl_ppo.py --blocks 300000
"""

from __future__ import annotations

from typing import Annotated, Any

import gymnasium as gym
import torch
import typer
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import nn
from torchrl.envs import GymWrapper
from torchrl.envs.utils import ExplorationType
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss

import isac_gym  # noqa: F401  (registers the environment)
from isac_gym.envs.wrappers.vector import PenalisedReward


def make_network(outputs: int) -> nn.Sequential:
    """A fully connected network whose number of inputs follows from what it first sees."""
    return nn.Sequential(
        nn.LazyLinear(128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, outputs)
    )


def main(
    blocks: Annotated[int, typer.Option(help="Blocks to learn from.")] = 300_000,
    num_envs: Annotated[int, typer.Option(help="Environments side by side.")] = 1024,
    steps: Annotated[int, typer.Option(help="Blocks of each between two updates.")] = 8,
    epochs: Annotated[int, typer.Option(help="Passes over a rollout.")] = 8,
    penalty: Annotated[float, typer.Option(help="Weight of the costs in the reward.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of weights and exploration.")] = 0,
) -> None:
    """Train, and say what the rollouts reach."""
    torch.manual_seed(seed)

    def penalise(envs: Any) -> Any:
        return PenalisedReward(envs, penalty)

    envs = gym.make_vec(
        "ISAC-MISO-v0",
        num_envs=num_envs,
        control="structured",
        observation="features",
        vector_wrappers=[penalise],
        autoreset_mode="Disabled",  # TorchRL restarts episodes itself
    )
    env = GymWrapper(envs)
    size = env.action_spec.shape[-1]
    parameters = nn.Sequential(make_network(2 * size), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(parameters, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        default_interaction_type=ExplorationType.RANDOM,
        return_log_prob=True,
    )
    critic = ValueOperator(make_network(1), in_keys=["observation"])
    first = env.reset()
    actor(first.clone())
    critic(first.clone())
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.0, normalize_advantage=True)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-3)
    updates = max(1, blocks // (num_envs * steps))
    for update in range(updates):
        with torch.no_grad():
            rollout = env.rollout(steps, actor, break_when_any_done=False).flatten()
            # A bandit: what a block earns is its return, and nothing comes after.
            reward = rollout["next", "reward"]
            rollout["value_target"] = reward
            rollout["advantage"] = reward - critic(rollout.clone())["state_value"]
        for _ in range(epochs):
            for index in torch.randperm(len(rollout)).split(num_envs):
                found = loss(rollout[index])
                optimiser.zero_grad()
                (found["loss_objective"] + found["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimiser.step()
        if update % max(1, updates // 10) == 0 or update == updates - 1:
            done = (update + 1) * num_envs * steps
            print(f"{done:9,d} blocks: penalised reward {float(reward.mean()):.3f} bit/s/Hz")


if __name__ == "__main__":
    typer.run(main)
