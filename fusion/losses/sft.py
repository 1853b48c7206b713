"""Supervised fine-tuning on responses (first stage of WRPO, arXiv 2412.03187, and of FuseChat-3.0, arXiv 2503.04222),
and on several responses of a prompt with weights (FuseSFT, arXiv 2504.06562).

    L = - (1/Z) * sum_x w_x * sum_i w_xi * log pi_theta(y_i|x),    Z = sum_x w_x * sum_i w_xi * |y_i|

Only response tokens count, end of turn included. The mean is over the whole global batch, so it does not depend on how
the batch is cut into micro-batches or spread over workers. A row with one response has w_xi = 1, and then this is plain
fine-tuning, by the same lines.

FuseSFT's Z is printed in two ways (1/K and 1/L), and whether a response counts with the sum or the mean over its tokens
was not found. So `normalise` says which mean is meant:

- `tokens`, the default: as above, the weighted mean over tokens. It is what plain fine-tuning does.
- `responses`: log pi_theta(y_i|x) / |y_i| in place of log pi_theta(y_i|x), and Z = sum_x w_x: every prompt counts once,
  however long its answers are. So does the code of a co-author that has weights (two responses of a prompt, 0.9 and 0.1).
- `sums`: as above with Z = sum_x w_x, the formula as it stands, as a mean over prompts; long answers count more.

Example: a prompt with answers of -6 nats over 3 tokens and -4 over 1 token, w = (0.75, 0.25): the weighted sum is
0.75 * 6 + 0.25 * 4 = 5.5 nats over 0.75 * 3 + 0.25 * 1 = 2.5 tokens, so `tokens` gives 2.2; `responses` gives
0.75 * 2 + 0.25 * 4 = 2.5; `sums` gives 5.5.

Symbols: x `prompt`, y_i the responses, role `response` where a row has one and `responses` where it has several, w_x row
`weight`, w_xi `weights`, which sum to 1, |y| number of response tokens.
Legend: B = rows of a batch, K = most responses of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from fusion.losses.common import BaseLoss, LossInputs, LossOutput, detached, per_token, weighted_sum
from fusion.rows import SftExample, WeightedResponses

if TYPE_CHECKING:
    import torch


def sft_loss(inputs: LossInputs, *, averaged: bool) -> LossOutput:
    """Return the negative log-likelihood of each row: the weighted sum over its responses.

    Args:
        inputs: the one role `response`, (B,), or `responses`, (B, K), with weights.
        averaged: whether a response counts with its mean per token, or with its sum over tokens.
    """
    policy = inputs.policy
    (role,) = policy.logps
    weights = inputs.weights_of(role)
    logps = per_token(policy.logps, policy.num_tokens) if averaged else policy.logps
    return LossOutput(
        -weighted_sum(logps[role], weights), detached({"logps/response": weighted_sum(policy[role], weights)})
    )


class SftLoss(BaseLoss):
    """Imitate the response, or each of several in proportion to its weight."""

    row_types: ClassVar[tuple[type, ...]] = (SftExample, WeightedResponses)
    needs_reference: ClassVar[bool] = False

    type: Literal["sft"] = "sft"
    normalise: Literal["tokens", "responses", "sums"] = "tokens"
    """What the loss is a mean over: response tokens, or rows with each response's mean or sum over its tokens."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss of each row; reference and step are not used."""
        return sft_loss(inputs, averaged=self.normalise == "responses")

    def mass(self, num_tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return each row's part of the denominator: its weight, times its weighted response tokens for their mean."""
        return weights * num_tokens if self.normalise == "tokens" else weights
