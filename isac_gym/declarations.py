"""What decorators in source files declare, and what installed packages bring: names and classes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

__all__ = ["Entry", "find_installed", "load_attribute", "read_declarations"]

_CONTROLS: Final = ("power", "amplitude", "beamforming", "structured")
_RADARS: Final = ("learned", "fixed")
_SCHEDULINGS: Final = ("all", "contention")
_OBSERVATIONS: Final = ("channels",)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a name stands for.

    Attributes:
        name: The name.
        description: One line for lists.
        target: ``module:Class``.
        options: Keyword arguments of the class that belong to the name.
        controls: Control modes of a scenario that it is for.
        radars: Kinds of radar of a scenario that it is for.
        schedulings: Kinds of scheduling of a scenario that it is for.
        observations: Kinds of observation of a scenario that it is for.
        least_cells: Stations that a scenario must have.
        learns: Whether it is trained before it is used.
        is_reference: Whether others are stated in percent of it.
        is_default: Whether it is used unless something is chosen by name.
        most_cells: Stations up to which it is used by default; None means any number.
        rank: Place in lists; lower is earlier.
    """

    name: str
    description: str
    target: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    controls: tuple[str, ...] = _CONTROLS
    radars: tuple[str, ...] = _RADARS
    schedulings: tuple[str, ...] = _SCHEDULINGS
    observations: tuple[str, ...] = _OBSERVATIONS
    least_cells: int = 1
    learns: bool = False
    is_reference: bool = False
    is_default: bool = True
    most_cells: int | None = None
    rank: int = 100

    def suits(self, scenario: Any) -> bool:
        """Whether it is for a scenario."""
        return scenario.num_cells >= self.least_cells and all(
            value in allowed for _, value, allowed in self._list_needs(scenario)
        )

    def is_used(self, scenario: Any) -> bool:
        """Whether it is for a scenario, and used there unless something is chosen by name."""
        few = self.most_cells is None or scenario.num_cells <= self.most_cells
        return self.is_default and few and self.suits(scenario)

    def require_suited(self, scenario: Any) -> None:
        """Check that it is for a scenario.

        Raises:
            ValueError: If it is for another control mode, radar, scheduling, kind of observation or
                number of stations.
        """
        for field, value, allowed in self._list_needs(scenario):
            if value not in allowed:
                names = " or ".join(map(repr, sorted(allowed)))
                raise ValueError(f"{field} must be {names} for {self.name!r}, got {value!r}")
        if scenario.num_cells < self.least_cells:
            raise ValueError(
                f"num_cells must be at least {self.least_cells} for {self.name!r}, got "
                f"{scenario.num_cells}"
            )

    def _list_needs(self, scenario: Any) -> list[tuple[str, str, tuple[str, ...]]]:
        """Fields of a scenario, their values, and those that it is for."""
        needs = {
            "control": self.controls,
            "radar": self.radars,
            "scheduling": self.schedulings,
            "observation": self.observations,
        }
        return [(field, getattr(scenario, field), allowed) for field, allowed in needs.items()]


@lru_cache(maxsize=32)
def find_installed(group: str, path: tuple[str, ...]) -> list[EntryPoint]:
    """The entry points of a group; the import path is the key under which they are kept."""
    return sorted(entry_points(group=group))


@cache
def read_declarations(folders: tuple[str, ...], decorators: tuple[str, ...]) -> dict[str, Entry]:
    """The entries that the decorators in the package's files declare."""
    found = {}
    for folder in folders:
        for module, text in _walk_sources(files("isac_gym") / folder, f"isac_gym.{folder}"):
            if not any(decorator in text for decorator in decorators):
                continue
            for node in ast.parse(text).body:
                if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                    continue
                for call in node.decorator_list:
                    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                        continue
                    if call.func.id in decorators:
                        name, description = map(ast.literal_eval, call.args)
                        traits = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
                        traits = {**_IMPLIED.get(call.func.id, {}), **traits}
                        target = f"{module}:{node.name}"
                        found[name] = Entry(name, description, target, **traits)
    return found


def _walk_sources(folder: Traversable, package: str) -> Iterator[tuple[str, str]]:
    for place in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if place.is_dir() and (place / "__init__.py").is_file():
            yield from _walk_sources(place, f"{package}.{place.name}")
        elif place.name.endswith(".py") and place.name != "__init__.py":
            yield f"{package}.{place.name.removesuffix('.py')}", place.read_text(encoding="utf-8")


def load_attribute(target: str, kind: str) -> Any:
    """What ``module:attribute`` names.

    Raises:
        ValueError: If it cannot be imported.
    """
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{kind} must name an importable 'module:Class', got {target!r} ({error})"
        ) from error
    return found


_IMPLIED: Final[Mapping[str, Mapping[str, Any]]] = {
    "register_baseline": {"is_reference": True},
    "register_constraint": {"is_default": False},
}
"""What a decorator says without being told."""
