"""Unfolded stages: gradients of the loss, prices of interference, steps, and the compiled loop."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from torch import Tensor

from isac_gym.agents.networks.unfolded import stage
from isac_gym.agents.networks.unfolded.downlink import Downlink, StageControls
from isac_gym.agents.networks.unfolded.stage import advance, descend, interference_resolvent
from isac_gym.physics.sensing.coarse import CoarseSensing, ExactSensing, Sensing
from isac_gym.physics.sensing.model import SensingModel
from isac_gym.solvers.beampattern import best_beampattern

TARGETS = (-48.0, 3.0, 40.0)
GROUPS = (TARGETS, (-60.0, 12.0))
Scale = float | Literal["optimal"]


def model_of(
    size: int,
    *,
    form: reference.Form = "grid_abs",
    scale: Scale = 1.0,
    targets: Any = TARGETS,
    dtype: torch.dtype = torch.float64,
) -> SensingModel:
    return SensingModel(
        size, 0.5, targets, cross_correlation=form, pattern_scale=scale, dtype=dtype
    )


def hermitian(rng: np.random.Generator, *shape: int) -> reference.Complex:
    raw = reference.complex_normal(rng, *shape, shape[-1])
    return raw + np.swapaxes(raw.conj(), -1, -2)


def covariances(seed: int, size: int, *batch: int) -> reference.Complex:
    """Random R with unit diagonal over M, on which no direction is nulled."""
    rng = np.random.default_rng(seed)
    V = reference.complex_normal(rng, *batch, size, size)
    V /= np.linalg.norm(V, axis=-1, keepdims=True) * np.sqrt(size)
    return V @ np.swapaxes(V.conj(), -1, -2)


def losses(R: reference.Complex, groups: Any, form: reference.Form, scale: Scale) -> reference.Real:
    """L_r of (n, J, M, M) in double precision, (n, J)."""
    return np.array(
        [
            [
                sum(reference.sensing_loss(each, 0.5, targets, form=form, scale=scale))
                for each, targets in zip(block, groups, strict=True)
            ]
            for block in R
        ]
    )


def along(gradient: Tensor, direction: reference.Complex) -> reference.Real:
    """Re tr(G D)."""
    product = np.einsum("...mn,...nm->...", gradient.detach().numpy(), direction)
    return np.asarray(product.real)


# The sensing loss with its gradient


@pytest.mark.parametrize("form", reference.FORMS)
@pytest.mark.parametrize("scale", [1.0, "optimal"])
@pytest.mark.parametrize("size", [4, 5])
def test_the_gradient_by_central_differences_of_the_direct_formula(
    form: reference.Form, scale: Scale, size: int
) -> None:
    R = covariances(0, size, 2, 2)
    model = model_of(size, form=form, scale=scale, targets=GROUPS)
    value, gradient = model.with_gradient(torch.from_numpy(R))
    assert not value.requires_grad
    assert not gradient.requires_grad
    np.testing.assert_allclose(value, losses(R, GROUPS, form, scale), rtol=1e-9)
    torch.testing.assert_close(gradient, gradient.mH, rtol=0, atol=1e-13)
    rng = np.random.default_rng(1)
    step = 1e-6
    for _ in range(3):
        D = hermitian(rng, 2, 2, size)
        upper, lower = (losses(R + sign * step * D, GROUPS, form, scale) for sign in (1, -1))
        np.testing.assert_allclose(along(gradient, D), (upper - lower) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, "optimal"])
@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("degrees", [3.0, 6.0])
def test_the_gradient_on_the_coarse_grid_by_autograd(
    scale: Scale, size: int, degrees: float
) -> None:
    coarse = CoarseSensing(model_of(size, scale=scale, targets=GROUPS), degrees, 10.0)
    leaf = torch.from_numpy(covariances(2, size, 3, 2)).requires_grad_(True)
    loss = coarse.loss(leaf)
    (expected,) = torch.autograd.grad(loss.sum(), leaf)
    value, gradient = coarse.with_gradient(leaf.detach())
    torch.testing.assert_close(value, loss.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, 0.5 * (expected + expected.mH), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(gradient, gradient.mH, rtol=0, atol=1e-13)


def smoothed_correlation(R: reference.Complex, angles: reference.Real, square: float) -> float:
    pairs = reference.patterns(R, reference.steering(angles, len(R), 0.5))
    above = np.abs(pairs[np.triu_indices(len(angles), 1)])
    return float(np.mean(np.sqrt(above**2 + square)))


@pytest.mark.parametrize("size", [4, 5])
def test_the_smoothed_magnitudes(size: int) -> None:
    R = covariances(3, size)
    square = 3e-3
    model = model_of(size)
    value, gradient = model.with_gradient(torch.from_numpy(R), torch.tensor(square))
    error, plain = reference.sensing_loss(R, 0.5, TARGETS)
    expected = smoothed_correlation(R, reference.GRID, square)
    assert float(value) == pytest.approx(error + expected, rel=1e-9)
    assert expected > 1.02 * plain
    step = 1e-6
    D = hermitian(np.random.default_rng(4), size)
    upper, lower = (
        reference.sensing_loss(R + sign * step * D, 0.5, TARGETS)[0]
        + smoothed_correlation(R + sign * step * D, reference.GRID, square)
        for sign in (1, -1)
    )
    assert along(gradient, D) == pytest.approx((upper - lower) / (2 * step), rel=1e-6)


def kinds(size: int, scale: Scale) -> dict[str, Sensing]:
    model = model_of(size, scale=scale, targets=GROUPS)
    found: dict[str, Sensing] = {
        "exact": ExactSensing(model),
        "coarse": CoarseSensing(model, 6.0, 10.0),
    }
    for form in reference.FORMS[1:]:
        found[form] = ExactSensing(model_of(size, form=form, scale=scale, targets=GROUPS))
    return found


@pytest.mark.parametrize("kind", ["exact", "coarse", "grid_sq", "target_sq"])
@pytest.mark.parametrize("scale", [1.0, "optimal"])
@pytest.mark.parametrize("size", [4, 5])
def test_the_derivative_of_the_gradient_by_central_differences(
    kind: str, scale: Scale, size: int
) -> None:
    sensing = kinds(size, scale)[kind]
    rng = np.random.default_rng(5)
    R, D, E = covariances(6, size, 2, 2), hermitian(rng, 2, 2, size), hermitian(rng, 2, 2, size)
    square = 2e-3

    def slope(moved: reference.Complex, smoothing: float) -> float:
        return float(along(sensing.gradient(torch.from_numpy(moved), smoothing), D).sum())

    leaf = torch.from_numpy(R).requires_grad_(True)
    smoothing = torch.tensor(square, dtype=torch.float64, requires_grad=True)
    gradient = sensing.gradient(leaf, smoothing)
    torch.testing.assert_close(gradient, sensing.with_gradient(leaf, smoothing)[1])
    product = torch.einsum("...mn,...nm->...", gradient, torch.from_numpy(D)).real.sum()
    second, by_smoothing = torch.autograd.grad(product, (leaf, smoothing), allow_unused=True)
    step = 1e-6
    expected = (slope(R + step * E, square) - slope(R - step * E, square)) / (2 * step)
    found = float((second.numpy().conj() * E).real.sum())
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(expected) > 0.1
    if kind in ("grid_sq", "target_sq"):
        assert by_smoothing is None
        return
    step = 1e-7
    expected = (slope(R, square + step) - slope(R, square - step)) / (2 * step)
    assert float(by_smoothing) == pytest.approx(expected, rel=1e-5)
    # What is differentiated of the value is the gradient.
    value, gradient = sensing.with_gradient(leaf, smoothing)
    (first,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(0.5 * (first + first.mH), gradient.detach(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", reference.FORMS)
def test_without_gradients_wanted_none_are_held(form: reference.Form) -> None:
    R = torch.from_numpy(covariances(7, 4, 2))
    model = model_of(4, form=form)
    taped = model.with_gradient(R.clone().requires_grad_(True), 1e-3)
    with torch.inference_mode():
        plain = model.with_gradient(R, 1e-3)
    for found, expected in zip(plain, taped, strict=True):
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-14)
    assert not R.requires_grad


@pytest.mark.parametrize("size", [5, 12])
def test_single_precision_agrees_with_double(size: int) -> None:
    """Where Numba is installed, this is the compiled sum over pairs with smoothing."""
    R = covariances(8, size, 4, 1)
    square = 0.02 / size**2
    results = []
    for dtype in (torch.float32, torch.float64):
        coarse = CoarseSensing(model_of(size, targets=(TARGETS,), dtype=dtype), 6.0, 10.0)
        given = torch.from_numpy(R).to(dtype.to_complex())
        results.append(coarse.with_gradient(given, torch.tensor(square, dtype=dtype)))
    (value, gradient), (expected, by_covariance) = results
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    largest = float(by_covariance.abs().max())
    np.testing.assert_allclose(gradient, by_covariance, rtol=0, atol=2e-5 * largest)


# What the users pay


def softmax(logits: reference.Real) -> reference.Real:
    raised: reference.Real = np.exp(logits - logits.max())
    return raised / raised.sum()


def rate(gains: reference.Real, powers: reference.Real, received: Any, noise: float) -> float:
    total = 0.0
    for k in range(len(powers)):
        others = sum(gains[k, i] * powers[i] for i in range(len(powers)) if i != k)
        total += np.log2(1 + gains[k, k] * powers[k] / (others + received[k] + noise))
    return total


def beam_gains(
    g: reference.Complex, dual: reference.Real, disturbance: reference.Real, budget: float
) -> reference.Real:
    """abs(g_kᵀd_l)² for unit d_l ∝ (I + Σ λ/σ² g* gᵀ)⁻¹ g_l*."""
    matrix = np.eye(g.shape[1], dtype=complex)
    for row, share, noise in zip(g, softmax(dual), disturbance, strict=True):
        matrix += budget * share / noise * np.outer(row.conj(), row)
    columns = np.linalg.solve(matrix, g.conj().T)
    columns /= np.linalg.norm(columns, axis=0)
    return np.abs(g @ columns) ** 2


@dataclasses.dataclass
class Users:
    g: reference.Complex
    f: reference.Complex
    power: reference.Real
    dual: reference.Real
    received: reference.Real
    noise: reference.Real
    gains: reference.Real | None
    budget: float = 1.3

    def downlink(self) -> Downlink:
        g = torch.from_numpy(self.g)
        gains = None if self.gains is None else torch.from_numpy(self.gains)
        noise = torch.from_numpy(self.noise)
        return Downlink(torch.from_numpy(self.f), g @ g.mH, gains, noise, self.budget)


def users_of(seed: int, num: int, cells: int, users: int, size: int, fixed: bool) -> Users:
    rng = np.random.default_rng(seed)
    shape = (num, cells, users)
    return Users(
        g=reference.complex_normal(rng, *shape, 4),
        f=reference.complex_normal(rng, *shape, size),
        power=rng.normal(size=shape),
        dual=rng.normal(size=shape),
        received=rng.exponential(0.3, shape),
        noise=rng.uniform(0.05, 0.5, (num, cells)),
        gains=rng.exponential(1.0, (*shape, users)) if fixed else None,
    )


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_slopes_are_what_radar_power_costs_in_rate(fixed: bool, count: int) -> None:
    """With more users than antennas, too; beams and powers stay as they are."""
    users = users_of(10, 3, 2, count, 4, fixed)
    tensors = (torch.from_numpy(x) for x in (users.power, users.dual, users.received))
    found = users.downlink().slopes(*tensors).numpy()
    assert (found > 0).all()
    step = 1e-6
    for at in np.ndindex(3, 2):
        noise = float(users.noise[at])
        disturbance = noise + users.received[at]
        gains = beam_gains(users.g[at], users.dual[at], disturbance, users.budget)
        if users.gains is not None:
            gains = users.gains[at]
        powers = users.budget * softmax(users.power[at])
        for k in range(count):
            shift = step * np.eye(count)[k]
            upper, lower = (
                rate(gains, powers, users.received[at] + sign * shift, noise) for sign in (1, -1)
            )
            # What a user receives costs that user alone.
            assert found[at][k] == pytest.approx((lower - upper) / (2 * step), rel=1e-5, abs=1e-8)


def test_loading_is_disturbance_over_dual_power() -> None:
    users = users_of(11, 4, 1, 3, 4, False)
    dual, received = torch.from_numpy(users.dual), torch.from_numpy(users.received)
    found = users.downlink().loading(dual, received).numpy()
    for at in np.ndindex(4, 1):
        disturbance = users.noise[at] + users.received[at]
        np.testing.assert_allclose(found[at], disturbance / (1.3 * softmax(users.dual[at])))
    # A user that counts for nothing has a finite loading.
    lost = torch.tensor([0.0, -500.0], dtype=torch.float64).expand(4, 1, 2)
    assert bool(users.downlink().loading(lost, received[..., :2]).isfinite().all())


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_resolvent_is_the_inverse(count: int) -> None:
    rng = np.random.default_rng(12)
    f, w = reference.complex_normal(rng, 3, 2, count, 5), rng.exponential(2.0, (3, 2, count))
    w[0, 0, 0] = 0.0
    found = interference_resolvent(torch.from_numpy(f), torch.from_numpy(w)).numpy()
    for at in np.ndindex(3, 2):
        matrix = np.eye(5) + (f[at].conj().T * w[at]) @ f[at]
        np.testing.assert_allclose(found[at], np.linalg.inv(matrix), rtol=0, atol=1e-12)


# The steps


def controls_of(
    seed: int, num: int, cells: int, users: int, steps: int, dtype: torch.dtype = torch.float64
) -> StageControls:
    rng = np.random.default_rng(seed)
    tempo = np.concatenate(
        [rng.normal(-0.5, 0.3, (num, cells, steps)), rng.uniform(0, 0.3, (num, cells, steps))], -1
    )
    arrays = rng.normal(size=(num, cells, users, 3)), tempo, rng.uniform(5, 50, (num, cells))
    outputs, tempos, price = (torch.from_numpy(array).to(dtype) for array in arrays)
    return StageControls(outputs, tempos, price, 1.2, 0.5, torch.tensor(1e-3, dtype=dtype))


def test_controls_by_hand() -> None:
    controls = controls_of(13, 2, 1, 3, 2)
    outputs, tempo, price = (x.numpy() for x in (controls.outputs, controls.tempo, controls.price))
    # Some corrections are beyond the bound of 0.5, some are within it.
    assert (np.abs(outputs[..., 2]) > 0.5).any()
    assert (np.abs(outputs[..., 2]) < 0.5).any()
    expected = 1.2 / price[..., None] * np.exp(np.clip(outputs[..., 2], -0.5, 0.5))
    np.testing.assert_allclose(controls.factors, expected)
    for step, (eta, beta) in enumerate(controls.paces):
        np.testing.assert_allclose(eta, 1.2 * np.exp(np.clip(tempo[..., step], -0.5, 0.5)))
        np.testing.assert_allclose(beta, tempo[..., 2 + step])


@pytest.mark.parametrize(("size", "columns"), [(4, 4), (5, 2)])
def test_steps_by_hand(size: int, columns: int) -> None:
    num, power = 3, 0.9
    controls = dataclasses.replace(
        controls_of(14, num, 1, 2, 2), smoothing=torch.tensor(0.0, dtype=torch.float64)
    )
    rng = np.random.default_rng(15)
    f, w = reference.complex_normal(rng, num, 1, 2, size), rng.exponential(1.0, (num, 1, 2))
    start, before = (
        np.stack([reference.feasible_streams(rng, size, power, columns) for _ in range(num)])
        for _ in range(2)
    )
    resolvent = interference_resolvent(torch.from_numpy(f), torch.from_numpy(w))
    found, last = descend(
        ExactSensing(model_of(size, targets=(TARGETS,))),
        *(torch.from_numpy(x)[:, None] for x in (start, before)),
        resolvent,
        controls,
        power,
    )
    for n in range(num):
        A = np.linalg.inv(np.eye(size) + (f[n, 0].conj().T * w[n, 0]) @ f[n, 0])
        V, old = start[n], before[n]
        for step in range(2):
            eta = 1.2 * np.exp(np.clip(float(controls.tempo[n, 0, step]), -0.5, 0.5))
            beta = float(controls.tempo[n, 0, 2 + step])
            # The gradient by V is 2GV.
            moved = V - 0.5 * eta * reference.sensing_gradient(V, 0.5, TARGETS) + beta * (V - old)
            moved = A @ moved
            moved *= np.sqrt(power / size) / np.linalg.norm(moved, axis=1, keepdims=True)
            V, old = moved, V
        np.testing.assert_allclose(found[n, 0], V, rtol=0, atol=1e-7)
        np.testing.assert_allclose(last[n, 0], old, rtol=0, atol=1e-7)
    rows = found.abs().square().sum(-1)
    np.testing.assert_allclose(rows, power / size, rtol=1e-13)


@pytest.mark.parametrize("step_deg", [None, 6.0])
def test_plain_steps_descend_on_interference_plus_loss(step_deg: float | None) -> None:
    """Σ w_k f_kᵀRf_k* + η L_r(R), judged by the direct formulas."""
    size, power, num, eta = 5, 1.0, 20, 0.8
    design = best_beampattern(
        num_antennas=size, spacing=0.5, targets_deg=TARGETS, beam_width_deg=10.0, power=power
    )
    rng = np.random.default_rng(16)
    f, w = reference.complex_normal(rng, num, 1, 2, size), rng.uniform(0.02, 0.4, (num, 1, 2))
    zeros = torch.zeros(num, 1, 20, dtype=torch.float64)
    controls = dataclasses.replace(
        controls_of(17, num, 1, 2, 10), tempo=zeros, length=eta,
        smoothing=torch.tensor(5e-3 * (power / size) ** 2, dtype=torch.float64),
    )  # fmt: skip
    model = model_of(size, targets=(TARGETS,))
    sensing = ExactSensing(model) if step_deg is None else CoarseSensing(model, step_deg, 10.0)
    start = design.streams.expand(num, 1, -1, -1)
    resolvent = interference_resolvent(torch.from_numpy(f), torch.from_numpy(w))
    found, _ = descend(sensing, start, start, resolvent, controls, power)

    def objective(V: npt.NDArray[Any], n: int) -> float:
        q = np.sum(np.abs(f[n, 0] @ V) ** 2, -1)
        loss = sum(reference.sensing_loss(V @ V.conj().T, 0.5, TARGETS))
        return float(w[n, 0] @ q + eta * loss)

    falls = np.array(
        [objective(start[n, 0].numpy(), n) - objective(found[n, 0].numpy(), n) for n in range(num)]
    )
    assert (falls > 0).mean() >= 0.9
    assert falls.mean() > 0.02


# The compiled loop


def stage_of(
    size: int, columns: int, cells: int, users: int, *, fixed: bool, num: int = 6
) -> tuple[Users, StageControls, Tensor, Tensor]:
    rng = np.random.default_rng(18)
    drawn = users_of(19, num, cells, users, size, fixed)
    V, old = (
        np.stack(
            [reference.feasible_streams(rng, size, 1.1, columns) for _ in range(num * cells)]
        ).reshape(num, cells, size, columns)
        for _ in range(2)
    )
    drawn.received = np.sum(np.abs(drawn.f @ V) ** 2, -1)
    controls = controls_of(20, num, cells, users, 3)
    return drawn, controls, torch.from_numpy(V), torch.from_numpy(old)


def single(value: Tensor) -> Tensor:
    return value.to(torch.complex64 if value.is_complex() else torch.float32)


@pytest.mark.parametrize(
    ("size", "columns", "cells", "users", "degrees", "scale", "fixed"),
    [
        (12, 12, 1, 5, 6.0, 1.0, False),
        (12, 12, 2, 3, 6.0, "optimal", True),
        (12, 12, 1, 3, 3.0, 1.0, True),
        (5, 5, 2, 6, 6.0, "optimal", False),
        (4, 2, 1, 1, 6.0, 0.7, False),
    ],
    ids=["beams", "powers", "fine", "odd", "few-streams"],
)
def test_the_compiled_stage_agrees_with_tensors_in_double_precision(
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    columns: int,
    cells: int,
    users: int,
    degrees: float,
    scale: Scale,
    fixed: bool,
) -> None:
    pytest.importorskip("numba")
    monkeypatch.delenv("ISAC_GYM_COMPILED", raising=False)
    drawn, controls, V, old = stage_of(size, columns, cells, users, fixed=fixed)
    groups = GROUPS[:cells]
    downlink = drawn.downlink()
    received = torch.from_numpy(drawn.received)
    exact = CoarseSensing(model_of(size, scale=scale, targets=groups), degrees, 10.0)
    expected = advance(exact, downlink, controls, V, old, received, 1.1)

    def refused(*_: Any) -> None:
        raise AssertionError("the tensors' path was taken")

    sensing = CoarseSensing(
        model_of(size, scale=scale, targets=groups, dtype=torch.float32), degrees, 10.0
    )
    lowered = dataclasses.replace(
        controls,
        **{name: single(getattr(controls, name)) for name in ("outputs", "tempo", "price")},
        smoothing=single(controls.smoothing),
    )
    # Any layout will do: lazily conjugated, transposed, expanded, strided.
    gains = None if downlink.gains is None else single(downlink.gains).mT.contiguous().mT
    small = Downlink(
        single(downlink.radar).conj().resolve_conj().conj(),
        single(downlink.gram).mT.contiguous().mT,
        gains,
        torch.stack([single(downlink.noise_power)] * 2, -1)[..., 0],
        downlink.budget,
    )
    given = (
        single(V).mT.contiguous().mT,
        single(old).conj().resolve_conj().conj(),
        torch.stack([single(received)] * 2, -1)[..., 0],
    )
    held = [value for value in (*given, *vars(small).values()) if torch.is_tensor(value)]
    copies = [value.clone() for value in held]
    with monkeypatch.context() as patched:
        patched.setattr(stage, "descend", refused)
        found = advance(sensing, small, lowered, *given, 1.1)
    for value, copy in zip(held, copies, strict=True):
        assert torch.equal(value, copy)
    for value, wanted in zip(found, expected, strict=True):
        assert value.shape == wanted.shape
        largest = float(wanted.abs().max())
        np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-4 * largest)
    moved = float((expected[0] - V).abs().max())
    assert moved > 0.05 * float(V.abs().max())
    rows = found[0].abs().square().sum(-1)
    np.testing.assert_allclose(rows, 1.1 / size, rtol=1e-5)

    # The same in single precision without the loop.
    monkeypatch.setattr(stage, "_can_run_compiled", lambda *_: False)
    plain = advance(sensing, small, lowered, *given, 1.1)
    for value, wanted in zip(plain, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("size", "columns", "cells", "degrees", "scale"),
    [(12, 12, 2, 6.0, 1.0), (4, 2, 1, 6.0, "optimal")],
    ids=["usual", "few-streams"],
)
def test_the_compiled_steps_agree_with_tensors_in_double_precision(
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    columns: int,
    cells: int,
    degrees: float,
    scale: Scale,
) -> None:
    """With any resolvent, as the stations of several cells set it."""
    pytest.importorskip("numba")
    monkeypatch.delenv("ISAC_GYM_COMPILED", raising=False)
    _, controls, V, old = stage_of(size, columns, cells, 3, fixed=False)
    rng = np.random.default_rng(2)
    drawn = torch.from_numpy(reference.complex_normal(rng, *V.shape[:2], size, size))
    resolvent = torch.linalg.inv(torch.eye(size) + 0.3 * drawn @ drawn.mH)
    groups = GROUPS[:cells]
    exact = CoarseSensing(model_of(size, scale=scale, targets=groups), degrees, 10.0)
    expected = descend(exact, V, old, resolvent, controls, 1.1)
    sensing = CoarseSensing(
        model_of(size, scale=scale, targets=groups, dtype=torch.float32), degrees, 10.0
    )
    lowered = dataclasses.replace(
        controls,
        **{name: single(getattr(controls, name)) for name in ("outputs", "tempo", "price")},
        smoothing=single(controls.smoothing),
    )
    given = single(V).mT.contiguous().mT, single(old), single(resolvent).mT.contiguous().mT
    copies = [value.clone() for value in given]

    def refused(*_: Any) -> None:
        raise AssertionError("the tensors' path was taken")

    with monkeypatch.context() as patched:
        patched.setattr(CoarseSensing, "gradient", refused)
        found = descend(sensing, *given, lowered, 1.1)
    for value, copy in zip(given, copies, strict=True):
        assert torch.equal(value, copy)
    for value, wanted in zip(found, expected, strict=True):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))
    assert float((expected[0] - V).abs().max()) > 0.05 * float(V.abs().max())


def test_one_start_expanded_to_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.delenv("ISAC_GYM_COMPILED", raising=False)
    drawn, controls, V, _ = stage_of(4, 2, 1, 1, fixed=False)
    sensing = CoarseSensing(model_of(4, targets=(TARGETS,), dtype=torch.float32), 6.0, 10.0)
    tensors = dataclasses.asdict(drawn.downlink())
    downlink = Downlink(
        **{
            name: single(value) if torch.is_tensor(value) else value
            for name, value in tensors.items()
        }
    )
    lowered = StageControls(
        single(controls.outputs), single(controls.tempo), single(controls.price), 1.2, 0.5,
        single(controls.smoothing),
    )  # fmt: skip
    start = single(V[0])
    expanded = start.expand(6, -1, -1, -1)
    received = (downlink.radar @ expanded).abs().square().sum(-1)
    found = advance(sensing, downlink, lowered, expanded, expanded, received, 1.1)
    copied = start.repeat(6, 1, 1, 1)
    expected = advance(sensing, downlink, lowered, copied, copied.clone(), received, 1.1)
    assert torch.equal(start, single(V[0]))
    for value, wanted in zip(found, expected, strict=True):
        assert torch.equal(value, wanted)
    assert not torch.equal(found[0][0], found[0][1])


def test_gradients_are_followed_where_they_are_wanted() -> None:
    """The compiled loop has none: it must not run then."""
    drawn, controls, V, old = stage_of(4, 2, 1, 1, fixed=False)
    sensing = CoarseSensing(model_of(4, targets=(TARGETS,), dtype=torch.float32), 6.0, 10.0)
    g = single(torch.from_numpy(drawn.g))
    f = single(torch.from_numpy(drawn.f))
    noise = single(torch.from_numpy(drawn.noise))
    downlink = Downlink(f, g @ g.mH, None, noise, drawn.budget)
    outputs = single(controls.outputs).requires_grad_(True)
    lowered = StageControls(
        outputs, single(controls.tempo), single(controls.price), 1.2, 0.5,
        single(controls.smoothing),
    )  # fmt: skip
    received = single(torch.from_numpy(drawn.received))
    streams, _, heard = advance(sensing, downlink, lowered, single(V), single(old), received, 1.1)
    heard.sum().backward()
    assert streams.requires_grad
    assert outputs.grad is not None
    # A single user has all the power and dual power, whatever the logits.
    assert float(outputs.grad[..., :2].abs().max()) < 1e-6
    assert float(outputs.grad[..., 2].abs().max()) > 1e-4


def test_the_resolvent_has_a_gradient_where_a_weight_vanishes() -> None:
    rng = np.random.default_rng(21)
    f = torch.from_numpy(reference.complex_normal(rng, 1, 1, 2, 3)).to(torch.complex64)
    w = torch.tensor([[[0.0, 0.5]]], requires_grad=True)
    interference_resolvent(f, w).abs().square().sum().backward()
    assert w.grad is not None
    assert bool(w.grad.isfinite().all())
    assert float(w.grad[0, 0, 1]) != 0.0
