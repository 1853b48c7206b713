"""What the HTTP front asks of the models behind it: two protocols and the values that cross.

The front (`app`, `chat`, `scoring`) knows nothing of Ray or vLLM; `ingress` brings the real backends, which
are deployments called through handles. Token ids cross, not text: a prompt is rendered once, by
`fusion.chat`, the same way as in training.
"""

import dataclasses
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Literal, Protocol

from fusion.rows import Message
from serving.schemas import ModelCard


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """One chat request as the engine sees it."""

    request_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float | None = None
    top_p: float | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_logprobs: int | None = None
    """Alternatives per token; None returns no log-probabilities."""
    whole: bool = False
    """The answer is wanted in one piece, when it is finished."""


@dataclasses.dataclass(frozen=True, slots=True)
class SampledToken:
    """One sampled token: its id, its log-probability, and the most likely ids at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of answer `index`. The last piece of an answer has a finish reason."""

    index: int
    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"] | None = None
    tokens: tuple[SampledToken, ...] = ()
    """Log-probabilities of the piece's tokens, where they were asked for."""


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Return one piece per answer that says what all of `deltas` say, in the order in which answers appear.

    Example: "a" of answer 0, "x" of answer 1 and "b" with its end of answer 0 are "ab" with the end, and "x".
    """
    pieces: dict[int, list[Delta]] = {}
    for delta in deltas:
        pieces.setdefault(delta.index, []).append(delta)
    return [
        Delta(
            index=index,
            text="".join(delta.text for delta in own),
            num_tokens=sum(delta.num_tokens for delta in own),
            finish_reason=next((delta.finish_reason for delta in reversed(own) if delta.finish_reason), None),
            tokens=tuple(token for delta in own for token in delta.tokens),
        )
        for index, own in pieces.items()
    ]


class ChatBackend(Protocol):
    """A chat model that generates. Closing the stream ends the work for it."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's ids, ready for generation. Raises ValueError for a conversation it cannot render."""
        ...

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, special tokens included."""
        ...

    def generate(self, generation: Generation) -> AsyncGenerator[list[Delta], None]:
        """Yield pieces as they are sampled. Raises ApiError where the engine refuses or is gone."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """What the reward model says of one conversation: a score, or an item error."""

    score: float | None
    num_tokens: int
    truncated: bool = False
    objectives: dict[str, float] = dataclasses.field(default_factory=dict)
    error_code: str | None = None
    error_message: str | None = None


class RewardBackend(Protocol):
    """A reward model."""

    @property
    def card(self) -> ModelCard: ...

    async def score(
        self, conversations: Sequence[tuple[Message, ...]], *, truncation: Literal["error", "left", "right"]
    ) -> list[Scored]:
        """Return one result per conversation, in order. Raises ApiError where the model is gone.

        A backend that keeps time itself gives `deadline_exceeded` to the conversations that it did not reach. From
        outside one call is done or not done: a request that ends while it waits here is 408 as a whole.
        """
        ...
