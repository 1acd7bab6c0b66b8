"""The environment of several agents: PettingZoo's contract, and a view on the same simulation."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import reference
from direct_model import SMALL

import isac_gym
from isac_gym import ISACEnv, ISACVectorEnv, RicianChannel, Scenario
from isac_gym.system.downlink import find_system
from isac_gym.system.stations import isolate_station

pettingzoo = pytest.importorskip("pettingzoo", minversion="1.27")

from gymnasium.utils.env_checker import check_env, data_equivalence  # noqa: E402
from pettingzoo.test import (  # noqa: E402
    max_cycles_test,
    parallel_api_test,
    parallel_seed_test,
    state_test,
)
from pettingzoo.utils.conversions import parallel_to_aec  # noqa: E402

from isac_gym.envs.parallel import ISACParallelEnv  # noqa: E402

TARGETS = ((-50.0, 10.0), (-20.0, 40.0), (-60.0, 30.0))
THREE: dict[str, Any] = {**SMALL, "scenario": "paper", "num_cells": 3, "target_angles_deg": TARGETS}
ONE: dict[str, Any] = {**SMALL, "scenario": "paper"}
MOVING: dict[str, Any] = {"doppler": 0.05, "csi_error_variance": 0.2}

VIEWS: list[dict[str, Any]] = [
    {},
    ONE,
    {**ONE, "message_bits": 3, "local_csi": "own"},
    {**THREE, "message_bits": 4},
    {**THREE, "local_csi": "own", "reward": "network"},
    {**THREE, **MOVING, "message_bits": 1, "local_csi": "own", "episode_length": 7},
    {**THREE, "control": "power", "scheduling": "contention", "power_limit": "cost"},
    {**THREE, "control": "structured", "observation": "features", "message_bits": 2},
    {**THREE, "control": "structured", "observation": "features", "local_csi": "own"},
]

SYSTEMS: list[dict[str, Any]] = [
    ONE,
    {**ONE, **MOVING, "scheduling": "contention", "control": "power"},
    THREE,
    {**THREE, **MOVING},
    {**THREE, "control": "power", "scheduling": "contention", "power_limit": "cost"},
    {**THREE, "channel_model": RicianChannel(), "csi_error_variance": 0.2, "radar": "fixed"},
    {"scenario": "multicell", "control": "amplitude"},
    {**THREE, "layout": "hexagonal", "csi_error_variance": 0.1},
    {**THREE, "control": "structured", "observation": "features"},
]


def make(**settings: Any) -> ISACParallelEnv:
    return isac_gym.parallel_env(**settings)


def sample(env: ISACParallelEnv) -> dict[str, npt.NDArray[np.float32]]:
    return {agent: env.action_space(agent).sample() for agent in env.agents}


def seed_actions(env: ISACParallelEnv, seed: int = 0) -> None:
    for index, agent in enumerate(env.possible_agents):
        env.action_space(agent).seed(seed + index)


def join(env: ISACParallelEnv, actions: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The central action: what stations transmit, one after another, without messages."""
    cells = env.scenario.num_cells
    bits = env.message_bits * (cells - 1)
    parts = [actions[f"station_{index}"] for index in range(cells)]
    return np.concatenate([part[: len(part) - bits] for part in parts])


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("settings", VIEWS, ids=range(len(VIEWS)))
def test_pettingzoo_accepts_the_interface(settings: dict[str, Any]) -> None:
    parallel_api_test(make(**settings), num_cycles=25)


@pytest.mark.parametrize("settings", VIEWS, ids=range(len(VIEWS)))
def test_pettingzoo_finds_equal_seeds_equal(settings: dict[str, Any]) -> None:
    parallel_seed_test(lambda: make(**settings), num_cycles=10)


@pytest.mark.parametrize("settings", [ONE, {**THREE, "message_bits": 2}], ids=["one", "three"])
def test_pettingzoo_finds_as_many_blocks_as_asked(settings: dict[str, Any]) -> None:
    def parallel_env(**changes: Any) -> ISACParallelEnv:
        return make(**settings, **changes)

    max_cycles_test(
        SimpleNamespace(
            parallel_env=parallel_env,
            env=lambda **changes: parallel_to_aec(parallel_env(**changes)),
        )
    )


