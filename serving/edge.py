"""The edge: what every request passes before a route sees it, and every answer after. Pure ASGI, so streams pass.

The one idea: a request is a `Visit`. The edge opens it, decides whether it may go on (headers, key, load,
budget), ends it when its client leaves or its time is over, and at last writes it to the access log and the
metrics. What a route raises, and what goes wrong here, become the same envelope.

Facts about what lies before the edge:

- The limit on headers is ours (16 KiB, request line included), and counts them once they have arrived.
  uvicorn over h11 itself cuts a request off at 64 KiB with a plain 400; over httptools, which it takes where
  that is installed, it has no limit of its own.
- Ray Serve's proxy reads two client headers before the application is called. `x-request-timeout-seconds`:
  a positive value ends the request at the proxy with a text/plain 408, zero or less switches off the
  proxy's own timeout (this service sets none). `x-request-disconnect-disabled: ?1`: the proxy no longer
  cancels a request whose client has gone. Neither moves the limits of this service: deadlines are kept by
  the routes on their own clock, and the proxy still passes `http.disconnect` on to `receive`, where the edge
  sees it and cancels the work itself. To keep the two headers from the proxy altogether, and to give the
  proxy's own answers the envelope, there is `serving.proxy`.
- The proxy puts an `x-request-id` into each answer; with `adds_id=False` the edge leaves that to it.
"""

import asyncio
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import AccessLog
from serving.auth import Guard, Kind
from serving.errors import ApiError, trace
from serving.telemetry import IN_FLIGHT, InMemory, Telemetry, report
from serving.visit import CLIENT_CLOSED, CURRENT, Visit

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
HEADER_BYTES = 16 * 1024

_PROBES = frozenset({"/healthz", "/readyz"})
"""Answered also when the service is full."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

SEATS = b"x-fuseline-seats"
"""Header that tells the proxy how many requests are let in, `chat=48,reward=16`."""

Header = tuple[bytes, bytes]

SECURITY_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Put into every answer that does not have its own; the page has its own policy and caching."""


@dataclass(frozen=True, slots=True)
class Observers:
    """Who hears of a request: the guard of keys and budgets, the metrics, the access log."""

    guard: Guard = field(default_factory=lambda: Guard(()))
    telemetry: Telemetry = field(default_factory=InMemory)
    access: AccessLog = field(default_factory=lambda: AccessLog("off"))


class Edge:
    """The outermost layer of the app."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        observers: Observers,
        routes: frozenset[str],
        max_in_flight: int,
        longest_s: float,
        header_bytes: int = HEADER_BYTES,
        adds_id: bool = True,
        seats: Callable[[], Mapping[Kind, int]] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Put the edge around `app`.

        Args:
            app: what is behind it.
            observers: guard, metrics and access log.
            routes: templates of the routes; any other path is logged as `other`.
            max_in_flight: requests at once; one more gets 429.
            longest_s: seconds after which any request is ended, also one whose client does not read its answer.
            header_bytes: most bytes of request line and headers.
            adds_id: False where something before the edge adds `x-request-id` to answers.
            seats: gives what `serving.proxy` is told in the header `x-fuseline-seats`, which it takes out again.
            clock: seconds.
        """
        self._app = app
        self._observers = observers
        self._routes = routes
        self._patterns = [(compile_path(route)[0], route) for route in sorted(routes) if "{" in route]
        self._max_in_flight = max_in_flight
        self._longest_s = longest_s
        self._header_bytes = header_bytes
        self._adds_id = adds_id
        self._seats = seats
        self._clock = clock
        self._in_flight: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none here, and a route would be called without a key
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        visit = Visit(_request_id(scope), method, self._template(scope["path"]))
        out = _Outgoing(send, visit, self._clock, headers=self._own_headers(), adds_id=self._adds_id)
        entered = CURRENT.set(visit)
        try:
            await self._answer(scope, receive, out, visit)
        finally:
            CURRENT.reset(entered)
            visit.seconds = out.elapsed()
            self._observers.guard.charge(visit.key, visit.total_tokens)
            report(visit, self._observers.telemetry)
            self._observers.access.write(visit)

    def _own_headers(self) -> tuple[Header, ...]:
        if self._seats is None:
            return SECURITY_HEADERS
        told = ",".join(f"{kind}={number}" for kind, number in self._seats().items())
        return *SECURITY_HEADERS, (SEATS, told.encode())

    async def _answer(self, scope: Scope, receive: Receive, out: "_Outgoing", visit: Visit) -> None:
        """Let the request through, and turn whatever goes wrong into an envelope or, once begun, a closed answer."""
        try:
            self._admit(scope, visit)
            with self._counted(visit.route):
                await _Attended(self._app, receive, out, longest_s=self._longest_s).run(scope)
        except ApiError as error:
            if out.started:  # the deadline, past the first byte
                visit.code = error.code
                raise
            await _refuse(error, scope, receive, out, visit)
        except ClientDisconnect:
            out.abandoned()
        except asyncio.CancelledError:  # whoever runs the app has given the request up
            out.abandoned()
            raise
        except Exception as error:
            logger.error("request %s failed: %s", visit.request_id, trace(error))
            failed = ApiError("internal_error", f"the request failed on the server; its id is {visit.request_id}")
            if out.started:
                visit.code = failed.code
                raise failed from None  # the status is sent; closing the connection is all that is left
            await _refuse(failed, scope, receive, out, visit)

    def _admit(self, scope: Scope, visit: Visit) -> None:
        """Raise ApiError where a request may not go on; cheap, and before anything of its body is read."""
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # ": " and the line's end
        if size > self._header_bytes:
            raise ApiError("invalid_request", f"the headers have {size} bytes; at most {self._header_bytes} are read")
        visit.key = self._observers.guard.identify(scope["path"], scope["headers"])
        if self._in_flight.total() >= self._max_in_flight and scope["path"] not in _PROBES:
            raise ApiError("overloaded", f"{self._max_in_flight} requests are in progress; try again")
        self._observers.guard.spend(visit.key)

    @contextmanager
    def _counted(self, route: str) -> Iterator[None]:
        def change(by: int) -> None:
            self._in_flight[route] += by
            self._observers.telemetry.add(IN_FLIGHT, self._in_flight[route], {"route": route})

        change(1)
        try:
            yield
        finally:
            change(-1)

    def _template(self, path: str) -> str:
        if path in self._routes:
            return path
        for pattern, route in self._patterns:
            if pattern.match(path):
                return route
        return "/ui" if path.startswith("/ui/") and "/ui" in self._routes else "other"


