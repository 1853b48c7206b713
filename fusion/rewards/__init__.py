"""Scorers: what says how good an answer is. One family per file, and the union of them, which is the registry.

To add a family: `rewards/<family>.py` with a frozen config that has `type`, `label` and `load`, one line in the
union below, and a test on a tiny random model. Importing this package imports neither torch nor
transformers; that happens in `load`, in the process that scores.
"""

from typing import Annotated

from pydantic import Field

from fusion.rewards.canary import Canary
from fusion.rewards.common import ErrorCode, RewardScore
from fusion.rewards.python import PythonReward, PythonScorer
from fusion.rewards.sequence_classifier import ClassifierSettings, RewardFn, SequenceClassifier, Truncation

Scorer = Annotated[SequenceClassifier | PythonScorer, Field(discriminator="type")]

__all__ = [
    "Canary",
    "ClassifierSettings",
    "ErrorCode",
    "PythonReward",
    "PythonScorer",
    "RewardFn",
    "RewardScore",
    "Scorer",
    "SequenceClassifier",
    "Truncation",
]
