"""Selection rules: worked examples, what is dropped and why, and properties over random groups."""

import dataclasses
import functools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fusion.rows import (
    Finish,
    PreferencePair,
    PreferenceQuadruple,
    PreferenceSet,
    ResponseGroup,
    SftExample,
    responses_of,
    roles,
)
from fusion.select import (
    RULES,
    Best,
    Drop,
    Group,
    OnPolicyPair,
    PromptGroup,
    Quadruple,
    Reason,
    SameSourcePair,
    SourceGroups,
    SourcePair,
    SourcePairs,
    SourceSet,
    Split,
)
from scored import answers, prompt, scored


def group(source=(), own=()) -> PromptGroup:
    return PromptGroup(prompt(), tuple(source), tuple(own))


def taken(row) -> dict[str, tuple[str, float]]:
    found = {role: getattr(row, role) for role in roles(type(row))}
    return {role: (a.response.model, a.score) for role, a in found.items()}


# ---- worked examples --------------------------------------------------------------------------


def test_best_takes_the_highest_finished_answer_of_all_sources():
    cut = scored("b", 5.0, 1, finish=Finish.length)
    row = Best()(group([*answers("a", 1.0, 3.0), scored("b", 2.0), cut]))
    assert isinstance(row, SftExample) and taken(row) == {"response": ("a", 3.0)}
    row = Best(allow_length=True)(group([*answers("a", 1.0, 3.0), scored("b", 2.0), cut]))
    assert taken(row) == {"response": ("b", 5.0)}


def test_quadruple_is_best_source_best_own_worst_own():
    row = Quadruple()(group([*answers("a", 5.0), *answers("b", 7.0)], answers("sft", 2.0, 4.0, 1.0)))
    assert isinstance(row, PreferenceQuadruple)
    assert taken(row) == {"source_chosen": ("b", 7.0), "target_chosen": ("sft", 4.0), "rejected": ("sft", 1.0)}


def test_quadruple_takes_the_source_answer_of_any_rank_and_says_where_there_is_none():
    sources, own = [*answers("a", 5.0, 1.0), *answers("b", 7.0)], answers("sft", 2.0, 4.0, 1.0)
    for rank, expected in enumerate([("b", 7.0), ("a", 5.0), ("a", 1.0)], start=1):
        assert taken(Quadruple(source_rank=rank)(group(sources, own)))["source_chosen"] == expected
    drop = Quadruple(source_rank=4)(group(sources, own))
    assert drop == Drop(Reason.no_source_response, "source answers: 3; asked for is the one of rank 4")


def test_on_policy_pair_is_best_and_worst_own():
    row = OnPolicyPair()(group((), answers("sft", 2.0, 4.0, 1.0)))
    assert isinstance(row, PreferencePair)
    assert taken(row) == {"chosen": ("sft", 4.0), "rejected": ("sft", 1.0)}


def test_source_pair_over_all_sources_or_within_the_best_one():
    sources = [*answers("a", 3.0, 5.0), *answers("b", 1.0, 4.0)]
    assert taken(SourcePair()(group(sources))) == {"chosen": ("a", 5.0), "rejected": ("b", 1.0)}
    assert taken(SameSourcePair()(group(sources))) == {"chosen": ("a", 5.0), "rejected": ("a", 3.0)}


def held(row) -> dict[str, list[tuple[str, float]]]:
    return {role: [(a.response.model, a.score) for a in responses_of(row, role)] for role in roles(type(row))}


def test_preference_set_is_the_best_of_the_best_sources_and_the_worst_source_answers():
    sources = [*answers("a", 5.0, 1.0), *answers("b", 7.0), *answers("c", 2.0)]
    own = answers("sft", 2.0, 4.0, 0.0)
    row = SourceSet(source_chosen=2, source_rejected=1)(group(sources, own))
    assert isinstance(row, PreferenceSet) and held(row) == {
        "source_chosen": [("b", 7.0), ("a", 5.0)],
        "target_chosen": [("sft", 4.0)],
        "source_rejected": [("a", 1.0)],
        "rejected": [("sft", 0.0)],
    }
    more = SourceSet(source_chosen=9, source_rejected=9)(group(sources, own))
    assert held(more)["source_chosen"] == [("b", 7.0), ("a", 5.0), ("c", 2.0)]
    assert held(more)["source_rejected"] == [("a", 1.0)]  # all others are chosen


