"""Agents of anybody's, whose failures name them: what they return and say of themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from isac_gym.policy import Policy
from isac_gym.system.codec import check_action
from isac_gym.system.downlink import Outcome
from isac_gym.system.simulation import Simulation
from isac_gym.validation import check_flag, check_integer, check_real, show_value

if TYPE_CHECKING:
    from isac_gym.evaluation.table import Table

__all__ = [
    "Acted",
    "AgentError",
    "AgentTypeError",
    "AgentValueError",
    "act_on_blocks",
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
            f"{show_value(answer)}"
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


class Acted(NamedTuple):
    """What an agent did on the current blocks of a simulation.

    Attributes:
        outcome: What came of it.
        state: The agent's state for the next blocks.
        seconds: How long ``predict`` took.
    """

    outcome: Outcome
    state: Any
    seconds: float


def act_on_blocks(
    agent: Policy,
    simulation: Simulation,
    name: str,
    *,
    state: Any,
    is_first: bool,
    deterministic: bool,
) -> Acted:
    """Let an agent act on the current blocks.

    Args:
        agent: The agent.
        simulation: Holds n blocks.
        name: Name of the agent, for messages.
        state: The agent's state.
        is_first: Whether the blocks are the first of their episodes.
        deterministic: Passed on to ``predict``.

    Raises:
        AgentError: If ``predict`` raises, or does not return valid actions and a state.
    """
    observation = simulation.observe()
    started = np.full(len(observation), is_first)
    begin = time.perf_counter()
    action, state = ask_agent(
        agent, observation, name, state=state, episode_start=started, deterministic=deterministic
    )
    seconds = time.perf_counter() - begin
    system = simulation.system
    checked = check_answer(action, (len(observation), system.codec.action_size), name)
    with torch.inference_mode():
        outcome = simulation.apply(torch.from_numpy(checked).to(system.device))
    return Acted(outcome, state, seconds)


def read_truth(agent: Policy, attribute: str, name: str) -> bool:
    """An attribute of an agent that is true or false; false if there is none.

    Raises:
        AgentError: If it is neither, or cannot be read.
    """
    found = _read_attribute(agent, attribute, name)
    with _blame_attribute(name):
        return found is not None and check_flag(attribute, found)


def read_integer(agent: Policy, attribute: str, name: str) -> int | None:
    """An attribute of an agent that is a count; None if there is none.

    Raises:
        AgentError: If it is no integer >= 0, or cannot be read.
    """
    found = _read_attribute(agent, attribute, name)
    with _blame_attribute(name):
        return None if found is None else check_integer(attribute, found, 0)


def read_real(agent: Policy, attribute: str, name: str) -> float | None:
    """An attribute of an agent that is an amount; None if there is none.

    Raises:
        AgentError: If it is no finite real number >= 0, or cannot be read.
    """
    found = _read_attribute(agent, attribute, name)
    if found is None:
        return None
    with _blame_attribute(name):
        number = check_real(attribute, found, "None or a finite number >= 0", lambda x: x >= 0)
    return int(number) if number.is_integer() else number  # whole bits stay whole


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


@contextmanager
def _blame_attribute(name: str) -> Iterator[None]:
    """Name the agent whose attribute is not what it may be."""
    try:
        yield
    except ValueError as error:
        raise AgentValueError(f"agent {name!r}: {error}") from error
