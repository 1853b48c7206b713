"""The HTTP front put together: routes, error envelopes and request ids. A plain FastAPI app.

It knows its models as `ChatBackend` and `RewardBackend` only; Ray Serve is brought by `ingress`. The one
idea: every answer that is not 2xx goes through `ApiError`, whatever went wrong and wherever.
"""

import logging
import re
import uuid
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import openapi, routes
from serving.backends import ChatBackend, RewardBackend
from serving.config import Limits
from serving.errors import ApiError

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def build_app(
    *,
    chats: dict[str, ChatBackend],
    rewards: dict[str, RewardBackend],
    limits: Limits,
    not_ready: Callable[[], str | None],
    behind_proxy: bool = False,
    documented: bool = True,
) -> FastAPI:
    """Return the app over these backends, by model name.

    Args:
        chats: chat models.
        rewards: reward models.
        limits: what one request may ask for.
        not_ready: returns None once every model is loaded and warm, before that what is awaited.
        behind_proxy: True where Ray Serve's proxy adds the `x-request-id` of every answer.
        documented: True shows the OpenAPI document at `/openapi.json`.
    """
    shown_at = "/openapi.json" if documented else None
    app = FastAPI(title="fuseline", docs_url=None, redoc_url=None, openapi_url=shown_at)
    openapi.describe(app, [*chats, *rewards])
    # The router would answer a trailing slash with a redirect, which is no envelope.
    app.router.redirect_slashes = False
    models = routes.Models(chats, rewards)
    routes.add_models(app, models, not_ready)
    routes.add_chat(app, models, limits)
    routes.add_rewards(app, models, limits)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(Envelope, max_in_flight=limits.max_in_flight, adds_id=not behind_proxy)
    return app


# ---- errors -----------------------------------------------------------------------------------


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:128]}"
    if error.status_code == 405:
        answer = await _on_api_error(request, ApiError("method_not_allowed", f"{where} is not allowed"))
        answer.headers["allow"] = ", ".join(_allowed(request))
        return answer
    code = "not_found" if error.status_code == 404 else "invalid_request"
    message = f"{where} does not exist" if code == "not_found" else str(error.detail)
    return await _on_api_error(request, ApiError(code, message))


def _allowed(request: Request) -> list[str]:
    """Return the methods of the path; the router itself names those of the first route that has it."""
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


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
