"""`Idempotency-Key`: one answer per key, also while the first request is running, and never for a failure."""

import asyncio
import json
import re

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted_service import LIMITS, ScriptedReward, client, refused
from serving.app import build_app
from serving.auth import ApiKey, Guard, hash_key
from serving.backends import Scored
from serving.config import Idempotency
from serving.edge import Observers
from serving.errors import ApiError
from serving.idempotency import PATHS, Answers

SCORE = {"model": "rm", "input": [{"prompt": "a", "response": "bcd"}]}
OTHER = {"model": "rm", "input": [{"prompt": "a", "response": "bcde"}]}
KEY = {"idempotency-key": "k-1"}


class Gated(ScriptedReward):
    """Scores once the gate is open; the first calls may fail."""

    def __init__(self, *, failures=0, open_=False):
        super().__init__()
        self.gate, self.failures = asyncio.Event(), failures
        if open_:
            self.gate.set()

    async def score(self, conversations, *, truncation):
        number = len(self.calls)
        self.calls.append((conversations, truncation))
        await self.gate.wait()
        if number < self.failures:
            raise ApiError("backend_unavailable", "the engine failed")
        return [Scored(float(number), 5) for _ in conversations]


def asking(reward, use, *, limits=LIMITS, observers=None):
    """Run `use(httpx client)` against an app over `reward`, in one event loop."""

    async def run():
        app = build_app(chats={}, rewards={"rm": reward}, limits=limits, not_ready=lambda: None, observers=observers)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asked:
            return await use(asked)

    return asyncio.run(run())


def test_the_same_request_gets_the_same_answer_once_scored():
    reward = ScriptedReward()
    asked = client(reward=reward)
    first = asked.post("/v1/rewards", json=SCORE, headers=KEY)
    again = asked.post("/v1/rewards", json=SCORE, headers={**KEY, "x-request-id": "second"})
    assert (first.status_code, again.status_code, len(reward.calls)) == (200, 200, 1)
    assert again.content == first.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers.get_list("x-request-id") == ["second"] != [first.headers["x-request-id"]]
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers.get_list("x-content-type-options") == ["nosniff"]


def test_another_body_is_a_conflict_and_without_a_key_everything_is_scored():
    reward = ScriptedReward()
    asked = client(reward=reward)
    assert asked.post("/v1/rewards", json=SCORE, headers=KEY).status_code == 200
    refused(asked.post("/v1/rewards", json=OTHER, headers=KEY), 409, "idempotency_conflict")
    spaced = json.dumps(SCORE, indent=1)
    typed = {"content-type": "application/json"}
    refused(asked.post("/v1/rewards", content=spaced, headers={**KEY, **typed}), 409, "idempotency_conflict")
    assert asked.post("/v1/rewards", json=OTHER, headers={"idempotency-key": "k-2"}).status_code == 200
    assert asked.post("/v1/rewards", json=SCORE).status_code == 200
    assert len(reward.calls) == 3


@pytest.mark.parametrize("bad", [[""], ["a b"], ["x" * 256], ["k\xe9"], ["a", "a"]])
def test_keys_that_are_none(bad):
    headers = [("idempotency-key", value.encode("latin-1")) for value in bad]
    refused(client().post("/v1/rewards", json=SCORE, headers=headers), 400, "invalid_request")


def test_the_openapi_document_says_what_a_key_is_and_where_it_is_read():
    asked = client()
    posts = {path: of["post"] for path, of in asked.get("/openapi.json").json()["paths"].items() if "post" in of}
    stated = {
        path: [one for one in post["parameters"] if one["name"].lower() == "idempotency-key"]
        for path, post in posts.items()
    }
    assert {path for path, found in stated.items() if found} == PATHS
    assert {path for path, post in posts.items() if "409" in post["responses"]} == PATHS
    (parameter,) = stated["/v1/rewards"]
    assert (parameter["in"], parameter["required"]) == ("header", False)
    schema = parameter["schema"]
    for key in [*map(chr, range(256)), *("k" * length for length in (0, 2, 255, 256))]:
        right = schema["minLength"] <= len(key) <= schema["maxLength"] and re.fullmatch(schema["pattern"], key)
        answer = asked.post("/v1/rewards", json=SCORE, headers={"idempotency-key": key.encode("latin-1")})
        assert answer.status_code == (200 if right else 400), repr(key)


def test_other_routes_do_not_read_it():
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    answers = [client().post("/v1/chat/completions", json=body, headers={"idempotency-key": "a b"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]


def test_failures_are_not_kept():
    reward = Gated(failures=1)
    asked = client(reward=reward)

    async def use(asked):
        reward.gate.set()
        return [await asked.post("/v1/rewards", json=SCORE, headers=KEY) for _ in range(3)]

    failed, good, again = asking(reward, use)
    refused(failed, 503, "backend_unavailable")
    assert (good.status_code, again.content, len(reward.calls)) == (200, good.content, 2)
    # A request that was refused does not take the key either.
    bad = asked.post("/v1/rewards", json={**SCORE, "x": 1}, headers=KEY)
    refused(bad, 400, "unknown_field")


def test_a_second_request_waits_for_the_first_and_a_conflict_does_not_wait():
    reward = Gated()

    async def use(asked):
        first = asyncio.create_task(asked.post("/v1/rewards", json=SCORE, headers=KEY))
        while not reward.calls:
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(asked.post("/v1/rewards", json=SCORE, headers=KEY)) for _ in range(5)]
        conflict = await asked.post("/v1/rewards", json=OTHER, headers=KEY)
        assert not first.done() and not any(task.done() for task in waiting)
        reward.gate.set()
        return conflict, await first, await asyncio.gather(*waiting)

    conflict, first, waited = asking(reward, use)
    refused(conflict, 409, "idempotency_conflict")
    assert len(reward.calls) == 1
    assert {answer.content for answer in waited} == {first.content}
    assert all(answer.headers["idempotency-replayed"] == "true" for answer in waited)


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
def test_a_waiting_request_takes_over_when_the_first_comes_to_nothing(end):
    reward = Gated(failures=1 if end == "fails" else 0)

    async def use(asked):
        first = asyncio.create_task(asked.post("/v1/rewards", json=SCORE, headers=KEY))
        while not reward.calls:
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(asked.post("/v1/rewards", json=SCORE, headers=KEY)) for _ in range(3)]
        await asyncio.sleep(0.05)
        if end == "is cancelled":
            first.cancel()
        reward.gate.set()
        return await asyncio.gather(*waiting)

    waited = asking(reward, use)
    assert [answer.status_code for answer in waited] == [200] * 3
    assert {answer.json()["results"][0]["score"] for answer in waited} == {1.0}
    assert len(reward.calls) == 2


