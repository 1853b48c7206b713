"""WRPO by hand, at its ends, with several source responses, and with source responses to avoid."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fusion.losses import (  # noqa: E402
    DpoLoss,
    IpoLoss,
    LnDpoLoss,
    LossInputs,
    SequenceLogps,
    SimpoLoss,
    WrpoIpoLoss,
    WrpoLnDpoLoss,
    WrpoLoss,
    WrpoSimpoLoss,
)
from fusion.rows import PreferenceQuadruple, PreferenceSet  # noqa: E402
from loss_inputs import WRPO_ROLES, given, logps, pair_of, random_inputs, with_logps  # noqa: E402

OVER: list[tuple[Any, Any, dict[str, Any]]] = [
    (WrpoLoss, DpoLoss, {"beta": 0.2}),
    (WrpoLoss, DpoLoss, {"beta": 0.2, "label_smoothing": 0.1, "nll_weight": 0.3}),
    (WrpoLnDpoLoss, LnDpoLoss, {"beta": 2.0}),
    (WrpoIpoLoss, IpoLoss, {"tau": 0.2}),
    (WrpoIpoLoss, IpoLoss, {"tau": 0.2, "log_ratios": "averaged"}),
    (WrpoSimpoLoss, SimpoLoss, {"beta": 2.0, "gamma": 0.5, "nll_weight": 0.3}),
]
BY_OBJECTIVE = pytest.mark.parametrize(("wrpo", "pair", "fields"), OVER, ids=lambda x: getattr(x, "__name__", ""))


def test_wrpo_by_hand() -> None:
    """beta 0.5, alpha 0.25; log-ratios source 4, target -2, rejected 1.

    rewards 2, -1, 0.5; chosen 0.25 * 2 + 0.75 * -1 = -0.25; margin -0.75; loss ln(1 + e^0.75) = 1.1368710062.
    With label smoothing 0.2: 0.8 * 1.1368710062 + 0.2 * (1.1368710062 - 0.75) = 0.9868710062.
    """
    policy = logps(source_chosen=[-1], target_chosen=[-7], rejected=[-2])
    reference = logps(source_chosen=[-5], target_chosen=[-5], rejected=[-3])
    out = WrpoLoss(beta=0.5, alpha=0.25)(given(policy, reference))
    assert out.losses_B.item() == pytest.approx(1.1368710062, abs=1e-9)
    assert {name: value.item() for name, value in out.metrics.items()} == {
        "alpha": 0.25,
        "rewards/chosen": -0.25,
        "rewards/source_chosen": 2.0,
        "rewards/target_chosen": -1.0,
        "rewards/rejected": 0.5,
        "rewards/margins": -0.75,
        "rewards/accuracies": 0.0,
        "rewards/source_accuracies": 1.0,
        "rewards/target_accuracies": 0.0,
        "logps/chosen": -5.5,
        "logps/source_chosen": -1.0,
        "logps/target_chosen": -7.0,
        "logps/rejected": -2.0,
    }
    smoothed = WrpoLoss(beta=0.5, alpha=0.25, label_smoothing=0.2)(given(policy, reference))
    assert smoothed.losses_B.item() == pytest.approx(0.9868710062, abs=1e-9)


def test_wrpo_over_ipo_by_hand() -> None:
    """tau 0.25 pulls to 2; alpha 0.25; log-ratios 4, -2 and 1: margin 0.25 * 4 + 0.75 * -2 - 1 = -1.5, (-3.5)^2 = 12.25."""
    policy = logps(source_chosen=[-1], target_chosen=[-7], rejected=[-2])
    reference = logps(source_chosen=[-5], target_chosen=[-5], rejected=[-3])
    out = WrpoIpoLoss(tau=0.25, alpha=0.25)(given(policy, reference))
    assert out.losses_B.item() == 12.25 and out.metrics["rewards/margins"].item() == -1.5


def test_wrpo_over_simpo_and_length_normalised_dpo_by_hand() -> None:
    """beta 2, alpha 0.5; means -1 / 2, -8 / 4, -6 / 2: rewards -1, -4, -6; chosen -2.5; margin 3.5.

    SimPO with gamma 0.5: ln(1 + e^-3) = 0.0485873516. Length-normalised DPO against a reference of half the
    log-probabilities has half the margin, 1.75: ln(1 + e^-1.75) = 0.1602241504.
    """
    tokens = {"source_chosen": [2], "target_chosen": [4], "rejected": [2]}
    policy = logps(tokens, source_chosen=[-1], target_chosen=[-8], rejected=[-6])
    half = logps(tokens, source_chosen=[-0.5], target_chosen=[-4], rejected=[-3])
    simpo = WrpoSimpoLoss(beta=2, gamma=0.5, alpha=0.5)(given(policy))
    assert simpo.losses_B.item() == pytest.approx(0.0485873516, abs=1e-9)
    assert simpo.metrics["rewards/margins"].item() == 3.5
    normalised = WrpoLnDpoLoss(beta=2, alpha=0.5)(given(policy, half))
    assert normalised.losses_B.item() == pytest.approx(0.1602241504, abs=1e-9)


def test_several_sources_and_answers_to_avoid_by_hand() -> None:
    """beta 1, alpha 0.25, reference 0. First row: sources -1 and -3, target -4, avoided -8 and -6, rejected -5.

    chosen 0.25 * -2 + 0.75 * -4 = -3.5; rejected 0.25 * -7 + 0.75 * -5 = -5.5; margin 2; ln(1 + e^-2) = 0.1269280110.
    Second row: one source -3, nothing to avoid: chosen 0.25 * -3 + 0.75 * -4 = -3.75; rejected -5; margin 1.25;
    ln(1 + e^-1.25) = 0.2519290813. Of the sources -1 and -3 both beat -5.
    """
    tokens = {
        "source_chosen": [[1, 1], [1, 0]],
        "target_chosen": [1, 1],
        "source_rejected": [[1, 1], [0, 0]],
        "rejected": [1, 1],
    }
    values = {"target_chosen": [-4, -4], "rejected": [-5, -5]}
    policy = logps(tokens, source_chosen=[[-1, -3], [-3, 0]], source_rejected=[[-8, -6], [0, 0]], **values)
    reference = SequenceLogps({r: torch.zeros_like(v) for r, v in policy.logps.items()}, policy.num_tokens)
    out = WrpoLoss(beta=1, alpha=0.25)(given(policy, reference))
    assert out.losses_B.tolist() == pytest.approx([0.1269280110, 0.2519290813], abs=1e-9)
    assert {name: value.tolist() for name, value in out.metrics.items() if name.startswith("rewards")} == {
        "rewards/chosen": [-3.5, -3.75],
        "rewards/source_chosen": [-2.0, -3.0],
        "rewards/target_chosen": [-4.0, -4.0],
        "rewards/rejected": [-5.5, -5.0],
        "rewards/source_rejected": [-7.0, -5.0],
        "rewards/target_rejected": [-5.0, -5.0],
        "rewards/margins": [2.0, 1.25],
        "rewards/accuracies": [1.0, 1.0],
        "rewards/source_accuracies": [1.0, 1.0],
        "rewards/target_accuracies": [1.0, 1.0],
    }


def test_source_accuracy_is_the_share_of_a_rows_sources_above_its_rejected_response() -> None:
    """-1 is above -2, -3 is not, and the absent third counts for nothing: a half."""
    tokens = {"source_chosen": [[1, 1, 0]], "target_chosen": [1], "rejected": [1]}
    policy = logps(tokens, source_chosen=[[-1, -3, 0]], target_chosen=[-4], rejected=[-2])
    out = WrpoSimpoLoss(beta=1, gamma=0, alpha=0.5)(given(policy))
    assert out.metrics["rewards/source_accuracies"].item() == 0.5
    assert out.metrics["rewards/target_accuracies"].item() == 0.0


def test_accuracies_of_parts_are_against_the_targets_worst_answer_and_not_against_the_mix() -> None:
    """-3 and -4 are below the target's worst, -2, though above the rejected mix 0.5 * -10 + 0.5 * -2 = -6."""
    tokens = {"source_chosen": [[1]], "target_chosen": [1], "source_rejected": [[1]], "rejected": [1]}
    policy = logps(tokens, source_chosen=[[-3]], target_chosen=[-4], source_rejected=[[-10]], rejected=[-2])
    metrics = WrpoSimpoLoss(beta=1, gamma=0, alpha=0.5)(given(policy)).metrics
    names = ("accuracies", "source_accuracies", "target_accuracies")
    assert [metrics[f"rewards/{name}"].item() for name in names] == [1.0, 0.0, 0.0]


