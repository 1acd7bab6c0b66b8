"""A policy of precoders and waveforms that does not heed users' order nor channels' phases.

It sees channels and sets all entries of F and V. Its mean has the structure of
:mod:`isac_gym.physics.structure`, made of a few numbers a user that the network of
:mod:`isac_gym.rl.equivariant` reads from the channels' features; what it explores are the entries.
So the numbers of users trade places with them, and where a channel turns its phase the precoder
turns back, without having been learned.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from isac_gym.policy import Translation
from isac_gym.rl.equivariant import UserExtractor, UserLayer, UserPolicy, describe_extractor
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import ISACSystem, find_system
from isac_gym.validation import not_allowed

__all__ = ["ChannelExtractor", "PrecoderPolicy", "make_precoder_kwargs"]

_NUMBERS: Final = {"control": "structured", "observation": "features"}


def make_precoder_kwargs(env: Any, width: int = 64, rounds: int = 2) -> dict[str, Any]:
    """Arguments ``policy_kwargs`` of :class:`PrecoderPolicy`.

    Args:
        env: Environment with ``control="beamforming"`` that shows channels, single, batched or
            wrapped.
        width: Length of what is known of a user.
        rounds: Rounds in which users are told of each other.

    Raises:
        TypeError: If ``env`` is no ISAC environment.
        ValueError: If its actions are no precoders, its observations no channels, or a number is
            not allowed.
    """
    scenario = find_system(env).scenario
    if scenario.control != "beamforming":
        raise not_allowed("control", scenario.control, "'beamforming' for this policy")
    if scenario.observation != "channels":
        raise not_allowed("observation", scenario.observation, "'channels' for this policy")
    return describe_extractor(ChannelExtractor, scenario, width, rounds)


class ChannelExtractor(UserExtractor):
    """What is known of every own user, from channels.

    Args:
        observation_space: That of an environment that shows channels.
        scenario: Its scenario, as plain JSON types.
        width: Length w of what is known of a user.
        rounds: Rounds.
        keeps_channels: Whether the observation follows.

    Returns of a call: Tensor (n, J·K·w) of what is known of users, or (n, J·K·w + N).
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        scenario: dict[str, Any],
        width: int = 64,
        rounds: int = 2,
        keeps_channels: bool = True,
    ) -> None:
        outer = Scenario.from_dict(scenario)
        inner = outer.replace(**_NUMBERS)
        super().__init__(observation_space, inner.to_dict(), width, rounds)
        self.outer, self.inner = ISACSystem(outer), ISACSystem(inner)
        self.keeps_channels = keeps_channels
        if keeps_channels:
            self._features_dim += self.outer.codec.observation_size

    def forward(self, observations: Tensor, given: Tensor | None = None) -> Tensor:
        """What is known of own users, and the observations themselves."""
        outer, inner = self.outer.on(observations.device), self.inner.on(observations.device)
        self.outer, self.inner = outer, inner
        with torch.no_grad():
            features = inner.codec.describe_channels(outer.codec.channels(observations))
        known = super().forward(features, given)
        return torch.cat([known, observations], -1) if self.keeps_channels else known


class _ChannelActor(nn.Module):
    """A layer for every user; the observation goes by it."""

    def __init__(self, width: int, known: int) -> None:
        super().__init__()
        self.layer, self._known = UserLayer(width), known

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(features[:, : self._known]), features[:, self._known :]


class _ChannelCritic(_ChannelActor):
    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(features)[0]


class PrecoderPolicy(UserPolicy):
    """A policy of PPO or A2C that sets precoders and waveforms.

    The deviation of an entry is that of the policy times the root mean square of such entries,
    1/√(2·M_C·K) in a precoder and 1/√(2r) in a waveform. The features extractor must be
    :class:`ChannelExtractor`; :func:`make_precoder_kwargs` gives its arguments.

    Args:
        observation_space: That of an environment that shows channels.
        action_space: That of the same environment, with ``control="beamforming"``.
        lr_schedule: Learning rate by the remaining share of the training.
        **kwargs: As of stable-baselines3's ``ActorCriticPolicy``.

    Raises:
        ValueError: If the extractor is another, or ``use_sde`` is asked for.
    """

    extractor_class: ClassVar[type[UserExtractor]] = ChannelExtractor
    arguments_from: ClassVar[str] = "make_precoder_kwargs"
    features_extractor: ChannelExtractor
    _scales: Tensor

    def _count_kinds(self, extractor: UserExtractor) -> int:
        assert isinstance(extractor, ChannelExtractor)
        return extractor.inner.codec.action_size // extractor.users

    def _make_actor(self) -> nn.Module:
        return _ChannelActor(self._width, self._known)

    def _make_critic_head(self) -> nn.Module:
        return _ChannelCritic(self._width, self._known)

    @property
    def _known(self) -> int:
        extractor = self.features_extractor
        return extractor.users * extractor.width

    def _make_deviations(self, extractor: UserExtractor, kinds: int) -> None:
        assert isinstance(extractor, ChannelExtractor)
        codec, scenario = extractor.outer.codec, extractor.outer.scenario
        sizes = (codec.comm_size, codec.radar_size, codec.access_size)
        usual = (codec.comm_size**-0.5, (2 * scenario.num_radar_streams) ** -0.5, 1.0)
        station = [scale for size, scale in zip(sizes, usual, strict=True) for _ in range(size)]
        self.register_buffer("_scales", torch.tensor(station * extractor.cells).log())
        self.log_std = nn.Parameter(torch.full((1,), float(self.log_std_init)))

    def make_critic(self) -> nn.Module:
        """Another critic like its own, from observations to values (n, 1)."""
        extractor = self.make_features_extractor()
        assert isinstance(extractor, ChannelExtractor)
        extractor.keeps_channels = False
        return self._chain_critic(extractor)

    def _get_action_dist_from_latent(self, latent_pi: Any) -> Distribution:
        hidden, observations = latent_pi
        extractor = self.features_extractor
        # Within the box, with a gradient everywhere.
        numbers = torch.tanh(self.action_net(hidden))
        mean = Translation(extractor.outer, extractor.inner).express(numbers, observations)
        return self.action_dist.proba_distribution(mean, self.log_std + self._scales)
