"""What a finished score_file stage is for people: their rows with scores, in their order, in a file of their choice.

Parts and input file are walked side by side, slice by slice, so the user's own columns are never copied into the
stage. All is written under temporary names and renamed at the end; the bytes depend on the artifact and the
options alone, whatever happened on the way.
"""

import base64
import contextlib
import dataclasses
import datetime
import decimal
import glob
import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from fusion.artifact import Artifact, Quarantined, atomic_file, fsync, part_name, read_part, read_quarantine, write_json
from fusion.errors import InputError
from fusion.rewards.items import Normalize, normalized
from fusion.rows import from_table
from fusion.stages.chunks import ABANDONED_AFTER_S
from fusion.stages.file_scorer import ItemScore
from fusion.stages.score_index import Index
from fusion.stages.score_input import READ_FIELDS, Row, RowFile, Slice, parquet_tables

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("response_index", pa.int32()),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("objectives", pa.map_(pa.string(), pa.float64())),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_revision", pa.string(), nullable=False),
    ]
)
"""Our columns; `index` is the row of the input, counted from 0 without blank lines."""

SUMMARY_KIND = "fuseline score"
"""What the summary beside an output says it is."""

_OURS = re.compile(rf"(input_)*({'|'.join(SCHEMA.names)})")
_ARROW = {"null": pa.null(), "bool": pa.bool_(), "int": pa.int64(), "long": pa.int64(), "float": pa.float64()}


def carried_name(name: str) -> str:
    """Return the name under which a column of the user's comes back: its own, or `input_...` where it is one of ours.

    Examples: source -> source, model -> input_model, input_model -> input_input_model. No two names meet.
    """
    return f"input_{name}" if _OURS.fullmatch(name) else name


@dataclasses.dataclass(frozen=True)
class Output:
    """Where the results go: one file, or a folder of Parquet files."""

    path: Path

    @property
    def kind(self) -> str:
        """jsonl, parquet or folder."""
        return {".jsonl": "jsonl", ".parquet": "parquet"}.get(self.path.suffix.lower(), "folder")

    @property
    def quarantine(self) -> Path:
        return self.path.with_name(f"{self.path.name}.quarantine.jsonl")

    @property
    def summary(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def check(self, source: RowFile) -> None:
        """Raise InputError if something of the user's would be overwritten, or if the format cannot be told."""
        if self.path.name in ("", ".", ".."):
            raise InputError(f"--out {self.path}: name a file (.jsonl or .parquet) or a new folder")
        if self.kind == "folder" and self.path.suffix and not self.path.is_dir():
            raise InputError(f"--out {self.path}: the name must end with .jsonl or .parquet, or be that of a folder")
        for file in (self.path, self.quarantine, self.summary):
            if file.exists() and file.samefile(source.path):
                raise InputError(f"--out {self.path} would overwrite the input {source.path}; name another file")
        if self.path.parent.exists() and not self.path.parent.is_dir():
            raise InputError(f"--out {self.path}: {self.path.parent} is not a folder")
        if (self.kind == "folder") != self.path.is_dir() and self.path.exists():
            raise InputError(f"--out {self.path} is a {'folder' if self.path.is_dir() else 'file'}; name another one")
        files = [path for path in (self.path, self.quarantine, self.summary) if _holds_something(path)]
        if files and not self._is_ours():
            raise InputError(f"{files[0]} exists and was not written by fuseline score; remove it or change --out")

    def begin(self) -> None:
        """Say beside the output that it is ours and not finished, and remove what killed writers left."""
        write_json(self.summary, {"kind": SUMMARY_KIND, "finished": False})
        for path in (self.path, self.quarantine, self.summary):
            _remove_abandoned(path)

    def _is_ours(self) -> bool:
        try:
            return json.loads(self.summary.read_text(encoding="utf-8"))["kind"] == SUMMARY_KIND
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _remove_abandoned(path: Path) -> None:
    """Remove what killed writers of `path` left beside it; what is young may belong to a living one."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        if left.suffix in (".tmp", ".old") and time.time() - left.stat().st_mtime > ABANDONED_AFTER_S:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What is the same in every row of the output, and how scores are shown."""

    model: str
    model_revision: str
    objectives: bool
    normalize: Normalize | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Scored:
    """The scores of one slice with the rows they belong to."""

    part: Slice
    rows: Sequence[Row]
    scores: Sequence[ItemScore]

    def row(self, score: ItemScore) -> Row:
        return self.rows[score.row - self.part.first_row]


def write_output(output: Output, artifact: Artifact, source: RowFile, index: Index, stamp: Stamp) -> None:
    """Write scores and quarantined rows, both in the order of the input.

    The summary says that they are not finished until the caller writes it, last.

    Raises:
        InputError: the input file is not the one that was scored.
        ArtifactError: a part is damaged.
    """
    output.begin()
    folder = output.kind == "folder"
    with (
        _atomic_folder(output.path) if folder else atomic_file(output.path) as target,
        atomic_file(output.quarantine) as refused_path,
        refused_path.open("w", encoding="utf-8") as refused_file,
        _SINKS[output.kind](target, source, index, stamp) as sink,
    ):
        for part in index.slices:
            rows = list(source.rows(part))
            scores = list(from_table(read_part(artifact.path / part_name(part.index)), ItemScore))
            sink.write(_Scored(part, rows, scores))
            for refused in read_quarantine(artifact.path, part.index):
                refused_file.write(_refused_line(refused, rows, part, source))


def _refused_line(refused: Quarantined, rows: Sequence[Row], part: Slice, source: RowFile) -> str:
    number, _, response = refused.row_id.partition("/")
    row = rows[int(number) - part.first_row]
    line = {
        source.place_name: row.place,
        "index": row.index,
        "id": source.name(row),
        "response_index": int(response) if response else None,
        "reason": refused.reason,
        "detail": refused.detail,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


# ---- sinks ------------------------------------------------------------------------------------


class _Sink(Protocol):
    def __enter__(self) -> "_Sink": ...
    def __exit__(self, *_: object) -> None: ...
    def write(self, scored: _Scored) -> None: ...


class _JsonlSink:
    """One JSON object a response: our fields, then the user's own."""

    def __init__(self, path: Path, source: RowFile, index: Index, stamp: Stamp) -> None:
        self._path, self._source, self._stamp = path, source, stamp

    def __enter__(self) -> "_JsonlSink":
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, scored: _Scored) -> None:
        carried = self._carried(scored)
        for score in scored.scores:
            row = scored.row(score)
            line = {**_our_fields(score, self._source.name(row), self._stamp), **carried(row)}
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def _carried(self, scored: _Scored) -> Any:
        if self._source.format == "jsonl":
            return lambda row: {carried_name(k): v for k, v in row.record.items() if k not in READ_FIELDS}
        table = _carried_table(self._source, scored.part)
        columns = {carried_name(name): _plain_values(table[name]) for name in table.column_names}
        first = scored.part.first_row
        return lambda row: {name: values[row.index - first] for name, values in columns.items()}


class _ParquetSink:
    """One Parquet file, a row group for each slice."""

    def __init__(self, path: Path, source: RowFile, index: Index, stamp: Stamp) -> None:
        self._path, self._source, self._index, self._stamp = path, source, index, stamp
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_ParquetSink":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, scored: _Scored) -> None:
        table = _table(scored, self._source, self._index, self._stamp)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)


