"""Raw HTTP requests that go wrong in known ways, each with the status and code that must come back.

Web frameworks answer many of these with a 500, a hang, or as if nothing were wrong. A case is bytes for a socket; the
names of the models are placeholders, so the same corpus can be asked of any service (`corpus_check.py` has the runner).
Limits are the service's defaults: chat bodies of 1 MiB, scoring bodies of 4 MiB, 64 responses, 4096 tokens.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

CHAT, REWARD = "<chat-model>", "<reward-model>"
"""Stand for the names of a chat and a reward model of the service that is asked."""
PLAIN = "(no envelope)"
"""Code of an answer of the HTTP parser, which reads the request before the service does."""
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Case:
    """One request, or several on one connection.

    Attributes:
        head: the request up to its body, without the blank line; `{length}` is the length of the body.
        body: what follows; placeholders inside count with the length of the names they stand for.
        answers: what may come back: statuses with codes, None where there is no error or no body. Several where
            HTTP parsers differ.
        item: the code of the first item's error, in a 200 of `POST /v1/rewards`.
        pipelined: `answers` are all the answers of one connection, in order.
    """

    name: str
    head: str
    body: bytes
    answers: tuple[tuple[int, str | None], ...]
    item: str | None = None
    pipelined: bool = False

    @property
    def methods(self) -> list[str]:
        """The methods of the requests, as far as they change how an answer is read."""
        first = self.head.split(" ")[0]
        return [first] + ["GET"] * (len(self.answers) - 1) if self.pipelined else [first]

    def request(self, chat: str, reward: str) -> bytes:
        """Return the bytes to send to a service with these models."""
        body = self.body.replace(CHAT.encode(), chat.encode()).replace(REWARD.encode(), reward.encode())
        head = self.head.replace("{length}", str(len(body))).replace(CHAT, chat).replace(REWARD, reward)
        return head.encode("latin-1") + b"\r\n\r\n" + body


def get(name: str, target: str, *answers: tuple[int, str | None], method: str = "GET", headers: str = "") -> Case:
    head = f"{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close{headers}"
    return Case(name, head, b"", answers)


def post(
    name: str,
    target: str,
    body: Any,
    *answers: tuple[int, str | None],
    headers: str = "\r\ncontent-type: application/json",
    length: str = "\r\ncontent-length: {length}",
    **more: Any,
) -> Case:
    """Return a POST; a body that is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close{headers}{length}"
    return Case(name, head, data, answers, **more)


ASK = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
ITEM = {"prompt": "q", "response": "a"}
SCORE = {"model": REWARD, "input": [ITEM]}
PAIRS = {"model": REWARD, "queries": "q", "documents": ["a", "b"]}
RANK = {"model": REWARD, "query": "q", "documents": ["a", "b"]}
SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TO_CHAT, TO_REWARDS = "/v1/chat/completions", "/v1/rewards"
OK = (200, None)


def sound() -> Iterator[Case]:
    """Requests that are right; were one refused, the rest of the corpus would show nothing."""
    yield post("chat", TO_CHAT, ASK, OK)
    yield post("chat, stream", TO_CHAT, {**ASK, "stream": True}, OK)
    yield post("rewards", TO_REWARDS, SCORE, OK)
    yield post("score", "/v1/score", PAIRS, OK)
    yield post("rerank", "/v1/rerank", RANK, OK)
    yield post("rerank, v2", "/v2/rerank", RANK, OK)
    yield post("chat on a reward model", TO_CHAT, {"model": REWARD, "messages": SAID}, OK)
    yield get("models", "/v1/models", OK)
    yield get("one model", f"/v1/models/{CHAT}", OK)
    yield get("healthz", "/healthz", OK)
    yield get("readyz", "/readyz", OK)


