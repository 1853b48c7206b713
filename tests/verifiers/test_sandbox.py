"""The processes of the sandbox: what it needs of a machine, and that nothing is lost, left or leaked."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion.errors import StageError
from fusion.verifiers.sandbox import namespaces, processes, runs, selftest
from fusion.verifiers.sandbox.cases import Asserts, Call, Case, Printing
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.outcomes import Result
from fusion.verifiers.sandbox.runs import Program, Runner

CONFINED = Path(__file__).parent / "confined.py"
DOUBLE = Program("def f(x): return 2 * x", ("f",))
TEST = Asserts("assert f(21) == 42")
CALL = Call([21], {}, 42)


def children(pid: int) -> list[int]:
    """Return the processes beneath one, and it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def gone(pids: list[int], within_s: float = 10.0) -> bool:
    """Wait until none of the processes runs; one that only waits to be reaped by init does not."""
    deadline = time.monotonic() + within_s
    while any(state(pid) not in ("", "Z") for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def state(pid: int) -> str:
    """Return the state of a process as /proc spells it; empty when there is none."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def num_files(pid: int | str) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def settled(serving: int) -> bool:
    """True when a zygote has forked the two processes for the next run, and holds no more of what they were given."""
    kinds = []
    for link in Path(f"/proc/{serving}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # Closed meanwhile.
            kinds.append(str(link.readlink()))
    return [sum(kind in link for link in kinds) for kind in ("socket:", "pidfd")] == [1, 2]


def started(level: processes.Level = "L3", **limits: float) -> Runner:
    runner = Runner(Limits(**{"timeout_s": 10.0, **limits}), ceiling=level)  # type: ignore[arg-type]
    runner.start()
    assert runner.sandbox.level == level
    return runner


def confined(rules: str, allow_weaker: str | None = None) -> str:
    """Return the level that a verifier reaches where calls fail, or its error."""
    code = (
        "from fusion.errors import StageError\n"
        "from fusion.verifiers.code import CodeVerifier\n"
        "try:\n"
        f"    judge = CodeVerifier(allow_weaker={allow_weaker!r}).load()\n"
        "    print(judge.level)\n"
        "    judge.close()\n"
        "except StageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, str(CONFINED), rules, code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("rules", "allow_weaker", "said"),
    [
        ("namespaces=1", None, "L2"),
        ("landlock_create_ruleset=38", None, "no Landlock"),
        ("landlock_create_ruleset=38", "L1", "L1"),
        ("seccomp=22", "L1", "fails on this machine"),
        ("seccomp=0", None, "a program could fork"),
        ("namespaces=1,landlock_restrict_self=0", None, "a program could read a file"),
    ],
    ids=[
        "as in a container",
        "no Landlock",
        "no Landlock, allowed",
        "no seccomp",
        "seccomp by name",
        "Landlock by name",
    ],
)
def test_what_a_machine_does_not_offer(rules: str, allow_weaker: str | None, said: str) -> None:
    """Down to L2 by itself, lower by name only, and refused where a protection is there in name only."""
    answer = confined(rules, allow_weaker)
    assert answer == said if said[0] == "L" else said in answer and "\n" not in answer


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.kernel, "machine", lambda: "riscv64")
    with pytest.raises(StageError, match="needs Linux on x86_64 or aarch64"):
        Runner(Limits()).start()


def test_self_test_has_eight_attacks() -> None:
    assert len(selftest.attacks("/etc/passwd", 1)) == 8


def test_zygote_has_nothing_of_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment, no descriptors, no memory: it is another program."""
    monkeypatch.setenv("SECRET_TOKEN", "hf_secret")
    opened = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(opened, True)
    runner = started("L2")
    zygote = runner.sandbox.zygote_pid
    environment = Path(f"/proc/{zygote}/environ").read_bytes()
    links = [str(link.readlink()) for link in Path(f"/proc/{zygote}/fd").iterdir()]
    runner.close()
    os.close(opened)
    names = {entry.partition(b"=")[0] for entry in environment.split(b"\0") if entry}
    assert names == {b"MALLOC_ARENA_MAX", b"OMP_NUM_THREADS", b"LC_CTYPE", b"TZ", b"PYTHONHASHSEED"}
    library = str(Path(os.__file__).parent)
    assert {link.partition(":")[0] for link in links} <= {"/dev/null", "pipe", library, "anon_inode", "socket"}
    assert len(links) <= 8
    assert "/etc/hostname" not in links


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user to drop")
def test_root_becomes_a_user_that_nobody_is() -> None:
    """Another one for each zygote, so that RLIMIT_NPROC counts its programs alone."""
    runners = [started("L2"), started("L2")]
    uids = []
    for runner in runners:
        status = Path(f"/proc/{runner.sandbox.zygote_pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        uids.append(tuple(fields["Uid"].split("\t")))
        assert fields["CapEff"] == fields["CapBnd"] == "0000000000000000"
        assert fields["Groups"].strip() == ""
        assert fields["NoNewPrivs"] == "1"
        runner.close()
    assert len({uid for four in uids for uid in four}) == 2
    assert all(int(uid) >= 0x70000000 for four in uids for uid in four)


@pytest.mark.parametrize("level", ["L3", "L2"])
@pytest.mark.parametrize("which", [0, -1], ids=["outer", "inner"])
def test_killed_zygote_is_replaced(level: processes.Level, which: int) -> None:
    """Between two runs and in the middle of one; the run is made again and gives its verdict."""
    runner = started(level)
    zygote = runner.sandbox.zygote_pid
    assert zygote is not None
    first = children(zygote)
    os.kill(zygote if which == 0 else first[min(1, len(first) - 1)], signal.SIGKILL)
    assert runner.run(DOUBLE, TEST, "f").result is Result.passed
    assert gone(first)
    slow = Program("import time\ndef f(x):\n    time.sleep(0.4)\n    return 2 * x", ("f",))
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(slow, TEST, "f")))
    zygote = runner.sandbox.zygote_pid
    assert zygote is not None
    thread.start()
    time.sleep(0.15)
    os.kill(children(zygote)[min(1, which % 2)] if level == "L3" else zygote, signal.SIGKILL)
    thread.join()
    assert outcomes[0].result is Result.passed
    assert runner.sandbox.zygote_pid != zygote
    runner.close()


