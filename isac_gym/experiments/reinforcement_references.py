"""What agents of reinforcement learning are set beside, and the conditions that they meet."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from isac_gym.agents.loading import prepare_agent
from isac_gym.baselines import JointOracle, StructuredSearch
from isac_gym.channels import FileChannels, RayleighChannel
from isac_gym.evaluation.channel_set import EvaluationSet
from isac_gym.evaluation.judging import evaluate
from isac_gym.evaluation.provenance import provenance
from isac_gym.experiments.base import Experiment, Workspace, setting
from isac_gym.files import write_atomically
from isac_gym.policy import Policy
from isac_gym.reading import Real, open_file, read_json
from isac_gym.validation import not_allowed

__all__ = ["BEST_STRUCTURED", "Conditioned", "Reference"]

BEST_STRUCTURED: Final = "structured-expected"
_RECORDED: Final = "recorded, correlated antennas"
_SHIFTS: Final[Mapping[str, tuple[Mapping[str, Any], str | None]]] = {
    "Rician, 5 dB": ({}, "rician"),
    "Doppler 0.05": ({"doppler": 0.05}, None),
    "CSI error 0.1": ({"csi_error_variance": 0.1}, None),
    _RECORDED: ({}, "file"),
}
"""Conditions that agents were not trained for: fields of the scenario, and the channel model."""
_CORRELATION: Final = 0.7
_PRICE_CHANNELS: Final = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What a reference achieves on an evaluation set of E episodes of T blocks.

    Attributes:
        rates: Spectral efficiency of each block, (E, T), in bit/s/Hz.
        loss: Mean sensing loss.
    """

    rates: npt.NDArray[np.float64] = dataclasses.field(repr=False)
    loss: float

    @property
    def rate(self) -> float:
        """Mean spectral efficiency, in bit/s/Hz."""
        return float(self.rates.mean())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioned(Experiment):
    """An experiment whose agents meet other conditions too, beside references in each.

    A reference takes minutes. It is computed when it is first asked for, and kept in the folder of
    the run, so that one that goes on does not compute it again.

    Attributes:
        channels: Channels of every evaluation.
        evaluation_seed: Their seed.
    """

    channels: int = setting(1000, "Channels of every evaluation.", minimum=1)
    evaluation_seed: int = setting(7, "Their seed.", minimum=0)

    @property
    def conditions(self) -> list[str]:
        """The shifts that the scenario can have: it may hold one already."""
        scenario = self.scenario
        is_plain = self.channel_model is None and scenario.doppler is None
        return list(_SHIFTS) if is_plain and scenario.layout == "uniform" else []

    def shift(self, condition: str) -> tuple[Any, EvaluationSet]:
        """An environment of a condition, and the channels of its evaluation.

        Raises:
            ValueError: If there is no such condition.
        """
        if condition not in _SHIFTS:
            raise not_allowed("condition", condition, f"one of {', '.join(_SHIFTS)}")
        changes, model = _SHIFTS[condition]
        shifted = dataclasses.replace(self, scenario=self.scenario.replace(**changes))
        if model == "file":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "channels.npy"
                np.save(path, self._record_channels())
                made = dataclasses.replace(shifted, channel_model=FileChannels(path))
        else:
            made = dataclasses.replace(shifted, channel_model=model)
        env = made.make_env()
        return env, made.draw_channels(env, self.channels, self.evaluation_seed)

    def _record_channels(self) -> Any:
        """Rayleigh channels whose antennas are correlated, ρ to the power of their distance."""
        env = self.make_env()
        rng = np.random.default_rng(self.evaluation_seed)
        deployment = env.unwrapped.system.codec.deployment
        drawn = RayleighChannel().draw(rng, 4 * self.channels, deployment)
        antennas = np.arange(drawn.shape[-1])
        correlation = _CORRELATION ** np.abs(antennas[:, None] - antennas)
        return (drawn @ np.linalg.cholesky(correlation).T).astype(np.complex64)

    @property
    def reference_name(self) -> str:
        """What agents are set beside: the joint optimum, or WMMSE where the radar is fixed."""
        return "joint-expected" if self.scenario.radar == "learned" else "wmmse"

    def find_reference(self, env: Any, blocks: EvaluationSet, workspace: Workspace) -> Reference:
        """What agents are set beside: the joint optimum with ε kept on the mean, or WMMSE.

        The price of the joint optimum is found on the first of the channels, as agents see them.

        Args:
            env: The environment of a threshold or a condition.
            blocks: The channels of its evaluation.
            workspace: Where it is kept.

        Raises:
            ValueError: If what was kept is damaged, or no price keeps the threshold.
        """

        def make() -> Policy:
            if self.reference_name != "joint-expected":
                found: Policy = prepare_agent(self.reference_name, env).agent
                return found
            price = JointOracle(env, constraint="expected").find_price(_select_seen(blocks))
            return JointOracle(env, constraint="expected", price=price)

        return self._judge(self.reference_name, make, env, blocks, workspace)

    def find_best_structured(
        self, env: Any, blocks: EvaluationSet, workspace: Workspace
    ) -> Reference:
        """The best actions of structured control, with a price found as that of the reference.

        Arguments and errors as of :meth:`find_reference`.
        """

        def make() -> Policy:
            price = None
            if self.scenario.radar == "learned":
                price = StructuredSearch(env).find_price(_select_seen(blocks))
            return StructuredSearch(env, price=price)

        return self._judge(BEST_STRUCTURED, make, env, blocks, workspace)

    @functools.cached_property
    def _judged(self) -> dict[str, Reference]:
        return {}

    def _judge(
        self,
        name: str,
        make: Callable[[], Policy],
        env: Any,
        blocks: EvaluationSet,
        workspace: Workspace,
    ) -> Reference:
        """What a policy achieves, unless that is known from before."""
        # The channel model is known by the channels; one from a file has another path each time.
        made = provenance(env)
        parts = [made[key] for key in ("scenario", "constraints", "versions")]
        text = json.dumps([name, blocks.digest, _PRICE_CHANNELS, *parts], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = None if workspace.folder is None else workspace.folder / f"{name}-{key}.json"
        if key not in self._judged and path is not None and path.exists():
            self._judged[key] = _read_reference(path, blocks.channels.shape[:2])
        if key not in self._judged:
            workspace.say(f"{name}, ε {env.unwrapped.scenario.sensing_threshold:g}")
            result = evaluate(make(), env, blocks, name=name)
            found = Reference(result.sum_rates, result.constraints["sensing"].mean)
            self._judged[key] = found
            if path is not None:
                content = {"rates": found.rates.tolist(), "loss": found.loss}
                write_atomically(path, json.dumps(content).encode())
        return self._judged[key]


class _Kept(msgspec.Struct):
    """What the file of a reference holds."""

    rates: list[list[Real]]
    loss: Real


def _read_reference(path: Path, shape: tuple[int, ...]) -> Reference:
    """What an earlier run kept.

    Raises:
        ValueError: If the file is damaged.
    """
    with open_file(path, "damaged", advice="delete it to compute it anew") as file:
        kept = read_json(file, _Kept)
        rates = np.array(kept.rates, np.float64)
        if rates.shape != shape:
            raise ValueError(f"rates must be numbers of shape {shape}, got {rates.shape}")
        return Reference(rates, kept.loss)


def _select_seen(blocks: EvaluationSet) -> torch.Tensor:
    """The channels, as agents see them, that a price is found on: (n, J, J, K, M)."""
    seen = blocks.estimates.reshape(-1, *blocks.estimates.shape[2:])
    return torch.from_numpy(seen[:_PRICE_CHANNELS])
