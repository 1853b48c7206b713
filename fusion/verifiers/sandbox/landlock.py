"""Landlock: which files a program can open at all. Everything that is not named here is closed, and nothing can be written.

A program gets the standard library (without `site-packages`), the shared objects that it may load, time zones,
`/dev/null` and `/dev/urandom`. Landlock says nothing of `stat`: that a path exists can be seen at level L2.
"""

import errno
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from fusion.verifiers.sandbox import kernel
from fusion.verifiers.sandbox.syscalls import TABLES

READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14

_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 5: 16}
"""ABI version -> number of file rights that it knows, counted from bit 0 (linux/landlock.h)."""
_ALL_TCP = 0b11
"""ABI 4: bind and connect."""
_ALL_SCOPES = 0b11
"""ABI 6: abstract UNIX sockets and signals to processes outside."""

_NOT_LIBRARY = ("site-packages", "dist-packages")
_RULE_PATH_BENEATH = 1


def abi() -> int:
    """Return the version of Landlock that this kernel has; 0 where it has none."""
    version_flag = 1
    try:
        return kernel.syscall(TABLES[kernel.machine()]["landlock_create_ruleset"], None, 0, version_flag)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def library_folders() -> list[Path]:
    """Return the folders of the standard library that this interpreter imports from, the one with `os.py` first."""
    folders = [path for path in map(Path, sys.path) if path.is_absolute() and path.is_dir()]
    return sorted(folders, key=lambda path: not (path / "os.py").exists())


def shared_object_folders() -> list[Path]:
    """Return the folders that hold the shared objects of this process, and the system's folders for them."""
    loaded = {
        Path(line.split(maxsplit=5)[5].strip()).parent
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/" in line and ".so" in line
    }
    standard = {
        Path(f"/{top}/{name}") for top in ("lib", "usr/lib", "lib64", "usr/lib64") for name in (".", _triplet())
    }
    return sorted({path.resolve() for path in loaded | standard if path.is_dir()})


def readable() -> Iterator[tuple[Path, int]]:
    """Yield (path, rights) of everything that a program can open; the rights of a folder hold for all beneath it."""
    for folder in library_folders():
        yield folder, READ_DIR
        for entry in folder.iterdir():
            if entry.name not in _NOT_LIBRARY:
                yield entry, READ_FILE
    for folder in shared_object_folders():
        for entry in folder.glob("*.so*"):
            if entry.is_file():
                yield entry, READ_FILE
    yield Path("/etc/ld.so.cache"), READ_FILE
    yield Path("/usr/share/zoneinfo"), READ_FILE | READ_DIR
    yield Path("/dev/urandom"), READ_FILE
    yield Path("/dev/null"), READ_FILE | WRITE_FILE | TRUNCATE


def ruleset(version: int) -> int:
    """Return the descriptor of a ruleset that closes all but `readable`; it holds for a process after `restrict`.

    Args:
        version: what `abi` returned; 1 or more.
    """
    rights = max(count for since, count in _RIGHTS_BY_ABI.items() if since <= version)
    handled = (1 << rights) - 1
    attributes = struct.pack("QQQ", handled, _ALL_TCP if version >= 4 else 0, _ALL_SCOPES if version >= 6 else 0)
    # The kernel refuses a record that is longer than it knows, unless the rest is zero, which it is.
    table = TABLES[kernel.machine()]
    rules = kernel.syscall(table["landlock_create_ruleset"], attributes, len(attributes), 0)
    for path, access in readable():
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # What is not there, or is a broken link, cannot be read either.
        # A right that this version does not know is not handled and needs no rule; READ_DIR is for folders only.
        kept = access & handled if Path(path).is_dir() else access & handled & ~READ_DIR
        kernel.syscall(table["landlock_add_rule"], rules, _RULE_PATH_BENEATH, struct.pack("=Qi", kept, opened), 0)
        os.close(opened)
    return rules


def restrict(rules: int) -> None:
    """Put a ruleset on this process for good; needs `PR_SET_NO_NEW_PRIVS`."""
    kernel.syscall(TABLES[kernel.machine()]["landlock_restrict_self"], rules, 0)


def _triplet() -> str:
    return f"{kernel.machine()}-linux-gnu"
