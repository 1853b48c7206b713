"""The training loop: what every worker of a run executes. It knows no loss by name.

The one idea: a step is a pure function of the weights and of the step number. Rows, learning rate, alpha and random
numbers all follow from it, so a checkpoint needs only the engine's state and "k steps done", and a killed run
ends with the weights of an undisturbed one, bit for bit, at the same number of workers.

A deterministic refusal (wrong world size, non-finite loss) is an outcome that all ranks reach together and rank 0
writes down; anything else that ends a worker is a crash, which Ray Train answers by starting again.
"""

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from fusion.artifact import write_json
from fusion.errors import FuselineError, StageError
from fusion.train import deepspeed, resume
from fusion.train.alarms import Watch
from fusion.train.batches import batch_rows, steps_per_epoch
from fusion.train.checkpoint import CheckpointMeta
from fusion.train.evaluation import evaluate
from fusion.train.held_out import evaluation_loss, is_due, to_keep
from fusion.train.identity import RunIdentity
from fusion.train.lengths import derive
from fusion.train.lora import add_adapters, merged
from fusion.train.memory import Meter
from fusion.train.memory_check import check_memory, note_memory
from fusion.train.notices import Notice
from fusion.train.passes import accumulate, reduce
from fusion.train.policy import PolicyModel, choose_layout, load_model
from fusion.train.record import Recorder
from fusion.train.run_state import TrainRun, open_run
from fusion.train.schedule import warmup_steps
from fusion.train.task import ATTEMPT, CHECKPOINTS, MODEL, OUTCOME, TrainTask

log = logging.getLogger(__name__)

MAX_NON_FINITE = 3


def train_worker(task: dict[str, Any]) -> None:
    """Train to the end, or write down why not. Runs in every worker of a Ray Train group."""
    # One place for the whole run: only rank 0 speaks, the others complain.
    logging.basicConfig(level=logging.INFO if dist.get_rank() == 0 else logging.WARNING, force=True)
    # Level and format are ours; DeepSpeed would print its whole configuration at INFO.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    run = open_run(TrainTask(**task))
    try:
        _train(run)
    except FuselineError as error:  # reached by all ranks alike, so starting again would not help
        log.error("%s", error)
        if run.rank == 0:
            write_json(run.directory / OUTCOME, {"error": str(error)})
    dist.barrier()


def _train(run: TrainRun) -> None:
    _check_attempt(run)
    meter = Meter(run.device)
    check_memory(
        run.directory,
        Path(run.task.model_folder),
        run.config,
        run.placement,
        meter,
        pass_tokens=run.most_tokens,
        row_tokens=int(run.data.num_response_tokens.max()),
        warn=run.warn,
    )
    model = prepare(run)
    meta = resume.load_newest(
        run.engine,
        run.directory / CHECKPOINTS,
        identity=RunIdentity(**run.task.identity),
        zero_stage=run.placement.zero_stage,
        warn=run.warn,
    )
    done = meta.step if meta else 0
    run.num_tokens = meta.num_tokens if meta else 0
    log.info("training %s: %d of %d steps done", run.directory, done, run.total_steps)
    recorder = Recorder(run.directory, _watch(run), steps_done=done) if run.rank == 0 else None
    try:
        _loop(run, recorder, done=done)
    finally:
        if recorder is not None:
            recorder.close()
    note_memory(run.directory, meter)
    kept = resume.load_final(
        run.engine,
        run.directory / CHECKPOINTS,
        run.config.held_out,
        total_steps=run.total_steps,
        warn=run.warn,
    )
    _save_model(run, model, kept_step=kept)


def prepare(run: TrainRun) -> PreTrainedModel:
    """Load the model, find out how it can be packed, and put the engine around it."""
    policy = PolicyModel(load_model(Path(run.task.model_folder), dtype=torch.float32)).to(run.device).train()
    run.probe = choose_layout(policy, name=run.task.model_folder)
    if run.rank == 0:
        for reason in run.probe.refused:
            run.warn(Notice("layout", 0, f"{reason}; training takes more time and memory"))
    if run.config.lora is not None:
        trained = add_adapters(policy.model, run.config.lora, seed=run.config.seed)
        log.info("adapters: %d weights are trained", trained)
    if run.placement.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    run.engine = deepspeed.initialize(policy, run.config, run.placement, on_gpu=run.device.type == "cuda")
    return policy.model


def _watch(run: TrainRun) -> Watch:
    return Watch(
        total_steps=run.total_steps,
        warmup_steps=warmup_steps(run.total_steps, run.config.warmup_ratio),
        log_every=run.placement.log_every,
        beta=run.config.loss.model_dump().get("beta"),
    )


