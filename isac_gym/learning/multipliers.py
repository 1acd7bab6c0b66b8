"""Dual variables of the expected constraints, and three rules by which they are raised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from isac_gym.validation import check_choice, check_real

__all__ = [
    "AugmentedLagrangian",
    "DualRule",
    "Multipliers",
    "ProportionalIntegral",
    "make_multipliers",
]

DualRule: TypeAlias = Literal["ascent", "augmented", "pi", "none"]


@dataclasses.dataclass(eq=False, repr=False)
class Multipliers:
    """Multipliers λ >= 0, one for every constraint and station, raised by projected ascent.

    λ ← [λ + η·(mean of the constraint over the batch)]₊, the reading of equations (21), (37) and
    (38) in which a violated constraint raises its multiplier.

    With ``points`` there is one multiplier for each of P points of a grid of conditions, and every
    sample has weights on them (:class:`~isac_gym.learning.conditions.ConditionGrid`): its
    multiplier is their weighted mean, and it raises those that it weighs.

    Args:
        names: Names of the constraints.
        num_cells: Stations J.
        step_size: η > 0.
        initial: Multipliers to begin with, by name; 0 where a name is missing.
        points: Points P, or None for a single condition.
        device: Where the multipliers are.

    Raises:
        ValueError: If a step size or an initial multiplier is not allowed.

    Attributes:
        values: The multipliers by name, each (J,) or (P, J).
        step_size: η; may be changed as training goes.
    """

    names: InitVar[Sequence[str]]
    num_cells: InitVar[int]
    step_size: float
    _: KW_ONLY
    initial: Mapping[str, float] | None = None
    points: int | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self, names: Sequence[str], num_cells: int) -> None:
        self.step_size = check_real(
            "step_size", self.step_size, "a finite number > 0", lambda x: x > 0
        )
        shape = (num_cells,) if self.points is None else (self.points, num_cells)
        given = dict(self.initial or {})
        for name, value in given.items():
            if name not in names:
                raise ValueError(f"initial must name constraints of {list(names)}, got {name!r}")
            allowed = "a finite number >= 0"
            given[name] = check_real(f"initial[{name!r}]", value, allowed, lambda x: x >= 0)
        self.values = {
            name: torch.full(shape, float(given.get(name, 0.0)), device=self.device)
            for name in names
        }
        self._begin()

    def penalty(self, constraints: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """The dual part of the Lagrangian, Σ λ·mean(constraint).

        Args:
            constraints: Signed constraints by name, each (n, J).
            weights: Weights of each sample on the points, (n, P); None without points.

        Returns:
            Scalar tensor with gradient.
        """
        terms = [
            self._weigh(self.values[name], self._average(constraints[name], weights)).sum()
            for name in self.values
        ]
        return torch.stack(terms).sum() / (self.points or 1) if terms else torch.zeros(())

    @torch.no_grad()
    def ascend(self, constraints: Mapping[str, Tensor], weights: Tensor | None = None) -> None:
        """Take one step of the rule.

        Args:
            constraints: Signed constraints by name, each (n, J).
            weights: Weights of each sample on the points, (n, P); None without points.
        """
        for name in self.values:
            self._raise(name, self._average(constraints[name].detach(), weights))

    def at(self, name: str, weights: Tensor | None = None) -> Tensor:
        """Multipliers of a constraint: (J,), or (n, J) for weights (n, P)."""
        value = self.values[name]
        return value if weights is None else weights @ value

    def state_dict(self) -> dict[str, Tensor]:
        """All that :meth:`load_state_dict` needs."""
        return dict(self.values)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state.

        Raises:
            ValueError: If names or shapes differ.
        """
        own = self.state_dict()
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        expected = {name: tuple(value.shape) for name, value in own.items()}
        if shapes != expected:
            raise ValueError(f"multipliers must have the shapes {expected}, got {shapes}")
        for name, value in own.items():
            value.copy_(state[name])

    def _begin(self) -> None:
        """Check and make what a rule has of its own."""

    def _average(self, constraint: Tensor, weights: Tensor | None) -> Tensor:
        """Mean over the batch, (J,), or P times that of the weighted constraint, (P, J)."""
        if weights is None:
            return constraint.mean(0)
        return weights.shape[-1] * (weights.mT @ constraint) / len(weights)

    def _weigh(self, value: Tensor, mean: Tensor) -> Tensor:
        return value * mean

    def _raise(self, name: str, mean: Tensor) -> None:
        self.values[name].add_(self.step_size * mean).clamp_min_(0.0)


