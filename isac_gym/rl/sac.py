"""Soft actor-critic with a critic and a multiplier for each constraint, and its shared part."""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import polyak_update
from torch import Tensor

from isac_gym.rl.buffers import (
    ConstrainedDictReplayBuffer,
    ConstrainedReplayBuffer,
    ConstrainedSamples,
)
from isac_gym.rl.critics import ActionCostCritics
from isac_gym.rl.lagrangian import ConstraintForm, Lagrangian
from isac_gym.rl.multipliers import Multiplier
from isac_gym.validation import check_integer, not_allowed

__all__ = ["OffPolicyLagrangian", "SACLagrangian", "find_actor_loss"]


def find_actor_loss(
    log_probs: Tensor, rewards: Tensor, costs: Tensor, multipliers: Tensor, ent_coef: Tensor
) -> Tensor:
    """The mean of (α·log π - Q_r + Σ λ_i·Q_i)/(1 + Σ λ_i).

    The division keeps the gradients in bounds while multipliers grow. It is of the whole and not
    only of the action values: α is a reward per nat in the soft values of the reward's critic, and
    dividing those alone would weigh the entropy by α·(1 + Σ λ_i) against them, so that a fixed α
    would solve another problem for each λ, whose multiplier is not λ. Where α is learned to hold an
    entropy, the two differ by the scale of α alone.

    Args:
        log_probs: log π of n actions, (n, 1).
        rewards: Q_r, (n, 1).
        costs: Q_i, (n, m).
        multipliers: λ, (m,).
        ent_coef: α.

    Returns:
        Scalar tensor with gradient.
    """
    priced = (costs * multipliers).sum(1, keepdim=True)
    losses: Tensor = ent_coef * log_probs - rewards + priced
    return losses.mean() / (1.0 + multipliers.sum())


