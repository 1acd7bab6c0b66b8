"""What the paper's network and training reach, to the letter, against the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from isac_gym.agents import NoDual, PrimalDual
from isac_gym.baselines import JointOracle
from isac_gym.baselines.wmmse import scalar_wmmse, wmmse
from isac_gym.codec import own_channels
from isac_gym.evaluation import EvaluationSet, evaluate, evaluation_set
from isac_gym.experiments.study import Report, Row, Study, over_seeds, study_settings
from isac_gym.physics.links import radar_interference
from isac_gym.policy import Policy
from isac_gym.scenario import Scenario

__all__ = ["run_paper_network"]


def run_paper_network(
    scenario: Scenario,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    channels: int = 2000,
    evaluation_seed: int = 7,
    iterations: int | None = None,
    report: Report | None = None,
) -> Study:
    """Train with preset ``paper`` for every control mode and several seeds.

    What comes out is held against WMMSE with the same R and against the joint optimum.

    Args:
        scenario: The scenario; its control mode is replaced.
        seeds: Seeds of the trainings.
        channels: Channels of the evaluation.
        evaluation_seed: Their seed.
        iterations: Gradient steps; None means the paper's.
        report: Called with a line of text as the study goes on.

    Returns:
        One row for each control mode and learning method: means over the seeds and half-widths of
        their 95 % intervals.
    """
    if evaluation_seed in seeds:
        raise ValueError(
            f"evaluation_seed must be none of the seeds, whose training would see its channels, "
            f"got {evaluation_seed!r}"
        )
    rows: list[Row] = []
    digest = ""
    for control in ("power", "amplitude", "beamforming"):
        env = gym.make(
            "ISAC-MISO-v0", scenario=scenario.replace(control=control), disable_env_checker=True
        )
        blocks = evaluation_set(
            env.unwrapped.scenario,  # type: ignore[attr-defined]
            env.unwrapped.channel_model,  # type: ignore[attr-defined]
            channels,
            evaluation_seed,
        )
        digest = blocks.digest
        # Real weights are complex ones too: their bound is the beamformers' optimum.
        reference_env = env
        if control == "amplitude":
            changed = scenario.replace(control="beamforming")
            reference_env = gym.make("ISAC-MISO-v0", scenario=changed, disable_env_checker=True)
        if report is not None:
            report(f"joint optimum, {control}")
        oracle = JointOracle(reference_env, constraint="expected")
        best = evaluate(oracle, reference_env, blocks, name="joint-expected").spectral_efficiency
        for kind in (PrimalDual, NoDual):
            found: dict[str, list[float]] = {"rate": [], "WMMSE": [], "joint": [], "L_r": []}
            for seed in seeds:
                if report is not None:
                    report(f"{kind.kind}, {control}, seed {seed}")
                agent = kind(env, "paper", seed=seed).learn(iterations)
                result = evaluate(agent, env, blocks, name=kind.kind)
                same = _wmmse_with_its_waveform(agent, env, blocks)
                found["rate"].append(result.spectral_efficiency)
                found["WMMSE"].append(100.0 * result.spectral_efficiency / same)
                found["joint"].append(100.0 * result.spectral_efficiency / best)
                found["L_r"].append(result.sensing_loss_mean)
            rows.append(
                {
                    "agent": f"{kind.kind}, {control}",
                    **over_seeds("bit/s/Hz", found["rate"]),
                    **over_seeds("% of WMMSE, same R", found["WMMSE"]),
                    **over_seeds("% of joint", found["joint"]),
                    **over_seeds("mean L_r", found["L_r"]),
                    "joint optimum": best,
                }
            )
    return Study(
        title=f"Preset paper, {len(seeds)} seeds, {channels} channels; ± 95 % interval over seeds",
        rows=tuple(rows),
        settings=study_settings(
            scenario,
            seeds=list(seeds),
            channels=channels,
            evaluation_seed=evaluation_seed,
            evaluation_set=digest,
        ),
    )


def _wmmse_with_its_waveform(agent: Policy, env: Any, blocks: EvaluationSet) -> float:
    """Mean rate of WMMSE with the waveforms that an agent chooses, in bit/s/Hz."""
    system = env.unwrapped.system
    scenario = system.scenario
    channels = torch.from_numpy(blocks.channels[:, 0])
    estimates = torch.from_numpy(blocks.estimates[:, 0])
    observation = system.codec.observation(blocks.estimates[:, 0])
    action, _ = agent.predict(observation, deterministic=True)
    sent = system.codec.decode(torch.from_numpy(np.asarray(action)), estimates)
    own = own_channels(channels)
    radar, comm = own.split([scenario.num_radar_antennas, scenario.num_comm_antennas], dim=-1)
    noise = scenario.noise_power + radar_interference(radar, sent.streams)
    if scenario.control == "power":
        gains = (comm @ system.codec.directions(estimates)).abs().square()
        found = scalar_wmmse(gains, noise, scenario.comm_power)
    else:
        found = wmmse(comm, noise, scenario.comm_power)
    return float(found.rate.sum(-1).mean())
