"""Numbers that bound a program, and the rlimits of them that it puts on itself before it reads a line of code."""

import dataclasses
import math
import resource

KIB, MIB = 1024, 1024 * 1024
MAX_TASKS = 256
"""Threads and processes of the sandbox's user, where that user is nobody else's; answers with a hundred threads are honest."""
MAX_FILES = 64
STACK_BYTES = 8 * MIB
THREAD_STACK_BYTES = 4 * MIB
"""Stack of a thread unless a program says otherwise; of 8 MiB, the system's, a hundred would not fit into the memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use. Example: `Limits(timeout_s=2.0)`."""

    timeout_s: float = 5.0
    """Wall clock of a run, from when the program can start."""
    memory_mb: int = 768
    """Address space (RLIMIT_AS), which bounds memory and the stacks of threads. About 100 MB are the interpreter's."""
    output_kb: int = 1024
    """Printed bytes, both streams together; a program that prints more is ended."""
    value_kb: int = 1024
    """Size of a value that is returned through the pipe, as text."""

    @property
    def output_bytes(self) -> int:
        return self.output_kb * KIB

    @property
    def value_bytes(self) -> int:
        return self.value_kb * KIB


def apply(memory_mb: int, cpu_s: float | None, num_tasks: int | None) -> None:
    """Put the rlimits on this process.

    Args:
        memory_mb: address space.
        cpu_s: processor time, a second line behind the wall clock; None for none.
        num_tasks: RLIMIT_NPROC; None where the user has other processes, which would count.
    """
    hard = {
        resource.RLIMIT_AS: memory_mb * MIB,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: MAX_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
        resource.RLIMIT_STACK: STACK_BYTES,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if cpu_s is not None:
        hard[resource.RLIMIT_CPU] = math.ceil(cpu_s)
    if num_tasks is not None:
        hard[resource.RLIMIT_NPROC] = num_tasks
    for kind, value in hard.items():
        _, ceiling = resource.getrlimit(kind)
        lowered = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (lowered, lowered))
