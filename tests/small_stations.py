"""Three small stations for the experiments, what they earn by hand, and runs that are killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import direct_model
import gymnasium as gym
import numpy as np
import torch
from small_agents import TOY
from torch import Tensor

from isac_gym import Scenario
from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.distributed import DistributedPolicy
from isac_gym.evaluation import Table
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.experiments import Experiment, run_experiment
from isac_gym.system.stations import Exchange

TARGETS = ((-50.0, 10.0), (-20.0, 40.0), (0.0,))
SCENARIO = Scenario(
    **{**TOY, "target_angles_deg": TARGETS, "sensing_threshold": 0.2},
    num_cells=3,
    intercell_gain=0.2,
)
QUICK: dict[str, Any] = {"width": 8, "stages": ((6.0, 2),), "batch_size": 8}


def save_agent(path: Path) -> str:
    """A file with an agent of short training, shaken so that its bits matter."""
    env = gym.make("ISAC-MISO-v0", scenario=SCENARIO)
    agent = DistributedPrimalDual(
        env, "tuned", iterations=10, calibration_channels=0, train_bits=(0, 3, None), **QUICK
    ).learn()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in agent.network.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    agent.save(path)
    return str(path)


def judged_by_hand(agent: Any, scenario: Scenario, blocks: EvaluationSet) -> list[dict[str, Any]]:
    """What actions earn by the direct model, for sets of single blocks."""
    found = []
    observations = agent.system.codec.observation(blocks.estimates[:, 0])
    actions = agent.predict(observations, deterministic=True)[0]
    for true, seen, action in zip(
        blocks.channels[:, 0], blocks.estimates[:, 0], actions, strict=True
    ):
        F, R, access = direct_model.decode(scenario, action, seen.astype(np.complex128))
        assert R is not None
        earned = direct_model.earned(scenario, true.astype(np.complex128), F, R, access)
        found.append({**earned, "covariances": R})
    return found


def loaded(path: str, scenario: Scenario, bits: int | None, channels: int) -> Any:
    agent = DistributedPrimalDual.load(path, gym.make("ISAC-MISO-v0", scenario=scenario))
    agent.message_bits = bits
    agent.calibrate(channels)
    return agent


def run_station(
    agent: DistributedPolicy, channels: Tensor, station: int, heard: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Message and action of a station among the others; ``heard`` replaces what reaches it."""
    sent: list[Tensor] = []

    class Tapped(Exchange):
        def swap(self, messages: Any) -> tuple[Tensor, ...]:
            sent.append(messages[station])
            arrived = list(super().swap(messages))
            arrived[station] = arrived[station] if heard is None else heard
            return tuple(arrived)

    with mock.patch("isac_gym.distributed.Exchange", Tapped), torch.inference_mode():
        actions = agent.converse(channels)
    return sent[0], actions.chunk(channels.shape[1], -1)[station]


def run_twice(experiment: Experiment, folder: Path, after: int) -> tuple[Table, list[str]]:
    """The table of a run that is killed before a line of its report, and the lines after that."""
    lines: list[str] = []

    def kill(line: str) -> None:
        lines.append(line)
        if len(lines) > after:
            raise KeyboardInterrupt

    try:
        run_experiment(experiment, folder, kill)
    except KeyboardInterrupt:
        lines.clear()
    else:
        raise AssertionError(f"the run ended within {after} lines")
    return run_experiment(experiment, folder, lines.append), lines


def is_drawn(folder: Path, name: str) -> bool:
    data = (folder / f"{name}.png").read_bytes()
    return data.startswith(b"\x89PNG") and len(data) > 20_000
