"""An evaluation on held-out rows while training: the training's own passes, loss and sums, without a gradient.

Every rank takes part in every forward pass, because under ZeRO-3 each one is a collective. Nothing that training
uses is touched: random numbers are seeded anew before each step, and the plan of a step depends on no state.
"""

import numpy as np
import torch

from fusion.losses import Loss
from fusion.train.batches import MicroBatch
from fusion.train.passes import mass_of, plan, reduce, seen, shown
from fusion.train.run_state import TrainRun


@torch.no_grad()
def evaluate(run: TrainRun, loss: Loss) -> dict[str, float]:
    """Return `loss` (per mass) and every metric of the loss (mean over rows), equal on all ranks.

    Args:
        run: with the held-out rows as its data.
        loss: that of the training, at the alpha of evaluations.
    """
    rows = np.arange(len(run.data))
    run.engine.eval()
    try:
        sums = [_pass(run, loss, micro_batch) for micro_batch in plan(run, rows)]
    finally:
        run.engine.train()
    return reduce(sums, num_rows=len(rows), mass=mass_of(run, rows))


def _pass(run: TrainRun, loss: Loss, micro_batch: MicroBatch) -> dict[str, torch.Tensor]:
    """Sums over this worker's rows."""
    rows, counts = shown(run, micro_batch)
    output = loss(seen(run, rows, step=run.total_steps - 1))
    values = {"loss": output.losses_B * torch.tensor(run.data.weights[list(rows)], device=run.device)}
    values |= output.metrics
    return {name: value_B.sum() if counts else value_B.new_zeros(()) for name, value_B in values.items()}
