"""Which rows are trained at which step, on which worker, in which forward pass: all of it computed, none stored.

The one idea: the plan is a pure function of (seed, step) and of the row lengths. Every worker computes the plan
of all workers, so that each knows the mass of the whole global batch and how many forward passes everyone
makes without asking; and resuming at a step is just asking for that step.

`global_batch` counts rows (prompts), never sequences. The last batch of an epoch may be smaller; no row is left out.

Legend: R roles, B rows of a micro-batch, S = R * B sequences in role-major order, T padded length, N response
tokens of all sequences.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from fusion.train.encode import EncodedRow


def steps_per_epoch(*, num_rows: int, global_batch: int) -> int:
    return math.ceil(num_rows / global_batch)


def epoch_order(*, seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """Return a permutation of the row numbers.

    It sorts raw output of PCG64, whose stream NumPy guarantees, unlike that of its `permutation`.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    return np.argsort(bits.random_raw(num_rows), kind="stable")


def batch_rows(step: int, *, seed: int, num_rows: int, global_batch: int) -> np.ndarray:
    """Return the row numbers of optimizer step `step`, counted from 0 over all epochs."""
    per_epoch = steps_per_epoch(num_rows=num_rows, global_batch=global_batch)
    epoch, start = step // per_epoch, (step % per_epoch) * global_batch
    return epoch_order(seed=seed, epoch=epoch, num_rows=num_rows)[start : start + global_batch]


MicroBatch = tuple[tuple[int, ...], ...]
"""One forward pass of all workers: per worker, the row numbers it handles; an empty tuple = it idles."""


def micro_batches(
    rows: Sequence[int] | np.ndarray, lengths: np.ndarray, *, num_roles: int, world_size: int, tokens: int
) -> list[MicroBatch]:
    """Cut the rows of one step into forward passes, equally many on each worker.

    Rows of similar length go together (little padding), and within a forward pass the longest rows are dealt
    first, each to the worker with the least so far; under ZeRO-3 every forward pass is a barrier, so that is
    where balance counts.

    Args:
        rows: row numbers of the step.
        lengths: (all rows,) tokens of a row's prompt with its longest response.
        tokens: budget of padded tokens per worker and forward pass; a longer row is alone on its worker.
    """
    order = sorted((int(row) for row in rows), key=lambda row: (-int(lengths[row]), row))
    passes: list[MicroBatch] = []
    start = 0
    while start < len(order):
        per_worker = max(1, tokens // (num_roles * int(lengths[order[start]])))
        dealt = order[start : start + per_worker * world_size]
        passes.append(_deal(dealt, lengths, world_size=world_size, capacity=math.ceil(len(dealt) / world_size)))
        start += len(dealt)
    return passes


def _deal(rows: Sequence[int], lengths: np.ndarray, *, world_size: int, capacity: int) -> MicroBatch:
    """Longest-processing-time rule over workers that take at most `capacity` rows each."""
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for row in rows:
        rank = min((r for r in range(world_size) if len(shares[r]) < capacity), key=lambda r: (loads[r], r))
        shares[rank].append(row)
        loads[rank] += int(lengths[row])
    return tuple(tuple(share) for share in shares)


@dataclasses.dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Right-padded sequences of one forward pass and where their response tokens are predicted."""

    roles: tuple[str, ...]
    ids_ST: torch.Tensor
    mask_ST: torch.Tensor
    """1 on real tokens."""
    sequence_N: torch.Tensor
    """Which sequence a response token belongs to; ascending."""
    column_N: torch.Tensor
    """Position whose hidden state predicts the token: one before the token's own."""
    target_N: torch.Tensor
    """The response tokens."""
    num_tokens_S: tuple[int, ...]
    """Response tokens per sequence."""

    def to(self, device: torch.device) -> "PaddedBatch":
        """Return the batch with its tensors on `device`."""
        return PaddedBatch(
            self.roles,
            self.ids_ST.to(device),
            self.mask_ST.to(device),
            self.sequence_N.to(device),
            self.column_N.to(device),
            self.target_N.to(device),
            self.num_tokens_S,
        )


def pad_batch(rows: Sequence[EncodedRow], *, pad_id: int) -> PaddedBatch:
    """Lay rows out as prompt + response per role. The model never attends to padding, whatever `pad_id` is."""
    assert rows, "an empty micro-batch has no layout"
    roles = tuple(rows[0].responses)
    sequences = [(row.prompt_ids, row.responses[role]) for role in roles for row in rows]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    ids_ST = np.full((len(sequences), width), pad_id, np.int64)
    mask_ST = np.zeros((len(sequences), width), np.int64)
    sequence, column, target = [], [], []
    for s, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        ids_ST[s, : len(prompt)] = prompt
        ids_ST[s, len(prompt) : end] = response
        mask_ST[s, :end] = 1
        sequence.append(np.full(len(response), s))
        column.append(np.arange(len(prompt) - 1, end - 1))
        target.append(response)
    return PaddedBatch(
        roles,
        torch.from_numpy(ids_ST),
        torch.from_numpy(mask_ST),
        *(torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in (sequence, column, target)),
        num_tokens_S=tuple(len(response) for _, response in sequences),
    )
