"""Advantages of several signals at once, and their mixture by multipliers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["compare_in_episodes", "estimate_advantages", "mix_advantages"]

Floats = npt.NDArray[np.float32]


def estimate_advantages(
    signals: Floats,
    values: Floats,
    last_values: Floats,
    starts: npt.NDArray[np.generic],
    dones: npt.NDArray[np.generic],
    gamma: float,
    gae_lambda: float,
) -> Floats:
    """Generalised advantages (Schulman et al., 2016) of m signals, each with its own critic.

    δ_t = c_t + γ·v_{t+1} - v_t and A_t = δ_t + γ·λ·A_{t+1}, both cut where an episode ends. With
    γ = 0 it is c_t - v_t.

    Args:
        signals: c, (T, n_envs, m); at truncations γ times the value of the last observation is
            already added.
        values: v, (T, n_envs, m).
        last_values: Values after the last step, (n_envs, m).
        starts: Whether an episode began with a step, (T, n_envs).
        dones: Whether one ended with the last step, (n_envs,).
        gamma: Discount γ.
        gae_lambda: λ of the generalised advantages.

    Returns:
        A, (T, n_envs, m).
    """
    if gamma == 0.0:
        return signals - values
    going = 1.0 - np.concatenate([starts[1:], dones[None]]).astype(np.float32)[..., None]
    following = np.concatenate([values[1:], last_values[None]])
    errors = signals + gamma * following * going - values
    found = np.empty_like(errors)
    ahead = np.zeros_like(last_values)
    for step in reversed(range(len(errors))):
        ahead = errors[step] + gamma * gae_lambda * going[step] * ahead
        found[step] = ahead
    return found


def compare_in_episodes(signals: Floats, starts: npt.NDArray[np.generic]) -> Floats:
    """How much more a step gave than the steps of its episode did on average.

    Where all steps of an episode meet the same observation and γ is 0, this is an advantage whose
    baseline is measured and not learned, (n-1)/n of what the mean over the other n-1 steps gives.

    Args:
        signals: c, (T, n_envs, m).
        starts: Whether an episode began with a step, (T, n_envs).

    Returns:
        c less its mean over the steps of the same episode among these, (T, n_envs, m).
    """
    steps, envs, count = signals.shape
    began = np.array(starts, np.bool_)
    began[0] = True
    # Episodes are numbered environment after environment.
    number = (np.cumsum(began.T.ravel()) - 1).reshape(envs, steps).T
    lengths = np.bincount(number.ravel())
    found = np.empty_like(signals)
    for index in range(count):
        sums = np.bincount(number.ravel(), weights=signals[..., index].ravel())
        found[..., index] = signals[..., index] - (sums / lengths)[number]
    return found


def mix_advantages(rewards: Floats, constraints: Floats, multipliers: Floats) -> Floats:
    """(A_r - Σ λ_i·A_i)/(1 + Σ λ_i), of advantages as they stand.

    Nothing is normalised before the mixture: normalised advantages of the reward and of a
    constraint would be mixed in units of their own spread, and λ would no longer be a reward per
    unit of the constraint.

    Args:
        rewards: A_r, of any shape.
        constraints: A_i, of that shape and one more axis (m,).
        multipliers: λ, (m,).

    Returns:
        The mixture, of the shape of ``rewards``.
    """
    weights = multipliers.astype(np.float32)
    mixed = (rewards - constraints @ weights) / (1.0 + weights.sum())
    return np.asarray(mixed, np.float32)
