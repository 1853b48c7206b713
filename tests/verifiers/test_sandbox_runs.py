"""How runs end: what is said of a program when it is over, and what it can count on until then."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion.verifiers.sandbox import kernel
from fusion.verifiers.sandbox.cases import Asserts, Call, Case, Printing
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.outcomes import PASS, Result
from fusion.verifiers.sandbox.runs import Program, Runner
from fusion.verifiers.sandbox.values import written

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


IGNORING = """
import ctypes, signal, sys
for number in (1, 2, 3, 10, 40):
    signal.signal(number, signal.SIG_IGN)
# What Python does not let us set: 1 is SIG_IGN, the first field of the kernel's struct sigaction.
ignored = (ctypes.c_ulong * 4)(1)
number_of_call = {"x86_64": 13, "aarch64": 134}[sys.argv[1]]
assert ctypes.CDLL(None).syscall(number_of_call, 32, ignored, None, 8) == 0
signal.pthread_sigmask(signal.SIG_BLOCK, (15, 41))
from fusion.verifiers.sandbox.cases import Printing
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.runs import Program, Runner
runner = Runner(Limits(timeout_s=10.0))
for number in (1, 2, 3, 10, 15, 32, 40, 41):
    outcome = runner.run(Program(f"import os\\nos.kill(os.getpid(), {number})", ()), Printing("", ""), None)
    print(number, outcome.result.value)
