"""The HTTP front: routes, error envelopes, deadlines and request ids. A plain FastAPI app.

It knows its models as `ChatBackend` and `RewardBackend` only; Ray Serve is brought by `ingress`. The one
idea: every answer that is not 2xx goes through `ApiError`, whatever went wrong and wherever.
"""

import asyncio
import logging
import math
import re
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import chat, scoring
from serving.backends import ChatBackend, RewardBackend
from serving.body import parse_model, read_json
from serving.config import Limits
from serving.errors import ApiError
from serving.page import add_page
from serving.schemas import (
    ChatCompletion,
    ChatCompletionRequest,
    ErrorEnvelope,
    Health,
    ModelList,
    RewardRequest,
    RewardResponse,
)

logger = logging.getLogger(__name__)

Backend = TypeVar("Backend", ChatBackend, RewardBackend)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TIMEOUT_HEADER = "x-request-timeout-seconds"

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope} for status in (400, 404, 405, 408, 413, 415, 429, 500, 503)
}


def build_app(
    *,
    chats: dict[str, ChatBackend],
    rewards: dict[str, RewardBackend],
    limits: Limits,
    not_ready: Callable[[], str | None],
    behind_proxy: bool = False,
    run: Path | None = None,
) -> FastAPI:
    """Return the app over these backends, by model name.

    Args:
        chats: chat models.
        rewards: reward models.
        limits: what one request may ask for.
        not_ready: returns None once every model is loaded and warm, before that what is awaited.
        behind_proxy: True where Ray Serve's proxy adds the `x-request-id` of every answer.
        run: folder with the results of the run that the page shows.
    """
    app = FastAPI(title="fuseline", docs_url=None, redoc_url=None, responses=_ERRORS)
    # The router would answer a trailing slash with a redirect, which is no envelope.
    app.router.redirect_slashes = False
    _add_models(app, chats, rewards, not_ready)
    _add_chat(app, chats, rewards, limits)
    _add_rewards(app, chats, rewards, limits)
    add_page(app, run)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(Envelope, max_in_flight=limits.max_in_flight, adds_id=not behind_proxy)
    return app


def _add_models(
    app: FastAPI,
    chats: dict[str, ChatBackend],
    rewards: dict[str, RewardBackend],
    not_ready: Callable[[], str | None],
) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[backend.card for backend in [*chats.values(), *rewards.values()]])

    @app.get("/healthz")
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get("/readyz")
    async def readyz() -> Health:
        awaited = not_ready()
        if awaited is not None:
            raise ApiError("not_ready", f"not ready: {awaited}")
        return Health(status="ready")


def _add_chat(app: FastAPI, chats: dict[str, ChatBackend], rewards: dict[str, RewardBackend], limits: Limits) -> None:
    @app.post("/v1/chat/completions", response_model=ChatCompletion, openapi_extra=_body_of(ChatCompletionRequest))
    async def chat_completions(request: Request) -> Response:
        deadline_s = _deadline(request, limits.chat_deadline_s)
        ends_at = asyncio.get_running_loop().time() + deadline_s
        async with _within(deadline_s):
            async with _within(limits.deadline_s):
                body = await read_json(request, max_bytes=limits.chat_body_bytes)
            asked = parse_model(ChatCompletionRequest, body)
            backend = _find(asked.model, chats, rewards, use="POST /v1/rewards")
            # Rendering a long prompt takes milliseconds that other requests should not wait for.
            generation = await asyncio.to_thread(chat.prepare, asked, backend, limits=limits)
            if not asked.stream:
                answer = await chat.complete(generation, backend, model=asked.model)
                return _json(answer)
        include_usage = asked.stream_options is not None and asked.stream_options.include_usage
        pieces = chat.chunks(generation, backend, model=asked.model, include_usage=include_usage)
        return await _stream(_until(ends_at, pieces))


