"""Attention over packed trees (`packing.py`), registered with transformers as one more implementation.

The one idea: every response of a row sees [prompt, itself]. The trunk is one plain causal call. For the branches the
prompt's part is one call without mask for all of them together, each branch's own part one causal call, and the
two parts are merged by their log-sum-exps; backwards, each part is given the merged output and log-sum-exp, which is
all that the gradient of softmax needs. So no mask is ever made, and no key is copied.

Kernels on CPUs: PyTorch's flash attention where it applies, and `_Dense` for what it lacks (logit softcap as in
Gemma-2, a window that cuts a sequence short, GPUs without the next one). On GPUs in bf16 or fp16: PyTorch's
variable-length flash attention, with query ranges [P + R_1, R_2, ...] and key ranges [P + R_1, P + R_2, ...].

Transformers makes no mask for an implementation whose mask it does not know, and hands the keyword `trees` of the
model's forward to every layer (under gradient checkpointing too).

Legend: H heads, G key/value heads, T tokens, Q and J query and key tokens of one call, D head size.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from fusion.train.packing import Tree, Trees

NAME = "fuseline_trees"
"""The implementation's name in transformers."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Flash:
    """PyTorch's flash attention for CPUs; it knows grouped heads, and neither window nor softcap.

    As every kernel: attention of one range of queries on one range of keys, with log-sum-exps (1, H, Q). Query i stands at
    position `offset` + i where key 0 stands at 0, and sees keys up to its own position.
    """

    scale: float

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offset: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # With an offset the keys are a whole prompt, all of which is before every query.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, offset == 0, scale=self.scale)

    def backward(
        self,
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        o: torch.Tensor,
        lse: torch.Tensor,
        offset: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, o, lse, 0.0, offset == 0, scale=self.scale
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Dense:
    """The formula itself, with all scores of a call at once, recomputed backwards; softmax in fp32 or wider."""

    scale: float
    window: int | None
    """A query sees keys less than so many positions before it, itself included."""
    softcap: float | None

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offset: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores, hidden, _ = self._scores(q, k, offset)
        lse = torch.logsumexp(scores.masked_fill(hidden, -math.inf), -1)
        weights = self._weights(scores, hidden, lse)
        out = weights @ _wide(v).unsqueeze(2)
        return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)

    def backward(
        self,
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        o: torch.Tensor,
        lse: torch.Tensor,
        offset: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_groups = k.shape[1]
        scores, hidden, slope = self._scores(q, k, offset)
        weights = self._weights(scores, hidden, _grouped(lse, num_groups))
        wide_grad = _wide(_grouped(grad, num_groups))
        grad_v = (weights.transpose(-1, -2) @ wide_grad).sum(2)
        # Softmax: dS = P * (dP - rowsum(dO * O)), with the output over all keys, not only these.
        means = (wide_grad * _wide(_grouped(o, num_groups))).sum(-1, keepdim=True)
        grad_s = weights * (wide_grad @ _wide(v).unsqueeze(2).transpose(-1, -2) - means)
        grad_s = grad_s * self.scale if slope is None else grad_s * slope * self.scale
        grad_q = (grad_s @ _wide(k).unsqueeze(2)).flatten(1, 2)
        grad_k = (grad_s.transpose(-1, -2) @ _wide(_grouped(q, num_groups))).sum(2)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)

    def _scores(
        self, q: torch.Tensor, k: torch.Tensor, offset: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Scores (1, G, H/G, Q, J) before the mask, what of them is hidden, and the slope of the softcap."""
        scores = _wide(_grouped(q, k.shape[1])) @ _wide(k).unsqueeze(2).transpose(-1, -2) * self.scale
        slope = None
        if self.softcap is not None:
            bent = torch.tanh(scores / self.softcap)
            scores, slope = bent * self.softcap, 1 - bent.square()
        place = torch.arange(q.shape[2], device=q.device)[:, None] + offset
        back = place - torch.arange(k.shape[2], device=q.device)
        hidden = back < 0
        if self.window is not None:
            hidden = hidden | (back >= self.window)
        return scores, hidden, slope

    @staticmethod
    def _weights(scores: torch.Tensor, hidden: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
        """exp(score - lse), 0 where hidden; a query that sees no key here has lse -inf and only zeros."""
        return torch.exp(scores - lse.unsqueeze(-1)).masked_fill(hidden, 0.0)


_Kernel = _Flash | _Dense


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _grouped(x: torch.Tensor, num_groups: int) -> torch.Tensor:
    """(1, H, ...) as (1, G, H/G, ...)."""
    return x.unflatten(1, (num_groups, -1))


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernels:
    """Chooses by the tree alone, so that a row's numbers do not depend on what it is packed with."""

    scale: float
    window: int | None
    softcap: float | None
    flash: bool
    """Whether PyTorch's kernel can be had on this device for these head sizes."""

    def of(self, tree: Tree) -> _Kernel:
        cut_short = self.window is not None and self.window < tree.reach
        if self.flash and self.softcap is None and not cut_short:
            return _Flash(self.scale)
        return _Dense(self.scale, self.window if cut_short else None, self.softcap)


class _TreeAttention(torch.autograd.Function):
    """Attention over all trees of a pass: q (1, H, T, D), k and v (1, G, T, D) -> (1, T, H, D)."""

    @staticmethod
    def forward(  # type: ignore[override]  # typed, where torch has *args
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trees: Trees, kernels: _Kernels
    ) -> torch.Tensor:
        out = _like_tokens(q, v.shape[-1])
        lse = q.new_zeros(q.shape[:3], dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
        out[:, :, trees.trees[-1].stop :] = 0  # the filling sees nothing
        for tree in trees.trees:
            kernel, a, b = kernels.of(tree), tree.start, tree.trunk_stop
            out[:, :, a:b], lse[:, :, a:b] = kernel.forward(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], 0)
            if tree.branches:
                _branches_forward(q, k, v, out, lse, tree, kernel)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.trees, ctx.kernels = trees, kernels
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        grad = grad_out.transpose(1, 2)
        grad_q, grad_k, grad_v = (_like_tokens(x, x.shape[-1]) for x in (q, k, v))
        for x in (grad_q, grad_k, grad_v):
            x[:, :, ctx.trees.trees[-1].stop :] = 0
        for tree in ctx.trees.trees:
            kernel, grads = ctx.kernels.of(tree), (grad_q, grad_k, grad_v)
            _causal_backward(grad, q, k, v, out, lse, grads, (tree.start, tree.trunk_stop), kernel)
            if tree.branches:
                _branches_backward(grad, q, k, v, out, lse, grads, tree, kernel)
        return grad_q, grad_k, grad_v, None, None


def _like_tokens(x: torch.Tensor, size: int) -> torch.Tensor:
    """Empty (1, H, T, size) whose memory is in token order, as the projections around it have it."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], size).transpose(1, 2)


def _branches_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, tree: Tree, kernel: _Kernel
) -> None:
    """Write output and log-sum-exp of the branches of one tree."""
    all_of_them = slice(tree.trunk_stop, tree.stop)
    seen, seen_lse = _on_prompt(q, k, v, tree, kernel)
    for a, b in tree.branches:
        out[:, :, a:b], lse[:, :, a:b] = kernel.forward(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], 0)
    own_lse = lse[:, :, all_of_them]
    both = torch.logaddexp(own_lse, seen_lse)
    own_share, seen_share = (torch.exp(x - both).unsqueeze(-1).to(out.dtype) for x in (own_lse, seen_lse))
    out[:, :, all_of_them] = out[:, :, all_of_them] * own_share + seen * seen_share
    lse[:, :, all_of_them] = both


def _on_prompt(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tree: Tree, kernel: _Kernel
) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of all branches of a tree that falls on its prompt."""
    prompt = slice(tree.start, tree.prompt_stop)
    found = [
        kernel.forward(q[:, :, a:b], k[:, :, prompt], v[:, :, prompt], tree.prompt_stop - tree.start)
        for a, b in _calls(tree, kernel)
    ]
    outs, lses = zip(*found, strict=True)
    return (outs[0], lses[0]) if len(found) == 1 else (torch.cat(outs, 2), torch.cat(lses, 2))


def _causal_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    place: tuple[int, int],
    kernel: _Kernel,
) -> None:
    """Write the gradients of a range of tokens from its attention to itself."""
    here = (slice(None), slice(None), slice(*place))
    found = kernel.backward(grad[here], q[here], k[here], v[here], out[here], lse[here], 0)
    for whole, part in zip(grads, found, strict=True):
        whole[here] = part


