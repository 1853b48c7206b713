"""The language-modelling head fused with log-softmax and loss: logits exist for a few responses at a time.

The one idea: the gradient of a log-probability with respect to its logits is `onehot - p`, known as soon as the
logits are; only a scalar per response, dL/dlogp, is missing, and a preference loss knows it when all responses of
one row have their log-probabilities. So rows are taken in groups: logits of the group's response tokens, log-softmax in
place, the loss of its rows, and at once the gradients of hidden states and weight (three matrix products, no second
pass over the vocabulary). Then the group's buffer is used again. A row beyond a cap is gone through twice, block by
block (four products).

Softmax, log-probabilities, loss and the weight's gradient are fp32 or wider; sums over a response are float64. The
head's module runs this *as its own forward*, because that is where ZeRO-3 gathers its weight and spreads its gradient.

Legend: N response tokens, S responses, B rows, V vocabulary, H hidden size.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from fusion.train.memory import HeadLimits
from fusion.train.packing import LEAST_ROWS, PackedBatch

BLOCK_BYTES = 2**20
"""Rows of logits that a CPU takes through log-softmax at a time, while they are in its cache."""

Objective = Callable[[torch.Tensor, int, int], torch.Tensor]
"""(log-probabilities of the responses of rows `start` to `stop`, start, stop) -> the sum of their weighted losses."""


@dataclasses.dataclass(frozen=True, slots=True)
class LogitRule:
    """What a family does to logits after the head: cap * tanh(scale * logits / cap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: dict[str, Any]) -> "LogitRule":
        """Read a model's text config: Cohere multiplies, Granite divides, Gemma-2 and 3 cap."""
        scale = (config.get("logit_scale") or 1.0) / (config.get("logits_scaling") or 1.0)
        return cls(scale, config.get("final_logit_softcapping"))


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """Consecutive rows whose logits exist together, with their ranges of responses and response tokens."""

    rows: tuple[int, int]
    responses: tuple[int, int]
    tokens: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        return self.tokens[1] - self.tokens[0]


@dataclasses.dataclass(frozen=True)
class HeadJob:
    """What the head has to do in one forward pass."""

    batch: PackedBatch
    rule: LogitRule
    objective: Objective | None
    """None: log-probabilities only."""
    limits: HeadLimits = HeadLimits()

    def groups(self, vocabulary: int) -> Iterator[_Group]:
        """Cut the rows into groups of at most `limits.group`; a larger row is a group of its own."""
        most = self.limits.group // (4 * vocabulary)
        starts = self.batch.response_starts()
        tokens = np.concatenate([[0], np.cumsum(self.batch.num_tokens_S)])[starts]
        first = 0
        for row in range(1, self.batch.num_rows + 1):
            if row == self.batch.num_rows or tokens[row + 1] - tokens[first] > most:
                yield _Group(
                    (first, row), (int(starts[first]), int(starts[row])), (int(tokens[first]), int(tokens[row]))
                )
                first = row