def _loop(run: TrainRun, recorder: Recorder | None, *, done: int) -> None:
    bad_steps: list[int] = []
    for step in range(done, run.total_steps):
        started = time.perf_counter()
        metrics = _step(run, step)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        bad_steps = [] if finite else [*bad_steps, step + 1]
        metrics["step_seconds"] = time.perf_counter() - started
        last = step + 1 == run.total_steps
        evaluated = finite and is_due(step + 1, run.config.held_out, total_steps=run.total_steps)
        evaluation = _evaluate(run) if evaluated else None
        metrics |= {f"eval/{name}": value for name, value in (evaluation or {}).items()}
        logged = (step + 1) % run.placement.log_every == 0
        if recorder is not None and (logged or last or not finite or evaluated):
            recorder.write(step + 1, metrics)
        if len(bad_steps) == MAX_NON_FINITE:
            raise StageError(
                f"{run.directory}: loss or gradient is not finite at steps {bad_steps}; the last good checkpoint is "
                "kept. Lower learning_rate, or look for a broken row"
            )
        if finite and (last or evaluated or (step + 1) % run.placement.checkpoint_every_steps == 0):
            if recorder is not None:
                recorder.sync()
            _save_checkpoint(run, step + 1, evaluation)
    if bad_steps:
        raise StageError(f"{run.directory}: loss or gradient is not finite at the last steps {bad_steps}")


def _evaluate(run: TrainRun) -> dict[str, float]:
    """The held-out rows under the weights of now, at the alpha that all evaluations share; equal on all ranks."""
    held_out, config = run.held_out, run.config.held_out
    assert held_out is not None and config is not None
    held_out.engine, held_out.probe = run.engine, run.probe
    found = evaluate(held_out, evaluation_loss(run.config))
    if config.metric not in found:
        raise StageError(
            f"held_out.metric: the loss {run.config.loss.type} has no {config.metric}, but {sorted(found)}"
        )
    return found


def _step(run: TrainRun, step: int) -> dict[str, float]:
    """One optimizer step; returns its metrics, equal on all ranks."""
    config, data = run.config, run.data
    rows = batch_rows(step, seed=config.seed, num_rows=len(data), global_batch=config.global_batch)
    mass, sums = accumulate(run, rows, step=step)
    deepspeed.set_learning_rate(run.engine, run.learning_rates[step])
    run.engine.step()
    run.num_tokens += int(data.num_tokens[rows].sum())
    metrics = derive(reduce(sums, num_rows=len(rows), mass=mass), num_rows=len(rows))
    per_epoch = steps_per_epoch(num_rows=len(data), global_batch=config.global_batch)
    return metrics | {
        "learning_rate": run.learning_rates[step],
        "grad_norm": float(run.engine.get_global_grad_norm()),
        "epoch": (step + 1) / per_epoch,
        "num_tokens": run.num_tokens,
        **{name: values[step] for name, values in run.schedule_metrics.items()},
    }


def _check_attempt(run: TrainRun) -> None:
    """End workers that outlived their driver: after its death Ray takes seconds to stop them, and meanwhile a new
    driver may have begun."""
    if (run.directory / ATTEMPT).read_text() != run.task.attempt:
        raise RuntimeError(f"{run.directory}: another driver has taken over this training")


def _save_checkpoint(run: TrainRun, steps_done: int, evaluation: dict[str, float] | None) -> None:
    _check_attempt(run)
    finite = {name: value for name, value in (evaluation or {}).items() if math.isfinite(value)}
    meta = CheckpointMeta(
        step=steps_done,
        num_tokens=run.num_tokens,
        world_size=run.world_size,
        zero_stage=run.placement.zero_stage,
        identity=RunIdentity(**run.task.identity),
        evaluation=None if evaluation is None else finite,
    )
    resume.save(
        run.engine,
        run.directory / CHECKPOINTS,
        meta,
        keep=lambda known: to_keep(known, run.config.held_out, newest=run.placement.keep_checkpoints),
    )


def _save_model(run: TrainRun, model: PreTrainedModel, *, kept_step: int) -> None:
    """Write the final Hugging Face folder, and then that the training is finished."""
    _check_attempt(run)
    weights = deepspeed.full_state_dict(model, zero_stage=run.placement.zero_stage, rank=run.rank)
    if weights is None:
        return
    if run.config.lora is not None:
        weights = merged(weights, run.config.lora)
    deepspeed.commit_folder(model, weights, start=Path(run.task.model_folder), final=run.directory / MODEL)
    outcome = {
        "steps": run.total_steps,
        "num_tokens": run.num_tokens,
        "kept_step": kept_step,
        "layout": str(run.layout),
    }
    write_json(run.directory / OUTCOME, outcome)