runner.close()
"""


def test_what_the_owner_ignores_or_blocks_is_not_handed_down() -> None:
    """`nohup` ignores SIGHUP, and a shell SIGINT and SIGQUIT in what it starts in the background."""
    command = [sys.executable, "-c", IGNORING, kernel.machine()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    ends = dict(line.split() for line in done.stdout.splitlines())
    assert ends == dict.fromkeys(["1", "2", "3", "10", "15", "32", "40", "41"], "runtime_error"), done.stderr


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_signals_without_a_name_have_a_number(runner: Runner, case: Case) -> None:
    at_once = "f(1)" if case is PRINTING else ""
    outcome = runner.run(Program(f"import os\ndef f(x): os.kill(os.getpid(), 40)\n{at_once}", ("f",)), case, "f")
    assert (outcome.result, outcome.detail) == (Result.runtime_error, "ended by signal 40")


GROUP = "def f(x): raise ExceptionGroup('two', [ValueError(x), ExceptionGroup('one', [KeyError('k')])])"


@pytest.mark.parametrize(
    "test",
    [
        "try:\n    f(1)\n    assert False\nexcept* ValueError as g:\n    assert g.exceptions[0].args == (1,)\nexcept* KeyError: pass",
        "try:\n    f(1)\n    assert False\nexcept ExceptionGroup as g:\n    assert g.message == 'two' and g.exceptions[1].exceptions[0].args == ('k',)",
        "r = None\ntry: r = f(1)\nexcept Exception: pass\nassert r is None",
    ],
)
def test_groups_of_exceptions_are_carried(runner: Runner, test: str) -> None:
    assert runner.run(Program(GROUP, ("f",)), Asserts(test), "f") == PASS
    odd = "class Odd(ExceptionGroup): pass\n" + GROUP.replace("ExceptionGroup(", "Odd(")
    assert runner.run(Program(odd, ("f",)), Asserts(test), "f") == PASS
    assert runner.run(Program("def f(x): return x", ("f",)), Asserts(test), "f").result is Result.wrong_answer


def test_a_group_that_a_test_does_not_expect_is_the_programs(runner: Runner) -> None:
    outcome = runner.run(Program(GROUP, ("f",)), Asserts("try: f(1)\nexcept ValueError: pass"), "f")
    assert outcome.result is Result.runtime_error
    assert "two (2 sub-exceptions)" in outcome.detail


@pytest.mark.parametrize("error", ["StopIteration", "StopAsyncIteration", "GeneratorExit"])
@pytest.mark.parametrize(
    "test",
    [
        "try:\n    f(1)\n    assert False\nexcept {}: pass",
        "try:\n    f(1)\n    assert False\nexcept BaseException as e:\n    assert type(e).__name__ == '{}'",
        "import unittest\nwith unittest.TestCase().assertRaises({}): f(1)",
        "import unittest\nunittest.TestCase().assertRaises({}, f, 1)",
    ],
)
def test_a_test_that_expects_the_end_of_a_loop_says_nothing(runner: Runner, error: str, test: str) -> None:
    """Raised in the test it could end a loop there as if all had been looked at, so it is not."""
    program = Program(f"def f(x): raise {error}", ("f",))
    assert runner.run(program, Asserts(test.format(error)), "f").result is Result.unverifiable
    without = Asserts("assert all(f(x) for x in (1, 2))")
    assert runner.run(program, without, "f").result is Result.runtime_error


MATCH = "import re\ndef f(x): return re.search('a(b)', x)"


@pytest.mark.parametrize(
    ("test", "result"),
    [
        ("assert f('ab')", Result.passed),
        ("assert f('ab') is not None and f('b') is None and not f('b')", Result.passed),
        ("assert bool(f('ab')) == True and [bool(f(x)) for x in ('ab', 'b')] == [True, False]", Result.passed),
        ("import unittest\nunittest.TestCase().assertTrue(f('ab'))", Result.passed),
        ("m = f('ab')\nassert m == m and m != 1 and m != f('b') and m not in ('ab', None, [m][1:])", Result.passed),
        ("from unittest.mock import ANY\nassert f('ab') == ANY", Result.passed),
        ("assert str(f('cab')) == \"<re.Match object; span=(1, 3), match='ab'>\"", Result.passed),
        ("assert f('b')", Result.wrong_answer),
        ("assert not f('ab')", Result.wrong_answer),
        ("assert f('ab') == True", Result.wrong_answer),
        ("assert f('ab') is True, f'got {f(\"ab\")}'", Result.wrong_answer),
        ("assert f('ab') == 'ab'", Result.wrong_answer),
        ("assert f('ab') + 1", Result.wrong_answer),
        ("assert f('ab') == f('ab')", Result.unverifiable),
        ("assert f('ab').group() == 'ab'", Result.unverifiable),
        ("assert f('ab')[1] == 'b'", Result.unverifiable),
        ("import re\nassert isinstance(f('ab'), re.Match)", Result.unverifiable),
        ("import re\nassert type(f('ab')) is re.Match", Result.unverifiable),
        ("assert f('ab').__class__", Result.unverifiable),
        ("assert {f('ab'): 1}", Result.unverifiable),
        ("import copy\nassert copy.deepcopy([f('ab')])", Result.unverifiable),
        ("import pickle\nassert pickle.dumps(f('ab'))", Result.unverifiable),
        ("match f('ab'):\n    case str(): pass\n    case _: assert False", Result.unverifiable),
        ("try: f('ab').group()\nexcept BaseException: pass", Result.unverifiable),
        ("try: m = hasattr(f('ab'), 'span')\nfinally: f('b')", Result.unverifiable),
        ("assert f(f('ab'))", Result.unverifiable),
        ("m = f('ab')\nm.text = 1", Result.unverifiable),
    ],
)  # fmt: skip
def test_of_a_match_a_test_sees_that_there_is_one(runner: Runner, test: str, result: Result) -> None:
    """What it sees is as in plain Python; where more is asked, nothing is said, so no right answer is called wrong."""
    outcome = runner.run(Program(MATCH, ("f",)), Asserts(test), "f")
    assert outcome.result is result, outcome
    if result is not Result.unverifiable:
        scope: dict = {}
        exec(MATCH, scope)
        with contextlib.nullcontext() if result is Result.passed else pytest.raises((AssertionError, TypeError)):
            exec(test, scope)


def test_matches_within_values_and_arguments(runner: Runner) -> None:
    program = Program("import re\ndef f(x, into): into.append(re.match('a', x)); return {x: [into[0]]}", ("f",))
    test = "into = []\nmade = f('a', into)\nassert len(into) == 1 and into[0] and made['a'][0]\nassert made.keys() == {'a'}"
    assert runner.run(program, Asserts(test), "f").result is Result.passed
    said = runner.run(Program(MATCH, ("f",)), Call(["ab"], {}, True), "f")
    assert (said.result, said.detail) == (Result.unverifiable, "f returned no plain value: Match")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(x): return (x, 42)", "f returned (21, 42), expected [21, 42]"),
        ("def f(x): return {'a': {x}, 2: ()}", "f returned {'a': {21}, 2: ()}, expected [21, 42]"),
        ("def f(x): return [(x,), set(), 1e400, 2**70, b'a', None, True]", "f returned [(21,), set(), inf, 0x400000000000000000, bytes.fromhex('61'), None, True], expected [21, 42]"),
        ("def f(x): return __import__('collections').Counter('a')", "f returned Counter({'a': 1}), expected [21, 42]"),
        ("def f(x): return __import__('collections').deque('a')", "f returned deque(['a']), expected [21, 42]"),
        ("def f(x): return frozenset('a')", "f returned frozenset({'a'}), expected [21, 42]"),
        ("def f(x): return __import__('decimal').Decimal('1.10')", "f returned Decimal('1.10'), expected [21, 42]"),
        ("def f(x): return range(3)", "f returned range(0x0, 0x3, 0x1), expected [21, 42]"),
    ],
)  # fmt: skip
def test_values_are_shown_as_python_writes_them(runner: Runner, code: str, said: str) -> None:
    assert runner.run(Program(code, ("f",)), Call([21], {}, [21, 42]), "f").detail == said


def test_values_of_any_size_are_shown_by_their_beginning(runner: Runner) -> None:
    for value in ("[[x] * 9] * 9999", "'x' * 99999", "{n: 'y' * 99 for n in range(999)}"):
        detail = runner.run(Program(f"def f(x): return {value}", ("f",)), Call([21], {}, [21, 42]), "f").detail
        assert detail.endswith("…, expected [21, 42]")
        assert len(detail) < 200


@pytest.mark.parametrize(
    "tree", [["tuple", 3], ["list"], ["dict", None, [1]], ["x", {}], [], [[["list", None, 1]]], {"a": 1}]
)
def test_trees_that_are_none_are_shown_too(tree: object) -> None:
    assert written(tree)


def test_a_deep_tree_is_shown() -> None:
    tree: list = []
    for _ in range(900):
        tree = ["list", None, [tree]]
    assert "…" in written(tree)


def test_a_test_that_does_not_end_names_its_deadline() -> None:
    runner = Runner(Limits(timeout_s=0.4))
    endless = runner.run(Program("def f(x): return x", ("f",)), Asserts("f(1)\nwhile True: pass"), "f")
    left = runner.run(Program("def f(x): return x", ("f",)), Asserts("f(1)\nimport os\nos._exit(3)"), "f")
    runner.close()
    assert (endless.result, endless.detail) == (Result.unverifiable, "the test does not end within 0.4 s")
    assert (left.result, left.detail) == (Result.unverifiable, "the test ends without a verdict: exit code 3")


def test_a_signal_of_its_own_is_not_called_a_system_call(runner: Runner) -> None:
    outcome = runner.run(Program("import os\nos.kill(os.getpid(), 31)", ()), PRINTING, None)
    assert outcome.result is Result.sandbox_denied
    assert outcome.detail == "ended by SIGSYS: by a system call of another architecture, or by its own hand"
