"""One driver at a time in a directory: a file made with O_EXCL that says who holds it.

A lease whose process is dead on this host is taken over; one of another host is not, because nobody here can
know. Data stages need none: their parts are atomic and equal in meaning.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusion.errors import BusyError

log = logging.getLogger(__name__)

LEASE = "lease.json"


@contextlib.contextmanager
def hold(path: Path, resume_command: str) -> Iterator[None]:
    """Hold the directory for this process; a lease whose process is dead on this host is taken over."""
    file = path / LEASE
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": _birth(os.getpid()), "argv": sys.argv}
    while True:
        try:
            handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            holder = _read_lease(file)
            if holder is None:
                continue  # it was released between our two calls
            if holder["host"] == mine["host"] and _birth(holder["pid"]) != holder["born"]:
                log.warning("taking over the lease of %s: process %s is gone", path, holder["pid"])
                file.unlink(missing_ok=True)
                continue
            raise BusyError(
                f"{path} is held by process {holder['pid']} on {holder['host']} ({' '.join(holder['argv'][-3:])}); "
                f"wait for it, or if it is dead remove {file}, then: {resume_command}"
            ) from None
        with os.fdopen(handle, "w") as out:
            json.dump(mine, out)
            out.flush()
            os.fsync(out.fileno())
        break
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def is_locked(file: Path) -> bool:
    """Whether a living process, this one or another, holds the kernel's lock (flock) on `file`; no file, no lock."""
    try:
        with file.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _read_lease(file: Path) -> dict[str, Any] | None:
    for _ in range(50):
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(0.02)  # its holder is between creating and filling it
    return {"host": socket.gethostname(), "pid": -1, "born": "", "argv": ["a driver killed while taking the lease"]}


def _birth(pid: int) -> str | None:
    """Start time of a process in clock ticks: tells a live holder from a new process with its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
