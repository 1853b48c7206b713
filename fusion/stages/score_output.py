"""What a finished score_file stage is for people: their rows with scores, in their order, in a file of their choice.

Parts and input file are walked side by side, slice by slice, so the user's own columns are never copied into the
stage. All is written under temporary names and renamed at the end; the bytes depend on the artifact and the
options alone, whatever happened on the way.
"""

import contextlib
import dataclasses
import glob
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from fusion.artifact import Artifact, Quarantined, atomic_file, fsync, part_name, read_part, read_quarantine, write_json
from fusion.errors import InputError
from fusion.row_tables import from_table
from fusion.stages.chunks import ABANDONED_AFTER_S
from fusion.stages.file_scorer import ItemScore
from fusion.stages.score_columns import ScoredSlice, Stamp, json_lines, table
from fusion.stages.score_index import MOST_COLUMNS, Index
from fusion.stages.score_input import Row, RowFile, RowReader, Slice

Sink = Callable[[ScoredSlice], None]

SUMMARY_KIND = "fuseline score"
"""What the summary beside an output says it is."""


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


def write_output(output: Output, artifact: Artifact, source: RowFile, index: Index, stamp: Stamp) -> None:
    """Write scores and quarantined rows, both in the order of the input.

    The summary says that they are not finished until the caller writes it, last.

    Raises:
        InputError: the input file is not the one that was scored, or has too many fields for columns.
        ArtifactError: a part is damaged.
    """
    if output.kind != "jsonl" and len(index.columns) > MOST_COLUMNS:
        raise InputError(f"{source.path} has more than {MOST_COLUMNS} different fields; let --out end with .jsonl")
    output.begin()
    folder = output.kind == "folder"
    with (
        _atomic_folder(output.path) if folder else atomic_file(output.path) as target,
        atomic_file(output.quarantine) as refused_path,
        refused_path.open("w", encoding="utf-8") as refused_file,
        _SINKS[output.kind](target, stamp, index.columns) as write,
    ):
        reader = RowReader(source)
        for part in index.slices:
            rows = list(reader.rows(part))
            scores = list(from_table(read_part(artifact.path / part_name(part.index)), ItemScore))
            write(ScoredSlice(source, part, rows, scores, reader.carried(part)))
            for refused in read_quarantine(artifact.path, part.index):
                refused_file.write(_refused_line(refused, rows, part, source))


def _refused_line(refused: Quarantined, rows: Sequence[Row], part: Slice, source: RowFile) -> str:
    number, _, response = refused.row_id.partition("/")
    row = rows[int(number) - part.first_row]
    line = {
        source.place_name: row.place,
        "index": row.index,
        "id": source.name(row, part),
        "response_index": int(response) if response else None,
        "reason": refused.reason,
        "detail": refused.detail,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


# ---- sinks ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _json_sink(path: Path, stamp: Stamp, kinds: Mapping[str, str]) -> Iterator[Sink]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda scored: file.writelines(json_lines(scored, stamp))


@contextlib.contextmanager
def _parquet_sink(path: Path, stamp: Stamp, kinds: Mapping[str, str]) -> Iterator[Sink]:
    """One file, a row group for each slice."""
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None

        def write(scored: ScoredSlice) -> None:
            nonlocal writer
            rows = table(scored, stamp, kinds)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(path, rows.schema, compression="zstd"))
            writer.write_table(rows)

        yield write


@contextlib.contextmanager
def _folder_sink(path: Path, stamp: Stamp, kinds: Mapping[str, str]) -> Iterator[Sink]:
    """One Parquet file for each slice."""

    def write(scored: ScoredSlice) -> None:
        file = path / part_name(scored.part.index)
        pq.write_table(table(scored, stamp, kinds), file, compression="zstd")
        fsync(file)

    yield write


_SINKS = {"jsonl": _json_sink, "parquet": _parquet_sink, "folder": _folder_sink}


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
