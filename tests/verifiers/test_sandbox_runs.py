"""How runs end: what is said of a program when it is over, and what it can count on until then."""

from collections.abc import Iterator

import pytest

from fusion.verifiers.sandbox.cases import Asserts, Call, Case, Printing
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.outcomes import Result
from fusion.verifiers.sandbox.runs import Program, Runner

ASSERTS, CALL, PRINTING = Asserts("assert f(21) == 42"), Call([21], {}, 42), Printing("21\n", "42\n")
CASES = [ASSERTS, CALL, PRINTING]
NAMES = ["asserts", "call", "printing"]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner(Limits(timeout_s=10.0))
    runner.start()
    yield runner
    runner.close()


@pytest.mark.parametrize("number", [*range(1, 9), *range(32, 65)])
def test_any_signal_that_a_program_sends_itself_is_its_own_end(runner: Runner, number: int) -> None:
    """Those too that Python has no name for."""
    program = Program(f"import os\ndef f(x): os.kill(os.getpid(), {number})\nf(1)", ("f",))
    outcome = runner.run(program, PRINTING, None)
    assert outcome.result is Result.runtime_error
    assert outcome.detail


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_signals_without_a_name_have_a_number(runner: Runner, case: Case) -> None:
    at_once = "f(1)" if case is PRINTING else ""
    outcome = runner.run(Program(f"import os\ndef f(x): os.kill(os.getpid(), 40)\n{at_once}", ("f",)), case, "f")
    assert (outcome.result, outcome.detail) == (Result.runtime_error, "ended by signal 40")
