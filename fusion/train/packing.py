"""One forward pass as tensors: every row's prompt once, its responses packed after it.

The one idea: a row is the sequence [prompt, response 1, response 2, ...]. The prompt and response 1 (the longest) are
one causal segment, the *trunk*; every other response is a *branch*, which attends to the prompt's keys and values
and to itself, and whose positions start again at the prompt's end. So K responses cost P + R_1 + ... + R_K tokens
instead of K * P + R_1 + ... + R_K (prefix sharing as in arXiv 2410.20305).

Three layouts, from fast to safe, all with the same numbers per response:

- `shared`: as above;
- `packed`: each response has its own copy of the prompt, all in one row without padding;
- `padded`: one response per batch row, padded on the right, with the model's own attention.

Legend: T tokens of the pass, S responses (row by row, roles in field order), N response tokens of all S, B rows of
data, K responses of a group role, W batch rows of the tensors (1 unless padded).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch

from fusion.losses import SequenceLogps
from fusion.packed.trees import ALIGNMENT, LEAST_ROWS, Tree, Trees, at_least
from fusion.train.encode import Encoded, EncodedRow


class Layout(StrEnum):
    """How responses share a forward pass; see the module."""

    shared = "shared"
    packed = "packed"
    padded = "padded"


@dataclasses.dataclass(frozen=True, slots=True)
class PackedBatch:
    """The tensors of one forward pass of one worker."""

    ids_WT: torch.Tensor
    positions_WT: torch.Tensor
    mask_WT: torch.Tensor | None
    """1 on real tokens; padded layout only."""
    trees: Trees | None
    """None in the padded layout."""
    predict_N: torch.Tensor
    """Where, in the flattened (W * T) tokens, each response token is predicted: one token before its own. The last
    token of a shared prompt occurs once per response."""
    needed: torch.Tensor | None
    """The distinct places of `predict_N`, ascending: all that is read of the last layer. None in the padded layout."""
    target_N: torch.Tensor
    """The response tokens."""
    num_tokens_S: tuple[int, ...]
    """Response tokens of each response."""
    responses_B: tuple[int, ...]
    """Responses of each row."""
    index: Mapping[str, torch.Tensor]
    """role -> (B,) or (B, K) which of the S responses it is; -1 = the row has none there."""
    num_tokens: Mapping[str, torch.Tensor]
    """role -> (B,) or (B, K) response tokens, `num_tokens_S` by role; 0 = the row has no such response."""

    @property
    def num_rows(self) -> int:
        return len(self.responses_B)

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the batch with its tensors on `device`."""
        if device.type == "cpu":
            return self
        moved = {
            f: getattr(self, f).to(device, non_blocking=True)
            for f in ("ids_WT", "positions_WT", "predict_N", "target_N")
        }
        mask = None if self.mask_WT is None else self.mask_WT.to(device, non_blocking=True)
        needed = None if self.needed is None else self.needed.to(device, non_blocking=True)
        index = {role: places.to(device, non_blocking=True) for role, places in self.index.items()}
        num_tokens = {role: counts.to(device, non_blocking=True) for role, counts in self.num_tokens.items()}
        return dataclasses.replace(self, mask_WT=mask, needed=needed, index=index, num_tokens=num_tokens, **moved)

    def response_starts(self) -> np.ndarray:
        """(B + 1,) first response of each row, and their number."""
        return np.concatenate([[0], np.cumsum(self.responses_B)])

    def by_role(self, logps_S: torch.Tensor, start: int = 0, stop: int | None = None) -> SequenceLogps:
        """Return the log-probabilities of rows `start` to `stop` by role.

        Args:
            logps_S: of the responses of these rows only.
        """
        stop = self.num_rows if stop is None else stop
        starts = self.response_starts()
        first, last = int(starts[start]), int(starts[stop])
        assert len(logps_S) == last - first, (len(logps_S), first, last)
        places = {role: at[start:stop] - first * (at[start:stop] >= 0) for role, at in self.index.items()}
        num_tokens = {role: counts[start:stop] for role, counts in self.num_tokens.items()}
        return SequenceLogps(_by_role(logps_S, places), num_tokens)


