"""Weighted-reward preference optimisation (arXiv 2412.03187, section 3), over DPO, LN-DPO, IPO or SimPO.

    m = alpha * mean_K r(x, y_ws) + (1 - alpha) * r(x, y_wt) - r(x, y_l)
    L = losses(m)                                 with r and losses of the objective; over DPO -log sigmoid(m)

The preferred side of a pair becomes a mix of the best source responses and the target's own best one. The
coefficients sum to zero, so the partition function of the reward cancels as in DPO. alpha = 0 is the objective on
(target_chosen, rejected), alpha = 1 that on (source_chosen, rejected). The paper has one source response; K of them
share alpha equally (our generalisation). Rows with source responses to avoid have the paper's "w/ y_ls",

    m = alpha * mean_K r(x, y_ws) + (1 - alpha) * r(x, y_wt) - [ alpha * mean_N r(x, y_ls) + (1 - alpha) * r(x, y_l) ]

whose formula the paper does not print: this is the form that mirrors the preferred side.

`mix: losses` mixes the losses of two comparisons in place of the rewards of one preferred side, m_y = r(y) - what is rejected,

    L = alpha * mean_K losses(m_ws) + (1 - alpha) * losses(m_wt)

With alpha = 0.5 over DPO it is the other branch of the published trainer, the mean of two DPO losses. At alpha 0 and 1 both
mixes are one; in between this one is larger, since the losses are convex, and each comparison keeps a gradient of its own.
Example: DPO with beta 0.5, alpha 0.25 and log-ratios y_ws 4, y_wt -2, y_l 1 has margins 1.5 and -1.5. Mixed rewards: m = -0.75,
L = 1.1369; mixed losses: 0.25 * 0.2014 + 0.75 * 1.7014 = 1.3264.

Symbols: y_ws `source_chosen`, y_wt `target_chosen`, y_ls `source_rejected`, y_l `rejected`, all of the row types
PreferenceQuadruple and PreferenceSet; `alpha` in [0, 1].
Legend: B = rows of a batch; group roles are (B, K) with their own K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fusion.config import later_field
from fusion.losses.alpha import Alpha, learning_rate_weighted_mean_alphas
from fusion.losses.common import BaseLoss, LossInputs, LossOutput, mean_of_present, per_token
from fusion.losses.dpo import Dpo
from fusion.losses.ipo import Ipo
from fusion.losses.ln_dpo import LnDpo
from fusion.losses.preference import Objective, with_nll
from fusion.losses.simpo import Simpo
from fusion.rows import PreferenceQuadruple, PreferenceSet

if TYPE_CHECKING:
    import torch

EXTRA = "source_rejected"


def wrpo_loss(
    inputs: LossInputs, *, objective: Objective, alpha: float, mix: Literal["rewards", "losses"]
) -> LossOutput:
    """Return the WRPO loss of each row and its metrics; margins and accuracies are of the mixed rewards with either mix.

    Args:
        inputs: roles `source_chosen`, (B,) or (B, K), `target_chosen` and `rejected`, (B,), and of PreferenceSet rows
            `source_rejected`, (B, N), where N may be 0.
    """
    policy = inputs.policy
    rewards, num_tokens = objective.rewards(policy, inputs.reference), policy.num_tokens

    def preferred(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        source_B = mean_of_present(values["source_chosen"], num_tokens["source_chosen"])
        return alpha * source_B + (1 - alpha) * values["target_chosen"]

    def rejected(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if EXTRA not in values:
            return values["rejected"]
        mixed_B = alpha * mean_of_present(values[EXTRA], num_tokens[EXTRA]) + (1 - alpha) * values["rejected"]
        return mixed_B.where((num_tokens[EXTRA] > 0).any(1), values["rejected"])

    chosen_B, rejected_B = preferred(rewards), rejected(rewards)
    margins_B = chosen_B - rejected_B  # the weighted rewards of both sides
    worst_B, source = rewards["rejected"], rewards["source_chosen"]

    def beside_source(values_B: torch.Tensor) -> torch.Tensor:
        return values_B if source.dim() == 1 else values_B[:, None]

    beaten = source > beside_source(worst_B)
    metrics = {
        "alpha": margins_B.new_full(margins_B.shape, alpha),
        "rewards/chosen": chosen_B,
        "rewards/source_chosen": mean_of_present(source, num_tokens["source_chosen"]),
        "rewards/target_chosen": rewards["target_chosen"],
        "rewards/rejected": rejected_B,
        "rewards/margins": margins_B,
        "rewards/accuracies": margins_B > 0,
        "rewards/source_accuracies": mean_of_present(beaten, num_tokens["source_chosen"]),
        "rewards/target_accuracies": rewards["target_chosen"] > worst_B,
        "logps/chosen": preferred(policy.logps),
        "logps/source_chosen": mean_of_present(policy["source_chosen"], num_tokens["source_chosen"]),
        "logps/target_chosen": policy["target_chosen"],
        "logps/rejected": rejected(policy.logps),
    }
    if mix == "rewards":
        losses_B = objective.losses(margins_B)
    else:
        apart = {
            "source_chosen": source - beside_source(rejected_B),
            "target_chosen": rewards["target_chosen"] - rejected_B,
        }
        losses_B = preferred({role: objective.losses(margins) for role, margins in apart.items()})
    nll_B = -preferred(per_token(policy.logps, num_tokens))
    return with_nll(objective, losses_B, nll_B, metrics | _extra_metrics(inputs, rewards))


def _extra_metrics(inputs: LossInputs, rewards: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parts of the rejected side; in rows without source responses to avoid, `rejected` is all of it."""
    policy = inputs.policy
    if EXTRA not in policy.logps:
        return {}
    num_tokens = policy.num_tokens[EXTRA]
    metrics = {}
    for kind, values in (("rewards", rewards), ("logps", policy.logps)):
        mean_B = mean_of_present(values[EXTRA], num_tokens)
        metrics[f"{kind}/source_rejected"] = mean_B.where((num_tokens > 0).any(1), values["rejected"])
        metrics[f"{kind}/target_rejected"] = values["rejected"]
    return metrics