class _FolderSink:
    """One Parquet file for each slice."""

    def __init__(self, path: Path, source: RowFile, index: Index, stamp: Stamp) -> None:
        self._path, self._source, self._index, self._stamp = path, source, index, stamp

    def __enter__(self) -> "_FolderSink":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def write(self, scored: _Scored) -> None:
        path = self._path / part_name(scored.part.index)
        pq.write_table(_table(scored, self._source, self._index, self._stamp), path, compression="zstd")
        fsync(path)


_SINKS: Mapping[str, type[_JsonlSink] | type[_ParquetSink] | type[_FolderSink]] = {
    "jsonl": _JsonlSink,
    "parquet": _ParquetSink,
    "folder": _FolderSink,
}


def _our_fields(score: ItemScore, name: str, stamp: Stamp) -> dict[str, Any]:
    return {
        "id": name,
        "index": score.row,
        "response_index": score.response,
        "score": normalized(score.score, stamp.normalize),
        "tokens": score.tokens,
        "truncated": score.truncated,
        "objectives": (score.objectives or None) if stamp.objectives else None,
        "model": stamp.model,
        "model_revision": stamp.model_revision,
    }


def _table(scored: _Scored, source: RowFile, index: Index, stamp: Stamp) -> pa.Table:
    ours = [_our_fields(score, source.name(scored.row(score)), stamp) for score in scored.scores]
    for line in ours:
        line["objectives"] = None if line["objectives"] is None else list(line["objectives"].items())
    table = pa.Table.from_pylist(ours, schema=SCHEMA)
    if source.format == "parquet":
        carried = _carried_table(source, scored.part)
        carried = carried.take(pa.array([score.row - scored.part.first_row for score in scored.scores], pa.int64()))
        columns = {carried_name(name): carried[name] for name in carried.column_names}
        fields = [carried.schema.field(name).with_name(carried_name(name)) for name in carried.column_names]
    else:
        records = [scored.row(score).record or {} for score in scored.scores]
        columns = {carried_name(n): _json_column(records, n, kind) for n, kind in index.columns.items()}
        fields = [pa.field(name, column.type) for name, column in columns.items()]
    for field in fields:
        table = table.append_column(field, columns[field.name])
    return table


def _carried_table(source: RowFile, part: Slice) -> pa.Table:
    tables = [t for _, t in parquet_tables(source.path, first_row=part.first_row, rows=part.rows, carried=True)]
    return pa.concat_tables(tables).combine_chunks()


def _json_column(records: Sequence[Mapping[str, Any]], name: str, kind: str) -> pa.Array:
    """Return a user's JSON field as a column; of mixed or nested values, their JSON text."""
    values = [record.get(name) for record in records]
    if kind == "json":
        values = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(values, _ARROW.get(kind, pa.string()))


def _plain_values(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a user's Parquet column as JSON can hold them."""
    try:
        return [_plain(value) for value in column.to_pylist()]
    except UnicodeDecodeError:  # text that is not UTF-8, which Parquet does not check
        return [_plain(_decoded(value)) for value in column]


def _decoded(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        buffer = value.as_buffer() if hasattr(value, "as_buffer") else None
        return buffer.to_pybytes().decode("utf-8", "replace") if buffer is not None else None


def _plain(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal():
            return str(value)
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case None | bool() | int() | str():
            return value
        case _:
            return str(value)


@contextlib.contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path`; on a clean exit put it in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        fsync(temporary)
        if path.exists() and any(path.iterdir()):
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.replace(old)  # two renames: between them there is no folder, never a mixed one
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync(path.parent)
