"""What a program costs in the sandbox, that nothing leaks, and the verdicts on real programs. Asserts nothing about time.

    python tests/benchmarks/sandbox.py [--runs 10000] [--data ../shared/data/code.jsonl] [--only speed|leaks|data]

- speed: median of one program in each kind of test, at each level of the sandbox;
- leaks: 10,000 runs in a row, with memory and descriptors of the zygote and of this process before and after;
- data: the reference solution of every prompt, and one mutant of it (`tests/verifiers/code_mutants.py`), each judged in the
  sandbox and, for comparison, by plain Python in a process of its own. `sandbox_explained.py` says by hand why a
  reference does not pass and why a mutant does.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "verifiers"))
sys.path.insert(0, str(Path(__file__).parents[2]))
from code_mutants import mutate
from sandbox_explained import EQUIVALENT, NOT_SEEN, REFERENCES

from fusion.rows import Message, Prompt, Verdict
from fusion.verifiers.code import CodeVerifier
from fusion.verifiers.sandbox.cases import Asserts, Call, Case, Printing
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.outcomes import Result
from fusion.verifiers.sandbox.processes import Level
from fusion.verifiers.sandbox.runs import Program, Runner

CODE = """
from collections import Counter
import math

def f(n):
    counts = Counter(i % 7 for i in range(n))
    return [math.isqrt(count) for _, count in sorted(counts.items())]
