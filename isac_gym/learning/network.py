"""What a network of a learning agent is, and how one is made by the name of its architecture."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from isac_gym.learning.conditions import Conditions
from isac_gym.registry import NETWORKS
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import ISACSystem

__all__ = ["Network", "list_network_options", "make_network", "name_architecture"]

_FALLBACK = "direct"
"""The architecture for control modes that the wanted one has no formulas for."""


class Network(nn.Module, ABC):
    """From observations to actions; subclass it and register it for ``architecture=``.

    It is made as ``Network(system, generator, **options)``: the system whose observations and
    actions it maps, the source of its initial weights, and settings of its own, which are keyword
    arguments of the agent as well. It is in training mode (``self.training``) while a batch of a
    training is evaluated, and in evaluation mode at all other times.

    Attributes:
        answers_to_price: Whether it heeds the price that ``conditions`` holds, so that the price
            can be settled without training.
        fits_other_sizes: Whether the same weights serve other numbers of users and antennas.
        couples_stations: Whether what a station does depends on the prices of others.
        outputs_are_actions: Whether the outputs of its output layers, one after the other, are the
            action's numbers, so that those of the radar mean the same in every control mode.
    """

    answers_to_price: ClassVar[bool] = False
    fits_other_sizes: ClassVar[bool] = False
    couples_stations: ClassVar[bool] = False
    outputs_are_actions: ClassVar[bool] = False

    @abstractmethod
    def forward(self, observation: Tensor, conditions: Conditions | None = None) -> Tensor:
        """Map observations (n, N) to actions (n, A) within [-1, 1], differentiably.

        Args:
            observation: Real tensor (n, N).
            conditions: Noise power and price of each observation; None means those of the system's
                scenario with a price of 0.
        """

    @abstractmethod
    def output_layers(self) -> list[nn.Linear]:
        """The layers that a transfer to another control mode replaces."""

    def prepare_batch(self, rng: np.random.Generator, progress: float) -> None:
        """Get ready for the next batch of a training; without effect unless a network says so.

        Args:
            rng: The training's source of randomness, which its checkpoints hold; a network with
                randomness of its own takes it from here.
            progress: Share of the training that is done, in [0, 1).
        """

    def on(self, system: ISACSystem) -> Network:
        """This network, with the same weights, for another system.

        Args:
            system: A system with other numbers of stations, users or antennas.

        Raises:
            ValueError: If its weights serve its own system alone.
        """
        raise ValueError(
            f"{type(self).__name__} must have weights that fit other sizes to be on another system"
        )

    @classmethod
    def check_weights(cls, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Check that options from a file fit its tensors, before anything of their size is made.

        Args:
            options: Options of the constructor that the file states.
            weights: Tensors by the names of ``state_dict``.

        Raises:
            ValueError: If they do not fit.
            KeyError: If a tensor is missing.
        """


def list_network_options(architecture: str | None = None) -> dict[str, Any]:
    """Options of a network, or of all registered ones, with their default values."""
    names = NETWORKS.names() if architecture is None else [architecture]
    found: dict[str, Any] = {}
    for name in names:
        for parameter in list(inspect.signature(NETWORKS.load(name)).parameters.values())[2:]:
            found.setdefault(parameter.name, parameter.default)
    return found


def name_architecture(wanted: str, scenario: Scenario) -> str:
    """The architecture in use: the wanted one, or ``"direct"`` where it has no formulas."""
    entry = NETWORKS.find(wanted)
    has_formulas = scenario.control in entry.controls and scenario.observation in entry.observations
    return wanted if has_formulas else _FALLBACK


def make_network(
    architecture: str,
    system: ISACSystem,
    generator: torch.Generator,
    options: Mapping[str, Any],
) -> Network:
    """Make a network.

    Args:
        architecture: A registered name, or ``module:Class``.
        system: System whose observations and actions it maps.
        generator: Source of the initial weights.
        options: Options of networks; those that this one does not know are for others.

    Returns:
        The network, on the system's device, in evaluation mode.

    Raises:
        ValueError: If there is no such architecture, or an option is not allowed.
        TypeError: If what the name stands for is no :class:`Network`.
    """
    kind = NETWORKS.load(architecture)
    if not (inspect.isclass(kind) and issubclass(kind, Network)):
        raise TypeError(f"architecture {architecture!r} must be a Network, got {kind!r}")
    known = list_network_options(architecture)
    made = kind(system, generator, **{k: v for k, v in options.items() if k in known})
    made.to(system.device)
    made.eval()
    return made
