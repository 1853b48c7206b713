"""FuseRL's losses (arXiv 2504.06562) by hand, and against plain fine-tuning and preference optimisation."""

import dataclasses
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fusion.losses import (  # noqa: E402
    DpoLoss,
    IpoLoss,
    LnDpoLoss,
    LossInputs,
    RlooLoss,
    SequenceLogps,
    SftLoss,
    SimpoLoss,
)
from fusion.rows import (  # noqa: E402
    PreferencePair,
    ResponseGroup,
    SftExample,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
)
from loss_inputs import given, logps, random_inputs, with_logps  # noqa: E402

SFT = [SftLoss(), SftLoss(normalise="responses"), SftLoss(normalise="sums")]
PAIRS = [
    DpoLoss(beta=0.3, label_smoothing=0.1),
    DpoLoss(beta=0.3, nll_weight=0.5),
    LnDpoLoss(beta=3.0),
    IpoLoss(tau=0.4, log_ratios="averaged", nll_weight=0.1),
    SimpoLoss(beta=2.0, gamma=0.5),
]
RLOO = [
    RlooLoss(),
    RlooLoss(clip=None),
    RlooLoss(advantages="normalised"),
    RlooLoss(clip=None, per="token"),
    RlooLoss(kl=0.3),
    RlooLoss(kl=0.3, advantages="normalised", per="token"),
]


def named(loss: Any) -> str:
    return "-".join(map(str, loss.model_dump().values()))


# ---- by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalise", "losses", "mean"),
    [
        ("tokens", [5.5, 8.0], (5.5 + 2 * 8) / (2.5 + 2 * 2)),
        ("responses", [2.5, 4.0], (2.5 + 2 * 4) / 3),
        ("sums", [5.5, 8.0], (5.5 + 2 * 8) / 3),
    ],
)
def test_fusesft_by_hand(normalise, losses, mean) -> None:
    """Two prompts of weights 1 and 2. The first has -6 over 3 tokens and -4 over 1, w = (0.75, 0.25): 4.5 + 1 = 5.5 nats
    of 2.25 + 0.25 = 2.5 tokens, per token 0.75 * 2 + 0.25 * 4 = 2.5. The second has one answer, -8 over 2 tokens.
    """
    policy = logps({"responses": [[3, 1], [2, 0]]}, responses=[[-6, -4], [-8, 0]])
    weights = {"responses": [[0.75, 0.25], [1, 0]]}
    loss, of_rows = SftLoss(normalise=normalise), torch.tensor([1.0, 2.0])
    out = loss(given(policy, weights=weights))
    assert out.losses_B.tolist() == losses
    assert out.metrics["logps/response"].tolist() == [-5.5, -8.0]
    tokens = (policy.num_tokens["responses"] * torch.tensor(weights["responses"])).sum(1)
    assert tokens.tolist() == [2.5, 2.0]
    assert ((of_rows * out.losses_B).sum() / loss.mass(tokens, of_rows).sum()).item() == pytest.approx(mean)


def pairs(chosen: Any, rejected: Any, weights: list, tokens: Any = 3) -> LossInputs:
    """Log-probabilities of (policy, reference) on each side."""
    of = [logps(tokens, chosen=chosen[n], rejected=rejected[n]) for n in (0, 1)]
    return given(*of, weights={"chosen": weights, "rejected": weights})


