"""Baselines: policies that are computed, not learned."""

from isac_gym.baselines.power import EqualPower, RandomPower
from isac_gym.baselines.precoders import MRT, RZF, ZF, LinearPrecoder
from isac_gym.baselines.wmmse import WMMSE

__all__ = ["MRT", "RZF", "WMMSE", "ZF", "EqualPower", "LinearPrecoder", "RandomPower"]
