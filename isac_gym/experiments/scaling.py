"""How the paper's distributed network grows with the number of stations: what Table I states."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.evaluation.table import Row, Table
from isac_gym.experiments.base import Experiment, Point, Workspace, setting
from isac_gym.experiments.style import make_figure
from isac_gym.learning.progress import TrainingProgress
from isac_gym.registry import register_experiment

__all__ = ["Scaling", "count_kept_bytes", "fit_exponent"]

_UNTIMED: Final = 5
_PARAMETERS: Final = "parameters"
_SECONDS: Final = "s an iteration"
_BYTES: Final = "bytes of a training"
_COPIES: Final = 4
"""A weight is kept four times: itself, its gradient and the two moments of Adam."""
_MEASURED: Final = (_PARAMETERS, _SECONDS, _BYTES)


@register_experiment("scaling", "the paper's distributed network against the number of stations")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(Experiment):
    """Parameters, seconds and memory of Algorithm 2, all layers trained, preset ``paper``.

    The memory of a training is that of its weights, their gradients and the two moments of Adam,
    and of all that an iteration keeps for its backward pass, which :func:`count_kept_bytes` counts.

    All stations look for the targets of the scenario's first one.

    Attributes:
        stations: Numbers of stations J.
        message_bits: Length L of a message.
        iterations: Iterations that are timed; their median counts.
    """

    stations: tuple[int, ...] = setting((1, 2, 4, 8, 16), "Numbers of stations.", minimum=1)
    message_bits: int = setting(8, "Bits of a message.", minimum=0)
    iterations: int = setting(50, "Iterations that are timed.", minimum=1)

    def points(self) -> list[Point]:
        """The numbers of stations."""
        return [{"J": count} for count in self.stations]

    def run(self, point: Point, workspace: Workspace) -> Row:
        """Count the weights of a network and time its training."""
        cells = point["J"]
        targets = self.scenario.targets_by_cell[0]
        env = self.make_env(num_cells=cells, target_angles_deg=targets)
        make_agent = functools.partial(
            DistributedPrimalDual,
            env,
            "paper",
            transfer=False,
            message_bits=self.message_bits,
            device="cpu",
        )
        agent = make_agent()
        learn = functools.partial(agent.learn, 1)
        kept = count_kept_bytes(learn, list(agent.network.parameters()))
        agent = make_agent()
        times = [0.0]

        def note(progress: TrainingProgress) -> None:
            times.append(time.perf_counter())

        agent.learn(_UNTIMED + self.iterations, callback=note)
        weights = list(agent.network.parameters())
        count = sum(weight.numel() for weight in weights)
        return {
            _PARAMETERS: count,
            "parameters a station": count // cells,
            _BYTES: kept + _COPIES * sum(weight.nbytes for weight in weights),
            _SECONDS: float(np.median(np.diff(times[_UNTIMED:]))),
            "bits a block": self.message_bits * cells * (cells - 1),
            "threads": torch.get_num_threads(),
        }

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row a number of stations; the title states the fitted exponents."""
        x = [row["J"] for row in rows]
        found = [
            f"{name} ~ J^{fit_exponent(x, [row[name] for row in rows]):.2f}" for name in _MEASURED
        ]
        title = f"Algorithm 2, preset paper, L = {self.message_bits}: {', '.join(found)}"
        return Table(title, tuple(rows), self.settings())

    def draw(self, table: Table) -> Figure:
        """Parameters, time and memory in multiples of those of the smallest number of stations."""
        figure, axes = make_figure(6.0, 4.4)
        x = np.array([row["J"] for row in table.rows], float)
        for name in _MEASURED:
            y = np.array([row[name] for row in table.rows], float)
            axes.loglog(x, y / y[x.argmin()], "o-", label=name)
        axes.loglog(x, x / x.min(), ":", color="0.5", label="in proportion to J")
        axes.set(xlabel="stations J", ylabel=f"relative to J = {x.min():g}")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        return figure


def count_kept_bytes(compute: Callable[[], object], besides: Iterable[torch.Tensor]) -> int:
    """The memory that a computation keeps for its backward pass.

    Args:
        compute: What is called once, with one backward pass or none.
        besides: Tensors whose memory does not count, for instance weights.

    Returns:
        Bytes of all tensors that were kept; tensors that share their memory count once.
    """
    excluded = {tensor.untyped_storage().data_ptr() for tensor in besides}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        compute()
    return sum(kept.values())


def fit_exponent(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The exponent a of the power law y ~ x^a that is least squares in the logarithms.

    Args:
        x: Positive numbers.
        y: Positive numbers, as many.

    Returns:
        The exponent; NaN where there are no two different x.
    """
    across = np.log(np.asarray(x, float))
    if np.ptp(across) == 0:
        return math.nan
    return float(np.polyfit(across, np.log(np.asarray(y, float)), 1)[0])
