"""Channels from files, whatever the files hold, and models that follow gains or do not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy.stats import chisquare
from small_channels import ONE_CELL, THREE_CELLS, rng, samples

from isac_gym.channels.base import (
    ChannelModel,
    Complex,
    Deployment,
    scale_between_cells,
)
from isac_gym.channels.process import ChannelProcess
from isac_gym.channels.recorded import FileChannels
from isac_gym.evaluation import evaluation_set
from isac_gym.scenario import Scenario


def saved(path: Path, array: Any, **arrays: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, **({"channels": array} | arrays))
    return path


@pytest.mark.parametrize("name", ["some.npy", "some.npz"])
@pytest.mark.parametrize("deployment", [ONE_CELL, THREE_CELLS], ids=["one cell", "three cells"])
def test_samples_from_a_file(tmp_path: Path, deployment: Deployment, name: str) -> None:
    array = samples(7, *deployment.shape)
    model = FileChannels(saved(tmp_path / name, array))
    drawn = model.draw(rng(), 50, deployment)
    assert drawn.dtype == np.complex64
    assert drawn.shape == (50, *deployment.shape)
    for sample in drawn:
        assert any(np.array_equal(sample, kept) for kept in array)
    assert not model.is_time_correlated
    np.testing.assert_array_equal(model.draw(rng(), 50, deployment), drawn)


def test_one_cell_needs_no_cell_axes(tmp_path: Path) -> None:
    array = samples(3, 2, 5)
    model = FileChannels(str(saved(tmp_path / "some.npy", array)))
    drawn = model.draw(rng(), 20, ONE_CELL)
    assert drawn.shape == (20, 1, 1, 2, 5)
    assert all(any(np.array_equal(one[0, 0], kept) for kept in array) for one in drawn)


def test_every_sample_is_drawn_equally_often(tmp_path: Path) -> None:
    array = np.arange(8.0).reshape(8, 1, 1).repeat(2, 1).repeat(5, 2)
    model = FileChannels(saved(tmp_path / "some.npy", array.astype(np.complex64)))
    drawn = model.draw(rng(), 8_000, ONE_CELL)
    counts = np.bincount(drawn[:, 0, 0, 0, 0].real.astype(int), minlength=8)
    assert chisquare(counts).pvalue > 1e-6


def test_array_names_in_an_archive(tmp_path: Path) -> None:
    array = samples(3, 2, 5)
    both = saved(tmp_path / "both.npz", array, other=np.zeros(3))
    np.testing.assert_array_equal(FileChannels(both).samples[:, 0, 0], array)
    np.savez(tmp_path / "single.npz", measured=array)
    single = FileChannels(tmp_path / "single.npz")
    np.testing.assert_array_equal(single.samples[:, 0, 0], array)
    np.savez(tmp_path / "unclear.npz", a=array, b=array)
    with pytest.raises(ValueError, match=r"unclear\.npz: channels must be .*'a', 'b'"):
        FileChannels(tmp_path / "unclear.npz")


@pytest.mark.parametrize("dtype", [np.complex128, np.float32, np.int16])
def test_other_numeric_types_are_converted(tmp_path: Path, dtype: Any) -> None:
    array = (3 * samples(3, 2, 5).real).astype(dtype)
    model = FileChannels(saved(tmp_path / "some.npy", array))
    assert model.samples.dtype == np.complex64
    np.testing.assert_allclose(model.samples[:, 0, 0], array, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, complex(0, np.nan), complex(1, -np.inf)])
def test_non_finite_entry_is_named_with_file_and_index(tmp_path: Path, bad: complex) -> None:
    array = samples(4, 1, 1, 2, 5)
    array[2, 0, 0, 1, 3] = array[3, 0, 0, 0, 0] = bad
    path = saved(tmp_path / "some.npz", array)
    with pytest.raises(ValueError, match="channels must be finite") as error:
        FileChannels(path)
    assert str(path) in str(error.value)
    assert "index (2, 0, 0, 1, 3) of shape (4, 1, 1, 2, 5)" in str(error.value)


def test_entries_too_large_for_single_precision_are_refused(tmp_path: Path) -> None:
    array = samples(4, 1, 1, 2, 5).astype(np.complex128)
    array[1, 0, 0, 1, 2] = 1e300
    path = saved(tmp_path / "some.npy", array)
    with pytest.raises(ValueError, match=r"channels must be finite.*index \(1, 0, 0, 1, 2\)"):
        FileChannels(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 5), np.complex64),
        np.zeros((3, 1, 2, 5), np.complex64),
        np.zeros((0, 2, 5), np.complex64),
        np.zeros((3, 2, 0), np.complex64),
        np.complex64(1.0),
        np.full((3, 2, 5), "text"),
        np.zeros((3, 2, 5), bool),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_other_arrays_are_refused(tmp_path: Path, array: Any) -> None:
    path = saved(tmp_path / "some.npy", array)
    with pytest.raises(ValueError, match="must be a non-empty numeric array of shape") as error:
        FileChannels(path)
    assert str(path) in str(error.value)
    assert f"got shape {array.shape} and dtype {array.dtype}" in str(error.value)


@pytest.mark.parametrize(
    "shape", [(4, 3, 5), (4, 2, 6), (4, 2, 2, 2, 5), (4, 1, 1, 5, 2), (4, 1, 2, 2, 5)]
)
def test_dimensions_of_another_scenario_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = saved(tmp_path / "some.npy", samples(*shape))
    model = FileChannels(path)
    with pytest.raises(ValueError, match=r"= \(N, 1, 1, 2, 5\) for this scenario") as error:
        model.draw(rng(), 1, ONE_CELL)
    assert str(path) in str(error.value)
    assert f"{shape[-2]}, {shape[-1]})" in str(error.value)


@pytest.mark.parametrize("layout", ["hexagonal", "line"])
def test_recorded_channels_have_gains_of_their_own(tmp_path: Path, layout: Any) -> None:
    path = saved(tmp_path / "some.npy", samples(3, 5, 24))
    for model in (f"file:{path}", FileChannels(path)):
        assert isinstance(gym.make("ISAC-MISO-v0", channel_model=model), gym.Env)
        with pytest.raises(ValueError, match="layout must be 'uniform' with a channel") as error:
            gym.make("ISAC-MISO-v0", channel_model=model, layout=layout)
        assert repr(layout) in str(error.value)
        assert str(path) in str(error.value)


class Steady(ChannelModel):
    """The same power on every path, or that of the deployment."""

    def draw(self, rng: np.random.Generator, num: int, deployment: Deployment) -> Complex:
        channels = np.ones((num, *deployment.shape), np.complex64)
        return scale_between_cells(channels, deployment) if self.follows_gains else channels


class Obedient(Steady):
    """One that has the power of the deployment, and says so."""

    follows_gains = True


@pytest.mark.parametrize("layout", ["hexagonal", "line"])
def test_a_model_that_says_nothing_of_gains_is_refused_where_there_are_distances(
    layout: Any,
) -> None:
    model, few = Steady(), Scenario(num_cells=2, num_users=2)
    apart = few.replace(layout=layout)
    message = r"^layout must be 'uniform' with a channel model .*follows_gains is False.*Steady"
    for make in (
        lambda: ChannelProcess(model, apart, 1),
        lambda: evaluation_set(apart, model, 2, 0),
        lambda: gym.make("ISAC-MISO-v0", scenario=apart, channel_model=model),
        lambda: gym.make_vec("ISAC-MISO-v0", num_envs=2, scenario=apart, channel_model=model),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert repr(layout) in str(error.value)
    alike = ChannelProcess(model, few, 1)
    alike.start(rng())
    assert (alike.channels == 1).all()


@pytest.mark.parametrize("layout", ["hexagonal", "line"])
def test_a_model_that_follows_gains_has_them(layout: Any) -> None:
    found = ChannelProcess(Obedient(), Scenario(num_cells=2, num_users=2, layout=layout), 3)
    found.start(rng())
    assert found.gains is not None
    np.testing.assert_allclose(
        np.abs(found.channels) ** 2, np.repeat(found.gains[..., None], 24, -1), rtol=1e-5
    )


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.npy"):
        FileChannels(tmp_path / "missing.npy")


@pytest.mark.parametrize("name", ["some.npy", "some.npz"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path: Path, name: str, kept: float) -> None:
    path = saved(tmp_path / name, samples(20, 2, 5))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=f"{name}: channels must be a .npy file"):
        FileChannels(path)


def test_corrupt_and_empty_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    np.savez_compressed(path, channels=samples(20, 2, 5))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.npz: channels must be"):
        FileChannels(path)
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match=r"empty\.npz: channels must be"):
        FileChannels(tmp_path / "empty.npz")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=tmp_path.name):
        FileChannels(tmp_path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_pickled_objects_are_refused_and_not_executed(tmp_path: Path, kind: str) -> None:
    witness = tmp_path / "executed"
    array = np.empty((2, 2, 5), object)
    array[:] = Payload(witness)
    path = tmp_path / f"some.{'npz' if kind == 'npz' else 'npy'}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez(path, channels=array)
    else:
        path.write_bytes(pickle.dumps(array))
    assert not witness.exists()
    with pytest.raises(ValueError, match=f"{path.name}: channels must be"):
        FileChannels(path)
    assert not witness.exists()
    if kind == "npy":
        # The file is what it claims to be.
        np.load(path, allow_pickle=True)
        assert witness.exists()
