"""PPO with a multiplier for the sensing constraint, in one file, on the batched environment.

    pip install 'isac-gym[tensorboard]'
    python examples/single_file_ppo.py --blocks 500000 --logs runs/ppo
    tensorboard --logdir runs

No library of algorithms is used: to read, to change, and to see how the environment is handled.
What an action earns does not depend on the blocks before, so there is no discount, no bootstrap and
no generalised advantage: an advantage is a reward less what the critic expected.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import typer
from torch import Tensor, nn

import isac_gym  # noqa: F401  (registers the environment)


class Agent(nn.Module):
    """A Gaussian policy and two critics: one of the reward, one of the constraint."""

    def __init__(self, observations: int, actions: int, width: int = 128) -> None:
        super().__init__()

        def make_network(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(observations, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, outputs),
            )

        self.actor, self.critics = make_network(actions), make_network(2)
        with torch.no_grad():  # to begin in the middle of the box
            self.actor[-1].weight *= 0.01

    def forward(self, seen: Tensor, deviation: float) -> torch.distributions.Independent:
        """The distribution of actions."""
        mean = self.actor(seen)
        spread = torch.full_like(mean, deviation)
        return torch.distributions.Independent(torch.distributions.Normal(mean, spread), 1)


def evaluate(agent: Agent, envs: Any, standardise: Any) -> tuple[float, float]:
    """Mean rate and mean excess of the constraint on channels that training never draws."""
    observation, _ = envs.reset(seed=10_007)
    with torch.no_grad():
        action = agent.actor(standardise(observation)).clamp(-1.0, 1.0).numpy()
    _, reward, _, _, info = envs.step(action)
    return float(reward.mean()), float(info["constraint_sensing"].mean())


def main(
    blocks: Annotated[int, typer.Option(help="Blocks to learn from.")] = 500_000,
    num_envs: Annotated[int, typer.Option(help="Environments side by side.")] = 1024,
    steps: Annotated[int, typer.Option(help="Blocks of each between two updates.")] = 8,
    epochs: Annotated[int, typer.Option(help="Passes over a rollout.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Blocks a gradient step.")] = 1024,
    learning_rate: Annotated[float, typer.Option(help="Step size of Adam at first.")] = 1e-3,
    deviation: Annotated[float, typer.Option(help="Of the policy, at first.")] = 0.3,
    final_deviation: Annotated[float, typer.Option(help="Of the policy, at the end.")] = 0.05,
    multiplier_step: Annotated[float, typer.Option(help="Of the multiplier.")] = 20.0,
    clip: Annotated[float, typer.Option(help="Largest rewarded change of a ratio.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of weights, exploration and channels.")] = 0,
    logs: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None,
) -> None:
    """Train, and say what is reached on other channels."""
    torch.manual_seed(seed)
    spaces = {"control": "structured", "observation": "features"}
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=num_envs, **spaces)
    others = gym.make_vec("ISAC-MISO-v0", num_envs=2000, **spaces)
    observation, _ = envs.reset(seed=seed)
    # Features are of order 1; what is common to all is taken away.
    mean, scale = observation.mean(0), observation.std(0) + 1e-6

    def standardise(given: Any) -> Tensor:
        return torch.from_numpy((given - mean) / scale).float()

    size = envs.single_action_space.shape[0]
    agent = Agent(observation.shape[1], size)
    optimiser = torch.optim.Adam(agent.parameters(), lr=learning_rate)
    writer = None
    if logs is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(logs))
    multiplier, begin = 10.0, time.perf_counter()
    updates = max(1, blocks // (num_envs * steps))
    for update in range(updates):
        share = update / updates
        spread = deviation * (final_deviation / deviation) ** share
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1.0 - 0.95 * share)
        # Collect.
        held: dict[str, list[Tensor]] = {"seen": [], "action": [], "log": [], "earned": []}
        for _ in range(steps):
            seen = standardise(observation)
            with torch.no_grad():
                policy = agent(seen, spread)
                action = policy.sample()
                held["log"].append(policy.log_prob(action))
            observation, reward, _, _, info = envs.step(action.clamp(-1.0, 1.0).numpy())
            earned = np.stack([reward, info["constraint_sensing"]], -1)
            held["seen"].append(seen)
            held["action"].append(action)
            held["earned"].append(torch.from_numpy(earned).float())
        rollout = {name: torch.cat(values) for name, values in held.items()}
        # Raise the multiplier by the violation of this rollout, then mix raw advantages.
        rate, excess = rollout["earned"].mean(0).tolist()
        multiplier = max(0.0, multiplier + multiplier_step * excess)
        with torch.no_grad():
            advantages = rollout["earned"] - agent.critics(rollout["seen"])
        mixed = (advantages[:, 0] - multiplier * advantages[:, 1]) / (1.0 + multiplier)
        mixed = (mixed - mixed.mean()) / (mixed.std() + 1e-8)
        # Learn.
        for _ in range(epochs):
            for index in torch.randperm(len(mixed)).split(batch_size):
                policy = agent(rollout["seen"][index], spread)
                ratio = (policy.log_prob(rollout["action"][index]) - rollout["log"][index]).exp()
                gain = mixed[index]
                clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
                actor_loss = -torch.minimum(ratio * gain, clipped * gain).mean()
                errors = agent.critics(rollout["seen"][index]) - rollout["earned"][index]
                # The constraint is a hundred times smaller than the rate.
                critic_loss = errors[:, 0].square().mean() + 100.0 * errors[:, 1].square().mean()
                optimiser.zero_grad()
                (actor_loss + 0.5 * critic_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
                optimiser.step()
        done, spent = (update + 1) * num_envs * steps, time.perf_counter() - begin
        if writer is not None:
            for name, value in {
                "rollout/rate": rate,
                "rollout/constraint_sensing": excess,
                "train/multiplier": multiplier,
                "train/deviation": spread,
            }.items():
                writer.add_scalar(name, value, done)
        if update % max(1, updates // 10) == 0 or update == updates - 1:
            found, violation = evaluate(agent, others, standardise)
            print(
                f"{done:9,d} blocks, {spent:5.0f} s: "
                f"{found:6.3f} bit/s/Hz, L_r/ε - 1 = {violation:+.4f}, λ = {multiplier:5.2f}"
            )
    if writer is not None:
        writer.close()
    assert math.isfinite(rate), "the training has diverged"


if __name__ == "__main__":
    typer.run(main)
