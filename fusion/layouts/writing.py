"""Records into files: Parquet, JSON lines, a JSON array, or the folder that `load_from_disk` of `datasets` reads.

Every file appears whole or not at all. JSON leaves out what is null; the other formats have the columns of the schema.
"""

import contextlib
import glob
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fusion.artifact import atomic_file, fsync, usable, write_json
from fusion.errors import InputError
from fusion.layouts.files import DICT_FILE, STATE_FILE

Format = Literal["parquet", "jsonl", "json", "folder"]
Sink = Callable[[list[dict[str, Any]]], None]
BATCH_ROWS = 512
"""Rows that are handed to a sink at once."""

ABANDONED_AFTER_S = 3600.0

SUMMARY_KIND = "fuseline export"
"""What the summary beside an export says it is."""


class Target:
    """Where an export goes: a file whose name says its format, or a folder; a summary and a quarantine file beside it."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a name that says no format, and for what is there and not of an earlier export."""
        self.path = path
        if path.name in ("", ".", ".."):
            raise InputError(f"--out {path}: name a file (.parquet, .jsonl or .json) or a new folder")
        suffix = path.suffix.lower()
        formats: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".json": "json", "": "folder"}
        if suffix not in formats:
            raise InputError(f"--out {path}: its name must end with .parquet, .jsonl or .json, or be that of a folder")
        self.format: Format = formats[suffix]
        self.summary = path.with_name(f"{path.name}.summary.json")
        self.quarantine = path.with_name(f"{path.name}.quarantine.jsonl")
        if path.parent.exists() and not path.parent.is_dir():
            raise InputError(f"--out {path}: {path.parent} is not a folder")
        if path.exists() and (self.format == "folder") != path.is_dir():
            raise InputError(f"--out {path} is a {'folder' if path.is_dir() else 'file'}; name another one")
        there = [one for one in (path, self.quarantine, self.summary) if one.exists()]
        if there and not is_ours(self.summary, SUMMARY_KIND):
            raise InputError(f"{there[0]} exists and was not written by fuseline export; remove it or change --out")

    @contextlib.contextmanager
    def open(self, schema: pa.Schema, splits: tuple[str, ...]) -> Iterator[dict[str, Sink]]:
        """Give a sink per split; on a clean exit all of it is in place."""
        if self.format == "folder":
            with _folder(self.path, schema, splits) as sinks:
                yield sinks
            return
        assert len(splits) == 1, "only folders have splits"
        with atomic_file(self.path) as temporary, _SINKS[self.format](temporary, schema) as sink:
            yield {splits[0]: sink}


def is_ours(summary: Path, kind: str) -> bool:
    """Whether a summary says that an earlier run of this command wrote what is beside it."""
    try:
        return json.loads(summary.read_text(encoding="utf-8"))["kind"] == kind
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def beginning(summary: Path, kind: str, names: Iterable[str]) -> Iterator[None]:
    """Say that what is about to be written is ours and not finished; on an error nothing of a first run is left.

    Args:
        names: of the files beside the summary; what a killed run left of them half written is removed.
    """
    first = not summary.exists()
    for name in names:
        for left in summary.parent.glob(f".{glob.escape(name)}.*.tmp*"):
            if time.time() - left.stat().st_mtime > ABANDONED_AFTER_S:  # a young one may be of a run at work
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    folders = [folder for folder in summary.parents if not folder.exists()]
    write_json(summary, {"kind": kind, "finished": False})
    try:
        yield
    except BaseException:
        if first:
            summary.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty, or not ours to remove
                for folder in folders:
                    folder.rmdir()
        raise


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Sink]:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield lambda records: writer.write_table(pa.Table.from_pylist(records, schema=schema))


@contextlib.contextmanager
def _jsonl(path: Path, schema: pa.Schema) -> Iterator[Sink]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda records: file.writelines(f"{json_text(record)}\n" for record in records)


@contextlib.contextmanager
def _json(path: Path, schema: pa.Schema) -> Iterator[Sink]:
    with path.open("w", encoding="utf-8") as file:
        begun: list[bool] = []

        def write(records: list[dict[str, Any]]) -> None:
            for record in records:
                file.write(("," if begun else "[") + "\n" + json_text(record))
                begun[:] = [True]

        yield write
        file.write("\n]\n" if begun else "[]\n")


_SINKS: dict[str, Callable[[Path, pa.Schema], contextlib.AbstractContextManager[Sink]]] = {
    "parquet": _parquet,
    "jsonl": _jsonl,
    "json": _json,
}


def json_text(record: dict[str, Any]) -> str:
    """Return a record as JSON on one line, without the columns that are null."""
    return json.dumps({k: v for k, v in record.items() if v is not None}, ensure_ascii=False, allow_nan=False)


# ---- save_to_disk -----------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(path: Path, schema: pa.Schema, splits: tuple[str, ...]) -> Iterator[dict[str, Sink]]:
    """A folder of splits as `DatasetDict.save_to_disk` leaves it, with one Arrow stream each.

    `dataset_info.json` says no features: `datasets` then takes them from the Arrow schema, whatever its version.
    """
    with usable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with contextlib.ExitStack() as stack:
            sinks = {}
            for split in splits:
                (temporary / split).mkdir()
                sinks[split] = stack.enter_context(_stream(temporary / split / "data-00000-of-00001.arrow", schema))
            yield sinks
        write_json(temporary / DICT_FILE, {"splits": list(splits)})
        for split in splits:
            _describe(temporary / split)
        temporary.chmod(0o755)
        _put(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _stream(path: Path, schema: pa.Schema) -> Iterator[Sink]:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        yield lambda records: writer.write_batch(pa.RecordBatch.from_pylist(records, schema=schema))
    fsync(path)


def _describe(folder: Path) -> None:
    (data,) = folder.glob("*.arrow")
    with data.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    write_json(folder / "dataset_info.json", {"description": "", "citation": "", "homepage": "", "license": ""})
    state = {"_data_files": [{"filename": data.name}], "_fingerprint": fingerprint, "_split": folder.name}
    rest = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    write_json(folder / STATE_FILE, state | rest)


def _put(new: Path, path: Path) -> None:
    """Put a finished folder in the place of an older one, which is gone only when the new one is there."""
    old = new.with_suffix(".old")
    if path.exists():
        path.replace(old)
    new.replace(path)
    shutil.rmtree(old, ignore_errors=True)
    fsync(path.parent)
