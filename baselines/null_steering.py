"""Radar that is steered away from all users alike, and WMMSE for what remains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isac_gym.baselines.coordinated import CoordinatedDesign, CoordinatedPolicy
from isac_gym.physics.links import radar_interference
from isac_gym.registry import register_baseline
from isac_gym.solvers.objectives import LeakageObjective
from isac_gym.solvers.waveform import WaveformSearch
from isac_gym.validation import check_integer

__all__ = ["NullSteering"]

_MULTIPLIER = 20.0


@register_baseline(
    "null-steering",
    "least radar power at the users within the threshold, WMMSE",
    controls=("power", "beamforming"),
    radars=("learned",),
    most_cells=1,
    rank=40,
)
class NullSteering(CoordinatedPolicy):
    """The radar with the least power at the users, Σ_k f_kᵀ R f_k*, that keeps L_r <= ε.

    Where ε allows it this is zero forcing of the radar to the users: none of them receives any.
    The precoder or the powers are those of WMMSE. Under contention the radar spares the one user
    that is served.

    Args:
        env: Environment whose scenario the policy is for, with ``radar="learned"`` and control
            ``"beamforming"`` or ``"power"``.
        iterations: Iterations of the search for the waveform.

    Raises:
        ValueError: If the scenario has another control mode or a fixed radar, or an option is not
            allowed.
    """

    def __init__(self, env: Any, *, iterations: int = 80) -> None:
        super().__init__(env)
        self.iterations = check_integer("iterations", iterations, 1)
        users = self.scenario.num_users
        contends = self.scenario.scheduling == "contention"
        self.starts = torch.eye(users) if contends else torch.ones(1, users)

    def _design(self, channels: Tensor) -> CoordinatedDesign:
        scenario = self.scenario
        problems = self._pose_problems(channels)
        offset = torch.full_like(problems.served[:, 0], scenario.noise_power)
        streams = self._avoid_users(problems)
        received = radar_interference(problems.radar, streams)
        search = WaveformSearch(
            self._exact,
            scenario.sensing_threshold,
            problems.radar,
            scenario.radar_power,
            LeakageObjective(problems.served, offset, received),
            streams,
            torch.full_like(offset, _MULTIPLIER),
            stations=scenario.num_cells,
        )
        late = self.iterations // 4
        search.run(self.iterations - late)
        before = search.value
        search.run(late)
        noise = self._compute_noise(problems.radar, search.streams)
        iterate = problems.downlinks.start(
            "rzf", noise, problems.served.double(), torch.Generator()
        )
        change = (search.value - before).abs() / search.value.abs().clamp_min(1.0)
        return self._complete(problems, search.streams, iterate, search.multiplier, change)
