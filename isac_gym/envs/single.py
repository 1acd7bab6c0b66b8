"""The Gymnasium environment ``ISAC-MISO-v0``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from isac_gym.channels import ChannelModel, Complex
from isac_gym.channels.placement import check_user_positions
from isac_gym.channels.selection import resolve_channel_model
from isac_gym.envs.options import check_channels, check_channels_alone, check_options
from isac_gym.envs.rendering import Renderer
from isac_gym.scenario import ScenarioLike, resolve_scenario
from isac_gym.system.codec import check_action
from isac_gym.system.constraints import Constraint
from isac_gym.system.downlink import ISACSystem, Outcome
from isac_gym.system.simulation import Simulation

__all__ = ["ISACEnv", "collect_info", "decode_action", "make_spaces"]

Observation = npt.NDArray[np.float32]


def make_spaces(system: ISACSystem) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Observation and action space of one environment.

    Channels are unbounded; the observation space ends at the largest float32 so that checkers
    that refuse infinite bounds accept it.
    """
    limit = float(np.finfo(np.float32).max)
    return (
        gym.spaces.Box(-limit, limit, (system.codec.observation_size,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (system.codec.action_size,), np.float32),
    )


def collect_info(outcome: Outcome) -> dict[str, npt.NDArray[Any]]:
    """The entries of ``info`` for a batch of n blocks, as arrays.

    Costs have shape (n,); with one cell constraints, losses and powers have shape (n,) and
    ``rates`` and ``sinr`` (n, K), with several cells (n, J) and (n, J, K). What is summed over
    several cells is also there by cell, (n, J).
    """
    constraints = outcome.constraints
    stations = {
        **{f"constraint_{name}": value for name, value in constraints.items()},
        "beampattern_error": outcome.sensing.beampattern_error,
        "cross_correlation": outcome.sensing.cross_correlation,
        "comm_power": outcome.transmission.comm_power,
    }
    users = {"rates": outcome.rates, "sinr": outcome.sinr}
    num, cells, count = outcome.rates.shape
    # One tensor, because each copy to NumPy costs about as much as the arithmetic of an entry.
    table = torch.cat(
        [
            *stations.values(),
            *(value.view(num, -1) for value in users.values()),
            outcome.sum_rate.unsqueeze(1),
        ],
        dim=1,
    )
    columns = table.cpu().numpy()
    # Entry first, so that iterating hands out one array an entry.
    by_station = columns[:, : cells * len(stations)].reshape(num, -1, cells).swapaxes(0, 1)
    by_user = columns[:, cells * len(stations) : -1].reshape(num, -1, cells, count).swapaxes(0, 1)
    costs = np.maximum(by_station[: len(constraints)], 0.0)
    names = [f"cost_{name}" for name in constraints]
    by_cell: dict[str, npt.NDArray[Any]] = {}
    if cells == 1:
        by_station, by_user, costs = by_station[..., 0], by_user[:, :, 0], costs[..., 0]
    else:
        by_cell = {
            "sum_rate_by_cell": by_user[0].sum(-1),
            "cost_by_cell": costs.sum(0),
            **{f"{name}_by_cell": value for name, value in zip(names, costs, strict=True)},
        }
        costs = costs.sum(-1)
    return {
        "cost": costs.sum(0),
        **dict(zip(names, costs, strict=True)),
        "sum_rate": columns[:, -1],
        **dict(zip(stations, by_station, strict=True)),
        **dict(zip(users, by_user, strict=True)),
        **by_cell,
    }


def decode_action(
    system: ISACSystem, estimates: Complex, action: npt.ArrayLike
) -> tuple[Complex, Complex]:
    """What an action means in a block.

    Args:
        system: The system.
        estimates: Channels as observed, complex (J, J, K, M).
        action: Array (A,) of real numbers within [-1, 1].

    Returns:
        Precoder F (M_C, K) as transmitted, in √W, and radar covariance R (M_R, M_R), in W;
        with several cells both have a leading station axis.

    Raises:
        TypeError: If the action does not hold real numbers.
        ValueError: If its shape differs, or an entry is NaN, infinite or outside [-1, 1].
    """
    checked = check_action(action, (system.codec.action_size,))
    with torch.no_grad():
        sent = system.codec.decode(
            torch.from_numpy(checked).to(system.device),
            torch.from_numpy(estimates).to(system.device),
        )
        precoders = sent.precoders.cpu().numpy()
        covariance = (sent.streams @ sent.streams.mH).cpu().numpy()
    if system.scenario.num_cells == 1:
        return precoders[0], covariance[0]
    return precoders, covariance


class ISACEnv(gym.Env[Observation, npt.NDArray[np.float32]]):
    """A base station that communicates and senses at the same time; one step is one block.

    The observation is the channel matrix as the station knows it, the action a precoder (and a
    radar waveform), the reward the spectral efficiency in bit/s/Hz. Constraints are reported in
    ``info`` and never subtracted from the reward; :mod:`isac_gym.envs.wrappers` has other dialects.

    Observation: ``float32`` (2·K·M,), ``concatenate([H.real.ravel(), H.imag.ravel()])`` with H of
    shape (K, M_R + M_C) and row k = [f_k, g_k]; with J > 1 cells, H has shape (J, J, K, M) for
    [station, cell, user, antenna].

    Action: ``Box(-1, 1)``, communication part first, then radar part, then access variables; with
    several cells, station after station.

    =============== ====================================================================
    part            meaning
    =============== ====================================================================
    ``power``       K entries: p_k = P_C·(a_k + 1)/2 along fixed directions
    ``amplitude``   M_C·K entries: F = √P_C·a, shape (M_C, K)
    ``beamforming`` 2·M_C·K entries: F = √P_C·(a_re + j·a_im), all real parts first
    learned radar   2·M_R·r entries: V (M_R, r), all real parts first, rows then scaled
                    to √(P_R/M_R); a zero row becomes a uniform one
    contention      K entries: τ_k = 1 where a > 0
    =============== ====================================================================

    ``info`` after a step: for every constraint of the system (``power``, ``sensing``,
    ``scheduling`` where users contend, and those of ``constraints=``) the signed
    ``constraint_<name>``, excess/limit, feasible where <= 0, and its positive part
    ``cost_<name>``; ``cost``, the sum of those parts; ``sum_rate``, ``rates`` and ``sinr`` (K,),
    ``beampattern_error``, ``cross_correlation``, ``comm_power``. Entries are NumPy scalars and
    arrays. With J > 1 cells, costs and ``sum_rate`` are sums over the cells,
    ``sum_rate_by_cell``, ``cost_by_cell`` and ``cost_<name>_by_cell`` (J,) are what they are the
    sums of, ``rates`` and ``sinr`` have shape (J, K) and the other entries (J,).

    Args:
        scenario: A :class:`~isac_gym.scenario.Scenario`, the name of a preset, a mapping of fields
            that differ from the default (such as an ``env_config``), or None for the default.
        channel_model: How channels are drawn: a model, its name (``"rician"``,
            ``"file:my.npy"``), or None for Rayleigh, or Gauss-Markov if the scenario has a Doppler
            frequency.
        constraints: Constraints beside those of every system: objects or registered names.
        render_mode: ``"rgb_array"``, ``"human"`` or None.
        **parameters: Fields of the scenario to change.

    Raises:
        TypeError: If a keyword is not a field of the scenario, or something is of a wrong type.
        ValueError: If a value is not allowed, or the sensing threshold cannot be attained.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array", "human"],
        "render_fps": 4,
    }

    def __init__(
        self,
        scenario: ScenarioLike = None,
        *,
        channel_model: ChannelModel | str | None = None,
        constraints: Sequence[Constraint | str] = (),
        render_mode: str | None = None,
        **parameters: Any,
    ) -> None:
        self.scenario = resolve_scenario(scenario, parameters)
        self.system = ISACSystem(self.scenario, constraints)
        self.channel_model = resolve_channel_model(channel_model, self.scenario)
        self.render_mode = render_mode
        self.observation_space, self.action_space = make_spaces(self.system)
        self.simulation = Simulation(self.system, self.channel_model, 1)
        self._renderer = Renderer(self.system, render_mode, self.metadata)
        self._elapsed: int | None = None
        self._outcome: Outcome | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with a fresh channel.

        Args:
            seed: Seed of all randomness, or None to go on with the current generator.
            options: ``{"channels": H}`` starts from the given channels, complex (K, M) or, with
                several cells, (J, J, K, M). ``{"user_positions": P}``, with a layout other than
                ``"uniform"``, lets the users stand at the given points for the episode, (J, K, 2)
                in m; shadowing is drawn. Channels of such a layout must come with positions if the
                gains of these users matter to them: for the error of an estimate, with
                ``csi_error_variance``, or for the blocks that follow from them, with ``doppler``.

        Returns:
            Observation and an empty dictionary.

        Raises:
            TypeError: If the options are no dictionary, the channels no numbers, or the positions
                no real ones.
            ValueError: If the channels or positions have another shape or are not finite, a user
                stands closer to a station than ``least_distance``, the layout has no positions,
                positions are missing, or there is another option.
        """
        given = check_options(options, "channels", "user_positions")
        channels, positions = given.get("channels"), given.get("user_positions")
        if positions is not None:
            name = "options['user_positions']"
            positions = check_user_positions(positions, self.scenario, name=name)[None]
        if channels is not None:
            channels = check_channels(channels, self.simulation.deployment)[None]
            if positions is None:
                check_channels_alone(self.scenario, self.channel_model)
        super().reset(seed=seed)
        if channels is None:
            self.simulation.start(self.np_random, positions=positions)
        else:
            self.simulation.place(self.np_random, channels, positions)
        self._elapsed = 0
        self._outcome = None
        if self.render_mode == "human":
            self.render()
        return self.simulation.observe()[0], {}

    def step(self, action: npt.ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Transmit for one block, then move to the next.

        Args:
            action: Array (A,) of real numbers within [-1, 1].

        Returns:
            Next observation, spectral efficiency in bit/s/Hz, False, whether the episode's
            last block is over, and the entries described above.

        Raises:
            TypeError: If the action does not hold real numbers.
            ValueError: If its shape differs, or an entry is NaN, infinite or outside [-1, 1].
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        if self._elapsed is None:
            raise gym.error.ResetNeeded("Cannot call env.step() before calling env.reset()")
        checked = check_action(action, (self.system.codec.action_size,))
        with torch.inference_mode():
            outcome = self.simulation.apply(torch.from_numpy(checked).unsqueeze(0))
            batch = collect_info(outcome)
        # An entry of one number is a NumPy scalar, which has a type for those who need one.
        info = {
            key: value[0].copy() if value.ndim > 1 else value[0] for key, value in batch.items()
        }
        self._outcome = outcome
        self.simulation.advance(self.np_random)
        self._elapsed += 1
        if self.render_mode == "human":
            self.render()
        truncated = self._elapsed >= self.scenario.episode_length
        return self.simulation.observe()[0], float(info["sum_rate"]), False, truncated, info

    @property
    def channels(self) -> Complex:
        """A copy of the true channels H of the current block, (K, M) or (J, J, K, M)."""
        current: Complex = self.simulation.channels[0].copy()
        if self.scenario.num_cells == 1:
            current = current[0, 0]
        return current

    def decode_action(self, action: npt.ArrayLike) -> tuple[Complex, Complex]:
        """What an action means in the current block.

        Args:
            action: Array (A,) of real numbers within [-1, 1].

        Returns:
            Precoder F (M_C, K) as transmitted, in √W, and radar covariance R (M_R, M_R), in W;
            with several cells both have a leading station axis.

        Raises:
            TypeError: If the action does not hold real numbers.
            ValueError: If its shape differs, or an entry is NaN, infinite or outside [-1, 1].
        """
        return decode_action(self.system, self.simulation.estimates[0], action)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the beampattern and the rates of the last block.

        Returns:
            uint8 image (height, width, 3) with ``render_mode="rgb_array"``, else None.
        """
        return self._renderer.draw(self._outcome)

    def close(self) -> None:
        """Close the window, if there is one."""
        self._renderer.close()
