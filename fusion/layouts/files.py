"""Files of published rows, read record by record: JSON lines, JSON arrays, Parquet, Arrow, Hugging Face folders.

A file that cannot be read as a whole is an `InputError` that names it and the place; a single record that cannot is
handed on as a `Refused`, so that it is counted and the others are read. Memory holds a few hundred records at most, also
of a JSON array of many gigabytes.
"""

import gzip
import json
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from fusion import strict_json
from fusion.errors import InputError
from fusion.promptsets.files import DAMAGED_GZIP, whole_gzip
from fusion.promptsets.records import Refused

Found = tuple[str, dict[str, Any] | Refused]
"""Where a record stands, e.g. `train.json:7`, and its fields or why there are none."""

MAX_BYTES = 16 << 20
"""Longest JSON text of one record that is read into memory."""
BATCH_ROWS = 256
DICT_FILE, STATE_FILE = "dataset_dict.json", "state.json"
"""What `save_to_disk` of Hugging Face's `datasets` leaves in a folder of splits, and in one of rows."""


def read_records(path: Path, *, split: str | None = None) -> Iterator[Found]:
    """Yield the records of a file or of a folder of `save_to_disk`.

    Args:
        split: of a folder that has several; None takes `train`, or the only one.

    Raises:
        InputError: missing, unreadable, cut, of a format that is none of these, or without such a split.
    """
    if path.is_dir():
        for file in _arrow_files(path, split):
            yield from _arrow(file)
        return
    if split is not None:
        raise InputError(f"--split {split}: {path} is a file; only a folder of save_to_disk has splits")
    if not path.exists():
        raise InputError(f"{path} does not exist; paths are relative to the directory you run in")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise InputError(f"{path} is empty")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path}")
    yield from _format(path, head)


def _format(path: Path, head: bytes) -> Iterator[Found]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = head[:2] == b"\x1f\x8b"
    suffix = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    if head[:4] == b"PAR1":
        return _parquet(path)
    if suffix == ".arrow":
        return _arrow(path)
    if suffix == ".parquet":
        raise InputError(f"{path} is not a Parquet file, although its name says so")
    if suffix not in (".json", ".jsonl", ".ndjson"):
        raise InputError(
            f"{path}: its name must end with .jsonl, .json, .parquet or .arrow (.gz after the first two), or it must be "
            "a folder of save_to_disk"
        )
    if suffix == ".json" and _begins_array(_unzipped(path, 4096) if zipped else head):
        return _zipped_array(path) if zipped else _plain_array(path)
    return _json_lines(path, zipped=zipped)


def _begins_array(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _unzipped(path: Path, size: int) -> bytes:
    with whole_gzip(str(path)), gzip.open(path) as file:
        return file.read(size)


# ---- JSON -------------------------------------------------------------------------------------


def _json_lines(path: Path, *, zipped: bool) -> Iterator[Found]:
    number = 0
    try:
        with cast(BinaryIO, gzip.open(path)) if zipped else path.open("rb") as file:
            while line := file.readline(MAX_BYTES + 1):
                number += 1
                size = len(line)
                while not line.endswith(b"\n") and size > MAX_BYTES and (more := file.readline(MAX_BYTES)):
                    size, line = size + len(more), more  # passed over in pieces
                if size > MAX_BYTES:
                    yield f"{path}:{number}", _too_long(size)
                    continue
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield f"{path}:{number}", _parse(line)
    except DAMAGED_GZIP as error:
        raise InputError(f"{path} is a damaged gzip file after line {number}: {error}; copy it anew") from None


def _parse(text: bytes) -> dict[str, Any] | Refused:
    try:
        value = strict_json.parse(text.strip(), what="the row")
    except strict_json.StrictJsonError as error:
        return Refused(error.reason, error.message)
    return value if isinstance(value, dict) else Refused("not_an_object", f"a {type(value).__name__}, not an object")


def _too_long(size: int) -> Refused:
    return Refused("too_long", f"the row has {size} bytes, at most {MAX_BYTES} are read")


_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)
"""A whole string, or a bracket outside of one; a quotation mark alone begins a string that never ends."""


