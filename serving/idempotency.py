"""`Idempotency-Key` on scoring requests: the same request again gets the first one's answer.

A key is the client's name for one request. Within a window, the same key of the same API key
- with the same body gets the stored answer, marked `idempotency-replayed: true`; while the first one is
  still running, the second waits for it;
- with another body gets 409.
Only 2xx answers are kept: after a failure the next one is a first one again. Answers are kept in the memory
of one copy of the HTTP front, oldest use out first; another copy scores again, which gives the same bits.
"""

import asyncio
import dataclasses
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import deadline
from serving.config import Idempotency
from serving.errors import ApiError
from serving.visit import CURRENT

PATHS = frozenset({"/v1/rewards"})
HEADER = b"idempotency-key"
_KEY = re.compile(rb"[\x21-\x7e]{1,255}")

Name = tuple[str, bytes]
"""Name of the API key, and the client's idempotency key."""


@dataclasses.dataclass(slots=True)
class Stored:
    """One request that was seen: its body's hash and, once it has one, its answer."""

    digest: bytes
    expires_at: float
    answer: list[Message] | None = None
    size: int = 0
    done: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Answers:
    """The answers that are kept, bounded in number and bytes."""

    def __init__(self, settings: Idempotency, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._kept: OrderedDict[Name, Stored] = OrderedDict()
        self._running: dict[Name, Stored] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, name: Name, digest: bytes) -> Stored | None:
        """Return what is known of `name`: running, answered or nothing. Raises idempotency_conflict."""
        while self._kept and next(iter(self._kept.values())).expires_at <= self._clock():
            self._drop(next(iter(self._kept)))
        stored = self._running.get(name) or self._kept.get(name)
        if stored is not None and stored.answer is not None and stored.expires_at <= self._clock():
            self._drop(name)
            stored = None
        if stored is not None and stored.digest != digest:
            raise ApiError("idempotency_conflict", "this Idempotency-Key was used with another body; take a new key")
        if stored is not None and stored.answer is not None:
            self._kept.move_to_end(name)
        return stored

    def begin(self, name: Name, digest: bytes) -> Stored:
        """Note that the first request of `name` is running; `end` must follow."""
        stored = self._running[name] = Stored(digest, expires_at=float("inf"))
        return stored

    def end(self, name: Name, stored: Stored, answer: list[Message] | None) -> None:
        """Keep the answer, or with None forget the request; whoever waits for it goes on."""
        del self._running[name]
        stored.done.set()
        if answer is None:
            return
        size = sum(len(message.get("body", b"")) for message in answer) + len(name[1]) + 512  # headers, the entry
        if size > self._settings.max_bytes:
            return
        stored.answer, stored.size = answer, size
        stored.expires_at = self._clock() + self._settings.window_s
        self._kept[name] = stored
        self.num_bytes += size
        while len(self._kept) > self._settings.max_answers or self.num_bytes > self._settings.max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: Name) -> None:
        self.num_bytes -= self._kept.pop(name).size


class Replay:
    """The layer that answers repeated requests. Raises ApiError, which the edge turns into an answer."""

    def __init__(self, app: ASGIApp, *, answers: Answers, max_body_bytes: int, deadline_s: float) -> None:
        """Put the layer around `app`.

        Args:
            app: what is behind it.
            answers: what is kept.
            max_body_bytes: a larger body is left to the app, which refuses it.
            deadline_s: seconds to read a body or to wait for the first request.
        """
        self._app = app
        self._answers = answers
        self._max_body_bytes = max_body_bytes
        self._deadline_s = deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key_of(scope)
        if key is None:
            await self._app(scope, receive, send)
            return
        # Reading, waiting and scoring share one deadline.
        async with deadline.within(deadline.seconds(Request(scope), self._deadline_s)):
            await self._answer(key, scope, receive, send)

    async def _answer(self, key: Name, scope: Scope, receive: Receive, send: Send) -> None:
        body, whole = await _read(receive, self._max_body_bytes)
        again = _given_again(body, whole, receive)
        if not whole:
            await self._app(scope, again, send)
            return
        digest = _digest(scope, body)
        found = await self._settled(key, digest)
        if found is not None and found.answer is not None:
            await _replay(found.answer, send)
        else:
            await self._first(key, digest, scope, again, send)

    async def _settled(self, key: Name, digest: bytes) -> Stored | None:
        """Return the stored request, once it is not running any more; None where this one is the first."""
        while True:
            stored = self._answers.find(key, digest)
            if stored is None or stored.answer is not None:
                return stored
            await stored.done.wait()

    async def _first(self, key: Name, digest: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        # No await since `_settled` found nothing, so nobody else has begun.
        stored = self._answers.begin(key, digest)
        sent: list[Message] = []

        async def recorded(message: Message) -> None:
            sent.append(message)
            await send(message)

        try:
            await self._app(scope, receive, recorded)
        finally:
            # Also where the client left while its answer was sent: it is whole, and what it will ask for again.
            self._answers.end(key, stored, sent if _is_good(sent) else None)


def _key_of(scope: Scope) -> Name | None:
    """Return the idempotency key of a request that may have one. Raises invalid_request for one that is no key."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
        return None
    given = [value for name, value in scope["headers"] if name == HEADER]
    if not given:
        return None
    if len(given) > 1 or _KEY.fullmatch(given[0]) is None:
        raise ApiError("invalid_request", "Idempotency-Key must be 1 to 255 visible ASCII characters, sent once")
    visit = CURRENT.get()
    return (visit.key.name if visit is not None and visit.key is not None else "", given[0])


def _digest(scope: Scope, body: bytes) -> bytes:
    """Return the hash of what makes two requests the same: the body, how it is to be read, and what no body says."""
    hashed = hashlib.sha256(body)
    hashed.update(b"\0?" + scope["query_string"])
    for name, value in scope["headers"]:
        if name in (b"content-type", b"content-encoding"):
            hashed.update(b"\0" + name + b"\0" + value)
    return hashed.digest()


async def _read(receive: Receive, max_bytes: int) -> tuple[bytes, bool]:
    """Return the body and whether it is whole: it is not where it is too large or its client left."""
    chunks, size = [], 0
    while size <= max_bytes:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(chunks), False
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if not message.get("more_body", False):
            return b"".join(chunks), size <= max_bytes
    return b"".join(chunks), False


def _given_again(body: bytes, whole: bool, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": not whole}

    return again


def _is_good(answer: list[Message]) -> bool:
    whole = bool(answer) and answer[-1]["type"] == "http.response.body" and not answer[-1].get("more_body", False)
    return whole and 200 <= answer[0]["status"] < 300


async def _replay(answer: list[Message], send: Send) -> None:
    visit = CURRENT.get()
    if visit is not None:
        visit.replayed = True
    start, *rest = answer
    await send({**start, "headers": [*start.get("headers", []), (b"idempotency-replayed", b"true")]})
    for message in rest:
        await send(message)
