"""Baselines and references: policies that are computed, not learned, and bounds on all policies.

They import from the system, the solvers and what lies below them, and from
:mod:`isac_gym.policy`; never from the learning agents, nor from what judges or runs them.
"""

from isac_gym.baselines.bounds import joint_upper_bound
from isac_gym.baselines.few_bits import FewBits
from isac_gym.baselines.joint import JointOracle
from isac_gym.baselines.leakage import LeakagePriced
from isac_gym.baselines.linear import MRT, RZF, ZF, LinearPrecoder
from isac_gym.baselines.network import JointNetwork
from isac_gym.baselines.null_steering import NullSteering
from isac_gym.baselines.power import EqualPower, RandomPower
from isac_gym.baselines.pricing import DistributedWMMSE, InterferencePricing
from isac_gym.baselines.slnr import SLNR
from isac_gym.baselines.structured import StructuredSearch
from isac_gym.baselines.wmmse import WMMSE
from isac_gym.solvers.capacity import dpc_capacity
from isac_gym.solvers.wmmse import scalar_wmmse, wmmse

__all__ = [
    "MRT",
    "RZF",
    "SLNR",
    "WMMSE",
    "ZF",
    "DistributedWMMSE",
    "EqualPower",
    "FewBits",
    "InterferencePricing",
    "JointNetwork",
    "JointOracle",
    "LeakagePriced",
    "LinearPrecoder",
    "NullSteering",
    "RandomPower",
    "StructuredSearch",
    "dpc_capacity",
    "joint_upper_bound",
    "scalar_wmmse",
    "wmmse",
]