def bodies() -> Iterator[Case]:
    """Bodies that are not one JSON object in UTF-8, on the two main routes and, the first one, on the others."""
    broken: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "invalid_json"),
        "spaces": (b" \n\t", "invalid_json"),
        "an array": (b"[]", "invalid_request"),
        "a string": (b'"model"', "invalid_request"),
        "null": (b"null", "invalid_request"),
        "a number": (b"1", "invalid_request"),
        "true": (b"true", "invalid_request"),
        "an open object": (b'{"model": "m"', "invalid_json"),
        "two objects": (b"{}{}", "invalid_json"),
        "JSON lines": (b"{}\n{}", "invalid_json"),
        "single quotes": (b"{'model': 'm'}", "invalid_json"),
        "a trailing comma": (b'{"model": "m",}', "invalid_json"),
        "a comment": (b'{"model": "m" /* c */}', "invalid_json"),
        "NaN": (b'{"model": NaN}', "invalid_json"),
        "Infinity": (b'{"model": Infinity}', "invalid_json"),
        "-Infinity": (b'{"model": -Infinity}', "invalid_json"),
        "a number beyond floats": (b'{"model": 1e999}', "invalid_json"),
        "an integer of 5000 digits": (b'{"model": ' + b"9" * 5000 + b"}", "invalid_json"),
        "an integer of 1000 digits": (b'{"model": ' + b"9" * 1000 + b"}", "invalid_request"),
        "a leading zero": (b'{"model": 01}', "invalid_json"),
        "hexadecimal": (b'{"model": 0x1}', "invalid_json"),
        "duplicate keys": (b'{"model": "a", "model": "b"}', "invalid_json"),
        "duplicate keys, one escaped": (b'{"model": "a", "\\u006dodel": "b"}', "invalid_json"),
        "duplicate keys deep inside": (b'{"messages": [{"role": "user", "role": "user"}]}', "invalid_json"),
        "UTF-16": ("{}".encode("utf-16"), "invalid_json"),
        "UTF-16 without a mark": ("{}".encode("utf-16-le"), "invalid_json"),
        "UTF-32": ("{}".encode("utf-32"), "invalid_json"),
        "a byte order mark": (b"\xef\xbb\xbf{}", "invalid_json"),
        "Latin-1": ('{"model": "é"}'.encode("latin-1"), "invalid_json"),
        "overlong UTF-8": (b'{"model": "\xc0\xaf"}', "invalid_json"),
        "a surrogate in UTF-8": (b'{"model": "\xed\xa0\x80"}', "invalid_json"),
        "half of an escaped surrogate pair": (b'{"model": "\\ud800"}', "invalid_json"),
        "half a pair in a key": (b'{"\\udfff": 1}', "invalid_json"),
        "a raw NUL in a string": (b'{"model": "\x00"}', "invalid_json"),
        "a raw newline in a string": (b'{"model": "\n"}', "invalid_json"),
        "a bad escape": (b'{"model": "\\x41"}', "invalid_json"),
        "65 levels": (b'{"model": ' + b"[" * 65 + b"]" * 65 + b"}", "invalid_json"),
        "100,000 levels": (b"[" * 100_000, "invalid_json"),
        "100,000 levels of objects": (b'{"a":' * 100_000, "invalid_json"),
        "gzip bytes": (b"\x1f\x8b\x08\x00" * 8, "invalid_json"),
        "a form": (b"model=m&input=x", "invalid_json"),
    }
    for name, (body, code) in broken.items():
        for target in (TO_CHAT, TO_REWARDS):
            yield post(f"{name} to {target}", target, body, (400, code))
    for target in ("/v1/score", "/v1/rerank", "/v2/rerank"):
        yield post(f"NaN to {target}", target, b'{"model": NaN}', (400, "invalid_json"))


