"""Settings of the learning agents, and named sets of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from isac_gym.learning.multipliers import DualRule
from isac_gym.scenario import LARGEST_SIZE
from isac_gym.validation import (
    LARGEST_INTEGER,
    check_choice,
    check_flag,
    check_integer,
    check_real,
    not_allowed,
)

__all__ = ["DISTRIBUTED_PRESETS", "PRESETS", "AgentConfig"]

_POSITIVE = (
    "learning_rate",
    "dual_step_size",
)
_OPTIONAL = ("final_learning_rate", "final_dual_step_size", "gradient_clip")
_LARGEST_BATCH: Final = 2**24
_MOST: Final = 1e12
"""Bound on step sizes and multipliers, which single precision is to hold with their products."""


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Settings of a learning agent.

    Attributes:
        architecture: Name of a registered network, or ``module:Class``. Where it has no formulas
            for the scenario's control mode (``"model_based"`` and ``"unfolded"`` for
            ``"amplitude"``), the network is ``"direct"`` all the same.
        options: Settings of networks by name, such as ``hidden_sizes`` of ``"direct"`` or
            ``stages`` of ``"unfolded"``; each network takes those that it knows. As keyword
            arguments of an agent they stand beside the other settings.
        iterations: Gradient steps.
        batch_size: Blocks a step.
        learning_rate: Step size of Adam.
        final_learning_rate: Step size at the end, reached by a cosine; None keeps it constant.
        warmup_iterations: Iterations in which the step size rises to its full value.
        gradient_clip: Largest norm of a gradient; None does not clip.
        dual_rule: How multipliers are raised: ``"ascent"``, ``"augmented"``, ``"pi"``, or
            ``"none"``: not at all.
        dual_step_size: Step size η of the multipliers.
        final_dual_step_size: Its value at the end, reached by a cosine; None keeps it constant.
        dual_gain: Penalty ρ of ``"augmented"``, proportional gain κ of ``"pi"``.
        priced_constraint: Name of the constraint whose price the network is told; None means the
            one that says so of itself, which is the sensing loss.
        initial_multiplier: Multiplier of the priced constraint to begin with.
        relative_constraints: Whether the multipliers weigh excess/limit; otherwise plain excess.
        snr_range_db: Least and largest SNR to train for, in dB; None means the scenario's alone.
            For networks that are told a price.
        threshold_range: Least and largest limit of the priced constraint to train for; None means
            the scenario's alone. For networks that are told a price.
        calibration_channels: Channels on which the price is settled after the training
            (:meth:`~isac_gym.learning.agent.LearningAgent.calibrate`); 0 leaves it as the training
            left it. Only networks that are told a price have one.
        gain_range: Least and largest mean power of the paths between cells to train for, within
            [1e-12, 1e6], drawn for each block, uniformly in its logarithm; None means the
            scenario's alone.
        price_spread: Largest factor by which the price of a block is more or less than the
            multiplier's, drawn for each block, uniformly in its logarithm: a network that has met
            other prices knows what they mean. 1 means the multiplier's alone.
        more_cells: Numbers of stations to train for beside the scenario's, which may be among them
            once more; one of all is drawn for each batch. They have the scenario's targets in turn.

    Raises:
        ValueError: If a value is not allowed.
    """

    architecture: str = "direct"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    iterations: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-4
    final_learning_rate: float | None = None
    warmup_iterations: int = 0
    gradient_clip: float | None = None
    dual_rule: DualRule = "ascent"
    dual_step_size: float = 1e-4
    final_dual_step_size: float | None = None
    dual_gain: float = 1.0
    priced_constraint: str | None = None
    initial_multiplier: float = 0.0
    relative_constraints: bool = False
    snr_range_db: tuple[float, float] | None = None
    threshold_range: tuple[float, float] | None = None
    calibration_channels: int = 0
    gain_range: tuple[float, float] | None = None
    price_spread: float = 1.0
    more_cells: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if not isinstance(self.architecture, str):
            raise not_allowed("architecture", self.architecture, "the name of a network")
        put("architecture", str(self.architecture))
        if not (self.priced_constraint is None or isinstance(self.priced_constraint, str)):
            raise not_allowed("priced_constraint", self.priced_constraint, "None or a name")
        if self.priced_constraint is not None:
            put("priced_constraint", str(self.priced_constraint))
        if not isinstance(self.options, Mapping):
            raise not_allowed("options", self.options, "a mapping of settings of networks")
        put("options", {str(k): _freeze(str(k), v) for k, v in self.options.items()})
        put("dual_rule", check_choice("dual_rule", self.dual_rule, DualRule))
        put("iterations", check_integer("iterations", self.iterations, 1))
        put("batch_size", check_integer("batch_size", self.batch_size, 1, _LARGEST_BATCH))
        for name in ("warmup_iterations", "calibration_channels"):
            put(name, check_integer(name, getattr(self, name), 0))
        for name in _POSITIVE:
            put(name, _check_positive(name, getattr(self, name)))
        for name in ("dual_gain", "initial_multiplier"):
            put(name, _check_at_least_0(name, getattr(self, name)))
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                allowed = "None or a finite number >= 0"
                put(name, _check_at_least_0(name, getattr(self, name), allowed))
        if self.gradient_clip == 0:
            raise not_allowed("gradient_clip", self.gradient_clip, "None or a finite number > 0")
        if self.dual_rule == "augmented" and self.dual_gain == 0:
            raise not_allowed("dual_gain", self.dual_gain, "> 0 for dual_rule 'augmented'")
        spread = check_real("price_spread", self.price_spread, "a number in [1, 100]", _is_spread)
        put("price_spread", spread)
        if not isinstance(self.more_cells, Sequence) or isinstance(self.more_cells, str):
            raise not_allowed("more_cells", self.more_cells, "a sequence of integers >= 1")
        cells = (check_integer("more_cells", n, 1, LARGEST_SIZE) for n in self.more_cells)
        put("more_cells", tuple(cells))
        relative = check_flag("relative_constraints", self.relative_constraints)
        put("relative_constraints", relative)
        for name, allowed, is_allowed in (
            ("gain_range", "None or (least, largest), of positive numbers", _is_gain),
            ("snr_range_db", "None or (least, largest), of magnitude 100 or less", _is_level),
            ("threshold_range", "None or (least, largest), of magnitude 200 or less", _is_limit),
        ):
            given = getattr(self, name)
            if given is None:
                continue
            if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
                raise not_allowed(name, given, allowed)
            low, high = (check_real(name, bound, allowed, is_allowed) for bound in given)
            if low > high:
                raise not_allowed(name, given, allowed)
            if name != "gain_range" and not relative:
                raise not_allowed("relative_constraints", False, f"True with a {name}")
            put(name, (low, high))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; they are keyword arguments of the class."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def _check_positive(name: str, value: object) -> float:
    return check_real(name, value, "a finite number > 0", lambda x: x > 0, _MOST)


