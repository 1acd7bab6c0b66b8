"""Several actions for one observation: a policy that reads it once, and a buffer that knows.

Where actions are compared on the same observation, a network that reads it anew for each of them
does the same work several times, in every pass over a rollout and back.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from isac_gym.validation import not_allowed

__all__ = ["EpisodeRolloutBuffer", "RepeatingPolicy"]

_FLATTENED = ("observations", "actions", "values", "log_probs", "advantages", "returns")


class RepeatingPolicy(ActorCriticPolicy):
    """A Gaussian policy that takes several actions for each observation.

    Arguments as of Stable-Baselines3's ``ActorCriticPolicy``.
    """

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log probabilities of actions, and entropies; see Stable-Baselines3.

        Args:
            obs: Observations, (n, …).
            actions: Actions, (n, A), or (n·r, A) with the r of an observation one after another.
                With r > 1 the critic is not asked: its values are 0.

        Returns:
            Values (n·r, 1), log probabilities (n·r,), and entropies (n,).

        Raises:
            ValueError: If the number of actions is no multiple of that of the observations, or the
                policy is not Gaussian, with r > 1.
        """
        if not isinstance(obs, Tensor) or len(obs) == len(actions):
            return super().evaluate_actions(obs, actions)
        if not len(obs) or not len(actions) or len(actions) % len(obs):
            raise not_allowed("actions", tuple(actions.shape), f"a multiple of {len(obs)} of them")
        repeats = len(actions) // len(obs)
        found = copy.copy(self.get_distribution(obs))
        if not isinstance(found, DiagGaussianDistribution):
            raise not_allowed("action_dist", type(found).__name__, "a Gaussian")
        entropy = found.entropy()
        held = found.distribution
        mean, deviation = (x.repeat_interleave(repeats, 0) for x in (held.mean, held.stddev))
        found.distribution = torch.distributions.Normal(mean, deviation)
        return actions.new_zeros(len(actions), 1), found.log_prob(actions), entropy


class EpisodeRolloutBuffer(RolloutBuffer):
    """A rollout whose minibatches are whole episodes, with an observation each.

    That is where all environments' episodes begin together, are equally long, divide the rollout
    and show the same observation at every step. Otherwise it is as that of Stable-Baselines3. For a
    :class:`RepeatingPolicy`; arguments as of ``RolloutBuffer``.
    """

    _repeats: int = 1

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Minibatches in random order.

        Args:
            batch_size: Transitions of each, rounded down to whole episodes, but one at least; None
                makes one minibatch of all.
        """
        assert self.full
        if not self.generator_ready:
            self._repeats = _count_repeats(self.observations, self.episode_starts)
        if self._repeats == 1:
            yield from super().get(batch_size)
            return
        if not self.generator_ready:
            for name in _FLATTENED:  # environment after environment, so episode after episode
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        total = self.buffer_size * self.n_envs
        together = max(1, (batch_size or total) // self._repeats)
        order = np.random.permutation(total // self._repeats)  # noqa: NPY002  (seeded by the library)
        for begin in range(0, len(order), together):
            first = order[begin : begin + together, None] * self._repeats
            yield self._get_samples((first + np.arange(self._repeats)).ravel())

    def _get_samples(self, batch_inds: npt.NDArray[np.intp], env: Any = None) -> Any:
        if self._repeats == 1:
            return super()._get_samples(batch_inds, env)
        data = (
            self.observations[batch_inds[:: self._repeats]],
            self.actions[batch_inds].astype(np.float32, copy=False),
            *(
                getattr(self, name)[batch_inds].ravel()
                for name in ("values", "log_probs", "advantages", "returns")
            ),
        )
        return RolloutBufferSamples(*(self.to_torch(each) for each in data))


def _count_repeats(observations: npt.NDArray[Any], starts: npt.NDArray[Any]) -> int:
    """Steps that each observation (T, n_envs, …) of a rollout is shown for; 1 if they differ."""
    steps = len(observations)
    begins = np.array(starts, np.bool_)
    begins[0] = True
    together = begins.all(1)
    if (begins.any(1) != together).any():
        return 1
    length = steps // int(together.sum())
    expected = np.arange(steps) % length == 0
    if length < 2 or steps % length or (together != expected).any():
        return 1
    by_episode = observations.reshape(-1, length, *observations.shape[1:])
    return length if (by_episode == by_episode[:, :1]).all() else 1
