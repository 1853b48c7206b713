"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7), summed log-probabilities.

    L = - log sigmoid( r(x, y_w) - r(x, y_l) ),    r(x, y) = beta * log( pi_theta(y|x) / pi_ref(y|x) )

Symbols: y_w `chosen`, y_l `rejected`, pi_theta `policy`, pi_ref the frozen `reference`, beta the strength of
the pull towards the reference. The gradient is -beta * sigmoid(-m) * [d log pi(y_w) - d log pi(y_l)].
Legend: B = rows of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fusion.config import Config
from fusion.losses.common import LossOutput, SequenceLogps, detached, log_ratios, preference_nll
from fusion.rows import PreferencePair

if TYPE_CHECKING:
    import torch


def dpo_loss(
    policy: SequenceLogps, reference: SequenceLogps, *, beta: float, label_smoothing: float = 0.0
) -> LossOutput:
    """Return the DPO loss of each row and its metrics.

    Args:
        policy, reference: roles `chosen` and `rejected`, each (B,).
    """
    rewards_B = {role: beta * ratio_B for role, ratio_B in log_ratios(policy, reference).items()}
    margins_B = rewards_B["chosen"] - rewards_B["rejected"]
    losses_B = preference_nll(margins_B, label_smoothing)  # eq. 7
    metrics = {
        "rewards/chosen": rewards_B["chosen"],
        "rewards/rejected": rewards_B["rejected"],
        "rewards/margins": margins_B,
        "rewards/accuracies": margins_B > 0,
        "logps/chosen": policy["chosen"],
        "logps/rejected": policy["rejected"],
    }
    return LossOutput(losses_B, detached(metrics))


class DpoLoss(Config):
    """Prefer `chosen` to `rejected`."""

    row_type: ClassVar[type] = PreferencePair
    needs_reference: ClassVar[bool] = True

    type: Literal["dpo"] = "dpo"
    beta: float = Field(gt=0)
    """Strength of the pull towards the reference model; the papers use 0.01 to 0.1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of preference labels taken to be wrong; 0 is plain DPO."""

    def __call__(
        self, policy: SequenceLogps, reference: SequenceLogps | None, *, step: int, total_steps: int
    ) -> LossOutput:
        """Return the loss of each row; it does not depend on the step."""
        assert reference is not None
        return dpo_loss(policy, reference, beta=self.beta, label_smoothing=self.label_smoothing)

    def mass(self, num_tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return each row's part of the denominator: its weight, so that the loss is a mean over rows."""
        return weights
