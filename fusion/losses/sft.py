"""Supervised fine-tuning on responses (first stage of WRPO, arXiv 2412.03187, and of FuseChat-3.0, arXiv 2503.04222).

    L = - sum_rows w * log pi_theta(y|x) / sum_rows w * |y|

Only response tokens count, end of turn included; the mean is over the tokens of the whole global batch, so
it does not depend on how the batch is cut into micro-batches or spread over workers.

Symbols: x `prompt`, y the only role `response`, w row `weight`, |y| number of response tokens.
Legend: B = rows of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from fusion.losses.common import BaseLoss, LossInputs, LossOutput, SequenceLogps, detached
from fusion.rows import SftExample

if TYPE_CHECKING:
    import torch


def sft_loss(policy: SequenceLogps) -> LossOutput:
    """Return the negative log-likelihood of each response, summed over its tokens.

    Args:
        policy: role `response`, (B,).
    """
    nll_B = -policy["response"]
    return LossOutput(nll_B, detached({"logps/response": policy["response"]}))


class SftLoss(BaseLoss):
    """Imitate the response."""

    row_types: ClassVar[tuple[type, ...]] = (SftExample,)
    needs_reference: ClassVar[bool] = False

    type: Literal["sft"] = "sft"

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss of each row; reference and step are not used."""
        return sft_loss(inputs.policy)

    def mass(self, num_tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return each row's part of the denominator: weight times response tokens."""
        return weights * num_tokens
