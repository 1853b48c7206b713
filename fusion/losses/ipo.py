"""Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, equation 17).

    L = ( lr(x, y_w) - lr(x, y_l) - 1 / (2 tau) )^2,    lr(x, y) = log( pi_theta(y|x) / pi_ref(y|x) )

The margin is pulled to 1 / (2 tau) and not beyond, so the loss does not run away on labels without noise. The paper's
formula has whole responses, that is sums over tokens, and so has WRPO's table of methods (arXiv 2412.03187, table 5):
the default. TRL divides each log-ratio by its number of tokens and says that the authors did the same: `averaged`. A tau
that fits one does not fit the other.

Symbols: y_w `chosen`, y_l `rejected`, pi_theta `policy`, pi_ref the frozen `reference`. The metrics `rewards/...` are
the log-ratios that are compared, without tau.
Legend: B = rows of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fusion.losses.common import SequenceLogps, log_ratios, per_token
from fusion.losses.preference import Objective, PairLoss

if TYPE_CHECKING:
    import torch


def ipo_losses(margins: torch.Tensor, *, tau: float) -> torch.Tensor:
    """Return the squared distances of the margins from 1 / (2 tau), eq. 17; the shape is kept."""
    return (margins - 1 / (2 * tau)) ** 2


class Ipo(Objective):
    """The objective, for pairs and for WRPO."""

    tau: float = Field(gt=0)
    """Strength of the pull towards the reference model: margins are pulled to 1 / (2 tau); WRPO's authors use 0.01."""
    log_ratios: Literal["summed", "averaged"] = "summed"
    """Log-ratios summed over a response's tokens, as in the paper, or averaged over them, as in TRL."""

    def rewards(self, policy: SequenceLogps, reference: SequenceLogps | None) -> dict[str, torch.Tensor]:
        """Return the log-ratios."""
        ratios = log_ratios(policy, reference)
        return ratios if self.log_ratios == "summed" else per_token(ratios, policy.num_tokens)

    def losses(self, margins: torch.Tensor) -> torch.Tensor:
        """Return the squared distance of each margin from its goal."""
        return ipo_losses(margins, tau=self.tau)


class IpoLoss(PairLoss, Ipo):
    """Prefer `chosen` to `rejected` by a margin of 1 / (2 tau)."""

    type: Literal["ipo"] = "ipo"
