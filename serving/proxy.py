"""A layer inside Ray Serve's HTTP proxy, before anything that the proxy does with a request.

The proxy acts on some headers itself and answers some failures itself: as text/plain, with nothing, or after a wait
without end; no application sees any of it. Ray calls `middlewares` when a proxy starts, if its environment says so
(`environment`).

Of a request it
- takes `x-request-disconnect-disabled` out: a client may not keep work alive that it will not read;
- renames `x-request-timeout-seconds`, which the proxy would end with text/plain, to one that the routes read;
- takes out an `x-request-id` that is malformed or sent twice, because the proxy repeats it in its answer,
  and headers that are not UTF-8, at which the proxy fails.
`/-/routes`, which lists applications, is 404; `/-/healthz` stays, because KubeRay asks for it.

Of an answer: what the proxy itself says (no application at this path, no replica, a replica that died) gets the
envelope and `Retry-After`, and a stream whose replica died ends with an error event. An answer of an
application passes as it is. And who would find no seat is told so here, at a tenth of what it costs to ask the front:
how many seats there are is learnt from a header of its answers. Where no answer has begun some seconds past the deadline, the layer gives one. Without
this layer the service is as safe, but such answers are the proxy's own.
"""

import asyncio
import json
import logging
import math
import os
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.auth import REWARD_PATHS, Kind
from serving.config import Limits
from serving.edge import REQUEST_ID, SEATS, Header
from serving.errors import ApiError
from serving.telemetry import REJECTED, InMemory, Telemetry

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""Beyond the deadline of the front, which answers itself."""
TELL_S = 1.0
"""How long refusals are gathered before they are counted."""
CHAT = "/v1/chat/completions"
DEADLINES = "FUSELINE_DEADLINES_S"
"""Variable with the deadlines in seconds, of all routes and of chat; without it the proxy waits for the front."""

CLIENT_TIMEOUT = b"x-request-timeout-seconds"
RENAMED_TIMEOUT = b"x-fuseline-timeout-seconds"
DISCONNECT_DISABLED = b"x-request-disconnect-disabled"


def environment(limits: Limits) -> dict[str, str]:
    """Return the variables of Serve's controller that put this before its proxies, which inherit them."""
    return {
        # Three failures in a row replace a proxy; with Ray's default, 10, nobody listens for half a minute.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:{middlewares.__name__}",
        DEADLINES: f"{limits.deadline_s:g} {limits.chat_deadline_s:g}",
    }


def middlewares() -> list[Middleware]:
    """Return the layers of the proxy; Ray calls this in the proxy's process."""
    given = os.environ.get(DEADLINES, "inf inf")
    deadline_s, chat_deadline_s = map(float, given.split())
    from serving.ray_metrics import RayTelemetry  # Ray is there when it calls this

    return [Middleware(ProxyLayer, deadline_s=deadline_s, chat_deadline_s=chat_deadline_s, telemetry=RayTelemetry())]


class ProxyLayer:
    """The layer. Other applications on the same proxy lose the headers above too, and nothing else."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        deadline_s: float = math.inf,
        chat_deadline_s: float = math.inf,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._app = app
        self._telemetry = telemetry or InMemory()
        self._refused = 0
        self._begun_within_s = {True: chat_deadline_s + GRACE_S, False: deadline_s + GRACE_S}
        self._seats: dict[Kind, int] = {}
        self._seated: Counter[Kind] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "headers": clean(scope["headers"])}
        out = _Answer(scope, send, self._learn)
        # `OPTIONS *` has no path; the proxy would say that nothing is deployed there.
        if scope["path"].rstrip("/") == "/-/routes" or not scope["path"].startswith("/"):
            await out.replace(ApiError("not_found", f"{scope['method']} {scope['path'][:128]} does not exist"))
            return
        kind = _kind(scope["method"], scope["path"])
        if kind is None:
            await self._pass_on(scope, receive, out)
            return
        if self._seated[kind] >= self._seats.get(kind, math.inf):
            self._count_refused()
            await out.replace(ApiError("overloaded", "too many requests are in progress; try again"))
            return
        sits = False

        async def seating() -> Message:
            """Take a seat with the end of the body: a slow upload keeps no model from others."""
            nonlocal sits
            message = await receive()
            if not sits and message["type"] == "http.request" and not message.get("more_body", False):
                sits = True
                self._seated[kind] += 1
            return message

        try:
            await self._pass_on(scope, seating, out)
        finally:
            self._seated[kind] -= sits

    async def _pass_on(self, scope: Scope, receive: Receive, out: "_Answer") -> None:
        """Let the proxy answer, and answer in its stead where it does not."""
        within_s = self._begun_within_s[scope["path"] == CHAT]
        try:
            async with asyncio.timeout(within_s if math.isfinite(within_s) else None) as out.limit:
                await self._app(scope, receive, out.send)
        except TimeoutError:
            if out.started:
                raise
            logger.warning("no copy of the service has begun an answer within %g s", within_s)
        except Exception:
            logger.exception("the proxy failed on a request")
            await out.end(ApiError("internal_error", "the request failed on the server"))
            raise
        await out.end(
            ApiError("backend_unavailable", "the copy of the service that had this request is gone; try again")
        )

    def _count_refused(self) -> None:
        """Add to the metrics within a second, all at once: on Ray's exporter each addition costs more than a refusal."""
        if not self._refused:
            asyncio.get_running_loop().call_later(TELL_S, self._tell_refused)
        self._refused += 1

    def _tell_refused(self) -> None:
        self._telemetry.add(REJECTED, self._refused, {"reason": "overloaded"})
        self._refused = 0

    def _learn(self, told: bytes) -> None:
        """Take over how many seats there are, `chat=48,reward=16`; what is not told of has no limit here."""
        pairs = (part.partition("=") for part in bytes(told).decode().split(","))
        self._seats = {kind: int(number) for kind, _, number in pairs if kind in ("chat", "reward")}


