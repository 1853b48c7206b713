"""A checkpoint commit is killed at each of its file operations: the old checkpoint or the new one is always there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("commit_kills.py")


def kill_everywhere(way: str, directory: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), way, str(directory)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def check(points: list[dict], *, at_least: int) -> None:
    assert len(points) >= at_least
    assert {p["status"] for p in points} == {-signal.SIGKILL}
    assert {p["left"] for p in points} == {1, 2}, "never nothing, and both are reached"
    assert all(p["clean"] for p in points), "a later commit clears what kills left"


def test_killed_at_every_python_file_call(tmp_path: Path) -> None:
    done = kill_everywhere("calls", tmp_path / "checkpoints")
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)
    check(points, at_least=50)
    lefts = [p["left"] for p in points]
    assert lefts == sorted(lefts), "once the new checkpoint is there, it stays"


def test_killed_at_every_system_call(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; the kills at Python's file calls stand alone")
    done = kill_everywhere("strace", tmp_path / "checkpoints")
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"{done.stderr.strip()}; the kills at Python's file calls stand alone")
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), at_least=80)
