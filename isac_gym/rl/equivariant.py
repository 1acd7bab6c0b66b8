"""A policy of stable-baselines3 to which the order and the number of users make no difference.

It reads the features of :mod:`isac_gym.system.features` and sets the same few numbers for every
user. If the users are numbered otherwise, its action is the same in that order, and its weights fit
any number of users and of stations. That is a symmetry of the problem, which a fully connected
network has to learn from K! times as many channels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from gymnasium import spaces
from torch import Tensor, nn

from isac_gym.scenario import Scenario
from isac_gym.system.downlink import find_system
from isac_gym.system.features import FeatureLayout
from isac_gym.validation import check_integer, not_allowed

try:
    from stable_baselines3.common.distributions import Distribution
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.type_aliases import Schedule

    from isac_gym.rl.repeating import RepeatingPolicy
except ImportError as error:
    raise ImportError(
        "the policies of isac_gym.rl need stable-baselines3: pip install 'isac-gym[rl]'"
    ) from error

__all__ = [
    "NetworkValue",
    "UserActions",
    "UserExtractor",
    "UserLayer",
    "UserPolicy",
    "check_extractor",
    "count_kinds",
    "describe_extractor",
    "make_policy_kwargs",
]

_USUAL_SUM: Final = 5.0
"""What sums over users are divided by, so that inputs are of order 1."""
_PART: Final = 256
"""Observations at a time: what is said between their users stays in a processor's cache."""


def make_policy_kwargs(env: Any, width: int = 64, rounds: int = 2) -> dict[str, Any]:
    """Arguments ``policy_kwargs`` with which the policies here, or others, read the features.

    Args:
        env: Environment with ``observation="features"``, single, batched or wrapped.
        width: Length of what is known of a user.
        rounds: Rounds in which users are told of each other.

    Returns:
        ``features_extractor_class`` and ``features_extractor_kwargs``.

    Raises:
        TypeError: If ``env`` is no ISAC environment.
        ValueError: If its observations are no features, or a number is not allowed.
    """
    scenario = find_system(env).scenario
    if scenario.observation != "features":
        raise not_allowed("observation", scenario.observation, "'features' for these policies")
    return describe_extractor(UserExtractor, scenario, width, rounds)


def describe_extractor(
    kind: type[UserExtractor], scenario: Scenario, width: int, rounds: int
) -> dict[str, Any]:
    """Arguments ``policy_kwargs`` that choose an extractor.

    Args:
        kind: Its class.
        scenario: The scenario that it reads observations of.
        width: Length of what is known of a user.
        rounds: Rounds in which users are told of each other.

    Raises:
        ValueError: If a number is not allowed.
    """
    return {
        "features_extractor_class": kind,
        "features_extractor_kwargs": {
            "scenario": scenario.to_dict(),
            "width": check_integer("width", width, 1),
            "rounds": check_integer("rounds", rounds, 1),
        },
    }


