"""What training minimises, and where its batches come from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from isac_gym.channels.base import ChannelModel
from isac_gym.learning.conditions import ConditionGrid, Conditions
from isac_gym.learning.labels import Labels
from isac_gym.learning.multipliers import Multipliers
from isac_gym.learning.network import Network
from isac_gym.system.constraints import Constraint
from isac_gym.system.downlink import ISACSystem, Outcome
from isac_gym.system.simulation import Simulation

__all__ = ["Imitation", "Lagrangian", "LossValue", "Mixture", "TrainingLoss"]


@dataclasses.dataclass(frozen=True)
class LossValue:
    """A loss on a batch of n blocks.

    Attributes:
        loss: Scalar with gradient.
        sum_rate: Spectral efficiency, (n,), in bit/s/Hz.
        constraints: Signed constraints by name, relative to their limits, each (n, J).
        weights: Weights of the blocks on a grid of conditions, (n, P), or None.
    """

    loss: Tensor
    sum_rate: Tensor
    constraints: dict[str, Tensor]
    weights: Tensor | None = None


class TrainingLoss(Protocol):
    """A loss with whatever state it has."""

    def evaluate(self, network: nn.Module, rng: np.random.Generator) -> LossValue:
        """The loss of a network on a batch drawn by ``rng`` alone."""

    def update(self, value: LossValue, progress: float) -> None:
        """Update the state after a gradient step.

        Args:
            value: The batch of that step.
            progress: Share of the training that is done, in [0, 1).
        """

    def multipliers(self) -> dict[str, float]:
        """Mean of each constraint's multiplier, for reports."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state; ValueError if it does not fit."""