def test_the_nll_of_the_chosen_side_is_mixed_with_the_same_weights() -> None:
    """Sources -6 over 3 tokens and -8 over 2: 2 and 4, mean 3. Target -5 over 1. 0.25 * 3 + 0.75 * 5 = 4.5, times 0.1."""
    tokens = {"source_chosen": [[3, 2]], "target_chosen": [1], "rejected": [2]}
    policy = logps(tokens, source_chosen=[[-6, -8]], target_chosen=[-5], rejected=[-4])
    plain, added = (WrpoSimpoLoss(beta=1, gamma=0, alpha=0.25, nll_weight=w)(given(policy)) for w in (0, 0.1))
    assert (added.losses_B - plain.losses_B).item() == pytest.approx(0.45, abs=1e-12)
    assert added.metrics["nll_loss"].item() == 4.5 and "nll_loss" not in plain.metrics


# ---- identities -------------------------------------------------------------------------------


@BY_OBJECTIVE
@pytest.mark.parametrize("mix", ["rewards", "losses"])
@pytest.mark.parametrize(("alpha", "chosen"), [(0.0, "target_chosen"), (1.0, "source_chosen")])
def test_the_ends_are_the_pair_loss_bit_for_bit(wrpo, pair, fields, alpha, chosen, mix) -> None:
    inputs = random_inputs(PreferenceQuadruple, rows=7, seed=1)
    whole, end = wrpo(alpha=alpha, mix=mix, **fields)(inputs), pair(**fields)(pair_of(inputs, chosen))
    assert torch.equal(whole.losses_B, end.losses_B)
    for name in end.metrics:
        assert torch.equal(whole.metrics[name], end.metrics[name]), name


