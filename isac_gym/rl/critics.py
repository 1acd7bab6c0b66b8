"""Critics of constraints: for each one its own network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, ContinuousCritic
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from torch import Tensor, nn

__all__ = ["ActionCostCritics", "CostCritics", "make_cost_critic"]


class CostCritics(nn.Module):
    """State values of m constraints, by m networks of the kind of the policy's own critic.

    Args:
        policy: The policy whose features, widths, activations and optimiser are taken.
        num_constraints: m.
        learning_rate: To begin with.
    """

    def __init__(
        self, policy: ActorCriticPolicy, num_constraints: int, learning_rate: float
    ) -> None:
        super().__init__()
        self._space = policy.observation_space
        self._normalize_images = policy.normalize_images
        # A policy whose critic is no fully connected network says how to make another.
        make = getattr(policy, "make_critic", None) or partial(_make_critic, policy)
        self.networks = nn.ModuleList(make() for _ in range(num_constraints))
        self.to(policy.device)
        options: dict[str, Any] = policy.optimizer_kwargs
        self.optimizer = policy.optimizer_class(
            self.parameters(),
            lr=learning_rate,  # type: ignore[call-arg]
            **options,
        )

    def forward(self, observations: Any) -> Tensor:
        """Values of n observations, (n, m)."""
        given = preprocess_obs(observations, self._space, normalize_images=self._normalize_images)
        return torch.cat([network(given) for network in self.networks], dim=1)


def _make_critic(policy: ActorCriticPolicy) -> nn.Module:
    arch = policy.net_arch
    widths = list(arch.get("vf", [])) if isinstance(arch, dict) else list(arch)
    extractor = policy.make_features_extractor()
    layers = create_mlp(extractor.features_dim, 1, widths, policy.activation_fn)
    return nn.Sequential(extractor, *layers)


class ActionCostCritics(nn.Module):
    """Action values of m constraints, by m networks.

    Each constraint has a single network and not a pair. The lesser of a pair would make a signed
    constraint look better than it is, and the greater worse, and the multiplier would make up for
    the bias; that the actor exploits errors of a single one is seen by the multiplier, which is
    raised by what is measured and not by the critic.

    Args:
        policy: The policy whose features, widths, activations and optimiser are taken.
        num_constraints: m.
        learning_rate: To begin with.
    """

    def __init__(self, policy: BasePolicy, num_constraints: int, learning_rate: float) -> None:
        super().__init__()
        kept: Any = policy
        # A policy whose critics are no fully connected networks says how to make one.
        make = getattr(policy, "make_cost_critic", None) or partial(_make_like, policy)
        self.networks = nn.ModuleList(make() for _ in range(num_constraints))
        self.to(kept.device)
        self.optimizer = kept.optimizer_class(
            self.parameters(), lr=learning_rate, **kept.optimizer_kwargs
        )

    def forward(self, observations: Any, actions: Tensor) -> Tensor:
        """Values of n actions in n observations, (n, m)."""
        return torch.cat([network(observations, actions)[0] for network in self.networks], dim=1)


def _make_like(policy: Any) -> ContinuousCritic:
    extractor = policy.make_features_extractor()
    return make_cost_critic(policy, extractor, policy.critic_kwargs["net_arch"])


def make_cost_critic(
    policy: Any, extractor: BaseFeaturesExtractor, net_arch: list[int]
) -> ContinuousCritic:
    """A critic of actions with a single network, for a constraint.

    Args:
        policy: The policy whose spaces and activations are taken.
        extractor: What reads observations.
        net_arch: Widths of the layers that follow.
    """
    return ContinuousCritic(
        policy.observation_space,
        policy.action_space,
        net_arch=net_arch,
        features_extractor=extractor,
        features_dim=extractor.features_dim,
        activation_fn=policy.activation_fn,
        normalize_images=policy.normalize_images,
        n_critics=1,
        share_features_extractor=False,
    )
