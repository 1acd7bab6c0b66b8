"""The single environment: Gymnasium's contract, and numbers that agree with the formulas."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import direct_model
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from direct_model import SMALL
from gymnasium.utils.env_checker import check_env
from single_env import make

from isac_gym import ISACEnv, RicianChannel

CONTROLS = ("power", "amplitude", "beamforming", "structured")


RADARS = ("learned", "fixed")


LIMITS = ("project", "cost")


SCHEDULINGS = ("all", "contention")


STEP_KEYS = {
    "cost",
    "cost_power",
    "cost_sensing",
    "constraint_power",
    "constraint_sensing",
    "sum_rate",
    "rates",
    "sinr",
    "beampattern_error",
    "cross_correlation",
    "comm_power",
}


CONTENTION_KEYS = {"cost_scheduling", "constraint_scheduling"}


def combinations() -> Iterator[dict[str, Any]]:
    for control, radar, limit, scheduling in itertools.product(
        CONTROLS, RADARS, LIMITS, SCHEDULINGS
    ):
        for kind in ("mrt", "zf", "rzf") if control == "power" else ("mrt",):
            yield {
                "control": control,
                "radar": radar,
                "power_limit": limit,
                "scheduling": scheduling,
                "precoder_directions": kind,
            }


COMBINATIONS = [{**SMALL, **modes} for modes in combinations()]


MULTICELL = [
    {"scenario": "multicell"},
    {"scenario": "multicell", "control": "power", "power_limit": "cost"},
    {**SMALL, "num_cells": 2, "scheduling": "contention", "radar": "fixed"},
    {**SMALL, "num_cells": 2, "scheduling": "contention", "power_limit": "cost"},
    {**SMALL, "num_cells": 3, "layout": "hexagonal"},
    {**SMALL, "num_cells": 2, "layout": "line", "control": "power", "radar": "fixed"},
]


FEATURES = [
    {**SMALL, "observation": "features", "control": "structured"},
    {**SMALL, "observation": "features", "control": "structured", "num_cells": 2},
    {**SMALL, "observation": "features", "control": "power", "radar": "fixed"},
]


DEFAULTS = [{}, {"radar_streams": 2}, {"cross_correlation": "grid_sq", "snr_db": 5.0}]


def identify(settings: dict[str, Any]) -> str:
    changed = {k: v for k, v in settings.items() if SMALL.get(k) != v}
    return "-".join(f"{value}" for value in changed.values()) or "default"


def per_station(env: ISACEnv, value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value)
    return array[None] if env.scenario.num_cells == 1 else array


def some_action(env: ISACEnv, active: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
    """A random action; with contention, whose access variables are as given."""
    action = env.action_space.sample()
    if active is not None and env.scenario.scheduling == "contention":
        entries = action.reshape(env.scenario.num_cells, -1)
        entries[:, -env.scenario.num_users :] = np.where(active, 0.7, -0.7)
    return np.asarray(action, np.float32)


@pytest.mark.parametrize("settings", COMBINATIONS + MULTICELL + DEFAULTS + FEATURES, ids=identify)
def test_gymnasium_checker_accepts(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(**settings), skip_render_check=True)


@pytest.mark.parametrize("settings", COMBINATIONS + MULTICELL + DEFAULTS + FEATURES, ids=identify)
def test_stable_baselines3_checker_accepts(settings: dict[str, Any]) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(make(**settings), warn=True)


def test_gymnasium_checker_accepts_rendering() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("ISAC-MISO-v0", render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("settings", COMBINATIONS + MULTICELL + DEFAULTS, ids=identify)
def test_step_agrees_with_the_formulas(settings: dict[str, Any]) -> None:
    env = make(**settings)
    scenario = env.scenario
    observation, info = env.reset(seed=3)
    assert info == {}
    env.action_space.seed(5)
    one_user = np.eye(scenario.num_users)
    patterns = [one_user[0], one_user[1], one_user[0] + one_user[1], one_user[0] * 0, None]
    for active in patterns:
        action = some_action(env, active)
        channels = per_station(env, env.channels)
        if scenario.num_cells == 1:
            channels = channels[None]
        precoders, covariances = map(lambda x: per_station(env, x), env.decode_action(action))
        by_hand, radar_by_hand, access = direct_model.decode(
            scenario, action, direct_model.observed_channels(scenario, observation)
        )
        np.testing.assert_allclose(precoders, by_hand, rtol=1e-4, atol=1e-5)
        if radar_by_hand is None:
            best = env.system.best_streams().numpy()
            radar_by_hand = best @ best.conj().swapaxes(-1, -2)
        np.testing.assert_allclose(covariances, radar_by_hand, atol=1e-5)

        observation, reward, terminated, truncated, info = env.step(action)
        expected = direct_model.earned(scenario, channels, by_hand, radar_by_hand, access)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert observation.dtype == np.float32
        assert reward == info["sum_rate"]
        assert set(info) == set(expected)
        keys = STEP_KEYS | (CONTENTION_KEYS if scenario.scheduling == "contention" else set())
        if scenario.num_cells > 1:
            keys |= {f"{name}_by_cell" for name in keys if name.startswith(("cost", "sum_rate"))}
        assert set(info) == keys
        for name, value in expected.items():
            found = info[name]
            assert isinstance(found, np.float32 if np.ndim(found) == 0 else np.ndarray), name
            if name.endswith("_by_cell"):
                assert (found.shape, found.dtype) == ((scenario.num_cells,), np.float32)
            elif name.startswith("cost") or name == "sum_rate":
                assert np.ndim(found) == 0, name
            else:
                found = per_station(env, found)
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("control", CONTROLS)
def test_projection_keeps_the_budget_and_the_direction(control: str) -> None:
    asked = make(**{**SMALL, "control": control, "power_limit": "cost", "comm_power": 2.0})
    sent = make(**{**SMALL, "control": control, "power_limit": "project", "comm_power": 2.0})
    asked.reset(seed=0)
    sent.reset(seed=0)
    asked.action_space.seed(0)
    exceeded = 0
    for scale in (1.0, 0.8, 0.05):
        action = (scale * (asked.action_space.sample() + 1) - 1).astype(np.float32)
        wanted, limited = asked.decode_action(action)[0], sent.decode_action(action)[0]
        power = np.sum(np.abs(wanted.astype(np.complex128)) ** 2)
        factor = min(1.0, np.sqrt(2.0 / power))
        np.testing.assert_allclose(limited, factor * wanted, rtol=1e-5, atol=1e-6)
        info_asked, info_sent = asked.step(action)[4], sent.step(action)[4]
        assert info_asked["comm_power"] == pytest.approx(power, rel=1e-5)
        assert info_asked["cost_power"] == pytest.approx(max(power / 2.0 - 1.0, 0.0), abs=1e-5)
        assert info_sent["comm_power"] <= 2.0 * (1 + 1e-6)
        assert info_sent["cost_power"] <= 1e-6
        exceeded += power > 2.0
    assert 0 < exceeded < 3 or control != "power"
    assert exceeded > 0


@pytest.mark.parametrize("cells", [1, 2])
def test_contention_pays_only_a_single_active_user(cells: int) -> None:
    env = make(**{**SMALL, "scheduling": "contention", "num_cells": cells})
    env.reset(seed=0)
    env.action_space.seed(0)
    users = env.scenario.num_users
    for active in itertools.product((False, True), repeat=users):
        reward, info = env.step(some_action(env, active))[1::3]
        count = sum(active)
        assert (reward > 0) == (count == 1)
        rates = np.atleast_2d(info["rates"])
        if count == 1:
            assert np.all((rates > 0) == np.array(active))
        else:
            assert not rates.any()
        assert np.all(info["constraint_scheduling"] == count - 1)
        assert info["cost_scheduling"] == cells * max(count - 1, 0)


def test_contention_boundary_is_strict() -> None:
    env = make(**{**SMALL, "scheduling": "contention", "control": "power"})
    env.reset(seed=0)
    action = np.ones(env.action_space.shape, np.float32)
    action[-3:] = [0.0, -0.0, np.float32(1e-6)]
    assert env.step(action)[4]["constraint_scheduling"] == 0.0


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        {**SMALL, "doppler": 0.05, "csi_error_variance": 0.1},
        {**SMALL, "num_cells": 2, "channel_model": RicianChannel()},
        {**SMALL, "num_cells": 2, "layout": "line", "csi_error_variance": 0.1},
    ],
    ids=["rayleigh", "doppler-estimate", "rician-cells", "line"],
)
def test_same_seed_same_trajectory(settings: dict[str, Any]) -> None:
    def run(seed: int) -> list[Any]:
        env = make(**settings, episode_length=3)
        env.action_space.seed(1)
        trace: list[Any] = []
        for episode in range(4):
            observation, _ = env.reset(seed=seed if episode == 0 else None)
            trace.append(observation)
            truncated = False
            while not truncated:
                observation, reward, _, truncated, info = env.step(env.action_space.sample())
                trace += [observation, reward, truncated, *info.values()]
        return trace

    first, second, other = run(11), run(11), run(12)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert len({np.asarray(entry).tobytes() for entry in first if np.size(entry) > 40}) == 16


def test_reset_without_seed_goes_on_with_the_generator() -> None:
    env = make(**SMALL)
    first, _ = env.reset(seed=0)
    second, _ = env.reset()
    again, _ = env.reset(seed=0)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("length", [1, 4])
def test_episode_ends_by_truncation_only(length: int) -> None:
    env = make(**SMALL, episode_length=length)
    for _ in range(3):
        env.reset(seed=0)
        ends = [env.step(env.action_space.sample())[2:4] for _ in range(length)]
        assert ends == [(False, False)] * (length - 1) + [(False, True)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0000002, -1.5, 1e300])
def test_bad_entries_are_rejected(value: float) -> None:
    env = make(**SMALL)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float64)
    action[7] = value
    for call in (env.step, env.decode_action):
        with pytest.raises(ValueError, match=r"action must be finite and within \[-1, 1\].*7"):
            call(action)
    env.step(np.zeros(env.action_space.shape))


@pytest.mark.parametrize("value", [-128, 127, 2, -2])
def test_integers_outside_the_box_are_rejected(value: int) -> None:
    env = make(**SMALL)
    env.reset(seed=0)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"within \[-1, 1\]"):
        env.step(np.full(env.action_space.shape, value, np.int8))


def test_wrong_shapes_are_rejected() -> None:
    env = make(**SMALL)
    env.reset(seed=0)
    size = env.action_space.shape[0]
    for shape in ((size - 1,), (size + 1,), (1, size), (size, 1), (), (0,)):
        with pytest.raises(ValueError, match=rf"action must have shape \({size},\)"):
            env.step(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "dtype", [np.complex64, np.complex128, object, "U1", np.bool_, "S1", "datetime64[s]"]
)
def test_wrong_dtypes_are_rejected(dtype: Any) -> None:
    env = make(**SMALL)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.int64).astype(dtype)
    with pytest.raises(TypeError, match="action must be an array of real numbers"):
        env.step(action)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64, np.uint8])
def test_other_real_dtypes_mean_the_same(dtype: Any) -> None:
    env = make(**SMALL)
    action = np.zeros(env.action_space.shape, np.float32)
    action[::3] = 1.0
    env.reset(seed=0)
    expected = env.step(action)[1]
    env.reset(seed=0)
    assert env.step(action.astype(dtype))[1] == expected
    env.reset(seed=0)
    assert env.step(list(action.tolist()))[1] == expected


def test_actions_are_read_only_for_the_environment() -> None:
    env = make(**SMALL)
    env.reset(seed=0)
    action = env.action_space.sample()
    before = action.copy()
    action.flags.writeable = False
    env.step(action)
    env.decode_action(action)
    env.step(np.stack([action, action])[:, ::-1][0])
    env.step(np.repeat(action, 2)[::2])
    assert np.array_equal(action, before)


def test_a_failed_step_changes_nothing() -> None:
    env = make(**SMALL, episode_length=1)
    env.reset(seed=0)
    channels = env.channels
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(1))
    assert np.array_equal(env.channels, channels)
    assert env.step(np.zeros(env.action_space.shape))[3]


def test_what_is_handed_out_belongs_to_the_caller() -> None:
    clean, spoiled = make(**SMALL), make(**SMALL)
    observations = [env.reset(seed=4)[0] for env in (clean, spoiled)]
    observations[1][:] = 7.0
    clean.action_space.seed(0)
    for _ in range(3):
        action = clean.action_space.sample()
        scratch = action.copy()
        spoiled.channels[...] = 9.0
        for part in spoiled.decode_action(scratch):
            part[...] = 3.0
        expected, result = clean.step(action), spoiled.step(scratch)
        scratch[:] = 0.5
        assert result[1] == expected[1]
        assert np.array_equal(result[0], expected[0])
        for name, value in expected[4].items():
            assert np.array_equal(result[4][name], value), name
        kept = copy.deepcopy(result[4])
        following = copy.deepcopy(spoiled).step(action)[4]
        for name, value in kept.items():
            assert np.array_equal(result[4][name], value), name
            if isinstance(value, np.ndarray):
                assert not np.shares_memory(following[name], result[4][name])
                result[4][name][:] = -1.0
        result[0][:] = np.nan


def test_step_before_reset() -> None:
    with pytest.raises(gym.error.ResetNeeded):
        make(**SMALL).step(np.zeros(1))
    with pytest.raises(gym.error.ResetNeeded):
        gym.make("ISAC-MISO-v0").step(np.zeros(1))


def test_doppler_correlates_consecutive_blocks() -> None:
    """Lag-1 correlation is J0(2π·doppler) and decays as its powers; lag 0 across episodes."""
    special = pytest.importorskip("scipy.special")
    doppler = 0.1
    env = make(doppler=doppler, radar="fixed", control="power", episode_length=4)
    action = np.zeros(env.action_space.shape, np.float32)
    episodes = []
    for episode in range(60):
        env.reset(seed=0 if episode == 0 else None)
        blocks = [env.channels]
        for _ in range(3):
            env.step(action)
            blocks.append(env.channels)
        episodes.append(blocks)
    H = np.array(episodes)
    rho = special.j0(2 * np.pi * doppler)
    count = H[:, 0].size
    for lag in (1, 2, 3):
        measured = np.mean(H[:, lag] * H[:, 0].conj())
        # Four standard errors of the mean of products of unit-variance variables.
        assert abs(measured - rho**lag) < 4 / np.sqrt(count)
    assert abs(np.mean(H[1:, 0] * H[:-1, 3].conj())) < 4 / np.sqrt(count)


def test_blocks_are_independent_without_doppler() -> None:
    env = make(radar="fixed", control="power", episode_length=400)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    blocks = [env.channels]
    for _ in range(300):
        env.step(action)
        blocks.append(env.channels)
    H = np.array(blocks)
    assert abs(np.mean(H[1:] * H[:-1].conj())) < 4 / np.sqrt(H[1:].size)


def test_imperfect_knowledge_is_seen_but_not_paid() -> None:
    variance = 0.3
    env = make(control="power", radar="fixed", csi_error_variance=variance, episode_length=60)
    observation, _ = env.reset(seed=0)
    scenario = env.scenario
    errors = []
    for _ in range(50):
        estimate = direct_model.observed_channels(scenario, observation)
        true = env.channels
        errors.append(estimate[0, 0] - true)
        action = np.zeros(env.action_space.shape, np.float32)
        F, R = env.decode_action(action)
        along_estimate = direct_model.directions(scenario, estimate[0, 0, :, 12:])
        np.testing.assert_allclose(
            F / np.linalg.norm(F, axis=0), along_estimate, rtol=1e-4, atol=1e-5
        )
        observation, reward, *_ = env.step(action)
        access = np.ones((1, 5))
        paid = direct_model.earned(scenario, true[None, None], F[None], R[None], access)
        imagined = direct_model.earned(scenario, estimate, F[None], R[None], access)
        assert reward == pytest.approx(paid["sum_rate"], rel=1e-4)
        assert reward != pytest.approx(imagined["sum_rate"], rel=1e-4)
    error = np.array(errors)
    # |E|² has mean σ² and standard deviation σ².
    assert np.mean(np.abs(error) ** 2) == pytest.approx(
        variance, abs=4 * variance / error.size**0.5
    )


def test_estimate_and_channel_agree_when_knowledge_is_perfect() -> None:
    env = make(**SMALL)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        seen = direct_model.observed_channels(env.scenario, observation)
        np.testing.assert_array_equal(seen[0, 0], env.channels)
        observation = env.step(env.action_space.sample())[0]


@pytest.mark.parametrize("settings", [SMALL, {**SMALL, "num_cells": 2, "radar": "fixed"}])
def test_render_draws_the_last_block(settings: dict[str, Any]) -> None:
    env = make(**settings, render_mode="rgb_array")
    env.reset(seed=0)
    images = [env.render()]
    for _ in range(2):
        env.step(env.action_space.sample())
        images.append(env.render())
    for image in images:
        assert isinstance(image, np.ndarray)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.shape == images[0].shape
        assert len(np.unique(image)) > 10
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])
    np.testing.assert_array_equal(env.render(), images[2])
    env.close()
    env.close()


@pytest.mark.parametrize("cells", [1, 3])
def test_stations_and_users_have_their_numbers_in_the_picture(cells: int) -> None:
    """Counted as in ``station_0`` of the environment of several agents, and in all messages."""
    env = make(**SMALL, num_cells=cells, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.render()
    pattern, rates = env._renderer.figure.axes
    if cells == 1:
        assert pattern.get_legend() is None
    else:
        named = [text.get_text() for text in pattern.get_legend().get_texts()]
        assert named == ["station 0", "station 1", "station 2"]
    assert [label.get_text() for label in rates.get_xticklabels()] == ["0", "1", "2"]
    env.close()


def test_human_mode_works_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.delenv("DISPLAY", raising=False)
    matplotlib.use("agg")
    env = make(**SMALL, render_mode="human")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env.render() is None
    env.close()


def test_render_without_a_mode_warns() -> None:
    env = make(**SMALL)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