class OffPolicyLagrangian(Lagrangian, OffPolicyAlgorithm):
    """A soft actor-critic on the Lagrangian of m constraints, but for the critic of the reward.

    It stands before ``SAC``, or an algorithm with the same attributes as ``TQC`` of sb3-contrib,
    among the bases of a class, which says how its critic is fitted (:meth:`_find_critic_loss`) and
    read (:meth:`_value_actions`).

    The multipliers must move slowly against the critics and the actor, which follow them late; with
    too large a step they go round their optimum for long instead of into it.

    Args:
        policy: As of the algorithm.
        env: As of the algorithm.
        constraints: Names of entries of the info of a step, feasible where <= 0.
        multiplier: A :class:`~isac_gym.rl.multipliers.PlainMultiplier` or
            :class:`~isac_gym.rl.multipliers.PIDMultiplier` of which each constraint gets a copy, or
            a mapping with one for each; None for the former's defaults.
        constraint_form: ``"mean"``: the entries' means are kept <= 0; ``"hard"``: those of their
            positive parts.
        multiplier_interval: Transitions from one step of the multipliers to the next, at least;
            each takes the mean over those collected since the one before, and none from before
            ``learning_starts``, whose actions are not the policy's.
        reseed_rollouts: See :class:`~isac_gym.rl.lagrangian.Lagrangian`; a rollout is what
            ``train_freq`` says, which should be no less than an episode.
        settings: As of the algorithm, but for ``n_steps`` and ``optimize_memory_usage``.

    Raises:
        ValueError: If one of these is not allowed; in training, if an entry is missing or not
            finite.

    Attributes:
        multipliers: The multipliers by the names of the constraints.
        cost_critics: The constraints' critics.
    """

    critic: Any
    critic_target: Any
    ent_coef_optimizer: Any
    log_ent_coef: Any
    target_entropy: Any
    target_update_interval: int
    batch_norm_stats: list[Tensor]
    batch_norm_stats_target: list[Tensor]

    def __init__(
        self,
        policy: Any,
        env: Any,
        constraints: Sequence[str] = ("constraint_sensing",),
        *,
        multiplier: Multiplier | Mapping[str, Multiplier] | None = None,
        constraint_form: ConstraintForm = "mean",
        multiplier_interval: int = 100,
        reseed_rollouts: bool = False,
        **settings: Any,
    ) -> None:
        self.multiplier_interval = check_integer("multiplier_interval", multiplier_interval, 1)
        if not constraints:
            raise not_allowed("constraints", constraints, "different names, at least one")
        if settings.get("n_steps", 1) != 1:
            raise not_allowed("n_steps", settings["n_steps"], "1")
        super().__init__(
            policy, env, constraints, multiplier, constraint_form, reseed_rollouts, settings
        )

    @abc.abstractmethod
    def _find_critic_loss(
        self,
        data: ConstrainedSamples,
        next_actions: Tensor | None,
        next_log_probs: Tensor | None,
        ent_coef: Tensor,
    ) -> Tensor:
        """The loss of the reward's critic.

        Args:
            data: A minibatch.
            next_actions: The policy's actions in the next observations, (n, …); None with γ = 0.
            next_log_probs: Their log probabilities, (n, 1); None with γ = 0.
            ent_coef: α.
        """

    @abc.abstractmethod
    def _value_actions(self, observations: Any, actions: Tensor) -> Tensor:
        """Q_r as the actor follows it, (n, 1)."""

    def _setup_model(self) -> None:
        kind = (
            ConstrainedDictReplayBuffer
            if isinstance(self.observation_space, spaces.Dict)
            else ConstrainedReplayBuffer
        )
        if self.replay_buffer_class is None:
            self.replay_buffer_class = kind
        if not issubclass(self.replay_buffer_class, kind):
            raise not_allowed("replay_buffer_class", self.replay_buffer_class, f"a {kind.__name__}")
        self.replay_buffer_kwargs = {
            **self.replay_buffer_kwargs,
            "num_constraints": len(self.constraints),
        }
        super()._setup_model()
        critics = ActionCostCritics(self.policy, len(self.constraints), self.lr_schedule(1))
        self.cost_critics = critics
        self.cost_critics_target = copy.deepcopy(critics).requires_grad_(False)
        del self.cost_critics_target.optimizer
        if not hasattr(self, "_fresh"):
            self._fresh = (np.zeros(len(self.constraints)), 0)

    def collect_rollouts(self, env: Any, *args: Any, **kwargs: Any) -> Any:
        """Collect transitions and their constraints; see Stable-Baselines3."""
        self._begin_rollout(env)
        found = super().collect_rollouts(env, *args, **kwargs)
        if found.continue_training:
            self._end_rollout()
        return found

    def _store_transition(
        self,
        replay_buffer: Any,
        buffer_action: Any,
        new_obs: Any,
        reward: Any,
        dones: Any,
        infos: list[dict[str, Any]],
    ) -> None:
        constraints = self._read_constraints(infos)
        if self.num_timesteps - self.n_envs >= self.learning_starts:
            total, count = self._fresh
            self._fresh = (total + constraints.sum(0, np.float64), count + len(constraints))
        replay_buffer.put_constraints(constraints)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Raise the multipliers if it is time, then improve critics and policy.

        Args:
            gradient_steps: Minibatches.
            batch_size: Transitions n in each.
        """
        self._ascend_if_due()
        multipliers = torch.as_tensor(self._get_multipliers(), device=self.device)
        self.policy.set_training_mode(True)
        self.cost_critics.train(True)
        actor: Any = self.actor
        optimisers = [actor.optimizer, self.critic.optimizer, self.cost_critics.optimizer]
        if self.ent_coef_optimizer is not None:
            optimisers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimisers)
        assert self.replay_buffer is not None
        recorded: dict[str, list[Tensor]] = {}
        for step in range(gradient_steps):
            data: Any = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            if self.use_sde:
                actor.reset_noise()
            actions, log_probs = actor.action_log_prob(data.observations)
            log_probs = log_probs.reshape(-1, 1)
            ent_coef, ent_coef_loss = self._update_ent_coef(log_probs)

            next_actions, next_log_probs = None, None
            if self.gamma > 0:
                with torch.no_grad():
                    next_actions, next_log_probs = actor.action_log_prob(data.next_observations)
                    next_log_probs = next_log_probs.reshape(-1, 1)
            critic_loss = self._find_critic_loss(data, next_actions, next_log_probs, ent_coef)
            _descend(self.critic.optimizer, critic_loss)
            cost_losses = self._find_cost_losses(data, next_actions)
            _descend(self.cost_critics.optimizer, cost_losses.sum())

            actor_loss = find_actor_loss(
                log_probs,
                self._value_actions(data.observations, actions),
                self.cost_critics(data.observations, actions),
                multipliers,
                ent_coef,
            )
            _descend(actor.optimizer, actor_loss)
            if step % self.target_update_interval == 0:
                self._update_targets()
            losses = {"critic": critic_loss, "actor": actor_loss, "cost_value": cost_losses}
            losses |= {"ent_coef": ent_coef_loss} if ent_coef_loss is not None else {}
            for name, loss in losses.items():
                recorded.setdefault(f"{name}_loss", []).append(loss.detach())
            recorded.setdefault("ent_coef", []).append(ent_coef.reshape(()))
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._record("train/multiplier_", self._get_multipliers())
        means = {name: torch.stack(each).mean(0).cpu() for name, each in recorded.items()}
        self._record("train/cost_value_loss_", means.pop("cost_value_loss").numpy())
        for name, mean in means.items():
            self.logger.record(f"train/{name}", mean.item())

    def _ascend_if_due(self) -> None:
        total, count = self._fresh
        if count >= self.multiplier_interval:
            self._ascend(total / count)
            self._record("rollout/", total / count)
            self._fresh = (np.zeros_like(total), 0)

    def _update_ent_coef(self, log_probs: Tensor) -> tuple[Tensor, Tensor | None]:
        """α before its step, as Stable-Baselines3 has it, and the loss of that step."""
        if self.ent_coef_optimizer is None:
            return self.ent_coef_tensor, None  # type: ignore[attr-defined]
        ent_coef = torch.exp(self.log_ent_coef.detach())
        loss = -(self.log_ent_coef * (log_probs + self.target_entropy).detach()).mean()
        _descend(self.ent_coef_optimizer, loss)
        return ent_coef, loss

    def _find_cost_losses(self, data: ConstrainedSamples, next_actions: Tensor | None) -> Tensor:
        """Mean squared errors of the constraints' critics, (m,); no entropy is in their targets."""
        targets = data.constraints
        if next_actions is not None:
            with torch.no_grad():
                ahead = self.cost_critics_target(data.next_observations, next_actions)
                targets = targets + (1.0 - data.dones) * self.gamma * ahead
        found: Tensor = self.cost_critics(data.observations, data.actions)
        return (found - targets).square().mean(0)

    def _update_targets(self) -> None:
        polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)
        polyak_update(
            self.cost_critics.parameters(), self.cost_critics_target.parameters(), self.tau
        )

    def get_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See :meth:`Lagrangian.get_state`; it holds the replay buffer as well.

        Where γ is 0 next observations are left out: nothing is learned from them.
        """
        meta, tensors = super().get_state()
        total, count = self._fresh
        meta["fresh"] = {"total": total.tolist(), "count": count}
        buffer: Any = self.replay_buffer
        meta["replay"] = {"position": buffer.pos, "full": buffer.full}
        filled = buffer.buffer_size if buffer.full else buffer.pos
        for name, array in self._list_arrays().items():
            tensors[f"replay/{name}"] = torch.as_tensor(array[:filled].copy())
        return meta, tensors

    def set_state(self, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """See :meth:`Lagrangian.set_state`."""
        super().set_state(meta, tensors)
        buffer: Any = self.replay_buffer
        filled = buffer.buffer_size if meta["replay"]["full"] else meta["replay"]["position"]
        for name, array in self._list_arrays().items():
            array[:filled] = tensors[f"replay/{name}"].numpy()
        buffer.pos, buffer.full = meta["replay"]["position"], meta["replay"]["full"]
        self._fresh = (np.array(meta["fresh"]["total"]), int(meta["fresh"]["count"]))

    def _list_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of the replay buffer that something is learned from."""
        buffer: Any = self.replay_buffer
        return {
            name: array
            for name, array in buffer.list_arrays().items()
            if self.gamma > 0 or not name.startswith("next_observations")
        }

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, variables = super()._get_torch_save_params()
        own = ["cost_critics", "cost_critics_target", "cost_critics.optimizer"]
        return [*modules, *own], variables


