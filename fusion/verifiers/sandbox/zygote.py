"""The zygote: a warm interpreter that becomes nobody, enters namespaces where it may, and forks a child per program.

It is a process of its own with nothing of its owner: not forked from it, no environment, no descriptors but the
control socket. It never reads what a program is given or says; the owner sends descriptors, and speaks with the child
over them. So no child inherits anything of a program, test or expected value that came before it.

Messages on the control socket, one JSON object each. From the owner: `{"run": n, "memory_mb", "cpu_s"}` with four
descriptors (channel, stdin, stdout, stderr), `{"kill": n}`. To it: one `{"level": …}` or `{"refused": why}`, and for
every run `{"run": n, "status": wait status, "cpu_s", "threads"}` or `{"run": n, "failed": why}`. End of file ends the zygote and all it runs.
"""

import contextlib
import errno
import fcntl
import gc
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import socket
from pathlib import Path
from typing import Any

from fusion.verifiers.sandbox import inside, kernel, landlock, limits, namespaces, seccomp
from fusion.verifiers.sandbox.syscalls import TABLES

WARM = """
    abc argparse array ast asyncio base64 bisect calendar cmath collections collections.abc contextlib copy csv ctypes
    dataclasses datetime decimal difflib enum fractions functools hashlib heapq io itertools json math numbers operator
    pprint queue random re statistics string struct sys textwrap threading time traceback types typing unicodedata uuid
"""
"""Modules that are imported once, before any program."""

LIBRARY_FD, CHANNEL_FD, RULES_FD = 3, inside.CHANNEL_FD, 5
FIRST_MOVED = 64
"""Lowest number of a descriptor that is kept out of the way of programs."""
_THREADING_SIGNALS = (32, 33)
"""Those of the C library, which Python does not let us set."""
WATCH_S = 0.02
"""Time between two looks at the number of threads, where no rlimit bounds it."""


