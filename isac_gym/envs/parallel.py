"""The environment of several agents, ``ISAC-MultiCell-v0``: one agent a station, by PettingZoo.

A view on :class:`~isac_gym.envs.single.ISACEnv`, which draws, applies and advances: what is here
takes an action apart and puts it together, and moves messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from isac_gym.channels import ChannelModel
from isac_gym.envs.single import ISACEnv
from isac_gym.scenario import ScenarioLike, resolve_scenario
from isac_gym.system.codec import check_action
from isac_gym.system.constraints import Constraint
from isac_gym.system.features import FeatureLayout
from isac_gym.system.stations import Exchange, view_from_stations
from isac_gym.validation import check_choice, check_integer

try:
    from pettingzoo import ParallelEnv  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError(
        "the environment of several agents needs PettingZoo: pip install 'isac-gym[marl]'"
    ) from error

__all__ = ["DEFAULT_SCENARIO", "ISACParallelEnv"]

DEFAULT_SCENARIO: Final = "three-cells"
"""Preset of an environment that is given no scenario."""

LocalCSI: TypeAlias = Literal["transmit", "own"]
Observation: TypeAlias = npt.NDArray[np.float32]
RewardKind: TypeAlias = Literal["station", "network"]


class ISACParallelEnv(ParallelEnv[str, Observation, Observation]):  # type: ignore[misc]
    """Stations that transmit at the same time, each of which knows its own channels.

    The agents are ``station_0`` … ``station_{J-1}``. What one transmits, all users receive. The
    simulation is that of ``gym.make("ISAC-MISO-v0")``: with the same seed it has the same channels,
    and actions that are concatenated there achieve the same.

    Observation of station j: ``float32``, the real parts and then the imaginary parts of its
    channels, (J, K, M) for [place, user, antenna] with ``local_csi="transmit"``, (K, M) with
    ``"own"``. Place 0 is the own cell, place p the cell of the station p further on, modulo J; so
    the same policy serves all stations. With ``observation="features"`` it is the features of the
    same channels (:mod:`isac_gym.system.features`). The L·(J-1) bits that have arrived follow, L
    from each of places 1 … J-1, each -1 or +1; 0 in the first block of an episode.

    Action of station j: ``Box(-1, 1)``, its part of the action of ``ISAC-MISO-v0``, then L·(J-1)
    entries for the stations at places 1 … J-1: the bit is +1 where an entry is > 0, otherwise -1.
    They arrive with the next block's observation.

    ``infos[agent]`` after a step: ``cost``, ``cost_<name>``, ``constraint_<name>``, ``sum_rate``,
    ``rates`` and ``sinr`` (K,), ``beampattern_error``, ``cross_correlation`` and ``comm_power`` of
    that station and its cell, as in ``ISAC-MISO-v0``.

    The environment is in PettingZoo's registry, as a parallel one, as soon as both ``isac_gym`` and
    ``pettingzoo`` have been imported, in either order;
    ``pettingzoo.make("parallel", "ISAC-MultiCell-v0")`` and ``isac_gym.parallel_env()`` are the
    same. See :mod:`isac_gym.envs.registration`.

    Args:
        scenario: A :class:`~isac_gym.scenario.Scenario`, the name of a preset, a mapping of fields
            that differ from :data:`DEFAULT_SCENARIO`, or None for that. With a single cell there is
            one agent.
        reward: ``"station"``: every agent earns the rates of its own cell; ``"network"``: all earn
            those of all cells; in bit/s/Hz.
        local_csi: What a station knows: its channels to the users of all cells (``"transmit"``), or
            to its own (``"own"``).
        message_bits: Bits L of a message to one neighbour.
        channel_model: How channels are drawn: a model, its name, or None for the scenario's.
        constraints: Constraints beside those of every system: objects or registered names.
        render_mode: ``"rgb_array"``, ``"human"`` or None.
        max_cycles: PettingZoo's name of ``episode_length``; None leaves that alone.
        **parameters: Fields of the scenario to change.

    Raises:
        ImportError: If PettingZoo is not installed (when this module is imported).
        TypeError: If a keyword is not a field of the scenario, or something is of a wrong type.
        ValueError: If a value is not allowed, or the sensing threshold cannot be attained.

    Attributes:
        central: The environment that this is a view on. What it decides by itself (stepping,
            resetting) is left to this one.
        exchange: What moves the messages, and counts their bits over all episodes.
        scenario: The scenario.
        system: Its system.
        channel_model: How channels are drawn.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **ISACEnv.metadata,
        "name": "isac_multicell_v0",
        "is_parallelizable": True,
    }

    def __init__(
        self,
        scenario: ScenarioLike = None,
        *,
        reward: RewardKind = "station",
        local_csi: LocalCSI = "transmit",
        message_bits: int = 0,
        channel_model: ChannelModel | str | None = None,
        constraints: Sequence[Constraint | str] = (),
        render_mode: str | None = None,
        max_cycles: int | None = None,
        **parameters: Any,
    ) -> None:
        self.reward: RewardKind = check_choice("reward", reward, RewardKind)
        self.local_csi: LocalCSI = check_choice("local_csi", local_csi, LocalCSI)
        self.message_bits = check_integer("message_bits", message_bits, 0)
        if max_cycles is not None:
            if "episode_length" in parameters:
                raise ValueError(
                    f"max_cycles must be None with episode_length given, got {max_cycles!r}"
                )
            parameters["episode_length"] = check_integer("max_cycles", max_cycles, 1)
        self.central = ISACEnv(
            resolve_scenario(scenario, parameters, DEFAULT_SCENARIO),
            channel_model=channel_model,
            constraints=constraints,
            render_mode=render_mode,
        )
        self.scenario = self.central.scenario
        self.system = self.central.system
        self.channel_model = self.central.channel_model
        self.render_mode = render_mode
        cells = self.scenario.num_cells
        self.exchange = Exchange(cells, self.message_bits)
        self.possible_agents = [f"station_{station}" for station in range(cells)]
        self.agents: list[str] = []
        self.state_space = self.central.observation_space
        self.observation_spaces = {agent: self._make_view_space() for agent in self.possible_agents}
        size = self.system.codec.station_size + self.message_bits * (cells - 1)
        self.action_spaces = {
            agent: gym.spaces.Box(-1.0, 1.0, (size,), np.float32) for agent in self.possible_agents
        }
        self._has_begun = False
        self._arrived = self._make_silence()

    def _make_view_space(self) -> gym.spaces.Box:
        """The observation space of a station."""
        cells, scenario = self.scenario.num_cells, self.scenario
        places = cells if self.local_csi == "transmit" else 1
        numbers = 2 * places * scenario.num_users * scenario.num_antennas
        if scenario.observation == "features":
            numbers = FeatureLayout.of(scenario, places).size
        # Channels are unbounded; see isac_gym.envs.single.make_spaces.
        limit = np.full(numbers, np.finfo(np.float32).max, np.float32)
        bits = np.ones(self.message_bits * (cells - 1), np.float32)
        high = np.concatenate([limit, bits])
        return gym.spaces.Box(-high, high, dtype=np.float32)

    def _make_silence(self) -> Observation:
        """What has arrived before the first block, (J, L·(J-1)): nothing."""
        cells = self.scenario.num_cells
        return np.zeros((cells, self.message_bits * (cells - 1)), np.float32)

    def observation_space(self, agent: str) -> gym.spaces.Box:
        """The observation space of an agent, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.spaces.Box:
        """The action space of an agent, always the same object."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Start an episode of all stations.

        Args:
            seed: Seed of all randomness, or None to go on with the current generator.
            options: Those of :meth:`isac_gym.envs.single.ISACEnv.reset`. The key ``"options"``,
                which means nothing, is passed over, because PettingZoo's own tests send it.

        Returns:
            The observation of every agent, and an empty dictionary for every agent.

        Raises:
            TypeError: If the options are no dictionary, or an option is of a wrong type.
            ValueError: If an option is not allowed, or there is no such option.
        """
        if isinstance(options, Mapping):
            options = {name: value for name, value in options.items() if name != "options"}
        self.central.reset(seed=seed, options=options)
        self._has_begun = True
        self._arrived = self._make_silence()
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, npt.ArrayLike]
    ) -> tuple[
        dict[str, Observation],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Transmit from all stations for one block, deliver their messages, go on to the next.

        Args:
            actions: For every agent an array of real numbers within [-1, 1].

        Returns:
            By agent: next observations, rewards in bit/s/Hz, terminations (all False), whether the
            episode's last block is over, and the entries described above. After the last block
            ``agents`` is empty.

        Raises:
            TypeError: If an action does not hold real numbers, or the actions are no dictionary.
            ValueError: If there is no action of a station, one of an unknown station, one of
                another shape, or one with an entry that is NaN, infinite or outside [-1, 1].
            gymnasium.error.ResetNeeded: Before the first reset, and after the end of an episode.
        """
        if not self.agents:
            when = "after the end of an episode" if self._has_begun else "at first"
            raise gym.error.ResetNeeded(f"env.reset() must be called before env.step() {when}")
        parts = self._check_actions(actions)
        own = self.system.codec.station_size
        _, total, _, truncated, info = self.central.step(parts[:, :own].ravel())
        if self.message_bits:
            self._deliver(parts[:, own:])
        infos = self._split_info(info)
        stations = self.agents
        observations = self._observe()
        if truncated:
            self.agents = []
        return (
            observations,
            {
                agent: total if self.reward == "network" else float(infos[agent]["sum_rate"])
                for agent in stations
            },
            dict.fromkeys(stations, False),
            dict.fromkeys(stations, truncated),
            infos,
        )

    def _check_actions(self, actions: Mapping[str, npt.ArrayLike]) -> Observation:
        """The actions of all stations, checked, (J, S + L·(J-1))."""
        if not isinstance(actions, Mapping):
            raise TypeError(f"actions must be a dictionary by agent, got {type(actions).__name__}")
        unknown = [name for name in actions if name not in self.possible_agents]
        missing = [name for name in self.possible_agents if name not in actions]
        for fault, names in (("unknown", unknown), ("missing", missing)):
            if names:
                raise ValueError(
                    f"actions must hold one action for each of {', '.join(self.possible_agents)}; "
                    f"{fault}: {', '.join(map(str, names))}"
                )
        return np.stack([self._check_part(agent, actions[agent]) for agent in self.possible_agents])

    def _check_part(self, agent: str, action: npt.ArrayLike) -> Observation:
        """The action of one station, checked, (S + L·(J-1),)."""
        size = self.system.codec.station_size
        bits = self.message_bits * (self.scenario.num_cells - 1)
        try:
            return check_action(action, (size + bits,))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            parts = f" ({size} numbers to transmit, then {bits} of messages)" if bits else ""
            raise kind(f"actions[{agent!r}]: {error}{parts}") from error

    def _deliver(self, numbers: Observation) -> None:
        """Move the messages in the stations' numbers (J, L·(J-1))."""
        cells = self.scenario.num_cells
        bits = np.where(numbers > 0, np.float32(1), np.float32(-1))
        sent = torch.from_numpy(bits.reshape(cells, 1, cells - 1, self.message_bits))
        received = self.exchange.swap(tuple(sent))
        self._arrived = torch.stack(received).reshape(cells, -1).numpy()

    def _observe(self) -> dict[str, Observation]:
        """Every station's channels and what it has received."""
        estimates = torch.from_numpy(self.central.simulation.estimates[0])
        views = view_from_stations(estimates).numpy()
        if self.local_csi == "own":
            views = views[:, :1]
        seen = self.system.codec.describe_views(views[None])[0]
        rows = np.concatenate([seen, self._arrived], axis=1)
        return {agent: row.copy() for agent, row in zip(self.possible_agents, rows, strict=True)}

    def _split_info(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Every station's part of what the environment of all stations says."""
        if self.scenario.num_cells == 1:
            return {self.possible_agents[0]: info}
        costs = ["cost", *(f"cost_{name}" for name in self.system.constraints)]
        summed = {f"{name}_by_cell": name for name in (*costs, "sum_rate")}
        infos = {}
        for station, agent in enumerate(self.possible_agents):
            own = {name: info[entry][station] for entry, name in summed.items()}
            for name, value in info.items():
                if name not in own and name not in summed:
                    own[name] = value[station].copy() if value.ndim > 1 else value[station]
            infos[agent] = own
        return infos

    def state(self) -> Observation:
        """The observation of ``ISAC-MISO-v0``: what all stations together know; a copy.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        if not self._has_begun:
            raise gym.error.ResetNeeded("env.reset() must be called before env.state() at first")
        together: Observation = self.central.simulation.observe()[0]
        return together

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the beampatterns of all stations and the rates of the last block.

        Returns:
            uint8 image (height, width, 3) with ``render_mode="rgb_array"``, else None.
        """
        return self.central.render()

    def close(self) -> None:
        """Close the window, if there is one."""
        self.central.close()
