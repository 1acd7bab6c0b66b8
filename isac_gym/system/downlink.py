"""The system: channels and an action in, rates, sensing loss and constraints out.

One differentiable function for the single environment, the batched one, evaluation and training,
for one cell or several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from isac_gym.physics.links import LinkPowers, link_powers, sinr, spectral_efficiency
from isac_gym.physics.sensing.model import SensingLoss, SensingModel
from isac_gym.scenario import Scenario
from isac_gym.solvers.beampattern import best_beampattern
from isac_gym.system.codec import Codec, Transmission
from isac_gym.system.constraints import Constraint, resolve_constraints

__all__ = ["ISACSystem", "Outcome", "choose_device", "find_system", "make_sensing_model"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a transmission achieves, for a batch of blocks with leading dimensions (...).

    Attributes:
        transmission: What was transmitted.
        powers: Received powers, (..., J, K), in W.
        sinr: γ, (..., J, K).
        rates: Spectral efficiency of each user, (..., J, K), in bit/s/Hz; under contention zero
            unless the user is alone in its cell's block.
        sum_rate: Σ over all users, (...), in bit/s/Hz; the reward.
        sensing: Sensing loss, (..., J).
        constraints: Signed constraints by name, quantity/limit - 1, each (..., J); feasible where
            negative or zero.
    """

    transmission: Transmission
    powers: LinkPowers
    sinr: Tensor
    rates: Tensor
    sum_rate: Tensor
    sensing: SensingLoss
    constraints: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def costs(self) -> dict[str, Tensor]:
        """Positive parts of the constraints, summed over the stations, each (...)."""
        return {name: value.clamp_min(0.0).sum(-1) for name, value in self.constraints.items()}


