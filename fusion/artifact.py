"""What a stage leaves behind: files, and a manifest that is written last and vouches for them.

A directory with a manifest is finished; one without is resumable work; nothing else says "done".
Every file is written under a temporary name, fsynced and renamed, and the directory is fsynced, so a
kill at any moment leaves either the whole file or none of it. Readers take the file list from the
manifest, never from a glob, and compare sizes and digests before they believe it.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusion.config import Config
from fusion.errors import ArtifactError, FuselineError, InputError
from fusion.row_tables import from_table, schema_digest, to_table

MANIFEST = "manifest.json"
FORMAT = 1


class FileRecord(Config):
    """One file that the manifest vouches for."""

    name: str
    """Path relative to the artifact's directory."""
    sha256: str
    bytes: int
    rows: int | None = None
    """Number of rows for data parts; None for other files."""


class InputRecord(Config):
    """One input as it was when the stage ran."""

    key: str
    digest: str
    """Digest of the input's files: tells an input that was made again with other bytes."""


class Manifest(Config):
    """The finished statement about an artifact."""

    format: int
    stage: str
    slug: str
    key: str
    key_payload: dict[str, Any]
    """What the key was computed from; `explain` compares it field by field."""
    row_type: str | None
    """Name of the row dataclass of the parts; None for artifacts without rows (models)."""
    schema_sha256: str | None
    rows_in: int
    rows_out: int
    quarantined: dict[str, int]
    """Reason -> number of rows refused; rows_in = rows_out + their sum."""
    files: tuple[FileRecord, ...]
    inputs: dict[str, InputRecord]
    notes: dict[str, Any]
    """Facts for people and later stages (wins per source, effective sampling, final metrics)."""
    seconds: float
    """Wall time over all attempts that wrote into this directory."""
    provenance: dict[str, Any]

    @property
    def digest(self) -> str:
        """One sha256 over the names and digests of all files."""
        lines = "".join(f"{f.name}\0{f.sha256}\n" for f in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def num_quarantined(self) -> int:
        return sum(self.quarantined.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that was refused, with the reason (a short code that is counted) and details for people."""

    row_id: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished directory and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path) -> "Artifact":
        """Read the manifest and check that every listed file is there with the listed size.

        Raises:
            ArtifactError: no manifest, an unreadable one, or a listed file missing or of another size.
        """
        file = path / MANIFEST
        try:
            manifest = Manifest.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise ArtifactError(
                f"{path} has no {MANIFEST}: it is unfinished; run the recipe again to resume it"
            ) from None
        except ValueError as error:
            raise ArtifactError(f"{file} is not a readable manifest ({_first_line(error)}); {_REPAIR}") from None
        artifact = cls(path, manifest)
        for record in manifest.files:
            found = path / record.name
            if not found.is_file():
                raise ArtifactError(f"{found} is listed in {MANIFEST} but missing; {_REPAIR}")
            if found.stat().st_size != record.bytes:
                raise ArtifactError(
                    f"{found} has {found.stat().st_size} bytes, {MANIFEST} says {record.bytes}; {_REPAIR}"
                )
        return artifact

    def verify(self) -> None:
        """Compare the sha256 of every file with the manifest; name the first that differs."""
        for record in self.manifest.files:
            found = file_sha256(self.path / record.name)
            if found != record.sha256:
                raise ArtifactError(
                    f"{self.path / record.name} is damaged (sha256 {found[:12]}, {MANIFEST} says "
                    f"{record.sha256[:12]}); {_REPAIR}"
                )

    def rows(self, row_type: type) -> Iterator[Any]:
        """Yield all rows in the order of the parts.

        Raises:
            ArtifactError: the artifact holds another row type.
            InputError: a row that cannot be, in a file that the manifest vouches for; the file and the row are named.
        """
        if self.manifest.row_type != row_type.__name__:
            raise ArtifactError(f"{self.path} holds {self.manifest.row_type} rows, not {row_type.__name__}")
        for record in self.manifest.files:
            if record.rows is not None:
                path = self.path / record.name
                rows = from_table(read_part(path), row_type)
                try:
                    yield from rows
                except FuselineError:
                    raise
                except ValueError as error:  # a row's own invariant, which knows the row and not the file
                    raise InputError(f"{path}: {error}; mend it, or remove {self.path} and run again") from None

    @property
    def model_folder(self) -> Path:
        """The Hugging Face folder of a trained model."""
        return self.path / "model"


_REPAIR = "run again with --repair to make it anew"


def read_part(path: Path) -> pa.Table:
    """Read one Parquet part; a torn or foreign file is an ArtifactError that names it."""
    try:
        return pq.read_table(path, memory_map=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file ({_first_line(error)}); {_REPAIR}") from None


# ---- atomic writing ---------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit fsync it and rename it into place.

    Raises:
        InputError: there can be no file in that place.
    """
    with usable(path):
        temporary = _temporary(path)
    try:
        yield temporary
        fsync(temporary)
        temporary.chmod(0o644)  # mkstemp makes 0600, which other users of a shared store could not read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def try_writing(path: Path) -> None:
    """Raise the OSError that ends `atomic_file`; nothing is left but the folder of `path`."""
    _temporary(path).unlink()  # modes do not tell it: root may do all, and a mount may be read-only


UNUSABLE = frozenset(
    {
        errno.EACCES, errno.EEXIST, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM,
        errno.EROFS,
    }
)  # fmt: skip
"""What the system says of a place where nothing can be made. A full or a failing disk is none of these: it was no mistake
to name it."""


@contextlib.contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn what the system says of a place where nothing can be made into an InputError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        place = "" if error.filename in (None, str(path)) or ".tmp" in str(error.filename) else f"{error.filename}: "
        raise InputError(f"{path} cannot be written ({place}{error.strerror}); name another place") from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises InputError where there can be none."""
    with usable(path):
        path.mkdir(parents=True, exist_ok=True)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    return Path(name)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file so that a reader or a kill sees all of it or nothing."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities are refused."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def fsync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def record_file(directory: Path, name: str, *, rows: int | None = None) -> FileRecord:
    """Return the manifest's record of a finished file."""
    path = directory / name
    return FileRecord(name=name, sha256=file_sha256(path), bytes=path.stat().st_size, rows=rows)


# ---- parts ------------------------------------------------------------------------------------


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def quarantine_name(index: int) -> str:
    return f"part-{index:05d}.quarantine.jsonl"


def commit_part(
    directory: Path, index: int, rows: Iterable[Any], row_type: type, *, quarantined: Iterable[Quarantined] = ()
) -> int:
    """Write one finished chunk and return its number of rows. Callable from any worker.

    The refused rows are written first: once the part is there, the chunk is done and both are whole.
    """
    refused = list(quarantined)
    if refused:
        write_atomic(directory / quarantine_name(index), quarantine_lines(refused))
    table = to_table(rows, row_type)
    with atomic_file(directory / part_name(index)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return table.num_rows


def quarantine_lines(refused: Iterable[Quarantined]) -> bytes:
    """Return rows of a quarantine file as JSON lines; a lone surrogate, which has no UTF-8 form, stays as its escape."""
    lines = "".join(json.dumps(dataclasses.asdict(q), ensure_ascii=False) + "\n" for q in refused)
    return lines.encode("utf-8", "backslashreplace")


def read_quarantine(directory: Path, index: int) -> list[Quarantined]:
    return [Quarantined(**line) for line in read_json_lines(directory / quarantine_name(index))]


def read_json_lines(path: Path) -> list[Any]:
    """Return what each line of a file says, nothing where there is no file; what follows the last newline is torn.

    Only newlines end a line: `str.splitlines` would also cut at U+2028 and the like, which JSON leaves in its strings.
    """
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def part_rows(path: Path) -> int:
    """Number of rows of a part, from its footer; a torn file is an ArtifactError that names it."""
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file ({_first_line(error)}); {_REPAIR}") from None


def schema_record(row_type: type | None) -> str | None:
    return schema_digest(row_type) if row_type is not None else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
