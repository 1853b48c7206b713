"""How runs end, and what their endings mean: signals, errors that a program did not catch, lines that it sent.

All of it may come from a hostile program, which can choose among the reasons for which it is wrong, and no more.
"""

import errno
import os
import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fusion.verifiers.sandbox import values
from fusion.verifiers.sandbox.child import Child
from fusion.verifiers.sandbox.processes import LostError


class Result(StrEnum):
    """How a run ended."""

    passed = "pass"
    wrong_answer = "wrong_answer"
    runtime_error = "runtime_error"
    timeout = "timeout"
    memory = "memory"
    output_limit = "output_limit"
    sandbox_denied = "sandbox_denied"
    """The program did something that the sandbox refuses, and did not get over it."""
    protocol_error = "protocol_error"
    """The program spoke on the channel itself, or closed it."""
    unverifiable = "unverifiable"
    """The run says nothing: a value cannot be carried, or the test itself is broken."""
    infra_error = "infra_error"
    """The sandbox failed; says nothing of the program."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, with one line for people."""

    result: Result
    detail: str = ""


_DENIED = (errno.EPERM, errno.EACCES, errno.EROFS, errno.EFBIG)
"""How the kernel says no to a program that goes too far."""

PASS = Outcome(Result.passed)

MAX_DETAIL = 500
"""Characters of a detail; a row of verdicts is read by people."""


class ProgramError(Exception):
    """Ends a run early."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome


def report_of(line: bytes) -> dict[str, Any]:
    """Return the fields of a line that a program may have written itself."""
    try:
        report = values.loads(line)
    except values.MalformedError as error:
        raise ProgramError(Outcome(Result.protocol_error, str(error))) from None
    if not isinstance(report, dict):
        raise ProgramError(Outcome(Result.protocol_error, "an answer of another kind"))
    return report


def verdict_of(line: bytes) -> Outcome:
    """Return what the process of a test says; it runs no program, only the test, which is data and may be hostile too."""
    try:
        report = values.loads(line)
        if "error" in report:
            return blame(report["error"], str(report["detail"]))
        return Outcome(Result(report["result"]), str(report["detail"]))
    except (values.MalformedError, ValueError, TypeError, LookupError, AttributeError) as error:
        return Outcome(Result.unverifiable, f"the test writes verdicts of its own: {error}")


def blame(report: dict[str, Any], at: str = "") -> Outcome:
    """Return what an error means that a program did not catch."""
    name, text, number = (report.get(field) for field in ("error", "text", "errno"))
    detail = f"{name}: {text}" + (f"; {at}" if at else "")
    if name == "MemoryError" or number == errno.ENOMEM:
        return Outcome(Result.memory, detail)
    if number in _DENIED:
        return Outcome(Result.sandbox_denied, detail)
    return Outcome(Result.runtime_error, detail)


def by_status(child: Child) -> Outcome | None:
    """Return what the signal means that ended a process; None when it ended by itself.

    Raises:
        LostError: somebody else killed it, the kernel for want of memory perhaps.
    """
    assert child.status is not None
    if not os.WIFSIGNALED(child.status):
        return None
    number = os.WTERMSIG(child.status)
    if number == signal.SIGSYS:
        return Outcome(
            Result.sandbox_denied, "ended by SIGSYS: by a system call of another architecture, or by its own hand"
        )
    if number == signal.SIGKILL:
        if child.num_threads:
            return Outcome(Result.sandbox_denied, f"{child.num_threads} threads")
        if child.cpu_s >= child.most_cpu_s:
            return Outcome(Result.timeout, f"{child.cpu_s:.0f} s of processor time")
        raise LostError("a program was killed from outside the sandbox")
    return Outcome(Result.runtime_error, ending(child))


def ending(child: Child) -> str:
    """Return how a process ended, with the last thing it wrote to stderr."""
    last = as_text(child.printed["stderr"]).strip().rpartition("\n")[2][:200]
    if child.status is None:
        how = "it has not ended"
    elif os.WIFSIGNALED(child.status):
        how = f"ended by {signal_name(os.WTERMSIG(child.status))}"
    else:
        how = f"exit code {os.WEXITSTATUS(child.status)}"
    return f"{how}: {last}" if last else how


def signal_name(number: int) -> str:
    """Return what people call a signal; real-time signals have numbers only, and a program may end itself by any."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def as_text(printed: bytes | bytearray) -> str:
    return bytes(printed).decode("utf-8", "replace")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def one_line(text: str) -> str:
    """Return a text that hostile programs have a part in as one printable line, cut to `MAX_DETAIL` characters or so.

    What is not printable, and what has no UTF-8 form, is there as its escape.
    """
    line = " ".join(text[: 4 * MAX_DETAIL].split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= MAX_DETAIL and len(text) <= 4 * MAX_DETAIL else f"{line[:MAX_DETAIL]}…"
