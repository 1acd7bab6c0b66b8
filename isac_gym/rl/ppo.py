"""Proximal policy optimisation with a multiplier, and a critic or none, for each constraint."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from isac_gym.rl.advantages import compare_in_episodes, estimate_advantages, mix_advantages
from isac_gym.rl.critics import CostCritics
from isac_gym.rl.lagrangian import ConstraintForm, Lagrangian
from isac_gym.rl.multipliers import Multiplier
from isac_gym.rl.repeating import EpisodeRolloutBuffer, RepeatingPolicy
from isac_gym.validation import check_choice, not_allowed

__all__ = ["Baseline", "PPOLagrangian"]

Baseline: TypeAlias = Literal["critic", "episode"]

_LARGEST_BATCH = 65_536


class PPOLagrangian(Lagrangian, PPO):
    """PPO on the Lagrangian of m constraints.

    After each rollout the multipliers are raised by the constraints' means over it. The policy then
    follows (A_r - Σ λ_i·A_i)/(1 + Σ λ_i), mixed of advantages as they stand and normalised once a
    minibatch, as Stable-Baselines3 does; each A_i is the generalised advantage of its constraint's
    own critic, which is fitted by an optimiser of its own. λ_i is a reward per unit of constraint i
    and can be compared with the multipliers of other agents; with a ``VecNormalize`` that scales
    rewards, it is a scaled reward.

    With γ = 0 (contextual bandits) no critic is called where episodes are truncated, nor at the end
    of a rollout; otherwise one call of each critic has all environments whose episodes are
    truncated at a step.

    With ``baseline="episode"`` there are no critics: what a step gave is set beside the mean of its
    episode, as group-relative policy optimisation does. That is for bandits whose episodes show the
    same observation at every step (:class:`~isac_gym.channels.HeldChannels`), where a measured
    baseline has none of the errors of a learned one. A rollout should hold whole episodes: steps
    that are alone in theirs teach nothing. The policy's own critic is not trained, whatever
    ``vf_coef`` is. A :class:`~isac_gym.rl.repeating.RepeatingPolicy` then reads an observation once
    for all actions on it, in minibatches of whole episodes.

    It logs ``rollout/<name>``, the mean of a constraint in its form, ``train/multiplier_<name>``
    and ``train/cost_value_loss_<name>``, where name is that of the entry.

    Args:
        policy: As of ``PPO``.
        env: As of ``PPO``.
        constraints: Names of entries of the info of a step, feasible where <= 0; none are needed.
        multiplier: A :class:`~isac_gym.rl.multipliers.PlainMultiplier` or
            :class:`~isac_gym.rl.multipliers.PIDMultiplier` of which each constraint gets a copy, or
            a mapping with one for each; None for the former's defaults.
        constraint_form: ``"mean"``: the entries' means are kept <= 0; ``"hard"``: those of their
            positive parts.
        reseed_rollouts: See :class:`~isac_gym.rl.lagrangian.Lagrangian`.
        baseline: ``"critic"``, or ``"episode"`` with ``gamma=0``.
        settings: As of ``PPO``.

    Raises:
        ValueError: If one of these is not allowed; in training, if an entry is missing or not
            finite, or no episode has two steps of a rollout where they are compared.

    Attributes:
        multipliers: The multipliers by the names of the constraints.
        cost_critics: The constraints' critics; None without.
    """

    cost_critics: CostCritics | None

    def __init__(
        self,
        policy: Any,
        env: Any,
        constraints: Sequence[str] = ("constraint_sensing",),
        *,
        multiplier: Multiplier | Mapping[str, Multiplier] | None = None,
        constraint_form: ConstraintForm = "mean",
        reseed_rollouts: bool = False,
        baseline: Baseline = "critic",
        **settings: Any,
    ) -> None:
        self.baseline = check_choice("baseline", baseline, Baseline)
        if baseline == "episode":
            if settings.get("gamma") != 0.0:
                raise not_allowed("gamma", settings.get("gamma"), "0 with baseline='episode'")
            settings = {**settings, "vf_coef": 0.0}
        self._read: tuple[Any, Any] | None = None
        super().__init__(
            policy, env, constraints, multiplier, constraint_form, reseed_rollouts, settings
        )

    def _setup_model(self) -> None:
        if self._reads_once and self.rollout_buffer_class is None:
            self.rollout_buffer_class = EpisodeRolloutBuffer
        super()._setup_model()
        self.cost_critics = None
        if self.baseline == "critic" and self.constraints:
            rate = self.lr_schedule(1)
            self.cost_critics = CostCritics(self.policy, len(self.constraints), rate)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Collect a rollout, its constraints, and the advantages of the reward and of each of them.

        Returns:
            Whether it is whole: false if a callback has ended the training.
        """
        self._begin_rollout(env)
        assert self._last_obs is not None
        self.policy.set_training_mode(False)
        if self.cost_critics is not None:
            self.cost_critics.train(False)
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        shape = (n_rollout_steps, env.num_envs, len(self.constraints))
        constraints, futures = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        callback.on_rollout_start()
        self._read = None  # the policy has changed
        for step in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and step % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            sampled, values, log_probs = self._sample()
            actions = sampled.cpu().numpy()
            new_obs, rewards, dones, infos = env.step(self._bound(actions))
            constraints[step] = self._read_constraints(infos)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            if dones.any():
                ended = np.flatnonzero(dones)
                # A monitor writes into the info of every episode's end, or there is none.
                if not {"episode", "is_success"}.isdisjoint(infos[ended[0]]):
                    self._update_info_buffer([infos[i] for i in ended], dones[ended])
                if self.gamma > 0:
                    rewards = self._add_futures(rewards, futures[step], ended, infos)
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            starts = self._last_episode_starts
            assert starts is not None
            rollout_buffer.add(self._last_obs, actions, rewards, starts, values, log_probs)  # type: ignore[arg-type]
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]

        last = torch.zeros(env.num_envs)
        last_costs = np.zeros(shape[1:], np.float32)
        if self.gamma > 0:
            with torch.no_grad():
                given = obs_as_tensor(new_obs, self.device)  # type: ignore[arg-type]
                last = self.policy.predict_values(given)
                if self.cost_critics is not None:
                    last_costs = self.cost_critics(given).cpu().numpy()
        rollout_buffer.compute_returns_and_advantage(last_values=last, dones=dones)
        observations = _flatten(rollout_buffer.observations)
        if self.baseline == "episode":
            advantages, returns = self._compare(rollout_buffer, constraints), constraints
        else:
            cost_values = self._value(observations, shape)
            advantages = estimate_advantages(
                constraints + futures,
                cost_values,
                last_costs,
                rollout_buffer.episode_starts,
                dones,
                self.gamma,
                self.gae_lambda,
            )
            returns = advantages + cost_values
        self._rollout = observations, constraints.mean((0, 1)), advantages, returns
        self._record("rollout/", self._rollout[1])
        self._end_rollout()
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    @property
    def _reads_once(self) -> bool:
        """Whether the policy reads an observation once for all actions of an episode."""
        return (
            self.baseline == "episode"
            and issubclass(self.policy_class, RepeatingPolicy)
            and isinstance(self.action_space, spaces.Box)
            and not isinstance(self.observation_space, spaces.Dict)
            and not self.use_sde
        )

    def _sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Actions for the last observations, their values, and their log probabilities."""
        observed: Any = self._last_obs
        with torch.no_grad():
            if not self._reads_once:
                found: tuple[Tensor, Tensor, Tensor] = self.policy(
                    obs_as_tensor(observed, self.device)
                )
                return found
            if self._read is None or not np.array_equal(self._read[0], observed):
                given = obs_as_tensor(observed, self.device)
                # A copy, because the policy has one distribution for all who ask.
                self._read = observed, copy.copy(self.policy.get_distribution(given))
            distribution = self._read[1]
            actions = distribution.get_actions()
            return actions, torch.zeros(len(actions), 1), distribution.log_prob(actions)

    def train(self) -> None:
        """Raise the multipliers, improve the policy on the Lagrangian, and fit the critics."""
        observations, means, advantages, returns = self._rollout
        self._ascend(means)
        # The multipliers stand still until the next rollout, so that what is mixed here, once, is
        # what would be mixed in each minibatch before it is normalised.
        self.rollout_buffer.advantages = mix_advantages(
            self.rollout_buffer.advantages, advantages, self._get_multipliers()
        )
        super().train()
        self._record("train/multiplier_", self._get_multipliers())
        if self.cost_critics is not None:
            of_steps = returns.reshape(-1, returns.shape[-1])
            losses = self._fit_cost_critics(self.cost_critics, observations, of_steps)
            self._record("train/cost_value_loss_", losses)

    def _compare(
        self, rollout_buffer: RolloutBuffer, constraints: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Advantages over the mean of the episode: the buffer's, and those of the constraints."""
        signals = np.concatenate([rollout_buffer.rewards[..., None], constraints], -1)
        found = compare_in_episodes(signals, rollout_buffer.episode_starts)
        if rollout_buffer.episode_starts[1:].all():
            raise ValueError(
                "episodes must have at least two steps of a rollout with baseline='episode', got "
                "one step each"
            )
        rollout_buffer.advantages = found[..., 0]
        return found[..., 1:]

    def _fit_cost_critics(
        self, critics: CostCritics, observations: Any, returns: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Regress each constraint's values on its returns, (n, m); the mean losses, (m,)."""
        losses = []
        critics.train(True)
        self._update_learning_rate(critics.optimizer)
        targets = torch.as_tensor(returns, device=self.device)
        for _ in range(self.n_epochs):
            order = np.random.permutation(len(returns))  # noqa: NPY002  (seeded by the library)
            for begin in range(0, len(order), self.batch_size):
                rows = order[begin : begin + self.batch_size]
                found = critics(obs_as_tensor(_take(observations, rows), self.device))
                errors = (found - targets[torch.as_tensor(rows, device=self.device)]).square()
                loss = errors.mean(0)
                critics.optimizer.zero_grad()
                loss.sum().backward()
                torch.nn.utils.clip_grad_norm_(critics.parameters(), self.max_grad_norm)
                critics.optimizer.step()
                losses.append(loss.detach())
        return torch.stack(losses).mean(0).cpu().numpy()

    def _bound(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Actions that the environment takes, of those that the policy has sampled."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        bounded: npt.NDArray[Any] = np.clip(actions, self.action_space.low, self.action_space.high)
        return bounded

    def _add_futures(
        self,
        rewards: npt.NDArray[Any],
        futures: npt.NDArray[np.float32],
        ended: npt.NDArray[np.intp],
        infos: Sequence[Mapping[str, Any]],
    ) -> npt.NDArray[Any]:
        """Rewards with γ times the value of where truncated episodes stopped.

        Args:
            rewards: Rewards, (n_envs,).
            futures: Where those of the constraints are put, (n_envs, m).
            ended: The environments whose episodes have ended.
            infos: Infos of all environments.

        Returns:
            The rewards, (n_envs,).
        """
        rows = [
            i
            for i in ended
            if infos[i].get("TimeLimit.truncated", False)
            and infos[i].get("terminal_observation") is not None
        ]
        if not rows:
            return rewards
        reached = [infos[i]["terminal_observation"] for i in rows]
        stacked: Any = (
            {name: np.stack([each[name] for each in reached]) for name in reached[0]}
            if isinstance(reached[0], Mapping)
            else np.stack(reached)
        )
        given, _ = self.policy.obs_to_tensor(stacked)
        with torch.no_grad():
            values = self.policy.predict_values(given)
            if self.cost_critics is not None:
                futures[rows] = self.gamma * self.cost_critics(given).cpu().numpy()
        found = np.array(rewards)
        found[rows] += self.gamma * values.cpu().numpy().flatten()
        return found

    def _value(self, observations: Any, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
        """Values of a rollout's observations, (T, n_envs, m)."""
        count = shape[0] * shape[1]
        found = np.empty((count, shape[2]), np.float32)
        if self.cost_critics is None:
            return found.reshape(shape)
        with torch.no_grad():
            for begin in range(0, count, _LARGEST_BATCH):
                rows = slice(begin, begin + _LARGEST_BATCH)
                given = obs_as_tensor(_take(observations, rows), self.device)
                found[rows] = self.cost_critics(given).cpu().numpy()
        return found.reshape(shape)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, variables = super()._get_torch_save_params()
        own = [] if self.cost_critics is None else ["cost_critics", "cost_critics.optimizer"]
        return [*modules, *own], variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_rollout", "_read"]


def _flatten(observations: Any) -> Any:
    """Observations (T, n_envs, …) as (T·n_envs, …), for each entry of a dictionary."""
    if isinstance(observations, Mapping):
        return {name: _flatten(value) for name, value in observations.items()}
    return observations.reshape(-1, *observations.shape[2:])


def _take(observations: Any, rows: Any) -> Any:
    if isinstance(observations, Mapping):
        return {name: value[rows] for name, value in observations.items()}
    return observations[rows]
