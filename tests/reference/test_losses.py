"""The losses against hand arithmetic, identities and numerical gradients."""

import math
from collections.abc import Sequence

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

torch = pytest.importorskip("torch")

from fusion.losses import LOSSES, Alpha, DpoLoss, Loss, SequenceLogps, SftLoss, WrpoLoss  # noqa: E402
from fusion.losses.common import ConstantAlpha, LinearAlpha, learning_rate_weighted_mean_alpha  # noqa: E402
from fusion.losses.dpo import dpo_loss  # noqa: E402
from fusion.losses.wrpo import wrpo_loss  # noqa: E402
from fusion.rows import roles  # noqa: E402
from fusion.train.schedule import learning_rate  # noqa: E402

EXAMPLES = {
    SftLoss: {"type": "sft"},
    DpoLoss: {"type": "dpo", "beta": 0.3, "label_smoothing": 0.1},
    WrpoLoss: {"type": "wrpo", "beta": 0.3, "alpha": {"from": 0.2, "to": 0.6}, "label_smoothing": 0.1},
}


def logps(**values: Sequence[float]) -> SequenceLogps:
    sums = {role: torch.tensor(v, dtype=torch.float64) for role, v in values.items()}
    return SequenceLogps(sums, {role: torch.full_like(v, 3, dtype=torch.int64) for role, v in sums.items()})


def random_logps(names: Sequence[str], *, rows: int, seed: int) -> SequenceLogps:
    generator = torch.Generator().manual_seed(seed)
    draw = {n: -5 * torch.rand(rows, generator=generator, dtype=torch.float64) for n in names}
    return SequenceLogps(draw, {n: torch.randint(1, 9, (rows,), generator=generator) for n in names})


WRPO_ROLES = ("source_chosen", "target_chosen", "rejected")


def test_dpo_by_hand() -> None:
    """beta 0.5; log-ratios chosen (-2) - (-4) = 2, rejected (-5) - (-4) = -1.

    rewards 1.0 and -0.5, margin 1.5, loss ln(1 + e^-1.5) = 0.2014132780.
    Second row: ratios -1 and 1, rewards -0.5 and 0.5, margin -1, loss ln(1 + e) = 1.3132616875.
    """
    out = dpo_loss(logps(chosen=[-2, -3], rejected=[-5, -1]), logps(chosen=[-4, -2], rejected=[-4, -2]), beta=0.5)
    assert out.losses_B.tolist() == pytest.approx([0.2014132780, 1.3132616875], abs=1e-9)
    assert out.metrics["rewards/chosen"].tolist() == [1.0, -0.5]
    assert out.metrics["rewards/rejected"].tolist() == [-0.5, 0.5]
    assert out.metrics["rewards/margins"].tolist() == [1.5, -1.0]
    assert out.metrics["rewards/accuracies"].tolist() == [1, 0]
    assert out.metrics["logps/chosen"].tolist() == [-2, -3]


