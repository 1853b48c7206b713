"""The page's words for rows of FuseChat-3.0 and FuseRL: every role of every rule, and every reason of a drop."""

import pytest

from fusion.select import RULES, Reason
from serving.page.reasons import DROPS, Answer, rule_for, use_of, why


def answer(model: str, score: float, role: str | None = None, **fields) -> Answer:
    return Answer(model, "source", score, "stop", role, **fields)


PAIR = [answer("a", 0.9, "chosen", verdict="correct"), answer("a", 0.2, "rejected", verdict="wrong"), answer("b", 0.95)]


def test_every_reason_of_a_drop_has_words():
    assert set(DROPS) == {str(reason) for reason in Reason}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            {"type": "same_source_pair", "contrast": "verdict", "choose": "best"},
            [
                "chosen: highest reward among the correct of the answers of a, the source with the best answer that has a pair (0.9, a, correct)",
                "rejected: lowest reward among the wrong of the answers of a, the source with the best answer that has a pair (0.2, a, wrong)",
                "not used: another source supplies the pair, or this one has none (0.95, b)",
            ],
        ),
        (
            {"type": "source_pair", "contrast": "score"},
            [
                "chosen: highest reward of all source answers (0.9, a, correct)",
                "rejected: lowest reward of all source answers (0.2, a, wrong)",
                "not used: the rule took others (0.95, b)",
            ],
        ),
    ],
)
def test_pairs_say_what_they_were_chosen_by(rule, words):
    assert [why(each, PAIR, rule, dropped=False) for each in PAIR] == words


def test_weighted_rows_say_their_weights():
    held = [answer("a", 0.9, "responses", weight=0.731), answer("b", 0.8, "responses", weight=0.269), answer("a", 0.1)]
    rule = {"type": "weighted_responses", "of": "sources"}
    assert [use_of(each.role, rule["type"]) for each in held] == ["chosen", "chosen", "unused"]
    assert why(held[0], held, rule, dropped=False) == (
        "chosen: among the highest rewards of the answers of a; the model learns to give it (0.9, a, weight 0.731)"
    )
    groups = [*held[:2], answer("a", 0.5, "responses", weight=0.731)]
    assert why(groups[2], groups, {"type": "weighted_groups"}, dropped=False) == (
        "compared: number 2 of 2 answers whose rewards are compared with each other (0.5, a, weight 0.731)"
    )


def test_the_rule_of_a_domain_is_the_one_that_is_told():
    rule = {"type": "by_domain", "rules": {"math": {"type": "best", "only_correct": True}, "*": {"type": "best"}}}
    assert rule_for(rule, "math")["only_correct"] and rule_for(rule, "code") == {"type": "best"}
    wrong = answer("a", 0.9, verdict="wrong")
    assert why(wrong, [wrong], rule_for(rule, "math"), dropped=False) == (
        "not used: the rule takes correct answers only (0.9, a, wrong)"
    )
    lone = {"type": "by_domain", "rules": {"math": {"type": "best"}}}
    assert why(wrong, [wrong], rule_for(lone, "chinese"), dropped=True) == (
        "not used: there is no rule for the domain of the prompt (0.9, a, wrong)"
    )


@pytest.mark.parametrize("rule_type", RULES, ids=lambda r: r.__name__)
def test_no_rule_falls_through_to_words_of_nothing(rule_type):
    """Each role of each rule has words of its own, not its bare name."""
    from fusion.rows import roles

    fields = {"temperature": 1.0} if "temperature" in rule_type.model_fields else {}
    fields |= {"source_chosen": 1} if "source_chosen" in rule_type.model_fields else {}
    rule = rule_type(**fields).model_dump()
    for role in roles(rule_type(**fields).row_type):
        mine = answer("a", 0.5, role)
        assert "taken as" not in why(mine, [mine], rule, dropped=False)
