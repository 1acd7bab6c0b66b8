"""Channels of any model that stay as they are for an episode."""

from __future__ import annotations

import dataclasses

import numpy as np

from isac_gym.channels.base import ChannelModel, Complex, Deployment
from isac_gym.validation import not_allowed

__all__ = ["HeldChannels"]


@dataclasses.dataclass(frozen=True)
class HeldChannels(ChannelModel):
    """The first blocks of a model, for all blocks of an episode.

    So several transmissions meet the same channels and can be compared with each other, which tells
    what a transmission is worth apart from what its channels are. It has no name in the registry,
    so that files cannot state it; agents that train with it are saved with the model within.

    Args:
        model: The model.

    Raises:
        ValueError: If it is no channel model.
    """

    model: ChannelModel
    is_time_correlated = True

    def __post_init__(self) -> None:
        if not isinstance(self.model, ChannelModel):
            raise not_allowed("model", self.model, "a ChannelModel")

    @property
    def follows_gains(self) -> bool:  # type: ignore[override]
        """Whether the model does."""
        return self.model.follows_gains

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        """See :meth:`ChannelModel.draw`."""
        return self.model.draw(rng, num, deployment)

    def advance(
        self, rng: np.random.Generator, channels: Complex, deployment: Deployment
    ) -> Complex:
        """The channels themselves; nothing is drawn."""
        return channels
