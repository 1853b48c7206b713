"""Several judges side by side in one actor: as many as it has CPUs, each asked by a thread of its own.

A judge waits for a process most of its time, so threads are enough. Order is kept; nothing is decided here.
"""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from fusion.rows import Prompt
from fusion.verifiers import Judge, Judgement

SANDBOX = "sandbox-"
"""Files of a score stage that say at which levels programs were confined: one per level, as nodes may differ."""


class Bench:
    """Judges of one kind."""

    def __init__(self, load: Callable[[], Judge], *, size: int) -> None:
        self._judges = [load() for _ in range(size)]
        self._free: queue.SimpleQueue[Judge] = queue.SimpleQueue()
        for judge in self._judges:
            self._free.put(judge)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="judge")

    @property
    def level(self) -> str | None:
        """How strongly its judges confine the programs that they run; None where they run none."""
        return self._judges[0].level

    def judge(self, work: Sequence[tuple[Prompt, str]]) -> list[Judgement]:
        """Return the judgement of each text, in order."""
        return list(self._threads.map(lambda item: self._one(*item), work))

    def close(self) -> None:
        """End the judges and what they own."""
        self._threads.shutdown()
        for judge in self._judges:
            judge.close()

    def _one(self, prompt: Prompt, text: str) -> Judgement:
        judge = self._free.get()
        try:
            return judge.judge(prompt, text)
        finally:
            self._free.put(judge)
