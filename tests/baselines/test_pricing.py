"""Prices and powers that stations tell: what they mean, who knows what, and what they are worth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from small_network import acted, drawn, leak_of, make, mean_rate, predicted, replay

from isac_gym.baselines import JointOracle
from isac_gym.baselines.local_design import LocalLinks
from isac_gym.baselines.pricing import (
    DistributedWMMSE,
    InterferencePricing,
    MessageCodes,
    PricingPolicy,
    update_precoders,
)
from isac_gym.registry import make_agent

KINDS = [InterferencePricing, DistributedWMMSE]
Complex = npt.NDArray[np.complex128]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"radar_streams": 2}, {"num_users": 1}, {"num_users": 6}, {"intercell_gain": 2.0}],
    ids=str,
)
def test_the_threshold_and_the_power_hold_at_every_station(
    kind: Any, changes: dict[str, Any]
) -> None:
    env = make(**changes)
    for each in acted(kind(env, bits=2), drawn(env, 6)):
        assert each["constraint_sensing"].max() <= 1e-4
        assert each["constraint_power"].max() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_inverted_bits_break_no_constraint(kind: Any) -> None:
    env = make()
    agent = kind(env, bits=3)
    agent.flip_probability = 0.3
    for each in acted(agent, drawn(env, 6)):
        assert each["constraint_sensing"].max() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [3, None])
def test_bits_are_counted_and_nothing_depends_on_memory(kind: Any, bits: int | None) -> None:
    env = make()
    agent: PricingPolicy = kind(env, rounds=3, bits=bits, iterations=8)
    channels = drawn(env, 4)
    actions = predicted(agent, channels)
    per_link = 3 * 2 * 3 * (32 if bits is None else bits)  # rounds, numbers a user, users, bits
    assert agent.bits_per_link == (None if bits is None else per_link)
    assert agent.exchange is not None
    np.testing.assert_array_equal(agent.exchange.counts, 4 * per_link * (1 - np.eye(3)))
    views, received = replay(agent, channels)  # without any memory
    alone = [
        part.act(view, heard)
        for part, view, heard in zip(agent.stations, views, received, strict=True)
    ]
    np.testing.assert_array_equal(torch.cat(alone, 1).numpy(), actions)


@pytest.mark.parametrize("kind", KINDS)
def test_a_station_knows_its_channels_and_its_mail_and_nothing_else(kind: Any) -> None:
    env = make()
    agent = kind(env, iterations=8)
    channels = drawn(env, 3)
    views, received = replay(agent, channels)
    changed = channels.clone()
    changed[:, [1, 2]] = drawn(env, 3, seed=1)[:, [1, 2]]
    others, other_mail = replay(agent, changed)
    part, mail = agent.stations[0], received[0]
    torch.testing.assert_close(others[0], views[0], rtol=0, atol=0)
    first = part.message(views[0])
    torch.testing.assert_close(part.message(others[0]), first, rtol=0, atol=0)
    told = part.message(views[0], mail[:1])
    torch.testing.assert_close(part.message(others[0], mail[:1]), told, rtol=0, atol=0)
    acts = part.act(views[0], mail)
    torch.testing.assert_close(part.act(others[0], mail), acts, rtol=0, atol=0)
    # And it does heed its mail.
    assert not torch.equal(part.act(views[0], other_mail[0]), acts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_station_spares_the_cell_that_tells_high_prices(kind: Any) -> None:
    env = make()
    agent, channels = kind(env, rounds=1, bits=2), drawn(env, 6)
    views, received = replay(agent, channels)
    for part, view, heard in zip(agent.stations, views, received, strict=True):
        leaked = []
        for dear in (0, 1):
            mail = heard[0].clone()
            mail[..., : 3 * 2] = -1.0  # the prices of three users in two bits: nothing
            mail[:, dear, : 3 * 2] = 1.0  # the highest
            leaked.append(leak_of(part, view, part.act(view, [mail])))
        assert (leaked[0][:, 1] < leaked[1][:, 1]).all()
        assert (leaked[0][:, 2] > leaked[1][:, 2]).all()


def received_power(view: Complex, station: Any, place: int) -> npt.NDArray[np.float64]:
    """Power of a design at the users of a cell, by hand: streams and radar, (n, K)."""
    precoders = station.precoders.numpy().astype(np.complex128)
    streams = station.streams.numpy().astype(np.complex128)
    radar = streams.shape[1]
    found = np.zeros((view.shape[0], view.shape[2]))
    for block, user in np.ndindex(*found.shape):
        f, g = view[block, place, user, :radar], view[block, place, user, radar:]
        found[block, user] = np.sum(np.abs(g @ precoders[block]) ** 2)
        found[block, user] += np.sum(np.abs(f @ streams[block]) ** 2)
    return found


def test_a_message_says_what_the_design_causes_and_what_a_watt_costs() -> None:
    env = make()
    agent = InterferencePricing(env, bits=None)
    views, received = replay(agent, drawn(env, 3))
    part, view = agent.stations[0], views[0].numpy().astype(np.complex128)
    first, second = received[0]
    told = part.message(views[0], [first])
    users, noise = 3, agent.scenario.noise_power
    designs = [
        station._find_design(seen, heard[:1], None)
        for station, seen, heard in zip(agent.stations, views, received, strict=True)
    ]
    for place in (1, 2):
        caused = received_power(view, designs[0], place)
        np.testing.assert_allclose(told[:, place - 1, users:].numpy(), caused, rtol=1e-4)
        # What has arrived of the power that the others cause is what they do cause.
        other = views[place].numpy().astype(np.complex128)
        arrives = received_power(other, designs[place], 3 - place)
        np.testing.assert_allclose(second[:, place - 1, users:].numpy(), arrives, rtol=1e-4)
    # The price is the slope of the rate by the interference that the mail before has forecast.
    forecast = first[:, :, users:].sum(1).double().numpy()
    precoders = designs[0].precoders.numpy().astype(np.complex128)
    own = received_power(view, designs[0], 0)
    radar = designs[0].streams.shape[1]
    for block, user in np.ndindex(3, users):
        signal = np.abs(view[block, 0, user, radar:] @ precoders[block][:, user]) ** 2

        def rate(more: float, signal: float = signal, at: tuple[int, int] = (block, user)) -> float:
            return math.log2(1 + signal / (own[at] - signal + noise + forecast[at] + more))

        slope = (rate(-1e-5) - rate(1e-5)) / 2e-5
        assert float(told[block, 0, user]) == pytest.approx(slope, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(told[:, 0, :users], told[:, 1, :users])


def test_a_price_is_the_weight_of_wmmse() -> None:
    rng = np.random.default_rng(0)
    signal, disturbance = rng.uniform(0, 4, (2, 5, 3))
    price = LocalLinks(*map(torch.from_numpy, (signal, signal, disturbance, signal))).price
    mse = 1 - signal / (signal + disturbance)  # of the MMSE receiver u = √signal/total
    receiver = np.sqrt(signal) / (signal + disturbance)
    np.testing.assert_allclose(price, receiver**2 / mse / math.log(2), rtol=1e-12)


@pytest.mark.parametrize("power", [0.05, 1.0, 1e4])
@pytest.mark.parametrize("users", [2, 9])
def test_updated_precoders_are_those_of_the_least_weighted_error(power: float, users: int) -> None:
    rng = np.random.default_rng(1)
    comm = reference.complex_normal(rng, 4, users, 5)
    burden = rng.uniform(0.1, 2, (4, users))
    target = reference.complex_normal(rng, 4, 2)
    found = update_precoders(*map(torch.from_numpy, (comm, burden, target)), power).numpy()
    for g, d, b, F in zip(comm, burden, target, found, strict=True):
        # Stationary in F with a multiplier >= 0 of the power, which is 0 where power is left.
        gap = (g[:2].conj().T * b) - (g.conj().T * d) @ g @ F
        used = np.linalg.norm(F) ** 2
        multiplier = (F.conj() * gap).sum().real / used
        np.testing.assert_allclose(gap, multiplier * F, atol=1e-6 * np.abs(b).max())
        assert multiplier >= -1e-9
        assert used <= power * (1 + 1e-9)
        assert used == pytest.approx(power) or abs(multiplier) < 1e-9


def test_wmmse_with_exact_messages_never_lowers_the_rate_of_the_network() -> None:
    rng = np.random.default_rng(2)
    cells, users, antennas, noise = 3, 3, 4, 0.1
    H = reference.complex_normal(rng, cells, cells, users, antennas + 1)
    silent = np.zeros((cells, 1, 1))
    F = reference.complex_normal(rng, cells, antennas, users)
    F /= np.linalg.norm(F, axis=(1, 2), keepdims=True)
    rates = []
    for _ in range(12):
        gamma = reference.sinr(H, F, silent, noise)
        rates.append(reference.spectral_efficiency(gamma).sum())
        amplitude = np.array(
            [[H[j, j, k, 1:] @ F[j][:, k] for k in range(users)] for j in range(cells)]
        )
        disturbance = np.abs(amplitude) ** 2 / gamma
        price = gamma / (disturbance * (1 + gamma))
        F = np.stack(
            [
                update_precoders(
                    torch.from_numpy(np.roll(H[j], -j, 0).reshape(1, -1, antennas + 1)[..., 1:]),
                    torch.from_numpy(np.roll(price, -j, 0).reshape(1, -1)),
                    torch.from_numpy((amplitude / disturbance)[j][None]),
                    1.0,
                )[0].numpy()
                for j in range(cells)
            ]
        )
    assert (np.diff(rates) > -1e-9).all()
    assert rates[-1] > 1.2 * rates[0]


@pytest.mark.parametrize("kind", KINDS)
def test_without_paths_between_cells_every_station_designs_as_if_it_were_alone(kind: Any) -> None:
    env = make(intercell_gain=0.0)
    agent, channels = kind(env, bits=4), drawn(env, 12)
    views, received = replay(agent, channels)
    rng = np.random.default_rng(3)
    for part, view, heard in zip(agent.stations, views, received, strict=True):
        # No power is forecast, whatever is told of prices.
        assert all((word[..., 3 * 4 :] == -1).all() for word in heard)
        other = [word.clone() for word in heard]
        for word in other:
            word[..., : 3 * 4] = torch.from_numpy(rng.choice([-1.0, 1.0], (12, 2, 3 * 4)))
        torch.testing.assert_close(part.act(view, other), part.act(view, heard), rtol=0, atol=0)
    rates = np.array([each["rates"].sum(1) for each in acted(agent, channels)])
    for station, targets in enumerate(agent.scenario.targets_by_cell):
        single = kind(make(num_cells=1, target_angles_deg=targets), bits=4)
        own = channels[:, station : station + 1, station : station + 1]
        alone = np.array([each["rates"].sum() for each in acted(single, own)])
        # Rounding, in which other sums are formed, may decide between two local optima.
        assert np.median(np.abs(rates[:, station] / alone - 1)) < 1e-3
        assert rates[:, station].mean() == pytest.approx(alone.mean(), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_messages_win_over_stations_that_decide_alone(kind: Any) -> None:
    env = make(intercell_gain=0.5)
    channels = drawn(env, 24)
    alone = mean_rate(JointOracle(env, num_starts=4), channels)
    fine = mean_rate(kind(env, rounds=3, bits=12), channels)
    exact = mean_rate(kind(env, rounds=3, bits=None), channels)
    assert fine > 1.05 * alone
    assert fine == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_are_not_for_is_refused(kind: Any) -> None:
    for field, value in (("control", "power"), ("radar", "fixed"), ("scheduling", "contention")):
        with pytest.raises(ValueError, match=field):
            kind(make(**{field: value}))
    for options in ({"rounds": 0}, {"bits": 0}, {"bits": 17}, {"iterations": 0}, {"bits": 2.5}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            kind(make(), **options)


def test_they_are_made_by_name() -> None:
    for name, kind in (
        ("interference-pricing", InterferencePricing),
        ("distributed-wmmse", DistributedWMMSE),
    ):
        assert type(make_agent(name, make(), rounds=1, bits=2)) is kind


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_the_range_of_the_codes_is_the_one_that_is_stated(bits: int) -> None:
    scenario = make().unwrapped.scenario
    expected = 0.5 * 0.2 * (scenario.comm_power + scenario.radar_power)
    usual = 1 / math.log(2) / (scenario.noise_power + 2 * expected)
    codes = MessageCodes.choose(scenario, bits)
    wider = 2 ** (max(bits - 2, 0) / 2)
    assert codes.price.high == pytest.approx(1.5 * usual * wider)
    assert codes.power.high == pytest.approx(2.5 * expected * wider)
    for code in (codes.price, codes.power):
        assert code.high / code.low == pytest.approx(2 ** (bits + 1))


def test_where_users_have_positions_codes_reach_further_and_the_threshold_holds() -> None:
    env = make(layout="hexagonal")
    scenario = env.unwrapped.scenario
    gain = 3 ** (-0.5 * scenario.path_loss_exponent)
    expected = 0.5 * gain * (scenario.comm_power + scenario.radar_power)
    power = MessageCodes.choose(scenario, 2).power
    assert power.high == pytest.approx(20 * expected)
    assert power.high / power.low == pytest.approx(64)
    for each in acted(InterferencePricing(env), drawn(env, 4)):
        assert each["constraint_sensing"].max() <= 1e-4
