"""The process of `math_child.py`, seen from its owner: started, asked, its worker ended when it is late, started again when gone.

It knows nothing of math. A check that is late is ended from outside with SIGKILL, since sympy's long computations run in C
and see no signal. The owner may be asked from any thread, one check at a time.

The child is started by a thread that lives as long as the owner does: it asks the kernel for a signal when its parent ends,
and to the kernel the parent is the thread that started it.
"""

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

from fusion.errors import StageError

_CHILD = Path(__file__).with_name("math_child.py")
_START_S = 60.0
"""Patience for the imports of the child; they take one to two seconds."""
_RENEW_S = 1.0
"""Patience for a new worker, which is there in milliseconds."""
_LINE_BYTES = 1 << 16


Said = Literal["correct", "wrong", "unparsable", "gold_unparsable", "memory", "failed"]
"""What a worker says of a check."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What became of a check: what a worker said of it, or `timeout`, or `crashed` where it died twice."""

    result: Said | Literal["timeout", "crashed"]
    detail: str = ""


class _Late(Exception):
    """No answer in time."""


class _Died(Exception):
    """The worker has died; the text says how. Another one is there."""


class _Gone(Exception):
    """The child itself has ended, or says what makes no sense."""


class MathChecker:
    """Owns a child. One check at a time; a lock makes other threads wait."""

    def __init__(self, *, timeout_s: float, memory_mb: int) -> None:
        """Start the child and wait until it is ready.

        Raises:
            StageError: it does not start; the text has its last word.
        """
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._lock = threading.Lock()
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="math-checker")
        self._child: _Child | None = None
        self._closed = False
        try:
            self._running()
        except _Gone as error:
            self.close()
            raise StageError(
                f"the math verifier's process does not start ({error}); is math-verify installed for {sys.executable}?"
            ) from None

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the child and of its worker, which compares."""
        return (self._child.pid, self._child.worker) if self._child else ()

    def check(self, golds: list[str], answers: list[str], decimals: int) -> Reply:
        """Return whether any of the answers equals any of the gold ones.

        Where a process dies the check is done once more, in what is left of the time, at least half of it.
        """
        request = {"golds": golds, "answers": answers, "decimals": decimals}
        with self._lock:
            assert not self._closed, "check after close"
            timeout_s, detail = self._timeout_s, ""
            for _ in range(2):
                asked = time.monotonic()
                try:
                    child = self._running()
                    asked = time.monotonic()
                    return child.ask(request, timeout_s)
                except _Late:
                    self._renew()
                    return Reply("timeout", f"no answer in {timeout_s:g} s")
                except _Died as error:
                    detail = str(error)
                except _Gone as error:
                    detail = str(error)
                    self._end()
                timeout_s = max(self._timeout_s - (time.monotonic() - asked), self._timeout_s / 2)
            return Reply("crashed", detail)

    def close(self) -> None:
        """End the child and wait for its end; may be called twice."""
        with self._lock:
            self._closed = True
            self._end()
            self._starter.shutdown()

    def _running(self) -> "_Child":
        if self._child is None:
            try:
                child = self._starter.submit(_Child, self._memory_mb).result()
            except OSError as error:  # No memory or no process left on this machine.
                raise _Gone(str(error)) from None
            try:
                child.wait_worker(_START_S)
            except (_Late, _Gone) as error:
                child.end(patience_s=0)
                raise _Gone(str(error)) from None
            self._child = child
        return self._child

    def _renew(self) -> None:
        """End the worker. Where that does not work, as for a stopped child, end the child; the next check starts another."""
        assert self._child is not None
        try:
            self._child.renew_worker()
        except (_Late, _Gone):
            self._end(patience_s=0)

    def _end(self, *, patience_s: float = _RENEW_S) -> None:
        if self._child is not None:
            self._child.end(patience_s)
            self._child = None


class _Child:
    """One child process. Starting it returns at once."""

    def __init__(self, memory_mb: int) -> None:
        self._process = subprocess.Popen(
            # -P: its folder has a `math.py`, which must not become the standard library's.
            [sys.executable, "-s", "-P", str(_CHILD), str(memory_mb), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            # Where this process finds its packages, and a fixed order of sympy's hashes: nothing else of its environment.
            env={
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if Path(path).is_absolute()),
                "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
                "MALLOC_ARENA_MAX": "1",
                "OMP_NUM_THREADS": "1",
                "LC_ALL": "C.UTF-8",
            },
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._unread = b""
        self._asked = 0
        self.worker = 0
        """Process id of its worker."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_worker(self, patience_s: float) -> None:
        """Wait until it has another worker than the known one."""
        deadline = time.monotonic() + patience_s
        while True:
            said = self._read(deadline)
            if "worker" in said and said["worker"] != self.worker:
                self.worker = said["worker"]
                return

    def renew_worker(self) -> None:
        """End its worker, whatever that does, and wait for the next one."""
        self._process.send_signal(signal.SIGUSR1)
        self.wait_worker(_RENEW_S)

    def ask(self, request: dict[str, Any], timeout_s: float) -> Reply:
        """Return what its worker says; `_Late`, `_Died` or `_Gone` otherwise."""
        self._asked += 1
        deadline = time.monotonic() + timeout_s
        line = json.dumps(request | {"id": self._asked, "timeout_s": timeout_s}).encode() + b"\n"
        try:
            # At most four texts of 1,000 characters: less than the 64 KiB that a pipe takes without a reader.
            self._requests.write(line)
        except BrokenPipeError:
            raise _Gone(self._last_word()) from None
        missing = ""
        while True:
            said = self._read(deadline)
            if "missing" in said:
                missing = f"it needs to import {said['missing']}, which it may not; "
            elif "worker" in said:
                self.worker = said["worker"]
                raise _Died(f"{missing}its worker ended with {said.get('last')}")
            elif said.get("id") == self._asked:
                if said.get("result") not in get_args(Said):
                    raise _Gone(f"it says {said.get('result')!r} of a check")
                return Reply(said["result"], str(said.get("detail", "")))
            # Else the reply to an earlier request, which came when nobody waited for it any more.

    def end(self, patience_s: float) -> None:
        """End it and wait for that; it ends its worker first. One that does not hear is killed, its worker with it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._requests.close()
        self._replies.close()

    def _read(self, deadline: float) -> dict[str, Any]:
        """Return the next thing that it says."""
        poll = select.poll()
        poll.register(self._replies.fileno(), select.POLLIN)
        while b"\n" not in self._unread:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise _Late("it says nothing in time")
            piece = os.read(self._replies.fileno(), _LINE_BYTES)
            self._unread += piece
            if not piece or len(self._unread) > _LINE_BYTES:
                raise _Gone(self._last_word())
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise _Gone("what it says is no JSON object")
        return said

    def _last_word(self) -> str:
        # Its pipes are closed by its end, which the kernel reports a moment later.
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it floods or has closed its pipe"
        return f"it ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