@pytest.mark.parametrize("settings", [ONE, THREE], ids=["one", "three"])
def test_pettingzoo_accepts_the_state(settings: dict[str, Any]) -> None:
    state_test(parallel_to_aec(make(**settings)), make(**settings), num_cycles=3)


def test_the_central_view_passes_the_checkers() -> None:
    check_env(make(**THREE).central, skip_render_check=True)
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(make(**THREE).central, warn=True)


@pytest.mark.parametrize("settings", VIEWS, ids=range(len(VIEWS)))
def test_same_seed_same_trajectory_over_many_blocks(settings: dict[str, Any]) -> None:
    def trace(seed: int) -> list[Any]:
        env = make(**settings)
        seed_actions(env)
        entries: list[Any] = [env.reset(seed=seed)]
        for _ in range(30):
            if not env.agents:
                entries.append(env.reset())
            entries.append(env.step(sample(env)))
            entries.append(env.state())
        return entries

    first, second, other = trace(4), trace(4), trace(5)
    assert data_equivalence(first, second, exact=True)
    assert not data_equivalence(first[0], other[0])


def test_agents_spaces_and_metadata() -> None:
    env = make(**THREE, message_bits=2)
    agents = ["station_0", "station_1", "station_2"]
    assert env.possible_agents == agents
    assert env.agents == []
    observations, infos = env.reset(seed=0)
    assert env.agents == list(observations) == agents
    assert infos == {agent: {} for agent in agents}
    # K = 3 users, M_R + M_C = 4 + 5 antennas, 3 cells; two bits from each of two others.
    assert env.observation_space("station_1").shape == (2 * 3 * 3 * 9 + 4,)
    assert env.action_space("station_1").shape == (2 * 5 * 3 + 2 * 4 * 4 + 4,)
    assert make(**THREE, local_csi="own").observation_space("station_1").shape == (2 * 3 * 9,)
    assert len({id(env.action_space(agent)) for agent in agents}) == 3
    for agent in agents:
        assert observations[agent] in env.observation_space(agent)
    assert env.metadata["name"] == str(env) == "isac_multicell_v0"
    assert env.metadata["is_parallelizable"] is True
    assert env.metadata["render_modes"] == ["rgb_array", "human"]
    assert env.metadata["render_fps"] == ISACEnv.metadata["render_fps"]
    assert env.unwrapped is env
    assert find_system(env) is env.system
    assert env.scenario == Scenario(num_cells=3, **{**SMALL, "target_angles_deg": TARGETS})
    assert env.channel_model is env.central.channel_model
    assert make().scenario == Scenario.preset("multicell")


@pytest.mark.parametrize("local_csi", ["transmit", "own"])
@pytest.mark.parametrize("settings", [ONE, THREE, {**THREE, **MOVING}], ids=["1", "3", "moving"])
def test_a_station_observes_its_own_channels(settings: dict[str, Any], local_csi: Any) -> None:
    env = make(**settings, local_csi=local_csi, message_bits=1)
    observations, _ = env.reset(seed=2)
    for _ in range(3):
        state = env.state()
        together = direct_model.observed_channels(env.scenario, state)
        cells = len(together)
        for station in range(cells):
            own = together[station]
            places = range(cells if local_csi == "transmit" else 1)
            entries = [own[(station + place) % cells].ravel() for place in places]
            flat = np.concatenate(entries)
            expected = np.concatenate([flat.real, flat.imag])
            seen = observations[f"station_{station}"]
            np.testing.assert_array_equal(seen[: len(expected)], expected)
            assert len(seen) == len(expected) + cells - 1
        observations = env.step(sample(env))[0]
        assert not np.array_equal(env.state(), state)


