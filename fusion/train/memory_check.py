"""The two moments of memory in a worker: the estimate before the start and the measurement after it.

Both are in `memory.json` of the training directory. Called by every rank.
"""

import dataclasses
import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from fusion.artifact import write_json
from fusion.train.memory import MEMORY, Meter, estimate, gib, model_size, too_large
from fusion.train.notices import Notice
from fusion.training import TrainConfig, TrainPlacement

log = logging.getLogger(__name__)


def check_memory(
    directory: Path,
    model_folder: Path,
    config: TrainConfig,
    placement: TrainPlacement,
    meter: Meter,
    *,
    pass_tokens: int,
    row_tokens: int,
    warn: Callable[[Notice], None],
) -> None:
    """Write down what a worker will need, and warn where the workers of a machine (or GPU) do not fit.

    Args:
        pass_tokens: most tokens of one forward pass on one worker.
        row_tokens: most response tokens of one row.
        warn: called on rank 0 only.
    """
    need = estimate(model_size(model_folder), config, placement, pass_tokens=pass_tokens, row_tokens=row_tokens)
    # Workers of one device share what it has: GPUs by their number, else the machine.
    mine = (socket.gethostname(), meter.device_name, meter.available())
    places: list[tuple[str, str, int | None]] = [mine] * dist.get_world_size()
    dist.all_gather_object(places, mine)
    if dist.get_rank() != 0:
        return
    write_json(directory / MEMORY, {"estimated": {**dataclasses.asdict(need), "total": need.total}})
    log.info("memory per worker: about %s estimated", need)
    for host, device in sorted({(host, device) for host, device, _ in places}):
        here = [available for h, d, available in places if (h, d) == (host, device)]
        known = [available for available in here if available is not None]
        if not known:
            continue
        if text := too_large(need, min(known), workers_here=len(here), where=f"{host} ({device})"):
            warn(Notice("memory", 0, text))
            return


def note_memory(directory: Path, meter: Meter) -> None:
    """Add what the worker with the most has needed to `memory.json`."""
    used: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(used, meter.used())
    if dist.get_rank() != 0:
        return
    known = json.loads((directory / MEMORY).read_text())
    write_json(directory / MEMORY, {**known, "measured": max(used)})
    log.info("memory per worker: %s measured, %s estimated", gib(max(used)), gib(known["estimated"]["total"]))
