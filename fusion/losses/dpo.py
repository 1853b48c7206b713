"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7), summed log-probabilities.

    L = - log sigmoid( r(x, y_w) - r(x, y_l) ),    r(x, y) = beta * log( pi_theta(y|x) / pi_ref(y|x) )

Symbols: y_w `chosen`, y_l `rejected`, pi_theta `policy`, pi_ref the frozen `reference`, beta the strength of
the pull towards the reference. The gradient is -beta * sigmoid(-m) * [d log pi(y_w) - d log pi(y_l)].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fusion.losses.common import SequenceLogps, log_ratios
from fusion.losses.preference import LogisticObjective, PairLoss

if TYPE_CHECKING:
    import torch


def dpo_rewards(policy: SequenceLogps, reference: SequenceLogps | None, *, beta: float) -> dict[str, torch.Tensor]:
    """Return role -> beta * log(pi_theta / pi_ref): eq. 5 without the partition function, which cancels in margins."""
    return {role: beta * ratios for role, ratios in log_ratios(policy, reference).items()}


class Dpo(LogisticObjective):
    """The objective, for pairs and for WRPO."""

    beta: float = Field(gt=0)
    """Strength of the pull towards the reference model; the papers use 0.01 to 0.1."""

    def rewards(self, policy: SequenceLogps, reference: SequenceLogps | None) -> dict[str, torch.Tensor]:
        """Return the implicit rewards."""
        return dpo_rewards(policy, reference, beta=self.beta)


class DpoLoss(PairLoss, Dpo):
    """Prefer `chosen` to `rejected`."""

    type: Literal["dpo"] = "dpo"
