"""What every loss takes and gives: log-probabilities per role in, one loss per row out.

The one idea: a loss sees a row only as one summed log-probability per response. A role with one response per row
has the shape `(B,)`, a role with several `(B, K)`, and what a loss returns is `(B,)`, so that no row can meet another
one by broadcasting (two of the published trainers compare `(B,)` with `(B, 1)` and report accuracies across rows).

Legend: B = rows of a batch, K = most responses that a row of the batch has in a group role (rows with fewer are
filled with responses of 0 tokens and log-probability 0); values are in nats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from fusion.config import Config

if TYPE_CHECKING:
    import torch  # annotations only: recipes are planned on machines without torch


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceLogps:
    """Per role, the log-probability of each row's responses and their numbers of tokens.

    Example: a batch of two pairs has `logps["chosen"]` of shape (2,) and `logps["rejected"]` of shape (2,); a batch of
    two groups with 3 and 5 responses has `logps["responses"]` of shape (2, 5), whose first row ends in two zeros.
    """

    logps: Mapping[str, torch.Tensor]
    """role -> (B,) or (B, K) sums over response tokens of log pi(token | everything before it), float."""
    num_tokens: Mapping[str, torch.Tensor]
    """role -> (B,) or (B, K) number of response tokens summed; 0 = the row has no such response."""

    def __post_init__(self) -> None:
        assert self.logps, "no role"
        assert self.logps.keys() == self.num_tokens.keys(), (set(self.logps), set(self.num_tokens))
        for role, values in self.logps.items():
            assert values.shape == self.num_tokens[role].shape and values.dim() in (1, 2), (
                f"{role} must be (B,) or (B, K), got {tuple(values.shape)} and {tuple(self.num_tokens[role].shape)}"
            )
        rows = {len(t) for t in self.logps.values()}
        assert len(rows) == 1, f"all roles must have the same rows, got {sorted(rows)}"

    def __getitem__(self, role: str) -> torch.Tensor:
        return self.logps[role]

    def rows(self, start: int, stop: int) -> SequenceLogps:
        """Return the rows `start` to `stop` (exclusive)."""
        return SequenceLogps(
            {role: values[start:stop] for role, values in self.logps.items()},
            {role: values[start:stop] for role, values in self.num_tokens.items()},
        )


@dataclasses.dataclass(frozen=True, slots=True)
class LossInputs:
    """Everything that a loss may look at."""

    policy: SequenceLogps
    reference: SequenceLogps | None
    """Of the frozen start of the training; None where the loss needs none."""
    scores: Mapping[str, torch.Tensor]
    """role -> (B,) or (B, K) what the scorer gave to each response; 0 where a row has no such response."""
    step: int
    """Optimizer steps done before this one."""
    total_steps: int
    """Optimizer steps of the whole training."""
    weights: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """role -> (B,) or (B, K) share of its row that each response has, 0 where a row has no such response; the shares of a
    row of FuseRL sum to 1. Roles that are left out have 1 for each response, as all of other row types."""
    groups: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """role -> (B,) or (B, K) number of the group that each response belongs to, from 0; 0 where a row has no such
    response, and for roles that are left out."""

    def weights_of(self, role: str) -> torch.Tensor:
        """Return (B,) or (B, K) shares of a role's responses, of the dtype of the log-probabilities."""
        like = self.policy[role]
        return self.weights.get(role, self.policy.num_tokens[role] > 0).to(like.dtype)

    def groups_of(self, role: str) -> torch.Tensor:
        """Return (B,) or (B, K) numbers of a role's groups."""
        num_tokens = self.policy.num_tokens[role]
        return self.groups.get(role, num_tokens.new_zeros(num_tokens.shape))


@dataclasses.dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss gives for a batch."""

    losses_B: torch.Tensor
    """(B,) loss of each row, not yet weighted nor averaged: the loop divides by the mass of the global batch."""
    metrics: Mapping[str, torch.Tensor]
    """name -> (B,) detached values; the loop averages them over all rows of all ranks."""


class BaseLoss(Config):
    """What the training loop may ask of every loss besides calling it; `needs_reference` each loss says itself."""

    row_types: ClassVar[tuple[type, ...]]
    """Rows that the loss reads."""

    def mass(self, num_tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return each row's part of the denominator: its weight, so that the loss is a mean over rows.

        Args:
            num_tokens: (B,) response tokens of each row, all roles together, each response's times its share of the row.
            weights: (B,) weights of the rows.
        """
        return weights

    def schedule_metrics(self, learning_rates: Sequence[float]) -> dict[str, list[float]]:
        """Return name -> value after each step, of what is to be logged of the loss's own schedules; often nothing.

        Args:
            learning_rates: of every step of the training.
        """
        return {}


def per_token(values: Mapping[str, torch.Tensor], num_tokens: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return role -> value divided by the number of response tokens, 0 for an absent response; shapes are kept."""
    return {role: value / num_tokens[role].clamp(min=1) for role, value in values.items()}


def log_ratios(policy: SequenceLogps, reference: SequenceLogps | None) -> dict[str, torch.Tensor]:
    """Return role -> log pi_theta(y|x) - log pi_ref(y|x), summed over tokens; shapes are kept."""
    assert reference is not None, "this loss needs the log-probabilities of the reference"
    return {role: policy[role] - reference[role] for role in policy.logps}


def mean_of_present(values: torch.Tensor, num_tokens: torch.Tensor) -> torch.Tensor:
    """Return (B,) means over the responses that a row has in a role; 0 where it has none.

    Args:
        values, num_tokens: (B, K), or (B,) of a role with one response, which is its own mean.
    """
    if values.dim() == 1:
        return values
    present_BK = num_tokens > 0
    return (values * present_BK).sum(1) / present_BK.sum(1).clamp(min=1)


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return (B,) sums over the responses of a role, each times its share of the row.

    Args:
        values, weights: (B, K); or (B,) of a role with one response, which is all of its row and its own sum.
    """
    if values.dim() == 1:
        return values
    return (values * weights).sum(1)


def detached(metrics: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the metrics cut from the graph, as floats."""
    return {name: value.detach().float() for name, value in metrics.items()}
