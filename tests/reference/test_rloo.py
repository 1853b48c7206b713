"""RLOO by hand: advantages, the plain form, and the two that are bounded below, clipped and with a KL penalty."""

import pytest

torch = pytest.importorskip("torch")

from fusion.losses import IpoLoss, RlooLoss  # noqa: E402
from fusion.losses.rloo import TINY, leave_one_out, variances  # noqa: E402
from fusion.rows import PreferencePair, ResponseGroup  # noqa: E402
from loss_inputs import given, logps, random_inputs, with_logps  # noqa: E402


def test_advantages_by_hand() -> None:
    """Scores 1, 2, 6: minus the means of the others 4, 3.5, 1.5. Two scores 3, 1: 2 and -2. One alone: 0."""
    scores = torch.tensor([[1.0, 2.0, 6.0], [3.0, 1.0, 99.0], [5.0, 99.0, 99.0]])
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    assert leave_one_out(scores, present).tolist() == [[-3.0, -1.5, 4.5], [2.0, -2.0, 0.0], [0.0, 0.0, 0.0]]


def test_advantages_sum_to_zero_and_do_not_feel_the_zero_of_the_scores() -> None:
    inputs = random_inputs(ResponseGroup, rows=6, seed=1)
    present = inputs.policy.num_tokens["responses"] > 0
    found = leave_one_out(inputs.scores["responses"], present)
    assert found.abs().sum() > 1
    torch.testing.assert_close(found.sum(1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-14)
    moved = leave_one_out(inputs.scores["responses"] + 100, present)
    torch.testing.assert_close(moved, found, rtol=0, atol=1e-12)


def test_two_responses_by_hand() -> None:
    """Scores 3 and 1, advantages 2 and -2, log-probabilities -5 and -7: -(2 * -5 + -2 * -7) / 2 = -2.

    Against a reference of -6 and -6.5 the log-ratios are 1 and -0.5: clipped at a wide range -(2 * 1 + -2 * -0.5) / 2
    = -1.5. With 0.2 nats a token, 4 tokens and 1 token, the ranges are 0.8 and 0.2: the first is held at 0.8, the second
    at -0.2, -(1.6 + 0.4) / 2 = -1, and both have stopped.
    """
    tokens = {"responses": [[4, 1]]}
    inputs = given(
        logps(tokens, responses=[[-5, -7]]), logps(tokens, responses=[[-6, -6.5]]), scores={"responses": [[3, 1]]}
    )
    assert RlooLoss(clip=None)(inputs).losses_B.item() == -2.0
    assert RlooLoss(clip=10)(inputs).losses_B.item() == -1.5
    held = RlooLoss()(inputs)
    assert held.losses_B.item() == pytest.approx(-1.0, abs=1e-12)
    assert {name: value.item() for name, value in held.metrics.items()} == {
        "logps/chosen": -5.0,
        "logps/rejected": -7.0,
        "logps/responses": -6.0,
        "rewards/chosen": 1.0,
        "rewards/rejected": -0.5,
        "rewards/margins": 1.5,
        "rewards/accuracies": 1.0,
        "clip_ratio/region_mean": 1.0,
    }
    assert set(RlooLoss(clip=None)(inputs).metrics) == {"logps/chosen", "logps/rejected", "logps/responses"}


def test_chosen_and_rejected_in_the_metrics_are_the_best_and_the_worst_present_response() -> None:
    """Negative scores, so that the zero of an absent response would win if it were looked at."""
    tokens = {"responses": [[2, 3, 1, 0]]}
    policy = logps(tokens, responses=[[-1, -2, -3, 0]])
    metrics = RlooLoss(clip=None)(given(policy, scores={"responses": [[-5, -1, -9, 0]]})).metrics
    assert (metrics["logps/chosen"].item(), metrics["logps/rejected"].item()) == (-2.0, -3.0)
    assert metrics["logps/responses"].item() == -2.0


def gradient(loss: RlooLoss, inputs) -> torch.Tensor:
    sums = inputs.policy["responses"].clone().requires_grad_()
    return torch.autograd.grad(loss(with_logps(inputs, {"responses": sums})).losses_B.sum(), sums)[0]


def test_inside_the_range_the_gradient_is_that_of_the_plain_form() -> None:
    """-A_j / n, the REINFORCE coefficients."""
    inputs = random_inputs(ResponseGroup, rows=6, seed=2)
    present = inputs.policy.num_tokens["responses"] > 0
    expected = -leave_one_out(inputs.scores["responses"], present) / present.sum(1, keepdim=True)
    torch.testing.assert_close(gradient(RlooLoss(clip=None), inputs), expected)
    torch.testing.assert_close(gradient(RlooLoss(clip=100), inputs), expected)


def test_outside_the_range_only_the_way_back_has_a_gradient() -> None:
    """Advantages 2 and -2; each moved by 5 nats up or down, the range is 0.6: what followed its advantage stops."""
    tokens = {"responses": [[3, 3]]}
    for moved, expected in (([5, -5], [0, 0]), ([-5, 5], [-1, 1]), ([5, 5], [0, 1]), ([-5, -5], [-1, 0])):
        inputs = given(
            logps(tokens, responses=[moved]), logps(tokens, responses=[[0, 0]]), scores={"responses": [[3, 1]]}
        )
        assert gradient(RlooLoss(), inputs).tolist() == [expected]
        stopped = sum(value == 0 for value in expected) / 2
        assert RlooLoss()(inputs).metrics["clip_ratio/region_mean"].item() == stopped


def test_the_default_is_bounded_below_and_the_plain_form_is_not() -> None:
    """A response with a negative advantage is pushed down without end: plain -1e6, clipped the bound -(1/n) sum |A| c."""
    tokens = {"responses": [[3, 3]]}
    inputs = given(
        logps(tokens, responses=[[0, -1e6]]), logps(tokens, responses=[[0, 0]]), scores={"responses": [[3, 1]]}
    )
    assert RlooLoss(clip=None)(inputs).losses_B.item() == -1e6
    assert RlooLoss()(inputs).losses_B.item() == pytest.approx(-0.6, abs=1e-12)


def test_gradcheck_with_a_range_that_binds() -> None:
    inputs = random_inputs(ResponseGroup, rows=6, seed=3)
    loss = RlooLoss(clip=0.2)
    share = loss(inputs).metrics["clip_ratio/region_mean"]
    assert 0 < share.mean() < 1
    sums = inputs.policy["responses"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: loss(with_logps(inputs, {"responses": v})).losses_B, [sums])


# ---- with a KL penalty ------------------------------------------------------------------------


def test_the_penalised_form_by_hand() -> None:
    """Scores 3 and 1, log-ratios 1 and -0.5, kl 0.5: penalised 2.5 and 1.25, Var 1.25^2 / 2 = 0.78125, the loss as much.

    Per token, of 4 and 1: 3 - 0.125 and 1 + 0.25, Var 1.625^2 / 2 = 1.3203125. Normalised: the scores deviate by sqrt(2),
    so they are 3 / sqrt(2) - 0.5 and 1 / sqrt(2) + 0.25: Var (sqrt(2) - 0.75)^2 / 2 = 0.2205898.
    """
    tokens = {"responses": [[4, 1]]}
    inputs = given(
        logps(tokens, responses=[[-5, -7]]), logps(tokens, responses=[[-6, -6.5]]), scores={"responses": [[3, 1]]}
    )
    found = RlooLoss(kl=0.5)(inputs)
    assert found.losses_B.item() == 0.78125
    assert found.metrics["rewards/margins"].item() == 1.5 and "clip_ratio/region_mean" not in found.metrics
    assert RlooLoss(kl=0.5, per="token")(inputs).losses_B.item() == 1.3203125
    normalised = RlooLoss(kl=0.5, advantages="normalised")(inputs)
    assert normalised.losses_B.item() == pytest.approx((2**0.5 - 0.75) ** 2 / 2, abs=2e-6)


@pytest.mark.parametrize("per", ["sequence", "token"])
@pytest.mark.parametrize("advantages", ["plain", "normalised"])
def test_its_gradient_is_leave_one_out_on_rewards_with_the_penalty(advantages, per) -> None:
    """-A_j(r - kl * l) / n, the REINFORCE coefficients of arXiv 2402.14740 with R = r - beta * l."""
    inputs = random_inputs(ResponseGroup, rows=6, seed=7)
    tokens, scores = inputs.policy.num_tokens["responses"], inputs.scores["responses"]
    present, counted = tokens > 0, tokens.clamp(min=1) if per == "token" else 1
    if advantages == "normalised":
        scores = scores / (variances(scores, present).sqrt() + TINY)
    ratios = (inputs.policy["responses"] - inputs.reference["responses"]) / counted
    shaped = leave_one_out(scores - 0.3 * ratios, present)
    expected = -shaped / present.sum(1, keepdim=True) / counted
    found = gradient(RlooLoss(kl=0.3, advantages=advantages, per=per), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("per", ["sequence", "token"])
def test_at_the_start_the_penalised_form_moves_as_the_plain_one(per) -> None:
    """Where policy and reference are one, whatever `kl`."""
    inputs = random_inputs(ResponseGroup, rows=6, seed=8)
    start = with_logps(inputs, {"responses": inputs.reference["responses"]})
    plain = gradient(RlooLoss(clip=None, per=per), start)
    for kl in (0.01, 1.0, 30.0):
        torch.testing.assert_close(gradient(RlooLoss(kl=kl, per=per), start), plain, rtol=1e-12, atol=1e-14)


def test_the_penalised_form_is_never_negative_and_zero_at_its_optimum() -> None:
    """l_j = r_j / kl + c: pi is the reference tilted by exp(r / kl), the optimum of reward with KL penalty."""
    inputs = random_inputs(ResponseGroup, rows=6, seed=9)
    loss, present = RlooLoss(kl=0.2), inputs.policy.num_tokens["responses"] > 0
    assert loss(inputs).losses_B.min() > 0
    best = (inputs.reference["responses"] + inputs.scores["responses"] / 0.2 + 1.5) * present
    at_best = with_logps(inputs, {"responses": best})
    torch.testing.assert_close(loss(at_best).losses_B, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-20)
    assert gradient(loss, at_best).abs().max() < 1e-12


def test_of_two_responses_the_penalised_form_is_ipo() -> None:
    """kl / 4 times (l_w - l_l - (r_w - r_l) / kl)^2: IPO with 1 / (2 tau) = (r_w - r_l) / kl. Scores 3 and 1, kl 0.5: tau 0.125."""
    pairs = random_inputs(PreferencePair, rows=5, seed=10)

    def side_by_side(of):
        return logps(
            {"responses": torch.stack([of.num_tokens["chosen"], of.num_tokens["rejected"]], 1)},
            responses=torch.stack([of["chosen"], of["rejected"]], 1).tolist(),
        )

    groups = given(side_by_side(pairs.policy), side_by_side(pairs.reference), scores={"responses": [[3, 1]] * 5})
    expected = 0.5 / 4 * IpoLoss(tau=0.125)(pairs).losses_B
    torch.testing.assert_close(RlooLoss(kl=0.5)(groups).losses_B, expected, rtol=1e-12, atol=0)


def test_only_the_plain_form_needs_no_reference() -> None:
    assert RlooLoss().needs_reference and RlooLoss(kl=0.1).needs_reference
    assert not RlooLoss(clip=None).needs_reference
    assert RlooLoss(kl=0.1) == RlooLoss(kl=0.1, clip=None)
