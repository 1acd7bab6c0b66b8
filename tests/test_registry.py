"""Names of classes: declarations, listing, entry points, and descriptions in files."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL

from isac_gym.baselines import EqualPower
from isac_gym.channels import ChannelModel, FileChannels, GaussMarkovChannel, RicianChannel
from isac_gym.channels.base import Complex, Deployment
from isac_gym.channels.rayleigh import RayleighChannel
from isac_gym.channels.selection import make_channel_model
from isac_gym.declarations import Entry
from isac_gym.registry import (
    AGENTS,
    CHANNELS,
    CONSTRAINTS,
    EXPERIMENTS,
    NETWORKS,
    Registry,
    make_agent,
    register_agent,
    register_baseline,
    register_channel,
)
from isac_gym.system.constraints import SensingConstraint

REGISTRIES = {
    "agent": AGENTS,
    "architecture": NETWORKS,
    "channel model": CHANNELS,
    "constraint": CONSTRAINTS,
    "experiment": EXPERIMENTS,
}


def in_a_fresh_interpreter(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.fixture(autouse=True)
def _forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_imported", dict(registry._imported))


# Declarations

IMPORT_ALL = """
import dataclasses, importlib, json, pkgutil
import isac_gym
from isac_gym import registry as module

registries = [getattr(module, name) for name in module.__all__ if name.isupper()]
listed = {each.kind: each.entries() for each in registries}
for found in pkgutil.walk_packages(isac_gym.__path__, "isac_gym."):
    importlib.import_module(found.name)
print(json.dumps({
    each.kind: {
        "listed": {name: dataclasses.asdict(entry) for name, entry in listed[each.kind].items()},
        "registered": {n: dataclasses.asdict(entry) for n, entry in each._imported.items()},
    }
    for each in registries
}))
"""


def test_what_is_read_from_the_files_is_what_the_decorators_register() -> None:
    found = json.loads(in_a_fresh_interpreter(IMPORT_ALL))
    assert set(found) == set(REGISTRIES)
    for kind, entries in found.items():
        assert entries["listed"] == entries["registered"], kind
        assert len(entries["listed"]) >= 3, kind


@pytest.mark.parametrize("kind", list(REGISTRIES))
def test_every_name_leads_to_its_class(kind: str) -> None:
    registry = REGISTRIES[kind]
    for name, entry in registry.entries().items():
        found = registry.load(name)
        assert f"{found.__module__}:{found.__qualname__}" == entry.target
        assert entry.name == name
        assert entry.description


def test_names() -> None:
    known = ["cooperative", "direct", "distributed-direct", "model_based", "unfolded"]
    assert sorted(NETWORKS.names()) == known
    assert set(CHANNELS.names()) >= {"rayleigh", "rician", "gauss-markov", "file"}
    assert set(CONSTRAINTS.names()) >= {"power", "sensing", "scheduling"}
    assert set(EXPERIMENTS.names()) >= {"compare", "tradeoff", "paper", "transfer", "conditions"}
    assert set(AGENTS.names()) >= {"primal-dual", "wmmse", "mrt", "joint", "equal-power"}
    ranks = [entry.rank for entry in AGENTS.entries().values()]
    assert ranks == sorted(ranks)


def test_listing_imports_no_torch() -> None:
    code = """
import sys
from isac_gym.registry import AGENTS, CHANNELS, CONSTRAINTS, EXPERIMENTS, NETWORKS
for registry in (AGENTS, CHANNELS, CONSTRAINTS, EXPERIMENTS, NETWORKS):
    print(registry.names(), [entry.description for entry in registry.entries().values()])
    registry.find(registry.names()[0])
assert "torch" not in sys.modules
CHANNELS.load("rician")
AGENTS.load("mrt")
assert "torch" in sys.modules
"""
    assert "primal-dual" in in_a_fresh_interpreter(code)


# Adding


class Mine:
    """An agent that is none of the package's."""

    def __init__(self, env: Any, value: float = 0.0) -> None:
        self.env, self.value = env, value

    def predict(self, observation: Any, deterministic: bool = True) -> tuple[Any, None]:
        return np.full(self.env.action_space.shape, self.value, np.float32), None