class Zygote:
    """The state of the process: what it puts on children, and which ones there are."""

    def __init__(
        self, control: socket.socket, rules: int | None, num_tasks: int | None, *, by_descriptor: bool
    ) -> None:
        """Args:
        control: socket of the owner.
        rules: descriptor of the Landlock ruleset; None where there is none.
        num_tasks: RLIMIT_NPROC of children; None where their user has other processes.
        by_descriptor: children import through `LIBRARY_FD`.
        """
        self._control = control
        self._rules = rules
        self._by_descriptor = by_descriptor
        self._num_tasks = num_tasks
        self._pid, self._parent = os.getpid(), os.getppid()
        self._pids: dict[int, int] = {}
        """Process -> its run."""
        self._pidfds: dict[int, int] = {}
        """Descriptor of a process -> the process."""
        self._threads: dict[int, int] = {}
        """Process that was killed for the number of its threads -> that number."""

    def serve(self) -> None:
        """Fork, kill and reap until the owner is gone."""
        while os.getppid() == self._parent:
            poll = select.poll()
            for descriptor in (self._control.fileno(), *self._pidfds):
                poll.register(descriptor, select.POLLIN)
            watched = self._num_tasks is None and bool(self._pids)
            for descriptor, _ in poll.poll(1000 * (WATCH_S if watched else 1.0)):
                if descriptor in self._pidfds:
                    self._reap(descriptor)
                elif not self._obey():
                    return
            if watched:
                self._end_thread_bombs()

    def end(self) -> None:
        """Kill and reap all that runs."""
        for pid in self._pids:
            _kill(pid)
        for descriptor in list(self._pidfds):
            self._reap(descriptor)

    def _obey(self) -> bool:
        """Do what one message asks; False at the end of the socket."""
        data, descriptors, _, _ = socket.recv_fds(self._control, 4096, 4)
        if not data:
            return False
        message = json.loads(data)
        if "kill" in message:
            for pid, run in self._pids.items():
                if run == message["kill"]:
                    _kill(pid)
            return True
        try:
            pid = os.fork()
        except OSError as error:
            self._say({"run": message["run"], "failed": f"fork: {error.strerror}"})
            pid = -1
        if pid == 0:
            self._become_child(message, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            self._pids[pid] = message["run"]
            self._pidfds[os.pidfd_open(pid)] = pid
        return True

    def _reap(self, descriptor: int) -> None:
        pid = self._pidfds.pop(descriptor)
        _, status, usage = os.wait4(pid, 0)
        os.close(descriptor)
        cpu_s = usage.ru_utime + usage.ru_stime
        self._say({"run": self._pids.pop(pid), "status": status, "cpu_s": cpu_s, "threads": self._threads.pop(pid, 0)})

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # The next read tells of it.
            self._control.send(json.dumps(message).encode())

    def _end_thread_bombs(self) -> None:
        for pid in self._pids:
            num_threads = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])
            if num_threads > limits.MAX_TASKS:
                self._threads[pid] = num_threads
                _kill(pid)

    def _become_child(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Put all restrictions on and do as it is told on its channel; never returns."""
        try:
            os.setsid()
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._pid:
                return
            self._place(descriptors)
            limits.apply(message["memory_mb"], message["cpu_s"], self._num_tasks)
            if self._rules is not None:
                landlock.restrict(RULES_FD)
                os.close(RULES_FD)
            rules = seccomp.program(kernel.machine(), os.getpid(), read_only=self._rules is None)
            seccomp.install(seccomp.assemble(rules))
            inside.run()
        except BaseException as error:
            os.write(CHANNEL_FD, json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        finally:
            os._exit(1)

    def _place(self, descriptors: list[int]) -> None:
        """Leave a child its four descriptors at 0, 1, 2 and 4, and those it needs to import and to restrict itself."""
        *streams, channel = [_moved_up(descriptor) for descriptor in (*descriptors[1:], descriptors[0])]
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        os.dup2(channel, CHANNEL_FD)
        if not self._by_descriptor:
            os.close(LIBRARY_FD)  # All children would share its flags, by which one could leave word for the next.
        first_other = RULES_FD
        if self._rules is not None:
            os.dup2(self._rules, RULES_FD)
            first_other += 1
        self._control.detach()
        everything = (1 << 32) - 1
        kernel.syscall(TABLES[kernel.machine()]["close_range"], first_other, everything, 0)


def main(ceiling: str) -> None:
    """Become the zygote; the control socket is descriptor 0. Returns never.

    Args:
        ceiling: the level to reach: `L3`, `L2` or `L1`. One that cannot be is refused, and the owner decides.
    """
    _restore_signals()
    control = socket.socket(fileno=_moved_up(0))
    os.open(os.devnull, os.O_RDWR)  # Takes the place at 0.
    try:
        zygote, hello = _prepare(control, ceiling)
    except OSError as error:
        control.send(json.dumps({"refused": str(error)}).encode())
        os._exit(1)
    control.send(json.dumps(hello).encode())
    try:
        zygote.serve()
    finally:
        zygote.end()
        os._exit(0)


def _restore_signals() -> None:
    """Have signals act as in a process that a shell has started; `nohup` and others hand down what they ignore or block."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python ignores these two itself.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    usual = bytes(32)  # A `struct sigaction` of the kernel: the default, no flags, an empty mask.
    for number in _THREADING_SIGNALS:
        kernel.syscall(TABLES[kernel.machine()]["rt_sigaction"], number, usual, None, 8)


def _prepare(control: socket.socket, ceiling: str) -> tuple[Zygote, dict[str, Any]]:
    """Import, open, and then give everything up; the order matters, since an unused user cannot open much."""
    for name in WARM.split():
        importlib.import_module(name)
    libraries, shared_objects = landlock.library_folders(), landlock.shared_object_folders()
    os.chdir(libraries[0])
    library = _moved_up(os.open(libraries[0], os.O_PATH))
    os.dup2(library, LIBRARY_FD)
    os.close(library)
    rules = None
    version = landlock.abi()
    if ceiling != "L1":
        if not version:
            raise OSError(
                "this kernel has no Landlock (Linux 5.13 or later, with `landlock` among its security modules); with "
                "allow_weaker: L1 programs could read every file that an ordinary user can"
            )
        rules = _moved_up(landlock.ruleset(version))
    private = os.geteuid() == 0
    if private:
        namespaces.drop_root()
    if ceiling == "L3":
        _enter_namespaces(control, libraries, shared_objects)
    by_descriptor = ceiling != "L3" and not os.access(libraries[0] / "os.py", os.R_OK)
    if not by_descriptor:
        os.dup2(0, LIBRARY_FD)  # It is not needed, and the tree could be walked from it; its place stays taken here.
    else:
        namespaces.reach_library(libraries[0], LIBRARY_FD)
    namespaces.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    importlib.util.find_spec("no_such_module")  # Lists the folders once, for all children.
    gc.collect()
    gc.freeze()
    num_tasks = limits.MAX_TASKS if private or ceiling == "L3" else None
    zygote = Zygote(control, rules, num_tasks, by_descriptor=by_descriptor)
    return zygote, {"level": ceiling, "landlock": version if rules is not None else 0}


def _enter_namespaces(control: socket.socket, libraries: list[Path], shared_objects: list[Path]) -> None:
    """Return as process 1 of new namespaces; the process that called stays behind and ends with it."""
    namespaces.enter()
    pid = os.fork()
    if pid:
        control.close()
        os.closerange(0, LIBRARY_FD + 1)
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    namespaces.replace_tree(libraries, shared_objects)


def _moved_up(descriptor: int) -> int:
    """Move a descriptor out of the way of those that children get, and return its new number.

    Raises:
        OSError: this process may have no descriptor of such a number.
    """
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_MOVED)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise OSError(
            f"the limit of open files (RLIMIT_NOFILE) is {limit}; it must be above {FIRST_MOVED} by a dozen or more"
        ) from None
    os.close(descriptor)
    return moved


def _kill(pid: int) -> None:
    for end in (os.killpg, os.kill):  # A child that has just been forked leads no group yet.
        with contextlib.suppress(ProcessLookupError):
            end(pid, signal.SIGKILL)
