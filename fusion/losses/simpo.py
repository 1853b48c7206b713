"""Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734, equation 6); it needs no reference model.

    L = - log sigmoid( r(x, y_w) - r(x, y_l) - gamma ),    r(x, y) = (beta / |y|) * log pi_theta(y|x)

gamma is a margin of rewards inside the sigmoid, as in the paper and in TRL; the paper's own scripts are given the ratio
gamma / beta, which is another number.

Symbols: y_w `chosen`, y_l `rejected`, |y| number of response tokens, pi_theta `policy`. The metric `rewards/margins` is
without gamma.
Legend: B = rows of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fusion.losses.common import SequenceLogps, per_token
from fusion.losses.preference import LogisticObjective, PairLoss, logistic_losses

if TYPE_CHECKING:
    import torch


def simpo_rewards(policy: SequenceLogps, *, beta: float) -> dict[str, torch.Tensor]:
    """Return role -> (beta / |y|) * log pi_theta, eq. 4."""
    return {role: beta * mean for role, mean in per_token(policy.logps, policy.num_tokens).items()}


class Simpo(LogisticObjective):
    """The objective, for pairs and for WRPO."""

    needs_reference: ClassVar[bool] = False

    beta: float = Field(gt=0)
    """Scale of the rewards; the papers use 2 to 10."""
    gamma: float = Field(ge=0)
    """Margin by which the preferred reward must lead, inside the sigmoid and not divided by beta; WRPO's authors use 0
    for WRPO and 1 for pairs."""

    def rewards(self, policy: SequenceLogps, reference: SequenceLogps | None) -> dict[str, torch.Tensor]:
        """Return the scaled log-probabilities per token; the reference is not used."""
        return simpo_rewards(policy, beta=self.beta)

    def losses(self, margins: torch.Tensor) -> torch.Tensor:
        """Return the logistic loss of what each margin has above gamma, eq. 6."""
        return logistic_losses(margins - self.gamma, self.label_smoothing)


class SimpoLoss(PairLoss, Simpo):
    """Prefer `chosen` to `rejected` by a margin, without a reference."""

    type: Literal["simpo"] = "simpo"
