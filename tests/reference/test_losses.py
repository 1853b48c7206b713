"""Promises of every loss of the union: gradients, independence of rows, identities, and errors that name the field."""

import dataclasses
import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

torch = pytest.importorskip("torch")

from fusion.losses import LOSSES, DpoLoss, Loss, SequenceLogps, WrpoIpoLoss, WrpoLoss  # noqa: E402
from fusion.losses.common import mean_of_present  # noqa: E402
from fusion.losses.preference import PairLoss  # noqa: E402
from loss_inputs import MOST, random_inputs, row_alone, with_logps  # noqa: E402

LOSS: TypeAdapter[Any] = TypeAdapter(Loss)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3, "label_smoothing": 0.1},
    "ln_dpo": {"beta": 3.0, "label_smoothing": 0.1, "nll_weight": 0.5},
    "ipo": {"tau": 0.4, "log_ratios": "averaged"},
    "simpo": {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.1},
}
RAMP = {"from": 0.2, "to": 0.6}
EXAMPLES = [
    {"type": "sft"},
    {"type": "sft", "normalise": "responses"},
    {"type": "sft", "normalise": "sums"},
    {"type": "rloo", "clip": 10.0},
    {"type": "rloo", "clip": 10.0, "advantages": "normalised", "per": "token"},
    {"type": "rloo", "clip": None},
    {"type": "rloo", "clip": None, "advantages": "normalised"},
    {"type": "rloo", "clip": None, "per": "token"},
    {"type": "rloo", "kl": 0.3},
    {"type": "rloo", "kl": 0.3, "advantages": "normalised", "per": "token"},
    {"type": "ipo", "tau": 0.4, "nll_weight": 0.2},
    *({"type": name, **fields} for name, fields in OBJECTIVES.items()),
    *({"type": "wrpo", "objective": name, "alpha": RAMP, **fields} for name, fields in OBJECTIVES.items()),
    {"type": "wrpo", "beta": 0.3, "alpha": RAMP, "nll_weight": 0.5},
    *({"type": "wrpo", "objective": o, "alpha": RAMP, "mix": "losses", **fields} for o, fields in OBJECTIVES.items()),
]
CASES = [(LOSS.validate_python(fields), fields) for fields in EXAMPLES]
ON_ROWS = [
    pytest.param(loss, row_type, id=f"{loss.type}-{fields.get('objective', 'x')}-{row_type.__name__}")
    for loss, fields in CASES
    for row_type in loss.row_types
]
PREFERENCE = [loss for loss, _ in CASES if isinstance(loss, PairLoss | WrpoLoss | WrpoIpoLoss)]


def test_every_member_of_the_union_has_an_example() -> None:
    assert {type(loss) for loss, _ in CASES} == set(LOSSES)


@pytest.mark.parametrize(("loss", "row_type"), ON_ROWS)
def test_gradients_are_those_of_finite_differences_and_rows_are_apart(loss, row_type) -> None:
    """Present responses move their own row's loss, absent ones and other rows move nothing; metrics are cut."""
    inputs = random_inputs(row_type, seed=6)
    names = list(inputs.policy.logps)

    def losses(*sums: torch.Tensor) -> torch.Tensor:
        return loss(with_logps(inputs, dict(zip(names, sums, strict=True)))).losses_B

    sums = [inputs.policy[role].clone().requires_grad_() for role in names]
    assert torch.autograd.gradcheck(losses, sums)
    found = losses(*sums)
    assert found.shape == (4,) and torch.isfinite(found).all()
    for row in range(4):
        gradients = torch.autograd.grad(found[row], sums, retain_graph=True)
        for role, gradient in zip(names, gradients, strict=True):
            assert gradient[[r for r in range(4) if r != row]].abs().sum() == 0
            assert torch.equal(gradient[row] != 0, inputs.policy.num_tokens[role][row] > 0), role
    for name, value in loss(with_logps(inputs, dict(zip(names, sums, strict=True)))).metrics.items():
        assert value.shape == (4,) and not value.requires_grad and value.dtype == torch.float32, name


@pytest.mark.parametrize(("loss", "row_type"), ON_ROWS)
def test_a_row_is_the_same_alone_and_among_others(loss, row_type) -> None:
    """The batch's width of a group role, and what other rows hold, changes nothing."""
    inputs = random_inputs(row_type, seed=7)
    whole = loss(inputs)
    for row in range(4):
        alone = loss(row_alone(inputs, row))
        torch.testing.assert_close(alone.losses_B, whole.losses_B[row : row + 1], rtol=1e-14, atol=0)
        assert alone.metrics.keys() == whole.metrics.keys()
        for name in whole.metrics:
            torch.testing.assert_close(alone.metrics[name], whole.metrics[name][row : row + 1])


@pytest.mark.parametrize(("loss", "row_type"), ON_ROWS)
def test_losses_without_a_reference_do_not_look_at_one(loss, row_type) -> None:
    inputs = random_inputs(row_type, seed=8)
    without = dataclasses.replace(inputs, reference=None)
    if loss.needs_reference:
        with pytest.raises(AssertionError, match="needs the log-probabilities of the reference"):
            loss(without)
    else:
        assert torch.equal(loss(without).losses_B, loss(inputs).losses_B)