class Lagrangian:
    """-E[spectral efficiency] + Σ λ·E[constraint] on channels drawn from a model.

    Args:
        system: Differentiable system.
        model: How channels are drawn.
        batch_size: Blocks n a batch.
        multipliers: The multipliers of the system's constraints.
        priced: The constraint whose price the network is told; None tells it none.
        relative: Whether they weigh excess/limit; otherwise plain excess.
        step_size: Step size η of the multipliers to begin with.
        final_step_size: Step size of the multipliers at the end, reached by a cosine; None keeps
            it constant.
        grid: SNR and limits of the priced constraint to draw for each block; None means the
            scenario's.
        gain_range: Mean powers of the paths between cells to draw for each block; None means the
            scenario's.
        price_spread: Largest factor by which a block's price differs from the multiplier's.
    """

    def __init__(
        self,
        system: ISACSystem,
        model: ChannelModel,
        batch_size: int,
        multipliers: Multipliers,
        priced: Constraint | None = None,
        *,
        relative: bool,
        step_size: float,
        final_step_size: float | None = None,
        grid: ConditionGrid | None = None,
        gain_range: tuple[float, float] | None = None,
        price_spread: float = 1.0,
    ) -> None:
        self._gain_range, self._price_spread = gain_range, price_spread
        self._step_size, self._final_step_size = step_size, final_step_size
        multipliers.step_size = step_size
        self._system, self._multipliers, self._grid = system, multipliers, grid
        self._relative = relative
        self._priced = priced
        self._simulation = Simulation(system, model, batch_size)

    def evaluate(self, network: nn.Module, rng: np.random.Generator) -> LossValue:
        """The Lagrangian of a network on a batch drawn by ``rng`` alone."""
        system, simulation, priced = self._system, self._simulation, self._priced
        simulation.start(rng)
        count = len(simulation.channels)
        if self._gain_range is not None:
            simulation.change_gain(_draw_log_uniform(rng, *self._gain_range, count))
        device = system.device
        observation = torch.from_numpy(simulation.observe()).to(device)
        factor = None
        if self._price_spread > 1.0 and priced is not None:
            drawn = _draw_log_uniform(rng, 1.0 / self._price_spread, self._price_spread, count)
            factor = torch.from_numpy(drawn).to(device, system.dtype)[:, None]
        if self._grid is None or priced is None:
            conditions = Conditions.of(system, count, self._find_multiplier(), priced)
            if factor is not None:
                conditions = Conditions(conditions.noise_power, conditions.price * factor)
            outcome = simulation.apply(network(observation, conditions))
            constraints, weights = outcome.constraints, None
        else:
            snr_db, threshold = self._grid.draw(rng, count)
            weights = self._grid.weights(snr_db, threshold).to(device)
            noise = system.scenario.comm_power * 10.0 ** (-0.1 * snr_db)
            noise_power = torch.from_numpy(noise).to(device, system.dtype)
            limit = torch.from_numpy(threshold).to(device, system.dtype)[:, None]
            price = self._multipliers.at(priced.name, weights) / limit
            if factor is not None:
                price = price * factor
            outcome = simulation.apply(
                network(observation, Conditions(noise_power, price)), noise_power
            )
            quantity = priced.quantity(outcome, system)
            constraints = {**outcome.constraints, priced.name: quantity / limit - 1.0}
        weighed = self._weigh(constraints)
        if factor is not None and priced is not None:
            weighed = {**weighed, priced.name: weighed[priced.name] * factor}
        penalty = self._multipliers.penalty(weighed, weights)
        loss = penalty - self.measure_utility(outcome)
        return LossValue(loss, outcome.sum_rate, constraints, weights)

    def measure_utility(self, outcome: Outcome) -> Tensor:
        """What is maximised, a scalar with gradient: the mean spectral efficiency of the batch."""
        return outcome.sum_rate.mean()

    def update(self, value: LossValue, progress: float) -> None:
        """See :meth:`TrainingLoss.update`: a step of dual ascent."""
        if self._final_step_size is not None:
            span = self._step_size - self._final_step_size
            fall = 0.5 * (1.0 + math.cos(math.pi * progress))
            self._multipliers.step_size = self._final_step_size + span * fall
        self._multipliers.ascend(self._weigh(value.constraints), value.weights)

    def multipliers(self) -> dict[str, float]:
        """See :meth:`TrainingLoss.multipliers`."""
        return {name: float(value.mean()) for name, value in self._multipliers.values.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`TrainingLoss.state_dict`."""
        return self._multipliers.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`TrainingLoss.load_state_dict`."""
        self._multipliers.load_state_dict(state)

    def _weigh(self, constraints: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._relative:
            return constraints
        limits = self._system.limits
        return {name: value * limits[name] for name, value in constraints.items()}

    def _find_multiplier(self) -> Tensor | None:
        if self._priced is None:
            return None
        value = self._multipliers.values[self._priced.name]
        return value if self._relative else value * self._system.limits[self._priced.name]


class Mixture:
    """Several Lagrangians in turn, drawn for each batch, each with multipliers of its own.

    So that one network is trained for systems of several sizes.

    Args:
        parts: The Lagrangians, each with the system that the network is to be on
            (:meth:`~isac_gym.learning.network.Network.on`); None leaves it on its own. Reports are
            those of the first.
    """

    def __init__(self, parts: Sequence[tuple[Lagrangian, ISACSystem | None]]) -> None:
        self._parts = list(parts)
        self._last = 0

    def evaluate(self, network: nn.Module, rng: np.random.Generator) -> LossValue:
        """See :meth:`TrainingLoss.evaluate`."""
        self._last = int(rng.integers(len(self._parts)))
        loss, system = self._parts[self._last]
        if system is not None:
            assert isinstance(network, Network)
            network = network.on(system)
        return loss.evaluate(network, rng)

    def update(self, value: LossValue, progress: float) -> None:
        """See :meth:`TrainingLoss.update`: a step of dual ascent of the part that was drawn."""
        self._parts[self._last][0].update(value, progress)

    def multipliers(self) -> dict[str, float]:
        """See :meth:`TrainingLoss.multipliers`."""
        return self._parts[0][0].multipliers()

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`TrainingLoss.state_dict`."""
        return {
            f"{index}.{name}": value
            for index, (loss, _) in enumerate(self._parts)
            for name, value in loss.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`TrainingLoss.load_state_dict`."""
        for index, (loss, _) in enumerate(self._parts):
            prefix = f"{index}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            loss.load_state_dict(own)


def _draw_log_uniform(
    rng: np.random.Generator, low: float, high: float, count: int
) -> npt.NDArray[np.float64]:
    drawn: npt.NDArray[np.float64] = np.exp(rng.uniform(math.log(low), math.log(high), count))
    return drawn


class Imitation:
    """Distance to a reference's transmissions, whatever leaves their effect unchanged left out.

    The mean over the batch of Σ_k min_φ ‖F_k - e^{jφ} F'_k‖²/P_C + ‖R - R'‖²/‖R'‖², with F' and
    R' = V'V'ᴴ the reference's: the phase of a user's beam and a rotation of the radar's streams
    change neither rates nor sensing loss.

    Args:
        system: Differentiable system.
        labels: The reference's solutions.
        batch_size: Blocks n a batch.
        multiplier: What the network is told as multiplier of the priced constraint, (J,).
        priced: That constraint; None tells it none.

    Raises:
        ValueError: If the labels are of other dimensions than the system's scenario.
    """

    def __init__(
        self,
        system: ISACSystem,
        labels: Labels,
        batch_size: int,
        multiplier: Tensor,
        priced: Constraint | None = None,
    ) -> None:
        self._multiplier, self._priced = multiplier, priced
        expected = system.codec.deployment.shape
        if labels.channels.shape[1:] != expected:
            raise ValueError(
                f"labels must be for channels of shape (n, {', '.join(map(str, expected))}), got "
                f"{labels.channels.shape}"
            )
        device = system.device
        self._system, self._batch_size = system, batch_size
        observations = system.codec.observation(labels.estimates)
        self._observations = torch.from_numpy(observations).to(device)
        self._channels = torch.from_numpy(labels.channels).to(device)
        self._estimates = torch.from_numpy(labels.estimates).to(device)
        self._precoders = torch.from_numpy(labels.precoders).to(device)
        streams = torch.from_numpy(labels.streams).to(device)
        self._covariances = streams @ streams.mH

    def evaluate(self, network: nn.Module, rng: np.random.Generator) -> LossValue:
        """See :meth:`TrainingLoss.evaluate`."""
        count = len(self._observations)
        index = torch.from_numpy(rng.integers(count, size=self._batch_size)).to(self._system.device)
        conditions = Conditions.of(self._system, len(index), self._multiplier, self._priced)
        action = network(self._observations[index], conditions)
        outcome = self._system.transmit(self._channels[index], action, self._estimates[index])
        sent, wanted = outcome.transmission.precoders, self._precoders[index]
        energy = sent.abs().square().sum((-2, -1)) + wanted.abs().square().sum((-2, -1))
        # The modulus has no gradient at 0, where a user that is not served is.
        overlap = (sent.conj() * wanted).sum(-2)
        aligned = (overlap.abs().square() + 1e-12).sqrt().sum(-1)
        loss = (energy - 2.0 * aligned) / self._system.scenario.comm_power
        if self._system.scenario.radar == "learned":
            streams, target = outcome.transmission.streams, self._covariances[index]
            distance = (streams @ streams.mH - target).abs().square().sum((-2, -1))
            loss = loss + distance / target.abs().square().sum((-2, -1))
        return LossValue(loss.mean(), outcome.sum_rate, outcome.constraints)

    def update(self, value: LossValue, progress: float) -> None:
        """See :meth:`TrainingLoss.update`: there is no state."""

    def multipliers(self) -> dict[str, float]:
        """See :meth:`TrainingLoss.multipliers`: there are none."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`TrainingLoss.state_dict`: there is none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`TrainingLoss.load_state_dict`."""
        if state:
            raise ValueError(f"a supervised training has no state, got {sorted(state)}")