@BY_OBJECTIVE
@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_mixed_losses_are_the_mix_of_two_pair_losses(wrpo, pair, fields, alpha) -> None:
    """At 0.5 the mean of both, the other branch of the published trainer; and never below the loss of the mix (Jensen)."""
    inputs = random_inputs(PreferenceQuadruple, rows=7, seed=1)
    of_source, of_target = (pair(**fields)(pair_of(inputs, f"{who}_chosen")).losses_B for who in ("source", "target"))
    mixed = wrpo(alpha=alpha, mix="losses", **fields)(inputs)
    torch.testing.assert_close(mixed.losses_B, alpha * of_source + (1 - alpha) * of_target, rtol=1e-13, atol=1e-15)
    of_mix = wrpo(alpha=alpha, **fields)(inputs)
    assert (mixed.losses_B > of_mix.losses_B).all() and mixed.metrics.keys() == of_mix.metrics.keys()
    assert all(torch.equal(mixed.metrics[name], of_mix.metrics[name]) for name in of_mix.metrics)


@pytest.mark.parametrize("log_ratios", ["summed", "averaged"])
def test_over_ipo_mixed_losses_exceed_the_loss_of_the_mix_by_the_spread_of_the_rewards(log_ratios) -> None:
    """alpha a^2 + (1 - alpha) b^2 - (alpha a + (1 - alpha) b)^2 = alpha (1 - alpha) (a - b)^2, with a - b = r(y_ws) - r(y_wt)."""
    inputs = random_inputs(PreferenceQuadruple, rows=7, seed=6)
    losses, rewards = (
        WrpoIpoLoss(tau=0.2, alpha=0.3, mix=m, log_ratios=log_ratios)(inputs) for m in ("losses", "rewards")
    )
    gap = (rewards.metrics["rewards/source_chosen"] - rewards.metrics["rewards/target_chosen"]).double()
    torch.testing.assert_close(losses.losses_B - rewards.losses_B, 0.3 * 0.7 * gap**2, rtol=1e-5, atol=1e-8)


