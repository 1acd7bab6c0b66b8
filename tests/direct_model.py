"""What an action means and what it earns, by hand: NumPy complex128, one environment at a time.

Written from the description of the interface, without the package's codec or physics. H has shape
(J, J, K, M), F (J, M_C, K), V (J, M_R, r), R (J, M_R, M_R), τ (J, K).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import reference

from isac_gym import Scenario
from isac_gym.solvers.beampattern import best_beampattern

Complex = npt.NDArray[np.complex128]
Real = npt.NDArray[np.float64]

SMALL: dict[str, Any] = {
    "num_users": 3,
    "num_comm_antennas": 5,
    "num_radar_antennas": 4,
    "radar_power": 0.8,
    "sensing_threshold": 0.2,
    "target_angles_deg": (-50.0, 10.0),
}
"""A scenario whose dimensions all differ, small enough for many tests."""


def observed_channels(scenario: Scenario, observation: npt.ArrayLike) -> Complex:
    """H from [Re H, Im H]."""
    flat = np.asarray(observation, np.float64)
    half = len(flat) // 2
    cells = scenario.num_cells
    shape = (cells, cells, scenario.num_users, scenario.num_antennas)
    return (flat[:half] + 1j * flat[half:]).reshape(shape)


def directions(scenario: Scenario, comm: Complex) -> Complex:
    """Unit-norm columns for G (K, M_C)."""
    users = len(comm)
    if scenario.precoder_directions == "mrt":
        columns = comm.conj().T
    elif scenario.precoder_directions == "zf":
        columns = comm.conj().T @ np.linalg.inv(comm @ comm.conj().T)
    else:
        loading = users * scenario.noise_power / scenario.comm_power
        columns = comm.conj().T @ np.linalg.inv(comm @ comm.conj().T + loading * np.eye(users))
    return np.asarray(columns / np.linalg.norm(columns, axis=0))


def turned(scenario: Scenario, radar: Complex, waveform: Complex, numbers: Real) -> Complex:
    """V turned away from users whose f are the rows (K, M_R), for numbers (K,) of an action."""
    system = np.eye(radar.shape[1], dtype=complex)
    for row, number in zip(radar, numbers, strict=True):
        weight = 10 ** (2 * number - 1) * len(row) / np.sum(np.abs(row) ** 2)
        system += weight * np.outer(row.conj(), row)
    moved = np.linalg.solve(system, waveform)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.asarray(moved / norms * np.sqrt(scenario.radar_power / radar.shape[1]))


def decode(
    scenario: Scenario, action: npt.ArrayLike, estimates: Complex
) -> tuple[Complex, Complex | None, Real]:
    """F, R (None with the fixed radar) and τ (all ones unless users contend)."""
    users, comm, radar = (
        scenario.num_users,
        scenario.num_comm_antennas,
        scenario.num_radar_antennas,
    )
    streams = scenario.radar_streams or radar
    best = None
    if scenario.control == "structured":
        # That it is the best is tested where it is found.
        designs = scenario.list_beampattern_arguments()
        best = [best_beampattern(**design).streams.numpy() for design in designs]
    numbers = np.asarray(action, np.float64).reshape(scenario.num_cells, -1)
    precoders, covariances, accesses = [], [], []
    for cell, entries in enumerate(numbers):
        rest = list(entries)

        def take(count: int, rest: list[float] = rest) -> Real:
            taken = np.array(rest[:count])
            del rest[:count]
            return taken

        powers = weights = duals = None
        if scenario.control == "structured":
            shares = np.maximum((take(users) + 1) / 2, 1e-6)
            duals = scenario.comm_power * shares / shares.sum()
            powers = scenario.comm_power * (take(users) + 1) / 2
        elif scenario.control == "power":
            powers = scenario.comm_power * (take(users) + 1) / 2
        elif scenario.control == "amplitude":
            weights = take(comm * users).reshape(comm, users) + 0j
        else:
            weights = take(comm * users).reshape(comm, users) + 1j * take(comm * users).reshape(
                comm, users
            )
        own = estimates[cell, cell]
        if scenario.control == "structured":
            waveform = best[cell]
            if scenario.radar == "learned":
                waveform = turned(scenario, own[:, :radar], waveform, take(users))
            covariances.append(waveform @ waveform.conj().T)
        elif scenario.radar == "learned":
            waveform = take(radar * streams).reshape(radar, streams) + 1j * take(
                radar * streams
            ).reshape(radar, streams)
            for row in waveform:
                row[:] = row if np.any(row) else 1.0
                row *= np.sqrt(scenario.radar_power / radar) / np.linalg.norm(row)
            covariances.append(waveform @ waveform.conj().T)
        access = np.ones(users)
        if scenario.scheduling == "contention":
            access = (take(users) > 0).astype(float)
        assert not rest
        if duals is not None:
            assert powers is not None
            noise = scenario.noise_power + np.array(
                [np.sum(np.abs(row[:radar] @ waveform) ** 2) for row in own]
            )
            system = np.eye(comm) + sum(
                dual / sigma * np.outer(row[radar:].conj(), row[radar:])
                for dual, sigma, row in zip(duals, noise, own, strict=True)
            )
            columns = np.linalg.solve(system, own[:, radar:].conj().T)
            matrix = columns / np.linalg.norm(columns, axis=0) * np.sqrt(powers)
        elif powers is not None:
            matrix = directions(scenario, own[:, radar:]) * np.sqrt(powers)
        else:
            assert weights is not None
            matrix = np.sqrt(scenario.comm_power) * weights
        matrix = matrix * access
        if scenario.power_limit == "project":
            total = np.sum(np.abs(matrix) ** 2)
            matrix = matrix * np.sqrt(min(1.0, scenario.comm_power / max(total, 1e-300)))
        precoders.append(matrix)
        accesses.append(access)
    fixed = scenario.radar == "fixed"
    return np.array(precoders), None if fixed else np.array(covariances), np.array(accesses)


def earned(
    scenario: Scenario, channels: Complex, precoders: Complex, covariances: Complex, access: Real
) -> dict[str, Any]:
    """The entries of ``info``, per station (J,) and per user (J, K); if J > 1 sums by cell too."""
    ratio = reference.sinr(channels, precoders, covariances, scenario.noise_power)
    rates = reference.spectral_efficiency(ratio)
    losses = np.array(
        [
            reference.sensing_loss(
                covariance,
                scenario.antenna_spacing,
                targets,
                width=scenario.beam_width_deg,
                form=scenario.cross_correlation,
                scale=scenario.pattern_scale,
            )
            for covariance, targets in zip(covariances, scenario.targets_by_cell, strict=True)
        ]
    )
    power = np.sum(np.abs(precoders) ** 2, axis=(1, 2))
    found: dict[str, Any] = {
        "sinr": ratio,
        "comm_power": power,
        "beampattern_error": losses[:, 0],
        "cross_correlation": losses[:, 1],
        "constraint_power": power / scenario.comm_power - 1,
        "constraint_sensing": losses.sum(1) / scenario.sensing_threshold - 1,
    }
    if scenario.scheduling == "contention":
        alone = access * (access.sum(1, keepdims=True) == 1)
        rates = rates * alone
        found["constraint_scheduling"] = access.sum(1) - 1
    found["rates"] = rates
    found["sum_rate"] = rates.sum()
    by_cell: dict[str, Any] = {
        "sum_rate_by_cell": rates.sum(1),
        "cost_by_cell": np.zeros(len(rates)),
    }
    for name in ("power", "sensing", "scheduling"):
        if f"constraint_{name}" in found:
            excess = np.maximum(found[f"constraint_{name}"], 0)
            found[f"cost_{name}"] = excess.sum()
            by_cell[f"cost_{name}_by_cell"] = excess
            by_cell["cost_by_cell"] = by_cell["cost_by_cell"] + excess
    found["cost"] = by_cell["cost_by_cell"].sum()
    return found | (by_cell if scenario.num_cells > 1 else {})
