"""All records of all prompt sets, each as a prompt or with the reason why it is none.

The order is that of the sets and of the records in them. Of prompts with the same text or id the first stays. A set with
a limit is read in the order of a hash of the prompts' ids until it has enough; what is left over then is not looked at,
and only counted.
"""

import dataclasses
import hashlib
from collections.abc import Container, Sequence
from typing import Any

from fusion.artifact import Quarantined
from fusion.promptsets.fields import Record
from fusion.promptsets.records import Refused, content_digest, to_prompt
from fusion.promptsets.sets import PromptSet
from fusion.rows import Prompt

DUPLICATE_PROMPT = "duplicate_prompt"
HELD_OUT = "held_out"


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A record, and what became of it."""

    row_id: str
    """Set and record by number, e.g. `0:17`; it does not hold the path."""
    place: str
    """Where it stands, for people."""
    dataset: str
    """What its set is called."""
    row: Prompt | Quarantined

    def refused(self, reason: str, detail: str) -> "Candidate":
        """Return this candidate, refused."""
        row_id = self.row.prompt_id if isinstance(self.row, Prompt) else self.row.row_id
        return dataclasses.replace(self, row=Quarantined(row_id, reason, f"{self.place}: {detail}"))


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What was read of the sets."""

    candidates: list[Candidate]
    not_taken: dict[str, int]
    """Set -> records that its limit left out."""


def read_sets(
    sets: Sequence[PromptSet], *, held_out: Container[str] = frozenset(), evaluation: bool = False
) -> Reading:
    """Read all sets.

    Args:
        sets: in order.
        held_out: content digests of prompts that must not be trained on.
        evaluation: whether they are evaluation sets. Their rows are only compared: what they say counts, and nothing is asked
            of their ids, domains and other fields, which may be those of other rows, odd or missing.

    Raises:
        InputError: a file cannot be had or read.
    """
    reader = _Reader(held_out, evaluation=evaluation)
    for number, prompt_set in enumerate(sets):
        reader.read(number, prompt_set)
    return Reading(reader.candidates, reader.not_taken)


class _Reader:
    """Goes through the sets and remembers what it has seen."""

    def __init__(self, held_out: Container[str], *, evaluation: bool) -> None:
        self.candidates: list[Candidate] = []
        self.not_taken: dict[str, int] = {}
        self._held_out = held_out
        self._evaluation = evaluation
        self._places_of_ids: dict[str, str] = {}
        self._places_of_texts: dict[str, str] = {}

    def read(self, number: int, prompt_set: PromptSet) -> None:
        found = [
            _candidate(f"{number}:{index}", record, prompt_set, evaluation=self._evaluation)
            for index, record in enumerate(prompt_set.records())
        ]
        order = (
            range(len(found)) if prompt_set.limit is None else sorted(range(len(found)), key=lambda i: _rank(found[i]))
        )
        taken, prompts = [], 0
        for index in order:
            if prompts == prompt_set.limit:
                break
            candidate = self._checked(found[index], prompt_set)
            prompts += isinstance(candidate.row, Prompt)
            taken.append((index, candidate))
        self.candidates += [candidate for _, candidate in sorted(taken, key=lambda pair: pair[0])]
        if len(taken) < len(found):
            label = prompt_set.label
            self.not_taken[label] = self.not_taken.get(label, 0) + len(found) - len(taken)

    def _checked(self, candidate: Candidate, prompt_set: PromptSet) -> Candidate:
        prompt = candidate.row
        if isinstance(prompt, Quarantined):
            return candidate
        for rule in prompt_set.filters:
            if (why := rule.refuses(prompt)) is not None:
                return candidate.refused(rule.reason, why)
        if self._evaluation:
            return candidate
        digest = content_digest(prompt.messages)
        if digest in self._places_of_texts:
            return candidate.refused(DUPLICATE_PROMPT, f"same as {self._places_of_texts[digest]}")
        if prompt.prompt_id in self._places_of_ids:
            return candidate.refused("duplicate_id", f"also {self._places_of_ids[prompt.prompt_id]}")
        if digest in self._held_out:
            return candidate.refused(HELD_OUT, "a held-out prompt")
        self._places_of_ids[prompt.prompt_id] = self._places_of_texts[digest] = candidate.place
        return candidate


def _candidate(row_id: str, found: Record, prompt_set: PromptSet, *, evaluation: bool) -> Candidate:
    place, record = found
    try:
        row = (_evaluation_row if evaluation else _prompt)(record, prompt_set)
    except Refused as refused:
        row = Quarantined(place, refused.reason, f"{place}: {refused.detail}")
    return Candidate(row_id, place, prompt_set.label, row)


def _prompt(record: dict[str, Any], prompt_set: PromptSet) -> Prompt:
    return to_prompt(record, domain=prompt_set.domain, dataset=prompt_set.name)


def _evaluation_row(record: dict[str, Any], prompt_set: PromptSet) -> Prompt:
    """Return a row of an evaluation set as a prompt, without what is odd in it besides its conversation."""
    domain = prompt_set.domain or "evaluation"
    try:
        return to_prompt({k: v for k, v in record.items() if k not in ("id", "prompt_id")}, domain=domain)
    except Refused:
        return to_prompt({k: v for k, v in record.items() if k in ("prompt", "messages")}, domain=domain)


def _rank(candidate: Candidate) -> bytes:
    row = candidate.row
    name = row.prompt_id if isinstance(row, Prompt) else candidate.row_id
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
