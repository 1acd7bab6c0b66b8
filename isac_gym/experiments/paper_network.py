"""What the paper's network and training reach, to the letter, against the references."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from isac_gym.agents import NoDual, PrimalDual
from isac_gym.baselines import JointOracle
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.judging import evaluate
from isac_gym.evaluation.statistics import over_seeds
from isac_gym.evaluation.table import Row, Table
from isac_gym.experiments.base import (
    Experiment,
    Point,
    Workspace,
    check_evaluation_seed,
    setting,
)
from isac_gym.physics.links import radar_interference
from isac_gym.policy import Policy
from isac_gym.registry import register_experiment
from isac_gym.solvers.wmmse import scalar_wmmse, wmmse

__all__ = ["PaperNetwork"]

_AGENTS: Final = {kind.kind: kind for kind in (PrimalDual, NoDual)}
_JOINT: Final = "joint-expected"


@register_experiment("paper", "the paper's network and training to the letter, several seeds")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperNetwork(Experiment):
    """Preset ``paper`` for every control mode, against the joint optimum and WMMSE with the same R.

    Attributes:
        seeds: Number of seeds of the trainings, from 0.
        channels: Channels of the evaluation.
        evaluation_seed: Their seed.
        iterations: Gradient steps; None means the paper's.
    """

    seeds: int = setting(5, "Number of seeds, from 0.", minimum=1, only_selects=True)
    channels: int = setting(2000, "Channels of the evaluation.", minimum=1)
    evaluation_seed: int = setting(7, "Their seed.", minimum=0)
    iterations: int | None = setting(None, "Gradient steps; the paper's by default.", minimum=1)

    def points(self) -> list[Point]:
        """The optimum, then every method and seed, for every control mode.

        Raises:
            ValueError: If training would see the channels of the evaluation.
        """
        check_evaluation_seed(self.evaluation_seed, self.seeds)
        return [
            {"control": control, "agent": agent, "seed": seed}
            for control in ("power", "amplitude", "beamforming")
            for agent in (_JOINT, *_AGENTS)
            for seed in range(1 if agent == _JOINT else self.seeds)
        ]

    def run(self, point: Point, workspace: Workspace) -> Row:
        """Train and judge one agent, or judge the optimum."""
        control, name = point["control"], point["agent"]
        if name == _JOINT and control == "amplitude":
            control = "beamforming"  # real weights are complex ones too: their bound is the same
        env = self.make_env(control=control)
        blocks = self.draw_channels(env, self.channels, self.evaluation_seed)
        if name == _JOINT:
            oracle = JointOracle(env, constraint="expected")
            return {"rate": evaluate(oracle, env, blocks, name=name).spectral_efficiency}
        agent = _AGENTS[name](env, "paper", seed=point["seed"])
        kept = workspace.keep_training(f"{name}-{control}-{point['seed']}")
        agent.learn(self.iterations, **kept)
        result = evaluate(agent, env, blocks, name=name)
        return {
            "rate": result.spectral_efficiency,
            "rate of WMMSE": _improve_precoder(agent, env, blocks),
            "loss": result.constraints["sensing"].mean,
        }

    def tabulate(self, rows: Sequence[Row]) -> Table:
        """One row for each control mode and method: means over the seeds with their intervals."""
        trained: dict[tuple[str, str], list[Row]] = {}
        best = {row["control"]: row["rate"] for row in rows if row["agent"] == _JOINT}
        for row in rows:
            if row["agent"] != _JOINT:
                trained.setdefault((row["control"], row["agent"]), []).append(row)
        blocks = self.draw_channels(self.env, self.channels, self.evaluation_seed)
        return Table(
            f"Preset paper, {self.seeds} seeds, {self.channels} channels; ± 95 % interval over "
            "seeds",
            tuple(
                {
                    "agent": f"{agent}, {control}",
                    **over_seeds("bit/s/Hz", [row["rate"] for row in found]),
                    **over_seeds(
                        "% of WMMSE, same R",
                        [100.0 * row["rate"] / row["rate of WMMSE"] for row in found],
                    ),
                    **over_seeds(
                        "% of joint", [100.0 * row["rate"] / best[control] for row in found]
                    ),
                    **over_seeds("mean L_r", [row["loss"] for row in found]),
                    "joint optimum": best[control],
                }
                for (control, agent), found in trained.items()
            ),
            {**self.settings(), "evaluation_set": blocks.digest},
        )


def _improve_precoder(agent: Policy, env: Any, blocks: EvaluationSet) -> float:
    """Mean rate of WMMSE with the waveforms that an agent chooses, in bit/s/Hz."""
    system = env.unwrapped.system
    scenario = system.scenario
    channels = torch.from_numpy(blocks.channels[:, 0])
    estimates = torch.from_numpy(blocks.estimates[:, 0])
    observation = system.codec.observation(blocks.estimates[:, 0])
    action, _ = agent.predict(observation, deterministic=True)
    sent = system.codec.decode(torch.from_numpy(np.asarray(action)), estimates)
    radar, comm = system.codec.split_own_channels(channels)
    noise = scenario.noise_power + radar_interference(radar, sent.streams)
    if scenario.control == "power":
        gains = (comm @ system.codec.directions(estimates)).abs().square()
        found = scalar_wmmse(gains, noise, scenario.comm_power)
    else:
        found = wmmse(comm, noise, scenario.comm_power)
    return float(found.rate.sum(-1).mean())
