"""The math verifier with its real processes: verdicts, hostile answers, kills, ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from math_cases import CASES
from math_hostile import GOLD, HOSTILE

from fusion.config import fingerprint
from fusion.errors import StageError
from fusion.rows import Prompt, Verdict
from fusion.verifiers import math_checker
from fusion.verifiers.answers import find_answer, gold_answer
from fusion.verifiers.comparison import align, settle, variants
from fusion.verifiers.math import MathJudge, MathVerifier
from fusion.verifiers.math_checker import Reply
from fusion.verifiers.notation import Spelling, spell

REPOSITORY = Path(__file__).parents[2]
QUESTIONS = REPOSITORY.parent / "shared/data/math.jsonl"
SLOW = r"\boxed{\int_{0}^{\infty} \frac{\sin(x^{x})\ln(1+x^{\pi})}{e^{x^{x}}+\cos(x)} dx}"
"""Computes for hours."""


def prompt(reference: str | None) -> Prompt:
    return Prompt("p-1", "math", (), reference=reference)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MathJudge]:
    """Loaded by a process that has a secret and an open file that children could inherit."""
    with pytest.MonkeyPatch.context() as patch, (tmp_path_factory.mktemp("held") / "file").open("w") as held:
        patch.setenv("SECRET_TOKEN", "s3cret")
        os.set_inheritable(held.fileno(), True)
        loaded = MathVerifier().load()
        yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[MathJudge]:
    loaded = MathVerifier(timeout_s=0.3).load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def patient() -> Iterator[MathJudge]:
    """Loaded by a thread that has ended."""
    with ThreadPoolExecutor(1) as threads:
        loaded = threads.submit(MathVerifier(timeout_s=60).load).result()
    yield loaded
    loaded.close()


# ---- verdicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("gold", "response", "verdict"), CASES)
def test_verdicts(judge: MathJudge, gold: str, response: str, verdict: str) -> None:
    said = judge.judge(prompt(gold), response)
    assert said.verdict == verdict, said


def test_all_questions_of_the_shared_data(judge: MathJudge, capsys: pytest.CaptureFixture[str]) -> None:
    """Their solutions are correct, and wrong with one added to the answer; math-verify says the same of each."""
    if not QUESTIONS.exists():
        pytest.skip(f"{QUESTIONS} is not there: the 500 questions are not part of the repository")
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    started = time.monotonic()
    as_written, off_by_one, asked = Counter(), Counter(), Counter()
    for row in rows:
        as_written[judge.judge(prompt(row["answer"]), row["solution"]).verdict] += 1
        head, mark, answer = row["solution"].rpartition("####")
        other = f"{head}{mark} {int(answer.replace(',', '')) + 1}"
        off_by_one[judge.judge(prompt(row["answer"]), other).verdict] += 1
        for text in (row["solution"], other):
            answer = find_answer(text, ("boxed", "final")).text
            asked[judge.checker.check(*variants(spell(row["answer"]), spell(answer)), 6).result] += 1
    with capsys.disabled():
        counts = f"{as_written[Verdict.correct]} correct as written, {off_by_one[Verdict.wrong]} wrong when off by one"
        print(
            f"\nmath: of {len(rows)} solutions {counts}; math-verify: {dict(asked)}; {time.monotonic() - started:.1f} s"
        )
    assert as_written == {Verdict.correct: 500}
    assert off_by_one == {Verdict.wrong: 500}
    assert asked == {"correct": 500, "wrong": 500}


@pytest.mark.parametrize(
    ("reference", "response", "reason"),
    [
        (None, r"\boxed{12}", "no_reference"),
        (" ", r"\boxed{12}", "no_reference"),
        (r"\frac{1}{", r"\boxed{12}", "gold_unparsable"),
        ("$", r"\boxed{12}", "gold_unparsable"),
        ("1\u200b2", r"\boxed{12}", "gold_unparsable"),
        ("7" * 1001, r"\boxed{12}", "gold_unparsable"),
    ],
)
def test_errors_say_nothing_of_the_response(
    judge: MathJudge, reference: str | None, response: str, reason: str
) -> None:
    said = judge.judge(prompt(reference), response)
    assert (said.verdict, said.reason) == (Verdict.error, reason)
    assert "\n" not in said.detail


def plain_pairs() -> st.SearchStrategy[tuple[str, str]]:
    """Plain numbers and a second one that is often the same or close, with percent signs."""
    number = st.tuples(st.integers(-(10**7), 10**7), st.integers(0, 6)).map(lambda t: f"{t[0]}e-{t[1]}")
    close = st.sampled_from([0, 0, 1, -1, 10**6])

    def written(text: str, add: int, percent: str) -> str:
        digits, _, places = text.partition("e-")
        value, scale = int(digits) + add, 10 ** int(places)
        sign = "-" if value < 0 else ""
        return f"{sign}{abs(value) // scale}.{abs(value) % scale:0{max(int(places), 1)}d}{percent}"

    percents = st.sampled_from(["", "", "", r"\%"])
    return st.tuples(number, close, percents, percents).map(
        lambda t: (written(t[0], 0, t[2]), written(t[0], t[1], t[3]))
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain_pairs())
@example(("0.1", "0.1"))
@example(("50", r"50\%"))
@example((r"50\%", "0.5"))
@example(("123456789012345678901234567890", "123456789012345678901234567891"))
@example(("123456789012345678901234567890.5", "123456789012345678901234567890.6"))
@example(("0.000001", "0.000002"))
def test_fast_path_says_what_math_verify_says(judge: MathJudge, pair: tuple[str, str]) -> None:
    gold, answer = spell(pair[0]), spell(pair[1])
    fast = settle(gold, answer, 6)
    assert fast is not None
    if gold.text == answer.text:
        # The same texts are never asked; math-verify must agree with that as well.
        gold = Spelling(f"({gold.text})", gold.percent)
    slow = judge.checker.check(*variants(gold, answer), 6)
    assert slow == Reply("correct" if fast else "wrong")


def test_one_verdict_in_any_order_and_from_any_thread(judge: MathJudge) -> None:
    needs_algebra = [
        case
        for case in CASES
        if settle(*align(spell(gold_answer(case[0]).text), spell(find_answer(case[1], ("boxed", "final")).text)), 6)
        is None
    ][:40]
    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(lambda case: judge.judge(prompt(case[0]), case[1]).verdict, reversed(needs_algebra)))
    assert said == [verdict for _, _, verdict in reversed(needs_algebra)]


def test_decimals_are_an_option(judge: MathJudge) -> None:
    def said(answer: str, decimals: int) -> str:
        return judge.checker.check([r"\frac{1}{3}"], [answer], decimals).result

    assert (said("0.33", 2), said("0.34", 2), said("0.33", 3)) == ("correct", "wrong", "wrong")


def test_config_is_a_key() -> None:
    config = MathVerifier.model_validate({"type": "math"})
    assert (config.label, config.timeout_s, config.extraction) == ("math", 6.0, ("boxed", "final"))
    assert fingerprint(config) != fingerprint(MathVerifier(extraction=("boxed", "final", "last_number")))


# ---- hostile answers --------------------------------------------------------------------------


def test_hostile_answers_end_in_time_and_are_never_correct(
    hasty: MathJudge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each within its time and 5 s; nothing that they ask for happens."""
    forbidden = tmp_path / "made-by-an-answer"
    verdicts, longest_s = Counter(), 0.0
    for name, text in HOSTILE.items():
        started = time.monotonic()
        said = hasty.judge(prompt(GOLD), text.replace("FILE", str(forbidden)))
        took_s = time.monotonic() - started
        longest_s = max(longest_s, took_s)
        assert said.verdict is not Verdict.correct, (name, said)
        assert took_s < 0.3 + 5, (name, said)
        verdicts[f"{said.verdict}/{said.reason}"] += 1
    assert not forbidden.exists()
    wait_until(lambda: hasty.judge(prompt("2"), r"\boxed{\sqrt{4}}").verdict is Verdict.correct, "it does not go on")
    with capsys.disabled():
        print(f"\nmath: {len(HOSTILE)} hostile answers, longest {longest_s:.1f} s: {dict(verdicts)}")


