"""What the driver shows while workers are at work: progress from their files, and their warnings and alarms."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from fusion.train.metrics import read_metrics
from fusion.train.notices import ALARMS, WARNINGS, read_notices

log = logging.getLogger(__name__)

POLL_S = 1.0


class ProgressBar(Protocol):
    """What is needed of a stage's progress."""

    def begin(self, *, total: int, done: int = 0) -> None: ...

    def advance(self, rows: int, *, tokens: int = 0, detail: str = "") -> None: ...


@contextlib.contextmanager
def _watch(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` about once a second, and once at the end, from a thread."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(POLL_S):
            look()

    thread = threading.Thread(target=loop, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    look()


@contextlib.contextmanager
def progress_of_metrics(directory: Path, *, num_rows: int, epochs: int, progress: ProgressBar | None) -> Iterator[None]:
    """Follow metrics.jsonl, in rows."""
    if progress is None:
        yield
        return
    total = num_rows * epochs
    seen = {"rows": 0, "tokens": 0}

    def look() -> None:
        lines = read_metrics(directory)
        if not lines:
            return
        rows = min(total, round(lines[-1]["epoch"] * num_rows))
        if rows > seen["rows"]:
            tokens = int(lines[-1]["num_tokens"])
            progress.advance(
                rows - seen["rows"], tokens=tokens - seen["tokens"], detail=f"loss {lines[-1]['loss']:.4f}"
            )
            seen.update(rows=rows, tokens=tokens)

    before = read_metrics(directory)
    if before:
        seen.update(rows=min(total, round(before[-1]["epoch"] * num_rows)), tokens=int(before[-1]["num_tokens"]))
    progress.begin(total=total, done=seen["rows"])
    with _watch(look):
        yield


@contextlib.contextmanager
def progress_of_parts(
    parts: Mapping[int, Path], sizes: Mapping[int, int], progress: ProgressBar | None
) -> Iterator[None]:
    """Follow the parts of a directory, in rows."""
    if progress is None:
        yield
        return
    seen = {index for index, path in parts.items() if path.exists()}

    def look() -> None:
        new = {index for index, path in parts.items() if path.exists()} - seen
        if new:
            seen.update(new)
            progress.advance(sum(sizes[index] for index in new))

    progress.begin(total=sum(sizes.values()), done=sum(sizes[index] for index in seen))
    with _watch(look):
        yield


@contextlib.contextmanager
def notices_shown(directory: Path) -> Iterator[None]:
    """Log the warnings and alarms that workers write from now on."""
    seen = {(file, notice) for file in (WARNINGS, ALARMS) for notice in read_notices(directory, file)}

    def look() -> None:
        for file in (WARNINGS, ALARMS):
            for notice in read_notices(directory, file):
                if (file, notice) not in seen:
                    seen.add((file, notice))
                    log.warning("%s: step %d: %s", directory.name, notice.step, notice.text)

    with _watch(look):
        yield
