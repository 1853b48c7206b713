"""Session directories: what a killed driver leaves is removed by the next, what a living one holds is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.session import LOCK, YOUNG_S, SessionDirectory, living

DRIVER = """
import sys, time
from pathlib import Path
from cluster.session import SessionDirectory
session = SessionDirectory(below=Path(sys.argv[1]))
print(session.path, flush=True)
time.sleep(60)
"""


def start_driver(below: Path) -> tuple[subprocess.Popen, Path]:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(below)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    return driver, Path(driver.stdout.readline().strip())


def test_the_next_driver_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path):
    living, held = start_driver(tmp_path)
    killed, left = start_driver(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    fresh = SessionDirectory(below=tmp_path)
    assert left.exists()  # too young: it might be one whose owner has not locked it yet
    old = time.time() - 2 * YOUNG_S
    for directory in (held, left, fresh.path):
        os.utime(directory / LOCK, (old, old))
    other = SessionDirectory(below=tmp_path)
    assert [d.exists() for d in (held, left, fresh.path, other.path)] == [True, False, True, True]
    living.kill()
    living.wait()


def test_a_directory_goes_with_its_owner_and_others_are_never_touched(tmp_path: Path):
    foreign = tmp_path / "fl-foreign"
    foreign.mkdir()
    session = SessionDirectory(below=tmp_path)
    (session.path / "logs").mkdir()
    (session.path / "logs" / "raylet.out").write_text("text")
    session.remove()
    assert not session.path.exists()
    assert foreign.exists()


def test_nothing_in_a_directory_of_another_user_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever can write into /tmp could otherwise name the cluster that the next command talks to."""
    session = SessionDirectory(below=tmp_path)
    assert living(tmp_path) == [session.path]
    linked = tmp_path / "fl-linked"  # a directory with somebody else's notes and a lock that is really held, by us
    linked.mkdir()
    (linked / LOCK).symlink_to(session.path / LOCK)
    (tmp_path / "fl-way").symlink_to(session.path)
    (tmp_path / "fl-hard").mkdir()
    assert living(tmp_path) == [session.path]
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert living(tmp_path) == []
    monkeypatch.undo()
    if os.getuid() == 0:
        os.link(session.path / LOCK, tmp_path / "fl-hard" / LOCK)
        os.chown(tmp_path / "fl-hard", 12345, 12345)
        assert living(tmp_path) == [session.path]
    session.remove()
