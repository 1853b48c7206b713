"""A scoring request from its schema to its answer.

One list of conversations goes to the reward model and one result per response comes back, in order; an
item that cannot be scored has its own error and does not hurt its neighbours.
"""

import dataclasses
import math
import time
import uuid

from fusion.rewards import items
from fusion.rows import Message
from serving import visit
from serving.backends import RewardBackend, Scored
from serving.chat import to_messages
from serving.config import Limits
from serving.errors import STATUS, ApiError, error_type
from serving.schemas import (
    ErrorBody,
    RewardRequest,
    RewardResponse,
    RewardResult,
    RewardSummary,
    RewardUsage,
    Scorer,
)

ITEM_CODES = frozenset(
    {
        "context_length_exceeded",
        "empty_response",
        "invalid_roles",
        "non_finite_score",
        "backend_error",
        "deadline_exceeded",
    }
)
"""The codes that one item of an answer can have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One response to score, with its place in the request and, where it cannot be scored, why."""

    index: int
    response_index: int | None
    id: str | None
    conversation: tuple[Message, ...]
    error_code: str | None = None
    error_message: str | None = None

    @property
    def param(self) -> str:
        return f"input[{self.index}]" + ("" if self.response_index is None else f".responses[{self.response_index}]")


async def score(request: RewardRequest, backend: RewardBackend, *, limits: Limits) -> RewardResponse:
    """Return the scores of a request.

    Raises:
        ApiError: too many items; the first bad item with `on_error: fail`; the backend failed on every item that it
            was given, or reached none of them in time.
    """
    if request.num_responses > limits.max_reward_items:
        raise ApiError(
            "too_many_items",
            f"{request.num_responses} responses in one request, at most {limits.max_reward_items}; split the request",
            param="input",
        )
    found = candidates(request)
    sound = [candidate for candidate in found if candidate.error_code is None]
    if request.on_error == "fail" and len(sound) < len(found):
        raise _refusal(next(candidate for candidate in found if candidate.error_code is not None))
    scored: list[Scored] = []
    if sound:
        scored = await backend.score([candidate.conversation for candidate in sound], truncation=request.truncation)
        visit.count_scores(scored)
        assert len(scored) == len(sound), f"{len(scored)} scores for {len(sound)} conversations"
    _check_any(scored)
    answers = iter(scored)
    results = [_result(c, next(answers) if c.error_code is None else None, request) for c in found]
    return _response(request, backend, results)


def _check_any(scored: list[Scored]) -> None:
    """Raise where trying again is the whole answer: nothing was scored, and by no fault of the items."""
    codes = {_item_code(score.error_code) if score.error_code is not None else None for score in scored}
    if codes == {"deadline_exceeded"}:
        raise ApiError("deadline_exceeded", "the deadline came before the first score")
    if codes and codes <= {"backend_error", "deadline_exceeded"}:
        raise ApiError("backend_unavailable", "the reward model failed on every item; try again")


def _item_code(code: str) -> str:
    """Return a backend's code as clients know it; scorers have others, which mean that scoring failed."""
    return code if code in ITEM_CODES else "backend_error"


def candidates(request: RewardRequest) -> list[Candidate]:
    """Return the responses of a request in order; K responses to one prompt become K candidates."""
    found: list[Candidate] = []
    for index, item in enumerate(request.input):
        messages = None if item.messages is None else to_messages(item.messages)
        for response_index, conversation in items.conversations(
            messages=messages, prompt=item.prompt, response=item.response, responses=item.responses
        ):
            refused = items.refusal(conversation, allow_empty=request.allow_empty)
            code, message = (refused.reason, refused.detail) if refused is not None else (None, None)
            found.append(Candidate(index, response_index, item.id, conversation, code, message))
    return found


def _result(candidate: Candidate, scored: Scored | None, request: RewardRequest) -> RewardResult:
    if scored is not None and scored.error_code is None:
        if scored.score is not None and all(map(math.isfinite, (scored.score, *scored.objectives.values()))):
            return _scored(candidate, scored, request)
        scored = dataclasses.replace(
            scored, error_code="non_finite_score", error_message="the model gave a score that is not a finite number"
        )
    code = _item_code((scored.error_code if scored else candidate.error_code) or "backend_error")
    message = (scored.error_message if scored else candidate.error_message) or code
    failed = dataclasses.replace(candidate, error_code=code, error_message=message)
    if request.on_error == "fail":
        raise _refusal(failed)
    return RewardResult(
        index=candidate.index,
        response_index=candidate.response_index,
        id=candidate.id,
        status="error",
        score=None,
        tokens=scored.num_tokens if scored else None,
        error=ErrorBody(message=message, type=error_type(STATUS[code]), param=candidate.param, code=code),
    )


def _scored(candidate: Candidate, scored: Scored, request: RewardRequest) -> RewardResult:
    assert scored.score is not None
    return RewardResult(
        index=candidate.index,
        response_index=candidate.response_index,
        id=candidate.id,
        status="ok",
        score=items.normalized(scored.score, request.normalize),
        tokens=scored.num_tokens,
        truncated=scored.truncated,
        objectives=(scored.objectives or None) if "objectives" in request.return_ else None,
    )


def _response(request: RewardRequest, backend: RewardBackend, results: list[RewardResult]) -> RewardResponse:
    card = backend.card
    ok = [result for result in results if result.status == "ok"]
    tokens = sum(result.tokens or 0 for result in ok)
    return RewardResponse(
        id=f"rwd-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=request.model,
        model_revision=card.revision,
        scorer=Scorer(dtype=card.dtype, template_sha256=card.template_sha256, range=card.score_range),
        results=results,
        summary=RewardSummary(ok=len(ok), error=len(results) - len(ok)),
        usage=RewardUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _refusal(candidate: Candidate) -> ApiError:
    assert candidate.error_code is not None and candidate.error_message is not None
    return ApiError(candidate.error_code, candidate.error_message, param=candidate.param)
