"""Evaluation sets: channels that all agents are compared on, identified by a hash."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np

from isac_gym.channels.base import ChannelModel, Complex
from isac_gym.channels.process import ChannelProcess
from isac_gym.scenario import Scenario
from isac_gym.validation import check_integer

__all__ = ["EvaluationSet", "evaluation_set"]


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Channels that agents are compared on.

    Attributes:
        channels: True channels, complex64 (E, T, J, J, K, M): E episodes of T blocks; T is 1
            unless blocks of an episode depend on each other: the channel model is correlated in
            time, or users have positions, which they keep for an episode.
        estimates: What agents observe, same shape.
        seed: Seed of the set.
        digest: Hash of channels and estimates.
    """

    channels: Complex
    estimates: Complex
    seed: int
    digest: str

    @property
    def count(self) -> int:
        """Blocks in the set."""
        episodes, length = self.channels.shape[:2]
        return int(episodes * length)


def evaluation_set(
    scenario: Scenario, model: ChannelModel, channels: int, seed: int
) -> EvaluationSet:
    """Draw an evaluation set.

    Args:
        scenario: Dimensions, gains, quality of the estimates and length of episodes.
        model: How channels are drawn.
        channels: Number of blocks; rounded up to whole episodes if their blocks depend on each
            other.
        seed: Seed.

    Returns:
        The set, the same for the same arguments.

    Raises:
        ValueError: If ``channels`` is less than 1, or the seed is none.
    """
    channels, seed = check_integer("channels", channels, 1), check_integer("seed", seed, 0)
    rng = np.random.default_rng(seed)
    is_dependent = model.is_time_correlated or scenario.is_geometric
    length = scenario.episode_length if is_dependent else 1
    process = ChannelProcess(model, scenario, math.ceil(channels / length))
    blocks, estimates = [], []
    for block in range(length):
        if block == 0:
            process.start(rng)
        else:
            process.advance(rng)
        blocks.append(process.channels)
        estimates.append(process.estimates)
    true, seen = np.stack(blocks, 1), np.stack(estimates, 1)
    digest = hashlib.sha256(np.ascontiguousarray(true).tobytes())
    digest.update(np.ascontiguousarray(seen).tobytes())
    return EvaluationSet(true, seen, seed, digest.hexdigest()[:16])
