"""Runs Python under a seccomp filter that makes this kernel look like a poorer one; a script for tests.

    python tests/verifiers/confined.py CALL=WHAT[,CALL=WHAT…] CODE

WHAT is the errno that the call then always fails with, or 0: it seems to succeed and does nothing. `namespaces=1` is
what ordinary containers do: `unshare` and `clone` into new namespaces fail with EPERM.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from fusion.verifiers.sandbox import kernel, seccomp  # noqa: E402
from fusion.verifiers.sandbox.syscalls import AUDIT_ARCH, TABLES  # noqa: E402

UNSHARE = {"x86_64": 272, "aarch64": 97}


def confine(rules: dict[str, int]) -> None:
    """Put the filter on this process and its children."""
    machine = kernel.machine()
    code = [
        (seccomp.LOAD, 0, 0, seccomp.ARCHITECTURE),
        (seccomp.IF_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (seccomp.RETURN, 0, 0, seccomp.ALLOW),
        (seccomp.LOAD, 0, 0, seccomp.NUMBER),
    ]
    for name, number in rules.items():
        call = UNSHARE[machine] if name == "namespaces" else TABLES[machine][name]
        code += [(seccomp.IF_EQUAL, 0, 1, call), (seccomp.RETURN, 0, 0, seccomp.ERRNO | number)]
    code.append((seccomp.RETURN, 0, 0, seccomp.ALLOW))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.assemble(code))


if __name__ == "__main__":
    confine({name: int(number) for name, number in (rule.split("=") for rule in sys.argv[1].split(","))})
    exec(compile(sys.argv[2], "<confined>", "exec"), {"__name__": "__main__"})
