"""What the preference losses share: an objective gives rewards of responses and losses of margins.

The one idea: DPO, length-normalised DPO, IPO and SimPO differ in two functions only,

    r = rewards(log pi_theta, log pi_ref)        one number per response
    L = losses(m) + nll_weight * NLL             m a difference of rewards, one number per row

and a pair takes m = r(x, y_w) - r(x, y_l), while WRPO takes m of a mix of rewards (wrpo.py). So each objective is
said once, in its own file, and pairs and WRPO use the same lines.

Symbols: y_w `chosen`, y_l `rejected`, NLL = -log pi_theta(y_w|x) / |y_w| the mean per token of the chosen response,
the term that keeps its probability from falling (RPO, arXiv 2404.19733, equation 1).
Legend: B = rows of a batch; role values are (B,) or (B, K), K = most responses of a row in that role.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fusion.config import Config
from fusion.losses.common import BaseLoss, LossInputs, LossOutput, SequenceLogps, detached, per_token
from fusion.rows import PreferencePair

if TYPE_CHECKING:
    import torch


def logistic_losses(margins_B: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Return (B,) -log sigmoid(m), or with label smoothing e the mix (1 - e) * -log s(m) + e * -log s(-m).

    Smoothing is the conservative DPO of Mitchell (2023): a share e of the labels is taken to be flipped.
    """
    from torch.nn.functional import logsigmoid  # here and not above: recipes load without torch

    losses_B = -logsigmoid(margins_B)
    if label_smoothing == 0:
        return losses_B
    return (1 - label_smoothing) * losses_B - label_smoothing * logsigmoid(-margins_B)


class Objective(Config):
    """Rewards of responses and losses of margins, with the numbers that both need."""

    needs_reference: ClassVar[bool] = True

    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen responses' mean negative log-likelihood per token, added to the loss; 0 = without."""

    @abc.abstractmethod
    def rewards(self, policy: SequenceLogps, reference: SequenceLogps | None) -> dict[str, torch.Tensor]:
        """Return role -> reward of each response, in the shapes of `policy`; 0 for an absent response."""

    @abc.abstractmethod
    def losses(self, margins_B: torch.Tensor) -> torch.Tensor:
        """Return (B,) losses of (B,) margins."""


class LogisticObjective(Objective):
    """An objective whose loss is -log sigmoid(m)."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of preference labels taken to be wrong; 0 is the plain loss."""

    def losses(self, margins_B: torch.Tensor) -> torch.Tensor:
        """Return the logistic loss of each margin."""
        return logistic_losses(margins_B, self.label_smoothing)


def with_nll(
    objective: Objective, margins_B: torch.Tensor, nll_B: torch.Tensor, metrics: Mapping[str, torch.Tensor]
) -> LossOutput:
    """Return the objective's losses, with the NLL of the chosen side added and logged where it has a weight."""
    losses_B = objective.losses(margins_B)
    if objective.nll_weight > 0:
        losses_B = losses_B + objective.nll_weight * nll_B
        metrics = {**metrics, "nll_loss": nll_B}
    return LossOutput(losses_B, detached(metrics))


def pair_loss(inputs: LossInputs, *, objective: Objective) -> LossOutput:
    """Return the loss of each pair and its metrics.

    Args:
        inputs: roles `chosen` and `rejected`, each (B,).
    """
    policy = inputs.policy
    rewards_B = objective.rewards(policy, inputs.reference)
    margins_B = rewards_B["chosen"] - rewards_B["rejected"]
    metrics = {
        "rewards/chosen": rewards_B["chosen"],
        "rewards/rejected": rewards_B["rejected"],
        "rewards/margins": margins_B,
        "rewards/accuracies": margins_B > 0,
        "logps/chosen": policy["chosen"],
        "logps/rejected": policy["rejected"],
    }
    return with_nll(objective, margins_B, -per_token(policy.logps, policy.num_tokens)["chosen"], metrics)


class PairLoss(Objective, BaseLoss):
    """A preference objective on pairs."""

    row_types: ClassVar[tuple[type, ...]] = (PreferencePair,)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss of each row; it does not depend on the step."""
        return pair_loss(inputs, objective=self)
