"""The picture of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from isac_gym.files import write_atomically
from isac_gym.results import Comparison
from isac_gym.system import ISACSystem

__all__ = ["comparison_figure", "save_figure"]


def comparison_figure(comparison: Comparison, system: ISACSystem) -> Figure:
    """Beampatterns beside the desired one, and rate against sensing loss.

    Args:
        comparison: What to draw.
        system: System that the agents were compared on.

    Returns:
        A matplotlib figure, not attached to any window.
    """
    scenario, grid = system.scenario, system.sensing.grid_deg.numpy()
    figure = Figure(figsize=(11.0, 5.4), dpi=120, layout="constrained")
    pattern_axes, rate_axes = figure.subplots(1, 2)
    # Without the grey of tab10: the desired pattern is grey.
    tableau, dark = (mpl.colormaps[name].colors for name in ("tab10", "Dark2"))  # type: ignore[attr-defined]
    colours = [*tableau[:7], *tableau[8:], *dark[:7]]
    markers = "os^Dv<>pX*hP"

    desired = system.sensing.desired.cpu().numpy().reshape(scenario.num_cells, -1)[0]
    if isinstance(system.sensing.pattern_scale, float):
        desired = desired * system.sensing.pattern_scale
    pattern_axes.fill_between(grid, desired, step="mid", color="0.85", lw=0, label="desired")
    shown: dict[bytes, list[Any]] = {}
    for index, result in enumerate(comparison.results):
        colour = colours[index % len(colours)]
        key = np.round(result.beampattern[0], 4).tobytes()
        if key in shown:
            shown[key].append(result.name)
        else:
            (line,) = pattern_axes.plot(grid, result.beampattern[0], color=colour, lw=1.4)
            shown[key] = [line, result.name]
        error = [
            [result.spectral_efficiency - result.confidence_low],
            [result.confidence_high - result.spectral_efficiency],
        ]
        rate_axes.errorbar(
            result.sensing_loss_mean,
            result.spectral_efficiency,
            yerr=error if np.isfinite(error).all() else None,
            fmt=markers[index % len(markers)],
            color=colour,
            capsize=3,
            label=f"{result.name} ({result.spectral_efficiency:.2f})",
        )
    for line, *names in shown.values():
        line.set_label(
            ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"
        )
    station = " of station 1" if scenario.num_cells > 1 else ""
    pattern_axes.set(
        title=f"Mean beampattern{station}",
        xlabel="direction (degrees)",
        ylabel="power (W)",
        xlim=(-90, 90),
        ylim=(0, None),
    )
    pattern_axes.set_xticks(np.arange(-90, 91, 30))

    rate_axes.axvline(scenario.sensing_threshold, color="0.4", ls="--", lw=1)
    rate_axes.annotate(
        f"ε = {scenario.sensing_threshold:g}",
        (scenario.sensing_threshold, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, -12),
        textcoords="offset points",
        color="0.4",
    )
    rate_axes.set(
        title="Rate against sensing loss (95 % intervals)",
        xlabel="mean sensing loss",
        ylabel="spectral efficiency (bit/s/Hz)",
    )
    rate_axes.set_ylim(bottom=0)
    rate_axes.margins(x=0.12)
    for axes in (pattern_axes, rate_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        box = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
        axes.legend(fontsize="small", frameon=False, **box)
    settings = comparison.settings
    figure.suptitle(
        f"K = {scenario.num_users}, M_C = {scenario.num_comm_antennas}, "
        f"M_R = {scenario.num_radar_antennas}, SNR {scenario.snr_db:g} dB, "
        f"{scenario.control} control; {settings['channels']} channels, seed {settings['seed']}",
        fontsize="medium",
    )
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the file's ending; it appears whole or not at all."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png")
    write_atomically(path, buffer.getvalue())
