"""The edge of the service: ids, limits on headers, disconnects, deadlines, and what Ray's proxy may not change."""

import asyncio
import http.client
import json
import pickle
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from pydantic import ValidationError
from starlette.responses import PlainTextResponse

from scripted_service import LIMITS, USER, ScriptedChat, ScriptedReward, client, refused
from serving.app import build_app
from serving.config import ServeConfig
from serving.edge import SECURITY_HEADERS, Edge, Observers
from serving.errors import ApiError
from serving.proxy import ProxyLayer, clean, middlewares
from serving.telemetry import IN_FLIGHT, REQUESTS

CHAT = {"model": "chat", "messages": USER}
RAY_HEADERS = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}


class Slow(ScriptedChat):
    """Takes a minute before its first piece, and says when it was stopped."""

    def __init__(self):
        super().__init__(delay_s=60)
        self.stopped = threading.Event()

    async def generate(self, generation):
        try:
            async for deltas in super().generate(generation):
                yield deltas
        finally:
            self.stopped.set()


@contextmanager
def served(app, **options):
    """Run `app` in a real uvicorn on loopback; gives the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            ends_at = time.monotonic() + 20
            while not server.started:
                assert time.monotonic() < ends_at
                time.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def make(chat=None, *, observers=None, limits=LIMITS, **options):
    return build_app(
        chats={"chat": chat or ScriptedChat()},
        rewards={"rm": ScriptedReward()},
        limits=limits,
        not_ready=lambda: None,
        observers=observers,
        **options,
    )


# ---- every answer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/rewards", 405),
        ("POST", "/v1/rewards", 415),
        ("OPTIONS", "/v1/chat/completions", 405),
    ],
)
def test_every_answer_has_its_id_and_safe_headers_and_no_cors(method, path, status):
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST", "x-request-id": "mine-1"}
    answer = client().request(method, path, headers=asked)
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == "mine-1"
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    for name, value in SECURITY_HEADERS:
        assert answer.headers[name.decode()] == value.decode()


def test_an_answer_keeps_headers_of_its_own():
    async def page(scope, receive, send):
        own = {"content-security-policy": "default-src 'self'", "cache-control": "max-age=60"}
        await PlainTextResponse("page", headers=own)(scope, receive, send)

    edge = Edge(page, observers=Observers(), routes=frozenset(), max_in_flight=1, longest_s=5)
    answer = asyncio.run(_get(edge, "/ui"))
    assert answer.headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert answer.headers.get_list("cache-control") == ["max-age=60"]
    assert answer.headers["x-frame-options"] == "DENY"


async def _get(app, path, headers=None):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as asked:
        return await asked.get(path, headers=headers)


def test_ids_that_are_malformed_are_made_anew():
    for bad in ("a b", "x" * 129, "<script>", ""):
        assert client().get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req-")


def test_the_edge_crosses_processes():
    edge = Edge(print, observers=Observers(), routes=frozenset({"/healthz"}), max_in_flight=1, longest_s=5)
    assert isinstance(pickle.loads(pickle.dumps(edge)), Edge)


def test_each_answer_tells_the_proxy_how_many_seats_there_are_now():
    seats = {"reward": 12}
    app = make(seats=lambda: seats)
    assert asyncio.run(_get(app, "/readyz")).headers["x-fuseline-seats"] == "reward=12"
    seats["reward"] = 72
    assert asyncio.run(_get(app, "/nothing")).headers["x-fuseline-seats"] == "reward=72"


def test_web_sockets_are_closed_before_any_route():
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect) as closed, client().websocket_connect("/v1/chat/completions"):
        pass
    assert closed.value.code == 1008


# ---- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_headers_beyond_16_kib_are_refused_by_a_real_server(http):
    with served(make(), http=http) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as asked:
        plain = asked.get("/healthz").request
        size = len(plain.url.raw_path) + sum(len(name) + len(value) + 4 for name, value in plain.headers.raw)
        room = 16 * 1024 - size - len("x-pad") - 4
        assert asked.get("/healthz", headers={"x-pad": "a" * room}).status_code == 200
        message = refused(asked.get("/healthz", headers={"x-pad": "a" * (room + 1)}), 400, "invalid_request")
        assert "16385 bytes; at most 16384" in message
        many = [(f"x-{number}", "a") for number in range(3000)]
        refused(asked.get("/healthz", headers=many), 400, "invalid_request")
        refused(asked.get("/healthz?" + "q" * 17_000), 400, "invalid_request")


def test_what_uvicorn_does_with_huge_headers():
    """The facts in the edge's docstring: h11 cuts off at 64 KiB without an envelope, httptools never does."""
    for http_class, text in (("h11", b"Invalid HTTP request"), ("httptools", b"invalid_request")):
        with served(make(), http=http_class) as port, socket.create_connection(("127.0.0.1", port), 10) as raw:
            raw.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-pad: " + b"a" * 200_000)
            if http_class == "httptools":
                raw.sendall(b"\r\n\r\n")
            answer = raw.recv(65536)
            assert answer.startswith(b"HTTP/1.1 400") and text in answer


