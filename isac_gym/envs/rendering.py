"""Drawing a block: transmit beampattern beside the desired one, and the users' rates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from isac_gym.system.downlink import ISACSystem, Outcome

__all__ = ["Renderer"]

_LOGGER = logging.getLogger(__name__)


class Renderer:
    """Draws outcomes, off screen or in a window; nothing is loaded before the first drawing.

    Args:
        system: The system whose outcomes are drawn.
        mode: ``"rgb_array"`` draws off screen; ``"human"`` opens a window if matplotlib has an
            interactive backend, and logs a warning if it has none; None draws nothing.
        metadata: Of the environment: the modes that it has, and ``render_fps``, which says how
            long a window waits for events after a drawing.

    Raises:
        ValueError: If the environment has no such mode.
    """

    def __init__(self, system: ISACSystem, mode: str | None, metadata: Mapping[str, Any]) -> None:
        if mode is not None and mode not in metadata["render_modes"]:
            raise ValueError(
                f"render_mode must be None or one of {metadata['render_modes']}, got {mode!r}"
            )
        self.system = system
        self.mode = mode
        self.figure: Any = None
        self._pause = 1.0 / metadata["render_fps"]
        self._interactive = False

    def _open_figure(self) -> None:
        size = (9.0, 3.6)
        if self.mode == "human":
            import matplotlib
            from matplotlib import pyplot
            from matplotlib.backends.registry import BackendFilter, backend_registry

            self.figure = pyplot.figure(figsize=size, layout="constrained")
            windowed = backend_registry.list_builtin(BackendFilter.INTERACTIVE)  # type: ignore[no-untyped-call]
            self._interactive = matplotlib.get_backend().lower() in windowed
            if self._interactive:
                self.figure.show()
            else:
                _LOGGER.warning(
                    "render_mode='human' shows nothing: matplotlib's backend %r opens no window; "
                    "install a GUI toolkit or use render_mode='rgb_array'",
                    matplotlib.get_backend(),
                )
        else:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            self.figure = Figure(figsize=size, dpi=100, layout="constrained")
            FigureCanvasAgg(self.figure)

    def draw(self, outcome: Outcome | None, index: int = 0) -> npt.NDArray[np.uint8] | None:
        """Draw a block of an outcome.

        Args:
            outcome: The outcome; None draws the desired pattern alone.
            index: Which of its blocks.

        Returns:
            uint8 image (height, width, 3) for ``"rgb_array"``, else None.
        """
        if self.mode is None:
            gym.logger.warn("render() needs a render_mode, such as render_mode='rgb_array'")
            return None
        if self.figure is None:
            self._open_figure()
        self.figure.clear()
        pattern_axes, rate_axes = self.figure.subplots(1, 2, width_ratios=[3, 2])
        model, scenario = self.system.sensing, self.system.scenario
        grid = model.grid_deg.numpy()
        desired = model.desired.cpu().numpy().reshape(-1, len(grid))
        cells = scenario.num_cells
        if isinstance(model.pattern_scale, float):
            desired = desired * model.pattern_scale
        for cell in range(cells):
            colour = f"C{cell}"
            pattern_axes.fill_between(
                grid, desired[cell], step="mid", color=colour, alpha=0.15, lw=0
            )
            label = f"station {cell}" if cells > 1 else "transmitted"
            if outcome is not None:
                pattern = outcome.sensing.beampattern.reshape(-1, cells, len(grid))[index, cell]
                pattern_axes.plot(grid, pattern.cpu().numpy(), color=colour, label=label)
        pattern_axes.set(
            xlabel="direction (degrees)", ylabel="power (W)", xlim=(-90, 90), ylim=(0, None)
        )
        pattern_axes.set_title("Beampattern (shaded: desired)")
        rate_axes.set(xlabel="user", ylabel="spectral efficiency (bit/s/Hz)")
        if outcome is not None:
            rates = outcome.rates.reshape(-1, cells, scenario.num_users)[index].cpu().numpy()
            users = np.arange(scenario.num_users)
            width = 0.8 / cells
            for cell in range(cells):
                rate_axes.bar(users + (cell - (cells - 1) / 2) * width, rates[cell], width)
            rate_axes.set_xticks(users)
            loss = outcome.sensing.total.reshape(-1, cells)[index].cpu().numpy()
            stated = ", ".join(f"{value:.{4 if cells == 1 else 3}f}" for value in loss)
            rate_axes.set_title(f"Sum {rates.sum():.2f}, sensing loss {stated}", fontsize="medium")
            if cells > 1:
                pattern_axes.legend()
        if self.mode == "human":
            if self._interactive:
                self.figure.canvas.draw_idle()
                self.figure.canvas.start_event_loop(self._pause)
            return None
        self.figure.canvas.draw()
        return np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy()

    def close(self) -> None:
        """Release the figure, if there is one."""
        if self.figure is not None and self.mode == "human":
            from matplotlib import pyplot

            pyplot.close(self.figure)
        self.figure = None
