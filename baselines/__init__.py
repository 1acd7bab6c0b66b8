"""Baselines: policies that are computed, not learned."""

from isac_gym.baselines.power import EqualPower, RandomPower
from isac_gym.baselines.precoders import MRT, RZF, ZF, LinearPrecoder

__all__ = ["MRT", "RZF", "ZF", "EqualPower", "LinearPrecoder", "RandomPower"]
