"""Kills a process at every file operation of a checkpoint commit, and looks at what is left. Run by test_commit_kills.

A child is forked for each point, so that torch is imported once. Two ways to kill: `calls` counts Python's calls into
C that touch files and sends SIGKILL to itself before the n-th; `strace` lets strace kill at the entry of the n-th call
of each system call, which also reaches what C++ writes for torch. Prints one JSON line: the points, and per point the
step of the checkpoint that is left.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from fusion.train.checkpoint import CheckpointMeta, commit, look_up
from fusion.train.identity import RunIdentity

CALLS = frozenset(
    [
        "open",
        "close",
        "write",
        "fsync",
        "rename",
        "replace",
        "mkdir",
        "rmdir",
        "unlink",
        "chmod",
        "scandir",
        "lstat",
        "flush",
        "writelines",
        "truncate",
    ]
)
SYSCALLS = [
    "openat",
    "write",
    "fsync",
    "rename",
    "mkdir",
    "unlink",
    "unlinkat",
    "rmdir",
    "chmod",
    "close",
    "getdents64",
]
IDENTITY = RunIdentity(config={"seed": 0}, files={"encoded.parquet": "aa"}, model="cc")


def write_state(folder: Path, step: int) -> None:
    (folder / "engine").mkdir()
    for name in ("model", "optim"):
        torch.save({"step": step, "weights": torch.full((3000,), float(step))}, folder / "engine" / f"{name}.pt")


def commit_step(directory: Path, step: int) -> None:
    meta = CheckpointMeta(step=step, num_tokens=step, world_size=1, zero_stage=2, identity=IDENTITY)
    commit(directory, meta, lambda folder: write_state(folder, step), keep=lambda known: {max(known)})


def step_left(directory: Path) -> int:
    """The step of the checkpoint that a restart would believe, after reading its tensors; 0 = none."""
    result = look_up(directory)
    if result.found is None:
        return 0
    path, meta = result.found
    for name in ("model", "optim"):
        state = torch.load(path / "engine" / f"{name}.pt")
        assert state["step"] == meta.step and bool((state["weights"] == meta.step).all())
    return meta.step


def point(directory: Path, child) -> tuple[int, int, bool]:
    """Kill a commit of step 2 over a complete step 1; returns (exit status, step left, whether another try works)."""
    shutil.rmtree(directory, ignore_errors=True)
    commit_step(directory, 1)
    status = child(directory)
    left = step_left(directory)
    commit_step(directory, 3)
    clean = sorted(path.name for path in directory.iterdir()) == ["step_000003"] and step_left(directory) == 3
    return status, left, clean


def by_calls(number: int):
    def child(directory: Path) -> int:
        pid = os.fork()
        if pid == 0:
            count = 0

            def profile(_frame, event: str, function) -> None:
                nonlocal count
                if event == "c_call" and function.__name__ in CALLS:
                    count += 1
                    if count == number:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(profile)
            commit_step(directory, 2)
            sys.setprofile(None)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return child


def by_strace(syscall: str, number: int):
    def child(directory: Path) -> int:
        go, start = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(start)
            os.read(go, 1)
            commit_step(directory, 2)
            os._exit(0)
        os.close(go)
        inject = f"inject={syscall}:signal=KILL:when={number}"
        tracer = subprocess.Popen(
            ["strace", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={syscall}", "-e", inject],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if "attached" not in said:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise SystemExit(f"strace: {said.strip()}")
        os.write(start, b"x")
        os.close(start)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        tracer.wait()
        tracer.stderr.close()
        return status

    return child


def main() -> None:
    way, directory = sys.argv[1], Path(sys.argv[2])
    found = []
    for kind in ["call"] if way == "calls" else SYSCALLS:
        number = 0
        while True:
            number += 1
            how = by_calls(number) if way == "calls" else by_strace(kind, number)
            status, left, clean = point(directory, how)
            if status == 0:
                assert left == 2
                break
            found.append({"at": f"{kind} {number}", "status": status, "left": left, "clean": clean})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
