"""``ISAC-MultiCell-v0`` in PettingZoo's registry, without loading PettingZoo.

PettingZoo has no entry points for others' environments, and importing it takes as long as importing
this package, and sets environment variables. So the id is entered at once if PettingZoo's registry
has been imported, and otherwise right after somebody imports it: a finder at the head of
``sys.meta_path`` answers for that one module, with the loader that Python would have used, and the
id is entered when it has run; with that the finder has done its work and is taken away. It does not
matter which of the two packages is imported first, nor whether PettingZoo is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, Final

__all__ = ["MULTICELL_ID", "register_with_pettingzoo"]

MULTICELL_ID: Final = "ISAC-MultiCell-v0"
_REGISTRY: Final = "pettingzoo.env_registry"


def register_with_pettingzoo() -> None:
    """Enter the id into PettingZoo's registry, now or when PettingZoo is imported.

    Calling it again changes nothing.
    """
    if _REGISTRY in sys.modules:
        _enter_id(sys.modules[_REGISTRY])
    elif _RegistryFinder not in sys.meta_path:
        sys.meta_path.insert(0, _RegistryFinder)


def _enter_id(module: ModuleType) -> None:
    registry: Any = sys.modules[f"{module.__name__}.registration"]
    if MULTICELL_ID not in registry.parallel_registry:
        registry.register("parallel", MULTICELL_ID, "isac_gym.envs.parallel:ISACParallelEnv")


class _RegistryLoader(SourceFileLoader):
    """Loads PettingZoo's registry, then enters the id."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _enter_id(module)
        # Only now: a first import that fails half-way may be tried again.
        if _RegistryFinder in sys.meta_path:
            sys.meta_path.remove(_RegistryFinder)


class _RegistryFinder:
    """Finds PettingZoo's registry, for :class:`_RegistryLoader`, and nothing else."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _RegistryLoader(spec.loader.name, spec.loader.path)
        return spec
