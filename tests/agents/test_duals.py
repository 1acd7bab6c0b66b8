"""Multipliers: projected ascent on signed constraints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isac_gym.agents.duals import DualVariables


def test_ascent_by_hand() -> None:
    duals = DualVariables(["power", "sensing"], 2, 0.5)
    rng = np.random.default_rng(0)
    expected = {"power": np.zeros(2), "sensing": np.zeros(2)}
    moved_down = stopped_at_zero = 0
    for step in range(20):
        shift = 0.8 if step < 10 else -0.9
        batch = {name: rng.normal(shift, 0.3, (7, 2)) for name in expected}
        duals.ascend({name: torch.tensor(value).float() for name, value in batch.items()})
        for name, value in batch.items():
            free = expected[name] + 0.5 * value.mean(0)
            moved_down += ((free < expected[name]) & (free > 0)).sum()
            stopped_at_zero += (free < 0).sum()
            expected[name] = np.maximum(free, 0.0)
            np.testing.assert_allclose(duals.values[name], expected[name], rtol=1e-5, atol=1e-6)
    assert moved_down > 5
    assert stopped_at_zero > 5


def test_multipliers_start_at_zero_and_satisfied_constraints_leave_them_there() -> None:
    duals = DualVariables(["sensing"], 3, 1.0)
    assert duals.values["sensing"].tolist() == [0.0] * 3
    duals.ascend({"sensing": torch.full((4, 3), -0.2)})
    assert duals.values["sensing"].tolist() == [0.0] * 3
    duals.ascend({"sensing": torch.tensor([[0.1, -0.1, 0.0]])})
    np.testing.assert_allclose(duals.values["sensing"], [0.1, 0.0, 0.0], atol=1e-7)


def test_penalty_weighs_the_mean_and_has_its_gradient() -> None:
    duals = DualVariables(["power", "sensing"], 2, 0.5)
    duals.values["power"][:] = torch.tensor([1.0, 2.0])
    duals.values["sensing"][:] = torch.tensor([0.0, 3.0])
    power = torch.tensor([[0.2, -0.4], [0.6, 0.0]], requires_grad=True)
    sensing = torch.tensor([[5.0, 0.1], [7.0, 0.3]], requires_grad=True)
    penalty = duals.penalty({"power": power, "sensing": sensing})
    assert penalty.item() == pytest.approx(1 * 0.4 + 2 * -0.2 + 0 * 6.0 + 3 * 0.2)
    penalty.backward()
    np.testing.assert_allclose(power.grad, np.array([[1.0, 2.0]] * 2) / 2)
    np.testing.assert_allclose(sensing.grad, np.array([[0.0, 3.0]] * 2) / 2)


def test_ascent_needs_no_gradient() -> None:
    duals = DualVariables(["power"], 1, 0.5)
    duals.ascend({"power": torch.ones(2, 1, requires_grad=True)})
    assert not duals.values["power"].requires_grad
