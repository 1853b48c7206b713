"""Why an answer was chosen, rejected or left out, in words.

The rules themselves are in `fusion.select`; here is what each says of a role, written for people who look at
a row. Nothing is decided here: roles come from the row on disk.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Use = Literal["chosen", "rejected", "compared", "unused"]
Side = Literal["source", "own"]

_ALL_SOURCES = "of all source answers"
_OWN = "of the target's own answers"

DROPS = {
    "no_source_response": "no source gave an answer that could be scored",
    "no_own_response": "the target gave no answer that could be scored",
    "only_truncated": "every answer reached the token limit",
    "single_response": "there is one answer only, so nothing to compare it with",
    "tie": "the best and the worst answer have the same reward",
    "below_margin": "the best and the worst answer are closer than min_margin",
    "above_margin": "the best and the worst answer are further apart than max_margin",
    "identical_text": "the best and the worst answer have the same text",
    "no_correct": "a verifier judged no answer correct",
    "no_wrong": "a verifier judged no answer wrong",
    "length_ratio": "one answer is longer than max_length_ratio times the other",
    "no_rule": "there is no rule for its domain",
    "source_share": "its source wins more rows than the guard's max_share",
    "longer_share": "too many rows have the longer answer chosen, and this one is among the most lopsided",
}
"""What the reason of a dropped prompt means."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the words depend on."""

    model: str
    side: Side
    score: float
    finish_reason: str
    role: str | None
    """Role in the row, None where the row does not hold it."""
    verdict: str | None = None
    """What a verifier said of it."""
    weight: float | None = None
    """Its share of a row with several weighted answers."""


def use_of(role: str | None, rule_type: str) -> Use:
    """Return what a role of a training row of some rule is for."""
    if role is None:
        return "unused"
    if role == "responses":
        return "chosen" if rule_type == "weighted_responses" else "compared"
    return "rejected" if role.endswith("rejected") else "chosen"


def why(answer: Answer, answers: Sequence[Answer], rule: Mapping[str, Any], *, dropped: bool) -> str:
    """Return why `answer` has its role, or none, among all answers to its prompt."""
    judged = f", {answer.verdict}" if answer.verdict else ""
    share = "" if answer.weight is None else f", weight {answer.weight:.3g}"
    facts = f"({answer.score:.4g}, {answer.model}{judged}{share})"
    if answer.role is not None:
        return f"{use_of(answer.role, rule['type'])}: {_role(answer, answers, rule)} {facts}{_tied(answer, answers)}"
    return f"not used: {_unused(answer, answers, rule, dropped=dropped)} {facts}"


def _role(answer: Answer, answers: Sequence[Answer], rule: Mapping[str, Any]) -> str:
    match rule["type"], answer.role:
        case "rows", role:
            return f"{str(role).replace('_', ' ')} in the file that was given"
        case "best", _:
            correct = " that are correct" if rule.get("only_correct") else ""
            return f"highest reward {_ALL_SOURCES}{correct}; the model learns to give it"
        case "quadruple", "source_chosen":
            return f"highest reward {_ALL_SOURCES}"
        case "preference_set", "source_chosen":
            return f"best answer of one of the {rule['source_chosen']} best sources"
        case "preference_set", "source_rejected":
            return f"one of the {rule['source_rejected']} lowest source answers, below every chosen one"
        case ("source_pair" | "same_source_pair" | "weighted_pairs") as kind, ("chosen" | "rejected") as role:
            whose = _ALL_SOURCES if kind == "source_pair" else f"of the answers of {answer.model}"
            return f"{_extreme(rule, role)} {whose}{_which_source(rule)}"
        case "weighted_responses", _:
            best = _ALL_SOURCES if rule.get("of") == "answers" else f"of the answers of {answer.model}"
            return f"among the highest rewards {best}; the model learns to give it"
        case (("response_group" | "weighted_groups"), _):
            apart = rule["type"] == "weighted_groups"  # each source is compared within itself
            taken = [other for other in answers if other.role == "responses"]
            group = [other.score for other in taken if not apart or other.model == answer.model]
            rank = 1 + sum(score > answer.score for score in group)
            return f"number {rank} of {len(group)} answers whose rewards are compared with each other"
        case _, ("target_chosen" | "chosen"):
            return f"{_extreme(rule, 'chosen')} {_OWN}"
        case _, "rejected":
            return f"{_extreme(rule, 'rejected')} {_OWN}"
    return f"taken as {answer.role} by rule {rule['type']}"


def _extreme(rule: Mapping[str, Any], role: Literal["chosen", "rejected"]) -> str:
    """What a rule looks for on a side of a pair."""
    if rule.get("contrast") == "verdict":
        return "highest reward among the correct" if role == "chosen" else "lowest reward among the wrong"
    return "highest reward" if role == "chosen" else "lowest reward"


def _which_source(rule: Mapping[str, Any]) -> str:
    """Why a source supplies the pair, where a rule takes one of several."""
    if rule["type"] != "same_source_pair":
        return ""
    return {
        "best": ", the source with the best answer that has a pair",
        "widest": ", the source with the widest gap",
        "closest": ", the source with the smallest gap",
        "random": ", a source drawn among those that have a pair",
    }[rule["choose"]]


def rule_for(rule: Mapping[str, Any], domain: str) -> Mapping[str, Any]:
    """Return the rule that a prompt of a domain met: of `by_domain` its own, which may be none."""
    if rule["type"] != "by_domain":
        return rule
    return rule["rules"].get(domain) or rule["rules"].get("*") or rule


def _unused(answer: Answer, answers: Sequence[Answer], rule: Mapping[str, Any], *, dropped: bool) -> str:
    read = _sides(rule)
    if rule["type"] != "by_domain" and answer.side not in read:
        whose = "source answers" if answer.side == "source" else "the target's own answers"
        return f"rule {rule['type']} does not read {whose}"
    if rule["type"] == "by_domain":
        return "there is no rule for the domain of the prompt"
    if answer.finish_reason == "length" and not rule.get("allow_length"):
        return "cut at the token limit; the rule takes finished answers only"
    if dropped:
        return "the prompt gave no row"
    if rule.get("only_correct") and answer.verdict != "correct":
        return "the rule takes correct answers only"
    taken = [other for other in answers if other.role is not None and other.side == answer.side]
    if rule["type"] in ("same_source_pair", "weighted_pairs", "weighted_groups"):
        taken = [other for other in taken if other.model == answer.model]
        if not taken:
            return "another source supplies the pair, or this one has none"
    best = [other.score for other in taken if use_of(other.role, rule["type"]) == "chosen"]
    worst = [other.score for other in taken if use_of(other.role, rule["type"]) == "rejected"]
    if answer.score in (*best, *worst):
        return "same reward as the one that was taken; the seed drew the other"
    if best and worst and min(worst) < answer.score < max(best):
        return "between the chosen and the rejected answer"
    if best and answer.score < max(best):
        return "lower reward than the chosen answer"
    return "the rule took others"


def _sides(rule: Mapping[str, Any]) -> tuple[Side, ...]:
    match rule["type"]:
        case "quadruple" | "preference_set":
            return ("source", "own")
        case "on_policy_pair":
            return ("own",)
        case "response_group":
            return ("own",) if rule.get("of") == "own" else ("source",)
        case _:
            return ("source",)


def _tied(answer: Answer, answers: Sequence[Answer]) -> str:
    if answer.role == "responses":
        return ""
    tied = sum(
        other is not answer and other.role is None and other.side == answer.side and other.score == answer.score
        for other in answers
    )
    return f"; tied with {tied} other{'s' if tied > 1 else ''}, drawn with the seed" if tied else ""
