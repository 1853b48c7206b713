"""Checkpoints of a DeepSpeed engine: all ranks write one together, find the newest together, refuse together.

Every function here is called by every rank. A refusal is a StageError on all of them alike.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fusion.errors import StageError
from fusion.train.checkpoint import (
    CheckpointMeta,
    Damaged,
    Keep,
    Peers,
    check_fits,
    commit,
    evaluations,
    fault_of,
    look_up,
    name_of,
    set_aside,
)
from fusion.train.held_out import final_step
from fusion.train.identity import RunIdentity
from fusion.train.notices import Notice
from fusion.training import HeldOut

ENGINE = "engine"
"""Name of DeepSpeed's own directory inside a checkpoint."""

Warn = Callable[[Notice], None]
"""Takes what people must see; called on rank 0 only."""


class TorchPeers(Peers):
    """The ranks of the process group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def barrier(self) -> None:
        dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def save(engine: Any, directory: Path, meta: CheckpointMeta, *, keep: Keep) -> Path:
    """Write a checkpoint of the engine and return its path; those that `keep` does not name are removed."""
    return commit(
        directory,
        meta,
        lambda folder: engine.save_checkpoint(str(folder), tag=ENGINE, save_latest=False),
        keep=keep,
        peers=TorchPeers(),
    )


def load_newest(
    engine: Any, directory: Path, *, identity: RunIdentity, zero_stage: int, warn: Warn
) -> CheckpointMeta | None:
    """Restore the newest complete checkpoint into the engine; None where there is none.

    Damaged ones that are newer are set aside under another name and said to `warn`. Where all are damaged, training
    starts over: it takes the same steps to the same weights, so what is lost is time, and an error would only make
    people remove the directory to get the same.

    Raises:
        StageError: the checkpoint belongs to another number of workers, another ZeRO stage or another run.
    """
    choice: list[Any] = [None]
    if dist.get_rank() == 0:
        result = look_up(directory)
        choice = [result.found and (str(result.found[0]), result.found[1].model_dump())]
        done = result.found[1].step if result.found else 0
        for damaged in result.damaged:
            warn(_of_damage(damaged, set_aside(damaged.path), done=done))
    dist.broadcast_object_list(choice, src=0)
    if choice[0] is None:
        return None
    path, meta = Path(choice[0][0]), CheckpointMeta(**choice[0][1])
    check_fits(path, meta, identity=identity, world_size=dist.get_world_size(), zero_stage=zero_stage)
    _load(engine, path)
    return meta


def _of_damage(damaged: Damaged, now: Path, *, done: int) -> Notice:
    on = f"training goes on from step {done}" if done else "no complete one is left, training starts over"
    text = f"checkpoint {damaged.path.name} is damaged ({damaged.fault}) and was set aside as {now}; {on}"
    return Notice("damaged_checkpoint", done, text)


def load_final(engine: Any, directory: Path, held_out: HeldOut | None, *, total_steps: int, warn: Warn) -> int:
    """Bring the weights into the engine that become the model, after the last step, and return their step.

    Raises:
        RuntimeError: their checkpoint is damaged. It and what follows it are set aside, so that the next start of the
            workers trains these steps again; that start is Ray Train's or the next run's.
    """
    choice: list[Any] = [None]
    if dist.get_rank() == 0:
        known = evaluations(directory)
        evaluated = {step: found for step, found in known.items() if found is not None}
        step = final_step(evaluated, held_out, total_steps=total_steps)
        fault = None if step == total_steps else fault_of(directory / name_of(step))
        if fault:
            before = max((s for s in known if s < step), default=0)
            for other in sorted(s for s in known if s >= step):
                path = directory / name_of(other)
                reason = fault if other == step else f"it follows {name_of(step)}, which is to be trained again"
                warn(_of_damage(Damaged(path, reason), set_aside(path), done=before))
        choice = [(step, fault)]
    dist.broadcast_object_list(choice, src=0)
    step, fault = choice[0]
    if fault:
        raise RuntimeError(f"{directory / name_of(step)}, the best checkpoint, is damaged: {fault}; run again")
    if step != total_steps:
        _load(engine, directory / name_of(step))
    return step


def _load(engine: Any, path: Path) -> None:
    loaded, _ = engine.load_checkpoint(str(path), tag=ENGINE)
    if loaded is None:
        raise StageError(f"DeepSpeed could not read the checkpoint {path}; remove it to go on from an older one")