def test_six_seconds_of_patience(judge: MathJudge) -> None:
    started = time.monotonic()
    said = judge.judge(prompt(GOLD), r"\boxed{9^{9^{9^{9}}}}")
    took_s = time.monotonic() - started
    assert (said.verdict, said.reason) == (Verdict.error, "timeout")
    assert 6 <= took_s < 11


def test_memory_that_runs_out_is_an_error() -> None:
    loaded = MathVerifier(memory_mb=256, timeout_s=60).load()
    with contextlib.closing(loaded):
        worker = loaded.checker.pids[1]
        said = loaded.judge(prompt(GOLD), r"\boxed{\lfloor 2^{900000000} \rfloor}")
        assert (said.verdict, said.reason) == (Verdict.error, "memory"), said
        assert loaded.judge(prompt("2"), r"\boxed{\sqrt{4}}").verdict is Verdict.correct
        assert loaded.checker.pids[1] != worker, "the next check has a fresh process"


# ---- processes --------------------------------------------------------------------------------


def lives(pid: int) -> bool:
    """Whether there is a process, be it a zombie."""
    return psutil.pid_exists(pid)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def is_busy(pid: int) -> bool:
    return lives(pid) and psutil.Process(pid).status() == psutil.STATUS_RUNNING


def test_the_end_of_the_thread_that_has_loaded_it_does_not_matter(patient: MathJudge) -> None:
    before = patient.checker.pids
    assert patient.judge(prompt("2"), r"\boxed{\sqrt{4}}").verdict is Verdict.correct
    assert patient.checker.pids == before


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_killed_in_a_check_it_is_asked_once_more(patient: MathJudge, victim: str) -> None:
    index = ("child", "worker").index(victim)
    before = patient.checker.pids
    thread, results = in_background(lambda: patient.judge(prompt(GOLD), SLOW))
    wait_until(lambda: is_busy(before[1]), "the check has not begun")
    os.kill(before[index], signal.SIGKILL)
    wait_until(lambda: patient.checker.pids not in (before, ()), "no new worker")
    between = patient.checker.pids
    assert (between[0] == before[0]) == (victim == "worker")
    # The second time is the last one.
    wait_until(lambda: is_busy(between[1]), "the check is not done again")
    os.kill(between[index], signal.SIGKILL)
    thread.join(60)
    assert (results[0].verdict, results[0].reason) == (Verdict.error, "crashed")
    assert "signal 9" in results[0].detail
    assert patient.judge(prompt("2"), r"\boxed{\sqrt{4}}").verdict is Verdict.correct