def test_waiting_ends_with_the_deadline():
    reward = Gated()

    async def use(asked):
        tasks = [asyncio.create_task(asked.post("/v1/rewards", json=SCORE, headers=KEY)) for _ in range(2)]
        return await asyncio.gather(*tasks)

    for answer in asking(reward, use, limits=LIMITS.model_copy(update={"deadline_s": 0.2})):
        refused(answer, 408, "deadline_exceeded")


def test_a_client_may_lower_its_deadline_for_reading_and_waiting_too():
    reward = Gated()

    async def drips():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    async def use(http):
        hurried = {**KEY, "x-request-timeout-seconds": "0.2"}
        first = asyncio.create_task(http.post("/v1/rewards", json=SCORE, headers=KEY))
        while not reward.calls:
            await asyncio.sleep(0)
        refused(await http.post("/v1/rewards", json=SCORE, headers=hurried), 408, "deadline_exceeded")
        slow = {**hurried, "idempotency-key": "k-2", "content-type": "application/json"}
        refused(await http.post("/v1/rewards", content=drips(), headers=slow), 408, "deadline_exceeded")
        reward.gate.set()
        assert (await first).status_code == 200

    asking(reward, use, limits=LIMITS.model_copy(update={"deadline_s": 20.0}))


def test_a_query_makes_it_another_request():
    asked = client(reward=ScriptedReward())
    assert asked.post("/v1/rewards", json=SCORE, headers=KEY).status_code == 200
    refused(asked.post("/v1/rewards?x=1", json=SCORE, headers=KEY), 409, "idempotency_conflict")
    refused(asked.post("/v1/rewards?x=1", json=SCORE, headers={"idempotency-key": "k-2"}), 400, "unknown_field")


def test_a_body_that_is_too_large_or_slow_is_refused_as_without_a_key():
    def drip():
        for _ in range(100):
            yield b" " * 100

    typed = {"content-type": "application/json", **KEY}
    refused(client().post("/v1/rewards", content=drip(), headers=typed), 413, "body_too_large")

    async def use(asked):
        async def slow():
            yield b"{"
            await asyncio.sleep(5)
            yield b"}"

        return await asked.post("/v1/rewards", content=slow(), headers=typed)

    limits = LIMITS.model_copy(update={"deadline_s": 0.2})
    refused(asking(ScriptedReward(), use, limits=limits), 408, "deadline_exceeded")


def test_keys_of_two_clients_do_not_meet():
    secrets = {name: f"fl-{name * 20}" for name in "ab"}
    keys = [ApiKey(name=name, sha256=hash_key(key), scopes=("reward",)) for name, key in secrets.items()]
    reward = Gated(open_=True)

    async def use(asked):
        return [
            await asked.post("/v1/rewards", json=body, headers={**KEY, "authorization": f"Bearer {secrets[name]}"})
            for name, body in (("a", SCORE), ("b", OTHER), ("a", SCORE))
        ]

    first, other, again = asking(reward, use, observers=Observers(guard=Guard(keys)))
    assert (first.status_code, other.status_code, again.content) == (200, 200, first.content)
    assert len(reward.calls) == 2


# ---- what is kept -----------------------------------------------------------------------------


def answer(size=1):
    return [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"x" * size},
    ]


def keep(answers, name, size=1):
    answers.end(("", name), answers.begin(("", name), b"d"), answer(size))


def test_answers_expire_and_the_one_not_used_for_longest_goes_first():
    now = [0.0]
    answers = Answers(Idempotency(window_s=10, max_answers=2), clock=lambda: now[0])
    keep(answers, b"a")
    keep(answers, b"b")
    assert answers.find(("", b"a"), b"d") is not None
    keep(answers, b"c")
    assert answers.find(("", b"b"), b"d") is None
    now[0] = 9.9
    assert answers.find(("", b"a"), b"d") is not None
    now[0] = 10.0
    assert answers.find(("", b"a"), b"another") is None  # no conflict with what has expired
    assert answers.find(("", b"c"), b"d") is None
    assert (len(answers), answers.num_bytes) == (0, 0)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5000), st.floats(0, 8)), max_size=60),
)
def test_what_is_kept_is_bounded(steps):
    now = [0.0]
    settings_ = Idempotency(window_s=10, max_answers=3, max_bytes=4096)
    answers = Answers(settings_, clock=lambda: now[0])
    for name, size, pause in steps:
        now[0] += pause
        if answers.find(("", name.encode()), b"d") is None:
            keep(answers, name.encode(), size)
            found = answers.find(("", name.encode()), b"d")
            assert (found is None) == (size + 1 + 512 > 4096)
        assert len(answers) <= 3
        assert 0 <= answers.num_bytes <= 4096
        assert (answers.num_bytes == 0) == (len(answers) == 0)
