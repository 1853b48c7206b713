"""Whether training learns length: per-row numbers that a step adds up, and what is made of their means.

Offline training samples nothing, so "answers grow longer" cannot be seen. What can be seen is how the model has moved
the probabilities of the responses that it trains on. With z = log pi_theta(y|x) - log pi_ref(y|x) in nats and
l = tokens of a response:

- tilt: among the responses of one row, weights softmax(z) are how the model has re-weighted them since the start,
  where all weights were equal. `lengths/tilt` is the mean length under these weights over the plain mean length,
  minus 1: +0.1 = the model now favours responses that are 10 % longer than the row's average.
- `lengths/shortest` and `lengths/longest` are the same with all weight on the shortest, or longest, preferred response
  of each row: what the data ask for. They are equal where a row prefers one response. A tilt outside of the range of
  these two and 0 is length and not preference: long rejected responses are favoured too.
- `lengths/correlation` is Pearson's r over the rows of the step between the margin (mean z of the preferred minus mean
  z of the rejected responses) and the difference of their lengths.

Preferred roles end in `chosen`, the others in `rejected`; rows without both (SFT, RLOO groups) give nothing. A role
with several responses per row, (B, K), counts with the mean over those that exist, weighted where the row's pairs are.
"""

import math
from collections.abc import Mapping

import torch

from fusion.losses import LossInputs, SequenceLogps

PREFIX = "_lengths/"
"""Of the sums that `derive` turns into metrics; none is written."""
MIN_ROWS = 4
"""A correlation over fewer rows says nothing."""
MIN_SPREAD = 1e-3
"""Nats. Margins that differ less than this between rows are rounding, as at the first step."""


def row_sums(inputs: LossInputs) -> dict[str, torch.Tensor]:
    """Return name -> (B,) detached values, to be averaged over all rows of the step like a loss's metrics.

    Empty where the loss has no reference or its rows have no two sides.

    Example: one pair with z = (0, 0) and lengths (30, 10) gives tilted 20, plain 20, shortest 30, longest 30,
    margin 0 and difference 20.
    """
    sides = [[role for role in inputs.policy.logps if role.endswith(end)] for end in ("chosen", "rejected")]
    if inputs.reference is None or not all(sides):
        return {}
    ratios, lengths = _flat(inputs.policy, inputs.reference)
    z_BN = torch.cat([ratios[role] for role in (*sides[0], *sides[1])], dim=1)
    l_BN = torch.cat([lengths[role] for role in (*sides[0], *sides[1])], dim=1)
    there_BN = l_BN > 0
    weights_BN = torch.softmax(z_BN.masked_fill(~there_BN, -math.inf), dim=1)
    chosen_BN = torch.cat([lengths[role] for role in sides[0]], dim=1)
    shares = {role: inputs.weights_of(role).to(z_BN.dtype).reshape(lengths[role].shape) for role in lengths}
    preferred_z_B, preferred_l_B = _means(ratios, lengths, shares, sides[0])
    rejected_z_B, rejected_l_B = _means(ratios, lengths, shares, sides[1])
    margin_B, difference_B = preferred_z_B - rejected_z_B, preferred_l_B - rejected_l_B
    values = {
        "tilted": (weights_BN * l_BN).sum(1),
        "plain": l_BN.sum(1) / there_BN.sum(1),
        "shortest": chosen_BN.masked_fill(chosen_BN == 0, math.inf).amin(1),
        "longest": chosen_BN.amax(1),
        "m": margin_B,
        "d": difference_B,
        "mm": margin_B**2,
        "dd": difference_B**2,
        "md": margin_B * difference_B,
    }
    return {PREFIX + name: value_B.detach() for name, value_B in values.items()}


def _flat(policy: SequenceLogps, reference: SequenceLogps) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """role -> (B, K) log-ratios and lengths in double precision; K = 1 for roles with one response."""
    ratios, lengths = {}, {}
    for role, logps in policy.logps.items():
        rows = len(logps)
        ratios[role] = (logps.detach().double() - reference[role].double()).reshape(rows, -1)
        lengths[role] = policy.num_tokens[role].to(logps.device).double().reshape(rows, -1)
    return ratios, lengths


def _means(
    ratios: Mapping[str, torch.Tensor],
    lengths: Mapping[str, torch.Tensor],
    shares: Mapping[str, torch.Tensor],
    roles: list[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) mean log-ratio and mean length, weighted by the shares, over the responses that a row has in the given roles."""
    z_BN = torch.cat([ratios[role] for role in roles], dim=1)
    l_BN = torch.cat([lengths[role] for role in roles], dim=1)
    shares_BN = torch.cat([shares[role] for role in roles], dim=1)
    total_B = shares_BN.sum(1)
    return (z_BN * shares_BN).sum(1) / total_B, (l_BN * shares_BN).sum(1) / total_B


def derive(metrics: Mapping[str, float], *, num_rows: int) -> dict[str, float]:
    """Replace the means of `row_sums` over `num_rows` rows by `lengths/tilt`, `shortest`, `longest` and `correlation`.

    The correlation is left out where it is not defined. Other metrics pass through.
    """
    kept = {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}
    mean = {name.removeprefix(PREFIX): value for name, value in metrics.items() if name.startswith(PREFIX)}
    if not mean or not all(math.isfinite(value) for value in mean.values()):
        return kept
    for name, of in (("tilt", "tilted"), ("shortest", "shortest"), ("longest", "longest")):
        kept[f"lengths/{name}"] = mean[of] / mean["plain"] - 1
    margins, differences = mean["mm"] - mean["m"] ** 2, mean["dd"] - mean["d"] ** 2  # variances over the rows
    if num_rows >= MIN_ROWS and margins > MIN_SPREAD**2 and differences > 1e-9:
        correlation = (mean["md"] - mean["m"] * mean["d"]) / math.sqrt(margins * differences)
        kept["lengths/correlation"] = max(-1.0, min(1.0, correlation))
    return kept
