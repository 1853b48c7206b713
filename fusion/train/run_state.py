"""Everything that a training worker holds while it runs, and how it is read from the training's directory."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fusion.train.batches import steps_per_epoch
from fusion.train.data_files import ENCODED
from fusion.train.encode import Encoded, load_encoded
from fusion.train.held_out import split_rows, take
from fusion.train.notices import WARNINGS, Notice, add_notice
from fusion.train.packing import Layout, row_sizes
from fusion.train.policy import Probe
from fusion.train.schedule import learning_rate
from fusion.train.task import REFERENCE, TrainTask
from fusion.training import TrainConfig, TrainPlacement

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass
class TrainRun:
    """One worker's view of a training."""

    task: TrainTask
    config: TrainConfig
    placement: TrainPlacement
    directory: Path
    rank: int
    world_size: int
    device: torch.device
    data: Encoded
    """The rows that are trained on."""
    reference: dict[str, np.ndarray] | None
    """Of these rows: role -> (rows,), or (rows, K) for group roles."""
    total_steps: int
    held_out: "TrainRun | None" = None
    """The same run with the held-out rows in place of `data` and `reference`."""
    engine: Any = None
    probe: Probe = Probe(Layout.shared)
    num_tokens: int = 0

    @functools.cached_property
    def learning_rates(self) -> list[float]:
        """Of each optimizer step."""
        config = self.config
        return [
            learning_rate(
                step,
                peak=config.learning_rate,
                total_steps=self.total_steps,
                warmup_ratio=config.warmup_ratio,
                schedule=config.schedule,
            )
            for step in range(self.total_steps)
        ]

    @functools.cached_property
    def schedule_metrics(self) -> dict[str, list[float]]:
        """Name -> value after each optimizer step. The whole course at once: a sum over the steps so far would take
        longer with every step, and a running one would have to be restored on resume."""
        return self.config.loss.schedule_metrics(self.learning_rates)

    @property
    def layout(self) -> Layout:
        return self.probe.layout

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """(rows,) tokens that a row takes in a forward pass."""
        return row_sizes(self.data, self.layout)

    @property
    def most_tokens(self) -> int:
        """Most tokens of one forward pass on one worker: the budget, or the largest row where that is more."""
        largest = int(row_sizes(self.data, Layout.shared).max())
        return max(largest, min(self.placement.tokens_per_micro_batch, largest * self.config.global_batch))

    def warn(self, notice: Notice) -> None:
        """Tell people something that the driver will show; on rank 0 only."""
        log.warning("%s", notice.text)
        add_notice(self.directory, WARNINGS, notice)


def open_run(task: TrainTask) -> TrainRun:
    """Read the data of a training; every rank reads the same."""
    directory = Path(task.directory)
    reference = None
    if (directory / REFERENCE).exists():
        with np.load(directory / REFERENCE) as stored:
            reference = dict(stored)
    config = TrainConfig.model_validate(task.config)
    data = load_encoded(directory / ENCODED)
    trained, held_out = split_rows(data, config)
    per_epoch = steps_per_epoch(num_rows=len(trained), global_batch=config.global_batch)
    run = TrainRun(
        task=task,
        config=config,
        placement=TrainPlacement.model_validate(task.placement),
        directory=directory,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=worker_device(),
        data=take(data, trained),
        reference=_of_rows(reference, trained),
        total_steps=per_epoch * config.epochs,
    )
    if len(held_out):
        run.held_out = dataclasses.replace(run, data=take(data, held_out), reference=_of_rows(reference, held_out))
    return run


def _of_rows(reference: dict[str, np.ndarray] | None, rows: np.ndarray) -> dict[str, np.ndarray] | None:
    return None if reference is None else {role: values[rows] for role, values in reference.items()}


def worker_device() -> torch.device:
    """The device of this worker: its GPU where Ray gave it a real one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    import ray.train.torch  # only on GPUs; the loop itself needs no Ray

    return ray.train.torch.get_device()
