"""When the service is ready: every model has answered a warm-up request, and every canary is in its order.

Pure asyncio over the backends. The one idea: one task per model asks it until it answers, then again from time to
time; what is not as it should be is a sentence by model name, and the service is ready when there is none.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial

from fusion.rewards import Canary
from fusion.rows import Message
from serving.backends import ChatBackend, Generation, RewardBackend, Scored
from serving.errors import ApiError

logger = logging.getLogger(__name__)

Probe = Callable[[], Awaitable[None]]
"""Ends when the model has answered well; raises ApiError where it did not answer, Refused where it answered badly."""

PROBE_TIMEOUT_S = 30.0
"""How long one answer is waited for before the model counts as not answering. While it loads, it is asked again."""

LOADING = "is loading"

PAUSE_S = 1.0
"""Between two questions to a model that is not ready."""


class Refused(Exception):
    """A model that answers, but not as it must: asking again is not expected to help."""


class Readiness:
    """What the service waits for, by model."""

    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        recheck_s: float,
        pause_s: float = PAUSE_S,
        timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        """Watch the models of `probes`; a ready one is asked again after `recheck_s`."""
        self._probes = dict(probes)
        self._recheck_s, self._pause_s, self._timeout_s = recheck_s, pause_s, timeout_s
        self._waiting = dict.fromkeys(self._probes, LOADING)
        self._refused: dict[str, str] = {}
        self._settled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to ask; needs a running loop."""
        self._note()
        self._tasks = [asyncio.create_task(self._watch(name, probe)) for name, probe in self._probes.items()]

    async def stop(self) -> None:
        """End all questions."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    def not_ready(self) -> str | None:
        """Return what is awaited, one clause per model, or None when the service is ready."""
        return _said({**self._waiting, **self._refused})

    @property
    def refused(self) -> str | None:
        """What will not get better by waiting, or None."""
        return _said(self._refused)

    async def settled(self) -> None:
        """Return once the service is ready or a model is refused."""
        await self._settled.wait()

    async def _watch(self, name: str, probe: Probe) -> None:
        started = time.monotonic()
        while True:
            before = self._state(name)
            state, refused = await self._ask(name, probe, was_ready=before is None)
            self._waiting.pop(name, None)
            self._refused.pop(name, None)
            if state is not None:
                (self._refused if refused else self._waiting)[name] = state
            if state is None and before is not None:
                logger.info("%s is ready after %.1f s", name, time.monotonic() - started)
            elif state != before:
                logger.warning("not ready: %s %s", name, state)
            self._note()
            await asyncio.sleep(self._recheck_s if state is None else self._pause_s)

    def _state(self, name: str) -> str | None:
        return self._waiting.get(name) or self._refused.get(name)

    async def _ask(self, name: str, probe: Probe, *, was_ready: bool) -> tuple[str | None, bool]:
        """Return what is wrong with the model, if anything, and whether it is refused for that."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await probe()
        except Refused as refused:
            return f"is refused: {refused}", True
        except ApiError as error:
            if was_ready and error.code == "overloaded":
                return None, False  # a model with a full queue lives
            return f"is not answering ({error.code})", False
        except TimeoutError:
            loading = self._state(name) == LOADING
            return LOADING if loading else f"is not answering (nothing within {self._timeout_s:g} s)", False
        except Exception as error:
            logger.exception("the warm-up of %s failed", name)
            return f"fails its warm-up ({type(error).__name__})", False
        return None, False

    def _note(self) -> None:
        """Tell who waits for the end of the loading."""
        if self._refused or not self._waiting:
            self._settled.set()
        else:
            self._settled.clear()


def _said(states: Mapping[str, str]) -> str | None:
    return "; ".join(f"{name} {state}" for name, state in sorted(states.items())) or None


def probes(
    chats: Mapping[str, ChatBackend], rewards: Mapping[str, RewardBackend], canaries: Mapping[str, Canary | None]
) -> dict[str, Probe]:
    """Return one probe per model: a short stream of a chat model, the canary pair of a reward model."""
    asked: dict[str, Probe] = {name: partial(ask_chat, backend) for name, backend in chats.items()}
    asked |= {name: partial(ask_reward, backend, canaries.get(name)) for name, backend in rewards.items()}
    return asked


async def ask_chat(backend: ChatBackend) -> None:
    """Stream two tokens: the first stream after a start takes seconds, which no client should pay."""
    ids = backend.encode([Message("user", "Hello")])
    asked = Generation("warm-up", tuple(ids), max_tokens=2, stop_token_ids=backend.stop_token_ids)
    async with aclosing(backend.generate(asked)) as stream:
        async for _ in stream:
            pass


async def ask_reward(backend: RewardBackend, canary: Canary | None) -> None:
    """Score the canary pair, or one answer where there is none.

    Raises:
        Refused: a score that is missing or not finite, or the pair in the wrong order.
    """
    if canary is None:
        conversation = (Message("user", "Hello"), Message("assistant", "Hello, how can I help?"))
        (scored,) = await backend.score([conversation], truncation="left")
        _finite(scored, "a greeting")
        return
    pair = [(Message("user", canary.prompt), Message("assistant", text)) for text in (canary.better, canary.worse)]
    better, worse = await backend.score(pair, truncation="error")
    high, low = _finite(better, "the better answer of its canary"), _finite(worse, "the worse answer of its canary")
    if not high > low:
        raise Refused(f"its canary pair is in the wrong order: better scores {high:.6g}, worse {low:.6g}")


def _finite(scored: Scored, what: str) -> float:
    if scored.error_code == "backend_error":
        raise ApiError("backend_unavailable", "the reward model failed")
    if scored.error_code is not None:
        raise Refused(f"{what} has no score: {scored.error_message}")
    if scored.score is None or not math.isfinite(scored.score):
        raise Refused(f"{what} has a score that is not a finite number")
    return scored.score
