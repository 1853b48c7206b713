"""Builders of what a loss takes: worked numbers and random ones, in float64."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from fusion.losses import LossInputs, SequenceLogps
from fusion.rows import (
    PreferenceSet,
    ResponseGroup,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
    group_roles,
    roles,
)

WRPO_ROLES = ("source_chosen", "target_chosen", "rejected")
MOST = 3
"""Responses in a group role of `random_inputs`."""
LEAST = {
    (PreferenceSet, "source_chosen"): 1,
    (PreferenceSet, "source_rejected"): 0,
    (ResponseGroup, "responses"): 2,
    (WeightedResponses, "responses"): 1,
    (WeightedPairs, "chosen"): 1,
    (WeightedPairs, "rejected"): 1,
}
GROUPS = ((2,), (2, 2), (3, 2), (2, 3))
"""Sizes of the groups of a WeightedGroups row, in turn."""


def logps(tokens: int | dict[str, Any] = 3, **values: Sequence) -> SequenceLogps:
    """Sums per role; `tokens` of every response, or per role. An absent response is given by 0 tokens."""
    sums = {role: torch.tensor(v, dtype=torch.float64) for role, v in values.items()}
    counts = tokens if isinstance(tokens, dict) else dict.fromkeys(sums, tokens)
    return SequenceLogps(sums, {r: torch.as_tensor(counts[r]).expand(v.shape).clone() for r, v in sums.items()})


def given(
    policy: SequenceLogps,
    reference: SequenceLogps | None = None,
    *,
    scores: dict[str, Any] | None = None,
    weights: dict[str, Any] | None = None,
    groups: dict[str, Any] | None = None,
    step: int = 0,
    total_steps: int = 1,
) -> LossInputs:
    held, shares = (
        {r: torch.tensor(v, dtype=torch.float64) for r, v in (of or {}).items()} for of in (scores, weights)
    )
    numbers = {role: torch.tensor(v) for role, v in (groups or {}).items()}
    return LossInputs(policy, reference, held, step, total_steps, weights=shares, groups=numbers)


def random_inputs(row_type: type, *, rows: int = 4, seed: int = 0, step: int = 2, total_steps: int = 5) -> LossInputs:
    """Log-probabilities between -5 and 0, 1 to 8 tokens, scores between 0 and 1; groups of different sizes, and weights
    where the row type has them."""
    generator = torch.Generator().manual_seed(seed)
    policy, reference, scores, tokens = {}, {}, {}, {}
    sizes = [GROUPS[row % len(GROUPS)] for row in range(rows)]
    for role in roles(row_type):
        most = 5 if row_type is WeightedGroups else MOST
        shape = (rows, most) if role in group_roles(row_type) else (rows,)
        present = torch.ones(shape, dtype=torch.bool)
        if row_type is WeightedGroups:
            present = torch.arange(most) < torch.tensor([[sum(size)] for size in sizes])
        elif len(shape) == 2:
            least = LEAST[row_type, role]
            held = torch.tensor([least + row % (MOST + 1 - least) for row in range(rows)])
            present = torch.arange(MOST) < held[:, None]
        for into, scale in ((policy, -5), (reference, -5), (scores, 1)):
            into[role] = scale * torch.rand(shape, generator=generator, dtype=torch.float64) * present
        tokens[role] = torch.randint(1, 9, shape, generator=generator) * present
    weights, groups = {}, {}
    if row_type is WeightedGroups:
        numbers = [[n for n, count in enumerate(size) for _ in range(count)] for size in sizes]
        groups["responses"] = torch.tensor([[*one, *[0] * (5 - len(one))] for one in numbers])
    if row_type in (WeightedResponses, WeightedPairs, WeightedGroups):
        weights = shares_of(tokens, groups, generator)
    return LossInputs(
        SequenceLogps(policy, tokens),
        SequenceLogps(reference, tokens),
        scores,
        step,
        total_steps,
        weights=weights,
        groups=groups,
    )


def shares_of(
    tokens: dict[str, torch.Tensor], groups: dict[str, torch.Tensor], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Positive weights of the members of each row, the same for all roles: they sum to 1; 0 where there is none."""
    present = next(iter(tokens.values())) > 0
    number = groups.get("responses", torch.arange(present.shape[1]).expand(present.shape))
    parts = 0.1 + torch.rand(present.shape, generator=generator, dtype=torch.float64)
    parts = parts * torch.stack([((number == n) & present).any(1) for n in range(present.shape[1])], 1)
    return dict.fromkeys(tokens, (parts / parts.sum(1, keepdim=True)).gather(1, number) * present)


def with_logps(inputs: LossInputs, sums: dict[str, torch.Tensor]) -> LossInputs:
    """The same inputs with other log-probabilities of the policy."""
    return dataclasses.replace(inputs, policy=SequenceLogps(sums, inputs.policy.num_tokens))


def row_alone(inputs: LossInputs, row: int) -> LossInputs:
    """One row as a batch of its own, its group roles only as wide as the row is."""
    assert inputs.reference is not None
    tokens = inputs.policy.num_tokens

    def cut(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        widths = {role: int((tokens[role][row] > 0).sum()) for role in values}
        return {r: v[row : row + 1, : widths[r]] if v.dim() == 2 else v[row : row + 1] for r, v in values.items()}

    policy, reference = (
        SequenceLogps(cut(dict(of.logps)), cut(dict(tokens))) for of in (inputs.policy, inputs.reference)
    )
    facts = {name: cut(dict(getattr(inputs, name))) for name in ("scores", "weights", "groups")}
    return dataclasses.replace(inputs, policy=policy, reference=reference, **facts)


def pair_of(inputs: LossInputs, chosen: str, rejected: str = "rejected") -> LossInputs:
    """Two roles of the inputs as a pair."""

    def pick(of: SequenceLogps) -> SequenceLogps:
        names = {"chosen": chosen, "rejected": rejected}
        return SequenceLogps(
            {to: of[role] for to, role in names.items()}, {to: of.num_tokens[role] for to, role in names.items()}
        )

    assert inputs.reference is not None
    return LossInputs(pick(inputs.policy), pick(inputs.reference), {}, inputs.step, inputs.total_steps)
