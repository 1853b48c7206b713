"""Scores in the shapes that other people's clients know: vLLM's score, Cohere's and Jina's rerank, NVIDIA's chat.

Each shape is turned into a `RewardRequest` and its answer is read off a `RewardResponse`, so the numbers are those
of `POST /v1/rewards`, bit for bit. These shapes have no place for the error of one item, for `truncated` or for
`allow_empty`: the first item that cannot be scored fails the request, and nothing is ever cut.
"""

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from serving.backends import RewardBackend
from serving.config import Limits
from serving.errors import ApiError
from serving.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChoiceLogprobs,
    Many,
    ModelName,
    RequestModel,
    ResponseModel,
    RewardItem,
    RewardRequest,
    RewardResponse,
    RewardResult,
    RewardUsage,
    TokenLogprob,
    Usage,
    one_of_forms,
    refuse,
)
from serving.scoring import score

Texts = str | Annotated[Many[str], Field(min_length=1)]


# ---- vLLM's score -----------------------------------------------------------------------------


class ScoreRequest(RequestModel):
    """`POST /v1/score`: one query and N documents, or N queries and N documents."""

    model_config = ConfigDict(json_schema_extra=one_of_forms(("queries", "documents"), ("text_1", "text_2")))

    model: ModelName
    queries: Texts | None = None
    """The prompt, or one prompt for each document."""
    documents: Texts | None = None
    """The responses to score."""
    text_1: Texts | None = None
    """The older name of `queries`."""
    text_2: Texts | None = None
    """The older name of `documents`."""
    use_activation: bool | None = None
    """True maps scores to 0..1 with a sigmoid; they are raw otherwise."""
    user: str | None = Field(default=None, max_length=512)
    """Accepted and not used."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        given = tuple(getattr(self, name) is not None for name in ("queries", "documents", "text_1", "text_2"))
        if given not in ((True, True, False, False), (False, False, True, True)):
            raise refuse("invalid_request", "give queries and documents, or text_1 and text_2")
        queries, documents = (_list(getattr(self, name)) for name in self.names)
        if len(queries) not in (1, len(documents)):
            sizes = f"{len(queries)} queries and {len(documents)} documents"
            raise refuse("invalid_request", f"{sizes}; give one query, or as many as documents", self.names[0])
        return self

    @property
    def names(self) -> tuple[str, str]:
        return ("queries", "documents") if self.text_1 is None else ("text_1", "text_2")

    def as_rewards(self) -> RewardRequest:
        """Return the native request: one prompt with K responses, or K pairs."""
        prompts, responses = (_list(getattr(self, name)) for name in self.names)
        if len(prompts) == 1:
            items = [RewardItem(prompt=prompts[0], responses=responses)]
        else:
            items = [RewardItem(prompt=p, response=r) for p, r in zip(prompts, responses, strict=True)]
        return _native(self.model, items, sigmoid=self.use_activation)


class ScoreData(ResponseModel):
    """The score of one document."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(ResponseModel):
    """Answer of `POST /v1/score`, in the order of the documents."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    model_revision: str
    data: list[ScoreData]
    usage: RewardUsage


async def score_pairs(request: ScoreRequest, backend: RewardBackend, *, limits: Limits) -> ScoreResponse:
    """Return the scores of query-document pairs.

    Raises:
        ApiError: as `scoring.score`; `param` names the document.
    """
    _, name = request.names
    plain = isinstance(getattr(request, name), str)
    answer = await _scores(request.as_rewards(), backend, limits, name if plain else f"{name}[]")
    return ScoreResponse(
        id=f"score-{uuid.uuid4().hex}",
        created=answer.created,
        model=answer.model,
        model_revision=answer.model_revision,
        data=[ScoreData(index=i, score=_number(result)) for i, result in enumerate(answer.results)],
        usage=answer.usage,
    )


# ---- Cohere's and Jina's rerank ---------------------------------------------------------------


class RerankText(RequestModel):
    """A document as older clients of Cohere and Jina send it."""

    text: str


class RerankRequest(RequestModel):
    """`POST /v1/rerank` and `/v2/rerank`: the best of N responses to one prompt, by reward."""

    model: ModelName
    query: str
    """The prompt."""
    documents: Many[str | RerankText] = Field(min_length=1)
    """The responses to rank."""
    top_n: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """How many of the best to return; null and 0 return all."""
    return_documents: bool | None = None
    """Return each document with its score."""
    use_activation: bool | None = None
    """True maps scores to 0..1 with a sigmoid; they are raw otherwise."""
    user: str | None = Field(default=None, max_length=512)
    """Accepted and not used."""

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RerankDocument(ResponseModel):
    """A document, where it was asked for."""

    text: str


class RerankResult(ResponseModel):
    """The place of one document in the ranking."""

    index: int
    """Position in `documents`."""
    relevance_score: float
    document: RerankDocument | None = Field(default=None, exclude_if=lambda value: value is None)


class RerankResponse(ResponseModel):
    """Answer of `POST /v1/rerank`: highest score first, ties in the order of the documents."""

    id: str
    model: str
    model_revision: str
    results: list[RerankResult]
    usage: RewardUsage


async def rerank(request: RerankRequest, backend: RewardBackend, *, limits: Limits) -> RerankResponse:
    """Return the documents' scores, the highest first.

    Raises:
        ApiError: as `scoring.score`; `param` names the document.
    """
    texts = request.texts
    native = _native(request.model, [RewardItem(prompt=request.query, responses=texts)], sigmoid=request.use_activation)
    answer = await _scores(native, backend, limits, "documents[]")
    scores = [_number(result) for result in answer.results]
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return RerankResponse(
        id=f"rerank-{uuid.uuid4().hex}",
        model=answer.model,
        model_revision=answer.model_revision,
        results=[
            RerankResult(
                index=i,
                relevance_score=scores[i],
                document=RerankDocument(text=texts[i]) if request.return_documents else None,
            )
            for i in ranked[: request.top_n or len(ranked)]
        ],
        usage=answer.usage,
    )


# ---- NVIDIA NIM's chat on a reward model ------------------------------------------------------


async def chat(request: ChatCompletionRequest, backend: RewardBackend, *, limits: Limits) -> ChatCompletion:
    """Return the score of a conversation as the text of an answer: `reward:3.14` and, where there are, objectives.

    Settings of sampling and length cannot change a score; clients send them by habit, so they are accepted and not
    used. What would change the form of the answer is refused.

    Raises:
        ApiError: as `scoring.score`, or unsupported_parameter for stream, n above 1 and top_logprobs above 0.
    """
    for name, asked in (
        ("stream", request.stream),
        ("n", (request.n or 1) > 1),
        ("top_logprobs", request.top_logprobs),
    ):
        if asked:
            raise ApiError("unsupported_parameter", f"{name} is not supported for a reward model", param=name)
    native = _native(request.model, [RewardItem(messages=request.messages)], objectives=True)
    answer = await _scores(native, backend, limits, "messages")
    (result,) = answer.results
    values = _attributes(_number(result), result.objectives or {})
    return ChatCompletion(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=answer.model,
        system_fingerprint=answer.model_revision,
        choices=[
            ChatChoice(
                index=0,
                # repr is the shortest text that reads back as the same bits.
                message=AssistantMessage(content=",".join(f"{name}:{value!r}" for name, value in values.items())),
                finish_reason="stop",
                logprobs=_as_logprobs(values),
            )
        ],
        usage=Usage(
            prompt_tokens=answer.usage.prompt_tokens, completion_tokens=0, total_tokens=answer.usage.total_tokens
        ),
    )


def _as_logprobs(values: dict[str, float]) -> ChoiceLogprobs:
    """Return the values as NIM does a second time: some of its clients read them here and not from the text."""
    return ChoiceLogprobs(
        content=[TokenLogprob(token=name, logprob=value, bytes=None, top_logprobs=[]) for name, value in values.items()]
    )


def _attributes(score: float, objectives: Mapping[str, float]) -> dict[str, float]:
    """Return the score as `reward`, then the objectives by their names without the two signs that clients split at.

    A name that is another's already gets underscores: reward -> reward_, and a:b -> a_b_ beside an a_b.
    """
    found = {"reward": score}
    for name, value in objectives.items():
        own = re.sub(r"[:,]", "_", name)
        while own in found or (own != name and own in objectives):
            own += "_"
        found[own] = value
    return found


# ---- common -----------------------------------------------------------------------------------


def _native(
    model: str, items: Sequence[RewardItem], *, sigmoid: bool | None = None, objectives: bool = False
) -> RewardRequest:
    fields: dict[str, Any] = {"model": model, "input": items, "on_error": "fail"}
    return RewardRequest.model_validate(
        fields | {"normalize": "sigmoid" if sigmoid else None, "return": ["objectives"] if objectives else []}
    )


async def _scores(native: RewardRequest, backend: RewardBackend, limits: Limits, param: str) -> RewardResponse:
    """Score a native request; an error's `param` is told in the client's words, `[]` standing for the position."""
    try:
        return await score(native, backend, limits=limits)
    except ApiError as error:
        if error.param is None:
            raise
        position = re.search(r"\[\d+\]$", error.param)
        renamed = param.replace("[]", position[0] if position else "")
        raise ApiError(error.code, error.message, param=renamed, retry_after_s=error.retry_after_s) from None


def _number(result: RewardResult) -> float:
    assert result.score is not None, "on_error: fail leaves no result without a score"
    return result.score


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
