"""What an agent is, and how one is found by name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from direct_model import SMALL
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor

import isac_gym
from isac_gym.channels import RayleighChannel
from isac_gym.policy import Policy, SystemPolicy, find_system
from isac_gym.registry import AGENTS, make_agent
from isac_gym.system.simulation import Simulation

CONTROLS = ("power", "amplitude", "beamforming", "structured")
REGISTERED = AGENTS.entries()


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


@pytest.fixture(scope="module")
def env() -> gym.Env[Any, Any]:
    return make()


STRANGERS = """
import numpy as np

class Bare:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros(62, np.float32), state

class Sized(Bare):
    def __init__(self, env, factor=1):
        self.env, self.factor = env, factor

class Optional(Bare):
    def __init__(self, env=None):
        self.env = env

class Keywords(Bare):
    def __init__(self, *, factor=1):
        self.factor = factor

class Outer:
    Inner = Sized

class Mute:
    pass

instance = Bare()
number = 3

def factory(env):
    return Sized(env)

def no_argument():
    return Bare()

def no_agent(env):
    return lambda observation: observation
"""


@pytest.fixture(scope="module", autouse=True)
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("strangers")
    (folder / "isac_strangers.py").write_text(STRANGERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def options_of(name: str) -> dict[str, Any]:
    """Thresholds above the least sensing loss of the scenario; a price that costs little."""
    if name.startswith("joint-network"):
        # How its price is found, and what many starts gain, is the matter of test_network.py.
        price = {"price": 1.0} if name.endswith("-expected") else {}
        return {"num_starts": 6, "refined": 2, **price}
    if name == "structured-expected":
        return {"calibration_channels": 8, "num_starts": 4}
    if name.endswith("-expected"):
        return {"calibration_channels": 32}
    return {"threshold_range": (0.4, 0.6)} if name == "primal-dual-wide" else {}


@pytest.mark.parametrize("name", list(REGISTERED))
@pytest.mark.parametrize(
    ("control", "radar", "scheduling"),
    list(itertools.product(CONTROLS, ("learned", "fixed"), ("all", "contention"))),
)
def test_registered_agents_choose_valid_actions(
    name: str, control: str, radar: str, scheduling: str
) -> None:
    cells = REGISTERED[name].least_cells
    env = make(control=control, radar=radar, scheduling=scheduling, num_cells=cells)
    if control not in REGISTERED[name].controls:
        with pytest.raises(ValueError, match=f"control.*'{control}'"):
            make_agent(name, env)
        return
    if radar not in REGISTERED[name].radars:
        with pytest.raises(ValueError, match=f"radar.*'{radar}'"):
            make_agent(name, env)
        return
    if scheduling not in REGISTERED[name].schedulings:
        with pytest.raises(ValueError, match=f"scheduling.*'{scheduling}'"):
            make_agent(name, env)
        return
    agent = make_agent(name, env, **options_of(name))
    assert isinstance(agent, Policy)
    observation, _ = env.reset(seed=0)
    for deterministic in (True, False):
        action, state = agent.predict(observation, deterministic=deterministic)
        assert state is None
        assert action.dtype == np.float32
        assert action in env.action_space
        env.step(action)
    batch = np.stack([observation, 2 * observation, -observation])
    actions, _ = agent.predict(batch)
    assert actions.shape == (3, *env.action_space.shape)
    assert np.abs(actions).max() <= 1.0
    one, _ = agent.predict(observation[None])
    assert one.shape == (1, *env.action_space.shape)


@pytest.mark.parametrize("name", sorted(set(REGISTERED) - {"mrt", "zf", "rzf"}))
@pytest.mark.parametrize("cells", [2])
def test_registered_agents_serve_several_cells(name: str, cells: int) -> None:
    env = make(num_cells=cells)
    observation, _ = env.reset(seed=0)
    agent = make_agent(name, env, **options_of(name))
    assert agent.predict(observation)[0] in env.action_space


@pytest.mark.parametrize("name", [n for n in REGISTERED if not n.startswith("random")])
def test_a_batch_is_decided_row_by_row(name: str) -> None:
    env = make(num_cells=REGISTERED[name].least_cells)
    agent = make_agent(name, env, **options_of(name))
    batch = np.stack([env.reset(seed=seed)[0] for seed in range(5)])
    rows = np.stack([agent.predict(row, deterministic=True)[0] for row in batch])
    together = agent.predict(batch, deterministic=True)[0]
    if REGISTERED[name].radars == ("learned",) or name == "structured-expected":
        # A long search leaves rounding errors larger, and its result as good.
        system = env.unwrapped.system
        H = system.codec.channels(torch.from_numpy(batch))
        rates = [
            system.transmit(H, torch.from_numpy(actions)).sum_rate for actions in (together, rows)
        ]
        torch.testing.assert_close(*rates, rtol=2e-2, atol=0)
    else:
        np.testing.assert_allclose(together, rows, atol=1e-5)
    assert len(np.unique(rows.round(3), axis=0)) == 5


def test_agents_for_several_stations_are_refused_with_one() -> None:
    names = [name for name, entry in REGISTERED.items() if entry.least_cells > 1]
    assert "joint-network" in names
    for name in names:
        with pytest.raises(ValueError, match=r"num_cells must be at least 2.*got 1"):
            make_agent(name, make())


def test_state_is_handed_through(env: gym.Env[Any, Any]) -> None:
    observation, _ = env.reset(seed=0)
    token = object()
    assert make_agent("mrt", env).predict(observation, state=token)[1] is token


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_observations_must_be_finite(env: gym.Env[Any, Any], bad: float) -> None:
    observation, _ = env.reset(seed=0)
    observation[3] = bad
    with pytest.raises(ValueError, match="observation must be finite"):
        make_agent("mrt", env).predict(observation)


def make_extreme_channels(cells: int, users: int, antennas: int) -> dict[str, Any]:
    """Channels at the ends of what is allowed, each (J, J, K, M)."""
    rng = np.random.default_rng(0)
    shape = (cells, cells, users, antennas)
    plain = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    large = 9.9e7 * plain / np.abs(plain).max()
    found = {"zero": 0.0 * plain}
    found |= {f"times {factor:g}": factor * plain for factor in (1e-42, 1e-30, 1e-15, 1e4)}
    one, silent, mixed = plain.copy(), large.copy(), 1e-20 * plain
    one[:, :, 0], mixed[:, :, 0] = large[:, :, 0], large[:, :, 0]
    silent[:, :, 0] = 0.0
    found |= {
        "large": large,
        "one large": one,
        "one silent": silent,
        "one large, others tiny": mixed,
    }
    for name, level in (
        ("alike", 1.0),
        ("large and alike", 9.9e7),
        ("fairly large and alike", 1e6),
    ):
        found[name] = np.broadcast_to(plain[:, :, :1], shape) * (level / np.abs(plain).max())
    antenna = np.zeros_like(plain)
    antenna[..., 0] = antenna[..., -1] = 1e8
    found["two antennas"] = antenna
    return {name: channels.astype(np.complex64) for name, channels in found.items()}


@pytest.mark.parametrize(
    ("name", "snr_db"),
    [
        (name, snr_db)
        for name, entry in REGISTERED.items()
        # References take long, and have it harder at a high SNR.
        for snr_db in ([100.0] if entry.is_reference else [10.0, 100.0])
    ],
)
def test_agents_answer_extreme_channels(name: str, snr_db: float) -> None:
    entry = REGISTERED[name]
    control = next(each for each in ("beamforming", "power") if each in entry.controls)
    cells = max(entry.least_cells, 2 if entry.learns else 1)
    env = make(control=control, num_cells=cells, snr_db=snr_db)
    # Prices that would take long to be found.
    told: dict[str, dict[str, Any]] = {
        "joint-expected": {"price": 1.0},
        "joint-leakage": {"leakage_price": 1.0, "interference": 0.1},
        "joint-network": {"num_starts": 2, "refined": 1},
        "structured-expected": {"price": 1.0},
    }
    agent = make_agent(name, env, **{**options_of(name), **told.get(name, {})})
    cases = make_extreme_channels(cells, 3, 9)
    system = find_system(env)
    channels = np.stack(list(cases.values()))
    simulation = Simulation(system, RayleighChannel(), len(channels))
    simulation.hold(channels, channels)
    _, outcome = simulation.apply_checked(agent.predict(simulation.observe())[0])
    for value in (outcome.sum_rate, *outcome.constraints.values()):
        finite = torch.isfinite(value.reshape(len(channels), -1)).all(-1)
        assert not [case for case, is_finite in zip(cases, finite, strict=True) if not is_finite]


@pytest.mark.parametrize("name", list(REGISTERED))
def test_an_empty_batch_has_an_empty_answer(name: str) -> None:
    env = make(num_cells=REGISTERED[name].least_cells)
    agent = make_agent(name, env, **options_of(name))
    assert env.observation_space.shape is not None
    assert env.action_space.shape is not None
    actions, _ = agent.predict(np.zeros((0, *env.observation_space.shape), np.float32))
    assert actions.shape == (0, *env.action_space.shape)
    assert actions.dtype == np.float32


def test_observations_must_be_real_numbers_of_an_allowed_magnitude(
    env: gym.Env[Any, Any],
) -> None:
    observation, _ = env.reset(seed=0)
    agent = make_agent("mrt", env)
    for bad in (observation + 0j, observation.astype(str), observation > 0, [object()] * 54):
        with pytest.raises(TypeError, match="observation must hold real numbers, got dtype"):
            agent.predict(bad)
    observation[3] = 1.1e8
    with pytest.raises(
        ValueError, match=r"observation must be of magnitude 1e\+08 or less.*\(3,\)"
    ):
        agent.predict(observation)
    with pytest.raises(ValueError, match=r"observation must be finite"):
        agent.predict(observation[None].astype(float) * 1e100)


def test_answers_that_are_not_finite_are_blamed_on_the_agent(env: gym.Env[Any, Any]) -> None:
    class Broken(SystemPolicy):
        def act(self, observation: Tensor, deterministic: bool) -> Tensor:
            actions = torch.zeros(len(observation), self.system.codec.action_size)
            actions[1:, 4] = torch.inf
            return actions

    observation, _ = env.reset(seed=0)
    agent = Broken(env)
    agent.predict(observation)
    with pytest.raises(ValueError, match=r"^Broken must answer finite actions.*observation 1:"):
        agent.predict(np.stack([observation] * 3))


@pytest.mark.parametrize("name", ["primal-dual", "distributed-primal-dual"])
def test_weights_so_large_that_they_overflow_are_no_silent_nan(name: str) -> None:
    env = make(num_cells=2)
    agent = make_agent(name, env)
    with torch.no_grad():
        for weight in agent.network.parameters():
            weight.fill_(3e38)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"^{type(agent).__name__} must answer finite actions"):
        agent.predict(observation)


def test_observations_must_fit_the_scenario(env: gym.Env[Any, Any]) -> None:
    for shape in ((53,), (2, 55), (1, 1)):
        with pytest.raises(ValueError, match="observation must have shape"):
            make_agent("mrt", env).predict(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("name", "has_env"),
    [
        ("Bare", False),
        ("Sized", True),
        ("Optional", True),
        ("Keywords", False),
        ("Outer.Inner", True),
        ("instance", False),
        ("factory", True),
        ("no_argument", False),
    ],
)
def test_agents_by_module_and_attribute(env: gym.Env[Any, Any], name: str, has_env: bool) -> None:
    agent: Any = make_agent(f"isac_strangers:{name}", env)
    assert isinstance(agent, Policy)
    assert getattr(agent, "env", None) is (env if has_env else None)
    assert agent.predict(env.reset(seed=0)[0])[0] in env.action_space


def test_options_reach_the_class(env: gym.Env[Any, Any]) -> None:
    for name in ("Sized", "Keywords"):
        agent: Any = make_agent(f"isac_strangers:{name}", env, factor=7)
        assert agent.factor == 7
    agent = make_agent("random-power-paper", env, highest=0.05)
    assert agent.highest == 0.05


@pytest.mark.parametrize(
    "name",
    [
        "isac_no_such_module:Agent",
        "isac_strangers:NoSuchClass",
        "isac_strangers:",
        ":Bare",
        ":",
        "isac_strangers:Outer.Nothing",
    ],
)
def test_names_that_lead_nowhere(env: gym.Env[Any, Any], name: str) -> None:
    with pytest.raises(ValueError, match="importable 'module:Class'") as caught:
        make_agent(name, env)
    assert repr(name) in str(caught.value)


def test_an_unknown_name_lists_the_known_ones(env: gym.Env[Any, Any]) -> None:
    with pytest.raises(ValueError, match="'nosuch'") as caught:
        make_agent("nosuch", env)
    assert all(name in str(caught.value) for name in REGISTERED)


@pytest.mark.parametrize("name", ["Mute", "number", "no_agent"])
def test_what_cannot_predict_is_no_agent(env: gym.Env[Any, Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"isac_strangers:{name}.*predict"):
        make_agent(f"isac_strangers:{name}", env)


def test_installed_packages_bring_agents(
    env: gym.Env[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "isac_third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isac-third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[isac_gym.agents]\n"
        "theirs = isac_strangers:Sized\n"
        "their-instance = isac_strangers:instance\n"
        "broken = isac_strangers:Mute\n"
        "[another.group]\n"
        "unrelated = isac_strangers:Bare\n"
    )
    assert "theirs" not in AGENTS.names()
    monkeypatch.syspath_prepend(tmp_path)
    assert AGENTS.names()[-3:] == ["broken", "their-instance", "theirs"]
    assert "unrelated" not in AGENTS.names()
    assert AGENTS.names()[: len(REGISTERED)] == list(REGISTERED)
    agent: Any = make_agent("theirs", env, factor=2)
    assert agent.env is env
    assert agent.factor == 2
    assert isinstance(make_agent("their-instance", env), Policy)
    with pytest.raises(TypeError, match="broken"):
        make_agent("broken", env)


def test_an_installed_agent_does_not_replace_one_of_the_package(
    env: gym.Env[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "isac_squatter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isac-squatter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[isac_gym.agents]\nmrt = isac_strangers:Bare\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(make_agent("mrt", env)).__module__.startswith("isac_gym.baselines")


def test_system_of_finds_the_system_behind_any_environment() -> None:
    single = make()
    assert find_system(single) is single.unwrapped.system
    wrapped = gym.wrappers.TimeLimit(gym.wrappers.ClipAction(single), 3)
    assert find_system(wrapped) is single.unwrapped.system
    envs = gym.make_vec("ISAC-MISO-v0", num_envs=2, **SMALL)
    assert find_system(RecordEpisodeStatistics(envs)) is envs.system
    for stranger in (gym.make("CartPole-v1"), None, "ISAC-MISO-v0"):
        with pytest.raises(TypeError, match="env must be an ISAC-MISO environment"):
            find_system(stranger)


def test_a_policy_needs_only_act(env: gym.Env[Any, Any]) -> None:
    class Mirror(SystemPolicy):
        def act(self, observation: Tensor, deterministic: bool) -> Tensor:
            assert observation.dtype == torch.float32
            assert observation.shape[1:] == (54,)
            return torch.full((len(observation), self.system.codec.action_size), 0.25)

    agent = Mirror(env)
    assert agent.scenario == isac_gym.Scenario(**SMALL)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(agent.predict(observation)[0], np.full(62, 0.25, np.float32))
    assert agent.predict(observation.tolist())[0].shape == (62,)
    with pytest.raises(TypeError, match="abstract"):
        SystemPolicy(env)  # type: ignore[abstract]
