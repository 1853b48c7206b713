"""Rules of FuseRL: weights, what they are at the ends of the temperature, and which answers have them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fusion.rows import Finish, WeightedGroups, WeightedPairs, WeightedResponses
from fusion.select import (
    Best,
    Drop,
    PromptGroup,
    Reason,
    SameSourcePair,
    SourceGroups,
    SourcePairs,
    WeightedAnswers,
)
from fusion.select.common import by_source
from fusion.select.weighted import entropy, softmax
from scored import answers, prompt, scored

AB = (*answers("a", 3.0, 5.0), *answers("b", 4.0, 1.0))
ABC = (*AB, *answers("c", 2.0))
E = math.e / (math.e + 1)


def group(*source) -> PromptGroup:
    return PromptGroup(prompt(), source)


def held(responses) -> list[tuple[str, float]]:
    return [(a.response.model, a.score) for a in responses]


# ---- worked examples of the docstrings ----------------------------------------------------------


def test_softmax_of_two_rewards():
    assert softmax([0.2, 0.1], 0.1) == pytest.approx((E, 1 - E))
    assert softmax([0.2, 0.1], None) == (0.5, 0.5)
    assert entropy((0.25,) * 4) == pytest.approx(math.log(4)) and entropy((1.0, 0.0)) == 0


def test_fusesft_takes_the_best_answer_of_each_source():
    row = WeightedAnswers(temperature=1.0)(group(*AB))
    assert isinstance(row, WeightedResponses) and held(row.responses) == [("a", 5.0), ("b", 4.0)]
    assert row.weights == pytest.approx((E, 1 - E)) and row.weights == pytest.approx((0.731, 0.269), abs=5e-4)


def test_or_the_best_answers_of_all_sources():
    row = WeightedAnswers(temperature=1.0, of="answers", most=3)(group(*AB))
    assert held(row.responses) == [("a", 5.0), ("b", 4.0), ("a", 3.0)]
    assert row.weights == pytest.approx((0.665, 0.245, 0.090), abs=5e-4)
    mean = WeightedAnswers(temperature=1.0, of="answers", most=3, reward="mean")(group(*AB))
    # Means are 4 for a and 2.5 for b, so the shares are as exp(1.5) : 1 : exp(1.5).
    total = 2 * math.exp(1.5) + 1
    assert mean.weights == pytest.approx([math.exp(1.5) / total, 1 / total, math.exp(1.5) / total])


def test_fusepo_takes_the_pair_of_each_source_that_has_one():
    row = SourcePairs(temperature=1.0)(group(*ABC))
    assert isinstance(row, WeightedPairs) and row.weight == 1.0
    assert held(row.chosen) == [("a", 5.0), ("b", 4.0)] and held(row.rejected) == [("a", 3.0), ("b", 1.0)]
    assert row.weights == pytest.approx((E, 1 - E))
    every = SourcePairs(temperature=None, count="pairs")(group(*ABC))
    assert every.weights == (0.5, 0.5) and every.weight == 2.0


def test_rloo_takes_all_answers_of_each_source_that_can_be_compared():
    row = SourceGroups(temperature=1.0)(group(*ABC))
    assert isinstance(row, WeightedGroups)
    assert held(row.responses) == [("a", 5.0), ("a", 3.0), ("b", 4.0), ("b", 1.0)]
    assert row.groups == (0, 0, 1, 1) and row.weights == pytest.approx((E, 1 - E))


def test_temperature_has_no_default_and_all_answers_of_everyone_are_not_fuserl():
    with pytest.raises(ValidationError, match="temperature"):
        WeightedAnswers()  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="of: answers needs most"):
        WeightedAnswers(temperature=1.0, of="answers")


def test_a_prompt_without_a_pair_is_dropped_with_the_best_sources_reason():
    for rule in (SourcePairs(temperature=1.0), SourceGroups(temperature=1.0)):
        outcome = rule(group(*answers("a", 2.0, 2.0), *answers("b", 1.0)))
        assert isinstance(outcome, Drop) and outcome.reason is Reason.tie


# ---- properties ---------------------------------------------------------------------------------

SCORES = st.sampled_from([0.0, 0.1, 0.13, 0.5, 1.0])
TEMPERATURES = st.sampled_from([None, 1e-9, 1e-3, 0.1, 1.0, 1e9])


@st.composite
def groups(draw) -> PromptGroup:
    return PromptGroup(
        prompt(),
        tuple(
            scored(model, draw(SCORES), sample, finish=draw(st.sampled_from([Finish.stop, Finish.stop, Finish.length])))
            for model in "abc"
            for sample in range(draw(st.integers(0, 3)))
        ),
    )


RULES = st.sampled_from([WeightedAnswers, SourcePairs, SourceGroups])


@given(groups(), RULES, TEMPERATURES, st.sampled_from(["max", "mean"]), st.sampled_from([None, 1, 2]))
def test_weights_sum_to_one_and_follow_the_rewards(whole, kind, temperature, reward, most):
    row = kind(temperature=temperature, reward=reward, most=most)(whole)
    if isinstance(row, Drop):
        return
    assert math.fsum(row.weights) == pytest.approx(1, abs=1e-12) and all(0 <= w <= 1 for w in row.weights)
    assert most is None or len(row.weights) <= most
    models = _models(row)
    assert len(set(models)) == len(models) == len(row.weights)
    finished = by_source(a for a in whole.source if a.response.finish_reason is Finish.stop)
    rewards = [kind(temperature=None, reward=reward).reward_of(finished[m]) for m in models]
    for i, mine in enumerate(rewards):
        for j, other in enumerate(rewards):
            assert mine < other or row.weights[i] >= row.weights[j]
    if temperature is not None and 0.1 <= temperature <= 1:
        expected = [math.exp(r / temperature) for r in rewards]
        assert row.weights == pytest.approx([e / sum(expected) for e in expected])


def _models(row) -> list[str]:
    if isinstance(row, WeightedGroups):
        return [
            next(r for r, g in zip(row.responses, row.groups, strict=True) if g == n).response.model
            for n in range(len(row.weights))
        ]
    return [a.response.model for a in (row.chosen if isinstance(row, WeightedPairs) else row.responses)]


@given(groups(), RULES)
def test_at_infinity_the_weights_are_uniform(whole, kind):
    hot, equal = kind(temperature=1e12)(whole), kind(temperature=None)(whole)
    if not isinstance(hot, Drop):
        assert hot.weights == pytest.approx(equal.weights)
        assert equal.weights == (1 / len(hot.weights),) * len(hot.weights)


@given(groups(), st.integers(0, 3))
def test_at_zero_the_best_source_has_everything(whole, seed):
    """With the best reward in one source alone, T -> 0 is rule `best`, and the pair is that of rule same_source_pair."""
    cold = WeightedAnswers(temperature=1e-9, seed=seed)(whole)
    if isinstance(cold, Drop):
        return
    rewards = [a.score for a in cold.responses]
    shared = rewards.count(max(rewards))
    assert cold.weights[:shared] == pytest.approx([1 / shared] * shared) and sum(cold.weights[shared:]) == 0
    best = Best(seed=seed)(whole)
    assert cold.responses[0] == best.response
    pairs, one = SourcePairs(temperature=1e-9, seed=seed)(whole), SameSourcePair(seed=seed)(whole)
    assert isinstance(pairs, Drop) == isinstance(one, Drop)
    if not isinstance(pairs, Drop) and [a.score for a in pairs.chosen].count(pairs.chosen[0].score) == 1:
        assert (pairs.chosen[0], pairs.rejected[0]) == (one.chosen, one.rejected) and pairs.weights[0] == 1


@given(groups(), st.integers(0, 3))
def test_with_one_member_the_rows_are_those_of_the_plain_rules(whole, seed):
    one = WeightedAnswers(temperature=0.1, most=1, seed=seed)(whole)
    best = Best(seed=seed)(whole)
    assert one == best if isinstance(best, Drop) else (one.responses, one.weights) == ((best.response,), (1.0,))


@given(groups(), TEMPERATURES, st.sampled_from([(0.0, None), (0.05, 0.4)]))
def test_pairs_and_groups_are_of_one_source_and_inside_the_margins(whole, temperature, window):
    low, high = window
    pairs = SourcePairs(temperature=temperature, min_margin=low, max_margin=high)(whole)
    grouped = SourceGroups(temperature=temperature, min_margin=low, max_margin=high)(whole)
    assert isinstance(pairs, Drop) == isinstance(grouped, Drop)
    if isinstance(pairs, Drop):
        return
    for chosen, rejected in zip(pairs.chosen, pairs.rejected, strict=True):
        assert chosen.response.model == rejected.response.model
        assert chosen.score - rejected.score > 0 and low <= chosen.score - rejected.score <= (high or 9)
    finished = by_source(a for a in whole.source if a.response.finish_reason is Finish.stop)
    for number, model in enumerate(_models(grouped)):
        own = [r for r, g in zip(grouped.responses, grouped.groups, strict=True) if g == number]
        assert sorted(own, key=repr) == sorted(finished[model], key=repr)
    assert _models(grouped) == _models(pairs) and grouped.weights == pytest.approx(pairs.weights)


def test_with_verdicts_a_source_weighs_what_its_correct_answers_are_worth():
    """b's wrong answer scores 5, its correct one 0.2; a's correct one 1: the shares are as exp(0.8) : 1."""
    source = (
        scored("a", 1.0, 0, verdict="correct"),
        scored("a", 0.0, 1, verdict="wrong"),
        scored("b", 0.2, 0, verdict="correct"),
        scored("b", 5.0, 1, verdict="wrong"),
    )
    expected = (math.exp(0.8) / (math.exp(0.8) + 1), 1 / (math.exp(0.8) + 1))
    pairs = SourcePairs(temperature=1.0, contrast="verdict")(group(*source))
    assert held(pairs.chosen) == [("a", 1.0), ("b", 0.2)] and pairs.weights == pytest.approx(expected)
    groups = SourceGroups(temperature=1.0, contrast="verdict")(group(*source))
    shares = dict(zip([r.response.model for r in groups.responses[::2]], groups.weights, strict=True))
    assert (shares["a"], shares["b"]) == pytest.approx(expected)


def test_a_group_whose_answers_are_scored_alike_is_a_tie_whatever_their_verdicts():
    alike = (scored("a", 0.0, 0, verdict="correct"), scored("a", 0.0, 1, verdict="wrong"))
    outcome = SourceGroups(temperature=1.0, contrast="verdict")(group(*alike))
    assert isinstance(outcome, Drop) and outcome.reason is Reason.tie


def test_by_the_mean_sources_are_ranked_by_their_means():
    """The docstrings' example: a (5, 0) has 2.5 on average and b (4, 3) has 3.5."""
    whole = group(*answers("a", 5.0, 0.0), *answers("b", 4.0, 3.0))
    one = {"temperature": 1.0, "most": 1, "reward": "mean"}
    assert held(WeightedAnswers(**one)(whole).responses) == [("b", 4.0)]
    assert held(SourcePairs(**one)(whole).rejected) == [("b", 3.0)]
    assert held(SourceGroups(**one)(whole).responses) == [("b", 4.0), ("b", 3.0)]
    both = WeightedAnswers(temperature=1.0, reward="mean")(whole)
    assert held(both.responses) == [("b", 4.0), ("a", 5.0)] and both.weights[0] > both.weights[1]
    assert held(WeightedAnswers(temperature=1.0, most=1)(whole).responses) == [("a", 5.0)]
