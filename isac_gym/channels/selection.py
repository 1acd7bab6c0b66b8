"""Which channel model an environment uses: by object, by name, or the scenario's default."""

from __future__ import annotations

from typing import Any

from isac_gym.channels.base import ChannelModel
from isac_gym.channels.gauss_markov import GaussMarkovChannel
from isac_gym.channels.rayleigh import RayleighChannel
from isac_gym.registry import CHANNELS
from isac_gym.scenario import Scenario

__all__ = ["make_channel_model", "make_default_channel_model", "resolve_channel_model"]


def make_default_channel_model(scenario: Scenario) -> ChannelModel:
    """Rayleigh fading, or its Gauss-Markov sequence if the scenario has a Doppler frequency."""
    if scenario.doppler is None:
        return RayleighChannel()
    return GaussMarkovChannel(scenario.doppler)


def make_channel_model(name: str, /, **arguments: Any) -> ChannelModel:
    """Make a channel model by its name.

    Args:
        name: A registered name such as ``rician``, ``file:PATH``, or ``module:Class``.
        **arguments: Arguments of its class.

    Raises:
        TypeError: If what the name stands for is no channel model.
        ValueError: If there is no such name, or an argument is unknown, missing or not allowed.
        FileNotFoundError: If it reads a file that does not exist.
    """
    model = CHANNELS.make(name, **arguments)
    if not isinstance(model, ChannelModel):
        raise TypeError(f"channel model {name!r} must be a ChannelModel, got {model!r}")
    return model


def resolve_channel_model(model: ChannelModel | str | None, scenario: Scenario) -> ChannelModel:
    """The channel model of an environment: the one given, or the scenario's default.

    Args:
        model: The model, its name (such as ``rician`` or ``file:PATH``), or None.
        scenario: The scenario.

    Raises:
        TypeError: If ``model`` is no :class:`~isac_gym.channels.ChannelModel`.
        ValueError: If there is no model of the name, or the scenario has a Doppler frequency that
            the model does not follow.
    """
    if model is None:
        return make_default_channel_model(scenario)
    if isinstance(model, str):
        model = make_channel_model(model)
    if not isinstance(model, ChannelModel):
        raise TypeError(f"channel_model must be None or a ChannelModel object, got {model!r}")
    if scenario.doppler is not None and getattr(model, "doppler", None) != scenario.doppler:
        raise ValueError(
            f"doppler must be None with a channel_model of its own, got {scenario.doppler!r} and "
            f"{model!r}"
        )
    return model