"""
EXPECTED = [11, 11, 11, 11, 11, 11, 11]
KINDS: dict[str, tuple[str, Case]] = {
    "call": (CODE, Call([1000], {}, EXPECTED)),
    "asserts": (CODE, Asserts(f"assert f(1000) == {EXPECTED}")),
    "stdin and stdout": (CODE + "\nprint(f(int(input())))", Printing("1000\n", f"{EXPECTED}\n")),
}
LEVELS: tuple[Level, ...] = ("L3", "L2")


def measure_speed(repeats: int) -> None:
    """Print the median and the 95th percentile of each kind of run."""
    print("\n| test | level | runs | p50 ms | p95 ms |\n|---|---|---|---|---|")
    for level in LEVELS:
        runner = Runner(Limits(), ceiling=level)
        runner.start()
        for kind, (code, case) in KINDS.items():
            program, times = Program(code, ("f",)), []
            for _ in range(repeats):
                begun = time.perf_counter()
                outcome = runner.run(program, case, "f")
                times.append(1000 * (time.perf_counter() - begun))
                assert outcome.result is Result.passed, outcome
            cuts = statistics.quantiles(times, n=20)
            print(f"| {kind} | {level} | {repeats} | {statistics.median(times):.1f} | {cuts[18]:.1f} |", flush=True)
        runner.close()


def measure_leaks(runs: int) -> None:
    """Print what 10,000 runs leave behind: memory and descriptors of both sides, zombies."""
    print("\n| level | runs | seconds | zygote RSS MB | judge RSS MB | zygote files | judge files | zombies |")
    print("|---|---|---|---|---|---|---|---|")
    wrong = Program("def f(n): raise ValueError(n)", ("f",))
    cases = list(KINDS.values())
    for level in LEVELS:
        runner = Runner(Limits(), ceiling=level)
        runner.start()
        begun, facts = time.perf_counter(), []
        for number in range(runs + 100):
            if number == 100:
                runner.run(Program(CODE, ("f",)), KINDS["asserts"][1], "f")  # After it, two processes wait.
                facts.append(_facts(runner, level))
                begun = time.perf_counter()
            code, case = cases[number % 3]
            outcome = runner.run(wrong if number % 10 == 0 else Program(code, ("f",)), case, "f")
            assert (outcome.result is Result.passed) == (number % 10 != 0), outcome
        seconds = time.perf_counter() - begun
        runner.run(Program(CODE, ("f",)), KINDS["asserts"][1], "f")
        facts.append(_facts(runner, level))
        runner.close()
        columns = [f"{before} → {after}" for before, after in zip(*facts, strict=True)]
        print(f"| {level} | {runs} | {seconds:.0f} | {' | '.join(columns[:4])} | {facts[1][4]} |", flush=True)


def _facts(runner: Runner, level: Level) -> tuple[str, str, int, int, int]:
    pid = runner.sandbox.zygote_pid
    inner = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]) if level == "L3" else pid
    children = Path(f"/proc/{inner}/task/{inner}/children").read_text().split()
    states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children]
    while _holds_more(inner):
        time.sleep(0.01)
    files = len(list(Path(f"/proc/{inner}/fd").iterdir()))
    return _rss(inner), _rss(os.getpid()), files, len(list(Path("/proc/self/fd").iterdir())), states.count("Z")


def _holds_more(zygote: int | None) -> bool:
    """True until a zygote has forked the two processes for the next run, and let go of what they were given."""
    kinds = []
    for link in Path(f"/proc/{zygote}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # Closed meanwhile.
            kinds.append(str(link.readlink()))
    return [sum(kind in link for link in kinds) for kind in ("socket:", "pidfd")] != [1, 2]


def _rss(pid: int | None) -> str:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return f"{int(line.split()[1]) / 1024:.1f}"


def measure_data(file: Path, timeout_s: float) -> None:
    """Print the verdicts on references and mutants, and how many differ from plain Python."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    judge = CodeVerifier(timeout_s=timeout_s).load()
    mutants = [mutate(row["reference_solution"], row["entry_point"], number) for number, row in enumerate(rows)]
    print(f"\nlevel {judge.level}; {len(rows)} prompts of {file}")
    for kind, codes in (
        ("reference", [row["reference_solution"] for row in rows]),
        ("mutant", [m[0] for m in mutants]),
    ):
        begun = time.perf_counter()
        said = [
            judge.judge(
                Prompt(
                    row["id"],
                    "code",
                    (Message("user", row["prompt"]),),
                    tests=tuple(row["tests"]),
                    entry_point=row["entry_point"],
                ),
                f"```python\n{code}\n```",
            )
            for row, code in zip(rows, codes, strict=True)
        ]
        seconds = time.perf_counter() - begun
        plain = [_holds(code, row["tests"]) for row, code in zip(rows, codes, strict=True)]
        counts = Counter(f"{one.verdict}" + (f" ({one.reason})" if one.reason else "") for one in said)
        print(f"\n{kind}s: {dict(counts.most_common())} in {seconds:.1f} s, {1000 * seconds / len(rows):.1f} ms each")
        differ = [
            row["id"]
            for row, one, holds in zip(rows, said, plain, strict=True)
            if (one.verdict is Verdict.correct) != holds
        ]
        print(f"other than plain Python: {differ or 'none'}")
        for row, one, (_, what) in zip(rows, said, mutants, strict=True):
            passed = one.verdict is Verdict.correct
            if kind == "reference" and not passed:
                print(f"  {row['id']} does not pass: {REFERENCES.get(row['id'], 'NOT EXPLAINED: ' + one.detail)}")
            if kind == "mutant" and passed:
                why = (
                    "equivalent: " + EQUIVALENT[row["id"]]
                    if row["id"] in EQUIVALENT
                    else NOT_SEEN.get(row["id"], "NOT EXPLAINED")
                )
                print(f"  {row['id']} passes ({what}): {why}")
    judge.close()


def _holds(code: str, tests: list[str]) -> bool:
    script = "\n".join([code, "import math", *tests])  # Which some tests use and no program of theirs imports.
    try:
        done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--timeout-s", type=float, default=5.0)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data" / "code.jsonl")
    parser.add_argument("--only", choices=("speed", "leaks", "data"))
    arguments = parser.parse_args()
    print(
        f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    if arguments.only in (None, "speed"):
        measure_speed(arguments.repeats)
    if arguments.only in (None, "leaks"):
        measure_leaks(arguments.runs)
    if arguments.only in (None, "data"):
        if arguments.data.exists():
            measure_data(arguments.data, arguments.timeout_s)
        else:
            print(f"\n{arguments.data} is not there; the real prompts are not part of the repository")
