"""The training loop: what every worker of a run executes. It knows no loss by name.

The one idea: a step is a pure function of the weights and of the step number. Rows, learning rate, alpha and random
numbers all follow from it, so a checkpoint needs only the engine's state and "k steps done", and a killed run
ends with the weights of an undisturbed one, bit for bit, at the same number of workers.

Normalisation: with M the mass of the whole global batch (rows, or tokens for SFT), a forward pass contributes
sum(weight * loss) / M. Every worker knows M from the plan, so the result does not depend on the cut.

A deterministic refusal (wrong world size, non-finite loss) is an outcome that all ranks reach together and rank 0
writes down; anything else that ends a worker is a crash, which Ray Train answers by starting again.
"""

import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fusion.artifact import fsync, write_json
from fusion.errors import FuselineError, StageError
from fusion.losses import SequenceLogps
from fusion.train import checkpoint, deepspeed
from fusion.train.batches import MicroBatch, batch_rows, micro_batches, pad_batch, steps_per_epoch
from fusion.train.checkpoint import CheckpointMeta
from fusion.train.encode import Encoded, load_encoded
from fusion.train.logps import PolicyModel, by_role, check_head, load_model
from fusion.train.metrics import MetricsWriter
from fusion.train.schedule import learning_rate
from fusion.training import TrainConfig, TrainPlacement

log = logging.getLogger(__name__)

ENCODED = "encoded.parquet"
REFERENCE = "reference.npz"
CHECKPOINTS = "checkpoints"
MODEL = "model"
OUTCOME = "outcome.json"
ATTEMPT = "attempt"
MAX_NON_FINITE = 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class TrainTask:
    """What a worker is told; it travels as keyword arguments through Ray Train."""

    directory: str
    model_folder: str
    pad_id: int
    identity: str
    attempt: str
    """Token of the driver's attempt: whoever wrote it last into the directory may write there."""
    config: dict[str, Any]
    placement: dict[str, Any]


@dataclasses.dataclass
class _Run:
    """Everything that the loop holds while it runs."""

    task: TrainTask
    config: TrainConfig
    placement: TrainPlacement
    directory: Path
    rank: int
    world_size: int
    device: torch.device
    data: Encoded
    reference: dict[str, np.ndarray] | None
    engine: Any = None
    num_tokens: int = 0

    @property
    def total_steps(self) -> int:
        per_epoch = steps_per_epoch(num_rows=len(self.data), global_batch=self.config.global_batch)
        return per_epoch * self.config.epochs


def train_worker(task: dict[str, Any]) -> None:
    """Train to the end, or write down why not. Runs in every worker of a Ray Train group."""
    run = _open(TrainTask(**task))
    try:
        _train(run)
    except FuselineError as error:  # reached by all ranks alike, so starting again would not help
        log.error("%s", error)
        if run.rank == 0:
            write_json(run.directory / OUTCOME, {"error": str(error)})
    dist.barrier()


def _open(task: TrainTask) -> _Run:
    rank, directory = dist.get_rank(), Path(task.directory)
    # One place for the whole run: only rank 0 speaks, the others complain.
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, force=True)
    # Level and format are ours; DeepSpeed would print its whole configuration at INFO.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    reference = None
    if (directory / REFERENCE).exists():
        with np.load(directory / REFERENCE) as stored:
            reference = dict(stored)
    return _Run(
        task=task,
        config=TrainConfig.model_validate(task.config),
        placement=TrainPlacement.model_validate(task.placement),
        directory=directory,
        rank=rank,
        world_size=dist.get_world_size(),
        device=worker_device(),
        data=load_encoded(directory / ENCODED),
        reference=reference,
    )


def worker_device() -> torch.device:
    """The device of this worker: its GPU where Ray gave it a real one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    import ray.train.torch  # only on GPUs; the loop itself needs no Ray

    return ray.train.torch.get_device()


def _train(run: _Run) -> None:
    _check_attempt(run)
    policy = PolicyModel(load_model(Path(run.task.model_folder), dtype=torch.float32)).to(run.device).train()
    model = policy.model
    check_head(model, name=run.task.model_folder)
    if run.placement.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    run.engine = deepspeed.initialize(policy, run.config, run.placement, on_gpu=run.device.type == "cuda")
    meta = checkpoint.load_newest(
        run.engine,
        run.directory / CHECKPOINTS,
        identity=run.task.identity,
        world_size=run.world_size,
        zero_stage=run.placement.zero_stage,
        rank=run.rank,
    )
    done = meta.step if meta else 0
    run.num_tokens = meta.num_tokens if meta else 0
    log.info("training %s: %d of %d steps done", run.directory, done, run.total_steps)
    writer = MetricsWriter(run.directory, steps_done=done) if run.rank == 0 else None
    try:
        _loop(run, writer, done=done)
    finally:
        if writer is not None:
            writer.close()
    _save_model(run, model)


def _loop(run: _Run, writer: MetricsWriter | None, *, done: int) -> None:
    bad_steps: list[int] = []
    for step in range(done, run.total_steps):
        started = time.perf_counter()
        metrics = _step(run, step)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        bad_steps = [] if finite else [*bad_steps, step + 1]
        metrics["step_seconds"] = time.perf_counter() - started
        last = step + 1 == run.total_steps
        if writer is not None and (last or not finite or (step + 1) % run.placement.log_every == 0):
            writer.write(step + 1, metrics)
        if len(bad_steps) == MAX_NON_FINITE:
            raise StageError(
                f"{run.directory}: loss or gradient is not finite at steps {bad_steps}; the last good checkpoint is "
                "kept. Lower learning_rate, or look for a broken row"
            )
        if finite and (last or (step + 1) % run.placement.checkpoint_every_steps == 0):
            _save_checkpoint(run, step + 1)
    if bad_steps:
        raise StageError(f"{run.directory}: loss or gradient is not finite at the last steps {bad_steps}")


def _step(run: _Run, step: int) -> dict[str, float]:
    """One optimizer step; returns its metrics, equal on all ranks."""
    config, data = run.config, run.data
    seed_step(config.seed, step, run.rank)
    rows = batch_rows(step, seed=config.seed, num_rows=len(data), global_batch=config.global_batch)
    passes = micro_batches(
        rows,
        data.longest,
        num_roles=len(data.roles),
        world_size=run.world_size,
        tokens=run.placement.tokens_per_micro_batch,
    )
    mass = float(_mass(run, rows).sum())
    sums = [_micro_step(run, micro_batch, step=step, mass=mass) for micro_batch in passes]
    rate = learning_rate(
        step,
        peak=config.learning_rate,
        total_steps=run.total_steps,
        warmup_ratio=config.warmup_ratio,
        schedule=config.schedule,
    )
    deepspeed.set_learning_rate(run.engine, rate)
    run.engine.step()
    run.num_tokens += int(data.num_tokens[rows].sum())
    metrics = _reduce(run, sums, num_rows=len(rows), mass=mass)
    per_epoch = steps_per_epoch(num_rows=len(data), global_batch=config.global_batch)
    return metrics | {
        "learning_rate": rate,
        "grad_norm": float(run.engine.get_global_grad_norm()),
        "epoch": (step + 1) / per_epoch,
        "num_tokens": run.num_tokens,
    }


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch from (seed, step, rank), so that no generator state needs saving."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def _mass(run: _Run, rows: np.ndarray) -> torch.Tensor:
    """(rows,) float64 parts of the loss's denominator."""
    weights = torch.from_numpy(run.data.weights[rows].copy())
    return run.config.loss.mass(torch.from_numpy(run.data.num_response_tokens[rows]), weights)


