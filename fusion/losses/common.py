"""What every loss takes and gives: log-probabilities per role in, one loss per row out; and schedules of alpha.

The one idea: a loss sees a row only as one summed log-probability per role. Everything here keeps the
shape `(B,)`, so that no row can meet another one by broadcasting (two of the published trainers compare
`(B,)` with `(B, 1)` and report accuracies across rows).

Legend: B = rows of a batch; `_B` marks tensors of that shape; values are in nats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from fusion.config import Config

if TYPE_CHECKING:
    import torch  # annotations only: recipes are planned on machines without torch


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceLogps:
    """Per role, the log-probability of each row's response and its number of tokens.

    Example: a batch of two pairs has `logps["chosen"]` of shape (2,) and `logps["rejected"]` of shape (2,).
    """

    logps: Mapping[str, torch.Tensor]
    """role -> (B,) sums over response tokens of log pi(token | everything before it), float."""
    num_tokens: Mapping[str, torch.Tensor]
    """role -> (B,) number of response tokens summed."""

    def __post_init__(self) -> None:
        assert self.logps, "no role"
        assert self.logps.keys() == self.num_tokens.keys(), (set(self.logps), set(self.num_tokens))
        shapes = {tuple(t.shape) for t in (*self.logps.values(), *self.num_tokens.values())}
        assert len(shapes) == 1 and len(next(iter(shapes))) == 1, f"all roles must be (B,), got {sorted(shapes)}"

    def __getitem__(self, role: str) -> torch.Tensor:
        return self.logps[role]


@dataclasses.dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss gives for a batch."""

    losses_B: torch.Tensor
    """(B,) loss of each row, not yet weighted nor averaged: the loop divides by the mass of the global batch."""
    metrics: Mapping[str, torch.Tensor]
    """name -> (B,) detached values; the loop averages them over all rows of all ranks."""


# ---- schedules of alpha -----------------------------------------------------------------------


class ConstantAlpha(Config):
    """The same alpha at every step."""

    type: Literal["constant"] = "constant"
    value: float = Field(ge=0, le=1)
    """Share of the source response in the preferred side."""

    def at(self, step: int, total_steps: int) -> float:
        """Return alpha at optimizer step `step` (0-based) of `total_steps`."""
        return self.value


class LinearAlpha(Config):
    """alpha moves on a straight line; the first step has exactly `from`, the last exactly `to`.

    The published code uses t / N, so that its last step never reaches the end point; here it is t / (N - 1).
    """

    model_config = ConfigDict(validate_by_alias=True, validate_by_name=True, serialize_by_alias=True)

    type: Literal["linear"] = "linear"
    from_: float = Field(alias="from", ge=0, le=1)
    """alpha of the first optimizer step."""
    to: float = Field(ge=0, le=1)
    """alpha of the last optimizer step."""

    def at(self, step: int, total_steps: int) -> float:
        """Return alpha at optimizer step `step` (0-based) of `total_steps`; a run of one step has `from`."""
        last = total_steps - 1
        if step <= 0 or last <= 0:
            return self.from_
        if step >= last:
            return self.to
        return self.from_ + (self.to - self.from_) * step / last


def _spelt_short(value: Any) -> Any:
    """Read `alpha: 0.3` as constant and `alpha: {from: 0, to: 0.5}` as linear."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return {"type": "constant", "value": value}
    if isinstance(value, dict) and "type" not in value:
        return {"type": "constant" if "value" in value else "linear", **value}
    return value


Alpha = Annotated[
    Annotated[ConstantAlpha | LinearAlpha, Field(discriminator="type")],
    BeforeValidator(_spelt_short, json_schema_input_type=float | dict[str, Any]),
]


def learning_rate_weighted_mean_alpha(alpha: ConstantAlpha | LinearAlpha, learning_rates: Sequence[float]) -> float:
    """Return sum(lr_t * alpha_t) / sum(lr_t): the alpha that the updates have seen on average.

    With warmup and cosine decay a ramp from 0 to `a` amounts to about 0.34 * a, so a constant alpha must be
    compared with this number and not with the end point. `learning_rates[t]` is the rate of step t; where
    all are zero the plain mean is returned.
    """
    assert learning_rates, "no steps"
    values = [alpha.at(step, len(learning_rates)) for step in range(len(learning_rates))]
    total = sum(learning_rates)
    if total == 0:
        return sum(values) / len(values)
    return sum(rate * value for rate, value in zip(learning_rates, values, strict=True)) / total


# ---- what preference losses share -------------------------------------------------------------


def log_ratios(policy: SequenceLogps, reference: SequenceLogps) -> dict[str, torch.Tensor]:
    """Return role -> (B,) log pi_theta(y|x) - log pi_ref(y|x)."""
    return {role: policy[role] - reference[role] for role in policy.logps}


def preference_nll(margins_B: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Return (B,) -log sigmoid(m), or with label smoothing e the mix (1 - e) * -log s(m) + e * -log s(-m).

    Smoothing is the conservative DPO of Mitchell (2023): a share e of the labels is taken to be flipped.
    """
    from torch.nn.functional import logsigmoid  # here and not above: recipes load without torch

    nll_B = -logsigmoid(margins_B)
    if label_smoothing == 0:
        return nll_B
    return (1 - label_smoothing) * nll_B - label_smoothing * logsigmoid(-margins_B)


def detached(metrics: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the metrics cut from the graph, as floats."""
    return {name: value.detach().float() for name, value in metrics.items()}
