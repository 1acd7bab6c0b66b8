"""Multipliers: their rules by hand, and constrained problems whose optimum is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from isac_gym.learning.multipliers import (
    AugmentedLagrangian,
    DualRule,
    Multipliers,
    ProportionalIntegral,
    make_multipliers,
)

Real = npt.NDArray[np.float64]
RULES: list[DualRule] = ["ascent", "augmented", "pi"]


def numbers(value: Tensor) -> Real:
    return value.detach().double().numpy().copy()


def batches(
    rng: np.random.Generator, steps: int, shape: tuple[int, ...], names: list[str]
) -> list[dict[str, Real]]:
    """Signed constraints that are violated, then kept, then violated again."""
    return [
        {
            name: rng.normal(-0.9 if steps <= 4 * step < 3 * steps else 0.8, 0.3, shape)
            for name in names
        }
        for step in range(steps)
    ]


def tensors(batch: Mapping[str, Real]) -> dict[str, Tensor]:
    return {name: torch.tensor(value).float() for name, value in batch.items()}


def weights_on(rng: np.random.Generator, count: int, points: int) -> Real:
    drawn = rng.uniform(size=(count, points)) * (rng.uniform(size=(count, points)) < 0.6)
    drawn[:, 0] += 0.1
    return np.asarray(drawn / drawn.sum(1, keepdims=True))


# The rules by hand


def test_ascent_by_hand() -> None:
    multipliers = Multipliers(["power", "sensing"], 2, 0.5)
    expected = {"power": np.zeros(2), "sensing": np.zeros(2)}
    moved_down = stopped_at_zero = 0
    for batch in batches(np.random.default_rng(0), 20, (7, 2), list(expected)):
        multipliers.ascend(tensors(batch))
        for name, value in batch.items():
            free = expected[name] + 0.5 * value.mean(0)
            moved_down += ((free < expected[name]) & (free > 0)).sum()
            stopped_at_zero += (free < 0).sum()
            expected[name] = np.maximum(free, 0.0)
            np.testing.assert_allclose(
                multipliers.values[name], expected[name], rtol=1e-5, atol=1e-6
            )
    assert moved_down > 5
    assert stopped_at_zero > 5


@pytest.mark.parametrize("rule", RULES)
def test_multipliers_start_at_zero_and_satisfied_constraints_leave_them_there(
    rule: DualRule,
) -> None:
    multipliers = make_multipliers(rule, ["sensing"], 3, 1.0, gain=0.7)
    assert multipliers.values["sensing"].tolist() == [0.0] * 3
    multipliers.ascend({"sensing": torch.full((4, 3), -0.2)})
    assert multipliers.values["sensing"].tolist() == [0.0] * 3
    multipliers.ascend({"sensing": torch.tensor([[0.5, -0.1, 0.0]])})
    first, *others = multipliers.values["sensing"].tolist()
    assert first > 0
    assert others == [0.0, 0.0]


@pytest.mark.parametrize("rule", RULES)
def test_initial_multipliers(rule: DualRule) -> None:
    multipliers = make_multipliers(
        rule, ["power", "sensing"], 2, 0.1, gain=0.5, initial={"sensing": 3.0}
    )
    assert multipliers.values["power"].tolist() == [0.0, 0.0]
    assert multipliers.values["sensing"].tolist() == [3.0, 3.0]
    multipliers.ascend({"power": torch.zeros(4, 2), "sensing": torch.zeros(4, 2)})
    assert multipliers.values["sensing"].tolist() == [3.0, 3.0], "nothing pulls them back to zero"


def test_penalty_weighs_the_mean_and_has_its_gradient() -> None:
    multipliers = Multipliers(["power", "sensing"], 2, 0.5)
    multipliers.values["power"][:] = torch.tensor([1.0, 2.0])
    multipliers.values["sensing"][:] = torch.tensor([0.0, 3.0])
    power = torch.tensor([[0.2, -0.4], [0.6, 0.0]], requires_grad=True)
    sensing = torch.tensor([[5.0, 0.1], [7.0, 0.3]], requires_grad=True)
    penalty = multipliers.penalty({"power": power, "sensing": sensing})
    assert penalty.item() == pytest.approx(1 * 0.4 + 2 * -0.2 + 0 * 6.0 + 3 * 0.2)
    penalty.backward()
    np.testing.assert_allclose(power.grad, np.array([[1.0, 2.0]] * 2) / 2)
    np.testing.assert_allclose(sensing.grad, np.array([[0.0, 3.0]] * 2) / 2)


def test_without_constraints_there_is_no_penalty() -> None:
    assert Multipliers([], 2, 0.5).penalty({}).item() == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_ascent_needs_no_gradient(rule: DualRule) -> None:
    multipliers = make_multipliers(rule, ["power"], 1, 0.5, gain=1.0)
    multipliers.ascend({"power": torch.ones(2, 1, requires_grad=True)})
    assert not multipliers.values["power"].requires_grad
    assert multipliers.values["power"].item() > 0


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_augmented_term_and_its_gradient_are_those_of_the_closed_form(scale: float) -> None:
    """With [·]₊ written out: λm + ρm²/2 where λ + ρm >= 0, else -λ²/2ρ."""
    rng = np.random.default_rng(1)
    rho = 2.5
    multipliers = AugmentedLagrangian(["a", "b"], 3, 0.1, penalty_weight=rho)
    held = {name: rng.uniform(0.1, 1.5, 3) for name in multipliers.values}
    for name, value in held.items():
        multipliers.values[name][:] = torch.tensor(value)
    given = {name: rng.normal(0.0, scale, (4, 3)) for name in held}
    leaves = {name: value.requires_grad_() for name, value in tensors(given).items()}
    penalty = multipliers.penalty(leaves)
    penalty.backward()
    expected, cases = 0.0, set()
    for name, multiplier in held.items():
        for cell in range(3):
            m, lam = given[name][:, cell].mean(), multiplier[cell]
            binds = bool(lam + rho * m >= 0)
            cases.add(binds)
            expected += lam * m + rho * m**2 / 2 if binds else -(lam**2) / (2 * rho)
            slope = (lam + rho * m if binds else 0.0) / 4
            gradient = leaves[name].grad
            assert gradient is not None
            np.testing.assert_allclose(gradient[:, cell], np.full(4, slope), rtol=1e-4, atol=1e-6)
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    assert scale < 1 or cases == {True, False}


def test_augmented_gradient_is_that_of_the_raised_multiplier() -> None:
    """With η = ρ the slope at a batch is the multiplier that the ascent then takes."""
    constraint = torch.tensor([[0.3, -0.2], [0.5, -0.4]], requires_grad=True)
    multipliers = AugmentedLagrangian(["c"], 2, 1.7, penalty_weight=1.7, initial={"c": 0.4})
    multipliers.penalty({"c": constraint}).backward()
    assert constraint.grad is not None
    multipliers.ascend({"c": constraint})
    np.testing.assert_allclose(constraint.grad.sum(0), multipliers.values["c"], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_pi_by_hand_with_clipping(smoothing: float) -> None:
    step, gain = 0.4, 1.3
    multipliers = ProportionalIntegral(
        ["a", "b"], 2, step, gain=gain, smoothing=smoothing, initial={"b": 0.5}
    )
    integral = {"a": np.zeros(2), "b": np.full(2, 0.5)}
    smoothed = {"a": np.zeros(2), "b": np.zeros(2)}
    clipped_integral = clipped_sum = 0
    for batch in batches(np.random.default_rng(2), 24, (5, 2), ["a", "b"]):
        multipliers.ascend(tensors(batch))
        for name, value in batch.items():
            m = value.mean(0)
            clipped_integral += (integral[name] + step * m < 0).sum()
            integral[name] = np.maximum(integral[name] + step * m, 0)
            smoothed[name] = smoothing * smoothed[name] + (1 - smoothing) * m
            total = integral[name] + gain * smoothed[name]
            clipped_sum += ((total < 0) & (integral[name] > 0)).sum()
            np.testing.assert_allclose(
                multipliers.values[name], np.maximum(total, 0), rtol=1e-4, atol=1e-6
            )
    assert clipped_integral > 3
    assert clipped_sum > 3


def test_pi_without_gain_is_ascent() -> None:
    plain, pi = (
        make_multipliers(rule, ["a"], 2, 0.3, gain=0.0, initial={"a": 0.2})
        for rule in ("ascent", "pi")
    )
    for batch in batches(np.random.default_rng(3), 12, (4, 2), ["a"]):
        plain.ascend(tensors(batch))
        pi.ascend(tensors(batch))
        assert torch.equal(plain.values["a"], pi.values["a"])


def test_the_rule_none_never_moves() -> None:
    multipliers = make_multipliers(
        "none", ["power", "sensing"], 2, 10.0, gain=5.0, initial={"sensing": 20.0}
    )
    for batch in batches(np.random.default_rng(4), 6, (3, 2), ["power", "sensing"]):
        given = {name: value.requires_grad_() for name, value in tensors(batch).items()}
        penalty = multipliers.penalty(given)
        assert penalty.item() == 0.0
        penalty.backward()
        assert all(v.grad is not None and not v.grad.any() for v in given.values())
        multipliers.ascend(given)
        assert all(not value.any() for value in multipliers.values.values())


def test_the_step_size_may_change() -> None:
    multipliers = Multipliers(["a"], 1, 0.5)
    multipliers.step_size = 0.125
    multipliers.ascend({"a": torch.ones(3, 1)})
    assert multipliers.values["a"].item() == 0.125


# Points of a grid


@pytest.fixture
def grid_case() -> tuple[Real, Real, Real]:
    """Multipliers (P, J), weights (n, P) and constraint (n, J) of P = 4, J = 2, n = 9."""
    rng = np.random.default_rng(5)
    return rng.uniform(0.5, 2.0, (4, 2)), weights_on(rng, 9, 4), rng.normal(0.3, 1.0, (9, 2))


def test_penalty_on_points_is_the_mean_of_interpolated_multiplier_times_constraint(
    grid_case: tuple[Real, Real, Real],
) -> None:
    held, weights, constraint = grid_case
    multipliers = Multipliers(["a"], 2, 0.1, points=4)
    multipliers.values["a"][:] = torch.tensor(held)
    given = torch.tensor(constraint).float().requires_grad_()
    penalty = multipliers.penalty({"a": given}, torch.tensor(weights).float())
    interpolated = np.array(
        [[sum(w[p] * held[p, j] for p in range(4)) for j in range(2)] for w in weights]
    )
    np.testing.assert_allclose(
        multipliers.at("a", torch.tensor(weights).float()), interpolated, 1e-5
    )
    samples = (interpolated * constraint).sum(1)
    assert penalty.item() == pytest.approx(samples.mean(), rel=1e-4)
    penalty.backward()
    np.testing.assert_allclose(given.grad, interpolated / 9, rtol=1e-5)


def test_ascent_on_points_is_along_the_gradient_of_the_penalty(
    grid_case: tuple[Real, Real, Real],
) -> None:
    """By differences of the penalty, which is linear in the multipliers; P times it, per point."""
    held, weights, constraint = grid_case
    given, on = {"a": torch.tensor(constraint).float()}, torch.tensor(weights).float()

    def penalty(values: Real) -> float:
        multipliers = Multipliers(["a"], 2, 0.1, points=4)
        multipliers.values["a"][:] = torch.tensor(values)
        return multipliers.penalty(given, on).item()

    slope = np.zeros_like(held)
    for place in itertools.product(range(4), range(2)):
        raised = held.copy()
        raised[place] += 1.0
        slope[place] = penalty(raised) - penalty(held)
    multipliers = Multipliers(["a"], 2, 0.1, points=4)
    multipliers.values["a"][:] = torch.tensor(held)
    multipliers.ascend(given, on)
    moved = numbers(multipliers.values["a"]) - held
    np.testing.assert_allclose(moved, 0.1 * 4 * slope, rtol=1e-3, atol=1e-5)
    assert len(np.unique(np.sign(moved))) == 2


@pytest.mark.parametrize("rule", RULES)
def test_a_single_point_is_the_same_as_none(rule: DualRule) -> None:
    kept: dict[str, Any] = {"gain": 0.8, "initial": {"a": 0.6}}
    without, one = (make_multipliers(rule, ["a"], 2, 0.3, points=p, **kept) for p in (None, 1))
    for batch in batches(np.random.default_rng(6), 8, (5, 2), ["a"]):
        given, on = tensors(batch), torch.ones(5, 1)
        expected = pytest.approx(without.penalty(given).item(), rel=1e-4, abs=1e-6)
        assert one.penalty(given, on).item() == expected
        without.ascend(given)
        one.ascend(given, on)
        np.testing.assert_allclose(one.values["a"][0], without.values["a"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_samples_on_other_points_leave_a_point_alone(rule: DualRule) -> None:
    multipliers = make_multipliers(rule, ["a"], 1, 0.5, gain=1.0, points=3, initial={"a": 1.0})
    on = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    multipliers.ascend({"a": torch.tensor([[0.4], [0.8]])}, on)
    first, second, third = multipliers.values["a"].flatten().tolist()
    assert first > 1.0
    assert second > 1.0
    assert third == 1.0


def test_augmented_on_points_by_hand(grid_case: tuple[Real, Real, Real]) -> None:
    held, weights, constraint = grid_case
    rho = 1.9
    multipliers = AugmentedLagrangian(["a"], 2, 0.1, penalty_weight=rho, points=4)
    multipliers.values["a"][:] = torch.tensor(held)
    means = 4 * np.einsum("np,nj->pj", weights, constraint) / 9
    expected = ((np.maximum(held + rho * means, 0) ** 2 - held**2) / (2 * rho)).sum() / 4
    penalty = multipliers.penalty(
        {"a": torch.tensor(constraint).float()}, torch.tensor(weights).float()
    ).item()
    assert penalty == pytest.approx(expected, rel=1e-4)


def test_multipliers_at_points() -> None:
    multipliers = Multipliers(["a"], 2, 0.1, points=3)
    multipliers.values["a"][:] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = multipliers.at("a", torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]))
    assert found.tolist() == [[3.0, 4.0], [3.0, 4.0]]
    assert Multipliers(["a"], 2, 0.1, initial={"a": 7.0}).at("a").tolist() == [7.0, 7.0]


# States


@pytest.mark.parametrize("points", [None, 3])
@pytest.mark.parametrize("rule", [*RULES, "none"])
def test_a_state_goes_on_as_if_nothing_had_been(rule: DualRule, points: int | None) -> None:
    rng = np.random.default_rng(7)
    drawn = batches(rng, 14, (6, 2), ["a", "b"])
    on = None if points is None else torch.tensor(weights_on(rng, 6, points)).float()

    def fresh() -> Multipliers:
        return make_multipliers(
            rule, ["a", "b"], 2, 0.3, gain=0.7, points=points, initial={"a": 1.0}
        )

    whole, first, second = fresh(), fresh(), fresh()
    for batch in drawn[:9]:
        whole.ascend(tensors(batch), on)
        first.ascend(tensors(batch), on)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    second.load_state_dict(state)
    for batch in drawn[9:]:
        whole.ascend(tensors(batch), on)
        second.ascend(tensors(batch), on)
    for name in ("a", "b"):
        assert torch.equal(whole.values[name], second.values[name])
        assert rule == "none" or not torch.equal(first.values[name], second.values[name])
    assert all(torch.equal(v, state[k]) for k, v in first.state_dict().items()), "no copy is shared"


def test_the_state_of_pi_holds_integral_and_smoothed_mean() -> None:
    multipliers = ProportionalIntegral(["a"], 1, 0.5, gain=2.0, smoothing=0.5)
    multipliers.ascend({"a": torch.full((3, 1), 0.8)})
    state = {name: value.item() for name, value in multipliers.state_dict().items()}
    assert state == pytest.approx({"a": 0.4 + 2 * 0.4, "integral.a": 0.4, "smoothed.a": 0.4})


@pytest.mark.parametrize(
    "state",
    [
        {"a": torch.zeros(2)},
        {"a": torch.zeros(2), "c": torch.zeros(2)},
        {"a": torch.zeros(2), "b": torch.zeros(3)},
        {"a": torch.zeros(2), "b": torch.zeros(2), "integral.a": torch.zeros(2)},
    ],
    ids=["missing", "renamed", "shape", "surplus"],
)
def test_a_state_of_other_names_or_shapes_is_refused(state: dict[str, Tensor]) -> None:
    multipliers = Multipliers(["a", "b"], 2, 0.1, initial={"a": 3.0})
    with pytest.raises(ValueError, match=r"shapes .*'b': \(2,\).*got"):
        multipliers.load_state_dict(state)
    assert multipliers.values["a"].tolist() == [3.0, 3.0]


# Errors


@pytest.mark.parametrize(
    ("make", "parameter", "value"),
    [
        (lambda: Multipliers(["a"], 1, 0.0), "step_size", "0.0"),
        (lambda: Multipliers(["a"], 1, float("nan")), "step_size", "nan"),
        (lambda: Multipliers(["a"], 1, -2.0), "step_size", "-2.0"),
        (lambda: Multipliers(["a"], 1, 1.0, initial={"b": 1.0}), "initial", "'b'"),
        (lambda: Multipliers(["a"], 1, 1.0, initial={"a": -1.5}), r"initial\['a'\]", "-1.5"),
        (lambda: AugmentedLagrangian(["a"], 1, 1.0, penalty_weight=0.0), "penalty_weight", "0.0"),
        (lambda: ProportionalIntegral(["a"], 1, 1.0, gain=-0.5), "gain", "-0.5"),
        (lambda: ProportionalIntegral(["a"], 1, 1.0, gain=1, smoothing=1.0), "smoothing", "1.0"),
        (lambda: ProportionalIntegral(["a"], 1, 1.0, gain=1, smoothing=-0.1), "smoothing", "-0.1"),
        (lambda: make_multipliers("descent", ["a"], 1, 1.0, gain=1.0), "rule", "'descent'"),  # type: ignore[arg-type]
    ],
)
def test_errors_name_parameter_and_value(
    make: Callable[[], Any], parameter: str, value: str
) -> None:
    with pytest.raises(ValueError, match=rf"{parameter}.*{value}"):
        make()


# A problem with a known optimum: least ½‖x - a‖² where each b_iᵀx <= c_i. The first constraint
# binds, with x* = a - λ*b and λ* = (bᵀa - c)/‖b‖²; the second is violated only at the start.

TARGET = torch.tensor([2.0, -1.0, 0.5])
NORMALS = torch.tensor([[1.0, 0.5, -0.5], [0.3, 0.6, 1.0]])
BOUNDS = torch.tensor([0.5, 1.2])
START = torch.tensor([1.5, 2.0, 1.5])
NAMES = ["first", "second"]


def known_optimum() -> tuple[Real, float]:
    a, b, c = numbers(TARGET), numbers(NORMALS[0]), BOUNDS[0].item()
    multiplier = (b @ a - c) / (b @ b)
    assert multiplier > 0
    optimum = a - multiplier * b
    assert numbers(NORMALS[1]) @ optimum < 1.2 - 0.2
    assert numbers(NORMALS[1]) @ numbers(START) > 1.2
    return optimum, multiplier


def loss_and_constraints(
    x: Tensor, targets: Tensor, errors: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """From samples (n, 3) of a and errors (n, 2) of the constraints."""
    loss = 0.5 * (x - targets).square().sum(-1).mean()
    excess = NORMALS @ x - BOUNDS + errors
    return loss, {name: excess[:, [i]] for i, name in enumerate(NAMES)}


def solve(
    multipliers: Multipliers, steps: int, rate: float, noise: float = 0.0
) -> tuple[list[Real], list[list[float]]]:
    """Descent on x against ascent on the multipliers; both paths."""
    x = START.clone().requires_grad_()
    rng = np.random.default_rng(8)
    path, prices = [], []
    for _ in range(steps):
        drawn = torch.from_numpy(noise * rng.normal(size=(16, 5))).float()
        loss, constraints = loss_and_constraints(x, TARGET + drawn[:, :3], drawn[:, 3:])
        (slope,) = torch.autograd.grad(loss + multipliers.penalty(constraints), x)
        with torch.no_grad():
            x -= rate * slope
        multipliers.ascend(constraints)
        path.append(numbers(x))
        prices.append([multipliers.values[name].item() for name in NAMES])
    return path, prices


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_the_constrained_optimum(rule: DualRule) -> None:
    optimum, multiplier = known_optimum()
    path, prices = solve(make_multipliers(rule, NAMES, 1, 0.1, gain=1.0), 600, 0.1)
    assert max(price for _, price in prices) > 0.02, "the second multiplier rose before"
    np.testing.assert_allclose(path[-1], optimum, rtol=1e-2)
    assert prices[-1][0] == pytest.approx(multiplier, rel=1e-2)
    assert prices[-1][1] == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_it_from_noisy_batches(rule: DualRule) -> None:
    optimum, multiplier = known_optimum()
    noise = 0.3
    path, prices = solve(make_multipliers(rule, NAMES, 1, 0.02, gain=1.0), 3000, 0.03, noise)
    np.testing.assert_allclose(np.mean(path[1000:], 0), optimum, rtol=1e-2, atol=5e-3)
    found = np.mean(prices[1000:], 0)
    assert found[0] == pytest.approx(multiplier, rel=1e-2)
    assert found[1] < 1e-2
    assert np.std(path[1000:], 0).max() > 1e-3, "there is noise to average over"


def test_without_a_price_the_constraint_is_violated() -> None:
    path, _ = solve(make_multipliers("none", NAMES, 1, 0.1, gain=1.0), 400, 0.1)
    np.testing.assert_allclose(path[-1], TARGET, atol=1e-4)


def test_the_augmented_rule_holds_a_nonconvex_problem_that_ascent_cannot() -> None:
    """Least -x²/2 where x <= 1: a Lagrangian concave in x, the optimum x = λ = 1."""

    def follow(rule: DualRule) -> list[tuple[float, float]]:
        multipliers = make_multipliers(rule, ["c"], 1, 0.05, gain=4.0, initial={"c": 1.05})
        x = torch.tensor(0.95, requires_grad=True)
        path = []
        for _ in range(600):
            constraint = {"c": (x - 1.0).view(1, 1)}
            loss = -0.5 * x.square() + multipliers.penalty(constraint)
            (slope,) = torch.autograd.grad(loss, x)
            with torch.no_grad():
                x -= 0.05 * slope
            multipliers.ascend(constraint)
            path.append((x.item(), multipliers.values["c"].item()))
            if abs(x.item()) > 10:
                break
        return path

    assert follow("augmented")[-1] == pytest.approx((1.0, 1.0), rel=1e-3)
    assert abs(follow("ascent")[-1][0]) > 10


# Two parallel channels share a power: water-filling, whose water level is 1/(λ ln 2). In the
# amplitudes q with p = q² the problem is not convex.

GAINS = torch.tensor([4.0, 1.0])
BUDGET = 2.0


def water_filling() -> tuple[Real, float]:
    """Powers and the multiplier of Σp/P - 1, by bisection of the water level."""
    gains = numbers(GAINS)
    low, high = 0.0, BUDGET + 1 / gains.min()
    for _ in range(100):
        level = 0.5 * (low + high)
        used = np.maximum(level - 1 / gains, 0).sum()
        low, high = (level, high) if used < BUDGET else (low, level)
    powers = np.maximum(level - 1 / gains, 0)
    assert powers.min() > 0
    return powers, BUDGET / (level * np.log(2))


def negative_rate(q: Tensor) -> Tensor:
    return -torch.log2(1.0 + GAINS * q.square()).sum()


def relative_excess(q: Tensor) -> Tensor:
    return (q.square().sum() / BUDGET - 1.0).view(1, 1)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_fills_the_water(rule: DualRule) -> None:
    powers, multiplier = water_filling()
    multipliers = make_multipliers(rule, ["power"], 1, 0.2, gain=1.0)
    q = torch.tensor([0.3, 0.9], requires_grad=True)
    for _ in range(1500):
        constraint = {"power": relative_excess(q)}
        (slope,) = torch.autograd.grad(negative_rate(q) + multipliers.penalty(constraint), q)
        with torch.no_grad():
            q -= 0.02 * slope
        multipliers.ascend(constraint)
    np.testing.assert_allclose(numbers(q) ** 2, powers, rtol=1e-2)
    assert multipliers.values["power"].item() == pytest.approx(multiplier, rel=1e-2)


# Against other libraries


class InCooper:
    """The problems above in Cooper: simultaneous steps of SGD, one multiplier a constraint."""

    def __init__(
        self,
        evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
        start: Tensor,
        initial: list[float],
        rates: tuple[float, float],
        penalty: float | None = None,
        gain: float | None = None,
        smoothing: float = 0.0,
    ) -> None:
        cooper = pytest.importorskip("cooper")
        form: dict[str, Any] = {"formulation_type": cooper.formulations.Lagrangian}
        if penalty is not None:
            form = {
                "formulation_type": cooper.formulations.AugmentedLagrangian,
                "penalty_coefficient": cooper.penalty_coefficients.DensePenaltyCoefficient(
                    init=torch.tensor(penalty)
                ),
            }
        constraint = cooper.Constraint(
            constraint_type=cooper.ConstraintType.INEQUALITY,
            multiplier=cooper.multipliers.DenseMultiplier(init=torch.tensor(initial)),
            **form,
        )
        x = self.x = torch.nn.Parameter(start.clone())

        class Problem(cooper.ConstrainedMinimizationProblem):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.constraint = constraint

            def compute_cmp_state(self) -> Any:
                loss, excess = evaluate(x)
                state = cooper.ConstraintState(violation=excess)
                return cooper.CMPState(loss=loss, observed_constraints={constraint: state})

        problem = Problem()
        self.multiplier: Tensor = constraint.multiplier.weight
        if gain is None:
            dual = torch.optim.SGD(problem.dual_parameters(), lr=rates[1], maximize=True)
        else:
            dual = cooper.optim.nuPI(
                problem.dual_parameters(),
                lr=rates[1],
                Kp=torch.tensor(gain / rates[1]),
                Ki=torch.tensor(1.0),
                ema_nu=smoothing,
                init_type=cooper.optim.nuPIInitType.ZEROS,
                maximize=True,
            )
        self._optimiser = cooper.optim.SimultaneousOptimizer(
            problem, torch.optim.SGD([x], lr=rates[0]), dual
        )

    def roll(self) -> tuple[Real, list[float]]:
        self._optimiser.roll()
        return numbers(self.x), constraint_values(self.multiplier)


def constraint_values(multiplier: Tensor) -> list[float]:
    return [float(value) for value in multiplier.detach()]


def exact(x: Tensor) -> tuple[Tensor, Tensor]:
    loss, constraints = loss_and_constraints(x, TARGET[None], torch.zeros(1, 2))
    return loss, torch.cat([constraints[name][0] for name in NAMES])


def test_ascent_takes_the_steps_of_cooper() -> None:
    theirs = InCooper(exact, START, [0.0, 0.0], (0.1, 0.1))
    path, prices = solve(make_multipliers("ascent", NAMES, 1, 0.1, gain=1.0), 300, 0.1)
    for x, price in zip(path, prices, strict=True):
        other, multipliers = theirs.roll()
        np.testing.assert_allclose(x, other, atol=1e-5)
        np.testing.assert_allclose(price, multipliers, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_pi_takes_the_steps_of_cooper_where_nothing_is_clipped(smoothing: float) -> None:
    """Cooper's nuPI projects λ, not the integral: they are the same while both stay positive."""
    initial = {"first": 4.0, "second": 5.0}
    multipliers = ProportionalIntegral(
        NAMES, 1, 0.05, gain=0.4, smoothing=smoothing, initial=initial
    )
    theirs = InCooper(
        exact, START, list(initial.values()), (0.1, 0.05), gain=0.4, smoothing=smoothing
    )
    path, prices = solve(multipliers, 12, 0.1)
    assert np.min(prices) > 0.1
    assert min(multipliers.state_dict()[f"integral.{name}"].item() for name in NAMES) > 0.1
    for x, price in zip(path, prices, strict=True):
        other, multipliers = theirs.roll()
        np.testing.assert_allclose(x, other, atol=1e-4)
        np.testing.assert_allclose(price, multipliers, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_the_optimum_is_that_of_cooper(rule: DualRule) -> None:
    options: dict[str, Any] = {"augmented": {"penalty": 1.0}, "pi": {"gain": 1.0}}.get(rule, {})
    theirs = InCooper(exact, START, [0.0, 0.0], (0.1, 0.1), **options)
    for _ in range(600):
        other, multipliers = theirs.roll()
    path, prices = solve(make_multipliers(rule, NAMES, 1, 0.1, gain=1.0), 600, 0.1)
    np.testing.assert_allclose(path[-1], other, atol=1e-3)
    np.testing.assert_allclose(prices[-1], multipliers, atol=1e-3)


def test_water_filling_is_that_of_cooper() -> None:
    start, rates = torch.tensor([0.3, 0.9]), (0.02, 0.2)
    theirs = InCooper(
        lambda q: (negative_rate(q), relative_excess(q)[0]), start, [0.0], rates, gain=1.0
    )
    ours = make_multipliers("pi", ["power"], 1, 0.2, gain=1.0)
    q = start.clone().requires_grad_()
    for _ in range(1500):
        other, multipliers = theirs.roll()
        constraint = {"power": relative_excess(q)}
        (slope,) = torch.autograd.grad(negative_rate(q) + ours.penalty(constraint), q)
        with torch.no_grad():
            q -= 0.02 * slope
        ours.ascend(constraint)
    np.testing.assert_allclose(numbers(q), other, rtol=1e-3)
    assert ours.values["power"].item() == pytest.approx(multipliers[0], rel=1e-3)


def test_multipliers_are_the_dual_values_of_cvxpy() -> None:
    cp = pytest.importorskip("cvxpy")
    x = cp.Variable(3)
    limits = [numbers(NORMALS[i]) @ x <= BOUNDS[i].item() for i in range(2)]
    cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - numbers(TARGET))), limits).solve()
    path, prices = solve(make_multipliers("ascent", NAMES, 1, 0.1, gain=1.0), 600, 0.1)
    np.testing.assert_allclose(path[-1], x.value, atol=1e-3)
    np.testing.assert_allclose(prices[-1], [float(c.dual_value) for c in limits], atol=1e-3)

    powers = cp.Variable(2)
    rate = cp.sum(cp.log(1 + cp.multiply(numbers(GAINS), powers))) / np.log(2)
    limit = cp.sum(powers) / BUDGET <= 1
    cp.Problem(cp.Maximize(rate), [limit]).solve()
    expected, multiplier = water_filling()
    np.testing.assert_allclose(powers.value, expected, rtol=1e-3)
    assert float(limit.dual_value) == pytest.approx(multiplier, rel=1e-3)
