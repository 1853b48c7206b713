"""The program that math-verify runs in: a process of its own, asked by `math_checker.py` through a pipe, killed when late.

Not imported by anything: it is started by path with an almost empty environment, so that neither this package nor anything
of the process that starts it comes along. Comparing math is hostile work (`9^{9^{9^9}}` is nine characters), and math-verify
0.9 works in a main thread only. Its own time limits are switched off: where they strike, "no time left" and "wrong" look
the same. Model text reaches latex2sympy's grammar and nothing that evaluates Python (`sympify`, `parse_expr`).

Two processes. This one imports everything that could be needed, closes every door behind it (no file descriptor is left
to open a file or a socket with, no root, an end to memory), forks a worker, and waits. The worker compares. When it is
killed or dies, the next one is there within milliseconds, since imports are what takes a second.

On the pipes, a line of JSON each. Out: `{"worker": pid, "last": how the one before ended}` from every new worker, then
one reply per request. Signals: SIGUSR1 ends the worker and brings a new one, SIGTERM ends both.
"""

import ctypes
import functools
import gc
import importlib
import json
import os
import pkgutil
import random
import resource
import select
import signal
import sys
import warnings
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_NOBODY = 65534
# fmt: off
_SYMPY_PARTS = (
    "algebras", "assumptions", "calculus", "combinatorics", "concrete", "core", "discrete", "functions", "geometry",
    "integrals", "logic", "matrices", "ntheory", "polys", "series", "sets", "simplify", "solvers", "tensor",
)
# fmt: on
"""What sympy's algebra may import while it works; 1 second, 12 MB. The rest of it (printers, plots, stats) pulls in numpy."""
_SYMPY_MODULES = ("physics.units.util", "physics.matrices", "codegen.ast", "printing.pycode", "printing.lambdarepr")
"""What that imports inside its functions."""
_SKIPPED = frozenset(("tests", "benchmarks", "compatibility", "trace"))
_CPU_S_SPARE = 5


def main(memory_mb: int, parent: int) -> None:
    """Import, close the doors, and keep a worker until the pipe ends or a signal says so."""
    # What a library prints must not look like a reply.
    sys.stdout = sys.stderr
    _die_with(parent, signal.SIGTERM)
    _import_all()
    _close_doors(memory_mb)
    _die_with(parent, signal.SIGTERM)  # Changing the user has cleared it.
    gc.freeze()
    _Keeper(memory_mb).keep()


class _Keeper:
    """Forks a worker, waits for its end, and forks the next."""

    def __init__(self, memory_mb: int) -> None:
        self._memory_mb = memory_mb
        self._worker = 0
        """Process id; 0 while there is none, so that no signal goes to another process that got its number."""
        signal.signal(signal.SIGUSR1, lambda *_: self._end_worker())
        signal.signal(signal.SIGTERM, lambda *_: self._end_all())

    def keep(self) -> None:
        """Return when a worker has ended by itself, at the end of the pipe."""
        this, last = os.getpid(), ""
        while last != "exit code 0":
            # A signal between the fork and the assignment would miss the worker.
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGTERM))
            self._worker = os.fork()
            if self._worker == 0:
                _work(self._memory_mb, this, last)
                os._exit(0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGTERM))
            status = os.waitpid(self._worker, 0)[1]
            self._worker = 0
            code = os.waitstatus_to_exitcode(status)
            last = f"signal {-code}" if code < 0 else f"exit code {code}"
            # A request that nobody has read any more is asked again by the owner, who sees that the worker is another one.
            while select.select([0], [], [], 0)[0] and os.read(0, 1 << 16):
                pass

    def _end_worker(self) -> None:
        if self._worker:
            os.kill(self._worker, signal.SIGKILL)

    def _end_all(self) -> None:
        if self._worker:
            os.kill(self._worker, signal.SIGKILL)
            os.waitpid(self._worker, 0)
        os._exit(0)


