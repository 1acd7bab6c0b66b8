"""Imitation of a reference: its loss against the formula in NumPy, labels, training; no dual."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_agents import ARCHITECTURES, make, quick, same, weights
from torch import Tensor, nn

from isac_gym.agents import NoDual, PrimalDual, Supervised
from isac_gym.baselines import MRT, WMMSE, EqualPower
from isac_gym.evaluation.comparison import compare
from isac_gym.learning.archive import read_archive, write_archive
from isac_gym.learning.checkpoint import CheckpointError
from isac_gym.learning.labels import Labels, generate_labels, load_labels
from isac_gym.learning.losses import Imitation, LossValue
from isac_gym.learning.progress import TrainingProgress
from isac_gym.system.downlink import find_system

Complex = npt.NDArray[np.complex128]
SCENARIOS: list[dict[str, Any]] = [
    {},
    {"num_cells": 2},
    {"radar": "fixed"},
    {"control": "power"},
    {"csi_error_variance": 0.1},
]


def labels_for(env: Any, folder: Path, count: int = 24, name: str = "mrt") -> Labels:
    kind: Any = WMMSE if name == "wmmse" else MRT
    if env.unwrapped.scenario.control == "power":
        kind = EqualPower
    generate_labels(kind(env), env, folder, count, name=name)
    return load_labels(folder)


class Answers(nn.Module):
    """Given actions, in the order of the batch that a seed draws."""

    def __init__(self, actions: Tensor) -> None:
        super().__init__()
        self.actions = nn.Parameter(actions.clone())

    def forward(self, observation: Tensor, conditions: Any) -> Tensor:
        assert len(observation) == len(self.actions)
        return self.actions


def evaluated(
    env: Any, labels: Labels, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
) -> tuple[LossValue, Answers, npt.NDArray[np.int64]]:
    """The loss of the labels' own actions, or of their F and V after a change."""
    system = find_system(env)
    batch = 16
    imitation = Imitation(system, labels, batch, torch.ones(system.scenario.num_cells))
    index = np.random.default_rng(4).integers(len(labels), size=batch)
    actions = torch.from_numpy(labels.actions[index])
    if change is not None:
        precoders, streams = change(
            torch.from_numpy(labels.precoders[index]), torch.from_numpy(labels.streams[index])
        )
        learned = system.scenario.radar == "learned"
        actions = system.codec.encode(precoders=precoders, streams=streams if learned else None)
    network = Answers(actions)
    return imitation.evaluate(network, np.random.default_rng(4)), network, index


def by_hand(sent: Complex, wanted: Complex, R: Complex, target: Complex, learned: bool) -> float:
    """For one station, with P_C = 1 and the best phase of every user searched on a grid."""
    total = 0.0
    turns = np.exp(2j * np.pi * np.arange(2000) / 2000)
    for user in range(sent.shape[1]):
        distance = sent[:, user, None] - wanted[:, user, None] * turns
        total += (np.abs(distance) ** 2).sum(0).min()
    if learned:
        total += (np.abs(R - target) ** 2).sum() / (np.abs(target) ** 2).sum()
    return float(total)


def spun(precoders: Tensor, streams: Tensor) -> tuple[Tensor, Tensor]:
    """Another phase for every user and block, another rotation of the streams for every block."""
    rng = np.random.default_rng(6)
    lead, users = precoders.shape[:2], precoders.shape[-1]
    phases = torch.from_numpy(np.exp(2j * np.pi * rng.uniform(size=(*lead, 1, users))))
    count = streams.shape[-1]
    drawn = rng.normal(size=(2, *lead, count, count))
    unitary = torch.from_numpy(np.linalg.qr(drawn[0] + 1j * drawn[1])[0]).to(streams.dtype)
    return (precoders * phases).to(precoders.dtype), streams @ unitary


