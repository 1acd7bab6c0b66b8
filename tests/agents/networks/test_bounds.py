"""Bounds that do not trap what is beyond them."""

from __future__ import annotations

import pytest
import torch

from isac_gym.agents.networks.cooperative.bounds import bound


def test_values_are_those_of_a_clamp_with_gradients_or_without() -> None:
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 4.0
    expected = values.clamp(-2.0, 2.0)
    assert torch.equal(bound(values, 2.0), expected)
    assert torch.equal(bound(values.clone().requires_grad_(), 2.0), expected)


def test_gradients_pass_but_where_a_step_would_lead_further_out() -> None:
    values = torch.tensor([-3.0, -3.0, -1.0, 1.0, 3.0, 3.0, 2.0], requires_grad=True)
    given = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 5.0])
    bound(values, 2.0).backward(given)
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, -1.0, 1.0, -1.0, 1.0, 0.0, 5.0]


@pytest.mark.parametrize("start", [-50.0, 50.0])
def test_what_is_far_out_is_led_back_to_an_optimum_inside(start: float) -> None:
    found = {}
    for name, limit in (("bound", bound), ("clamp", lambda x, size: x.clamp(-size, size))):
        value = torch.tensor(start, requires_grad=True)
        optimiser = torch.optim.Adam([value], lr=1.0)
        for _ in range(400):
            optimiser.zero_grad()
            (limit(value, 8.0) - 1.5).square().backward()
            optimiser.step()
        found[name] = value.item()
    assert found["bound"] == pytest.approx(1.5, abs=0.05)
    assert found["clamp"] == start
