"""Settings of the learning agents, and named sets of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from isac_gym.learning.multipliers import DualRule
from isac_gym.validation import check_choice, check_integer, check_real, not_allowed

__all__ = ["DISTRIBUTED_PRESETS", "PRESETS", "AgentConfig"]

_POSITIVE = (
    "learning_rate",
    "dual_step_size",
)
_OPTIONAL = ("final_learning_rate", "final_dual_step_size", "gradient_clip")
_RANGES = ("snr_range_db", "threshold_range")


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
        gain_range: Least and largest mean power of the paths between cells to train for, drawn
            for each block, uniformly in its logarithm; None means the scenario's alone.
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
        if not isinstance(self.architecture, str):
            raise not_allowed("architecture", self.architecture, "the name of a network")
        if not (self.priced_constraint is None or isinstance(self.priced_constraint, str)):
            raise not_allowed("priced_constraint", self.priced_constraint, "None or a name")
        if not isinstance(self.options, Mapping):
            raise not_allowed("options", self.options, "a mapping of settings of networks")
        object.__setattr__(self, "options", {k: _freeze(v) for k, v in self.options.items()})
        check_choice("dual_rule", self.dual_rule, DualRule)
        for name in ("iterations", "batch_size"):
            check_integer(name, getattr(self, name), 1)
        for name in ("warmup_iterations", "calibration_channels"):
            check_integer(name, getattr(self, name), 0)
        for name in _POSITIVE:
            check_real(name, getattr(self, name), "a finite number > 0", lambda value: value > 0)
        for name in ("dual_gain", "initial_multiplier"):
            check_real(name, getattr(self, name), "a finite number >= 0", lambda value: value >= 0)
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                allowed = "None or a finite number >= 0"
                check_real(name, getattr(self, name), allowed, lambda value: value >= 0)
        if self.gradient_clip == 0:
            raise not_allowed("gradient_clip", self.gradient_clip, "None or a finite number > 0")
        if self.dual_rule == "augmented" and self.dual_gain == 0:
            raise not_allowed("dual_gain", self.dual_gain, "> 0 for dual_rule 'augmented'")
        check_real("price_spread", self.price_spread, "a number in [1, 100]", _is_spread)
        if not isinstance(self.more_cells, Sequence) or isinstance(self.more_cells, str):
            raise not_allowed("more_cells", self.more_cells, "a sequence of integers >= 1")
        cells = tuple(check_integer("more_cells", value, 1) for value in self.more_cells)
        object.__setattr__(self, "more_cells", cells)
        if self.gain_range is not None:
            allowed = "None or (least, largest), of positive numbers"
            if not isinstance(self.gain_range, Sequence) or len(self.gain_range) != 2:
                raise not_allowed("gain_range", self.gain_range, allowed)
            low, high = (
                check_real("gain_range", bound, allowed, lambda value: value > 0)
                for bound in self.gain_range
            )
            if low > high:
                raise not_allowed("gain_range", self.gain_range, allowed)
            object.__setattr__(self, "gain_range", (low, high))
        if not isinstance(self.relative_constraints, bool):
            raise not_allowed("relative_constraints", self.relative_constraints, "True or False")
        for name in _RANGES:
            if getattr(self, name) is not None:
                self._check_range(name)

    def _check_range(self, name: str) -> None:
        bounds = getattr(self, name)
        allowed = "None or (least, largest), of magnitude 200 or less"
        if not isinstance(bounds, Sequence) or len(bounds) != 2:
            raise not_allowed(name, bounds, allowed)
        # Bounds on what a file can ask for: the grid of conditions grows with the range.
        low, high = (
            check_real(name, bound, allowed, lambda value: abs(value) <= 200) for bound in bounds
        )
        if low > high:
            raise not_allowed(name, bounds, allowed)
        if not self.relative_constraints:
            raise not_allowed("relative_constraints", False, f"True with a {name}")
        object.__setattr__(self, name, (low, high))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; they are keyword arguments of the class."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def _is_spread(value: float) -> bool:
    return 1.0 <= value <= 100.0


def _freeze(value: Any) -> Any:
    """Lists as tuples, so that settings from a file equal those that were saved."""
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


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
