"""What an actor writes down while it works on a chunk, so that its death teaches something.

A part is all or nothing; between its rows an engine may die. Every attempt at a chunk keeps a file that
says which rows it handed to the engine and which came back. After a death the next attempt reads them:
finished rows are not made again, and rows that were in the engine when it died become suspects, tried in
ever smaller company until the one that kills engines stands alone.

A living attempt holds a lock on its file, which the kernel releases when the process dies in whatever way;
an attempt without lock and without an end is a death. The last attempt of an earlier driver is not counted:
it most likely died with its driver, not of a row. Nothing here knows Ray or vLLM.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from fusion.artifact import fsync
from fusion.lease import is_locked

FOLDER = "journal"
MAX_CRASHES = 3
"""Engines that a row may take down: in full company, in a small group, and alone."""
MAX_IDLE_STARTS = 8
"""Starts of engines in a row after which not one row has been finished."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sampled:
    """What the engine gave back for one row of a chunk."""

    row: int
    """Index of the row in its chunk."""
    token_ids: tuple[int, ...]
    finish: str
    error: str | None = None
    """Why the engine refused the row; None for a row that it finished."""


@dataclasses.dataclass(frozen=True)
class Past:
    """What earlier attempts at a chunk left."""

    finished: dict[int, Sampled]
    crashes: Counter[int]
    """Row -> number of attempts that died while it was in the engine."""
    last_words: str
    """What the latest dead attempt could still write about its death, or ""."""


class Attempt:
    """One attempt at a chunk, open for writing. Every line is on the disk when its call returns."""

    def __init__(self, directory: Path, chunk: int, *, run: str) -> None:
        """Open the next attempt at `chunk`; `run` names the driver's run that it belongs to."""
        folder = directory / FOLDER
        folder.mkdir(exist_ok=True)
        self._directory, self._chunk = directory, chunk
        number = 1 + max((_number(file) for file in _files(folder, chunk)), default=-1)
        while True:
            self.path = folder / f"chunk-{chunk:05d}.{number:04d}.jsonl"
            try:
                self._file: TextIO = self.path.open("x", encoding="utf-8")
                break
            except FileExistsError:
                number += 1  # another driver took that number
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._write({"run": run})
        fsync(folder)

    def begin(self, rows: Sequence[int]) -> None:
        """Say that `rows` are about to be handed to the engine."""
        self._write({"begin": list(rows)})

    def finish(self, sampled: Sequence[Sampled]) -> None:
        """Keep what came back."""
        if sampled:
            self._write({"finished": [(s.row, s.token_ids, s.finish, s.error) for s in sampled]})

    def crash(self, text: str) -> None:
        """Keep the reason of a death that is about to follow."""
        self._write({"crash": text})

    def close(self) -> None:
        """End the attempt without a death: an error that is nobody's row's fault."""
        if not self._file.closed:
            self._write({"end": True})
            self._file.close()

    def commit(self) -> None:
        """The part is written: remove this attempt and all dead ones at the same chunk."""
        self._file.close()
        discard(self._directory, self._chunk)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def discard(directory: Path, chunk: int) -> None:
    """Remove all attempts at a chunk that nobody is working on any more."""
    for file in _files(directory / FOLDER, chunk):
        if not is_locked(file):
            file.unlink(missing_ok=True)


def remove_torn(directory: Path, chunk: int) -> None:
    """Remove half-written files of dead attempts at a chunk, if no living one could be writing them."""
    if not any(is_locked(file) for file in _files(directory / FOLDER, chunk)):
        for file in directory.glob(f".part-{chunk:05d}.*.tmp"):
            file.unlink(missing_ok=True)


def read_past(directory: Path, chunk: int, *, run: str) -> Past:
    """Return what is known of `chunk` from all attempts so far; call it before opening a new one."""
    finished: dict[int, Sampled] = {}
    dead: list[tuple[str, set[int]]] = []
    last_words = ""
    for file in sorted(_files(directory / FOLDER, chunk), key=_number):
        alive = is_locked(file)
        owner, begun, ended = "", set(), False
        for line in _lines(file):
            owner = line.get("run", owner)
            ended = ended or "end" in line
            begun.update(line.get("begin", ()))
            for row, token_ids, finish, error in line.get("finished", ()):
                finished[row] = Sampled(row, tuple(token_ids), finish, error)
                begun.discard(row)
            last_words = line.get("crash", last_words)
        if not alive and not ended:
            dead.append((owner, begun))
    crashes: Counter[int] = Counter()
    for place, (owner, in_engine) in enumerate(dead):
        if owner == run or any(later == owner for later, _ in dead[place + 1 :]):
            crashes.update(in_engine)
    for row in finished:
        del crashes[row]
    return Past(finished, crashes, last_words)


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Rows that go to the engine together; `alone` means that no other chunk's rows may be there."""

    rows: tuple[int, ...]
    alone: bool


def groups_of(rows: Iterable[int], crashes: Counter[int]) -> list[Group]:
    """Divide the rows that are still to be made by how many engines died with them.

    No crash: all together. One: groups of about the square root of their number, which makes few groups
    and few rows in the one that dies. Two: one by one.
    """
    by_crashes: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for row in rows:
        assert crashes[row] < MAX_CRASHES, f"row {row} belongs to the quarantine"
        by_crashes[crashes[row]].append(row)
    once = by_crashes[1]
    size = max(1, math.isqrt(len(once)))
    groups = [Group(tuple(by_crashes[0]), alone=False)] if by_crashes[0] else []
    groups += [Group(tuple(once[i : i + size]), alone=True) for i in range(0, len(once), size)]
    return groups + [Group((row,), alone=True) for row in by_crashes[2]]


class Starts:
    """Counts starts of engines in one run, over all its actors, since a row was last finished."""

    def __init__(self, directory: Path, *, run: str) -> None:
        folder = directory / FOLDER
        folder.mkdir(exist_ok=True)
        self._path = folder / f"starts-{run}.txt"
        self._progressed = False

    def begin(self) -> int:
        """Note a start and return how many came before it without progress."""
        before = self._path.read_text().splitlines() if self._path.exists() else []
        self._append("start")
        idle = 0
        while idle < len(before) and before[-1 - idle] == "start":
            idle += 1
        return idle

    def progress(self) -> None:
        """Note that this process has finished rows."""
        if not self._progressed:
            self._append("progress")
            self._progressed = True

    def _append(self, word: str) -> None:
        # O_APPEND: several actors write whole short lines into the one file.
        with self._path.open("a") as file:
            file.write(word + "\n")
            file.flush()
            os.fsync(file.fileno())


def remove_journal(directory: Path) -> None:
    """Remove what is left once every part is there, unless a living attempt of another driver is in it."""
    folder = directory / FOLDER
    if not folder.is_dir():
        return
    files = list(folder.iterdir())
    if any(is_locked(file) for file in files if file.suffix == ".jsonl"):
        return
    for file in files:
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another driver has just begun an attempt; it will remove the folder
        folder.rmdir()


def _files(folder: Path, chunk: int) -> list[Path]:
    return list(folder.glob(f"chunk-{chunk:05d}.*.jsonl"))


def _number(file: Path) -> int:
    return int(file.name.split(".")[1])


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of an attempt. Only the last can be torn, by the death that it did not live to tell."""
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []  # the attempt of another driver, committed just now
    lines = []
    for place, text in enumerate(texts):
        try:
            lines.append(json.loads(text))
        except ValueError:
            if place + 1 < len(texts):
                raise
    return lines
