"""Leave-one-out REINFORCE on fixed groups of scored responses (RLOO, Ahmadian et al. 2024, arXiv 2402.14740, section 3;
offline on source responses as in FuseRL, arXiv 2504.06562).

    A_j = r_j - mean_{k != j} r_k                            the advantages of a group sum to zero
    L   = - (1/n) * sum_j A_j * log pi_theta(y_j|x)          plain: `clip: null`

The plain form has no lower bound off-policy: a response with A_j < 0 is pushed down for ever. FuseRL does not say what
it does about it. Our choice, the default, is PPO's pessimistic clipping (arXiv 1707.06347, equation 7) against the
reference, with the log-ratio in place of the ratio, so that nothing overflows:

    l_j = log pi_theta(y_j|x) - log pi_ref(y_j|x),    c_j = clip * |y_j|
    L   = - (1/n) * sum_j min( A_j * l_j,  A_j * clamp(l_j, -c_j, c_j) )

Within the range its gradient is that of the plain form; a response that has moved by more than `clip` nats per token
in the direction of its advantage gets none. L is at least -(1/n) * sum_j |A_j| * c_j.

With `kl` the penalty of RLOO (section 3, R = r - beta * l) holds the policy instead. It needs no samples of the policy, since
what leave-one-out does with such rewards, A_j of R in place of A_j of r, is the gradient of a function that is never
negative: the variance (that of a sample, n - 1) of the penalised scores of the group,

    L = 1/(2 kl) * Var_j( r_j - kl * l_j ),        dL = - (1/n) * sum_j A_j(r - kl * l) * d log pi_theta(y_j|x)

which is 0 where l_j = r_j / kl up to a number of the prompt's, the optimum of reward with KL penalty on these responses
(for pairs the squared form of arXiv 2406.19185). At the start, l = 0, the gradient is that of the plain form.

A row of FusePO has a group of responses per source, each compared within itself, and the weighted sum of their losses:

    L = sum_i w_i * L_i,    sum_i w_i = 1

Two more things that FuseRL leaves open are options. `advantages: normalised` divides the advantages of a group by the
standard deviation of its scores (that of a sample, n - 1; as GRPO, arXiv 2402.03300, section 4.1.2), so that groups count
alike whatever the spread of their scores. `per: token` takes log-probabilities, log-ratios and the range per token, log
pi_theta / |y_j|, l_j / |y_j| and `clip`, so that long responses do not count more.

Example: a first group with scores 3 and 1, advantages 2 and -2, and log-probabilities -5 and -7 has the plain loss
-(2 * -5 + -2 * -7) / 2 = -2; a second one with scores 0, 1 and 2, advantages -1.5, 0 and 1.5, and log-probabilities -4,
-3 and -2 has -(-1.5 * -4 + 1.5 * -2) / 3 = -1; with w = (0.75, 0.25) the row has 0.75 * -2 + 0.25 * -1 = -1.75. With `kl`
0.5 and log-ratios 2 and 0 the first group has penalised scores 2 and 1, Var 0.5, and the loss 0.5 / (2 * 0.5) = 0.5.

Symbols: y_j `responses`, r_j their scores, n responses of the group, |y_j| tokens, w_i the groups' shares of the row,
pi_theta `policy`, pi_ref the frozen `reference`. The metrics are weighted sums over the groups; `logps/chosen` and
`logps/rejected` are those of the best and of the worst scored response of a group.
Legend: B = rows of a batch, K = most responses of a row, G = most groups of a row; an absent response has 0 tokens and no
part in anything, an absent group has only such and the weight 0.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from fusion.config import later_field
from fusion.losses.common import (
    BaseLoss,
    LossInputs,
    LossOutput,
    SequenceLogps,
    detached,
    log_ratios,
    mean_of_present,
    weighted_sum,
)
from fusion.rows import ResponseGroup, WeightedGroups

if TYPE_CHECKING:
    import torch

ROLE = "responses"
TINY = 1e-6
"""Added to a standard deviation before something is divided by it, in units of the score."""


def centred(scores_BK: torch.Tensor, present_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (B, K) present scores minus their mean, 0 for absent ones; and (B, 1) numbers of responses n and n - 1, at least 1."""
    n_B1 = present_BK.sum(1, keepdim=True)
    mean_B1 = (scores_BK * present_BK).sum(1, keepdim=True) / n_B1.clamp(min=1)
    return (scores_BK - mean_B1) * present_BK, n_B1, (n_B1 - 1).clamp(min=1)