def test_fusepo_with_dpo_by_hand() -> None:
    """beta 0.5. Pair 1: log-ratios 2 and -1, margin 1.5, loss 0.2014132780. Pair 2: -1 and 1, margin -1, loss 1.3132616875.

    w = (0.75, 0.25): 0.1510599585 + 0.3283154219 = 0.4793753804. The loss of the mixed margin 0.875 would be 0.3481.
    """
    inputs = pairs(([[-2, -3]], [[-4, -2]]), ([[-5, -1]], [[-4, -2]]), [[0.75, 0.25]])
    out = DpoLoss(beta=0.5)(inputs)
    assert out.losses_B.item() == pytest.approx(0.4793753804, abs=1e-9)
    assert {name: value.item() for name, value in out.metrics.items()} == {
        "rewards/chosen": 0.75 * 1 + 0.25 * -0.5,
        "rewards/rejected": 0.75 * -0.5 + 0.25 * 0.5,
        "rewards/margins": 0.875,
        "rewards/accuracies": 0.75,
        "logps/chosen": 0.75 * -2 + 0.25 * -3,
        "logps/rejected": 0.75 * -5 + 0.25 * -1,
    }


def test_fusepo_with_simpo_by_hand() -> None:
    """beta 2, gamma 1. Pair 1: -2 over 4 tokens and -5 over 2, rewards -1 and -5, margin 4, loss ln(1 + e^-3). Pair 2:
    -6 over 3 tokens and -5 over 2, rewards -4 and -5, margin 1, loss ln 2.

    w = (0.75, 0.25): 0.75 * 0.0485873516 + 0.25 * 0.6931471806 = 0.2097273088. An NLL term of weight 0.1 adds
    0.1 * (0.75 * 0.5 + 0.25 * 2) = 0.0875.
    """
    tokens = {"chosen": [[4, 3]], "rejected": [[2, 2]]}
    policy = logps(tokens, chosen=[[-2, -6]], rejected=[[-5, -5]])
    inputs = given(policy, weights={"chosen": [[0.75, 0.25]], "rejected": [[0.75, 0.25]]})
    out = SimpoLoss(beta=2, gamma=1)(inputs)
    assert out.losses_B.item() == pytest.approx(0.2097273088, abs=1e-9)
    assert out.metrics["rewards/margins"].item() == 0.75 * 4 + 0.25 * 1
    with_nll = SimpoLoss(beta=2, gamma=1, nll_weight=0.1)(inputs)
    assert with_nll.losses_B.item() == pytest.approx(0.2972273088, abs=1e-9)
    assert with_nll.metrics["nll_loss"].item() == 0.875


def test_fusepo_with_rloo_by_hand() -> None:
    """Group 1: scores 3 and 1, advantages 2 and -2, log-probabilities -5 and -7: -(-10 + 14) / 2 = -2. Group 2: scores 0,
    1, 2, advantages -1.5, 0, 1.5, log-probabilities -4, -3, -2: -(6 + 0 - 3) / 3 = -1. w = (0.75, 0.25): -1.75.

    Log-ratios to the reference 1, -0.5 and 0.5, 3, 0.1 with 4, 1 and 2, 2, 1 tokens, at 0.2 nats a token: group 1 is held
    at 0.8 and -0.2, -(1.6 + 0.4) / 2 = -1; in group 2 the first moved against its advantage and is not held, the last is
    within its 0.2: -(-0.75 + 0 + 0.15) / 3 = 0.2. Together -0.75 + 0.05 = -0.7.
    """
    tokens = {"responses": [[4, 1, 2, 2, 1]]}
    inputs = given(
        logps(tokens, responses=[[-5, -7, -4, -3, -2]]),
        logps(tokens, responses=[[-6, -6.5, -4.5, -6, -2.1]]),
        scores={"responses": [[3, 1, 0, 1, 2]]},
        weights={"responses": [[0.75, 0.75, 0.25, 0.25, 0.25]]},
        groups={"responses": [[0, 0, 1, 1, 1]]},
    )
    plain = RlooLoss(clip=None)(inputs)
    assert plain.losses_B.item() == -1.75
    metrics = {"chosen": 0.75 * -5 + 0.25 * -2, "rejected": 0.75 * -7 + 0.25 * -4, "responses": 0.75 * -6 + 0.25 * -3}
    assert {name: v.item() for name, v in plain.metrics.items()} == {f"logps/{n}": v for n, v in metrics.items()}
    held = RlooLoss()(inputs)
    assert held.losses_B.item() == pytest.approx(-0.7, abs=1e-12)
    assert held.metrics["rewards/margins"].item() == pytest.approx(0.75 * 1.5 + 0.25 * -0.4, abs=1e-6)
    assert held.metrics["rewards/accuracies"].item() == 0.75
    assert held.metrics["clip_ratio/region_mean"].item() == 0.75