def _check_at_least_0(name: str, value: object, allowed: str = "a finite number >= 0") -> float:
    return check_real(name, value, allowed, lambda x: x >= 0, _MOST)


def _is_spread(value: float) -> bool:
    return 1.0 <= value <= 100.0


def _is_gain(value: float) -> bool:
    return 1e-12 <= value <= 1e6  # as intercell_gain


def _is_level(value: float) -> bool:
    return abs(value) <= 100  # as snr_db


def _is_limit(value: float) -> bool:
    # A bound on what a file can ask for: the grid of conditions grows with the range.
    return abs(value) <= 200


def _freeze(name: str, value: Any) -> Any:
    """A network's option as plain JSON types, with lists as tuples.

    So settings from a file equal those that were saved.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(name, entry) for entry in value)
    if isinstance(value, Mapping):
        return {str(key): _freeze(name, entry) for key, entry in value.items()}
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise not_allowed(name, value, "of magnitude 2^63 - 1 or less")
    if isinstance(value, float) and not math.isfinite(value):
        raise not_allowed(name, value, "finite")
    if not (value is None or isinstance(value, (bool, int, float, str))):
        raise not_allowed(name, value, "a number, a text, None, or a list or mapping of them")
    return value


_TUNED = AgentConfig(
    architecture="unfolded",
    options={"hidden_sizes": (256, 256)},
    iterations=500,
    batch_size=128,
    learning_rate=3e-3,
    final_learning_rate=3e-5,
    warmup_iterations=30,
    gradient_clip=5.0,
    dual_step_size=20.0,
    final_dual_step_size=4.0,
    initial_multiplier=20.0,
    relative_constraints=True,
    calibration_channels=4096,
)

PRESETS: Final[Mapping[str, AgentConfig]] = {
    "paper": AgentConfig(),
    "tuned": _TUNED,
    "wide": dataclasses.replace(
        _TUNED,
        iterations=3000,
        snr_range_db=(0.0, 20.0),
        threshold_range=(0.105, 0.18),
    ),
    "model-based": AgentConfig(
        architecture="model_based",
        options={"hidden_sizes": (256, 256)},
        iterations=2000,
        batch_size=128,
        learning_rate=5e-3,
        final_learning_rate=1e-4,
        dual_step_size=0.2,
        gradient_clip=5.0,
        relative_constraints=True,
    ),
}
"""``paper``: the settings of Section V to the letter. ``tuned``: what works best. ``wide``: the
same for a range of SNR and thresholds. ``model-based``: a fully connected network with model-based
outputs."""

_COOPERATIVE = dataclasses.replace(
    _TUNED,
    architecture="cooperative",
    options={},
    iterations=400,
    batch_size=48,
    learning_rate=1.5e-3,
    final_learning_rate=2e-5,
    gradient_clip=1.0,
    dual_step_size=5.0,
    final_dual_step_size=1.0,
    initial_multiplier=10.0,
    calibration_channels=1024,
)

DISTRIBUTED_PRESETS: Final[Mapping[str, AgentConfig]] = {
    "paper": dataclasses.replace(PRESETS["paper"], architecture="distributed-direct"),
    "tuned": _COOPERATIVE,
    "wide": dataclasses.replace(
        _COOPERATIVE,
        options={"train_bits": (0, 1, 2, 4, 8, 16, 32, None)},
        iterations=3000,
        gain_range=(0.01, 1.0),
        price_spread=2.0,
        more_cells=(2, 3, 4, 7),
    ),
}
"""The same of agents whose stations decide each by itself. ``paper``: Algorithm 2 with the settings
of Section V. ``tuned``: what works best. ``wide``: the same for any number of bits, a range of
couplings, and several numbers of stations."""
