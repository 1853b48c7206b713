"""The reference pass: what a frozen model says of training rows, by the policy's own code path.

Workers are independent: each has its share of the missing chunks and writes part by part, whole or not at all. So a killed
worker costs at most one chunk, and any number of workers may finish what others began.
"""

import math
from pathlib import Path
from typing import Any

import torch

from fusion.artifact import Quarantined, commit_part, part_name
from fusion.rows import ReferenceLogps
from fusion.train.batches import micro_batches
from fusion.train.data_files import ENCODED
from fusion.train.encode import Encoded, EncodedRow, load_encoded
from fusion.train.packing import pack, row_sizes
from fusion.train.policy import PolicyModel, cast_parameters, choose_layout, load_model
from fusion.train.run_state import DTYPES
from fusion.train.task import ReferenceTask

BUDGET_FACTOR = 4
"""Tokens of a pass, relative to training: nothing is kept for a backward pass."""


def reference_worker(task: dict[str, Any]) -> None:
    """Write the parts of this worker's chunks; those that an earlier attempt has written are kept."""
    told = ReferenceTask(**task)
    directory = Path(told.directory)
    # Ray shows a task the GPUs that it asked for, and no others.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = PolicyModel(load_model(Path(told.model_folder), dtype=torch.float32)).to(device).eval()
    choose_layout(policy, name=told.model_folder)
    cast_parameters(policy, DTYPES[told.precision])
    data = load_encoded(directory / ENCODED)
    at = {row_id: index for index, row_id in enumerate(data.row_ids)}
    refused = {d.row_id: Quarantined(d.row_id, d.reason, d.detail) for d in data.dropped}
    for index, start, stop in told.chunks:
        if (directory / part_name(index)).exists():
            continue
        wanted = told.row_ids[start:stop]
        rows = [at[row_id] for row_id in wanted if row_id in at]
        logps = _chunk_logps(policy, data, rows, told, device=device)
        found = [logps[row] for row in rows]
        commit_part(
            directory,
            index,
            [one for one in found if isinstance(one, ReferenceLogps)],
            ReferenceLogps,
            quarantined=[refused[row_id] for row_id in wanted if row_id not in at]
            + [one for one in found if isinstance(one, Quarantined)],
        )


@torch.no_grad()
def _chunk_logps(
    policy: PolicyModel, data: Encoded, rows: list[int], told: ReferenceTask, *, device: torch.device
) -> dict[int, ReferenceLogps | Quarantined]:
    """Row number -> log-probabilities of its responses."""
    budget = BUDGET_FACTOR * told.tokens_per_micro_batch
    passes = micro_batches(rows, row_sizes(data, policy.layout), world_size=1, budget=budget)
    found: dict[int, ReferenceLogps | Quarantined] = {}
    for (share,) in passes:
        encoded = data.rows(share)
        batch = pack(encoded, layout=policy.layout, group_roles=data.group_roles, pad_id=told.pad_id).to(device)
        _, logps_S = policy(batch)
        sums, starts = logps_S.cpu().tolist(), batch.response_starts()
        for row, item, first in zip(share, encoded, starts, strict=False):
            found[row] = _of_row(item, sums[first:])
    return found


def _of_row(item: EncodedRow, sums: list[float]) -> ReferenceLogps | Quarantined:
    """Take the row's share off the front of `sums`, role by role; it is quarantined where one is not finite."""
    logps, at = {}, 0
    for role, group in item.responses.items():
        logps[role] = tuple(sums[at : at + len(group)])
        at += len(group)
    if not all(map(math.isfinite, sums[:at])):
        return Quarantined(item.row_id, "non_finite", f"log-probabilities {logps}")
    counts = {role: tuple(len(ids) for ids in group) for role, group in item.responses.items()}
    return ReferenceLogps(item.row_id, logps, counts)