def test_stopped_zygote_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zygote that does nothing any more costs two deadlines, and no verdict."""
    monkeypatch.setattr(processes, "END_S", 0.2)
    monkeypatch.setattr(runs, "START_S", 1.0)
    runner = started("L2", timeout_s=1.0)
    assert runner.run(DOUBLE, CALL, "f").result is Result.passed
    zygote = runner.sandbox.zygote_pid
    assert zygote is not None
    os.kill(zygote, signal.SIGSTOP)
    assert runner.run(DOUBLE, CALL, "f").result is Result.passed
    assert gone([zygote])
    runner.close()


def test_sandbox_that_cannot_come_back_is_an_infra_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = started()
    zygote = runner.sandbox.zygote_pid
    assert zygote is not None
    monkeypatch.setattr(sys, "executable", "/bin/false")
    os.kill(zygote, signal.SIGKILL)
    outcome = runner.run(DOUBLE, TEST, "f")
    assert outcome.result is Result.infra_error
    assert "did not start" in outcome.detail
    runner.close()


@contextlib.contextmanager
def files_limited_to(number: int) -> Iterator[None]:
    """Let this process, and what it starts, have so few descriptors; those that are open stay."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("case", ["TEST", "CALL"])
def test_no_descriptors_left_is_an_infra_error(case: str) -> None:
    """However many there are still when they run out, and none is lost by it; in a process in which nobody else opens any."""
    script = f"import test_sandbox; test_sandbox.run_out_of_descriptors(test_sandbox.{case})"
    places = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run_out_of_descriptors(case: Case) -> None:
    """Assert the same in this process."""
    runner = started()
    runner.close()
    open_before = num_files("self")
    lowest = next(number for number in range(1000) if not Path(f"/proc/self/fd/{number}").exists())
    results = []
    for spare in (*range(12), 40):
        runner.start()
        with files_limited_to(lowest + spare):
            results.append(runner.run(DOUBLE, case, "f").result)
        runner.close()
        assert num_files("self") == open_before
    assert results[0] is Result.infra_error
    assert set(results) <= {Result.infra_error, Result.passed}
    assert runner.run(DOUBLE, case, "f").result is Result.passed
    runner.close()


def test_no_descriptors_left_is_said_at_the_start() -> None:
    runner = started()
    with files_limited_to(4), pytest.raises(StageError, match=r"Too many open files|no pipes"):
        selftest.check(runner)
    runner.close()
    with files_limited_to(4), pytest.raises(StageError, match="did not start"):
        runner.start()
    with files_limited_to(60), pytest.raises(StageError, match=r"limit of open files .* is 60; it must be above 64"):
        runner.start()
    runner.close()


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_close_ends_everything(level: processes.Level) -> None:
    runner = started(level)
    runner.run(DOUBLE, TEST, "f")
    zygote = runner.sandbox.zygote_pid
    assert zygote is not None
    deadline = time.monotonic() + 10
    while len(pids := children(zygote)) < 3:  # With those that wait for the next run.
        assert time.monotonic() < deadline
    runner.close()
    assert gone(pids, within_s=0.5)
    runner.close()
    assert runner.run(DOUBLE, TEST, "f").result is Result.passed  # And it can be used again.
    runner.close()


