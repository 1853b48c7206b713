"""Names of fields: from those of a data set to ours, before any record is checked.

`fields: {prompt: problem, reference: expected_answer}` says where our fields are in the records of a set. A source is a
field's name, a path into it (`messages.0.content`), several that are joined line by line (`[instruction, input]`), or
null for a field of that name that is not ours. What no record of a file has is an error that names the file, since
it is a mistake in the recipe and not in the rows.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from fusion.errors import InputError

Record = tuple[str, dict[str, Any]]
"""Where a record stands (for messages, e.g. `math.jsonl:7`) and its fields."""

FieldPath = Annotated[str, Field(min_length=1)]
"""Name of a field, or a path into it with dots; numbers count items of a list, negative ones from its end."""

FieldSource = FieldPath | tuple[FieldPath, ...] | None
"""Where a field of ours is found: a path, several paths whose texts are joined line by line, or null for nowhere."""

_SAME: dict[str, tuple[str, ...]] = {
    "id": ("prompt_id",),
    "prompt": ("messages",),
    "messages": ("prompt",),
    "reference": ("answer",),
}
"""Our field -> others that mean the same, which a record must not bring in behind the back of a named one."""


class _Absent:
    """What `find` gives where there is nothing, which is not the same as null."""


ABSENT = _Absent()


def find(record: Any, path: str) -> Any:
    """Return what stands at `path`, or `ABSENT`. Example: `find({"m": [{"c": "x"}]}, "m.0.c")` is "x"."""
    if isinstance(record, dict) and path in record:
        return record[path]  # a name with a dot in it, as it stands
    value = record
    for step in path.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.removeprefix("-").isdecimal() and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return ABSENT
    return value


def renamed(records: Iterable[Record], fields: Mapping[Any, FieldSource], *, file: str) -> Iterator[Record]:
    """Yield the records with our names for the fields that `fields` names; all others stay as they are.

    Raises:
        InputError: no record of the file has a field that `fields` names.
    """
    unseen = {path: name for name, source in fields.items() for path in _paths(source)}
    example: dict[str, Any] | None = None
    for place, record in records:
        example = record if example is None else example
        if unseen:
            unseen = {path: name for path, name in unseen.items() if find(record, path) is ABSENT}
        yield place, _renamed(record, fields)
    if unseen and example is not None:
        path, name = next(iter(unseen.items()))
        raise InputError(
            f"{file}: no record has a field {path!r}, named for {name}; the first one has: {', '.join(map(str, example))}"
        )


def _renamed(record: dict[str, Any], fields: Mapping[Any, FieldSource]) -> dict[str, Any]:
    replaced = {other for name in fields for other in (name, *_SAME.get(name, ()))}
    kept = {name: value for name, value in record.items() if name not in replaced}
    found = {name: _value(record, source) for name, source in fields.items()}
    return kept | {name: value for name, value in found.items() if value is not ABSENT}


def _value(record: dict[str, Any], source: FieldSource) -> Any:
    if source is None:
        return ABSENT
    if isinstance(source, str):
        return find(record, source)
    parts = [part for path in source if (part := find(record, path)) not in (ABSENT, None, "")]
    odd = next((part for part in parts if not isinstance(part, str)), ABSENT)
    if odd is not ABSENT:
        return odd  # what is not text is refused by the checks of the record, with its type
    return "\n".join(parts) if parts else ABSENT


def _paths(source: FieldSource) -> tuple[str, ...]:
    return () if source is None else (source,) if isinstance(source, str) else source
