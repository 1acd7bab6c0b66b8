"""Agents of anybody's, whose failures name them: what they return and say of themselves."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from isac_gym.policy import Policy
from isac_gym.system.codec import check_action

if TYPE_CHECKING:
    from isac_gym.evaluation.table import Table

__all__ = [
    "AgentError",
    "AgentTypeError",
    "AgentValueError",
    "ask_agent",
    "check_answer",
    "join_failures",
    "read_integer",
    "read_real",
    "read_truth",
]


class AgentError(RuntimeError):
    """An agent failed, or returned or said of itself what no agent may.

    Where the agent's own exception is the reason, it is the cause.

    Attributes:
        results: The table of the other agents, where several were compared and others did not
            fail; None otherwise.
    """

    results: Table | None = None


class AgentTypeError(AgentError, TypeError):
    """What an agent returned or says of itself is of another type than it may be."""


class AgentValueError(AgentError, ValueError):
    """What an agent returned or says of itself has another value or shape than it may have."""


def ask_agent(
    agent: Policy, observation: Any, name: str, single: bool = False, **arguments: Any
) -> tuple[Any, Any]:
    """What an agent's ``predict`` returns.

    Args:
        agent: The agent.
        observation: The observation or observations.
        name: Name of the agent, for messages.
        single: Whether messages say that it was a single observation.
        **arguments: Further arguments of ``predict``.

    Returns:
        The action, of any kind, and the state.

    Raises:
        AgentError: If ``predict`` raises, or does not return two things.
    """
    what = " for a single observation" * single
    try:
        answer = agent.predict(observation, **arguments)
    except Exception as error:
        raise AgentError(f"agent {name!r} failed in predict{what}: {error!r}") from error
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise AgentTypeError(
            f"agent {name!r}: predict must return an action and a state{what}, got "
            f"{reprlib.repr(answer)}"
        )
    action, state = answer
    return action, state


def check_answer(
    action: Any, shape: tuple[int, ...], name: str, single: bool = False
) -> npt.NDArray[np.float32]:
    """What an agent returned as its action, as float32.

    Args:
        action: What it returned.
        shape: The shape that it must have.
        name: Name of the agent, for messages.
        single: Whether messages say that it was for a single observation.

    Returns:
        float32 array of that shape.

    Raises:
        AgentError: If it does not hold real numbers within [-1, 1] in that shape.
    """
    agent = f"agent {name!r}" + " for a single observation" * single
    try:
        return check_action(action, shape)
    except TypeError as error:
        raise AgentTypeError(f"{agent}: {error}") from error
    except ValueError as error:
        raise AgentValueError(f"{agent}: {error}") from error
    except Exception as error:  # such as a tensor that a gradient is wanted of
        raise AgentTypeError(f"{agent}: action must be an array ({error})") from error


def read_truth(agent: Policy, attribute: str, name: str) -> bool:
    """An attribute of an agent that is true or false; false if there is none.

    Raises:
        AgentError: If it is neither, or cannot be read.
    """
    found = _read_attribute(agent, attribute, name)
    if found is None or isinstance(found, (bool, np.bool_)):
        return bool(found)
    raise _make_attribute_error(name, attribute, "True or False", found)


def read_integer(agent: Policy, attribute: str, name: str) -> int | None:
    """An attribute of an agent that is a count; None if there is none.

    Raises:
        AgentError: If it is no integer >= 0, or cannot be read.
    """
    found = _read_attribute(agent, attribute, name)
    if found is None:
        return None
    if isinstance(found, numbers.Integral) and not isinstance(found, bool) and int(found) >= 0:
        return int(found)
    raise _make_attribute_error(name, attribute, "an integer >= 0 or None", found)


def read_real(agent: Policy, attribute: str, name: str) -> float | None:
    """An attribute of an agent that is an amount; None if there is none.

    Raises:
        AgentError: If it is no finite real number >= 0, or cannot be read.
    """
    found = _read_attribute(agent, attribute, name)
    if found is None:
        return None
    if isinstance(found, numbers.Integral) and not isinstance(found, bool) and int(found) >= 0:
        return int(found)  # whole bits stay whole
    if isinstance(found, numbers.Real) and not isinstance(found, bool):
        number = float(found)
        if math.isfinite(number) and number >= 0.0:
            return number
    raise _make_attribute_error(name, attribute, "a finite number >= 0 or None", found)


def join_failures(failures: Mapping[str, AgentError], results: Table | None) -> AgentError:
    """One error for the agents that failed, with the table of the others.

    Args:
        failures: The error of each agent; the first of them says of which type the error is.
        results: The table, or None if all have failed.

    Returns:
        The error, for the caller to raise.
    """
    first, *others = failures.values()
    if others:
        joined = type(first)("; ".join(str(each) for each in (first, *others)))
        joined.__cause__ = first.__cause__
        first = joined
    first.results = results
    return first


def _read_attribute(agent: Policy, attribute: str, name: str) -> Any:
    try:
        return getattr(agent, attribute, None)
    except Exception as error:
        raise AgentError(f"agent {name!r} failed in {attribute}: {error!r}") from error


def _make_attribute_error(name: str, attribute: str, allowed: str, found: Any) -> AgentError:
    return AgentValueError(
        f"agent {name!r}: {attribute} must be {allowed}, got {reprlib.repr(found)}"
    )