class Other(Mine):
    """Another one."""


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'mrt' of isac_gym\.baselines\.linear:MRT"):
        register_agent("mrt", "mine")(Mine)
    assert AGENTS.load("mrt").__name__ == "MRT"
    register_agent("mine", "mine")(Mine)
    with pytest.raises(ValueError, match=r"must be a new one for .*Other, got 'mine' of .*Mine"):
        register_agent("mine", "other")(Other)
    assert AGENTS.load("mine") is Mine
    # The same class again, as when a notebook's cell is run twice.
    register_agent("mine", "described anew")(Mine)
    assert AGENTS.find("mine").description == "described anew"


def test_a_reference_says_so() -> None:
    register_baseline("other", "a reference", rank=1)(type("Copy", (Other,), {}))
    assert not getattr(Other, "is_reference", False)
    assert AGENTS.find("other").is_reference
    assert AGENTS.names()[0] == "other"
    assert AGENTS.load("mrt").is_reference
    assert not getattr(AGENTS.load("primal-dual"), "is_reference", False)


def test_an_agent_for_other_scenarios_is_refused() -> None:
    env = gym.make("ISAC-MISO-v0", **SMALL, control="power")
    for name, message in (("zf", "control must be 'beamforming' for 'zf', got 'power'"),):
        with pytest.raises(ValueError, match=message):
            make_agent(name, env)
    fixed = gym.make("ISAC-MISO-v0", **SMALL, radar="fixed")
    refused = [n for n, e in AGENTS.entries().items() if "fixed" not in e.radars]
    for name in refused:
        with pytest.raises(ValueError, match=r"radar must be 'learned'.*got 'fixed'"):
            make_agent(name, fixed)
    assert isinstance(make_agent("equal-power", env), EqualPower)


# Other packages

PLUGIN = """
from isac_gym.channels import ChannelModel
from isac_gym.registry import register_agent, register_channel

@register_channel("rician-of-others", "no one's", rank=3)
class Channels(ChannelModel):
    def __init__(self, path="p", factor=2.0):
        self.path, self.factor = path, factor

    def draw(self, rng, num, deployment):
        raise NotImplementedError

@register_agent("agent-of-others", "for powers", options={"value": 0.25}, controls=("power",))
class Agent:
    def __init__(self, env, value=0.0):
        self.value = value

    def predict(self, observation, deterministic=True):
        return observation, None

class Plain(Agent):
    pass

class Unnamed(Agent):
    def learn(self):
        pass
"""
ENTRY_POINTS = """
[isac_gym.channels]
rician-of-others = isac_gym_plugin:Channels
rician = isac_gym_plugin:Channels

[isac_gym.agents]
agent-of-others = isac_gym_plugin:Agent
plain-of-others = isac_gym_plugin:Plain
broken = isac_gym_plugin_missing:Agent
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with entry points."""
    (tmp_path / "isac_gym_plugin.py").write_text(PLUGIN)
    info = tmp_path / "isac_gym_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isac-gym-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "isac_gym_plugin", raising=False)


@pytest.mark.usefixtures("plugin")
def test_entry_points_of_installed_packages() -> None:
    assert "isac_gym_plugin" not in sys.modules
    entry = CHANNELS.entries()["rician-of-others"]
    assert entry.description == "from the installed package isac-gym-plugin"
    assert entry.target == "isac_gym_plugin:Channels"
    assert {"agent-of-others", "plain-of-others", "broken"} <= set(AGENTS.names())
    assert "isac_gym_plugin" not in sys.modules, "listing imports nothing"
    # The package's own names stay its own.
    assert CHANNELS.load("rician") is RicianChannel
    made = CHANNELS.make("rician-of-others", factor=3.0)
    assert (made.path, made.factor) == ("p", 3.0)
    # Once imported, the decorator has more to say.
    assert CHANNELS.entries()["rician-of-others"].description == "no one's"
    assert CHANNELS.describe(made) == {
        "name": "rician-of-others",
        "arguments": {"path": "p", "factor": 3.0},
    }
    with pytest.raises(ValueError, match=r"agent must name an importable.*isac_gym_plugin_missing"):
        AGENTS.load("broken")


@pytest.mark.usefixtures("plugin")
def test_agents_of_installed_packages() -> None:
    power = gym.make("ISAC-MISO-v0", **SMALL, control="power")
    assert make_agent("agent-of-others", power).value == 0.25
    assert make_agent("agent-of-others", power, value=0.5).value == 0.5
    assert make_agent("plain-of-others", power).value == 0.0
    # Its first use is its import, whose decorator says that it is for powers alone.
    importlib.import_module("isac_gym_plugin")
    with pytest.raises(ValueError, match=r"control must be 'power'.*'beamforming'"):
        make_agent("agent-of-others", gym.make("ISAC-MISO-v0", **SMALL))


