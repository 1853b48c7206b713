"""The one pass over a file of rows: where its slices are, how many responses come in, which rows repeat an id.

It is kept in the stage's directory, so that a resumed run does not repeat it and has the same slices. Of each
row only a digest of its id or name, its place and a count are held in memory, 29 bytes together.
"""

import array
import bisect
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fusion.artifact import write_json
from fusion.errors import ArtifactError
from fusion.rewards.items import Refused
from fusion.stages.score_input import (
    READ_FIELDS,
    Cursor,
    Line,
    Row,
    RowFile,
    Slice,
    footer_checksum,
    parquet_rows,
    read_lines,
)

INDEX = "slices.json"
SLICE_BYTES = 8 << 20
"""Size at which a slice of JSON lines ends whatever its number of rows: what an actor holds in memory."""
MOST_COLUMNS = 1000
"""Different fields of JSON lines that an output in Parquet may have; the types of one more are noted."""


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of the whole file."""

    slices: tuple[Slice, ...]
    columns: Mapping[str, str]
    """The user's own fields of JSON lines in order of appearance, with their type, see `json_type`."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.slices)

    @property
    def responses(self) -> int:
        return sum(part.responses for part in self.slices)


def index_of(source: RowFile, directory: Path, *, slice_rows: int) -> Index:
    """Return the index that is kept in `directory`; make it where there is none.

    Raises:
        InputError: the file cannot be read to its end.
    """
    kept = directory / INDEX
    if kept.exists():
        try:
            found = json.loads(kept.read_text())
            return Index(tuple(_slice(fields) for fields in found["slices"]), found["columns"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{kept} is not readable ({error}); remove {directory} and run again") from None
    index = _Pass(source, slice_rows).run()
    write_json(kept, {"slices": [dataclasses.asdict(s) for s in index.slices], "columns": dict(index.columns)})
    return index


def _slice(fields: Mapping[str, Any]) -> Slice:
    known: dict[str, Any] = {"renamed": (), "names": (), **fields}  # older indexes have nothing of these two
    known.update({name: tuple(known[name]) for name in ("repeated", "first", "renamed", "names")})
    return Slice(**known)


class _Pass:
    """The pass, with what it keeps of each row."""

    def __init__(self, source: RowFile, slice_rows: int) -> None:
        self._source = source
        self._slice_rows = slice_rows
        self._ids = bytearray()
        self._made = bytearray()
        self._places = array.array("q")
        self._responses = array.array("i")
        self._columns: dict[str, str] = {}

    def run(self) -> Index:
        bounds = list(self._lines() if self._source.format == "jsonl" else self._tables())
        halves = np.frombuffer(bytes(self._ids), dtype=np.uint64).reshape(-1, 2)
        repeated, met = self._repeated(halves)
        for row in repeated:
            self._responses[row] = 1  # it is refused as a whole
        counts = np.asarray(self._responses, dtype=np.int64)
        names = self._names(met, halves)
        slices, rows, renamed = [], sorted(repeated), sorted(names)
        for number, bound in enumerate(bounds):
            mine, others = _within(rows, bound), _within(renamed, bound)
            stop = bound.first_row + bound.rows
            slices.append(
                dataclasses.replace(
                    bound,
                    index=number,
                    responses=int(counts[bound.first_row : stop].sum()),
                    repeated=tuple(mine),
                    first=tuple(self._places[repeated[row]] for row in mine),
                    renamed=tuple(others),
                    names=tuple(names[row] for row in others),
                )
            )
        return Index(tuple(slices), self._columns)

    def _lines(self) -> Iterator[Slice]:
        """Note every line and yield the bounds of slices; blank lines belong to the slice before them."""
        first: Line | None = None
        digests, rows, size, seen = hashlib.sha256(), 0, 0, 0
        with self._source.path.open("rb") as file:
            for line in read_lines(file):
                if first is not None and not line.blank and (rows >= self._slice_rows or size >= SLICE_BYTES):
                    yield _bound(seen - rows, rows, first, size, digests.hexdigest())
                    first, digests, rows, size = None, hashlib.sha256(), 0, 0
                first = first or line
                digests.update(line.digest)
                size += line.size
                if not line.blank:
                    self._note(line.row(seen))
                    rows, seen = rows + 1, seen + 1
        if first is not None:
            yield _bound(seen - rows, rows, first, size, digests.hexdigest())

    def _tables(self) -> Iterator[Slice]:
        rows = pq.read_metadata(self._source.path).num_rows
        for first, table in Cursor(self._source.path).tables(0, rows):
            for row in parquet_rows(first, table):
                self._note(row)
        checksum = footer_checksum(self._source.path)
        for start in range(0, rows, self._slice_rows):
            size = min(self._slice_rows, rows - start)
            yield Slice(0, start, size, 0, offset=start, line=start, size=size, checksum=checksum)

    def _note(self, row: Row) -> None:
        own = self._source.own_id(row)
        self._ids += _digest(own or self._source.made_name(row.place))
        self._made.append(own is None)
        self._places.append(row.place)
        try:
            self._responses.append(len(row.item().conversations))
        except Refused:
            self._responses.append(1)
        if self._source.format == "jsonl" and row.record is not None:
            self._note_types(row.record)

    def _note_types(self, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name not in READ_FIELDS and (name in self._columns or len(self._columns) <= MOST_COLUMNS):
                self._columns[name] = merged_type(self._columns.get(name, "null"), json_type(value))

    def _repeated(self, halves: np.ndarray) -> tuple[dict[int, int], list[int]]:
        """Return row -> first row with the same id, for all rows but the first of each id, and whom a name meets.

        The latter are rows without an id whose usual name is the id of another row.
        """
        made = np.frombuffer(bytes(self._made), dtype=np.uint8)
        # Stable: rows of one id stay in order. Behind them comes the one row that would have it for a name.
        order = np.lexsort((made, halves[:, 1], halves[:, 0]))
        same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
        found: dict[int, int] = {}
        met: list[int] = []
        for place in np.flatnonzero(same):
            before, row = int(order[place]), int(order[place + 1])
            if made[row]:
                met.append(row)
            else:
                found[row] = found.get(before, before)
        return found, met

    def _names(self, rows: Sequence[int], halves: np.ndarray) -> dict[int, str]:
        """Return other names for rows whose usual ones are taken: with as many underscores as make them no row's id."""
        # Half a digest is enough: a name that is free may be passed over, one that is taken never is given.
        taken = np.sort(halves[:, 0]) if rows else halves[:0, 0]
        names = {}
        for row in rows:
            name = self._source.made_name(self._places[row])
            while True:
                name += "_"
                half = np.frombuffer(_digest(name), dtype=np.uint64)[0]
                if np.searchsorted(taken, half, "left") == np.searchsorted(taken, half, "right"):
                    break
            names[row] = name
        return names


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _within(rows: Sequence[int], bound: Slice) -> Sequence[int]:
    """Return those of the sorted rows that are in the slice."""
    stop = bound.first_row + bound.rows
    return rows[bisect.bisect_left(rows, bound.first_row) : bisect.bisect_left(rows, stop)]


def _bound(first_row: int, rows: int, first: Line, size: int, checksum: str) -> Slice:
    return Slice(0, first_row, rows, 0, first.offset, first.number, size, checksum[:16])


def json_type(value: Any) -> str:
    """Return the type of a JSON value as a column: null, bool, int, long, float, str, or json for all else.

    An `int` has an exact float64, a `long` fits 64 bits.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int():
            return "int" if abs(value) <= 2**53 else "long" if -(2**63) <= value < 2**63 else "json"
        case float():
            return "float"
        case str():
            return "str"
        case _:
            return "json"


def merged_type(one: str, other: str) -> str:
    """Return the type of a column that holds values of both types; what has no common type is kept as JSON text."""
    kinds = {one, other} - {"null"}
    if len(kinds) < 2:
        return next(iter(kinds), "null")
    return "float" if kinds == {"int", "float"} else "long" if kinds == {"int", "long"} else "json"
