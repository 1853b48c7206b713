"""What one request did: the record that the edge opens and the code on its way fills in.

The current one is found through a context variable, as `logging` finds its logger: routes need not pass it
on, and it follows a request into its streams and threads. It holds numbers and names, never text of a
prompt. Outside a request, noting something does nothing.
"""

import dataclasses
import math
from collections.abc import Sequence
from contextvars import ContextVar

from serving.auth import ApiKey, out_of_scope
from serving.backends import Scored
from serving.schemas import ModelCard

NO_MODEL = "none"
OTHER_MODEL = "other"

CLIENT_CLOSED = 499
"""Logged where a client left before its answer began; nobody gets it."""


@dataclasses.dataclass(slots=True)
class Visit:
    """One request from its first byte to the last of its answer."""

    request_id: str
    method: str
    route: str
    """Template of the route, so that it is one of a few."""
    key: ApiKey | None = None
    model: str = NO_MODEL
    """Name of a served model; `other` where the client named one that is not served."""
    status: int = 0
    code: str = ""
    """Code of the error that ended it, also of one after the first byte of a stream."""
    seconds: float = 0.0
    first_token_s: float | None = None
    """Time until the first event of a stream."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    scored_tokens: int = 0
    items: int = 0
    """Responses that were scored."""
    truncated: int = 0
    non_finite: int = 0
    replayed: bool = False
    """Answered from memory, for its Idempotency-Key."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens + self.scored_tokens


CURRENT: ContextVar[Visit | None] = ContextVar("visit", default=None)


def name_model(card: ModelCard) -> None:
    """Note which model a request names."""
    visit = CURRENT.get()
    if visit is not None:
        visit.model = card.id


def use_model(card: ModelCard) -> None:
    """Note which model a request uses. Raises forbidden where its key may not use models of that kind."""
    name_model(card)
    visit = CURRENT.get()
    if visit is not None and visit.key is not None and card.kind not in visit.key.scopes:
        raise out_of_scope(card.kind)


def unknown_model() -> None:
    """Note that the client named a model that is not served; the name itself could be anything."""
    visit = CURRENT.get()
    if visit is not None:
        visit.model = OTHER_MODEL


def count_prompt(num_tokens: int) -> None:
    """Count the tokens of a prompt that an engine reads."""
    visit = CURRENT.get()
    if visit is not None:
        visit.prompt_tokens += num_tokens


def count_answer(num_tokens: int) -> None:
    """Count tokens that an engine wrote, as they come: a stream that is closed early is counted so far."""
    visit = CURRENT.get()
    if visit is not None:
        visit.completion_tokens += num_tokens


def count_scores(results: Sequence[Scored]) -> None:
    """Count what a reward model read: items, tokens, cut conversations, scores that are not finite."""
    visit = CURRENT.get()
    if visit is None:
        return
    for result in results:
        visit.items += 1
        visit.truncated += result.truncated
        if result.score is not None:
            visit.scored_tokens += result.num_tokens
            visit.non_finite += not math.isfinite(result.score)
        elif result.error_code == "non_finite_score":
            visit.non_finite += 1


def note_error(code: str) -> None:
    """Note the code of the error that the client gets."""
    visit = CURRENT.get()
    if visit is not None:
        visit.code = code
