"""The search for waveforms: gradients, constraints, multipliers, and the coarse grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from isac_gym.physics.sensing.coarse import CoarseSensing, ExactSensing
from isac_gym.physics.sensing.model import SensingModel
from isac_gym.physics.waveform import normalise_rows
from isac_gym.solvers.beampattern import best_beampattern
from isac_gym.solvers.objectives import LeakageObjective
from isac_gym.solvers.waveform import WaveformSearch

TARGETS = (-70.0, 0.0, 40.0)


def sensing(antennas: int, **changes: Any) -> SensingModel:
    return SensingModel(antennas, 0.5, TARGETS, dtype=torch.float64, **changes)


def drawn(seed: int, count: int, users: int, antennas: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    f = torch.from_numpy(reference.complex_normal(rng, count, users, antennas))
    V = torch.from_numpy(reference.complex_normal(rng, count, antennas, antennas))
    return f, V


class Quadratic:
    """φ = Σ w q + ½ Σ q², so that the gradient by q is not constant."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.accepted: list[Tensor] = []

    def evaluate(self, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = (self.weights * received).sum(-1) + 0.5 * received.square().sum(-1)
        return value, self.weights + received, received

    def accept(self, mask: Tensor, state: Tensor) -> None:
        self.accepted.append(mask)

    def renew(self) -> None:
        return None


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("penalty", [0.0, 50.0])
def test_the_gradient_by_central_differences(form: Any, penalty: float) -> None:
    f, V = drawn(0, 3, 2, 4)
    model = sensing(4, cross_correlation=form)
    weights = torch.tensor([[0.3, 1.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    search = WaveformSearch(
        ExactSensing(model),
        torch.tensor([0.3, 0.5, 5.0], dtype=torch.float64),
        f,
        2.5,
        Quadratic(weights),
        V,
        torch.tensor([3.0, 0.5, 1.0], dtype=torch.float64),
        penalty=penalty,
    )
    point = torch.view_as_real(V).flatten(1)
    _, gradient, _ = search._evaluate(point)
    step = 1e-6
    for column in range(point.shape[1]):
        shift = torch.zeros_like(point)
        shift[:, column] = step
        upper, lower = search._evaluate(point + shift)[0], search._evaluate(point - shift)[0]
        torch.testing.assert_close(
            gradient[:, column], (upper - lower) / (2 * step), rtol=1e-5, atol=1e-6
        )


def test_what_is_reported_is_true() -> None:
    f, V = drawn(1, 4, 3, 5)
    search = WaveformSearch(
        ExactSensing(sensing(5)), 0.4, f, 1.5, Quadratic(torch.ones(4, 3).double()), V,
        torch.full((4,), 2.0, dtype=torch.float64),
    )  # fmt: skip
    search.run(35)
    streams = search.streams.numpy()
    np.testing.assert_allclose(np.sum(np.abs(streams) ** 2, -1), 1.5 / 5, rtol=1e-12)
    for index in range(4):
        R = streams[index] @ streams[index].conj().T
        loss = sum(reference.sensing_loss(R, 0.5, TARGETS))
        assert float(search.excess[index]) == pytest.approx(loss / 0.4 - 1, abs=1e-9)
        assert float(search.loss[index]) == pytest.approx(loss, rel=1e-9)
        F = f[index].numpy()
        q = np.einsum("km,mn,kn->k", F, R, F.conj()).real
        value = q.sum() + 0.5 * (q**2).sum()
        expected = value + float(search.multiplier[index]) * (loss / 0.4 - 1)
        assert float(search.value[index]) == pytest.approx(expected, rel=1e-9)


def leakage(
    f: Tensor, V: Tensor, threshold: float, multiplier: float = 20.0, **options: Any
) -> tuple[WaveformSearch, LeakageObjective]:
    ones = torch.ones(len(f), f.shape[1], dtype=torch.float64)
    objective = LeakageObjective(ones, torch.full_like(ones[:, 0], 0.1), ones)
    search = WaveformSearch(
        ExactSensing(sensing(f.shape[-1])), threshold, f, 1.0, objective, V,
        torch.full((len(f),), multiplier, dtype=torch.float64), **options,
    )  # fmt: skip
    return search, objective


def test_the_optimum_of_a_convex_problem_satisfies_its_conditions() -> None:
    """Feasible, and no feasible covariance nearby or far away receives less."""
    design = best_beampattern(
        num_antennas=4, spacing=0.5, targets_deg=TARGETS, beam_width_deg=10.0, power=1.0
    )
    threshold = 1.1 * design.loss
    f, V = drawn(2, 3, 2, 4)
    search, _ = leakage(f, V, threshold)
    search.run(400)
    assert float(search.excess.abs().max()) < 1e-5  # it binds
    assert float(search.multiplier.min()) > 0.0
    rng = np.random.default_rng(3)
    best = design.streams.numpy()
    for index in range(3):
        F, found = f[index].numpy(), search.streams[index].numpy()
        least = np.sum(np.abs(F @ found) ** 2)
        feasible = 0
        for trial in range(400):
            mix = rng.random()
            R = mix * found @ found.conj().T + (1 - mix) * best @ best.conj().T
            noise = reference.feasible_streams(rng, 4, 1.0)
            share = 10.0 ** -(trial % 5) if trial % 2 else 0.0
            R = (1 - share) * R + share * noise @ noise.conj().T
            if sum(reference.sensing_loss(R, 0.5, TARGETS)) <= threshold:
                feasible += 1
                assert np.einsum("km,mn,kn->", F, R, F.conj()).real >= least - 1e-4
        assert feasible > 50


def test_a_loose_threshold_does_not_bind() -> None:
    f, V = drawn(4, 3, 1, 4)
    search, _ = leakage(f, V, 50.0)
    search.run(150)
    assert float(search.multiplier.max()) == 0.0
    # One user can be nulled by four antennas.
    received = (f @ search.streams).abs().square().sum((-2, -1))
    assert float(received.max()) < 1e-8


def test_a_price_charges_for_the_loss() -> None:
    f, V = drawn(5, 6, 2, 4)
    losses = []
    for price in (0.0, 5.0, 50.0, 5000.0):
        search, _ = leakage(f, V, 1.0, price, penalty=0.0)
        search.run(200)
        assert float((search.multiplier - price).abs().max()) == 0.0
        losses.append(search.loss)
    stacked = torch.stack(losses)
    assert bool((stacked.diff(dim=0) <= 1e-6).all())
    floor = best_beampattern(
        num_antennas=4, spacing=0.5, targets_deg=TARGETS, beam_width_deg=10.0, power=1.0
    ).loss
    np.testing.assert_allclose(stacked[-1], floor, rtol=2e-3)


def test_stations_have_losses_of_their_own() -> None:
    groups = ((-40.0, 0.0, 40.0), (-50.0, 0.0, 70.0))
    _, V = drawn(6, 4, 1, 4)
    together = WaveformSearch(
        ExactSensing(SensingModel(4, 0.5, groups, dtype=torch.float64)), 1.0,
        torch.zeros(4, 0, 4, dtype=torch.complex128), 1.0, None, V,
        torch.ones(4, dtype=torch.float64), stations=2, penalty=0.0,
    )  # fmt: skip
    together.run(100)
    for index in range(4):
        floor = best_beampattern(
            num_antennas=4, spacing=0.5, targets_deg=groups[index % 2], beam_width_deg=10.0,
            power=1.0,
        ).loss  # fmt: skip
        assert float(together.loss[index]) == pytest.approx(floor, rel=1e-5)


@pytest.mark.parametrize("antennas", [5, 12])
@pytest.mark.parametrize(("step", "tolerance"), [(3.0, 0.02), (6.0, 0.05)])
def test_the_coarse_grid_is_a_few_percent_off(antennas: int, step: float, tolerance: float) -> None:
    model = sensing(antennas)
    coarse = CoarseSensing(model, step, 10.0)
    rng = np.random.default_rng(7)
    best = best_beampattern(
        num_antennas=antennas, spacing=0.5, targets_deg=TARGETS, beam_width_deg=10.0,
        power=0.2 * antennas,
    ).streams.numpy()  # fmt: skip
    for trial in range(20):
        V = best + 0.02 * (trial % 10) * reference.complex_normal(rng, antennas, antennas)
        R = V @ V.conj().T
        error, correlation = reference.sensing_loss(R, 0.5, TARGETS)
        found = float(coarse.loss(torch.from_numpy(R)))
        assert found - error == pytest.approx(correlation, rel=tolerance)


def test_rows_are_normalised() -> None:
    raw = torch.tensor([[3.0 + 4.0j, 0.0], [0.0, 0.0]], dtype=torch.complex128)
    found = normalise_rows(raw, 8.0)
    expected = torch.tensor([[1.2 + 1.6j, 0.0], [2**0.5, 2**0.5]], dtype=torch.complex128)
    torch.testing.assert_close(found, expected)