def _branches_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tree: Tree,
    kernel: _Kernel,
) -> None:
    """Write the branches' gradients and add what falls on the prompt's keys and values."""
    grad_q, grad_k, grad_v = grads
    prompt = slice(tree.start, tree.prompt_stop)
    for branch in tree.branches:
        _causal_backward(grad, q, k, v, out, lse, grads, branch, kernel)
    for a, b in _calls(tree, kernel):
        on_q, on_k, on_v = kernel.backward(
            grad[:, :, a:b],
            q[:, :, a:b],
            k[:, :, prompt],
            v[:, :, prompt],
            out[:, :, a:b],
            lse[:, :, a:b],
            tree.prompt_stop - tree.start,
        )
        grad_q[:, :, a:b] += on_q
        grad_k[:, :, prompt] += on_k
        grad_v[:, :, prompt] += on_v


def _calls(tree: Tree, kernel: _Kernel) -> Sequence[tuple[int, int]]:
    """Ranges of queries that go to the prompt in one call: all branches, unless their positions matter."""
    if isinstance(kernel, _Flash):
        return ((tree.trunk_stop, tree.stop),)
    return tree.branches


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trees: Trees, *, scale: float, window: int | None
) -> torch.Tensor:
    """PyTorch's variable-length flash attention (GPUs): the causal mask is aligned at the end of each key range."""
    from torch.nn.attention.varlen import varlen_attn  # here: its import registers CUDA operators

    queries, keys, gather = [], [], []
    for tree in trees.trees:
        for a, b in ((tree.start, tree.trunk_stop), *tree.branches):
            queries.append(b - a)
            before = range(tree.start, tree.prompt_stop) if a != tree.start else range(0)
            keys.append(b - a + len(before))
            gather += [*before, *range(a, b)]
    filling = trees.num_tokens - trees.trees[-1].stop
    if filling:
        queries.append(filling)
        keys.append(filling)
        gather += range(trees.trees[-1].stop, trees.num_tokens)
    places = torch.tensor(gather, device=q.device)

    def starts(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *lengths], device=q.device).cumsum(0).to(torch.int32)

    out = varlen_attn(
        q[0].transpose(0, 1).contiguous(),
        k[0].transpose(0, 1)[places],
        v[0].transpose(0, 1)[places],
        starts(queries),
        starts(keys),
        max(queries),
        max(keys),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


def tree_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    trees: Trees,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query (1, H, T, D), key and value (1, G, T, D) -> (1, T, H, D).

    What else a family hands over is left out; the probe at the start of a training finds out whether it mattered.
    """
    assert attention_mask is None and dropout == 0.0, "packed passes have neither mask nor dropout"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda and softcap is None and query.dtype in (torch.bfloat16, torch.float16):
        return _varlen(query, key, value, trees, scale=scale, window=sliding_window), None
    flash = query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
    kernels = _Kernels(scale, sliding_window, softcap, flash)
    return _TreeAttention.apply(query, key, value, trees, kernels), None  # type: ignore[return-value]


AttentionInterface.register(NAME, tree_attention)