def _add_rewards(
    app: FastAPI, chats: dict[str, ChatBackend], rewards: dict[str, RewardBackend], limits: Limits
) -> None:
    @app.post("/v1/rewards", response_model=RewardResponse, openapi_extra=_body_of(RewardRequest))
    async def score(request: Request) -> Response:
        async with _within(_deadline(request, limits.deadline_s)):
            body = await read_json(request, max_bytes=limits.rewards_body_bytes)
            asked = parse_model(RewardRequest, body)
            backend = _find(asked.model, rewards, chats, use="POST /v1/chat/completions")
            answer = await scoring.score(asked, backend, limits=limits)
        value = answer.model_dump(mode="json")
        for result in value["results"]:
            for optional in ("error", "response_index"):
                if result[optional] is None:
                    del result[optional]
        return JSONResponse(value)


def _find(name: str, here: dict[str, Backend], elsewhere: dict[str, Any], *, use: str) -> Backend:
    if name in here:
        return here[name]
    if name in elsewhere:
        raise ApiError("invalid_request", f"{name} is a model of the other kind; use {use}", param="model")
    offered = ", ".join(sorted(here)) or "none"
    raise ApiError("model_not_found", f"no model {name!r} on this route; there is: {offered}", param="model")


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


async def _until(ends_at: float, pieces: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield `pieces` until the loop's clock reads `ends_at`, then raise the deadline error."""
    async with aclosing(pieces):
        while True:
            # Around one step, not around the loop: a timeout must not be open where a generator yields.
            try:
                async with asyncio.timeout_at(ends_at):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise ApiError("deadline_exceeded", "the answer took longer than the deadline") from None
            yield piece


class _within:
    """Turn a timeout of the block into `deadline_exceeded`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise ApiError("deadline_exceeded", f"the request took longer than {self._seconds:g} s") from None


def _deadline(request: Request, limit_s: float) -> float:
    """Return the deadline in seconds: the service's, or the client's where that is lower."""
    with suppress(ValueError):
        asked = float(request.headers.get(TIMEOUT_HEADER, "nan"))
        if math.isfinite(asked) and asked > 0:
            return min(asked, limit_s)
    return limit_s


def _json(model: BaseModel) -> JSONResponse:
    return JSONResponse(model.model_dump(mode="json"))


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI entry of a body that the route reads itself (see `serving.body`)."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    inlined = _inline(schema, definitions)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined}}}}


def _inline(value: Any, definitions: dict[str, Any]) -> Any:
    match value:
        case {"$ref": str(ref)}:
            return _inline(definitions[ref.rsplit("/", 1)[1]], definitions)
        case dict():
            return {key: _inline(item, definitions) for key, item in value.items()}
        case list():
            return [_inline(item, definitions) for item in value]
        case _:
            return value


# ---- errors -----------------------------------------------------------------------------------


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:128]}"
    if error.status_code == 405:
        answer = await _on_api_error(request, ApiError("method_not_allowed", f"{where} is not allowed"))
        answer.headers.update(error.headers or {})
        return answer
    code = "not_found" if error.status_code == 404 else "invalid_request"
    message = f"{where} does not exist" if code == "not_found" else str(error.detail)
    return await _on_api_error(request, ApiError(code, message))


class Envelope:
    """The outermost layer: gives every answer an `x-request-id`, and turns a crash or overload into an envelope."""

    def __init__(self, app: ASGIApp, *, max_in_flight: int, adds_id: bool) -> None:
        self._app = app
        self._adds_id = adds_id
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._adds_id:
                    headers = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                    message = {**message, "headers": headers}
            await send(message)

        if self._in_flight >= self._max_in_flight and scope["path"] != "/healthz":
            busy = ApiError("overloaded", f"{self._max_in_flight} requests are in progress; try again")
            await JSONResponse(busy.body(), busy.status, busy.headers())(scope, receive, send_with_id)
            return
        self._in_flight += 1
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if started:
                raise  # the status is sent; closing the connection is all that is left
            failed = ApiError("internal_error", f"the request failed on the server; its id is {request_id}")
            await JSONResponse(failed.body(), failed.status)(scope, receive, send_with_id)
        finally:
            self._in_flight -= 1


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return text
    return f"req-{uuid.uuid4().hex}"
