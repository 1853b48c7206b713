"""The driver's side of training: encode once, start Ray Train, read the outcome.

Ray Train starts and restarts workers; it is not asked to remember anything. Its own checkpoint record is a
file that is overwritten in place, and a kill in that moment makes every later start fail; so each attempt has a
new name, nothing is reported to it, and workers resume from `checkpoints/` of the stage's directory, whose entries
are verified by digest (`checkpoint.py`). Safe to call from several threads: each call has its own controller.
"""

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from fusion.artifact import atomic_file, file_sha256, part_name, part_rows, read_quarantine, write_atomic
from fusion.chat import Chat, ChatConfig
from fusion.config import fingerprint
from fusion.errors import StageError
from fusion.train.encode import Encoded, encode_rows, load_encoded, save_encoded
from fusion.train.metrics import read_metrics
from fusion.training import TrainConfig, TrainPlacement

log = logging.getLogger(__name__)

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "HF_HUB_OFFLINE": "1",
    "DS_SKIP_CUDA_CHECK": "1",
}
POLL_S = 1.0


class ProgressBar(Protocol):
    """What is needed of a stage's progress."""

    def begin(self, *, total: int, done: int = 0) -> None: ...

    def advance(self, rows: int, *, tokens: int = 0, detail: str = "") -> None: ...