def disturbed(precoders: Tensor, streams: Tensor) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(7)

    def noise(like: Tensor, size: float) -> Tensor:
        drawn = rng.normal(0, size, (2, *like.shape))
        return torch.from_numpy(drawn[0] + 1j * drawn[1]).to(torch.complex64)

    return 0.7 * precoders + noise(precoders, 0.05), streams + noise(streams, 0.2)


# The loss


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_the_references_own_action_has_no_loss(tmp_path: Path, scenario: dict[str, Any]) -> None:
    env = make(**scenario)
    labels = labels_for(env, tmp_path)
    value, _, index = evaluated(env, labels, None)
    assert abs(value.loss.item()) < 1e-5
    np.testing.assert_allclose(value.sum_rate.detach(), labels.sum_rates[index], rtol=1e-4)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if "control" not in s], ids=str)
def test_phases_and_rotations_cost_nothing(tmp_path: Path, scenario: dict[str, Any]) -> None:
    env = make(**scenario)
    labels = labels_for(env, tmp_path)
    value, _, index = evaluated(env, labels, spun)
    assert abs(value.loss.item()) < 1e-5
    np.testing.assert_allclose(value.sum_rate.detach(), labels.sum_rates[index], rtol=1e-4)
    own, _, _ = evaluated(env, labels, None)
    for name, constraint in value.constraints.items():
        np.testing.assert_allclose(
            constraint.detach(), own.constraints[name].detach(), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if "control" not in s], ids=str)
def test_the_loss_is_that_of_the_formula(tmp_path: Path, scenario: dict[str, Any]) -> None:
    """P_C is 1 W in these scenarios."""
    env = make(**scenario)
    assert env.unwrapped.scenario.comm_power == 1.0
    labels = labels_for(env, tmp_path)
    value, network, index = evaluated(env, labels, disturbed)
    system = find_system(env)
    sent = system.codec.decode(network.actions.detach(), torch.from_numpy(labels.estimates[index]))
    learned = scenario.get("radar") != "fixed"
    losses = []
    for place, block in enumerate(index):
        V, W = sent.streams[place].numpy(), labels.streams[block]
        R, target = (x.astype(complex) @ x.conj().swapaxes(-1, -2) for x in (V, W))
        F, G = sent.precoders[place].numpy().astype(complex), labels.precoders[block]
        losses += [by_hand(F[j], G[j], R[j], target[j], learned) for j in range(len(F))]
    assert value.loss.item() == pytest.approx(np.mean(losses), rel=1e-3)
    assert value.loss.item() > 0.01