def test_preference_set_avoids_no_answer_that_ties_with_or_repeats_a_chosen_one():
    own = answers("sft", 2.0, 4.0)
    tied = SourceSet(source_chosen=1, source_rejected=2)(group(answers("a", 5.0, 5.0), own))
    assert held(tied)["source_rejected"] == []
    between = SourceSet(source_chosen=2, source_rejected=2)(
        group([*answers("a", 5.0, 3.0), *answers("b", 2.0, 1.0)], own)
    )
    assert held(between)["source_rejected"] == [("b", 1.0)]  # a's 3 is better than b's chosen 2
    same = [scored("a", 5.0, 0, text="x"), scored("b", 1.0, 0, text="x"), scored("b", 2.0, 1, text="y")]
    row = SourceSet(source_chosen=1, source_rejected=2)(group(same, own))
    assert held(row)["source_rejected"] == [("b", 2.0)]


def test_response_group_is_all_answers_of_the_sources_of_the_best_one_or_of_the_target():
    sources = [*answers("a", 3.0, 5.0), *answers("b", 1.0, 4.0)]
    whole = group(sources, answers("sft", 2.0, 6.0))
    row = Group()(whole)
    assert isinstance(row, ResponseGroup)
    assert held(row) == {"responses": [("a", 5.0), ("b", 4.0), ("a", 3.0), ("b", 1.0)]}
    assert held(Group(of="best_source")(whole)) == {"responses": [("a", 5.0), ("a", 3.0)]}
    assert held(Group(of="own")(whole)) == {"responses": [("sft", 6.0), ("sft", 2.0)]}


def test_groups_say_which_answers_they_need():
    assert [(Group(of=of).needs_own, Group(of=of).needs_sources) for of in ("sources", "best_source", "own")] == [
        (False, True),
        (False, True),
        (True, False),
    ]
    with pytest.raises(ValidationError, match="of: own needs side: preference, not all"):
        Group(of="own", side="all")


OWN = answers("sft", 1.0, 2.0)
CUT = (scored("a", 1.0, finish=Finish.length),)
SAME = (scored("sft", 1.0, 0, text="x"), scored("sft", 2.0, 1, text="x"))


@pytest.mark.parametrize(
    ("rule", "given_group", "reason"),
    [
        (Best(), group(), Reason.no_source_response),
        (Best(), group(CUT), Reason.only_truncated),
        (Quadruple(), group((), OWN), Reason.no_source_response),
        (Quadruple(), group(CUT, OWN), Reason.only_truncated),
        (Quadruple(), group(answers("a", 1.0)), Reason.no_own_response),
        (Quadruple(), group(answers("a", 1.0), answers("sft", 2.0, 2.0, 2.0)), Reason.tie),
        (OnPolicyPair(), group((), answers("sft", 2.0)), Reason.single_response),
        (OnPolicyPair(min_margin=1.5), group((), OWN), Reason.below_margin),
        (OnPolicyPair(max_margin=0.5), group((), OWN), Reason.above_margin),
        (OnPolicyPair(), group((), SAME), Reason.identical_text),
        (SourcePair(), group(answers("a", 2.0, 2.0)), Reason.tie),
        (SameSourcePair(), group([*answers("a", 5.0), *answers("b", 1.0)]), Reason.single_response),
        (SourceSet(source_chosen=2), group((), OWN), Reason.no_source_response),
        (SourceSet(source_chosen=2), group(CUT, OWN), Reason.only_truncated),
        (SourceSet(source_chosen=2), group(answers("a", 1.0)), Reason.no_own_response),
        (SourceSet(source_chosen=2), group(answers("a", 1.0), answers("sft", 2.0, 2.0)), Reason.tie),
        (Group(), group((), OWN), Reason.no_source_response),
        (Group(), group(CUT), Reason.only_truncated),
        (Group(), group(answers("a", 1.0)), Reason.single_response),
        (Group(), group([*answers("a", 1.0), *answers("b", 1.0)]), Reason.tie),
        (Group(of="best_source"), group([*answers("a", 5.0), *answers("b", 1.0)]), Reason.single_response),
        (Group(of="own"), group(answers("a", 1.0, 2.0)), Reason.no_own_response),
        (Group(min_margin=1.5), group(answers("a", 1.0, 2.0)), Reason.below_margin),
        (Group(max_margin=0.5), group(answers("a", 1.0, 2.0)), Reason.above_margin),
    ],
)
def test_drops_have_their_reason(rule, given_group, reason):
    outcome = rule(given_group)
    assert isinstance(outcome, Drop) and outcome.reason is reason


