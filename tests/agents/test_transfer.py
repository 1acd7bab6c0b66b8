"""Transfer from power control to beamforming: what is taken over, what is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_agents import ARCHITECTURES, Poisoned, make, quick, same, weights

from isac_gym.agents import NoDual, PrimalDual, TransferBeamforming
from isac_gym.learning.checkpoint import CheckpointError
from isac_gym.learning.progress import TrainingProgress

Weights = dict[str, npt.NDArray[Any]]


def source_of(architecture: str = "direct", kind: Any = PrimalDual, **changes: Any) -> PrimalDual:
    """A power-control agent after a few steps."""
    settings = {"architecture": architecture, "initial_multiplier": 0.5}
    scenario = {name: changes.pop(name) for name in list(changes) if name in SCENARIO}
    trained: PrimalDual = quick(
        make(control="power", **scenario), kind, seed=5, **{**settings, **changes}
    ).learn(3)
    return trained


SCENARIO = ("num_users", "num_radar_antennas", "num_cells", "radar", "radar_streams", "scheduling")


def transfer(
    source: Any,
    architecture: str = "direct",
    scenario: dict[str, Any] | None = None,
    **changes: Any,
) -> TransferBeamforming:
    settings = {"architecture": architecture, "learning_rate": 1e-2, **changes}
    return quick(make(**(scenario or {})), TransferBeamforming, source=source, **settings)


def output_names(architecture: str) -> set[str]:
    """Of the layers that are replaced: written out for the agents above."""
    if architecture == "unfolded":
        return {f"settings.{i}.{part}" for i in range(2) for part in ("weight", "bias")}
    return {"body.layers.1.weight", "body.layers.1.bias"}


def network_of(agent: Any) -> Weights:
    return {name: value for name, value in weights(agent).items() if not name.startswith("dual ")}


# What is taken over


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_layers_are_the_sources_and_the_output_layer_is_new(architecture: str) -> None:
    source = source_of(architecture)
    agent = transfer(source, architecture)
    theirs, own = network_of(source), network_of(agent)
    fresh = network_of(transfer(None, architecture))
    outputs = output_names(architecture)
    assert outputs < set(own) == set(theirs)
    for name in set(own) - outputs:
        np.testing.assert_array_equal(own[name], theirs[name])
    if architecture != "direct":
        for name in outputs:
            np.testing.assert_array_equal(own[name], fresh[name])
    assert any(not np.array_equal(own[n], fresh[n]) for n in set(own) - outputs)
    assert agent.source is source
    assert (
        agent.multipliers.values["sensing"].item()
        == source.multipliers.values["sensing"].item()
        > 0
    )


@pytest.mark.parametrize("scheduling", ["all", "contention"])
@pytest.mark.parametrize("radar", ["learned", "fixed"])
def test_rows_of_the_direct_output_layer(radar: str, scheduling: str) -> None:
    """The precoder's 2·M_C·K rows are new; the radar's and the access variables' are copied."""
    kept = {"radar": radar, "scheduling": scheduling}
    source = source_of(**kept)
    agent = transfer(source, scenario=kept)
    fresh = network_of(transfer(None, scenario=kept))
    users, comm, radar_antennas = 2, 4, 4
    rest = (2 * radar_antennas**2 if radar == "learned" else 0) + (
        users if scheduling == "contention" else 0
    )
    new = 2 * comm * users
    for part in ("weight", "bias"):
        name = f"body.layers.1.{part}"
        own, theirs = network_of(agent)[name], network_of(source)[name]
        assert len(own) == new + rest == agent.system.codec.action_size
        assert len(theirs) == users + rest
        np.testing.assert_array_equal(own[:new], fresh[name][:new])
        np.testing.assert_array_equal(own[new:], theirs[users:])
        assert rest == 0 or part == "bias" or not np.array_equal(own[new:], fresh[name][new:])


def test_rows_of_two_stations() -> None:
    source = source_of(num_cells=2)
    agent = transfer(source, scenario={"num_cells": 2})
    fresh = network_of(transfer(None, scenario={"num_cells": 2}))
    name = "body.layers.1.weight"
    own, theirs = network_of(agent)[name], network_of(source)[name]
    assert own.shape[0] == 2 * (16 + 32)
    assert theirs.shape[0] == 2 * (2 + 32)
    for cell in range(2):
        start, begin = cell * 48, cell * 34
        np.testing.assert_array_equal(own[start : start + 16], fresh[name][start : start + 16])
        np.testing.assert_array_equal(own[start + 16 : start + 48], theirs[begin + 2 : begin + 34])
    assert agent.multipliers.values["sensing"].shape == (2,)
    before = network_of(agent)
    after = network_of(agent.learn(3))
    np.testing.assert_array_equal(before["body.layers.0.weight"], after["body.layers.0.weight"])


def test_the_radar_transmits_as_the_source_did() -> None:
    source = source_of()
    agent = transfer(source)
    observation = make().reset(seed=0)[0]
    power, beams = source.predict(observation)[0], agent.predict(observation)[0]
    np.testing.assert_allclose(beams[16:], power[2:], atol=1e-6)


