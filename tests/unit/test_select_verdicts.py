"""Rules of FuseChat-3.0: verdicts, same-source pairs, windows, guards, one rule per domain."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fusion.rows import PreferencePair, PreferenceQuadruple, SftExample, Verdict
from fusion.select import (
    Best,
    ByDomain,
    Drop,
    Guard,
    OnPolicyPair,
    PromptGroup,
    Quadruple,
    Reason,
    Rule,
    SameSourcePair,
    SourcePair,
    SourceSet,
    with_seed,
)
from fusion.select.common import by_source
from fusion.select.guard import allowed_wins, tilt
from scored import answers, prompt, scored

RULE = TypeAdapter(Rule)


def group(*source, own=()) -> PromptGroup:
    return PromptGroup(prompt(), source, own)


def pair(row) -> tuple[tuple[str, float], tuple[str, float]]:
    assert isinstance(row, PreferencePair), row
    return tuple((a.response.model, a.score) for a in (row.chosen, row.rejected))  # type: ignore[return-value]


# ---- worked examples of the docstrings ----------------------------------------------------------

ABC = (*answers("a", 3.0, 5.0), *answers("b", 1.0, 4.0), *answers("c", 4.5))


@pytest.mark.parametrize(
    ("choose", "expected"),
    [("best", (("a", 5.0), ("a", 3.0))), ("widest", (("b", 4.0), ("b", 1.0))), ("closest", (("a", 5.0), ("a", 3.0)))],
)
def test_which_source_supplies_the_pair(choose, expected):
    assert pair(SameSourcePair(choose=choose)(group(*ABC))) == expected


def test_a_source_outside_the_window_supplies_none_and_another_may():
    assert pair(SameSourcePair(choose="widest", max_margin=2.0)(group(*ABC))) == (("a", 5.0), ("a", 3.0))
    assert pair(SameSourcePair(min_margin=2.5)(group(*ABC))) == (("b", 4.0), ("b", 1.0))
    outcome = SameSourcePair(min_margin=9.0)(group(*ABC))
    assert outcome == Drop(Reason.below_margin, "margin 2 < 9")  # the reason of a, which gave the best answer


def test_random_choice_favours_no_source():
    wide = (*answers("a", 3.0, 5.0), *answers("b", 1.0, 4.0))
    won = Counter(pair(SameSourcePair(choose="random", seed=seed)(group(*wide)))[0][0] for seed in range(600))
    assert won.keys() == {"a", "b"} and 240 <= won["a"] <= 360  # 300 expected, standard deviation 12.2


CORRECT_AND_WRONG = (
    scored("a", 0.9, 0, verdict="wrong"),
    scored("a", 0.5, 1, verdict="correct"),
    scored("a", 0.7, 2, verdict="correct"),
    scored("a", 0.6, 3, verdict="wrong"),
    scored("b", 0.8, 0, verdict="correct"),
    scored("b", 0.1, 1, verdict="unparsable"),
)


def test_correct_with_the_highest_score_against_wrong_with_the_lowest():
    """a: correct 0.5 and 0.7, wrong 0.9 and 0.6: (0.7, 0.6). b has no wrong one unless unparsable counts: (0.8, 0.1)."""
    assert pair(SameSourcePair(contrast="verdict")(group(*CORRECT_AND_WRONG))) == (("a", 0.7), ("a", 0.6))
    lenient = SameSourcePair(contrast="verdict", unparsable_is_wrong=True)
    assert pair(lenient(group(*CORRECT_AND_WRONG))) == (("b", 0.8), ("b", 0.1))
    assert pair(SourcePair(contrast="verdict")(group(*CORRECT_AND_WRONG))) == (("b", 0.8), ("a", 0.6))


def test_a_correct_answer_may_score_below_the_wrong_one_unless_a_margin_is_asked():
    odd = (scored("a", 0.2, 0, verdict="correct"), scored("a", 0.9, 1, verdict="wrong"))
    assert pair(SameSourcePair(contrast="verdict")(group(*odd))) == (("a", 0.2), ("a", 0.9))
    outcome = SameSourcePair(contrast="verdict", min_margin=0.01)(group(*odd))
    assert isinstance(outcome, Drop) and outcome.reason is Reason.below_margin


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        (("wrong", "wrong"), Reason.no_correct),  # code: prompts where every answer fails are dropped
        (("correct", "correct"), Reason.no_wrong),
        (("correct", "unparsable"), Reason.no_wrong),
        ((None, None), Reason.no_correct),
    ],
)
def test_prompts_whose_answers_are_all_alike_are_dropped(verdicts, reason):
    source = [scored("a", 1.0 - i, i, verdict=v) for i, v in enumerate(verdicts)]
    outcome = SameSourcePair(contrast="verdict")(group(*source))
    assert isinstance(outcome, Drop) and outcome.reason is reason


def test_sft_takes_the_best_correct_answer():
    """The docstring of Best: a (1, 3) and b (2, 5), 3 and 5 wrong: b's 2."""
    source = [
        scored("a", 1.0, 0, verdict="correct"),
        scored("a", 3.0, 1, verdict="wrong"),
        scored("b", 2.0, 0, verdict="correct"),
        scored("b", 5.0, 1, verdict="wrong"),
    ]
    row = Best(only_correct=True)(group(*source))
    assert isinstance(row, SftExample) and (row.response.response.model, row.response.score) == ("b", 2.0)
    assert Best(only_correct=True)(group(*source[1::2])) == Drop(Reason.no_correct, "verdicts of 2 answers: 2 wrong")


