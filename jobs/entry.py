"""What every long command does at its door: where relative paths start, what it says, how it ends when it is told to.

Imports nothing heavy: a command is set up before Ray is.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fusion.errors import FuselineError, RecipeError

RecipeBase = Annotated[
    Path | None, typer.Option(help="Directory that the recipe's relative paths start from; default: the current one.")
]
"""Option `--base` of every command that reads a recipe."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the entry point of every job."""


def enter_base(base: Path | None, paths: Mapping[str, Path]) -> None:
    """Go to the directory that relative paths start from.

    Args:
        paths: what the command reads and writes, by the name that the user gave it under.

    Raises:
        RecipeError: in a Ray job, whose own directory is a copy that is thrown away, results would go there.
    """
    if base is not None:
        if not base.is_dir():
            raise RecipeError(f"--base {base} is not a directory on this node; name storage that all nodes see")
        os.chdir(base)
        return
    relative = next((name for name, path in paths.items() if not path.is_absolute()), None)
    if JOB_VARIABLE in os.environ and relative is not None:
        raise RecipeError(
            f"{relative} {str(paths[relative])!r} is relative, and this Ray job runs in a copy of the working directory "
            f"that is thrown away; give --base DIR (storage that all nodes see) or an absolute {relative}"
        )


def stop_cleanly(resume_command: str) -> None:
    """End at once on SIGTERM or Ctrl-C: all state is on disk, and the next run resumes from it.

    Call it again after Ray has been started, which puts its own handler in the place of this one.
    """

    def stop(number: int, _: FrameType | None) -> None:
        os.write(2, f"\nstopped by {signal.Signals(number).name}; resume with: {resume_command}\n".encode())
        # That was the last word: threads that lose Ray under their feet would follow it with tracebacks.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if "ray" in sys.modules:
            from cluster.connect import disconnect

            disconnect()
        os._exit(128 + number)  # threads may be waiting for Ray tasks that no longer exist

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C or SIGTERM sets; a second one interrupts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may listen to signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    listen(stopped)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(stopped: threading.Event) -> None:
    """Let SIGINT and SIGTERM set `stopped`; again after Ray has been started, which puts its own handler there."""
    if threading.current_thread() is not threading.main_thread():
        return

    def on_signal(number: int, _: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and errors of Ray Serve and vLLM, and leave out what they say of every step."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    level = logging.getLogger().level
    for name in ("ray.serve", "ray.llm", "vllm"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)  # importing ray.serve.llm sets it to INFO


def run_command(run: Callable[[], object]) -> None:
    """Run a command line to its end; a user's mistake is one line on stderr and the exit code of its error."""
    try:
        run()
    except FuselineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
