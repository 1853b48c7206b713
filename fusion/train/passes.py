"""Forward and backward passes of one worker: from row numbers to gradients and sums of metrics.

Normalisation: with M the mass of the whole global batch (rows, or tokens for SFT), a forward pass contributes
sum(weight * loss) / M. Every worker knows M from the plan, so the result does not depend on the cut.

Legend: B rows of a pass, K responses of a group role, S responses of all rows.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from fusion.losses import LossInputs, SequenceLogps
from fusion.train.batches import MicroBatch, micro_batches
from fusion.train.lengths import row_sums
from fusion.train.packing import PackedBatch, pack
from fusion.train.run_state import TrainRun


def plan(run: TrainRun, rows: np.ndarray) -> list[MicroBatch]:
    """Return the forward passes over the given rows of `run.data`, equally many on each worker."""
    return micro_batches(rows, run.sizes, world_size=run.world_size, budget=run.placement.tokens_per_micro_batch)


def accumulate(run: TrainRun, rows: np.ndarray, *, step: int) -> tuple[float, list[dict[str, torch.Tensor]]]:
    """Add the gradients of the mean loss of the global batch `rows`, pass by pass.

    Returns:
        the batch's mass, and the sums of loss and metrics of this worker's share of each pass.
    """
    seed_step(run.config.seed, step, run.rank)
    mass = mass_of(run, rows)
    return mass, [_micro_step(run, micro_batch, step=step, mass=mass) for micro_batch in plan(run, rows)]


def reduce(sums: list[dict[str, torch.Tensor]], *, num_rows: int, mass: float) -> dict[str, float]:
    """Add up the sums of all passes and ranks: `loss` per mass, everything else per row."""
    names = list(sums[0])
    total = torch.stack([torch.stack([part[name].double() for name in names]) for part in sums]).sum(0)
    dist.all_reduce(total)
    return {
        name: value / (mass if name == "loss" else num_rows) for name, value in zip(names, total.tolist(), strict=True)
    }


def seen(run: TrainRun, rows: tuple[int, ...], *, step: int) -> LossInputs:
    """What the loss reads of rows of `run.data`, from a forward pass of the engine without gradients."""
    batch = _packed(run, rows)
    _, logps_S = run.engine(batch)
    return _RowFacts.of(run, batch, rows, step=step).inputs(batch.by_role(logps_S), 0, batch.num_rows)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch from (seed, step, rank), so that no generator state needs saving."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def mass_of(run: TrainRun, rows: np.ndarray) -> float:
    """Return the denominator of the mean loss over rows of `run.data`; 1 where they all weigh nothing, as their sum is 0."""
    num_tokens, weights = (torch.from_numpy(of[rows]) for of in (run.data.weighted_response_tokens, run.data.weights))
    return float(run.config.loss.mass(num_tokens, weights).sum()) or 1.0


def shown(run: TrainRun, micro_batch: MicroBatch) -> tuple[tuple[int, ...], bool]:
    """Return the rows that this worker takes through a pass, and whether they count.

    A worker without rows still takes part, with the smallest row of the pass: under ZeRO each pass is a collective.
    """
    mine = micro_batch[run.rank]
    return mine or (min((row for share in micro_batch for row in share), key=lambda row: (run.sizes[row], row)),), bool(
        mine
    )


def _packed(run: TrainRun, rows: tuple[int, ...]) -> PackedBatch:
    data = run.data
    batch = pack(data.rows(rows), layout=run.layout, group_roles=data.group_roles, pad_id=run.task.pad_id)
    return batch.to(run.device)


def _micro_step(run: TrainRun, micro_batch: MicroBatch, *, step: int, mass: float) -> dict[str, torch.Tensor]:
    """Forward and backward of this worker's share; returns sums over its rows."""
    rows, counts = shown(run, micro_batch)
    batch = _packed(run, rows)
    facts = _RowFacts.of(run, batch, rows, step=step)
    weights_B = torch.tensor(run.data.weights[list(rows)], device=run.device) * counts
    # DeepSpeed averages gradients over workers; the mass is global already.
    scales_B = weights_B * (run.world_size / mass)

    def objective(logps_S: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        output = run.config.loss(facts.inputs(batch.by_role(logps_S, start, stop), start, stop))
        return (output.losses_B * scales_B[start:stop]).sum()

    loss, logps_S = run.engine(batch, objective)
    run.engine.backward(loss, scale_wrt_gas=False)
    inputs = facts.inputs(batch.by_role(logps_S), 0, batch.num_rows)
    output = run.config.loss(inputs)
    metrics = {**output.metrics, **row_sums(inputs)}
    if not counts:
        return {name: torch.zeros((), device=run.device) for name in ("loss", *metrics)}
    return {
        "loss": (output.losses_B * weights_B).sum(),
        **{name: value_B.sum() for name, value_B in metrics.items()},
    }


@dataclasses.dataclass(frozen=True)
class _RowFacts:
    """What a loss is given of the rows of a pass besides the policy's log-probabilities."""

    reference: SequenceLogps | None
    scores: dict[str, torch.Tensor]
    step: int
    total_steps: int
    weights: dict[str, torch.Tensor]
    groups: dict[str, torch.Tensor]

    @classmethod
    def of(cls, run: TrainRun, batch: PackedBatch, rows: tuple[int, ...], *, step: int) -> "_RowFacts":
        """Look the rows up in the reference and in the data."""

        def shown(table: Callable[[str], np.ndarray]) -> dict[str, torch.Tensor]:
            """role -> (B,) or (B, K) of the pass out of the table of all rows, which may be wider."""
            found = {role: torch.from_numpy(table(role)[list(rows)]).to(run.device) for role in run.data.roles}
            return {r: v if v.dim() == 1 else v[:, : batch.index[r].shape[1]] for r, v in found.items()}

        data, reference = run.data, None
        if run.reference is not None:
            reference = SequenceLogps(shown(run.reference.__getitem__), batch.num_tokens)
        return cls(
            reference, shown(data.scores), step, run.total_steps, weights=shown(data.shares), groups=shown(data.groups)
        )

    def inputs(self, policy: SequenceLogps, start: int, stop: int) -> LossInputs:
        """What the loss sees of rows `start` to `stop`, whose log-probabilities are given."""

        def cut(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {role: values[start:stop] for role, values in of.items()}

        return LossInputs(
            policy,
            self.reference and self.reference.rows(start, stop),
            cut(self.scores),
            self.step,
            self.total_steps,
            weights=cut(self.weights),
            groups=cut(self.groups),
        )