def test_a_station_observes_the_features_of_its_own_channels() -> None:
    settings = {**THREE, "control": "structured", "observation": "features"}
    env = make(**settings, message_bits=1)
    observations, _ = env.reset(seed=2)
    together = env.state().reshape(3, -1)
    for station, seen in enumerate(observations.values()):
        np.testing.assert_array_equal(seen[: together.shape[1]], together[station])
        assert len(seen) == together.shape[1] + 2
    own, _ = make(**settings, local_csi="own").reset(seed=2)
    users = env.scenario.num_users
    for station, seen in enumerate(own.values()):
        np.testing.assert_allclose(seen[: 3 * users], together[station, : 3 * users], rtol=1e-6)


@pytest.mark.parametrize("settings", SYSTEMS, ids=range(len(SYSTEMS)))
def test_the_central_environments_see_and_earn_the_same_bit_for_bit(
    settings: dict[str, Any],
) -> None:
    length = 3
    env = make(**settings, reward="network", message_bits=2, episode_length=length)
    central = gym.make("ISAC-MISO-v0", **settings, episode_length=length)
    batched = gym.make_vec("ISAC-MISO-v0", num_envs=1, **settings, episode_length=length)
    assert isinstance(batched, ISACVectorEnv)
    seed_actions(env)
    env.reset(seed=11)
    observation, _ = central.reset(seed=11)
    several, _ = batched.reset(seed=11)
    for step in range(1, 4 * length + 1):
        np.testing.assert_array_equal(env.state(), observation)
        np.testing.assert_array_equal(env.state(), several[0])
        actions = sample(env)
        _, rewards, terminations, truncations, infos = env.step(actions)
        action = join(env, actions)
        observation, reward, _, truncated, info = central.step(action)
        several, earned, _, _, entries = batched.step(action[None])
        stations = [f"station_{index}" for index in range(env.scenario.num_cells)]
        assert rewards == dict.fromkeys(stations, reward)
        assert earned[0] == reward
        assert terminations == dict.fromkeys(stations, False)
        assert truncations == dict.fromkeys(stations, truncated)
        assert truncated == (step % length == 0)
        for name, value in info.items():
            if name.endswith("_by_cell"):
                own = [infos[station][name.removesuffix("_by_cell")] for station in stations]
                np.testing.assert_array_equal(own, value, err_msg=name)
                continue
            if name.startswith("cost") or name == "sum_rate":
                assert all(type(infos[station][name]) is np.float32 for station in stations)
                total = sum(float(infos[station][name]) for station in stations)
                assert total == pytest.approx(value, rel=1e-6, abs=1e-7), name
                continue
            parts = np.array([infos[station][name] for station in stations], np.float32)
            joint = parts[0] if len(stations) == 1 else parts
            np.testing.assert_array_equal(joint, value, err_msg=name)
            np.testing.assert_array_equal(joint, entries[name][0], err_msg=name)
        names = {name for name in info if not name.endswith("_by_cell")}
        assert all(set(infos[station]) == names for station in stations)
        if truncated:
            np.testing.assert_array_equal(env.state(), observation)
            assert env.agents == []
            env.reset()
            observation, _ = central.reset()


