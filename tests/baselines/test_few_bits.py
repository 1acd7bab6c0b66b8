"""One message of few bits a user: what it says, who knows what, and what it is worth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_network import acted, drawn, leak_of, make, mean_rate, predicted, replay

from isac_gym.baselines import JointOracle
from isac_gym.baselines.few_bits import FewBits, choose_price_code
from isac_gym.evaluation import evaluation_set
from isac_gym.registry import make_agent
from isac_gym.system.stations import view_from_stations


@pytest.mark.parametrize(
    "changes", [{}, {"num_users": 1}, {"radar_streams": 2}, {"intercell_gain": 2.0}], ids=str
)
def test_the_threshold_holds_at_every_station(changes: dict[str, Any]) -> None:
    env = make(**changes)
    for each in acted(FewBits(env), drawn(env, 6)):
        assert each["constraint_sensing"].max() <= 1e-4
        assert each["constraint_power"].max() <= 1e-4


@pytest.mark.parametrize("bits", [1, 2])
def test_bits_are_counted_and_nothing_depends_on_memory(bits: int) -> None:
    env = make()
    agent, channels = FewBits(env, bits=bits, iterations=10), drawn(env, 4)
    actions = predicted(agent, channels)
    assert agent.bits_per_link == 3 * bits
    assert agent.exchange is not None
    np.testing.assert_array_equal(agent.exchange.counts, 4 * 3 * bits * (1 - np.eye(3)))
    views, received = replay(agent, channels)
    alone = [
        part.act(view, heard)
        for part, view, heard in zip(agent.stations, views, received, strict=True)
    ]
    np.testing.assert_array_equal(torch.cat(alone, 1).numpy(), actions)


def test_a_station_knows_its_channels_and_its_mail_and_nothing_else() -> None:
    env = make()
    agent, channels = FewBits(env, iterations=10), drawn(env, 3)
    views, received = replay(agent, channels)
    changed = channels.clone()
    changed[:, [1, 2]] = drawn(env, 3, seed=1)[:, [1, 2]]
    others, _ = replay(agent, changed)
    part, mail = agent.stations[0], received[0]
    torch.testing.assert_close(part.message(others[0]), part.message(views[0]), rtol=0, atol=0)
    acts = part.act(views[0], mail)
    torch.testing.assert_close(part.act(others[0], mail), acts, rtol=0, atol=0)
    assert not torch.equal(part.act(views[0], [-mail[0]]), acts)


def test_all_neighbours_are_told_who_is_served() -> None:
    env = make(num_users=6)  # more than a station can serve well
    agent, channels = FewBits(env), drawn(env, 8)
    views, _ = replay(agent, channels)
    part = agent.stations[0]
    told = part.message(views[0])
    torch.testing.assert_close(told[:, 0], told[:, 1], rtol=0, atol=0)
    design = part._design_first(views[0], None)[1]
    sent = design.precoders.abs().square().sum(1)
    assert bool((told[:, 0] > 0).any())
    # Announced users have power, users without any are not announced.
    assert float(sent[told[:, 0] > 0].min()) > 1e-3
    assert not bool((told[:, 0] > 0)[sent < 1e-4].any())


def test_a_station_spares_the_cell_that_announces_its_users() -> None:
    env = make()
    agent, channels = FewBits(env), drawn(env, 6)
    for part, view in zip(agent.stations, view_from_stations(channels).unbind(1), strict=True):
        leaked = []
        for dear in (0, 1):
            mail = -torch.ones(6, 2, 3)
            mail[:, dear] = 1.0
            leaked.append(leak_of(part, view, part.act(view, [mail])))
        assert (leaked[0][:, 1] < leaked[1][:, 1]).all()
        assert (leaked[0][:, 2] > leaked[1][:, 2]).all()


def test_the_levels_are_what_a_watt_may_cost() -> None:
    scenario = make().unwrapped.scenario
    expected = 0.5 * 0.2 * (scenario.comm_power + scenario.radar_power)
    usual = 1 / math.log(2) / (scenario.noise_power + 2 * expected)
    found = choose_price_code(scenario, 2).levels.tolist()
    assert found == pytest.approx([0.0, 0.3 * usual, math.sqrt(0.3) * usual, usual])


@pytest.mark.parametrize("layout", ["hexagonal", "line"])
def test_the_lowest_level_is_lower_where_users_have_positions(layout: Any) -> None:
    scenario = make(layout=layout).unwrapped.scenario
    apart = math.sqrt(3) if layout == "hexagonal" else 2.0
    power = scenario.comm_power + scenario.radar_power
    expected = 0.5 * apart**-scenario.path_loss_exponent * power
    usual = 1 / math.log(2) / (scenario.noise_power + 2 * expected)
    lowest = 0.3 / 8
    levels = choose_price_code(scenario, 2).levels.tolist()
    assert levels == pytest.approx([0.0, lowest * usual, math.sqrt(lowest) * usual, usual])
    assert choose_price_code(scenario, 1).levels.tolist() == pytest.approx([0.0, levels[2]])


@pytest.mark.parametrize("layout", ["hexagonal", "line"])
def test_most_users_that_are_served_are_announced_wherever_they_stand(layout: Any) -> None:
    """A user next to its station receives much radar, so that a watt more costs it little."""
    env = make(layout=layout)
    scenario, model = env.unwrapped.scenario, env.unwrapped.channel_model
    channels = torch.from_numpy(evaluation_set(scenario, model, 24, 0).channels[:, 0])
    agent = FewBits(env)
    served, announced = [], []
    for part, view in zip(agent.stations, replay(agent, channels)[0], strict=True):
        announced.append(part.message(view)[:, 0] > 0)
        power = part._design_first(view, None)[1].precoders.abs().square().sum(1)
        served.append(power > 1e-2 * scenario.comm_power)
    told, used = torch.cat(announced), torch.cat(served)
    assert not bool((told & ~used).any())
    assert float((told & used).sum() / used.sum()) > 0.7


def test_without_paths_between_cells_nothing_told_matters() -> None:
    env = make(intercell_gain=0.0)
    agent, channels = FewBits(env, iterations=10), drawn(env, 3)
    views, received = replay(agent, channels)
    for part, view, heard in zip(agent.stations, views, received, strict=True):
        inverted = [-word for word in heard]
        torch.testing.assert_close(part.act(view, inverted), part.act(view, heard), rtol=0, atol=0)


def test_a_bit_a_user_wins_over_stations_that_decide_alone() -> None:
    env = make(intercell_gain=0.5)
    channels = drawn(env, 24)
    alone = mean_rate(JointOracle(env, num_starts=4), channels)
    assert mean_rate(FewBits(env), channels) > 1.03 * alone


def test_what_it_is_not_for_is_refused() -> None:
    for field, value in (("control", "power"), ("radar", "fixed"), ("scheduling", "contention")):
        with pytest.raises(ValueError, match=field):
            FewBits(make(**{field: value}))
    for options in ({"bits": 0}, {"bits": 17}, {"iterations": 0}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            FewBits(make(), **options)
    assert isinstance(make_agent("few-bits", make()), FewBits)
