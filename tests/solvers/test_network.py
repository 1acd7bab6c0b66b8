"""The search over several stations: gradients, closed forms, another algorithm, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from network_wmmse import wmmse_of_network
from torch import Tensor

from isac_gym.physics.sensing.coarse import ExactSensing
from isac_gym.physics.sensing.model import SensingModel
from isac_gym.physics.waveform import normalise_rows
from isac_gym.solvers.network import NetworkProblem, NetworkSearch, pose_network, pose_stations
from isac_gym.solvers.network_starts import choose_subsets, start_search

Complex = npt.NDArray[np.complex128]
Real = npt.NDArray[np.float64]

TARGETS = ((-40.0, 0.0), (-50.0, 10.0), (20.0,))


def sensing(antennas: int, stations: int, **changes: Any) -> ExactSensing:
    targets = TARGETS[:stations]
    return ExactSensing(SensingModel(antennas, 0.5, targets, dtype=torch.float64, **changes))


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(reference.complex_normal(rng, *shape))


def drawn_problem(
    seed: int, count: int, stations: int, users: int, radar: int = 4, comm: int = 3
) -> NetworkProblem:
    """Powers, noise and prices that all differ."""
    rng = np.random.default_rng(seed)
    return NetworkProblem(
        normal(rng, count, stations, users, radar),
        normal(rng, count, stations, users, comm),
        torch.from_numpy(rng.uniform(0.1, 0.5, (count, users))),
        torch.from_numpy(rng.uniform(0.1, 2.0, (count, users))),
        1.3,
        0.8,
    )


def drawn_point(
    seed: int, problem: NetworkProblem, columns: int, streams: int = 3
) -> tuple[Tensor, Tensor]:
    """F with shares of the budget from 0.1 to 1, and V."""
    rng = np.random.default_rng((seed, 1))
    count, stations, _, antennas = problem.comm.shape
    F = normal(rng, count, stations, antennas, columns)
    share = torch.from_numpy(rng.uniform(0.1, 1.0, (count, stations, 1, 1)))
    F = F * (share * problem.comm_power).sqrt() / torch.linalg.matrix_norm(F)[..., None, None]
    V = normal(rng, count, stations, problem.radar.shape[-1], streams)
    return F, V


def begun(
    problem: NetworkProblem, columns: int, seed: int = 0, silent: bool = False, **options: Any
) -> NetworkSearch:
    """A search from a random point; ``silent`` leaves the sensing loss out of account."""
    F, V = drawn_point(seed, problem, columns)
    count, stations = F.shape[:2]
    model = None if silent else sensing(V.shape[2], stations * options.get("stations", 1))
    multiplier = torch.linspace(0.5, 3.0, count * stations, dtype=torch.float64)
    if silent:
        options["penalty"] = 0.0
    return NetworkSearch(problem, model, 0.3, F, V, multiplier.view(count, stations), **options)


def received_powers(problem: NetworkProblem, index: int, F: Complex, V: Complex) -> list[Real]:
    """[matrix (S·K, U) of what each user receives of each stream, what it receives of the radar]"""
    f, g = problem.radar[index].numpy(), problem.comm[index].numpy()
    stations, users = g.shape[:2]
    streams = [
        [abs(g[s, u] @ F[s, :, k]) ** 2 for u in range(users)]
        for s in range(stations)
        for k in range(F.shape[2])
    ]
    radar = [
        sum((f[s, u] @ V[s] @ V[s].conj().T @ f[s, u].conj()).real for s in range(stations))
        for u in range(users)
    ]
    return [np.array(streams), np.array(radar)]


def outcome(problem: NetworkProblem, index: int, F: Complex, V: Complex) -> tuple[Real, Real]:
    """Rates of served users and power at the others, by the definition."""
    streams, radar = received_powers(problem, index, F, V)
    served = len(streams)
    rates = []
    for user in range(served):
        signal = streams[user, user]
        total = streams[:, user].sum() + radar[user] + float(problem.noise[index, user])
        rates.append(np.log2(1 + signal / (total - signal)))
    return np.array(rates), streams.sum(0)[served:] + radar[served:]


@pytest.mark.parametrize("penalty", [0.0, 50.0])
@pytest.mark.parametrize(
    ("stations", "users", "columns"), [(1, 5, 2), (3, 6, 2), (2, 5, 2), (2, 2, 1)]
)
def test_the_gradient_by_central_differences(
    stations: int, users: int, columns: int, penalty: float
) -> None:
    problem = drawn_problem(0, 2, stations, users)
    for held in (False, True):
        search = begun(problem, columns, penalty=penalty, hold_streams=held)
        rng = np.random.default_rng(3)
        point = search._search.point
        point = point + 0.1 * torch.from_numpy(rng.standard_normal(tuple(point.shape)))
        _, gradient, _ = search._evaluate(point)
        step = 1e-6
        for column in range(point.shape[1]):
            shift = torch.zeros_like(point)
            shift[:, column] = step
            upper, lower = search._evaluate(point + shift)[0], search._evaluate(point - shift)[0]
            torch.testing.assert_close(
                gradient[:, column], (upper - lower) / (2 * step), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize(("stations", "users", "columns"), [(1, 5, 2), (3, 6, 2), (2, 6, 2)])
def test_what_is_reported_is_true(stations: int, users: int, columns: int) -> None:
    problem = drawn_problem(1, 3, stations, users)
    search = begun(problem, columns)
    search.run(25)
    F, V = search.precoders.numpy(), search.streams.numpy()
    np.testing.assert_allclose(np.sum(np.abs(V) ** 2, -1), 0.8 / 4, rtol=1e-12)
    assert np.sum(np.abs(F) ** 2, (-2, -1)).max() <= 1.3 * (1 + 1e-12)
    measured, powers = problem.measure(search.precoders, search.streams)
    for index in range(3):
        rates, leaked = outcome(problem, index, F[index], V[index])
        np.testing.assert_allclose(search.rates[index], rates, rtol=1e-9)
        np.testing.assert_allclose(measured[index], rates, rtol=1e-9)
        np.testing.assert_allclose(powers[index], leaked, rtol=1e-9)
        price = problem.price[index, len(rates) :].numpy()
        expected = price @ leaked - rates.sum()
        assert float(search.objective[index]) == pytest.approx(expected, rel=1e-9)
        for s in range(stations):
            R = V[index, s] @ V[index, s].conj().T
            excess = sum(reference.sensing_loss(R, 0.5, TARGETS[s])) / 0.3 - 1
            assert float(search.excess[index, s]) == pytest.approx(excess, abs=1e-9)
            expected += float(search.multiplier[index, s]) * excess
        assert float(search.value[index]) == pytest.approx(expected, rel=1e-9)


def test_the_rates_of_a_network_are_those_of_the_model() -> None:
    rng = np.random.default_rng(2)
    H = reference.complex_normal(rng, 4, 3, 3, 2, 9)
    F, V = normal(rng, 4, 3, 5, 2), normal(rng, 4, 3, 4, 4)
    radar, comm = torch.from_numpy(H).split([4, 5], -1)
    problem = pose_network(radar, comm, 0.2, 1.0, 2.0)
    rates, leaked = problem.measure(F, V)
    assert leaked.shape == (4, 0)
    for index in range(4):
        R = V[index] @ V[index].mH
        expected = np.log2(1 + reference.sinr(H[index], F[index].numpy(), R.numpy(), 0.2))
        np.testing.assert_allclose(rates[index].view(3, 2), expected, rtol=1e-10)


def test_the_users_of_a_station_stand_first() -> None:
    rng = np.random.default_rng(2)
    radar, comm = normal(rng, 2, 3, 3, 2, 4), normal(rng, 2, 3, 3, 2, 5)
    noise = torch.from_numpy(rng.uniform(0.1, 1.0, (3, 1, 1)))
    price = torch.from_numpy(rng.uniform(0.1, 1.0, (2, 3, 3, 2)))
    problem = pose_stations(radar, comm, noise, price, 1.0, 2.0)
    assert len(problem) == 6
    for block in range(2):
        for station in range(3):
            row = 3 * block + station
            for place in range(3):
                cell = (station + place) % 3
                for k in range(2):
                    user = 2 * place + k
                    assert torch.equal(problem.radar[row, 0, user], radar[block, station, cell, k])
                    assert torch.equal(problem.comm[row, 0, user], comm[block, station, cell, k])
                    assert problem.price[row, user] == price[block, station, cell, k]
                    assert problem.noise[row, user] == noise[station, 0, 0]
    # A number stands for all.
    assert float(pose_stations(radar, comm, 0.5, 2.0, 1.0, 2.0).price.unique()) == 2.0


def test_stations_of_a_channel_side_by_side_are_each_alone() -> None:
    rng = np.random.default_rng(4)
    radar, comm = normal(rng, 2, 3, 3, 2, 4), normal(rng, 2, 3, 3, 2, 3)
    problem = pose_stations(radar, comm, 0.3, 0.7, 1.0, 0.8)
    search = begun(problem, 2, stations=3)
    search.run(30)
    F, V = drawn_point(0, problem, 2)
    for row in range(6):
        model = SensingModel(4, 0.5, (TARGETS[row % 3],), dtype=torch.float64)
        only = torch.tensor([row])
        multiplier = torch.linspace(0.5, 3.0, 6, dtype=torch.float64)[only, None]
        alone = NetworkSearch(
            problem.select(only), ExactSensing(model), 0.3, F[only], V[only], multiplier
        )
        alone.run(30)
        torch.testing.assert_close(alone.precoders[0], search.precoders[row], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.streams[0], search.streams[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("stations", "users", "columns"), [(1, 5, 2), (3, 6, 2), (2, 7, 3)])
def test_stations_that_know_prices_move_as_the_whole_would(
    stations: int, users: int, columns: int
) -> None:
    problem = drawn_problem(11, 3, stations, users)
    whole = begun(problem, columns, silent=True)
    F, V = whole.precoders, whole.streams
    parts = problem.separate(F, V)
    assert len(parts) == 3 * stations
    multiplier = torch.zeros(3 * stations, 1, dtype=torch.float64)
    flat = (F.flatten(0, 1).unsqueeze(1), V.flatten(0, 1).unsqueeze(1), multiplier)
    apart = NetworkSearch(parts, None, 0.3, *flat, penalty=0.0)
    torch.testing.assert_close(apart.rates.view(3, -1), whole.rates, rtol=1e-10, atol=0)
    gradient, each = (x._evaluate(x._search.point)[1] for x in (whole, apart))
    size = 2 * 3 * columns + 2  # (X, x) of a station with 3 antennas
    expected = torch.cat(
        [gradient[:, : stations * size].reshape(3 * stations, -1),
         gradient[:, stations * size :].reshape(3 * stations, -1)], 1
    )  # fmt: skip
    torch.testing.assert_close(each, expected, rtol=1e-8, atol=1e-10)
    # The users of following stations come in turn, those of nobody last.
    for station in range(stations):
        turn = [(station * columns + k) % (stations * columns) for k in range(stations * columns)]
        order = [*turn, *range(stations * columns, users)]
        assert torch.equal(parts.comm[station, 0], problem.comm[0, station, order])
        assert torch.equal(parts.radar[station, 0], problem.radar[0, station, order])


def single_user(comm: Tensor, noise: float, price: float) -> NetworkProblem:
    """One station, its user, and a priced one; no radar reaches them. comm is (n, 2, M_C)."""
    count = len(comm)
    return NetworkProblem(
        torch.zeros(count, 1, 2, 4, dtype=torch.complex128),
        comm.unsqueeze(1),
        torch.full((count, 2), noise, dtype=torch.float64),
        torch.full((count, 2), price, dtype=torch.float64),
        1.3,
        0.8,
    )


def test_a_free_user_does_not_matter_and_an_expensive_one_is_nulled() -> None:
    comm = normal(np.random.default_rng(5), 8, 2, 4)
    own, other = comm.unbind(1)
    norm = torch.linalg.vector_norm(own, dim=-1).square()
    search = begun(single_user(comm, 0.2, 0.0), 1, silent=True)
    search.run(200)
    torch.testing.assert_close(search.rates[:, 0], torch.log2(1 + 1.3 * norm / 0.2))
    # What is left of the channel once the part towards the other user is taken off.
    direction = other / torch.linalg.vector_norm(other, dim=-1, keepdim=True)
    rest = norm - (own * direction.conj()).sum(-1).abs().square()
    search = begun(single_user(comm, 0.2, 1e5), 1, silent=True)
    search.run(1000)
    torch.testing.assert_close(
        -search.objective, torch.log2(1 + 1.3 * rest / 0.2), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("price", [0.5, 2.0, 30.0])
def test_power_is_held_back_where_it_costs_more_than_it_brings(price: float) -> None:
    """With one antenna max log2(1 + p·a) - c·p·b has a closed form."""
    comm = normal(np.random.default_rng(6), 10, 2, 1)
    a, b = (comm[:, :, 0].abs().square() / torch.tensor([0.2, 1.0])).unbind(1)
    level = 1 / (price * b * np.log(2)) - 1 / a
    power = level.clamp(0.0, 1.3)
    expected = torch.log2(1 + power * a) - price * power * b
    search = begun(single_user(comm, 0.2, price), 1, silent=True)
    search.run(400)
    torch.testing.assert_close(-search.objective, expected, rtol=1e-4, atol=1e-4)
    found = search.precoders.abs().square().sum((1, 2, 3))
    torch.testing.assert_close(found, power, rtol=0, atol=0.02)
    if price > 0.5:
        assert bool(((power > 0) & (power < 1.3)).any())


@pytest.mark.parametrize("gain", [0.05, 0.3])
def test_without_radar_another_algorithm_finds_the_same(gain: float) -> None:
    """From equal random points most ends are equal; all are ends of the other algorithm too.

    Which of them is better is chance: the best of several starts is compared in the tests of the
    policy.
    """
    rng = np.random.default_rng(7)
    blocks, cells, users, antennas = 12, 3, 2, 4
    amplitude = np.where(np.eye(cells)[..., None, None] > 0, 1.0, np.sqrt(gain))
    comm = reference.complex_normal(rng, blocks, cells, cells, users, antennas) * amplitude
    radar = torch.zeros(blocks, cells, cells, users, 2, dtype=torch.complex128)
    problem = pose_network(radar, torch.from_numpy(comm), 0.1, 1.0, 1.0)
    V = torch.ones(blocks, cells, 2, 2, dtype=torch.complex128)

    def search(F: Tensor, count: int) -> Tensor:
        multiplier = torch.zeros(blocks, cells, dtype=torch.float64)
        options: dict[str, Any] = {"penalty": 0.0, "hold_streams": True}
        found = NetworkSearch(problem, None, 1.0, F, V, multiplier, **options)
        found.run(count)
        return found.precoders

    def iterate(F: Tensor, count: int) -> Tensor:
        return torch.from_numpy(wmmse_of_network(comm, F.numpy(), 0.1, 1.0, count))

    def earn(F: Tensor) -> Tensor:
        return problem.measure(F, V)[0].sum(-1)

    F = reference.complex_normal(rng, blocks, cells, antennas, users)
    start = torch.from_numpy(F * 0.95 / np.linalg.norm(F, axis=(-2, -1), keepdims=True))
    ours, theirs = search(start, 300), iterate(start, 200)
    ratio = earn(ours) / earn(theirs)
    assert float((ratio - 1).abs().median()) < 1e-6
    assert float(ratio.mean()) > 0.99
    torch.testing.assert_close(earn(iterate(ours, 10)), earn(ours), rtol=1e-8, atol=0)
    torch.testing.assert_close(earn(search(theirs, 50)), earn(theirs), rtol=1e-4, atol=0)


def test_multipliers_make_the_threshold_hold() -> None:
    problem = drawn_problem(8, 3, 3, 6)
    search = begun(problem, 2)
    search.run(300)
    assert float(search.excess.max()) < 1e-3
    bound = search.multiplier > 0.1
    assert bool(bound.any())
    assert float(search.excess[bound].abs().max()) < 1e-3
    F, V, multiplier = search.precoders, search.streams, search.multiplier
    # A stationary point of the Lagrangian at these multipliers.
    fixed = NetworkSearch(problem, sensing(4, 3), 0.3, F, V, multiplier, penalty=0.0)
    assert float(fixed.measure_gradient().max()) < 0.02
    assert float(begun(problem, 2, penalty=0.0).measure_gradient().min()) > 0.2


def test_held_waveforms_stay() -> None:
    problem = drawn_problem(9, 3, 2, 6)
    search = begun(problem, 2, hold_streams=True)
    before, streams, excess = search.objective, search.streams, search.excess
    assert bool((excess != 0).any())
    search.run(40)
    assert torch.equal(search.streams, streams)
    assert torch.equal(search.excess, excess)
    assert bool((search.objective < before - 0.1).all())


def test_starts() -> None:
    served = choose_subsets(3, 5, 20, 0)
    assert served.shape == (20, 3, 5)
    assert torch.equal(served[0], torch.ones(3, 5))
    assert int(served.sum(-1).min()) >= 2
    assert len({tuple(row.flatten().tolist()) for row in served}) == 20
    assert not torch.equal(served, choose_subsets(3, 5, 20, 1))
    assert choose_subsets(2, 1, 4, 0).tolist() == [[[1.0], [1.0]]] * 4
    problem = drawn_problem(10, 6, 2, 5, radar=6, comm=5)
    best = normal(np.random.default_rng(0), 6, 2, 6, 6)
    subsets = torch.tensor([[1.0, 1.0], [1.0, 0.0]]).expand(6, 2, 2).double()
    F, V = start_search(problem, subsets, best)
    power = F.abs().square().sum((-2, -1)) / problem.comm_power
    assert 0.5 < float(power.min()) <= float(power.max()) < 1.0
    # Less of the radar reaches the users of the subset than it would without them.
    received, plain = (
        (problem.radar @ streams).abs().square().sum(-1)[:, :, :3].mean((1, 2))
        for streams in (V, normalise_rows(best, 0.8))
    )
    assert float((received / plain).max()) < 0.7


def test_what_does_not_fit_is_refused() -> None:
    problem = drawn_problem(0, 2, 2, 5)
    F, V = drawn_point(0, problem, 2)
    multiplier = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"radar, comm, noise and price must have shapes"):
        NetworkProblem(problem.radar, problem.comm[:1], problem.noise, problem.price, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"radar, comm, noise and price must have shapes"):
        NetworkProblem(problem.radar, problem.comm, problem.noise[0], problem.price, 1.0, 1.0)
    for wrong in (
        (F[:, :1], V, multiplier),
        (torch.cat([F, F], -1), V, multiplier),
        (F, V[..., :3, :], multiplier),
        (F, V, multiplier[:, :1]),
    ):
        with pytest.raises(ValueError, match=r"precoders, streams and multiplier must have"):
            NetworkSearch(problem, None, 0.3, *wrong, penalty=0.0)
    with pytest.raises(ValueError, match=r"stations must divide the number of problems, 2, got 3"):
        NetworkSearch(problem, None, 0.3, F, V, multiplier, stations=3, penalty=0.0)
    with pytest.raises(ValueError, match=r"stations must be an integer >= 1, got 0"):
        NetworkSearch(problem, None, 0.3, F, V, multiplier, stations=0)
    with pytest.raises(ValueError, match=r"penalty must be a finite number >= 0, got -1"):
        NetworkSearch(problem, None, 0.3, F, V, multiplier, penalty=-1.0)
