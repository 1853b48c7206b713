"""Which rows are trained at which step, on which worker, in which forward pass: all of it computed, none stored.

The one idea: the plan is a pure function of (seed, step) and of the row sizes. Every worker computes the plan
of all workers, so that each knows the mass of the whole global batch and how many forward passes everyone
makes without asking; and resuming at a step is just asking for that step.

`global_batch` counts rows (prompts), never sequences. The last batch of an epoch may be smaller; no row is left out,
and none is split: the responses of a prompt are always in one pass.
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np


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
    rows: Sequence[int] | np.ndarray, sizes: np.ndarray, *, world_size: int, budget: int
) -> list[MicroBatch]:
    """Cut the rows of one step into forward passes, equally many on each worker.

    The rows are dealt over as few bins as the budget allows, the largest first, each to the bin with the least so far
    (longest-processing-time rule), and bins of nearly equal load make up a pass: under ZeRO-3 each pass is a barrier, so
    that is where balance counts. Attention keeps rows of a pass apart, so rows of any sizes may meet.

    Args:
        rows: row numbers of the step.
        sizes: (all rows,) tokens that a row takes in a pass.
        budget: tokens per worker and pass; a larger row is alone on its worker.

    Example: sizes 9 8 7 6 5 4, two workers, budget 20: bins 9+6+5 and 8+7+4, one pass of loads 20 and 19.
    """
    order = sorted((int(row) for row in rows), key=lambda row: (-int(sizes[row]), row))
    total = sum(int(sizes[row]) for row in order)
    passes = max(1, math.ceil(total / (budget * world_size)))
    while (bins := _deal(order, sizes, num_bins=passes * world_size, budget=budget)) is None:
        passes += 1
    bins.sort(key=lambda found: (-found[0], found[1]))
    shares = [tuple(own) for _, own in bins if own]
    shares += [()] * (-len(shares) % world_size)
    return [tuple(shares[first : first + world_size]) for first in range(0, len(shares), world_size)]


def _deal(order: Sequence[int], sizes: np.ndarray, *, num_bins: int, budget: int) -> list[tuple[int, list[int]]] | None:
    """(load, rows) of each bin, or None where a bin of several rows would exceed the budget."""
    bins: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(num_bins)]
    for row in order:
        load, number, own = bins[0]
        size = int(sizes[row])
        if own and load + size > budget:
            return None  # this was the emptiest bin
        heapq.heapreplace(bins, (load + size, number, [*own, row]))
    return [(load, own) for load, _, own in bins]
