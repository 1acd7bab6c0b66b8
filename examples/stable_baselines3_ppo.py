"""PPO of Stable-Baselines3 with a multiplier for the sensing constraint, beside baselines.

pip install 'isac-gym[rl]'
python examples/stable_baselines3_ppo.py --blocks 500000
"""

from __future__ import annotations

from typing import Annotated

import gymnasium as gym
import typer

from isac_gym.agents.translated import translate_model
from isac_gym.baselines import RZF, WMMSE
from isac_gym.envs.sb3 import make_sb3_env
from isac_gym.evaluation import compare
from isac_gym.rl import PIDMultiplier, PPOLagrangian
from isac_gym.rl.equivariant import UserPolicy, make_policy_kwargs


def main(
    blocks: Annotated[int, typer.Option(help="Blocks to learn from.")] = 500_000,
    num_envs: Annotated[int, typer.Option(help="Environments side by side.")] = 1024,
    channels: Annotated[int, typer.Option(help="Channels of the comparison.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of weights, exploration and channels.")] = 0,
) -> None:
    """Train, then compare on channels that training never draws."""
    envs = make_sb3_env(num_envs, control="structured", observation="features", bootstraps=False)
    model = PPOLagrangian(
        UserPolicy,
        envs,
        constraints=("constraint_sensing",),
        multiplier=PIDMultiplier(step_size=15.0, initial=15.0, gain=150.0),
        gamma=0.0,
        n_steps=8,
        batch_size=2 * num_envs,
        n_epochs=5,
        learning_rate=1e-3,
        policy_kwargs={"log_std_init": -2.0, **make_policy_kwargs(envs.envs, width=48)},
        seed=seed,
        device="cpu",
    )
    model.learn(blocks)
    # The model acts by a few numbers a user; here it is compared where actions are precoders.
    env = gym.make("ISAC-MISO-v0")
    agents = {"ppo-lagrangian": translate_model(model, env), "rzf": RZF(env), "wmmse": WMMSE(env)}
    print(compare(agents, env, channels=channels, seed=7))


if __name__ == "__main__":
    typer.run(main)
