"""DPO, length-normalised DPO, IPO and SimPO on pairs, by hand and against each other."""

import pytest

torch = pytest.importorskip("torch")

from fusion.losses import DpoLoss, IpoLoss, LnDpoLoss, LossInputs, SequenceLogps, SimpoLoss  # noqa: E402
from fusion.rows import PreferencePair  # noqa: E402
from loss_inputs import given, logps, random_inputs, with_logps  # noqa: E402


def test_dpo_by_hand() -> None:
    """beta 0.5; log-ratios chosen (-2) - (-4) = 2, rejected (-5) - (-4) = -1.

    rewards 1.0 and -0.5, margin 1.5, loss ln(1 + e^-1.5) = 0.2014132780.
    Second row: ratios -1 and 1, rewards -0.5 and 0.5, margin -1, loss ln(1 + e) = 1.3132616875.
    """
    inputs = given(logps(chosen=[-2, -3], rejected=[-5, -1]), logps(chosen=[-4, -2], rejected=[-4, -2]))
    out = DpoLoss(beta=0.5)(inputs)
    assert out.losses_B.tolist() == pytest.approx([0.2014132780, 1.3132616875], abs=1e-9)
    assert {name: value.tolist() for name, value in out.metrics.items()} == {
        "rewards/chosen": [1.0, -0.5],
        "rewards/rejected": [-0.5, 0.5],
        "rewards/margins": [1.5, -1.0],
        "rewards/accuracies": [1, 0],
        "logps/chosen": [-2, -3],
        "logps/rejected": [-5, -1],
    }


def test_label_smoothing_by_hand() -> None:
    """Margin 1.5, smoothing 0.2: 0.8 * 0.2014132780 + 0.2 * (0.2014132780 + 1.5) = 0.5014132780.

    ln(1 + e^m) = ln(1 + e^-m) + m.
    """
    inputs = given(logps(chosen=[-2], rejected=[-5]), logps(chosen=[-4], rejected=[-4]))
    loss = DpoLoss(beta=0.5, label_smoothing=0.2)
    assert loss(inputs).losses_B.item() == pytest.approx(0.5014132780, abs=1e-9)


def test_length_normalised_dpo_by_hand() -> None:
    """beta 10; log-ratio 2 over 4 tokens and -1 over 2 tokens: rewards 10 * 0.5 = 5 and 10 * -0.5 = -5.

    The margin is 10, the loss ln(1 + e^-10) = 0.0000453989.
    """
    tokens = {"chosen": [4], "rejected": [2]}
    inputs = given(logps(tokens, chosen=[-2], rejected=[-5]), logps(tokens, chosen=[-4], rejected=[-4]))
    out = LnDpoLoss(beta=10)(inputs)
    assert out.losses_B.item() == pytest.approx(0.0000453989, abs=1e-9)
    assert (out.metrics["rewards/chosen"].item(), out.metrics["rewards/rejected"].item()) == (5.0, -5.0)


def test_ipo_by_hand() -> None:
    """tau 0.25, so margins are pulled to 2; log-ratios 2 over 4 tokens and -1 over 2 tokens.

    Summed: margin 3, loss (3 - 2)^2 = 1. Averaged: margin 0.5 + 0.5 = 1, loss (1 - 2)^2 = 1; with tau 0.5 they
    part: (3 - 1)^2 = 4 and (1 - 1)^2 = 0.
    """
    tokens = {"chosen": [4], "rejected": [2]}
    inputs = given(logps(tokens, chosen=[-2], rejected=[-5]), logps(tokens, chosen=[-4], rejected=[-4]))
    assert IpoLoss(tau=0.25)(inputs).losses_B.item() == 1.0
    assert IpoLoss(tau=0.25, log_ratios="averaged")(inputs).losses_B.item() == 1.0
    assert IpoLoss(tau=0.5)(inputs).losses_B.item() == 4.0
    assert IpoLoss(tau=0.5, log_ratios="averaged")(inputs).losses_B.item() == 0.0
    metrics = IpoLoss(tau=0.5)(inputs).metrics
    assert [metrics[f"rewards/{n}"].item() for n in ("chosen", "rejected", "margins")] == [2.0, -1.0, 3.0]


def test_simpo_by_hand() -> None:
    """beta 2, gamma 1; -2 over 4 tokens and -5 over 2 tokens: rewards 2 * -0.5 = -1 and 2 * -2.5 = -5.

    The margin is 4, of which gamma leaves 3: the loss is ln(1 + e^-3) = 0.0485873516.
    """
    inputs = given(logps({"chosen": [4], "rejected": [2]}, chosen=[-2], rejected=[-5]))
    out = SimpoLoss(beta=2, gamma=1)(inputs)
    assert out.losses_B.item() == pytest.approx(0.0485873516, abs=1e-9)
    assert out.metrics["rewards/margins"].item() == 4.0
    assert SimpoLoss(beta=2, gamma=4)(inputs).losses_B.item() == pytest.approx(0.6931471806, abs=1e-9)


