"""Experiments: one module each, with its settings, points, computation and picture."""

from isac_gym.experiments.base import Experiment, Point, Workspace, setting
from isac_gym.experiments.runner import run_experiment

__all__ = ["Experiment", "Point", "Workspace", "run_experiment", "setting"]