def test_one_station_is_the_central_environment_bit_for_bit() -> None:
    env = make(**ONE, **MOVING)
    central = gym.make("ISAC-MISO-v0", **ONE, **MOVING)
    seen = env.reset(seed=1)[0]
    observation, _ = central.reset(seed=1)
    for _ in range(4):
        np.testing.assert_array_equal(seen["station_0"], observation)
        actions = sample(env)
        seen, rewards, _, _, infos = env.step(actions)
        observation, reward, _, _, info = central.step(actions["station_0"])
        assert rewards["station_0"] == reward
        assert data_equivalence(infos["station_0"], info, exact=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"control": "power", "power_limit": "cost", "precoder_directions": "zf"},
        {"power_limit": "cost", "scheduling": "contention"},
    ],
    ids=["default", "power", "contention"],
)
def test_each_station_earns_what_the_formulas_say(changes: dict[str, Any]) -> None:
    """With gains that differ from path to path, so that no two stations are alike."""
    env = make(**THREE, **changes)
    scenario = env.scenario
    rng = np.random.default_rng(0)
    gains = rng.uniform(0.1, 3.0, (3, 3, 1, 1))
    seed_actions(env)
    unlike = 0
    for _ in range(5):
        channels = np.sqrt(gains) * reference.complex_normal(rng, 3, 3, 3, 9)
        channels = channels.astype(np.complex64).astype(np.complex128)
        env.reset(seed=0, options={"channels": channels})
        actions = sample(env)
        if scenario.scheduling == "contention":
            for action in actions.values():
                action[-3:] = [-0.5, 0.5, -0.5]
        _, rewards, _, _, infos = env.step(actions)
        precoders, covariances, access = direct_model.decode(scenario, join(env, actions), channels)
        assert covariances is not None
        expected = direct_model.earned(scenario, channels, precoders, covariances, access)
        costs = ["cost_power", "cost_sensing"]
        costs += ["cost_scheduling"] if scenario.scheduling == "contention" else []
        for station, agent in enumerate(env.possible_agents):
            rates = expected["rates"][station]
            assert rewards[agent] == infos[agent]["sum_rate"]
            assert rewards[agent] == pytest.approx(rates.sum(), rel=1e-4)
            unlike += abs(rates.sum() - expected["sum_rate"] / 3) > 0.01 * expected["sum_rate"]
            excess = {}
            for name in costs:
                signed = expected[name.replace("cost_", "constraint_")][station]
                excess[name] = max(signed, 0.0)
                assert infos[agent][name] == pytest.approx(excess[name], rel=1e-4, abs=1e-5)
            assert infos[agent]["cost"] == pytest.approx(sum(excess.values()), rel=1e-4, abs=1e-5)
            for name, value in expected.items():
                if not name.startswith(("cost", "sum_rate")):
                    found = infos[agent][name]
                    np.testing.assert_allclose(
                        found, value[station], rtol=1e-4, atol=1e-5, err_msg=name
                    )
                    assert type(found) is np.float32 or found.shape == (3,)
    assert unlike >= 5


def test_a_mapping_changes_fields_of_the_default_scenario() -> None:
    env = make(scenario={"num_users": 2, "episode_length": 4}, snr_db=5.0)
    expected = Scenario.preset("three-cells").replace(num_users=2, episode_length=4, snr_db=5.0)
    assert env.scenario == expected
    one = make(scenario={"num_cells": 1, "target_angles_deg": [-40.0, 0.0, 40.0]})
    assert one.possible_agents == ["station_0"]


def test_rewards_of_the_stations_add_up_to_that_of_the_network() -> None:
    each, whole = make(**THREE), make(**THREE, reward="network")
    each.reset(seed=3)
    whole.reset(seed=3)
    for _ in range(5):
        actions = sample(each)
        apart, together = each.step(actions)[1], whole.step(actions)[1]
        assert len(set(together.values())) == 1
        assert len(set(apart.values())) == 3
        assert sum(apart.values()) == pytest.approx(together["station_0"], rel=1e-6)


UNCOUPLED: list[dict[str, Any]] = [
    {},
    {"csi_error_variance": 0.2, "doppler": 0.05, "control": "power"},
    {"power_limit": "cost", "scheduling": "contention"},
]


@pytest.mark.parametrize("changes", UNCOUPLED, ids=range(len(UNCOUPLED)))
def test_without_paths_between_cells_no_station_notices_another(changes: dict[str, Any]) -> None:
    settings = {**THREE, **changes, "intercell_gain": 0.0}
    for station in range(3):
        env, twin = make(**settings), make(**settings)
        seed_actions(env)
        env.reset(seed=6)
        twin.reset(seed=6)
        agent = f"station_{station}"
        for _ in range(4):
            actions = sample(env)
            if settings.get("scheduling") == "contention":
                for action in actions.values():
                    action[-3:] = [-0.5, 0.5, -0.5]
            seen, earned, _, _, infos = env.step(actions)
            actions[agent] = actions[agent][::-1]
            other_seen, other_earned, _, _, other_infos = twin.step(actions)
            assert earned[agent] != other_earned[agent]
            for other in set(env.possible_agents) - {agent}:
                assert other_earned[other] == earned[other]
                assert data_equivalence(other_infos[other], infos[other], exact=True)
                np.testing.assert_array_equal(other_seen[other], seen[other])


