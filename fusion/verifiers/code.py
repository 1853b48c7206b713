"""The code verifier: does the program in a response pass the tests of its prompt?

The program is found and checked in `sandbox/source.py`, run in `sandbox/runs.py`, and judged out here, where it has no
say. The tests of a prompt are asserts, stdin and stdout, or calls (`sandbox/cases.py` lists them). Every test must pass; one that
fails is enough to be wrong, and after one that took all its time no other is run. Where the run says nothing of the
program, the verdict is `error`, never `wrong`.
"""

import dataclasses
import re
import time
from typing import Literal

from pydantic import Field

from fusion.config import Config
from fusion.errors import StageError
from fusion.rows import Prompt, Verdict
from fusion.verifiers.common import Judgement
from fusion.verifiers.sandbox import selftest
from fusion.verifiers.sandbox.cases import Call, read_case
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.outcomes import Result, one_line
from fusion.verifiers.sandbox.processes import Level, LostError
from fusion.verifiers.sandbox.runs import Runner

_DEF = re.compile(r"\bdef\s+(\w+)")
_SAYS_NOTHING = (Result.unverifiable, Result.infra_error)


class CodeVerifier(Config):
    """Runs programs in the sandbox. Example: `{type: code, timeout_s: 5}`."""

    type: Literal["code"] = "code"
    timeout_s: float = Field(default=5.0, gt=0, le=600)
    """Wall clock seconds for one test, from when the program can start."""
    memory_mb: int = Field(default=768, ge=256, le=65536)
    """Address space of a program in MiB, of which the interpreter takes about 100."""
    output_kb: int = Field(default=1024, ge=64, le=65536)
    """Most that a program may print in a test, in KiB; more ends it."""
    value_kb: int = Field(default=1024, ge=64, le=65536)
    """Most that a function may return in a test, in KiB of text."""
    float_tolerance: float = Field(default=1e-6, ge=0, lt=1)
    """How far a float may be from the expected one, absolute or relative, where the judge compares; asserts compare
    themselves."""
    allow_weaker: Literal["L1"] | None = None
    """Name of a level below L2 that is allowed where L2 cannot be had. L1 is without Landlock: programs can read every
    file that an ordinary user can."""

    version: Literal[3] = 3
    """Of the rules by which programs are read and judged: scores by other rules are not taken for those of these."""

    @property
    def label(self) -> str:
        """Name that verdicts carry."""
        return "code"

    def load(self) -> "CodeJudge":
        """Start the sandbox and attack it.

        Raises:
            StageError: this machine does not offer the sandbox, or it does not hold.
        """
        return CodeJudge(self)


class CodeJudge:
    """A loaded verifier: owns the processes of one sandbox, ended by `close`. May be asked from any thread.

    Reasons of `wrong`: `no_entry_point`, `wrong_answer`, `runtime_error`, `timeout`, `memory`, `output_limit`,
    `sandbox_denied`, `protocol_error`. Of `unparsable`: `no_code`. Of `error`: `no_tests`, `unverifiable`, `infra_error`.
    """

    def __init__(self, config: CodeVerifier) -> None:
        self._timeout_s = config.timeout_s
        limits = Limits(
            timeout_s=config.timeout_s,
            memory_mb=config.memory_mb,
            output_kb=config.output_kb,
            value_kb=config.value_kb,
        )
        self._runner = Runner(limits, float_tolerance=config.float_tolerance, allow_weaker=config.allow_weaker)
        try:
            self._runner.start()
            selftest.check(self._runner)
        except BaseException:
            self._runner.close()
            raise

    @property
    def level(self) -> Level:
        """How strong the sandbox is here: `L3`, `L2`, or `L1` where that was allowed."""
        assert self._runner.sandbox.level is not None
        return self._runner.sandbox.level

    def judge(self, prompt: Prompt, text: str) -> Judgement:
        """Return what it says of the text of a response; never raises for anything in `text`."""
        if not prompt.tests:
            return Judgement(Verdict.error, "no_tests", "the prompt has no tests")
        try:
            cases = [read_case(test) for test in prompt.tests]
        except ValueError as error:
            return Judgement(Verdict.error, "unverifiable", one_line(str(error)))
        name = prompt.entry_point
        if name is None and any(isinstance(case, Call) for case in cases):
            return Judgement(
                Verdict.error, "unverifiable", "the prompt has a test with `args` and no entry_point to call"
            )
        try:
            program = self._runner.read(text, name)
        except (LostError, StageError, OSError) as error:
            return Judgement(Verdict.error, "infra_error", one_line(str(error)))
        if program.reason:
            verdict = Verdict.unparsable if program.reason == "no_code" else Verdict.wrong
            return Judgement(verdict, program.reason, one_line(program.detail))
        program = dataclasses.replace(program, functions=_helpers(program.functions, prompt))
        unknown = None
        for number, case in enumerate(cases, start=1):
            begun = time.monotonic()
            outcome = self._runner.run(program, case, name)
            detail = one_line(f"test {number}: {outcome.detail}")
            judgement = Judgement(_verdict(outcome.result), str(outcome.result), detail)
            if judgement.verdict is Verdict.wrong:
                return judgement
            if judgement.verdict is Verdict.error:
                unknown = unknown or judgement
                if time.monotonic() - begun >= self._timeout_s:
                    break  # The other tests would take as long, one after the other.
        return unknown or Judgement(Verdict.correct)

    def close(self) -> None:
        """End its processes; may be called twice."""
        self._runner.close()


def _helpers(functions: tuple[str, ...], prompt: Prompt) -> tuple[str, ...]:
    """Return the functions of a program that tests may use: those that the prompt writes.

    A program that brings a comparator of its own (`isclose`, where a test has forgotten to import it) would be given the
    expected values, and have the last word. Without an entry point it is the same: which of two names is the function and
    which the comparator cannot be told from the tests.
    """
    asked = set(_DEF.findall("\n".join(message.content for message in prompt.messages)))
    return tuple(name for name in functions if name in asked)


def _verdict(result: Result) -> Verdict:
    if result is Result.passed:
        return Verdict.correct
    return Verdict.error if result in _SAYS_NOTHING else Verdict.wrong
