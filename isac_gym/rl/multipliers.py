"""Multipliers of single constraints, raised by what fresh rollouts measure."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from isac_gym.validation import check_real, not_allowed

__all__ = ["Multiplier", "PIDMultiplier", "PlainMultiplier"]


@dataclasses.dataclass
class Multiplier(abc.ABC):
    """A multiplier λ >= 0 of one constraint, in units of reward per unit of the constraint.

    Args:
        step_size: η > 0.
        initial: λ to begin with, >= 0.

    Raises:
        ValueError: If a number is not allowed.

    Attributes:
        value: λ.
    """

    step_size: float = 0.05
    initial: float = 0.0
    value: float = dataclasses.field(init=False)

    _held: ClassVar[tuple[str, ...]] = ("value",)
    _never_negative: ClassVar[tuple[str, ...]] = ("value", "integral")

    def __post_init__(self) -> None:
        self.step_size = check_real(
            "step_size", self.step_size, "a finite number > 0", lambda x: x > 0
        )
        self.initial = check_real("initial", self.initial, "a finite number >= 0", lambda x: x >= 0)
        self.value = self.initial

    @abc.abstractmethod
    def ascend(self, mean: float) -> None:
        """Take one step.

        Args:
            mean: Mean of the signed constraint over fresh transitions, feasible where <= 0.
        """

    def describe(self) -> dict[str, str | float]:
        """Kind and settings, in plain types."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return {"kind": type(self).__name__, **settings}

    def state_dict(self) -> dict[str, float | None]:
        """All that :meth:`load_state_dict` needs, in plain numbers."""
        return {name: getattr(self, name) for name in self._held}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Take over a state.

        Raises:
            ValueError: If it is the state of another kind of multiplier, or holds no such numbers.
        """
        if set(state) != set(self._held):
            raise not_allowed("state", dict(state), f"of the entries {list(self._held)}")
        for name, value in state.items():
            if name in self._never_negative:
                check_real(name, value, "a finite number >= 0", lambda x: x >= 0)
            elif value is not None:
                check_real(name, value, "a finite number or None", math.isfinite)
        for name, value in state.items():
            setattr(self, name, value)


@dataclasses.dataclass
class PlainMultiplier(Multiplier):
    """Projected gradient ascent, λ ← [λ + η·mean]₊.

    The step is plain, without moments, so that λ moves by the violation in its own unit and stops
    when there is none.

    Args:
        step_size: η > 0.
        initial: λ to begin with, >= 0.

    Raises:
        ValueError: If a number is not allowed.
    """

    def ascend(self, mean: float) -> None:
        """See :meth:`Multiplier.ascend`."""
        self.value = max(0.0, self.value + self.step_size * mean)


@dataclasses.dataclass
class PIDMultiplier(Multiplier):
    """A proportional-integral-derivative controller of the violation.

    I ← [I + η·mean]₊, m̄ ← s·m̄ + (1 - s)·mean, and λ = [I + κ·m̄ + δ·[m̄ - m̄₋]₊]₊ with m̄₋ the m̄ of
    the step before: the derivative acts against a violation that grows and not against one that
    shrinks (Stooke, Achiam and Abbeel, “Responsive safety in reinforcement learning by PID
    Lagrangian methods”, 2020, algorithm 2, with the smoothing of their implementation). m̄ begins
    as the first mean.

    Args:
        step_size: η > 0, the integral gain.
        initial: I to begin with, >= 0.
        gain: κ >= 0, the proportional gain.
        derivative_gain: δ >= 0.
        smoothing: s, in [0, 1).

    Raises:
        ValueError: If a number is not allowed.

    Attributes:
        integral: I.
        smoothed: m̄; None before the first step.
    """

    gain: float = 0.5
    derivative_gain: float = 0.0
    smoothing: float = 0.9
    integral: float = dataclasses.field(init=False)
    smoothed: float | None = dataclasses.field(init=False, default=None)

    _held: ClassVar[tuple[str, ...]] = ("value", "integral", "smoothed")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gain", "derivative_gain"):
            number = check_real(name, getattr(self, name), "a finite number >= 0", lambda x: x >= 0)
            setattr(self, name, number)
        self.smoothing = check_real("smoothing", self.smoothing, "in [0, 1)", lambda x: 0 <= x < 1)
        self.integral = self.initial

    def ascend(self, mean: float) -> None:
        """See :meth:`Multiplier.ascend`."""
        before = mean if self.smoothed is None else self.smoothed
        self.smoothed = self.smoothing * before + (1.0 - self.smoothing) * mean
        self.integral = max(0.0, self.integral + self.step_size * mean)
        growth = max(0.0, self.smoothed - before)
        given = self.integral + self.gain * self.smoothed + self.derivative_gain * growth
        self.value = max(0.0, given)