@pytest.mark.parametrize(
    "loss",
    [DpoLoss(beta=0.5), LnDpoLoss(beta=0.5), IpoLoss(tau=0.5), SimpoLoss(beta=0.5, gamma=0.1)],
    ids=lambda loss: loss.type,
)
def test_the_nll_term_is_the_mean_per_token_of_the_chosen_response(loss) -> None:
    """-6 over 3 tokens is an NLL of 2, -4 over 1 token one of 4; weight 0.25 adds 0.5 and 1."""
    tokens = {"chosen": [3, 1], "rejected": [2, 5]}
    inputs = given(logps(tokens, chosen=[-6, -4], rejected=[-5, -9]), logps(tokens, chosen=[-4, -4], rejected=[-4, -9]))
    plain, added = loss(inputs), loss.model_copy(update={"nll_weight": 0.25})(inputs)
    assert (added.losses_B - plain.losses_B).tolist() == pytest.approx([0.5, 1.0], abs=1e-12)
    assert added.metrics["nll_loss"].tolist() == [2.0, 4.0]
    assert added.metrics["rewards/margins"].tolist() == plain.metrics["rewards/margins"].tolist()


def test_length_normalised_dpo_of_equal_lengths_is_dpo_with_beta_over_the_length() -> None:
    inputs = random_inputs(PreferencePair, rows=7, seed=1)
    same = [
        SequenceLogps(of.logps, {r: torch.full_like(n, 5) for r, n in of.num_tokens.items()}) for of in _both(inputs)
    ]
    equal = LossInputs(*same, {}, 0, 1)
    for smoothing in (0.0, 0.1):
        normalised = LnDpoLoss(beta=2.0, label_smoothing=smoothing)(equal)
        plain = DpoLoss(beta=0.4, label_smoothing=smoothing)(equal)
        torch.testing.assert_close(normalised.losses_B, plain.losses_B, rtol=1e-14, atol=0)


def test_averaged_ipo_of_one_length_is_summed_ipo_of_a_smaller_tau() -> None:
    """(m / L - 1 / (2 tau))^2 = (m - 1 / (2 tau / L))^2 / L^2."""
    inputs = random_inputs(PreferencePair, rows=7, seed=2)
    same = [
        SequenceLogps(of.logps, {r: torch.full_like(n, 5) for r, n in of.num_tokens.items()}) for of in _both(inputs)
    ]
    equal = LossInputs(*same, {}, 0, 1)
    averaged = IpoLoss(tau=0.5, log_ratios="averaged")(equal).losses_B
    torch.testing.assert_close(averaged, IpoLoss(tau=0.1)(equal).losses_B / 25, rtol=1e-12, atol=0)


def test_simpo_is_length_normalised_dpo_against_a_reference_that_knows_nothing() -> None:
    """With log pi_ref = 0 everywhere and gamma = 0 the two formulas are the same."""
    inputs = random_inputs(PreferencePair, rows=7, seed=3)
    nothing = SequenceLogps({r: torch.zeros_like(v) for r, v in inputs.policy.logps.items()}, inputs.policy.num_tokens)
    simpo = SimpoLoss(beta=2, gamma=0)(inputs).losses_B
    assert torch.equal(simpo, LnDpoLoss(beta=2)(LossInputs(inputs.policy, nothing, {}, 0, 1)).losses_B)


def _both(inputs: LossInputs) -> tuple[SequenceLogps, SequenceLogps]:
    assert inputs.reference is not None
    return inputs.policy, inputs.reference


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DpoLoss(beta=0.7), lambda m, n: -0.7 * torch.sigmoid(-0.7 * m)),
        (IpoLoss(tau=0.7), lambda m, n: 2 * (m - 1 / 1.4)),
    ],
    ids=["dpo", "ipo"],
)
def test_gradients_have_the_published_coefficients(loss, expected) -> None:
    """DPO: -beta * sigmoid(-beta * m); IPO: 2 * (m - 1 / (2 tau)); once for the chosen, once with minus for the other."""
    inputs = random_inputs(PreferencePair, rows=3, seed=8)
    policy, reference = _both(inputs)
    sums = {role: v.clone().requires_grad_() for role, v in policy.logps.items()}
    chosen, rejected = torch.autograd.grad(loss(with_logps(inputs, sums)).losses_B.sum(), list(sums.values()))
    margin = (policy["chosen"] - reference["chosen"]) - (policy["rejected"] - reference["rejected"])
    torch.testing.assert_close(chosen, expected(margin, policy.num_tokens))
    assert torch.equal(chosen, -rejected)


def test_large_margins_stay_finite() -> None:
    """A margin of -20,000 costs 20,000 and one of +20,000 nothing."""
    low, high = logps(chosen=[-1e4], rejected=[0]), logps(chosen=[0], rejected=[-1e4])
    assert DpoLoss(beta=1)(given(low, high)).losses_B.item() == pytest.approx(2e4)
    assert DpoLoss(beta=1)(given(high, low)).losses_B.item() == 0.0