@dataclasses.dataclass(frozen=True)
class TrainingOutcome:
    """What came of a training run."""

    rows_in: int
    rows_trained: int
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
    reference_logps: Mapping[str, Mapping[str, float]] | None,
    config: TrainConfig,
    placement: TrainPlacement,
    progress: ProgressBar | None = None,
) -> TrainingOutcome:
    """Train a model into `directory / "model"`; called again on the same directory, it goes on from what is there.

    Args:
        rows: rows of `config.loss.row_type`; those that cannot be encoded or are too long are dropped and counted.
        reference_logps: row id -> role -> log-probability, for losses that need a reference.

    Raises:
        StageError: no row is left, a row has no reference, or training failed; the text says what to do.
    """
    # Here and not above: reading these names must not need Ray or torch.
    from fusion.train import worker

    started = time.monotonic()
    directory = directory.absolute()
    chat = Chat.load(model_folder, chat_config)
    data = _encoded(directory, rows, chat, row_type=config.loss.row_type, max_length=config.max_length)
    _write_dropped(directory, data)
    if not len(data):
        raise StageError(f"{directory}: no row is left to train on; dropped {data.dropped_by_reason()}")
    if config.loss.needs_reference:
        _save_reference(directory / worker.REFERENCE, data, reference_logps, where=str(directory))
    if not _finished(directory):
        (directory / worker.OUTCOME).unlink(missing_ok=True)
        task = worker.TrainTask(
            directory=str(directory),
            model_folder=str(model_folder.absolute()),
            pad_id=chat.pad_id,
            identity=_identity(directory, config),
            attempt=uuid.uuid4().hex,
            config=config.model_dump(mode="json"),
            placement=placement.model_dump(mode="json"),
        )
        write_atomic(directory / worker.ATTEMPT, task.attempt)
        with _progress_of_metrics(directory, data, config, progress):
            _fit(worker.train_worker, dataclasses.asdict(task), directory=directory, placement=placement)
    outcome = json.loads((directory / worker.OUTCOME).read_text())
    shutil.rmtree(directory / worker.CHECKPOINTS, ignore_errors=True)
    return TrainingOutcome(
        rows_in=data.rows_in,
        rows_trained=len(data),
        dropped=data.dropped_by_reason(),
        dropped_ids=_dropped_ids(data),
        steps=outcome["steps"],
        num_tokens=outcome["num_tokens"],
        seconds=time.monotonic() - started,
        final_metrics=read_metrics(directory)[-1],
    )


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
    from fusion.train import reference, worker  # as in run_training

    started = time.monotonic()
    directory = directory.absolute()
    chat = Chat.load(model_folder, chat_config)
    data = _encoded(directory, rows, chat, row_type=row_type, max_length=max_length)
    parts = {chunk[0]: directory / part_name(chunk[0]) for chunk in chunks}
    if not all(path.exists() for path in parts.values()):
        task = reference.ReferenceTask(
            directory=str(directory),
            model_folder=str(model_folder.absolute()),
            pad_id=chat.pad_id,
            precision=precision,
            tokens_per_micro_batch=placement.tokens_per_micro_batch,
            chunks=list(chunks),
            row_ids=[row.row_id for row in rows],
        )
        with _progress_of_parts(parts, {c[0]: c[2] - c[1] for c in chunks}, progress):
            _fit(reference.reference_worker, dataclasses.asdict(task), directory=directory, placement=placement)
    missing = [index for index, path in parts.items() if not path.exists()]
    if missing:
        raise StageError(f"{directory}: chunks {missing[:10]} were not written")
    reasons = [q.reason for index in parts for q in read_quarantine(directory, index)]
    (directory / worker.ENCODED).unlink(missing_ok=True)
    return ReferenceOutcome(
        rows_in=data.rows_in,
        rows_out=sum(part_rows(path) for path in parts.values()),
        quarantined={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        seconds=time.monotonic() - started,
    )


# ---- before the workers -----------------------------------------------------------------------


def _encoded(directory: Path, rows: Iterable[Any], chat: Chat, *, row_type: type, max_length: int) -> Encoded:
    from fusion.train.worker import ENCODED

    path = directory / ENCODED
    if path.exists():
        return load_encoded(path)
    directory.mkdir(parents=True, exist_ok=True)
    data = encode_rows(rows, chat, row_type=row_type, max_length=max_length)
    save_encoded(data, path)
    return load_encoded(path)


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
    path: Path, data: Encoded, reference: Mapping[str, Mapping[str, float]] | None, *, where: str
) -> None:
    """Store the reference in row order, one array per role; fill with NaN and look for holes."""
    reference = reference or {}
    arrays = {role: np.full(len(data), np.nan) for role in data.roles}
    for index, row_id in enumerate(data.row_ids):
        for role, value in reference.get(row_id, {}).items():
            if role in arrays:
                arrays[role][index] = value
    finite = np.stack([np.isfinite(values) for values in arrays.values()])
    holes = np.flatnonzero(~finite.all(axis=0)).tolist()
    if holes:
        names = [data.row_ids[index] for index in holes]
        raise StageError(
            f"{where}: {len(names)} of {len(data)} rows have no finite reference log-probability: {names[:10]}; the "
            "reference stage must read the same rows with the same max_length"
        )
    with atomic_file(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def _identity(directory: Path, config: TrainConfig) -> str:
    """Fingerprint of config and data, which a checkpoint must share with the run that resumes it."""
    from fusion.train.worker import ENCODED, REFERENCE

    files = {name: file_sha256(directory / name) for name in (ENCODED,)}
    if (directory / REFERENCE).exists():
        with np.load(directory / REFERENCE) as stored:
            files[REFERENCE] = fingerprint({name: stored[name].tolist() for name in sorted(stored)})
    return fingerprint({"config": config.model_dump(mode="json"), "files": files})


def _finished(directory: Path) -> bool:
    """Whether the model is complete: the outcome is written after the folder's rename."""
    from fusion.train.worker import MODEL, OUTCOME

    file = directory / OUTCOME
    return file.exists() and "steps" in json.loads(file.read_text()) and (directory / MODEL).is_dir()


# ---- the workers ------------------------------------------------------------------------------


def _fit(
    train_function: Callable[[dict[str, Any]], None],
    task: dict[str, Any],
    *,
    directory: Path,
    placement: TrainPlacement,
) -> None:
    """Run a worker group to its end; a crash after all restarts is one line of StageError."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from fusion.train.worker import OUTCOME

    on_gpu, cuda = _gpus(placement)
    resources = {"CPU": placement.cpus_per_worker}
    if on_gpu:
        resources["GPU"] = placement.gpus_per_worker
    storage = directory / ".ray_train"
    env = dict(WORKER_ENV)
    if not cuda:
        env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, math.floor(placement.cpus_per_worker)))}
    trainer = TorchTrainer(
        train_function,
        train_loop_config=task,
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.workers, use_gpu=on_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"{directory.name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=placement.max_failures),
            worker_runtime_env={"env_vars": env},
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        log.debug("Ray Train failed", exc_info=error)
        raise StageError(f"{directory}: training workers failed: {_cause(error)}") from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if (directory / OUTCOME).exists():
        refusal = json.loads((directory / OUTCOME).read_text()).get("error")
        if refusal:
            raise StageError(refusal)


def _gpus(placement: TrainPlacement) -> tuple[bool, bool]:
    """Whether workers ask Ray for GPUs, and whether these are real ones.

    Logical GPUs of a test cluster count as resources while the work itself runs on CPUs.
    """
    import ray

    have = ray.cluster_resources().get("GPU", 0)
    need = placement.workers * placement.gpus_per_worker
    if placement.accelerator == "cpu" or (placement.accelerator == "auto" and have < need):
        return False, False
    probe = ray.remote(num_cpus=0, num_gpus=placement.gpus_per_worker)(_cuda_is_available)
    cuda = ray.get(probe.remote())
    if not cuda:
        log.warning("the cluster's GPUs are logical (CUDA is not available there); training runs on CPUs")
    return True, cuda


def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def _cause(error: BaseException) -> str:
    """The last line of the innermost worker error, which names exception and text."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = [line.strip() for line in str(failures[0]).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# ---- progress ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _watch(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` about once a second, and once at the end, from a thread."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(POLL_S):
            look()

    thread = threading.Thread(target=loop, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    look()


@contextlib.contextmanager
def _progress_of_metrics(
    directory: Path, data: Encoded, config: TrainConfig, progress: ProgressBar | None
) -> Iterator[None]:
    """Follow metrics.jsonl, in rows."""
    if progress is None:
        yield
        return
    total = len(data) * config.epochs
    seen = {"rows": 0, "tokens": 0}

    def look() -> None:
        lines = read_metrics(directory)
        if not lines:
            return
        rows = min(total, round(lines[-1]["epoch"] * len(data)))
        if rows > seen["rows"]:
            tokens = int(lines[-1]["num_tokens"])
            progress.advance(
                rows - seen["rows"], tokens=tokens - seen["tokens"], detail=f"loss {lines[-1]['loss']:.4f}"
            )
            seen.update(rows=rows, tokens=tokens)

    before = read_metrics(directory)
    if before:
        seen.update(rows=min(total, round(before[-1]["epoch"] * len(data))), tokens=int(before[-1]["num_tokens"]))
    progress.begin(total=total, done=seen["rows"])
    with _watch(look):
        yield


@contextlib.contextmanager
def _progress_of_parts(
    parts: Mapping[int, Path], sizes: Mapping[int, int], progress: ProgressBar | None
) -> Iterator[None]:
    """Follow the parts of a directory, in rows."""
    if progress is None:
        yield
        return
    seen = {index for index, path in parts.items() if path.exists()}

    def look() -> None:
        new = {index for index, path in parts.items() if path.exists()} - seen
        if new:
            seen.update(new)
            progress.advance(sum(sizes[index] for index in new))

    progress.begin(total=sum(sizes.values()), done=sum(sizes[index] for index in seen))
    with _watch(look):
        yield