def _kind(method: str, path: str) -> Kind | None:
    """Return whose seats a request asks for; None where it asks for no model."""
    if method != "POST":
        return None
    return "chat" if path == CHAT else "reward" if path in REWARD_PATHS else None


def clean(headers: list[Header]) -> list[Header]:
    """Return the headers that the proxy may see."""
    ids = [value for name, value in headers if name == b"x-request-id"]
    good_id = len(ids) == 1 and REQUEST_ID.fullmatch(ids[0].decode("latin-1")) is not None
    kept: list[Header] = []
    for name, value in headers:
        if name == DISCONNECT_DISABLED or (name == b"x-request-id" and not good_id) or not _is_utf8(value):
            continue
        kept.append((RENAMED_TIMEOUT if name == CLIENT_TIMEOUT else name, value))
    return kept


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Answer:
    """The answer of the proxy: passed on, or replaced where it is the proxy's own error."""

    def __init__(self, scope: Scope, send: Send, learn: Callable[[bytes], None]) -> None:
        self._scope = scope
        self._learn = learn
        self._send = send
        self.limit: asyncio.Timeout | None = None
        """Ends the wait for an answer; from its first byte on, the deadline of the front counts."""
        self.started = False
        self._finished = False
        self._is_stream = False
        self._replaced = False

    async def send(self, message: Message) -> None:
        if self._replaced:
            return  # the text of an answer that was replaced
        if message["type"] == "http.response.start":
            if self.limit is not None:
                self.limit.reschedule(None)
            headers: dict[bytes, Any] = {bytes(name).lower(): value for name, value in message.get("headers", [])}
            own = _own_error(message["status"], headers, self._scope["path"])
            if own is not None:
                await self.replace(own, headers.get(b"x-request-id"))
                return
            if SEATS in headers:
                self._learn(headers[SEATS])
                kept = [(name, value) for name, value in message["headers"] if bytes(name).lower() != SEATS]
                message = {**message, "headers": kept}
            self.started = True
            self._is_stream = bytes(headers.get(b"content-type", b"")).startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            self._finished = not message.get("more_body", False)
        await self._send(message)

    async def replace(self, error: ApiError, request_id: bytes | None = None) -> None:
        """Answer with the envelope."""
        self._replaced = self.started = self._finished = True
        headers = {
            **error.headers(),
            "x-request-id": self._id(request_id),
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
        }
        await JSONResponse(error.body(), error.status, headers)(self._scope, _no_body, self._send)

    def _id(self, given: bytes | None) -> str:
        """Return the id that the proxy gave the request, else the client's, else a new one."""
        asked = next((value for name, value in self._scope["headers"] if name == b"x-request-id"), None)
        found = given or asked
        return bytes(found).decode() if found else f"req-{uuid.uuid4().hex}"

    async def end(self, error: ApiError) -> None:
        """Make an answer that was not begun, or a stream that was not ended, end with `error`."""
        if not self.started:
            await self.replace(error)
        elif self._is_stream and not self._finished:
            event = b"data: " + json.dumps(error.body(), separators=(",", ":")).encode() + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})


def _own_error(status: int, headers: dict[bytes, Any], path: str) -> ApiError | None:
    """Return the envelope of an error that the proxy itself wrote; None where an application wrote it.

    The proxy writes text/plain without a length, which no web framework does.
    """
    if b"content-length" in headers or not bytes(headers.get(b"content-type", b"")).startswith(b"text/plain"):
        return None
    if path.startswith("/-/"):
        return None
    match status:
        case 404:
            return ApiError("not_ready", "the service is not deployed yet, or is being deployed")
        case 408:
            return ApiError("deadline_exceeded", "the request took longer than the deadline")
        case 429:
            return ApiError("overloaded", "too many requests are waiting; try again")
        case 500 | 503:
            return ApiError("backend_unavailable", "no copy of the service can take this request; try again")
        case _:
            return None


async def _no_body() -> Message:
    return {"type": "http.disconnect"}
