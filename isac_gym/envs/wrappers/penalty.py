"""What a unit of cost is worth in a scenario: the weight of a penalised reward."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Final

from isac_gym.channels import ChannelModel
from isac_gym.envs.single import ISACEnv
from isac_gym.registry import AGENTS
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import ISACSystem, find_system
from isac_gym.validation import check_real, not_allowed

__all__ = ["check_weights", "find_cost_names", "find_penalty_weight", "find_system_of"]

_ORACLE: Final = "joint-expected"
_CALIBRATION: Final = {"calibration_channels": 64, "num_starts": 4, "seed": 0}
"""Few channels and starts: the price differs by a few percent from that of the reference, which
takes 512 channels, and is there in seconds."""


def find_penalty_weight(env: Any) -> float:
    """The weight of ``cost`` at which a penalised reward keeps the constraints.

    It is the price of the sensing constraint: what the joint optimum of precoder and waveform would
    gain if the threshold were raised by a relative unit, at the price that keeps the mean sensing
    loss at the threshold. The reference ``joint-expected`` finds it on 64 channels of the
    environment's channel model, drawn from a fixed seed, from four starts a channel: about 31 at
    the default scenario. A larger weight keeps the threshold on more of the channels, a smaller one
    buys rate for costs. With several cells the largest of the stations' prices is taken. Amplitude
    and structured control have the price of beamforming, since there is no reference for them.

    If power can be exceeded, the weight is K/ln 2 at least: no station gains more by power beyond
    its limit, because each of its K rates grows by less than log2(1 + x) for an excess x.

    It takes some seconds, and is kept for the scenario and channel model as long as the process
    lives. Constraints of your own are not in it.

    Args:
        env: An environment, single, batched or wrapped.

    Returns:
        The weight, in bit/s/Hz for a unit of relative excess; 0 if the constraints do not bind.

    Raises:
        TypeError: If ``env`` is no ISAC environment.
        ValueError: If no price keeps the threshold.
    """
    system = find_system_of(env)
    scenario, model = system.scenario, _find_channel_model(env)
    # What does not change the price is not in the key.
    control = "power" if scenario.control == "power" else "beamforming"
    plain = scenario.replace(
        control=control, observation="channels", power_limit="project", episode_length=1
    )
    weight = 0.0
    if scenario.radar == "learned":
        try:
            weight = _find_price(plain, model)
        except TypeError:  # a channel model that has no hash
            weight = _find_price.__wrapped__(plain, model)
    if system.constraints["power"].can_be_exceeded(scenario):
        weight = max(weight, scenario.num_users / math.log(2.0))
    return weight


@functools.lru_cache(maxsize=256)
def _find_price(scenario: Scenario, model: ChannelModel) -> float:
    # By name, because references stand above the environments that they are for.
    make_oracle = AGENTS.load(_ORACLE)
    options = AGENTS.find(_ORACLE).options
    oracle = make_oracle(ISACEnv(scenario, channel_model=model), **options, **_CALIBRATION)
    return float(max(oracle.price))


def find_system_of(env: Any) -> ISACSystem:
    """The system behind an environment, also behind those that Gymnasium made a vector of.

    Raises:
        TypeError: If ``env`` is no ISAC environment.
    """
    return find_system(_find_first(env))


def _find_first(env: Any) -> Any:
    """The first of the environments of Gymnasium's vector, otherwise the environment itself."""
    base = getattr(env, "unwrapped", env)
    return base if hasattr(base, "system") else next(iter(getattr(base, "envs", [])), base)


def _find_channel_model(env: Any) -> ChannelModel:
    model: ChannelModel = _find_first(env).unwrapped.channel_model
    return model


def find_cost_names(env: Any) -> list[str]:
    """Names of the costs of single constraints in ``info``."""
    return [f"cost_{name}" for name in find_system_of(env).limits]


def check_weights(env: Any, weights: float | Mapping[str, float] | None) -> dict[str, float]:
    """The weight of each cost by its name in ``info``.

    Args:
        env: The environment.
        weights: One for ``cost``, one for each named cost, or None for the calibrated one.

    Raises:
        ValueError: If a weight is negative or not finite, or there is no cost of its name.
    """
    if weights is None:
        return {"cost": find_penalty_weight(env)}
    given = dict(weights) if isinstance(weights, Mapping) else {"cost": weights}
    known = ["cost", *find_cost_names(env)]
    for name in given:
        if name not in known:
            raise not_allowed("weights", name, f"keyed by costs in info, of {known}")
    return {
        name: check_real(f"weights[{name!r}]", weight, "a finite number >= 0", lambda w: w >= 0)
        for name, weight in given.items()
    }
