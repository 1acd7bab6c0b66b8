"""What a transmission must keep to: one object a constraint.

A constraint says which quantity of an outcome it bounds, in which unit and by which limit. Costs in
``info``, multipliers, prices, calibration, tables and pictures follow from the list of them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from torch import Tensor

from isac_gym.registry import CONSTRAINTS, register_constraint
from isac_gym.scenario import Scenario
from isac_gym.validation import check_real, not_allowed

if TYPE_CHECKING:
    from isac_gym.system.downlink import ISACSystem, Outcome

_LARGEST_LIMIT: Final = 1e30
"""Of constraints; its inverse is the least one. Single precision holds both."""

__all__ = [
    "Constraint",
    "PowerConstraint",
    "SchedulingConstraint",
    "SensingConstraint",
    "find_priced",
    "resolve_constraints",
]


class Constraint(ABC):
    """An upper limit on a quantity of every station's transmission; subclass it to bring your own.

    Its signed value is quantity/limit - 1: feasible at 0 or below, in units of the limit.

    Attributes:
        name: Its name, from which the names of entries follow: ``cost_<name>`` and so on.
        description: One line for lists.
        symbol: Letter of the quantity, for tables and pictures.
        unit: Unit of quantity and limit.
        limit_field: Field of the scenario that is the limit, if it is one. An agent can then be
            trained for a range of it.
        is_priced: Whether policies that are told a price are told that of this constraint, unless
            they are told to heed another.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    symbol: ClassVar[str]
    unit: ClassVar[str]
    limit_field: ClassVar[str | None] = None
    is_priced: ClassVar[bool] = False

    def applies(self, scenario: Scenario) -> bool:
        """Whether there is such a quantity in a scenario."""
        return True

    def can_be_exceeded(self, scenario: Scenario) -> bool:
        """Whether some action exceeds the limit; if none does, tables leave the constraint out."""
        return True

    def limit(self, scenario: Scenario) -> float:
        """The limit, > 0, in the unit of the quantity.

        Raises:
            NotImplementedError: If there is neither a ``limit_field`` nor a method of the class.
        """
        if self.limit_field is None:
            raise NotImplementedError(f"{type(self).__name__} must have limit_field or limit()")
        return float(getattr(scenario, self.limit_field))

    def floor(self, scenario: Scenario) -> float:
        """The least value that the quantity can have at every station."""
        return 0.0

    @abstractmethod
    def quantity(self, outcome: Outcome, system: ISACSystem) -> Tensor:
        """The quantity, differentiable, of shape (..., J).

        Args:
            outcome: What a transmission achieves, with leading dimensions (...).
            system: The system that it was achieved in.
        """


@register_constraint("power", "communication power of a station, equation (3)", is_default=True)
class PowerConstraint(Constraint):
    """Σ_k ‖F_k‖² <= P_C."""

    symbol = "P"
    unit = "W"
    limit_field = "comm_power"

    def can_be_exceeded(self, scenario: Scenario) -> bool:
        """Only where what is transmitted is not scaled down to the budget."""
        return scenario.power_limit == "cost"

    def quantity(self, outcome: Outcome, system: ISACSystem) -> Tensor:
        """Transmitted communication power, (..., J), in W."""
        return outcome.transmission.comm_power


@register_constraint("sensing", "sensing loss of a station, equation (10)", is_default=True)
class SensingConstraint(Constraint):
    """L_r <= ε."""

    symbol = "L_r"
    unit = "W² + W"
    limit_field = "sensing_threshold"
    is_priced = True

    def floor(self, scenario: Scenario) -> float:
        """The smallest sensing loss of a radar covariance, at the station where it is largest."""
        return max(scenario.sensing_floor())

    def quantity(self, outcome: Outcome, system: ISACSystem) -> Tensor:
        """Sensing loss L_r, (..., J)."""
        return outcome.sensing.total


@register_constraint(
    "scheduling", "active users of a station, the sum in equation (14)", is_default=True
)
class SchedulingConstraint(Constraint):
    """Σ_k τ_k <= 1."""

    symbol = "Σ τ"
    unit = "users"

    def applies(self, scenario: Scenario) -> bool:
        """Only where users contend."""
        return scenario.scheduling == "contention"

    def limit(self, scenario: Scenario) -> float:
        """One user."""
        return 1.0

    def quantity(self, outcome: Outcome, system: ISACSystem) -> Tensor:
        """Number of active users, (..., J)."""
        access = outcome.transmission.access
        assert access is not None
        return access.sum(-1)


def resolve_constraints(
    scenario: Scenario, chosen: Iterable[Constraint | str] = ()
) -> tuple[list[Constraint], list[Constraint]]:
    """The constraints of every system that apply to a scenario, and those that were chosen.

    Args:
        scenario: The scenario.
        chosen: Further constraints: objects, registered names, or ``module:Class``.

    Raises:
        TypeError: If one is no constraint.
        ValueError: If there is no such name, two have the same name, one does not apply to the
            scenario, or its limit is no finite number > 0.
    """
    if isinstance(chosen, (str, Constraint)) or not isinstance(chosen, Iterable):
        raise TypeError(f"constraints must be a sequence of constraints or names, got {chosen!r}")
    always: list[Constraint] = [CONSTRAINTS.load(name)() for name in CONSTRAINTS.list_defaults()]
    always = [constraint for constraint in always if constraint.applies(scenario)]
    added: list[Constraint] = []
    for given in chosen:
        made = CONSTRAINTS.make(given) if isinstance(given, str) else given
        if not isinstance(made, Constraint):
            raise TypeError(f"constraints must hold Constraint objects or names, got {given!r}")
        for attribute in ("name", "symbol", "unit"):
            value = getattr(made, attribute, None)
            if not isinstance(value, str) or not value:
                raise TypeError(
                    f"constraint {made!r} must have a text as {attribute}, got {value!r}; "
                    "register_constraint gives the name"
                )
        if not re.fullmatch(r"\w[\w-]*", made.name):
            raise not_allowed("name of a constraint", made.name, "letters, digits, _ and -")
        if made.name in [held.name for held in (*always, *added)]:
            raise ValueError(f"constraints must have different names, got {made.name!r} twice")
        if not made.applies(scenario):
            raise ValueError(f"constraints must apply to the scenario, got {made.name!r}")
        added.append(made)
    for constraint in (*always, *added):
        name = f"the limit of constraint {constraint.name!r}"
        limit = constraint.limit(scenario)
        check_real(name, limit, "a finite number > 0", lambda x: x > 0, _LARGEST_LIMIT)
        if limit < 1.0 / _LARGEST_LIMIT:
            raise not_allowed(name, limit, f">= {1.0 / _LARGEST_LIMIT:g}")
    return always, added


def find_priced(constraints: Mapping[str, Constraint], wanted: str | None) -> Constraint | None:
    """The constraint whose price policies are told.

    Args:
        constraints: The constraints of a system by name.
        wanted: The name of one; None means the one that says so of itself.

    Returns:
        The constraint, or None if none says so.

    Raises:
        ValueError: If there is none of the name.
    """
    if wanted is None:
        return next((each for each in constraints.values() if each.is_priced), None)
    if wanted not in constraints:
        raise ValueError(f"priced_constraint must be one of {list(constraints)}, got {wanted!r}")
    return constraints[wanted]
