"""One agent at many operating points: SNR, thresholds, and sizes that it was not trained for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from matplotlib.figure import Figure

from isac_gym.agents import load_agent
from isac_gym.baselines import JointOracle
from isac_gym.evaluation import evaluate, evaluation_set
from isac_gym.experiments.study import Report, Row, Study, study_settings
from isac_gym.scenario import Scenario

__all__ = ["conditions_figure", "run_conditions", "run_sizes"]

SNR_DB = (0.0, 5.0, 10.0, 15.0, 20.0)
THRESHOLDS = (0.105, 0.11, 0.12, 0.14, 0.16, 0.18)
USERS = (3, 4, 5, 6, 8)
ANTENNAS = (8, 12, 16)


def run_conditions(
    agent: str | Path,
    scenario: Scenario,
    *,
    snr_db: Sequence[float] = SNR_DB,
    thresholds: Sequence[float] = THRESHOLDS,
    channels: int = 256,
    seed: int = 7,
    report: Report | None = None,
) -> Study:
    """Hold a saved agent against the joint optimum over SNR and thresholds.

    The optimum's price is found on the evaluation channels themselves, so that its mean sensing
    loss is ε there; the agent's is not, and its own mean is stated.

    Args:
        agent: Saved agent, or ``pretrained:NAME``.
        scenario: The scenario; its SNR and threshold are replaced.
        snr_db: Values of the SNR, in dB.
        thresholds: Values of ε.
        channels: Channels at every point, the same for all.
        seed: Their seed.
        report: Called with a line of text as the study goes on.

    Returns:
        One row a point.
    """
    rows = []
    for snr in snr_db:
        for threshold in thresholds:
            if report is not None:
                report(f"{snr:g} dB, ε = {threshold:g}")
            changed = scenario.replace(snr_db=snr, sensing_threshold=threshold)
            where = {"SNR, dB": snr, "ε": threshold}
            rows.append({**where, **_point(agent, changed, channels, seed)})
    return Study(
        title=f"{agent} against the joint optimum (mean constraint), {channels} channels",
        rows=tuple(rows),
        settings=study_settings(scenario, agent=str(agent), channels=channels, seed=seed),
    )


def run_sizes(
    agent: str | Path,
    scenario: Scenario,
    *,
    users: Sequence[int] = USERS,
    antennas: Sequence[int] = ANTENNAS,
    channels: int = 256,
    seed: int = 7,
    report: Report | None = None,
) -> Study:
    """Hold a saved agent against the joint optimum for other numbers of users and antennas.

    Its weights stay as they are; its price is settled anew. Where M changes the least sensing loss
    does too: ε keeps its ratio to it.

    Args:
        agent: Saved agent, or ``pretrained:NAME``.
        scenario: The scenario that the agent was trained for.
        users: Values of K, with the scenario's M.
        antennas: Values of M = M_C = M_R, with the scenario's K.
        channels: Channels at every point.
        seed: Their seed.
        report: Called with a line of text as the study goes on.

    Returns:
        One row a point.
    """
    ratio = scenario.sensing_threshold / max(scenario.sensing_floor())
    changes: list[dict[str, Any]] = [{"num_users": count} for count in users]
    for count in antennas:
        if count not in (scenario.num_comm_antennas, scenario.num_radar_antennas):
            sized = scenario.replace(
                num_comm_antennas=count, num_radar_antennas=count, sensing_threshold=1e3
            )
            changes.append(
                {
                    "num_comm_antennas": count,
                    "num_radar_antennas": count,
                    "sensing_threshold": ratio * max(sized.sensing_floor()),
                }
            )
    rows = []
    for change in changes:
        changed = scenario.replace(**change)
        where = {
            "K": changed.num_users,
            "M": changed.num_comm_antennas,
            "ε": changed.sensing_threshold,
        }
        if report is not None:
            report(", ".join(f"{key} = {value:g}" for key, value in where.items()))
        rows.append({**where, **_point(agent, changed, channels, seed)})
    return Study(
        title=f"{agent} at other sizes, without retraining, {channels} channels",
        rows=tuple(rows),
        settings=study_settings(scenario, agent=str(agent), channels=channels, seed=seed),
    )


def _point(agent: str | Path, scenario: Scenario, channels: int, seed: int) -> Row:
    env: Any = gym.make("ISAC-MISO-v0", scenario=scenario, disable_env_checker=True)
    blocks = evaluation_set(scenario, env.unwrapped.channel_model, channels, seed)
    learned = evaluate(load_agent(agent, env), env, blocks, name="agent")
    oracle = JointOracle(env, constraint="expected")
    price = oracle.find_price(torch.from_numpy(blocks.estimates[:, 0]))
    oracle = JointOracle(env, constraint="expected", price=price)
    best = evaluate(oracle, env, blocks, name="joint-expected")
    return {
        "bit/s/Hz": learned.spectral_efficiency,
        "mean L_r": learned.sensing_loss_mean,
        "optimum": best.spectral_efficiency,
        "optimum's L_r": best.sensing_loss_mean,
        "% of optimum": 100.0 * learned.spectral_efficiency / best.spectral_efficiency,
    }


def conditions_figure(study: Study) -> Figure:
    """Spectral efficiency against the threshold, one curve an SNR: agent and optimum.

    Args:
        study: Result of :func:`run_conditions`.

    Returns:
        A matplotlib figure, not attached to any window.
    """
    figure = Figure(figsize=(8.0, 5.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    by_snr: dict[float, list[Row]] = {}
    for row in study.rows:
        by_snr.setdefault(row["SNR, dB"], []).append(row)
    for number, (snr, rows) in enumerate(sorted(by_snr.items(), reverse=True)):
        colour = f"C{number}"
        axes.plot(
            [row["ε"] for row in rows],
            [row["optimum"] for row in rows],
            "-",
            color=colour,
            label=f"{snr:g} dB, joint optimum",
        )
        axes.plot(
            [row["mean L_r"] for row in rows],
            [row["bit/s/Hz"] for row in rows],
            "o",
            color=colour,
            ms=5,
            label=f"{snr:g} dB, agent ({min(row['% of optimum'] for row in rows):.1f} % or more)",
        )
    axes.set(
        title=f"One agent over SNR and threshold ({study.settings['channels']} channels a point)",
        xlabel="mean sensing loss (optimum: ε)",
        ylabel="spectral efficiency (bit/s/Hz)",
    )
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small", ncols=2, loc="upper left")
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])
    return figure
