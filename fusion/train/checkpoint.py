"""Checkpoints that survive a kill at any moment: temporary name, digests, fsync, rename, directory fsync.

A directory `step_000040` has a `meta.json` with the digest of every file, written before the rename; what has another
name or other bytes is not a checkpoint. DeepSpeed writes its shards with plain opens and Ray Train overwrites its
snapshot in place, so neither is trusted to say what is complete.

All functions that take `rank` are called by every rank; they contain barriers.
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fusion.artifact import file_sha256, fsync, write_json
from fusion.config import Config
from fusion.errors import StageError

log = logging.getLogger(__name__)

META = "meta.json"
ENGINE = "engine"
"""Name of DeepSpeed's own directory inside a checkpoint."""
_NAME = re.compile(r"step_(\d{6,})")


class CheckpointMeta(Config):
    """What a checkpoint says of itself."""

    step: int
    """Optimizer steps done."""
    num_tokens: int
    """Tokens trained on so far."""
    world_size: int
    zero_stage: int
    identity: str
    """Fingerprint of training config and data; another one is another run."""
    files: dict[str, str]
    """File, relative to the checkpoint -> sha256."""


def name_of(step: int) -> str:
    return f"step_{step:06d}"


def save(engine: Any, directory: Path, meta: CheckpointMeta, *, keep: int, rank: int) -> Path:
    """Write a checkpoint of all ranks and return its path; older ones than the newest `keep` are removed."""
    final = directory / name_of(meta.step)
    temporary = directory / f".{final.name}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(temporary), tag=ENGINE, save_latest=False)
    dist.barrier()
    digests = _digest_share(temporary, rank=rank, world_size=meta.world_size)
    if rank == 0:
        write_json(temporary / META, meta.model_copy(update={"files": digests}).model_dump())
        for folder in (temporary / ENGINE, temporary):
            fsync(folder)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
        temporary.rename(final)
        fsync(directory)
        for old in _named(directory)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def _digest_share(directory: Path, *, rank: int, world_size: int) -> dict[str, str]:
    """fsync and digest all files, each rank a share of them, and return the digests of all."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    mine = {}
    for path in files[rank::world_size]:
        fsync(path)
        mine[str(path.relative_to(directory))] = file_sha256(path)
    shares: list[dict[str, str] | None] = [None] * world_size
    dist.all_gather_object(shares, mine)
    return {name: digest for share in shares for name, digest in (share or {}).items()}


def newest_complete(directory: Path) -> tuple[Path, CheckpointMeta] | None:
    """Return the newest checkpoint whose files all match their digests; others are logged and passed over."""
    for path in reversed(_named(directory)):
        fault = None
        try:
            meta = CheckpointMeta.model_validate_json((path / META).read_bytes())
        except (OSError, ValueError):
            fault = f"{META} is missing or unreadable"
        else:
            found = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} - {META}
            if found != set(meta.files):
                fault = f"files differ from {META}: {sorted(found ^ set(meta.files))[0]}"
            else:
                damaged = [name for name, digest in meta.files.items() if file_sha256(path / name) != digest]
                fault = f"{damaged[0]} is damaged" if damaged else None
            if fault is None:
                return path, meta
        log.warning("checkpoint %s is passed over: %s", path, fault)
    return None


def load_newest(
    engine: Any, directory: Path, *, identity: str, world_size: int, zero_stage: int, rank: int
) -> CheckpointMeta | None:
    """Restore the newest complete checkpoint into the engine; None where there is none.

    Raises:
        StageError: it belongs to another number of workers, another ZeRO stage or another run; on all ranks.
    """
    choice: list[Any] = [None]
    if rank == 0:
        found = newest_complete(directory)
        choice = [found and (str(found[0]), found[1].model_dump())]
    dist.broadcast_object_list(choice, src=0)
    if choice[0] is None:
        return None
    path, meta = Path(choice[0][0]), CheckpointMeta(**choice[0][1])
    _check_fits(path, meta, identity=identity, world_size=world_size, zero_stage=zero_stage)
    loaded, _ = engine.load_checkpoint(str(path), tag=ENGINE)
    if loaded is None:
        raise StageError(f"DeepSpeed could not read the checkpoint {path}; remove it to go on from an older one")
    return meta


def _check_fits(path: Path, meta: CheckpointMeta, *, identity: str, world_size: int, zero_stage: int) -> None:
    over = f"or remove {path.parent} to start this training over"
    if meta.identity != identity:
        raise StageError(
            f"checkpoint {path} was written for another training config or other rows; remove {path.parent}"
        )
    if meta.world_size != world_size:
        raise StageError(
            f"checkpoint {path} was written by {meta.world_size} workers and this run has {world_size}; optimizer "
            f"shards are tied to that number: set placement.train.workers={meta.world_size}, {over}"
        )
    if meta.zero_stage != zero_stage:
        raise StageError(
            f"checkpoint {path} was written with ZeRO-{meta.zero_stage} and this run has ZeRO-{zero_stage}: "
            f"set placement.train.zero_stage={meta.zero_stage}, {over}"
        )


def _named(directory: Path) -> list[Path]:
    """Checkpoint directories, oldest first."""
    if not directory.is_dir():
        return []
    found = [(int(m.group(1)), path) for path in directory.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
