"""The data files of a training directory: written once, and refused when they or the rows have changed since.

`data.json` is written last and says what `encoded.parquet` was made from. Without it the rows are encoded again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion.artifact import file_sha256, write_json
from fusion.errors import StageError
from fusion.train.encode import Encoded, Encoder, encode_rows, load_encoded, save_encoded

ENCODED = "encoded.parquet"
DATA = "data.json"


def encoded_once(directory: Path, rows: Sequence[Any], chat: Encoder, *, row_type: type, max_length: int) -> Encoded:
    """Return the rows as token ids: those of the file where it is there, else encode them and write it.

    Raises:
        StageError: the file is of other rows, another tokenizer or another max_length, or was changed since.
    """
    path, record = directory / ENCODED, directory / DATA
    source = {
        "rows": rows_digest(rows),
        "tokenizer": chat.tokenizer_hash,
        "max_length": max_length,
    }
    if record.exists() and path.exists():
        known = json.loads(record.read_text())
        changed = [name for name, value in source.items() if known["source"][name] != value]
        if changed:
            raise StageError(
                f"{path} was made from other input: {' and '.join(changed)} changed since. Put that back, or remove "
                f"{directory} to train on what is there now"
            )
        if file_sha256(path) != known["sha256"]:
            raise StageError(
                f"the data file {path} was changed after it was written; remove it, and its rows are encoded again"
            )
        return load_encoded(path)
    directory.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    save_encoded(encode_rows(rows, chat, row_type=row_type, max_length=max_length), path)
    write_json(record, {"source": source, "sha256": file_sha256(path)})
    return load_encoded(path)


def remove_encoded(directory: Path) -> None:
    for name in (DATA, ENCODED):
        (directory / name).unlink(missing_ok=True)


def rows_digest(rows: Sequence[Any]) -> str:
    """sha256 over all that the rows hold, in their order; rows are dataclasses of plain values."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