# What is trained


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("unfreeze", [False, True])
def test_only_the_output_layer_is_trained_unless_unfrozen(
    architecture: str, unfreeze: bool
) -> None:
    source = source_of(architecture)
    agent = transfer(source, architecture, unfreeze=unfreeze)
    outputs = output_names(architecture)
    expected = set(network_of(agent)) if unfreeze else outputs
    trained = {name for name, p in agent.network.named_parameters() if p.requires_grad}
    assert trained == expected
    before, theirs = weights(agent), weights(source)
    after = weights(agent.learn(6))
    moved = {name for name in network_of(agent) if not np.array_equal(before[name], after[name])}
    assert moved == expected or (moved < expected and architecture == "unfolded")
    assert moved & outputs
    assert bool(moved - outputs) == unfreeze
    assert before["dual sensing"] != after["dual sensing"], "the multipliers go on"
    assert all(np.array_equal(theirs[name], value) for name, value in weights(source).items())


def test_the_rate_rises_by_the_new_layer_alone() -> None:
    agent = transfer(source_of(), dual_rule="none")
    rates: list[float] = []

    def note(progress: TrainingProgress) -> None:
        rates.append(progress.sum_rate)

    agent.learn(150, callback=note)
    assert np.mean(rates[-20:]) > 1.2 * np.mean(rates[:20])


def test_without_a_source_it_is_trained_first() -> None:
    agent = transfer(None, seed=7)
    assert agent.source is None
    seen: list[int] = []

    def note(progress: TrainingProgress) -> None:
        seen.append(progress.iteration)

    agent = quick(make(), TransferBeamforming, seed=7, iterations=5)
    agent.learn(4, callback=note)
    assert seen == [1, 2, 3, 4], "the callback sees the transfer alone"
    source = quick(make(control="power"), seed=7, iterations=5).learn()
    assert agent.source is not None
    assert same(agent.source, source)
    given = quick(make(), TransferBeamforming, seed=7, iterations=5, source=source).learn(4)
    assert same(agent, given)


def test_further_training_keeps_the_source() -> None:
    agent = quick(make(), TransferBeamforming, iterations=3)
    source = agent.learn().source
    hidden = network_of(agent)["body.layers.0.weight"]
    agent.learn(2)
    assert agent.source is source
    np.testing.assert_array_equal(network_of(agent)["body.layers.0.weight"], hidden)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_source_may_be_a_file(tmp_path: Path, architecture: str) -> None:
    source = source_of(architecture)
    source.save(tmp_path / "source.zip")
    first = transfer(source, architecture)
    assert same(first, transfer(tmp_path / "source.zip", architecture))
    assert same(first, transfer(str(tmp_path / "source.zip"), architecture))


# Checkpoints and files


def test_an_interrupted_transfer_goes_on(tmp_path: Path) -> None:
    settings = {"iterations": 12, "seed": 2}
    whole = quick(make(), TransferBeamforming, **settings).learn()
    checkpoint = tmp_path / "training.zip"

    def interrupt(progress: TrainingProgress) -> None:
        if progress.iteration == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(make(), TransferBeamforming, **settings).learn(
            callback=interrupt, checkpoint=checkpoint, checkpoint_every=4
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "training.source.zip",
        "training.zip",
    ]
    resumed = quick(make(), TransferBeamforming, **settings).learn(
        checkpoint=checkpoint, checkpoint_every=4
    )
    assert same(resumed, whole)
    resumed.forget_checkpoint(checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_training_of_the_source_goes_on(tmp_path: Path) -> None:
    settings = {"iterations": 12, "seed": 2}
    whole = quick(make(), TransferBeamforming, **settings).learn()
    checkpoint = tmp_path / "training.zip"
    killed = quick(make(control="power", channel_model=Poisoned(-1)), **settings)

    def interrupt(progress: TrainingProgress) -> None:
        if progress.iteration == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.learn(
            callback=interrupt, checkpoint=tmp_path / "training.source.zip", checkpoint_every=4
        )
    model = Poisoned(-1)
    resumed = quick(make(channel_model=model), TransferBeamforming, **settings)
    resumed.learn(checkpoint=checkpoint, checkpoint_every=4)
    assert same(resumed, whole)
    assert model.draws == (12 - 8) + 12, "the source went on after its eighth iteration"


def test_tensorboard_is_missed_before_the_source_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    agent = quick(make(), TransferBeamforming)
    with pytest.raises(ImportError, match=r"isac-gym\[tensorboard\]"):
        agent.learn(2, tensorboard_log=tmp_path)
    assert agent.source is None


@pytest.mark.parametrize("unfreeze", [False, True])
def test_what_is_trained_is_saved(tmp_path: Path, unfreeze: bool) -> None:
    transfer(source_of(), unfreeze=unfreeze).save(tmp_path / "agent.zip")
    loaded = TransferBeamforming.load(tmp_path / "agent.zip")
    assert loaded.unfreeze is unfreeze
    before = network_of(loaded)["body.layers.0.weight"]
    moved = network_of(loaded.learn(2))["body.layers.0.weight"] - before
    assert bool(moved.any()) is unfreeze


@pytest.mark.parametrize(
    ("changes", "name"), [({"unfreeze": True}, "unfreeze"), ({"source": "other"}, "source")]
)
def test_a_checkpoint_of_another_transfer_is_refused(
    tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    source, checkpoint = source_of(), tmp_path / "training.zip"
    transfer(source).learn(3, checkpoint=checkpoint)
    given = {"source": source, **changes}
    if given["source"] == "other":
        given["source"] = source_of().learn(1)
    with pytest.raises(CheckpointError, match=rf"another {name}\b"):
        transfer(**given).learn(3, checkpoint=checkpoint)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_save_and_load(tmp_path: Path, architecture: str) -> None:
    env = make()
    agent = transfer(source_of(architecture), architecture).learn(3)
    agent.save(tmp_path / "agent.zip")
    loaded = TransferBeamforming.load(tmp_path / "agent.zip", env)
    assert same(agent, loaded)
    observation = np.stack([env.reset(seed=seed)[0] for seed in range(3)])
    np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])
    with pytest.raises(ValueError, match="kind"):
        PrimalDual.load(tmp_path / "agent.zip")