def run_head(head: nn.Module, hidden_NH: torch.Tensor, job: HeadJob) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the job as the forward of `head`, so that hooks on the module see it.

    Returns:
        loss: () sum of the objective over all groups, with gradients; 0 where there is no objective.
        logps_S: (S,) float64 log-probabilities of the responses, detached.
    """
    plain = head.forward
    # DeepSpeed and others hook the module's call, not its forward, so this sees whole weights.
    head.forward = lambda hidden: _FusedHead.apply(hidden, head.weight, getattr(head, "bias", None), job)
    try:
        return head(hidden_NH)
    finally:
        head.forward = plain


class _FusedHead(torch.autograd.Function):
    """See the module. Gradients are made in forward and only scaled in backward."""

    @staticmethod
    def forward(  # type: ignore[override]  # typed, where torch has *args
        ctx: Any, hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, job: HeadJob
    ) -> tuple[torch.Tensor, torch.Tensor]:
        work = _Work(hidden_NH, weight_VH, bias_V, job, needs=ctx.needs_input_grad[:3])
        losses, logps = [], []
        for group in job.groups(weight_VH.shape[0]):
            loss, logps_S = work.do(group)
            losses.append(loss)
            logps.append(logps_S)
        ctx.grads = work.grads()
        logps_S = torch.cat(logps)
        ctx.mark_non_differentiable(logps_S)
        return torch.stack(losses).sum(), logps_S

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, grad_logps: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        grads, ctx.grads = ctx.grads, ()
        scale = float(grad_loss)
        return *(grad if grad is None or scale == 1 else grad * scale for grad in grads), None


class _Work:
    """Buffers and gradients of one call."""

    def __init__(
        self,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        job: HeadJob,
        *,
        needs: tuple[bool, ...],
    ) -> None:
        self.job, self.hidden, self.weight, self.bias = job, hidden_NH, weight_VH, bias_V
        self.wide = torch.float64 if hidden_NH.dtype == torch.float64 else torch.float32
        # Products take narrow factors on GPUs, which add up in fp32; a CPU has no such product.
        self.narrow = hidden_NH.dtype if hidden_NH.is_cuda else self.wide
        self.factor = weight_VH.detach().to(self.narrow)
        train = job.objective is not None
        self.grad_hidden = torch.empty_like(hidden_NH) if train and needs[0] else None
        self.trains_weight = train and needs[1]
        self.grad_weight: torch.Tensor | None = None
        """The first group writes it: zeros would be one more pass over a matrix of the vocabulary."""
        self.grad_bias = (
            torch.zeros_like(bias_V, dtype=self.wide) if train and bias_V is not None and needs[2] else None
        )
        most = max((self._block_tokens(group) for group in job.groups(len(weight_VH))), default=0)
        self.buffer = torch.empty(max(LEAST_ROWS, most), len(weight_VH), dtype=self.wide, device=hidden_NH.device)

    def grads(self) -> tuple[torch.Tensor | None, ...]:
        found = ((self.grad_hidden, self.hidden), (self.grad_weight, self.weight), (self.grad_bias, self.bias))
        return tuple(None if grad is None else grad.to(like.dtype) for grad, like in found)  # type: ignore[union-attr]

    def _block_tokens(self, group: _Group) -> int:
        return self.job.limits.most_tokens(group.num_tokens, vocabulary=len(self.weight))

    def do(self, group: _Group) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the group's loss and log-probabilities; add its gradients."""
        start, stop = group.tokens
        counts = list(self.job.batch.num_tokens_S[slice(*group.responses)])
        size = self._block_tokens(group)
        blocks = [(a, min(a + size, stop)) for a in range(start, stop, size)]
        whole = len(blocks) == 1
        found = [self._log_softmax(a, b) for a, b in blocks]
        logps_N = found[0] if whole else torch.cat(found)
        # Per response a sum of its own, over a split: an indexed sum would be in no fixed order on GPUs.
        logps_S = torch.stack([part.sum(dtype=torch.float64) for part in logps_N.split(counts)])
        if self.job.objective is None:
            return logps_S.new_zeros(()), logps_S
        with torch.enable_grad():
            leaf_S = logps_S.requires_grad_()
            loss = self.job.objective(leaf_S, *group.rows)
            (slopes_S,) = torch.autograd.grad(loss, leaf_S)
        slopes_N = slopes_S.to(self.wide).repeat_interleave(torch.tensor(counts, device=slopes_S.device))
        for a, b in blocks:
            if not whole:
                self._log_softmax(a, b)
            self._add_gradients(a, b, slopes_N[a - start : b - start])
        return loss.detach(), logps_S.detach()

    def _log_softmax(self, start: int, stop: int) -> torch.Tensor:
        """Fill the buffer with log-probabilities of the tokens `start` to `stop`; return those of the targets, (n,)."""
        num = stop - start
        logits = self._product(self.hidden[start:stop])
        if self.bias is not None:
            logits += self.bias.detach()
        rule = self.job.rule
        if rule.scale != 1:
            logits *= rule.scale
        target_n = self.job.batch.target_N[start:stop, None]
        if rule.softcap is not None:
            logits.div_(rule.softcap).tanh_().mul_(rule.softcap)
        raw_n = logits[:num].gather(-1, target_n).squeeze(-1)
        rows = len(logits) if logits.is_cuda else max(1, BLOCK_BYTES // (logits.shape[1] * logits.element_size()))
        for block in logits.split(rows):
            torch.log_softmax(block, -1, out=block)
        logps_n = logits[:num].gather(-1, target_n).squeeze(-1)
        self.lse_n = raw_n - logps_n
        return logps_n

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits into the buffer. Fewer than four rows take another kernel on CPUs, with other rounding: fill them up."""
        if len(hidden) < LEAST_ROWS:
            hidden = torch.cat([hidden, hidden.new_zeros(LEAST_ROWS - len(hidden), hidden.shape[1])])
        out = self.buffer[: len(hidden)]
        if self.narrow == self.wide:
            return torch.mm(hidden.to(self.narrow), self.factor.t(), out=out)
        return torch.mm(hidden, self.factor.t(), out_dtype=self.wide, out=out)

    def _add_gradients(self, start: int, stop: int, slopes_n: torch.Tensor) -> None:
        """From the log-probabilities in the buffer, make p - onehot and the products with it.

        dL/dlogits = -slope * (p - onehot); the slope goes to the narrow side, which has H columns instead of V.
        """
        error = self.buffer[: stop - start]
        slope_of_cap = None
        rule = self.job.rule
        if rule.softcap is not None:
            slope_of_cap = 1 - ((error + self.lse_n[:, None]) / rule.softcap).square()
        error.exp_()
        rows_n = torch.arange(stop - start, device=error.device)
        error[rows_n, self.job.batch.target_N[start:stop]] -= 1
        if slope_of_cap is not None:
            error *= slope_of_cap
        error = error.to(self.narrow)
        sides_n1 = -rule.scale * slopes_n[:, None]
        if self.grad_hidden is not None:
            self.grad_hidden[start:stop] = (self._times(error, self.factor) * sides_n1).to(self.grad_hidden.dtype)
        if self.trains_weight:
            weighted = (self.hidden[start:stop].to(self.wide) * sides_n1).to(self.narrow)
            if self.grad_weight is None:
                self.grad_weight = self._times(error.t(), weighted)
            elif self.narrow == self.wide:
                self.grad_weight.addmm_(error.t(), weighted)
            else:
                self.grad_weight += self._times(error.t(), weighted)
        if self.grad_bias is not None:
            self.grad_bias += (error.to(self.wide) * sides_n1).sum(0) / rule.scale

    def _times(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b if self.narrow == self.wide else torch.mm(a, b, out_dtype=self.wide)
