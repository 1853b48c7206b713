"""Schedules of alpha: spelling, exact end points, resuming, and the mean that the learning rate weights."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fusion.losses.alpha import (
    Alpha,
    ConstantAlpha,
    CosineAlpha,
    LinearAlpha,
    StepAlpha,
    learning_rate_weighted_mean_alphas,
)
from fusion.losses.wrpo import WrpoLoss

ALPHAS: TypeAdapter = TypeAdapter(Alpha)
MOVING = [LinearAlpha(from_=0.1, to=0.4), CosineAlpha(from_=0.1, to=0.4), StepAlpha(from_=0.1, to=0.4)]


def test_alpha_is_spelt_as_number_or_ramp() -> None:
    assert ALPHAS.validate_python(0.3) == ConstantAlpha(value=0.3)
    assert ALPHAS.validate_python(0) == ConstantAlpha(value=0)
    assert ALPHAS.validate_python("3e-1") == ConstantAlpha(value=0.3)  # how YAML reads 3e-1
    assert ALPHAS.validate_python({"from": 0.0, "to": 0.5}) == LinearAlpha(from_=0.0, to=0.5)
    assert ALPHAS.validate_python({"value": 0.2}) == ConstantAlpha(value=0.2)
    assert ALPHAS.validate_python({"type": "step", "from": 0, "to": 1, "at": 0.3}) == StepAlpha(from_=0, to=1, at=0.3)


@pytest.mark.parametrize("alpha", [ConstantAlpha(value=0.3), *MOVING], ids=lambda a: a.type)
def test_alpha_read_back_is_the_same(alpha) -> None:
    assert ALPHAS.validate_python(alpha.model_dump()) == alpha
    assert LinearAlpha(from_=0.1, to=0.5).model_dump() == {"type": "linear", "from": 0.1, "to": 0.5}


def test_schedules_by_hand() -> None:
    """Five steps, progress 0, 1/4, 1/2, 3/4, 1, from 0 to 1; (1 - cos(pi / 4)) / 2 = 0.1464466094."""
    course = {a.type: [a.value_at(t, 5) for t in range(5)] for a in (cls(from_=0, to=1) for cls in map(type, MOVING))}
    assert course["linear"] == [0, 0.25, 0.5, 0.75, 1]
    assert course["cosine"] == pytest.approx([0, 0.1464466094, 0.5, 0.8535533906, 1], abs=1e-10)
    assert course["step"] == [0, 0, 1, 1, 1]
    assert [StepAlpha(from_=0.2, to=0.8, at=0.75).value_at(t, 5) for t in range(5)] == [0.2, 0.2, 0.2, 0.8, 0.8]
    assert [StepAlpha(from_=0.2, to=0.8, at=1).value_at(t, 5) for t in range(5)] == [0.2, 0.2, 0.2, 0.2, 0.8]
    assert [ConstantAlpha(value=0.3).value_at(t, 5) for t in range(5)] == [0.3] * 5


@given(st.sampled_from(["linear", "cosine", "step"]), st.floats(0, 1), st.floats(0, 1), st.integers(2, 1000), st.data())
def test_end_points_are_exact_and_what_is_between_lies_between(kind, start, end, total, data) -> None:
    alpha = ALPHAS.validate_python({"type": kind, "from": start, "to": end})
    assert (alpha.value_at(0, total), alpha.value_at(total - 1, total)) == (start, end)
    assert alpha.value_at(total + 3, total) == end
    values = [alpha.value_at(t, total) for t in sorted(data.draw(st.sets(st.integers(0, total - 1), max_size=5)))]
    assert all(min(start, end) - 1e-15 <= v <= max(start, end) + 1e-15 for v in values)
    ups = [(after - before) * (1 if end >= start else -1) for before, after in itertools.pairwise(values)]
    assert all(up >= -1e-15 for up in ups)
    if kind == "step":
        assert set(values) <= {start, end}


@pytest.mark.parametrize("alpha", MOVING, ids=lambda a: a.type)
@pytest.mark.parametrize("total", [0, 1])
def test_runs_of_one_step_or_none_have_the_first_value(alpha, total) -> None:
    assert alpha.value_at(0, total) == 0.1


def test_learning_rate_weighted_mean_alpha() -> None:
    """Rates 1, 2, 1 and alpha 0, 0.5, 1: 0, then (0 + 1) / 3, then (0 + 1 + 1) / 4 = 0.5.

    The published run (311 steps, rates t / 32 then cosine, alpha = end * t / 311) has 0.339 of its end; here alpha is
    end * t / 310.
    """
    assert learning_rate_weighted_mean_alphas(LinearAlpha(from_=0, to=1), [1, 2, 1]) == [0, 1 / 3, 0.5]
    rates = [t / 32 if t < 32 else 0.5 * (1 + math.cos(math.pi * (t - 32) / (311 - 32))) for t in range(311)]
    mean = learning_rate_weighted_mean_alphas(LinearAlpha(from_=0, to=1), rates)[-1]
    assert mean * 310 / 311 == pytest.approx(0.339, abs=5e-4)
    still = learning_rate_weighted_mean_alphas(LinearAlpha(from_=0.2, to=0.6), [0, 0, 0])
    assert still == pytest.approx([0.2, 0.3, 0.4])


@pytest.mark.parametrize("alpha", [ConstantAlpha(value=0.3), *MOVING], ids=lambda a: a.type)
def test_the_mean_is_that_of_any_schedule_also_under_way(alpha) -> None:
    """After two of five steps with rates 1 and 3: (1 * alpha_0 + 3 * alpha_1) / 4, with the alphas of the whole run."""
    rates = [1, 3, 2, 2, 1]
    alphas = [alpha.value_at(step, 5) for step in range(5)]
    expected = [sum(r * a for r, a in zip(rates[:n], alphas, strict=False)) / sum(rates[:n]) for n in range(1, 6)]
    assert expected[1] == (alphas[0] + 3 * alphas[1]) / 4
    assert learning_rate_weighted_mean_alphas(alpha, rates) == pytest.approx(expected, abs=1e-15)
    logged = WrpoLoss(beta=1, alpha=alpha).schedule_metrics(rates)
    assert logged == {"alpha_lr_weighted_mean": pytest.approx(expected, abs=1e-15)}


def test_a_constant_rate_gives_the_middle_of_a_symmetric_schedule() -> None:
    """Linear and cosine from 0.1 to 0.4 are symmetric about 0.25."""
    for alpha in MOVING[:2]:
        assert learning_rate_weighted_mean_alphas(alpha, [1e-6] * 101)[-1] == pytest.approx(0.25, abs=1e-12)
