"""The paper's network: fully connected, its outputs are the action."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from isac_gym.learning.conditions import Conditions
from isac_gym.learning.network import Network
from isac_gym.registry import register_network
from isac_gym.system.downlink import ISACSystem
from isac_gym.validation import check_integer, not_allowed

__all__ = ["DirectNetwork", "FullyConnected", "check_layers", "resolve_hidden_sizes"]

_LARGEST_WIDTH: Final = 2**16


class FullyConnected(nn.Module):
    """Fully connected network with ReLU between its layers.

    Weights start from a zero-mean truncated normal of standard deviation 1/√fan-in, biases at
    0.01, as in the paper (which does not give the deviation).

    Args:
        num_inputs: Length of the input.
        hidden_sizes: Widths of the hidden layers.
        num_outputs: Length of the output.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden_sizes: Sequence[int],
        num_outputs: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        sizes = [num_inputs, *hidden_sizes, num_outputs]
        self.layers = nn.ModuleList()
        for inputs, outputs in itertools.pairwise(sizes):
            layer = nn.Linear(inputs, outputs)
            deviation = inputs**-0.5
            nn.init.trunc_normal_(
                layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
            )
            nn.init.constant_(layer.bias, 0.01)
            self.layers.append(layer)

    def output_layers(self) -> list[nn.Linear]:
        """The last layer."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        return [last]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, num_inputs) to (n, num_outputs)."""
        hidden = inputs
        for index, layer in enumerate(self.layers):
            hidden = layer(torch.relu(hidden) if index else hidden)
        return hidden


def resolve_hidden_sizes(given: Sequence[int] | None, num_users: int) -> tuple[int, ...]:
    """Widths of hidden layers, checked; for None the paper's 2K, 3K, 2K.

    Raises:
        ValueError: If they are no non-empty sequence of integers >= 1.
    """
    if given is None:
        return (2 * num_users, 3 * num_users, 2 * num_users)
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        allowed = "None or a non-empty sequence of integers >= 1"
        raise not_allowed("hidden_sizes", given, allowed)
    return tuple(check_integer("hidden_sizes", size, 1, _LARGEST_WIDTH) for size in given)


def check_layers(options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Check that the widths of hidden layers fit the tensors of a fully connected network.

    Raises:
        ValueError: If they do not.
        KeyError: If a tensor is missing.
    """
    sizes = options.get("hidden_sizes") or ()
    for layer, size in enumerate(sizes):
        rows, columns = weights[f"body.layers.{layer}.weight"].shape
        if rows != size or (layer and columns != sizes[layer - 1]):
            raise ValueError(f"hidden_sizes {sizes} are not the file's")


@register_network(
    "direct",
    "fully connected, its outputs are the action, as in the paper",
    observations=("channels", "features"),
)
class DirectNetwork(Network):
    """The paper's network: its outputs, through tanh, are the action.

    Args:
        system: System whose observations and actions it maps.
        generator: Source of the initial weights.
        hidden_sizes: Widths of the hidden layers; None means the paper's 2K, 3K, 2K.

    Raises:
        ValueError: If the widths are not allowed.
    """

    outputs_are_actions = True

    def __init__(
        self,
        system: ISACSystem,
        generator: torch.Generator,
        hidden_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        codec = system.codec
        sizes = resolve_hidden_sizes(hidden_sizes, system.scenario.num_users)
        self.body = FullyConnected(codec.observation_size, sizes, codec.action_size, generator)

    def forward(self, observation: Tensor, conditions: Conditions | None = None) -> Tensor:
        """Map observations (n, N) to actions (n, A) within (-1, 1); conditions are ignored."""
        return torch.tanh(self.body(observation))

    def output_layers(self) -> list[nn.Linear]:
        """The layers whose outputs are the action."""
        return self.body.output_layers()

    @classmethod
    def check_weights(cls, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Check that the widths of the hidden layers fit the tensors."""
        check_layers(options, weights)
