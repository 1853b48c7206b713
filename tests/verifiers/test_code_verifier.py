"""The code verifier: by which tests a program is judged, what each ending means, and what says nothing of it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_mutants import mutate
from code_prompts import F, prompt
from pydantic import ValidationError

from fusion.errors import StageError
from fusion.rows import Verdict
from fusion.verifiers import Judge
from fusion.verifiers.code import CodeJudge, CodeVerifier
from fusion.verifiers.sandbox.cases import Asserts, Call, Printing, read_case
from fusion.verifiers.sandbox.compare import same, same_output
from fusion.verifiers.sandbox.values import Encoder, MalformedError

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "code.jsonl"
SAMPLE = 10
"""Every tenth of the real prompts here; all of them in tests/benchmarks/sandbox.py."""


def calls(expected: object, *args: object, **kwargs: object) -> str:
    return json.dumps({"args": args, "kwargs": kwargs, "expected": expected})


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    judge = CodeVerifier(timeout_s=2.0, memory_mb=512, output_kb=64, value_kb=64).load()
    yield judge
    judge.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[CodeJudge]:
    """For what never ends."""
    judge = CodeVerifier(timeout_s=0.3).load()
    yield judge
    judge.close()


def test_it_is_a_judge(judge: CodeJudge) -> None:
    loaded: Judge = judge
    assert loaded.judge(prompt("assert f(1) == 2"), "def f(x): return x + 1").verdict is Verdict.correct
    assert judge.level in ("L3", "L2")
    assert CodeVerifier().label == "code"


# ---- what each ending means ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(x): return x + 2", "wrong_answer"),
        ("def f(x): return None", "wrong_answer"),
        ("def f(x): return [][1]", "runtime_error"),
        ("raise ValueError('at once')", "no_entry_point"),
        ("def f(x): return 1\nraise ValueError('when loaded')", "runtime_error"),
        ("def f(x):\n    while True: pass", "timeout"),
        ("def f(x): return 1\nwhile True: pass", "timeout"),
        ("def f(x): return bytearray(1 << 30)", "memory"),
        ("def f(x): return 'x' * (1 << 20)", "output_limit"),
        ("def f(x):\n    while True: print('x' * 1000)", "output_limit"),
        ("def f(x):\n    import subprocess\n    return subprocess.run(['id'])", "sandbox_denied"),
        ("def f(x):\n    import socket\n    return socket.socket()", "sandbox_denied"),
        ("def f(x):\n    import os\n    os.write(4, b'x\\n')\n    return 2", "protocol_error"),
        ("def f(x):\n    import os\n    os.close(4)\n    while True: pass", "protocol_error"),
        ("def f(x):\n    import os\n    os.kill(os.getpid(), 11)", "runtime_error"),
        ("import numpy\ndef f(x): return 2", "runtime_error"),
        ("def f(x): raise ValueError('two\\nlines')", "runtime_error"),
    ],
)
@pytest.mark.parametrize("kind", ["asserts", "call"])
def test_reasons_of_wrong(judge: CodeJudge, hasty: CodeJudge, code: str, reason: str, kind: str) -> None:
    if kind == "call" and "os.close(4)" in code:
        reason = "timeout"  # Who closes the channel and goes on is waited for; in asserts nobody can answer any more.
    asked = hasty if reason == "timeout" else judge
    said = asked.judge(prompt("assert f(1) == 2" if kind == "asserts" else calls(2, 1)), code)
    assert (said.verdict, said.reason) == (Verdict.wrong, reason), said.detail
    assert said.detail
    assert "\n" not in said.detail


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print(input())", ""),
        ("print(input(), 'more')", "wrong_answer"),
        ("print(int(input()))\nraise SystemExit(1)", "runtime_error"),
        ("print(input())\nraise SystemExit", ""),
        ("print(open('/etc/passwd').read())", "denied"),
        ("while True: print('x' * 1000)", "output_limit"),
        ("print(input())\nimport time\nwhile True: time.sleep(1)", "timeout"),
        ("x = 'x' * (1 << 30)", "memory"),
        ("import sys\nprint(input())\nprint('note', file=sys.stderr)", ""),
    ],
)
def test_reasons_of_programs_that_print(judge: CodeJudge, hasty: CodeJudge, code: str, reason: str) -> None:
    said = (hasty if reason == "timeout" else judge).judge(
        prompt('{"input": "7\\n", "output": "7\\n"}', name=None), code
    )
    if reason == "denied":  # With namespaces there is no such file, without it may not be opened.
        assert said.reason == ("runtime_error" if judge.level == "L3" else "sandbox_denied")
        return
    assert (said.verdict, said.reason) == (Verdict.wrong if reason else Verdict.correct, reason), said.detail


@pytest.mark.parametrize(
    ("test", "code"),
    [
        ("assert list(f(3)) == [0, 1, 2]", "def f(x): yield from range(x)"),
        ("assert f(3)", "class A: pass\ndef f(x): return A()"),
        ("assert f(3) == 3", "class A(int): pass\ndef f(x): return A(x)"),
        ("assert f(lambda: 3) == 3", "def f(x): return x()"),
        ("assert f(3) == [1]", "def f(x): return [f]"),
        ("assert 1 == 1", "def f(x): return x"),
        ("assert f(3) == nothing_like_it", "def f(x): return x"),
        ("assert f(3) ==", "def f(x): return x"),
        ("import no_such_module\nassert f(3) == 3", "def f(x): return x"),
        ("f(3)\nwhile True: pass", "def f(x): return x"),
        ("f(3)\nimport sys\nsys.exit(0)", "def f(x): return x"),
        ("try:\n    list(f(3))\nexcept BaseException:\n    pass", "def f(x): yield x"),
        ("import os\nos.write(4, b'Vnonsense\\n')\nf(3)", "def f(x): return x"),
        ('import os\nos.write(4, b\'V{"result":"best"}\\n\')\nf(3)', "def f(x): return x"),
        ('{"args": [1], "output": "1"}', "def f(x): return x"),
        ('{"input": 3, "output": "1"}', "def f(x): return x"),
        (calls(3, 3), "def f(x): return iter([x])"),
    ],
)
def test_what_says_nothing_of_the_program(judge: CodeJudge, hasty: CodeJudge, test: str, code: str) -> None:
    """It is an error and never a pass, whatever the test does with exceptions."""
    said = (hasty if "while True" in test else judge).judge(prompt(test), code)
    assert (said.verdict, said.reason) == (Verdict.error, "unverifiable"), said
    assert said.detail


@pytest.mark.parametrize("test", ["assert f(1) == 2", calls(2, 1), '{"input": "1", "output": "2"}'])
@pytest.mark.parametrize(
    "code",
    [
        "import os\ndef f(x):\n    os.write(4, b'{\"uncarried\": \"\\\\ud800' + b'x' * 60000 + b'\"}\\n')\n    os._exit(0)",
        "class E(Exception): pass\nE.__name__ = 'E\\x1b[2J' * 5000\ndef f(x): raise E('\\ud800\\x07')\nf(1)",
        "def f(x): return 'x\\ud800\\x00' * 3000\nprint(f(1).encode('utf-8', 'surrogatepass').decode('latin-1'))",
        "import os\ndef f(x):\n    os.write(2, b'\\x1b[2J\\xed\\xa0\\x80' * 2000)\n    os._exit(3)\nf(1)",
    ],
)
def test_details_are_short_and_printable(judge: CodeJudge, code: str, test: str) -> None:
    """Whatever a program writes, names and returns."""
    detail = judge.judge(prompt(test), code).detail
    assert detail.isprintable()
    assert 1 < len(detail) <= 501


def test_prompts_that_cannot_be_judged(judge: CodeJudge) -> None:
    assert judge.judge(prompt(), "def f(): pass").reason == "no_tests"
    assert judge.judge(prompt(calls(1, 1), name=None), "def f(x): return x").reason == "unverifiable"


def test_every_test_must_pass_and_a_wrong_one_decides(judge: CodeJudge) -> None:
    code = "def f(x): return iter([]) if x == 0 else x"
    good, unknown, bad = "assert f(1) == 1", "assert f(0) == 0", "assert f(2) == 3"
    assert judge.judge(prompt(good, good), code).verdict is Verdict.correct
    assert judge.judge(prompt(good, unknown), code).verdict is Verdict.error
    said = judge.judge(prompt(unknown, good, bad), code)
    assert (said.verdict, said.reason) == (Verdict.wrong, "wrong_answer")
    assert said.detail.startswith("test 3: ")


def test_the_first_test_that_takes_all_its_time_is_the_last(hasty: CodeJudge) -> None:
    """Also where nobody can tell whose fault it is: a hundred such tests would hold the judge up for a hundred deadlines."""
    begun = time.monotonic()
    said = hasty.judge(prompt(*(f"assert sum(f({i})) == 1" for i in range(100))), "def f(x): return range(10**18)")
    assert (said.verdict, said.reason) == (Verdict.error, "unverifiable")
    assert said.detail.startswith("test 1: the test does not end")
    assert time.monotonic() - begun < 10


# ---- asserts across two processes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "test"),
    [
        (
            "def f(x): return x",
            "for x in (None, True, 1, 2**100, -1.5, 1j, 'é\\ud800', b'x', [1], (1,), {1}, frozenset({1}), {1: [2]}):\n    assert f(x) == x and type(f(x)) is type(x)",
        ),
        (
            "def f(x): return x",
            "import math\nassert math.isnan(f(math.nan)) and f(math.inf) == math.inf and str(f(-0.0)) == '-0.0'",
        ),
        (
            "def f(x): return x",
            "from collections import *\nfor x in (deque([1]), Counter('aab'), OrderedDict(a=1)):\n    assert f(x) == x and type(f(x)) is type(x)",
        ),
        (
            "def f(x): return x",
            "from decimal import Decimal\nfrom fractions import Fraction\nimport datetime\nfor x in (Decimal('1.10'), Fraction(1, 3), datetime.date(2024, 1, 1), datetime.timedelta(1), range(3)):\n    assert f(x) == x",
        ),
        ("def f(x): x.sort()", "x = [3, 1]\ny = x\nassert f(x) is None and y == [1, 3]"),
        (
            "def f(m):\n    for r in m: r.reverse()\n    m.append(m[0])\n    return m",
            "m = [[1, 2], [3]]\nassert f(m) is m and m == [[2, 1], [3], [2, 1]] and m[2] is m[0]",
        ),
        ("def f(d): d['a'].add(2); d['b'] = d", "d = {'a': {1}}\nf(d)\nassert d['a'] == {1, 2} and d['b'] is d"),
        (
            "def f(x):\n    if x < 0: raise ValueError('negative', x)\n    return x",
            "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert e.args == ('negative', -1)",
        ),
        (
            "class Odd(KeyError): pass\ndef f(x): raise Odd(x)",
            "try:\n    f(1)\nexcept LookupError as e:\n    assert type(e).__name__ == 'Odd'\nelse: assert False",
        ),
        (
            "def f(x): return int(x)",
            "import unittest\nc = unittest.TestCase()\nc.assertEqual(f('3'), 3)\nwith c.assertRaises(ValueError): f('x')",
        ),
        ("def f(x): return x * 2", "def check(candidate):\n    assert candidate(2) == 4"),
        ("def f(x): return x * 2", "def check(candidate):\n    assert candidate(2) == 4\ncheck(f)"),
        ("def helper(x): return x + 1\ndef f(x): return helper(x)", "assert f(1) == helper(1)"),
        ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(4.0), 2.0)"),
        ("def f(*a, k=1, **o): return (a, k, o)", "assert f(1, 2, k=3, z=4) == ((1, 2), 3, {'z': 4})"),
        ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert [f(), f(), f()] == [1, 2, 3]"),
        ("def sum(a, b): return a + b\nf = sum", "assert f(1, 2) == 3"),
        ("f = lambda x: x + 1", "assert f(1) == 2"),
        ("class f:\n    def __new__(cls, x): return x + 1", "assert f(1) == 2"),
        ("import asyncio\ndef f(x):\n    async def g(): return x\n    return asyncio.run(g())", "assert f(3) == 3"),
        ("import sys\nsys.setrecursionlimit(5000)\ndef f(n): return n and 1 + f(n - 1)", "assert f(2000) == 2000"),
    ],
)
def test_asserts_that_hold(judge: CodeJudge, code: str, test: str) -> None:
    said = judge.judge(prompt(test), code)
    assert said.verdict is Verdict.correct, said


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
        ("def f(x): raise GeneratorExit", "assert all(f(x) for x in [1, 2])"),
        ("def f(x): return [1, 2]", "assert f(0) == (1, 2)"),
        ("def f(x): raise KeyError(1)", "try: f(1)\nexcept ValueError: pass"),
        ("def f(x): return x", "assert f(1) is None"),
        ("def f(x): return sorted(x)", "x = [3, 1]\nf(x)\nassert x == [1, 3]"),
        ("def all(x): return True\ndef f(x): return x", "assert all([f(0), False])"),
        ("from unittest.mock import MagicMock as math\ndef f(x): return x", "assert math.isclose(f(1), 2)"),
        ("import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return x", "assert abs(f(1) - 5) < 1e-6"),
    ],
)
def test_asserts_that_do_not(judge: CodeJudge, code: str, test: str) -> None:
    """Whatever a program defines or patches has no part in what the test means."""
    assert judge.judge(prompt(test), code).verdict is Verdict.wrong


def test_function_under_test_may_have_the_name_of_a_builtin(judge: CodeJudge) -> None:
    assert (
        judge.judge(prompt("assert sum(10, 15) == 25", name="sum"), "def sum(a, b): return a + b").verdict
        is Verdict.correct
    )


# ---- comparison outside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "given", "equal"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        (0.3, 0.1 + 0.2, True),
        (1e6, 1e6 + 0.5, True),
        (1.0, 1.0 + 1e-5, False),
        (float("nan"), float("nan"), True),
        (float("inf"), float("-inf"), False),
        ([1, 2], (1, 2), False),
        ([1, [0.3]], [1, [0.1 + 0.2]], True),
        ({"a": 0.3, "b": None}, {"b": None, "a": 0.1 + 0.2}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({1: 2}, {True: 2}, False),
        ({1, 2, 3}, {3, 2, 1}, True),
        ({1, 2}, [1, 2], False),
        ({(1, frozenset("ab"))}, {(1, frozenset("ba"))}, True),
        (2**70, 2**70 + 1, False),
        ("a", b"a", False),
        (0.3 + 1j, 0.1 + 0.2 + 1j, True),
    ],
)
def test_values_are_compared_by_type(expected: object, given: object, equal: bool) -> None:
    trees = [Encoder(plain=True).encode(value) for value in (expected, given)]
    assert same(*trees, 1e-6) is equal
    assert same(trees[1], trees[0], 1e-6) is equal


@pytest.mark.parametrize(
    "given", [["list"], ["list", None, 3], [[]], ["dict", None, [1]], ["dict", None, [[1, 2, 3]]], []]
)
def test_trees_that_are_none(given: object) -> None:
    for expected in ([1, 2], {"a": 1}, {1}, 1j):
        tree = Encoder(plain=True).encode(expected)
        try:
            assert not same(tree, given, 1e-6)
        except MalformedError:
            continue


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        ("1 2\n", "1 2  \n\n", True),
        ("1 2", "1  2", True),
        ("1\n2", "1 2", False),
        ("0.5", "0.5000000001", True),
        ("0.5", "0.6", False),
        ("3", "3.0", False),
        ("1e3 x", "1000 x", True),
        ("nan.", "nan.", True),
        ("a\r\nb", "a\nb", True),
        ("", "", True),
        ("YES", "yes", False),
        ("1.0", "nan", False),
    ],
)
def test_printed_text(expected: str, printed: str, equal: bool) -> None:
    assert same_output(expected, printed, 1e-6) is equal


def test_kinds_of_tests() -> None:
    assert read_case('{"input": "a", "output": "b"}') == Printing("a", "b")
    assert read_case('{"args": [1, [2]], "expected": null}') == Call([1, [2]], {}, None)
    assert read_case('{"args": [], "kwargs": {"k": 1}, "expected": 2}') == Call([], {"k": 1}, 2)
    assert read_case("assert f(1) == {'a': 1}") == Asserts("assert f(1) == {'a': 1}")
    assert read_case("{1}") == Asserts("{1}")
    with pytest.raises(ValueError, match=r"\['expected', 'input'\]"):
        read_case('{"input": "a", "expected": 1}')


# ---- config -------------------------------------------------------------------------------------------


def test_numbers_of_the_config_are_used() -> None:
    slow, large = "import time\ndef f(x):\n    time.sleep(0.6)\n    return x", "def f(x): return len(bytes(400 << 20))"
    loud, near = "def f(x):\n    print('x' * 100000)\n    return x", "def f(x): return 0.11"
    strict = CodeVerifier(timeout_s=0.3, memory_mb=256, output_kb=64, float_tolerance=0.0).load()
    said = [strict.judge(prompt(calls(0.1, 1)), code).reason for code in (slow, large, loud, near)]
    strict.close()
    assert said == ["timeout", "memory", "output_limit", "wrong_answer"]
    lenient = CodeVerifier(timeout_s=10, memory_mb=1024, output_kb=1024, float_tolerance=0.02).load()
    tests = (calls(1, 1), calls(400 << 20, 1), calls(1, 1), calls(0.1, 1))
    said = [lenient.judge(prompt(t), code).reason for t, code in zip(tests, (slow, large, loud, near), strict=True)]
    lenient.close()
    assert said == ["", "", "", ""]


def test_wrong_configs_are_refused() -> None:
    for wrong in ({"timeout_s": 0}, {"memory_mb": 1}, {"float_tolerance": -1}, {"allow_weaker": "L0"}, {"timeout": 3}):
        with pytest.raises(ValidationError):
            CodeVerifier.model_validate(wrong)


def test_load_ends_what_it_started_when_the_sandbox_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.verifiers.sandbox.selftest._ORDINARY", "print('no')")
    closed: list[object] = []
    close = CodeJudge.__init__.__globals__["Runner"].close
    monkeypatch.setattr("fusion.verifiers.code.Runner.close", lambda self: (closed.append(self), close(self)))
    with pytest.raises(StageError, match="ordinary program"):
        CodeVerifier().load()
    assert len(closed) == 1


# ---- real data ------------------------------------------------------------------------------------------


def test_real_programs_pass_and_their_mutants_fail(judge: CodeJudge) -> None:
    """References pass and faulty ones fail exactly where plain Python says so too."""
    if not DATA.exists():
        pytest.skip(f"{DATA} is not there; the real prompts are not part of the repository")
    rows = [json.loads(line) for line in DATA.read_text().splitlines()][::SAMPLE]
    differ = []
    for number, row in enumerate(rows):
        mutant, what = mutate(row["reference_solution"], row["entry_point"], number)
        for code in (row["reference_solution"], mutant):
            said = judge.judge(prompt(*row["tests"], name=row["entry_point"]), f"```python\n{code}\n```")
            if (said.verdict is Verdict.correct) != _holds(code, row["tests"]):
                differ.append((row["id"], what, said))
    assert len(rows) >= 39
    assert differ == []


def _holds(code: str, tests: list[str]) -> bool:
    """Run a program of the data and its tests here, as one text; the sample has none that does not end."""
    try:
        exec("\n".join([code, *tests]), {})
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    "test",
    [
        "assert isclose(f(1), 5)",  # the test has forgotten its import, and the program brings a comparator
        "d = [].foo\nassert f(1) == 5",  # fails before the program was asked
        "open('/tmp/x', 'w').write('1')\nassert f(1) == 5",
        "import threading\nt = threading.Thread(target=lambda: exec('assert f(1) == 5', {'f': f}))\nt.start(); t.join()",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 5)\n"
        "unittest.TextTestRunner().run(T('test'))",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 5)\nassert f(1) == 3\nT('test').run()",
        "class TestF:\n    def test_one(self): assert f(1) == 5\nassert f(1) == 3",
        "import unittest\nunittest.FunctionTestCase(lambda: exec('assert f(1) == 5', {'f': f})).run()",
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor() as pool: pool.submit(exec, 'assert f(1) == 5', {'f': f})\nassert f(1) == 3",
        "def test_f(x, y):\n    assert f(x) == y\nassert f(1) == 3",  # pytest would know what x is
        "async def test_f():\n    assert f(1) == 5\nassert f(1) == 3",
        "def test_f():\n    assert f(1) == 5\n    yield\nassert f(1) == 3",
        "assert sum(f(2)) == 1",  # a wrong program can make a test last for ever
        calls(5, json.loads("[" * 150 + "]" * 150)),
        calls(json.loads("[" * 150 + "]" * 150), 5),
        calls(5, [[]] * 300_001),
    ],
)  # fmt: skip
def test_a_test_that_could_not_fail_says_nothing(judge: CodeJudge, hasty: CodeJudge, test: str) -> None:
    """The program is wrong, and none of these can tell: they are no pass, and no verdict on it either."""
    code = "def f(x):\n    return 3 if x == 1 else range(10**18)\ndef isclose(*a):\n    return True"
    said = (hasty if "sum" in test else judge).judge(prompt(test), code)
    assert (said.verdict, said.reason) == (Verdict.error, "unverifiable"), said


@pytest.mark.parametrize("test", ["assert isclose(f(1), 5)", "assert f(1) == 2", "assert isclose(5)"])
@pytest.mark.parametrize("asked", ["write f", "def isclosed(x) is there", "the function f(x), undef isclose"])
def test_without_entry_point_only_the_prompt_names_functions(judge: CodeJudge, test: str, asked: str) -> None:
    """Which of the names of a test is the function and which a comparator cannot be told."""
    code = "def f(x): return 2\ndef isclose(*a): return True"
    said = judge.judge(prompt(test, name=None, asked=asked), code)
    assert (said.verdict, said.reason) == (Verdict.error, "unverifiable"), said


def test_without_entry_point_the_functions_that_the_prompt_writes_are_called(judge: CodeJudge) -> None:
    asked = "Complete:\ndef f(x):\n    ...\nasync def  g(x): ..."
    code = "def f(x): return x + 1\ndef g(x): return f(x)"
    assert judge.judge(prompt("assert f(1) == g(1) == 2", name=None, asked=asked), code).verdict is Verdict.correct
    assert judge.judge(prompt("assert f(1) == g(1) == 3", name=None, asked=asked), code).verdict is Verdict.wrong


def test_helpers_of_large_programs_are_found_in_long_prompts(judge: CodeJudge) -> None:
    """The prompt is read once, not once for each function of the program."""
    code = "".join(f"def a{i}():0\n" for i in range(17000)) + "def helper(x): return 2\n" + F
    asked = "write f " * 25000 + "with def helper(x)"
    begun = time.process_time()
    assert judge.judge(prompt("assert f(2) == helper(1)", asked=asked), code).verdict is Verdict.correct
    assert time.process_time() - begun < 2.0  # Of the judge's own process.


@pytest.mark.parametrize(
    "test",
    [
        "def test_f():\n    assert f(1) == 2\nf(1)",
        "def test_f(candidate, times=1):\n    assert candidate(1) == 2\nf(1)",
        "def test_f():\n    assert f(1) == 2\nif __name__ == '__main__':\n    test_f()",
        "def test_one():\n    assert f(1) == 2\ndef test_all():\n    test_one()\nf(1)",
        "def check(candidate):\n    assert candidate(1) == 2\nif __name__ == '__main__':\n    check(f)",
    ],
)
def test_test_functions_that_nobody_calls_are_called(judge: CodeJudge, test: str) -> None:
    assert judge.judge(prompt(test), "def f(x): return 1").verdict is Verdict.wrong
    assert judge.judge(prompt(test), "def f(x): return 2").verdict is Verdict.correct


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): return max(x)", "assert f(list(range(200000))) == 199999"),  # its arguments come back with the answer
        ("def f(d):\n    d['a'] += 1\n    return d", "from collections import defaultdict\nassert f(defaultdict(int)) == {'a': 1}"),
        ("from collections import defaultdict\ndef f(x):\n    if isinstance(x, dict): x['a'] += 1\n    return defaultdict(int) if x == 1 else x", "assert f(f(1)) == {'a': 1}"),
        ("from collections import defaultdict\ndef f(x):\n    d = defaultdict(lambda: 3)\n    d[x]\n    return d", "assert f(1) == {1: 3}"),
        ("def f(d):\n    d.append(3)\n    return list(d)", "from collections import deque\nassert f(deque([1, 2], maxlen=2)) == [2, 3]"),
    ],
)  # fmt: skip
def test_arguments_arrive_as_they_are(judge: CodeJudge, code: str, test: str) -> None:
    assert judge.judge(prompt(test), code).verdict is Verdict.correct


def test_a_factory_of_the_tests_own_is_not_carried(judge: CodeJudge) -> None:
    test = "from collections import defaultdict\nassert f(defaultdict(lambda: 7)) == 7"
    assert judge.judge(prompt(test), "def f(d): return d['a']").reason == "unverifiable"