def leave_one_out(scores_BK: torch.Tensor, present_BK: torch.Tensor) -> torch.Tensor:
    """Return (B, K) advantages r_j - mean of the others; 0 for absent responses and for one that has no others."""
    centred_BK, n_B1, others_B1 = centred(scores_BK, present_BK)
    return (n_B1 / others_B1) * centred_BK  # r_j - (n * mean - r_j) / (n - 1) = n / (n - 1) * (r_j - mean)


def variances(scores_BK: torch.Tensor, present_BK: torch.Tensor) -> torch.Tensor:
    """Return (B, 1) variances of the present scores, as of a sample (n - 1); 0 where all are alike, or one is alone."""
    centred_BK, _, others_B1 = centred(scores_BK, present_BK)
    return (centred_BK**2).sum(1, keepdim=True) / others_B1


def group_loss(
    inputs: LossInputs, *, clip: float | None, kl: float | None, normalised: bool, averaged: bool
) -> LossOutput:
    """Return the loss of each group and its metrics.

    Args:
        inputs: role `responses`, (B, K), with its scores; a row is one group.
        clip: nats per token; None with no `kl` = the plain form.
        kl: score per nat; None = no penalty. One of the two at most.
        normalised: whether scores are divided by the standard deviation of the group's.
        averaged: whether a response counts with its mean per token, or with its sum over tokens.
    """
    import torch  # here and not above: recipes load without torch

    logps_BK, num_tokens_BK = inputs.policy[ROLE], inputs.policy.num_tokens[ROLE]
    present_BK, scores_BK = num_tokens_BK > 0, inputs.scores[ROLE].to(logps_BK.dtype)
    unit_B1 = variances(scores_BK, present_BK).sqrt() + TINY if normalised else 1
    tokens_BK = num_tokens_BK.clamp(min=1) if averaged else 1  # what log-probabilities are counted per
    advantages_BK = leave_one_out(scores_BK, present_BK) / unit_B1 / tokens_BK
    best_B1 = scores_BK.where(present_BK, -torch.inf).argmax(1, keepdim=True)
    worst_B1 = scores_BK.where(present_BK, torch.inf).argmin(1, keepdim=True)
    metrics = {
        "logps/chosen": logps_BK.gather(1, best_B1).squeeze(1),
        "logps/rejected": logps_BK.gather(1, worst_B1).squeeze(1),
        "logps/responses": mean_of_present(logps_BK, num_tokens_BK),
    }
    if clip is None and kl is None:
        return LossOutput(-mean_of_present(advantages_BK * logps_BK, num_tokens_BK), detached(metrics))
    ratios_BK = log_ratios(inputs.policy, inputs.reference)[ROLE]
    metrics |= {
        "rewards/chosen": ratios_BK.gather(1, best_B1).squeeze(1),
        "rewards/rejected": ratios_BK.gather(1, worst_B1).squeeze(1),
    }
    metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    metrics["rewards/accuracies"] = metrics["rewards/margins"] > 0
    if kl is not None:
        penalised_BK = scores_BK / unit_B1 - kl * ratios_BK / tokens_BK
        return LossOutput(variances(penalised_BK, present_BK).squeeze(1) / (2 * kl), detached(metrics))
    assert clip is not None  # the plain form is done above
    range_BK = clip * num_tokens_BK.to(logps_BK.dtype)
    plain_BK = advantages_BK * ratios_BK
    clipped_BK = advantages_BK * ratios_BK.clamp(-range_BK, range_BK)
    metrics["clip_ratio/region_mean"] = mean_of_present(clipped_BK < plain_BK, num_tokens_BK)
    return LossOutput(-mean_of_present(torch.minimum(plain_BK, clipped_BK), num_tokens_BK), detached(metrics))