def test_the_power_scales_the_precoders_part(tmp_path: Path) -> None:
    """Twice the power at the same shape of F and V: the loss is the same."""
    losses = []
    for power in (1.0, 2.0):
        env = make(comm_power=power, radar="fixed")
        labels = labels_for(env, tmp_path / str(power))
        value, _, _ = evaluated(env, labels, lambda F, V: (0.5 * F, V))
        losses.append(value.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # Σ‖F/2 - F‖²/P with the full power in F.
    assert losses[0] == pytest.approx(0.25, rel=1e-4)


def test_the_gradient_is_finite_where_a_user_is_not_served(tmp_path: Path) -> None:
    """By the policy, by the reference, or by both."""
    env = make()
    labels = labels_for(env, tmp_path)
    precoders = labels.precoders.copy()
    precoders[::2, ..., 1] = 0
    labels = dataclasses.replace(labels, precoders=precoders)

    def unserved(F: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        F = F.clone()
        F[::3, ..., 1] = 0
        F[1::3, ..., 1] = 0.3
        return F, V

    value, network, index = evaluated(env, labels, unserved)
    served = np.abs(labels.precoders[index]).sum(2)[:, 0, 1] > 0
    mine = network.actions.detach()[:, 1].abs() > 0
    assert {(bool(a), bool(b)) for a, b in zip(served, mine, strict=True)} >= {
        (False, False),
        (True, False),
        (False, True),
    }
    value.loss.backward()
    gradient = network.actions.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_the_gradient_is_that_of_differences(tmp_path: Path) -> None:
    env = make()
    labels = labels_for(env, tmp_path)
    value, network, _ = evaluated(env, labels, disturbed)
    value.loss.backward()
    gradient = network.actions.grad
    assert gradient is not None
    system = find_system(env)
    imitation = Imitation(system, labels, 16, torch.ones(1))
    direction = torch.from_numpy(np.random.default_rng(8).normal(size=gradient.shape)).float()

    def along(step: float) -> float:
        moved = Answers(network.actions.detach() + step * direction)
        with torch.no_grad():
            return imitation.evaluate(moved, np.random.default_rng(4)).loss.item()

    slope = (along(2e-3) - along(-2e-3)) / 4e-3
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=2e-2)


def test_imitation_has_no_state(tmp_path: Path) -> None:
    env = make()
    imitation = Imitation(find_system(env), labels_for(env, tmp_path), 4, torch.ones(1))
    assert imitation.state_dict() == {}
    assert imitation.multipliers() == {}
    imitation.load_state_dict({})
    with pytest.raises(ValueError, match="sensing"):
        imitation.load_state_dict({"sensing": torch.zeros(1)})


def test_labels_of_other_dimensions_are_refused(tmp_path: Path) -> None:
    labels = labels_for(make(num_users=3), tmp_path)
    with pytest.raises(ValueError, match=r"\(n, 1, 1, 2, 8\).*\(24, 1, 1, 3, 8\)"):
        Imitation(find_system(make()), labels, 4, torch.ones(1))


# Training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_comes_closer_to_the_reference(tmp_path: Path, architecture: str) -> None:
    # The model-based policy has another waveform; its precoders are of the form of WMMSE's.
    formulas = architecture == "model_based"
    env = make(radar="fixed" if formulas else "learned")
    labels = labels_for(env, tmp_path, 32, "wmmse" if formulas else "mrt")
    rate = 2e-2 if formulas else 5e-3
    settings = {"architecture": architecture, "hidden_sizes": (48,), "learning_rate": rate}
    agent = quick(env, Supervised, labels=labels, batch_size=32, **settings)
    losses: list[float] = []
    rates: list[float] = []

    def note(progress: TrainingProgress) -> None:
        losses.append(progress.loss)
        rates.append(progress.sum_rate)

    agent.learn(150, callback=note)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
    if architecture == "direct":
        assert np.mean(rates[-10:]) > 1.2 * np.mean(rates[:3])
        # Few blocks are learned by heart.
        assert np.mean(rates[-10:]) == pytest.approx(labels.sum_rates.mean(), rel=0.05)


def test_what_is_learned_holds_for_other_channels(tmp_path: Path) -> None:
    env = make(radar="fixed")
    labels = labels_for(env, tmp_path, 512)
    settings: dict[str, Any] = {"hidden_sizes": (96,), "learning_rate": 5e-3, "batch_size": 64}
    start = quick(env, Supervised, labels=labels, **settings)
    agent = quick(env, Supervised, labels=labels, **settings).learn(300)
    table = compare({"start": start, "learned": agent, "mrt": MRT(env)}, env, channels=200)
    first, learned, reference = (
        table[name].spectral_efficiency for name in ("start", "learned", "mrt")
    )
    assert learned - first > 0.6 * (reference - first)


def test_multipliers_stay_and_nothing_is_calibrated(tmp_path: Path) -> None:
    env = make()
    labels = labels_for(env, tmp_path)
    agent = quick(
        env,
        Supervised,
        labels=labels,
        architecture="unfolded",
        initial_multiplier=3.0,
        calibration_channels=64,
    )
    before = agent.multipliers.values["sensing"].clone()
    agent.learn(4)
    assert not agent.has_price
    assert agent.multiplier.tolist() == [3.0]
    assert torch.equal(agent.multipliers.values["sensing"], before)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    env = make()
    labels = labels_for(env, tmp_path)
    first, second, other = (
        quick(env, Supervised, labels=labels, seed=seed).learn(8) for seed in (1, 1, 2)
    )
    assert same(first, second)
    assert not same(first, other)


def test_save_and_load(tmp_path: Path) -> None:
    env = make()
    agent = quick(env, Supervised, labels=labels_for(env, tmp_path / "labels")).learn(4)
    agent.save(tmp_path / "agent.zip")
    loaded = Supervised.load(tmp_path / "agent.zip", env)
    assert same(agent, loaded)
    observation = env.reset(seed=0)[0]
    np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])


