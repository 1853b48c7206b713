"""An open-loop generator of requests: they start when it is their time, whether or not earlier ones have been answered.

A closed loop (so many clients, each waiting for its answer) slows down with the service and so hides overload; users do
not. Arrivals are a Poisson process of fixed seed. Every answer is checked against what is known to be right.
"""

import asyncio
import dataclasses
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import httpx


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
"""Sends request number i and returns status and what is wrong with the answer; raises httpx.HTTPError."""


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
        except httpx.HTTPError as error:
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

    def __init__(self, client: httpx.AsyncClient, model: str, items: Sequence[dict]):
        self.client, self.model, self.items = client, model, items
        self.known: dict[str, list[list[float]]] = {}
        """revision -> scores of each item."""

    async def learn(self) -> str:
        """Ask for every item alone and remember the scores; return the revision of the model."""
        found, revision = [], ""
        for item in self.items:
            answer = await self._post(item)
            answer.raise_for_status()
            revision = answer.json()["model_revision"]
            found.append([result["score"] for result in answer.json()["results"]])
        self.known[revision] = found
        return revision

    async def send(self, number: int) -> tuple[int, str | None]:
        place = number % len(self.items)
        answer = await self._post(self.items[place])
        if answer.status_code != 200:
            return answer.status_code, fault_of_error(answer)
        body = answer.json()
        known = self.known.get(body["model_revision"])
        if known is None:
            return 200, f"unknown revision {body['model_revision']}"
        scores = [result["score"] for result in body["results"]]
        return 200, None if scores == known[place] else f"scores {scores}, alone {known[place]}"

    async def _post(self, item: dict) -> httpx.Response:
        return await self.client.post("/v1/rewards", json={"model": self.model, "input": [item]})


class Chats:
    """Greedy answers whose text was asked for beforehand."""

    def __init__(self, client: httpx.AsyncClient, model: str, questions: Sequence[str], *, max_tokens: int = 24):
        self.client, self.model, self.questions, self.max_tokens = client, model, questions, max_tokens

    async def send(self, number: int) -> tuple[int, str | None]:
        question = self.questions[number % len(self.questions)]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        answer = await self.client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            return answer.status_code, fault_of_error(answer)
        choice = answer.json()["choices"][0]
        # Greedy answers may differ in ties between batches, so the form is checked and not the text.
        sound = choice["finish_reason"] in ("stop", "length") and isinstance(choice["message"]["content"], str)
        return 200, None if sound else f"not an answer: {choice}"


def fault_of_error(answer: httpx.Response) -> str | None:
    """Return what is wrong with an error's form: not the envelope, no request id, no Retry-After."""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} without the envelope: {answer.text[:100]!r}"
    if not {"message", "type", "param", "code"} <= error.keys() or not answer.headers.get("x-request-id"):
        return f"{answer.status_code} with a poor envelope: {error}"
    if answer.status_code in (429, 503) and "retry-after" not in answer.headers:
        return f"{answer.status_code} without Retry-After"
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
