"""Starting workers with Ray Train, and what came of it: their outcome, or one line that says why they failed.

Ray Train starts and restarts workers; it is not asked to remember anything. Its own checkpoint record is a file that is
overwritten in place, and a kill in that moment makes every later start fail; so each attempt has a new name, nothing
is reported to it, and workers resume from what `checkpoint.py` has verified.
"""

import json
import logging
import math
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusion.errors import FuselineError, StageError
from fusion.train.task import OUTCOME
from fusion.training import TrainPlacement

log = logging.getLogger(__name__)

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "HF_HUB_OFFLINE": "1",
    "DS_SKIP_CUDA_CHECK": "1",
}
STORAGE = ".ray_train"
"""Ray Train's own directory, inside the training's; removed after each attempt."""


def fit(
    train_function: Callable[[dict[str, Any]], None],
    task: dict[str, Any],
    *,
    directory: Path,
    placement: TrainPlacement,
) -> None:
    """Run a worker group to its end; a crash after all restarts is one line of StageError."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu, cuda = _gpus(placement)
    resources = {"CPU": placement.cpus_per_worker}
    if on_gpu:
        resources["GPU"] = placement.gpus_per_worker
    storage = directory / STORAGE
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
            worker_runtime_env={"env_vars": _environment(placement, cuda=cuda)},
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


def spread(
    function: Callable[[dict[str, Any]], None],
    tasks: Sequence[dict[str, Any]],
    *,
    directory: Path,
    placement: TrainPlacement,
) -> None:
    """Run a function once per task, each with the resources of one training worker and none knowing of another.

    Plain Ray tasks: work that needs no process group need not wait for one. A worker that dies is started again as often
    as `placement.max_failures` says.

    Raises:
        StageError: one of them failed; the others are ended.
    """
    import ray
    import ray.exceptions

    on_gpu, cuda = _gpus(placement)
    remote = ray.remote(
        num_cpus=placement.cpus_per_worker,
        num_gpus=placement.gpus_per_worker if on_gpu else 0,
        max_retries=placement.max_failures,
        runtime_env={"env_vars": _environment(placement, cuda=cuda)},
    )(function)
    running = [remote.remote(task) for task in tasks]
    try:
        ray.get(running)
    except ray.exceptions.RayError as error:
        for task in running:
            ray.cancel(task, force=True)
        cause = getattr(error, "cause", None)
        text = str(cause) if isinstance(cause, FuselineError) else f"workers failed: {_cause(error)}"
        raise StageError(f"{directory}: {text}") from error


def _environment(placement: TrainPlacement, *, cuda: bool) -> dict[str, str]:
    """Environment variables of the workers."""
    if cuda:
        return WORKER_ENV
    threads = max(1, math.floor(placement.cpus_per_worker))
    return {**WORKER_ENV, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}


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
