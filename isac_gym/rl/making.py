"""Models of Stable-Baselines3 for a contextual bandit: what is the same for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from isac_gym.rl.settings import ReinforcementSettings, holds_channels
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
    if algorithm in ("ppo", "ppo-lagrangian"):
        policy, policy_kwargs = _choose_policy(
            envs,
            settings,
            {
                "features": (UserPolicy, make_policy_kwargs),
                "precoders": (PrecoderPolicy, make_precoder_kwargs),
            },
            RepeatingPolicy,
        )
        kind: Any = PPOLagrangian if is_lagrangian else PPO
        if holds_channels(algorithm, settings):
            common["baseline"] = "episode"
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
    others = {
        "sac": (SAC, UserSACPolicy),
        "td3": (TD3, UserTD3Policy),
        "sac-lagrangian": (SACLagrangian, UserSACPolicy),
    }
    kind, of_users = others[algorithm] if algorithm in others else _load_tqc(is_lagrangian)
    policy, policy_kwargs = _choose_policy(
        envs, settings, {"features": (of_users, make_policy_kwargs)}, "MlpPolicy"
    )
    if algorithm == "td3":  # whose policy explores by nothing else
        size = envs.action_space.shape[0]
        spread = settings.deviation * np.ones(size)
        common["action_noise"] = NormalActionNoise(np.zeros(size), spread)
    if is_lagrangian:  # as often as on-policy algorithms step them
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


def _choose_policy(
    envs: Any,
    settings: ReinforcementSettings,
    of_users: Mapping[str, tuple[Any, Any]],
    of_none: Any,
) -> tuple[Any, dict[str, Any]]:
    """A policy and its arguments.

    Args:
        envs: The environments.
        settings: The settings.
        of_users: The policies that are the same for every user, with what makes their arguments:
            by ``"features"`` that which sees them, by ``"precoders"`` that which sets precoders.
        of_none: The policy of a fully connected network.
    """
    scenario = find_system(envs.envs).scenario
    suitable = {
        "features": scenario.observation == "features",
        "precoders": scenario.control == "beamforming",
    }
    for name, (policy, make_kwargs) in of_users.items():
        if settings.policy == "users" and suitable[name]:
            chosen = make_kwargs(envs.envs, settings.width, settings.rounds)
            return policy, {**chosen, "share_features_extractor": settings.shares_extractor}
    return of_none, {"net_arch": [2 * settings.width] * 2, "activation_fn": nn.SiLU}


def _fall(first: float, last: float) -> Callable[[float], float]:
    """A step size that falls linearly, by the remaining share of the training.

    That share is negative where the last rollout goes beyond the end.
    """
    return lambda remaining: last + (first - last) * max(0.0, remaining)


def _load_tqc(is_lagrangian: bool) -> tuple[Any, Any]:
    """TQC and its policy, imported only where asked for: those without sb3-contrib use others."""
    from isac_gym.rl.tqc import TQC, TQCLagrangian, UserTQCPolicy

    return (TQCLagrangian if is_lagrangian else TQC), UserTQCPolicy
