"""Truncated quantile critics with a critic and a multiplier for each constraint."""

from __future__ import annotations

import torch
from torch import Tensor

from isac_gym.rl.buffers import ConstrainedSamples
from isac_gym.rl.equivariant_off_policy import UserActorCritic
from isac_gym.rl.sac import OffPolicyLagrangian

try:
    from sb3_contrib import TQC
    from sb3_contrib.common.utils import quantile_huber_loss
    from sb3_contrib.tqc.policies import TQCPolicy
except ImportError as error:
    raise ImportError("TQC needs sb3-contrib: pip install 'isac-gym[rl]'") from error

__all__ = ["TQC", "TQCLagrangian", "UserTQCPolicy"]


class UserTQCPolicy(UserActorCritic, TQCPolicy):
    """A policy of TQC that is the same for every user.

    See :class:`~isac_gym.rl.equivariant_off_policy.UserActorCritic`.
    """


class TQCLagrangian(OffPolicyLagrangian, TQC):
    """TQC of sb3-contrib on the Lagrangian of m constraints.

    The actor follows :func:`~isac_gym.rl.sac.find_actor_loss` with the mean of all quantiles of the
    reward (Kuznetsov et al., 2020) and a single critic of the mean for each constraint. What is
    truncated are quantiles of what follows an action; where γ is 0 nothing follows, and what is
    left is a critic of the distribution of rewards. Parameters, errors and attributes are those of
    :class:`~isac_gym.rl.sac.OffPolicyLagrangian`, and the settings those of ``TQC``.

    It logs what :class:`~isac_gym.rl.sac.SACLagrangian` does.
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
                critic = self.critic
                ahead = self.critic_target(data.next_observations, next_actions).flatten(1)
                dropped = self.top_quantiles_to_drop_per_net * critic.n_critics
                kept = ahead.sort(1).values[:, : critic.quantiles_total - dropped]
                kept = kept - ent_coef * next_log_probs
                targets = targets + (1.0 - data.dones) * self.gamma * kept
        found = self.critic(data.observations, data.actions)
        loss: Tensor = quantile_huber_loss(found, targets.unsqueeze(1), sum_over_quantiles=False)
        return loss

    def _value_actions(self, observations: Tensor, actions: Tensor) -> Tensor:
        found: Tensor = self.critic(observations, actions).mean((1, 2))
        return found.unsqueeze(1)