class SACLagrangian(OffPolicyLagrangian, SAC):
    """SAC on the Lagrangian of m constraints.

    The actor follows :func:`find_actor_loss` with the lesser of the two critics of the reward and a
    single critic for each constraint. Parameters, errors and attributes are those of
    :class:`OffPolicyLagrangian`, and the settings those of ``SAC``.

    It logs ``rollout/<name>``, the mean of a constraint in its form over the transitions that the
    multipliers last saw, ``train/multiplier_<name>`` and ``train/cost_value_loss_<name>``, where
    name is that of the entry.
    """

    def _find_critic_loss(
        self,
        data: ConstrainedSamples,
        next_actions: Tensor | None,
        next_log_probs: Tensor | None,
        ent_coef: Tensor,
    ) -> Tensor:
        targets = data.rewards
        if next_actions is not None and next_log_probs is not None:
            with torch.no_grad():
                pair = torch.cat(self.critic_target(data.next_observations, next_actions), dim=1)
                ahead = pair.amin(1, keepdim=True) - ent_coef * next_log_probs
                targets = targets + (1.0 - data.dones) * self.gamma * ahead
        found = torch.stack(self.critic(data.observations, data.actions))
        return 0.5 * (found - targets).square().mean((1, 2)).sum()

    def _value_actions(self, observations: Any, actions: Tensor) -> Tensor:
        return torch.cat(self.critic(observations, actions), dim=1).amin(1, keepdim=True)


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
