"""The price that a trained policy is told: settled on channels, without touching its weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from isac_gym.channels import ChannelModel
from isac_gym.learning.conditions import Conditions
from isac_gym.learning.network import Network
from isac_gym.solvers.price import Prices, settle_prices
from isac_gym.system.constraints import Constraint
from isac_gym.system.downlink import ISACSystem
from isac_gym.system.simulation import Simulation

__all__ = ["calibrate_price"]

_CHUNK = 1024
_LEAST_LOG_PRICE = -5.0


@torch.inference_mode()
def calibrate_price(
    network: Network,
    system: ISACSystem,
    model: ChannelModel,
    priced: Constraint,
    guess: Tensor,
    *,
    channels: int,
    seed: int,
    margin: float,
) -> Tensor:
    """Multipliers of a constraint at which the mean of its quantity under a policy is the limit.

    Args:
        network: The policy's network, which answers to a price.
        system: The system that it acts in.
        model: How channels are drawn.
        priced: The constraint.
        guess: Multipliers to begin with, (J,): the policy is at its best, and its answer monotone,
            around those of its training.
        channels: Channels to take the mean over.
        seed: Their seed.
        margin: Relative distance below the limit to aim at.

    Returns:
        The multipliers of quantity/limit - 1, (J,), in bit/s/Hz; 0 where the limit does not bind.

    Raises:
        ValueError: If no price keeps the limit, or the policy answers NaN or infinity.
    """
    simulation = Simulation(system, model, channels)
    simulation.start(np.random.default_rng((0xCA11B, seed)))
    parts = [
        (simulation.channels[first : first + _CHUNK], simulation.estimates[first : first + _CHUNK])
        for first in range(0, channels, _CHUNK)
    ]
    limit = priced.limit(system.scenario)

    def excess(prices: Prices) -> Prices:
        multiplier = torch.tensor(prices, dtype=torch.float32)
        found = []
        for part in parts:
            simulation.hold(*part)
            observation = torch.from_numpy(simulation.observe()).to(system.device)
            conditions = Conditions.of(system, len(observation), multiplier, priced)
            outcome = simulation.apply(network(observation, conditions))
            found.append(priced.quantity(outcome, system))
        mean: Prices = (torch.cat(found).double().mean(0) / limit - 1.0).cpu().numpy()
        if not np.isfinite(mean).all():
            raise ValueError(
                f"no price can be settled for {priced.name!r}: the policy answers NaN or infinity, "
                "as with weights so large that single precision overflows"
            )
        return mean

    def log_guess() -> Prices:
        result: Prices = guess.clamp_min(1e-3).log().cpu().double().numpy()
        return result

    prices = settle_prices(
        excess,
        log_guess,
        system.scenario.num_cells,
        # What one station does may depend on the prices of others only if they talk.
        method="coupled" if network.couples_stations else "each",
        tolerance=margin,
        least=_LEAST_LOG_PRICE,
        limit=(priced.limit_field or f"the limit of {priced.name}", limit),
    )
    with torch.inference_mode(False):
        return torch.tensor(prices, dtype=torch.float32, device=system.device)
