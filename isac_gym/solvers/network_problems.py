"""What several stations, or one of them with the users of the others in view, set out to do.

A problem has S stations and U users, of which the first S·K are served: user s·K + k by column k of
the precoder of station s. The others are not served, but what they receive has a price.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from isac_gym.physics.links import BITS_PER_NAT

__all__ = ["NetworkProblem", "StreamPowers", "pose_network", "pose_stations", "radar_received"]


@dataclasses.dataclass(frozen=True)
class NetworkProblem:
    """n problems of S stations and U users.

    Attributes:
        radar: f, complex (n, S, U, M_R).
        comm: g, complex (n, S, U, M_C).
        noise: Noise and whatever else the stations cannot change, > 0, (n, U), in W.
        price: c >= 0 of users that are not served, (n, U), in bit/s/Hz/W; entries of served users
            are not read.
        comm_power: P_C of a station, in W.
        radar_power: P_R of a station, in W.

    Raises:
        ValueError: If the shapes do not fit together; the message names them.
    """

    radar: Tensor
    comm: Tensor
    noise: Tensor
    price: Tensor
    comm_power: float
    radar_power: float

    def __post_init__(self) -> None:
        count, _, users = self.comm.shape[:3]
        if (
            self.radar.shape[:-1] != self.comm.shape[:-1]
            or self.noise.shape != (count, users)
            or self.price.shape != (count, users)
        ):
            raise ValueError(
                "radar, comm, noise and price must have shapes (n, S, U, M_R), (n, S, U, M_C), "
                f"(n, U) and (n, U), got {tuple(self.radar.shape)}, {tuple(self.comm.shape)}, "
                f"{tuple(self.noise.shape)} and {tuple(self.price.shape)}"
            )

    def __len__(self) -> int:
        return len(self.noise)

    def select(self, index: Tensor) -> NetworkProblem:
        """Some of the problems, by index or by mask."""
        return dataclasses.replace(
            self,
            radar=self.radar[index],
            comm=self.comm[index],
            noise=self.noise[index],
            price=self.price[index],
        )

    def measure(self, precoders: Tensor, streams: Tensor) -> tuple[Tensor, Tensor]:
        """What precoders F (n, S, M_C, K) and streams V (n, S, M_R, r) lead to.

        Returns:
            Rates of the served users (n, S·K), in bit/s/Hz, and the power that the others receive
            (n, U - S·K), in W.
        """
        served = precoders.shape[1] * precoders.shape[3]
        powers = StreamPowers(self.comm @ precoders, served)
        radar = radar_received(self.radar @ streams)
        disturbance = powers.disturbance + (self.noise + radar)[:, :served]
        rates = torch.log1p(powers.signal / disturbance) * BITS_PER_NAT
        return rates, powers.leaked + radar[:, served:]

    def separate(self, precoders: Tensor, streams: Tensor) -> NetworkProblem:
        """Each station by itself, with the others as they are at F (n, S, M_C, K) and V.

        What its users receive from the other stations counts as noise, and users of the others have
        a price: what a watt costs them there, -∂log2(1 + SINR_u)/∂I. So the gradients by a
        station's F and V are at this point those of the whole (interference pricing: Shi, Schmidt,
        Berry, Honig and Utschick, 2009).

        Returns:
            n·S problems of one station and U users: its own, those of the following stations in
            turn, and those that nobody serves. Every S in a row belong together.
        """
        stations, columns = precoders.shape[1], precoders.shape[3]
        served, users = stations * columns, self.noise.shape[1]
        received = self.comm @ precoders
        echoes = torch.view_as_real(self.radar @ streams).square().sum((-2, -1))
        powers = StreamPowers(received, served)
        disturbance = powers.disturbance + (self.noise + echoes.sum(1))[:, :served]
        price = torch.cat([powers.price(disturbance), self.price[:, served:]], 1)
        device = self.noise.device
        others = 1.0 - torch.eye(stations, dtype=price.dtype, device=device)
        sent = torch.view_as_real(received).square().sum((-2, -1)) + echoes
        noise = self.noise[:, None] + others @ sent
        order = torch.arange(users, device=device).repeat(stations, 1)
        for station, row in enumerate(order):
            row[:served] = row[:served].roll(-station * columns)

        def arrange(value: Tensor) -> Tensor:
            index = order.view(1, stations, users, *[1] * (value.ndim - 3)).expand(value.shape)
            return value.gather(2, index).flatten(0, 1)

        return dataclasses.replace(
            self,
            radar=arrange(self.radar).unsqueeze(1),
            comm=arrange(self.comm).unsqueeze(1),
            noise=arrange(noise),
            price=arrange(price[:, None].expand(noise.shape)),
        )


class StreamPowers:
    """Received powers of streams, taken apart.

    Args:
        received: g_suᵀF_sk, complex (n, S, U, K), in √W.
        served: S·K.

    Attributes:
        signal: From the user's own column, (n, S·K).
        disturbance: From all other columns, (n, S·K).
        leaked: What users receive who are not served, (n, U - S·K).
    """

    def __init__(self, received: Tensor, served: int) -> None:
        stations, columns = received.shape[1], received.shape[3]
        # Column s·K + k of a matrix (n, U, S·K) is stream k of station s.
        squares = received.real.square() + received.imag.square()
        streams = squares.transpose(1, 2).flatten(2)
        own = streams[:, :served]
        self.signal = own.diagonal(dim1=-2, dim2=-1)
        # Summed without the signal, not subtracted: no cancellation at high SINR.
        others = 1.0 - torch.eye(stations * columns, dtype=own.dtype, device=own.device)
        self.disturbance = (own * others).sum(-1)
        self.leaked = streams[:, served:].sum(-1)

    def price(self, disturbance: Tensor) -> Tensor:
        """What a watt more costs the users at a disturbance in all, (n, S·K), in bit/s/Hz/W."""
        return BITS_PER_NAT * self.signal / (disturbance * (disturbance + self.signal))


def radar_received(echoes: Tensor) -> Tensor:
    """Radar power of all stations at every user, (n, U), in W, of f_suᵀV_s, (n, S, U, r)."""
    return torch.view_as_real(echoes).square().sum((-2, -1)).sum(1)


def pose_network(
    radar: Tensor, comm: Tensor, noise_power: float, comm_power: float, radar_power: float
) -> NetworkProblem:
    """One problem of all J stations for each channel.

    Args:
        radar: f, complex (n, J, J, K, M_R) for [station, cell, user].
        comm: g, complex (n, J, J, K, M_C).
        noise_power: N0, in W.
        comm_power: P_C of a station, in W.
        radar_power: P_R of a station, in W.

    Returns:
        n problems with S = J and U = J·K.
    """
    flat = comm.flatten(2, 3)
    noise = torch.full_like(flat[:, 0, :, 0].real, noise_power)
    price = torch.zeros_like(noise)
    return NetworkProblem(radar.flatten(2, 3), flat, noise, price, comm_power, radar_power)


def pose_stations(
    radar: Tensor,
    comm: Tensor,
    noise: Tensor | float,
    price: Tensor | float,
    comm_power: float,
    radar_power: float,
) -> NetworkProblem:
    """One problem for every station of each channel, with its own K users first.

    Args:
        radar: f, complex (n, J, J, K, M_R) for [station, cell, user].
        comm: g, complex (n, J, J, K, M_C).
        noise: Noise and expected interference of every user, in W: a number, or a tensor that
            broadcasts to (n, J, J, K) for [station that reckons with it, cell, user].
        price: c of the users of other cells, in bit/s/Hz/W, likewise.
        comm_power: P_C of a station, in W.
        radar_power: P_R of a station, in W.

    Returns:
        n·J problems with S = 1 and U = J·K: users of the station's own cell, then those of the
        following stations in turn, the first after the last. Every J in a row are the stations of
        one channel.
    """
    count, cells, _, users = comm.shape[:4]

    def arrange(value: Tensor) -> Tensor:
        ordered = [value[:, station].roll(-station, 1) for station in range(cells)]
        return torch.stack(ordered, 1).flatten(2, 3).flatten(0, 1)

    def spread(value: Tensor | float) -> Tensor:
        whole = torch.as_tensor(value, dtype=comm.real.dtype, device=comm.device)
        return arrange(whole.expand(count, cells, cells, users))

    return NetworkProblem(
        arrange(radar).unsqueeze(1),
        arrange(comm).unsqueeze(1),
        spread(noise),
        spread(price),
        comm_power,
        radar_power,
    )
