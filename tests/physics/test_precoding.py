"""Linear precoders by the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from isac_gym.physics.precoding import (
    mrt_directions,
    precoder_directions,
    rzf_directions,
    zf_directions,
)

SHAPES = [(5, 12), (4, 4), (1, 6), (1, 1), (2, 3)]


def channels(users: int, antennas: int, *batch: int) -> torch.Tensor:
    rng = np.random.default_rng([users, antennas, *batch])
    return torch.from_numpy(reference.complex_normal(rng, *batch, users, antennas))


def assert_unit_columns(directions: torch.Tensor, users: int, antennas: int) -> None:
    assert directions.shape[-2:] == (antennas, users)
    norms = np.linalg.norm(directions.numpy(), axis=-2)
    tolerance = 1e-13 if directions.dtype == torch.complex128 else 1e-5
    np.testing.assert_allclose(norms, 1.0, rtol=tolerance)


def assert_same_beams(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Unit columns of the same direction, whatever their phases."""
    alignment = (found.conj() * expected).sum(-2).abs().numpy()
    np.testing.assert_allclose(alignment, 1.0, atol=tolerance)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("kind", ["mrt", "zf", "rzf"])
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
@pytest.mark.parametrize(("users", "antennas"), SHAPES)
def test_columns_have_unit_norm(
    users: int, antennas: int, dtype: torch.dtype, kind: str, batch: tuple[int, ...]
) -> None:
    G = channels(users, antennas, *batch).to(dtype)
    found = precoder_directions(kind, G, 0.1, 1.0)  # type: ignore[arg-type]
    assert found.dtype == dtype
    assert found.shape == (*batch, antennas, users)
    assert_unit_columns(found, users, antennas)
    for index in np.ndindex(*batch):
        alone = precoder_directions(kind, G[index], 0.1, 1.0)  # type: ignore[arg-type]
        tolerance = 1e-9 if dtype == torch.complex128 else 1e-2
        torch.testing.assert_close(found[index], alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("users", "antennas"), [*SHAPES, (7, 3)])
def test_mrt_attains_the_cauchy_schwarz_bound(users: int, antennas: int) -> None:
    G = channels(users, antennas, 10)
    gain = (G @ mrt_directions(G)).diagonal(dim1=-2, dim2=-1).numpy()
    # g_kᵀF_k is real and equals ‖g_k‖, the largest value for a unit-norm beam.
    np.testing.assert_allclose(gain, np.linalg.norm(G.numpy(), axis=-1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("users", "antennas"), SHAPES)
def test_zf_leaves_no_multiuser_interference(users: int, antennas: int) -> None:
    G = channels(users, antennas, 10)
    received = (G @ zf_directions(G)).numpy()
    gain = np.diagonal(received, axis1=-2, axis2=-1)
    leak = received - gain[..., None] * np.eye(users)
    np.testing.assert_allclose(leak, 0.0, atol=1e-12)
    assert (np.abs(gain) > 1e-6).all()
    np.testing.assert_allclose(gain.imag, 0.0, atol=1e-12)


def test_zf_gives_the_largest_gain_among_interference_free_beams() -> None:
    # That gain is the distance of g_k from the span of the other users' channels.
    G = channels(4, 9)
    received = (G @ zf_directions(G)).diagonal().abs().numpy()
    for user, channel in enumerate(G.numpy()):
        others = np.delete(G.numpy(), user, axis=0)
        weights = np.linalg.lstsq(others.T, channel)[0]
        assert received[user] == pytest.approx(np.linalg.norm(channel - others.T @ weights))


@pytest.mark.parametrize(("users", "antennas"), [(2, 1), (13, 12)])
def test_zf_refuses_more_users_than_antennas(users: int, antennas: int) -> None:
    with pytest.raises(
        ValueError, match=f"num_users <= num_comm_antennas, got {users} > {antennas}"
    ):
        zf_directions(channels(users, antennas))
    with pytest.raises(ValueError, match="num_users <= num_comm_antennas"):
        precoder_directions("zf", channels(users, antennas), 0.1, 1.0)


@pytest.mark.parametrize(("users", "antennas"), [(5, 12), (4, 4), (7, 3), (1, 5)])
def test_rzf_tends_to_mrt_with_growing_noise(users: int, antennas: int) -> None:
    G = channels(users, antennas, 5)
    assert_same_beams(rzf_directions(G, 1e7, 1.0), mrt_directions(G), 1e-9)


@pytest.mark.parametrize(("users", "antennas"), [(5, 12), (4, 4), (1, 5)])
def test_rzf_tends_to_zf_with_vanishing_noise(users: int, antennas: int) -> None:
    G = channels(users, antennas, 5)
    assert_same_beams(rzf_directions(G, 1e-9, 1.0), zf_directions(G), 1e-9)


@pytest.mark.parametrize("users", [1, 3, 5, 9])
@pytest.mark.parametrize("unequal", [False, True])
def test_rzf_is_the_explicit_inverse(users: int, unequal: bool) -> None:
    # (I + Σ_l (P/K)/σ_l² g_l* g_lᵀ)⁻¹ g_k*, column by column.
    G, power = channels(users, 6).numpy(), 1.7
    noise = np.linspace(0.05, 2.0, users) if unequal else np.full(users, 0.3)
    matrix = np.eye(6, dtype=complex)
    for channel, variance in zip(G, noise, strict=True):
        matrix += power / users / variance * np.outer(channel.conj(), channel)
    columns = np.stack([np.linalg.solve(matrix, channel.conj()) for channel in G], axis=1)
    columns /= np.linalg.norm(columns, axis=0)
    given = torch.from_numpy(noise) if unequal else 0.3
    found = rzf_directions(torch.from_numpy(G), given, power).numpy()
    np.testing.assert_allclose(found, columns, atol=1e-12)


def test_rzf_takes_noise_and_power_of_each_realisation() -> None:
    G = channels(3, 4, 2)
    noise = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]], dtype=torch.float64)
    power = torch.tensor([1.0, 5.0], dtype=torch.float64)
    together = rzf_directions(G, noise, power)
    for index in range(2):
        alone = rzf_directions(G[index], noise[index], power[index].item())
        torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-12)