def test_own_pairs_of_wrpo_can_be_told_apart_by_verdicts_too():
    own = (scored("sft", 0.3, 0, verdict="correct"), scored("sft", 0.9, 1, verdict="wrong"))
    source = (scored("a", 1.0, 0, verdict="wrong"), scored("a", 0.4, 1, verdict="correct"))
    row = Quadruple(contrast="verdict")(group(*source, own=own))
    assert isinstance(row, PreferenceQuadruple) and row.source_chosen.score == 0.4  # a chosen answer is a correct one
    assert Quadruple(contrast="verdict")(group(source[0], own=own)) == Drop(
        Reason.no_correct, "verdicts of 1 answers: 1 wrong"
    )
    many = (*source, scored("b", 0.2, 0, verdict="correct"), scored("b", 0.1, 1, verdict="wrong"))
    wide = SourceSet(contrast="verdict", source_chosen=1, source_rejected=3)(group(*many, own=own))
    assert [a.score for a in wide.source_chosen] == [0.4] and [a.score for a in wide.source_rejected] == [0.1]
    assert isinstance(row, PreferenceQuadruple) and (row.target_chosen.score, row.rejected.score) == (0.3, 0.9)
    assert pair(OnPolicyPair(contrast="verdict")(group(own=own))) == (("sft", 0.3), ("sft", 0.9))


def test_length_ratio_guards_a_pair():
    long = (scored("a", 1.0, 0, text="x" * 40), scored("a", 0.0, 1, text="y" * 10))
    assert pair(SameSourcePair(max_length_ratio=4.0)(group(*long)))
    assert SameSourcePair(max_length_ratio=3.9)(group(*long)) == Drop(Reason.length_ratio, "40 characters against 10")
    empty = (scored("a", 1.0, 0, text="x"), scored("a", 0.0, 1, text=""))
    assert isinstance(SameSourcePair(max_length_ratio=100.0)(group(*empty)), Drop)


def test_a_setting_without_effect_is_refused():
    with pytest.raises(ValidationError, match="unparsable_is_wrong has no effect with contrast: score"):
        SameSourcePair(unparsable_is_wrong=True)


# ---- properties ---------------------------------------------------------------------------------

VERDICTS = st.sampled_from(["correct", "wrong", "unparsable", None])


@st.composite
def judged(draw) -> PromptGroup:
    source = []
    for model in "abc":
        for sample in range(draw(st.integers(0, 4))):
            score = draw(st.sampled_from([0.0, 0.02, 0.05, 0.09, 0.2, 0.5]))
            text = draw(st.sampled_from(["x", "yy", "z" * 9]))
            source.append(scored(model, score, sample, verdict=draw(VERDICTS), text=text))
    return PromptGroup(prompt(), tuple(source))


