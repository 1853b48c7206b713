"""The judge's side of the sandbox: starts the zygote, has it fork, and moves bytes between judge and children.

A `Sandbox` is used by one thread at a time (`runs.py` holds the lock). Whatever ends the zygote, the next run starts
another; whatever ends the owner, the zygote sees its socket close and ends with all its children.
"""

import json
import math
import os
import select
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fusion.errors import StageError
from fusion.verifiers.sandbox import kernel, values
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.syscalls import TABLES

Level = Literal["L3", "L2", "L1"]
"""L3: rlimits, Landlock, seccomp and namespaces. L2: without namespaces. L1: without Landlock either; files can be read."""

START_S = 20.0
"""Longest wait for a zygote to be warm, and for a child to be ready."""
END_S = 5.0
"""Longest wait for a killed process to be reaped."""
KEPT_OUTPUT = 64 * 1024
CPU_SHARE = 2
"""Processor time that a program may use, as a multiple of the wall clock; what counts is the wall clock."""
MAX_LINES = 1000
"""Lines of a child that wait to be taken; it is answered line by line, so there is one."""

_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",  # The same program gives the same verdict tomorrow, sets and all.
}
_START = """
import sys, types
for name, folder in zip(("fusion", "fusion.verifiers", "fusion.verifiers.sandbox"), sys.argv[2:]):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [folder]
from fusion.verifiers.sandbox import zygote
zygote.main(sys.argv[1])
"""
"""Imports the zygote by its name without running the `__init__` of packages that need more than the standard library."""


class LostError(Exception):
    """The sandbox itself failed, which says nothing of the program: its zygote is gone, or cannot fork."""


class FloodError(Exception):
    """A child printed or sent more than it may."""

    def __init__(self, child: "Child", what: str) -> None:
        super().__init__(what)
        self.child = child


class Child:
    """A forked process, seen from the judge. It waits for its first line, which `begin` sends."""

    def __init__(self, number: int, limits: Limits) -> None:
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
        for name in ("stdin", "stdout", "stderr"):
            read, write = os.pipe()
            ours, theirs = (write, read) if name == "stdin" else (read, write)
            os.set_blocking(ours, False)
            self._ends[name] = ours
            self.given.append(theirs)

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
        *whole, rest = (self._partial + data).split(b"\n") if b"\n" in data else (self._partial + data,)
        self.lines.extend(map(bytes, whole))
        self._partial = bytearray(rest)
        if len(self._partial) > self._max_line or len(self.lines) > MAX_LINES:
            raise FloodError(self, f"a value of more than {self._max_line // 1024} KiB")

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


