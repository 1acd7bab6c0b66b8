"""Models that were made for other observations and actions than an environment's."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from isac_gym.envs.single import make_spaces
from isac_gym.policy import Policy, SystemPolicy, Translation
from isac_gym.scenario import Control, ObservationKind, Scenario
from isac_gym.system.downlink import ISACSystem
from isac_gym.validation import not_allowed

__all__ = ["Translated", "translate_model"]


class Translated(SystemPolicy):
    """A policy that sees and acts in spaces of its own, in an environment with others.

    Args:
        env: Environment, single, batched or wrapped.
        model: The policy, such as a model of Stable-Baselines3.
        control: Control mode of its actions.
        observation: Kind of its observations.

    Raises:
        ValueError: If its spaces cannot be translated into the environment's.

    Attributes:
        model: The policy.
        inner: The system in whose spaces it acts.
        channels_seen: Steps that the model counts; None if it does not.
    """

    def __init__(self, env: Any, model: Policy, control: str, observation: str) -> None:
        super().__init__(env)
        scenario = self.scenario.replace(control=control, observation=observation)
        self.model = model
        self.channels_seen: int | None = getattr(model, "num_timesteps", None)
        self.inner = ISACSystem(scenario, self.system.chosen_constraints, device=self.system.device)
        self.translation = Translation(self.system, self.inner)

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Actions (n, A) for observations (n, N)."""
        return self.translation.act(self.model, observation, deterministic)


def translate_model(model: Any, env: Any) -> Any:
    """The model itself, or one that acts by translation where its spaces are others.

    Args:
        model: A policy. One without ``observation_space`` and ``action_space`` is taken for one of
            the environment's.
        env: Environment, single, batched or wrapped.

    Raises:
        ValueError: If its spaces are none of the scenario's with any control mode or kind of
            observation, or those of several.
    """
    shapes = [_get_shape(model, name) for name in ("observation_space", "action_space")]
    base = getattr(env, "unwrapped", env)
    system = getattr(base, "system", None)
    if None in shapes or not isinstance(system, ISACSystem) or isinstance(model, SystemPolicy):
        return model
    scenario = system.scenario
    if shapes == _list_shapes(system):
        return model
    fitting = []
    for control in get_args(Control):
        for observation in get_args(ObservationKind):
            try:
                other = scenario.replace(control=control, observation=observation)
            except ValueError:  # there is no such pair
                continue
            if shapes == _list_shapes(ISACSystem(other)):
                fitting.append((control, observation))
    if len(fitting) == 1:
        return Translated(env, model, *fitting[0])
    if fitting:
        pairs = " or ".join(f"control={c!r}, observation={o!r}" for c, o in fitting)
        raise ValueError(
            f"spaces of the model must be of one control and observation, but are of {pairs}: wrap "
            "it in isac_gym.agents.translated.Translated(env, model, control, observation)"
        )
    raise not_allowed(
        "spaces of the model",
        f"observations of shape {shapes[0]} and actions of shape {shapes[1]}",
        f"{_describe(scenario, system)}, or those of another control or observation",
    )


def _get_shape(model: Any, name: str) -> tuple[int, ...] | None:
    return getattr(getattr(model, name, None), "shape", None)


def _list_shapes(system: ISACSystem) -> list[Any]:
    return [space.shape for space in make_spaces(system)]


def _describe(scenario: Scenario, system: ISACSystem) -> str:
    observation, action = _list_shapes(system)
    return f"{observation} and {action} with control={scenario.control!r}"
