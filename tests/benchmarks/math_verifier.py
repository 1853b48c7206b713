"""What the math verifier costs. Asserts nothing about time.

    python tests/benchmarks/math_verifier.py --questions math.jsonl

JSON lines with `solution` and `answer`. Counts how many solutions are judged correct, as written and with one added to the
answer; the same with every comparison done by math-verify; then the comparisons of the test cases that need algebra, and
what a check that never ends costs the check after it.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "verifiers"))
sys.path.insert(0, str(Path(__file__).parents[2]))
from math_cases import CASES

from fusion.rows import Prompt, Verdict
from fusion.verifiers.answers import find_answer, gold_answer
from fusion.verifiers.comparison import align, settle, variants
from fusion.verifiers.math import MathJudge, MathVerifier
from fusion.verifiers.notation import Spelling, spell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with solution and answer")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.questions.read_text().splitlines()]
    started = time.perf_counter()
    judge = MathVerifier().load()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(f"load: {time.perf_counter() - started:.2f} s")
    try:
        questions(judge, rows)
        algebra(judge)
        after_a_timeout()
    finally:
        judge.close()


def questions(judge: MathJudge, rows: list[dict[str, str]]) -> None:
    for shift in (0, 1):
        started, right = time.perf_counter(), 0
        for row in rows:
            said = judge.judge(Prompt(row["id"], "math", (), reference=row["answer"]), shifted(row["solution"], shift))
            right += said.verdict is Verdict.correct
        report(f"judge, answer + {shift}", right, len(rows), time.perf_counter() - started)
        started, right = time.perf_counter(), 0
        for row in rows:
            pair = pair_of(row["answer"], shifted(row["solution"], shift))
            right += judge.checker.check(*variants(*pair), 6).result == "correct"
        report(f"math-verify alone, answer + {shift}", right, len(rows), time.perf_counter() - started)


def algebra(judge: MathJudge) -> None:
    pairs = [pair_of(gold, response) for gold, response, _ in CASES]
    asked = [pair for pair in pairs if pair[0].text and pair[1].text and settle(*pair, 6) is None]
    for name in ("first time", "second time"):
        times_ms = []
        for pair in asked:
            started = time.perf_counter()
            judge.checker.check(*variants(*pair), 6)
            times_ms.append(1000 * (time.perf_counter() - started))
        deciles = statistics.quantiles(times_ms, n=20)
        print(f"{len(asked)} cases that need algebra, {name}: p50 {deciles[9]:.1f} ms, p95 {deciles[18]:.1f} ms")


def after_a_timeout() -> None:
    judge = MathVerifier(timeout_s=0.5).load()
    late = judge.judge(Prompt("p", "math", (), reference="12"), r"\boxed{9^{9^{9^{9}}}}")
    started = time.perf_counter()
    judge.checker.check(["2"], [r"\sqrt{4}"], 6)
    print(f"after a {late.reason}: the next check takes {1000 * (time.perf_counter() - started):.0f} ms")
    judge.close()


def shifted(solution: str, shift: int) -> str:
    head, mark, answer = solution.rpartition("####")
    return solution if shift == 0 else f"{head}{mark} {int(answer.replace(',', '')) + shift}"


def pair_of(gold: str, response: str) -> tuple[Spelling, Spelling]:
    return align(spell(gold_answer(gold).text), spell(find_answer(response, ("boxed", "final")).text))


def report(what: str, right: int, count: int, seconds: float) -> None:
    print(f"{what}: {right} of {count} correct, {seconds:.2f} s, {1000 * seconds / count:.2f} ms each")


if __name__ == "__main__":
    main()
