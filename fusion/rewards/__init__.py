"""Scorers: what says how good an answer is. One family per file, and the union of them, which is the registry.

To add a family: `rewards/<family>.py` with a frozen config that has `type`, `label` and `load`, one line in the
union below, and a test on a tiny random model. Importing this package imports neither torch nor
transformers; that happens in `load`, in the process that scores.
"""

from typing import Annotated

from pydantic import Field

from fusion.rewards.armorm import ArmoRM, ArmoSettings
from fusion.rewards.canary import Canary
from fusion.rewards.common import ErrorCode, RewardScore
from fusion.rewards.python import PythonReward, PythonScorer
from fusion.rewards.sequence_classifier import (
    ClassifierSettings,
    RewardFn,
    RewardModelSettings,
    SequenceClassifier,
    Truncation,
)

ModelScorer = SequenceClassifier | ArmoRM
"""Scorers that are reward models, in a recipe."""
ModelSettings = ClassifierSettings | ArmoSettings
"""The same without the model itself: their `settings`."""

Scorer = Annotated[ModelScorer | PythonScorer, Field(discriminator="type")]

__all__ = [
    "ArmoRM",
    "ArmoSettings",
    "Canary",
    "ClassifierSettings",
    "ErrorCode",
    "ModelScorer",
    "ModelSettings",
    "PythonReward",
    "PythonScorer",
    "RewardFn",
    "RewardModelSettings",
    "RewardScore",
    "Scorer",
    "SequenceClassifier",
    "Truncation",
]
