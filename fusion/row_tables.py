"""The Arrow form of rows: a schema derived from the dataclass, and rows to tables and back.

A field is declared once, on the dataclass (`rows.py`). The one idea: plain values are what Arrow and Python agree on, so a
row becomes nested lists and dicts on the way in, and is made anew, with its invariants checked, on the way out.
"""

import dataclasses
import hashlib
import types
import typing
from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import cache
from typing import Any

import pyarrow as pa

from fusion.errors import ArtifactError


@cache
def schema_of(row_type: type) -> pa.Schema:
    """Return the Arrow schema of a row dataclass; the row type's name is stored in its metadata."""
    fields = [_arrow_field(f.name, hint) for f, hint in _fields(row_type)]
    return pa.schema(fields, metadata={b"row_type": row_type.__name__.encode()})


def schema_digest(row_type: type) -> str:
    """Return a sha256 of the schema's text, stored in manifests to notice a changed row type."""
    return hashlib.sha256(schema_of(row_type).to_string(show_schema_metadata=False).encode()).hexdigest()


def to_table(rows: Iterable[Any], row_type: type) -> pa.Table:
    """Return an Arrow table of `rows`; every row must be exactly a `row_type`."""
    plain = []
    for row in rows:
        if type(row) is not row_type:
            raise TypeError(f"expected {row_type.__name__}, got {type(row).__name__}")
        plain.append(_to_plain(row))
    return pa.Table.from_pylist(plain, schema=schema_of(row_type))


def from_table(table: pa.Table, row_type: type) -> Iterator[Any]:
    """Yield the rows of an Arrow table.

    Raises:
        ArtifactError: the table has another schema; both are printed.
    """
    expected = schema_of(row_type)
    if not table.schema.equals(expected, check_metadata=False):
        raise ArtifactError(
            f"these rows are not {row_type.__name__}.\nexpected:\n{expected.to_string(show_schema_metadata=False)}\n"
            f"found:\n{table.schema.to_string(show_schema_metadata=False)}"
        )
    for batch in table.to_batches(max_chunksize=4096):
        for plain in batch.to_pylist():
            yield _from_plain(plain, row_type)


@cache
def _fields(row_type: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(row_type)
    return [(f, hints[f.name]) for f in dataclasses.fields(row_type)]


def _optional(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = [a for a in typing.get_args(hint) if a is not type(None)]
        return inner, True
    return hint, False


_SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


def _arrow_type(hint: Any) -> pa.DataType:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if dataclasses.is_dataclass(hint):
        return pa.struct([_arrow_field(f.name, h) for f, h in _fields(typing.cast(type, hint))])
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return pa.string()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return pa.list_(_arrow_field("item", args[0]))
    if origin is dict:
        return pa.map_(pa.string(), _arrow_field("value", args[1]))
    raise TypeError(f"{hint} has no Arrow form; use str, int, float, bool, tuple, dict[str, ...] or a row dataclass")


def _arrow_field(name: str, hint: Any) -> pa.Field:
    inner, nullable = _optional(hint)
    # Maps must have nullable values for Arrow's Parquet reader to round-trip the schema unchanged.
    return pa.field(name, _arrow_type(inner), nullable=nullable or name in ("item", "value"))


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, tuple):
        # Token ids are most of the data: a tuple of scalars is plain already.
        return list(value) if value and type(value[0]) in _SCALARS else [_to_plain(v) for v in value]
    if isinstance(value, dict):
        return [(k, _to_plain(v)) for k, v in value.items()]
    return value


def _from_plain(value: Any, hint: Any) -> Any:
    hint, _ = _optional(hint)
    if value is None or hint in _SCALARS:
        return value
    if dataclasses.is_dataclass(hint):
        row_type = typing.cast(type, hint)
        return row_type(**{f.name: _from_plain(value[f.name], h) for f, h in _fields(row_type)})
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return tuple(value) if args[0] in _SCALARS else tuple(_from_plain(v, args[0]) for v in value)
    return {k: _from_plain(v, args[1]) for k, v in value}
