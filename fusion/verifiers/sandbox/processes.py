"""The judge's side of the sandbox: starts the zygote, has it fork, and moves bytes between judge and children.

A `Sandbox` is used by one thread at a time (`runs.py` holds the lock). Whatever ends the zygote, the next run starts
another; whatever ends the owner, the zygote sees its socket close and ends with all its children.
"""

import contextlib
import json
import math
import os
import select
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fusion.errors import StageError
from fusion.verifiers.sandbox import kernel
from fusion.verifiers.sandbox.child import Child
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.syscalls import TABLES

Level = Literal["L3", "L2", "L1"]
"""L3: rlimits, Landlock, seccomp and namespaces. L2: without namespaces. L1: without Landlock either; files can be read."""

START_S = 20.0
"""Longest wait for a zygote to be warm, and for a child to be ready."""
END_S = 5.0
"""Longest wait for a killed process to be reaped."""

_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "LC_CTYPE": "C.UTF-8",  # Not LC_ALL, whose other parts are files that a program cannot read.
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
                stdout=subprocess.PIPE,  # Of the kind that programs have: Python remembers whether it can seek.
                stderr=subprocess.STDOUT,
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
        printed, _ = self.process.communicate()
        self.end()
        said = printed.decode(errors="replace").strip().split("\n")[-1]
        raise StageError(f"the code sandbox did not start ({sys.executable}): {said or 'it ended without a word'}")


def _end_process(owner: int, control: socket.socket, process: subprocess.Popen) -> None:
    """End a zygote: the closed socket tells it to, and it takes all its children along."""
    if os.getpid() != owner:
        control.close()  # A fork of the owner has a copy of the socket and no say.
        return
    with contextlib.suppress(OSError):  # It may be gone already.
        control.shutdown(socket.SHUT_RDWR)  # At once, where a thread that waits on the socket would put off a close.
    control.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


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
            try:
                zygote = _Zygote(level)
            except OSError as error:
                raise StageError(f"the code sandbox did not start: {error}") from None
            hello = zygote.hello()
            if "refused" not in hello:
                zygote.control.settimeout(None)
                self._zygote, self.level, self.landlock = zygote, hello["level"], hello["landlock"]
                return
            zygote.end()
            if hello["refused"] not in refusals:
                refusals.append(hello["refused"])
        raise StageError(f"the code sandbox cannot protect this machine, so no program is run: {'; '.join(refusals)}")

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
        try:
            child = Child(self._number, limits)
        except OSError as error:
            raise LostError(f"no pipes for a process: {error.strerror}") from None
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
