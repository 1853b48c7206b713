"""The driver's side of training: write the data files once, start the workers (`fit.py`), read what came of it.

Safe to call from several threads: each call has its own controller of Ray Train.
"""

import dataclasses
import json
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusion.artifact import atomic_file, part_name, part_rows, read_quarantine, write_atomic
from fusion.chat import Chat, ChatConfig
from fusion.errors import StageError
from fusion.train.data_files import ENCODED, encoded_once, remove_encoded
from fusion.train.encode import Encoded
from fusion.train.entry import refer, train
from fusion.train.fit import fit, spread
from fusion.train.held_out import split_rows
from fusion.train.identity import RunIdentity
from fusion.train.memory import MEMORY
from fusion.train.metrics import read_metrics
from fusion.train.notices import ALARMS, WARNINGS, Notice, read_notices
from fusion.train.task import ATTEMPT, CHECKPOINTS, MODEL, OUTCOME, REFERENCE, ReferenceTask, TrainTask
from fusion.train.watch import ProgressBar, notices_shown, progress_of_metrics, progress_of_parts
from fusion.training import TrainConfig, TrainPlacement


@dataclasses.dataclass(frozen=True)
class TrainingOutcome:
    """What came of a training run."""

    rows_in: int
    rows_trained: int
    rows_held_out: int
    """Rows that were evaluated on and never trained on; rows_in = trained + held out + dropped."""
    dropped: dict[str, int]
    """Reason -> number of rows."""
    dropped_ids: dict[str, list[str]]
    """Reason -> row ids."""
    steps: int
    num_tokens: int
    """Tokens of all sequences trained on, over all epochs."""
    seconds: float
    """Wall time of this call."""
    final_metrics: dict[str, float]
    """The last line of metrics.jsonl."""
    kept_step: int
    """The step whose weights are the model."""
    layout: str
    """How responses shared forward passes; see `packing.py`."""
    memory: dict[str, Any]
    """Bytes per worker, `estimated` by what they are for and `measured` in all."""
    alarms: tuple[Notice, ...]
    warnings: tuple[Notice, ...]


@dataclasses.dataclass(frozen=True)
class ReferenceOutcome:
    """What came of a reference pass; rows are counted from the parts."""

    rows_in: int
    rows_out: int
    quarantined: dict[str, int]
    seconds: float


def run_training(
    *,
    directory: Path,
    model_folder: Path,
    chat_config: ChatConfig,
    rows: Iterable[Any],
    row_type: type,
    reference_logps: Mapping[str, Mapping[str, Sequence[float]]] | None,
    config: TrainConfig,
    placement: TrainPlacement,
    progress: ProgressBar | None = None,
) -> TrainingOutcome:
    """Train a model into `directory / "model"`; called again on the same directory, it goes on from what is there.

    Args:
        rows: rows of `row_type`, which `config.loss` reads; those that cannot be encoded or are too long are dropped and
            counted.
        reference_logps: row id -> role -> log-probability of each response, for losses that need a reference.

    Raises:
        StageError: no row is left, a row has no reference, or training failed; the text says what to do.
    """
    started = time.monotonic()
    directory = directory.absolute()
    task, data, num_held_out = prepare_training(
        directory=directory,
        model_folder=model_folder,
        chat_config=chat_config,
        rows=rows,
        row_type=row_type,
        reference_logps=reference_logps,
        config=config,
        placement=placement,
    )
    num_trained = len(data) - num_held_out
    if task is not None:
        shown = progress_of_metrics(directory, num_rows=num_trained, epochs=config.epochs, progress=progress)
        with notices_shown(directory), shown:
            fit(train, dataclasses.asdict(task), directory=directory, placement=placement)
    outcome = json.loads((directory / OUTCOME).read_text())
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    return TrainingOutcome(
        rows_in=data.rows_in,
        rows_trained=num_trained,
        rows_held_out=num_held_out,
        dropped=data.dropped_by_reason(),
        dropped_ids=_dropped_ids(data),
        steps=outcome["steps"],
        num_tokens=outcome["num_tokens"],
        seconds=time.monotonic() - started,
        final_metrics=read_metrics(directory)[-1],
        kept_step=outcome["kept_step"],
        layout=outcome["layout"],
        memory=json.loads((directory / MEMORY).read_text()),
        alarms=tuple(read_notices(directory, ALARMS)),
        warnings=tuple(read_notices(directory, WARNINGS)),
    )


