"""Training rows as token ids, made once on the driver and then fixed for the life of the directory.

The one idea: everything that can drop a row happens here, before a worker starts, and is counted; what
is left is one Parquet file that every worker reads by row number. A row is whole or dropped, never cut.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusion.artifact import atomic_file, read_part
from fusion.errors import InputError
from fusion.rows import Finish, Message, Response, group_roles, response_groups, response_weights, responses_of, roles

_META = b"fuseline_training"

TOO_LONG = "too_long"
EMPTY_RESPONSE = "empty_response"
UNENCODABLE = "unencodable"


class Encoder(Protocol):
    """What is needed of `fusion.chat.Chat`."""

    @property
    def tokenizer_hash(self) -> str: ...

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]: ...

    def encode_response(self, messages: Sequence[Message], text: str, *, finished: bool = True) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedRow:
    """One training row as ids.

    Example: prompt_ids [1, 5, 6], responses {"chosen": ([7, 2],), "rejected": ([8, 2],)}, scores {"chosen": (1.0,),
    "rejected": (0.0,)}.
    """

    row_id: str
    weight: float
    prompt_ids: np.ndarray
    responses: Mapping[str, tuple[np.ndarray, ...]]
    """role -> ids of each of its responses, end of turn included where the response was finished."""
    scores: Mapping[str, tuple[float, ...]]
    """role -> the scorer's number for each of its responses."""
    shares: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """role -> the share of the row that each of its responses has; 1 each where the row type has no weights."""
    groups: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """role -> the group of each of its responses; 0 each where the row type has no groups."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """A row that cannot be trained on."""

    row_id: str
    reason: str
    detail: str


def encode_row(row: Any, chat: Encoder, *, max_length: int) -> EncodedRow | Dropped:
    """Return a training row as ids, or why it is dropped.

    A response of the model's own tokenizer keeps the ids that were sampled; any other is encoded from its text,
    with an end of turn exactly when its model had ended its turn.
    """
    try:
        prompt_ids = chat.encode_prompt(row.prompt.messages)
        responses = {
            role: tuple(_response_ids(scored.response, row.prompt.messages, chat) for scored in responses_of(row, role))
            for role in roles(type(row))
        }
    except InputError as error:
        return Dropped(row.row_id, UNENCODABLE, str(error))
    for role, group in responses.items():
        for ids in group:
            if not ids:
                return Dropped(row.row_id, EMPTY_RESPONSE, f"{role} has no token")
            if len(prompt_ids) + len(ids) > max_length:
                detail = f"prompt {len(prompt_ids)} + {role} {len(ids)} tokens > max_length {max_length}"
                return Dropped(row.row_id, TOO_LONG, detail)
    return EncodedRow(
        row.row_id,
        float(row.weight),
        np.asarray(prompt_ids, np.int64),
        {role: tuple(np.asarray(ids, np.int64) for ids in group) for role, group in responses.items()},
        {role: tuple(float(scored.score) for scored in responses_of(row, role)) for role in responses},
        {role: response_weights(row, role) for role in responses},
        {role: response_groups(row, role) for role in responses},
    )


def _response_ids(response: Response, messages: Sequence[Message], chat: Encoder) -> tuple[int, ...]:
    if response.tokenizer == chat.tokenizer_hash:
        return response.token_ids
    if not response.text:
        return ()
    return chat.encode_response(messages, response.text, finished=response.finish_reason == Finish.stop)


# ---- the file ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The encoded rows of a training directory, addressed by row number."""

    table: pa.Table
    roles: tuple[str, ...]
    group_roles: frozenset[str]
    """Roles that hold any number of responses."""
    rows_in: int
    dropped: tuple[Dropped, ...]

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> EncodedRow:
        return EncodedRow(
            self.row_ids[index],
            float(self.weights[index]),
            self._prompts[index],
            {role: self._responses[role].row(index) for role in self.roles},
            {role: self._facts[_score(role)][index] for role in self.roles},
            {role: self._facts[_weight(role)][index] for role in self.roles},
            {role: self._facts[_group(role)][index] for role in self.roles},
        )

    def rows(self, indices: Iterable[int]) -> list[EncodedRow]:
        return [self.row(index) for index in indices]

    @cached_property
    def row_ids(self) -> list[str]:
        return self.table["row_id"].to_pylist()

    @cached_property
    def weights(self) -> np.ndarray:
        return self.table["weight"].to_numpy()

    @cached_property
    def prompt_lengths(self) -> np.ndarray:
        """(rows,) tokens of the prompt."""
        return np.diff(self._prompts.starts)

    @cached_property
    def num_response_tokens(self) -> np.ndarray:
        """(rows,) response tokens of all roles together."""
        return np.sum([self._responses[role].row_lengths for role in self.roles], axis=0)

    @cached_property
    def weighted_response_tokens(self) -> np.ndarray:
        """(rows,) response tokens of all roles together, each response's times its share of the row."""
        totals = np.zeros(len(self))
        for role in self.roles:
            shares = np.fromiter((share for row in self._facts[_weight(role)] for share in row), np.float64)
            rows = np.repeat(np.arange(len(self)), self.num_responses_of(role))
            totals += np.bincount(rows, shares * self._responses[role].item_lengths, minlength=len(self))
        return totals

    @cached_property
    def num_responses(self) -> np.ndarray:
        """(rows,) responses of all roles together."""
        return np.sum([self.num_responses_of(role) for role in self.roles], axis=0)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """(rows,) tokens of all sequences of a row, the prompt counted once per response."""
        return self.prompt_lengths * self.num_responses + self.num_response_tokens

    @cached_property
    def num_shared_tokens(self) -> np.ndarray:
        """(rows,) tokens of a row whose responses share their prompt."""
        return self.prompt_lengths + self.num_response_tokens

    @cached_property
    def longest(self) -> np.ndarray:
        """(rows,) tokens of the prompt with the row's longest response."""
        return self.prompt_lengths + np.max([self._responses[role].longest for role in self.roles], axis=0)

    def scores(self, role: str) -> np.ndarray:
        """(rows,) scores of a role, or (rows, K) of a group role, filled with 0."""
        return self._tables[_score(role)]

    def shares(self, role: str) -> np.ndarray:
        """(rows,) or (rows, K) shares of their row that the responses of a role have, filled with 0."""
        return self._tables[_weight(role)]

    def groups(self, role: str) -> np.ndarray:
        """(rows,) or (rows, K) numbers of the groups that the responses of a role belong to, filled with 0."""
        return self._tables[_group(role)].astype(np.int64)

    def of_role(self, role: str, values: Sequence[Sequence[float]], *, missing: float = 0.0) -> np.ndarray:
        """Return one number per response as (rows,), or as (rows, K) for a group role, filled with `missing`."""
        if role not in self.group_roles:
            return np.array([one for (one,) in values], np.float64)
        table = np.full((len(values), max(map(len, values), default=0)), missing)
        for row, one in enumerate(values):
            table[row, : len(one)] = one
        return table

    def num_responses_of(self, role: str) -> np.ndarray:
        """(rows,) responses that each row has in a role."""
        return np.diff(self._responses[role].row_starts)

    def dropped_by_reason(self) -> dict[str, int]:
        return dict(Counter(d.reason for d in self.dropped))

    @cached_property
    def _prompts(self) -> "_Lists":
        return _Lists.of(self.table["prompt_ids"].combine_chunks())

    @cached_property
    def _responses(self) -> dict[str, "_ListsOfLists"]:
        return {role: _ListsOfLists.of(self.table[role].combine_chunks()) for role in self.roles}

    @cached_property
    def _facts(self) -> dict[str, list[tuple[Any, ...]]]:
        """Column -> per row, a number for each response of its role."""
        columns = [column(role) for role in self.roles for column in (_score, _weight, _group)]
        return {name: [tuple(values) for values in self.table[name].to_pylist()] for name in columns}

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        return {name: self.of_role(name.split("/", 1)[1], values) for name, values in self._facts.items()}