def test_rzf_balances_noise_and_interference_better_than_the_limits() -> None:
    # With equal powers and noise RZF maximises signal over (leaked power + noise share) for each
    # user, so any other beam has a smaller ratio.
    G, noise, power = channels(4, 6).numpy(), 0.2, 1.0
    rng = np.random.default_rng(0)
    found = rzf_directions(torch.from_numpy(G), noise, power).numpy()

    def leakage_ratio(beam: reference.Complex, user: int) -> float:
        gains = np.abs(G @ beam) ** 2
        return float(gains[user] / (gains.sum() - gains[user] + 4 * noise / power))

    for user in range(4):
        best = leakage_ratio(found[:, user], user)
        for _ in range(50):
            other = found[:, user] + 0.1 * reference.complex_normal(rng, 6)
            assert leakage_ratio(other / np.linalg.norm(other), user) <= best + 1e-12


@pytest.mark.parametrize("kind", ["mrt", "rzf"])
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_zero_channel_gives_the_uniform_beam(kind: str, dtype: torch.dtype) -> None:
    G = channels(3, 4).to(dtype)
    G[1] = 0.0
    found = precoder_directions(kind, G, 0.1, 1.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[:, 1], 0.5, rtol=1e-6)
    # The loading σ²·K/P of three users with P = 1 is that of two with P = 2/3.
    others = precoder_directions(kind, G[[0, 2]], 0.1, 2 / 3)  # type: ignore[arg-type]
    tolerance = 1e-12 if dtype == torch.complex128 else 1e-5
    torch.testing.assert_close(found[:, [0, 2]], others, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_zf_ignores_a_zero_channel(dtype: torch.dtype) -> None:
    G = channels(3, 4).to(dtype)
    G[1] = 0.0
    found = zf_directions(G)
    assert_unit_columns(found, 3, 4)
    leak = (G @ found)[[0, 2]][:, [2, 0]].diagonal().abs()
    assert (leak < (1e-12 if dtype == torch.complex128 else 1e-5)).all()


def test_all_channels_zero() -> None:
    for kind in ("mrt", "zf", "rzf"):
        found = precoder_directions(kind, torch.zeros(2, 4, dtype=torch.complex64), 0.1, 1.0)
        np.testing.assert_allclose(found, 0.5, rtol=1e-6)


@pytest.mark.parametrize("kind", ["mrt", "zf", "rzf"])
def test_single_user_gets_its_matched_filter(kind: str) -> None:
    G = channels(1, 5)
    found = precoder_directions(kind, G, 0.1, 1.0)  # type: ignore[arg-type]
    expected = G.numpy()[0].conj() / np.linalg.norm(G.numpy())
    np.testing.assert_allclose(found.numpy()[:, 0], expected, atol=1e-13)


@pytest.mark.parametrize("kind", ["mrt", "rzf", "zf"])
def test_gradient_is_finite_even_at_a_zero_channel(kind: str) -> None:
    G = channels(3, 4)
    if kind != "zf":
        G[1] = 0.0
    G.requires_grad_(True)
    found = precoder_directions(kind, G, 0.1, 1.0)  # type: ignore[arg-type]
    found.abs().square()[:2].sum().backward()
    assert G.grad is not None
    assert G.grad.isfinite().all()


def test_gradcheck() -> None:
    G = channels(2, 3).requires_grad_(True)
    assert torch.autograd.gradcheck(mrt_directions, (G,))
    assert torch.autograd.gradcheck(lambda g: rzf_directions(g, 0.3, 1.0), (G,))


@pytest.mark.parametrize("kind", ["mmse", "MRT", ""])
def test_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="kind must be one of 'mrt', 'zf', 'rzf', got") as error:
        precoder_directions(kind, channels(2, 3), 0.1, 1.0)  # type: ignore[arg-type]
    assert repr(kind) in str(error.value)
