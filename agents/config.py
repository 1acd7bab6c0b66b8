"""Settings of the learning agents, and named sets of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from isac_gym.agents.duals import DualRule
from isac_gym.agents.unfolded import STAGES
from isac_gym.validation import choice, integer, not_allowed, real

__all__ = ["PRESETS", "AgentConfig", "Architecture"]

Architecture: TypeAlias = Literal["direct", "model_based", "unfolded"]

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
        architecture: ``"direct"``: a fully connected network whose outputs are the action.
            ``"model_based"``: one that sets a few numbers a user in formulas of known structure.
            ``"unfolded"``: a network over the graph of the users within unfolded steps of the
            joint design. The latter two have no formulas for ``control="amplitude"``, for which
            the policy is ``"direct"`` all the same.
        hidden_sizes: Widths of the hidden layers; None means the paper's 2K, 3K, 2K. Not for
            ``"unfolded"``.
        width: Length of a user's state; for ``"unfolded"`` alone.
        stages: Spacing of the angular grid in degrees and number of steps, of each stage of the
            waveform search; for ``"unfolded"`` alone.
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
        initial_multiplier: Multiplier of the sensing constraint to begin with.
        relative_constraints: Whether the multipliers weigh excess/limit; otherwise plain excess.
        snr_range_db: Least and largest SNR to train for, in dB; None means the scenario's alone.
            For ``"unfolded"`` alone.
        threshold_range: Least and largest ε to train for; None means the scenario's alone. For
            ``"unfolded"`` alone.
        calibration_channels: Channels on which the price of the sensing loss is settled after the
            training (:meth:`~isac_gym.agents.learner.LearningAgent.calibrate`); 0 leaves it as the
            training left it. For ``"unfolded"`` alone.

    Raises:
        ValueError: If a value is not allowed.
    """

    architecture: Architecture = "direct"
    hidden_sizes: tuple[int, ...] | None = None
    width: int = 32
    stages: tuple[tuple[float, int], ...] = STAGES
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
    initial_multiplier: float = 0.0
    relative_constraints: bool = False
    snr_range_db: tuple[float, float] | None = None
    threshold_range: tuple[float, float] | None = None
    calibration_channels: int = 0

    def __post_init__(self) -> None:
        choice("architecture", self.architecture, Architecture)
        choice("dual_rule", self.dual_rule, DualRule)
        for name in ("iterations", "batch_size", "width"):
            integer(name, getattr(self, name), 1)
        for name in ("warmup_iterations", "calibration_channels"):
            integer(name, getattr(self, name), 0)
        for name in _POSITIVE:
            real(name, getattr(self, name), "a finite number > 0", lambda value: value > 0)
        for name in ("dual_gain", "initial_multiplier"):
            real(name, getattr(self, name), "a finite number >= 0", lambda value: value >= 0)
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                allowed = "None or a finite number >= 0"
                real(name, getattr(self, name), allowed, lambda value: value >= 0)
        if self.gradient_clip == 0:
            raise not_allowed("gradient_clip", self.gradient_clip, "None or a finite number > 0")
        if self.dual_rule == "augmented" and self.dual_gain == 0:
            raise not_allowed("dual_gain", self.dual_gain, "> 0 for dual_rule 'augmented'")
        if not isinstance(self.relative_constraints, bool):
            raise not_allowed("relative_constraints", self.relative_constraints, "True or False")
        self._check_sequences()
        for name in _RANGES:
            if getattr(self, name) is not None:
                self._check_range(name)

    def _check_sequences(self) -> None:
        if self.hidden_sizes is not None:
            allowed = "None or a non-empty sequence of integers >= 1"
            if not isinstance(self.hidden_sizes, Sequence) or not self.hidden_sizes:
                raise not_allowed("hidden_sizes", self.hidden_sizes, allowed)
            sizes = tuple(integer("hidden_sizes", size, 1) for size in self.hidden_sizes)
            object.__setattr__(self, "hidden_sizes", sizes)
        allowed = "a non-empty sequence of (degrees >= 0.5 that divide 90, steps >= 1)"
        try:
            stages = tuple((float(degrees), steps) for degrees, steps in self.stages)
        except (TypeError, ValueError):
            raise not_allowed("stages", self.stages, allowed) from None
        for degrees, steps in stages:
            divides = degrees >= 0.5 and abs(90.0 / degrees - round(90.0 / degrees)) < 1e-9
            if not divides or not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
                raise not_allowed("stages", self.stages, allowed)
        if not stages:
            raise not_allowed("stages", self.stages, allowed)
        object.__setattr__(self, "stages", stages)

    def _check_range(self, name: str) -> None:
        bounds = getattr(self, name)
        allowed = "None or (least, largest), of magnitude 200 or less"
        if not isinstance(bounds, Sequence) or len(bounds) != 2:
            raise not_allowed(name, bounds, allowed)
        # Bounds on what a file can ask for: the grid of conditions grows with the range.
        low, high = (
            real(name, bound, allowed, lambda value: abs(value) <= 200) for bound in bounds
        )
        if low > high:
            raise not_allowed(name, bounds, allowed)
        if self.architecture != "unfolded":
            raise not_allowed(name, bounds, "None unless architecture is 'unfolded'")
        if not self.relative_constraints:
            raise not_allowed("relative_constraints", False, f"True with a {name}")
        object.__setattr__(self, name, (low, high))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; they are keyword arguments of the class."""
        fields = dataclasses.asdict(self)
        for name in ("hidden_sizes", *_RANGES):
            fields[name] = None if fields[name] is None else list(fields[name])
        return {**fields, "stages": [list(stage) for stage in self.stages]}


_TUNED = AgentConfig(
    architecture="unfolded",
    hidden_sizes=(256, 256),
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
        hidden_sizes=(256, 256),
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
