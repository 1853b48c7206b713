"""Eight fast attacks that must fail before a sandbox is used, and one ordinary program that must not.

Each attack prints THROUGH when it got somewhere. What is tested is this machine: kernels are built, and containers set up,
in ways that leave a protection in place by name only.
"""

import os

from fusion.errors import StageError
from fusion.verifiers.sandbox.limits import Limits
from fusion.verifiers.sandbox.outcomes import Result
from fusion.verifiers.sandbox.processes import LostError
from fusion.verifiers.sandbox.runs import Runner

_CALL = "import ctypes, os\nlibc = ctypes.CDLL(None)\n"

PUBLIC_FILE = "/etc/passwd"
"""Every user may read it, so that nothing but the sandbox keeps a program from it; a file of ours may be in a private folder."""
NEEDS_LANDLOCK = ("read a file",)
"""Attacks that level L1 does not stop."""


def attacks(secret_file: str, owner: int) -> dict[str, str]:
    """Return name -> program.

    Args:
        secret_file: a file that a program must not read.
        owner: a process that a program must not touch.
    """
    return {
        "read a file": f"open({secret_file!r}).read()\nprint('THROUGH')",
        "write a file": "import os\nopen('/tmp/self-test', 'w').close()\nprint('THROUGH')\nos.unlink('/tmp/self-test')",
        "start a program": "import os\nif os.posix_spawn('/bin/true', ['true'], {}): print('THROUGH')",
        "fork": "import os\nif os.fork() == 0: os._exit(0)\nprint('THROUGH')",
        "open a socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_STREAM)\nprint('THROUGH')",
        "signal a process": f"import os\nos.kill({owner}, 0)\nprint('THROUGH')",
        "trace a process": _CALL + f"if libc.ptrace(16, {owner}, 0, 0) == 0: print('THROUGH')",
        "take much memory": "x = bytearray(1 << 34)\nprint('THROUGH')",
    }


_ORDINARY = """
import asyncio, decimal, threading
async def half(x):
    await asyncio.sleep(0)
    return x / 2
threads = [threading.Thread(target=int) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(asyncio.run(half(84)), decimal.Decimal(1) / 4)
"""


def check(runner: Runner) -> None:
    """Try the sandbox of a runner.

    Raises:
        StageError: an attack got through, or the ordinary program did not run; the text names it.
    """
    limits = Limits(timeout_s=10.0)
    try:
        for name, program in attacks(PUBLIC_FILE, os.getppid()).items():
            if name in NEEDS_LANDLOCK and runner.sandbox.level == "L1":
                continue
            outcome, printed = runner.probe(program, limits)
            if b"THROUGH" in printed:
                raise StageError(
                    f"the code sandbox does not hold on this machine: a program could {name}; no program is run"
                )
        outcome, printed = runner.probe(_ORDINARY, limits)
    except (LostError, OSError) as error:
        raise StageError(f"the code sandbox fails on this machine: {error}") from None
    if outcome.result is not Result.passed or printed != b"42.0 0.25\n":
        raise StageError(f"the code sandbox does not run an ordinary program on this machine: {outcome.detail}")
