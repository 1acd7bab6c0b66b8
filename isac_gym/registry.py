"""Names of what can be chosen: agents, networks, channel models, constraints, experiments.

A class is registered where it stands, by a decorator that says what it is for::

    @register_agent("my-agent", "what it does, in one line", learns=True)
    class MyAgent: ...

Names of the package's own classes are read from the source files, whose decorators therefore take
literals alone: listing them imports no torch, and a class is imported when it is asked for. Other
packages are found by their entry points (group ``isac_gym.agents`` and so on), other modules once
they are imported, and anything by ``module:Class``.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from isac_gym.declarations import Entry, find_installed, load_attribute, read_declarations

__all__ = [
    "AGENTS",
    "CHANNELS",
    "CONSTRAINTS",
    "EXPERIMENTS",
    "NETWORKS",
    "Entry",
    "Registry",
    "make_agent",
    "register_agent",
    "register_baseline",
    "register_channel",
    "register_constraint",
    "register_experiment",
    "register_network",
]

_T = TypeVar("_T")


class Registry:
    """Names of one kind of class.

    Args:
        kind: What the classes are, in the singular, for messages.
        group: Group of entry points in which other packages declare theirs.
        folders: Folders of the package whose files are read, and the decorators in them.
    """

    def __init__(self, kind: str, group: str, folders: tuple[str, ...], *decorators: str) -> None:
        self.kind, self.group = kind, group
        self._folders, self._decorators = folders, decorators
        self._imported: dict[str, Entry] = {}
        self._classes: dict[str, Any] = {}

    def add(self, found: _T, name: str, description: str, **traits: Any) -> _T:
        """Register a class or function under a name.

        Args:
            found: The class or function.
            name: The name.
            description: One line for lists.
            **traits: Further attributes of the :class:`Entry`.

        Returns:
            The class or function as it is.

        Raises:
            ValueError: If another class has the name.
        """
        target = f"{found.__module__}:{found.__qualname__}"  # type: ignore[attr-defined]
        held = self._read_own().get(name) or self._imported.get(name)
        if held is not None and held.target != target:
            raise ValueError(f"name must be a new one for {target}, got {name!r} of {held.target}")
        self._imported[name] = Entry(name, description, target, **traits)
        self._classes[name] = found
        return found

    def entries(self) -> dict[str, Entry]:
        """All entries by name: the package's, those of imported modules, those installed."""
        ranked = self._list_known()
        for point in find_installed(self.group, tuple(sys.path)):
            if point.name not in ranked:
                package = "" if point.dist is None else f" {point.dist.name}"
                ranked[point.name] = Entry(
                    point.name,
                    f"from the installed package{package}",
                    point.value,
                    observations=("channels", "features"),
                    is_default=False,
                )
        return ranked

    def list_defaults(self) -> list[str]:
        """Names that are used unless something is chosen: none of installed packages is."""
        return [name for name, entry in self._list_known().items() if entry.is_default]

    def names(self) -> list[str]:
        """All names."""
        return list(self.entries())

    def find(self, name: str) -> Entry:
        """What a name stands for: a registered one, or ``module:Class``.

        Raises:
            ValueError: If there is no such name; the message lists the known ones.
        """
        known = self._list_known()
        if name not in known:  # only then is it worth looking through what is installed
            known = self.entries()
        if name in known:
            return known[name]
        if ":" in name:
            return self._find_entry(load_attribute(name, self.kind), name)
        allowed = ", ".join(known)
        raise ValueError(f"{self.kind} must be one of {allowed} or 'module:Class', got {name!r}")

    def load(self, name: str) -> Any:
        """The class of a name, imported.

        Raises:
            ValueError: If there is no such name.
        """
        if name in self._imported:
            return self._classes[name]
        return load_attribute(self.find(name).target, self.kind)

    def make(self, name: str, /, **arguments: Any) -> Any:
        """Make an object of a class by its name.

        Args:
            name: A registered name, ``NAME:VALUE`` for one whose first argument is the value, a
                number or a text (such as ``file:my.npy``), or ``module:Class``.
            **arguments: Arguments of the class, over those that belong to the name.

        Raises:
            ValueError: If there is no such name, or an argument is unknown or missing.
        """
        first, separator, value = name.partition(":")
        positional: tuple[Any, ...] = ()
        has_value = bool(separator) and first in self.entries()
        name = first if has_value else name
        made = self.load(name)
        given = {**self.find(name).options, **arguments}
        try:
            signature = inspect.signature(made)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.kind} {name!r} must be a class that says its arguments, got {made!r}"
            ) from error
        if has_value:
            positional = (_parse_value(value, signature),)
        try:
            signature.bind(*positional, **given)
        except TypeError as error:
            known = ", ".join(signature.parameters) or "none"
            raise ValueError(
                f"{self.kind} {name!r} takes the arguments {known}, got "
                f"{', '.join(map(str, (*positional, *given))) or 'none'}: {error}"
            ) from error
        return made(*positional, **given)

    def describe(self, made: object) -> dict[str, Any]:
        """Name and arguments of an object as plain JSON types: what files state.

        The arguments are the attributes by the names of the constructor's parameters. Where one is
        missing or no JSON type they are None, and the object cannot be restored from a file. An
        attribute ``digest`` says what else tells it from others, such as the content of a file.
        """
        kind = type(made)
        name = self._find_entry(kind, "").name
        try:
            arguments = {key: getattr(made, key) for key in inspect.signature(kind).parameters}
            arguments = json.loads(json.dumps(arguments, default=_as_plain))
        except (AttributeError, TypeError, ValueError):
            return {"name": name, "arguments": None}
        content = {"digest": made.digest} if hasattr(made, "digest") else {}
        return {"name": name, "arguments": arguments, **content}

    def restore(self, description: Any) -> Any:
        """The object of a description; no module is imported because a file names it.

        Args:
            description: What :meth:`describe` returned.

        Raises:
            ValueError: If it is no description, its class is neither registered nor imported, or
                the object cannot be made; the message says what to do.
        """
        if not isinstance(description, Mapping) or not {"name", "arguments"} <= set(description):
            raise ValueError(f"{self.kind} must hold name and arguments, got {description!r}")
        name, arguments = description["name"], description["arguments"]
        if not isinstance(name, str) or name not in self.entries():
            raise ValueError(
                f"{self.kind} must be one of {', '.join(self.names())}, got {name!r}: register it "
                "and import its module first, or hand in an environment that has it"
            )
        if not isinstance(arguments, dict):
            raise ValueError(
                f"{self.kind} {name!r} was saved without its arguments: hand in an environment "
                "that has it"
            )
        return self.make(name, **arguments)

    def _find_entry(self, found: Any, target: str) -> Entry:
        own = f"{getattr(found, '__module__', '')}:{getattr(found, '__qualname__', '')}"
        for entry in self.entries().values():
            if entry.target in (own, target):
                return entry
        target = target or own
        reference = bool(getattr(found, "is_reference", False))
        return Entry(
            target,
            "",
            target,
            observations=("channels", "features"),  # what it is for, it does not say
            learns=hasattr(found, "learn"),
            is_reference=reference,
        )

    def _list_known(self) -> dict[str, Entry]:
        """The entries of the package and of imported modules, by rank."""
        found = {**self._read_own(), **self._imported}
        return {entry.name: entry for entry in sorted(found.values(), key=lambda e: e.rank)}

    def _read_own(self) -> dict[str, Entry]:
        return read_declarations(self._folders, self._decorators)


