"""What the preference losses share: an objective gives rewards of responses and losses of margins.

The one idea: DPO, length-normalised DPO, IPO and SimPO differ in two functions only,

    r = rewards(log pi_theta, log pi_ref)        one number per response
    L = losses(m) + nll_weight * NLL             m a difference of rewards, one number per row

and a pair takes m = r(x, y_w) - r(x, y_l), while WRPO takes m of a mix of rewards (wrpo.py). So each objective is
said once, in its own file, and pairs and WRPO use the same lines. A row with several pairs (FusePO, arXiv 2504.06562)
has the weighted sum of their losses, not the loss of a mix,

    L = sum_i w_i * L_i,    sum_i w_i = 1

which is inferred from the abstract ("weighted preferences"); the formula itself was not found. With one pair it is that
pair's loss, bit for bit. Example: DPO with beta 0.5 and log-ratios (2, -1) and (-1, 1) of two pairs has margins 1.5 and -1,
losses 0.2014 and 1.3133, and with w = (0.75, 0.25) the row's loss is 0.1511 + 0.3283 = 0.4794; its metric
`rewards/margins` is 0.75 * 1.5 + 0.25 * -1 = 0.875, and `rewards/accuracies` 0.75.

Symbols: y_w `chosen`, y_l `rejected`, w_i shares of the row, NLL = -log pi_theta(y_w|x) / |y_w| the mean per token of
the chosen response, the term that keeps its probability from falling (RPO, arXiv 2404.19733, equation 1).
Legend: B = rows of a batch; role values are (B,) or (B, K), K = most responses of a row in that role.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fusion.config import Config
from fusion.losses.common import BaseLoss, LossInputs, LossOutput, SequenceLogps, detached, per_token, weighted_sum
from fusion.rows import PreferencePair, WeightedPairs

if TYPE_CHECKING:
    import torch


def logistic_losses(margins: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Return -log sigmoid(m) in the shape of the margins, or with label smoothing e the mix (1 - e) * -log s(m) + e * -log s(-m).

    Smoothing is the conservative DPO of Mitchell (2023): a share e of the labels is taken to be flipped.
    """
    from torch.nn.functional import logsigmoid  # here and not above: recipes load without torch

    losses = -logsigmoid(margins)
    if label_smoothing == 0:
        return losses
    return (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-margins)


class Objective(Config):
    """Rewards of responses and losses of margins, with the numbers that both need."""

    needs_reference: ClassVar[bool] = True

    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen responses' mean negative log-likelihood per token, added to the loss; 0 = without."""

    @abc.abstractmethod
    def rewards(self, policy: SequenceLogps, reference: SequenceLogps | None) -> dict[str, torch.Tensor]:
        """Return role -> reward of each response, in the shapes of `policy`; 0 for an absent response."""

    @abc.abstractmethod
    def losses(self, margins: torch.Tensor) -> torch.Tensor:
        """Return the loss of each margin, in the shape of the margins, (B,) or (B, K)."""


class LogisticObjective(Objective):
    """An objective whose loss is -log sigmoid(m)."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of preference labels taken to be wrong; 0 is the plain loss."""

    def losses(self, margins: torch.Tensor) -> torch.Tensor:
        """Return the logistic loss of each margin."""
        return logistic_losses(margins, self.label_smoothing)


def with_nll(
    objective: Objective, losses_B: torch.Tensor, nll_B: torch.Tensor, metrics: Mapping[str, torch.Tensor]
) -> LossOutput:
    """Return the losses, with the NLL of the chosen side added and logged where the objective gives it a weight."""
    if objective.nll_weight > 0:
        losses_B = losses_B + objective.nll_weight * nll_B
        metrics = {**metrics, "nll_loss": nll_B}
    return LossOutput(losses_B, detached(metrics))


def pair_loss(inputs: LossInputs, *, objective: Objective) -> LossOutput:
    """Return the loss of each row and its metrics, both of them weighted sums over the row's pairs.

    Args:
        inputs: roles `chosen` and `rejected`, each (B,), or (B, K) with the weights of the pairs; pair k of a row is
            `chosen` k against `rejected` k.
    """
    policy, weights = inputs.policy, inputs.weights_of("chosen")
    rewards = objective.rewards(policy, inputs.reference)
    margins = rewards["chosen"] - rewards["rejected"]
    of_pairs = {
        "rewards/chosen": rewards["chosen"],
        "rewards/rejected": rewards["rejected"],
        "rewards/margins": margins,
        "rewards/accuracies": margins > 0,
        "logps/chosen": policy["chosen"],
        "logps/rejected": policy["rejected"],
    }
    metrics = {name: weighted_sum(values, weights) for name, values in of_pairs.items()}
    losses_B = weighted_sum(objective.losses(margins), weights)
    nll_B = weighted_sum(-per_token(policy.logps, policy.num_tokens)["chosen"], weights)
    return with_nll(objective, losses_B, nll_B, metrics)


class PairLoss(Objective, BaseLoss):
    """A preference objective on pairs: one of a row, or several with weights."""

    row_types: ClassVar[tuple[type, ...]] = (PreferencePair, WeightedPairs)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss of each row; it does not depend on the step."""
        return pair_loss(inputs, objective=self)
