"""Scorers: what says how good an answer is. One family per file; `domain.py` has the union of them, the registry.

To add a family: `rewards/<family>.py` with a frozen config that has `type`, `label` and `load`, one line in the
union, and a test on a tiny random model. Importing this package imports neither torch nor
transformers; that happens in `load`, in the process that scores.
"""

from fusion.rewards.armorm import ArmoRM, ArmoSettings
from fusion.rewards.canary import Canary
from fusion.rewards.common import ErrorCode, RewardScore
from fusion.rewards.domain import (
    EVERY_DOMAIN,
    DomainScorer,
    ModelScorer,
    ModelSettings,
    Scorer,
    Unscored,
    Verified,
    function_of,
    model_of,
)
from fusion.rewards.python import PythonReward, PythonScorer
from fusion.rewards.sequence_classifier import (
    ClassifierSettings,
    RewardFn,
    RewardModelSettings,
    SequenceClassifier,
    Truncation,
)

__all__ = [
    "EVERY_DOMAIN",
    "ArmoRM",
    "ArmoSettings",
    "Canary",
    "ClassifierSettings",
    "DomainScorer",
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
    "Unscored",
    "Verified",
    "function_of",
    "model_of",
]
