"""What a file says of an agent of reinforcement learning, and what may be made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from torch import Tensor

from isac_gym.envs.single import ISACEnv
from isac_gym.learning.saving import check_work
from isac_gym.reading import Count, Seconds, check_counts
from isac_gym.registry import CHANNELS, CONSTRAINTS
from isac_gym.rl.settings import find_settings
from isac_gym.scenario import Scenario

__all__ = ["SavedReinforcement", "check_sizes", "make_saved_env"]

_LARGEST_ROLLOUT: Final = 2**20
"""Blocks of a rollout or a batch in a file, for which there is memory when the agent is made."""


class SavedReinforcement(msgspec.Struct):
    """The description of an agent in a file."""

    algorithm: str
    control: str
    observation: str
    agent_seed: Count
    settings: dict[str, Any]
    scenario: dict[str, Any]
    channel_model: dict[str, Any]
    chosen_constraints: list[dict[str, Any]]
    multipliers: dict[str, dict[str, float | None]]
    channels_seen: Count | None
    training_seconds: Seconds | None


def check_sizes(held: SavedReinforcement, shapes: Mapping[str, Tensor]) -> None:
    """Check settings from a file against its tensors, before networks of their size are made.

    Args:
        held: What the file says.
        shapes: Its tensors, whose content need not be read yet.

    Raises:
        TypeError: If it has an unknown setting.
        ValueError: If something is not allowed, or too large for these tensors.
    """
    for name in ("settings", "scenario"):
        check_counts(getattr(held, name), name)
    settings = find_settings(held.algorithm, held.control, **held.settings)
    numbers = sum(value.numel() for value in shapes.values())
    if settings.width**2 > max(numbers, 1):
        raise ValueError(f"width must fit {numbers} weights, got {settings.width}")
    for name in ("rounds", "rollout_length", "batch_size"):
        most = len(shapes) if name == "rounds" else _LARGEST_ROLLOUT
        if getattr(settings, name) > most:
            raise ValueError(f"{name} must be at most {most}, got {getattr(settings, name)}")


def make_saved_env(held: SavedReinforcement) -> Any:
    """An environment like that which an agent was saved for.

    Args:
        held: What the file says.

    Raises:
        TypeError: If the scenario has an unknown field.
        ValueError: If something is not allowed, or larger than a file may ask for.
    """
    scenario = Scenario.from_dict(held.scenario)
    check_work(scenario)
    return ISACEnv(
        scenario,
        channel_model=CHANNELS.restore(held.channel_model),
        constraints=[CONSTRAINTS.restore(each) for each in held.chosen_constraints],
    )
