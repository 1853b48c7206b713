"""The proxy's own answers: text, silence and waiting become the envelope; what the front says passes unchanged."""

import asyncio
import json

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from scripted_service import LIMITS, ScriptedChat
from serving import proxy
from serving.app import build_app
from serving.config import Limits
from serving.errors import ApiError
from serving.proxy import environment, middlewares
from serving.telemetry import REJECTED, InMemory


def ask(app, path="/v1/rewards", *, limits=None, headers=None):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(limits or Limits()).items():
            patch.setenv(name, value)
        (wrap,) = middlewares()
    wrapped = wrap.cls(app, *wrap.args, **wrap.kwargs)

    async def get():
        transport = httpx.ASGITransport(wrapped, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(get())


def test_a_request_without_a_path_is_not_found():
    """`OPTIONS *`; the proxy would say that no application is there, which is said as "not deployed yet"."""
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        (wrap,) = middlewares()
        scope = {"type": "http", "method": "OPTIONS", "path": "*", "headers": []}
        await wrap.cls(silence, **wrap.kwargs)(scope, None, send)

    asyncio.run(run())
    assert sent[0]["status"] == 404
    assert json.loads(sent[1]["body"])["error"] == {
        "message": "OPTIONS * does not exist",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }


async def silence(scope, receive, send):
    """A front that was killed: Ray's proxy ends the request without a word."""


def says(text, status):
    """An answer of Ray's proxy itself: text without a length."""

    async def app(scope, receive, send):
        headers = [(b"content-type", b"text/plain"), (b"x-request-id", b"mine")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode(), "more_body": False})

    return app


@pytest.mark.parametrize(
    ("app", "status", "code"),
    [
        (silence, 503, "backend_unavailable"),
        (says("Path '/v1/rewards' not found", 404), 503, "not_ready"),
        (says("chat:tiny is unavailable", 503), 503, "backend_unavailable"),
        (says("Internal Server Error", 500), 503, "backend_unavailable"),
        (says("too many", 429), 429, "overloaded"),
    ],
)
def test_what_the_proxy_says_itself_is_put_in_the_envelope(app, status, code):
    answer = ask(app, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert "chat:tiny" not in answer.text


def test_an_id_that_is_no_id_is_not_sent_back():
    assert ask(silence, headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
def test_what_the_front_says_passes_unchanged(status):
    error = ApiError("not_found", "no such route")
    answer = ask(JSONResponse(error.body(), status, {"x-mine": "1"}))
    assert (answer.status_code, json.loads(answer.text), answer.headers["x-mine"]) == (status, error.body(), "1")


def test_the_proxys_own_routes_stay():
    assert ask(PlainTextResponse("success"), "/-/healthz").text == "success"
    assert ask(PlainTextResponse("down", 503), "/-/healthz").text == "down"


def test_waiting_for_a_front_ends_after_the_deadline_and_a_begun_stream_does_not(monkeypatch):
    monkeypatch.setattr("serving.proxy.GRACE_S", 0.0)
    limits = Limits(deadline_s=0.1, chat_deadline_s=0.3)
    cancelled = []

    async def waits(scope, receive, send):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(scope["path"])
            raise

    for path in ("/v1/rewards", "/v1/chat/completions"):
        assert ask(waits, path, limits=limits).status_code == 503
    assert cancelled == ["/v1/rewards", "/v1/chat/completions"]

    async def pieces():
        for piece in ("a", "b"):
            yield piece
            await asyncio.sleep(0.3)

    assert ask(StreamingResponse(pieces()), "/v1/rewards", limits=limits).text == "ab"


def test_who_would_find_no_seat_is_told_so_without_asking_the_front(monkeypatch):
    """The front says two seats; the third request at once is refused by the proxy itself."""
    monkeypatch.setattr(proxy, "TELL_S", 0.01)
    (wrap,) = middlewares()
    entered, release = [], asyncio.Event()

    async def front(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        entered.append(scope["path"])
        if scope["path"] == "/v1/rewards" and scope["method"] == "POST":
            await release.wait()
        await JSONResponse({}, headers={"x-fuseline-seats": "chat=9,reward=2"})(scope, receive, send)

    async def run():
        telemetry = InMemory()
        wrapped = wrap.cls(front, **{**wrap.kwargs, "telemetry": telemetry})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(wrapped), base_url="http://x") as client:
            told = await client.get("/readyz")
            assert "x-fuseline-seats" not in told.headers
            waiting = [asyncio.create_task(client.post("/v1/rewards")) for _ in range(2)]
            while entered.count("/v1/rewards") < 2:
                await asyncio.sleep(0)
            refused = await client.post("/v1/score")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
            assert refused.headers["retry-after"] == "1" and refused.headers["x-request-id"]
            assert (await client.post("/v1/chat/completions")).status_code == 200  # seats of its own
            assert (await client.get("/v1/rewards")).status_code == 200  # asks for no model; the front says 405
            await asyncio.sleep(0.05)  # with no request after it
            assert telemetry.value(REJECTED, reason="overloaded") == 1
            release.set()
            assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
            assert (await client.post("/v1/rewards")).status_code == 200

    asyncio.run(run())
    assert "/v1/score" not in entered


def test_routes_of_no_model_are_never_full():
    """A service of chat models alone, after one with a reward model: that has no seats to speak of, and the front says 404."""
    (wrap,) = middlewares()
    app = build_app(
        chats={"chat": ScriptedChat()}, rewards={}, limits=LIMITS, not_ready=lambda: None, seats=lambda: {"chat": 2}
    )
    wrapped = wrap.cls(app, **{**wrap.kwargs, "telemetry": InMemory()})
    wrapped._learn(b"chat=1,reward=0")

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(wrapped), base_url="http://x") as client:
            assert (await client.get("/healthz")).status_code == 200
            body = {"model": "rm", "input": [{"prompt": "a", "response": "b"}]}
            return await client.post("/v1/rewards", json=body)

    answer = asyncio.run(run())
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_slow_upload_takes_no_seat():
    """Two bodies that drip, where there is one seat: a third request is answered, and one whose body is whole sits."""
    (wrap,) = middlewares()
    answered = []

    async def front(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        if scope["headers"] == [(b"waits", b"1")]:
            await asyncio.Event().wait()
        await JSONResponse({}, headers={"x-fuseline-seats": "reward=1"})(scope, receive, send)

    async def run():
        wrapped = wrap.cls(front, **{**wrap.kwargs, "telemetry": InMemory()})

        async def post(*, drips=False, headers=()):
            async def receive():
                if drips:
                    await asyncio.sleep(0.001)
                return {"type": "http.request", "body": b" ", "more_body": drips}

            async def send(message):
                answered.append(message.get("status"))

            scope = {"type": "http", "method": "POST", "path": "/v1/rewards", "headers": list(headers)}
            await wrapped(scope, receive, send)

        await post()  # tells the seats
        tasks = [asyncio.create_task(post(drips=True)) for _ in range(2)]
        await asyncio.sleep(0.02)
        await post()
        tasks.append(asyncio.create_task(post(headers=[(b"waits", b"1")])))
        await asyncio.sleep(0.02)
        await post()
        tasks[-1].cancel()
        await asyncio.sleep(0.02)
        await post()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert set(wrapped._seated.values()) == {0}

    asyncio.run(run())
    assert [status for status in answered if status] == [200, 200, 429, 200]
