"""Ends the helper processes of an engine when the process that owns them is gone.

With tensor parallelism (and on GPUs always) vLLM's workers are processes of their own. When their owner is
killed, those of vLLM 0.32 may stay and go on spinning on the cores or holding GPU memory. vLLM mixes
`Lifeline` into its worker class by name, and the engine calls `watch_owner` on every worker once.
"""

import os
import signal
import threading
import time

POLL_S = 1.0
"""Time between two looks at the owner."""


class Lifeline:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    def watch_owner(self, owner: int) -> None:
        """Let this process end soon after process `owner` has; nothing to do inside the owner itself."""
        if os.getpid() != owner:
            threading.Thread(target=_end_with, args=(owner, os.getppid()), name="lifeline", daemon=True).start()


def _end_with(owner: int, parent: int) -> None:
    # The parent is the owner or a process of vLLM between the two; either's end leaves this one an orphan.
    while os.getppid() == parent and _lives(owner):
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
