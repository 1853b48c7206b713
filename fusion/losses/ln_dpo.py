"""Length-normalised DPO (FuseChat-3.0, arXiv 2503.04222): DPO on log-ratios per token.

    L = - log sigmoid( r(x, y_w) - r(x, y_l) ),    r(x, y) = (beta / |y|) * log( pi_theta(y|x) / pi_ref(y|x) )

Where both responses have L tokens it is DPO with beta / L; so beta is hundreds of times that of DPO (FuseChat-3.0
uses 10), and long responses do not win by their length.

Symbols: y_w `chosen`, y_l `rejected`, |y| number of response tokens, end of turn included, pi_theta `policy`, pi_ref
the frozen `reference`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fusion.losses.common import SequenceLogps, log_ratios, per_token
from fusion.losses.preference import LogisticObjective, PairLoss

if TYPE_CHECKING:
    import torch


def ln_dpo_rewards(policy: SequenceLogps, reference: SequenceLogps | None, *, beta: float) -> dict[str, torch.Tensor]:
    """Return role -> (beta / |y|) * log(pi_theta / pi_ref)."""
    means = per_token(log_ratios(policy, reference), policy.num_tokens)
    return {role: beta * mean for role, mean in means.items()}


class LnDpo(LogisticObjective):
    """The objective, for pairs and for WRPO."""

    beta: float = Field(gt=0)
    """Strength of the pull towards the reference model, per mean token; FuseChat-3.0 uses 10."""

    def rewards(self, policy: SequenceLogps, reference: SequenceLogps | None) -> dict[str, torch.Tensor]:
        """Return the implicit rewards per token."""
        return ln_dpo_rewards(policy, reference, beta=self.beta)


class LnDpoLoss(PairLoss, LnDpo):
    """Prefer `chosen` to `rejected`, both per token."""

    type: Literal["ln_dpo"] = "ln_dpo"