def _parse_value(value: str, signature: inspect.Signature) -> float | str:
    """A number where it is one, unless the first argument of the signature is a text or a path."""
    first = next(iter(signature.parameters.values()), None)
    if first is None or "str" in str(first.annotation) or "Path" in str(first.annotation):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _as_plain(value: object) -> Any:
    """Paths as text, and scalars of NumPy as those of Python.

    Nothing else is known to be what a constructor accepts.
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no JSON type: {value!r}")


AGENTS: Final = Registry(
    "agent",
    "isac_gym.agents",
    ("baselines", "agents"),
    "register_agent",
    "register_baseline",
)
NETWORKS: Final = Registry("architecture", "isac_gym.networks", ("agents",), "register_network")
CHANNELS: Final = Registry("channel model", "isac_gym.channels", ("channels",), "register_channel")
CONSTRAINTS: Final = Registry(
    "constraint", "isac_gym.constraints", ("system",), "register_constraint"
)
EXPERIMENTS: Final = Registry(
    "experiment", "isac_gym.experiments", ("experiments",), "register_experiment"
)


def register_agent(name: str, description: str, **traits: Any) -> Callable[[_T], _T]:
    """Register an agent: a class or function that takes the environment.

    Args:
        name: Its name.
        description: One line for lists.
        **traits: ``options``, ``controls``, ``radars``, ``observations``, ``learns``,
            ``is_reference``, ``is_default`` (whether it is compared unless agents are chosen by
            name) and ``rank`` of :class:`Entry`; literals, in the package's own files.
    """
    return lambda found: AGENTS.add(found, name, description, **traits)


def register_baseline(name: str, description: str, **traits: Any) -> Callable[[_T], _T]:
    """Register an agent that is a reference for others; as :func:`register_agent`."""

    def register(found: _T) -> _T:
        AGENTS.add(found, name, description, **{**traits, "is_reference": True})
        found.is_reference = True  # type: ignore[attr-defined]
        return found

    return register


def register_network(name: str, description: str, **traits: Any) -> Callable[[_T], _T]:
    """Register a network for ``architecture=``; as :func:`register_agent`.

    It is made as ``Network(system, generator, **options)``, with the options that its signature
    names taken from the agent's settings; see :class:`isac_gym.learning.network.Network`.
    """
    return lambda found: NETWORKS.add(found, name, description, **traits)


def register_channel(name: str, description: str, **traits: Any) -> Callable[[_T], _T]:
    """Register a channel model, a subclass of :class:`isac_gym.channels.ChannelModel`."""
    return lambda found: CHANNELS.add(found, name, description, **traits)


def register_constraint(name: str, description: str, **traits: Any) -> Callable[[_T], _T]:
    """Register a constraint, a subclass of :class:`isac_gym.system.constraints.Constraint`.

    With ``is_default=True`` it is part of every environment whose scenario it applies to.
    """

    def register(found: _T) -> _T:
        CONSTRAINTS.add(found, name, description, **{"is_default": False, **traits})
        found.name, found.description = name, description  # type: ignore[attr-defined]
        return found

    return register


def register_experiment(name: str, description: str, **traits: Any) -> Callable[[_T], _T]:
    """Register an experiment, a subclass of :class:`isac_gym.experiments.base.Experiment`."""
    return lambda found: EXPERIMENTS.add(found, name, description, **traits)


def make_agent(name: str, env: Any, /, **options: Any) -> Any:
    """Build an agent by name.

    Args:
        name: A registered name, or ``module:attribute``. The attribute is an object with
            ``predict``, or a class or function that returns one; it is given the environment if it
            takes an argument.
        env: Environment the agent is for.
        **options: Keyword arguments for the class or function, over those of the name.

    Returns:
        The agent, not yet trained.

    Raises:
        ValueError: If there is no such name, or the agent does not exist for the scenario.
        TypeError: If what is found has no ``predict``.
    """
    found = AGENTS.load(name)
    entry = AGENTS.find(name)  # what an installed package's decorator says, now that it is imported
    scenario = getattr(getattr(env, "unwrapped", env), "scenario", None)
    if scenario is not None:
        entry.require_suited(scenario)
    agent = found
    if inspect.isclass(found) or not hasattr(found, "predict"):
        if not callable(found):
            raise TypeError(f"agent {name!r} must have predict(observation, …), got {found!r}")
        given = {**entry.options, **options}
        agent = found(env, **given) if _takes_argument(found) else found(**given)
    if not callable(getattr(agent, "predict", None)):
        raise TypeError(f"agent {name!r} must have predict(observation, …), got {agent!r}")
    return agent


def _takes_argument(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(
        parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)
        for parameter in parameters
    )
