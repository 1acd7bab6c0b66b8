"""Settings of reinforcement learning: what there is to set, and what is kept for an algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from isac_gym.validation import (
    LARGEST_INTEGER,
    check_flag,
    check_integer,
    check_real,
    not_allowed,
)

__all__ = [
    "ALGORITHMS",
    "KEPT",
    "ReinforcementSettings",
    "count_passes",
    "find_settings",
    "holds_channels",
    "is_on_policy",
]

ALGORITHMS: Final = (
    "ppo",
    "sac",
    "td3",
    "tqc",
    "ppo-lagrangian",
    "sac-lagrangian",
    "tqc-lagrangian",
)

_LARGEST_SIZES: Final = {"num_envs": 2**24, "batch_size": 2**24, "width": 2**14, "rounds": 1024}
_MOST: Final = 1e12
"""Bound on step sizes, weights and multipliers, which single precision is to hold."""


@dataclasses.dataclass(frozen=True)
class ReinforcementSettings:
    """Settings of an agent of reinforcement learning.

    An episode is a sequence of blocks with channels of their own, so that what is done in one block
    changes nothing in the next: a contextual bandit. Hence γ = 0, which is no setting.

    Attributes:
        timesteps: Blocks to learn from, over all environments.
        num_envs: Environments side by side.
        learning_rate: Step size of Adam to begin with.
        final_learning_rate: Step size at the end, reached linearly. A small one lets multipliers
            settle.
        batch_size: Blocks a gradient step, a divisor of ``num_envs·rollout_length``.
        rollout_length: Blocks of every environment between two updates; on-policy algorithms.
        epochs: Passes over these blocks; on-policy algorithms.
        repeats: Blocks that a channel is held for, a divisor of ``rollout_length``. What an action
            is worth is then measured against the other actions on its channel, not by critics; with
            1 there are critics. ``"ppo-lagrangian"`` alone.
        clip_range: Largest change of a probability ratio that is rewarded; on-policy algorithms.
        largest_divergence: Divergence (Kullback-Leibler) from the policy of the rollout at which,
            times 1.5, an update ends; on-policy algorithms. One that goes on can ruin the policy:
            as the deviation falls, equal steps diverge more.
        deviation: Standard deviation of the policy's numbers, which lie in [-1, 1], to begin with;
            on-policy algorithms. That of the noise of ``"td3"``.
        final_deviation: The same at the end. It falls with the logarithm's straight line, so that
            what was learned with noise holds for the policy without.
        gradient_steps: Gradient steps after each step of the environments; others.
        policy: ``"users"``: the same network for every user, where observations are features
            (:mod:`isac_gym.rl.equivariant` and :mod:`isac_gym.rl.equivariant_off_policy`), or the
            algorithm is on-policy and actions are precoders (:mod:`isac_gym.rl.precoding`);
            ``"mlp"``, and everywhere else: fully connected.
        width: Width of its layers.
        rounds: Rounds in which users are told of each other; the policy ``"users"``.
        shares_extractor: Whether policy and critic read observations by the same layers; the policy
            ``"users"`` of on-policy algorithms.
        value_weight: Weight of the critic's loss beside the policy's; on-policy algorithms.
        multiplier_step: Step size of the multipliers after a rollout, in bit/s/Hz; Lagrangian
            algorithms.
        multiplier_gain: Their proportional gain κ, in bit/s/Hz.
        initial_multiplier: Multiplier of the sensing constraint to begin with, in bit/s/Hz.
        penalty: Weight of the costs in the reward of algorithms that know no constraints; None
            takes the calibrated price of the scenario
            (:func:`~isac_gym.envs.wrappers.penalty.find_penalty_weight`).
        blocks_per_checkpoint: Blocks from one checkpoint to the next, about.

    Raises:
        ValueError: If a value is not allowed.
    """

    timesteps: int = 1_000_000
    num_envs: int = 1024
    learning_rate: float = 2e-3
    final_learning_rate: float = 2e-5
    batch_size: int = 2048
    rollout_length: int = 8
    epochs: int = 5
    repeats: int = 8
    clip_range: float = 0.2
    largest_divergence: float = 0.5
    deviation: float = 0.25
    final_deviation: float = 0.06
    gradient_steps: int = 8
    policy: str = "users"
    width: int = 48
    rounds: int = 2
    shares_extractor: bool = True
    value_weight: float = 0.5
    multiplier_step: float = 15.0
    multiplier_gain: float = 150.0
    initial_multiplier: float = 15.0
    penalty: float | None = None
    blocks_per_checkpoint: int = 200_000

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in (
            "timesteps",
            "num_envs",
            "batch_size",
            "rollout_length",
            "epochs",
            "repeats",
            "gradient_steps",
            "width",
            "rounds",
            "blocks_per_checkpoint",
        ):
            least = 2 if name == "batch_size" else 1
            most = _LARGEST_SIZES.get(name, LARGEST_INTEGER)
            put(name, check_integer(name, getattr(self, name), least, most))
        for name in (
            "learning_rate",
            "final_learning_rate",
            "clip_range",
            "largest_divergence",
            "multiplier_step",
            "deviation",
            "final_deviation",
            "value_weight",
        ):
            allowed, value = "a finite number > 0", getattr(self, name)
            put(name, check_real(name, value, allowed, lambda x: x > 0, _MOST))
        for name in ("multiplier_gain", "initial_multiplier"):
            allowed, value = "a finite number >= 0", getattr(self, name)
            put(name, check_real(name, value, allowed, lambda x: x >= 0, _MOST))
        if self.penalty is not None:
            allowed = "None or a finite number >= 0"
            put("penalty", check_real("penalty", self.penalty, allowed, lambda x: x >= 0, _MOST))
        if self.num_envs * self.rollout_length % self.batch_size:
            raise not_allowed(
                "batch_size",
                self.batch_size,
                f"a divisor of num_envs·rollout_length = {self.num_envs * self.rollout_length}",
            )
        if not isinstance(self.policy, str) or self.policy not in ("users", "mlp"):
            raise not_allowed("policy", self.policy, "'users' or 'mlp'")
        put("policy", str(self.policy))
        put("shares_extractor", check_flag("shares_extractor", self.shares_extractor))


_STRUCTURED: Final[Mapping[str, Any]] = {
    "timesteps": 1_000_000,
    "learning_rate": 1.7e-3,
    "final_learning_rate": 1.7e-5,
    "batch_size": 512,
    "epochs": 6,
    "clip_range": 0.375,
    "deviation": 0.335,
    "final_deviation": 0.048,
    "width": 32,
}

_OFF_POLICY: Final[Mapping[str, Any]] = {
    "timesteps": 300_000,
    "num_envs": 256,
    "learning_rate": 3e-3,
    "final_learning_rate": 3e-5,
    "batch_size": 256,
    "gradient_steps": 4,
    "width": 32,
    "rounds": 1,
}
# A critic's errors saturate a policy without entropy, which then learns nothing more.
_WITHOUT_ENTROPY: Final[Mapping[str, Any]] = {
    **_OFF_POLICY,
    "learning_rate": 1e-3,
    "final_learning_rate": 1e-5,
    "gradient_steps": 8,
    "deviation": 0.2,
}

KEPT: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    **{
        (algorithm, control): _WITHOUT_ENTROPY if algorithm == "td3" else _OFF_POLICY
        for algorithm in ("sac", "td3", "tqc")
        for control in ("structured", "power")
    },
    ("ppo-lagrangian", "structured"): _STRUCTURED,
    ("ppo-lagrangian", "power"): {
        "timesteps": 600_000,
        "learning_rate": 1.2e-3,
        "final_learning_rate": 1.2e-5,
        "batch_size": 512,
        "epochs": 9,
        "clip_range": 0.36,
        "deviation": 0.27,
        "final_deviation": 0.036,
        "width": 32,
    },
    # Better at this length than the best of a search of its own.
    ("ppo-lagrangian", "beamforming"): {**_STRUCTURED, "timesteps": 1_500_000},
}
"""Settings by algorithm and control mode, as far as they are others than the defaults.