class _Zygote:
    """One running zygote: its control socket and its process."""

    def __init__(self, level: Level) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = Path(__file__).parent
        folders = [str(folder) for folder in (here.parents[1], here.parent, here)]
        with theirs:
            self.process = subprocess.Popen(
                # No site, no user site, no path of ours, nothing written; never a fork of this process, which has secrets.
                [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", _START, level, *folders],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                close_fds=True,
                start_new_session=True,
            )
        self.end = weakref.finalize(self, _end_process, os.getpid(), self.control, self.process)

    def hello(self) -> dict:
        """Return its first message: the level that it has reached, or why it refuses.

        Raises:
            StageError: it did not start.
        """
        self.control.settimeout(START_S)
        try:
            data = self.control.recv(4096)
        except TimeoutError:
            self.end()
            raise StageError(
                f"the code sandbox did not start within {START_S:.0f} s; is this machine overloaded?"
            ) from None
        if data:
            return json.loads(data)
        self.process.kill()
        _, printed = self.process.communicate()
        self.end()
        said = printed.decode(errors="replace").strip().split("\n")[-1]
        raise StageError(f"the code sandbox did not start ({sys.executable}): {said or 'it ended without a word'}")


def _end_process(owner: int, control: socket.socket, process: subprocess.Popen) -> None:
    """End a zygote: the closed socket tells it to, and it takes all its children along."""
    control.close()
    if os.getpid() != owner:
        return  # A fork of the owner has a copy of the socket and no say.
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


class Sandbox:
    """A zygote and what runs in it. Call `start` first and `close` last."""

    def __init__(self, *, ceiling: Level = "L3", allow_weaker: Literal["L1"] | None = None) -> None:
        """Args:
        ceiling: strongest level that is tried; for tests.
        allow_weaker: a level below L2 that will do where L2 cannot be had.
        """
        levels: list[Level] = ["L3", "L2", "L1"]
        self._levels: list[Level] = [
            x for x in levels[levels.index(ceiling) :] if x != "L1" or "L1" in (allow_weaker, ceiling)
        ]
        self._zygote: _Zygote | None = None
        self._children: dict[int, Child] = {}
        self._spares: list[Child] = []
        self._number = 0
        self.level: Level | None = None
        """The level that was reached; it stays the same for as long as this lives."""
        self.landlock = 0
        """Version of Landlock's interface; 0 at L1."""

    @property
    def zygote_pid(self) -> int | None:
        """Process id of the zygote, while there is one."""
        return None if self._zygote is None else self._zygote.process.pid

    def start(self) -> None:
        """Start the zygote at the strongest level that this machine offers; later ones must reach the same.

        Raises:
            StageError: no level that is allowed can be reached, or the process does not start.
        """
        if sys.platform != "linux" or kernel.machine() not in TABLES:
            raise StageError(
                f"the code sandbox needs Linux on {' or '.join(TABLES)}; this is {sys.platform} on {kernel.machine()}"
            )
        refusals = []
        levels: list[Level] = self._levels if self.level is None else [self.level]
        for level in levels:
            zygote = _Zygote(level)
            hello = zygote.hello()
            if "refused" not in hello:
                zygote.control.settimeout(None)
                self._zygote, self.level, self.landlock = zygote, hello["level"], hello["landlock"]
                return
            zygote.end()
            refusals.append(f"{level}: {hello['refused']}")
        raise StageError(
            f"the code sandbox cannot protect this machine, so no program is run ({'; '.join(refusals)}); run on another "
            "kernel, or set allow_weaker: L1 if programs may read every file that this user can"
        )

    def close(self) -> None:
        """End the zygote and all that runs; may be called twice."""
        for child in self._children.values():
            child.close()
        self._children.clear()
        self._spares.clear()
        if self._zygote is not None:
            self._zygote.end()
            self._zygote = None

    def child(self, limits: Limits) -> Child:
        """Return a process that waits to `begin`: a spare one, or one that is forked now. Its first line is `ready`.

        Args:
            limits: what it may use; the wall clock is the caller's.

        Raises:
            LostError: there is no zygote any more.
            StageError: it cannot be started again.
        """
        if self._zygote is None:
            self.start()
        for spare in self._spares:
            if spare.limits == limits:
                self._spares.remove(spare)
                return spare
        return self._fork(limits, clocked=True)

    def reader(self, limits: Limits) -> Child:
        """Return a process that may use any processor time, since it runs no program and does much work."""
        if self._zygote is None:
            self.start()
        return self._fork(limits, clocked=False)

    def keep_spares(self, limits: Limits, count: int) -> None:
        """Have processes forked for the next runs, which then need not wait for it."""
        while len(self._spares) < count:
            self._spares.append(self._fork(limits, clocked=True))

    def _fork(self, limits: Limits, *, clocked: bool) -> Child:
        assert self._zygote is not None
        self._number += 1
        child = Child(self._number, limits)
        self._children[child.number] = child
        cpu_s = math.ceil(child.most_cpu_s) + 1 if clocked else None
        request = {"run": child.number, "memory_mb": limits.memory_mb, "cpu_s": cpu_s}
        try:
            socket.send_fds(self._zygote.control, [json.dumps(request).encode()], child.given)
        except OSError as error:
            raise LostError(f"the zygote is gone: {error.strerror}") from None
        child.forked()
        return child

    def pump(self, deadline: float, until: Callable[[], bool]) -> bool:
        """Move bytes of all children until something is so; False when the deadline (`time.monotonic`) comes first.

        Raises:
            FloodError: a child has printed or sent too much.
            LostError: the zygote is gone.
        """
        assert self._zygote is not None
        control = self._zygote.control.fileno()
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll = select.poll()
            poll.register(control, select.POLLIN)
            owners: dict[int, Child] = {}
            for child in self._children.values():
                for descriptor, events in child.waits().items():
                    owners[descriptor] = child
                    poll.register(descriptor, events)
            for descriptor, events in poll.poll(math.ceil(1000 * left)):
                if descriptor == control:
                    self._hear()
                else:
                    owners[descriptor].handle(descriptor, events)
        return True

    def end(self, *children: Child) -> None:
        """Kill what has not ended, see it reaped, and let go of the children.

        Raises:
            LostError: the zygote is gone, or does not reap.
        """
        assert self._zygote is not None
        for child in children:
            if child.status is None and child.failed is None:
                try:
                    self._zygote.control.send(json.dumps({"kill": child.number}).encode())
                except OSError as error:
                    raise LostError(f"the zygote is gone: {error.strerror}") from None
            child.close()
        deadline = time.monotonic() + END_S
        while any(child.status is None and child.failed is None for child in children):
            poll = select.poll()
            poll.register(self._zygote.control, select.POLLIN)
            if not poll.poll(max(0, math.ceil(1000 * (deadline - time.monotonic())))):
                raise LostError(f"a killed program was not reaped within {END_S:.0f} s")
            self._hear()
        for child in children:
            del self._children[child.number]

    def _hear(self) -> None:
        """Take one message of the zygote."""
        assert self._zygote is not None
        try:
            data = self._zygote.control.recv(4096)
        except ConnectionResetError:
            data = b""
        if not data:
            raise LostError("the zygote has ended")
        message = json.loads(data)
        child = self._children[message["run"]]
        child.failed = message.get("failed")
        child.status, child.cpu_s = message.get("status"), message.get("cpu_s", 0.0)
        child.num_threads = message.get("threads", 0)