def _by_role(values_S: torch.Tensor, index: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return role -> values of the responses at these places; 0 at place -1, where a row has none."""
    padded = torch.cat([values_S, values_S.new_zeros(1)])  # place -1 is the last one
    return {role: padded[places] for role, places in index.items()}


def row_sizes(data: Encoded, layout: Layout) -> np.ndarray:
    """Return (rows,) tokens that each row takes in a pass; a padded one may take more beside longer rows."""
    match layout:
        case Layout.shared:
            return data.num_shared_tokens
        case Layout.packed:
            return data.num_tokens
        case Layout.padded:
            return data.longest * data.num_responses


def pack(
    rows: Sequence[EncodedRow], *, layout: Layout, group_roles: frozenset[str] = frozenset(), pad_id: int = 0
) -> PackedBatch:
    """Lay out rows for one forward pass.

    Args:
        rows: of one row type.
        group_roles: roles of that type that hold any number of responses; their index is (B, K).
    """
    responses = [[ids for group in row.responses.values() for ids in group] for row in rows]
    if layout is Layout.padded:
        tokens = _spread_padded(rows, responses, pad_id=pad_id)
    else:
        tokens = _spread_packed(rows, responses, shared=layout is Layout.shared, pad_id=pad_id)
    targets = [ids for own in responses for ids in own]
    counts = [len(ids) for ids in targets]
    index = _index(rows, group_roles)
    return PackedBatch(
        *tokens,
        target_N=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        num_tokens_S=tuple(counts),
        responses_B=tuple(len(own) for own in responses),
        index=index,
        num_tokens=_by_role(torch.tensor(counts), index),
    )


class _Tokens(NamedTuple):
    """The first fields of a PackedBatch."""

    ids_WT: torch.Tensor
    positions_WT: torch.Tensor
    mask_WT: torch.Tensor | None
    trees: Trees | None
    predict_N: torch.Tensor
    needed: torch.Tensor | None


def _index(rows: Sequence[EncodedRow], group_roles: frozenset[str]) -> dict[str, torch.Tensor]:
    first = 0
    places: dict[str, list[list[int]]] = {role: [] for role in rows[0].responses}
    for row in rows:
        for role, group in row.responses.items():
            places[role].append(list(range(first, first + len(group))))
            first += len(group)
    found = {}
    for role, lists in places.items():
        width = max(map(len, lists))
        table = torch.tensor([[*one, *[-1] * (width - len(one))] for one in lists], dtype=torch.int64)
        found[role] = table.reshape(len(rows), width) if role in group_roles else table[:, 0]
    return found


def _spread_packed(
    rows: Sequence[EncodedRow], responses: list[list[np.ndarray]], *, shared: bool, pad_id: int
) -> _Tokens:
    ids, positions, trees = [], [], []
    predict: list[np.ndarray] = []
    at = 0
    for row, own in zip(rows, responses, strict=True):
        if shared:
            at = _add_tree(row.prompt_ids, own, at, ids, positions, trees, predict)
        else:
            for response in own:
                at = _add_tree(row.prompt_ids, [response], at, ids, positions, trees, predict)
    filling = -at % ALIGNMENT
    ids.append(np.full(filling, pad_id, np.int64))
    positions.append(np.zeros(filling, np.int64))
    return _Tokens(
        torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        torch.from_numpy(np.concatenate(positions))[None],
        None,
        Trees(tuple(trees), at + filling),
        torch.from_numpy(places := np.concatenate(predict)),
        torch.from_numpy(at_least(np.unique(places), LEAST_ROWS)),
    )


def _add_tree(
    prompt: np.ndarray,
    responses: list[np.ndarray],
    at: int,
    ids: list[np.ndarray],
    positions: list[np.ndarray],
    trees: list[Tree],
    predict: list[np.ndarray],
) -> int:
    """Append one tree that starts at token `at`; return where it stops."""
    prompt_stop = at + len(prompt)
    order = sorted(range(len(responses)), key=lambda r: -len(responses[r]))  # the longest first: it is the trunk
    ids.append(prompt)
    positions.append(np.arange(len(prompt) + len(responses[order[0]])))
    ranges, where = [], prompt_stop
    own: list[np.ndarray] = [np.empty(0)] * len(responses)
    for place, r in enumerate(order):
        response = responses[r]
        ids.append(response)
        if place:
            positions.append(np.arange(len(prompt), len(prompt) + len(response)))
        # The first token is predicted by the prompt's last one, the others by the token before them.
        own[r] = np.arange(where - 1, where + len(response) - 1)
        own[r][0] = prompt_stop - 1
        ranges.append((where, where + len(response)))
        where += len(response)
    predict.extend(own)
    trees.append(Tree(at, prompt_stop, ranges[0][1], tuple(ranges[1:])))
    return where


def _spread_padded(rows: Sequence[EncodedRow], responses: list[list[np.ndarray]], *, pad_id: int) -> _Tokens:
    sequences = [(row.prompt_ids, ids) for row, own in zip(rows, responses, strict=True) for ids in own]
    width = max(len(prompt) + len(ids) for prompt, ids in sequences)
    ids_WT = np.full((len(sequences), width), pad_id, np.int64)
    mask_WT = np.zeros((len(sequences), width), np.int64)
    predict = []
    for w, (prompt, ids) in enumerate(sequences):
        stop = len(prompt) + len(ids)
        ids_WT[w, :stop] = np.concatenate([prompt, ids])
        mask_WT[w, :stop] = 1
        predict.append(w * width + np.arange(len(prompt) - 1, stop - 1))
    return _Tokens(
        torch.from_numpy(ids_WT),
        torch.arange(width).expand(len(sequences), width),
        torch.from_numpy(mask_WT),
        None,
        torch.from_numpy(np.concatenate(predict)),
        None,
    )
