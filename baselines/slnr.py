"""Signal-to-leakage-and-noise precoding: what a station alone can do for the other cells.

Sadek, Tarighat and Sayed, "A leakage-based precoding scheme for downlink multi-user MIMO channels",
IEEE Transactions on Wireless Communications 6(5), 2007.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from isac_gym.baselines.local_design import LocalDesigner, check_beamforming
from isac_gym.distributed import DistributedPolicy, Memory, Received, StationPolicy
from isac_gym.physics.links import radar_interference
from isac_gym.registry import register_baseline
from isac_gym.scenario import Scenario
from isac_gym.solvers.objectives import LeakageObjective
from isac_gym.solvers.waveform import WaveformSearch
from isac_gym.validation import check_choice, check_integer

__all__ = ["SLNR", "SLNRStation", "SLNRWaveform", "slnr_precoders"]

SLNRWaveform: TypeAlias = Literal["best", "nulls"]

_MULTIPLIER = 20.0


class SLNRStation(StationPolicy):
    """A station that serves all its users by the precoder with the largest SLNR; it tells nothing.

    Args:
        scenario: The scenario of all stations.
        station: Index of this one.
        device: Torch device.
        waveform: See :class:`SLNR`.
        iterations: See :class:`SLNR`.
    """

    rounds = 0

    def __init__(
        self,
        scenario: Scenario,
        station: int,
        device: torch.device | str = "cpu",
        *,
        waveform: SLNRWaveform = "best",
        iterations: int = 160,
    ) -> None:
        super().__init__(scenario, station, device)
        self.waveform: SLNRWaveform = waveform
        self.iterations = iterations
        self._designer = LocalDesigner(self.system, scenario)

    def _choose_action(
        self, local_csi: Tensor, received: Received, memory: Memory | None
    ) -> Tensor:
        """The waveform of the station alone, and SLNR precoders beside it."""
        scenario, users = self.scenario, self.scenario.num_users
        antennas = [scenario.num_radar_antennas, scenario.num_comm_antennas]
        radar, comm = local_csi.flatten(1, 2).split(antennas, -1)
        streams = self._designer.best.expand(len(radar), -1, -1)
        if self.waveform == "nulls":
            streams = self._steer_nulls(radar)
        noise = scenario.noise_power + radar_interference(radar[:, :users], streams)
        precoders = slnr_precoders(comm, noise, scenario.comm_power)
        return self.system.codec.encode(
            precoders=precoders.unsqueeze(1), streams=streams.unsqueeze(1)
        )

    def _steer_nulls(self, radar: Tensor) -> Tensor:
        """V (n, M_R, r) with the least radar power at all users within ε."""
        designer, power = self._designer, self.scenario.radar_power
        streams = designer.best.expand(len(radar), -1, -1)
        weights = torch.ones_like(radar[..., 0].real)
        offset = torch.full_like(weights[:, 0], self.scenario.noise_power)
        search = WaveformSearch(
            designer.sensing,
            self.scenario.sensing_threshold,
            radar,
            power,
            LeakageObjective(weights, offset, radar_interference(radar, streams)),
            streams,
            torch.full_like(offset, _MULTIPLIER),
        )
        search.run(self.iterations)
        return designer.make_feasible(search.streams)


@register_baseline(
    "slnr",
    "signal-to-leakage-and-noise precoding, best beampattern, no messages",
    controls=("beamforming",),
    radars=("learned",),
    schedulings=("all",),
    least_cells=2,
    rank=56,
)
class SLNR(DistributedPolicy):
    """Every station maximises what its users receive relative to what all others receive.

    With P_C/K for every user, F_k maximises the signal at user k relative to what its stream leaks
    to all other users, of the own cell and of the others, plus the noise of user k, which the own
    station's radar adds to. No bit is exchanged.

    Args:
        env: Environment whose scenario the policy is for, with ``control="beamforming"``,
            ``radar="learned"`` and all users served.
        waveform: ``"best"``: the best beampattern. ``"nulls"``: the waveform with the least radar
            power at the users of all cells, Σ f_uᵀ R f_u*, that keeps L_r <= ε.
        iterations: Iterations of the search for the latter.

    Raises:
        ValueError: If the scenario is of another kind, or an option is not allowed.
    """

    def __init__(self, env: Any, *, waveform: SLNRWaveform = "best", iterations: int = 160) -> None:
        super().__init__(env)
        check_beamforming(self.scenario)
        self.waveform: SLNRWaveform = check_choice("waveform", waveform, SLNRWaveform)
        self.iterations = check_integer("iterations", iterations, 1)
        self.stations = [
            SLNRStation(
                self.scenario,
                station,
                self.system.device,
                waveform=self.waveform,
                iterations=self.iterations,
            )
            for station in range(self.scenario.num_cells)
        ]


def slnr_precoders(comm: Tensor, noise: Tensor, power: float) -> Tensor:
    """Precoders with the largest signal-to-leakage-and-noise ratio, with equal powers.

    F_k maximises abs(g_kᵀF_k)²/(Σ_{u≠k} abs(g_uᵀF_k)² + σ_k²) with ‖F_k‖² = P/K, the sum going over
    all users that are listed. It lies along (Σ_{u≠k} g_u* g_uᵀ + (K σ_k²/P) I)⁻¹ g_k*, and that is
    the same direction if u = k is part of the sum.

    Args:
        comm: g of the own K users, then of all others, complex (n, U, M_C).
        noise: σ² of the own users, (n, K), in W.
        power: P, in W.

    Returns:
        Complex tensor (n, M_C, K), in √W.
    """
    users = noise.shape[1]
    values, basis = torch.linalg.eigh((comm.mH @ comm).to(torch.complex128))
    turned = basis.mH @ comm[:, :users].mH.to(basis.dtype)
    loading = (users / power) * noise.double()
    columns = basis @ (turned / (values.clamp_min(0.0).unsqueeze(-1) + loading.unsqueeze(-2)))
    norm = torch.linalg.vector_norm(columns, dim=-2, keepdim=True)
    scaled = columns * ((power / users) ** 0.5 / norm.clamp_min(1e-150))
    found: Tensor = scaled.to(comm.dtype)
    return found
