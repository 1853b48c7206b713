"""The layouts of the released trainer (SLIT-AI/WRPO), in our own words, and padded supervised fine-tuning.

WRPO: one forward of all 3B sequences, block by block (sources, targets, rejected), each the prompt again with its
response, padded right to the longest of all. Logits of every position, a full log-softmax of them, a gather, a
mask, a sum. The reference does the same inside every step, while the policy's graph is alive. The mean of all
logits, padding included, is computed for the log.

SFT: all conversations in one stream, cut into sequences of `max_seq_length` whatever they contain, full causal
attention across conversations, cross-entropy over every token, prompts too. That is other mathematics than
training on responses, so its loss is not compared.

What differs from the release: the model is that of today's transformers with sdpa attention (the release used
flash attention on GPUs); logits are cast to fp32, as the transformers of the release did.

Legend: S sequences, T padded length, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.training.contender import Contender, padded_ids, response_mask, wrpo_loss_from_sums
from benchmarks.training.flops import Layout, Passes, padded_layout, passes
from benchmarks.training.shapes import WRPO_ROLES, Batch

PACKED_LENGTH = 2048
"""`max_seq_length` of the release's SFT recipe, in tokens."""

PADDED_ROWS = 8
"""Sequences of a padded SFT micro-batch."""


class Official(Contender):
    """WRPO as released: everything padded, all logits, reference in the loop."""

    task = "wrpo"

    def backward(self, batch: Batch) -> torch.Tensor:
        sequences = [np.concatenate((row.prompt_ids, row.responses[role])) for role in WRPO_ROLES for row in batch]
        ids_ST, mask_ST = padded_ids(sequences, self.device)
        scored_ST = response_mask([len(row.prompt_ids) for _ in WRPO_ROLES for row in batch], mask_ST)
        loss = self._loss(ids_ST, mask_ST, scored_ST)
        loss.backward()
        return loss.detach()

    def _loss(self, ids_ST: torch.Tensor, mask_ST: torch.Tensor, scored_ST: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, (). All logits of both models live until it returns, as in the release, not longer."""
        policy_S, logits_STV = self._concatenated_forward(self.policy, ids_ST, mask_ST, scored_ST)
        with torch.no_grad():
            reference_S, _ = self._concatenated_forward(self.reference, ids_ST, mask_ST, scored_ST)
        num_chosen = len(ids_ST) // 3 * 2
        parts = (logits_STV[:num_chosen], logits_STV[num_chosen:])
        self.logged = tuple(float(part.detach().mean()) for part in parts)
        return wrpo_loss_from_sums(policy_S, reference_S)

    def _concatenated_forward(
        self, model: Any, ids_ST: torch.Tensor, mask_ST: torch.Tensor, scored_ST: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (S,) sums of response log-probabilities and the (S, T, V) logits."""
        logits_STV = model(input_ids=ids_ST, attention_mask=mask_ST, use_cache=False).logits.float()
        logps_STV = logits_STV[:, :-1].log_softmax(-1)
        logps_ST = logps_STV.gather(2, ids_ST[:, 1:].unsqueeze(2)).squeeze(2)
        return (logps_ST * scored_ST[:, 1:]).sum(-1), logits_STV

    def layout(self, batch: Batch) -> Layout:
        return padded_layout(row.lengths[0] + response for row in batch for response in row.lengths[1])

    def passes(self) -> Passes:
        return passes(self.task, checkpointing=self.checkpointing)


class PackedSft(Contender):
    """SFT as released: one stream, attention across samples, all tokens trained."""

    task = "sft"
    same_maths = False

    def backward(self, batch: Batch) -> torch.Tensor:
        stream = torch.from_numpy(
            np.concatenate([part for row in batch for part in (row.prompt_ids, row.responses["response"])])
        )
        full = len(stream) // PACKED_LENGTH * PACKED_LENGTH
        parts = [
            part for part in (stream[:full].view(-1, PACKED_LENGTH), stream[full:].view(1, -1)) if part.shape[1] > 1
        ]
        predicted = sum(part.shape[0] * (part.shape[1] - 1) for part in parts if len(part))
        losses = []
        for part in parts:
            if not len(part):
                continue
            ids_ST = part.to(self.device)
            logits_STV = self.policy(input_ids=ids_ST, use_cache=False).logits.float()
            # Summed, so that the short rest of the stream weighs as much per token as the full sequences.
            loss = cross_entropy(logits_STV[:, :-1].flatten(0, 1), ids_ST[:, 1:].flatten(), reduction="sum") / predicted
            del logits_STV
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def layout(self, batch: Batch) -> Layout:
        full, rest = divmod(sum(row.num_tokens for row in batch), PACKED_LENGTH)
        layout = padded_layout([PACKED_LENGTH] * full) if full else Layout(0, 0, 0)
        return layout + padded_layout([rest]) if rest > 1 else layout

    def passes(self) -> Passes:
        return passes(self.task, checkpointing=self.checkpointing)


class PaddedSft(Contender):
    """SFT in padded batches of 8 with the loss of transformers itself, responses trained only."""

    task = "sft"

    def backward(self, batch: Batch) -> torch.Tensor:
        num_items = sum(sum(row.lengths[1]) for row in batch)
        losses = []
        for start in range(0, len(batch), PADDED_ROWS):
            rows = batch[start : start + PADDED_ROWS]
            sequences = [np.concatenate((row.prompt_ids, row.responses["response"])) for row in rows]
            ids_ST, mask_ST = padded_ids(sequences, self.device)
            scored_ST = response_mask([len(row.prompt_ids) for row in rows], mask_ST)
            loss = self.policy(
                input_ids=ids_ST,
                attention_mask=mask_ST,
                labels=ids_ST.masked_fill(~scored_ST, -100),
                num_items_in_batch=num_items,
                use_cache=False,
            ).loss
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def layout(self, batch: Batch) -> Layout:
        layout = Layout(0, 0, 0)
        for start in range(0, len(batch), PADDED_ROWS):
            layout += padded_layout(row.num_tokens for row in batch[start : start + PADDED_ROWS])
        return layout

    def passes(self) -> Passes:
        return passes(self.task, checkpointing=self.checkpointing)