def test_killed_once_the_row_gets_its_verdict(patient: MathJudge) -> None:
    """Also where the idle one is killed, before the check."""
    numbers = [str(number) for number in range(150)]
    worker = patient.checker.pids[1]
    response = rf"\boxed{{\{{ {', '.join(reversed(numbers))} \}}}}"
    thread, results = in_background(lambda: patient.judge(prompt(rf"\{{ {', '.join(numbers)} \}}"), response))
    wait_until(lambda: is_busy(worker), "the check has not begun")
    os.kill(worker, signal.SIGKILL)
    thread.join(60)
    assert results[0].verdict is Verdict.correct
    other = patient.checker.pids[1]
    assert other != worker
    os.kill(other, signal.SIGKILL)
    assert patient.judge(prompt("2"), r"\boxed{\sqrt{4}}").verdict is Verdict.correct


def test_stopped_child_is_a_timeout_and_then_replaced(hasty: MathJudge) -> None:
    child, worker = hasty.checker.pids
    os.kill(worker, signal.SIGSTOP)
    os.kill(child, signal.SIGSTOP)
    assert hasty.judge(prompt("2"), r"\boxed{\sqrt{4}}").reason == "timeout"
    assert not lives(child)
    wait_until(lambda: hasty.judge(prompt("4"), r"\boxed{2 + 2}").verdict is Verdict.correct, "it does not go on")


