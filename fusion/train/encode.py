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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fusion.artifact import atomic_file, read_part
from fusion.errors import InputError
from fusion.rows import Finish, Message, Response, ScoredResponse, roles

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
    """One training row as ids. Example: prompt_ids [1, 5, 6], responses {"chosen": [7, 2], "rejected": [8, 2]}."""

    row_id: str
    weight: float
    prompt_ids: np.ndarray
    responses: Mapping[str, np.ndarray]
    """role -> response ids, end of turn included where the response was finished."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response."""
        return len(self.prompt_ids) + max(len(ids) for ids in self.responses.values())

    @property
    def num_response_tokens(self) -> int:
        return sum(len(ids) for ids in self.responses.values())

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences of the row, the prompt counted once per response."""
        return len(self.prompt_ids) * len(self.responses) + self.num_response_tokens


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
            role: _response_ids(scored.response, row.prompt.messages, chat)
            for role in roles(type(row))
            if isinstance(scored := getattr(row, role), ScoredResponse)
        }
    except InputError as error:
        return Dropped(row.row_id, UNENCODABLE, str(error))
    for role, ids in responses.items():
        if not ids:
            return Dropped(row.row_id, EMPTY_RESPONSE, f"{role} has no token")
        if len(prompt_ids) + len(ids) > max_length:
            detail = f"prompt {len(prompt_ids)} + {role} {len(ids)} tokens > max_length {max_length}"
            return Dropped(row.row_id, TOO_LONG, detail)
    return EncodedRow(
        row.row_id,
        float(row.weight),
        np.asarray(prompt_ids, np.int64),
        {role: np.asarray(ids, np.int64) for role, ids in responses.items()},
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
    rows_in: int
    dropped: tuple[Dropped, ...]

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> EncodedRow:
        return EncodedRow(
            self.table["row_id"][index].as_py(),
            self.table["weight"][index].as_py(),
            self._ids("prompt_ids", index),
            {role: self._ids(role, index) for role in self.roles},
        )

    def rows(self, indices: Iterable[int]) -> list[EncodedRow]:
        return [self.row(index) for index in indices]

    @property
    def row_ids(self) -> list[str]:
        return self.table["row_id"].to_pylist()

    @cached_property
    def weights(self) -> np.ndarray:
        return self.table["weight"].to_numpy()

    @cached_property
    def num_response_tokens(self) -> np.ndarray:
        """(rows,) response tokens of all roles together."""
        return np.sum([self._lengths(role) for role in self.roles], axis=0)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """(rows,) tokens of all sequences of a row."""
        return self._lengths("prompt_ids") * len(self.roles) + self.num_response_tokens

    @cached_property
    def longest(self) -> np.ndarray:
        """(rows,) tokens of the prompt with the row's longest response."""
        return self._lengths("prompt_ids") + np.max([self._lengths(role) for role in self.roles], axis=0)

    def dropped_by_reason(self) -> dict[str, int]:
        return dict(Counter(d.reason for d in self.dropped))

    def _ids(self, column: str, index: int) -> np.ndarray:
        return self.table[column][index].values.to_numpy(zero_copy_only=False).astype(np.int64)

    def _lengths(self, column: str) -> np.ndarray:
        lengths = pc.list_value_length(self.table[column])  # type: ignore[attr-defined]  # pyarrow makes it at run time
        return np.asarray(lengths).astype(np.int64)


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
        columns[role] = pa.array([r.responses[role] for r in kept], pa.list_(pa.int32()))
    return Encoded(pa.table(columns).combine_chunks(), names, num_rows, tuple(dropped))


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write the rows and what was dropped as one Parquet file, atomically."""
    facts = {
        "roles": encoded.roles,
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
    return Encoded(table.combine_chunks(), tuple(facts["roles"]), facts["rows_in"], dropped)
