"""What coordinated designs share: a waveform that heeds the users, and a precoder that suits it."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from isac_gym.physics.links import radar_interference
from isac_gym.physics.sensing.coarse import ExactSensing
from isac_gym.physics.waveform import normalise_rows
from isac_gym.policy import SystemPolicy
from isac_gym.solvers.rate_problems import PowerProblem, PrecoderProblem, RateProblem
from isac_gym.solvers.waveform import move_within_limit
from isac_gym.solvers.wmmse import maximise_rate
from isac_gym.validation import not_allowed

__all__ = ["CoordinatedDesign", "CoordinatedPolicy", "Problems"]

_PROBLEMS = 4096
"""Problems searched at a time: enough for long vectors, few enough for their memory."""
_AVOIDANCE = 30.0


@dataclasses.dataclass(frozen=True)
class CoordinatedDesign:
    """Designs for a batch of n channels.

    Attributes:
        precoders: F, complex (n, J, M_C, K), in √W; None for power control.
        powers: ‖F_k‖² or p_k, (n, J, K), in W.
        streams: V, complex (n, J, M_R, r), in √W.
        served: 1 for users with access, (n, J, K); all may have it unless users contend.
        rate: Sum rate of each station without the others' interference, (n, J), in bit/s/Hz.
        sensing_loss: L_r, (n, J).
        excess: Constraint residual L_r/ε - 1, (n, J).
        multiplier: What a relative unit of ε is worth to the objective, (n, J): for the joint
            optimum in bit/s/Hz, its price under the expected constraint.
        change: Change of the objective over the last iterations, relative to it or to 1 if that is
            more, (n, J).
        start: Index of the start that led to the design, (n, J).
    """

    precoders: Tensor | None
    powers: Tensor
    streams: Tensor
    served: Tensor
    rate: Tensor
    sensing_loss: Tensor
    excess: Tensor
    multiplier: Tensor
    change: Tensor
    start: Tensor


@dataclasses.dataclass(frozen=True)
class Problems:
    """One problem for each of b channels, c starts and J stations: n = b·c·J, in that order.

    Attributes:
        downlinks: The n downlinks.
        radar: f, complex (n, K, M_R).
        served: Users that a start is for, (n, K); under contention the only ones with access.
        starts: Index of the start, (b, c, J).
    """

    downlinks: RateProblem
    radar: Tensor
    served: Tensor
    starts: Tensor

    def flat_index(self, among: Tensor) -> Tensor:
        """Flat indices of the problems at ``among`` (b, ·, J) along the axis of the starts."""
        batch, held, cells = self.starts.shape
        first = torch.arange(batch, device=among.device)[:, None, None] * held
        return ((first + among) * cells + torch.arange(cells, device=among.device)).flatten()

    def keep(self, among: Tensor) -> Problems:
        """The problems at ``among`` (b, ·, J) along the axis of the starts."""
        index = self.flat_index(among)
        return Problems(
            self.downlinks.select(index),
            self.radar[index],
            self.served[index],
            self.starts.gather(1, among),
        )

    def of_channels(self, mask: Tensor) -> tuple[Problems, Tensor]:
        """The problems of the channels of a mask (b,), and their flat indices."""
        count = torch.arange(self.starts.numel(), device=mask.device).view(self.starts.shape)
        index = count[mask].flatten()
        kept = Problems(
            self.downlinks.select(index), self.radar[index], self.served[index], self.starts[mask]
        )
        return kept, index


class CoordinatedPolicy(SystemPolicy):
    """Base of designs in which the waveform heeds the users.

    Args:
        env: Environment whose scenario the policy is for, with ``radar="learned"`` and control
            ``"beamforming"`` or ``"power"``. With several cells every station decides as if it
            were alone.

    Raises:
        ValueError: If the scenario has another control mode or a fixed radar.

    Attributes:
        starts: Users that each start is for, (c, K).
        bits_per_link: Bits that stations tell each other.
    """

    starts: Tensor
    bits_per_link: ClassVar[int | None] = 0

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        scenario = self.scenario
        if scenario.control == "amplitude":
            raise not_allowed("control", scenario.control, "'beamforming' or 'power'")
        if scenario.radar != "learned":
            raise ValueError(
                f"{type(self).__name__} needs radar 'learned', got {scenario.radar!r}; with a "
                "fixed radar WMMSE is the reference"
            )
        self._best = self.system.best_streams()
        self._exact = ExactSensing(self.system.sensing)

    @abstractmethod
    def _design(self, channels: Tensor) -> CoordinatedDesign:
        """Designs for a batch that fits into memory; see :meth:`solve`."""

    def solve(self, channels: Tensor) -> CoordinatedDesign:
        """Designs for a batch of channels.

        Args:
            channels: H, complex (n, J, J, K, M).

        Returns:
            The designs.

        Raises:
            ValueError: If the channels have another shape, or entries that are not finite.
        """
        self.system.codec.check_channels(channels)
        parts = [self._design(part) for part in self._split(channels)]
        joined: dict[str, Any] = {}
        for field in dataclasses.fields(CoordinatedDesign):
            values = [getattr(part, field.name) for part in parts]
            joined[field.name] = None if values[0] is None else torch.cat(values)
        return CoordinatedDesign(**joined)

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """See :meth:`SystemPolicy.act`."""
        found = self.solve(self.system.codec.channels(observation))
        contends = self.scenario.scheduling == "contention"
        return self.system.codec.encode(
            precoders=found.precoders,
            powers=found.powers,
            streams=found.streams,
            access=found.served if contends else None,
        )

    def _split(self, channels: Tensor) -> Iterator[Tensor]:
        channels = channels.to(self.system.device, self.system.dtype.to_complex())
        yield from channels.split(max(1, _PROBLEMS // (len(self.starts) * self.scenario.num_cells)))

    def _pose_problems(self, channels: Tensor) -> Problems:
        """Every start for every channel and station."""
        scenario = self.scenario
        batch, count, cells = len(channels), len(self.starts), scenario.num_cells
        radar, comm = self.system.codec.split_own_channels(channels)

        def repeated(value: Tensor) -> Tensor:
            return value[:, None].expand(batch, count, *value.shape[1:]).flatten(0, 2)

        served = self.starts.to(comm.device, comm.real.dtype)
        served = served[None, :, None].expand(batch, -1, cells, -1).flatten(0, 2)
        contends = scenario.scheduling == "contention"
        downlinks: RateProblem
        if scenario.control == "power":
            gains = repeated((comm @ self.system.codec.directions(channels)).abs().square())
            if contends:
                gains = gains * served.unsqueeze(-1) * served.unsqueeze(-2)
            downlinks = PowerProblem(gains.double(), scenario.comm_power)
        else:
            if contends:
                masked = repeated(comm) * served.unsqueeze(-1)
                downlinks = PrecoderProblem(masked.to(torch.complex128), scenario.comm_power)
            else:
                # One factorisation for all starts.
                single = PrecoderProblem(
                    comm.flatten(0, 1).to(torch.complex128), scenario.comm_power
                )
                which = torch.arange(batch * cells, device=comm.device).view(batch, cells)
                downlinks = single.select(repeated(which))
        starts = torch.arange(count, device=comm.device)[None, :, None].expand(batch, -1, cells)
        return Problems(downlinks, repeated(radar), served, starts)

    def _avoid_users(self, problems: Problems) -> Tensor:
        """V (n, M_R, r) that spares the served users: (I + c Σ f* fᵀ)⁻¹ V_best, normalised."""
        radar, served = problems.radar, problems.served
        strength = radar.abs().square().mean((-2, -1)).clamp_min(1e-30)
        weights = _AVOIDANCE * served / strength[:, None]
        gram = radar.mH @ (weights.unsqueeze(-1) * radar)
        gram.diagonal(dim1=-2, dim2=-1).add_(1.0)
        streams, _ = torch.linalg.solve_ex(gram, self._repeat_best(len(gram)))
        return normalise_rows(streams, self.scenario.radar_power)

    def _compute_noise(self, radar: Tensor, streams: Tensor) -> Tensor:
        """Noise plus radar power of each user, (n, K), in W, in double precision."""
        return self.scenario.noise_power + radar_interference(radar, streams).double()

    def _compute_loss(self, streams: Tensor) -> Tensor:
        """L_r (n,) of V (n, M_R, r)."""
        covariance = (streams @ streams.mH).unflatten(0, (-1, self.scenario.num_cells))
        return self._exact.loss(covariance).flatten()

    def _repeat_best(self, count: int) -> Tensor:
        """The best beampattern for each of n problems, (n, M_R, r)."""
        cells = self.scenario.num_cells
        return self._best.expand(count // cells, -1, -1, -1).flatten(0, 1)

    def _make_feasible(self, streams: Tensor) -> Tensor:
        """V (n, M_R, r), those that exceed ε moved towards the best until they do not."""
        best = self._repeat_best(len(streams))
        threshold, power = self.scenario.sensing_threshold, self.scenario.radar_power
        return move_within_limit(streams, best, self._compute_loss, threshold, power)

    def _complete(
        self,
        problems: Problems,
        streams: Tensor,
        iterate: Tensor,
        multiplier: Tensor,
        change: Tensor,
        priced: bool = False,
    ) -> CoordinatedDesign:
        """The best start of each channel, with the waveform made feasible and WMMSE converged.

        Args:
            problems: The problems.
            streams: V (n, M_R, r).
            iterate: WMMSE's iterates, (n, ...).
            multiplier: Multipliers of L_r/ε - 1, (n,).
            change: Last relative change of the objective, (n,).
            priced: Whether the multipliers are prices in bit/s/Hz; otherwise L_r <= ε is enforced.
        """
        if not priced:
            streams = self._make_feasible(streams)
        downlinks, noise = problems.downlinks, self._compute_noise(problems.radar, streams)
        run = maximise_rate(downlinks, iterate, noise, max_iterations=200)
        loss = self._compute_loss(streams)
        excess = loss / self.scenario.sensing_threshold - 1.0
        merit = run.rate - (multiplier * excess if priced else torch.zeros_like(excess)).double()
        chosen = problems.flat_index(merit.view(problems.starts.shape).argmax(1, keepdim=True))

        def pick(value: Tensor) -> Tensor:
            picked: Tensor = value[chosen].unflatten(0, (-1, self.scenario.num_cells))
            return picked

        precoders = None
        if isinstance(downlinks, PrecoderProblem):
            precoders = downlinks.precoders(run.iterate).to(streams.dtype)
            powers = precoders.abs().square().sum(-2)
        else:
            assert isinstance(downlinks, PowerProblem)
            powers = downlinks.powers(run.iterate).to(loss.dtype)
        return CoordinatedDesign(
            precoders=None if precoders is None else pick(precoders),
            powers=pick(powers),
            streams=pick(streams),
            served=pick(problems.served),
            rate=pick(run.rate),
            sensing_loss=pick(loss),
            excess=pick(excess),
            multiplier=pick(multiplier),
            change=pick(change),
            start=pick(problems.starts.flatten()),
        )
