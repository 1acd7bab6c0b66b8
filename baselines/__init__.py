"""Baselines and references: policies that are computed, not learned, and bounds on all policies."""

from isac_gym.baselines.bounds import dpc_capacity, joint_upper_bound
from isac_gym.baselines.joint import JointOracle
from isac_gym.baselines.nulling import NullSteering
from isac_gym.baselines.power import EqualPower, RandomPower
from isac_gym.baselines.precoders import MRT, RZF, ZF, LinearPrecoder
from isac_gym.baselines.wmmse import WMMSE, scalar_wmmse, wmmse

__all__ = [
    "MRT",
    "RZF",
    "WMMSE",
    "ZF",
    "EqualPower",
    "JointOracle",
    "LinearPrecoder",
    "NullSteering",
    "RandomPower",
    "dpc_capacity",
    "joint_upper_bound",
    "scalar_wmmse",
    "wmmse",
]
