"""One forked process, seen from the judge: what goes in, what comes out, and how it ended.

The judge's ends never block. A child that prints or sends more than it may raises `FloodError`; nothing that it prints is
ever read as a verdict.
"""

import os
import select
import socket
from collections import deque

from fusion.verifiers.sandbox import values
from fusion.verifiers.sandbox.limits import KIB, Limits

KEPT_OUTPUT = 64 * 1024
"""Bytes of each printed stream that are kept, unless said otherwise."""
CPU_SHARE = 2
"""Processor time that a program may use, as a multiple of the wall clock; what counts is the wall clock."""
MAX_LINES = 1000
"""Lines of a child that wait to be taken; it is answered line by line, so there is one."""


class FloodError(Exception):
    """A child printed or sent more than it may."""

    def __init__(self, child: "Child", what: str) -> None:
        super().__init__(what)
        self.child = child


class Child:
    """A forked process, seen from the judge. It waits for its first line, which `begin` sends."""

    def __init__(self, number: int, limits: Limits) -> None:
        """Make its pipes.

        Raises:
            OSError: there are no descriptors left for them; none of them stays open.
        """
        self.number = number
        self.limits = limits
        self.lines: deque[bytes] = deque()
        """Lines that it sent on its channel and nobody has taken yet."""
        self.printed = {"stdout": bytearray(), "stderr": bytearray()}
        """What it printed, the first bytes of each stream."""
        self.status: int | None = None
        """Wait status once it has ended."""
        self.failed: str | None = None
        """Why it could not be forked."""
        self.silent = False
        """Its channel is closed: no more lines."""
        self.cpu_s, self.most_cpu_s = 0.0, CPU_SHARE * limits.timeout_s
        """Processor time that it has used once it has ended, and may use at most."""
        self.num_threads = 0
        """Threads that it had when it was killed for them; 0 when it was not."""
        self._keep = KEPT_OUTPUT
        self._max_line = limits.value_bytes
        self._num_printed = 0
        self._partial = bytearray()
        self._to_send = bytearray()
        self._to_feed = memoryview(b"")
        self._feeding = False
        self.channel, self._theirs = socket.socketpair()
        self.channel.setblocking(False)
        self._ends: dict[str, int] = {}
        self.given: list[int] = [self._theirs.fileno()]
        """Descriptors for the process: channel, stdin, stdout, stderr."""
        try:
            for name in ("stdin", "stdout", "stderr"):
                read, write = os.pipe()
                self._ends[name], theirs = (write, read) if name == "stdin" else (read, write)
                self.given.append(theirs)
                os.set_blocking(self._ends[name], False)
        except OSError:
            self.close()
            raise

    def begin(
        self, role: str, job: dict, *, stdin: bytes = b"", keep: int = KEPT_OUTPUT, max_line: int | None = None
    ) -> None:
        """Say what it is to do.

        Args:
            role: what runs in it (`inside.py`).
            job: what that needs to know.
            stdin: what it can read.
            keep: bytes of each printed stream that are kept.
            max_line: longest line that it may send, the size of a value unless said otherwise.
        """
        self._keep = keep
        self._max_line = max_line or self._max_line
        self.send(values.dumps({"role": role, **job}))
        self._to_feed, self._feeding = memoryview(stdin), True
        if not stdin:
            self._close("stdin")

    @property
    def drained(self) -> bool:
        """True when it can print and send no more."""
        return self.silent and not self._ends.keys() & {"stdout", "stderr"}

    @property
    def has_partial_line(self) -> bool:
        return bool(self._partial)

    def forked(self) -> None:
        """Close the process's ends on this side."""
        self._theirs.close()
        for descriptor in self.given[1:]:
            os.close(descriptor)
        self.given = []

    def send(self, line: bytes) -> None:
        """Queue a line for its channel."""
        self._to_send += line + b"\n"

    def waits(self) -> dict[int, int]:
        """Return descriptor -> events to wait for."""
        events = {self._ends[name]: select.POLLIN for name in ("stdout", "stderr") if name in self._ends}
        if "stdin" in self._ends and self._feeding:
            events[self._ends["stdin"]] = select.POLLOUT
        if not self.silent:
            events[self.channel.fileno()] = select.POLLIN | (select.POLLOUT if self._to_send else 0)
        return events

    def handle(self, descriptor: int, events: int) -> None:
        """Move the bytes that a descriptor is ready for.

        Raises:
            FloodError: it has printed or sent too much.
        """
        if not self.silent and descriptor == self.channel.fileno():
            if events & select.POLLOUT:
                self._send()
            if events & ~select.POLLOUT:
                self._receive()
        elif descriptor == self._ends.get("stdin"):
            self._feed()
        else:
            for name in ("stdout", "stderr"):
                if descriptor == self._ends.get(name):
                    self._read_printed(name)

    def close(self) -> None:
        """Close everything of it on this side."""
        if self.given:
            self.forked()
        self.channel.close()
        self.silent = True
        for name in list(self._ends):
            self._close(name)

    def _send(self) -> None:
        try:
            num_sent = self.channel.send(self._to_send[: 1 << 16])
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            num_sent = len(self._to_send)  # It is gone, or does not want to hear; the end of it tells which.
        del self._to_send[:num_sent]

    def allow(self, length: int) -> None:
        """Set the bytes that the line of a child may have from now on; a longer one is a flood."""
        self._max_line = length

    def _receive(self) -> None:
        try:
            data = self.channel.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.silent = True
            return
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = bytes(self._partial) + whole[0]
            self._partial.clear()
        self._partial += rest
        self.lines.extend(whole)
        if len(self._partial) + sum(map(len, self.lines)) > self._max_line or len(self.lines) > MAX_LINES:
            raise FloodError(self, f"a value of more than {self._max_line // KIB} KiB")

    def _feed(self) -> None:
        try:
            self._to_feed = self._to_feed[os.write(self._ends["stdin"], self._to_feed[: 1 << 16]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._to_feed = self._to_feed[:0]
        if not self._to_feed:
            self._close("stdin")

    def _read_printed(self, name: str) -> None:
        try:
            data = os.read(self._ends[name], 1 << 18)
        except BlockingIOError:
            return
        if not data:
            self._close(name)
            return
        self._num_printed += len(data)
        self.printed[name] += data[: max(0, self._keep - len(self.printed[name]))]
        if self._num_printed > self.limits.output_bytes:
            raise FloodError(self, f"more than {self.limits.output_kb} KiB of output")

    def _close(self, name: str) -> None:
        descriptor = self._ends.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
