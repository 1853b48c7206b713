"""What a scorer says of one conversation: a score, or why there is none.

The same value serves the pipeline, where an error becomes a quarantined row, and HTTP, where it becomes the
error of one item. A bad conversation is a value and not an exception, so that it cannot hurt its neighbours.
"""

import dataclasses
from typing import Literal

ErrorCode = Literal[
    "context_length_exceeded", "invalid_roles", "non_finite_score", "scorer_error", "no_scorer", "no_prompt"
]
"""Short codes that are counted as quarantine reasons; the first three are those of `POST /v1/rewards` too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """A rendered conversation as ids, cut where its answer begins. Either part may be empty, not both."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.answer

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclasses.dataclass(frozen=True, slots=True)
class RewardScore:
    """The score of one conversation; exactly one of `score` and `error_code` is set. Scores are finite."""

    score: float | None
    num_tokens: int = 0
    """Tokens of the whole conversation, before any truncation; 0 for scorers that read text."""
    truncated: bool = False
    """True when the model saw only a part of the conversation."""
    objectives: dict[str, float] = dataclasses.field(default_factory=dict)
    """Named parts of the score, where the scorer has them."""
    error_code: ErrorCode | None = None
    error_message: str | None = None

    @classmethod
    def failed(cls, code: ErrorCode, message: str, *, num_tokens: int = 0) -> "RewardScore":
        """Return the result of a conversation that has no score; `message` is one line."""
        return cls(None, num_tokens, error_code=code, error_message=message)