def test_advantages_over_the_deviation_of_their_group_by_hand() -> None:
    """Scores 3 and 1 deviate by sqrt(2), 0, 1 and 2 by 1, so of the plain losses -2 and -1 the first becomes -sqrt(2). Scores
    a thousand times as large give the same; scores that are all alike give nothing, and no division by zero.
    """
    tokens = {"responses": [[4, 1, 2, 2, 1]]}
    facts = {
        "weights": {"responses": [[0.75, 0.75, 0.25, 0.25, 0.25]]},
        "groups": {"responses": [[0, 0, 1, 1, 1]]},
    }
    loss = RlooLoss(clip=None, advantages="normalised")
    for scores in ([3, 1, 0, 1, 2], [3000, 1000, 7000, 8000, 9000]):
        inputs = given(logps(tokens, responses=[[-5, -7, -4, -3, -2]]), scores={"responses": [scores]}, **facts)
        assert loss(inputs).losses_B.item() == pytest.approx(-0.75 * 2**0.5 - 0.25, abs=2e-6)
    alike = given(logps(tokens, responses=[[-5, -7, -4, -3, -2]]), scores={"responses": [[0.1] * 5]}, **facts)
    assert loss(alike).losses_B.item() == pytest.approx(0, abs=1e-9)


def test_rloo_per_token_by_hand() -> None:
    """Advantages 2 and -2; -5 over 4 tokens and -7 over 1: -(2 * -1.25 + -2 * -7) / 2 = -5.75. Log-ratios 1 and -0.5 are
    0.25 and -0.5 per token: -(0.5 + 1) / 2 = -0.75, and held at 0.2 nats a token -(0.4 + 0.4) / 2 = -0.4.
    """
    tokens = {"responses": [[4, 1]]}
    inputs = given(
        logps(tokens, responses=[[-5, -7]]), logps(tokens, responses=[[-6, -6.5]]), scores={"responses": [[3, 1]]}
    )
    for clip, expected in ((None, -5.75), (10, -0.75), (0.2, -0.4)):
        assert RlooLoss(clip=clip, per="token")(inputs).losses_B.item() == pytest.approx(expected, abs=1e-12)
    assert RlooLoss(per="token")(inputs).metrics == RlooLoss()(inputs).metrics


# ---- against plain losses ---------------------------------------------------------------------


