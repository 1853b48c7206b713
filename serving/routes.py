"""The routes: each reads its body strictly, finds its model, asks for the answer within the deadline.

What an answer is made of lives in `chat`, `scoring` and `aliases`; here is only HTTP. The one idea: every route that
gives a score ends in `scoring.score`.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from serving import aliases, chat, deadline, scoring, visit
from serving.backends import ChatBackend, RewardBackend
from serving.body import AnyRequest, parse_model, read_json
from serving.config import Limits
from serving.errors import ApiError
from serving.openapi import BODY_ERRORS, READ_ERRORS, STREAM_CONTENT, body_of, errors
from serving.schemas import (
    ChatCompletion,
    ChatCompletionRequest,
    Health,
    ModelCard,
    ModelList,
    RewardRequest,
    RewardResponse,
)

Endpoint = Callable[..., Awaitable[Any]]
Backend = TypeVar("Backend", ChatBackend, RewardBackend)


@dataclasses.dataclass(frozen=True, slots=True)
class Models:
    """The served models, by the names that clients use."""

    chats: dict[str, ChatBackend]
    rewards: dict[str, RewardBackend]

    @property
    def cards(self) -> list[ModelCard]:
        return [backend.card for backend in [*self.chats.values(), *self.rewards.values()]]

    def reward(self, name: str) -> RewardBackend:
        """Return a reward model. Raises ApiError that says which there are."""
        if name in self.chats:
            use = "POST /v1/chat/completions"
            raise ApiError("invalid_request", f"{name} is a chat model; use {use}", param="model")
        return _find(name, self.rewards)

    def card(self, name: str) -> ModelCard:
        """Return the card of a model, which any key may read. Raises ApiError that says which there are."""
        card = _known(name, {**self.chats, **self.rewards}).card
        visit.name_model(card)
        return card


def _find(name: str, models: dict[str, Any]) -> Any:
    model = _known(name, models)
    visit.use_model(model.card)
    return model


def _known(name: str, models: dict[str, Any]) -> Any:
    if name not in models:
        visit.unknown_model()
        offered = ", ".join(sorted(models)) or "none"
        raise ApiError("model_not_found", f"no model {name[:128]!r} on this route; there is: {offered}", param="model")
    return models[name]


def add_models(app: FastAPI, models: Models, not_ready: Callable[[], str | None]) -> None:
    """Add what can be asked about the service and its models."""

    async def list_models() -> ModelList:
        return ModelList(data=models.cards)

    async def retrieve_model(model: str) -> ModelCard:
        return models.card(model)

    async def healthz() -> Health:
        return Health(status="ok")

    async def readyz() -> Health:
        awaited = not_ready()
        if awaited is not None:
            raise ApiError("not_ready", f"not ready: {awaited}")
        return Health(status="ready")

    _add_get(app, "/v1/models", list_models, READ_ERRORS)
    _add_get(app, "/v1/models/{model}", retrieve_model, (*READ_ERRORS, 404))
    _add_get(app, "/healthz", healthz, (500,))
    _add_get(app, "/readyz", readyz, (429, 500, 503))


def _add_get(app: FastAPI, path: str, endpoint: Endpoint, statuses: tuple[int, ...]) -> None:
    app.get(path, responses=errors(*statuses))(endpoint)
    # HTTP asks for HEAD wherever there is GET, and load balancers use it.
    app.head(path, include_in_schema=False)(endpoint)


def add_chat(app: FastAPI, models: Models, limits: Limits) -> None:
    """Add chat; with the name of a reward model it scores the conversation instead (NVIDIA NIM's way)."""

    described = body_of(ChatCompletionRequest, limits, [*models.chats, *models.rewards])

    @_post(app, "/v1/chat/completions", ChatCompletion, described, streams=True)
    async def chat_completions(request: Request) -> Response:
        limit_s = deadline.seconds(request, limits.chat_deadline_s)
        ends_at = asyncio.get_running_loop().time() + limit_s
        async with deadline.within(limit_s):
            async with deadline.within(limits.deadline_s):
                body = await read_json(request, max_bytes=limits.chat_body_bytes)
            asked = parse_model(ChatCompletionRequest, body)
            if asked.model in models.rewards:
                async with deadline.within(limits.deadline_s):
                    return _json(await aliases.chat(asked, models.reward(asked.model), limits=limits))
            backend: ChatBackend = _find(asked.model, models.chats)
            # Rendering a long prompt takes milliseconds that other requests should not wait for.
            generation = await asyncio.to_thread(chat.prepare, asked, backend, limits=limits)
            if not asked.stream:
                return _json(await chat.complete(generation, backend, model=asked.model))
        include_usage = asked.stream_options is not None and asked.stream_options.include_usage
        pieces = chat.chunks(generation, backend, model=asked.model, include_usage=include_usage)
        return await _stream(deadline.until(ends_at, pieces))


def add_rewards(app: FastAPI, models: Models, limits: Limits) -> None:
    """Add scoring, in its own shape and in those of vLLM, Cohere and Jina."""
    _add_scoring(app, ["/v1/rewards"], RewardRequest, RewardResponse, scoring.score, models, limits)
    _add_scoring(app, ["/v1/score"], aliases.ScoreRequest, aliases.ScoreResponse, aliases.score_pairs, models, limits)
    paths = ["/v1/rerank", "/v2/rerank"]
    _add_scoring(app, paths, aliases.RerankRequest, aliases.RerankResponse, aliases.rerank, models, limits)


def _add_scoring(
    app: FastAPI,
    paths: list[str],
    asks: type[AnyRequest],
    answers: type[BaseModel],
    answer: Callable[..., Awaitable[BaseModel]],
    models: Models,
    limits: Limits,
) -> None:
    async def endpoint(request: Request) -> Response:
        async with deadline.within(deadline.seconds(request, limits.deadline_s)):
            asked: Any = parse_model(asks, await read_json(request, max_bytes=limits.rewards_body_bytes))
            return _json(await answer(asked, models.reward(asked.model), limits=limits))

    for path in paths:
        _post(app, path, answers, body_of(asks, limits, list(models.rewards)))(endpoint)


def _post(
    app: FastAPI, path: str, answers: type[BaseModel], described: dict[str, Any], *, streams: bool = False
) -> Callable[[Endpoint], Endpoint]:
    responses = errors(*BODY_ERRORS)
    if streams:
        responses[200] = {"content": STREAM_CONTENT}
    return app.post(path, name=path, response_model=answers, responses=responses, openapi_extra=described)


async def _stream(pieces: AsyncGenerator[dict[str, Any], None]) -> Response:
    """Return a streaming answer, after its first piece: an engine that refuses still gives a proper status."""
    first = await anext(pieces)

    async def rest() -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(chat.events(rest()), media_type="text/event-stream", headers=headers)


def _json(model: BaseModel) -> JSONResponse:
    return JSONResponse(model.model_dump(mode="json"))
