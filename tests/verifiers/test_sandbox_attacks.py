"""The attack set against the sandbox, forged verdicts, and ordinary programs: what must not pass and what must."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from forgeries import ASSERTS, AWAY, CALL, FORGERIES, PRINTING
from ordinary_programs import PROGRAMS, STDIN
from sandbox_attacks import ATTACKS

from fusion.verifiers.sandbox.cases import Printing, read_case
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.outcomes import Result
from fusion.verifiers.sandbox.processes import Level
from fusion.verifiers.sandbox.runs import Program, Runner

ROOT = Path(__file__).parents[2]
WORLD = Path(__file__).relative_to(ROOT).parent / "sandbox_world.py"
UNUSED_UID = 0x6FFF1234
GROUPS = {"read", "write", "parent", "socket", "signal", "process", "resource", "call", "flood"}


def run_world(mode: str, user: int | None = None) -> list[dict]:
    """Return what `sandbox_world.py` reports, run as this user or, by root, as another."""
    python = sys.executable if user is None else _python_of(user)
    identity = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    with contextlib.nullcontext(ROOT) if user is None else _readable_copy() as root:
        process = subprocess.run(
            [python, str(root / WORLD), mode],
            capture_output=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            check=False,
            **identity,
        )
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    return json.loads(process.stdout)


@contextlib.contextmanager
def _readable_copy() -> Iterator[Path]:
    """Give a copy of what the world needs that every user can read; a clone may be in a private folder."""
    with tempfile.TemporaryDirectory(prefix="sandbox-copy-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        for part in ("fusion", WORLD.parent):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        yield root


def _python_of(user: int) -> str:
    """Return an interpreter that another user can run."""
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        command = [python, "-c", "import sys; assert sys.version_info >= (3, 11)"]
        try:
            process = subprocess.run(command, user=user, group=user, extra_groups=[], capture_output=True, check=False)
        except OSError:
            continue
        if process.returncode == 0:
            return python
    pytest.skip("no interpreter of 3.11 or later that another user can read")


@pytest.mark.parametrize("user", [None, UNUSED_UID], ids=["this user", "ordinary user"])
@pytest.mark.parametrize("level", ["L3", "L2"])
def test_no_attack_gets_through(level: str, user: int | None, capsys: pytest.CaptureFixture) -> None:
    """As root and as an ordinary user, with and without namespaces."""
    if user is not None and os.geteuid() != 0:
        pytest.skip("this user is an ordinary one already")
    report = run_world(level, user)
    assert len(report) == len(ATTACKS) >= 60
    assert {attack["group"] for attack in report} == GROUPS
    assert {(a["group"], a["name"]): a["found"] for a in report if a["found"]} == {}
    assert {(a["group"], a["name"]): a["result"] for a in report if a["ends"] and a["result"] not in a["ends"]} == {}
    assert not [attack for attack in report if attack["result"] == "infra_error"]
    with capsys.disabled():
        who = "an ordinary user" if user is not None else f"user {os.geteuid()}"
        print(f"\n{len(report)} attacks at {level} as {who}: none through")


def test_attacks_work_without_a_sandbox(capsys: pytest.CaptureFixture) -> None:
    """Else their failing would show nothing. Those that do harm are left out, and some depend on how the kernel is built."""
    report = run_world("bare")
    must = ("sure", "root") if os.geteuid() == 0 else ("sure",)
    assert [(a["group"], a["name"]) for a in report if a["bare"] in must and not a["found"]] == []
    shown = [attack for attack in report if attack["found"]]
    with capsys.disabled():
        rest = [f"{a['group']}: {a['name']}" for a in report if not a["found"]]
        print(f"\n{len(shown)} of {len(report)} attacks work without the sandbox; not on this machine: {rest}")
    assert len(shown) >= 60


@pytest.fixture(scope="module", params=["L3", "L2"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    level: Level = request.param
    runner = Runner(Limits(timeout_s=10.0), ceiling=level)
    runner.start()
    assert runner.sandbox.level == level
    yield runner
    runner.close()


def test_no_forged_verdict_is_accepted(capsys: pytest.CaptureFixture) -> None:
    runner = Runner(Limits(timeout_s=0.5))
    accepted = {}
    for name, code in FORGERIES.items():
        for test in (ASSERTS, CALL, PRINTING):
            outcome = runner.run(Program(code, ("f",)), read_case(test), "f")
            if outcome.result in (Result.passed, Result.infra_error):
                accepted[name, test] = outcome
    runner.close()
    assert len(FORGERIES) >= 16
    assert accepted == {}
    with capsys.disabled():
        print(f"\n{len(FORGERIES)} forged verdicts in 3 kinds of test: none accepted")


def test_forgeries_fool_a_checker_in_the_process(capsys: pytest.CaptureFixture) -> None:
    """The same programs, asserted in their own process and judged by the exit code: many pass there."""
    fooled = []
    for name, code in FORGERIES.items():
        if name in AWAY:
            continue
        script = f"code = {code!r}\nspace = {{}}\nexec(code, space)\nexec({ASSERTS!r}, space)"
        process = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, check=False)
        fooled += [name] if process.returncode == 0 else []
    assert len(fooled) >= 16, fooled
    with capsys.disabled():
        print(f"\n{len(fooled)} of {len(FORGERIES)} forgeries fool a checker by exit code")


def test_the_right_program_passes_where_forgeries_do_not() -> None:
    runner = Runner(Limits(timeout_s=10.0))
    right = {ASSERTS: "def f(x): return 2 * x", CALL: "def f(x): return 2 * x", PRINTING: "print(2 * int(input()))"}
    outcomes = {test: runner.run(Program(code, ("f",)), read_case(test), "f") for test, code in right.items()}
    runner.close()
    assert {outcome.result for outcome in outcomes.values()} == {Result.passed}, outcomes


def test_ordinary_programs_pass(runner: Runner, capsys: pytest.CaptureFixture) -> None:
    failed = {}
    for name, code, output in PROGRAMS:
        outcome = runner.run(Program(code), Printing(STDIN, output), None)
        if outcome.result is not Result.passed:
            failed[name] = outcome
    assert len(PROGRAMS) >= 100
    assert failed == {}
    with capsys.disabled():
        print(f"\n{len(PROGRAMS)} ordinary programs pass at {runner.sandbox.level}")
