"""An open-loop generator of requests: they start when it is their time, whether or not earlier ones have been answered.

A closed loop (so many clients, each waiting for its answer) slows down with the service and so hides overload; users do
not. Arrivals are a Poisson process of fixed seed. Every answer is checked against what is known to be right.
"""

import asyncio
import dataclasses
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import aiohttp


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    begun: float
    """Seconds after the start of the load."""
    seconds: float
    status: int
    """HTTP status; 0 where no answer came (connection refused, cut off or timed out)."""
    attempts: int = 1
    wrong: str | None = None
    """What is wrong with a 200's body, or with an error's form."""


Send = Callable[[int], Awaitable[tuple[int, str | None]]]
"""Sends request number i and returns status and what is wrong with the answer; raises one of `BROKEN`."""

BROKEN = (aiohttp.ClientError, TimeoutError)
"""What a request ends with that is not answered."""


def client(url: str, *, timeout_s: float = 60.0) -> aiohttp.ClientSession:
    """Return a client without a limit of connections. On the two cores of the service a light one is needed: httpx takes
    7 ms of processor time for a request with a hundred others in flight, and the service 4 ms to refuse it."""
    return aiohttp.ClientSession(
        base_url=url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=timeout_s)
    )


async def open_loop(
    send: Send, *, rate: float, seconds: float, seed: int = 0, retries: int = 0, retry_after_s: float = 0.5
) -> list[Outcome]:
    """Send about `rate * seconds` requests and return what became of each.

    Args:
        retries: how often a client asks again after 429, 503 or a broken connection.
        retry_after_s: how long it waits before.
    """
    rng = random.Random(seed)
    begun = time.perf_counter()
    tasks: list[asyncio.Task[Outcome]] = []
    due = 0.0
    while (due := due + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
        tasks.append(asyncio.create_task(_one(send, len(tasks), begun, retries, retry_after_s)))
    return list(await asyncio.gather(*tasks))


async def _one(send: Send, number: int, begun: float, retries: int, retry_after_s: float) -> Outcome:
    started = time.perf_counter()
    attempt = 1
    while True:
        try:
            status, wrong = await send(number)
        except BROKEN as error:
            status, wrong = 0, f"{type(error).__name__}: {error}"
        if attempt > retries or status not in (0, 429, 503):
            return Outcome(started - begun, time.perf_counter() - started, status, attempt, wrong)
        attempt += 1
        await asyncio.sleep(retry_after_s)


@dataclasses.dataclass(frozen=True)
class Summary:
    """A load in numbers."""

    requests: int
    statuses: dict[int, int]
    p50_s: float
    """Of answers with status 200, as p99."""
    p99_s: float
    longest_s: float
    wrong: tuple[str, ...]
    retried: int

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Summary":
        ok = sorted(o.seconds for o in outcomes if o.status == 200)
        return cls(
            requests=len(outcomes),
            statuses=dict(sorted(Counter(o.status for o in outcomes).items())),
            p50_s=statistics.median(ok) if ok else float("nan"),
            p99_s=ok[min(len(ok) - 1, int(len(ok) * 0.99))] if ok else float("nan"),
            longest_s=max((o.seconds for o in outcomes), default=0.0),
            wrong=tuple(o.wrong for o in outcomes if o.wrong is not None),
            retried=sum(o.attempts > 1 for o in outcomes),
        )

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} x {status}" for status, count in self.statuses.items())
        return (
            f"{self.requests} requests: {statuses}; p50 {self.p50_s * 1e3:.0f} ms, p99 {self.p99_s * 1e3:.0f} ms "
            f"({self.p99_s / self.p50_s:.1f} x), longest {self.longest_s:.2f} s, {self.retried} retried, "
            f"{len(self.wrong)} wrong"
        )


class Rewards:
    """Scoring requests whose right answers were asked for beforehand, one at a time."""

    def __init__(self, client: aiohttp.ClientSession, model: str, items: Sequence[dict]):
        self.client, self.model, self.items = client, model, items
        self.known: dict[str, list[list[float]]] = {}
        """revision -> scores of each item."""

    async def learn(self) -> str:
        """Ask for every item alone and remember the scores; return the revision of the model."""
        found, revision = [], ""
        for item in self.items:
            async with self._post(item) as answer:
                answer.raise_for_status()
                body = await answer.json()
            revision = body["model_revision"]
            found.append([result["score"] for result in body["results"]])
        self.known[revision] = found
        return revision

    async def send(self, number: int) -> tuple[int, str | None]:
        place = number % len(self.items)
        async with self._post(self.items[place]) as answer:
            if answer.status != 200:
                return answer.status, await fault_of_error(answer)
            body = await answer.json()
        known = self.known.get(body["model_revision"])
        if known is None:
            return 200, f"unknown revision {body['model_revision']}"
        scores = [result["score"] for result in body["results"]]
        return 200, None if scores == known[place] else f"scores {scores}, alone {known[place]}"

    def _post(self, item: dict) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self.client.post("/v1/rewards", json={"model": self.model, "input": [item]})


class Chats:
    """Greedy answers whose text was asked for beforehand."""

    def __init__(self, client: aiohttp.ClientSession, model: str, questions: Sequence[str], *, max_tokens: int = 24):
        self.client, self.model, self.questions, self.max_tokens = client, model, questions, max_tokens

    async def send(self, number: int) -> tuple[int, str | None]:
        question = self.questions[number % len(self.questions)]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        async with self.client.post("/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                return answer.status, await fault_of_error(answer)
            choice = (await answer.json())["choices"][0]
        # Greedy answers may differ in ties between batches, so the form is checked and not the text.
        sound = choice["finish_reason"] in ("stop", "length") and isinstance(choice["message"]["content"], str)
        return 200, None if sound else f"not an answer: {choice}"


async def fault_of_error(answer: aiohttp.ClientResponse) -> str | None:
    """Return what is wrong with an error's form: not the envelope, no request id, no Retry-After."""
    text = await answer.text()
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status} without the envelope: {text[:100]!r}"
    if not {"message", "type", "param", "code"} <= error.keys() or not answer.headers.get("x-request-id"):
        return f"{answer.status} with a poor envelope: {error}"
    if answer.status in (429, 503) and "retry-after" not in answer.headers:
        return f"{answer.status} without Retry-After"
    return None


async def capacity(send: Send, *, clients: int = 8, seconds: float = 8.0) -> float:
    """Return requests per second that are answered 200 by a closed loop of `clients`: what the service can do."""
    ends_at = time.perf_counter() + seconds
    done = 0

    async def client(first: int) -> None:
        nonlocal done
        number = first
        while time.perf_counter() < ends_at:
            status, _ = await send(number)
            done += status == 200
            number += clients
            if status != 200:
                await asyncio.sleep(0.05)

    begun = time.perf_counter()
    await asyncio.gather(*(client(i) for i in range(clients)))
    return done / (time.perf_counter() - begun)
