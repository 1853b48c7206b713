"""Checkpoints that survive a kill at any moment: temporary name, digests, fsync, rename, directory fsync.

A directory `step_000040` has a `meta.json` with the digest of every file, written before the rename; what has another
name or other bytes is not a checkpoint. DeepSpeed writes its shards with plain opens and Ray Train overwrites its
snapshot in place, so neither is trusted to say what is complete.

This file knows neither torch nor DeepSpeed: what is written is a callable, and the ranks that write together are
`Peers`. `resume.py` puts the engine in. Names in a checkpoint directory: `step_N` complete or damaged, `.step_N.tmp`
being written, `.step_N.old` being removed, `damaged_step_N` set aside by `set_aside`.
"""

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.artifact import file_sha256, fsync, write_json
from fusion.config import Config
from fusion.errors import StageError
from fusion.train.identity import RunIdentity

META = "meta.json"
_NAME = re.compile(r"step_(\d{6,})")
_LEFTOVER = re.compile(r"\.step_\d{6,}\.(tmp|old)")
_DIGEST_THREADS = 8


class CheckpointMeta(Config):
    """What a checkpoint says of itself."""

    step: int
    """Optimizer steps done."""
    num_tokens: int
    """Tokens trained on so far."""
    world_size: int
    zero_stage: int
    identity: RunIdentity
    """Config, data and start model; another one is another run."""
    evaluation: dict[str, float] | None = None
    """The held-out metrics at this step that were finite; None where no evaluation took place."""
    files: dict[str, str] = {}
    """File, relative to the checkpoint -> sha256."""


class Peers:
    """The ranks that write a checkpoint together; this one is alone."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        """Wait for all ranks."""

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        return [value]


# ---- writing ----------------------------------------------------------------------------------

Keep = Callable[[Mapping[int, Mapping[str, float] | None]], Collection[int]]
"""Step of each complete checkpoint -> its evaluation; returns the steps to keep."""


def name_of(step: int) -> str:
    return f"step_{step:06d}"


def commit(
    directory: Path, meta: CheckpointMeta, write: Callable[[Path], None], *, keep: Keep, peers: Peers | None = None
) -> Path:
    """Write a checkpoint of all ranks and return its path; afterwards remove those that `keep` does not name.

    A kill at any moment leaves the checkpoints of before, or these and the new one. Called by every rank.

    Args:
        meta: its `files` are filled in here.
        write: writes this rank's files into the folder that it is given.
    """
    peers = peers or Peers()
    final = directory / name_of(meta.step)
    temporary = directory / f".{final.name}.tmp"
    if peers.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        fsync(directory.parent)
        for path in directory.iterdir():
            if _LEFTOVER.fullmatch(path.name):  # of a kill
                shutil.rmtree(path)
        temporary.mkdir()
    peers.barrier()
    write(temporary)
    peers.barrier()
    digests = _digest_share(temporary, peers)
    if peers.rank == 0:
        write_json(temporary / META, meta.model_copy(update={"files": digests}).model_dump())
        for folder in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
            fsync(folder)
        if final.exists():
            set_aside(final)  # never seen: what is newer than the resumed one was set aside then
        temporary.rename(final)
        fsync(directory)
        _prune(directory, keep)
    peers.barrier()
    return final


def _digest_share(directory: Path, peers: Peers) -> dict[str, str]:
    """fsync and digest all files, each rank a share of them, and return the digests of all."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    mine = {}
    for path in files[peers.rank :: peers.size]:
        fsync(path)
        mine[str(path.relative_to(directory))] = file_sha256(path)
    return {name: digest for share in peers.gather(mine) for name, digest in share.items()}


