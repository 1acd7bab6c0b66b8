"""What an agent is, and how one is found by name.

An agent is any object with Stable-Baselines3's ``predict``. Names lead to agents through this
module's registry, through entry points of the group ``isac_gym.agents`` that other packages
declare, or as ``module:Class``.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isac_gym.scenario import Scenario
from isac_gym.system import system_of

__all__ = [
    "REGISTRY",
    "AgentEntry",
    "Policy",
    "SystemPolicy",
    "agent_names",
    "make_agent",
    "system_of",
]

ENTRY_POINT_GROUP: Final = "isac_gym.agents"


@runtime_checkable
class Policy(Protocol):
    """The one method that makes an object an agent."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Choose an action.

        Args:
            observation: One observation (N,) or a batch (n, N), float32.
            state: State of a recurrent policy, or None.
            episode_start: Whether each observation is the first of an episode, shape (n,).
            deterministic: Whether to choose without sampling.

        Returns:
            Action (A,) or actions (n, A) within [-1, 1], and the next state.
        """


class SystemPolicy(ABC):
    """Base of the package's agents and baselines: from observations to actions, in batches.

    Args:
        env: Environment, single, batched or wrapped, whose scenario the policy is for.

    Attributes:
        system: The system of that environment.
    """

    def __init__(self, env: Any) -> None:
        self.system = system_of(env)

    @property
    def scenario(self) -> Scenario:
        """The scenario that the policy is for."""
        return self.system.scenario

    @abstractmethod
    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Actions for a batch of observations.

        Args:
            observation: float32 (n, N); ``self.system.codec.channels`` makes H of it.
            deterministic: Whether to choose without sampling.

        Returns:
            Real tensor (n, A) within [-1, 1].
        """

    def predict(
        self,
        observation: npt.ArrayLike,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.float32], Any]:
        """Choose actions; see :meth:`Policy.predict`.

        Raises:
            ValueError: If the observation has another length than the scenario's, or is not
                finite.
        """
        array = np.asarray(observation, np.float32)
        size = self.system.codec.observation_size
        if array.ndim not in (1, 2) or array.shape[-1] != size:
            raise ValueError(
                f"observation must have shape ({size},) or (n, {size}), got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError("observation must be finite, got NaN or infinite entries")
        with torch.inference_mode():
            batch = torch.from_numpy(np.atleast_2d(array)).to(self.system.device)
            actions = self.act(batch, deterministic).cpu().numpy()
        return (actions[0] if array.ndim == 1 else actions), state


@dataclasses.dataclass(frozen=True)
class AgentEntry:
    """A name in the registry.

    Attributes:
        target: ``module:attribute`` of a class or function that takes the environment.
        description: One line for the help.
        learns: Whether it is trained before it is compared.
        options: Further keyword arguments of the target.
        controls: Control modes for which the agent exists.
        radars: Kinds of radar for which it exists.
        compared: Whether it is compared unless agents are chosen by name.
    """

    target: str
    description: str
    learns: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    controls: frozenset[str] = frozenset({"power", "amplitude", "beamforming"})
    radars: frozenset[str] = frozenset({"learned", "fixed"})
    compared: bool = True

    def make(self, env: Any, **options: Any) -> Policy:
        """Build the agent for an environment; ``options`` go over those of the entry.

        Raises:
            ValueError: If the agent does not exist for the scenario.
        """
        scenario = system_of(env).scenario
        for field, value, allowed in (
            ("control", scenario.control, self.controls),
            ("radar", scenario.radar, self.radars),
        ):
            if value not in allowed:
                names = " or ".join(map(repr, sorted(allowed)))
                agent = self.target.partition(":")[2]
                raise ValueError(f"{field} must be {names} for {agent}, got {value!r}")
        factory = _attribute(self.target)
        return _checked(factory(env, **{**self.options, **options}), self.target)


_FIXED_DIRECTIONS: Final = frozenset({"power", "beamforming"})
_LEARNED: Final = frozenset({"learned"})

REGISTRY: Final[dict[str, AgentEntry]] = {
    "equal-power": AgentEntry(
        "isac_gym.baselines:EqualPower",
        "the budget shared equally along fixed directions",
        controls=_FIXED_DIRECTIONS,
    ),
    "equal-power-paper": AgentEntry(
        "isac_gym.baselines:EqualPower",
        "0.1 W for every user, as in the paper",
        options={"power": 0.1},
        controls=_FIXED_DIRECTIONS,
    ),
    "random-power": AgentEntry(
        "isac_gym.baselines:RandomPower",
        "the budget shared at random along fixed directions",
        controls=_FIXED_DIRECTIONS,
    ),
    "random-power-paper": AgentEntry(
        "isac_gym.baselines:RandomPower",
        "uniform between 0 and 0.1 W for every user, as in the paper",
        options={"highest": 0.1},
        controls=_FIXED_DIRECTIONS,
    ),
    "mrt": AgentEntry(
        "isac_gym.baselines:MRT",
        "maximum-ratio transmission, best beampattern",
        controls=frozenset({"beamforming"}),
    ),
    "zf": AgentEntry(
        "isac_gym.baselines:ZF",
        "zero forcing, best beampattern",
        controls=frozenset({"beamforming"}),
    ),
    "rzf": AgentEntry(
        "isac_gym.baselines:RZF",
        "regularised zero forcing, best beampattern",
        controls=frozenset({"beamforming"}),
    ),
    "wmmse": AgentEntry(
        "isac_gym.baselines:WMMSE",
        "converged WMMSE, best beampattern",
        controls=_FIXED_DIRECTIONS,
    ),
    "null-steering": AgentEntry(
        "isac_gym.baselines:NullSteering",
        "least radar power at the users within the threshold, WMMSE",
        controls=_FIXED_DIRECTIONS,
        radars=_LEARNED,
    ),
    "communication-only": AgentEntry(
        "isac_gym.baselines:JointOracle",
        "highest rate of each station, whatever the sensing loss",
        options={"constraint": "expected", "price": 0.0},
        controls=_FIXED_DIRECTIONS,
        radars=_LEARNED,
    ),
    "joint": AgentEntry(
        "isac_gym.baselines:JointOracle",
        "joint optimum of each station, threshold kept on every channel",
        controls=_FIXED_DIRECTIONS,
        radars=_LEARNED,
    ),
    "joint-expected": AgentEntry(
        "isac_gym.baselines:JointOracle",
        "joint optimum of each station, threshold kept on the mean",
        options={"constraint": "expected"},
        controls=_FIXED_DIRECTIONS,
        radars=_LEARNED,
    ),
    "primal-dual-paper": AgentEntry(
        "isac_gym.agents:PrimalDual",
        "primal-dual learning to the letter of the paper",
        learns=True,
        options={"preset": "paper"},
    ),
    "primal-dual": AgentEntry(
        "isac_gym.agents:PrimalDual",
        "primal-dual learning, unfolded policy",
        learns=True,
        options={"preset": "tuned"},
    ),
    "primal-dual-wide": AgentEntry(
        "isac_gym.agents:PrimalDual",
        "the same for a range of SNR and thresholds",
        learns=True,
        options={"preset": "wide"},
        controls=_FIXED_DIRECTIONS,
        radars=_LEARNED,
        compared=False,
    ),
    "primal-dual-model-based": AgentEntry(
        "isac_gym.agents:PrimalDual",
        "primal-dual learning, fully connected network with model-based outputs",
        learns=True,
        options={"preset": "model-based"},
        controls=_FIXED_DIRECTIONS,
        compared=False,
    ),
    "no-dual": AgentEntry(
        "isac_gym.agents:NoDual",
        "unfolded policy trained for the rate alone",
        learns=True,
        options={"preset": "tuned"},
        compared=False,
    ),
    "no-dual-paper": AgentEntry(
        "isac_gym.agents:NoDual",
        "the paper's network trained for the rate alone",
        learns=True,
        options={"preset": "paper"},
        compared=False,
    ),
    "supervised": AgentEntry(
        "isac_gym.agents:Supervised",
        "unfolded policy trained on the joint optimum's solutions",
        learns=True,
        options={"preset": "tuned"},
        controls=_FIXED_DIRECTIONS,
        compared=False,
    ),
    "supervised-paper": AgentEntry(
        "isac_gym.agents:Supervised",
        "the paper's network trained on WMMSE's solutions",
        learns=True,
        options={"preset": "paper", "reference": "wmmse"},
        controls=_FIXED_DIRECTIONS,
        compared=False,
    ),
    "transfer-beamforming": AgentEntry(
        "isac_gym.agents:TransferBeamforming",
        "unfolded policy, from power control to beamforming",
        learns=True,
        options={"preset": "tuned"},
        controls=frozenset({"beamforming"}),
        compared=False,
    ),
    "transfer-beamforming-paper": AgentEntry(
        "isac_gym.agents:TransferBeamforming",
        "the paper's network, from power control to beamforming",
        learns=True,
        options={"preset": "paper"},
        controls=frozenset({"beamforming"}),
        compared=False,
    ),
}
"""The package's own agents and baselines by name."""


def agent_names(control: str | None = None) -> list[str]:
    """Names that :func:`make_agent` knows: the registry's, then those of installed packages.

    Args:
        control: Leave out agents of the registry that do not exist for this control mode.
    """
    own = [name for name, entry in REGISTRY.items() if control is None or control in entry.controls]
    return own + sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))


