"""Judging agents: any number of them on one fixed set of channels, with intervals.

An evaluation set is determined by (scenario, channel model, seed, count) and identified by a hash
of its numbers. Every agent sees the same observations, and what it transmits is judged by the
same physics, so differences between agents are differences between agents.
"""

from isac_gym.evaluation.channel_set import EvaluationSet, evaluation_set
from isac_gym.evaluation.comparison import Comparison, compare
from isac_gym.evaluation.judging import AgentError, AgentResult, ConstraintResult, evaluate
from isac_gym.evaluation.table import Column, Table

__all__ = [
    "AgentError",
    "AgentResult",
    "Column",
    "Comparison",
    "ConstraintResult",
    "EvaluationSet",
    "Table",
    "compare",
    "evaluate",
    "evaluation_set",
]