def _micro_step(run: _Run, micro_batch: MicroBatch, *, step: int, mass: float) -> dict[str, torch.Tensor]:
    """Forward and backward of this worker's share; returns sums over its rows.

    A worker without rows in this pass still takes part, with the shortest row of the pass at weight 0: under ZeRO
    each backward pass is a collective.
    """
    mine = micro_batch[run.rank]
    lengths = run.data.longest
    shown = mine or (min((row for share in micro_batch for row in share), key=lambda row: (lengths[row], row)),)
    batch = pad_batch(run.data.rows(shown), pad_id=run.task.pad_id).to(run.device)
    policy = by_role(run.engine(batch), batch)
    output = run.config.loss(policy, _reference(run, shown, policy), step=step, total_steps=run.total_steps)
    weights_B = torch.tensor(run.data.weights[list(shown)], device=run.device, dtype=output.losses_B.dtype)
    weighted_B = output.losses_B * (weights_B if mine else torch.zeros_like(weights_B))
    # DeepSpeed averages gradients over workers; the mass is global already.
    run.engine.backward(weighted_B.sum() * (run.world_size / mass), scale_wrt_gas=False)
    if not mine:
        return {name: torch.zeros((), device=run.device) for name in ("loss", *output.metrics)}
    sums = {name: value_B.sum() for name, value_B in output.metrics.items()}
    return {"loss": weighted_B.detach().sum().float(), **sums}


def _reference(run: _Run, rows: tuple[int, ...], policy: SequenceLogps) -> SequenceLogps | None:
    if run.reference is None:
        return None
    logps = {
        role: torch.tensor(run.reference[role][list(rows)], device=run.device, dtype=policy[role].dtype)
        for role in policy.logps
    }
    return SequenceLogps(logps, policy.num_tokens)


def _reduce(run: _Run, sums: list[dict[str, torch.Tensor]], *, num_rows: int, mass: float) -> dict[str, float]:
    """Add up the sums of all passes and ranks: `loss` per mass, everything else per row."""
    names = list(sums[0])
    total = torch.stack([torch.stack([part[name].double() for name in names]) for part in sums]).sum(0)
    dist.all_reduce(total)
    return {
        name: value / (mass if name == "loss" else num_rows) for name, value in zip(names, total.tolist(), strict=True)
    }


def _check_attempt(run: _Run) -> None:
    """End workers that outlived their driver: after its death Ray takes seconds to stop them, and meanwhile a new
    driver may have begun."""
    if (run.directory / ATTEMPT).read_text() != run.task.attempt:
        raise RuntimeError(f"{run.directory}: another driver has taken over this training")


def _save_checkpoint(run: _Run, steps_done: int) -> None:
    _check_attempt(run)
    meta = CheckpointMeta(
        step=steps_done,
        num_tokens=run.num_tokens,
        world_size=run.world_size,
        zero_stage=run.placement.zero_stage,
        identity=run.task.identity,
        files={},
    )
    keep = run.placement.keep_checkpoints
    checkpoint.save(run.engine, run.directory / CHECKPOINTS, meta, keep=keep, rank=run.rank)


def _save_model(run: _Run, model: Any) -> None:
    """Write the final Hugging Face folder under a temporary name and rename it."""
    import shutil

    _check_attempt(run)
    weights = deepspeed.full_state_dict(model, zero_stage=run.placement.zero_stage, rank=run.rank)
    if weights is None:
        return
    final, temporary = run.directory / MODEL, run.directory / f".{MODEL}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    deepspeed.save_folder(model, weights, start=Path(run.task.model_folder), folder=temporary)
    for path in (*temporary.rglob("*"), temporary):
        fsync(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    fsync(run.directory)
    write_json(run.directory / OUTCOME, {"steps": run.total_steps, "num_tokens": run.num_tokens})
