"""Models of Stable-Baselines3 for a contextual bandit: what is the same for all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn

from isac_gym.rl.equivariant import UserPolicy, make_policy_kwargs
from isac_gym.rl.multipliers import PIDMultiplier
from isac_gym.rl.ppo import PPOLagrangian
from isac_gym.rl.sac import SACLagrangian
from isac_gym.system.downlink import find_system
from isac_gym.validation import check_integer, check_real, not_allowed

__all__ = ["ALGORITHMS", "ReinforcementSettings", "make_model"]


ALGORITHMS: Final = ("ppo", "sac", "td3", "tqc", "ppo-lagrangian", "sac-lagrangian")


@dataclasses.dataclass(frozen=True)
class ReinforcementSettings:
    """Settings of an agent of reinforcement learning.

    An episode is a sequence of blocks with channels of their own, so that what is done in one block
    changes nothing in the next: a contextual bandit. Hence γ = 0, which is no setting.

    Attributes:
        timesteps: Blocks to learn from, over all environments; each is a channel that is seen once.
        num_envs: Environments side by side.
        learning_rate: Step size of Adam to begin with.
        final_learning_rate: Step size at the end, reached linearly.
        batch_size: Blocks a gradient step, a divisor of ``num_envs·rollout_length``.
        rollout_length: Blocks of every environment between two updates; on-policy algorithms.
        epochs: Passes over these blocks; on-policy algorithms.
        clip_range: Largest change of a probability ratio that is rewarded; on-policy algorithms.
        deviation: Standard deviation of the policy's numbers, which lie in [-1, 1], to begin with;
            on-policy algorithms. That of the noise of ``"td3"``.
        final_deviation: The same at the end. It falls with the logarithm's straight line, so that
            what was learned with noise holds for the policy without.
        gradient_steps: Gradient steps after each step of the environments; others.
        policy: ``"users"``: the same network for every user
            (:mod:`isac_gym.rl.equivariant`), where observations are features and the algorithm is
            on-policy; ``"mlp"``: fully connected.
        width: Width of its layers.
        multiplier_step: Step size of the multipliers after a rollout, in bit/s/Hz; Lagrangian
            algorithms.
        multiplier_gain: Their proportional gain κ, in bit/s/Hz.
        initial_multiplier: Multiplier of the sensing constraint to begin with, in bit/s/Hz.
        penalty: Weight of the costs in the reward of algorithms that know no constraints; None
            takes the calibrated price of the scenario
            (:func:`~isac_gym.envs.wrappers.penalty.find_penalty_weight`).
        checkpoint_interval: Rollouts from one checkpoint to the next.

    Raises:
        ValueError: If a value is not allowed.
    """

    timesteps: int = 1_000_000
    num_envs: int = 1024
    learning_rate: float = 2e-3
    final_learning_rate: float = 2e-4
    batch_size: int = 2048
    rollout_length: int = 8
    epochs: int = 5
    clip_range: float = 0.2
    deviation: float = 0.25
    final_deviation: float = 0.06
    gradient_steps: int = 8
    policy: str = "users"
    width: int = 48
    multiplier_step: float = 15.0
    multiplier_gain: float = 150.0
    initial_multiplier: float = 15.0
    penalty: float | None = None
    checkpoint_interval: int = 10

    def __post_init__(self) -> None:
        for name in (
            "timesteps",
            "num_envs",
            "batch_size",
            "rollout_length",
            "epochs",
            "gradient_steps",
            "width",
            "checkpoint_interval",
        ):
            check_integer(name, getattr(self, name), 2 if name == "batch_size" else 1)
        for name in (
            "learning_rate",
            "final_learning_rate",
            "clip_range",
            "multiplier_step",
            "deviation",
            "final_deviation",
        ):
            check_real(name, getattr(self, name), "a finite number > 0", lambda x: x > 0)
        for name in ("multiplier_gain", "initial_multiplier"):
            check_real(name, getattr(self, name), "a finite number >= 0", lambda x: x >= 0)
        if self.penalty is not None:
            allowed = "None or a finite number >= 0"
            check_real("penalty", self.penalty, allowed, lambda x: x >= 0)
        if self.num_envs * self.rollout_length % self.batch_size:
            raise not_allowed(
                "batch_size",
                self.batch_size,
                f"a divisor of num_envs·rollout_length = {self.num_envs * self.rollout_length}",
            )
        if self.policy not in ("users", "mlp"):
            raise not_allowed("policy", self.policy, "'users' or 'mlp'")


def make_model(
    algorithm: str,
    envs: Any,
    settings: ReinforcementSettings,
    *,
    seed: int,
    device: str,
    constraints: Sequence[str],
) -> Any:
    """A model with γ = 0, for blocks that do not depend on what was done in others.

    Args:
        algorithm: ``"ppo"``, ``"sac"``, ``"td3"``, ``"tqc"``, ``"ppo-lagrangian"`` or
            ``"sac-lagrangian"``.
        envs: A ``VecEnv`` of ISAC environments.
        settings: The settings.
        seed: Seed of weights, exploration and channels.
        device: Torch device.
        constraints: Entries of ``info`` that Lagrangian algorithms keep.

    Raises:
        ImportError: If sb3-contrib is needed and not installed.
    """
    common: dict[str, Any] = {
        "gamma": 0.0,
        "learning_rate": _fall(settings.learning_rate, settings.final_learning_rate),
        "batch_size": settings.batch_size,
        "seed": seed,
        "device": device,
    }
    is_lagrangian = algorithm.endswith("-lagrangian")
    if is_lagrangian:
        multipliers = {
            name: PIDMultiplier(
                settings.multiplier_step,
                settings.initial_multiplier * name.startswith("constraint_sensing"),
                settings.multiplier_gain,
                smoothing=0.5,
            )
            for name in constraints
        }
        common |= {
            "constraints": constraints,
            "multiplier": multipliers,
            "reseed_rollouts": True,
        }
    if algorithm in ("ppo", "ppo-lagrangian"):
        policy, policy_kwargs = _choose_policy(envs, settings)
        kind: Any = PPOLagrangian if is_lagrangian else PPO
        return kind(
            policy,
            envs,
            # One environment is for acting alone; what a rollout would be then makes no difference.
            n_steps=settings.rollout_length if envs.num_envs > 1 else settings.batch_size,
            n_epochs=settings.epochs,
            clip_range=settings.clip_range,
            gae_lambda=0.0,
            ent_coef=0.0,
            policy_kwargs={**policy_kwargs, "log_std_init": math.log(settings.deviation)},
            **common,
        )
    others = {"sac": SAC, "td3": TD3, "sac-lagrangian": SACLagrangian}
    kind = _load_tqc() if algorithm == "tqc" else others[algorithm]
    if algorithm == "td3":  # whose policy explores by nothing else
        size = envs.action_space.shape[0]
        spread = settings.deviation * np.ones(size)
        common["action_noise"] = NormalActionNoise(np.zeros(size), spread)
    if is_lagrangian:  # as often as on-policy algorithms step them
        common["multiplier_interval"] = settings.num_envs * settings.rollout_length
    return kind(
        "MlpPolicy",
        envs,
        gradient_steps=settings.gradient_steps,
        train_freq=1,
        learning_starts=8 * envs.num_envs,
        policy_kwargs={"net_arch": [2 * settings.width] * 2, "activation_fn": nn.SiLU},
        **common,
    )


def _choose_policy(envs: Any, settings: ReinforcementSettings) -> tuple[Any, dict[str, Any]]:
    system = find_system(envs.envs)
    if settings.policy == "users" and system.scenario.observation == "features":
        return UserPolicy, make_policy_kwargs(envs.envs, settings.width)
    sizes = [2 * settings.width] * 2
    return "MlpPolicy", {"net_arch": sizes, "activation_fn": torch.nn.SiLU}


def _fall(first: float, last: float) -> Callable[[float], float]:
    """A step size that falls linearly, by the remaining share of the training.

    That share is negative where the last rollout goes beyond the end.
    """
    return lambda remaining: last + (first - last) * max(0.0, remaining)


def _load_tqc() -> Any:
    try:
        from sb3_contrib import TQC
    except ImportError as error:
        raise ImportError(
            "algorithm 'tqc' needs sb3-contrib: pip install 'isac-gym[rl]'"
        ) from error
    return TQC