@pytest.mark.parametrize("changes", UNCOUPLED, ids=range(len(UNCOUPLED)))
def test_without_paths_between_cells_every_station_is_an_environment_of_its_own(
    changes: dict[str, Any],
) -> None:
    env = make(**{**THREE, **changes, "intercell_gain": 0.0, "csi_error_variance": 0.0})
    alone = [
        gym.make("ISAC-MISO-v0", scenario=isolate_station(env.scenario, station))
        for station in range(3)
    ]
    seed_actions(env)
    for seed in range(4):
        env.reset(seed=seed)
        channels = env.central.channels
        actions = sample(env)
        if env.scenario.scheduling == "contention":
            for action in actions.values():
                action[-3:] = [-0.5, -0.5, 0.5]
        _, earned, _, _, infos = env.step(actions)
        for station, single in enumerate(alone):
            agent = f"station_{station}"
            single.reset(options={"channels": channels[station, station]})
            _, reward, _, _, info = single.step(actions[agent])
            assert earned[agent] == pytest.approx(reward, rel=1e-6, abs=1e-6)
            assert reward > 0
            assert set(infos[agent]) == set(info)
            for name, value in info.items():
                np.testing.assert_allclose(
                    infos[agent][name], value, rtol=1e-6, atol=1e-6, err_msg=name
                )


@pytest.mark.parametrize("cells", [2, 3, 4])
def test_messages_arrive_a_block_later_where_they_were_sent(cells: int) -> None:
    bits, length = 3, 4
    settings = {**SMALL, "scenario": "paper", "num_cells": cells, "episode_length": length}
    env = make(**settings, message_bits=bits)
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a, b in itertools.product(range(cells), repeat=2) if a != b]
    for _ in range(2):
        observations, _ = env.reset()
        for seen in observations.values():
            assert not seen[-bits * (cells - 1) :].any()
        for _ in range(length):
            written = {pair: rng.uniform(-1, 1, bits).astype(np.float32) for pair in pairs}
            written[0, 1][:2] = [0.0, 1e-30]
            actions = {}
            for station in range(cells):
                following = [(station + place) % cells for place in range(1, cells)]
                messages = [written[station, other] for other in following]
                size = env.action_space("station_0").shape[0] - bits * (cells - 1)
                own = rng.uniform(-1, 1, size).astype(np.float32)
                actions[f"station_{station}"] = np.concatenate([own, *messages])
            observations, *_ = env.step(actions)
            for receiver in range(cells):
                tail = observations[f"station_{receiver}"][-bits * (cells - 1) :]
                heard = tail.reshape(cells - 1, bits)
                for place in range(1, cells):
                    sender = (receiver + place) % cells
                    expected = [1.0 if x > 0 else -1.0 for x in written[sender, receiver]]
                    assert heard[place - 1].tolist() == expected
    moved = 2 * length
    assert env.exchange.blocks == moved
    assert env.exchange.counts.tolist() == [
        [0 if a == b else moved * bits for b in range(cells)] for a in range(cells)
    ]


def test_messages_change_nothing_but_what_is_heard() -> None:
    silent, talking = make(**THREE), make(**THREE, message_bits=2)
    silent.reset(seed=6)
    talking.reset(seed=6)
    for _ in range(3):
        actions = sample(silent)
        longer = {agent: np.append(part, [1, -1, -1, 1]) for agent, part in actions.items()}
        seen, *rest = silent.step(actions)
        heard, *same = talking.step(longer)
        assert data_equivalence(rest, same, exact=True)
        for agent in seen:
            np.testing.assert_array_equal(seen[agent], heard[agent][:-4])
    assert silent.exchange.counts.sum() == 0