def test_mixed_losses_by_hand() -> None:
    """beta 0.5, alpha 0.25; margins 1.5 and -1.5: 0.25 ln(1 + e^-1.5) + 0.75 ln(1 + e^1.5) = 1.3264132780.

    With an answer to avoid at log-ratio 3, its reward 1.5: the rejected side is 0.25 * 1.5 + 0.75 * 0.5 = 0.75, the margins
    1.25 and -1.75, 0.25 * 0.2519290813 + 0.75 * 1.9102241504.
    """
    sets = {"source_chosen": [[-1]], "target_chosen": [-7], "rejected": [-2]}
    known = {"source_chosen": [[-5]], "target_chosen": [-5], "rejected": [-3]}
    loss = WrpoLoss(beta=0.5, alpha=0.25, mix="losses")
    plain = given(logps(**sets), logps(**known))
    assert loss(plain).losses_B.item() == pytest.approx(1.3264132780, abs=1e-9)
    avoided = given(logps(**sets, source_rejected=[[-1]]), logps(**known, source_rejected=[[-4]]))
    assert loss(avoided).losses_B.item() == pytest.approx(0.25 * 0.2519290813 + 0.75 * 1.9102241504, abs=1e-9)


def test_each_of_the_mixed_losses_has_a_gradient_of_its_own() -> None:
    """Sources at -1 and 3, share 0.25 each: -sigmoid(-m) of each own margin, not of their mean."""
    tokens = {"source_chosen": [[1, 1]], "target_chosen": [1], "rejected": [1]}
    inputs = given(logps(tokens, source_chosen=[[-1, 3]], target_chosen=[0], rejected=[1]))
    sums = {role: v.clone().requires_grad_() for role, v in inputs.policy.logps.items()}
    out = WrpoSimpoLoss(beta=1, gamma=0, alpha=0.5, mix="losses")(with_logps(inputs, sums))
    found = torch.autograd.grad(out.losses_B.sum(), [sums["source_chosen"], sums["target_chosen"], sums["rejected"]])
    slopes = torch.sigmoid(-torch.tensor([-2.0, 2.0, -1.0], dtype=torch.float64)) * torch.tensor([0.25, 0.25, 0.5])
    torch.testing.assert_close(found[0], -slopes[None, :2])
    torch.testing.assert_close(found[1], -slopes[2:])
    torch.testing.assert_close(found[2], slopes.sum(0, keepdim=True))


def as_set(inputs: LossInputs, copies: int, width: int) -> LossInputs:
    """Quadruples as sets: the source response `copies` times, nothing to avoid in a role `width` wide."""

    def widen(values: torch.Tensor) -> torch.Tensor:
        return values[:, None].repeat(1, copies)

    def sets(of: SequenceLogps) -> SequenceLogps:
        empty = torch.zeros(len(of["rejected"]), width, dtype=torch.float64)
        logps_ = {**of.logps, "source_chosen": widen(of["source_chosen"]), "source_rejected": empty}
        counts = {
            **of.num_tokens,
            "source_chosen": widen(of.num_tokens["source_chosen"]),
            "source_rejected": empty.long(),
        }
        return SequenceLogps(logps_, counts)

    assert inputs.reference is not None
    return LossInputs(sets(inputs.policy), sets(inputs.reference), {}, inputs.step, inputs.total_steps)


@BY_OBJECTIVE
@pytest.mark.parametrize("width", [0, 2])
def test_a_set_of_one_source_and_nothing_to_avoid_is_the_quadruple_bit_for_bit(wrpo, pair, fields, width) -> None:
    inputs = random_inputs(PreferenceQuadruple, rows=7, seed=2)
    loss = wrpo(alpha={"from": 0.1, "to": 0.7}, **fields)
    quadruple, one = loss(inputs), loss(as_set(inputs, 1, width))
    assert torch.equal(quadruple.losses_B, one.losses_B)
    for name in quadruple.metrics:
        assert torch.equal(quadruple.metrics[name], one.metrics[name]), name


@BY_OBJECTIVE
def test_several_equal_sources_count_as_one(wrpo, pair, fields) -> None:
    inputs = random_inputs(PreferenceQuadruple, rows=7, seed=3)
    loss = wrpo(alpha=0.3, **fields)
    for copies in (2, 3):
        torch.testing.assert_close(
            loss(as_set(inputs, copies, 0)).losses_B, loss(inputs).losses_B, rtol=1e-14, atol=1e-14
        )


