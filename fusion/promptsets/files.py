"""Records in local files: JSON lines (plain or gzip), a JSON list, and Parquet.

A file that cannot be read as a whole (missing, not UTF-8, a torn line, a cut gzip, a broken footer) is
refused with its name and line; a single unusable record is a quarantined row, see `records.py`.
"""

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import model_validator

from fusion.artifact import file_sha256
from fusion.errors import InputError
from fusion.promptsets.common import PromptFields, RecordFiles
from fusion.promptsets.fields import Record

DAMAGED_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
"""What is raised of a gzip file that is cut or damaged."""


class LocalFile(RecordFiles):
    """What local files of every format share."""

    path: Path
    """The file; identified by its content, so it may move."""

    @property
    def content(self) -> dict[str, Any]:
        return {"content": file_sha256(check_file(self.path))}

    @property
    def location(self) -> str:
        return self.path.name

    def read(self) -> Iterator[tuple[str, Iterator[Record]]]:
        yield str(self.path), read_records(self.path)


class JsonlFile(LocalFile):
    """JSON lines, plain or gzip, or a file `.json` (or `.json.gz`) that holds one list of objects."""

    type: Literal["jsonl"] = "jsonl"

    @model_validator(mode="after")
    def _ending_fits(self) -> Self:
        if self.path.suffix == ".parquet":
            raise ValueError(f"path {self.path} is Parquet by its name; write type: parquet")
        return self


class ParquetFile(LocalFile):
    """Parquet, a record a row."""

    type: Literal["parquet"] = "parquet"

    @model_validator(mode="after")
    def _ending_fits(self) -> Self:
        # The content alone is the key, so a set of this file read as JSON lines would be taken for this one.
        if self.path.suffix in (".jsonl", ".json", ".gz"):
            raise ValueError(f"path {self.path} is no Parquet file by its name; write type: jsonl")
        return self

    def read(self) -> Iterator[tuple[str, Iterator[Record]]]:
        yield str(self.path), read_parquet(self.path)


class JsonlPrompts(JsonlFile, PromptFields):
    """JSON lines with `prompt` (text or messages) or `messages`, and optionally id, domain, answer or
    reference, tests, entry_point."""


class ParquetPrompts(ParquetFile, PromptFields):
    """Parquet with the same columns as the JSON lines."""


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


def read_records(path: Path) -> Iterator[Record]:
    """Yield (place, record) of a file of any of the formats, told by its name."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    return read_json(path) if path.name.endswith((".json", ".json.gz")) else read_jsonl(path)


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
                    yield f"{path}:{number}", _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")
    except DAMAGED_GZIP as error:
        raise InputError(
            f"prompts file {path} is a damaged gzip file after line {number}: {error}; copy it anew"
        ) from None


def read_json(path: Path) -> Iterator[Record]:
    """Yield (place, record) of a file `.json` or `.json.gz`: one list of objects, or JSON lines; places count objects from 1."""
    check_file(path)
    data = _plain(path).removeprefix(b"\xef\xbb\xbf")
    if not data.lstrip().startswith(b"["):
        yield from read_jsonl(path)
        return
    for number, record in enumerate(_parse(data, str(path)), start=1):
        yield f"{path}:{number}", _object(record, f"{path}:{number}")


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    with whole_gzip(f"prompts file {path}"):
        return gzip.decompress(data)


@contextlib.contextmanager
def whole_gzip(called: str) -> Iterator[None]:
    """Turn what is said of a gzip file that is cut or damaged into an InputError."""
    try:
        yield
    except DAMAGED_GZIP as error:
        raise InputError(f"{called} is a damaged gzip file: {error}; copy it anew") from None


def _parse(data: bytes, place: str) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}); each line must be one JSON object") from None


def _object(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{place}: a {type(record).__name__}, not a JSON object; each line must be one JSON object")
    return record


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield (place, record) of a Parquet file; places count rows from 0."""
    check_file(path)
    row = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=4096):
            for record in _rows(batch):
                yield f"{path}:{row}", record
                row += 1
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{row}: text that is not UTF-8 ({error.reason}); write the file anew") from None
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise InputError(f"prompts file {path} is not a readable Parquet file: {reason}") from None


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch; one by one where a text in it cannot be read, so that those before it can."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            yield from batch.slice(number, 1).to_pylist()
