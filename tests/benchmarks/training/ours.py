"""Our way: what `fusion.train` does with the rows of one step, without Ray and DeepSpeed around it.

Reference log-probabilities are computed once per row, by the policy's own code path, before the policy's graph exists;
their time counts. The rows of a preference step are one pass, as they are for the peers; those of supervised
fine-tuning are dealt over passes of the default token budget, as in training.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.training.contender import ALPHA, BETA, Contender, Learner
from benchmarks.training.flops import Layout, Passes, causal_pairs, passes
from benchmarks.training.shapes import PAD_ID, Batch
from fusion.losses import LossInputs, SftLoss, WrpoLoss
from fusion.train import packing
from fusion.train.batches import micro_batches
from fusion.train.encode import EncodedRow
from fusion.train.packing import PackedBatch, pack
from fusion.train.policy import PolicyModel
from fusion.training import TrainPlacement

WRPO = WrpoLoss.model_validate({"beta": BETA, "alpha": ALPHA})
BUDGET = TrainPlacement().tokens_per_micro_batch
"""Tokens of a pass of supervised fine-tuning."""


class _Ours(Contender):
    def __init__(self, learner: Learner, *, checkpointing: bool = False) -> None:
        super().__init__(learner, checkpointing=checkpointing)
        self._policy = PolicyModel(self.policy)
        self._reference = PolicyModel(self.reference) if self.task == "wrpo" else None
        self.leave()

    def enter(self) -> None:
        """Take the models, which contenders may share."""
        for model in (self._policy, self._reference):
            if model is not None:
                model.use(packing.Layout.shared)

    def leave(self) -> None:
        """Give the models back as they were."""
        for model in (self._policy, self._reference):
            if model is not None:
                model.use(packing.Layout.padded)

    def _collate(self, batch: Batch) -> PackedBatch:
        rows = [
            EncodedRow(str(i), 1.0, row.prompt_ids, {role: (ids,) for role, ids in row.responses.items()}, {})
            for i, row in enumerate(batch)
        ]
        return pack(rows, layout=packing.Layout.shared, pad_id=PAD_ID).to(self.device)

    def layout(self, batch: Batch) -> Layout:
        pairs = 0
        for row in batch:
            prompt, responses = row.lengths
            pairs += causal_pairs(prompt) + sum(prompt * length + causal_pairs(length) for length in responses)
        responses = sum(sum(row.lengths[1]) for row in batch)
        positions, read = 0, 0
        for packed in map(self._collate, self._passes_of(batch)):
            assert packed.needed is not None
            positions += packed.ids_WT.numel()
            read += len(packed.needed)
        return Layout(positions, pairs, responses, skipped_mlp=positions - read)

    def _passes_of(self, batch: Batch) -> list[Batch]:
        """Return the rows of each forward pass."""
        return [batch]

    def passes(self) -> Passes:
        return passes(self.task, checkpointing=self.checkpointing)


class OursWrpo(_Ours):
    """WRPO by `fusion.train` and `fusion.losses`."""

    task = "wrpo"

    def backward(self, batch: Batch) -> torch.Tensor:
        self.enter()
        packed = self._collate(batch)
        assert self._reference is not None
        with torch.no_grad():
            _, logps_S = self._reference(packed)
        reference = packed.by_role(logps_S)

        def objective(logps_S: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            inputs = LossInputs(packed.by_role(logps_S, start, stop), reference.rows(start, stop), {}, 0, 1)
            return WRPO(inputs).losses_B.sum() / len(batch)

        loss, _ = self._policy(packed, objective)
        loss.backward()
        self.leave()
        return loss.detach()


class OursSft(_Ours):
    """SFT by `fusion.train` and `fusion.losses`."""

    task = "sft"

    def backward(self, batch: Batch) -> torch.Tensor:
        self.enter()
        num_tokens = sum(sum(row.lengths[1]) for row in batch)
        losses = [self._pass(self._collate(part), num_tokens) for part in self._passes_of(batch)]
        self.leave()
        return torch.stack(losses).sum()

    def _pass(self, packed: PackedBatch, num_tokens: int) -> torch.Tensor:
        """Add the gradients of one pass; return its share of the mean loss over `num_tokens`, ()."""

        def objective(logps_S: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            inputs = LossInputs(packed.by_role(logps_S, start, stop), None, {}, 0, 1)
            return SftLoss()(inputs).losses_B.sum() / num_tokens

        loss, _ = self._policy(packed, objective)
        loss.backward()
        return loss.detach()

    def _passes_of(self, batch: Batch) -> list[Batch]:
        sizes = np.array([row.num_tokens for row in batch])
        cut = micro_batches(range(len(batch)), sizes, world_size=1, budget=BUDGET)
        return [tuple(batch[row] for row in share) for (share,) in cut]
