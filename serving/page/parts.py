"""Reading the Parquet parts of a run a piece at a time: some columns, and the rows of one prompt.

Parts may be large, and an answer's token ids are most of their bytes. So only columns that are shown are read, a
batch at a time, and a prompt is found by the statistics of its row group before the group is opened.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusion.artifact import Artifact
from fusion.errors import ArtifactError

BATCH = 512
NEVER_SHOWN = frozenset({"token_ids", "tests", "entry_point", "seed", "num_prompt_tokens", "tokenizer"})
"""Columns that nobody looks at here, by the last part of their name."""


def find(artifact: Artifact, leaf: str, value: str, *, never: frozenset[str] = NEVER_SHOWN) -> list[dict[str, Any]]:
    """Return the rows whose column `leaf` (dotted) is `value`, without the columns of `never`.

    The rows of one prompt stand together, so reading ends behind them.
    """
    found: list[dict[str, Any]] = []
    for record in artifact.manifest.files:
        if record.rows is None:
            continue
        with opened(artifact.path / record.name) as file:
            place = next(i for i in range(file.metadata.num_columns) if file.schema.column(i).path == leaf)
            for group in range(file.num_row_groups):
                if not _may_hold(file.metadata.row_group(group).column(place).statistics, value):
                    continue
                ids = file.read_row_group(group, columns=[leaf]).flatten().column(leaf)
                where = np.flatnonzero(ids.to_numpy() == value)
                if len(where):
                    table = file.read_row_group(group, columns=leaves(file, never))
                    found += table.take(pa.array(where)).to_pylist()
                if found and (not len(where) or where[-1] < len(ids) - 1):
                    return found
    return found


def rows(artifact: Artifact, *, never: frozenset[str] = NEVER_SHOWN, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows of an artifact behind the first `skip`, without the columns of `never`."""
    for record in artifact.manifest.files:
        if record.rows is None:
            continue
        if skip >= record.rows:
            skip -= record.rows
            continue
        for plain in _read(artifact.path / record.name, never):
            if skip:
                skip -= 1
            else:
                yield plain


def _may_hold(statistics: Any, value: str) -> bool:
    return statistics is None or not statistics.has_min_max or statistics.min <= value <= statistics.max


def _read(path: Path, never: frozenset[str]) -> Iterator[dict[str, Any]]:
    with opened(path) as file:
        for batch in file.iter_batches(batch_size=BATCH, columns=leaves(file, never)):
            yield from batch.to_pylist()


def leaves(file: pq.ParquetFile, never: frozenset[str]) -> list[str]:
    """Return the dotted names of the columns to read."""
    paths = [file.schema.column(i).path for i in range(file.metadata.num_columns)]
    return [path for path in paths if never.isdisjoint(path.split("."))]


def opened(path: Path) -> pq.ParquetFile:
    """Open a part; a torn or foreign file is an ArtifactError that names it."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError):
        raise ArtifactError(f"{path} is not a readable Parquet file; run again with --repair") from None


def refused(artifact: Artifact) -> Iterator[dict[str, str]]:
    """Yield the quarantined rows of a finished artifact: row_id, reason, detail."""
    path = artifact.path / "quarantine.jsonl"
    if artifact.manifest.num_quarantined and path.exists():
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield json.loads(line)