class _Attended:
    """Runs the app for one request until it ends, its client leaves, or its time is over."""

    def __init__(self, app: ASGIApp, receive: Receive, out: "_Outgoing", *, longest_s: float) -> None:
        self._app = app
        self._receive = receive
        self._out = out
        self._longest_s = longest_s
        self._body_read = asyncio.Event()
        self._gone = asyncio.Event()

    async def run(self, scope: Scope) -> None:
        """Raises ClientDisconnect or deadline_exceeded where that ended it."""
        limit = asyncio.timeout(self._longest_s)
        try:
            async with limit:
                watcher = asyncio.create_task(self._watch(limit))
                try:
                    await self._app(scope, self._listen, self._out.send)
                finally:
                    watcher.cancel()
        except TimeoutError:
            if not limit.expired():
                raise
            if self._gone.is_set():
                raise ClientDisconnect from None
            raise ApiError("deadline_exceeded", "the request took longer than the deadline") from None

    async def _listen(self) -> Message:
        """Pass the body on. After its end the watcher alone asks for messages, because only one may."""
        if self._body_read.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone.set()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_read.set()
        return message

    async def _watch(self, limit: asyncio.Timeout) -> None:
        """End the request when its client leaves, whatever the server before the app does about that."""
        await self._body_read.wait()
        while not self._gone.is_set():
            try:
                message = await self._receive()
            except Exception as error:  # the server before the app is gone, and its client with it
                logger.warning("a connection was lost: %s", type(error).__name__)
                message = {"type": "http.disconnect"}
            if message["type"] == "http.disconnect":
                self._gone.set()
        if not self._out.finished:  # servers say the same after a whole answer
            limit.reschedule(asyncio.get_running_loop().time())


class _Outgoing:
    """The answer on its way out: adds headers and notes status, times and whether it is whole."""

    def __init__(
        self, send: Send, visit: Visit, clock: Callable[[], float], *, headers: Sequence[Header], adds_id: bool
    ) -> None:
        self._added = headers
        self._send = send
        self._visit = visit
        self._clock = clock
        self._adds_id = adds_id
        self._started_at = clock()
        self._is_stream = False
        self.started = False
        self.finished = False

    def elapsed(self) -> float:
        return self._clock() - self._started_at

    def abandoned(self) -> None:
        """Note that the client left; a status that was sent stays."""
        self._visit.code = "client_closed"
        if not self.started:
            self._visit.status = CLIENT_CLOSED

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._visit.status = message["status"]
            message = {**message, "headers": self._headers(message.get("headers", []))}
        elif message["type"] == "http.response.body":
            if self._is_stream and self._visit.first_token_s is None and message.get("body"):
                self._visit.first_token_s = self.elapsed()
            self.finished = not message.get("more_body", False)
        await self._send(message)

    def _headers(self, given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        own = dict(given)
        self._is_stream = own.get(b"content-type", b"").startswith(b"text/event-stream")
        added = [header for header in self._added if header[0] not in own]
        if self._adds_id:
            added.append((b"x-request-id", self._visit.request_id.encode()))
        return [*given, *added]


async def _refuse(error: ApiError, scope: Scope, receive: Receive, out: _Outgoing, visit: Visit) -> None:
    visit.code = error.code
    await JSONResponse(error.body(), error.status, error.headers())(scope, receive, out.send)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return text
    return f"req-{uuid.uuid4().hex}"