def framing() -> Iterator[Case]:
    """Lengths, chunks and sizes."""
    chunked = "\r\ntransfer-encoding: chunked"
    body = json.dumps(SCORE).encode()
    hurry = "\r\ncontent-type: application/json\r\nx-request-timeout-seconds: 0.3"
    large = (413, "body_too_large")
    nothing = (400, "invalid_json")
    plain = (400, PLAIN)
    yield post("a body in chunks", TO_REWARDS, b"2\r\n[]\r\n0\r\n\r\n", (400, "invalid_request"), length=chunked)
    yield post(
        "chunks with an extension", TO_REWARDS, b"2;x=y\r\n[]\r\n0\r\n\r\n", (400, "invalid_request"), length=chunked
    )
    yield post(
        "chunks with a trailer", TO_REWARDS, b"2\r\n[]\r\n0\r\nx: y\r\n\r\n", (400, "invalid_request"), length=chunked
    )
    yield post("no chunk but the last", TO_REWARDS, b"0\r\n\r\n", nothing, length=chunked)
    yield post("a chunk size that is none", TO_REWARDS, b"zz\r\n[]\r\n0\r\n\r\n", plain, length=chunked)
    yield post("no length and no chunks", TO_REWARDS, b"", nothing, length="")
    yield post("a length of 0", TO_REWARDS, b"", nothing, length="\r\ncontent-length: 0")
    yield post("a length that is too short", TO_REWARDS, body, nothing, length="\r\ncontent-length: 5")
    slow = (408, "deadline_exceeded")
    yield post("a length that is too long", TO_REWARDS, body, slow, headers=hurry, length="\r\ncontent-length: 99999")
    yield post("chunks that never end", TO_REWARDS, b"2\r\n[]\r\n", slow, headers=hurry, length=chunked)
    yield post("half a body, then silence", TO_CHAT, b'{"model"', slow, headers=hurry, length="\r\ncontent-length: 400")
    yield post("a negative length", TO_REWARDS, body, plain, length="\r\ncontent-length: -1")
    yield post("a length with a sign", TO_REWARDS, body, plain, length="\r\ncontent-length: +5")
    yield post("a length in words", TO_REWARDS, body, plain, length="\r\ncontent-length: ten")
    yield post("a length beyond 64 bits", TO_REWARDS, body, plain, length="\r\ncontent-length: " + "9" * 30)
    yield post("two lengths", TO_REWARDS, body, plain, length="\r\ncontent-length: 5\r\ncontent-length: 6")
    yield post(
        "a length and chunks",
        TO_REWARDS,
        b"2\r\n[]\r\n0\r\n\r\n",
        plain,
        (400, "invalid_request"),
        length="\r\ncontent-length: 5" + chunked,
    )
    yield post(
        "chunks and a length",
        TO_REWARDS,
        b"2\r\n[]\r\n0\r\n\r\n",
        plain,
        (400, "invalid_request"),
        length=chunked + "\r\ncontent-length: 5",
    )
    yield post("chunks twice", TO_REWARDS, b"2\r\n[]\r\n0\r\n\r\n", plain, length=chunked + chunked)
    yield post(
        "an unknown transfer encoding",
        TO_REWARDS,
        b"[]",
        plain,
        length="\r\ntransfer-encoding: gzip",
    )
    yield post("a space before the colon", TO_REWARDS, body, plain, length="\r\ncontent-length : 5")
    yield post(
        "a folded header",
        TO_REWARDS,
        b"[]",
        plain,
        (400, "invalid_request"),
        length="\r\ncontent-length: 2\r\nx-a: b\r\n c",
    )
    for target, most in ((TO_CHAT, MIB), (TO_REWARDS, 4 * MIB), ("/v1/score", 4 * MIB), ("/v2/rerank", 4 * MIB)):
        yield post(f"one byte too many to {target}", target, b" " * (most + 1), large)
    yield post("as many bytes as allowed", TO_CHAT, b" " * (MIB - 2) + b"[]", (400, "invalid_request"))
    yield post("a declared length of 1 TB", TO_CHAT, b"", large, length="\r\ncontent-length: 1099511627776")
    huge = b'{"model": "' + b"x" * (50 * MIB) + b'"}'
    yield post("a string of 50 MB", TO_REWARDS, huge, large)
    pieces = b"".join(b"100000\r\n" + b"x" * MIB + b"\r\n" for _ in range(50)) + b"0\r\n\r\n"
    yield post("50 MB in chunks", TO_REWARDS, pieces, large, length=chunked)
    yield post("a model name of 3 MB", TO_REWARDS, {**SCORE, "model": "x" * 3 * MIB}, (400, "invalid_request"))
    keys = {f"k{i}": i for i in range(50_000)}
    yield post("50,000 unknown fields", TO_REWARDS, {**SCORE, **keys}, (400, "unknown_field"))
    # What was refused at a price: a search of all keys for each key, an error for each element.
    twice = b"{" + b"".join(b'"%d":0,' % i for i in range(300_000)) + b'"z":0,"z":1}'
    yield post("a key twice among 300,000", TO_REWARDS, twice, (400, "invalid_json"))
    ids = [{**SCORE["input"][0], "id": str(i // 2 if i > 19_997 else i)} for i in range(20_000)]
    yield post("an id twice among 20,000", TO_REWARDS, {**SCORE, "input": ids}, (400, "invalid_request"))
    noughts = b"[" + b"0," * 1_900_000 + b"0]"
    for target, fields in (
        (TO_REWARDS, b'"input":'),
        ("/v2/rerank", b'"query":"","documents":'),
        ("/v1/score", b'"queries":"","documents":'),
    ):
        wrong = b'{"model":"rm",' + fields + noughts + b"}"
        yield post(f"1,900,001 wrong elements to {target}", target, wrong, (400, "invalid_request"))


def media() -> Iterator[Case]:
    """Media types and encodings."""
    wrong = (415, "unsupported_media_type")
    types = {
        "none": "",
        "text": "\r\ncontent-type: text/plain",
        "form": "\r\ncontent-type: application/x-www-form-urlencoded",
        "multipart": "\r\ncontent-type: multipart/form-data; boundary=x",
        "JSON with a suffix": "\r\ncontent-type: application/vnd.api+json",
        "JSON in UTF-16": "\r\ncontent-type: application/json; charset=utf-16",
        "JSON with a version": "\r\ncontent-type: application/json; version=1",
        "a wild card": "\r\ncontent-type: */*",
    }
    for name, headers in types.items():
        yield post(f"media type: {name}", TO_REWARDS, SCORE, wrong, headers=headers)
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, identity"):
        headers = f"\r\ncontent-type: application/json\r\ncontent-encoding: {coding}"
        yield post(f"false content-encoding {coding}", TO_REWARDS, SCORE, wrong, headers=headers)
    fine = {
        "a charset": 'Application/JSON; Charset="UTF-8"',
        "identity": "application/json\r\ncontent-encoding: identity",
    }
    for name, value in fine.items():
        yield post(f"media type with {name}", TO_REWARDS, SCORE, OK, headers=f"\r\ncontent-type: {value}")
    yield post(
        "only XML is accepted back",
        TO_REWARDS,
        SCORE,
        OK,
        headers="\r\ncontent-type: application/json\r\naccept: text/xml",
    )
    yield post(
        "a continuation is expected",
        TO_REWARDS,
        SCORE,
        OK,
        headers="\r\ncontent-type: application/json\r\nexpect: 100-continue",
    )


ADMINISTRATION = """
    /abort_requests /classify /collective_rpc /detokenize /docs /finish_weight_update /get_world_size /health
    /inference/v1/generate /init_weight_transfer_engine /invocations /is_paused /is_scaling_elastic_ep /is_sleeping
    /load /metrics /openapi.yaml /pause /ping /pooling /redoc /release_kv_cache_memory /rerank /reset_encoder_cache
    /reset_mm_cache /reset_prefix_cache /resume /scale_elastic_ep /score /server_info /shutdown /sleep
    /start_profile /start_weight_update /stop_profile /tokenize /tokenizer_info /update_weights /v1/audio/speech
    /v1/audio/transcriptions /v1/chat/completions/batch /v1/chat/completions/render /v1/completions /v1/embeddings
    /v1/images/generations /v1/load_lora_adapter /v1/messages /v1/moderations /v1/responses /v1/unload_lora_adapter
    /v2/chat /v2/embed /version /wake_up
""".split()  # noqa: SIM905
"""Routes of vLLM's server, its administration above all, and of other services like it."""


def paths() -> Iterator[Case]:
    """Places where there is nothing, and tricks to get somewhere else."""
    gone = (404, "not_found")
    for target in ADMINISTRATION:
        yield post(f"vLLM's {target}", target, {}, gone)
    for target in (
        "/",
        "/v1",
        "/v1/",
        "/v3/rerank",
        "/admin",
        "/.env",
        "/v1/models/a/b",
        "/v1/rewards/1",
        "/favicon.ico",
    ):
        yield get(f"nothing at {target}", target, gone)
    for target in ("/v1/rewards/", "//v1/rewards", "/v1//rewards", "/V1/rewards", "/v1/Rewards", "/v1/rewards%20"):
        yield post(f"nothing at {target}", target, SCORE, gone)
    for target in ("/v1/./rewards", "/v1/../v1/rewards", "/ui/../v1/rewards", "/v1/rewards/..", "/v1/rewards;x=1"):
        yield post(f"no path arithmetic in {target}", target, SCORE, gone)
    for target in (
        "/v1%2Frewards%2F",
        "/v1/%2e%2e/rewards",
        "/v1/rewards%00",
        "/v1/rewards%0d%0ax:y",
        "/%2e%2e/%2e%2e/etc/passwd",
    ):
        yield post(f"nothing at {target}", target, SCORE, gone)
    yield get("a file above the page", "/ui/../../etc/passwd", gone)
    yield get("a file above the page, escaped", "/ui/%2e%2e/%2e%2e/etc/passwd", gone)
    yield get("a path of 8,000 characters", "/" + "a" * 8000, gone)
    yield get("bytes that are not UTF-8 in a path", "/%ff%fe", gone)
    yield get("a model that is not there", "/v1/models/none", (404, "model_not_found"))
    yield get("a model with a NUL", "/v1/models/%00", (404, "model_not_found"))
    yield get("a model with a slash", "/v1/models/a%2Fb", gone)
    yield get("models with a slash behind", "/v1/models/", gone)
    yield post("an escaped letter is the letter", "/v1/%72ewards", SCORE, OK)
    yield get("a query where nothing is read", "/v1/models?limit=1", OK)
    for target in (TO_CHAT, TO_REWARDS, "/v1/score", "/v1/rerank", "/v2/rerank"):
        body = ASK if target == TO_CHAT else SCORE
        yield post(f"a query to {target}", f"{target}?stream=true", body, (400, "unknown_field"))
    yield get("an absolute address", "http://elsewhere/healthz", OK, gone)


def methods() -> Iterator[Case]:
    """Methods and request lines."""
    wrong = (405, "method_not_allowed")
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        refusal = (405, None) if method == "HEAD" else wrong
        yield get(f"{method} of rewards", TO_REWARDS, refusal, method=method)
        yield get(f"{method} of chat", TO_CHAT, refusal, method=method)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        yield get(f"{method} of models", "/v1/models", wrong, method=method)
    yield get("HEAD of models", "/v1/models", OK, method="HEAD")
    yield get("HEAD of healthz", "/healthz", OK, method="HEAD")
    yield get("HEAD of nothing", "/nothing", (404, None), method="HEAD")
    asks = "\r\norigin: https://elsewhere.example\r\naccess-control-request-method: POST"
    yield get("a browser asks from elsewhere", TO_REWARDS, wrong, method="OPTIONS", headers=asks)
    yield get("a method in small letters", "/healthz", (400, PLAIN), wrong, method="get")
    yield get("a method of our own", "/healthz", (400, PLAIN), wrong, method="BREW")
    yield get("CONNECT", "localhost:80", (400, PLAIN), (404, "not_found"), method="CONNECT")
    yield get("OPTIONS of everything", "*", (404, "not_found"), method="OPTIONS")
    plain = ((400, PLAIN),)
    yield Case("not HTTP", "hello", b"", plain)
    yield Case("HTTP/0.9", "GET /healthz", b"", (*plain, OK))
    yield Case("HTTP/9.9", "GET /healthz HTTP/9.9\r\nhost: a\r\nconnection: close", b"", (*plain, OK))
    yield Case("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"", plain)
    yield Case("a request line with a tab", "GET\t/healthz\tHTTP/1.1\r\nhost: a", b"", plain)
    yield Case("HTTP/1.0", "GET /healthz HTTP/1.0", b"", (OK,))
    yield Case(
        "HTTP/1.0 with a body",
        "POST /v1/rewards HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {length}",
        b"[]",
        ((400, "invalid_request"),),
    )
    yield Case("HTTP/1.1 without a host", "GET /healthz HTTP/1.1\r\nconnection: close", b"", (OK, *plain))
    second = "GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\nGET /nothing HTTP/1.1\r\nhost: a\r\nconnection: close"
    yield Case(
        "three requests at once",
        f"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n{second}",
        b"",
        (OK, OK, (404, "not_found")),
        pipelined=True,
    )
    smuggled = (
        f"POST /v1/rewards HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n[]{second}"
    )
    yield Case(
        "a body and two more requests",
        smuggled,
        b"",
        ((400, "invalid_request"), OK, (404, "not_found")),
        pipelined=True,
    )
    yield get("an upgrade to HTTP/2", "/healthz", OK, headers=", upgrade\r\nupgrade: h2c")
    yield get(
        "a WebSocket",
        "/v1/rewards",
        (403, PLAIN),
        headers=", upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    )


def heads() -> Iterator[Case]:
    """Headers that are ignored, however odd, or refused by the HTTP parser."""
    for value in ("0", "-1", "nan", "inf", "1e999", "soon", "999999999"):
        yield get(f"a deadline of {value}", "/healthz", OK, headers=f"\r\nx-request-timeout-seconds: {value}")
    tiny = "\r\ncontent-type: application/json\r\nx-request-timeout-seconds: 0.000001"
    yield post("a deadline of a microsecond", TO_REWARDS, SCORE, (408, "deadline_exceeded"), OK, headers=tiny)
    for name, value in {"markup": "<b>", "spaces": "a b", "too long": "x" * 129, "Latin-1": "\xe9"}.items():
        yield get(f"a request id with {name}", "/healthz", OK, headers=f"\r\nx-request-id: {value}")
    yield get("two request ids", "/healthz", OK, headers="\r\nx-request-id: a\r\nx-request-id: b")
    plain = (400, PLAIN)
    large = "\r\nx-a: " + "a" * (1 << 18)
    yield get("a header of 256 KiB", "/healthz", (400, "invalid_request"), plain, OK, headers=large)
    yield get("a NUL in a header", "/healthz", plain, headers="\r\nx-a: a\x00b")
    yield get("a header without a colon", "/healthz", plain, headers="\r\nx-a")
    yield get("a header without a name", "/healthz", plain, headers="\r\n: a")
    yield get("a header name with a space", "/healthz", plain, headers="\r\nx a: b")
    yield get(
        "who asks from where",
        "/healthz",
        OK,
        headers="\r\nx-forwarded-for: 127.0.0.1\r\nx-original-url: /admin\r\nx-http-method-override: DELETE",
    )
