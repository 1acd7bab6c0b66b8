"""Policies of SAC and TD3 to which the order and the number of users make no difference.

The actor reads the features of :mod:`isac_gym.system.features` as that of
:mod:`isac_gym.rl.equivariant` does. A critic reads them with the numbers that an action sets for
every user, because what a user's power costs another depends on how alike their channels are: its
rounds run over actions too.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from isac_gym.rl.critics import make_cost_critic
from isac_gym.rl.equivariant import (
    NetworkValue,
    UserActions,
    UserExtractor,
    UserLayer,
    check_extractor,
    count_kinds,
)
from isac_gym.scenario import Scenario
from isac_gym.validation import not_allowed

__all__ = ["UserActorCritic", "UserSACPolicy", "UserTD3Policy", "UserValues"]


class UserValues(nn.Module):
    """Values of actions, the same however users are numbered.

    Args:
        observation_space: That of an environment with ``observation="features"``.
        action_space: That of the same environment.
        outputs: Values m of an action.
        settings: Arguments of :class:`~isac_gym.rl.equivariant.UserExtractor`.

    Raises:
        ValueError: If actions are not the same numbers for every user.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        outputs: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__()
        scenario = Scenario.from_dict(settings["scenario"])
        kinds = count_kinds(action_space, scenario.num_cells * scenario.num_users)
        self.reader = UserExtractor(observation_space, **settings, given=kinds)
        self.layer = UserLayer(self.reader.width)
        self.value = NetworkValue(self.reader.width, outputs)
        self._kinds = kinds

    def forward(self, inputs: Tensor) -> Tensor:
        """Values (n, m) of observations with actions behind them, (n, N + A)."""
        cells = self.reader.cells
        observations, actions = inputs.tensor_split([cells * self.reader.layout.size], 1)
        given = actions.unflatten(1, (cells, self._kinds, -1)).mT
        values: Tensor = self.value(self.layer(self.reader(observations, given)))
        return values


class UserActorCritic:
    """What a policy of an off-policy algorithm gets: networks that are the same for every user.

    It stands before a policy of Stable-Baselines3 or sb3-contrib among the bases of a class. The
    features extractor must be :class:`~isac_gym.rl.equivariant.UserExtractor`, as
    :func:`~isac_gym.rl.equivariant.make_policy_kwargs` gives its arguments; ``net_arch`` and
    ``activation_fn`` say nothing here.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    features_extractor_kwargs: dict[str, Any]

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """See Stable-Baselines3.

        Raises:
            ValueError: If the extractor is another, actions are not the same numbers for every
                user, or ``use_sde`` is asked for.
        """
        actor: Any = super().make_actor(features_extractor)  # type: ignore[misc]
        if getattr(actor, "use_sde", False):
            raise not_allowed("use_sde", True, "False for this policy")
        extractor = check_extractor(actor.features_extractor, UserExtractor, "make_policy_kwargs")
        width, cells = extractor.width, extractor.cells
        kinds = count_kinds(self.action_space, extractor.users)
        if hasattr(actor, "latent_pi"):
            actor.latent_pi = UserLayer(width)
            actor.mu, actor.log_std = (UserActions(width, kinds, cells) for _ in range(2))
        else:  # TD3 has no deviation
            actor.mu = nn.Sequential(UserLayer(width), UserActions(width, kinds, cells), nn.Tanh())
        return actor.to(self._find_device())

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """See Stable-Baselines3; critics have extractors of their own, which see actions."""
        whole = FlattenExtractor(self.observation_space)
        critic: Any = super().make_critic(whole)  # type: ignore[misc]
        return self._fill(critic, getattr(critic, "n_quantiles", 1))

    def make_cost_critic(self) -> ContinuousCritic:
        """A critic of a constraint: a single network with a single value."""
        critic = make_cost_critic(self, FlattenExtractor(self.observation_space), [])
        filled: ContinuousCritic = self._fill(critic, 1)
        return filled

    def _fill(self, critic: Any, outputs: int) -> Any:
        """A critic whose networks are the same for every user."""
        for number in range(len(critic.q_networks)):
            network = UserValues(
                self.observation_space,
                self.action_space,
                outputs,
                **self.features_extractor_kwargs,
            )
            critic.q_networks[number] = network
            setattr(critic, f"qf{number}", network)  # by which its weights are known
        return critic.to(self._find_device())

    def _find_device(self) -> torch.device:
        found: torch.device = self.device  # type: ignore[attr-defined]
        return found


class UserSACPolicy(UserActorCritic, SACPolicy):
    """A policy of SAC that is the same for every user; see :class:`UserActorCritic`."""


class UserTD3Policy(UserActorCritic, TD3Policy):
    """A policy of TD3 that is the same for every user; see :class:`UserActorCritic`."""
