"""Weighted-reward preference optimisation (arXiv 2412.03187, section 3).

    r(x, y) = beta * log( pi_theta(y|x) / pi_ref(y|x) )
    m       = alpha * r(x, y_ws) + (1 - alpha) * r(x, y_wt) - r(x, y_l)
    L       = - log sigmoid(m)

The preferred side of DPO becomes a mix of the best source response and the target's own best one. The
coefficients sum to zero, so the partition function of the reward cancels as in DPO. alpha = 0 is DPO on
(target_chosen, rejected), alpha = 1 is DPO on (source_chosen, rejected).

Symbols: y_ws `source_chosen`, y_wt `target_chosen`, y_l `rejected`, pi_theta `policy`, pi_ref `reference`
(the SFT model, frozen), `beta` > 0, `alpha` in [0, 1].
Legend: B = rows of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fusion.config import Config
from fusion.losses.common import Alpha, LossOutput, SequenceLogps, detached, log_ratios, preference_nll
from fusion.rows import PreferenceQuadruple

if TYPE_CHECKING:
    import torch


def wrpo_loss(
    policy: SequenceLogps, reference: SequenceLogps, *, beta: float, alpha: float, label_smoothing: float = 0.0
) -> LossOutput:
    """Return the WRPO loss of each row and its metrics.

    Args:
        policy, reference: roles `source_chosen`, `target_chosen` and `rejected`, each (B,).
    """
    rewards_B = {role: beta * ratio_B for role, ratio_B in log_ratios(policy, reference).items()}
    source_B, target_B, rejected_B = (rewards_B[r] for r in ("source_chosen", "target_chosen", "rejected"))
    chosen_B = alpha * source_B + (1 - alpha) * target_B  # the weighted reward of the preferred side
    margins_B = chosen_B - rejected_B
    losses_B = preference_nll(margins_B, label_smoothing)
    metrics = {
        "alpha": margins_B.new_full(margins_B.shape, alpha),
        "rewards/chosen": chosen_B,
        "rewards/source_chosen": source_B,
        "rewards/target_chosen": target_B,
        "rewards/rejected": rejected_B,
        "rewards/margins": margins_B,
        "rewards/accuracies": margins_B > 0,
        "rewards/source_accuracies": source_B > rejected_B,
        "rewards/target_accuracies": target_B > rejected_B,
        "logps/chosen": alpha * policy["source_chosen"] + (1 - alpha) * policy["target_chosen"],
        "logps/source_chosen": policy["source_chosen"],
        "logps/target_chosen": policy["target_chosen"],
        "logps/rejected": policy["rejected"],
    }
    return LossOutput(losses_B, detached(metrics))


class WrpoLoss(Config):
    """Prefer a mix of the best source response and the target's best response to the target's worst."""

    row_type: ClassVar[type] = PreferenceQuadruple
    needs_reference: ClassVar[bool] = True

    type: Literal["wrpo"] = "wrpo"
    beta: float = Field(gt=0)
    """Strength of the pull towards the reference model; the paper uses 0.01."""
    alpha: Alpha
    """Share of the source response: a number, or `{from: 0.0, to: 0.1}` for a ramp over the optimizer steps."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of preference labels taken to be wrong; 0 is plain WRPO."""

    def __call__(
        self, policy: SequenceLogps, reference: SequenceLogps | None, *, step: int, total_steps: int
    ) -> LossOutput:
        """Return the loss of each row with the alpha of optimizer step `step` (0-based) of `total_steps`."""
        assert reference is not None
        alpha = self.alpha.at(step, total_steps)
        return wrpo_loss(policy, reference, beta=self.beta, alpha=alpha, label_smoothing=self.label_smoothing)

    def mass(self, num_tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return each row's part of the denominator: its weight, so that the loss is a mean over rows."""
        return weights