def test_margins_are_inclusive():
    assert isinstance(OnPolicyPair(min_margin=1.0, max_margin=1.0)(group((), OWN)), PreferencePair)


@pytest.mark.parametrize(
    ("scores", "window", "detail"),
    [
        ((0.10, 0.11), {"min_margin": 0.01}, "margin 0.009999999999999995 < 0.01"),
        ((0.3, 0.4), {"max_margin": 0.1}, "margin 0.10000000000000003 > 0.1"),
        ((0.10, 0.109999), {"min_margin": 0.01}, "margin 0.009998999999999994 < 0.01"),
    ],
)
def test_a_margin_beside_its_bound_is_told_with_the_digits_that_tell_them_apart(scores, window, detail):
    outcome = OnPolicyPair(**window)(group((), answers("sft", *scores)))
    assert isinstance(outcome, Drop) and outcome.detail == detail


def test_a_window_that_nothing_can_pass_is_refused():
    with pytest.raises(ValidationError, match=r"max_margin 0\.1 is below min_margin 0\.2"):
        Quadruple(min_margin=0.2, max_margin=0.1)


@pytest.mark.parametrize("rule", [Quadruple, OnPolicyPair, functools.partial(SourceSet, source_chosen=1)])
def test_rules_on_own_answers_are_for_the_preference_side(rule):
    with pytest.raises(ValidationError, match="preference"):
        rule(side="all")


# ---- properties over all rules ----------------------------------------------------------------

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=4)
FINISHES = st.sampled_from([Finish.stop, Finish.stop, Finish.length])


@st.composite
def groups(draw) -> PromptGroup:
    def side(*models):
        return tuple(
            scored(model, score, i, prompt_id="p", text=draw(st.sampled_from("xyz")), finish=draw(FINISHES))
            for model in models
            for i, score in enumerate(draw(SCORES))
        )

    return PromptGroup(prompt(), side("a", "b"), side("sft"))