def test_an_interrupted_training_goes_on_and_other_labels_are_refused(tmp_path: Path) -> None:
    env, checkpoint = make(), tmp_path / "training.zip"
    labels = labels_for(env, tmp_path / "labels")
    whole = quick(env, Supervised, labels=labels).learn(12)

    def interrupt(progress: TrainingProgress) -> None:
        if progress.iteration == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(env, Supervised, labels=labels).learn(
            12, callback=interrupt, checkpoint=checkpoint, checkpoint_every=4
        )
    more = labels_for(env, tmp_path / "more", 25)
    with pytest.raises(CheckpointError, match=r"another labels\b"):
        quick(env, Supervised, labels=more).learn(12, checkpoint=checkpoint)
    resumed = quick(env, Supervised, labels=tmp_path / "labels").learn(12, checkpoint=checkpoint)
    assert same(resumed, whole)


# Labels


def test_labels_given_or_in_a_folder_are_the_same(tmp_path: Path) -> None:
    env = make()
    labels = labels_for(env, tmp_path)
    agents = [
        quick(env, Supervised, labels=given).learn(5) for given in (labels, tmp_path, str(tmp_path))
    ]
    assert all(same(agents[0], other) for other in agents[1:])


def test_labels_are_generated_when_they_are_needed(tmp_path: Path) -> None:
    env = make()
    agent = quick(env, Supervised, reference="mrt", label_count=10, seed=3)
    assert agent.labels is None
    agent.learn(5)
    assert agent.labels is not None
    assert len(agent.labels) == 10
    assert agent.labels.manifest["agent"] == "mrt"
    generate_labels(MRT(env), env, tmp_path, 10, name="mrt", seed=3)
    np.testing.assert_array_equal(agent.labels.actions, load_labels(tmp_path).actions)
    assert same(agent, quick(env, Supervised, labels=tmp_path, seed=3).learn(5))


def test_generated_labels_outlive_a_killed_training(tmp_path: Path) -> None:
    """What is there already is not solved again; what is missing is."""
    env, checkpoint = make(), tmp_path / "training.zip"

    def agent() -> Supervised:
        made: Supervised = quick(env, Supervised, reference="mrt", label_count=600)
        return made

    def interrupt(progress: TrainingProgress) -> None:
        raise KeyboardInterrupt

    whole = agent().learn(4)
    with pytest.raises(KeyboardInterrupt):
        agent().learn(4, callback=interrupt, checkpoint=checkpoint)
    shards = sorted((tmp_path / "training.labels").glob("*.npz"))
    assert len(shards) == 3
    assert len(load_labels(tmp_path / "training.labels")) == 600
    lost = shards[1].read_bytes()
    shards[1].unlink()
    written = [shard.stat().st_mtime_ns for shard in (shards[0], shards[2])]
    resumed = agent().learn(4, checkpoint=checkpoint)
    assert same(resumed, whole)
    assert [shard.stat().st_mtime_ns for shard in (shards[0], shards[2])] == written
    assert shards[1].read_bytes() == lost
    resumed.forget_checkpoint(checkpoint)
    assert list(tmp_path.iterdir()) == []


