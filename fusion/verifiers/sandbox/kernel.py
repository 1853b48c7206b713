"""Calls into Linux that Python has no function for, by ctypes; no policy lives here.

Every call raises `OSError` with the kernel's errno, so that what is refused names itself.
"""

import ctypes
import os
import platform

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

CLONE_NEWTIME = 0x80
CLONE_VM = 0x100
CLONE_FILES = 0x400
CLONE_SIGHAND = 0x800
CLONE_THREAD = 0x10000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 0x1, 0x2, 0x4, 0x8, 0x20
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC = 0x400, 0x800, 0x1000, 0x4000
MS_PRIVATE, MS_RELATIME = 0x40000, 0x200000
MNT_DETACH = 2

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def machine() -> str:
    """Return the name of this machine's architecture, e.g. `x86_64`."""
    return platform.machine()


def syscall(number: int, *arguments: int | bytes | ctypes.Array | None) -> int:
    """Make a system call by number; numbers are passed as 64 bits.

    Raises:
        OSError: the kernel refused.
    """
    plain = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _checked(_LIBC.syscall(ctypes.c_long(number), *plain), f"system call {number}")


def prctl(option: int, value: int) -> None:
    """Set one property of this process (prctl(2))."""
    _checked(_LIBC.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, (value, 0, 0, 0))), f"prctl {option}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by the flags and enter new ones (unshare(2))."""
    _checked(_LIBC.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount, bind or change a mount (mount(2))."""
    texts = [None if t is None else os.fsencode(t) for t in (source, target, kind, options)]
    code = _LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _checked(code, f"mount on {target}")


def unmount(target: str, flags: int) -> None:
    """Take a mount away (umount2(2))."""
    _checked(_LIBC.umount2(os.fsencode(target), ctypes.c_int(flags)), f"unmount of {target}")


def _checked(code: int, what: str) -> int:
    if code < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return code