@given(judged(), st.sampled_from(["best", "widest", "closest", "random"]), st.integers(0, 3), st.data())
def test_same_source_pairs_have_one_source_and_keep_to_the_window(whole, choose, seed, data):
    contrast = data.draw(st.sampled_from(["score", "verdict"]))
    low, high = data.draw(st.sampled_from([(0.0, None), (0.01, 0.1)]))
    rule = SameSourcePair(choose=choose, seed=seed, contrast=contrast, min_margin=low, max_margin=high)
    row = rule(whole)
    shuffled = PromptGroup(whole.prompt, tuple(data.draw(st.permutations(whole.source))))
    assert rule(shuffled) == row
    if isinstance(row, Drop):
        # No source has a pair: checked against the definition, answer by answer.
        for own in by_source(whole.source).values():
            assert not _has_pair(own, contrast, low, high)
        return
    assert row.chosen.response.model == row.rejected.response.model
    assert row.chosen.response.text != row.rejected.response.text
    margin = row.chosen.score - row.rejected.score
    assert high is None or low <= margin <= high
    if contrast == "verdict":
        assert (row.chosen.verdict, row.rejected.verdict) == (Verdict.correct, Verdict.wrong)
    else:
        assert margin > 0


def _has_pair(own, contrast, low, high) -> bool:
    """Whether a source's extremes are a pair, whatever the draw of ties: false only if every draw fails."""
    good = [a for a in own if contrast == "score" or a.verdict is Verdict.correct]
    bad = [a for a in own if contrast == "score" or a.verdict is Verdict.wrong]
    if len(own) < 2 or not good or not bad:
        return False
    top, bottom = max(a.score for a in good), min(a.score for a in bad)
    if (contrast == "score" and top <= bottom) or (high is not None and not low <= top - bottom <= high):
        return False
    tops, bottoms = ([a for a in side if a.score == s] for side, s in ((good, top), (bad, bottom)))
    return all(a.response.text != b.response.text for a in tops for b in bottoms)


# ---- one rule per domain ------------------------------------------------------------------------

BY_DOMAIN = {
    "type": "by_domain",
    "rules": {
        "instruction": {"type": "same_source_pair", "min_margin": 0.01, "max_margin": 0.1},
        "math": {"type": "same_source_pair", "contrast": "verdict", "seed": 3},
    },
}


def test_each_domain_has_its_rule_and_a_domain_without_one_gives_no_row():
    rule = RULE.validate_python(with_seed(BY_DOMAIN, 7))
    assert isinstance(rule, ByDomain) and rule.row_type is PreferencePair and rule.side == "preference"
    assert (rule.needs_own, rule.needs_sources) == (False, True)
    assert {name: each.seed for name, each in rule.rules.items()} == {"instruction": 7, "math": 3}
    source = (scored("a", 0.5, 0, verdict="wrong"), scored("a", 0.45, 1, verdict="correct"))
    asked = {domain: rule(PromptGroup(prompt(domain=domain), source)) for domain in ("instruction", "math", "chinese")}
    assert asked["instruction"].chosen.score == 0.5 and asked["math"].chosen.score == 0.45
    assert asked["chinese"] == Drop(Reason.no_rule, "no rule for domain 'chinese'")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"a": {"type": "best"}, "b": {"type": "source_pair"}},
            "need the same rows; here: a SftExample, b PreferencePair",
        ),
        ({"a": {"type": "best"}, "b": {"type": "best", "side": "all"}}, "need the same side; here: a sft, b all"),
        ({"a": {"type": "by_domain", "rules": {}}}, "by_domain"),
        ({}, "at least 1 item"),
    ],
)
def test_rules_of_all_domains_make_one_kind_of_rows(rules, message):
    with pytest.raises(ValidationError, match=message):
        RULE.validate_python({"type": "by_domain", "rules": rules})


# ---- guards -------------------------------------------------------------------------------------


def _won(model: str, number: int) -> SftExample:
    return SftExample(prompt(f"p{number}"), scored(model, 1.0, prompt_id=f"p{number}"))