def test_what_is_handed_out_belongs_to_the_agents() -> None:
    clean, spoiled = make(**THREE, message_bits=2), make(**THREE, message_bits=2)
    clean.reset(seed=4)
    observations = spoiled.reset(seed=4)[0]
    seed_actions(clean)
    for _ in range(4):
        arrays = [*observations.values(), spoiled.state()]
        for first, second in itertools.combinations(arrays, 2):
            assert not np.shares_memory(first, second)
        for array in arrays:
            array[:] = 7.0
        actions = sample(clean)
        scratch = {agent: action.copy() for agent, action in actions.items()}
        expected = clean.step(actions)
        found = spoiled.step(scratch)
        assert data_equivalence(expected, found, exact=True)
        for action in scratch.values():
            action[:] = 0.5
        observations, infos = found[0], found[4]
        rates = [infos[agent][name] for agent in infos for name in ("rates", "sinr")]
        for first, second in itertools.combinations(rates, 2):
            assert not np.shares_memory(first, second)
        for array in rates:
            array[:] = -1.0


def test_an_episode_ends_for_all_stations_at_once() -> None:
    env = make(**THREE, episode_length=2)
    with pytest.raises(gym.error.ResetNeeded, match=r"reset.*at first"):
        env.step({})
    with pytest.raises(gym.error.ResetNeeded, match="state"):
        env.state()
    for _ in range(2):
        env.reset(seed=0)
        assert env.num_agents == env.max_num_agents == 3
        assert not any(env.step(sample(env))[3].values())
        assert all(env.step(sample(env))[3].values())
        assert env.agents == []
        for actions in ({}, {f"station_{i}": np.zeros(62) for i in range(3)}):
            with pytest.raises(gym.error.ResetNeeded, match="end of an episode"):
                env.step(actions)
        assert env.state().shape == env.state_space.shape


def test_faulty_actions_name_the_station_and_change_nothing() -> None:
    env = make(**THREE, message_bits=2)
    twin = make(**THREE, message_bits=2)
    env.reset(seed=0)
    twin.reset(seed=0)
    good = sample(env)
    size = 62 + 4
    faults: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({k: v for k, v in good.items() if k != "station_1"}, ValueError, "missing: station_1$"),
        ({}, ValueError, "missing: station_0, station_1, station_2$"),
        ({**good, "station_3": good["station_0"]}, ValueError, "unknown: station_3$"),
        ({**good, 0: good["station_0"]}, ValueError, "unknown: 0$"),
        ({**good, "station_2": good["station_2"][:-1]}, ValueError, rf"station_2.*\({size},\)"),
        ({**good, "station_2": good["station_2"][:62]}, ValueError, "station_2.*4 of messages"),
        ({**good, "station_0": np.append(good["station_0"], 0)}, ValueError, "station_0.*62 num"),
        ({**good, "station_0": good["station_0"][None]}, ValueError, "station_0.*shape"),
        ({**good, "station_1": np.full(size, 1.5)}, ValueError, r"station_1.*\[-1, 1\]"),
        ({**good, "station_1": np.full(size, np.nan)}, ValueError, r"station_1.*\[-1, 1\]"),
        ({**good, "station_1": [[0.5], []]}, ValueError, "station_1.*rows of equal length"),
        ({**good, "station_1": None}, TypeError, "station_1.*real numbers"),
        ({**good, "station_1": np.full(size, "a")}, TypeError, "station_1.*real numbers"),
    ]
    for actions, kind, text in faults:
        with pytest.raises(kind, match=text):
            env.step(actions)
    with pytest.raises(TypeError, match="actions must be a dictionary by agent, got list"):
        env.step(list(good.values()))  # type: ignore[arg-type]
    assert not env.exchange.counts.any()
    assert data_equivalence(env.step(good), twin.step(good), exact=True)


