"""Saving and loading learning agents."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from isac_gym.channels import ChannelModel
from isac_gym.learning.archive import (
    Archive,
    check_finite,
    check_shapes,
    open_archive,
    select_prefix,
    write_archive,
)
from isac_gym.learning.config import AgentConfig
from isac_gym.learning.network import name_architecture
from isac_gym.learning.pretrained import find_pretrained
from isac_gym.reading import (
    Count,
    FileError,
    Seconds,
    blame_file,
    check_counts,
    make_file_error,
)
from isac_gym.registry import CHANNELS, CONSTRAINTS, NETWORKS
from isac_gym.scenario import Scenario
from isac_gym.system.constraints import find_priced
from isac_gym.system.downlink import choose_device

if TYPE_CHECKING:
    from isac_gym.learning.agent import LearningAgent

__all__ = ["check_work", "load_agent_of", "save_agent"]

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
_LARGEST_ARRAY: Final = 64
"""Radar antennas whose best beampattern is found because a file says so."""
_LARGEST_CHANNEL: Final = 2**22
_LARGEST_LAYER: Final = 2**24
_MOST_TARGETS: Final = 181


class SavedTraining(msgspec.Struct):
    """What a file says of the training of its agent."""

    channels_seen: Count | None = None
    training_seconds: Seconds | None = None


class SavedAgent(msgspec.Struct):
    """The description of a learning agent in a file."""

    config: dict[str, Any]
    options: dict[str, Any]
    seed: Annotated[int, msgspec.Meta(ge=0)]
    scenario: dict[str, Any]
    channel_model: dict[str, Any]
    constraints: list[dict[str, Any]]
    training: SavedTraining | None = None


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


def check_work(scenario: Scenario) -> None:
    """Check that what is made of a scenario from a file takes seconds, not minutes and gigabytes.

    An environment that is handed in may be larger than one that a file asks for.

    Raises:
        ValueError: If it takes more.
    """
    antennas, users = scenario.num_radar_antennas, scenario.num_users
    designs = len(set(scenario.targets_by_cell)) * antennas**2
    channel = 2 * scenario.num_cells**2 * users * scenario.num_antennas
    if (
        designs > _LARGEST_ARRAY**2
        or max(map(len, scenario.targets_by_cell)) > _MOST_TARGETS
        or channel > _LARGEST_CHANNEL
        or channel * users > _LARGEST_LAYER
    ):
        raise ValueError(
            f"a scenario in a file must have at most {_LARGEST_ARRAY} radar antennas for a set of "
            f"targets, {_MOST_TARGETS} targets a station and {_LARGEST_CHANNEL} numbers a channel "
            f"unless an environment is handed in, got {antennas} radar antennas, "
            f"{scenario.num_comm_antennas} others, {users} users and {scenario.num_cells} cells"
        )


@dataclasses.dataclass(frozen=True)
class _Saved:
    """What a file says of an agent, checked."""

    config: AgentConfig
    options: dict[str, Any]
    seed: int
    scenario: Scenario
    channel_model: dict[str, Any]
    constraints: list[dict[str, Any]]

    @classmethod
    def read(cls, kind: type[LearningAgent], archive: Archive[SavedAgent]) -> _Saved:
        """Check a file's description against its tensors, of which the shapes are known.

        Raises:
            KeyError: If something is missing.
            TypeError: If something is of the wrong type.
            ValueError: If something is not allowed, or does not fit the tensors.
        """
        held = archive.held
        for name in ("config", "options", "seed", "scenario"):
            check_counts(getattr(held, name), name)
        config = AgentConfig(**held.config)
        known = set(config.to_dict())
        if not known - _ADDED_FIELDS <= set(held.config):
            raise ValueError(f"config must have the fields {sorted(known - _ADDED_FIELDS)}")
        if set(held.options) != set(kind.saved_options):
            raise ValueError(f"options must be {sorted(kind.saved_options)}")
        scenario = Scenario.from_dict(held.scenario)
        weights = select_prefix(archive.shapes, "network.")
        # No module is imported because a file names it.
        if config.architecture not in NETWORKS.entries():
            raise ValueError(
                f"architecture must be one of {', '.join(NETWORKS.names())}, got "
                f"{config.architecture!r}: register the network and import its module first"
            )
        network = NETWORKS.load(name_architecture(config.architecture, scenario))
        network.check_weights(config.options, weights)
        for name, value in select_prefix(archive.shapes, "multipliers.").items():
            if value.shape[-1:] != (scenario.num_cells,):
                raise ValueError(
                    f"multipliers of {name} must be those of {scenario.num_cells} cells, got shape "
                    f"{tuple(value.shape)}"
                )
        return cls(config, held.options, held.seed, scenario, held.channel_model, held.constraints)

    def describe_environment(self) -> dict[str, Any]:
        """As :meth:`~isac_gym.learning.agent.LearningAgent.describe_environment`."""
        return {
            "scenario": self.scenario.to_dict(),
            "channel_model": self.channel_model,
            "constraints": self.constraints,
        }

    def make_env(self) -> Any:
        """An environment like that which the agent was saved for."""
        import gymnasium as gym

        check_work(self.scenario)
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
    choose_device(device)  # a device that does not exist is no fault of the file
    problem = f"not a saved {kind.kind}, or damaged"
    with open_archive(path, kind.kind, SavedAgent, problem=problem) as archive:
        saved = _Saved.read(kind, archive)
        is_own = env is None
        with blame_file(path, ""):
            env = saved.make_env() if is_own else env
            agent, is_kept = _make_agent(kind, saved, env, device)
        _check_met(path, saved, agent)
        parts = [saved.channel_model, *saved.constraints]
        is_same = is_own or (
            all(part.get("arguments") is not None for part in parts)
            and agent.describe_environment() == saved.describe_environment()
        )
        _restore(path, archive, saved, agent, is_kept, is_same)
        training = archive.held.training or SavedTraining()
    agent.title = f"{kind.kind}, loaded"
    for name in _TRAINING:
        setattr(agent, name, getattr(training, name))
    own = agent.scenario
    if agent.grid is not None and not agent.grid.covers(own):
        ranges = {name: getattr(agent.config, name) for name in ("snr_range_db", "threshold_range")}
        met_limit = agent.priced.limit(own) if agent.priced else float("nan")
        warnings.warn(
            f"{path}: trained for {', '.join(f'{k}={v}' for k, v in ranges.items())}, the "
            f"environment has snr_db={own.snr_db:g} and a limit of {met_limit:g}",
            stacklevel=3,
        )
    if agent.has_price and not is_same:
        with blame_file(path, ""):
            agent.calibrate()
    return agent


def _check_met(path: Path, saved: _Saved, agent: LearningAgent) -> None:
    """Check that an agent's numbers mean in its environment what they meant.

    Raises:
        FileError: If they do not.
    """
    for name in _KINDS if agent.network.fits_other_sizes else (*_KINDS, *_DIMENSIONS):
        held, met = getattr(saved.scenario, name), getattr(agent.scenario, name)
        if held != met:
            raise make_file_error(
                FileError,
                path,
                f"saved for another scenario, with {name}={held!r}; the environment has {met!r}",
            )


def _restore(
    path: Path,
    archive: Archive[SavedAgent],
    saved: _Saved,
    agent: LearningAgent,
    is_kept: bool,
    is_same: bool,
) -> None:
    """Take over the tensors.

    Args:
        path: The file.
        archive: Its content.
        saved: What it says.
        agent: What takes them over.
        is_kept: Whether multipliers mean what they meant.
        is_same: Whether the environment is the one that they were saved for.
    """
    with blame_file(path, "damaged"):
        check_shapes(select_prefix(archive.shapes, "network."), agent.network.state_dict())
        tensors = archive.read_tensors()
        check_finite(tensors)
        agent.network.load_state_dict(select_prefix(tensors, "network."))
        if is_kept or not agent.network.fits_other_sizes:
            held = select_prefix(tensors, "multipliers.")
            if agent.describe_environment()["constraints"] != saved.constraints:
                # Those that are there as well.
                own_state = agent.multipliers.state_dict()
                held = {name: held.get(name, value) for name, value in own_state.items()}
            agent.multipliers.load_state_dict(held)
        calibrated = tensors.get("calibrated")
        if is_same and calibrated is not None:
            if calibrated.shape != (agent.scenario.num_cells,):
                raise ValueError(f"calibrated has shape {tuple(calibrated.shape)}")
            agent.calibrated = calibrated.to(agent.system.device)


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
