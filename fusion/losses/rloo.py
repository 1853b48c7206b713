"""Leave-one-out REINFORCE on a fixed group of scored responses (RLOO, Ahmadian et al. 2024, arXiv 2402.14740,
section 3; offline on source responses as in FuseRL, arXiv 2504.06562).

    A_j = r_j - mean_{k != j} r_k                            the advantages of a group sum to zero
    L   = - (1/n) * sum_j A_j * log pi_theta(y_j|x)          plain: `clip: null`

The plain form has no lower bound off-policy: a response with A_j < 0 is pushed down for ever. FuseRL does not say what
it does about it. Our choice, the default, is PPO's pessimistic clipping (arXiv 1707.06347, equation 7) against the
reference, with the log-ratio in place of the ratio, so that nothing overflows:

    l_j = log pi_theta(y_j|x) - log pi_ref(y_j|x),    c_j = clip * |y_j|
    L   = - (1/n) * sum_j min( A_j * l_j,  A_j * clamp(l_j, -c_j, c_j) )

Within the range its gradient is that of the plain form; a response that has moved by more than `clip` nats per token
in the direction of its advantage gets none. L is at least -(1/n) * sum_j |A_j| * c_j.

Symbols: y_j `responses`, r_j their scores, n responses of the row, |y_j| tokens, pi_theta `policy`, pi_ref the frozen
`reference`. The metrics `logps/chosen` and `logps/rejected` are those of the best and of the worst scored response.
Legend: B = rows of a batch, K = most responses of a row; an absent response has 0 tokens and no part in anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fusion.losses.common import BaseLoss, LossInputs, LossOutput, detached, log_ratios, mean_of_present
from fusion.rows import ResponseGroup

if TYPE_CHECKING:
    import torch


def advantages(scores_BK: torch.Tensor, present_BK: torch.Tensor) -> torch.Tensor:
    """Return (B, K) r_j - mean of the others; 0 for absent responses and for one that has no others."""
    n_B1 = present_BK.sum(1, keepdim=True)
    mean_B1 = (scores_BK * present_BK).sum(1, keepdim=True) / n_B1.clamp(min=1)
    # r_j - (n * mean - r_j) / (n - 1) = n / (n - 1) * (r_j - mean)
    return (n_B1 / (n_B1 - 1).clamp(min=1)) * (scores_BK - mean_B1) * present_BK


def rloo_loss(inputs: LossInputs, *, clip: float | None) -> LossOutput:
    """Return the loss of each group and its metrics.

    Args:
        inputs: role `responses`, (B, K), with its scores.
        clip: nats per token; None = the plain form.
    """
    import torch  # here and not above: recipes load without torch

    logps_BK, num_tokens_BK = inputs.policy["responses"], inputs.policy.num_tokens["responses"]
    present_BK, scores_BK = num_tokens_BK > 0, inputs.scores["responses"].to(logps_BK.dtype)
    advantages_BK = advantages(scores_BK, present_BK)
    best_B1 = scores_BK.where(present_BK, -torch.inf).argmax(1, keepdim=True)
    worst_B1 = scores_BK.where(present_BK, torch.inf).argmin(1, keepdim=True)
    metrics = {
        "logps/chosen": logps_BK.gather(1, best_B1).squeeze(1),
        "logps/rejected": logps_BK.gather(1, worst_B1).squeeze(1),
        "logps/responses": mean_of_present(logps_BK, num_tokens_BK),
    }
    if clip is None:
        return LossOutput(-mean_of_present(advantages_BK * logps_BK, num_tokens_BK), detached(metrics))
    ratios_BK, range_BK = (
        log_ratios(inputs.policy, inputs.reference)["responses"],
        clip * num_tokens_BK.to(logps_BK.dtype),
    )
    plain_BK = advantages_BK * ratios_BK
    clipped_BK = advantages_BK * ratios_BK.clamp(-range_BK, range_BK)
    metrics |= {
        "rewards/chosen": ratios_BK.gather(1, best_B1).squeeze(1),
        "rewards/rejected": ratios_BK.gather(1, worst_B1).squeeze(1),
        "clip_ratio/region_mean": mean_of_present(clipped_BK < plain_BK, num_tokens_BK),
    }
    metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    metrics["rewards/accuracies"] = metrics["rewards/margins"] > 0
    return LossOutput(-mean_of_present(torch.minimum(plain_BK, clipped_BK), num_tokens_BK), detached(metrics))


class RlooLoss(BaseLoss):
    """Make the better responses of a group likelier than the worse ones, in proportion to their scores."""

    row_types: ClassVar[tuple[type, ...]] = (ResponseGroup,)

    type: Literal["rloo"] = "rloo"
    clip: float | None = Field(default=0.2, gt=0)
    """Nats per token by which a response may move from the reference before its gradient stops; null = the plain form,
    which has no lower bound and needs no reference."""

    @property
    def needs_reference(self) -> bool:
        """The plain form has no use for one."""
        return self.clip is not None

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss of each row; it does not depend on the step."""
        return rloo_loss(inputs, clip=self.clip)
