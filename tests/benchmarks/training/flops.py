"""Matrix-product FLOPs of a layout, and the least that the rows need.

For a Llama of H hidden units, L layers, I intermediate units, V tokens of vocabulary, q = heads * head_dim and
k = kv_heads * head_dim, one forward pass over a layout costs, with 2 FLOPs per multiply-add,

    trunk = 2 * L * [ positions * (H * (2 * q + 2 * k) + 3 * H * I) + 2 * q * pairs ]
    head  = 2 * V * H * head_rows

`positions` are token positions that go through the layers, padding included. `pairs` are (query, key) pairs under
the causal mask, T * (T + 1) / 2 for a sequence of T: kernels that multiply the masked half too do extra work that
is not counted. `head_rows` are the positions whose logits are computed. A backward pass costs two forward passes.
A step is policy forward + backward and, for preference training, one reference forward. Checkpointing adds one forward
of the trunk without the last product of each layer (2 * H * I), before which torch stops recomputing.

`skipped_mlp` positions do not go through the feed-forward block of the last layer: 2 * 3 * H * I less each and pass.

The minimum encodes each prompt once, has no padding, and computes logits where a response token is predicted. It runs
every layer on every token, so a layout that skips what nobody reads goes below it. Norms, softmax, embeddings and the
optimizer are no matrix products and are left out on all sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from benchmarks.training.shapes import Batch, ModelShape

PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s by a part of the device's name; the first that fits counts."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What one forward pass is made of."""

    positions: int
    pairs: int
    head_rows: int
    skipped_mlp: int = 0
    """Positions that do not go through the feed-forward block of the last layer."""

    def __add__(self, other: Layout) -> Layout:
        return Layout(
            self.positions + other.positions,
            self.pairs + other.pairs,
            self.head_rows + other.head_rows,
            self.skipped_mlp + other.skipped_mlp,
        )


@dataclasses.dataclass(frozen=True)
class Passes:
    """How often a step runs its layout, in forward passes; a backward pass counts 2."""

    trunk: int
    head: int
    skipped_down: int = 0
    """Trunk forwards that leave out the last product of each layer, the down projection."""


WRPO_PASSES = Passes(trunk=4, head=4)
"""Policy forward and backward, reference forward."""
SFT_PASSES = Passes(trunk=3, head=3)


def passes(task: str, *, checkpointing: bool = False, head_recomputed: bool = False) -> Passes:
    """Return the passes of a step; checkpointing and a recomputing head add one policy forward of their part."""
    base = WRPO_PASSES if task == "wrpo" else SFT_PASSES
    return Passes(base.trunk + checkpointing, base.head + head_recomputed, int(checkpointing))


def causal_pairs(length: int) -> int:
    """Return the (query, key) pairs of one causal sequence."""
    return length * (length + 1) // 2


def padded_layout(lengths: Iterable[int], *, head_rows: int | None = None) -> Layout:
    """Return the layout of sequences padded to the longest; without `head_rows` every position has logits."""
    lengths = tuple(lengths)
    width = max(lengths)
    positions = len(lengths) * width
    return Layout(positions, len(lengths) * causal_pairs(width), positions if head_rows is None else head_rows)


def minimal_layout(batch: Batch) -> Layout:
    """Return the layout that shares prompts and pads nothing."""
    total = Layout(0, 0, 0)
    for row in batch:
        prompt, responses = row.lengths
        pairs = causal_pairs(prompt) + sum(prompt * length + causal_pairs(length) for length in responses)
        total += Layout(prompt + sum(responses), pairs, sum(responses))
    return total


def step_flops(model: ModelShape, layout: Layout, counted: Passes) -> float:
    """Return the matrix-product FLOPs of one optimizer step."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    weights = model.hidden * (2 * queries + 2 * keys) + 3 * model.hidden * model.intermediate
    mlp = model.hidden * model.intermediate
    trunk = 2.0 * model.layers * (layout.positions * weights + 2 * queries * layout.pairs)
    trunk -= 2.0 * layout.skipped_mlp * 3 * mlp
    head = 2.0 * model.vocab * model.hidden * layout.head_rows
    # A layer that puts its skipped positions back is recomputed to its end.
    down = 2.0 * (model.layers - (layout.skipped_mlp > 0)) * layout.positions * mlp
    return counted.trunk * trunk + counted.head * head - counted.skipped_down * down


def flop_limit(model: ModelShape, batches: Iterable[Batch]) -> float:
    """Return FLOPs of the padded WRPO layout with all logits / the minimum, over all batches."""
    padded = least = 0.0
    for batch in batches:
        sequences = [row.lengths[0] + response for row in batch for response in row.lengths[1]]
        padded += step_flops(model, padded_layout(sequences), WRPO_PASSES)
        least += step_flops(model, minimal_layout(batch), WRPO_PASSES)
    return padded / least


def peak_flops(device_name: str) -> float | None:
    """Return the dense bf16 FLOP/s of a known GPU."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device_name), None)
