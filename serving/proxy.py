"""What clients see of Ray Serve's own proxy: its answers in our envelope, and none of them late.

The proxy stands before the front. Where the front is killed, starting or gone, it answers by itself: with plain text,
with nothing, or after a wait without end. The one idea: what did not come from the front is put as the 503 that it is.
"""

import asyncio
import os
import re
import uuid
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.config import Limits
from serving.errors import ApiError

GRACE_S = 5.0
"""Beyond the front's own deadline, which it answers itself."""

CHAT = "/v1/chat/completions"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
DEADLINES = "FUSELINE_DEADLINES_S"
"""Variable with the deadlines in seconds, of all routes and of the chat."""

OWN = "/-/"
"""Below it are the proxy's own routes, for balancers in front of it."""


class ProxyEnvelope:
    """ASGI middleware of the proxy: every answer has a body that our clients can read."""

    def __init__(self, app: ASGIApp, *, deadline_s: float, chat_deadline_s: float) -> None:
        self._app = app
        self._deadline_s = {True: chat_deadline_s + GRACE_S, False: deadline_s + GRACE_S}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OWN):
            await self._app(scope, receive, send)
            return
        started, replaced = False, False
        timeout = asyncio.timeout(self._deadline_s[scope["path"] == CHAT])

        async def send_ours(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                timeout.reschedule(None)  # from here on the front's deadline counts
                if (error := _of_the_proxy(message)) is not None:
                    replaced = True
                    await _send(error, scope, receive, send)
                    return
            if not replaced:
                await send(message)

        try:
            async with timeout:
                await self._app(scope, receive, send_ours)
        except TimeoutError:
            if started:
                raise
        if not started:  # the front that had the request is dead, or none came up in time
            await _send(_unavailable(), scope, receive, send)


def environment(limits: Limits) -> dict[str, str]:
    """Return the variables of Serve's controller that put this before its proxies, which inherit them."""
    return {
        # Three failures in a row replace a proxy; with Ray's default, 10, nobody listens for half a minute.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:{middlewares.__name__}",
        DEADLINES: f"{limits.deadline_s:g} {limits.chat_deadline_s:g}",
    }


def middlewares() -> list[Middleware]:
    """Return the middlewares of the proxy, with the deadlines of `environment`; Serve calls it in the proxy."""
    deadline_s, chat_deadline_s = map(float, os.environ[DEADLINES].split())
    return [Middleware(ProxyEnvelope, deadline_s=deadline_s, chat_deadline_s=chat_deadline_s)]


def _of_the_proxy(start: Message) -> ApiError | None:
    """Return what an answer means that the proxy made itself, or None for one of the front's."""
    status = start["status"]
    kind = Headers(raw=start["headers"]).get("content-type", "")
    if status < HTTPStatus.BAD_REQUEST or kind.startswith("application/json"):
        return None
    if status == HTTPStatus.NOT_FOUND:
        return ApiError("not_ready", "the service is starting, or has been taken down; try again")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ApiError("overloaded", "the service has too many requests; try again")
    return _unavailable()


def _unavailable() -> ApiError:
    return ApiError("backend_unavailable", "the service is not available at this moment; try again")


async def _send(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    answer = JSONResponse(error.body(), error.status, error.headers())
    # The proxy has put the id of the request into its headers, unless the client had.
    asked = Headers(scope=scope).get("x-request-id", "")
    answer.headers["x-request-id"] = asked if REQUEST_ID.fullmatch(asked) else f"req-{uuid.uuid4().hex}"
    await answer(scope, receive, send)
