"""What became of a program: the runs of the sandbox, judged from the outside.

A `Runner` holds the expected values; they go into no process that runs a program. It may be used from any thread, one run at a
time. A failure of the sandbox itself is tried again twice with a new zygote and is then `infra_error`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fusion.errors import StageError
from fusion.verifiers.sandbox import asserts, values
from fusion.verifiers.sandbox.cases import Asserts, Call, Case, Printing
from fusion.verifiers.sandbox.child import Child, FloodError
from fusion.verifiers.sandbox.compare import same, same_output
from fusion.verifiers.sandbox.limits import MIB, Limits
from fusion.verifiers.sandbox.outcomes import (
    PASS,
    Outcome,
    ProgramError,
    Result,
    as_text,
    blame,
    by_status,
    ending,
    report_of,
    shown,
    verdict_of,
)
from fusion.verifiers.sandbox.processes import START_S, Level, LostError, Sandbox

RETRIES = 2
READ_S = 20.0
"""Longest time for finding the program in a response; the slowest take 2 s."""
TEXTS_PER_READER = 2000
"""Responses after which the process that reads them is replaced; Python's parser keeps some memory."""
MAX_RESPONSE = 4 * MIB
"""Characters of a response that are looked through for a program."""
TEST_LINE = 64 * MIB
"""Longest line of a test: the arguments of a call."""
GRACE_S = 0.5
"""How long a program that has closed its channel may take to end."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Program:
    """The program of a response, or why there is none."""

    code: str = ""
    functions: tuple[str, ...] = ()
    """Names of its top-level functions."""
    reason: str = ""
    """`no_code` or `no_entry_point`; empty where there is a program."""
    detail: str = ""


class Runner:
    """Runs programs and says what became of them. Example: `Runner(Limits()).run(program, Asserts("assert f(1) == 2"), "f")`."""

    def __init__(
        self,
        limits: Limits,
        *,
        float_tolerance: float = 1e-6,
        ceiling: Level = "L3",
        allow_weaker: Literal["L1"] | None = None,
    ) -> None:
        self._limits = limits
        self._tolerance = float_tolerance
        self._lock = threading.Lock()
        self.sandbox = Sandbox(ceiling=ceiling, allow_weaker=allow_weaker)
        self._reader: Child | None = None
        self._num_read = 0

    def start(self) -> None:
        """Start the zygote.

        Raises:
            StageError: the sandbox cannot be had here.
        """
        with self._lock:
            self.sandbox.start()

    def close(self) -> None:
        """End all processes; may be called twice."""
        with self._lock:
            self._close()

    def read(self, text: str, name: str | None) -> Program:
        """Return the program in a response; one that crashes the parser, or takes it too long, is none.

        Raises:
            LostError, StageError, OSError: the sandbox failed three times.
        """
        with self._lock:
            return self._retried(lambda: self._read(text, name))

    def run(self, program: Program, case: Case, name: str | None) -> Outcome:
        """Return what became of a program in a test.

        Args:
            program: what `read` returned.
            case: the test.
            name: entry point; needed for `Call`.
        """
        with self._lock:
            try:
                return self._retried(lambda: self._run(program, case, name))
            except (LostError, StageError, OSError) as error:  # The last: this process has no descriptors left, say.
                return Outcome(Result.infra_error, str(error))

    def probe(self, code: str, limits: Limits) -> tuple[Outcome, bytes]:
        """Run a program that reads nothing, and return how it ended and all that it printed; for the self-test.

        Raises:
            LostError, StageError, OSError: the sandbox failed three times.
        """
        with self._lock:
            return self._retried(lambda: self._probe(code, limits))

    def _retried(self, attempt: Callable[[], T]) -> T:
        for retry in range(RETRIES + 1):
            try:
                return attempt()
            except BaseException as error:
                self._close()  # Whatever it was, no process of this attempt may meet the next one.
                if retry == RETRIES or not isinstance(error, LostError | OSError):
                    raise
        raise AssertionError("unreachable")

    def _close(self) -> None:
        self._reader = None
        self.sandbox.close()

    # ---- the three kinds of runs ------------------------------------------------------------------

    def _run(self, program: Program, case: Case, name: str | None) -> Outcome:
        match case:
            case Asserts(text):
                outcome = self._run_asserts(program, text, name)
            case Call():
                outcome = self._run_call(program, case, name)
            case Printing():
                outcome = self._run_printing(program, case)
        self.sandbox.keep_spares(self._limits, 2 if isinstance(case, Asserts) else 1)
        return outcome

    def _run_printing(self, program: Program, case: Printing) -> Outcome:
        """Run the program as a script and compare what it prints."""
        child = self.sandbox.child(self._limits)
        outcome = self._run_program(child, program.code, case.stdin)
        printed = as_text(child.printed["stdout"])
        if outcome.result is not Result.passed or same_output(case.stdout, printed, self._tolerance):
            return outcome
        return Outcome(Result.wrong_answer, f"printed {shown(printed)}, expected {shown(case.stdout)}")

    def _probe(self, code: str, limits: Limits) -> tuple[Outcome, bytes]:
        child = self.sandbox.child(limits)
        outcome = self._run_program(child, code, "")
        return outcome, bytes(child.printed["stdout"] + child.printed["stderr"])

    def _run_program(self, child: Child, code: str, stdin: str) -> Outcome:
        """Run a script to its end; `pass` means exit code 0."""
        child.begin("program", {"code": code}, stdin=_bytes(stdin), keep=child.limits.output_bytes)
        outcome = self._to_the_end(child)
        if outcome is not None:
            return outcome
        report = self._only_line(child)
        if isinstance(report, Outcome):
            return report
        if "error" in report:
            return blame(report)
        return PASS if child.status == 0 else Outcome(Result.runtime_error, ending(child))

    def _run_call(self, program: Program, case: Call, name: str | None) -> Outcome:
        """Call the entry point once and compare what it returns."""
        assert name is not None, "a call needs an entry point"
        encoder = values.Encoder(plain=True)
        try:
            args, kwargs = encoder.encode(tuple(case.args)), encoder.encode(case.kwargs)
            expected = encoder.encode(case.expected)
        except values.UncarriedError as error:
            return Outcome(Result.unverifiable, f"the test has a value that cannot be carried: {error}")
        job = {"code": program.code, "name": name, "args": args, "kwargs": kwargs}
        child = self.sandbox.child(self._limits)
        child.begin("call", job)
        outcome = self._to_the_end(child)
        report = outcome or self._only_line(child)
        if isinstance(report, Outcome):
            return report
        if "error" in report:
            return blame(report)
        if "uncarried" in report:
            return Outcome(Result.unverifiable, f"{name} returned no plain value: {report['uncarried']}")
        if child.status != 0 or "value" not in report:
            return Outcome(Result.protocol_error, f"an answer of another kind; {ending(child)}")
        try:
            if same(expected, report["value"], self._tolerance):
                return PASS
        except values.MalformedError as error:
            return Outcome(Result.protocol_error, str(error))
        told, wanted = values.written(report["value"]), values.written(expected)
        return Outcome(Result.wrong_answer, f"{name} returned {told}, expected {wanted}")

    def _run_asserts(self, program: Program, text: str, name: str | None) -> Outcome:
        """Run a test in one process and the program in another, and carry calls between the two."""
        solution, test = self.sandbox.child(self._limits), self.sandbox.child(self._limits)
        solution.begin("serve", {"code": program.code})
        test.begin("test", {"text": text, "name": name, "functions": program.functions}, max_line=TEST_LINE)
        try:
            self._await_ready(solution)
            self._await_ready(test)
            return self._relay(solution, test, time.monotonic() + self._limits.timeout_s)
        except ProgramError as error:
            return error.outcome
        except FloodError as error:
            if error.child is test:
                return Outcome(Result.unverifiable, f"the test: {error}")
            return Outcome(Result.output_limit, str(error))
        finally:
            self.sandbox.end(solution, test)

    def _relay(self, solution: Child, test: Child, deadline: float) -> Outcome:
        loaded = self._answer(solution, deadline)
        report = report_of(loaded)
        if "error" in report:
            return blame(report)
        while True:
            # A test that gets no further, in `sum(f(1))` of a `range(10**18)` for one, says nothing: whose fault it is
            # cannot be told from here. Such a program gets no reward for it.
            line = self._next_line(test, deadline)
            if line is None:
                return Outcome(Result.unverifiable, self._no_verdict(test, deadline))
            if line.startswith(asserts.VERDICT):
                return verdict_of(line[1:])
            if solution.lines:
                return Outcome(Result.protocol_error, "the program sent a line that nobody had asked for")
            # What a call did to its arguments comes back with its value, so it may be longer by what was sent.
            solution.allow(self._limits.value_bytes + 2 * len(line))
            solution.send(line[1:])
            test.send(self._answer(solution, deadline))

    def _no_verdict(self, test: Child, deadline: float) -> str:
        """Return why a test has said nothing, for people."""
        if time.monotonic() >= deadline:
            return f"the test does not end within {self._limits.timeout_s:g} s"
        self.sandbox.pump(time.monotonic() + GRACE_S, lambda: test.status is not None)
        return f"the test ends without a verdict: {ending(test)}"

    # ---- one child ----------------------------------------------------------------------------------

    def _to_the_end(self, child: Child) -> Outcome | None:
        """Wait for the end of a process; None when it ended by itself within all limits."""
        timeout_s = child.limits.timeout_s
        try:
            self._await_ready(child)
            if not self.sandbox.pump(time.monotonic() + timeout_s, lambda: child.status is not None):
                return Outcome(Result.timeout, f"no end within {timeout_s:g} s")
            # It has ended, and had no children: what is left in the pipes ends too.
            if not self.sandbox.pump(time.monotonic() + GRACE_S, lambda: child.drained):
                raise LostError("the pipes of a program that has ended stay open")
        except FloodError as error:
            return Outcome(Result.output_limit, str(error))
        finally:
            self.sandbox.end(child)
        return by_status(child)

    def _await_ready(self, child: Child) -> None:
        """Wait until a child is restricted; until then it has run nothing but our code, so a failure is ours."""
        line = self._next_line(child, time.monotonic() + START_S)
        if line is None or report_of(line).get("ready") is not True:
            raise LostError(f"a child was not ready: {child.failed or line or ending(child)}")

    def _only_line(self, child: Child) -> dict[str, Any] | Outcome:
        """Return what a child that has ended had to say: nothing, or one line."""
        if len(child.lines) > 1 or child.has_partial_line:
            return Outcome(Result.protocol_error, "the program sent lines of its own")
        if not child.lines:
            return {"exit": 0} if child.status == 0 else Outcome(Result.runtime_error, ending(child))
        try:
            return report_of(child.lines[0])
        except ProgramError as error:
            return error.outcome

    def _answer(self, solution: Child, deadline: float) -> bytes:
        """Return the next line of a program that has been asked."""
        line = self._next_line(solution, deadline)
        if line is not None:
            return line
        if time.monotonic() >= deadline:
            raise ProgramError(Outcome(Result.timeout, f"no answer within {self._limits.timeout_s:g} s"))
        # Its channel is closed: because it is ending, or by its own hand.
        self.sandbox.pump(time.monotonic() + GRACE_S, lambda: solution.status is not None)
        ended = solution.status is not None
        said = ending(solution) if ended else "the program closed its channel"
        outcome = by_status(solution) if ended else None
        raise ProgramError(outcome or Outcome(Result.runtime_error if ended else Result.protocol_error, said))

    def _next_line(self, child: Child, deadline: float) -> bytes | None:
        """Return the next line, or None when there is none until the deadline or ever."""
        self.sandbox.pump(deadline, lambda: bool(child.lines) or child.silent or child.failed is not None)
        return child.lines.popleft() if child.lines else None

    def _read(self, text: str, name: str | None) -> Program:
        if len(text) > MAX_RESPONSE:
            return Program(
                reason="no_code", detail=f"{len(text)} characters; at most {MAX_RESPONSE} are looked through"
            )
        if self._num_read >= TEXTS_PER_READER and self._reader is not None:
            self._end_reader()
        if self._reader is None:
            self._reader = self.sandbox.reader(Limits(memory_mb=1024))
            self._reader.begin("read", {}, max_line=TEST_LINE)
            self._num_read = 0
            self._await_ready(self._reader)
        self._num_read += 1
        self._reader.send(values.dumps({"text": text, "name": name}))
        try:
            line = self._next_line(self._reader, time.monotonic() + READ_S)
        except FloodError:
            line = None
        if line is None:
            return Program(reason="no_code", detail=f"Python's parser does not stand it: {self._end_reader()}")
        report = values.loads(line)
        if "failed" in report:
            raise LostError(f"a response was not read: {report['failed']}")
        if "reason" in report:
            return Program(reason=report["reason"], detail=report["detail"])
        return Program(report["code"], tuple(report["functions"]))

    def _end_reader(self) -> str:
        """End the process that reads responses and return how it ended, or that it had to be ended.

        Raises:
            LostError: somebody else killed it.
        """
        reader, self._reader = self._reader, None
        assert reader is not None
        ended = reader.silent and self.sandbox.pump(time.monotonic() + GRACE_S, lambda: reader.status is not None)
        how = ending(reader)
        self.sandbox.end(reader)
        if ended:
            by_status(reader)
        return how


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