def test_probes_are_answered_when_the_service_is_full():
    chat = ScriptedChat(delay_s=0.2)
    app = make(chat, limits=LIMITS.model_copy(update={"max_in_flight": 1}))

    async def both():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as asked:
            first = asyncio.create_task(asked.post("/v1/chat/completions", json=CHAT))
            while not chat.asked:
                await asyncio.sleep(0.01)
            others = [await asked.get(path) for path in ("/healthz", "/readyz", "/v1/models")]
            return (await first).status_code, others

    status, (alive, ready, models) = asyncio.run(both())
    assert (status, alive.status_code, ready.status_code) == (200, 200, 200)
    refused(models, 429, "overloaded")


# ---- clients that leave -----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("headers", [{}, RAY_HEADERS], ids=["plain", "with the headers of Ray"])
def test_work_ends_when_its_client_leaves(stream, headers):
    chat, observers = Slow(), Observers()
    with served(make(chat, observers=observers)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = json.dumps({**CHAT, "stream": stream})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", **headers})
        while not chat.asked:
            time.sleep(0.01)
        assert not chat.stopped.is_set()
        connection.close()
        assert chat.stopped.wait(5)
        telemetry = observers.telemetry
        ended = {"route": "/v1/chat/completions", "status": "499", "code": "client_closed", "model": "chat"}
        ends_at = time.monotonic() + 5
        while telemetry.value(REQUESTS, **ended) < 1:
            assert time.monotonic() < ends_at, telemetry.values
            time.sleep(0.01)
        assert telemetry.value(IN_FLIGHT, route="/v1/chat/completions") == 0


def test_a_client_that_leaves_within_its_body_is_no_crash(caplog):
    observers = Observers()
    with served(make(observers=observers)) as port:
        with socket.create_connection(("127.0.0.1", port)) as raw:
            head = b"POST /v1/rewards HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
            raw.sendall(head + b"idempotency-key: k\r\n\r\n{")
            time.sleep(0.2)
        ended = {"route": "/v1/rewards", "status": "499", "code": "client_closed", "model": "none"}
        ends_at = time.monotonic() + 5
        while observers.telemetry.value(REQUESTS, **ended) < 1:
            assert time.monotonic() < ends_at, observers.telemetry.values
            time.sleep(0.01)
    assert not [record for record in caplog.records if "failed" in record.getMessage()]


def test_the_edge_hears_of_a_disconnect_that_the_server_does_not_act_on():
    """As behind Ray's proxy with `x-request-disconnect-disabled: ?1`: the message comes, nobody cancels."""
    stopped = []

    async def endless(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(True)

    async def run():
        messages = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        edge = Edge(endless, observers=Observers(), routes=frozenset(), max_in_flight=1, longest_s=50)
        scope = {"type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": []}
        task = asyncio.create_task(edge(scope, messages.get, None))
        await asyncio.sleep(0.05)
        assert not stopped
        messages.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(task, 2)

    asyncio.run(run())
    assert stopped == [True]


def test_nothing_outlives_the_longest_deadline():
    async def endless(scope, receive, send):
        if scope["path"] == "/started":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    edge = Edge(endless, observers=Observers(), routes=frozenset(), max_in_flight=1, longest_s=0.1)
    refused(asyncio.run(_get(edge, "/", RAY_HEADERS)), 408, "deadline_exceeded")
    with pytest.raises(ApiError, match="deadline"):  # the status is sent: the server closes the connection
        asyncio.run(_get(edge, "/started"))


# ---- Ray's proxy ------------------------------------------------------------------------------


def test_headers_that_rays_proxy_may_not_see():
    given = [
        (b"x-request-timeout-seconds", b"0"),
        (b"x-request-disconnect-disabled", b"?1"),
        (b"x-request-id", b"a b"),
        (b"session", b"\xff"),
        (b"accept", b"*/*"),
    ]
    assert clean(given) == [(b"x-fuseline-timeout-seconds", b"0"), (b"accept", b"*/*")]
    assert clean([(b"x-request-id", b"a"), (b"x-request-id", b"b")]) == []
    assert clean([(b"x-request-id", b"mine")]) == [(b"x-request-id", b"mine")]


def through_proxy(app, path="/v1/models", headers=None):
    """Ask `app` through what Ray Serve puts around its proxy, with our layer in it."""
    from ray.serve._private.http_util import _apply_middlewares

    return asyncio.run(_get(_apply_middlewares(app, middlewares()), path, headers))


def test_rays_own_functions_see_no_client_header_behind_the_layer():
    from ray.serve._private.http_util import parse_disconnect_disabled_header, parse_request_timeout_header

    async def proxy(scope, receive, send):
        headers = dict(scope["headers"])
        seen = [parse_request_timeout_header(headers, 77.0), parse_disconnect_disabled_header(headers)]
        await PlainTextResponse(json.dumps(seen))(scope, receive, send)

    for value in ("0", "5", "-1"):
        headers = {"x-request-timeout-seconds": value, "x-request-disconnect-disabled": "?1"}
        assert through_proxy(proxy, headers=headers).json() == [77.0, False]


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (404, 503, "not_ready"),
        (408, 408, "deadline_exceeded"),
        (429, 429, "overloaded"),
        (500, 503, "backend_unavailable"),
        (503, 503, "backend_unavailable"),
    ],
)
def test_what_rays_proxy_says_itself_becomes_an_envelope(status, expected, code):
    from ray.serve._private.http_util import convert_object_to_asgi_messages

    async def proxy(scope, receive, send):
        for message in convert_object_to_asgi_messages("Request 7 timed out after 1s.", status_code=status):
            await send(message)

    answer = through_proxy(proxy, headers={"x-request-id": "mine"})
    refused(answer, expected, code)
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert through_proxy(proxy, "/-/healthz").text == "Request 7 timed out after 1s."


