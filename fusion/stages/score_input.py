"""The file of rows to score: found usable or refused at once, then read in slices, each by whoever needs it.

The one idea: a row is known by its place. The driver passes over the file once and keeps nothing of it but the
bounds of slices and which rows repeat an id; actors and the writer of the output read their slices from the file
themselves. A row that cannot be read is a row with a reason; a file that cannot be read is an `InputError`.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusion import strict_json
from fusion.errors import InputError
from fusion.rewards.items import CONVERSATION_FIELDS, Item, Refused, item_id, read_item

Format = Literal["jsonl", "parquet"]

READ_FIELDS = ("id", *CONVERSATION_FIELDS)
SUFFIXES: Mapping[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
MAX_LINE_BYTES = 16 << 20
"""Longest line that is read into memory; longer ones are refused rows."""
BATCH_ROWS = 256
"""Rows that are decoded from Parquet at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive rows of the file: the work of one chunk. Also a row of the table that an actor is given."""

    index: int
    first_row: int
    """Number of the first row; rows are counted from 0, blank lines are none."""
    rows: int
    responses: int
    """What comes in: a response each, and one for each row that is refused as a whole."""
    offset: int
    """Byte of the file where it starts (JSON lines), else `first_row`."""
    line: int
    """Number of its first line, counted from 1 (JSON lines), else `first_row`."""
    size: int
    """Bytes up to its end, blank lines included (JSON lines), else `rows`."""
    checksum: str
    """Of its lines; of the file's footer for Parquet."""
    repeated: tuple[int, ...] = ()
    """Rows whose id an earlier row has, ..."""
    first: tuple[int, ...] = ()
    """... and the place of that row, for each."""
    renamed: tuple[int, ...] = ()
    """Rows without an id whose usual name is the id of another row, ..."""
    names: tuple[str, ...] = ()
    """... and the name that each has instead."""

    @property
    def identity(self) -> str:
        return f"{self.first_row}+{self.rows}@{self.offset}+{self.size}:{self.checksum}"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read: a record, or why there is none."""

    index: int
    """Number of the row, counted from 0."""
    place: int
    """Where people find it: the line, counted from 1, or the row of a Parquet file, counted from 0."""
    record: Mapping[str, Any] | None
    refused: Refused | None = None

    def item(self) -> Item:
        """Return what the row asks for. Raises Refused where it cannot be read as an item."""
        if self.record is None:
            assert self.refused is not None
            raise self.refused
        return read_item(self.record)


@dataclasses.dataclass(frozen=True)
class RowFile:
    """A file of rows. Made by `open_rows`; cheap to send to workers."""

    path: Path
    format: Format

    @property
    def place_name(self) -> str:
        """How places of its rows are called: `line` or `row`."""
        return "line" if self.format == "jsonl" else "row"

    def name(self, row: Row, part: Slice) -> str:
        """Return the own id of a row of this slice, or one made from its place, which is no other row's own."""
        own = self.own_id(row)
        if own is None and row.index in part.renamed:
            return part.names[part.renamed.index(row.index)]
        return own or self.made_name(row.place)

    def own_id(self, row: Row) -> str | None:
        """Return the row's own id, None where it has none that can be one."""
        try:
            own = item_id(row.record) if row.record is not None else None
            strict_json.check_text(own or "")
        except (Refused, strict_json.StrictJsonError):
            return None
        return own

    def made_name(self, place: int) -> str:
        """Return the usual name of a row without an id; it stays the same whatever becomes of other rows."""
        return f"{self.place_name}-{place}"


