"""A small network of stations for tests, and what its policies earn by the direct model."""

from __future__ import annotations

from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import reference
import torch
from torch import Tensor

from isac_gym.channels.process import ChannelProcess
from isac_gym.system.downlink import find_system
from isac_gym.system.stations import view_from_stations

NETWORK: dict[str, Any] = {
    **direct_model.SMALL,
    "num_cells": 3,
    "intercell_gain": 0.2,
    "target_angles_deg": ((-50.0, 10.0), (-20.0, 40.0), (0.0,)),
    "sensing_threshold": 0.25,
    "episode_length": 1,
}
"""Three stations with targets of their own; all dimensions differ."""
TIGHT: dict[str, Any] = {
    **NETWORK,
    "intercell_gain": 0.3,
    "target_angles_deg": ((-50.0, 10.0), (-40.0, 20.0), (-50.0, 10.0)),
    "sensing_threshold": 0.16,
}
"""The same with thresholds that bind at every station, and stronger paths between cells."""


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**NETWORK, **changes})


def make_tight(**changes: Any) -> gym.Env[Any, Any]:
    return make(**{**TIGHT, **changes})


def drawn_by_model(env: gym.Env[Any, Any], count: int, seed: int = 0) -> Tensor:
    """H of the environment's own channel model, as for layouts with distances."""
    process = ChannelProcess(env.unwrapped.channel_model, env.unwrapped.scenario, count)
    process.start(np.random.default_rng(seed))
    return torch.from_numpy(process.channels)


def drawn(env: gym.Env[Any, Any], count: int, seed: int = 0) -> Tensor:
    """H, complex64 (n, J, J, K, M), with the gain of the scenario between cells."""
    scenario = find_system(env).scenario
    cells, users, antennas = scenario.num_cells, scenario.num_users, scenario.num_antennas
    rng = np.random.default_rng(seed)
    channels = reference.complex_normal(rng, count, cells, cells, users, antennas)
    for station in range(cells):
        for cell in range(cells):
            if cell != station:
                channels[:, station, cell] *= scenario.intercell_gain**0.5
    return torch.from_numpy(channels.astype(np.complex64))


def predicted(agent: Any, channels: Tensor) -> npt.NDArray[np.float32]:
    observation = agent.system.codec.observation(channels.numpy())
    actions: npt.NDArray[np.float32] = agent.predict(observation, deterministic=True)[0]
    return actions


def acted(agent: Any, channels: Tensor) -> list[dict[str, Any]]:
    """What the actions earn, by the direct model in double precision."""
    scenario, found = agent.scenario, []
    exact = channels.numpy().astype(np.complex128)
    for H, action in zip(exact, predicted(agent, channels), strict=True):
        F, R, access = direct_model.decode(scenario, action, H)
        assert R is not None
        found.append(direct_model.earned(scenario, H, F, R, access))
    return found


def mean_rate(agent: Any, channels: Tensor) -> float:
    """Spectral efficiency of the network, the mean over channels, in bit/s/Hz."""
    return float(np.mean([np.sum(each["rates"]) for each in acted(agent, channels)]))


def leak_of(part: Any, view: Tensor, action: Tensor) -> npt.NDArray[np.float64]:
    """What a station's action makes the users of each cell receive, (n, J), in W, by hand."""
    scenario = part.system.scenario
    own = view[:, :1].unsqueeze(1).numpy().astype(np.complex128)
    seen = view.numpy().astype(np.complex128)
    found = np.zeros(seen.shape[:2])
    for block, cell in np.ndindex(*found.shape):
        F, R, _ = direct_model.decode(scenario, action[block].numpy(), own[block])
        assert R is not None
        f, g = np.split(seen[block, cell], [scenario.num_radar_antennas], axis=1)
        found[block, cell] = np.sum(np.abs(g @ F[0]) ** 2)
        found[block, cell] += np.einsum("ua,ab,ub->", f, R[0], f.conj()).real
    return found


def replay(agent: Any, channels: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
    """What every station sees, and what it has received in each round."""
    views = list(view_from_stations(channels).unbind(1))
    received: list[list[Tensor]] = [[] for _ in views]
    cells = len(views)
    for _ in range(agent.stations[0].rounds):
        sent = [
            part.message(view, heard)
            for part, view, heard in zip(agent.stations, views, received, strict=True)
        ]
        for receiver in range(cells):
            arrived = [
                sent[(receiver + place) % cells][:, cells - place - 1] for place in range(1, cells)
            ]
            received[receiver].append(torch.stack(arrived, 1))
    return views, received