@pytest.mark.parametrize("level", ["L3", "L2"])
@pytest.mark.parametrize("how", ["killed", "exit"])
def test_end_of_the_owner_ends_everything(level: str, how: str) -> None:
    code = (
        "import os, sys, threading, time\n"
        "from fusion.verifiers.sandbox.limits import Limits\n"
        "from fusion.verifiers.sandbox.runs import Program, Runner\n"
        "from fusion.verifiers.sandbox.cases import Asserts\n"
        f"runner = Runner(Limits(timeout_s=60), ceiling={level!r})\n"
        "runner.start()\n"
        "program = Program('def f(x):\\n    while True: pass', ('f',))\n"
        "threading.Thread(target=runner.run, args=(program, Asserts('f(1)'), 'f'), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print(runner.sandbox.zygote_pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdin is not None
    assert owner.stdout is not None
    zygote = int(owner.stdout.readline())
    pids = children(zygote)
    assert len(pids) >= 3
    if how == "killed":
        owner.kill()
    owner.stdin.close()
    owner.wait()
    owner.stdout.close()
    assert gone(pids)


def test_any_thread_may_ask() -> None:
    runner = started()
    wrong = Program("def f(x): return x", ("f",))
    results: dict[int, list[Result]] = {}

    def ask(number: int) -> None:
        program = DOUBLE if number % 2 else wrong
        results[number] = [runner.run(program, test, "f").result for test in (TEST, CALL, TEST)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runner.close()
    for number in range(6):
        assert set(results[number]) == {Result.passed if number % 2 else Result.wrong_answer}


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_nothing_leaks(level: processes.Level) -> None:
    """No descriptor here or in the zygote, no zombie, after runs of every ending (10,000 in the benchmark)."""
    runner = started(level, timeout_s=0.2)
    programs = [
        (DOUBLE, TEST),
        (DOUBLE, CALL),
        (Program("print(2)"), Printing("1", "2")),
        (Program("import os\nos._exit(3)"), CALL),
        (Program("while True: print('x' * 1000)"), Printing("", "")),
        (Program("def f(x):\n    while True: pass", ("f",)), TEST),
        (Program("import os\nos.kill(os.getpid(), 11)"), TEST),
        (DOUBLE, TEST),
    ]
    counts = []
    for repeats in (1, 4):
        for _ in range(repeats):
            for program, case in programs:
                runner.run(program, case, "f")
        zygote = runner.sandbox.zygote_pid
        assert zygote is not None
        serving = zygote if level == "L2" else children(zygote)[1]
        deadline = time.monotonic() + 10
        while not settled(serving):
            assert time.monotonic() < deadline
        counts.append((num_files("self"), num_files(serving), len(children(zygote))))
        assert "Z" not in map(state, children(zygote))
    runner.close()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_a_program_leaves_no_word_for_the_next(level: processes.Level) -> None:
    """By the flags of a descriptor that both inherit; those of its own are new for each."""
    seen = "import fcntl\nfor fd in range(64):\n    try: print(fd, fcntl.fcntl(fd, fcntl.F_GETFL))\n    except OSError: pass"
    leave = (
        "import fcntl\nfor fd in range(64):\n    try: fcntl.fcntl(fd, fcntl.F_SETFL, 0o6000)\n    except OSError: pass"
    )
    runner = started(level)
    before = runner.probe(seen, Limits())[1]
    assert before.startswith(b"0 ")
    runner.probe(leave, Limits())
    after = [runner.probe(seen, Limits())[1] for _ in range(2)]
    runner.close()
    assert after == [before, before]


def test_users_of_zygotes_differ_where_process_ids_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers that map the same ids may both have a process 7."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    for span, lowest in ((range(1 << 32), 0x70000000), (range(65536), 32768), (range(1000, 1001), 1000)):
        monkeypatch.setattr(namespaces, "mapped_uids", lambda span=span: span)
        uids = {namespaces.unused_uid() for _ in range(20)}
        assert len(uids) > 15 or len(span) == 1
        assert all(uid in span and uid >= lowest for uid in uids)


def test_running_twice_gives_the_same() -> None:
    """Sets of texts and random numbers are the same in every process, so that a verdict is the same tomorrow."""
    program = Program("import random\nprint(random.random(), hash('a'), list({'a', 'b', 'c'}))")
    printed = set()
    for _ in range(2):
        runner = started()
        printed.add(runner.probe(program.code, Limits())[1])
        runner.close()
    assert len(printed) == 1
