"""Fixed shapes for forward passes, so that a score does not depend on its neighbours.

A matrix product picks its kernel by shape, and kernels round differently. So a conversation's length alone
fixes the shape of the pass it goes through: its padded length comes from a fixed ladder, and the number of
rows is a function of that length, filled up with dummy rows. Pure Python; no tensors here.
"""

import dataclasses
from collections.abc import Iterator, Sequence

SHORTEST = 32
MAX_ROWS = 8
"""Rows in one pass at most; more would make one single request wait for many dummy rows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: which items it scores and its shape, (num_rows, length)."""

    items: tuple[int, ...]
    """Indices into the list of lengths; at most `num_rows` of them, the other rows are dummies."""
    num_rows: int
    length: int


def padded_length(num_tokens: int) -> int:
    """Return the first of 32, 48, 64, 96, 128, 192, ... that is *greater* than `num_tokens`.

    Greater, so that every row has padding: transformers takes another attention path when a batch
    happens to have none.
    """
    length = SHORTEST
    while True:
        if num_tokens < length:
            return length
        if num_tokens < length + length // 2:
            return length + length // 2
        length *= 2


def num_rows(length: int, *, tokens_per_forward: int) -> int:
    """Return the rows of a pass of this padded length, 1 to `MAX_ROWS`."""
    return max(1, min(MAX_ROWS, tokens_per_forward // length))


def plan_batches(lengths: Sequence[int], *, tokens_per_forward: int) -> Iterator[Batch]:
    """Yield passes that cover every item once, longest first, so that memory runs out at once or never."""
    buckets: dict[int, list[int]] = {}
    for item, num_tokens in enumerate(lengths):
        buckets.setdefault(padded_length(num_tokens), []).append(item)
    for length in sorted(buckets, reverse=True):
        rows = num_rows(length, tokens_per_forward=tokens_per_forward)
        items = buckets[length]
        for start in range(0, len(items), rows):
            yield Batch(tuple(items[start : start + rows]), rows, length)
