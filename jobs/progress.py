"""How a run is shown: one live line per stage on a terminal, one line per interval in a log."""

import threading
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from fusion.runner import Done
from fusion.stage import Progress


class Display:
    """Shows progress and finished stages; safe to call from several threads. Use as a context manager."""

    def __init__(self, console: Console, *, interval_s: float = 15.0) -> None:
        self.console = console
        self.interval_s = interval_s
        self._lock = threading.Lock()
        self._shown_at: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def progress(self, progress: Progress) -> None:
        """Show where a stage stands."""
        with self._lock:
            if self.console.is_terminal:
                self._bar(progress)
                return
            now = time.monotonic()
            last = self._shown_at.setdefault(progress.label, now)
            if now - last >= self.interval_s and progress.done < progress.total:
                self._shown_at[progress.label] = now
                self.console.print(f"  ... {progress.label}: {progress.done}/{progress.total} {_rates(progress)}")

    def finished(self, done: Done) -> None:
        """Print the line of a finished stage."""
        with self._lock:
            task = self._tasks.pop(done.stage.label, None)
            if task is not None:
                self._bars.remove_task(task)
            for line in (stage_line(done), *training_lines(done.artifact.manifest.notes)):
                self.console.print(line, highlight=False, markup=False)

    def _bar(self, progress: Progress) -> None:
        task = self._tasks.get(progress.label)
        if task is None:
            task = self._tasks[progress.label] = self._bars.add_task(progress.label, total=progress.total, rates="")
        self._bars.update(task, total=progress.total, completed=progress.done, rates=_rates(progress))


def stage_line(done: Done) -> str:
    """Return the one line about a finished stage: rows in = rows out + quarantined, always."""
    manifest = done.artifact.manifest
    rows = f"{manifest.rows_in} in = {manifest.rows_out} out + {manifest.num_quarantined} quarantined"
    reasons = ", ".join(f"{r} {n}" for r, n in sorted(manifest.quarantined.items(), key=lambda i: -i[1]))
    how = "hit " if done.hit else "done"
    return f"{how} {done.seconds:7.1f}s  {done.stage.label:<34} {rows}{f' ({reasons})' if reasons else ''}"


def training_lines(notes: Mapping[str, Any]) -> list[str]:
    """Return what people must know of a training: rows held out, memory, warnings and alarms; nothing for others."""
    lines = []
    if notes.get("held_out_rows"):
        kept = f"weights of step {notes['kept_step']} of {notes['steps']} kept"
        lines.append(f"{notes['held_out_rows']} of the rows out were held out of training; {kept}")
    if "memory" in notes:
        estimated, measured = notes["memory"]["estimated"]["total"], notes["memory"]["measured"]
        lines.append(f"memory per worker: {_gib(measured)} measured, {_gib(estimated)} estimated")
    for kind in ("warnings", "alarms"):
        lines += [f"{kind[:-1]} at step {n['step']}: {n['text']}" for n in notes.get(kind, [])]
    return [f"     {line}" for line in lines]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _rates(progress: Progress) -> str:
    parts = [f"{progress.rows_per_s:.1f} rows/s"]
    if progress.tokens:
        parts.append(f"{progress.tokens_per_s:.0f} tokens/s")
    left = progress.seconds_left
    if left is not None and progress.done < progress.total:
        parts.append(f"{left:.0f} s left")
    if progress.detail:
        parts.append(progress.detail)
    return ", ".join(parts)
