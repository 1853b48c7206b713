"""The directory of a Ray that a driver starts for itself, removed with it or, after a kill, by the next one.

It lies below /tmp and has a short name, because Ray's unix sockets live in it and their paths may have only
about 107 characters. Its owner holds a lock in it, which the kernel releases however the owner dies.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from fusion.lease import is_locked

LOCK = "driver.lock"
PREFIX = "fl-"
YOUNG_S = 60.0
"""Age below which a directory without a living owner is left alone: its owner may be about to lock it."""


class SessionDirectory:
    """A new session directory, locked while this process lives.

    Attributes:
        path: where Ray is told to work.
    """

    def __init__(self, *, below: Path = Path("/tmp")) -> None:
        """Make the directory and remove those of drivers that are dead."""
        remove_abandoned(below)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=below))
        self._lock = (self.path / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self, *, patience_s: float = 10.0) -> None:
        """Remove it; Ray's last processes may write logs into it for some seconds."""
        deadline = time.monotonic() + patience_s
        while self.path.exists():
            shutil.rmtree(self.path, ignore_errors=time.monotonic() < deadline)
            time.sleep(0.2)
        self._lock.close()


def remove_abandoned(below: Path) -> None:
    """Remove our session directories whose owner is dead."""
    for lock in below.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(FileNotFoundError):  # another driver is removing it too
            if _is_ours(lock) and time.time() - lock.stat().st_mtime > YOUNG_S and not is_locked(lock):
                shutil.rmtree(lock.parent, ignore_errors=True)


def living(below: Path = Path("/tmp")) -> list[Path]:
    """Return the session directories of our drivers that live."""
    return [lock.parent for lock in sorted(below.glob(f"{PREFIX}*/{LOCK}")) if _is_ours(lock) and is_locked(lock)]


def _is_ours(lock: Path) -> bool:
    """Return whether this user made the directory and the lock in it. Everybody may write into /tmp, so a directory of
    somebody else may hold a link to a lock of ours; links are not followed.
    """
    try:
        directory, file = lock.parent.lstat(), lock.lstat()
    except FileNotFoundError:  # its owner has just removed it
        return False
    are_plain = stat.S_ISDIR(directory.st_mode) and stat.S_ISREG(file.st_mode)
    return are_plain and directory.st_uid == file.st_uid == os.getuid()