def test_wrpo_by_hand() -> None:
    """beta 0.5, alpha 0.25; log-ratios source 4, target -2, rejected 1.

    rewards 2, -1, 0.5; chosen 0.25 * 2 + 0.75 * -1 = -0.25; margin -0.75; loss ln(1 + e^0.75) = 1.1368710062.
    With label smoothing 0.2: 0.8 * 1.1368710062 + 0.2 * (1.1368710062 - 0.75) = 0.9868710062.
    """
    policy = logps(source_chosen=[-1], target_chosen=[-7], rejected=[-2])
    reference = logps(source_chosen=[-5], target_chosen=[-5], rejected=[-3])
    out = wrpo_loss(policy, reference, beta=0.5, alpha=0.25)
    assert out.losses_B.item() == pytest.approx(1.1368710062, abs=1e-9)
    found = {name: value.item() for name, value in out.metrics.items()}
    assert found == {
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
    smoothed = wrpo_loss(policy, reference, beta=0.5, alpha=0.25, label_smoothing=0.2)
    assert smoothed.losses_B.item() == pytest.approx(0.9868710062, abs=1e-9)


def test_sft_is_the_token_mean_with_row_weights() -> None:
    """Sums -6 over 3 tokens and -4 over 1 token, weights 1 and 2: (6 + 2 * 4) / (1 * 3 + 2 * 1) = 2.8."""
    policy = SequenceLogps({"response": torch.tensor([-6.0, -4.0])}, {"response": torch.tensor([3, 1])})
    loss, weights = SftLoss(), torch.tensor([1.0, 2.0])
    out = loss(policy, None, step=0, total_steps=1)
    assert (weights * out.losses_B).sum() / loss.mass(policy.num_tokens["response"], weights).sum() == pytest.approx(
        2.8
    )


@pytest.mark.parametrize(("alpha", "chosen"), [(0.0, "target_chosen"), (1.0, "source_chosen")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_wrpo_at_its_ends_is_dpo(alpha: float, chosen: str, smoothing: float) -> None:
    policy, reference = (random_logps(WRPO_ROLES, rows=7, seed=s) for s in (1, 2))

    def pair(of: SequenceLogps) -> SequenceLogps:
        return SequenceLogps(
            {"chosen": of[chosen], "rejected": of["rejected"]},
            {"chosen": of.num_tokens[chosen], "rejected": of.num_tokens["rejected"]},
        )

    wrpo = wrpo_loss(policy, reference, beta=0.2, alpha=alpha, label_smoothing=smoothing)
    dpo = dpo_loss(pair(policy), pair(reference), beta=0.2, label_smoothing=smoothing)
    assert torch.equal(wrpo.losses_B, dpo.losses_B)
    for name in dpo.metrics:
        assert torch.equal(wrpo.metrics[name], dpo.metrics[name]), name


@pytest.mark.parametrize("loss_class", [c for c in LOSSES if c.needs_reference])
def test_policy_equal_to_reference_gives_ln2(loss_class: type) -> None:
    loss = loss_class(**EXAMPLES[loss_class])
    same = random_logps(roles(loss.row_type), rows=5, seed=3)
    out = loss(same, same, step=1, total_steps=4)
    assert out.losses_B.tolist() == pytest.approx([math.log(2)] * 5, abs=1e-12)
    assert out.metrics["rewards/margins"].tolist() == [0.0] * 5


@pytest.mark.parametrize("loss_class", [c for c in LOSSES if c.needs_reference])
def test_one_constant_added_to_all_responses_changes_nothing(loss_class: type) -> None:
    loss = loss_class(**EXAMPLES[loss_class])
    names = roles(loss.row_type)
    policy, reference = random_logps(names, rows=5, seed=4), random_logps(names, rows=5, seed=5)
    moved = SequenceLogps({r: v + 3.25 for r, v in policy.logps.items()}, policy.num_tokens)
    both = [loss(p, reference, step=1, total_steps=4).losses_B for p in (policy, moved)]
    torch.testing.assert_close(both[0], both[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_every_loss_is_per_row_differentiable_and_detached(loss_class: type) -> None:
    """Over the union: (B,) losses, finite, gradients equal to finite differences, rows independent, metrics cut."""
    loss = loss_class(**EXAMPLES[loss_class])
    names = roles(loss.row_type)
    policy, reference = random_logps(names, rows=4, seed=6), random_logps(names, rows=4, seed=7)

    def losses(*sums: torch.Tensor) -> torch.Tensor:
        given = SequenceLogps(dict(zip(names, sums, strict=True)), policy.num_tokens)
        return loss(given, reference, step=2, total_steps=5).losses_B

    inputs = [policy[role].clone().requires_grad_() for role in names]
    assert torch.autograd.gradcheck(losses, inputs)
    found = losses(*inputs)
    assert found.shape == (4,) and torch.isfinite(found).all()
    for row in range(4):  # a row's loss moves with its own log-probabilities only
        gradients = torch.autograd.grad(found[row], inputs, retain_graph=True)
        for gradient in gradients:
            assert gradient[[r for r in range(4) if r != row]].abs().sum() == 0
            assert gradient[row] != 0
    given = SequenceLogps(dict(zip(names, inputs, strict=True)), policy.num_tokens)
    for name, value in loss(given, reference, step=2, total_steps=5).metrics.items():
        assert value.shape == (4,) and not value.requires_grad and value.dtype == torch.float32, name
    mass = loss.mass(torch.tensor([2, 3, 4, 5]), torch.tensor([1.0, 1.0, 0.5, 0.0]))
    assert mass.shape == (4,) and mass[3] == 0 and (mass[:3] > 0).all()


def test_wrpo_gradient_has_the_published_coefficients() -> None:
    """dL = -beta * sigmoid(-m) * [alpha, 1 - alpha, -1]."""
    policy, reference = (random_logps(WRPO_ROLES, rows=3, seed=s) for s in (8, 9))
    inputs = {role: policy[role].clone().requires_grad_() for role in WRPO_ROLES}
    out = wrpo_loss(SequenceLogps(inputs, policy.num_tokens), reference, beta=0.7, alpha=0.3)
    gradients = dict(zip(inputs, torch.autograd.grad(out.losses_B.sum(), list(inputs.values())), strict=True))
    m = 0.7 * sum(c * (policy[r] - reference[r]) for r, c in zip(WRPO_ROLES, (0.3, 0.7, -1.0), strict=True))
    for role, coefficient in zip(WRPO_ROLES, (0.3, 0.7, -1.0), strict=True):
        torch.testing.assert_close(gradients[role], -0.7 * torch.sigmoid(-m) * coefficient)


def test_large_margins_stay_finite() -> None:
    policy, reference = logps(chosen=[-1e4], rejected=[0]), logps(chosen=[0], rejected=[-1e4])
    assert dpo_loss(policy, reference, beta=1).losses_B.item() == pytest.approx(2e4)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"\(B,\)"):
        SequenceLogps(
            {"chosen": torch.zeros(3), "rejected": torch.zeros(3, 1)},
            {"chosen": torch.ones(3), "rejected": torch.ones(3)},
        )


# ---- configs and schedules --------------------------------------------------------------------


class _Holder(BaseModel):
    loss: Loss


def test_alpha_is_spelt_as_number_or_ramp() -> None:
    alphas = TypeAdapter(Alpha)
    assert alphas.validate_python(0.3) == ConstantAlpha(value=0.3)
    assert alphas.validate_python(0) == ConstantAlpha(value=0)
    assert alphas.validate_python("3e-1") == ConstantAlpha(value=0.3)  # how YAML reads 3e-1
    assert alphas.validate_python({"from": 0.0, "to": 0.5}) == LinearAlpha(from_=0.0, to=0.5)
    assert alphas.validate_python({"value": 0.2}) == ConstantAlpha(value=0.2)
    ramp = LinearAlpha(from_=0.1, to=0.5)
    assert alphas.validate_python(ramp.model_dump()) == ramp
    assert ramp.model_dump() == {"type": "linear", "from": 0.1, "to": 0.5}


@pytest.mark.parametrize(
    ("loss", "field"),
    [
        ({"type": "dpo"}, "beta"),
        ({"type": "wrpo", "beta": 0.1}, "alpha"),
        ({"type": "wrpo", "beta": 0.1, "alpha": 1.5}, "value"),
        ({"type": "wrpo", "beta": 0.1, "alpha": True}, "alpha"),
        ({"type": "wrpo", "beta": 0.1, "alpha": {"from": 0.0}}, "to"),
        ({"type": "wrpo", "beta": 0.1, "alpha": {"from": 0.0, "to": 0.5, "steps": 3}}, "steps"),
        ({"type": "dpo", "beta": 0.1, "alpha": 0.5}, "alpha"),
        ({"type": "dpo", "beta": -1}, "beta"),
        ({"type": "sft", "beta": 1}, "beta"),
    ],
)
def test_wrong_losses_name_the_field(loss: dict, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        _Holder.model_validate({"loss": loss})


def test_linear_alpha_has_exact_end_points() -> None:
    ramp = LinearAlpha(from_=0.1, to=0.4)
    assert [ramp.at(t, 4) for t in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (ramp.at(0, 311), ramp.at(310, 311)) == (0.1, 0.4)
    assert ramp.at(0, 1) == ramp.at(0, 0) == 0.1
    assert ramp.at(7, 4) == 0.4
    assert all(ConstantAlpha(value=0.3).at(t, 4) == 0.3 for t in range(4))


def test_learning_rate_weighted_mean_alpha() -> None:
    """Rates 1, 2, 1 and alpha 0, 0.5, 1: (0 + 1 + 1) / 4 = 0.5.

    The published run (311 steps, rates t / 32 then cosine, alpha = end * t / 311) has 0.339 of its end; here alpha is
    end * t / 310.
    """
    assert learning_rate_weighted_mean_alpha(LinearAlpha(from_=0, to=1), [1, 2, 1]) == 0.5
    rates = [t / 32 if t < 32 else 0.5 * (1 + math.cos(math.pi * (t - 32) / (311 - 32))) for t in range(311)]
    mean = learning_rate_weighted_mean_alpha(LinearAlpha(from_=0, to=1), rates)
    assert mean * 310 / 311 == pytest.approx(0.339, abs=5e-4)
    assert learning_rate_weighted_mean_alpha(LinearAlpha(from_=0.2, to=0.6), [0, 0, 0]) == pytest.approx(0.4)


def test_learning_rates() -> None:
    """10 steps, 20 % warmup: 0.5, 1, then cosine over 8 steps from 1; linear falls by 1/8; constant stays."""

    def rates(schedule: str, **changes: float) -> list[float]:
        settings = {"peak": 1.0, "total_steps": 10, "warmup_ratio": 0.2, "schedule": schedule} | changes
        return [learning_rate(t, **settings) for t in range(10)]  # type: ignore[arg-type]

    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert rates("cosine") == pytest.approx([0.5, 1.0, *cosine])
    assert rates("linear") == pytest.approx([0.5, 1.0, *(1 - k / 8 for k in range(8))])
    assert rates("constant") == pytest.approx([0.5] + [1.0] * 9)
    assert rates("linear", warmup_ratio=0.0)[0] == 1.0
    assert learning_rate(0, peak=2.0, total_steps=1, warmup_ratio=0.1, schedule="cosine") == 2.0