class ISACSystem:
    """The ISAC downlink of a scenario.

    Args:
        scenario: The scenario.
        constraints: Constraints beside those of every system: objects, registered names, or
            ``module:Class``.
        dtype: Real dtype of the computation.
        device: Device of the computation.

    Raises:
        TypeError: If a constraint is none.
        ValueError: If the scenario's sensing threshold cannot be attained, or a constraint does not
            suit the scenario.

    Attributes:
        codec: Meaning of observations and actions.
        sensing: Sensing loss of the radar covariances.
        constraints: The constraints by name, in the order of their entries in ``info``.
        chosen_constraints: Those that not every system has.
        limits: Limit of each constraint by name, in the constraint's unit.
    """

    def __init__(
        self,
        scenario: Scenario,
        constraints: Iterable[Constraint | str] = (),
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        scenario.check_attainable()
        always, self.chosen_constraints = resolve_constraints(scenario, constraints)
        self.constraints = {each.name: each for each in (*always, *self.chosen_constraints)}
        self.limits = {name: float(each.limit(scenario)) for name, each in self.constraints.items()}
        self.scenario = scenario
        self.device = torch.device(device)
        self.dtype = dtype
        self.sensing = make_sensing_model(scenario, dtype=dtype, device=device)
        is_fixed = scenario.radar == "fixed"
        # Features are for structured control or the fixed radar alone.
        needs_best = is_fixed or scenario.control == "structured"
        best = self.best_streams() if needs_best else None
        # Held as tensors: an operation with a Python number takes twice as long.
        self._noise = torch.tensor(scenario.noise_power, dtype=dtype, device=device)
        self._minus_one = torch.tensor(-1.0, dtype=dtype, device=device)
        self._limits = {
            name: torch.tensor(limit, dtype=dtype, device=device)
            for name, limit in self.limits.items()
        }
        self.codec = Codec(scenario, dtype=dtype, device=device, best_streams=best)
        self._fixed_sensing = None
        if is_fixed and best is not None:
            self._fixed_sensing = self.sensing(best @ best.mH)

    def best_streams(self) -> Tensor:
        """V of the covariance with the smallest sensing loss, for every station.

        Returns:
            Complex tensor (J, M_R, r), in √W.
        """
        given = self.scenario.list_beampattern_arguments()
        stacked = torch.stack([best_beampattern(**arguments).streams for arguments in given])
        return stacked.to(self.device, self.dtype.to_complex())

    def transmit(
        self,
        channels: Tensor,
        action: Tensor,
        estimates: Tensor | None = None,
        noise_power: Tensor | None = None,
    ) -> Outcome:
        """Outcome of an action.

        Args:
            channels: True channels, complex (..., J, J, K, M).
            action: Real tensor (..., A) within [-1, 1].
            estimates: Channels as observed, same shape; None means the true ones.
            noise_power: N0 of each block instead of the scenario's, shape (...), in W.

        Returns:
            The outcome, with the leading dimensions of the input.
        """
        seen = channels if estimates is None else estimates
        return self.judge(channels, self.codec.decode(action, seen), noise_power)

    def judge(
        self, channels: Tensor, transmission: Transmission, noise_power: Tensor | None = None
    ) -> Outcome:
        """Outcome of a transmission.

        Args:
            channels: True channels, complex (..., J, J, K, M).
            transmission: What is transmitted.
            noise_power: N0 of each block instead of the scenario's, shape (...), in W.

        Returns:
            The outcome, with the leading dimensions of the input.

        Raises:
            ValueError: If a constraint's quantity has another shape than (..., J).
        """
        powers = link_powers(channels, transmission.precoders, transmission.streams)
        noise = self._noise if noise_power is None else noise_power[..., None, None]
        ratio = sinr(powers, noise)
        rates = spectral_efficiency(ratio)
        if transmission.access is not None:
            access = transmission.access
            idle = (1.0 - access)[..., None, :].expand(*access.shape, access.shape[-1])
            itself = torch.eye(access.shape[-1], dtype=torch.bool, device=access.device)
            rates = rates * access * torch.where(itself, 1.0, idle).prod(-1)
        if self._fixed_sensing is not None:
            sensing = _expand(self._fixed_sensing, rates.shape[:-2])
        else:
            streams = transmission.streams
            sensing = self.sensing(streams @ streams.mH)
        outcome = Outcome(
            transmission=transmission,
            powers=powers,
            sinr=ratio,
            rates=rates,
            sum_rate=rates.sum((-2, -1)),
            sensing=sensing,
        )
        stations = rates.shape[:-1]
        for name, constraint in self.constraints.items():
            quantity = constraint.quantity(outcome, self)
            if quantity.shape != stations:
                raise ValueError(
                    f"quantity of constraint {name!r} must have shape {tuple(stations)}, got "
                    f"{tuple(quantity.shape)}"
                )
            outcome.constraints[name] = quantity / self._limits[name] + self._minus_one
        return outcome

    def on(self, device: torch.device) -> ISACSystem:
        """This system, or the same on another device."""
        if device == self.device:
            return self
        return ISACSystem(self.scenario, self.chosen_constraints, dtype=self.dtype, device=device)


def make_sensing_model(
    scenario: Scenario, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> SensingModel:
    """The sensing loss of a scenario, with targets by station.

    Args:
        scenario: The scenario.
        dtype: Real dtype of the computation.
        device: Device of the computation.

    Returns:
        The model; covariances have shape (..., J, M_R, M_R).
    """
    return SensingModel(
        scenario.num_radar_antennas,
        scenario.antenna_spacing,
        scenario.targets_by_cell,
        scenario.beam_width_deg,
        cross_correlation=scenario.cross_correlation,
        pattern_scale=scenario.pattern_scale,
        dtype=dtype,
        device=device,
    )


def find_system(env: Any) -> ISACSystem:
    """The system behind an environment, single, batched or wrapped.

    Raises:
        TypeError: If ``env`` is no ISAC environment.
    """
    system = getattr(getattr(env, "unwrapped", env), "system", None)
    if not isinstance(system, ISACSystem):
        raise TypeError(f"env must be an ISAC-MISO environment, got {env!r}")
    return system


def choose_device(device: str) -> torch.device:
    """The torch device of a name, with ``"auto"`` for CUDA if present.

    Raises:
        ValueError: If there is no such device on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device must be 'auto' or a torch device of this machine, got {device!r} ({error})"
        ) from error
    return torch.device(device)


def _expand(sensing: SensingLoss, lead: torch.Size) -> SensingLoss:
    return SensingLoss(
        *(
            getattr(sensing, field.name).expand(*lead, *getattr(sensing, field.name).shape)
            for field in dataclasses.fields(sensing)
        )
    )
