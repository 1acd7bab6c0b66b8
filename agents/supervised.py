"""Supervised learning of a reference's solutions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final

import torch

from isac_gym.files import OutputInUseError
from isac_gym.learning.agent import LearningAgent
from isac_gym.learning.checkpoint import CheckpointError
from isac_gym.learning.labels import Labels, generate_labels, load_labels
from isac_gym.learning.losses import Imitation, TrainingLoss
from isac_gym.reading import make_file_error
from isac_gym.registry import AGENTS, make_agent, register_agent
from isac_gym.scenario import Scenario
from isac_gym.validation import check_integer

__all__ = ["Supervised"]

_SHARD: Final = 256
"""Labels a file: what a killed generation loses, and how often its progress shows."""


@contextmanager
def _blame_checkpoint(folder: Path) -> Iterator[None]:
    """Errors of the labels beside a checkpoint, as of the checkpoint itself."""
    try:
        yield
    except OutputInUseError:
        raise
    except ValueError as error:
        raise make_file_error(
            CheckpointError,
            folder,
            f"labels must be of this training ({error}); delete them to start anew, or choose "
            "another place for the checkpoint",
        ) from error


@register_agent(
    "supervised",
    "unfolded policy trained on the joint optimum's solutions",
    options={"preset": "tuned"},
    controls=("power", "beamforming"),
    learns=True,
    is_default=False,
    rank=66,
)
@register_agent(
    "supervised-paper",
    "the paper's network trained on WMMSE's solutions",
    options={"preset": "paper", "reference": "wmmse"},
    controls=("power", "beamforming"),
    learns=True,
    is_default=False,
    rank=67,
)
class Supervised(LearningAgent):
    """A network trained to do what a reference does (:class:`~isac_gym.learning.losses.Imitation`).

    Args:
        env: Environment, single, batched or wrapped, whose scenario and channel model are used.
        preset: Name of a preset (see :data:`~isac_gym.learning.config.PRESETS`).
        labels: Solutions to learn from: a data set of ``isac-gym labels`` or its folder. None
            generates them when they are first needed; those of a training that was killed are kept
            beside its checkpoint.
        reference: Agent that solves, if they are generated; None means ``"joint-expected"``, or
            ``"wmmse"`` (the paper's) if the radar is fixed.
        label_count: Blocks to generate.
        seed: Seed of the initial weights, of the batches and of generated labels.
        device: Torch device, or ``"auto"`` for CUDA if present.
        **settings: Fields of :class:`~isac_gym.learning.config.AgentConfig` to change.

    Raises:
        ValueError: If there is no such preset or reference, a setting is not allowed, or the labels
            are damaged or of another scenario.
        TypeError: If a setting is not a field.
    """

    kind: ClassVar[str] = "Supervised"
    saved_options: ClassVar[tuple[str, ...]] = ("reference", "label_count")

    def __init__(
        self,
        env: Any,
        preset: str = "tuned",
        *,
        labels: Labels | str | Path | None = None,
        reference: str | None = None,
        label_count: int = 4096,
        seed: int = 0,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(env, preset, seed=seed, device=device, **settings)
        if self.grid is not None:
            raise ValueError(
                "snr_range_db and threshold_range must be None for supervised learning, whose "
                f"labels are for one scenario, got {self.config.snr_range_db!r} and "
                f"{self.config.threshold_range!r}"
            )
        self._env = env
        default = "joint-expected" if self.scenario.radar == "learned" else "wmmse"
        self.reference = default if reference is None else reference
        allowed = [name for name, entry in AGENTS.entries().items() if entry.is_reference]
        if self.reference not in allowed:
            raise ValueError(f"reference must be one of {allowed}, got {reference!r}")
        self.label_count = check_integer("label_count", label_count, 1)
        self.labels = load_labels(labels) if isinstance(labels, (str, Path)) else labels
        if self.labels is not None:
            made_by = self.labels.manifest.get("agent")
            self.reference = made_by if made_by in allowed else default
            self.label_count = len(self.labels)
        if self.labels is not None and "scenario" in self.labels.manifest:
            made_for = Scenario.from_dict(self.labels.manifest["scenario"])
            for field in dataclasses.fields(Scenario):
                theirs, own = getattr(made_for, field.name), getattr(self.scenario, field.name)
                if theirs != own:
                    raise ValueError(f"labels must be for {field.name}={own!r}, got {theirs!r}")

    def _count_channels(self, iterations: int) -> int:
        """The labels, each of which it sees many times."""
        return self.label_count

    @property
    def has_price(self) -> bool:
        """The price that the labels were made at is not known to the policy."""
        return False

    @property
    def multiplier(self) -> torch.Tensor:
        """A constant: the labels fix what the constraint costs, so no price is settled."""
        return torch.full_like(super().multiplier, max(self.config.initial_multiplier, 1.0))

    def _prepare(
        self, progress_bar: bool, checkpoint: Path | None, intervals: Mapping[str, Any]
    ) -> None:
        if self.labels is not None:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress

        solver = make_agent(self.reference, self._env)
        with ExitStack() as stack:
            if checkpoint is None:
                folder = Path(stack.enter_context(TemporaryDirectory()))
            else:
                folder = checkpoint.with_suffix(".labels")
                stack.enter_context(_blame_checkpoint(folder))
            columns = ("{task.description}", BarColumn(20), MofNCompleteColumn())
            bar = stack.enter_context(Progress(*columns, disable=not progress_bar))
            task = bar.add_task(f"{self.title}: labels", total=self.label_count)
            generate_labels(
                solver,
                self._env,
                folder,
                self.label_count,
                name=self.reference,
                seed=self.seed,
                shard_size=_SHARD,
                extend=False,
                callback=lambda done: bar.update(task, completed=done),
            )
            self.labels = load_labels(folder)
            if checkpoint is not None:
                self._companions.add(folder)

    def _make_loss(self) -> TrainingLoss:
        assert self.labels is not None
        return Imitation(
            self.system, self.labels, self.config.batch_size, self.multiplier, self.priced
        )

    def _identify(self) -> dict[str, Any]:
        assert self.labels is not None
        manifest = json.dumps(self.labels.manifest, sort_keys=True)
        return {**super()._identify(), "labels": hashlib.sha256(manifest.encode()).hexdigest()}