@dataclasses.dataclass(frozen=True)
class _Lists:
    """A column of lists as one array and where each list starts: slices instead of objects."""

    values: np.ndarray
    starts: np.ndarray
    """(lists + 1,)"""

    @classmethod
    def of(cls, column: pa.Array) -> "_Lists":
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.values.to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(values, offsets)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index] : self.starts[index + 1]]


@dataclasses.dataclass(frozen=True)
class _ListsOfLists:
    """A column of lists of lists: per row, the responses of one role."""

    items: _Lists
    row_starts: np.ndarray
    """(rows + 1,) first item of each row."""

    @classmethod
    def of(cls, column: pa.Array) -> "_ListsOfLists":
        return cls(_Lists.of(column.values), column.offsets.to_numpy().astype(np.int64))

    def row(self, index: int) -> tuple[np.ndarray, ...]:
        return tuple(self.items[item] for item in range(self.row_starts[index], self.row_starts[index + 1]))

    @property
    def row_lengths(self) -> np.ndarray:
        """(rows,) tokens of all items of a row."""
        return np.diff(self.items.starts[self.row_starts])

    @property
    def item_lengths(self) -> np.ndarray:
        """(items,) tokens of each item of all rows."""
        return np.diff(self.items.starts[self.row_starts[0] : self.row_starts[-1] + 1])

    @property
    def longest(self) -> np.ndarray:
        """(rows,) tokens of the longest item of a row; 0 where it has none."""
        lengths = np.diff(self.items.starts)
        pairs = zip(self.row_starts[:-1], self.row_starts[1:], strict=True)
        return np.array([lengths[a:b].max(initial=0) for a, b in pairs], np.int64)