@pytest.mark.usefixtures("plugin")
def test_what_a_decorator_requires_counts_at_the_first_use() -> None:
    with pytest.raises(ValueError, match=r"control must be 'power'.*'beamforming'"):
        make_agent("agent-of-others", gym.make("ISAC-MISO-v0", **SMALL))


@pytest.mark.usefixtures("plugin")
def test_a_class_of_any_module() -> None:
    env = gym.make("ISAC-MISO-v0", **SMALL)
    assert make_agent("isac_gym_plugin:Unnamed", env, value=0.75).value == 0.75
    entry = AGENTS.find("isac_gym_plugin:Unnamed")
    assert entry.target == entry.name == "isac_gym_plugin:Unnamed"
    assert entry.learns
    assert not AGENTS.find("isac_gym.policy:Policy").learns
    # One that has a name is known by it.
    assert AGENTS.find("isac_gym_plugin:Plain").name == "plain-of-others"
    assert AGENTS.find("isac_gym_plugin:Agent").name == "agent-of-others"
    assert AGENTS.find("isac_gym.baselines.linear:MRT").name == "mrt"
    assert isinstance(CHANNELS.make("isac_gym_plugin:Channels"), ChannelModel)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", r"agent must be one of .*mrt.*'module:Class', got 'nosuch'"),
        ("isac_gym_nosuch:Agent", r"importable 'module:Class', got 'isac_gym_nosuch:Agent'"),
        ("isac_gym.policy:Nosuch", r"importable 'module:Class', got 'isac_gym\.policy:Nosuch'"),
        ("isac_gym.policy:", r"importable 'module:Class', got 'isac_gym\.policy:'"),
        (":Agent", r"importable 'module:Class', got ':Agent'"),
        ("", r"agent must be one of .*got ''"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(name, gym.make("ISAC-MISO-v0", **SMALL))


def test_what_has_no_predict_is_no_agent() -> None:
    env = gym.make("ISAC-MISO-v0", **SMALL)
    for name in ("isac_gym.registry:AGENTS", "isac_gym.declarations:Entry", "isac_gym:__version__"):
        with pytest.raises((TypeError, ValueError), match=r"agent|Entry"):
            make_agent(name, env)


# Making


def test_making_by_name_and_value(tmp_path: Path) -> None:
    path = tmp_path / "a:b.npy"
    np.save(path, np.ones((2, 3, 9), complex))
    assert CHANNELS.make(f"file:{path}").path == path
    assert make_channel_model("rician", k_factor_db=2.0) == RicianChannel(2.0)
    assert make_channel_model("isac_gym.channels.rician:RicianChannel") == RicianChannel()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CHANNELS.make("rician", kappa=1.0), r"k_factor_db, angle_range_deg, got kappa"),
        (lambda: CHANNELS.make("gauss-markov"), r"'gauss-markov' takes the arguments doppler"),
        (lambda: CHANNELS.make("rayleigh:5"), r"'rayleigh' takes the arguments none, got 5"),
        (lambda: CHANNELS.make("isac_gym:__version__"), "must be a class"),
        (lambda: CHANNELS.make("rician", k_factor_db="much"), "k_factor_db"),
        (lambda: CHANNELS.make("ricean"), r"channel model must be one of .*got 'ricean'"),
    ],
    ids=["unknown argument", "missing argument", "too many", "no class", "bad value", "no name"],
)
def test_errors_of_making(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Descriptions


def models(folder: Path) -> dict[str, ChannelModel]:
    np.save(folder / "samples.npy", np.random.default_rng(0).normal(size=(5, 3, 9, 2)) @ [1, 1j])
    return {
        "rayleigh": RayleighChannel(),
        "rician": RicianChannel(2.5, (-30.0, 45.5)),
        "gauss-markov": GaussMarkovChannel(0.07),
        "file": FileChannels(folder / "samples.npy"),
    }


def test_descriptions_of_channel_models_round_trip(tmp_path: Path) -> None:
    found = models(tmp_path)
    assert set(CHANNELS.names()) >= set(found)
    assert {n for n, e in CHANNELS.entries().items() if e.target.startswith("isac_gym.")} == set(
        found
    )
    deployment = Deployment(1, 3, 4, 5, 0.5, 0.1)
    for name, model in found.items():
        described = CHANNELS.describe(model)
        assert described["name"] == name
        restored = CHANNELS.restore(json.loads(json.dumps(described)))
        assert type(restored) is type(model)
        assert CHANNELS.describe(restored) == described
        first, second = np.random.default_rng(1), np.random.default_rng(1)
        drawn, again = model.draw(first, 4, deployment), restored.draw(second, 4, deployment)
        np.testing.assert_array_equal(drawn, again)
        np.testing.assert_array_equal(
            model.advance(first, drawn, deployment), restored.advance(second, again, deployment)
        )


def test_what_differs_is_described_differently() -> None:
    assert CHANNELS.describe(RicianChannel(2.0)) != CHANNELS.describe(RicianChannel(2.5))
    assert CHANNELS.describe(RayleighChannel()) == {"name": "rayleigh", "arguments": {}}
    assert CONSTRAINTS.describe(SensingConstraint()) == {"name": "sensing", "arguments": {}}


@dataclasses.dataclass
class Opaque(ChannelModel):
    """What it is made from is no JSON type."""

    generator: Any

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        return RayleighChannel().draw(rng, num, deployment)


class Secretive(Opaque):
    """What it is made from is not kept under its name."""

    def __init__(self, factor: float) -> None:
        super().__init__(None)
        self._hidden = factor


@pytest.mark.parametrize(
    "model", [Opaque(object()), Opaque({1, 2}), Secretive(2.0)], ids=["object", "set", "private"]
)
def test_what_cannot_be_described_is_saved_without_arguments(model: ChannelModel) -> None:
    register_channel("opaque", "opaque")(Opaque)
    register_channel("secretive", "secretive")(Secretive)
    described = CHANNELS.describe(model)
    assert described == {"name": type(model).__name__.lower(), "arguments": None}
    with pytest.raises(ValueError, match="was saved without its arguments: hand in an environment"):
        CHANNELS.restore(described)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"name": "ricean", "arguments": {}}, r"one of .*rician.*got 'ricean': register it"),
        ({"name": "rician", "arguments": None}, "without its arguments: hand in an environment"),
        ({"name": "rician", "arguments": [5.0]}, "without its arguments"),
        ({"name": "rician", "arguments": {"kappa": 1.0}}, "k_factor_db.*got kappa"),
        ({"name": "gauss-markov", "arguments": {}}, "takes the arguments doppler"),
        ({"name": "gauss-markov", "arguments": {"doppler": 7.0}}, "doppler"),
        ({"name": "rician", "arguments": {"k_factor_db": "5"}}, "k_factor_db"),
        ({"name": "rician"}, "must hold name and arguments"),
        ({"arguments": {}, "more": 1}, "must hold name and arguments"),
        ("rician", "must hold name and arguments"),
        (None, "must hold name and arguments"),
        ({"name": "file:x.npy", "arguments": {}}, r"one of .*got 'file:x\.npy'"),
    ],
    ids=repr,
)
def test_descriptions_that_cannot_be_restored(description: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CHANNELS.restore(description)


@pytest.mark.usefixtures("plugin")
def test_a_description_imports_no_module() -> None:
    for name in ("isac_gym_plugin:Channels", "antigravity:geohash"):
        with pytest.raises(ValueError, match="register it and import its module first"):
            CHANNELS.restore({"name": name, "arguments": {}})
        assert name.partition(":")[0] not in sys.modules


def test_a_registry_of_ones_own() -> None:
    registry = Registry("thing", "isac_gym.things", ())
    assert registry.names() == []
    registry.add(Mine, "second", "two", rank=2)
    registry.add(Other, "first", "one", rank=1, options={"value": 3.0})
    assert registry.names() == ["first", "second"]
    assert registry.find("first") == Entry(
        "first", "one", f"{Other.__module__}:Other", options={"value": 3.0}, rank=1
    )


def test_an_argument_may_be_called_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHANNELS, "_imported", dict(CHANNELS._imported))

    class Named(RayleighChannel):
        def __init__(self, name: str = "x") -> None:
            object.__setattr__(self, "name", name)

    register_channel("named", "a model with an argument of that name")(Named)
    assert CHANNELS.make("named", name="y").name == "y"  # found though it stands in a function
    assert CHANNELS.restore(CHANNELS.describe(Named("z"))).name == "z"


def test_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "samples.npy"
    described = []
    for seed in (0, 0, 1):
        np.save(path, np.random.default_rng(seed).normal(size=(4, 2, 5, 2)) @ [1, 1j])
        described.append(CHANNELS.describe(FileChannels(path)))
    assert described[0] == described[1] != described[2]