def by_group(inputs: LossInputs) -> tuple[LossInputs, torch.Tensor]:
    """Return the groups as rows of their own, B * G of them in the order of the rows, and (B, G) shares of their rows.

    A group is as wide as its row, (B * G, K), with the responses of other groups absent.
    """
    import torch  # as above

    policy, shape = inputs.policy, inputs.policy[ROLE].shape
    # Groups have two responses or more, so a row has K / 2 of them at most; to ask the data would wait for the GPU.
    numbers_G = torch.arange(max(1, shape[1] // 2), device=policy[ROLE].device)
    member_BGK = (inputs.groups_of(ROLE)[:, None] == numbers_G[:, None]) & (policy.num_tokens[ROLE] > 0)[:, None]

    def spread(values_BK: torch.Tensor) -> torch.Tensor:
        return values_BK[:, None].where(member_BGK, 0).flatten(0, 1)

    def each(of: SequenceLogps) -> SequenceLogps:
        return SequenceLogps({ROLE: spread(of[ROLE])}, {ROLE: spread(of.num_tokens[ROLE])})

    groups = dataclasses.replace(
        inputs,
        policy=each(policy),
        reference=inputs.reference and each(inputs.reference),
        scores={ROLE: spread(inputs.scores[ROLE])},
        weights={},
        groups={},
    )
    weights_BGK = inputs.weights_of(ROLE)[:, None] * member_BGK  # all of a group have the same
    return groups, weights_BGK.amax(2)


def rloo_loss(
    inputs: LossInputs, *, clip: float | None, kl: float | None, normalised: bool, averaged: bool
) -> LossOutput:
    """Return the loss of each row and its metrics, both of them weighted sums over the row's groups.

    Args:
        inputs: role `responses`, (B, K), with its scores, and the weights and groups of rows with several groups.
    """
    groups, weights_BG = by_group(inputs)
    output = group_loss(groups, clip=clip, kl=kl, normalised=normalised, averaged=averaged)

    def over_groups(values: torch.Tensor) -> torch.Tensor:
        return weighted_sum(values.reshape(weights_BG.shape), weights_BG)

    metrics = {name: over_groups(values) for name, values in output.metrics.items()}
    return LossOutput(over_groups(output.losses_B), detached(metrics))


class RlooLoss(BaseLoss):
    """Make the better responses of a group likelier than the worse ones, in proportion to their scores."""

    row_types: ClassVar[tuple[type, ...]] = (ResponseGroup, WeightedGroups)

    type: Literal["rloo"] = "rloo"
    clip: float | None = Field(default=0.2, gt=0)
    """Nats per token by which a response may move from the reference before its gradient stops; null without `kl` = the
    plain form, which has no lower bound and needs no reference. With `kl` it is null."""
    kl: float | None = later_field(None, gt=0)
    """Score that a nat of log-ratio to the reference costs, the beta of RLOO's penalty; it stands in for `clip`."""
    advantages: Literal["plain", "normalised"] = "plain"
    """Advantages in units of the score, or divided by the standard deviation of their group's scores."""
    per: Literal["sequence", "token"] = "sequence"
    """Whether a response counts with its log-probability summed over its tokens or with the mean per token."""

    @model_validator(mode="before")
    @classmethod
    def _one_hold(cls, data: Any) -> Any:
        """Take `kl` without a word of `clip` as `clip: null`, and refuse both."""
        if not isinstance(data, dict) or data.get("kl") is None:
            return data
        if data.get("clip") is not None:
            raise ValueError("clip and kl are two ways to hold the policy near its reference; give one of them")
        return {**data, "clip": None}

    @property
    def needs_reference(self) -> bool:
        """The plain form has no use for one."""
        return self.clip is not None or self.kl is not None

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss of each row; it does not depend on the step."""
        return rloo_loss(
            inputs,
            clip=self.clip,
            kl=self.kl,
            normalised=self.advantages == "normalised",
            averaged=self.per == "token",
        )