def test_max_share_cuts_the_source_that_wins_too_much():
    """a 6, b 2, c 2 at 0.5: 2 rows of a go, 4 of the 8 left are a's."""
    rows = [_won(model, n) for n, model in enumerate("aaaaaabbcc")]
    out = Guard(max_share=0.5, seed=1).left_out(rows, sources=("a", "b", "c"))
    assert len(out) == 2 and all(rows[place].response.response.model == "a" for place in out)
    assert {drop.reason for drop in out.values()} == {Reason.source_share}
    assert Guard(max_share=0.5, seed=2).left_out(rows, sources=("a", "b", "c")).keys() != out.keys()
    assert Guard(max_share=0.6).left_out(rows, sources=("a", "b", "c")) == {}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 30), min_size=1),
    st.integers(0, 9),
    st.sampled_from([0.1, 0.25, 0.3, 0.34, 0.4, 0.5, 0.6, 0.9]),
)
def test_caps_hold_and_are_the_largest_that_do(wins, others, share):
    allowed = allowed_wins(Counter(wins), others=others, share=share)
    left = others + sum(allowed.values())
    assert all(n <= share * left + 1e-6 for n in allowed.values())

    def holds(cap: int) -> bool:
        capped = [min(n, cap) for n in wins.values()]
        return all(n <= share * (others + sum(capped)) + 1e-9 for n in capped)

    best = max(cap for cap in range(31) if holds(cap))
    assert sum(allowed.values()) == sum(min(n, best) for n in wins.values())


def _pair(number: int, chosen: int, rejected: int) -> PreferencePair:
    name = f"p{number}"
    return PreferencePair(
        prompt(name),
        scored("a", 1.0, 0, prompt_id=name, text="x" * chosen),
        scored("a", 0.0, 1, prompt_id=name, text="y" * rejected),
    )


def test_max_longer_share_leaves_out_the_most_lopsided_rows():
    """Of 10 pairs 8 are longer on the chosen side; at 0.6 five go, and 3 of the 5 left are longer."""
    rows = [_pair(n, 10 + 10 * n, 10) for n in range(1, 9)] + [_pair(9, 5, 10), _pair(10, 10, 10)]
    out = Guard(max_longer_share=0.6).left_out(rows, sources=("a",))
    assert sorted(out) == [3, 4, 5, 6, 7] and {d.reason for d in out.values()} == {Reason.longer_share}
    left = [row for place, row in enumerate(rows) if place not in out]
    assert sum((tilt(row) or 0) > 0 for row in left) == 3


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=30),
    st.sampled_from([0.3, 0.5, 0.7]),
)
def test_longer_share_holds_and_takes_no_row_too_many(lengths, share):
    rows = [_pair(n, *sizes) for n, sizes in enumerate(lengths)]
    out = Guard(max_longer_share=share).left_out(rows, sources=("a",))
    longer = sum(chosen > rejected for chosen, rejected in lengths)
    left = len(rows) - len(out)
    assert longer - len(out) <= share * left + 1e-6
    assert not out or longer - len(out) + 1 > share * (left + 1) - 1e-6


def test_tilt_is_zero_for_equal_lengths_and_none_without_a_pair():
    assert tilt(_pair(0, 7, 7)) == 0 and tilt(_won("a", 0)) is None
    assert tilt(_pair(0, 19, 9)) == pytest.approx(math.log(2))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.integers(1, 9)), max_size=20))
def test_both_guards_hold_at_once(kinds):
    """Cutting for one may break the other: of 6 rows won by a with the shorter and 4 by b with the longer text chosen."""
    for rows_of in (kinds, [("a", 1, 9)] * 6 + [("b", 9, 1)] * 4):
        rows = [
            PreferencePair(
                prompt(f"p{n}"),
                scored(model, 1.0, 0, prompt_id=f"p{n}", text="x" * chosen),
                scored(model, 0.0, 1, prompt_id=f"p{n}", text="y" * rejected),
            )
            for n, (model, chosen, rejected) in enumerate(rows_of)
        ]
        out = Guard(max_share=0.5, max_longer_share=0.4).left_out(rows, sources=("a", "b"))
        left = [row for place, row in enumerate(rows) if place not in out]
        won = Counter(row.chosen.response.model for row in left)
        assert all(n <= 0.5 * len(left) for n in won.values())
        assert sum((tilt(row) or 0) > 0 for row in left) <= 0.4 * len(left) + 1e-9


def test_an_empty_guard_is_refused():
    with pytest.raises(ValidationError, match="a guard needs max_share or max_longer_share"):
        Guard()