@pytest.mark.parametrize("rule_type", RULES)
@given(data=st.data())
def test_every_rule_keeps_its_promises(rule_type, data):
    fields = {"seed": data.draw(st.integers(0, 3)), "allow_length": data.draw(st.booleans())}
    if "min_margin" in rule_type.model_fields:
        fields |= {
            "min_margin": data.draw(st.sampled_from([0.0, 0.5])),
            "max_margin": data.draw(st.sampled_from([None, 0.5])),
        }
    if rule_type is SourceSet:
        fields |= {
            name: data.draw(st.integers(least, 3)) for name, least in (("source_chosen", 1), ("source_rejected", 0))
        }
    if "temperature" in rule_type.model_fields:
        fields |= {"temperature": data.draw(st.sampled_from([None, 1e-9, 0.1, 1e9]))}
    if rule_type is Group:
        fields |= {"of": data.draw(st.sampled_from(["sources", "best_source", "own"]))}
    rule = rule_type(**fields)
    whole = data.draw(groups())
    outcome = rule(whole)
    shuffled = PromptGroup(
        whole.prompt, tuple(data.draw(st.permutations(whole.source))), tuple(data.draw(st.permutations(whole.own)))
    )
    assert rule(shuffled) == outcome
    if isinstance(outcome, Drop):
        return
    assert type(outcome) is rule.row_type and outcome.prompt == whole.prompt
    rows = {role: responses_of(outcome, role) for role in roles(rule.row_type)}
    for role, responses in rows.items():
        for row in responses:
            assert row in usable(rule, whole.own if row.response.model == "sft" else whole.source)
        if responses:
            pool = usable(rule, whole.own if responses[0].response.model == "sft" else whole.source)
            extreme = min if role == "rejected" else max
            within = rule_type in (SameSourcePair, SourcePairs, SourceGroups)  # sources without a pair give nothing
            assert within or role == "source_rejected" or responses[0].score == extreme(a.score for a in pool)
        scores = [row.score for row in responses]
        ordered = (rule_type, role) not in ((SourcePairs, "rejected"), (SourceGroups, "responses"))
        assert not ordered or scores == sorted(scores, reverse=role != "source_rejected")
        assert len({(row.response.model, row.response.sample) for row in responses}) == len(responses)
    if "min_margin" in rule_type.model_fields:
        chosen = rows.get("target_chosen") or rows.get("chosen") or rows["responses"]
        rejected = rows.get("rejected", chosen)[-1]
        if rule_type in (SourcePairs, SourceGroups):
            return  # pair by pair in test_select_weighted.py
        margin = chosen[0].score - rejected.score
        assert margin > 0 and margin >= rule.min_margin and margin <= (rule.max_margin or margin)
        assert "responses" in rows or chosen[0].response.text != rejected.response.text


def usable(rule, pool):
    return [a for a in pool if rule.allow_length or a.response.finish_reason is Finish.stop]


@given(groups(), st.integers(0, 5))
def test_ranks_of_quadruples_hand_out_every_source_answer_once_best_first(whole, seed):
    """Ties included, and the first is that of the rule without a rank."""
    pool = usable(Quadruple(), whole.source)
    rows = [Quadruple(seed=seed, source_rank=rank + 1)(whole) for rank in range(len(pool) + 1)]
    if isinstance(rows[0], Drop):
        return
    found = [row.source_chosen for row in rows[:-1]]
    assert found[0] == Quadruple(seed=seed)(whole).source_chosen and isinstance(rows[-1], Drop)
    assert [a.score for a in found] == sorted((a.score for a in pool), reverse=True)
    assert len({(a.response.model, a.response.sample) for a in found}) == len(pool)


@given(groups(), st.integers(0, 5), st.integers(1, 3), st.integers(0, 3))
def test_preference_sets_have_one_answer_per_source_and_extend_quadruples(whole, seed, most, avoided):
    """One source and nothing to avoid is the quadruple, ties and drops included; more only adds answers."""
    row = SourceSet(seed=seed, source_chosen=most, source_rejected=avoided)(whole)
    least, quadruple = SourceSet(seed=seed, source_chosen=1)(whole), Quadruple(seed=seed)(whole)
    if isinstance(row, Drop):
        assert row == least == quadruple
        return
    assert isinstance(least, PreferenceSet) and isinstance(quadruple, PreferenceQuadruple)
    assert least.source_chosen == row.source_chosen[:1] == (quadruple.source_chosen,)
    assert least.source_rejected == ()
    assert (row.target_chosen, row.rejected) == (quadruple.target_chosen, quadruple.rejected)
    finished = [a for a in whole.source if a.response.finish_reason is Finish.stop]
    models = [a.response.model for a in row.source_chosen]
    assert len(set(models)) == len(models) == min(most, len({a.response.model for a in finished}))
    for answer in row.source_chosen:
        assert answer.score == max(a.score for a in finished if a.response.model == answer.response.model)
    texts = {a.response.text for a in row.source_chosen}
    below = [a.score for a in finished if a.score < row.source_chosen[-1].score and a.response.text not in texts]
    assert [a.score for a in row.source_rejected] == sorted(below)[:avoided]