def _prune(directory: Path, keep: Keep) -> None:
    """Remove checkpoints under another name, so that a kill meanwhile leaves none that looks damaged."""
    kept = keep(evaluations(directory))
    for path in _named(directory):
        if _step_of(path) not in kept:
            old = directory / f".{path.name}.old"
            path.rename(old)
            shutil.rmtree(old)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it is not looked at again, and return where it is now."""
    number, new = 1, path.with_name(f"damaged_{path.name}")
    while new.exists():
        number += 1
        new = path.with_name(f"damaged_{path.name}_{number}")
    path.rename(new)
    fsync(path.parent)
    return new


# ---- looking ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that cannot be believed, and why."""

    path: Path
    fault: str


@dataclass(frozen=True)
class Lookup:
    """The newest complete checkpoint, and the damaged ones that are newer."""

    found: tuple[Path, CheckpointMeta] | None
    damaged: tuple[Damaged, ...] = ()


def look_up(directory: Path) -> Lookup:
    """Return the newest checkpoint whose files all match their digests, and what was passed over."""
    damaged: list[Damaged] = []
    for path in reversed(_named(directory)):
        meta, fault = _read(path)
        if meta is not None and fault is None:
            return Lookup((path, meta), tuple(damaged))
        damaged.append(Damaged(path, fault or "unreadable"))
    return Lookup(None, tuple(damaged))


def newest_complete(directory: Path) -> tuple[Path, CheckpointMeta] | None:
    return look_up(directory).found


def fault_of(path: Path) -> str | None:
    """Say what is wrong with a checkpoint; None where it is complete."""
    return _read(path)[1]


def evaluations(directory: Path) -> dict[int, dict[str, float] | None]:
    """Return step -> held-out metrics of all checkpoints whose meta can be read; their files are not looked at."""
    metas = [_meta(path) for path in _named(directory)]
    return {meta.step: meta.evaluation for meta in metas if meta is not None}


def _meta(path: Path) -> CheckpointMeta | None:
    try:
        return CheckpointMeta.model_validate_json((path / META).read_bytes())
    except (OSError, ValueError):
        return None  # the caller says so


def _read(path: Path) -> tuple[CheckpointMeta | None, str | None]:
    """The meta of a checkpoint and the first fault, each None where there is none."""
    meta = _meta(path)
    if meta is None:
        return None, f"{META} is missing or unreadable"
    if name_of(meta.step) != path.name:
        return meta, f"{META} is of step {meta.step}"
    found = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} - {META}
    if found != set(meta.files):
        return meta, f"files differ from {META}: {sorted(found ^ set(meta.files))[0]}"
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        digests = pool.map(lambda name: file_sha256(path / name), meta.files)
        damaged = [name for name, digest in zip(meta.files, digests, strict=True) if digest != meta.files[name]]
    return meta, f"{damaged[0]} is damaged" if damaged else None


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match.group(1))


def _named(directory: Path) -> list[Path]:
    """Checkpoint directories, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), key=_step_of)


# ---- refusing ---------------------------------------------------------------------------------


def check_fits(path: Path, meta: CheckpointMeta, *, identity: RunIdentity, world_size: int, zero_stage: int) -> None:
    """Compare a checkpoint with the run that would go on from it.

    Raises:
        StageError: it belongs to another run, another number of workers or another ZeRO stage.
    """
    over = f"remove {path.parent} to start this training over"
    if differences := meta.identity.differences(identity):
        raise StageError(
            f"checkpoint {path} does not belong to this run: {'; '.join(differences)}. Put that back to go on, or {over}"
        )
    if meta.world_size != world_size:
        raise StageError(
            f"checkpoint {path} was written by {meta.world_size} workers and this run has {world_size}; optimizer "
            f"shards are tied to that number: set placement.train.workers={meta.world_size}, or {over}"
        )
    if meta.zero_stage != zero_stage:
        raise StageError(
            f"checkpoint {path} was written with ZeRO-{meta.zero_stage} and this run has ZeRO-{zero_stage}: "
            f"set placement.train.zero_stage={meta.zero_stage}, or {over}"
        )