class WrpoBase(Objective, BaseLoss):
    """Prefer a mix of the best source responses and the target's best response to the target's worst."""

    row_types: ClassVar[tuple[type, ...]] = (PreferenceQuadruple, PreferenceSet)

    type: Literal["wrpo"] = "wrpo"
    alpha: Alpha
    """Share of the source responses: a number, or `{from: 0.0, to: 0.1}` for a straight ramp over the optimizer steps."""
    mix: Literal["rewards", "losses"] = later_field("rewards")
    """What alpha mixes: the rewards of the preferred side, as the paper does, or the losses of two comparisons."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the loss of each row with the alpha of the optimizer step."""
        alpha = self.alpha.value_at(inputs.step, inputs.total_steps)
        return wrpo_loss(inputs, objective=self, alpha=alpha, mix=self.mix)

    def schedule_metrics(self, learning_rates: Sequence[float]) -> dict[str, list[float]]:
        """Return the alpha that the updates have seen on average, after each step."""
        return {"alpha_lr_weighted_mean": learning_rate_weighted_mean_alphas(self.alpha, learning_rates)}


class WrpoLoss(WrpoBase, Dpo):
    """WRPO over DPO, the paper's own."""

    objective: Literal["dpo"] = "dpo"


class WrpoLnDpoLoss(WrpoBase, LnDpo):
    """WRPO over length-normalised DPO."""

    objective: Literal["ln_dpo"] = "ln_dpo"


class WrpoIpoLoss(WrpoBase, Ipo):
    """WRPO over IPO (table 5 of the paper)."""

    objective: Literal["ipo"] = "ipo"


class WrpoSimpoLoss(WrpoBase, Simpo):
    """WRPO over SimPO (table 5 of the paper); it needs no reference."""

    objective: Literal["simpo"] = "simpo"


AnyWrpo = Annotated[WrpoLoss | WrpoLnDpoLoss | WrpoIpoLoss | WrpoSimpoLoss, Field(discriminator="objective")]