@given(groups(), st.integers(0, 5), st.sampled_from(["sources", "best_source", "own"]))
def test_response_groups_leave_out_no_answer(whole, seed, of):
    row = Group(seed=seed, of=of)(whole)
    if isinstance(row, Drop):
        return
    pool = usable(Group(), whole.own if of == "own" else whole.source)
    if of == "best_source":
        pool = [a for a in pool if a.response.model == row.responses[0].response.model]
    assert Counter(map(id, row.responses)) == Counter(map(id, pool))


@given(groups(), st.integers(0, 5))
def test_same_source_pairs_have_one_source(whole, seed):
    row = SameSourcePair(seed=seed)(whole)
    assert isinstance(row, Drop) or row.chosen.response.model == row.rejected.response.model


def test_ties_fall_to_every_answer_alike_over_seeds_and_over_prompts():
    tied = [*answers("a", 1.0, 1.0), *answers("b", 1.0, 1.0)]
    over_seeds = Counter(Best(seed=seed)(group(tied)).response.response.row_id for seed in range(2000))
    over_prompts = Counter()
    for i in range(2000):
        mine = [dataclasses.replace(a, response=dataclasses.replace(a.response, prompt_id=f"p{i}")) for a in tied]
        row = Best()(PromptGroup(prompt(f"p{i}"), tuple(mine)))
        over_prompts[row.response.response.model, row.response.response.sample] += 1
    # 500 expected of 2000, standard deviation 19.4: five of them to either side.
    for counts in (over_seeds, over_prompts):
        assert len(counts) == 4 and all(403 <= n <= 597 for n in counts.values())


def test_ties_at_the_top_and_at_the_bottom_are_drawn_apart():
    own = answers("sft", 0.0, 0.0, 1.0, 1.0)
    rows = [OnPolicyPair(seed=seed)(group((), own)) for seed in range(400)]
    counts = Counter((r.chosen.response.sample, r.rejected.response.sample) for r in rows)
    assert len(counts) == 4 and min(counts.values()) > 60


# ---- split ------------------------------------------------------------------------------------


@given(
    st.sets(st.text(max_size=8), max_size=60),
    st.integers(0, 5),
    st.integers(1, 5),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_split_is_exact_and_independent_of_order(ids, sft, preference, seed, rng: random.Random):
    split = Split(sft=sft, preference=preference, seed=seed)
    ids = sorted(ids)
    shuffled = rng.sample(ids, len(ids))
    sides = split.assign(ids)
    assert sides == split.assign(shuffled)
    assert list(sides) == ids
    counts = Counter(sides.values())
    assert abs(counts["sft"] - len(ids) * sft / (sft + preference)) <= 0.5
    assert counts["sft"] + counts["preference"] == len(ids)


def test_split_depends_on_the_seed_and_favours_no_prompt():
    ids = [f"p{i}" for i in range(9)]
    wins = Counter(
        i for seed in range(900) for i, s in Split(sft=1, preference=2, seed=seed).assign(ids).items() if s == "sft"
    )
    # 300 expected of 900, standard deviation 14.1.
    assert all(230 <= wins[i] <= 370 for i in ids)


def test_split_of_the_paper():
    sides = Counter(Split(sft=1, preference=2, seed=42).assign(str(i) for i in range(59_876)).values())
    assert sides == {"sft": 19_959, "preference": 39_917}


def test_split_refuses_nothing_to_share_and_repeated_ids():
    with pytest.raises(ValidationError, match="both 0"):
        Split(sft=0, preference=0, seed=0)
    with pytest.raises(ValueError, match="'b' occurs twice"):
        Split(sft=1, preference=1, seed=0).assign(["a", "b", "c", "b"])