def _plain_array(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        yield from _json_array(path, file)


def _zipped_array(path: Path) -> Iterator[Found]:
    """Yield the members of an array in a gzip file, by way of a file without a name: the array may not fit into memory."""
    with tempfile.TemporaryFile() as file:
        with whole_gzip(str(path)), gzip.open(path) as zipped:
            shutil.copyfileobj(zipped, file)
        file.flush()
        yield from _json_array(path, file)


def _json_array(path: Path, file: IO[bytes]) -> Iterator[Found]:
    """Yield the members of an array of objects, found by their brackets, so that one is parsed at a time."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        depth, number, start, end = 0, 0, 0, 0
        for token in _TOKEN.finditer(data):
            mark = token.group()[:1]
            if mark == b'"' and token.end() - token.start() > 1:
                continue
            if mark == b'"':
                break
            depth += 1 if mark in b"[{" else -1
            if depth == 1 and mark == b"[" and number == 0:
                end = token.end()
            elif depth == 2 and mark in b"[{":
                _check_between(path, data[end : token.start()], number, closing=False)
                start = token.start()
            elif depth == 1:
                end = token.end()
                size = end - start
                yield f"{path}:{number}", _too_long(size) if size > MAX_BYTES else _parse(data[start:end])
                number += 1
            elif depth == 0:
                _check_between(path, data[end : token.start()], number, closing=True)
                if data[token.end() :].strip():
                    raise InputError(
                        f"{path}: there is more behind the array of {number} rows; is it two files in one?"
                    )
                return
        raise InputError(f"{path} is cut: the JSON array does not end after row {number}; copy it anew")


def _check_between(path: Path, text: bytes, number: int, *, closing: bool) -> None:
    """Raise InputError where something other than a comma stands between two members."""
    expected = b"" if closing or number == 0 else b","
    if text.strip() != expected:
        what = text.strip()[:40].decode("utf-8", "replace")
        raise InputError(
            f"{path}:{number}: found {what!r} where one JSON object should be; it must be a list of objects"
        )


# ---- Parquet and Arrow ------------------------------------------------------------------------


def _parquet(path: Path) -> Iterator[Found]:
    first = 0
    try:
        file = pq.ParquetFile(path)
        _check_columns(path, file.schema_arrow)
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            yield from _rows(path, first, batch)
            first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: names of columns that are no text
        raise InputError(f"{path} is not readable Parquet from row {first} on: {_first_line(error)}") from None


def _arrow(path: Path) -> Iterator[Found]:
    first = 0
    try:
        with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as batches:
            _check_columns(path, batches.schema)
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield from _rows(path, first + start, batch.slice(start, BATCH_ROWS))
                first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable Arrow stream from row {first} on: {_first_line(error)}") from None


def _check_columns(path: Path, fields: Iterable[pa.Field]) -> None:
    """Raise InputError where two columns, or two fields of one, have the same name: a record could hold one of them."""
    listed = list(fields)
    for field in listed:
        if [other.name for other in listed].count(field.name) > 1:
            raise InputError(f"{path} has two columns {field.name[:80]!r}; rename one or leave it out")
        kind = field.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            _check_columns(path, kind.fields)


def _rows(path: Path, first: int, batch: pa.RecordBatch) -> Iterator[Found]:
    """Yield the rows of a batch; where one holds bytes that are not text, row by row."""
    try:
        batch.validate(full=True)
        for place, record in enumerate(batch.to_pylist(), start=first):
            yield f"{path}:{place}", record
        return
    except (UnicodeDecodeError, pa.ArrowInvalid):
        pass  # one of them: which, is found out below
    for place in range(batch.num_rows):
        row = batch.slice(place, 1)
        try:
            row.validate(full=True)
            (record,) = row.to_pylist()
        except (UnicodeDecodeError, pa.ArrowInvalid) as error:
            yield f"{path}:{first + place}", Refused("bad_utf8", f"a column is not text: {_first_line(error)}")
        else:
            yield f"{path}:{first + place}", record


def _arrow_files(folder: Path, split: str | None) -> Sequence[Path]:
    """Return the data files of a folder of `save_to_disk`, of one split. File names never lead out of it."""
    if (folder / DICT_FILE).is_file():
        splits = [name for name in _names(folder / DICT_FILE, ["splits"]) if _is_name(name)]
        wanted = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
        if wanted not in splits:
            raise InputError(f"{folder} has no split {wanted!r}; it has: {', '.join(splits) or 'none'}; give --split")
        folder = folder / wanted
    elif split is not None:
        raise InputError(f"--split {split}: {folder} has no {DICT_FILE}, so it has no splits")
    if not (folder / STATE_FILE).is_file():
        raise InputError(
            f"{folder} has no {STATE_FILE}, so it is no folder of save_to_disk; name the files in it instead, e.g. "
            f"{folder}/*.parquet"
        )
    names = _names(folder / STATE_FILE, ["_data_files", "filename"])
    for name in names:
        if not _is_name(name):
            raise InputError(f"{folder / STATE_FILE} names the file {name[:80]!r}, which is not in that folder")
    return [folder / name for name in names]


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..") and "\0" not in name


def _names(path: Path, keys: list[str]) -> list[str]:
    """Return the texts that a JSON file lists under its first key, each perhaps under a second key."""
    try:
        listed = json.loads(path.read_bytes())[keys[0]]
        names = [item[keys[1]] for item in listed] if len(keys) > 1 else list(listed)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("not text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} does not say {keys[-1]} as save_to_disk does: {_first_line(error)}") from None
    return names


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
