"""Networks of the learning agents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["FullyConnected", "truncated_normal_"]


def truncated_normal_(layer: nn.Linear, generator: torch.Generator, bias: float = 0.01) -> None:
    """Initialise a layer: zero-mean truncated normal of standard deviation 1/√fan-in, fixed bias.

    Args:
        layer: Changed in place.
        generator: Source of randomness.
        bias: Value of every bias.
    """
    deviation = layer.in_features**-0.5
    nn.init.trunc_normal_(
        layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
    )
    nn.init.constant_(layer.bias, bias)


class FullyConnected(nn.Module):
    """Fully connected network with ReLU between its layers and tanh at the end.

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
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs)
            for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True)
        )
        for layer in self.layers:
            truncated_normal_(layer, generator)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, num_inputs) to (n, num_outputs) within (-1, 1)."""
        hidden = inputs
        for layer in list(self.layers)[:-1]:
            hidden = torch.relu(layer(hidden))
        output: Tensor = torch.tanh(self.layers[-1](hidden))
        return output

    @torch.no_grad()
    def start_output_at(self, values: Tensor, where: slice, weight_scale: float) -> None:
        """Make some outputs begin near given values, whatever the input.

        Args:
            values: Wanted outputs within [-1, 1].
            where: Which outputs.
            weight_scale: Factor on the last layer's weights for those outputs.
        """
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias[where] = torch.atanh(values.clamp(-0.95, 0.95))
        last.weight[where] *= weight_scale
