"""From a name to an agent: a registered one, a class, or a file that is known by its content."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from isac_gym.agents.translated import translate_model
from isac_gym.learning.archive import META_NAME, read_kind
from isac_gym.learning.labels import MANIFEST_NAME
from isac_gym.learning.pretrained import PREFIX, find_pretrained
from isac_gym.policy import Policy
from isac_gym.reading import FileError, ZipEntries, make_file_error, open_file, read_json
from isac_gym.registry import AGENTS, make_agent

__all__ = ["PreparedAgent", "digest_file", "load_agent", "prepare_agent"]

_SB3_ATTRIBUTES: Final = {
    "TQC": "top_quantiles_to_drop_per_net",
    "PPO": "clip_range",
    "SAC": "target_entropy",
    "TD3": "target_policy_noise",
    "DQN": "exploration_initial_eps",
    "A2C": "gae_lambda",
}
"""What only models of a class hold, among those of the classes behind it."""


@dataclasses.dataclass(frozen=True)
class PreparedAgent:
    """An agent that was found by its name.

    Attributes:
        name: The name.
        agent: The agent.
        needs_training: Whether it has to be trained before it is used: it can learn, and it was
            made here, neither loaded from a file nor handed in as an object.
    """

    name: str
    agent: Any
    needs_training: bool

    def require_trained(self) -> None:
        """Check that it needs no training.

        Raises:
            ValueError: If it does.
        """
        if self.needs_training:
            raise ValueError(
                f"agent {self.name!r} is not trained: train it first, and give the saved file"
            )

    def train(self, **options: Any) -> None:
        """Call its ``learn`` with those options that it knows.

        Args:
            **options: Such as ``progress_bar`` and ``checkpoint``; ``callback`` and
                ``tensorboard_log`` must be known if they are not None.

        Raises:
            ValueError: If ``learn`` needs further arguments, or does not know one that it must.
        """
        known = inspect.signature(self.agent.learn).parameters
        needed = [
            parameter.name
            for parameter in known.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if needed:
            raise ValueError(
                f"agent {self.name!r} learns, but its learn() needs {', '.join(needed)}: hand in a "
                "trained agent, or give learn() defaults"
            )
        for name in ("callback", "tensorboard_log"):
            if options.get(name) is not None and name not in known:
                raise ValueError(f"learn() of agent {self.name!r} must take {name}, it does not")
        self.agent.learn(**{name: value for name, value in options.items() if name in known})


def prepare_agent(
    name: str,
    env: Any,
    /,
    *,
    seed: int = 0,
    device: str = "auto",
    allow_pickle: bool = False,
    **options: Any,
) -> PreparedAgent:
    """Find an agent by its name.

    Args:
        name: A registered name, ``pretrained:NAME``, a file, ``CLASS@FILE`` with CLASS as
            ``module:Class``, or ``module:Class``.
        env: Environment that the agent is for.
        seed: Seed of its weights and its training, if it learns and takes one.
        device: Torch device, if it learns and takes one.
        allow_pickle: As of :func:`load_agent`.
        **options: Further keyword arguments of its class.

    Returns:
        The agent. One that can learn is not yet trained, unless it is a model of
        Stable-Baselines3 that has been. A model with the spaces of another control mode or kind of
        observation acts by translation (:class:`~isac_gym.agents.translated.Translated`).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such agent, a file is none, or it does not suit the scenario.
        TypeError: If what is found has no ``predict``, or takes no such option.
    """
    if _names_file(name):
        found = load_agent(name, env, device=device, allow_pickle=allow_pickle)
        return PreparedAgent(name, found, needs_training=False)
    found = AGENTS.load(name)
    is_made = inspect.isclass(found) or not hasattr(found, "predict")
    if is_made and (AGENTS.find(name).learns or hasattr(found, "learn")):
        options = {**_select_known(found, {"seed": seed, "device": device}), **options}
    agent = make_agent(name, env, **options)
    # A model of Stable-Baselines3 counts the steps that it was trained for.
    is_trained = getattr(agent, "num_timesteps", 0) > 0
    can_learn = callable(getattr(agent, "learn", None))
    needs_training = is_made and can_learn and not is_trained
    if not needs_training:
        agent = translate_model(agent, env)
    return PreparedAgent(name, agent, needs_training=needs_training)


def load_agent(
    path: str | Path, env: Any = None, *, device: str = "auto", allow_pickle: bool = False
) -> Any:
    """Load a saved agent of any kind.

    Files of the package execute nothing. Files of Stable-Baselines3 hold pickles, which execute
    whatever they like.

    Args:
        path: File of an agent or of a Stable-Baselines3 model, ``CLASS@FILE`` with CLASS as
            ``module:Class`` for one that the class's ``load`` reads, or ``pretrained:NAME``.
        env: Environment to act in; see :meth:`~isac_gym.learning.agent.LearningAgent.load`.
        device: Torch device, or ``"auto"`` for CUDA if present.
        allow_pickle: Whether pickles may be loaded. Allow it for files of your own.

    Returns:
        The agent.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file needs Stable-Baselines3 and it is not installed.
        ValueError: If it is no agent, damaged, or of a scenario with other dimensions, and the
            message says what it looks like; or if it holds pickles that are not allowed.
    """
    target, source = _split_name(path)
    if not source.exists():
        raise FileNotFoundError(f"no such file: {source}")
    members = _list_members(source)
    is_of_sb3 = {"data", "_stable_baselines3_version"} <= members
    if is_of_sb3 and not allow_pickle:
        raise ValueError(
            f"allow_pickle must be True (--allow-pickle) for the Stable-Baselines3 model {source}, "
            "got False: it holds pickles, which can execute anything; allow it for files that you "
            "trust"
        )
    if target or is_of_sb3:
        kind = AGENTS.load(target) if target else _find_sb3_class(source)
        # Its spaces may be others than the environment's.
        agent = _load_by(kind, source, None if is_of_sb3 else env, device)
        return agent if env is None else translate_model(agent, env)
    if META_NAME in members:
        return _load_by(_find_class(source), source, env, device)
    message = f"not a saved agent, but {_guess_content(source, members)}"
    raise make_file_error(FileError, source, message)


def digest_file(name: str) -> str | None:
    """A hash of the file that a name leads to; None if it leads to none."""
    source = _split_name(name)[1] if _names_file(name) else None
    if source is None or not source.is_file():
        return None
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def _names_file(name: str) -> bool:
    """Whether a name is that of a file; registered names come first."""
    if name.startswith(PREFIX):
        return True
    if name in AGENTS.entries():
        return False
    target, source = _split_name(name)
    # No name of an agent holds a dot without a colon.
    return bool(target) or source.exists() or (":" not in name and "." in name)


def _split_name(path: str | Path) -> tuple[str, Path]:
    """Class of a ``CLASS@FILE``, empty for other names, and the file."""
    target, separator, file = str(path).partition("@")
    if separator and ":" in target and not Path(path).exists():
        return target, Path(file)
    return "", find_pretrained(path)


def _load_by(kind: Any, source: Path, env: Any, device: str) -> Policy:
    """Load a file by its class, which gets environment and device if it takes them."""
    load = getattr(kind, "load", None)
    if not callable(load):
        raise ValueError(f"class of {source} must have load(path), got {kind!r}")
    try:
        agent = load(source, **_select_known(load, {"env": env, "device": device}))
    except (ImportError, FileNotFoundError, FileError):
        raise
    except Exception as error:
        if isinstance(error, (OSError, TypeError, ValueError)) and str(source) in str(error):
            raise
        message = f"{kind!r} cannot load it ({error!r})"
        raise make_file_error(FileError, source, message) from error
    if not isinstance(agent, Policy):
        raise TypeError(f"{source}: must hold an agent with predict(observation, …), got {agent!r}")
    return agent


def _select_known(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that a function names."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _list_members(source: Path) -> set[str]:
    """Names in a zip file; none if it is another file."""
    try:
        with open_file(source, "no zip file") as file:
            return set(ZipEntries(file).names)
    except FileError:
        return set()


def _find_class(source: Path) -> Any:
    """The registered class whose files say what an archive says."""
    kind = read_kind(source)
    if kind.endswith("checkpoint"):
        raise make_file_error(
            FileError,
            source,
            "not a saved agent, but the checkpoint of a training: end the training, and give the "
            "agent that it saves",
        )
    known: dict[str, Any] = {}
    for name in AGENTS.names():
        try:
            found = AGENTS.load(name)
        except ImportError:  # what it needs is not installed
            continue
        if hasattr(found, "kind"):
            known[found.kind] = found
        if kind in known:
            return known[kind]
    raise make_file_error(
        FileError,
        source,
        f"kind must be one of {', '.join(map(str, known))}, got {kind!r}: import the module that "
        "registers it (isac-gym --import MODULE)",
    )


def _find_sb3_class(source: Path) -> Any:
    """The class of a Stable-Baselines3 model, by the names of what it holds."""
    try:
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{source} is a Stable-Baselines3 model: pip install 'isac-gym[rl]'"
        ) from error
    with open_file(source, "damaged Stable-Baselines3 model") as file:
        entries = ZipEntries(file)
        size = entries.measure("data")
        with entries.open("data") as entry:
            data = read_json(entry, dict[str, Any], size)
        home = str(data["policy_class"]["__module__"])
    name = next((name for name, held in _SB3_ATTRIBUTES.items() if held in data), None)
    library = "sb3_contrib" if name == "TQC" else "stable_baselines3"
    # A Lagrangian algorithm may have a policy of the package.
    if name is None or not home.startswith((f"{library}.", "isac_gym.")):
        raise ValueError(
            f"{source}: class of the Stable-Baselines3 model must be given, as in "
            f"my_module:MyAlgorithm@{source}; its policy is from {home}"
        )
    # DDPG is TD3 with a single critic that is updated as often as the actor.
    if name == "TD3" and dict(data.get("policy_kwargs") or {}).get("n_critics") == 1:
        name = "DDPG"
    if {"constraint_form", "multipliers"} <= data.keys():
        import isac_gym.rl

        found = getattr(isac_gym.rl, f"{name}Lagrangian", None)
        if found is not None:
            return found
        raise ValueError(
            f"{source}: class of the Lagrangian {name} must be given, as in "
            f"my_module:MyAlgorithm@{source}"
        )
    return getattr(importlib.import_module(library), name)


def _guess_content(source: Path, members: set[str]) -> str:
    """What a file or folder looks like, for a message."""
    if source.is_dir():
        is_labelled = (source / MANIFEST_NAME).exists()
        return "a folder of labels" if is_labelled else "a folder"
    if not source.is_file():
        return "a device, a pipe or a socket"
    with open_file(source, "not a saved agent") as file:
        start = file.read(6)
    if start == b"\x93NUMPY" or any(member.endswith(".npy") for member in members):
        return "a NumPy file; channels are given as --channel file:PATH"
    if any(member.endswith("data.pkl") for member in members):
        return "weights of PyTorch without the settings that an agent needs"
    if members:
        return f"a zip file that holds {', '.join(sorted(members)[:3])}"
    return "a damaged zip file" if start[:2] == b"PK" else "a file of another format"
