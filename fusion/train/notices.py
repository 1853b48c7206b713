"""What workers have to tell people: lines of `warnings.jsonl` and `alarms.jsonl` in the training directory.

A worker's log ends in a file that nobody reads, so rank 0 writes here what the driver shows on the screen, in the
stage's notes and in the report.
"""

import dataclasses
import json
from pathlib import Path

from fusion.artifact import read_json_lines, write_atomic

WARNINGS = "warnings.jsonl"
ALARMS = "alarms.jsonl"


@dataclasses.dataclass(frozen=True, slots=True)
class Notice:
    """One thing to know. Example: `Notice("damaged_checkpoint", 40, "checkpoint ... is damaged ...")`."""

    name: str
    """Short code of what kind it is."""
    step: int
    """Optimizer steps done when it was noticed."""
    text: str
    """A sentence for people: what was seen, in numbers, and what to do."""


def read_notices(directory: Path, file: str) -> list[Notice]:
    """Return the notices of a training directory, oldest first."""
    return [Notice(**line) for line in read_json_lines(directory / file)]


def write_notices(directory: Path, file: str, notices: list[Notice]) -> None:
    """Write all notices of a file anew."""
    lines = (json.dumps(dataclasses.asdict(notice), ensure_ascii=False) + "\n" for notice in notices)
    write_atomic(directory / file, "".join(lines))


def add_notice(directory: Path, file: str, notice: Notice) -> None:
    """Add one notice. The file is short and written whole, so that a kill cannot tear it."""
    write_notices(directory, file, [*read_notices(directory, file), notice])