def test_actions_in_any_order_and_of_any_real_type() -> None:
    env, twin = make(**THREE, message_bits=1), make(**THREE, message_bits=1)
    env.reset(seed=0)
    twin.reset(seed=0)
    actions = {agent: np.round(part) for agent, part in sample(env).items()}
    turned = {agent: actions[agent].astype(np.int64).tolist() for agent in reversed(actions)}
    assert data_equivalence(env.step(actions), twin.step(turned), exact=True)


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"reward": "own"}, ValueError, "reward must be one of 'station', 'network', got 'own'"),
        ({"local_csi": "all"}, ValueError, "local_csi must be one of 'transmit', 'own'"),
        ({"message_bits": -1}, ValueError, "message_bits must be an integer >= 0"),
        ({"message_bits": 1.5}, ValueError, "message_bits must be an integer >= 0"),
        ({"max_cycles": 0}, ValueError, "max_cycles must be an integer >= 1"),
        ({"max_cycles": 4, "episode_length": 4}, ValueError, "max_cycles must be None"),
        ({"num_user": 3}, TypeError, "num_user.*allowed are num_users"),
        ({"scenario": "nosuch"}, ValueError, "scenario.*'nosuch'"),
        ({"render_mode": "ansi"}, ValueError, "render_mode.*'ansi'"),
    ],
)
def test_arguments_that_are_not_allowed(
    settings: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        make(**settings)


def test_options_of_a_reset() -> None:
    env = make(**THREE)
    rng = np.random.default_rng(0)
    channels = reference.complex_normal(rng, 3, 3, 3, 9).astype(np.complex64)
    observations, _ = env.reset(seed=0, options={"channels": channels, "options": 1})
    np.testing.assert_array_equal(env.central.channels, channels)
    np.testing.assert_array_equal(observations["station_2"][:27], channels[2, 2].real.ravel())
    with pytest.raises(ValueError, match=r"options.*chanels"):
        env.reset(options={"chanels": channels})
    with pytest.raises(ValueError, match=r"options\['channels'\] must have shape"):
        env.reset(options={"channels": channels[0]})


@pytest.mark.parametrize("options", [3, "channels", ["channels"], [("channels", 1)], []])
def test_options_must_be_a_dictionary(options: Any) -> None:
    with pytest.raises(TypeError, match=r"^options must be None or a dictionary, got "):
        make(**ONE).reset(options=options)


def test_users_stand_where_a_reset_puts_them() -> None:
    settings = {**THREE, "layout": "line"}
    env = make(**settings)
    central = gym.make("ISAC-MISO-v0", **settings)
    positions = np.array([[[500.0 * cell, 60.0 + user] for user in range(3)] for cell in range(3)])
    observation, _ = central.reset(seed=1, options={"user_positions": positions})
    env.reset(seed=1, options={"user_positions": positions})
    np.testing.assert_array_equal(env.state(), observation)
    env.reset(seed=1)
    assert not np.array_equal(env.state(), observation)


def test_reset_without_seed_goes_on_with_the_generator() -> None:
    env = make(**THREE)
    env.reset(seed=0)
    first = env.state()
    env.reset()
    assert not np.array_equal(env.state(), first)
    env.reset(seed=0)
    np.testing.assert_array_equal(env.state(), first)


def test_constraints_of_ones_own_have_their_entries() -> None:
    from isac_gym.system.constraints import Constraint

    class Loudest(Constraint):
        name = "loudest"
        symbol = "P_max"
        unit = "W"

        def limit(self, scenario: Scenario) -> float:
            return 0.25

        def quantity(self, outcome: Any, system: Any) -> Any:
            return outcome.transmission.precoders.abs().square().sum(-2).amax(-1)

    env = make(**THREE, control="power", power_limit="cost", constraints=[Loudest()])
    env.reset(seed=0)
    users = np.array([[-0.8, 0.0, -1.0], [-1.0, -1.0, -0.9], [0.6, -0.2, -1.0]])
    actions = {
        f"station_{index}": np.concatenate([row, np.ones(32)]) for index, row in enumerate(users)
    }
    infos = env.step(actions)[4]
    for station, highest in enumerate(0.5 * (users.max(1) + 1)):
        found = infos[f"station_{station}"]
        excess = highest / 0.25 - 1
        assert found["constraint_loudest"] == pytest.approx(excess, rel=1e-5)
        assert found["cost_loudest"] == pytest.approx(max(excess, 0), rel=1e-5)


def test_render_draws_the_last_block() -> None:
    env = make(**THREE, render_mode="rgb_array")
    env.reset(seed=0)
    images = [env.render()]
    for _ in range(2):
        env.step(sample(env))
        images.append(env.render())
    for image in images:
        assert isinstance(image, np.ndarray)
        assert (image.dtype, image.ndim) == (np.uint8, 3)
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])
    np.testing.assert_array_equal(images[2], env.central.render())
    env.close()
    env.close()


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_goes_on_like_the_original(how: str) -> None:
    env = make(**THREE, **MOVING, message_bits=2)
    env.reset(seed=0)
    env.step(sample(env))
    twin = pickle.loads(pickle.dumps(env)) if how == "pickle" else copy.deepcopy(env)
    for _ in range(3):
        actions = sample(env)
        assert data_equivalence(env.step(actions), twin.step(actions), exact=True)
    np.testing.assert_array_equal(twin.exchange.counts, env.exchange.counts)


