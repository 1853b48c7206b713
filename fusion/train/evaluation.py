"""An evaluation on held-out rows while training: the training's own forward pass and loss, without a gradient.

Every rank takes part in every forward pass, because under ZeRO-3 each one is a collective. Nothing that training
uses is touched: random numbers are seeded anew before each step, and the plan of a step depends on no state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fusion.losses import Loss, LossInputs
from fusion.train.batches import MicroBatch

InputsOf = Callable[[tuple[int, ...]], LossInputs]
"""Row numbers of the held-out rows -> what the loss reads of them, from a forward pass of the engine."""


@torch.no_grad()
def evaluate(
    engine: Any,
    loss: Loss,
    passes: Sequence[MicroBatch],
    inputs_of: InputsOf,
    *,
    weights: np.ndarray,
    num_response_tokens: np.ndarray,
    rank: int,
) -> dict[str, float]:
    """Return `loss` (per mass) and every metric of the loss (mean over rows), equal on all ranks.

    Args:
        passes: forward passes over all held-out rows, the same list on every rank.
        inputs_of: runs the forward pass of the given rows; called once per pass on every rank.
        weights, num_response_tokens: (rows,) of the held-out rows.
    """
    engine.eval()
    try:
        sums = [_pass(loss, share, inputs_of, weights=weights, rank=rank) for share in passes]
    finally:
        engine.train()
    names = list(sums[0])
    total = torch.stack([torch.stack([part[name].double() for name in names]) for part in sums]).sum(0)
    dist.all_reduce(total)
    mass = float(loss.mass(torch.from_numpy(num_response_tokens), torch.from_numpy(weights.copy())).sum()) or 1.0
    return {
        name: value / (mass if name == "loss" else len(weights))
        for name, value in zip(names, total.tolist(), strict=True)
    }


def _pass(
    loss: Loss, micro_batch: MicroBatch, inputs_of: InputsOf, *, weights: np.ndarray, rank: int
) -> dict[str, torch.Tensor]:
    """Sums over this worker's rows; a worker without rows shows one of another's and counts nothing."""
    mine = micro_batch[rank]
    shown = mine or (min(row for share in micro_batch for row in share),)
    output = loss(inputs_of(shown))
    values = {"loss": output.losses_B * torch.tensor(weights[list(shown)], device=output.losses_B.device)}
    values |= output.metrics
    return {name: value_B.sum() if mine else torch.zeros((), device=value_B.device) for name, value_B in values.items()}
