"""What judges a domain: a verifier that decides correctness, a scorer that ranks, or both.

FuseChat-3.0 (arXiv 2503.04222) uses both for math and code: among the answers that a program judged correct, and among
those that it judged wrong, a reward model says which is best and which is worst. A recipe writes

    score: {math: {type: verified, verifier: {type: math}, reward: {type: armorm, model: ..., max_length: 4096}},
            code: {type: code}, instruction: {type: armorm, ...}, chinese: {type: unscored}}

and each of the four is one `DomainScorer` for the stage. The score is the reward where there is one (and a bonus for
correct answers, if one is set), else 1.0 for a correct answer and 0.0 for any other; the verdict is kept beside it, and the objective `exact` is 1.0 for correct. An
answer on which the verifier has failed has neither: it is quarantined, never scored 0.
"""

from typing import Annotated, Literal

from pydantic import Field

from fusion.config import Config
from fusion.models import ModelRef
from fusion.rewards.armorm import ArmoRM, ArmoSettings
from fusion.rewards.python import PythonScorer
from fusion.rewards.sequence_classifier import ClassifierSettings, SequenceClassifier
from fusion.verifiers import CodeVerifier, MathVerifier, Verifier

ModelScorer = SequenceClassifier | ArmoRM
"""Scorers that are reward models, in a recipe."""
ModelSettings = ClassifierSettings | ArmoSettings
"""The same without the model itself: their `settings`."""


EVERY_DOMAIN = "*"
"""Stands for all domains that are not named."""


class Unscored(Config):
    """Every answer has the score 0.0: for domains whose answers are taken as they come, as the Chinese ones of FuseChat-3.0,
    for which the authors found no reward model. Ties are drawn with the seed."""

    type: Literal["unscored"] = "unscored"

    @property
    def label(self) -> str:
        """Name that scored responses carry."""
        return self.type


class Verified(Config):
    """A verifier and a scorer together."""

    type: Literal["verified"] = "verified"
    verifier: Verifier
    """Decides which answers are correct."""
    reward: Annotated[ModelScorer | PythonScorer, Field(discriminator="type")]
    """Ranks them."""
    correct_bonus: float = Field(default=0.0, ge=0)
    """Added to the reward of correct answers, for rules and losses that look at scores alone (weights, RLOO): above the
    spread of the rewards it puts every correct answer before every other. Gaps between a correct and a wrong answer
    grow by it, so leave it 0 where `min_margin` and `max_margin` are those of a paper."""


Scorer = Annotated[
    ModelScorer | PythonScorer | MathVerifier | CodeVerifier | Verified | Unscored, Field(discriminator="type")
]
"""What a recipe may write for a domain."""

Ranker = Annotated[ModelSettings | PythonScorer | Unscored, Field(discriminator="type")]


class DomainScorer(Config):
    """The identity of what judges a domain; a reward model itself is an input of the stage."""

    verifier: Verifier | None = None
    """What decides correctness."""
    reward: Ranker | None = None
    """What ranks."""
    correct_bonus: float = 0.0
    """Added to the score of correct answers."""

    @classmethod
    def of(cls, scorer: Scorer) -> "DomainScorer":
        """Return the identity of what a recipe wrote."""
        match scorer:
            case Verified():
                reward = _settings(scorer.reward)
                return cls(verifier=scorer.verifier, reward=reward, correct_bonus=scorer.correct_bonus)
            case MathVerifier() | CodeVerifier():
                return cls(verifier=scorer)
            case _:
                return cls(reward=_settings(scorer))

    @property
    def label(self) -> str:
        """Name that scored responses carry, e.g. `math+armorm`."""
        return "+".join(part.label for part in (self.verifier, self.reward) if part is not None)


def _settings(scorer: ModelScorer | PythonScorer | Unscored) -> ModelSettings | PythonScorer | Unscored:
    return scorer.settings if isinstance(scorer, ModelScorer) else scorer


def model_of(scorer: Scorer) -> ModelRef | None:
    """Return the reward model that a scorer of a recipe needs, if any."""
    reward = scorer.reward if isinstance(scorer, Verified) else scorer
    return reward.model if isinstance(reward, ModelScorer) else None


def function_of(scorer: Scorer) -> PythonScorer | None:
    """Return the user's function that a scorer of a recipe calls, if any."""
    reward = scorer.reward if isinstance(scorer, Verified) else scorer
    return reward if isinstance(reward, PythonScorer) else None
