"""Bandits with constraints whose optima have closed forms, and a chain with values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv


class SimpleVecEnv(VecEnv):
    """What a vector of environments needs besides its dynamics."""

    def __init__(self, num_envs: int, observation_size: int, action_size: int) -> None:
        self.render_mode = None
        observations = spaces.Box(-10.0, 10.0, (observation_size,), np.float32)
        bound = np.full(action_size, 2.0, np.float32)
        super().__init__(num_envs, observations, spaces.Box(-bound, bound))
        self.rng = np.random.default_rng(0)
        self.chosen: np.ndarray | None = None

    def step_async(self, actions: np.ndarray) -> None:
        self.chosen = actions

    def restart(self) -> None:
        if self._seeds[0] is not None:
            self.rng = np.random.default_rng(self._seeds[0])
        self._reset_seeds()

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class Bandit(SimpleVecEnv):
    """Steps with r = -Σ_d w_d(x)·(a_d - b_d(x))² + noise and constraints a_d - limit_d.

    The context x is an entry of ``contexts``, all equally likely; w and b are functions of it. With
    a policy whose mean is μ(x), whatever its variance, the mean reward is -Σ w·(μ - b)² less a
    constant, and so μ_d(x) = b_d(x) - λ_d/(2·w_d(x)) with λ_d >= 0 such that E μ_d(x) = limit_d, or
    0 if E b_d(x) is less. An episode is one step, or ``hold`` steps with the same context.
    """

    def __init__(
        self,
        num_envs: int,
        limits: Sequence[float],
        *,
        target: Callable[[np.ndarray], np.ndarray] = lambda x: np.full_like(x, 0.8),
        weight: Callable[[np.ndarray], np.ndarray] = np.ones_like,
        contexts: Sequence[float] = (1.0,),
        noise: float = 0.1,
        arrays: bool = False,
        truncated: bool = False,
        hold: int = 1,
    ) -> None:
        super().__init__(num_envs, 1, len(limits))
        self.limits = np.asarray(limits)
        self.target, self.weight, self.noise = target, weight, noise
        self.contexts = np.asarray(contexts)
        self.truncated = truncated
        self.hold, self.step_number = hold, 0
        if arrays:
            self.step_info: dict[str, np.ndarray] = {}
        self.arrays = arrays

    def reset(self) -> np.ndarray:
        self.restart()
        self.step_number = 0
        return self.draw()

    def draw(self) -> np.ndarray:
        self.context = self.rng.choice(self.contexts, (self.num_envs, 1)).astype(np.float32)
        return self.context

    def step_wait(self) -> Any:
        assert self.chosen is not None
        x = self.context
        losses = self.weight(x) * (self.chosen - self.target(x)) ** 2
        rewards = self.noise * self.rng.standard_normal(self.num_envs) - losses.sum(1)
        found = self.chosen - self.limits
        entries = {f"constraint_{d}": found[:, d] for d in range(len(self.limits))}
        entries |= {f"cost_{d}": found[:, d].clip(0.0) for d in range(len(self.limits))}
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if self.arrays:
            self.step_info = entries
        else:
            infos = [{n: float(v[i]) for n, v in entries.items()} for i in range(self.num_envs)]
        self.step_number += 1
        is_over = self.step_number % self.hold == 0
        last, dones = self.context, np.full(self.num_envs, is_over)
        new = self.draw() if is_over else self.context
        if self.truncated and is_over:
            for info, reached in zip(infos, last, strict=True):
                info |= {"TimeLimit.truncated": True, "terminal_observation": reached}
        return new, rewards.astype(np.float32), dones, infos


class DictBandit(Bandit):
    """A bandit whose context is an entry of a dictionary."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.observation_space = spaces.Dict({"context": self.observation_space})

    def reset(self) -> Any:
        return {"context": super().reset()}

    def step_wait(self) -> Any:
        new, rewards, dones, infos = super().step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = {"context": info["terminal_observation"]}
        return {"context": new}, rewards, dones, infos


class Chain(SimpleVecEnv):
    """Episodes of ``lengths`` steps, one for each environment, which end or are truncated.

    What the rewards and constraints were is kept, (T, n_envs) and (T, n_envs, m).
    """

    def __init__(self, lengths: Sequence[int], truncated: Sequence[bool], m: int) -> None:
        super().__init__(len(lengths), 2, 1)
        self.lengths, self.truncated, self.m = np.asarray(lengths), truncated, m
        self.rewards: list[np.ndarray] = []
        self.constraints: list[np.ndarray] = []
        self.ended: list[np.ndarray] = []
        self.reached: list[np.ndarray] = []

    def draw(self) -> np.ndarray:
        return self.rng.standard_normal((self.num_envs, 2)).astype(np.float32)

    def reset(self) -> np.ndarray:
        self.restart()
        self.age = np.zeros(self.num_envs, int)
        return self.draw()

    def step_wait(self) -> Any:
        self.age += 1
        dones = self.age == self.lengths
        self.age[dones] = 0
        rewards = self.rng.standard_normal(self.num_envs).astype(np.float32)
        constraints = self.rng.standard_normal((self.num_envs, self.m)).astype(np.float32)
        new, reached = self.draw(), self.draw()
        infos: list[dict[str, Any]] = []
        for i, row in enumerate(constraints):
            info: dict[str, Any] = {f"constraint_{d}": value for d, value in enumerate(row)}
            if dones[i]:
                info |= {
                    "terminal_observation": reached[i],
                    "TimeLimit.truncated": self.truncated[i],
                }
            infos.append(info)
        self.rewards.append(rewards.copy())
        self.constraints.append(constraints)
        self.ended.append(dones)
        self.reached.append(reached)
        return new, rewards, dones, infos