@pytest.mark.parametrize(
    "imports",
    [
        "import isac_gym, pettingzoo",
        "import pettingzoo, isac_gym",
        "import isac_gym; from pettingzoo.utils import ParallelEnv; import pettingzoo",
        "import pettingzoo, isac_gym; isac_gym._register_with_pettingzoo()",
        "import isac_gym; isac_gym._register_with_pettingzoo(); import pettingzoo",
    ],
)
def test_pettingzoo_makes_it_by_its_id(imports: str) -> None:
    code = (
        f"{imports}; env = pettingzoo.make('parallel', 'ISAC-MultiCell-v0', message_bits=2);"
        "spec = pettingzoo.spec('parallel', 'ISAC-MultiCell'); "
        "assert 'ISAC-MultiCell-v0' not in pettingzoo.aec_registry;"
        "print(spec.id, spec.entry_point, env.message_bits, *env.possible_agents)"
    )
    assert run(code) == (
        "ISAC-MultiCell-v0 isac_gym.envs.parallel:ISACParallelEnv 2 station_0 station_1 station_2"
    )


def test_nothing_stays_behind_that_waits_for_pettingzoo() -> None:
    code = (
        "import sys, isac_gym\n"
        "def waiting(): return sum(f.__module__.startswith('isac_gym') for f in sys.meta_path)\n"
        "for _ in range(3): isac_gym._register_with_pettingzoo()\n"
        "print(waiting()); import pettingzoo; isac_gym._register_with_pettingzoo()\n"
        "print(waiting(), 'ISAC-MultiCell-v0' in pettingzoo.parallel_registry)"
    )
    assert run(code).split() == ["1", "0", "True"]


def test_an_import_of_pettingzoo_that_failed_may_be_tried_again() -> None:
    code = (
        "import sys, isac_gym; sys.modules['pettingzoo.env_registry.registration'] = None\n"
        "try: import pettingzoo\n"
        "except ImportError: print('failed')\n"
        "del sys.modules['pettingzoo.env_registry.registration']; import pettingzoo\n"
        "print('ISAC-MultiCell-v0' in pettingzoo.parallel_registry)"
    )
    assert run(code).split() == ["failed", "True"]


def test_the_registry_passes_arguments_on() -> None:
    env = pettingzoo.make("parallel", "ISAC-MultiCell-v0", **THREE, max_cycles=5, reward="network")
    assert isinstance(env, ISACParallelEnv)
    assert env.scenario.episode_length == 5
    assert env.reward == "network"


def test_importing_the_package_does_not_load_pettingzoo() -> None:
    code = (
        "import sys, isac_gym, gymnasium as gym; gym.make('ISAC-MISO-v0', num_cells=3);"
        "print([name for name in sys.modules if name.startswith('pettingzoo')])"
    )
    assert run(code) == "[]"


def test_without_pettingzoo_the_package_works_and_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pettingzoo'] = None; import gymnasium as gym, isac_gym;"
        "from isac_gym import *; gym.make('ISAC-MISO-v0', num_cells=3).reset(seed=0)\n"
        "try: isac_gym.parallel_env()\n"
        "except ImportError as error: print(error)"
    )
    said = run(code)
    assert "PettingZoo" in said
    assert "pip install 'isac-gym[marl]'" in said
