"""Bytes to a socket, answers back: a client that sends what no HTTP library would send."""

import dataclasses
import http.client
import io
import select
import socket
import time
import urllib.parse
from typing import cast


@dataclasses.dataclass(frozen=True)
class Answer:
    """One HTTP answer as it came."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(url: str, request: bytes, *, methods: list[str], timeout_s: float = 30) -> list[Answer]:
    """Send bytes to a server and return its answers, one for each of `methods`, or fewer where it closes before.

    Sending and receiving go on together, because a server may answer and close before it has read everything.
    """
    address = urllib.parse.urlsplit(url)
    ends_at = time.monotonic() + timeout_s
    received = bytearray()
    with socket.create_connection((address.hostname or "", address.port or 80), timeout=timeout_s) as connection:
        connection.setblocking(False)
        left = memoryview(request)
        while True:
            seconds = ends_at - time.monotonic()
            assert seconds > 0, f"no end after {timeout_s} s; received {bytes(received[:200])!r}"
            readable, writable, _ = select.select([connection], [connection] if left else [], [], seconds)
            if writable:
                try:
                    left = left[connection.send(left[: 1 << 20]) :]
                except (BrokenPipeError, ConnectionResetError):
                    left = memoryview(b"")
            if readable:
                try:
                    data = connection.recv(1 << 20)
                except ConnectionResetError:  # it closed with some of the request unread
                    data = b""
                received += data
                if not data or len(parse(received, methods)) == len(methods):
                    return parse(received, methods)


def parse(data: bytes | bytearray, methods: list[str]) -> list[Answer]:
    """Return the whole answers in `data`."""
    stream = _Stream(data)
    answers: list[Answer] = []
    while len(answers) < len(methods):
        response = http.client.HTTPResponse(cast(socket.socket, stream), method=methods[len(answers)])
        try:
            response.begin()
            body = response.read()
        except (http.client.HTTPException, ValueError):
            return answers  # not whole yet
        answers.append(Answer(response.status, response.headers, body))
    return answers


class _Stream(io.BytesIO):
    """Received bytes as `http.client` reads them; they stay open after one answer, for the next one."""

    def makefile(self, mode: str) -> "_Stream":
        return self

    def close(self) -> None:
        pass