def make_agent(name: str, env: Any, **options: Any) -> Policy:
    """Build an agent by name.

    Args:
        name: A name of :func:`agent_names`, or ``module:attribute``. The attribute is an object
            with ``predict``, or a class or function that returns one; it is given the environment
            if it takes an argument.
        env: Environment the agent is for.
        **options: Keyword arguments for the class or function.

    Returns:
        The agent, not yet trained.

    Raises:
        ValueError: If there is no such name, or the agent does not exist for the scenario.
        TypeError: If what is found has no ``predict``.
    """
    if name in REGISTRY:
        return REGISTRY[name].make(env, **options)
    if ":" in name:
        return _built(_attribute(name), name, env, options)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return _built(entry.load(), name, env, options)
    raise ValueError(
        f"agent must be one of {', '.join(agent_names())} or 'module:Class', got {name!r}"
    )


def _attribute(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"agent must name an importable 'module:Class', got {target!r} ({error})"
        ) from error
    return found


def _built(found: Any, name: str, env: Any, options: Mapping[str, Any]) -> Policy:
    if not inspect.isclass(found) and isinstance(found, Policy):
        return found
    if not callable(found):
        raise TypeError(f"agent {name!r} must have predict(observation, …), got {found!r}")
    factory: Callable[..., Any] = found
    agent = factory(env, **options) if _takes_argument(factory) else factory(**options)
    return _checked(agent, name)


def _takes_argument(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    }
    return any(parameter.kind in positional for parameter in parameters)


def _checked(agent: Any, name: str) -> Policy:
    if not isinstance(agent, Policy):
        raise TypeError(f"agent {name!r} must have predict(observation, …), got {agent!r}")
    return agent
