"""How long a request may take: the service's own deadline, which a client may lower and never raise.

Three forms of one rule: the seconds of a request, a block that must end in time, a stream that must.
Whatever runs over ends as `deadline_exceeded`.
"""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from contextvars import ContextVar
from typing import Any

from fastapi import Request

from serving.errors import ApiError

TIMEOUT_HEADERS = ("x-fuseline-timeout-seconds", "x-request-timeout-seconds")
"""Of the client; `serving.proxy` renames the second, which Ray Serve's proxy would act on, to the first."""


def seconds(request: Request, limit_s: float) -> float:
    """Return the deadline in seconds: the service's, or the client's where that is lower."""
    for name in TIMEOUT_HEADERS:
        with suppress(ValueError):
            asked = float(request.headers.get(name, "nan"))
            if math.isfinite(asked) and asked > 0:
                limit_s = min(asked, limit_s)
    return limit_s


_ENDS_AT: ContextVar[float] = ContextVar("ends_at", default=math.inf)
"""On the event loop's clock, of the innermost block."""


def remaining_s() -> float:
    """Return the seconds until the deadline of the block that this is called in; infinite outside of any."""
    return _ENDS_AT.get() - asyncio.get_running_loop().time()


class within:
    """Turn a timeout of the block into `deadline_exceeded`."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        self._outer = _ENDS_AT.set(min(_ENDS_AT.get(), asyncio.get_running_loop().time() + self._limit_s))
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        _ENDS_AT.reset(self._outer)
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise ApiError("deadline_exceeded", f"the request took longer than {self._limit_s:g} s") from None


async def until(ends_at: float, pieces: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
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