def test_close_leaves_no_process() -> None:
    loaded = MathVerifier(timeout_s=0.3).load()
    seen = set(loaded.checker.pids)
    assert loaded.judge(prompt(GOLD), SLOW).reason == "timeout"
    seen |= set(loaded.checker.pids)
    assert len(seen) == 3
    loaded.close()
    loaded.close()
    assert [pid for pid in seen if lives(pid)] == []


def test_two_judges_in_two_processes() -> None:
    """Each has its own children; one's end does not touch the other's; and a killed owner leaves none."""
    program = (
        "import sys; from fusion.verifiers.math import MathVerifier; from fusion.rows import Prompt\n"
        "judge = MathVerifier().load(); print(*judge.checker.pids, flush=True)\n"
        "for line in sys.stdin: print(judge.judge(Prompt('p', 'math', (), reference='2'), line).verdict, flush=True)\n"
    )
    owners = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        children = [[int(pid) for pid in owner.stdout.readline().split()] for owner in owners]
        assert len({*children[0], *children[1]}) == 4

        def ask(owner: subprocess.Popen[str], text: str) -> str:
            owner.stdin.write(text + "\n")
            owner.stdin.flush()
            return owner.stdout.readline().strip()

        for text, verdict in ((r"\boxed{\sqrt{4}}", "correct"), (r"\boxed{\sqrt{5}}", "wrong")):
            assert [ask(owner, text) for owner in owners] == [verdict] * 2
        # Killed while its worker computes.
        owners[0].stdin.write(SLOW + "\n")
        owners[0].stdin.flush()
        wait_until(lambda: is_busy(children[0][1]), "the check has not begun")
        owners[0].kill()
        owners[0].wait()
        wait_until(lambda: not any(map(lives_and_works, children[0])), "children of a killed owner live on")
        assert ask(owners[1], r"\boxed{\sqrt{4}}") == "correct"
        owners[1].stdin.close()
        assert owners[1].wait(30) == 0
        wait_until(lambda: not any(map(lives_and_works, children[1])), "children of an owner that ended live on")
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()
            owner.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                owner.stdin.close()


def lives_and_works(pid: int) -> bool:
    """Whether there is a process that is no zombie: orphans are reaped by whoever adopts them, in his own time."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_child_has_nothing_of_its_owner(judge: MathJudge) -> None:
    limits: dict[str, list[str]] = {}
    for pid in judge.checker.pids:
        folder = Path(f"/proc/{pid}")
        assert b"s3cret" not in (folder / "environ").read_bytes()
        assert sorted(file.name for file in (folder / "fd").iterdir()) == ["0", "1", "2"]
        limits = {line[:26].strip(): line[26:].split()[:2] for line in (folder / "limits").read_text().splitlines()}
        assert limits["Max open files"] == ["3", "3"]
        assert limits["Max file size"] == ["0", "0"]
        assert limits["Max address space"] == [str(1024 << 20)] * 2
    assert limits["Max processes"] == ["0", "0"], "of the worker"
    status = Path(f"/proc/{judge.checker.pids[1]}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    if os.geteuid() == 0:
        assert "Uid:\t65534\t65534\t65534\t65534" in status


def test_child_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit(3)")
    monkeypatch.setattr(math_checker, "_CHILD", program)
    with pytest.raises(StageError, match=r"does not start \(it ended with exit code 3\)"):
        MathVerifier().load()
