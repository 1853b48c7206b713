"""Passes in which a prompt is encoded once for all its responses, and no bit of a score depends on the others.

The one idea: a conversation is cut where its answer begins, and the cut depends on this conversation alone. What lies
before is the trunk of a tree, shared by all conversations of a call that begin with the same ids; what follows is a
branch with attention calls of its own (`Trees.apart`). All else in a decoder works token by token, and matrix
products give the same bits for a row whatever the number of rows, as long as it is not tiny. That last is a habit of
CPU libraries and no promise, so `classifier.py` tries it on the loaded model before it relies on it.

Legend: T tokens of a pass, N tokens that are read, S conversations, P places that are read of each.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from fusion.packed.trees import ALIGNMENT, Tree, Trees, at_least
from fusion.rewards.common import Tokens


@dataclasses.dataclass(frozen=True, slots=True)
class SharedPass:
    """The tensors of one forward pass."""

    items: tuple[int, ...]
    """Which conversations it scores, (S,) indices into the list that was planned."""
    ids_1T: torch.Tensor
    positions_1T: torch.Tensor
    trees: Trees
    read_SP: torch.Tensor
    """Places of the tokens of each conversation whose hidden states are read."""
    needed_N: torch.Tensor
    """The distinct places of `read_SP`, ascending, filled up to a multiple of 8."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """Conversations that begin with the same ids."""

    prompt: tuple[int, ...]
    items: tuple[int, ...]
    num_tokens: int


def plan_passes(
    conversations: Sequence[Tokens], read: Sequence[tuple[int, ...]], *, tokens_per_forward: int
) -> Iterator[SharedPass]:
    """Yield passes that score every conversation once, longest trees first, so that memory runs out at once or never.

    Args:
        conversations: ids, with the place where the answer begins.
        read: which positions of each are read; as many of every one.
        tokens_per_forward: most tokens of a pass; a single conversation may be longer.
    """
    groups = sorted(_groups(conversations, tokens_per_forward), key=lambda group: -group.num_tokens)
    taken: list[_Group] = []
    size = 0
    for group in groups:
        if taken and size + group.num_tokens > tokens_per_forward:
            yield _lay_out(taken, conversations, read)
            taken, size = [], 0
        taken.append(group)
        size += group.num_tokens
    if taken:
        yield _lay_out(taken, conversations, read)


def _groups(conversations: Sequence[Tokens], tokens_per_forward: int) -> Iterator[_Group]:
    """Yield the groups, each no larger than a pass where that can be had."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for item, tokens in enumerate(conversations):
        by_prompt.setdefault(tokens.prompt, []).append(item)
    for prompt, items in by_prompt.items():
        taken: list[int] = []
        size = len(prompt)
        for item in items:
            own = len(conversations[item].answer)
            if taken and size + own > tokens_per_forward:
                yield _Group(prompt, tuple(taken), size)
                taken, size = [], len(prompt)
            taken.append(item)
            size += own
        yield _Group(prompt, tuple(taken), size)


def _lay_out(groups: Sequence[_Group], conversations: Sequence[Tokens], read: Sequence[tuple[int, ...]]) -> SharedPass:
    ids: list[Sequence[int]] = []
    positions: list[np.ndarray] = []
    trees, items, places = [], [], []
    at = 0
    for group in groups:
        start, length = at, len(group.prompt)
        ids.append(group.prompt)
        positions.append(np.arange(length))
        at += length
        branches = []
        for item in group.items:
            answer = conversations[item].answer
            # What lies before the answer is read from the prompt, which its other answers read too.
            places.append([at + p - length if p >= length else start + p for p in read[item]])
            items.append(item)
            if answer:
                ids.append(answer)
                positions.append(np.arange(length, length + len(answer)))
                branches.append((at, at + len(answer)))
                at += len(answer)
        trees.append(Tree(start, start + length, start + length, tuple(branches)))
    filling = -at % ALIGNMENT
    ids.append([0] * filling)
    positions.append(np.zeros(filling, np.int64))
    needed = np.unique(np.array(places))
    needed = at_least(needed, len(needed) + -len(needed) % ALIGNMENT)
    return SharedPass(
        items=tuple(items),
        ids_1T=torch.tensor([token for part in ids for token in part], dtype=torch.long)[None],
        positions_1T=torch.from_numpy(np.concatenate(positions))[None],
        trees=Trees(tuple(trees), at + filling, apart=True),
        read_SP=torch.tensor(places),
        needed_N=torch.from_numpy(needed),
    )