def killed(env: Any, checkpoint: Path, **options: Any) -> None:
    """Leaves a checkpoint and labels behind."""

    def interrupt(progress: TrainingProgress) -> None:
        if progress.iteration == 3:
            raise KeyboardInterrupt

    agent = quick(env, Supervised, reference="mrt", **options)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(5, callback=interrupt, checkpoint=checkpoint, checkpoint_every=1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"label_count": 11}, "count must be 10"),
        ({"label_count": 9}, "count must be 10"),
        ({"reference": "zf"}, "agent='mrt'"),
        ({"seed": 1}, "seed"),
        ({"batch_size": 4}, "config"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_another_supervised_training_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    env, checkpoint = make(), tmp_path / "training.zip"
    killed(env, checkpoint, label_count=10)
    content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = quick(env, Supervised, **{"reference": "mrt", "label_count": 10, **change})
    with pytest.raises(CheckpointError, match=name):
        other.learn(5, checkpoint=checkpoint)
    assert {path: path.read_bytes() for path in content} == content
    resumed = quick(env, Supervised, reference="mrt", label_count=10)
    resumed.learn(5, checkpoint=checkpoint)
    assert same(resumed, quick(env, Supervised, reference="mrt", label_count=10).learn(5))


def test_a_foreign_checkpoint_is_refused_before_labels_are_made(tmp_path: Path) -> None:
    env, checkpoint = make(), tmp_path / "training.zip"
    quick(env).learn(2, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=r"another agent\b"):
        quick(env, Supervised, reference="mrt").learn(2, checkpoint=checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["training.zip"]


def test_damaged_labels_beside_a_checkpoint_are_named(tmp_path: Path) -> None:
    env, checkpoint = make(), tmp_path / "training.zip"
    killed(env, checkpoint, label_count=10)
    shard = next((tmp_path / "training.labels").glob("*.npz"))
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=rf"{shard.name}.*delete them to start anew"):
        quick(env, Supervised, reference="mrt", label_count=10).learn(5, checkpoint=checkpoint)


def test_only_what_a_training_made_is_removed(tmp_path: Path) -> None:
    """Neither another training's labels, nor given ones, wherever they are."""
    env, checkpoint = make(), tmp_path / "training.zip"
    killed(env, checkpoint, label_count=10)
    checkpoint.unlink()
    plain = quick(env).learn(2, checkpoint=checkpoint)
    plain.forget_checkpoint(checkpoint)
    assert len(load_labels(tmp_path / "training.labels")) == 10
    given = quick(env, Supervised, labels=tmp_path / "training.labels")
    given.learn(2, checkpoint=checkpoint)
    given.forget_checkpoint(checkpoint)
    assert len(load_labels(tmp_path / "training.labels")) == 10
    assert not checkpoint.exists()


def test_where_given_labels_come_from_is_saved(tmp_path: Path) -> None:
    labels = labels_for(make(), tmp_path / "labels", 12)
    quick(make(), Supervised, labels=labels, reference="zf").save(tmp_path / "agent.zip")
    loaded = Supervised.load(tmp_path / "agent.zip")
    assert (loaded.reference, loaded.label_count) == ("mrt", 12)


@pytest.mark.parametrize(
    "options",
    [
        {"reference": "zf", "label_count": "seven"},
        {"reference": "zf", "label_count": -1},
        {"reference": "no-such", "label_count": 7},
        {"reference": ["zf"], "label_count": 7},
        {"reference": "zf"},
        {},
        None,
    ],
    ids=str,
)
def test_tampered_options_are_refused_by_name(tmp_path: Path, options: Any) -> None:
    path = tmp_path / "agent.zip"
    quick(make(), Supervised, reference="zf", label_count=7).save(path)
    meta, tensors = read_archive(path, "Supervised")
    del meta["format"], meta["format_version"]
    assert meta["options"] == {"reference": "zf", "label_count": 7}
    write_archive(path, {**meta, "options": options}, tensors)
    with pytest.raises(ValueError, match=r"agent\.zip"):
        Supervised.load(path)


def test_where_labels_come_from_is_saved(tmp_path: Path) -> None:
    agent = quick(make(), Supervised, reference="zf", label_count=7)
    agent.save(tmp_path / "agent.zip")
    loaded = Supervised.load(tmp_path / "agent.zip")
    assert (loaded.reference, loaded.label_count) == ("zf", 7)
    assert loaded.learn(1).labels is not None
    assert loaded.labels is not None
    assert loaded.labels.manifest["agent"] == "zf"
    assert len(loaded.labels) == 7


def test_the_generation_of_labels_shows_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    quick(make(), Supervised, reference="mrt", label_count=5).learn(2, progress_bar=True)
    shown = capsys.readouterr().out
    assert "labels" in shown
    assert "5/5" in shown
    assert "2/2" in shown


@pytest.mark.parametrize(
    ("radar", "reference"), [("learned", "joint-expected"), ("fixed", "wmmse")]
)
def test_the_default_reference(radar: str, reference: str) -> None:
    agent = quick(make(radar=radar), Supervised, label_count=2)
    assert agent.reference == reference


def test_generated_labels_of_the_default_reference_for_a_fixed_radar() -> None:
    agent = quick(make(radar="fixed"), Supervised, label_count=4).learn(2)
    assert agent.labels is not None
    assert agent.labels.manifest["agent"] == "wmmse"
    assert len(agent.labels) == 4


@pytest.mark.parametrize(
    ("scenario", "name"),
    [
        ({"snr_db": 3.0}, "snr_db=10.0.*3.0"),
        ({"num_users": 3}, "num_users=2.*3"),
        ({"sensing_threshold": 0.2}, r"sensing_threshold=0\.16.*0\.2"),
        ({"control": "power"}, "control='beamforming'.*'power'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_labels_of_another_scenario_are_refused(
    tmp_path: Path, scenario: dict[str, Any], name: str
) -> None:
    labels = labels_for(make(**scenario), tmp_path, 2)
    for given in (labels, tmp_path):
        with pytest.raises(ValueError, match=f"labels must be for {name}"):
            quick(make(), Supervised, labels=given)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"reference": "magic"}, "reference.*'magic'"),
        ({"label_count": 0}, "label_count.*0"),
        ({"architecture": "unfolded", "snr_range_db": (0.0, 10.0)}, "snr_range_db"),
        ({"labels": "no-such-folder"}, "no-such-folder"),
    ],
)
def test_errors_name_the_parameter(options: dict[str, Any], name: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        quick(make(), Supervised, **options)


# The same learning without a dual


def test_without_a_dual_the_rate_is_higher_and_the_constraint_ignored() -> None:
    env = make()
    settings: dict[str, Any] = {
        "architecture": "model_based",
        "batch_size": 32,
        "learning_rate": 1e-2,
        "dual_step_size": 1.0,
        "relative_constraints": True,
        "initial_multiplier": 5.0,
    }
    held: list[float] = []

    def note(progress: TrainingProgress) -> None:
        held.append(max(progress.multipliers.values()))

    free = quick(env, NoDual, **settings).learn(200, callback=note)
    bound = quick(env, PrimalDual, **settings).learn(200)
    assert set(held) == {0.0}
    assert all(not value.any() for value in free.multipliers.values.values())
    assert free.config.dual_rule == "none"
    table = compare({"free": free, "bound": bound}, env, channels=300)
    limit = env.unwrapped.scenario.sensing_threshold
    assert table["bound"].constraints["sensing"].mean < 1.03 * limit
    assert table["free"].constraints["sensing"].mean > 1.2 * limit
    assert table["free"].spectral_efficiency > 1.02 * table["bound"].spectral_efficiency
    assert bound.multipliers.values["sensing"].item() > 0


def test_no_dual_ignores_the_settings_of_the_dual() -> None:
    env = make()
    first = quick(env, NoDual)
    second = quick(env, NoDual, dual_rule="pi", initial_multiplier=7.0, dual_step_size=3.0)
    assert same(first.learn(5), second.learn(5))
    unchanged = quick(env).learn(1)
    left, right = weights(unchanged), weights(quick(env, NoDual).learn(1))
    # The first step of the same seed is the same: no multiplier has risen yet.
    assert all(np.array_equal(left[k], right[k]) for k in left if not k.startswith("dual "))
