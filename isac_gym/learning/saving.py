"""Saving and loading learning agents."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor

from isac_gym.channels import ChannelModel
from isac_gym.learning.archive import read_archive, select_prefix, write_archive
from isac_gym.learning.config import AgentConfig
from isac_gym.learning.network import name_architecture
from isac_gym.learning.pretrained import find_pretrained
from isac_gym.registry import CHANNELS, CONSTRAINTS, NETWORKS
from isac_gym.scenario import Scenario
from isac_gym.system.constraints import find_priced
from isac_gym.validation import check_integer

if TYPE_CHECKING:
    from isac_gym.learning.agent import LearningAgent

__all__ = ["check_sizes", "load_agent_of", "save_agent"]

_Agent = TypeVar("_Agent", bound="LearningAgent")

# What the numbers of observations and actions mean; an agent can meet another SNR or limit.
_KINDS: Final = ("control", "radar", "scheduling", "observation")
_DIMENSIONS: Final = (
    "num_users",
    "num_comm_antennas",
    "num_radar_antennas",
    "num_cells",
    "precoder_directions",
    "num_radar_streams",
)
_ADDED_FIELDS: Final = {"gain_range", "price_spread", "more_cells"}
"""Settings that files of the same format need not have, because they came later."""
_TRAINING: Final = ("channels_seen", "training_seconds")
"""What files of the same format need not say of the training."""
_LARGEST_SIZE: Final = 1024
"""Of a scenario in a file: what is made of it grows with the square and more."""


def save_agent(agent: LearningAgent, path: str | Path, notes: Mapping[str, str]) -> None:
    """Write an agent's settings, weights and multipliers; see :meth:`LearningAgent.save`.

    Args:
        agent: The agent.
        path: The file.
        notes: What else to write into it, for people.
    """
    tensors = {f"network.{name}": value for name, value in agent.network.state_dict().items()}
    state = agent.multipliers.state_dict()
    tensors |= {f"multipliers.{name}": value for name, value in state.items()}
    if agent.calibrated is not None:
        tensors["calibrated"] = agent.calibrated
    meta = {
        "kind": agent.kind,
        "class": f"{type(agent).__module__}:{type(agent).__qualname__}",
        "config": agent.config.to_dict(),
        "options": {name: getattr(agent, name) for name in agent.saved_options},
        "seed": agent.seed,
        **agent.describe_environment(),
        "training": {name: getattr(agent, name) for name in _TRAINING},
        "notes": dict(notes),
    }
    write_archive(path, meta, tensors)


def check_sizes(scenario: Scenario) -> None:
    """Check the dimensions of a scenario from a file, before anything of their size is made.

    Raises:
        ValueError: If one of them is too large.
    """
    sizes = ("num_users", "num_comm_antennas", "num_radar_antennas", "num_cells")
    if max(getattr(scenario, name) for name in sizes) > _LARGEST_SIZE:
        raise ValueError(f"no number of users, antennas or cells may exceed {_LARGEST_SIZE}")


@dataclasses.dataclass(frozen=True)
class _Saved:
    """What a file says of an agent, checked."""

    config: AgentConfig
    options: dict[str, Any]
    seed: int
    scenario: Scenario
    channel_model: dict[str, Any]
    constraints: list[dict[str, Any]]
    weights: dict[str, Tensor]

    @classmethod
    def read(
        cls, kind: type[LearningAgent], meta: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> _Saved:
        """Check a file's description.

        Raises:
            KeyError: If something is missing.
            TypeError: If something is of the wrong type.
            ValueError: If something is not allowed, or does not fit the tensors.
        """
        config = AgentConfig(**meta["config"])
        known = set(config.to_dict())
        if not known - _ADDED_FIELDS <= set(meta["config"]):
            raise ValueError(f"config must have the fields {sorted(known - _ADDED_FIELDS)}")
        options = meta["options"]
        if not isinstance(options, dict) or set(options) != set(kind.saved_options):
            raise ValueError(f"options must be {sorted(kind.saved_options)}")
        scenario = Scenario.from_dict(meta["scenario"])
        check_sizes(scenario)
        descriptions = [meta["channel_model"], *meta["constraints"]]
        if not all(isinstance(each, dict) for each in descriptions):
            raise ValueError("channel_model must be a description, and constraints a list of them")
        weights = select_prefix(tensors, "network.")
        # No module is imported because a file names it.
        if config.architecture not in NETWORKS.entries():
            raise ValueError(
                f"architecture must be one of {', '.join(NETWORKS.names())}, got "
                f"{config.architecture!r}: register the network and import its module first"
            )
        network = NETWORKS.load(name_architecture(config.architecture, scenario))
        network.check_weights(config.options, weights)
        return cls(
            config,
            options,
            check_integer("seed", meta["seed"], 0),
            scenario,
            meta["channel_model"],
            meta["constraints"],
            weights,
        )

    def make_env(self) -> Any:
        """An environment like that which the agent was saved for."""
        import gymnasium as gym

        always = CONSTRAINTS.list_defaults()
        chosen = [each for each in self.constraints if each.get("name") not in always]
        model = CHANNELS.restore(self.channel_model)
        if not isinstance(model, ChannelModel):
            raise ValueError(f"channel_model must be one, got {model!r}")
        return gym.make(
            "ISAC-MISO-v0",
            scenario=self.scenario,
            channel_model=model,
            constraints=[CONSTRAINTS.restore(each) for each in chosen],
        )


def load_agent_of(
    kind: type[_Agent], path: str | Path, env: Any = None, device: str = "auto"
) -> _Agent:
    """Load an agent of a class; arguments and errors are those of :meth:`LearningAgent.load`."""
    path = find_pretrained(path)
    meta, tensors = read_archive(path, kind.kind)
    try:
        saved = _Saved.read(kind, meta, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a saved {kind.kind}, or damaged ({error!r})") from error
    try:
        env = saved.make_env() if env is None else env
        agent, is_kept = _make_agent(kind, saved, env, device)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    agent.title = f"{kind.kind}, loaded"
    told = meta.get("training")
    for name in _TRAINING:
        value = told.get(name) if isinstance(told, dict) else None
        setattr(agent, name, value if isinstance(value, (int, float)) else None)
    flexible = agent.network.fits_other_sizes
    own = agent.scenario
    for name in _KINDS if flexible else (*_KINDS, *_DIMENSIONS):
        held, met = getattr(saved.scenario, name), getattr(own, name)
        if held != met:
            raise ValueError(
                f"{path}: saved for another scenario, with {name}={held!r}; the environment has "
                f"{met!r}"
            )
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ValueError(f"{path}: damaged, holds weights that are not finite")
    described = agent.describe_environment()
    parts = [saved.channel_model, *saved.constraints]
    is_same = described == {
        "scenario": saved.scenario.to_dict(),
        "channel_model": saved.channel_model,
        "constraints": saved.constraints,
    } and all(part.get("arguments") is not None for part in parts)
    try:
        agent.network.load_state_dict(saved.weights)
        if is_kept or not flexible:
            held = select_prefix(tensors, "multipliers.")
            if described["constraints"] != saved.constraints:  # those that are there as well
                own_state = agent.multipliers.state_dict()
                held = {name: held.get(name, value) for name, value in own_state.items()}
            agent.multipliers.load_state_dict(held)
        calibrated = tensors.get("calibrated")
        if is_same and calibrated is not None:
            if calibrated.shape != (own.num_cells,):
                raise ValueError(f"calibrated has shape {tuple(calibrated.shape)}")
            agent.calibrated = calibrated.to(agent.system.device)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if agent.grid is not None and not agent.grid.covers(own):
        ranges = {name: getattr(agent.config, name) for name in ("snr_range_db", "threshold_range")}
        met_limit = agent.priced.limit(own) if agent.priced else float("nan")
        warnings.warn(
            f"{path}: trained for {', '.join(f'{k}={v}' for k, v in ranges.items())}, the "
            f"environment has snr_db={own.snr_db:g} and a limit of {met_limit:g}",
            stacklevel=3,
        )
    if agent.has_price and not is_same:
        try:
            agent.calibrate()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return agent


def _make_agent(kind: type[_Agent], saved: _Saved, env: Any, device: str) -> tuple[_Agent, bool]:
    """The agent for an environment, and whether its multipliers mean there what they meant.

    The multipliers of a range of conditions mean nothing where more differs than the SNR and the
    limit that they are for.
    """
    config, own = saved.config, env.unwrapped.scenario
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changes = {"snr_db": own.snr_db}
    priced = find_priced(env.unwrapped.system.constraints, config.priced_constraint)
    if priced is not None and priced.limit_field is not None:
        changes[priced.limit_field] = priced.limit(own)
    is_kept = saved.scenario.replace(**changes) == own
    if not is_kept:
        settings |= {"snr_range_db": None, "threshold_range": None}
    agent = kind(env, "paper", seed=saved.seed, device=device, **saved.options, **settings)
    return agent, is_kept
