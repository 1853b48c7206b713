"""The seccomp filter of both architectures, run by an interpreter of BPF, and its numbers against the headers."""

import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.verifiers.sandbox import kernel, seccomp
from fusion.verifiers.sandbox.seccomp import ALLOW, ENOSYS, EPERM, ERRNO, KILL_PROCESS, Instruction
from fusion.verifiers.sandbox.syscalls import ABSENT, ALLOWED, AUDIT_ARCH, CHECKED, TABLES

OWN = 4321
MACHINES = sorted(TABLES)
DENY = ERRNO | EPERM
HEADERS = {
    "x86_64": "#include <asm/unistd_64.h>",
    "aarch64": "#define __BITS_PER_LONG 64\n#define __ARCH_WANT_NEW_STAT\n#define __ARCH_WANT_SYS_CLONE3\n"
    "#define __ARCH_WANT_SET_GET_RLIMIT\n#include <asm-generic/unistd.h>",
}


def evaluate(code: list[Instruction], architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """Return what the filter answers to a call."""
    record = [number, architecture, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        record += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    place, value = 0, 0
    while True:
        operation, if_true, if_false, operand = code[place]
        place += 1
        match operation:
            case seccomp.LOAD:
                value = record[operand // 4]
            case seccomp.AND:
                value &= operand
            case seccomp.RETURN:
                return operand
            case seccomp.IF_EQUAL:
                place += if_true if value == operand else if_false
            case seccomp.IF_AT_LEAST:
                place += if_true if value >= operand else if_false
            case seccomp.IF_ANY_BIT:
                place += if_true if value & operand else if_false


def answer(machine: str, name: str, *arguments: int) -> int:
    return evaluate(seccomp.program(machine, OWN), AUDIT_ARCH[machine], TABLES[machine][name], arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_gets_its_answer(machine: str) -> None:
    """Allowed and absent calls by number, everything else EPERM, with no arguments that a checked call would take."""
    code, table = seccomp.program(machine, OWN), TABLES[machine]
    allowed = {table[name] for name in ALLOWED & table.keys()}
    absent = {table[name] for name in ABSENT}
    ones = (0xFFFFFFFFFFFFFFFF,) * 6
    for number in range(1024):
        expected = ALLOW if number in allowed else ERRNO | ENOSYS if number in absent else DENY
        assert evaluate(code, AUDIT_ARCH[machine], number, ones) == expected, number
    assert len(allowed) > 60


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_kills(machine: str) -> None:
    code = seccomp.program(machine, OWN)
    for architecture in (0x40000003, 0x40000028, *(AUDIT_ARCH[other] for other in MACHINES if other != machine)):
        assert evaluate(code, architecture, TABLES[machine]["read"], ()) == KILL_PROCESS
    x32 = evaluate(code, AUDIT_ARCH[machine], 0x40000000 | TABLES[machine]["read"], ())
    assert x32 == (KILL_PROCESS if machine == "x86_64" else DENY)


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide(machine: str) -> None:
    thread = 0x3D0F00  # What glibc passes for a thread: VM, FS, FILES, SIGHAND, THREAD and others.
    allowed = [
        ("kill", OWN, 15),
        ("tgkill", OWN, 99, 6),
        ("prlimit64", 0, 7, 0, 1 << 40),
        ("prlimit64", OWN, 7, 0, 1),
        ("ioctl", 1, 0x5401),
        ("ioctl", 1, 0x5421),
        ("fcntl", 1, 3),
        ("fcntl", 1, 1030),
        ("socketpair", 1, 1 | 0o2000000),
        ("sendto", 5, 1, 1, 0, 0, 0),
        ("clone", thread),
        ("clone", thread | 0x400000),  # musl sets CLONE_DETACHED too.
        *[("getsockopt", 5, 1, option, 1 << 40, 1 << 40) for option in (3, 4, 38, 39)],
    ]
    denied = [
        ("kill", OWN, 9),
        ("kill", OWN + 1, 15),
        ("kill", 0, 15),
        ("kill", 0xFFFFFFFF, 15),
        ("tgkill", OWN + 1, OWN, 6),
        ("tgkill", OWN, OWN, 9),
        ("prlimit64", 0, 7, 1 << 40, 0),
        ("prlimit64", 0, 7, 1, 0),
        ("prlimit64", OWN + 1, 7, 0, 1),
        ("ioctl", 1, 0x5412),
        ("ioctl", 1, 0x541C),
        *[("fcntl", 1, command) for command in (8, 10, 15, 16, 1024, 1026, 1031)],
        ("socketpair", 1, 2),
        ("socketpair", 1, 5),
        ("socketpair", 2, 1),
        ("socketpair", 16, 3),
        ("sendto", 5, 1, 1, 0, 1 << 40, 0),
        ("sendto", 5, 1, 1, 0, 1, 0),
        ("clone", 17),
        ("clone", 0),
        *[("clone", thread & ~flag) for flag in (0x100, 0x400, 0x800, 0x10000)],  # VM, FILES, SIGHAND, THREAD.
        *[("getsockopt", 5, 1, option) for option in (2, 7, 8, 17, 26, 31, 59, 76, 77)],  # SO_PEERPIDFD among them.
        *[("getsockopt", 5, level, 4) for level in (0, 6, 41, 263, 0xFFFFFFFF)],
        *[
            ("clone", thread | flag)
            for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 1 << 28, 1 << 29, 1 << 30)
        ],
    ]
    assert [call for call in allowed if answer(machine, call[0], *call[1:]) != ALLOW] == []
    assert [call for call in denied if answer(machine, call[0], *call[1:]) != DENY] == []


@given(
    machine=st.sampled_from(MACHINES),
    name=st.sampled_from(sorted(CHECKED)),
    arguments=st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
)
def test_checked_calls_never_name_another_process(machine: str, name: str, arguments: tuple[int, ...]) -> None:
    if answer(machine, name, *arguments) == ALLOW and name in ("kill", "tgkill"):
        assert arguments[0] & 0xFFFFFFFF == OWN
    if answer(machine, name, *arguments) == ALLOW and name == "prlimit64":
        assert arguments[2] == 0


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C preprocessor to read the kernel's headers with")
    names = sorted(TABLES[machine])
    source = HEADERS[machine] + "".join(f"\n#ifdef __NR_{n}\nFOUND {n} __NR_{n}\n#endif" for n in names) + "\n"
    done = subprocess.run(
        [compiler, "-E", "-P", "-x", "c", "-"], input=source, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("the kernel's headers are not installed")
    found = {name: eval(number) for name, number in re.findall(r"^FOUND (\w+) ([\d +()]+)$", done.stdout, re.MULTILINE)}
    assert len(found) > 80
    assert {name: TABLES[machine][name] for name in found} == found


def test_the_filter_is_a_program_that_this_kernel_takes() -> None:
    """Its bytes, loaded in a process of its own, in which `getpid` then works and `kill` of another does not."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from fusion.verifiers.sandbox import kernel, seccomp\n"
        "kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)\n"
        "seccomp.install(seccomp.assemble(seccomp.program(kernel.machine(), os.getpid())))\n"
        "print(os.getpid() > 0)\n"
        "try: os.kill(1, 0)\n"
        "except PermissionError: print('denied')"
    )
    done = subprocess.run([sys.executable, "-c", code, "."], capture_output=True, text=True, check=False)
    assert done.stdout == "True\ndenied\n", done.stderr
    assert kernel.machine() in TABLES
