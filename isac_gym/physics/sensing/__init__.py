"""The sensing loss: beampattern error plus cross-correlation, equations (7), (9) and (10)."""

from isac_gym.physics.sensing.coarse import CoarseSensing, ExactSensing, Sensing
from isac_gym.physics.sensing.model import SensingLoss, SensingModel

__all__ = ["CoarseSensing", "ExactSensing", "Sensing", "SensingLoss", "SensingModel"]
