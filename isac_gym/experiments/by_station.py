"""What every station achieves by itself, and what the experiments of several stations share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from isac_gym.agents.distributed import DistributedPrimalDual
from isac_gym.agents.loading import digest_file, load_agent
from isac_gym.evaluation.calling import act_on_blocks
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.statistics import mean_interval
from isac_gym.experiments.base import Experiment, setting
from isac_gym.policy import Policy
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import find_system
from isac_gym.system.simulation import Simulation
from isac_gym.validation import not_allowed

__all__ = ["REAL", "DistributedAgent", "OfStations", "StationResult", "judge_stations"]

REAL: Final = "real"
"""The number of bits of a message of real numbers, in points and tables."""
_CHUNK: Final = 512


@dataclasses.dataclass(frozen=True)
class StationResult:
    """What an agent achieves at each of J stations, on an evaluation set of E episodes of T blocks.

    Attributes:
        rates: Spectral efficiency of each station's users together, (E, T, J), in bit/s/Hz.
        losses: Sensing loss L_r, (E, T, J).
        errors: Beampattern error L_r1, (E, T, J), in W².
        beampattern: Mean beampattern over blocks, (J, L), in W.
        excess: Mean over blocks of each signed constraint by its name, (J,).
    """

    rates: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    losses: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    errors: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    beampattern: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    excess: Mapping[str, npt.NDArray[np.float64]]

    @property
    def by_episode(self) -> npt.NDArray[np.float64]:
        """Rate a station of each episode, (E,), in bit/s/Hz; episodes are independent."""
        mean: npt.NDArray[np.float64] = self.rates.mean((1, 2))
        return mean

    @property
    def worst_mean_constraint(self) -> float:
        """The largest mean constraint, over constraints and stations; feasible where <= 0."""
        return max(float(values.max()) for values in self.excess.values())

    def row(self) -> dict[str, Any]:
        """Rate a station with its 95 % interval, mean sensing loss, worst mean constraint."""
        low, high = mean_interval(self.by_episode)
        return {
            "rate": float(self.rates.mean()),
            "confidence_low": low,
            "confidence_high": high,
            "sensing_mean": float(self.losses.mean()),
            "worst_mean_constraint": self.worst_mean_constraint,
        }


def judge_stations(
    agent: Policy, env: Any, blocks: EvaluationSet, *, name: str = "agent"
) -> StationResult:
    """Judge an agent station by station.

    Args:
        agent: Any object with ``predict``.
        env: Environment whose scenario the set was drawn for.
        blocks: The evaluation set.
        name: Name of the agent, for messages.

    Returns:
        The result.

    Raises:
        AgentError: If the agent's ``predict`` raises or does not return an action and a state, or
            if an action does not hold real numbers, has the wrong shape, is not finite or outside
            [-1, 1].
    """
    system = find_system(env)
    episodes, length = blocks.channels.shape[:2]
    cells = system.scenario.num_cells
    rates, losses, errors = np.empty((3, episodes, length, cells))
    excess = {key: np.zeros(cells) for key in system.limits}
    pattern = np.zeros((cells, len(system.sensing.grid_deg)))
    simulation = Simulation(system, env.unwrapped.channel_model, episodes)
    for first in range(0, episodes, _CHUNK):
        part = slice(first, first + _CHUNK)
        state: Any = None
        for block in range(length):
            simulation.hold(blocks.channels[part, block], blocks.estimates[part, block])
            outcome, state, _ = act_on_blocks(
                agent, simulation, name, state=state, is_first=block == 0, deterministic=True
            )
            rates[part, block] = outcome.rates.sum(-1).cpu().numpy()
            losses[part, block] = outcome.sensing.total.cpu().numpy()
            errors[part, block] = outcome.sensing.beampattern_error.cpu().numpy()
            pattern += outcome.sensing.beampattern.double().sum(0).cpu().numpy()
            for key, signed in outcome.constraints.items():
                excess[key] += signed.double().sum(0).cpu().numpy()
    return StationResult(
        rates,
        losses,
        errors,
        pattern / blocks.count,
        {key: values / blocks.count for key, values in excess.items()},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfStations(Experiment):
    """An experiment of several stations.

    Attributes:
        scenario: The scenario, with ``num_cells`` >= 2; the preset ``three-cells`` by default.
    """

    scenario: Scenario = dataclasses.field(default_factory=lambda: Scenario.preset("three-cells"))

    def check_stations(self) -> None:
        """Check that there are several stations.

        Raises:
            ValueError: If there is one.
        """
        if self.scenario.num_cells < 2:
            raise ValueError(
                f"num_cells must be at least 2 for experiment {self.name!r}, as in the scenario "
                f"'three-cells', got {self.scenario.num_cells}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedAgent(OfStations):
    """A trained distributed agent whose stations are asked for other messages than before.

    Attributes:
        agent: Saved agent, or ``pretrained:NAME``.
        channels: Channels at every point.
        evaluation_seed: Their seed.
        calibration_channels: Other channels, on which its price is settled.
    """

    agent: str = setting("pretrained:distributed", "Saved distributed agent or pretrained:NAME.")
    channels: int = setting(1000, "Channels at every point.", minimum=1)
    evaluation_seed: int = setting(7, "Their seed.", minimum=0)
    calibration_channels: int = setting(
        1024, "Other channels, on which the price is settled.", minimum=1
    )

    def settings(self) -> dict[str, Any]:
        """All that the results depend on, the agent's file among it."""
        return {**super().settings(), "file_digest": digest_file(self.agent)}

    def check_agent(self, lengths: Sequence[int | None]) -> None:
        """Check, before anything is computed, that stations of the scenario can send such messages.

        Args:
            lengths: Bits of a message; None for real numbers.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds no distributed agent, or its weights do not serve a
                length.
        """
        if not isinstance(load_agent(self.agent), DistributedPrimalDual):
            raise not_allowed("agent", self.agent, "a saved agent of DistributedPrimalDual")
        agent = load_agent(self.agent, self.env)
        for length in lengths:
            agent.message_bits = length

    def ask_for(self, agent: DistributedPrimalDual, length: int | None) -> None:
        """Let an agent send messages of another length, with its price settled for them.

        Args:
            agent: The agent.
            length: Bits of a message; None for real numbers.

        Raises:
            ValueError: If its weights do not serve the length, or no price keeps the limit.
        """
        agent.message_bits = length
        if agent.has_price:
            agent.calibrate(self.calibration_channels)
