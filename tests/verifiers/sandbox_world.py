"""Runs all attacks in a world that notices them, with a sandbox or without, and prints what was seen as JSON.

    python tests/verifiers/sandbox_world.py L3|L2|bare

The world: a folder that anybody may write, with files that nobody should read; a secret in the environment and one in the memory
of this process; listeners on TCP, UDP and UNIX sockets; a victim that counts its signals. An attack is through when a
secret or the word THROUGH is in what it printed, when the folder changed, a listener heard, the victim was touched, or a process
stayed. It is a program of its own so that it can be run as an unused user, and needs nothing but the standard library.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
package = sys.modules["fusion.verifiers"] = types.ModuleType("fusion.verifiers")  # Without what its __init__ imports.
package.__path__ = [str(ROOT / "fusion" / "verifiers")]

from sandbox_attacks import ATTACKS, Attack, number  # noqa: E402

from fusion.verifiers.sandbox.limits import Limits  # noqa: E402
from fusion.verifiers.sandbox.runs import Runner  # noqa: E402

LIMITS = Limits(timeout_s=5.0, memory_mb=512)
BRIEF = dataclasses.replace(LIMITS, timeout_s=0.15)
PASSWORDS = "root:x:0:0"

VICTIM = """
import signal
def heard(number, _): print(number, flush=True)
for number in (1, 2, 10, 12, 15, 23, 29): signal.signal(number, heard)
print("ready", flush=True)
while True: signal.pause()
"""
ROLL_CALL = signal.SIGUSR2
"""What this process sends to the victim after each attack; what was sent before is heard before."""


class World:
    """What is around the sandbox."""

    def __init__(self) -> None:
        self.mark = f"mark{secrets.token_hex(6)}"
        self.folder = Path(tempfile.mkdtemp(prefix="sandbox-world-"))
        self.folder.chmod(0o777)
        secret = f"CANARY-FILE-{secrets.token_hex(8)}"
        (self.folder / "secret.txt").write_text(secret)
        listed = f"CANARY-NAME-{secrets.token_hex(8)}"
        (self.folder / listed).touch()
        (self.folder / "open.txt").write_text("open")
        (self.folder / "open.txt").chmod(0o666)
        self.memory = ctypes.create_string_buffer(f"CANARY-MEMORY-{secrets.token_hex(8)}".encode())
        self.secrets = [
            secret,
            os.environ["WORLD_SECRET"],
            self.memory.value.decode(),
            PASSWORDS,
            listed,
            "THROUGH",
        ]
        self.listeners: list[socket.socket] = []
        self.tcp = self._listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self.udp = self._listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self._listen(socket.AF_UNIX, socket.SOCK_STREAM, f"{self.folder}/socket")
        self._listen(socket.AF_UNIX, socket.SOCK_DGRAM, f"{self.folder}/datagrams")
        self._listen(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{self.mark}")
        for name in ("socket", "datagrams"):
            (self.folder / name).chmod(0o777)
        self.victim = subprocess.Popen(
            [sys.executable, "-S", "-c", VICTIM],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.victim.stdout is not None
        self.victim.stdout.readline()
        self.before = self._files()

    def program(self, attack: Attack) -> str:
        """Return the text of an attack against this world."""
        facts = {
            "FILE": self.folder / "secret.txt",
            "FOLDER": self.folder,
            "LIBRARY": ROOT / ".venv" / "lib" / "python3.11",
            "MARK": self.mark,
            "JUDGE": os.getpid(),
            "ADDRESS": ctypes.addressof(self.memory),
            "SIZE": len(self.memory.value),
            "TCP": self.tcp,
            "UDP": self.udp,
            "VICTIM": self.victim.pid,
        }
        code = re.sub(r"@nr:(\w+)@", lambda match: str(number(match[1])), attack.code)
        return re.sub(r"@([A-Z]+)@", lambda match: str(facts[match[1]]), code)

    def noticed(self, printed: str) -> list[str]:
        """Return what an attack has done, and put the world right again."""
        found = [secret for secret in self.secrets if secret in printed]
        if (files := self._files()) != self.before:
            found.append(f"files: {sorted(set(files.items()) ^ set(self.before.items()))}")
            self._restore()
        found += [f"heard: {said}" for listener in self.listeners for said in self._waiting(listener)]
        if signals := self._signals():
            found.append(f"victim: {signals}")
        return found

    def close(self) -> None:
        """End the victim and remove the folder."""
        self.victim.kill()
        self.victim.wait()
        shutil.rmtree(self.folder)

    def _listen(self, family: int, kind: int, address: object) -> int:
        listener = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen(64)
        listener.setblocking(False)
        self.listeners.append(listener)
        return listener.getsockname()[1] if family == socket.AF_INET else 0

    def _waiting(self, listener: socket.socket) -> Iterator[str]:
        """Yield what the kernel has queued for a listener; it is there once the sender has gone on."""
        with contextlib.suppress(BlockingIOError):
            while True:
                if listener.type == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                    yield f"a connection to {listener.getsockname()}"
                else:
                    yield f"{listener.recv(1000)!r} at {listener.getsockname()}"

    def _signals(self) -> list[str]:
        """Return the signals that the victim has got, or its end."""
        assert self.victim.stdout is not None
        got: list[str] = []
        if self.victim.poll() is not None:
            return ["dead"]
        self.victim.send_signal(ROLL_CALL)
        while (line := self.victim.stdout.readline().decode().strip()) != str(int(ROLL_CALL)):
            if not line:
                return ["dead"]
            got.append(line)
        return got

    def _files(self) -> dict[str, tuple]:
        shared = [path for path in Path("/dev/shm").iterdir() if self.mark in path.name]
        files = {}
        for path in [*self.folder.iterdir(), *shared]:
            facts = path.lstat()
            files[str(path)] = (facts.st_mode, facts.st_nlink, facts.st_size, facts.st_mtime_ns)
        return files

    def _restore(self) -> None:
        for name in self._files().keys() - self.before.keys():
            path = Path(name)
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        opened = self.folder / "open.txt"
        opened.write_text("open")
        opened.chmod(0o666)
        self.before = self._files()


def descendants(pid: int) -> set[int]:
    """Return the processes beneath one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def run_in_sandbox(level: str) -> Iterator[tuple[Attack, str, list[str]]]:
    """Yield (attack, result, what was noticed)."""
    world, runner = World(), Runner(LIMITS, ceiling=level)
    runner.start()
    assert runner.sandbox.level == level, f"{runner.sandbox.level} where {level} was to be tried"
    zygote = runner.sandbox.zygote_pid
    assert zygote is not None
    processes = descendants(zygote)
    for attack in ATTACKS:
        started, peak = time.monotonic(), _peak()
        limits = BRIEF if "timeout" in attack.ends else LIMITS
        outcome, printed = runner.probe(world.program(attack), limits)
        found = world.noticed(printed.decode(errors="replace"))
        if runner.sandbox.zygote_pid != zygote:
            found.append("the zygote was restarted")
        if left := descendants(zygote) - processes:
            found.append(f"processes: {left}")
        if len(printed) > 2 * LIMITS.output_bytes:
            found.append(f"{len(printed)} bytes kept")
        if (grown := _peak() - peak) > 64 * 1024:
            found.append(f"the judge grew by {grown} KiB")
        if time.monotonic() - started > limits.timeout_s + 5:
            found.append(f"{time.monotonic() - started:.1f} s")
        yield attack, str(outcome.result), found
    runner.close()
    world.close()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_bare() -> Iterator[tuple[Attack, str, list[str]]]:
    """Yield the same for attacks that do no harm, each run by a plain interpreter."""
    world = World()
    for attack in ATTACKS:
        if attack.bare == "never":
            continue
        process = subprocess.run(
            [sys.executable, "-S", "-s", "-c", world.program(attack)],
            capture_output=True,
            cwd="/",
            timeout=20,
            start_new_session=True,
            check=False,
        )
        printed = (process.stdout + process.stderr).decode(errors="replace")
        yield attack, str(process.returncode), world.noticed(printed)
    world.close()


if __name__ == "__main__":
    if "WORLD_SECRET" not in os.environ:  # In the environment that this process was started with, which /proc shows.
        os.environ["WORLD_SECRET"] = f"CANARY-ENVIRONMENT-{secrets.token_hex(8)}"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    signal.alarm(300)
    runs = run_bare() if sys.argv[1] == "bare" else run_in_sandbox(sys.argv[1])
    report = [
        {"group": a.group, "name": a.name, "bare": a.bare, "ends": a.ends, "result": r, "found": f} for a, r, f in runs
    ]
    print(json.dumps(report))