``isac-gym study rl-tuning`` searches for better ones; what it tried is in ``docs/trials``. SAC and
TQC were not bettered by it; TD3's are near the best that keeps ε. SAC's and TQC's Lagrangians have
the settings of the plain algorithms, with which multipliers are stepped every 2048 blocks.
"""


def find_settings(algorithm: str, control: str, **changes: Any) -> ReinforcementSettings:
    """The settings that are kept for an algorithm and a control mode.

    Args:
        algorithm: One of :data:`ALGORITHMS`. A Lagrangian has those of the plain algorithm, and
            that those of the Lagrangian, where only the other was tuned.
        control: Control mode of the scenario.
        **changes: Fields to change.

    Raises:
        TypeError: If there is no such setting.
        ValueError: If a value is not allowed.
    """
    plain = algorithm.removesuffix("-lagrangian")
    known = [field.name for field in dataclasses.fields(ReinforcementSettings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise TypeError(f"unknown setting(s) {unknown}; allowed are {known}")
    held = (KEPT.get((name, control)) for name in (algorithm, f"{plain}-lagrangian", plain))
    found = ReinforcementSettings(**{**next(filter(None, held), {}), **changes})
    if holds_channels(algorithm, found) and found.rollout_length % found.repeats:
        allowed = f"a divisor of rollout_length = {found.rollout_length}"
        raise not_allowed("repeats", found.repeats, allowed)
    return found


def is_on_policy(algorithm: str) -> bool:
    """Whether an algorithm learns from what the present policy does alone."""
    return algorithm.startswith("ppo")


def holds_channels(algorithm: str, settings: ReinforcementSettings) -> bool:
    """Whether several actions are tried on a channel, and compared."""
    return algorithm == "ppo-lagrangian" and settings.repeats > 1


def count_passes(algorithm: str, settings: ReinforcementSettings) -> float:
    """How often gradient steps ask the network for a block, on average.

    Where a channel is held it is asked once for all blocks on it.
    """
    if is_on_policy(algorithm):
        held = settings.repeats if holds_channels(algorithm, settings) else 1
        return settings.epochs / held
    return settings.gradient_steps * settings.batch_size / settings.num_envs