def test_answers_of_applications_pass_the_layer():
    for status in (200, 404, 500):
        answer = through_proxy(PlainTextResponse("theirs", status))
        assert (answer.status_code, answer.text) == (status, "theirs")
    refused(through_proxy(PlainTextResponse("{}"), "/-/routes"), 404, "not_found")


def test_a_replica_that_dies_is_a_503_or_ends_its_stream_with_an_error():
    async def silent(scope, receive, send):
        pass

    async def broken(scope, receive, send):
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        await send(start)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})

    refused(through_proxy(silent), 503, "backend_unavailable")
    first, last, rest = through_proxy(broken).text.split("\n\n")
    assert (first, rest) == ("data: 1", "")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "backend_unavailable"


def test_a_client_deadline_reaches_the_routes_through_the_layer():
    app = make(ScriptedChat("abc", delay_s=0.2))

    async def ask(seconds):
        transport = httpx.ASGITransport(ProxyLayer(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asked:
            headers = {"x-request-timeout-seconds": seconds}
            return await asked.post("/v1/chat/completions", json=CHAT, headers=headers)

    refused(asyncio.run(ask("0.05")), 408, "deadline_exceeded")
    assert asyncio.run(ask("0")).status_code == 200


# ---- where it listens -------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_a_public_address_needs_consent_and_keys(host, tmp_path):
    def config(**security):
        return ServeConfig.of(chat={"a": tmp_path}, host=host, security=security)

    with pytest.raises(ValidationError, match=r"can be reached from other machines: set security\.public"):
        config()
    with pytest.raises(ValidationError, match=r"name its keys with security\.keys_file"):
        config(public=True)
    with pytest.raises(ValidationError, match=r"set security\.public"):
        config(keys_env="KEYS")
    assert config(public=True, keys_env="KEYS").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_neither(host, tmp_path):
    assert ServeConfig.of(chat={"a": tmp_path}, host=host).security.has_keys is False