@pytest.mark.parametrize(("loss", "row_type"), ON_ROWS)
def test_float32_with_large_values_stays_finite(loss, row_type) -> None:
    """Log-probabilities of thousands of nats, as of long responses, in float32: losses and gradients are finite."""
    for sign in (1, -1):
        inputs = random_inputs(row_type, seed=9)
        scaled = [
            SequenceLogps({r: (v * scale).float() for r, v in of.logps.items()}, of.num_tokens)
            for of, scale in ((inputs.policy, 4000 if sign > 0 else 1), (inputs.reference, 1 if sign > 0 else 4000))
        ]
        sums = {r: v.clone().requires_grad_() for r, v in scaled[0].logps.items()}
        policy = SequenceLogps(sums, inputs.policy.num_tokens)
        out = loss(dataclasses.replace(inputs, policy=policy, reference=scaled[1]))
        assert torch.isfinite(out.losses_B).all()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.losses_B.sum(), list(sums.values())))


@pytest.mark.parametrize(("loss", "row_type"), ON_ROWS)
def test_mass_counts_rows_or_tokens_and_nothing_of_weight_zero(loss, row_type) -> None:
    mass = loss.mass(torch.tensor([2, 3.5, 4, 5]), torch.tensor([1.0, 1.0, 0.5, 0.0]))
    per_token = loss.type == "sft" and loss.normalise == "tokens"
    assert mass.tolist() == ([2, 3.5, 2, 0] if per_token else [1, 1, 0.5, 0])


@pytest.mark.parametrize("loss", PREFERENCE, ids=lambda loss: loss.type)
def test_what_alarms_need_is_always_logged(loss) -> None:
    for row_type in loss.row_types:
        names = set(loss(random_inputs(row_type)).metrics)
        assert names >= {"logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies"}
        assert ("nll_loss" in names) == (loss.nll_weight > 0)
        assert ("alpha" in names) == (loss.type == "wrpo")


# ---- identities -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [p for p in PREFERENCE if p.needs_reference], ids=lambda loss: loss.type)
def test_policy_equal_to_reference(loss) -> None:
    """The margin is 0: logistic losses are ln 2, also with label smoothing, and IPO is (1 / (2 tau))^2."""
    for row_type in loss.row_types:
        inputs = random_inputs(row_type, rows=5, seed=3)
        same = dataclasses.replace(inputs, reference=inputs.policy)
        out = loss.model_copy(update={"nll_weight": 0.0})(same)
        expected = (1 / (2 * loss.tau)) ** 2 if hasattr(loss, "tau") else math.log(2)
        assert out.losses_B.tolist() == pytest.approx([expected] * 5, abs=1e-12)
        assert out.metrics["rewards/margins"].tolist() == [0.0] * 5


SUMMED = [
    {"type": "dpo", "beta": 0.3},
    {"type": "ipo", "tau": 0.3},
    {"type": "wrpo", "beta": 0.3, "alpha": 0.3},
    {"type": "wrpo", "objective": "ipo", "tau": 0.3, "alpha": 0.3},
]
PER_TOKEN = [
    {"type": "ln_dpo", "beta": 3.0},
    {"type": "ipo", "tau": 0.3, "log_ratios": "averaged"},
    {"type": "simpo", "beta": 2.0, "gamma": 0.5},
    {"type": "wrpo", "objective": "simpo", "beta": 2.0, "gamma": 0.5, "alpha": 0.3},
    {"type": "wrpo", "objective": "ln_dpo", "beta": 3.0, "alpha": 0.3},
]


@pytest.mark.parametrize(("fields", "averaged"), [(f, False) for f in SUMMED] + [(f, True) for f in PER_TOKEN])
def test_one_constant_cancels(fields, averaged) -> None:
    """Added to every response, or to every token where the loss is per token, it is on both sides of the margin."""
    loss = LOSS.validate_python(fields)
    for row_type in loss.row_types:
        inputs = random_inputs(row_type, rows=5, seed=4)
        tokens = inputs.policy.num_tokens
        moved = {r: v + 3.25 * (tokens[r] if averaged else tokens[r] > 0) for r, v in inputs.policy.logps.items()}
        torch.testing.assert_close(
            loss(with_logps(inputs, moved)).losses_B, loss(inputs).losses_B, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("held", [{"clip": None}, {"kl": 0.3}], ids=str)
def test_rloo_does_not_feel_a_constant_of_the_group_where_nothing_is_clipped(held) -> None:
    """Advantages sum to zero, so one constant added to all log-probabilities of a group changes no loss: every group of a
    row may have its own. Nor does a variance."""
    loss = LOSS.validate_python({"type": "rloo", **held})
    for row_type in loss.row_types:
        inputs = random_inputs(row_type, seed=4)
        constants = 3.25 + inputs.groups.get("responses", torch.zeros(1, dtype=torch.int64))
        moved = {r: v + constants * (inputs.policy.num_tokens[r] > 0) for r, v in inputs.policy.logps.items()}
        found, expected = loss(with_logps(inputs, moved)).losses_B, loss(inputs).losses_B
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ---- shapes and configs -----------------------------------------------------------------------


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"\(B,\)"):
        SequenceLogps(
            {"chosen": torch.zeros(3), "rejected": torch.zeros(3, 1, 1)},
            {"chosen": torch.ones(3), "rejected": torch.ones(3)},
        )
    with pytest.raises(AssertionError, match="same rows"):
        SequenceLogps(
            {"chosen": torch.zeros(3), "rejected": torch.zeros(2, MOST)},
            {"chosen": torch.ones(3), "rejected": torch.ones(2, MOST)},
        )