def gradients(loss: Any, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses, metrics, and role -> gradient of the sum of the losses."""
    sums = {role: values.clone().requires_grad_() for role, values in inputs.policy.logps.items()}
    out = loss(with_logps(inputs, sums))
    found = torch.autograd.grad(out.losses_B.sum(), list(sums.values()))
    return out.losses_B.detach(), dict(out.metrics), dict(zip(sums, found, strict=True))


def stacked(parts: list[LossInputs], weights: list[float], rename: dict[str, str] | None = None) -> LossInputs:
    """Rows of single responses side by side as rows of several with these weights."""
    name = rename or {}

    def joined(of: list) -> dict[str, torch.Tensor]:
        return {name.get(role, role): torch.stack([one[role] for one in of], 1) for role in of[0]}

    def both(of: list[SequenceLogps]) -> SequenceLogps:
        return SequenceLogps(joined([one.logps for one in of]), joined([one.num_tokens for one in of]))

    policy = both([part.policy for part in parts])
    shares = {r: torch.tensor([weights], dtype=v.dtype).expand(v.shape) for r, v in policy.logps.items()}
    reference = both([part.reference for part in parts if part.reference is not None])
    scores = joined([part.scores for part in parts])
    return dataclasses.replace(parts[0], policy=policy, reference=reference, scores=scores, weights=shares)


@pytest.mark.parametrize("loss", [*SFT, *PAIRS], ids=named)
@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0]], ids=str)
def test_one_member_with_all_the_weight_is_the_plain_loss(loss, weights) -> None:
    """Bit for bit: losses, metrics and gradients; and what has no weight has no gradient."""
    plain_type, rename = (SftExample, {"response": "responses"}) if loss in SFT else (PreferencePair, {})
    parts = [random_inputs(plain_type, rows=9, seed=seed) for seed in range(len(weights))]
    losses, metrics, moved = gradients(loss, parts[0])
    found, weighted_metrics, weighted_moved = gradients(loss, stacked(parts, weights, rename))
    assert torch.equal(found, losses) and losses.abs().min() > 0
    assert weighted_metrics.keys() == metrics.keys()
    assert all(torch.equal(weighted_metrics[name], metrics[name]) for name in metrics)
    for role, gradient in moved.items():
        whole = weighted_moved[rename.get(role, role)]
        assert torch.equal(whole[:, 0], gradient) and whole[:, 1:].abs().sum() == 0


@pytest.mark.parametrize("loss", RLOO, ids=named)
def test_one_group_with_all_the_weight_is_plain_rloo(loss) -> None:
    """Bit for bit, alone in its row or before a group that has no weight."""
    one = random_inputs(ResponseGroup, rows=9, seed=4)
    losses, metrics, moved = gradients(loss, one)
    ones = {"responses": (one.policy.num_tokens["responses"] > 0).double()}
    zeros = {"responses": torch.zeros_like(one.policy.num_tokens["responses"])}
    alone = dataclasses.replace(one, weights=ones, groups=zeros)
    beside = random_inputs(ResponseGroup, rows=9, seed=5)
    two = dataclasses.replace(
        one,
        policy=beside_each_other(one.policy, beside.policy),
        reference=beside_each_other(one.reference, beside.reference),
        scores={"responses": torch.cat([one.scores["responses"], beside.scores["responses"]], 1)},
        weights={"responses": torch.cat([ones["responses"], 0 * ones["responses"]], 1)},
        groups={"responses": torch.cat([zeros["responses"], 1 + zeros["responses"]], 1)},
    )
    for inputs in (alone, two):
        found, weighted_metrics, weighted_moved = gradients(loss, inputs)
        assert torch.equal(found, losses) and losses.abs().min() > 0
        assert all(torch.equal(weighted_metrics[name], metrics[name]) for name in metrics)
        width = moved["responses"].shape[1]
        assert torch.equal(weighted_moved["responses"][:, :width], moved["responses"])
        assert weighted_moved["responses"][:, width:].abs().sum() == 0


def beside_each_other(one: SequenceLogps | None, other: SequenceLogps | None) -> SequenceLogps:
    assert one is not None and other is not None
    parts = ((one.logps, other.logps), (one.num_tokens, other.num_tokens))
    return SequenceLogps(*({"responses": torch.cat([a["responses"], b["responses"]], 1)} for a, b in parts))


def taken_apart(inputs: LossInputs, row_type: type) -> tuple[LossInputs, torch.Tensor, torch.Tensor]:
    """Each member of each row as a row of its own: the rows, their weights, and which row each came from."""
    tokens = inputs.policy.num_tokens
    first = next(iter(tokens))
    number = inputs.groups.get(first)
    if number is None:
        number = torch.arange(tokens[first].shape[1]).expand(tokens[first].shape)
    members = [
        (row, (tokens[first][row] > 0) & (number[row] == n))
        for row in range(len(number))
        for n in range(int(number[row].max()) + 1)
        if ((tokens[first][row] > 0) & (number[row] == n)).any()
    ]

    def cut(of: Any, role: str) -> torch.Tensor:
        if row_type is WeightedGroups:
            return torch.stack([of[role][row] * mask for row, mask in members])
        return torch.stack([of[role][row][mask].squeeze() for row, mask in members])

    rename = {"responses": "response"} if row_type is WeightedResponses else {}

    def all_of(of: Any) -> dict[str, torch.Tensor]:
        return {rename.get(role, role): cut(of, role) for role in tokens}

    assert inputs.reference is not None
    apart = dataclasses.replace(
        inputs,
        policy=SequenceLogps(all_of(inputs.policy), all_of(tokens)),
        reference=SequenceLogps(all_of(inputs.reference), all_of(tokens)),
        scores=all_of(inputs.scores),
        weights={},
        groups={},
    )
    weights = torch.stack([inputs.weights[first][row][mask][0] for row, mask in members])
    return apart, weights, torch.tensor([row for row, _ in members])


def mean_loss(loss: Any, inputs: LossInputs, of_rows: torch.Tensor) -> torch.Tensor:
    """The loss of the batch as the training takes it."""
    tokens = sum((inputs.weights_of(r) * n).reshape(len(n), -1).sum(1) for r, n in inputs.policy.num_tokens.items())
    return (loss(inputs).losses_B * of_rows).sum() / loss.mass(tokens, of_rows).sum()


@pytest.mark.parametrize(
    ("loss", "row_type"),
    [
        *((loss, WeightedResponses) for loss in SFT),
        *((loss, WeightedPairs) for loss in PAIRS),
        *((loss, WeightedGroups) for loss in RLOO),
    ],
    ids=lambda case: named(case) if not isinstance(case, type) else case.__name__,
)
@pytest.mark.parametrize("seed", range(3))
def test_a_weighted_row_is_as_many_plain_rows_with_its_weights(loss, row_type, seed) -> None:
    """The loss of a batch and its gradient do not change when rows of weight v are taken apart into rows of v * w_i."""
    inputs = random_inputs(row_type, rows=7, seed=seed)
    of_rows = torch.linspace(0.25, 2, 7, dtype=torch.float64)
    sums = {r: v.clone().requires_grad_() for r, v in inputs.policy.logps.items()}
    whole = with_logps(inputs, sums)
    apart, weights, row = taken_apart(whole, row_type)
    assert len(row) > 7 and weights.unique().numel() > 7
    losses = mean_loss(loss, whole, of_rows), mean_loss(loss, apart, of_rows[row] * weights)
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-14)
    moved = [torch.autograd.grad(value, list(sums.values()), retain_graph=True) for value in losses]
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [*SFT, *PAIRS, *RLOO], ids=named)
def test_what_a_wider_batch_fills_in_is_never_seen(loss) -> None:
    """A row among wider ones is filled with responses of 0 tokens; their scores and groups change nothing."""
    row_type = loss.row_types[1]
    inputs = random_inputs(row_type, rows=5, seed=2)
    expected = loss(inputs)

    def wider(values: torch.Tensor, filled: float) -> torch.Tensor:
        return torch.cat([values, torch.full_like(values[:, :2], filled)], 1)

    def every(of: Any, filled: float) -> dict[str, torch.Tensor]:
        return {role: wider(values, filled) for role, values in of.items()}

    assert inputs.reference is not None
    tokens = every(inputs.policy.num_tokens, 0)
    wide = dataclasses.replace(
        inputs,
        policy=SequenceLogps(every(inputs.policy.logps, 0), tokens),
        reference=SequenceLogps(every(inputs.reference.logps, 0), tokens),
        scores=every(inputs.scores, 99.0),
        weights=every(inputs.weights, 0),
        groups=every(inputs.groups, 0),
    )
    found = loss(wide)
    torch.testing.assert_close(found.losses_B, expected.losses_B, rtol=1e-14, atol=0)
    for name, value in expected.metrics.items():
        torch.testing.assert_close(found.metrics[name], value, rtol=1e-6, atol=0)
