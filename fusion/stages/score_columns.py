"""The rows of an output: our columns beside the user's own, as JSON lines or as an Arrow table.

The user's columns keep their names (but for those that are ours) and their values: from Parquet to Parquet with
their types, from JSON to JSON as they were; between the two what has no equal is written as text.
"""

import base64
import dataclasses
import datetime
import decimal
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from fusion.rewards.items import Normalize, normalized
from fusion.stages.file_scorer import ItemScore
from fusion.stages.score_input import READ_FIELDS, Row, RowFile, Slice

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

_OURS = re.compile(rf"(input_)*({'|'.join(SCHEMA.names)})")
_ARROW = {"null": pa.null(), "bool": pa.bool_(), "int": pa.int64(), "long": pa.int64(), "float": pa.float64()}


def carried_name(name: str) -> str:
    """Return the name under which a column of the user's comes back: its own, or `input_...` where it is one of ours.

    Examples: source -> source, model -> input_model, input_model -> input_input_model. No two names meet.
    """
    return f"input_{name}" if _OURS.fullmatch(name) else name


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What is the same in every row of the output, and how scores are shown."""

    model: str
    model_revision: str
    objectives: bool
    normalize: Normalize | None


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredSlice:
    """The scores of one slice with the rows they belong to."""

    source: RowFile
    part: Slice
    rows: Sequence[Row]
    scores: Sequence[ItemScore]
    carried: pa.Table | None
    """The user's own columns, where the file is Parquet and has any."""

    def place(self, score: ItemScore) -> int:
        return score.row - self.part.first_row

    def our_fields(self, stamp: Stamp) -> Iterator[dict[str, Any]]:
        """Yield what we say of each response, in order."""
        for score in self.scores:
            yield {
                "id": self.source.name(self.rows[self.place(score)], self.part),
                "index": score.row,
                "response_index": score.response,
                "score": normalized(score.score, stamp.normalize),
                "tokens": score.tokens,
                "truncated": score.truncated,
                "objectives": (score.objectives or None) if stamp.objectives else None,
                "model": stamp.model,
                "model_revision": stamp.model_revision,
            }


def json_lines(scored: ScoredSlice, stamp: Stamp) -> Iterator[str]:
    """Yield one JSON object a response: our fields, then the user's own."""
    columns: dict[str, list[Any]] = {}
    if scored.carried is not None:
        columns = {carried_name(n): _plain_values(scored.carried[n]) for n in scored.carried.column_names}
    for score, ours in zip(scored.scores, scored.our_fields(stamp), strict=True):
        place = scored.place(score)
        own = {name: values[place] for name, values in columns.items()}
        if scored.source.format == "jsonl":
            record = scored.rows[place].record or {}
            own = {carried_name(name): value for name, value in record.items() if name not in READ_FIELDS}
        yield json.dumps({**ours, **own}, ensure_ascii=False, allow_nan=False) + "\n"


def table(scored: ScoredSlice, stamp: Stamp, kinds: Mapping[str, str]) -> pa.Table:
    """Return a row a response: our columns, then the user's own.

    Args:
        kinds: the user's fields of JSON lines with their types (`Index.columns`).
    """
    ours = [
        {**fields, "objectives": None if fields["objectives"] is None else list(fields["objectives"].items())}
        for fields in scored.our_fields(stamp)
    ]
    out = pa.Table.from_pylist(ours, schema=SCHEMA)
    places = [scored.place(score) for score in scored.scores]
    if scored.carried is not None:
        own = scored.carried.take(pa.array(places, pa.int64()))
        for field in own.schema:
            out = out.append_column(field.with_name(carried_name(field.name)), own[field.name])
    if scored.source.format == "jsonl":
        records = [scored.rows[place].record or {} for place in places]
        for name, kind in kinds.items():
            out = out.append_column(carried_name(name), _json_column(records, name, kind))
    return out


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