def _work(memory_mb: int, parent: int, last: str) -> None:
    """Answer requests until the pipe ends."""
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGTERM))
    _die_with(parent, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    base_mb = _peak_mb()
    _say({"worker": os.getpid(), "last": last})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # One whose owner is gone while it computes ends here at the latest.
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        soft = int(used + request["timeout_s"]) + _CPU_S_SPARE
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        result, detail = _compare(request["golds"], request["answers"], request["decimals"])
        peak_mb = _peak_mb()
        if result != "correct" and peak_mb > memory_mb // 2:
            # sympy swallows MemoryError and goes on as if the answers differed.
            result, detail = "memory", f"{peak_mb} MB"
        _say({"id": request["id"], "result": result, "detail": detail})
        if peak_mb > base_mb + memory_mb // 8:
            os._exit(1)  # Its caches have grown; a fresh one has all of its memory.


def _compare(golds: list[str], answers: list[str], decimals: int) -> tuple[str, str]:
    """Return what is to be said of the answers, and a detail for people."""
    from math_verify import verify
    from sympy.core.random import seed

    try:
        # sympy's simplification tries random numbers; the same row must get the same verdict.
        seed(0)
        random.seed(0)
        gold_values = [_parsed(text) for text in golds]
        answer_values = [_parsed(text) for text in answers]
        if any(value is None for value in gold_values):
            return "gold_unparsable", ""
        if any(value is None for value in answer_values):
            return "unparsable", ""
        # One by one: a pair that fails must not hide another one that is equal.
        failure = ""
        for gold in gold_values:
            for answer in answer_values:
                try:
                    if verify(
                        gold,
                        answer,
                        float_rounding=decimals,
                        allow_set_relation_comp=True,
                        timeout_seconds=None,
                        raise_on_error=True,
                    ) and _same_digits(gold, answer, decimals):
                        return "correct", ""
                except MemoryError:
                    raise
                # What sympy raises of odd expressions has no common class.
                except Exception as error:
                    failure = type(error).__name__
        return ("failed", failure) if failure else ("wrong", "")
    except MemoryError:
        return "memory", "MemoryError"


def _same_digits(gold: Any, answer: Any, decimals: int) -> bool:
    """Return False for two small numbers that differ: by decimals, `e^{-50}` and `e^{-60}` are both 0."""
    if not all(getattr(value, "is_number", False) for value in (gold, answer)):
        return True
    one, other = gold.evalf(15), answer.evalf(15)
    if not (one.is_finite and other.is_finite):
        return True
    largest = max(abs(one), abs(other))
    # An exact zero, as `\\sin \\pi`, comes out as 0.e-120 or so.
    return bool(largest < 1e-100 or largest > 10.0 ** (1 - decimals) or abs(one - other) <= largest / 1000)


@functools.lru_cache(maxsize=64)  # The samples of a prompt share its gold answer.
def _parsed(text: str) -> Any:
    """Return the sympy value of LaTeX, None where it has none. As `math_verify.parse` does it, without its own extraction."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from sympy import Basic, MatrixBase

    # Units were taken off before; what math-verify takes for one may be a variable (`2s`).
    how = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    try:
        text = normalize_latex(text, how)
        value = latex2sympy(
            text,
            is_real=not should_treat_as_complex(text),
            # Elsewhere degrees are a unit: `30^\\circ` is 30.
            convert_degrees="circ" in text and any(name in text for name in ("\\sin", "\\cos", "\\tan")),
            normalization_config=None,
        )
    except MemoryError:
        raise
    # Its grammar raises bare Exception, and Python RecursionError where braces are nested deeply.
    except Exception:
        return None
    return value if isinstance(value, Basic | MatrixBase) else None


def _import_all() -> None:
    warnings.simplefilter("ignore")
    grader = importlib.import_module("math_verify.grader")
    # Missing there: comparing `x \\ne 5` with `x \\ne 6` is a KeyError.
    grader.INVERSE_RELATIONS.setdefault(importlib.import_module("sympy").Ne, importlib.import_module("sympy").Ne)
    for part in _SYMPY_PARTS:
        package = importlib.import_module(f"sympy.{part}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not _SKIPPED.intersection(module.name.split(".")):
                importlib.import_module(module.name)
    for module in _SYMPY_MODULES:
        importlib.import_module(f"sympy.{module}")
    _compare(["x^2 + 2x + 1"], ["(x + 1)^2"], 6)  # The grammar's tables are made at its first use.


class _NoMoreImports:
    """Ends the process when something is imported after the doors are closed: sympy would take the error for an answer."""

    def find_spec(self, name: str, *_: Any) -> None:
        _say({"missing": name})
        os._exit(1)


def _close_doors(memory_mb: int) -> None:
    sys.meta_path.insert(0, _NoMoreImports())
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except PermissionError:
            pass  # Root of a container that may not change its user; the limits below hold for it as well.
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),  # The two pipes and /dev/null are open; nothing else can be.
        (resource.RLIMIT_AS, memory_mb << 20),
    ):
        resource.setrlimit(what, (limit, limit))


def _die_with(parent: int, number: int) -> None:
    """Get a signal when the thread ends that has started this process; end now where that has happened before."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
