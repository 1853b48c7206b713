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


def use_of(role: str | None) -> Use:
    """Return what a role of a training row is for."""
    if role is None:
        return "unused"
    if role == "responses":
        return "compared"
    return "rejected" if role.endswith("rejected") else "chosen"


def why(answer: Answer, answers: Sequence[Answer], rule: Mapping[str, Any], *, dropped: bool) -> str:
    """Return why `answer` has its role, or none, among all answers to its prompt."""
    facts = f"({answer.score:.4g}, {answer.model})"
    if answer.role is not None:
        return f"{use_of(answer.role)}: {_role(answer, answers, rule)} {facts}{_tied(answer, answers)}"
    return f"not used: {_unused(answer, answers, rule, dropped=dropped)} {facts}"


def _role(answer: Answer, answers: Sequence[Answer], rule: Mapping[str, Any]) -> str:
    match rule["type"], answer.role:
        case "best", _:
            return f"highest reward {_ALL_SOURCES}; the model learns to give it"
        case "quadruple", "source_chosen":
            return f"highest reward {_ALL_SOURCES}"
        case "preference_set", "source_chosen":
            return f"best answer of one of the {rule['source_chosen']} best sources"
        case "preference_set", "source_rejected":
            return f"one of the {rule['source_rejected']} lowest source answers, below every chosen one"
        case "source_pair", "chosen":
            return f"highest reward {_ALL_SOURCES}"
        case "source_pair", "rejected":
            same = f"of the answers of {answer.model}, which gave the best one"
            return f"lowest reward {same if rule.get('same_source') else _ALL_SOURCES}"
        case "response_group", _:
            group = [other.score for other in answers if other.role == "responses"]
            rank = 1 + sum(score > answer.score for score in group)
            return f"number {rank} of {len(group)} answers whose rewards are compared with each other"
        case _, ("target_chosen" | "chosen"):
            return f"highest reward {_OWN}"
        case _, "rejected":
            return f"lowest reward {_OWN}"
    return f"taken as {answer.role} by rule {rule['type']}"


def _unused(answer: Answer, answers: Sequence[Answer], rule: Mapping[str, Any], *, dropped: bool) -> str:
    read = _sides(rule)
    if answer.side not in read:
        whose = "source answers" if answer.side == "source" else "the target's own answers"
        return f"rule {rule['type']} does not read {whose}"
    if answer.finish_reason == "length" and not rule.get("allow_length"):
        return "cut at the token limit; the rule takes finished answers only"
    if dropped:
        return "the prompt gave no row"
    taken = [other for other in answers if other.role is not None and other.side == answer.side]
    best = [other.score for other in taken if use_of(other.role) == "chosen"]
    worst = [other.score for other in taken if use_of(other.role) == "rejected"]
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