@BY_OBJECTIVE
def test_at_alpha_one_with_one_answer_to_avoid_only_the_sources_count(wrpo, pair, fields) -> None:
    """alpha 1: the margin is that of (source_chosen, source_rejected), and the target's own answers say nothing."""
    inputs = random_inputs(PreferenceQuadruple, rows=7, seed=4)
    sets = as_set(inputs, 1, 1)
    worst = random_inputs(PreferenceQuadruple, rows=7, seed=5)

    def put(of: SequenceLogps, other: SequenceLogps) -> SequenceLogps:
        return SequenceLogps(
            {**of.logps, "source_rejected": other["rejected"][:, None]},
            {**of.num_tokens, "source_rejected": worst.policy.num_tokens["rejected"][:, None]},
        )

    assert sets.reference is not None and worst.reference is not None and inputs.reference is not None
    given_ = LossInputs(put(sets.policy, worst.policy), put(sets.reference, worst.reference), {}, 0, 1)

    def joined(of: SequenceLogps, other: SequenceLogps) -> SequenceLogps:
        return SequenceLogps(
            {"chosen": of["source_chosen"], "rejected": other["rejected"]},
            {"chosen": of.num_tokens["source_chosen"], "rejected": worst.policy.num_tokens["rejected"]},
        )

    pairs = LossInputs(joined(inputs.policy, worst.policy), joined(inputs.reference, worst.reference), {}, 0, 1)
    assert torch.equal(wrpo(alpha=1.0, **fields)(given_).losses_B, pair(**fields)(pairs).losses_B)


def test_gradients_have_the_published_coefficients() -> None:
    """dL = -beta * sigmoid(-m) * [alpha, 1 - alpha, -1]."""
    inputs = random_inputs(PreferenceQuadruple, rows=3, seed=8)
    policy, reference = inputs.policy, inputs.reference
    assert reference is not None
    sums = {role: policy[role].clone().requires_grad_() for role in WRPO_ROLES}
    out = WrpoLoss(beta=0.7, alpha=0.3)(with_logps(inputs, sums))
    gradients = dict(zip(sums, torch.autograd.grad(out.losses_B.sum(), list(sums.values())), strict=True))
    m = 0.7 * sum(c * (policy[r] - reference[r]) for r, c in zip(WRPO_ROLES, (0.3, 0.7, -1.0), strict=True))
    for role, coefficient in zip(WRPO_ROLES, (0.3, 0.7, -1.0), strict=True):
        torch.testing.assert_close(gradients[role], -0.7 * torch.sigmoid(-m) * coefficient)


def test_gradients_of_a_set_share_alpha_among_the_sources() -> None:
    """dL = -beta * sigmoid(-m) * [alpha / K, 1 - alpha, -alpha / N, -(1 - alpha)], K and N of the row itself."""
    inputs = random_inputs(PreferenceSet, rows=4, seed=9)
    sums = {role: v.clone().requires_grad_() for role, v in inputs.policy.logps.items()}
    out = WrpoLoss(beta=0.7, alpha=0.3)(with_logps(inputs, sums))
    gradients = dict(zip(sums, torch.autograd.grad(out.losses_B.sum(), list(sums.values())), strict=True))
    slope = -0.7 * torch.sigmoid(-out.metrics["rewards/margins"].double())
    tokens = inputs.policy.num_tokens
    has_extra = (tokens["source_rejected"] > 0).any(1)
    assert has_extra.tolist() == [False, True, True, True]
    expected = {
        "source_chosen": 0.3 * slope[:, None] * (n := tokens["source_chosen"] > 0) / n.sum(1, keepdim=True),
        "target_chosen": 0.7 * slope,
        "source_rejected": -0.3
        * slope[:, None]
        * (n := tokens["source_rejected"] > 0)
        / n.sum(1, keepdim=True).clamp(1),
        "rejected": -torch.where(has_extra, 0.7, 1.0) * slope,
    }
    for role, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[role], rtol=1e-6, atol=1e-8)


def test_alpha_is_that_of_the_step() -> None:
    loss = WrpoLoss(beta=1, alpha={"from": 0.2, "to": 0.6})
    found = [
        loss(random_inputs(PreferenceQuadruple, step=t, total_steps=5)).metrics["alpha"][0].item() for t in range(5)
    ]
    assert found == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
