"""Attention over packed trees (`trees.py`), registered with transformers as one more implementation.

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

from fusion.packed.trees import Tree, Trees

NAME = "fuseline_trees"
"""The implementation's name in transformers."""


_Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of q, k and v, each of its shape."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Operands:
    """Attention of some queries on some keys: what goes in, and what comes out or is to be written."""

    q: torch.Tensor
    """(1, H, Q, D)"""
    k: torch.Tensor
    """(1, G, J, D), as v."""
    v: torch.Tensor
    out: torch.Tensor
    """(1, H, Q, D) over all keys that a query sees, not only these."""
    lse: torch.Tensor
    """(1, H, Q) log-sum-exp of the scores, likewise; fp32 or wider."""
    grad: torch.Tensor | None = None
    """Of `out`; None in forward passes."""

    def at(self, queries: slice, keys: slice) -> "_Operands":
        """Return views of ranges of tokens."""
        grad = None if self.grad is None else self.grad[:, :, queries]
        q, out, lse = self.q[:, :, queries], self.out[:, :, queries], self.lse[:, :, queries]
        return _Operands(q, self.k[:, :, keys], self.v[:, :, keys], out, lse, grad)


@dataclasses.dataclass(frozen=True, slots=True)
class _Flash:
    """PyTorch's flash attention for CPUs; it knows grouped heads, and neither window nor softcap.

    As every kernel: query i stands at position `offset` + i where key 0 stands at 0, and sees keys up to its own position.
    `forward` returns output and log-sum-exp over the given keys alone, and writes neither.
    """

    scale: float

    def forward(self, x: _Operands, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
        # With an offset the keys are a whole prompt, all of which is before every query.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            x.q, x.k, x.v, 0.0, offset == 0, scale=self.scale
        )

    def backward(self, x: _Operands, offset: int) -> _Gradients:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            x.grad, x.q, x.k, x.v, x.out, x.lse, 0.0, offset == 0, scale=self.scale
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Dense:
    """The formula itself, with all scores of a call at once, recomputed backwards; softmax in fp32 or wider."""

    scale: float
    window: int | None
    """A query sees keys less than so many positions before it, itself included."""
    softcap: float | None

    def forward(self, x: _Operands, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores, hidden, _ = self._scores(x.q, x.k, offset)
        lse = torch.logsumexp(scores.masked_fill(hidden, -math.inf), -1)
        weights = self._weights(scores, hidden, lse)
        out = weights @ _wide(x.v).unsqueeze(2)
        return out.flatten(1, 2).to(x.q.dtype), lse.flatten(1, 2)

    def backward(self, x: _Operands, offset: int) -> _Gradients:
        assert x.grad is not None
        num_groups = x.k.shape[1]
        scores, hidden, slope = self._scores(x.q, x.k, offset)
        weights = self._weights(scores, hidden, _grouped(x.lse, num_groups))
        grad = _wide(_grouped(x.grad, num_groups))
        grad_v = (weights.transpose(-1, -2) @ grad).sum(2)
        # Softmax: dS = P * (dP - rowsum(dO * O)), with the output over all keys, not only these.
        means = (grad * _wide(_grouped(x.out, num_groups))).sum(-1, keepdim=True)
        grad_s = weights * (grad @ _wide(x.v).unsqueeze(2).transpose(-1, -2) - means)
        grad_s = grad_s * self.scale if slope is None else grad_s * slope * self.scale
        grad_q = (grad_s @ _wide(x.k).unsqueeze(2)).flatten(1, 2)
        grad_k = (grad_s.transpose(-1, -2) @ _wide(_grouped(x.q, num_groups))).sum(2)
        return grad_q.to(x.q.dtype), grad_k.to(x.k.dtype), grad_v.to(x.v.dtype)

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
        x = _Operands(q, k, v, out, lse)
        for tree in trees.trees:
            if trees.apart:
                _forward_apart(x, tree, kernels)
                continue
            kernel = kernels.of(tree)
            _causal_forward(x, (tree.start, tree.trunk_stop), kernel)
            if tree.branches:
                _branches_forward(x, tree, kernel)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.trees, ctx.kernels = trees, kernels
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        assert not ctx.trees.apart, "passes with branches apart have no gradients"
        q, k, v, out, lse = ctx.saved_tensors
        x = _Operands(q, k, v, out, lse, grad_out.transpose(1, 2))
        grads = (_like_tokens(q, q.shape[-1]), _like_tokens(k, k.shape[-1]), _like_tokens(v, v.shape[-1]))
        for grad in grads:
            grad[:, :, ctx.trees.trees[-1].stop :] = 0
        for tree in ctx.trees.trees:
            kernel = ctx.kernels.of(tree)
            _causal_backward(x, (tree.start, tree.trunk_stop), kernel, grads)
            if tree.branches:
                _branches_backward(x, tree, kernel, grads)
        return *grads, None, None


def _like_tokens(x: torch.Tensor, size: int) -> torch.Tensor:
    """Empty (1, H, T, size) whose memory is in token order, as the projections around it have it."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], size).transpose(1, 2)


def _causal_forward(x: _Operands, place: tuple[int, int], kernel: _Kernel) -> None:
    """Write output and log-sum-exp of a range of tokens from its attention to itself."""
    here = x.at(slice(*place), slice(*place))
    out, lse = kernel.forward(here, 0)
    here.out.copy_(out)
    here.lse.copy_(lse)


def _forward_apart(x: _Operands, tree: Tree, kernels: _Kernels) -> None:
    """Write output and log-sum-exp of a tree, each of its sequences as if the others were not there."""
    trunk = dataclasses.replace(tree, branches=())
    _causal_forward(x, (trunk.start, trunk.trunk_stop), kernels.of(trunk))
    for branch in tree.branches:
        alone = tree.alone(branch)
        _branches_forward(x, alone, kernels.of(alone))


def _branches_forward(x: _Operands, tree: Tree, kernel: _Kernel) -> None:
    """Write output and log-sum-exp of the branches of one tree."""
    seen, seen_lse = _on_prompt(x, tree, kernel)
    for branch in tree.branches:
        _causal_forward(x, branch, kernel)
    all_of_them = slice(tree.branches[0][0], tree.stop)
    out, lse = x.out[:, :, all_of_them], x.lse[:, :, all_of_them]
    both = torch.logaddexp(lse, seen_lse)
    own_share, seen_share = (torch.exp(part - both).unsqueeze(-1).to(out.dtype) for part in (lse, seen_lse))
    out.copy_(out * own_share + seen * seen_share)
    lse.copy_(both)


def _on_prompt(x: _Operands, tree: Tree, kernel: _Kernel) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of all branches of a tree that falls on its prompt."""
    prompt, offset = slice(tree.start, tree.prompt_stop), tree.prompt_stop - tree.start
    found = [kernel.forward(x.at(slice(*place), prompt), offset) for place in _calls(tree, kernel)]
    outs, lses = zip(*found, strict=True)
    return (outs[0], lses[0]) if len(found) == 1 else (torch.cat(outs, 2), torch.cat(lses, 2))


def _causal_backward(x: _Operands, place: tuple[int, int], kernel: _Kernel, grads: _Gradients) -> None:
    """Write the gradients of a range of tokens from its attention to itself."""
    here = slice(*place)
    for whole, part in zip(grads, kernel.backward(x.at(here, here), 0), strict=True):
        whole[:, :, here] = part


def _branches_backward(x: _Operands, tree: Tree, kernel: _Kernel, grads: _Gradients) -> None:
    """Write the branches' gradients and add what falls on the prompt's keys and values."""
    grad_q, grad_k, grad_v = grads
    prompt, offset = slice(tree.start, tree.prompt_stop), tree.prompt_stop - tree.start
    for branch in tree.branches:
        _causal_backward(x, branch, kernel, grads)
    for place in _calls(tree, kernel):
        on_q, on_k, on_v = kernel.backward(x.at(slice(*place), prompt), offset)
        grad_q[:, :, slice(*place)] += on_q
        grad_k[:, :, prompt] += on_k
        grad_v[:, :, prompt] += on_v


def _calls(tree: Tree, kernel: _Kernel) -> Sequence[tuple[int, int]]:
    """Ranges of queries that go to the prompt in one call: all branches, unless their positions matter."""
    if isinstance(kernel, _Flash):
        return ((tree.branches[0][0], tree.stop),)
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


def own_attention(facts: dict[str, object]) -> str:
    """Return transformers' implementation for plain passes: PyTorch's scaled dot product has no softcap (Gemma-2)."""
    return "eager" if facts.get("attn_logit_softcapping") else "sdpa"


AttentionInterface.register(NAME, tree_attention)