def _score(role: str) -> str:
    """Column of a role's scores."""
    return f"score/{role}"


def _weight(role: str) -> str:
    """Column of the shares of their row that a role's responses have."""
    return f"weight/{role}"


def _group(role: str) -> str:
    """Column of the groups that a role's responses belong to."""
    return f"group/{role}"


def encode_rows(rows: Iterable[Any], chat: Encoder, *, row_type: type, max_length: int) -> Encoded:
    """Encode all rows; those that cannot be trained on are in `dropped`."""
    kept, dropped, num_rows = [], [], 0
    for row in rows:
        num_rows += 1
        encoded = encode_row(row, chat, max_length=max_length)
        (dropped if isinstance(encoded, Dropped) else kept).append(encoded)
    names = roles(row_type)
    columns: dict[str, pa.Array] = {
        "row_id": pa.array([r.row_id for r in kept], pa.string()),
        "weight": pa.array([r.weight for r in kept], pa.float64()),
        "prompt_ids": pa.array([r.prompt_ids for r in kept], pa.list_(pa.int32())),
    }
    for role in names:
        columns[role] = pa.array([list(r.responses[role]) for r in kept], pa.list_(pa.list_(pa.int32())))
        columns[_score(role)] = pa.array([r.scores[role] for r in kept], pa.list_(pa.float64()))
        columns[_weight(role)] = pa.array([r.shares[role] for r in kept], pa.list_(pa.float64()))
        columns[_group(role)] = pa.array([r.groups[role] for r in kept], pa.list_(pa.int32()))
    return Encoded(pa.table(columns).combine_chunks(), names, group_roles(row_type), num_rows, tuple(dropped))


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write the rows and what was dropped as one Parquet file, atomically."""
    facts = {
        "roles": encoded.roles,
        "group_roles": sorted(encoded.group_roles),
        "rows_in": encoded.rows_in,
        "dropped": [dataclasses.asdict(d) for d in encoded.dropped],
    }
    table = encoded.table.replace_schema_metadata({_META: json.dumps(facts).encode()})
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def load_encoded(path: Path) -> Encoded:
    """Read what `save_encoded` wrote; a torn file is an ArtifactError that names it."""
    table = read_part(path)
    facts = json.loads((table.schema.metadata or {})[_META])
    dropped = tuple(Dropped(**d) for d in facts["dropped"])
    return Encoded(
        table.combine_chunks(), tuple(facts["roles"]), frozenset(facts["group_roles"]), facts["rows_in"], dropped
    )
