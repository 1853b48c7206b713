"""Artifacts of rows whose files hold a value that no row may have, and whose manifests vouch for it all the same."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusion.artifact import MANIFEST, Artifact, part_name, record_file, write_atomic
from fusion.config import Config
from fusion.stage import Stage, StageContext, StageResult, run_stage

Place = tuple[str | int, ...]
"""Where a value stands in a row, e.g. `("responses", 1, "score")` or, in a map, `("logps", "rejected", 0)`."""


def store_rows(store: Path, rows: list, *, kind: str = "rows") -> tuple[Stage, Artifact]:
    """An artifact of rows in parts of seven, and the stage that wrote it."""

    def run(ctx: StageContext) -> StageResult:
        for chunk in ctx.plan([row.row_id for row in rows], chunk_rows=7):
            ctx.commit(chunk, rows[chunk.start : chunk.stop])
        return StageResult(rows_in=len(rows))

    stage = Stage(kind=kind, slug="test", version=1, config=Config(), inputs={}, run=run, row_type=type(rows[0]))
    artifact, _ = run_stage(stage, store, inputs={}, report=lambda progress: None, resume_command="again")
    return stage, artifact


@contextlib.contextmanager
def poisoned(artifact: Artifact, part: int, row: int, place: Place, value: Any) -> Iterator[Artifact]:
    """Another value at a place of a row of a part, and as it was afterwards."""
    files = [artifact.path / part_name(part), artifact.path / MANIFEST]
    whole = [file.read_bytes() for file in files]
    table = pq.read_table(files[0])
    rows = table.to_pylist()
    rows[row] = _with(rows[row], place, value)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), files[0])
    records = tuple(record_file(artifact.path, record.name, rows=record.rows) for record in artifact.manifest.files)
    write_atomic(files[1], artifact.manifest.model_copy(update={"files": records}).model_dump_json())
    yield Artifact.load(artifact.path)
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content)


def _with(plain: Any, place: Place, value: Any) -> Any:
    """Return plain rows, lists and maps (lists of pairs) with another value at a place."""
    if not place:
        return value
    name, *rest = place
    if isinstance(plain, dict):
        return {**plain, name: _with(plain[name], tuple(rest), value)}
    if isinstance(name, int):
        return [_with(one, tuple(rest), value) if number == name else one for number, one in enumerate(plain)]
    return [(key, _with(one, tuple(rest), value) if key == name else one) for key, one in plain]