class RowReader:
    """Reads slices of a file; quickest in their order, because Parquet cannot be entered in the middle of a group."""

    def __init__(self, source: RowFile) -> None:
        self._path, self._format = source.path, source.format
        self._read = Cursor(source.path)
        self._carried = Cursor(source.path, carried=True)

    def rows(self, part: Slice) -> Iterator[Row]:
        """Yield the rows of a slice.

        Raises:
            InputError: the file is not the one that the slice was made from.
        """
        if self._format == "jsonl":
            yield from _jsonl_slice(self._path, part)
            return
        if footer_checksum(self._path) != part.checksum:
            raise changed(self._path)
        for first, table in self._read.tables(part.first_row, part.rows):
            yield from parquet_rows(first, table)

    def carried(self, part: Slice) -> pa.Table | None:
        """Return the user's own columns of a slice of a Parquet file; None for other files and where there are none."""
        if self._format != "parquet" or set(pq.read_schema(self._path).names) <= set(READ_FIELDS):
            return None
        return pa.concat_tables(
            [table for _, table in self._carried.tables(part.first_row, part.rows)]
        ).combine_chunks()


def changed(path: Path) -> InputError:
    return InputError(f"{path} was changed while it was scored (or is another file on this node); run again")


def open_rows(path: Path) -> RowFile:
    """Return the file if rows can be read from it.

    Raises:
        InputError: missing, a directory, unreadable, of another format than its name says, or without a row.
    """
    if path.is_dir():
        raise InputError(f"input {path} is a directory; name a .jsonl or .parquet file in it")
    if not path.exists():
        raise InputError(f"input {path} does not exist; paths are relative to the directory you run in")
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise InputError(f"input {path}: the name must end with .jsonl or .parquet, so that its format is known")
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise InputError(f"input {path} cannot be read: {error.strerror}") from None
    (_check_jsonl if form == "jsonl" else _check_parquet)(path, head)
    return RowFile(path, form)


def _check_jsonl(path: Path, head: bytes) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"input {path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path}")
    if head[:2] == b"\x1f\x8b":
        raise InputError(f"input {path} is compressed with gzip; unpack it first: gunzip {path}")
    if head == b"PAR1":
        raise InputError(f"input {path} is a Parquet file; let its name end with .parquet")
    with path.open("rb") as file:
        if all(line.blank for line in read_lines(file)):
            raise InputError(f"input {path} holds no row; give one JSON object a line")


def _check_parquet(path: Path, head: bytes) -> None:
    if head != b"PAR1":
        raise InputError(f"input {path} is not a Parquet file; JSON lines have the name ending .jsonl")
    try:
        file = pq.ParquetFile(path)
        names, rows = file.schema_arrow.names, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"input {path} is not a readable Parquet file: {_first_line(error)}") from None
    if rows == 0:
        raise InputError(f"input {path} holds no row")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"input {path} has the column {twice!r} twice")
    if not {"messages", "prompt"} & set(names):
        raise InputError(
            f"input {path} has neither a messages nor a prompt column; it has: {', '.join(names)[:300]}; "
            f"columns that are read: {', '.join(READ_FIELDS)}"
        )


# ---- JSON lines -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A line of a file: where it is, and its bytes unless it is too long to be held."""

    number: int
    offset: int
    size: int
    raw: bytes | None
    digest: bytes

    @property
    def blank(self) -> bool:
        return self.raw is not None and not self.raw.strip()

    def row(self, index: int) -> Row:
        """Return what the line says, as row `index`."""
        if self.raw is None:
            detail = f"the line has {self.size} bytes, at most {MAX_LINE_BYTES} are read"
            return Row(index, self.number, None, Refused("too_long", detail))
        try:
            value = strict_json.parse(self.raw.strip(), what="the line")
        except strict_json.StrictJsonError as error:
            if error.reason in ("bad_json", "bad_utf8") and not self.raw.endswith(b"\n"):
                detail = f"the last line has no end, and {error.message}; the file may have been cut"
                return Row(index, self.number, None, Refused("torn_line", detail))
            return Row(index, self.number, None, Refused(error.reason, error.message))
        if not isinstance(value, dict):
            detail = f"the line is a {type(value).__name__}, not a JSON object"
            return Row(index, self.number, None, Refused("not_an_object", detail))
        return Row(index, self.number, value)