def test_means_leave_absent_responses_out() -> None:
    """(1 + 5) / 2, 7 / 1, and 0 where there is none; a role of one response is its own mean."""
    values = torch.tensor([[1.0, 5.0, 99.0], [7.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
    tokens = torch.tensor([[2, 1, 0], [4, 0, 0], [0, 0, 0]])
    assert mean_of_present(values, tokens).tolist() == [3.0, 7.0, 0.0]
    assert mean_of_present(values[:, :0], tokens[:, :0]).tolist() == [0.0, 0.0, 0.0]
    assert mean_of_present(values[:, 0], tokens[:, 0]).tolist() == [1.0, 7.0, 99.0]


@pytest.mark.parametrize(
    ("loss", "field"),
    [
        ({"type": "dpo"}, "beta"),
        ({"type": "wrpo", "beta": 0.1}, "alpha"),
        ({"type": "wrpo", "beta": 0.1, "alpha": 1.5}, "value"),
        ({"type": "wrpo", "beta": 0.1, "alpha": True}, "alpha"),
        ({"type": "wrpo", "beta": 0.1, "alpha": {"from": 0.0}}, "to"),
        ({"type": "wrpo", "beta": 0.1, "alpha": {"from": 0.0, "to": 0.5, "steps": 3}}, "steps"),
        (
            {"type": "wrpo", "beta": 0.1, "alpha": {"type": "cosine", "from": 0.0, "to": 0.5, "at": 0.5}},
            "unknown field 'at'",
        ),
        ({"type": "wrpo", "objective": "ipo", "beta": 0.1, "alpha": 0.5}, "unknown field 'beta'"),
        ({"type": "wrpo", "objective": "ipo", "tau": 0.1, "alpha": 0.5, "gamma": 1}, "unknown field 'gamma'"),
        ({"type": "wrpo", "objective": "simpo", "beta": 0.1, "alpha": 0.5}, "gamma"),
        ({"type": "wrpo", "objective": "hinge", "alpha": 0.5}, "'hinge' found using 'objective'"),
        ({"type": "wrpo", "beta": 0.1, "alpha": 0.5, "mix": "logps"}, "mix"),
        ({"type": "dpo", "beta": 0.1, "alpha": 0.5}, "alpha"),
        ({"type": "dpo", "beta": -1}, "beta"),
        ({"type": "dpo", "beta": 1, "label_smoothing": 0.5}, "label_smoothing"),
        ({"type": "dpo", "beta": 1, "nll_weight": -1}, "nll_weight"),
        ({"type": "ipo", "tau": 0}, "tau"),
        ({"type": "ipo", "tau": 1, "label_smoothing": 0.1}, "label_smoothing"),
        ({"type": "ipo", "tau": 1, "log_ratios": "mean"}, "log_ratios"),
        ({"type": "simpo", "beta": 2}, "gamma"),
        ({"type": "rloo", "clip": 0}, "clip"),
        ({"type": "rloo", "kl": 0}, "kl"),
        ({"type": "rloo", "kl": 0.1, "clip": 0.2}, "clip and kl are two ways"),
        ({"type": "rloo", "advantages": "whitened"}, "advantages"),
        ({"type": "rloo", "per": "word"}, "per"),
        ({"type": "sft", "normalise": "rows"}, "normalise"),
        ({"type": "sft", "beta": 1}, "beta"),
    ],
)
def test_wrong_losses_name_the_field(loss: dict, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        LOSS.validate_python(loss)


@pytest.mark.parametrize(("loss", "fields"), CASES, ids=lambda case: str(case)[:40])
def test_a_config_read_back_is_the_same(loss, fields) -> None:
    assert LOSS.validate_python(loss.model_dump()) == loss
    assert LOSS.validate_json(loss.model_dump_json()) == loss


def test_wrpo_without_an_objective_is_wrpo_over_dpo() -> None:
    loss = LOSS.validate_python({"type": "wrpo", "beta": 1.0, "alpha": {"from": 0.0, "to": 0.5}})
    assert type(loss) is WrpoLoss and loss.objective == "dpo"
    assert loss == LOSS.validate_python({**loss.model_dump(), "objective": "dpo"})
    assert (
        DpoLoss(beta=1).needs_reference
        and not LOSS.validate_python(
            {"type": "wrpo", "objective": "simpo", "beta": 1, "gamma": 0, "alpha": 0.5}
        ).needs_reference
    )
