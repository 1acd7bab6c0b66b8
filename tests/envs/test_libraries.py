"""The environments in libraries that others learn with; each is skipped where it is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from direct_model import SMALL
from gymnasium.vector import AutoresetMode

from isac_gym import ISACEnv
from isac_gym.envs import wrappers
from isac_gym.envs.wrappers import vector

LENGTH = 4
SETTINGS: dict[str, Any] = {**SMALL, "power_limit": "cost", "episode_length": LENGTH}


def make_vec(num_envs: int, **settings: Any) -> gym.vector.VectorEnv[Any, Any, Any]:
    return gym.make_vec("ISAC-MISO-v0", num_envs=num_envs, **{**SETTINGS, **settings})


def replay(seed: int, actions: Any) -> list[tuple[float, float]]:
    """Rewards and costs of a single environment that is restarted whenever an episode ends."""
    env = ISACEnv(**SETTINGS)
    env.reset(seed=seed)
    found = []
    for action in actions:
        _, reward, _, truncated, info = env.step(action)
        found.append((reward, float(info["cost"])))
        if truncated:
            env.reset()
    return found


@pytest.mark.filterwarnings("ignore")
class TestTorchRL:
    @pytest.fixture(autouse=True)
    def library(self) -> Any:
        return pytest.importorskip("torchrl.envs")

    def test_by_id(self, library: Any) -> None:
        env = library.GymEnv("ISAC-MISO-v0", **SETTINGS)
        library.check_env_specs(env)
        env.set_seed(3)
        found = env.rollout(3 * LENGTH, break_when_any_done=False)
        assert found.shape == (3 * LENGTH,)
        ends = found["next", "truncated"].flatten().nonzero().flatten().tolist()
        assert ends == [LENGTH - 1, 2 * LENGTH - 1, 3 * LENGTH - 1]
        assert not found["next", "terminated"].any()
        assert float(found["next", "reward"].min()) > 0.0

    def test_info_reader(self, library: Any) -> None:
        """Scalars of ``info`` have the types that its specs need, costs come with every step."""
        env = library.GymEnv("ISAC-MISO-v0", **SETTINGS).auto_register_info_dict()
        library.check_env_specs(env)
        env.reset()
        env._env.unwrapped.np_random = np.random.default_rng(5)
        found = env.rollout(2 * LENGTH, break_when_any_done=False)
        assert found["next", "rates"].shape == (2 * LENGTH, 3)
        expected = replay(5, found["action"].numpy())
        for step, (reward, cost) in enumerate(expected):
            assert float(found["next", "reward"][step]) == pytest.approx(reward, rel=1e-6)
            assert float(found["next", "cost"][step]) == pytest.approx(cost, rel=1e-6)
            assert float(found["next", "sum_rate"][step]) == pytest.approx(reward, rel=1e-6)

    @pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
    def test_batch(self, library: Any, mode: AutoresetMode) -> None:
        """TorchRL refuses NEXT_STEP, prefers DISABLED, and with SAME_STEP resets once more."""
        envs = make_vec(3, autoreset_mode=mode)
        env = library.GymWrapper(envs)
        assert env.batch_size == (3,)
        env.reset()
        envs.set_attr("np_random", [np.random.default_rng(seed) for seed in range(3)])
        found = env.rollout(2 * LENGTH + 1, break_when_any_done=False)
        assert found.shape == (3, 2 * LENGTH + 1)
        for index in range(3):
            expected = replay(index, found["action"][index].numpy())
            rewards = found["next", "reward"][index].flatten().numpy()
            same = LENGTH if mode is AutoresetMode.SAME_STEP else len(rewards)
            np.testing.assert_allclose(
                rewards[:same], [reward for reward, _ in expected[:same]], rtol=1e-5
            )
            ends = found["next", "done"][index].flatten().nonzero().flatten().tolist()
            assert ends == [LENGTH - 1, 2 * LENGTH - 1]


class TestMOGymnasium:
    @pytest.fixture(autouse=True)
    def library(self) -> Any:
        return pytest.importorskip("mo_gymnasium.wrappers")

    def test_vector_recorder(self, library: Any) -> None:
        envs = library.vector.MORecordEpisodeStatistics(
            vector.VectorReward(make_vec(3, autoreset_mode="NextStep"))
        )
        envs.reset(seed=[0, 1, 2])
        envs.action_space.seed(0)
        totals, episodes = np.zeros((3, 3)), 0
        for _ in range(3 * (LENGTH + 1)):
            _, rewards, _, truncated, info = envs.step(envs.action_space.sample())
            totals += rewards
            if truncated.any():
                assert truncated.all()
                np.testing.assert_allclose(info["episode"]["r"], totals, rtol=1e-5)
                assert info["episode"]["l"].tolist() == [LENGTH] * 3
                assert (totals[:, 1:] < 0).any()
                totals[:], episodes = 0.0, episodes + 1
        assert episodes == 3

    def test_vector_of_single_environments(self, library: Any) -> None:
        """MO-Gymnasium's own vector, beside the vector form on the batch."""
        loop = library.vector.MOSyncVectorEnv(
            [lambda: wrappers.VectorReward(gym.make("ISAC-MISO-v0", **SETTINGS))] * 2
        )
        native = vector.VectorReward(make_vec(2, autoreset_mode="NextStep"))
        assert loop.reward_space == native.reward_space
        np.testing.assert_array_equal(
            loop.reset(seed=[4, 5])[0],
            native.reset(seed=[4, 5])[0],  # type: ignore[arg-type]
        )
        native.action_space.seed(0)
        for _ in range(2 * LENGTH + 2):
            actions = native.action_space.sample()
            found, expected = native.step(actions), loop.step(actions)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(found[3], expected[3])

    def test_wrappers_of_single_environments(self, library: Any) -> None:
        bare = wrappers.VectorReward(gym.make("ISAC-MISO-v0", **SETTINGS))
        weight = np.array([1.0, 2.0, 30.0])
        linear = library.LinearReward(
            library.MORecordEpisodeStatistics(
                wrappers.VectorReward(gym.make("ISAC-MISO-v0", **SETTINGS)), gamma=1.0
            ),
            weight=weight,
        )
        clipped = library.MOClipReward(
            wrappers.VectorReward(gym.make("ISAC-MISO-v0", **SETTINGS)), 2, -0.1, 0.0
        )
        for env in (bare, linear, clipped):
            env.reset(seed=1)
        bare.action_space.seed(0)
        total = np.zeros(3)
        for _ in range(LENGTH):
            action = bare.action_space.sample()
            reward = bare.step(action)[1]
            total += reward
            _, scalar, _, _, info = linear.step(action)
            assert scalar == pytest.approx(float(weight @ reward), rel=1e-5)
            limited = clipped.step(action)[1]
            np.testing.assert_allclose(limited[:2], reward[:2])
            assert limited[2] == pytest.approx(max(reward[2], -0.1))
        np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-5)


