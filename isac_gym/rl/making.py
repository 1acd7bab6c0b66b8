"""Models of Stable-Baselines3 for a contextual bandit: what is the same for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn

from isac_gym.rl.equivariant import UserPolicy, make_policy_kwargs
from isac_gym.rl.equivariant_off_policy import UserSACPolicy, UserTD3Policy
from isac_gym.rl.multipliers import PIDMultiplier
from isac_gym.rl.ppo import PPOLagrangian
from isac_gym.rl.precoding import PrecoderPolicy, make_precoder_kwargs
from isac_gym.rl.repeating import RepeatingPolicy
from isac_gym.rl.sac import SACLagrangian
from isac_gym.rl.settings import ReinforcementSettings, holds_channels, is_on_policy
from isac_gym.system.downlink import find_system

__all__ = ["make_model"]


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
        algorithm: One of :data:`~isac_gym.rl.settings.ALGORITHMS`.
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
    make = _make_on_policy if is_on_policy(algorithm) else _make_off_policy
    return make(algorithm, envs, settings, common)


def _make_on_policy(
    algorithm: str, envs: Any, settings: ReinforcementSettings, common: dict[str, Any]
) -> Any:
    scenario = find_system(envs.envs).scenario
    sizes = settings.width, settings.rounds
    policy: Any = RepeatingPolicy
    policy_kwargs: dict[str, Any] = _describe_layers(settings)
    if settings.policy == "users" and scenario.observation == "features":
        policy, policy_kwargs = UserPolicy, make_policy_kwargs(envs.envs, *sizes)
    elif settings.policy == "users" and scenario.control == "beamforming":
        policy, policy_kwargs = PrecoderPolicy, make_precoder_kwargs(envs.envs, *sizes)
    if policy is not RepeatingPolicy:
        policy_kwargs["share_features_extractor"] = settings.shares_extractor
    if holds_channels(algorithm, settings):
        common["baseline"] = "episode"
    kind: Any = PPOLagrangian if algorithm == "ppo-lagrangian" else PPO
    return kind(
        policy,
        envs,
        # With other environments it is for acting alone; no rollout is then taken.
        n_steps=settings.rollout_length
        if envs.num_envs == settings.num_envs
        else settings.batch_size,
        n_epochs=settings.epochs,
        clip_range=settings.clip_range,
        target_kl=settings.largest_divergence,
        gae_lambda=0.0,
        ent_coef=0.0,
        vf_coef=settings.value_weight,
        policy_kwargs={**policy_kwargs, "log_std_init": math.log(settings.deviation)},
        **common,
    )


def _make_off_policy(
    algorithm: str, envs: Any, settings: ReinforcementSettings, common: dict[str, Any]
) -> Any:
    kind, policy = _load_off_policy(algorithm)
    if settings.policy == "users" and find_system(envs.envs).scenario.observation == "features":
        policy_kwargs = make_policy_kwargs(envs.envs, settings.width, settings.rounds)
    else:
        policy, policy_kwargs = "MlpPolicy", _describe_layers(settings)
    if algorithm == "td3":  # whose policy explores by nothing else
        size = envs.action_space.shape[0]
        spread = settings.deviation * np.ones(size)
        common["action_noise"] = NormalActionNoise(np.zeros(size), spread)
    if algorithm.endswith("-lagrangian"):  # as often as on-policy algorithms step them
        common["multiplier_interval"] = settings.num_envs * settings.rollout_length
    return kind(
        policy,
        envs,
        gradient_steps=settings.gradient_steps,
        train_freq=1,
        learning_starts=8 * envs.num_envs,
        policy_kwargs=policy_kwargs,
        **common,
    )


def _describe_layers(settings: ReinforcementSettings) -> dict[str, Any]:
    """Arguments of a policy of fully connected networks."""
    return {"net_arch": [2 * settings.width] * 2, "activation_fn": nn.SiLU}


def _load_off_policy(algorithm: str) -> tuple[Any, Any]:
    """A class of algorithms, and its policy that is the same for every user.

    TQC is imported only where it is asked for: those without sb3-contrib use the others.
    """
    if not algorithm.startswith("tqc"):
        kinds: dict[str, tuple[Any, Any]] = {
            "sac": (SAC, UserSACPolicy),
            "td3": (TD3, UserTD3Policy),
            "sac-lagrangian": (SACLagrangian, UserSACPolicy),
        }
        return kinds[algorithm]
    from isac_gym.rl.tqc import TQC, TQCLagrangian, UserTQCPolicy

    return (TQCLagrangian if algorithm == "tqc-lagrangian" else TQC), UserTQCPolicy


def _fall(first: float, last: float) -> Callable[[float], float]:
    """A step size that falls linearly, by the remaining share of the training.

    That share is negative where the last rollout goes beyond the end.
    """
    return lambda remaining: last + (first - last) * max(0.0, remaining)
