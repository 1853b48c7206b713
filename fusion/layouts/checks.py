"""What a record that can be read must say to become a row: answers with words in them, and sides that differ.

Forms read whatever a file says; it is judged here, as selection rules and training judge our own answers, so that a
published row is worth what a selected one is.
"""

import dataclasses
import re

from fusion.layouts.example import OTHER, Answer, Example, Kind, is_scored
from fusion.promptsets.common import DOMAIN
from fusion.promptsets.records import Refused

_SIDES = {Kind.pair: ("chosen", "rejected"), Kind.wrpo: ("target_chosen", "rejected")}
"""Roles of the two answers that a loss sets against each other."""


def check_domain(domain: str, called: str) -> None:
    """Raise Refused for a domain that no recipe could name."""
    if not re.fullmatch(DOMAIN, domain):
        raise Refused("bad_field", f"{called} {domain[:80]!r} must be 1 to 64 characters without white space and /")


def checked(example: Example) -> Example:
    """Return the example as it becomes a row.

    A source's answer to avoid that is also a preferred one stays an answer and leaves the row, as in the rule
    `preference_set`.

    Raises:
        Refused: bad_field, for a domain; empty_response; identical_text, for sides that are one text, and for a group whose best and worst are.
    """
    check_domain(example.prompt.domain, "domain")
    for answer in example.answers:
        if answer.role != OTHER and not answer.text.strip():
            raise Refused("empty_response", f"the answer in the role {answer.role} is empty")
    if example.kind in _SIDES:
        better, worse = (example.of(role) for role in _SIDES[example.kind])
        if {answer.text for answer in better} & {answer.text for answer in worse}:
            raise Refused("identical_text", f"{' and '.join(_SIDES[example.kind])} are one text")
    if is_scored(example) and len(_extremes(example.of("responses"))) == 1:
        raise Refused("identical_text", "the best and the worst answer are one text")
    preferred = {answer.text for answer in example.of("source_chosen")}
    if not any(answer.text in preferred for answer in example.of("source_rejected")):
        return example
    return dataclasses.replace(example, answers=tuple(_avoided(answer, preferred) for answer in example.answers))


def _extremes(answers: tuple[Answer, ...]) -> set[str]:
    """Return the texts of the answers that have the highest or the lowest score."""
    scores = [answer.score for answer in answers if answer.score is not None]
    return {answer.text for answer in answers if answer.score in (max(scores), min(scores))}


def _avoided(answer: Answer, preferred: set[str]) -> Answer:
    both = answer.role == "source_rejected" and answer.text in preferred
    return dataclasses.replace(answer, role=OTHER) if both else answer
