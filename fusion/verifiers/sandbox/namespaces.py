"""Who a program is and what exists around it: an unused user id, no capabilities, and at level L3 namespaces of its own.

In its namespaces there is no network but a dead loopback, no process but those of the sandbox, and a file tree that
holds nothing but the folders a program may read. Entered once by the zygote, they cost a program nothing.
"""

import contextlib
import os
import pwd
import struct
import sys
from pathlib import Path

from fusion.verifiers.sandbox import kernel
from fusion.verifiers.sandbox.syscalls import TABLES

UNUSED_UIDS = range(0x70000000, 0x7FFFFFFF)
"""User ids that no distribution gives to users, services or containers (systemd's table of user ids)."""

NEW = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
)

_ROOT = "/tmp"
"""Any folder that exists everywhere; the new tree is put together on top of it, where nobody else sees it."""
_SYSTEM_FOLDERS = tuple(map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64")))
_FILES = tuple(map(Path, ("/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")))
_CAPABILITY_VERSION_3 = 0x20080522


def unused_uid() -> int:
    """Return a user id that nobody has, another one for each process that asks, within what this container maps.

    It is drawn by chance: containers that share the ids of their host have processes of the same numbers.
    """
    drawn = int.from_bytes(os.urandom(8), "little")
    span = mapped_uids()
    candidate = UNUSED_UIDS[drawn % len(UNUSED_UIDS)]
    if candidate in span:
        return candidate
    candidate = span[-1 - drawn % max(1, len(span) // 2)]
    with contextlib.suppress(KeyError):
        while candidate > span.start and pwd.getpwuid(candidate):
            candidate -= 1
    return candidate


def mapped_uids() -> range:
    """Return the longest run of user ids that exist in this container."""
    maps = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    start, _, count = max(maps, key=lambda entry: entry[2])
    return range(start, start + count)


def drop_root() -> None:
    """Become an unused user without groups, for good. RLIMIT_NPROC, among others, does nothing for root.

    Raises:
        OSError: this root may not, as in a container without CAP_SETUID and CAP_SETGID.
    """
    uid = unused_uid()
    _drop_bounding_set()
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise OSError(f"root may not become another user here ({error.strerror}); run as an ordinary user") from None


def drop_capabilities() -> None:
    """Give up every capability, those of a user namespace too, and the way to get one by an exec."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    _drop_bounding_set()
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    kernel.syscall(TABLES[kernel.machine()]["capset"], header, bytes(24))


def _drop_bounding_set() -> None:
    with contextlib.suppress(OSError):  # Refused after the last capability, and where there is none to do it with.
        for number in range(64):
            kernel.prctl(kernel.PR_CAPBSET_DROP, number)


def enter() -> None:
    """Enter new user, mount, pid, net, ipc and uts namespaces; the next child is process 1 of them.

    The working directory must be the folder of the standard library, which may lie beneath a folder that this user
    cannot enter.

    Raises:
        OSError: this kernel or container does not allow it; the process is of no use after that.
    """
    if not _tasks_count_per_namespace():
        raise OSError("before Linux 5.14 the threads of a namespace are counted with those of the whole user")
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(NEW)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # Without it the files of /proc/self belong to root once root was dropped.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def replace_tree(libraries: list[Path], shared_objects: list[Path]) -> None:
    """Make a file tree of what a program may read the only one; called by process 1 of the namespaces.

    Args:
        libraries: folders of the standard library, the first of which is the working directory.
        shared_objects: folders with what it loads; those that this user cannot enter are left out.

    Raises:
        OSError: a mount is not allowed here.
    """
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    sources = {path: str(path) for path in [*_SYSTEM_FOLDERS, *shared_objects, *_FILES] if os.access(path, os.R_OK)}
    links = {path: str(path.readlink()) for path in sources if path.is_symlink()}
    for folder in libraries:
        beneath = folder.is_relative_to(libraries[0])
        sources[folder] = str(folder.relative_to(libraries[0])) if beneath else str(folder)
    opened = {path: os.open(sources[path], os.O_PATH) for path in sources.keys() - links.keys()}
    kernel.mount("none", _ROOT, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0755")
    for path in sorted(opened):
        _bind(opened[path], path)
    for path, target in links.items():
        Path(_ROOT + str(path)).parent.mkdir(parents=True, exist_ok=True)
        Path(_ROOT + str(path)).symlink_to(target)
    for descriptor in opened.values():
        os.close(descriptor)
    os.chdir(_ROOT)
    # With the same folder twice the old root is put on top of the new one, and comes off at once (pivot_root(2)).
    kernel.syscall(TABLES[kernel.machine()]["pivot_root"], b".", b".")
    kernel.unmount(".", kernel.MNT_DETACH)
    os.chdir("/")
    read_only = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY
    kernel.mount(None, "/", None, read_only | kernel.MS_NOSUID | kernel.MS_NODEV)


def _bind(source: int, path: Path) -> None:
    """Show a file or folder in the new tree, read-only."""
    place = Path(_ROOT + str(path))
    if Path(f"/proc/self/fd/{source}").is_dir():
        if place.is_dir() and any(place.iterdir()):
            return  # It lies beneath a folder that is there already.
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    kernel.mount(f"/proc/self/fd/{source}", str(place), None, kernel.MS_BIND | kernel.MS_REC)
    flags = os.statvfs(place).f_flag
    kept = flags & (kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC | kernel.MS_NOATIME | kernel.MS_NODIRATIME)
    if flags & os.ST_RELATIME:
        kept |= kernel.MS_RELATIME
    kernel.mount(None, str(place), None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kept)


def _tasks_count_per_namespace() -> bool:
    numbers = os.uname().release.split("-")[0].split(".")
    return tuple(map(int, numbers[:2])) >= (5, 14)


def reach_library(folder: Path, descriptor: int) -> None:
    """Let imports from a folder go through an open descriptor of it, where this user cannot enter the folders above."""
    through = f"/proc/self/fd/{descriptor}"
    sys.path[:] = [_moved(entry, str(folder), through) for entry in sys.path]
    for module in list(sys.modules.values()):
        path = getattr(module, "__path__", None)
        if isinstance(path, list):
            path[:] = [_moved(entry, str(folder), through) for entry in path]


def _moved(path: str, folder: str, through: str) -> str:
    return through + path[len(folder) :] if path == folder or path.startswith(folder + "/") else path
