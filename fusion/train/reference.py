"""The reference pass: what a frozen model says of training rows, by the policy's own code path.

Workers are independent: each takes every n-th missing chunk and writes its part, whole or not at all. So a
killed worker costs at most one chunk, and any number of workers may finish what others began.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fusion.artifact import Quarantined, commit_part, part_name
from fusion.rows import ReferenceLogps
from fusion.train.batches import micro_batches, pad_batch
from fusion.train.encode import Encoded, EncodedRow, load_encoded
from fusion.train.logps import PolicyModel, by_role, cast_parameters, check_head, load_model
from fusion.train.worker import DTYPES, ENCODED, worker_device


@dataclasses.dataclass(frozen=True)
class ReferenceTask:
    """What a worker is told. `chunks` are (index, start, stop) over the rows as they came in."""

    directory: str
    model_folder: str
    pad_id: int
    precision: str
    tokens_per_micro_batch: int
    chunks: list[tuple[int, int, int]]
    row_ids: list[str]


def reference_worker(task: dict[str, Any]) -> None:
    """Write the parts of this worker's share of the missing chunks."""
    told = ReferenceTask(**task)
    directory, device = Path(told.directory), worker_device()
    missing = [chunk for chunk in told.chunks if not (directory / part_name(chunk[0])).exists()]
    dist.barrier()  # all have looked before anyone writes, so that the shares are of one list
    mine = missing[dist.get_rank() :: dist.get_world_size()]
    if mine:
        policy = PolicyModel(load_model(Path(told.model_folder), dtype=torch.float32)).to(device).eval()
        check_head(policy.model, name=told.model_folder)
        cast_parameters(policy, DTYPES[told.precision])
        data = load_encoded(directory / ENCODED)
        at = {row_id: index for index, row_id in enumerate(data.row_ids)}
        refused = {d.row_id: Quarantined(d.row_id, d.reason, d.detail) for d in data.dropped}
        for index, start, stop in mine:
            wanted = told.row_ids[start:stop]
            rows = [at[row_id] for row_id in wanted if row_id in at]
            logps = _chunk_logps(policy, data, rows, told, device=device)
            commit_part(
                directory,
                index,
                [logps[row] for row in rows if _is_finite(logps[row])],
                ReferenceLogps,
                quarantined=[refused[row_id] for row_id in wanted if row_id not in at]
                + [_non_finite(logps[row]) for row in rows if not _is_finite(logps[row])],
            )
    dist.barrier()


@torch.no_grad()
def _chunk_logps(
    policy: PolicyModel, data: Encoded, rows: list[int], told: ReferenceTask, *, device: torch.device
) -> dict[int, ReferenceLogps]:
    """Row number -> log-probabilities of its responses."""
    passes = micro_batches(
        rows, data.longest, num_roles=len(data.roles), world_size=1, tokens=told.tokens_per_micro_batch
    )
    found: dict[int, ReferenceLogps] = {}
    for (share,) in passes:
        encoded: list[EncodedRow] = data.rows(share)
        batch = pad_batch(encoded, pad_id=told.pad_id).to(device)
        logps = by_role(policy(batch), batch)
        sums = {role: values.double().cpu().numpy() for role, values in logps.logps.items()}
        for b, (row, item) in enumerate(zip(share, encoded, strict=True)):
            found[row] = ReferenceLogps(
                item.row_id,
                {role: float(values[b]) for role, values in sums.items()},
                {role: len(ids) for role, ids in item.responses.items()},
            )
    return found


def _is_finite(row: ReferenceLogps) -> bool:
    return all(math.isfinite(value) for value in row.logps.values())


def _non_finite(row: ReferenceLogps) -> Quarantined:
    return Quarantined(row.row_id, "non_finite", f"log-probabilities {row.logps}")