def test_a_loaded_agent_goes_on_from_its_weights(tmp_path: Path) -> None:
    agent = transfer(source_of()).learn(3)
    agent.save(tmp_path / "agent.zip")
    loaded = TransferBeamforming.load(tmp_path / "agent.zip")
    before = network_of(loaded)
    after = network_of(loaded.learn(2))
    np.testing.assert_array_equal(after["body.layers.0.weight"], before["body.layers.0.weight"])
    moved = after["body.layers.1.weight"] - before["body.layers.1.weight"]
    # Two steps of Adam.
    assert 0 < np.abs(moved).max() < 2.1e-2
    loaded.unfreeze = True
    loaded.learn(2)
    assert not np.array_equal(
        network_of(loaded)["body.layers.0.weight"], before["body.layers.0.weight"]
    )


# Errors


@pytest.mark.parametrize("control", ["power", "amplitude"])
def test_the_control_must_be_beamforming(control: str) -> None:
    with pytest.raises(ValueError, match=f"control.*'{control}'"):
        quick(make(control=control), TransferBeamforming)


def test_unfreeze_must_be_a_truth_value() -> None:
    with pytest.raises(ValueError, match=r"unfreeze.*1"):
        quick(make(), TransferBeamforming, unfreeze=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_users": 3}, "num_users=2.*3"),
        ({"num_radar_antennas": 5}, "num_radar_antennas=4.*5"),
        ({"num_cells": 2}, "num_cells=1.*2"),
        ({"radar": "fixed"}, "radar='learned'.*'fixed'"),
        ({"radar_streams": 2}, "num_radar_streams=4.*2"),
        ({"scheduling": "contention"}, "scheduling='all'.*'contention'"),
        ({"dual_rule": "pi"}, "dual_rule='ascent'.*'pi'"),
        ({"relative_constraints": True}, "relative_constraints=False.*True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_source_of_another_kind_is_refused(
    architecture: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"source must be.*{message}"):
        transfer(source_of(architecture, **changes), architecture)


def test_a_source_of_other_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"source must be.*'hidden_sizes': \(17,\)"):
        transfer(source_of(hidden_sizes=(17,)))
    with pytest.raises(ValueError, match=r"source must be.*'width': 9"):
        transfer(source_of("unfolded", width=9), "unfolded")


@pytest.mark.parametrize(("theirs", "own"), [("model_based", "direct"), ("direct", "unfolded")])
def test_a_source_of_another_architecture_is_refused(theirs: str, own: str) -> None:
    with pytest.raises(ValueError, match=f"source must be.*'{own}', got '{theirs}'"):
        transfer(source_of(theirs), own)


@pytest.mark.parametrize("control", ["beamforming", "amplitude"])
def test_a_source_of_another_control_is_refused(tmp_path: Path, control: str) -> None:
    source = quick(make(control=control))
    with pytest.raises(ValueError, match=f"source.*'{control}'"):
        transfer(source)
    source.save(tmp_path / "source.zip")
    with pytest.raises(ValueError, match=f"source.zip.*control='{control}'"):
        transfer(tmp_path / "source.zip")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.zip"):
        transfer(tmp_path / "none.zip")


def test_a_refused_source_changes_nothing() -> None:
    agent = transfer(source_of())
    before = weights(agent)
    source = agent.source
    with pytest.raises(ValueError, match="source"):
        agent.take_over(source_of(num_users=3))
    assert agent.source is source
    assert all(np.array_equal(before[name], value) for name, value in weights(agent).items())


def test_multipliers_without_a_rule_are_not_taken_over() -> None:
    held = transfer(source_of(), dual_rule="none").learn(2).multipliers.values["sensing"]
    assert torch.equal(held, torch.zeros(1))
    agent = transfer(source_of(kind=NoDual), initial_multiplier=2.0)
    assert agent.multipliers.values["sensing"].item() == 2.0