def test_record_video(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    envs = gym.wrappers.vector.RecordVideo(
        make_vec(2, autoreset_mode="NextStep", render_mode="rgb_array"),
        str(tmp_path / "videos"),
        episode_trigger=lambda episode: True,
    )
    envs.reset(seed=0)
    for _ in range(LENGTH):
        envs.step(envs.action_space.sample())
    height, width, _ = envs.recorded_frames[-1].shape
    pictures = envs.render()
    assert pictures is not None
    assert height * width == sum(image.shape[0] * image.shape[1] for image in pictures)
    envs.close()
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1


@pytest.mark.filterwarnings("ignore")
def test_episodes_in_rllib_have_all_their_steps() -> None:
    """RLlib takes the step after an episode for one that restarts: it needs NEXT_STEP."""
    pytest.importorskip("ray.rllib")
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    fields = {**SMALL, "episode_length": 10, "target_angles_deg": [-50.0, 10.0]}

    def sample(mode: str) -> list[Any]:
        config = (
            PPOConfig()
            .environment(
                "isac_gym:ISAC-MISO-v0", env_config={"scenario": fields, "autoreset_mode": mode}
            )
            .env_runners(num_envs_per_env_runner=3, gym_env_vectorize_mode="vector_entry_point")
        )
        runner = SingleAgentEnvRunner(config=config)
        found: list[Any] = runner.sample(num_episodes=6, random_actions=True)
        runner.stop()
        return found

    episodes = sample("NextStep")
    assert [len(episode) for episode in episodes] == [10] * len(episodes)
    assert len(episodes) >= 6
    for episode in episodes:
        rates = [info["sum_rate"] for info in episode.get_infos()[1:]]
        np.testing.assert_allclose(episode.get_rewards(), rates, rtol=1e-6)
        assert min(rates) > 0
        rows = np.stack(episode.get_observations())
        assert len(np.unique(rows, axis=0)) == 11
