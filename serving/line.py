"""The front's own queue before one model: who may wait, who is next, and for how long.

The one idea: a request goes to Ray only when a replica has a place for it. One that waits in Ray's router asks replicas
for their queue lengths at growing intervals, which costs processor time and leaves replicas idle between two questions;
with forty requests waiting there, two replicas answered half of what they answer with none (docs/benchmarks.md).

The queue is short while the model is at full strength: a full one is overload, and the client is told so at once. It is
long while replicas start, after a death, in a rollout or a swap, because that passes.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from serving import deadline
from serving.errors import ApiError
from serving.telemetry import QUEUE, InMemory, Telemetry

T = TypeVar("T")

PATIENCE_S = 5.0
"""How long a request waits for a replica, and how long a model counts as answering after an answer."""
STARTING_S = 10.0
"""How long the queue stays long after the last sign that replicas start: Ray shows a death after some seconds, and the
steps of a swap have pauses."""


class Line:
    """The queue of one model in this front."""

    def __init__(
        self,
        model: str,
        *,
        replicas: int,
        each: int,
        fronts: int,
        queued: int,
        queued_while_starting: int,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Make an empty line.

        Args:
            model: its name, for errors and metrics.
            replicas: how many there are at the start; `adjust` says it again.
            each: requests that one replica is given at once.
            fronts: copies of the front, which share the replicas.
            queued: requests that may wait for a place.
            queued_while_starting: the same while replicas start, if that is more.
            telemetry: where the number of waiting requests goes.
        """
        self._model = model
        self._each, self._fronts = each, fronts
        self._queued = queued
        self._queued_while_starting = max(queued, queued_while_starting)
        self._telemetry = telemetry or InMemory()
        self._seated = self._held = self._told = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._started_at = self._answered_at = -1e9
        self.adjust(replicas=replicas)

    def adjust(self, *, replicas: int) -> None:
        """Take over how many replicas live."""
        # With none alive, who asks is answered by patience.
        self._places = -(-max(1, replicas) * self._each // self._fronts)
        self._hand_out()

    def lengthen(self) -> None:
        """Let more requests wait for some seconds: replicas start, or one died and another will."""
        self._started_at = time.monotonic()

    @property
    def seats(self) -> int:
        """Requests that are let in at once now."""
        return self._places + (self._queued_while_starting if self._bridges() else self._queued)

    def answered(self) -> None:
        """A replica answered, at least in part."""
        self._answered_at = time.monotonic()

    def check(self) -> None:
        """Raise overloaded where no seat is free."""
        if self._seated >= self.seats:
            raise overloaded(self._model)

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None, None]:
        """Hold one of the places, once it is this request's turn: first come, first served.

        Raises:
            ApiError: no seat is free, or no place became free in time.
        """
        self.check()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._seated += 1
        self._waiting.append(turn)
        try:
            self._hand_out()
            if not turn.done():
                await self.patiently(turn)
            yield
        finally:
            self._seated -= 1
            if turn.done() and not turn.cancelled():
                self._held -= 1
                self._hand_out()
            else:
                self._waiting.remove(turn)
                self._tell()

    async def patiently(self, waiting: Awaitable[T]) -> T:
        """Return what `waiting` gives, a place or a replica's attention, while there is hope for it.

        That is for five seconds; for as long as the request has where replicas start while others answer.

        Raises:
            ApiError: overloaded where the model answers others, else backend_unavailable.
        """
        task = asyncio.ensure_future(waiting)
        try:
            while True:
                begun = time.monotonic()
                within_s = min(PATIENCE_S, max(0.0, deadline.remaining_s()))
                done, _ = await asyncio.wait({task}, timeout=within_s)
                if done:
                    return task.result()
                answers = self._answered_at > begun - PATIENCE_S
                if not (answers and self._bridges() and deadline.remaining_s() > 0):
                    break
        finally:
            task.cancel()  # does nothing to one that is done
        if answers:
            raise overloaded(self._model)
        raise ApiError("backend_unavailable", f"{self._model} takes no requests now; try again")

    def _bridges(self) -> bool:
        return time.monotonic() - self._started_at < STARTING_S

    def _hand_out(self) -> None:
        """Give free places to who has waited longest."""
        while self._waiting and self._held < self._places:
            self._held += 1
            self._waiting.popleft().set_result(None)
        self._tell()

    def _tell(self) -> None:
        """Set the gauge where it has changed: on Ray's exporter that costs more than to take a place."""
        if len(self._waiting) != self._told:
            self._told = len(self._waiting)
            self._telemetry.add(QUEUE, self._told, {"model": self._model})


def overloaded(model: str) -> ApiError:
    """Return what is said to who may not wait."""
    return ApiError("overloaded", f"{model} has too many waiting requests; try again")