@dataclasses.dataclass(eq=False, repr=False)
class AugmentedLagrangian(Multipliers):
    """Multipliers with a quadratic penalty, by Rockafellar's form for inequalities.

    The dual part is ([λ + ρ·m]₊² - λ²)/(2ρ) with m the mean of the constraint over the batch. It
    makes the primal problem convex around a constrained minimum, which damps the oscillation of
    plain ascent. The mean over a batch is noisy, and so its square is biased by ρ/2 times the
    variance of m.

    Args:
        names: Names of the constraints.
        num_cells: Stations J.
        step_size: η of λ ← [λ + η·m]₊; ρ is the classical choice.
        initial: Multipliers to begin with, by name; 0 where a name is missing.
        points: Points P, or None for a single condition.
        device: Where the multipliers are.
        penalty_weight: ρ > 0.
    """

    _: KW_ONLY
    penalty_weight: float

    def _begin(self) -> None:
        weight = self.penalty_weight
        self.penalty_weight = check_real(
            "penalty_weight", weight, "a finite number > 0", lambda x: x > 0
        )

    def _weigh(self, value: Tensor, mean: Tensor) -> Tensor:
        weight = self.penalty_weight
        raised = (value + weight * mean).clamp_min(0.0)
        return (raised.square() - value.square()) / (2.0 * weight)


@dataclasses.dataclass(eq=False, repr=False)
class ProportionalIntegral(Multipliers):
    """Multipliers set by a proportional-integral controller of the violation.

    I ← [I + η·m]₊ and λ = [I + κ·m̄]₊ with m̄ the exponentially smoothed mean of the constraint: the
    proportional part answers a violation at once and damps the integral's oscillation (Stooke,
    Achiam and Abbeel, “Responsive safety in reinforcement learning by PID Lagrangian methods”,
    2020).

    Args:
        names: Names of the constraints.
        num_cells: Stations J.
        step_size: η.
        initial: Integral parts to begin with, by name; 0 where a name is missing.
        points: Points P, or None for a single condition.
        device: Where the multipliers are.
        gain: κ >= 0.
        smoothing: Share of the past in m̄, in [0, 1).
    """

    _: KW_ONLY
    gain: float
    smoothing: float = 0.9

    def _begin(self) -> None:
        self.gain = check_real("gain", self.gain, "a finite number >= 0", lambda x: x >= 0)
        self.smoothing = check_real("smoothing", self.smoothing, "in [0, 1)", lambda x: 0 <= x < 1)
        self._integral = {name: value.clone() for name, value in self.values.items()}
        self._smoothed = {name: torch.zeros_like(value) for name, value in self.values.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`Multipliers.state_dict`."""
        state = dict(self.values)
        state |= {f"integral.{name}": value for name, value in self._integral.items()}
        return state | {f"smoothed.{name}": value for name, value in self._smoothed.items()}

    def _raise(self, name: str, mean: Tensor) -> None:
        integral, smoothed = self._integral[name], self._smoothed[name]
        integral.add_(self.step_size * mean).clamp_min_(0.0)
        smoothed.mul_(self.smoothing).add_((1.0 - self.smoothing) * mean)
        torch.clamp_min(integral + self.gain * smoothed, 0.0, out=self.values[name])


class _HeldAtZero(Multipliers):
    """Multipliers that stay at zero."""

    def _raise(self, name: str, mean: Tensor) -> None:
        pass


def make_multipliers(
    rule: DualRule,
    names: Sequence[str],
    num_cells: int,
    step_size: float,
    *,
    gain: float,
    initial: Mapping[str, float] | None = None,
    points: int | None = None,
    device: torch.device | str = "cpu",
) -> Multipliers:
    """Dual variables by the name of their rule.

    Args:
        rule: ``"ascent"``, ``"augmented"``, ``"pi"``, or ``"none"``: they stay at zero.
        names: Names of the constraints.
        num_cells: Stations J.
        step_size: η.
        gain: ρ of ``"augmented"``, κ of ``"pi"``.
        initial: Multipliers to begin with, by name.
        points: Points P of a grid of conditions, or None.
        device: Where the multipliers are.

    Raises:
        ValueError: If there is no such rule, or a number is not allowed.
    """
    rule = check_choice("rule", rule, DualRule)
    kinds: dict[DualRule, Callable[..., Multipliers]] = {
        "ascent": Multipliers,
        "augmented": partial(AugmentedLagrangian, penalty_weight=gain),
        "pi": partial(ProportionalIntegral, gain=gain),
        "none": _HeldAtZero,
    }
    given = None if rule == "none" else initial
    return kinds[rule](names, num_cells, step_size, initial=given, points=points, device=device)