class UserExtractor(BaseFeaturesExtractor):
    """What is known of every own user, from the features of a scenario.

    Every user begins with its own features. In a round an own user hears of every user what a layer
    makes of the pair's features and of what is known of that user; the sum of it changes what is
    known of the own user.

    Args:
        observation_space: That of an environment with ``observation="features"``.
        scenario: Its scenario, as plain JSON types; it says how the features are laid out.
        width: Length w of what is known of a user.
        rounds: Rounds.
        given: Numbers of every own user that are given beside the features.

    Returns of a call: Tensor (n, J·K·w), station after station and user after user.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        scenario: dict[str, Any],
        width: int = 64,
        rounds: int = 2,
        given: int = 0,
    ) -> None:
        found = Scenario.from_dict(scenario)
        users = found.num_cells * found.num_users
        super().__init__(observation_space, users * width)
        self.layout = FeatureLayout.of(found)
        self.cells, self.users, self.width = found.num_cells, users, width
        of_user, of_pair = len(self.layout.user_names), len(self.layout.pair_names)
        self.enter = nn.Linear(of_user + 1 + given, width)
        # The first layer of what is said, in two parts: of a user, and of a pair.
        self.tell_user = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.tell_pair = nn.ModuleList(nn.Linear(of_pair, width, bias=False) for _ in range(rounds))
        self.think = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(rounds)
        )

    def forward(self, observations: Tensor, given: Tensor | None = None) -> Tensor:
        """What is known of own users, (n, J·K·w).

        Args:
            observations: The features, (n, N).
            given: What is given beside them, (n, J, K, ·).
        """
        if given is None:
            given = observations.new_empty(len(observations), self.cells, self.layout.own_users, 0)
        parts = zip(observations.split(_PART), given.split(_PART), strict=True)
        return torch.cat([self._read(*part) for part in parts])

    def _read(self, observations: Tensor, given: Tensor) -> Tensor:
        layout = self.layout
        users, pairs = layout.split(observations.unflatten(-1, (self.cells, layout.size)))
        # Of own users alone: 1, and what is given.
        own = nn.functional.pad(given, (1, 0), value=1.0)
        own = nn.functional.pad(own, (0, 0, 0, layout.all_users - layout.own_users))
        whole = torch.cat([users, own], -1)
        states = nn.functional.silu(self.enter(whole))
        sizes = [layout.own_users, layout.all_users - layout.own_users]
        for user, pair, think in zip(self.tell_user, self.tell_pair, self.think, strict=True):
            own, others = states.split(sizes, dim=-2)
            said = torch.relu(user(states).unsqueeze(-3) + pair(pairs))
            own = own + think(torch.cat([own, said.sum(-2) / _USUAL_SUM], -1))
            states = torch.cat([own, others], -2)
        return states[..., : layout.own_users, :].flatten(1)


class UserLayer(nn.Module):
    """A layer for every user by itself, of what an extractor gives (n, J·K·w): (n, J·K, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """What is known of every user, (n, J·K, w)."""
        return nn.functional.silu(
            self.linear(features.unflatten(-1, (-1, self.linear.in_features)))
        )


class _UserHeads(nn.Module):
    """The part of a policy between extractor and outputs."""

    def __init__(self, actor: nn.Module, critic: nn.Module, width: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = width
        self.forward_actor, self.forward_critic = actor, critic

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)


class UserActions(nn.Module):
    """Numbers of every user in the order of an action: station after station, kind after kind.

    They begin in the middle of the box, whatever is seen.
    """

    def __init__(self, hidden: int, kinds: int, cells: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, kinds)
        self.cells = cells
        with torch.no_grad():
            self.linear.weight *= 0.01
            self.linear.bias.zero_()

    def forward(self, latent: Tensor) -> Tensor:
        """Actions (n, A) of what is known of every user, (n, J·K, w)."""
        numbers = self.linear(latent).unflatten(1, (self.cells, -1))
        return numbers.mT.flatten(1)  # type: ignore[no-any-return]


class NetworkValue(nn.Module):
    """Values of all users together, (n, m): the sum of what each contributes."""

    def __init__(self, hidden: int, outputs: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, outputs)

    def forward(self, latent: Tensor) -> Tensor:
        """Values (n, m) of what is known of every user, (n, J·K, w)."""
        return self.linear(latent).sum(-2)  # type: ignore[no-any-return]


def check_extractor(extractor: Any, kind: type[UserExtractor], maker: str) -> UserExtractor:
    """The extractor of a policy, if it is of a class.

    Args:
        extractor: The extractor.
        kind: The class.
        maker: Name of the function that makes the arguments of one.

    Raises:
        ValueError: If it is of another class.
    """
    if not isinstance(extractor, kind):
        raise not_allowed(
            "features_extractor_class",
            type(extractor).__name__,
            f"{kind.__name__}, as {maker}(env) gives it",
        )
    return extractor


def count_kinds(action_space: spaces.Space[Any], users: int) -> int:
    """Numbers that are set for every user.

    Args:
        action_space: The space of actions.
        users: Own users of all stations.

    Raises:
        ValueError: If actions are not the same numbers for every user.
    """
    numbers = int(action_space.shape[0])  # type: ignore[index]
    if numbers % users:
        raise not_allowed("action_space", action_space, f"some numbers for each of {users} users")
    return numbers // users


class UserPolicy(RepeatingPolicy):
    """A policy of PPO or A2C that is the same for every user.

    Its Gaussian has a deviation for each kind of number, the same for all users. The features
    extractor must be :class:`UserExtractor`; :func:`make_policy_kwargs` gives its arguments.

    Args:
        observation_space: That of an environment with ``observation="features"``.
        action_space: That of the same environment.
        lr_schedule: Learning rate by the remaining share of the training.
        **kwargs: As of stable-baselines3's ``ActorCriticPolicy``.

    Raises:
        ValueError: If the extractor is another, actions are not the same numbers for every user, or
            ``use_sde`` is asked for.
    """

    log_std: nn.Parameter
    extractor_class: ClassVar[type[UserExtractor]] = UserExtractor
    arguments_from: ClassVar[str] = "make_policy_kwargs"

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("use_sde"):
            raise not_allowed("use_sde", True, "False for this policy")
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        extractor = check_extractor(
            self.features_extractor, self.extractor_class, self.arguments_from
        )
        kinds = self._count_kinds(extractor)
        self._width = extractor.width
        actions = UserActions(extractor.width, kinds, extractor.cells)
        # What the base class calls by these names is not of its own classes here.
        heads = _UserHeads(self._make_actor(), self._make_critic_head(), extractor.width)
        parts: dict[str, nn.Module] = {
            "mlp_extractor": heads,
            "action_net": actions,
            "value_net": NetworkValue(extractor.width),
        }
        for name, part in parts.items():
            setattr(self, name, part)
        self._make_deviations(extractor, kinds)
        make_optimiser: Any = self.optimizer_class
        self.optimizer = make_optimiser(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )

    def _count_kinds(self, extractor: UserExtractor) -> int:
        """Numbers that are set for every user."""
        return count_kinds(self.action_space, extractor.users)

    def _make_actor(self) -> nn.Module:
        """What the actor makes of what the extractor gives."""
        return UserLayer(self._width)

    def _make_critic_head(self) -> nn.Module:
        """What the critic makes of what the extractor gives."""
        return UserLayer(self._width)

    def _make_deviations(self, extractor: UserExtractor, kinds: int) -> None:
        """Set up the deviations of the Gaussian."""
        self._repeats, self._cells = extractor.layout.own_users, extractor.cells
        self.log_std = nn.Parameter(torch.full((kinds,), float(self.log_std_init)))

    def make_critic(self) -> nn.Module:
        """Another critic like its own, from observations to values (n, 1)."""
        return self._chain_critic(self.make_features_extractor())

    def _chain_critic(self, extractor: nn.Module) -> nn.Module:
        width = self._width
        return nn.Sequential(extractor, UserLayer(width), NetworkValue(width))

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        mean = self.action_net(latent_pi)
        deviation = self.log_std.repeat_interleave(self._repeats).repeat(self._cells)
        return self.action_dist.proba_distribution(mean, deviation)