def read_lines(file: BinaryIO, *, offset: int = 0, number: int = 1, stop: int | None = None) -> Iterator[Line]:
    """Yield the lines of an open file from where it stands; `offset` and `number` say where that is.

    Lines that are too long are passed over in pieces.
    """
    while stop is None or offset < stop:
        piece = file.readline(MAX_LINE_BYTES)
        if not piece:
            return
        digest, size, raw = hashlib.blake2b(piece, digest_size=16), len(piece), piece
        while not piece.endswith(b"\n") and (piece := file.readline(MAX_LINE_BYTES)):
            digest.update(piece)
            size, raw = size + len(piece), None
        if number == 1 and raw is not None:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        yield Line(number, offset, size, raw, digest.digest())
        offset += size
        number += 1


def _jsonl_slice(path: Path, part: Slice) -> Iterator[Row]:
    digests = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(part.offset)
        index = part.first_row
        for line in read_lines(file, offset=part.offset, number=part.line, stop=part.offset + part.size):
            digests.update(line.digest)
            if not line.blank:
                yield line.row(index)
                index += 1
    if digests.hexdigest()[:16] != part.checksum:
        raise changed(path)


# ---- Parquet ----------------------------------------------------------------------------------


def footer_checksum(path: Path) -> str:
    """Return a checksum of a Parquet file's footer, which holds the place and size of everything in it."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - 65536))
        return hashlib.sha256(file.read() + str(size).encode()).hexdigest()[:16]


class Cursor:
    """A place in a Parquet file: goes on from where it is, or starts at the row group that is asked for."""

    def __init__(self, path: Path, *, carried: bool = False) -> None:
        """Open nothing yet. `carried` reads the user's own columns, else those that say what to score."""
        self._path, self._own = path, carried
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._ends = np.zeros(0, dtype=np.int64)
        """Row at which each row group ends."""
        self._at: int | None = None
        """Row that the next batch begins with; None before the first and after an error."""
        self._held: tuple[int, pa.Table] | None = None
        """The last batch with its first row: the next slice may begin in it."""

    def tables(self, first_row: int, rows: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield (number of its first row, table) for `rows` rows from `first_row` on, a few hundred at a time.

        Raises:
            InputError: a page cannot be read; the file and the row are named.
        """
        stop = first_row + rows
        try:
            self._go_to(first_row)
            while first_row < stop:
                start, table = self._held or self._next()
                if start + len(table) <= first_row:
                    self._held = None
                    continue
                piece = table.slice(first_row - start, stop - first_row)
                yield first_row, piece
                first_row += len(piece)
        except (pa.ArrowException, OSError, StopIteration) as error:
            self._at = None
            raise InputError(
                f"input {self._path} cannot be read from row {first_row} on: {_first_line(error)}"
            ) from None

    def _go_to(self, row: int) -> None:
        begun = self._held[0] if self._held is not None else self._at
        if self._at is not None and begun is not None:
            group = int(np.searchsorted(self._ends, row, side="right"))
            behind = int(self._ends[group - 1]) if group else 0
            if begun <= row and behind <= self._at:
                return
        file = pq.ParquetFile(self._path)
        self._ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)])
        skipped = int(np.searchsorted(self._ends, row, side="right"))
        columns = [name for name in file.schema_arrow.names if (name not in READ_FIELDS) == self._own]
        groups = list(range(skipped, len(self._ends)))
        self._batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=columns)
        self._at, self._held = int(self._ends[skipped - 1]) if skipped else 0, None

    def _next(self) -> tuple[int, pa.Table]:
        assert self._at is not None
        table = pa.Table.from_batches([next(self._batches)])
        self._held = (self._at, table)
        self._at += len(table)
        return self._held


def parquet_rows(first: int, table: pa.Table) -> Iterator[Row]:
    """Yield the rows of a table whose first row is row `first` of its file."""
    try:
        for place, record in enumerate(table.to_pylist(), start=first):
            yield Row(place, place, record)
        return
    except (UnicodeDecodeError, pa.ArrowException):
        pass  # one of them holds bytes that are not text: find out which
    for place in range(len(table)):
        try:
            (record,) = table.slice(place, 1).to_pylist()
        except (UnicodeDecodeError, pa.ArrowException):
            yield Row(first + place, first + place, None, Refused("bad_utf8", "a text column is not UTF-8"))
        else:
            yield Row(first + place, first + place, record)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