def prepare_training(
    *,
    directory: Path,
    model_folder: Path,
    chat_config: ChatConfig,
    rows: Iterable[Any],
    row_type: type,
    reference_logps: Mapping[str, Mapping[str, Sequence[float]]] | None,
    config: TrainConfig,
    placement: TrainPlacement,
) -> tuple[TrainTask | None, Encoded, int]:
    """Write the data files of a training.

    Returns:
        what its workers are told, None where it is finished; its rows; how many of them are held out.

    Raises:
        StageError: no row is left, `held_out` leaves one side empty, a row has no reference, or the data files have
            changed since.
    """
    rows = list(rows)
    chat = Chat.load(model_folder, chat_config)
    data = encoded_once(directory, rows, chat, row_type=row_type, max_length=config.max_length)
    _write_dropped(directory, data)
    if not len(data):
        raise StageError(f"{directory}: no row is left to train on; dropped {data.dropped_by_reason()}")
    _, held_out = split_rows(data, config)  # an impossible one fails here
    if config.loss.needs_reference:
        _save_reference(directory / REFERENCE, data, reference_logps, where=str(directory))
    if _finished(directory):
        return None, data, len(held_out)
    (directory / OUTCOME).unlink(missing_ok=True)
    task = TrainTask(
        directory=str(directory),
        model_folder=str(model_folder.absolute()),
        pad_id=chat.pad_id,
        identity=RunIdentity.of(directory, model_folder, config, tables=ENCODED, arrays=REFERENCE).model_dump(),
        attempt=uuid.uuid4().hex,
        config=config.model_dump(mode="json"),
        placement=placement.model_dump(mode="json"),
    )
    write_atomic(directory / ATTEMPT, task.attempt)
    return task, data, len(held_out)


def run_reference(
    *,
    directory: Path,
    model_folder: Path,
    chat_config: ChatConfig,
    rows: Sequence[Any],
    row_type: type,
    chunks: Sequence[tuple[int, int, int]],
    max_length: int,
    precision: Literal["fp32", "bf16"],
    placement: TrainPlacement,
    progress: ProgressBar | None = None,
) -> ReferenceOutcome:
    """Write one part of `ReferenceLogps` per chunk into `directory`; parts that are there are kept.

    Args:
        chunks: (index, start, stop) over `rows`, all chunks of the directory's plan.

    Raises:
        StageError: the pass failed.
    """
    started = time.monotonic()
    directory = directory.absolute()
    chat = Chat.load(model_folder, chat_config)
    data = encoded_once(directory, rows, chat, row_type=row_type, max_length=max_length)
    parts = {chunk[0]: directory / part_name(chunk[0]) for chunk in chunks}
    wanted = [chunk for chunk in chunks if not parts[chunk[0]].exists()]
    if wanted:
        tasks = [
            dataclasses.asdict(
                ReferenceTask(
                    directory=str(directory),
                    model_folder=str(model_folder.absolute()),
                    pad_id=chat.pad_id,
                    precision=precision,
                    tokens_per_micro_batch=placement.tokens_per_micro_batch,
                    chunks=wanted[worker :: placement.workers],
                    row_ids=[row.row_id for row in rows],
                )
            )
            for worker in range(min(placement.workers, len(wanted)))
        ]
        with progress_of_parts(parts, {c[0]: c[2] - c[1] for c in chunks}, progress):
            spread(refer, tasks, directory=directory, placement=placement)
    missing = [index for index, path in parts.items() if not path.exists()]
    if missing:
        raise StageError(f"{directory}: chunks {missing[:10]} were not written")
    reasons = [q.reason for index in parts for q in read_quarantine(directory, index)]
    remove_encoded(directory)
    return ReferenceOutcome(
        rows_in=data.rows_in,
        rows_out=sum(part_rows(path) for path in parts.values()),
        quarantined={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        seconds=time.monotonic() - started,
    )


# ---- before the workers -----------------------------------------------------------------------


def _write_dropped(directory: Path, data: Encoded) -> None:
    """Write what was dropped for people, in the form of every stage's quarantine."""
    if not data.dropped:
        return
    with atomic_file(directory / "quarantine.jsonl") as temporary:
        lines = (json.dumps(dataclasses.asdict(d), ensure_ascii=False) + "\n" for d in data.dropped)
        temporary.write_text("".join(lines), encoding="utf-8")


def _dropped_ids(data: Encoded) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for dropped in data.dropped:
        ids.setdefault(dropped.reason, []).append(dropped.row_id)
    return ids


def _save_reference(
    path: Path, data: Encoded, reference: Mapping[str, Mapping[str, Sequence[float]]] | None, *, where: str
) -> None:
    """Store the reference in row order, one array per role, and look for holes."""
    reference = reference or {}
    counts = {role: data.num_responses_of(role) for role in data.roles}
    arrays, whole = {}, np.ones(len(data), bool)
    for role in data.roles:
        found = [reference.get(row_id, {}).get(role, ()) for row_id in data.row_ids]
        fits = [
            len(values) == count and np.isfinite(values).all()
            for values, count in zip(found, counts[role], strict=True)
        ]
        whole &= np.array(fits, bool)
        filled = [values if ok else [0.0] * count for values, ok, count in zip(found, fits, counts[role], strict=True)]
        arrays[role] = data.of_role(role, filled)
    holes = np.flatnonzero(~whole).tolist()
    if holes:
        names = [data.row_ids[index] for index in holes]
        raise StageError(
            f"{where}: {len(names)} of {len(data)} rows have no finite reference log-probability: {names[:10]}; the "
            "reference stage must read the same rows with the same max_length"
        )
    with atomic_file(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def _finished(directory: Path) -> bool:
    """Whether the model is complete: the outcome is written after the folder's rename."""
    file = directory / OUTCOME
    return file.exists() and "steps" in json.loads(file.read_text()) and (directory / MODEL).is_dir()
