"""Prompt sets in local files: JSON lines (plain or gzip) and Parquet.

A file that cannot be read as a whole (missing, not UTF-8, a torn line, a cut gzip, a broken footer) is
refused with its name and line; a single unusable record is a quarantined row, see `records.py`.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from fusion.artifact import file_sha256
from fusion.config import Config
from fusion.errors import InputError

Record = tuple[str, dict[str, Any]]
"""Where a record stands (for messages, e.g. `math.jsonl:7`) and its fields."""


class PromptFile(Config):
    """What prompt files of every format share."""

    path: Path
    """The file; identified by its content, so it may move."""
    domain: str | None = None
    """Domain of all its prompts; None takes the record's own `domain` field."""
    limit: int | None = Field(default=None, ge=1)
    """Take only so many records, chosen by a hash of their id so that the choice does not follow file order."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"content": file_sha256(check_file(self.path)), "domain": self.domain, "limit": self.limit}


class JsonlPrompts(PromptFile):
    """JSON lines with `prompt` (text or messages) or `messages`, and optionally id, domain, answer or
    reference, tests, entry_point."""

    type: Literal["jsonl"] = "jsonl"

    def records(self) -> Iterator[Record]:
        return read_jsonl(self.path)


class ParquetPrompts(PromptFile):
    """Parquet with the same columns as the JSON lines."""

    type: Literal["parquet"] = "parquet"

    def records(self) -> Iterator[Record]:
        return read_parquet(self.path)


def check_file(path: Path) -> Path:
    """Return `path` if it is a readable file, else raise InputError saying what it is instead."""
    if path.is_dir():
        raise InputError(f"prompts file {path} is a directory; name a .jsonl or .parquet file in it")
    if not path.exists():
        raise InputError(f"prompts file {path} does not exist; paths are relative to the directory you run in")
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise InputError(f"prompts file {path} cannot be read: {error.strerror}") from None


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield (place, record) of a JSON-lines file, plain or gzip; blank lines are passed over."""
    check_file(path)
    with path.open("rb") as probe:
        head = probe.read(4)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"prompts file {path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path}")
    number = 0
    try:
        with gzip.open(path) if head[:2] == b"\x1f\x8b" else path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if line.strip():
                    yield f"{path}:{number}", _parse(line, f"{path}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"prompts file {path} is a damaged gzip file after line {number}: {error}; copy it anew"
        ) from None


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}); each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise InputError(f"{place}: a {type(record).__name__}, not a JSON object; each line must be one JSON object")
    return record


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield (place, record) of a Parquet file."""
    check_file(path)
    try:
        file = pq.ParquetFile(path)
        if not {"prompt", "messages"} & set(file.schema_arrow.names):
            columns = ", ".join(file.schema_arrow.names)
            raise InputError(f"prompts file {path} has neither a prompt nor a messages column; it has: {columns}")
        row = 0
        for batch in file.iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                yield f"{path}:{row}", record
                row += 1
    except (pa.ArrowInvalid, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise InputError(f"prompts file {path} is not a readable Parquet file: {reason}") from None
