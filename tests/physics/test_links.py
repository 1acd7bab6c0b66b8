"""Received powers, SINR and spectral efficiency against explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isac_gym.physics.links import link_powers, radar_interference, sinr, spectral_efficiency
from isac_gym.physics.precoding import zf_directions

Drawn = tuple[reference.Complex, reference.Complex, reference.Complex]

PRECISIONS = [(torch.complex128, 1e-10), (torch.complex64, 1e-4)]
# J, K, M_R, M_C, r: no two sizes alike where they can differ.
SIZES = [(1, 4, 3, 6, 2), (1, 1, 2, 1, 1), (3, 2, 5, 4, 3), (3, 5, 1, 4, 1), (2, 1, 2, 3, 2)]


def draw(rng: np.random.Generator, sizes: tuple[int, ...], *batch: int) -> Drawn:
    cells, users, radar, comm, streams = sizes
    return (
        reference.complex_normal(rng, *batch, cells, cells, users, radar + comm),
        reference.complex_normal(rng, *batch, cells, comm, users) / np.sqrt(comm * users),
        reference.complex_normal(rng, *batch, cells, radar, streams) * np.sqrt(0.2 / streams),
    )


def tensors(drawn: Drawn, dtype: torch.dtype = torch.complex128) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array).to(dtype) for array in drawn)


def expected_sinr(drawn: Drawn, noise: float) -> reference.Real:
    channels, precoders, streams = drawn
    covariances = streams @ np.swapaxes(streams.conj(), -1, -2)
    return reference.sinr(channels, precoders, covariances, noise)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("noise", [1.0, 0.1, 1e-6])
@pytest.mark.parametrize("sizes", SIZES)
def test_sinr_and_rates_agree_with_loops(
    sizes: tuple[int, ...], noise: float, dtype: torch.dtype, tolerance: float
) -> None:
    drawn = draw(np.random.default_rng(sizes), sizes, 6)
    found = sinr(link_powers(*tensors(drawn, dtype)), noise)
    expected = np.array([expected_sinr((H, F, V), noise) for H, F, V in zip(*drawn, strict=True)])
    assert found.shape == (6, sizes[0], sizes[1])
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0)
    np.testing.assert_allclose(
        spectral_efficiency(found),
        reference.spectral_efficiency(expected),
        rtol=tolerance,
        atol=0,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_interference_free_users_at_60_db(dtype: torch.dtype, tolerance: float) -> None:
    # Zero forcing and a radar in the null space of the users leave γ = abs(g_kᵀF_k)²/N0 of about
    # 60 dB, where any interference left over by rounding would show.
    rng = np.random.default_rng(8)
    channels, _, _ = draw(rng, (1, 3, 6, 6, 2), 20)
    radar, comm = channels[:, 0, 0, :, :6], channels[:, 0, 0, :, 6:]
    precoders = zf_directions(torch.from_numpy(comm)).numpy() / np.sqrt(3)
    null_space = np.linalg.svd(radar)[2][:, 3:].conj()
    streams = np.swapaxes(null_space, -1, -2) * 0.5
    drawn = (channels, precoders[:, None], streams[:, None])
    found = sinr(link_powers(*tensors(drawn, dtype)), 1e-6)[:, 0]
    gains = np.einsum("nkm,nmk->nk", comm, precoders)
    np.testing.assert_allclose(found, np.abs(gains) ** 2 / 1e-6, rtol=tolerance, atol=0)
    assert 10 * np.log10(found.numpy()).mean() > 50


@pytest.mark.parametrize("sizes", SIZES)
def test_each_power_agrees_with_its_definition(sizes: tuple[int, ...]) -> None:
    cells, users, num_radar, _, _ = sizes
    drawn = draw(np.random.default_rng([1, *sizes]), sizes)
    channels, precoders, streams = drawn
    found = link_powers(*tensors(drawn))
    for j in range(cells):
        for k in range(users):
            f, g = np.split(channels[:, j, k], [num_radar], axis=-1)
            own = [abs(g[j] @ precoders[j][:, stream]) ** 2 for stream in range(users)]
            radar = [np.sum(np.abs(f[i] @ streams[i]) ** 2) for i in range(cells)]
            other = sum(
                np.sum(np.abs(g[i] @ precoders[i]) ** 2) + radar[i] for i in range(cells) if i != j
            )
            assert found.signal[j, k].item() == pytest.approx(own[k], rel=1e-12)
            rest = sum(own) - own[k]
            assert found.multiuser[j, k].item() == pytest.approx(rest, rel=1e-12, abs=1e-14)
            assert found.radar[j, k].item() == pytest.approx(radar[j], rel=1e-12)
            if cells == 1:
                assert found.intercell is None
            else:
                assert found.intercell is not None
                assert found.intercell[j, k].item() == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[2]])
def test_leading_dimensions(sizes: tuple[int, ...], batch: tuple[int, ...]) -> None:
    drawn = draw(np.random.default_rng(2), sizes, *batch)
    found = sinr(link_powers(*tensors(drawn)), 0.1).numpy()
    assert found.shape == (*batch, *sizes[:2])
    for index in np.ndindex(*batch):
        one = (drawn[0][index], drawn[1][index], drawn[2][index])
        np.testing.assert_allclose(found[index], expected_sinr(one, 0.1), rtol=1e-10)


def test_noise_power_may_differ_by_user() -> None:
    drawn = draw(np.random.default_rng(3), SIZES[2])
    noise = np.linspace(0.1, 3.0, 6).reshape(3, 2)
    found = sinr(link_powers(*tensors(drawn)), torch.from_numpy(noise)).numpy()
    for index in np.ndindex(3, 2):
        assert found[index] == pytest.approx(expected_sinr(drawn, noise[index])[index], rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_without_intercell_paths_each_cell_is_alone(dtype: torch.dtype) -> None:
    drawn = draw(np.random.default_rng(4), SIZES[2], 5)
    channels = drawn[0] * np.eye(3)[:, :, None, None]
    H, F, V = tensors((channels, *drawn[1:]), dtype)
    together = sinr(link_powers(H, F, V), 0.1)
    for cell in range(3):
        part = slice(cell, cell + 1)
        alone = sinr(link_powers(H[:, part, part], F[:, part], V[:, part]), 0.1)
        tolerance = 1e-13 if dtype == torch.complex128 else 1e-5
        torch.testing.assert_close(together[:, part], alone, rtol=tolerance, atol=0)


def test_intercell_paths_lead_from_the_first_axis_to_the_second() -> None:
    drawn = draw(np.random.default_rng(5), (2, 1, 2, 2, 2))
    channels = drawn[0].copy()
    channels[1, 0] = 0.0
    powers = link_powers(*tensors((channels, *drawn[1:])))
    assert powers.intercell is not None
    assert powers.intercell[0, 0].item() == 0.0
    assert powers.intercell[1, 0].item() > 0.0


def test_interference_is_the_sum_of_its_parts() -> None:
    drawn = draw(np.random.default_rng(6), SIZES[2])
    powers = link_powers(*tensors(drawn))
    assert powers.intercell is not None
    total = powers.multiuser + powers.radar + powers.intercell
    torch.testing.assert_close(powers.interference, total, rtol=1e-14, atol=0)


def test_radar_interference_is_the_quadratic_form() -> None:
    rng = np.random.default_rng(7)
    channels = reference.complex_normal(rng, 4, 3, 5)
    streams = reference.complex_normal(rng, 4, 5, 2)
    covariance = streams @ np.swapaxes(streams.conj(), -1, -2)
    expected = np.einsum("nkp,npq,nkq->nk", channels, covariance, channels.conj())
    np.testing.assert_allclose(expected.imag, 0.0, atol=1e-12)
    found = radar_interference(torch.from_numpy(channels), torch.from_numpy(streams))
    np.testing.assert_allclose(found, expected.real, rtol=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 1e-9, 1.0, 3.0, 1e6])
def test_spectral_efficiency_of_known_ratios(ratio: float) -> None:
    found = spectral_efficiency(torch.tensor(ratio, dtype=torch.float64)).item()
    # log2(1 + x) = x/ln 2 - x²/(2 ln 2) for small x, where 1 + x itself loses digits.
    small = (ratio - ratio**2 / 2) / np.log(2)
    expected = small if ratio < 1e-6 else reference.spectral_efficiency(np.float64(ratio))
    assert found == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [((1, 3, 2, 4, 2), ()), ((1, 1, 1, 1, 1), ()), ((2, 2, 2, 3, 1), (2,)), ((3, 1, 1, 2, 2), ())],
)
def test_gradcheck(sizes: tuple[int, ...], batch: tuple[int, ...]) -> None:
    inputs = tensors(draw(np.random.default_rng(9), sizes, *batch))

    def rates(*args: torch.Tensor) -> torch.Tensor:
        return spectral_efficiency(sinr(link_powers(*args), 0.1)).sum((-2, -1))

    assert torch.autograd.gradcheck(rates, tuple(t.requires_grad_(True) for t in inputs))


@pytest.mark.parametrize("cells", [1, 3])
def test_gradient_is_finite_without_any_power(cells: int) -> None:
    H, F, V = tensors(draw(np.random.default_rng(10), (cells, 3, 2, 4, 2)))
    silent = [torch.zeros_like(t).requires_grad_(True) for t in (F, V)]
    rates = spectral_efficiency(sinr(link_powers(H, *silent), 0.1))
    assert (rates == 0).all()
    rates.sum().backward()
    for leaf in silent:
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param(((1, 1, 3, 7), (1, 4, 3), (1, 2, 2)), id="antennas"),
        pytest.param(((1, 1, 3, 6), (1, 4, 2), (1, 2, 2)), id="users"),
        pytest.param(((2, 2, 3, 6), (1, 4, 3), (2, 2, 2)), id="precoders of one cell"),
        pytest.param(((2, 2, 3, 6), (2, 4, 3), (1, 2, 2)), id="streams of one cell"),
        pytest.param(((1, 2, 3, 6), (2, 4, 3), (2, 2, 2)), id="cells not square"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    arrays = [torch.zeros(shape, dtype=torch.complex64) for shape in shapes]
    with pytest.raises(ValueError, match="channels, precoders and streams must have") as error:
        link_powers(*arrays)
    for shape in shapes:
        assert str(shape) in str(error.value)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*(st.integers(1, top) for top in (3, 4, 4, 4, 4))),
    noise=st.floats(1e-6, 10.0),
)
def test_sinr_is_invariant_to_the_phase_of_each_beam(
    seed: int, sizes: tuple[int, ...], noise: float
) -> None:
    rng = np.random.default_rng(seed)
    channels, precoders, streams = draw(rng, sizes)
    beams = np.exp(2j * np.pi * rng.random((sizes[0], 1, sizes[1])))
    radar = np.exp(2j * np.pi * rng.random((sizes[0], 1, sizes[4])))
    plain = sinr(link_powers(*tensors((channels, precoders, streams))), noise)
    turned = sinr(link_powers(*tensors((channels, precoders * beams, streams * radar))), noise)
    torch.testing.assert_close(turned, plain, rtol=1e-10, atol=0)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*(st.integers(1, top) for top in (3, 4, 4, 4, 4))),
    scale=st.sampled_from([0.0, 1e-8, 1.0, 1e3]),
    dtype=st.sampled_from([torch.complex64, torch.complex128]),
)
def test_powers_are_nonnegative(
    seed: int, sizes: tuple[int, ...], scale: float, dtype: torch.dtype
) -> None:
    channels, precoders, streams = draw(np.random.default_rng(seed), sizes)
    powers = link_powers(*tensors((channels, precoders * scale, streams * scale), dtype))
    parts = [powers.signal, powers.multiuser, powers.radar, powers.interference]
    parts += [] if powers.intercell is None else [powers.intercell]
    for part in parts:
        assert (part >= 0).all()
