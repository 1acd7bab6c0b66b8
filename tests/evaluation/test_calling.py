"""Agents that fail, or return or say what no agent may: one error that names them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL
from simple_agents import Constant

from isac_gym.baselines import MRT, ZF
from isac_gym.evaluation import AgentError, Comparison, compare, evaluate, evaluation_set

SIZE = 62
"""Numbers of an action."""


class Answering(Constant):
    """Answers with what a function makes of its action; said to be for one kind of observation."""

    def __init__(self, answer: Callable[[Any], Any], for_single: bool | None = None) -> None:
        super().__init__(np.zeros(SIZE))
        self.answer, self.for_single = answer, for_single

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        action, state = super().predict(observation)
        if self.for_single in (None, np.ndim(observation) == 1):
            return self.answer(action)
        return action, state


def make() -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **SMALL)


def fail(action: Any) -> Any:
    raise KeyError("my mistake")


ANSWERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nothing": (lambda action: None, "must return an action and a state.*None"),
    "a number": (lambda action: 0.5, "must return an action and a state.*0.5"),
    "three": (lambda action: (action, None, {}), "must return an action and a state"),
    "an array": (lambda action: np.zeros(2), "must return an action and a state"),
    "a shape": (lambda action: (action[..., :-1], None), "action must have shape"),
    "NaN": (lambda action: (action * np.nan, None), "action must be finite"),
    "too much": (lambda action: (action + 1.5, None), "action must be finite and within"),
    "complex": (lambda action: (action * 1j, None), "action must be an array of real numbers"),
    "texts": (lambda action: (action.astype(str), None), "action must be an array of real"),
    "objects": (lambda action: (action.astype(object), None), "action must be an array of real"),
    "rows": (lambda action: ([[0.0], [0.0, 0.0]], None), "rows of equal length"),
    "a gradient": (
        lambda action: (torch.zeros(action.shape, requires_grad=True), None),
        "action must be an array.*grad",
    ),
    "an exception": (fail, "failed in predict.*my mistake"),
}


@pytest.mark.parametrize("for_single", [False, True])
@pytest.mark.parametrize("case", ANSWERS)
def test_what_no_agent_may_return(case: str, for_single: bool) -> None:
    answer, message = ANSWERS[case]
    env = make()
    agents = {"mrt": MRT(env), "theirs": Answering(answer, for_single), "zf": ZF(env)}
    with pytest.raises(AgentError, match=rf"agent 'theirs'.*{message}") as caught:
        compare(agents, env, channels=4)
    assert ("for a single observation" in str(caught.value)) == for_single
    found = caught.value.results
    assert isinstance(found, Comparison)
    expected = compare({"mrt": MRT(env), "zf": ZF(env)}, env, channels=4)
    for name in ("mrt", "zf"):
        assert found[name].spectral_efficiency == expected[name].spectral_efficiency
        assert found[name].percent_of_reference == expected[name].percent_of_reference
    assert len(found.results) == 2


def test_all_that_failed_are_named() -> None:
    env = make()
    agents = {"one": Answering(fail), "mrt": MRT(env), "two": Answering(lambda action: None)}
    with pytest.raises(AgentError, match=r"'one' failed.*; agent 'two': predict must") as caught:
        compare(agents, env, channels=4)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.results is not None
    with pytest.raises(AgentError, match="'one' failed") as caught:
        compare({"one": Answering(fail)}, env, channels=4)
    assert caught.value.results is None


@pytest.mark.parametrize("for_single", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_failure(kind: type[BaseException], for_single: bool) -> None:
    def interrupt(action: Any) -> Any:
        raise kind

    env = make()
    with pytest.raises(kind):
        compare({"theirs": Answering(interrupt, for_single)}, env, channels=4)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("is_reference", np.ones(2)),
        ("is_reference", "no"),
        ("channels_seen", "many"),
        ("channels_seen", -1),
        ("channels_seen", 1.5),
        ("channels_seen", np.ones(2)),
        ("num_timesteps", math.nan),
        ("training_seconds", math.nan),
        ("training_seconds", "long"),
        ("training_seconds", -1.0),
        ("bits_per_link", math.inf),
        ("bits_per_link", np.ones(2)),
        ("bits_per_link", True),
    ],
)
def test_what_no_agent_may_say_of_itself(attribute: str, value: Any) -> None:
    env = make()
    agent = Constant(np.zeros(SIZE))
    setattr(agent, attribute, value)
    with pytest.raises(AgentError, match=rf"agent 'theirs': {attribute} must be .*, got"):
        compare({"theirs": agent, "mrt": MRT(env)}, env, channels=4)


def test_an_attribute_that_cannot_be_read() -> None:
    class Broken(Constant):
        @property
        def training_seconds(self) -> float:
            raise ZeroDivisionError

    env = make()
    with pytest.raises(AgentError, match="agent 'theirs' failed in training_seconds"):
        compare({"theirs": Broken(np.zeros(SIZE))}, env, channels=4)


def test_what_agents_say_of_themselves_becomes_plain_numbers() -> None:
    env = make()
    agent: Any = Constant(np.zeros(SIZE))
    agent.channels_seen, agent.training_seconds = np.int64(5), np.float32(1.5)
    agent.is_reference, agent.exchange = np.bool_(True), "nonsense"
    blocks = evaluation_set(env.unwrapped.scenario, env.unwrapped.channel_model, 3, 0)  # type: ignore[attr-defined]
    found = evaluate(agent, env, blocks)
    told = (found.channels_seen, found.training_seconds, found.is_reference)
    assert told == (5, 1.5, True)
    assert [type(value) for value in told] == [int, float, bool]


@pytest.mark.parametrize("name", ["[red]", "[/]", "[bold", ":smile:", "a\nb", "x" * 300, "a\\"])
def test_names_that_look_like_markup(name: str) -> None:
    env = make()
    table = compare({name: MRT(env)}, env, channels=3)
    shown = "".join(str(table).split())
    if len(name) < 100:
        assert "".join(name.split()) in shown or "\n" in name
    assert table._repr_html_()
