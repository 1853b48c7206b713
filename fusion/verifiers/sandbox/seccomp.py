"""The seccomp filter: which system calls a program may make, as a BPF program that the kernel runs before each one.

Default is EPERM. Another architecture, and x32 on x86_64, kill the process, since numbers mean other calls there. Nine
calls are let through by their arguments; only arguments in registers can be read, which is why `clone3` is absent.
"""

import ctypes
import os
import struct

from fusion.verifiers.sandbox import kernel
from fusion.verifiers.sandbox.syscalls import ABSENT, ALLOWED, AUDIT_ARCH, TABLES

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
EPERM, ENOSYS = 1, 38

LOAD, AND, RETURN = 0x20, 0x54, 0x06
IF_EQUAL, IF_AT_LEAST, IF_ANY_BIT = 0x15, 0x35, 0x45
"""Operations: load 32 bits of the call's record, bitwise and, return; jump when equal, >=, or sharing a bit."""

NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Places in `struct seccomp_data`; argument i is 8 bytes at 16 + 8 i, its low half first."""

X32_BIT = 0x40000000
SIGKILL = 9
AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 1, 1, 0xF

IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS (is it a terminal), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
SOL_SOCKET = 1
SOCKET_OPTIONS = (3, 4, 38, 39)
"""SO_TYPE, SO_ERROR, SO_PROTOCOL, SO_DOMAIN."""
FCNTLS = (0, 1, 2, 3, 4, 1030, 1032)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ."""
NEW_NAMESPACES = (
    kernel.CLONE_NEWTIME
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWCGROUP
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
)

THREAD = kernel.CLONE_VM | kernel.CLONE_FILES | kernel.CLONE_SIGHAND | kernel.CLONE_THREAD
"""What a new task must share, all of it: one with a table of descriptors of its own has as many pipes and sockets as the whole
process may have, and what they hold counts against no limit."""

Instruction = tuple[int, int, int, int]
"""(operation, jump if true, jump if false, operand)."""

_DENY: Instruction = (RETURN, 0, 0, ERRNO | EPERM)
_PASS: Instruction = (RETURN, 0, 0, ALLOW)


def program(machine: str, own_pid: int, *, read_only: bool = False) -> list[Instruction]:
    """Return the filter for a process.

    Args:
        machine: `x86_64` or `aarch64`.
        own_pid: the only process that `kill`, `tgkill` and `prlimit64` may name.
        read_only: let no file be opened for writing, where Landlock does not see to that.

    Raises:
        KeyError: there is no table for this architecture.
    """
    table = TABLES[machine]
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (IF_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        code += [(IF_AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL_PROCESS)]
    checks = _checks(own_pid) | (_READ_ONLY if read_only else {})
    for name in sorted((ALLOWED - checks.keys()) & table.keys(), key=table.__getitem__):
        code += _when(table[name], [_PASS])
    for name in sorted(ABSENT):
        code += _when(table[name], [(RETURN, 0, 0, ERRNO | ENOSYS)])
    for name in sorted(checks.keys() & table.keys()):
        code += _when(table[name], checks[name])
    return [*code, _DENY]


def assemble(code: list[Instruction]) -> bytes:
    """Return the bytes of a filter (an array of `struct sock_filter`)."""
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def install(filter_bytes: bytes) -> None:
    """Put a filter on this process for good; it needs no privilege after `PR_SET_NO_NEW_PRIVS`.

    Raises:
        OSError: this kernel has no seccomp filters.
    """
    buffer = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))
    header = struct.pack("HxxxxxxP", len(filter_bytes) // 8, ctypes.addressof(buffer))
    set_mode_filter, no_flags = 1, 0
    kernel.syscall(TABLES[kernel.machine()]["seccomp"], set_mode_filter, no_flags, header)


def _checks(own_pid: int) -> dict[str, list[Instruction]]:
    """Per checked call, what decides; each list ends in a return on every path."""
    signals_itself = [*_require(0, (own_pid,))]
    return {
        # SIGKILL to itself is refused so that a SIGKILL always is somebody else's, and not the program's fault.
        "kill": [*signals_itself, *_refuse(1, SIGKILL), _PASS],
        "tgkill": [*signals_itself, *_refuse(2, SIGKILL), _PASS],
        "prlimit64": [*_require(0, (0, own_pid)), *_require_null(2), _PASS],
        "ioctl": [*_require(1, IOCTLS), _PASS],
        "fcntl": [*_require(1, FCNTLS), _PASS],
        # A datagram socket could be sent on to any other socket by its address, so only streams, and no addresses.
        "socketpair": [*_require(0, (AF_UNIX,)), *_require(1, (SOCK_STREAM,), SOCK_TYPE_MASK), _PASS],
        "sendto": [*_require_null(4), _PASS],
        "clone": [
            _low(0),
            (IF_ANY_BIT, 0, 1, NEW_NAMESPACES),
            _DENY,
            *_require(0, (THREAD,), THREAD),
            _PASS,
        ],
        # Others name the process at the other end, and hand out a descriptor of it.
        "getsockopt": [*_require(1, (SOL_SOCKET,)), *_require(2, SOCKET_OPTIONS), _PASS],
    }


def _when(number: int, block: list[Instruction]) -> list[Instruction]:
    assert len(block) < 256, "a jump is one byte"
    return [(IF_EQUAL, 0, len(block), number), *block]


def _refuse_bits(argument: int, bits: int) -> list[Instruction]:
    return [_low(argument), (IF_ANY_BIT, 0, 1, bits), _DENY]


def _low(argument: int) -> Instruction:
    return (LOAD, 0, 0, ARGUMENTS + 8 * argument)


def _high(argument: int) -> Instruction:
    return (LOAD, 0, 0, ARGUMENTS + 8 * argument + 4)


def _require(argument: int, values: tuple[int, ...], mask: int | None = None) -> list[Instruction]:
    """Deny unless the low half of an argument, which is all that the kernel reads of an int, is one of the values."""
    head = [_low(argument)] + ([] if mask is None else [(AND, 0, 0, mask)])
    tests = [(IF_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*head, *tests, _DENY]


def _refuse(argument: int, value: int) -> list[Instruction]:
    return [_low(argument), (IF_EQUAL, 0, 1, value), _DENY]


def _require_null(argument: int) -> list[Instruction]:
    """Deny unless a pointer is NULL, in both its halves."""
    return [
        _low(argument),
        (IF_EQUAL, 1, 0, 0),
        _DENY,
        _high(argument),
        (IF_EQUAL, 1, 0, 0),
        _DENY,
    ]


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_READ_ONLY = {"open": [*_refuse_bits(1, _WRITING), _PASS], "openat": [*_refuse_bits(2, _WRITING), _PASS]}
