"""What rates depend on and nothing else: observations that do not change with phases.

A station's precoder of :mod:`isac_gym.physics.structure`, or its powers along fixed directions,
meet the channels only by gains and by how alike the channels of two users are. These numbers are
the observation: of each user the gains, of each pair of an own user and a user the alignment, or
what the one receives of the other's stream. Where the users are numbered otherwise they are the
same numbers in another order, so that a policy can be indifferent to it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from isac_gym.physics.links import radar_interference
from isac_gym.physics.precoding import precoder_directions
from isac_gym.scenario import Scenario

__all__ = ["FeatureLayout", "Features"]


@dataclasses.dataclass(frozen=True)
class FeatureLayout:
    """How one station's features are laid out: those of users, then those of pairs.

    Attributes:
        own_users: K.
        all_users: T, the users whose channels the station knows, its own first, then those of the
            stations that follow it.
        user_names: Names of what is known of every user.
        pair_names: Names of what is known of every pair of an own user and a user.
    """

    own_users: int
    all_users: int
    user_names: tuple[str, ...]
    pair_names: tuple[str, ...]

    @classmethod
    def of(cls, scenario: Scenario, places: int | None = None) -> FeatureLayout:
        """The layout of a scenario.

        Args:
            scenario: The scenario.
            places: Cells whose users' channels the station knows; None means all.
        """
        users, pairs = ["radar"], []
        if scenario.control == "power":
            pairs.append("stream")
        else:
            users.insert(0, "gain")
            pairs.append("alignment")
        if scenario.radar == "learned":
            users.append("even_radar")
            pairs.append("radar_alignment")
        known = scenario.num_cells if places is None else places
        own = scenario.num_users
        return cls(own, own * known, tuple(users), tuple(pairs))

    @property
    def size(self) -> int:
        """Numbers of a station: those of T users, user after user, then those of K·T pairs."""
        pairs = self.own_users * self.all_users * len(self.pair_names)
        return self.all_users * len(self.user_names) + pairs

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (..., size) as those of users (..., T, u) and of pairs (..., K, T, p)."""
        first = self.all_users * len(self.user_names)
        users = features[..., :first].unflatten(-1, (self.all_users, len(self.user_names)))
        shape = (self.own_users, self.all_users, len(self.pair_names))
        return users, features[..., first:].unflatten(-1, shape)


class Features:
    """Features of what every station knows of channels.

    All powers are in decades over the noise, log10(1 + P/N0):

    * ``gain``: what a user received of all of the communication power along its own channel,
      P_C‖g‖²;
    * ``radar``: of the station's best beampattern, ‖fᵀV_best‖²;
    * ``even_radar``: of a radar that radiates evenly, R = (P_R/M_R)·I, P_R‖f‖²/M_R;
    * ``stream``: of all of the communication power along an own user's direction,
      P_C abs(gᵀd_k)²; with ``control="power"``, in place of ``gain`` and ``alignment``;

    and the cosines between the channels of two users are

    * ``alignment``: abs(g_kᴴg)/(‖g_k‖‖g‖), and ``radar_alignment``: abs(f_kᴴf)/(‖f_k‖‖f‖).

    What has to do with f is left out where the radar is fixed, except its power at the users.

    Args:
        scenario: The scenario.
        best_streams: V of every station's best beampattern, complex (J, M_R, r), in √W.
    """

    def __init__(self, scenario: Scenario, best_streams: Tensor) -> None:
        self.scenario = scenario
        self.layout = FeatureLayout.of(scenario)
        self._best = best_streams

    def describe(self, views: Tensor) -> Tensor:
        """Features of stations.

        Args:
            views: Channels from every station to users as the station orders the cells, complex
                (n, J, P, K, M); see :func:`~isac_gym.system.stations.view_from_stations`.

        Returns:
            Real tensor (n, J, F), F being that of :class:`FeatureLayout` with P places.
        """
        scenario = self.scenario
        antennas = [scenario.num_radar_antennas, scenario.num_comm_antennas]
        radar, comm = views.flatten(-3, -2).split(antennas, dim=-1)
        own = scenario.num_users
        users = [_measure_decades(radar_interference(radar, self._best), scenario)]
        if scenario.control == "power":
            directions = precoder_directions(
                scenario.precoder_directions,
                comm[..., :own, :],
                scenario.noise_power,
                scenario.comm_power,
            )
            arriving = torch.view_as_real(comm @ directions).square().sum(-1).mT
            pairs = [_measure_decades(scenario.comm_power * arriving, scenario)]
        else:
            users.insert(0, _measure_decades(scenario.comm_power * _square(comm), scenario))
            pairs = [_align(comm, own)]
        if scenario.radar == "learned":
            power = scenario.radar_power / scenario.num_radar_antennas
            users.append(_measure_decades(power * _square(radar), scenario))
            pairs.append(_align(radar, own))
        parts = [torch.stack(users, -1).flatten(-2), torch.stack(pairs, -1).flatten(-3)]
        return torch.cat(parts, -1)


def _square(channels: Tensor) -> Tensor:
    """‖h‖² of complex channels (..., T, M)."""
    return torch.view_as_real(channels.resolve_conj()).square().sum((-2, -1))


def _measure_decades(power: Tensor, scenario: Scenario) -> Tensor:
    # The largest finite ratio stands for those beyond it.
    ratio = (power / scenario.noise_power).clamp_max(torch.finfo(power.dtype).max)
    return torch.log1p(ratio) / torch.log(power.new_tensor(10.0))


def _align(channels: Tensor, own: int) -> Tensor:
    """Cosines between the channels (..., T, M) of the first K users and of all, (..., K, T)."""
    gram = torch.view_as_real(channels[..., :own, :].conj() @ channels.mT).square().sum(-1)
    strength = _square(channels)
    scale = strength[..., :own, None] * strength[..., None, :]
    return (gram / scale.clamp_min(torch.finfo(scale.dtype).tiny)).clamp(0.0, 1.0).sqrt()
